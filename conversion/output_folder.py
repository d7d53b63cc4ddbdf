"""The life of an output folder: refused if it exists, filled beside its final name, resumed, published by a rename.

Everything is made in `<output>.incomplete/`. Its `.conversion/` holds a journal with a line for each finished tensor
and small file, `partial/` with the weight files being filled, and `small/` where the small files are written; what is
complete moves out of them. At the very end `.conversion/` goes and the folder gets its name, by way of a hidden name
that tells which job has finished: so whatever stands under the output's name is complete, a run that was killed goes
on behind the last finished tensor, and nothing is left beside the output.

What the journal does not list was made by somebody else. It is neither published nor removed.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from .byte_source import SourceChangedError
from .folder_claim import LOCK, Claim
from .journal import FRESH, JOURNAL, STATE, Journal, Progress, is_plain_name
from .lazy_files import TensorFiles
from .output_path import check_output, flush, incomplete_of, refuse_existing, rename_new
from .recheck import checksum_around, checksum_of, recheck
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

    Attributes:
        is_published: Whether the folder has its name: at the end, or at once where a run was killed just before.

    Raises:
        WriteError: the output exists; another run holds the lock; the incomplete folder belongs to other work or to
            somebody else; not enough disk; the system refuses to write.
    """

    def __init__(self, output: Path, files: Sequence[OutputFile], fingerprint: str):
        self.output = output
        self.files = {file.name: file for file in files}
        self.path = incomplete_of(output)
        self.is_published = False
        self._fingerprint = fingerprint
        self._state = self.path / STATE
        self._journal = Journal(self._state, self.files, fingerprint)
        self._progress = Progress({name: {} for name in self.files})
        self._claim = Claim(self.path)
        self._added: set[str] = set()
        self._finished_prefix = f".{_digest(output.name)}-"
        self._finished = output.with_name(f"{self._finished_prefix}{_digest(fingerprint)}.finished")
        for name in self.files:
            if not is_plain_name(name):
                raise WriteError(f"{name!r} cannot be the name of a file in {output}.")

    def __enter__(self) -> "OutputFolder":
        check_output(self.output)
        try:
            if not self._finish_published():
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
            self._clean_up(everything=issubclass(kind, USELESS))
        self._journal.close()
        self._claim.release()
        if isinstance(error, OSError):
            raise self._explained(error) from error

    @property
    def checksums(self) -> dict[str, dict[str, int]]:
        """Weight file -> tensor that is written -> CRC-32."""
        return self._progress.checksums

    @property
    def finished_files(self) -> list[str]:
        """Names of the files that are complete."""
        return [name for name in self.files if (self.path / name).is_file()]

    @property
    def done_bytes(self) -> int:
        """Bytes of the tensors already written."""
        return sum(
            t.spec.nbytes for file in self.files.values() for t in file.tensors if t.name in self.checksums[file.name]
        )

    def recheck(self, on_bytes: Callable[[int], object]) -> list[str]:
        """Reads again what a former run has written; what does not hold will be written again.

        Args:
            on_bytes: Called with the number of bytes read.

        Returns:
            The files that were damaged.
        """
        damaged = recheck(self._progress, self.files, self._place, on_bytes)
        for name in damaged:
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

    def fill(self, order: Sequence[tuple[str, int]], source: TensorFiles, on_bytes: Callable[[int], object]) -> None:
        """Writes every tensor that is not written yet.

        Args:
            order: (file name, position in that file's `tensors`), in the order to be written.
            source: Where the pieces are.
            on_bytes: Called with the number of bytes written, after each block.

        Raises:
            OSError: the system refuses, e.g. the disk is full.
            WriteError: a number does not fit its dtype.
        """
        opened: dict[str, tuple[int, dict[str, int]]] = {}  # file -> descriptor, offset of each tensor
        left = [(name, self.files[name].tensors[position]) for name, position in order]
        left = [(name, tensor) for name, tensor in left if tensor.name not in self.checksums[name]]
        uses = Counter(used for _, tensor in left for used in sources_of(tensor))

        def tasks() -> Iterator[Task]:
            for name, tensor in left:
                if name not in opened:
                    opened[name] = self._open(name)
                descriptor, offsets = opened[name]
                yield Task(tensor, name, descriptor, offsets[tensor.name])

        def on_tensor(task: Task, checksum: int) -> None:
            self._journal.note({"file": task.file, "tensor": task.tensor.name, "crc32": checksum})
            self.checksums[task.file][task.tensor.name] = checksum
            if len(self.checksums[task.file]) == len(self.files[task.file].tensors):
                os.close(opened.pop(task.file)[0])
                self._finish(task.file)

        try:
            stream(tasks(), uses, source, on_bytes, on_tensor)
            for name in self.files:  # a file whose last tensor was written just before an interruption
                if not (self.path / name).is_file():
                    self._finish(name)
        finally:
            for descriptor, _ in opened.values():
                with contextlib.suppress(OSError):  # there is an error already, and tensors are read again
                    os.close(descriptor)

    def reject(self, name: str) -> None:
        """Removes a finished file that turned out damaged, so that the next run writes it again."""
        (self.path / name).unlink()
        self.checksums[name] = {}

    def publish(self) -> None:
        """Gives the folder its name; from here on it is complete."""
        for name in self._progress.small.keys() - self._added:  # of a former run with other libraries
            (self.path / name).unlink()
        self._remove_folder(self._state / SMALL)
        self._remove_folder(self._state / PARTIAL)
        refuse_strangers(self.path, self.files, list(filter(self._is_as_written, self._added)))
        self._flush_all()
        refuse_existing(self.output)
        rename_new(self.path, self._finished)
        try:
            self._name(self._finished)
        except BaseException:
            self._take_back()
            raise
        flush(self.output.parent)

    def _begin(self) -> None:
        """Makes the folder or takes over what is there."""
        resumes = self.path.exists()
        if not resumes:
            self._check_disk()  # before anything is made
        try:
            self._claim.take()
            resumes = self._claim.has_journal
            self._refuse_finished()  # another run may have got there a moment ago
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
        for name, file in self.files.items():
            done, finished = self.checksums[name], self.path / name
            if finished.is_file() and len(done) < len(file.tensors):
                self._partial(name).parent.mkdir(parents=True, exist_ok=True)
                finished.replace(self._partial(name))
            if not finished.is_file() and not self._partial(name).is_file():
                done.clear()
        self._check_disk()

    def _is_as_written(self, name: str) -> bool:
        """Whether a small file is there and has the bytes that this conversion gave it."""
        path = self.path / name
        return path.is_file() and not path.is_symlink() and checksum_of(path) in self._progress.small[name]

    def _is_ours(self, name: str) -> bool:
        """Whether a weight file that is in its place was finished by a former run, or could have been: after a loss of
        power the journal may know less.
        """
        path, file = self.path / name, self.files[name]
        if path.is_symlink() or not path.is_file() or len(self.checksums[name]) == len(file.tensors):
            return True  # or is refused anyway
        return file.is_laid_out(path)

    def _clean_up(self, everything: bool) -> None:
        """After a failure: what is done stays for the next run; if that is nothing, nothing stays.

        Args:
            everything: Whether all goes, because it is of no use.
        """
        if everything or not any(self.checksums.values()):
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
                self._remove_state(self.path)
                self.path.rmdir()
                self._claim.remove_parents()

    def _remove_state(self, folder: Path) -> None:
        """Removes the state, the journal last."""
        for name in (FRESH, LOCK, JOURNAL):
            (folder / STATE / name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (folder / STATE).rmdir()

    def _remove_folder(self, folder: Path) -> None:
        """Removes a folder of the state; links in it are not followed."""
        if os.path.lexists(folder):
            shutil.rmtree(folder)

    def _finish_published(self) -> bool:
        """Ends the publication in which a former run of this job was killed; whether there was nothing else to do."""
        self._refuse_finished(but=self._finished)
        claim = Claim(self._finished)
        try:
            if not claim.take_existing(is_ours=True):
                return False
            if claim.has_journal:
                rename_new(self._finished, self.path)  # where it is resumed
                return False
            damaged = [name for name, file in self.files.items() if not self._is_whole(self._finished / name, file)]
            if damaged:
                raise WriteError(
                    f"{self._finished}: a finished conversion that was not given its name, and {damaged[0]} in it is "
                    f"missing or damaged. Remove the folder, and run the same command again: rm -r {self._finished}"
                )
            self._name(self._finished)
            flush(self.output.parent)
        finally:
            claim.release()
        return True

    def _is_whole(self, path: Path, file: OutputFile) -> bool:
        return path.is_file() and not path.is_symlink() and file.is_laid_out(path)

    def _refuse_finished(self, but: Path | None = None) -> None:
        """Raises `WriteError` if another run is giving its folder the output's name, or was killed then."""
        parent = self.output.parent
        with contextlib.suppress(FileNotFoundError, PermissionError):  # a folder may be written to and not be read
            for name in os.listdir(parent):
                if name.startswith(self._finished_prefix) and parent / name != but:
                    claim = Claim(parent / name)
                    is_there = claim.take_existing(is_ours=True)
                    claim.release()
                    if is_there:
                        raise WriteError(
                            f"{parent / name}: a finished conversion of another source or with other options, killed "
                            f"before it was named {self.output}. Run that one again, or remove the folder: rm -r "
                            f"{parent / name}"
                        )

    def _name(self, folder: Path) -> None:
        """Gives a finished folder the output's name, after the last of its state is gone."""
        self._remove_state(folder)
        flush(folder)
        try:
            rename_new(folder, self.output)
        except FileExistsError:
            refuse_existing(self.output)
            raise
        self.is_published = True

    def _take_back(self) -> None:
        """After a publication that failed: the folder is incomplete again, with its journal."""
        if not os.path.lexists(self._finished):
            self.is_published = True  # interrupted just behind the last step
            return
        with contextlib.suppress(OSError):  # otherwise it stays finished, and the next run gives it its name
            journal = Journal(self._finished / STATE, self.files, self._fingerprint)
            journal.path.parent.mkdir(exist_ok=True)
            journal.restart(self._progress)
            journal.close()
            rename_new(self._finished, self.path)

    def _flush_all(self) -> None:
        """Returns once everything is on the disk.

        Raises:
            WriteError: a file has gone.
            OSError: the disk did not take it; a weight file of which it did not is written again by the next run.
        """
        folders = {self.path}
        for name in [*self.files, *self._added]:
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
        finished = set(self.finished_files)
        needed = SMALL_FILES_BYTES
        for name, file in self.files.items():
            if name not in finished:
                partial = self._partial(name)
                needed += file.size - (partial.stat().st_blocks * 512 if partial.is_file() else 0)
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
        if os.path.lexists(self._finished):
            kept = f"everything is finished and kept in {self._finished}"
        elif not os.path.lexists(self.path):
            kept = "nothing was left behind"
        elif finished := self.finished_files:
            kept = f"{len(finished)} of {len(self.files)} files are complete and kept in {self.path}, and what of the "
            kept += "others was written"
        else:
            kept = f"what was written is kept in {self.path}"
        advice = ADVICE.get(error.errno or 0, "Mend that")
        return WriteError(
            f"{self.output}: {what}{where}, after {self.done_bytes:,} bytes of tensors; {kept}. {advice} and run the "
            "same command again."
        )


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


__all__ = ["OutputFolder", "refuse_existing"]
