"""A file of the source: read piece by piece, and held against what it was when the conversion was planned.

Read with `pread`, not mapped: a file that becomes shorter while it is mapped ends the process with a signal, and a
reading that fails can say so.

What tells that a file is another, or not the one it was:

- size, time of modification and inode, which cost nothing: looked at after every tensor;
- a hash of samples of its content (`sample_places`), where only the time of the last change of the inode is another:
  a hard link to the file or `chmod` sets that, and so does who overwrites it and sets its time back. Also before the
  result is published, and in the fingerprint by which a run that was interrupted knows its source again.

A small file is sampled whole. In a larger one samples cannot see what is overwritten between them by someone who sets
the time back as well: less than the spacing, and no beginning of a tensor among it.
"""

import hashlib
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .byte_source import ByteSource, SourceChangedError
from .operations import CheckpointError

FETCH_BYTES = 2**19
"""Linux fetches no more than the largest transfer of the disk for one request, whatever is asked for."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What the system tells of a file.

    Attributes:
        size: In bytes.
        mtime_ns: When the content was written, which whoever writes may set.
        inode: Number of the file on its device; a file that is renamed over another has another.
        ctime_ns: When content, name or rights changed, which nobody can set.
        device: Number of the device; not the same after the machine was started anew.
    """

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int
    device: int

    @classmethod
    def of(cls, file: Path | int) -> "FileState":
        """The state of a path or an open descriptor.

        Raises:
            OSError: there is no such file any more.
        """
        stat = os.stat(file)
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns, stat.st_dev)

    def difference(self, now: "FileState") -> str:
        """What is another about a file, in words; empty where at most the time of its last change is."""
        if now.size != self.size:
            return f"it had {self.size:,} bytes and has {now.size:,}"
        if now.inode != self.inode:
            return "another file took its name"
        return "it was written to" if now.mtime_ns != self.mtime_ns else ""


class SourceFile(ByteSource):
    """A file that is read piece by piece; opened when it is first read, and again after `close`.

    Args:
        path: The file.
        state: As it was before anything of it was read.
    """

    path: Path

    state: FileState

    def __init__(self, path: Path, state: FileState):
        super().__init__(path, state)
        self._descriptor: int | None = None
        self._closing: weakref.finalize[[int], SourceFile] | None = None

    @classmethod
    def of(cls, path: Path) -> "SourceFile":
        """A file as it is now.

        Raises:
            OSError: there is none.
        """
        return cls(path, FileState.of(path))

    @property
    def size(self) -> int:
        """In bytes, as it was."""
        return self.state.size

    @property
    def expected(self) -> FileState:
        """What the system should tell of it now."""
        return self.state

    @property
    def descriptor(self) -> int:
        """The open file.

        Raises:
            SourceChangedError: another file has its name by now.
            OSError: it cannot be opened.
        """
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            except FileNotFoundError as error:
                raise SourceChangedError(self.path, "it is not there any more") from error
            self._closing = weakref.finalize(self, os.close, self._descriptor)
            if what := self.expected.difference(FileState.of(self._descriptor)):
                raise SourceChangedError(self.path, what)
        return self._descriptor

    def close(self) -> None:
        """Closes it until it is read again: a checkpoint may have more files than a process may hold open."""
        if self._closing is not None:
            self._closing()
        self._closing = self._descriptor = None

    def read(self, view: memoryview, offset: int) -> None:
        """Fills `view` with the bytes from `offset` on.

        Raises:
            SourceChangedError: the file ends before.
            CheckpointError: the system cannot read it.
        """
        while view:
            try:
                count = os.preadv(self.descriptor, [view], offset)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path}: {len(view):,} bytes at {offset:,} cannot be read ({error.strerror}). The disk or "
                    "the network may be failing; copy the file elsewhere, and run the command with the copy."
                ) from error
            if not count:
                raise SourceChangedError(self.path, f"it became shorter, and ends at byte {offset:,}")
            view, offset = view[count:], offset + count

    def will_read(self, offset: int, nbytes: int) -> None:
        """Has the system fetch bytes that are about to be read in pieces with gaps."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            for start in range(offset, offset + nbytes, FETCH_BYTES):
                length = min(FETCH_BYTES, offset + nbytes - start)
                os.posix_fadvise(self.descriptor, start, length, os.POSIX_FADV_WILLNEED)

    def forget(self, offset: int, nbytes: int) -> None:
        """Drops bytes from the system's file cache."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self.descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def look(self) -> FileState:
        """What the system tells of the file that has the name now; size, time and inode are as they were.

        Raises:
            SourceChangedError: they are not, or there is none.
        """
        try:
            now = FileState.of(self.path)
        except FileNotFoundError as error:
            raise SourceChangedError(self.path, "it is not there any more") from error
        if what := self.expected.difference(now):
            raise SourceChangedError(self.path, what)
        return now

    @property
    def identity(self) -> tuple[str, int, int, int, str]:
        """Path, size, time, inode and sample, by which a resumed run knows the file again."""
        state = self.state
        return str(self.path.resolve()), state.size, state.mtime_ns, state.inode, self.sample_digest


@dataclass(frozen=True)
class SideFiles:
    """The small files beside the weights that decide the result, settings and tokenizer, as they were before any of
    them was read.

    Attributes:
        digests: Path, or another place of `places`, -> SHA-256 of the content; empty where there is no such file.
    """

    digests: Mapping[Any, str] = field(default_factory=dict)

    @classmethod
    def of(cls, *paths: Any) -> "SideFiles":
        """The files of these paths, those among them that are not there included; None is passed over."""
        return cls({path: _digest(path) for path in paths if path is not None})

    def check(self) -> None:
        """Makes sure that all are what they were.

        Raises:
            SourceChangedError: one is not.
        """
        for path, before in self.digests.items():
            now = _digest(path)
            if now != before:
                what = ("its content is another" if before else "it is new") if now else "it is not there any more"
                raise SourceChangedError(path, what)

    @property
    def identity(self) -> list[tuple[str, str]]:
        """(name, digest) of each, by which a resumed run knows them again; in another place they may be the same."""
        return [(path.name, digest) for path, digest in self.digests.items()]


def _digest(path: Any) -> str:
    if not path.is_file():  # nor a pipe, which would wait
        return ""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # whoever needs the file says what is wrong with it
        return ""


__all__ = ["FileState", "SideFiles", "SourceFile"]
