"""The life of an output folder: refused if it exists, filled beside its final name, resumed, published by a rename.

Everything is made in `<output>.incomplete/`. Its `.conversion/` holds a lock, a journal with one line per finished
tensor, and `partial/` with the files being filled; a complete file moves out of `partial/`, and at the very end
`.conversion/` goes and the folder gets its name. So whatever stands under the output's name is complete, and a run
that was killed goes on behind the last finished tensor.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .lazy_files import TensorFiles
from .source_file import SourceChangedError
from .writer import DtypeRangeError, OutputFile, Task, WriteError, sources_of, stream

SMALL_FILES_BYTES = 32 * 2**20  # config, tokenizer, index, card
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class OutputFolder:
    """An output folder under construction; a context manager that holds its lock.

    Args:
        output: The final name. Must not exist.
        files: What the folder will hold, beside small files.
        fingerprint: Identifies source, plan and options: work of another fingerprint is not continued.

    Raises:
        WriteError: the output exists; another run holds the lock; the incomplete folder belongs to other work; not
            enough disk.
    """

    def __init__(self, output: Path, files: Sequence[OutputFile], fingerprint: str):
        self.output = output
        self.files = {file.name: file for file in files}
        self.path = output.with_name(output.name + ".incomplete")
        self._fingerprint = fingerprint
        self._state = self.path / ".conversion"
        self._journal: IO[str] | None = None
        self._lock: IO[str] | None = None
        self._made_parents: list[Path] = []
        self.checksums: dict[str, dict[str, int]] = {name: {} for name in self.files}

    def __enter__(self) -> "OutputFolder":
        refuse_existing(self.output)
        resuming = self.path.exists()
        if not resuming:
            self._check_disk()  # before anything is made
            self._made_parents = [parent for parent in self.path.parents if not parent.exists()]
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            self._acquire_lock()
            self._read_journal()
            if resuming:
                self._check_disk()
            self._restart_journal()
        except BaseException:
            if self._lock is not None and not resuming:  # without the lock the folder is another run's
                self.discard()
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, KeyboardInterrupt):
            self._clean_up(everything=issubclass(kind, DtypeRangeError | SourceChangedError))
        self._close()

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

    def fill(self, order: Sequence[tuple[str, int]], source: TensorFiles, on_bytes: Callable[[int], object]) -> None:
        """Writes every tensor that is not written yet.

        Args:
            order: (file name, position in that file's `tensors`), in the order to be written.
            source: Where the pieces are.
            on_bytes: Called with the number of bytes written, after each block.

        Raises:
            WriteError: the disk is full (partial files are removed, finished ones kept), or a number does not fit its
                dtype.
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
            self._note({"file": task.file, "tensor": task.tensor.name, "crc32": checksum})
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
                os.close(descriptor)

    def reject(self, name: str) -> None:
        """Removes a finished file that turned out damaged, so that the next run writes it again."""
        (self.path / name).unlink()
        self.checksums[name] = {}

    def publish(self) -> None:
        """Gives the folder its name; from here on it is complete."""
        for path in sorted(self.path.rglob("*")):
            if path.is_file() and self._state not in path.parents:
                _flush(path)
        refuse_existing(self.output)
        shutil.rmtree(self._state)
        _flush(self.path)
        self.path.rename(self.output)
        _flush(self.output.parent)

    def discard(self) -> None:
        """Removes everything this run made, empty parent folders included."""
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in self._made_parents:
            with contextlib.suppress(OSError):
                parent.rmdir()

    def _clean_up(self, everything: bool) -> None:
        """After a failure: no half-written file stays; without a finished one, nothing does.

        Args:
            everything: Whether finished files go, too, because they are of no use.
        """
        shutil.rmtree(self._state / "partial", ignore_errors=True)
        if everything or not self.finished_files:
            self.discard()

    def _acquire_lock(self) -> None:
        lock = (self._state / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise WriteError(
                f"{self.path}: another conversion is writing here. Wait for it, or choose another --output."
            ) from error
        except OSError:
            pass  # some network file systems have no locks
        self._lock = lock
        refuse_existing(self.output)  # the other run may have published a moment ago

    def _read_journal(self) -> None:
        path = self._state / "journal.jsonl"
        if not path.exists():
            return
        lines = [line for line in map(_parse_line, path.read_text(encoding="utf-8").splitlines()) if line is not None]
        if lines and lines[0].get("fingerprint") != self._fingerprint:
            raise WriteError(
                f"{self.path}: left by a conversion of another source or with other options, so it cannot be "
                f"continued. Run that one again to finish it, or remove the folder: rm -r {self.path}"
            )
        for line in lines[1:]:
            if line.get("file") in self.checksums:
                self.checksums[line["file"]][line["tensor"]] = line["crc32"]
        for name, file in self.files.items():
            done = self.checksums[name]
            complete = (self.path / name).is_file() and len(done) == len(file.tensors)
            if not complete:
                (self.path / name).unlink(missing_ok=True)
            if not complete and not self._partial(name).is_file():
                done.clear()

    def _restart_journal(self) -> None:
        """Writes the journal anew with what still holds, so that no line speaks of a file that was removed since."""
        path, fresh = self._state / "journal.jsonl", self._state / "journal.new"
        entries = [
            {"file": file, "tensor": tensor, "crc32": value}
            for file, done in self.checksums.items()
            for tensor, value in done.items()
        ]
        fresh.write_text(
            "".join(json.dumps(line) + "\n" for line in [{"fingerprint": self._fingerprint}, *entries]),
            encoding="utf-8",
        )
        fresh.replace(path)
        self._journal = path.open("a", encoding="utf-8")

    def _note(self, line: Mapping[str, Any]) -> None:
        assert self._journal is not None
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()

    def _partial(self, name: str) -> Path:
        return self._state / "partial" / name

    def _open(self, name: str) -> tuple[int, dict[str, int]]:
        path = self._partial(name)
        if not self.checksums[name]:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.files[name].create(path)
        return os.open(path, os.O_WRONLY), self.files[name].offsets(path)

    def _finish(self, name: str) -> None:
        path = self._partial(name)
        self.files[name].finish(path, self.checksums[name])
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(self.path / name)

    def _check_disk(self) -> None:
        existing = next(parent for parent in (self.path, *self.path.parents) if parent.exists())
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

    def _close(self) -> None:
        for file in (self._journal, self._lock):
            if file is not None:
                file.close()
        self._journal = self._lock = None


@contextlib.contextmanager
def explain_full_disk(folder: OutputFolder) -> Iterator[None]:
    """Turns the system's "no space left" into a message that says what is kept and how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        finished = folder.finished_files
        kept = (
            f"{len(finished)} of {len(folder.files)} files are complete and kept in {folder.path}"
            if finished
            else "nothing was left behind"
        )
        raise WriteError(
            f"{folder.output}: the disk is full ({error.strerror}) after {folder.done_bytes:,} bytes of tensors; "
            f"{kept}. Free some space and run the same command again."
        ) from error


def refuse_existing(output: Path) -> None:
    """Raises `WriteError` if anything stands under the output's name."""
    if output.exists() or output.is_symlink():
        raise WriteError(f"{output}: already exists. Choose another --output, or remove it first.")


def _parse_line(line: str) -> dict[str, Any] | None:
    """A journal line, or None for one that was cut short by an interruption."""
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["OutputFolder", "explain_full_disk", "refuse_existing"]
