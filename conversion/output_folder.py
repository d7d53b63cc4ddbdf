"""The life of an output folder: refused if it exists, filled beside its final name, resumed, published by a rename.

Everything is made in `<output>.incomplete/`. Its `.conversion/` holds a journal with a line for each finished tensor
and small file, `partial/` with the weight files being filled, and `small/` where the small files are written; what is
complete moves out of them. At the very end `.conversion/` goes and the folder gets its name, by way of a hidden name
that tells which job has finished: so whatever stands under the output's name is complete, a run that was killed goes
on behind the last finished tensor, and nothing is left beside the output (`publication.py`).

A weight file is partial, finished, then verified (`verification.py`), and may then be shipped: it is safe elsewhere,
so the folder neither holds it nor misses it.

What the journal does not list was made by somebody else. It is neither published nor removed.
"""

import contextlib
import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from .byte_source import SourceChangedError
from .file_hooks import FileHooks
from .folder_claim import Claim
from .journal import STATE, Journal, Progress, is_plain_name
from .lazy_files import TensorFiles
from .output_path import check_output, flush, incomplete_of, refuse_existing, rename_new
from .publication import Publication, remove_state
from .recheck import checksum_around, checksum_of, damaged_tensors, recheck
from .strangers import PARTIAL, SMALL, refuse_strangers
from .writer import DtypeRangeError, OutputFile, Task, WriteError, sources_of, stream, system_errors

SMALL_FILES_BYTES = 32 * 2**20  # config, tokenizer, index, card
ADVICE = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some of your quota",
    errno.EFBIG: "Choose a smaller --max-shard-size or raise the limit on the size of files",
    errno.EIO: "Look after the disk",
    errno.EROFS: "Make the file system writable",
    errno.EACCES: "Allow writing there",
    errno.EPERM: "Allow writing there",
}
USELESS = (DtypeRangeError, SourceChangedError)
"""Errors after which what was written is of no use."""


class OutputFolder:
    """An output folder under construction; a context manager that holds its lock.

    Args:
        output: The final name. Must not exist.
        files: What the folder will hold, beside small files.
        fingerprint: Identifies source, plan and options: work of another fingerprint is not continued.
        hooks: What happens to verified files; default: nothing.

    Raises:
        WriteError: the output exists; another run holds the lock; the incomplete folder belongs to other work or to
            somebody else; not enough disk; the system refuses to write.
    """

    def __init__(self, output: Path, files: Sequence[OutputFile], fingerprint: str, hooks: FileHooks | None = None):
        self.output = output
        self.files = {file.name: file for file in files}
        self.path = incomplete_of(output)
        self._hooks = FileHooks() if hooks is None else hooks
        self._is_acted_on = hooks is not None
        self._state = self.path / STATE
        self._journal = Journal(self._state, self.files, fingerprint, self._hooks.ships)
        self._progress = Progress({name: {} for name in self.files})
        self._claim = Claim(self.path)
        self._added: set[str] = set()
        self._publication = Publication(output, self.path, self.files, fingerprint, self._hooks.ships)
        for name in self.files:
            if not is_plain_name(name):
                raise WriteError(f"{name!r} cannot be the name of a file in {output}.")

    def __enter__(self) -> "OutputFolder":
        check_output(self.output)
        try:
            if not self._publication.finish_former():
                self._begin()
        except OSError as error:
            self._claim.release()
            raise self._explained(error) from error
        except BaseException:
            self._claim.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self.is_published and not issubclass(kind, KeyboardInterrupt):
            self._clean_up(everything=issubclass(kind, USELESS) and self._hooks.may_discard())
        self._journal.close()
        self._claim.release()
        if isinstance(error, OSError):
            raise self._explained(error) from error

    @property
    def state(self) -> Path:
        """The folder of the state."""
        return self._state

    @property
    def is_published(self) -> bool:
        """Whether the folder has its name: at the end, or at once where a run was killed just before."""
        return self._publication.is_done

    @property
    def checksums(self) -> dict[str, dict[str, int]]:
        """Weight file -> tensor that is written -> CRC-32."""
        return self._progress.checksums

    @property
    def finished_files(self) -> list[str]:
        """Names of the files that are complete and in the folder."""
        return [name for name in self.files if (self.path / name).is_file()]

    @property
    def verified_files(self) -> dict[str, str]:
        """Name -> SHA-256 of the files that were verified, in the order of the plan, those shipped since included."""
        return {name: self._progress.verified[name] for name in self.files if name in self._progress.verified}

    @property
    def shipped_files(self) -> list[str]:
        """Names of the files that are kept elsewhere, and not in the folder."""
        return [name for name in self.files if name in self._progress.shipped]

    @property
    def small_files(self) -> list[str]:
        """Names of the small files that are there and as they were written."""
        return sorted(filter(self._is_as_written, self._progress.small))

    @property
    def done_bytes(self) -> int:
        """Bytes of the tensors already written."""
        return sum(
            t.spec.nbytes for file in self.files.values() for t in file.tensors if t.name in self.checksums[file.name]
        )

    def recheck(
        self, on_bytes: Callable[[int], object], holds: Callable[[str], bool | None] = lambda name: None
    ) -> list[str]:
        """Reads again what a former run has written; what does not hold will be written again.

        Args:
            on_bytes: Called with the number of bytes read, except by `holds`.
            holds: Verifies a finished file, which is then not read once more; whether it is sound, None if this is
                not looked at.

        Returns:
            The files that were damaged.
        """

        def read(name: str, path: Path) -> list[str]:
            is_sound = holds(name) if path == self.path / name else None
            if is_sound:
                return []
            try:
                damaged = damaged_tensors(path, self.files[name], self.checksums[name], on_bytes)
            except OSError:
                if is_sound is None:
                    raise
                damaged = []  # not to be read, which is why it does not hold
            return damaged if damaged or is_sound is None else list(self.checksums[name])

        damaged = recheck(self._progress, self.files, self._place, read, skip=self._progress.shipped)
        for name in damaged:
            self._progress.verified.pop(name, None)
            if self._place(name) == self.path / name:  # finished, and now to be mended
                self._partial(name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / name).rename(self._partial(name))
        if damaged:
            self._journal.restart(self._progress)
        return damaged

    def add(self, write: Callable[[Path], object]) -> None:
        """Adds small files.

        Args:
            write: Writes them into the folder it is given, which is empty: so what it wrote is known to be ours.

        Raises:
            WriteError: something else has the name of one of them.
        """
        staging = self._state / SMALL
        self._remove_folder(staging)
        staging.mkdir()
        with system_errors(staging):
            write(staging)
        for path in sorted(path for path in staging.rglob("*") if not path.is_dir()):
            name = path.relative_to(staging).as_posix()
            target = self.path / name
            flush(path)
            checksum = checksum_of(path)
            self._journal.note({"small": name, "crc32": checksum})
            if name not in self._progress.small and os.path.lexists(target):
                refuse_strangers(self.path, self.files, self._progress.small)
            self._progress.small.setdefault(name, set()).add(checksum)
            self._added.add(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)

    def fill(
        self,
        order: Sequence[tuple[str, int]],
        source: TensorFiles,
        on_bytes: Callable[[int], object],
        before_tensor: Callable[[str, bool], object] = lambda name, is_first: None,
        on_finished: Callable[[str], object] = lambda name: None,
        threads: int = 1,
    ) -> None:
        """Writes every tensor that is not written yet.

        Args:
            order: (file name, position in that file's `tensors`), in the order to be written.
            source: Where the pieces are.
            on_bytes: Called with the number of bytes written, after each block.
            before_tensor: Called before a tensor is read, with the name of its file and whether that is now begun or
                gone on with; may wait, or raise to end the work.
            on_finished: Called with the name of a file that is complete and in its place, in the writing thread.
            threads: How many compute what is not copied.

        Raises:
            OSError: the system refuses, e.g. the disk is full.
            WriteError: a number does not fit its dtype.
        """
        opened: dict[str, tuple[int, dict[str, int]]] = {}  # file -> descriptor, offset of each tensor
        left = [(name, self.files[name].tensors[position]) for name, position in order]
        left = [(name, tensor) for name, tensor in left if tensor.name not in self.checksums[name]]
        self._hooks.before_writing(left)
        uses = Counter(used for _, tensor in left for used in sources_of(tensor))
        unfinished = {name: None for name in self.files if not self._is_done(name)}

        def finish(name: str) -> None:
            self._finish(name)
            del unfinished[name]
            on_finished(name)

        def tasks() -> Iterator[Task]:
            for name, tensor in left:
                before_tensor(name, name not in opened)
                if name not in opened:
                    opened[name] = self._open(name)
                descriptor, offsets = opened[name]
                yield Task(tensor, name, descriptor, offsets[tensor.name])

        def on_tensor(task: Task, checksum: int) -> None:
            self._journal.note({"file": task.file, "tensor": task.tensor.name, "crc32": checksum})
            self.checksums[task.file][task.tensor.name] = checksum
            if len(self.checksums[task.file]) == len(self.files[task.file].tensors):
                os.close(opened.pop(task.file)[0])
                finish(task.file)

        try:
            stream(tasks(), uses, source, on_bytes, on_tensor, threads=threads)
            for name in list(unfinished):  # a file whose last tensor was written just before an interruption
                finish(name)
        finally:
            for descriptor, _ in opened.values():
                with contextlib.suppress(OSError):  # there is an error already, and tensors are read again
                    os.close(descriptor)

    def verified(self, name: str, sha256: str) -> bool:
        """Notes that a finished file was verified; whether that agrees with what a former run has noted about it.

        Returns once the note is on the disk; before somebody acts on it, so are the names that lead to the file.
        """
        if self._is_acted_on:
            inside = [self.path / parent for parent in Path(name).parents]
            made = [made.parent for made in self._claim.made_parents]
            for folder in (*inside, self._state, self.output.parent, *made):
                flush(folder)
        if name not in self._progress.verified:
            self._journal.note({"file": name, "sha256": sha256}, durable=True)
            self._progress.verified[name] = sha256
        return self._progress.verified[name] == sha256

    def shipped(self, name: str) -> None:
        """Notes that a verified file is safe elsewhere, and removes it here."""
        self._journal.note({"file": name, "shipped": True}, durable=True)
        self._progress.shipped.add(name)
        (self.path / name).unlink()

    def reject(self, name: str) -> None:
        """Removes a finished file that turned out damaged, so that the next run writes it again."""
        (self.path / name).unlink()
        self._progress.forget(name)

    def publish(self) -> None:
        """Gives the folder its name; from here on it is complete."""
        for name in self._progress.small.keys() - self._added:  # of a former run with other libraries
            (self.path / name).unlink()
        self._remove_folder(self._state / SMALL)
        self._remove_folder(self._state / PARTIAL)
        refuse_strangers(self.path, self.files, list(filter(self._is_as_written, self._added)))
        self._flush_all()
        self._publication.publish(self._progress)

    def _begin(self) -> None:
        """Makes the folder or takes over what is there."""
        resumes = self.path.exists()
        if not resumes:
            self._check_disk()  # before anything is made
        try:
            self._claim.take()
            resumes = self._claim.has_journal
            self._publication.refuse_finished()  # another run may have got there a moment ago
            refuse_existing(self.output)
            if resumes:
                self._resume()
            self._claim.lock_state()
            self._journal.restart(self._progress)
            self._claim.open_up()
        except BaseException:
            if self._claim.is_held and not resumes:
                self.discard()
            self._claim.remove_parents()
            raise

    def _resume(self) -> None:
        """Takes over what a former run has done, as far as it is there."""
        self._progress = self._journal.read()
        small = self._progress.small
        self._progress.small = {name: values for name, values in small.items() if self._is_as_written(name)}
        files = [name for name in self.files if self._is_ours(name)]
        refuse_strangers(self.path, files, self._progress.small)
        for name in self.shipped_files:
            (self.path / name).unlink(missing_ok=True)  # the run was killed before it came to that
            if not self._hooks.is_kept(self.files[name], self._progress.verified[name]):
                self._progress.forget(name)
        for name, file in self.files.items():
            if name in self._progress.shipped:
                continue
            done, finished = self.checksums[name], self.path / name
            if finished.is_file() and len(done) < len(file.tensors):
                self._partial(name).parent.mkdir(parents=True, exist_ok=True)
                finished.replace(self._partial(name))
            if not finished.is_file():
                self._progress.verified.pop(name, None)
                if not self._partial(name).is_file():
                    done.clear()
        self._check_disk()

    def _is_done(self, name: str) -> bool:
        """Whether a weight file needs no more writing."""
        return name in self._progress.shipped or (self.path / name).is_file()

    def _is_as_written(self, name: str) -> bool:
        """Whether a small file is there and has the bytes that this conversion gave it."""
        path = self.path / name
        return path.is_file() and not path.is_symlink() and checksum_of(path) in self._progress.small[name]

    def _is_ours(self, name: str) -> bool:
        """Whether a weight file that is in its place was finished by a former run, or could have been: after a loss of
        power the journal may know less.
        """
        path, file = self.path / name, self.files[name]
        if path.is_symlink() or not path.is_file():
            return True  # or is refused anyway
        if len(self.checksums[name]) == len(file.tensors) and name not in self._progress.shipped:
            return True
        return file.is_laid_out(path)

    def _clean_up(self, everything: bool) -> None:
        """After a failure: what is done stays for the next run; if that is nothing, nothing stays.

        Args:
            everything: Whether all goes, because it is of no use.
        """
        if everything or (not any(self.checksums.values()) and self._hooks.may_discard()):
            self.discard()
            return
        with contextlib.suppress(OSError):  # the run has failed already
            for name, done in self.checksums.items():
                if not done:
                    self._partial(name).unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes everything this job made, the parent folders made for it included; nothing else."""
        done = [name for name, file in self.files.items() if len(self.checksums[name]) == len(file.tensors)]
        with contextlib.suppress(OSError):  # the run has failed already, and what stays has its journal
            names = [*done, *filter(self._is_as_written, self._progress.small)]
            for folder in (PARTIAL, SMALL):
                self._remove_folder(self._state / folder)
            for name in names:
                (self.path / name).unlink(missing_ok=True)
            folders = {parent for name in self.files | self._progress.small for parent in Path(name).parents}
            for inside in sorted(folders - {Path()}, reverse=True):  # what is inside before what it is in
                with contextlib.suppress(OSError):
                    (self.path / inside).rmdir()
            if set(os.listdir(self.path)) <= {STATE}:
                self._journal.close()
                self._claim.shut()
                remove_state(self.path)
                self.path.rmdir()
                self._claim.remove_parents()

    def _remove_folder(self, folder: Path) -> None:
        """Removes a folder of the state; links in it are not followed."""
        if os.path.lexists(folder):
            shutil.rmtree(folder)

    def _flush_all(self) -> None:
        """Returns once everything is on the disk.

        Raises:
            WriteError: a file has gone.
            OSError: the disk did not take it; a weight file of which it did not is written again by the next run.
        """
        folders = {self.path}
        for name in [*self.files, *self._added]:
            if name in self._progress.shipped:
                continue
            path = self.path / name
            if not path.is_file():
                raise WriteError(f"{path}: was there, and is no more. Run the same command again.")
            folders |= {self.path / parent for parent in Path(name).parents}
            try:
                flush(path)
            except OSError:
                if name in self.files:
                    self.reject(name)
                raise
        for folder in sorted(folders, reverse=True):
            flush(folder)

    def _place(self, name: str) -> Path:
        """Where a weight file is now."""
        return self.path / name if (self.path / name).is_file() else self._partial(name)

    def _partial(self, name: str) -> Path:
        return self._state / PARTIAL / name

    def _open(self, name: str) -> tuple[int, dict[str, int]]:
        path = self._partial(name)
        if not self.checksums[name]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            self.files[name].create(path)
            self._progress.around.pop(name, None)
            self._note_around(name)
        return os.open(path, os.O_WRONLY | os.O_NOFOLLOW), self.files[name].offsets(path)

    def _finish(self, name: str) -> None:
        path = self._partial(name)
        self.files[name].finish(path, self.checksums[name])
        self._note_around(name)
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            rename_new(path, self.path / name)
        except FileExistsError:
            refuse_strangers(self.path, [], self._progress.small)
            raise

    def _note_around(self, name: str) -> None:
        """Notes what a file holds beside its tensors, where only the file itself tells."""
        if not self.files[name].is_known:
            value = checksum_around(self._partial(name), self.files[name])
            self._journal.note({"file": name, "crc32": value})
            self._progress.around.setdefault(name, set()).add(value)

    def _check_disk(self) -> None:
        existing = next(parent for parent in (self.path, *self.path.absolute().parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        left = {}
        for name, file in self.files.items():
            if not self._is_done(name):
                partial = self._partial(name)
                left[name] = file.size - (partial.stat().st_blocks * 512 if partial.is_file() else 0)
        needed = SMALL_FILES_BYTES + self._hooks.disk_needed(left)
        if needed > free:
            raise WriteError(
                f"{self.output}: needs {needed:,} bytes of disk, {free:,} are free on that file system. Free some, "
                "choose another --output, or a narrower --dtype; nothing was written."
            )

    def _explained(self, error: OSError) -> WriteError:
        """What the system refused, what is kept, and what to do."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = f"the disk is full ({error.strerror})" if full else f"{error.strerror or error}"
        where = f" at {error.filename}" if error.filename and not full else ""
        if self.is_published:
            return WriteError(
                f"{self.output}: complete, but the system cannot say that its name is on the disk: {what}. Look "
                "after the disk; nothing needs to be converted again."
            )
        if os.path.lexists(self._publication.finished):
            kept = f"everything is finished and kept in {self._publication.finished}"
        elif not os.path.lexists(self.path):
            kept = "nothing was left behind"
        elif finished := self.finished_files:
            kept = f"{len(finished)} of {len(self.files)} files are complete and kept in {self.path}, and what of the "
            kept += "others was written"
        elif shipped := self.shipped_files:
            kept = f"{len(shipped)} of {len(self.files)} files are shipped; what was written is kept in {self.path}"
        else:
            kept = f"what was written is kept in {self.path}"
        advice = ADVICE.get(error.errno or 0, "Mend that")
        return WriteError(
            f"{self.output}: {what}{where}, after {self.done_bytes:,} bytes of tensors; {kept}. {advice} and run the "
            "same command again."
        )


__all__ = ["OutputFolder", "refuse_existing"]
