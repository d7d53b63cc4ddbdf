"""Verification of finished files while the next ones are written.

A finished file is verified in a thread of its own: at most one while others are written, several where all files
finish at the end. The main thread waits before it begins a further file if too many are not verified yet, so what
stands unverified is bounded, and what the disk does not take as fast as it is written does not pile up.

A file that does not hold what was written is removed at once, and the writing goes on: all damaged files are told
together, and the next run writes those only. Where the disk itself fails or is full, nothing that is written after
that would hold either, so the writing stops.
"""

import errno
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType

from .file_hooks import FileHooks
from .operations import ConversionError
from .output_folder import OutputFolder
from .writer import OutputFile, WriteError

Progress = Callable[[int], object]
"""Called with the number of bytes just done."""

Verifier = Callable[[Path, OutputFile, Mapping[str, int], Progress], str]
"""(folder, file, CRC-32 by tensor, progress) -> SHA-256 of the file, whose bytes are on the disk and were read from
there; raises `verify.VerifyError`."""

LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
"""Errors of a system that could not put on the disk, or get from it, what it had taken."""


class Verification:
    """Verifies the files of an output folder; a context manager that no thread outlives.

    Args:
        folder: Where they are.
        verify: Checks one file; `None`: none is looked at, and every method returns at once.
        hooks: What happens to verified files.
        threads: How many files are verified at one time.

    Attributes:
        is_on: Whether anything is verified.
        nbytes: Bytes of tensors verified, of the files in work and of those shipped before included.
        on_bytes: Called with the number of bytes just verified, never twice at a time, in the verifying threads; may
            be set at any time.
    """

    def __init__(self, folder: OutputFolder, verify: Verifier | None, hooks: FileHooks, threads: int = 1):
        shipped = [tensor for name in folder.shipped_files for tensor in folder.files[name].tensors]
        self.nbytes = sum(tensor.spec.nbytes for tensor in shipped)
        self.is_on = verify is not None
        self.on_bytes: Progress = lambda nbytes: None
        self._folder = folder
        self._verify = verify
        self._hooks = hooks
        self._pool = ThreadPoolExecutor(max_workers=threads)
        self._counts = threading.Lock()
        self._acts = threading.Lock()  # one file at a time is told to be verified
        self._begun: set[str] = set()
        self._pending: list[Future[None]] = []
        self._damaged: dict[str, Exception] = {}
        self._stopping = threading.Event()

    def __enter__(self) -> "Verification":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._stopping.set()
                self._hooks.stop()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def holds(self, name: str) -> bool | None:
        """Verifies a finished file of a former run at once; whether it is sound, None without verification.

        Raises:
            Exception: the hook's.
        """
        if self._verify is None:
            return None
        file = self._folder.files[name]
        read = self._read(file)
        if isinstance(read, str) and self._tell(file, read):
            return True
        self.nbytes -= sum(tensor.spec.nbytes for tensor in file.tensors) if isinstance(read, str) else 0
        return False

    def before_tensor(self, name: str, is_first: bool) -> None:
        """Waits, before the first tensor of a file is written, until one more may be begun.

        Raises:
            WriteError: the disk failed.
            Exception: what ended the verification, the hook's errors among it.
        """
        if self._verify is None:
            return
        self._raise_what_failed(is_writing=True)
        if not is_first:
            return
        # Files that are being written need not be waited for: where one follows the other there is one at most, and
        # where all are written together none can finish before the others are begun.
        while True:
            with self._counts:
                pending = [future for future in self._pending if not future.done()]
                if not pending or len(self._begun) + len(pending) < self._hooks.files_at_once:
                    self._begun.add(name)
                    return
            wait(pending, return_when=FIRST_COMPLETED)
            self._raise_what_failed(is_writing=True)

    def submit(self, name: str) -> None:
        """Hands a finished file over; returns at once."""
        if self._verify is None:
            return
        with self._counts:
            self._begun.discard(name)
            self._pending.append(self._pool.submit(self._one, self._folder.files[name]))

    def finish(self) -> None:
        """Waits for all files.

        Raises:
            WriteError: some do not hold what was written; it names them, and they were removed.
            Exception: what ended the verification.
        """
        while self._pending:
            wait(self._pending, return_when=FIRST_COMPLETED)
            self._raise_what_failed()
        if self._damaged:
            raise self._damage()

    def _raise_what_failed(self, is_writing: bool = False) -> None:
        with self._counts:
            done = [future for future in self._pending if future.done()]
            self._pending = [future for future in self._pending if future not in done]
        for future in done:
            future.result()
        if is_writing and any(isinstance(error, OSError) for error in list(self._damaged.values())):
            raise self._damage()

    def _one(self, file: OutputFile) -> None:
        """Verifies a file that this run has written, unless the run is about to end."""
        if self._stopping.is_set():
            return
        try:
            read = self._read(file)
            if isinstance(read, str):
                self._tell(file, read)
            else:
                self._folder.reject(file.name)
                self._damaged[file.name] = read
        except _StoppedError:
            pass
        except BaseException:
            self._stopping.set()  # the other files need not be looked at; the main thread raises it
            raise

    def _read(self, file: OutputFile) -> str | Exception:
        """SHA-256 of a file that holds what was written, or what is wrong; the bytes of a damaged one do not count."""
        assert self._verify is not None
        read = 0

        def count(nbytes: int) -> None:
            nonlocal read
            if self._stopping.is_set():
                raise _StoppedError
            read += nbytes
            with self._counts:
                self.nbytes += nbytes
                self.on_bytes(nbytes)

        try:
            return self._verify(self._folder.path, file, self._folder.checksums[file.name], count)
        except (ConversionError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in LOST:
                raise
            with self._counts:
                self.nbytes -= read
            return error

    def _tell(self, file: OutputFile, sha256: str) -> bool:
        """Notes that a file was verified and calls the hook; whether a former run has found the same."""
        with self._acts:
            if not self._folder.verified(file.name, sha256):
                return False
            if self._hooks.verified(self._folder.path / file.name, file, sha256):
                self._folder.shipped(file.name)
        return True

    def _damage(self) -> WriteError:
        """What is told of the damaged files."""
        names = [name for name in self._folder.files if name in self._damaged]
        first = self._damaged[names[0]]
        text = f"{first} The file was removed; run the same command again."
        if len(names) > 1:
            reasons = "\n".join(f"  {self._damaged[name]}" for name in names)
            text = (
                f"{self._folder.path}: {len(names)} files are damaged: {', '.join(names)}. They were removed; run the "
                f"same command again.\n{reasons}"
            )
        error = WriteError(text)
        error.__cause__ = first
        return error


class _StoppedError(Exception):
    """The run ends, so nobody waits for the rest of a file."""


__all__ = ["LOST", "Progress", "Verification", "Verifier"]
