"""Files of a source that is being consumed: what of one is gone is never read, what is kept of it is read elsewhere.

Bytes that were released would read as zeros, and a file that was deleted as none: asking for them is an error that
names the file. What lies around the tensors (headers, pickles, small tensors) is read from the skeleton, so a source
is opened by the same readers whether its files are whole, have holes, or are gone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from .byte_ranges import Range, behind, free_until, merged, whole_blocks, without
from .byte_source import SourceChangedError
from .holes import block_bytes, punch
from .operations import CheckpointError
from .places import VirtualPath
from .source_file import FileState, SourceFile


class ConsumedError(CheckpointError):
    """Bytes are asked for that were deleted because what was made from them was verified."""

    def __init__(self, path: Path):
        super().__init__(
            f"{path}: bytes of it are needed that --consume has deleted, or that were never there. Put the whole file "
            "there again, as it was downloaded, and run the same command again."
        )


class ChangedPartError(SourceChangedError):
    """A file of a source that is being consumed is not what it was; what was verified before holds."""

    def __init__(self, path: object, what: str):
        CheckpointError.__init__(
            self,
            f"{path}: changed while it was consumed: {what}. What was verified is kept, and the rest of this file is "
            "still needed: put the file there again, as it was downloaded, and run the same command again.",
        )


class Reads(Protocol):
    """Where kept bytes are read from."""

    def read(self, view: memoryview, position: int) -> None:
        """Fills `view` from a position on; raises `CheckpointError`."""


@dataclass(frozen=True)
class Kept:
    """What is kept of a file.

    Attributes:
        ranges: Which bytes, in order.
        positions: Where each range begins in `store`.
        store: Where they are.
    """

    ranges: Sequence[Range]
    positions: Sequence[int]
    store: Reads


class ConsumableFile(SourceFile):
    """A file of a source that may be released in stretches, and deleted.

    Args:
        path: The file.
        state: As it is now; of one that is deleted, with the size it had.
        kept: What is read elsewhere; None as long as nothing is released.
        gone: Bytes that are not there any more.
        is_deleted: Whether there is no file.

    Attributes:
        gone: As above; grows.
        is_deleted: As above.
    """

    def __init__(
        self,
        path: Path,
        state: FileState,
        kept: Kept | None = None,
        gone: Sequence[Range] = (),
        is_deleted: bool = False,
    ):
        super().__init__(path, state)
        self.kept = kept
        self.gone = list(gone)
        self.is_deleted = is_deleted
        self._now = state
        self._turn = threading.RLock()  # one thread reads while another releases

    @classmethod
    def of(cls, path: Path) -> ConsumableFile:
        """A file as it is now; raises `OSError` if there is none."""
        return cls(path, FileState.of(path))

    @property
    def expected(self) -> FileState:
        """What the system should tell of it now; only the releasing itself changes that."""
        return self._now

    @property
    def descriptor(self) -> int:
        """The open file.

        Raises:
            ChangedPartError: another file has its name by now.
            OSError: it cannot be opened.
        """
        with self._turn:  # not while a release is about to change what is expected
            try:
                return super().descriptor
            except ChangedPartError:
                raise
            except SourceChangedError as error:
                raise ChangedPartError(self.path, self._difference()) from error

    def available(self, offset: int, nbytes: int) -> int:
        """As far as nothing is gone."""
        return free_until(self.gone, offset, offset + nbytes) - offset

    def read(self, view: memoryview, offset: int) -> None:
        """Fills `view` from what is kept and from the file.

        Raises:
            ConsumedError: some of it is gone.
            CheckpointError: as a file's.
        """
        if self.available(offset, len(view)) < len(view):
            raise ConsumedError(self.path)
        if self.kept is None:
            super().read(view, offset)
            return
        ranges = self.kept.ranges
        number = behind(ranges, offset)
        while view:
            start, stop = ranges[number] if number < len(ranges) else (self.size, self.size)
            if offset < start:
                part = view[: start - offset]
                super().read(part, offset)
            else:
                part = view[: stop - offset]
                if not part:
                    raise ChangedPartError(self.path, f"it ends at byte {self.size:,}")
                self.kept.store.read(part, self.kept.positions[number] + offset - start)
                number += 1
            view, offset = view[len(part) :], offset + len(part)

    def will_read(self, offset: int, nbytes: int) -> None:
        """Has the system fetch bytes that are there."""
        with self._turn:
            if not self.is_deleted:
                super().will_read(offset, nbytes)

    def forget(self, offset: int, nbytes: int) -> None:
        """Drops bytes that are there from the system's file cache."""
        with self._turn:
            if not self.is_deleted:
                super().forget(offset, nbytes)

    def look(self) -> FileState:
        """As a file's, but that releasing changes nothing.

        Raises:
            ChangedPartError: somebody else did something to it.
        """
        with self._turn:
            if self.is_deleted:
                return self.state
            try:
                now = super().look()
            except ChangedPartError:
                raise
            except SourceChangedError as error:
                raise ChangedPartError(self.path, self._difference()) from error
            if now != self._now:  # a new link, or rights: whoever asks looks at the content again
                self._now = now
                self.state = replace(self.state, ctime_ns=now.ctime_ns, device=now.device)
            return self.state

    def _difference(self) -> str:
        try:
            return self._now.difference(FileState.of(self.path)) or "something was done to it"
        except OSError:
            return "it is not there any more"

    def release(self, ranges: Sequence[Range]) -> FileState:
        """Gives the whole blocks of some bytes back to the file system; what was released before is left alone.

        Args:
            ranges: Bytes that will not be read again.

        Returns:
            The state of the file from now on, on the disk.

        Raises:
            ChangedPartError: it is not the file it was, so nothing is released.
            OSError: the system refuses.
        """
        with self._turn:
            self.look()
            block = block_bytes(self.path)
            before = whole_blocks(self.gone, block)
            self.gone = merged([*self.gone, *ranges])
            descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if what := self._now.difference(FileState.of(descriptor)):
                    raise ChangedPartError(self.path, what)
                for start, stop in without(whole_blocks(self.gone, block), before):
                    punch(descriptor, start, stop - start)
                os.fsync(descriptor)
                self._now = FileState.of(descriptor)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            finally:
                os.close(descriptor)
            return self._now

    def delete(self) -> None:
        """Deletes the file.

        Raises:
            ChangedPartError: it is not the file it was, so it stays.
            OSError: the system refuses.
        """
        with self._turn:
            if self.is_deleted:
                return
            self.look()
            self.close()
            self.gone = without([(0, self.size)], self.kept.ranges if self.kept else [])
            self.path.unlink()
            self.is_deleted = True


class ConsumableFiles:
    """The files of a folder, those among them that are deleted.

    Args:
        known: Absolute path -> file, of those that are known before.
    """

    def __init__(self, known: dict[str, ConsumableFile]):
        self._files = dict(known)

    def at(self, path: Path) -> ConsumablePath:
        """A path whose files are these."""
        return ConsumablePath(self, PurePosixPath(path))

    def file(self, path: Path) -> ConsumableFile:
        """The file of that path, always the same; raises `OSError` if there is none."""
        key = os.path.abspath(path)
        if key not in self._files:
            self._files[key] = ConsumableFile.of(path)
        return self._files[key]

    def is_file(self, path: Path) -> bool:
        """Whether there is one, or was."""
        return os.path.abspath(path) in self._files or path.is_file()

    def is_dir(self, path: Path) -> bool:
        """Whether there is such a folder, or was."""
        return path.is_dir() or any(True for _ in self.below(path))

    def below(self, path: Path) -> Iterator[str]:
        """Names in a folder of what files are known there."""
        start = os.path.join(os.path.abspath(path), "")
        for key in self._files:
            if key.startswith(start):
                yield key.removeprefix(start).partition("/")[0]


class ConsumablePath(VirtualPath):
    """A local path that also knows what was deleted."""

    def __init__(self, files: ConsumableFiles, inside: PurePosixPath) -> None:
        super().__init__(inside)
        self._files = files

    def __str__(self) -> str:
        return str(self.inside)

    @property
    def home(self) -> Path:
        """The local path that it stands for."""
        return Path(self.inside)

    def at(self, inside: PurePosixPath) -> ConsumablePath:
        """Another path."""
        return ConsumablePath(self._files, inside)

    def is_dir(self) -> bool:
        """Whether it is or was a folder."""
        return self._files.is_dir(self.home)

    def is_file(self) -> bool:
        """Whether it is or was a file."""
        return self._files.is_file(self.home)

    def names(self) -> Iterator[str]:
        """Of what is or was in the folder."""
        there = set(os.listdir(self.home)) if self.home.is_dir() else set()
        yield from there | set(self._files.below(self.home))

    def bytes(self) -> ConsumableFile:
        """The bytes of a file."""
        return self._files.file(self.home)

    def resolve(self) -> ConsumablePath:
        """Where links lead."""
        return self.at(PurePosixPath(self.home.resolve()))


__all__ = [
    "ChangedPartError",
    "ConsumableFile",
    "ConsumableFiles",
    "ConsumablePath",
    "ConsumedError",
    "Kept",
]
