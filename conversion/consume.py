"""`--consume`: a source goes as what is made of it is verified, so that both together need hardly more disk than one.

An output's tensor is made from all ranks, and the ranks lie one behind the other in an archive: whole parts would
become free late, and many at a time. So a stretch of a part is given back to the file system as soon as no file of the
output needs it (`holes`), and the part is deleted when nothing of it is needed any more. Where a file system has no
holes, parts are deleted whole.

What is promised:

- Nothing goes that was not verified. A file of the output is written, on the disk, read back from there and told in
  the journal, which is on the disk as well; then the log of this module says on the disk what is about to go; then it
  goes.
- What the conversion needs to be planned again (headers, pickles, small tensors) is kept in the output's state before
  anything goes, so a run that is stopped anywhere goes on, whatever of the source is left.
- What is gone is never read: it would be zeros. A run that needs it, because a verified file was damaged since, names
  the tensors and the files to be downloaded again.
- Nothing else goes: only files that tensors lie in, plain ones, each the file that it was.

Order at the end: everything is checked, what is left of the source goes, the mark beside it goes, the output gets its
name.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .byte_ranges import count, merged, without
from .byte_source import ByteSource
from .consume_check import check_numbers, refuse_what_stays, tensors_at_risk
from .consume_file import ChangedPartError, ConsumableFile, Kept
from .consume_layout import FileLayout, layouts, peak_bytes, segments
from .consume_log import ReleaseLog
from .consume_open import Opened
from .consume_skeleton import Former, Header, Skeleton, write_skeleton
from .consume_state import CONSUMED, remove_mark, write_mark
from .file_hooks import FileHooks
from .folder_claim import NO_LOCKS
from .holes import block_bytes, can_punch
from .job import Job, progress_bar
from .journal import LINE_BYTES
from .operations import CheckpointError
from .output_path import flush, incomplete_of
from .source_file import FileState
from .state_map import PlannedTensor
from .writer import OutputFile, WriteError, sources_of

SHOWN = 8

BLOCKS_BEYOND = 4
"""That a file takes beyond its bytes: what is left of its last block, and where its pieces are."""

STATE_FILES = 5
"""Journal, lock, skeleton, log, mark."""


class Consumption(FileHooks):
    """Consumes the source of a job.

    Args:
        job: As it was planned from `opened.place`.
        opened: The source.
        output: What is made.
        show_progress: Whether bars go to stderr.

    Attributes:
        job: The same, known as it was when all of the source was there.

    Raises:
        ConversionError: the source is not what it was, cannot be deleted, or is being converted with other options.
    """

    files_at_once = 2

    def __init__(self, job: Job, opened: Opened, output: Path, show_progress: bool = True):
        self._opened = opened
        self._output = output
        self._show_progress = show_progress
        self._layouts = _of_this_machine(layouts(job.source, job.files))
        self._names = {file: _name_below(opened.base, file.path) for file in self._layouts}
        self._folders = sorted({file.path.parent for file in self._layouts})
        there = [folder for folder in self._folders if folder.is_dir()]
        self._punches = all(can_punch(folder) for folder in there)
        self._block = max((block_bytes(folder) for folder in there), default=1)
        self._skeleton = opened.skeleton
        self._log = opened.log
        self._verified: set[str] = set()
        self._outputs = [file.name for file in job.files]
        self._is_marked = False
        self._turn = threading.Lock()
        self._locks: list[int] = []
        self.job = job if self._skeleton is None else replace(job, known_as=self._skeleton.header.known_as)
        if self._skeleton is not None:
            self._check_former(self._skeleton)

    def describe(self) -> str:
        """What will be deleted, and the disk that is needed meanwhile, in a few lines."""
        left = [file for file in self._layouts if not file.is_deleted]
        made = incomplete_of(self._output)
        need = self.disk_needed({file.name: file.size for file in self.job.files if not (made / file.name).is_file()})
        how = "" if self._punches else "; this file system has no holes, so files go whole, and late"
        lines = [
            f"  --consume    deletes {self._named(left)} as the output is verified",
            f"  disk needed  {need:,} bytes with --consume, beside what the source takes now{how}",
        ]
        if self._skeleton is None and (nbytes := self._bytes_at_risk()):
            lines.append(f"  note: {nbytes:,} bytes of weights are read once before, to see that all numbers fit")
        return "\n".join(lines + [f"  note: {notice}" for notice in self._opened.notices])

    @property
    def question(self) -> str:
        """What the user is asked before anything is deleted."""
        left = [file for file in self._layouts if not file.is_deleted]
        nbytes = sum(os.stat(file.path).st_blocks * 512 for file in left)
        return f"--consume deletes {self._named(left)}, {nbytes:,} bytes on the disk, as the output is verified."

    # What `job.run` calls

    def begin(self, state: Path) -> None:
        """Keeps what will be needed of the source, if this is the first run.

        Raises:
            ConversionError: another run consumes the same source; a number that would end the conversion half way.
            OSError: the system refuses.
        """
        self._lock_source()
        folder = state / CONSUMED
        if self._skeleton is None:
            with self._bar("reading", self._bytes_at_risk()) as progress:
                check_numbers(self.job.source, self.job.plan, progress)
            folder.mkdir(exist_ok=True)
            flush(state)
            with self._bar("keeping", self._kept_bytes) as progress:
                self._skeleton = write_skeleton(folder, self._header(), list(self._layouts), progress)
            for number, (file, layout) in enumerate(self._layouts.items()):
                file.kept = Kept(layout.kept, self._skeleton.positions(number), self._skeleton)
        if self._log is None:
            self._log = ReleaseLog(folder)

    def before_writing(self, left: Sequence[tuple[str, PlannedTensor]]) -> None:
        """Makes sure that what will be written can still be read.

        Raises:
            CheckpointError: it cannot; the tensors and the files that are needed are named.
        """
        lost: list[str] = []
        needed: set[Path] = set()
        for _, tensor in left:
            gone = {file.path for file, start, nbytes in self._reads(tensor) if file.available(start, nbytes) < nbytes}
            needed |= gone
            lost += [tensor.name] if gone else []
        if lost:
            names = _shown([_name_below(self._opened.base, path) for path in sorted(needed)])
            raise CheckpointError(
                f"{incomplete_of(self._output)}: {len(lost)} tensors are not there, or were damaged after they had "
                f"been verified, and their source is gone: {_shown(lost)}. Put these files, as they were downloaded, "
                f"into {self._opened.base}: {names}. Then run the same command again; everything else is kept."
            )

    def verified(self, path: Path, file: OutputFile, sha256: str) -> bool:
        """Releases what only this file, and files verified before it, were made from.

        Raises:
            ChangedPartError: somebody else changed a file of the source.
            OSError: the system refuses.
        """
        with self._turn:
            self._verified.add(file.name)
            assert self._log is not None
            due = [one for one, layout in self._layouts.items() if self._is_due(one, layout)]
            if due or file.name not in self._log.said.verified:  # of those without anything due, too: others share it
                self._log.note({"verified": file.name}, durable=True)
                flush(self._log.path.parent)
                self._mark()
                for one in due:
                    self._release(one, self._layouts[one])
                self._log.note({"released": file.name})
        return False

    def complete(self) -> None:
        """Deletes what is left: what no file of the output is made from, and what lies around it.

        Raises:
            ChangedPartError: somebody else changed a file.
            OSError: the system refuses.
        """
        missing = set(self._outputs) - self._verified
        assert not missing, f"not verified: {missing}"
        for file in self._layouts:
            file.delete()
        for consumed in self._folders:
            if consumed.is_dir():
                flush(consumed)
                remove_mark(consumed)
                flush(consumed)

    def disk_needed(self, left: Mapping[str, int]) -> int:
        """The most that is taken at any time beside what is taken now; what goes elsewhere gives nothing back."""
        state = self._state_bytes
        existing = next(path for path in self._output.absolute().parents if path.exists())
        if {os.stat(folder).st_dev for folder in self._folders if folder.is_dir()} - {os.stat(existing).st_dev}:
            return state + sum(left.values())
        done = set(self._outputs) - set(left)
        there = [layout for file, layout in self._layouts.items() if not file.is_deleted]
        return state + peak_bytes(left, done, there, self._block, self._punches)

    def may_discard(self) -> bool:
        """Only as long as nothing was released: afterwards the output is the only copy."""
        return self._log is None or not self._log.said.verified

    # What that takes

    def _is_due(self, file: ConsumableFile, layout: FileLayout) -> bool:
        """Whether there is anything in a file that can go now."""
        if file.is_deleted:
            return False
        if layout.is_free(self._verified):
            return True
        return self._punches and bool(without(layout.free(self._verified), merged(file.gone)))

    def _release(self, file: ConsumableFile, layout: FileLayout) -> None:
        assert self._log is not None
        if layout.is_free(self._verified):
            file.delete()
            return
        self._log.note_state(self._names[file], file.release(layout.free(self._verified)))

    def _mark(self) -> None:
        """Marks the folders that something is about to go from; once."""
        assert self._skeleton is not None
        for folder in self._folders:
            if folder.is_dir() and not self._is_marked:
                write_mark(folder, self._output, self._skeleton.digest)
        self._is_marked = True

    def _reads(self, tensor: PlannedTensor) -> list[tuple[ConsumableFile, int, int]]:
        """(file, first byte, bytes) of everything a tensor is made from."""
        found = []
        for part, name in sources_of(tensor):
            lazy = self.job.source.files[self.job.source.number_of(part, name)]
            stored = lazy.tensors[name]
            for segment in segments(lazy.bytes, stored.offset, stored.extent):
                assert isinstance(segment.source, ConsumableFile)
                found.append((segment.source, segment.start, segment.nbytes))
        return found

    def _check_former(self, skeleton: Skeleton) -> None:
        """Makes sure that this job is the one that was begun, and the source the one that it was begun with."""
        header = skeleton.header
        same = [former.layout for former in header.files] == list(self._layouts.values())
        if not same or header.fingerprint != self.job.fingerprint:
            raise WriteError(
                f"{incomplete_of(self._output)}: begun from another source, with other options, settings or versions, "
                "and a part of that source is deleted. Run the same command as then, with the same versions of this "
                "package and transformers. Do not remove the folder: it holds the only copy of what was deleted."
            )
        for lazy, before in zip(self.job.source.files, header.samples, strict=True):
            for place, digest in lazy.bytes.samples.items():
                if before.get(place) != digest:
                    where = next(segments(lazy.bytes, place, 1)).source.path
                    raise ChangedPartError(where, "its content is another than at first")

    def _header(self) -> Header:
        files = [Former(self._names[file], _portable(file.state), layout) for file, layout in self._layouts.items()]
        samples = [lazy.bytes.samples for lazy in self.job.source.files]
        return Header(self.job.identity, self.job.fingerprint, self._outputs, files, samples)

    def _lock_source(self) -> None:
        """Holds the folders of the source until the process ends, so that two runs do not consume the same."""
        for folder in self._folders:
            if not folder.is_dir():
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._locks.append(descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise WriteError(f"{folder}: another conversion consumes the files in there. Wait for it.") from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise

    def close(self) -> None:
        """Lets go of the source."""
        while self._locks:
            os.close(self._locks.pop())
        if self._log is not None:
            self._log.close()

    @property
    def _kept_bytes(self) -> int:
        return sum(count(layout.kept) for layout in self._layouts.values())

    @property
    def _state_bytes(self) -> int:
        """What the state takes that is not there yet, and what files take beyond their bytes."""
        lines = LINE_BYTES * len(self.job.plan.tensors)
        beyond = BLOCKS_BEYOND * self._block * (len(self._outputs) + len(self._layouts) + STATE_FILES)
        kept = 0 if self._skeleton is not None else self._kept_bytes + len(self._header().encode())
        return kept + lines + beyond

    def _bytes_at_risk(self) -> int:
        source = self.job.source
        return sum(
            source.files[source.number_of(part, name)].tensors[name].spec.nbytes
            for part, name, _ in tensors_at_risk(source, self.job.plan)
        )

    def _bar(self, what: str, nbytes: int) -> "contextlib.AbstractContextManager[Callable[[int], object]]":
        return progress_bar(what, nbytes, 0, self._show_progress and nbytes > 0)

    def _named(self, files: Sequence[ConsumableFile]) -> str:
        """Files in words."""
        names = sorted(self._names[file] for file in files)
        if not names:
            return "nothing (all of the source is deleted)"
        shown = f"{names[0]} .. {names[-1]}" if len(names) > SHOWN else ", ".join(names)
        return f"{len(names)} files in {self._opened.base}: {shown}"


def _of_this_machine(found: Mapping[ByteSource, FileLayout]) -> dict[ConsumableFile, FileLayout]:
    """The same, if all files can be deleted; raises `ConversionError` otherwise."""
    refuse_what_stays(found)
    files = {file: layout for file, layout in found.items() if isinstance(file, ConsumableFile)}
    assert len(files) == len(found), "a source that was not opened to be consumed"
    return files


def _portable(state: FileState) -> FileState:
    """What of a state holds after a restart of the machine."""
    return FileState(state.size, state.mtime_ns, state.inode, 0, 0)


def _name_below(base: Path, path: Path) -> str:
    return Path(os.path.relpath(path, base)).as_posix()


def _shown(names: Collection[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more


__all__ = ["Consumption"]
