"""What `--source` may name: a local path, or a place that looks like one, in an archive or in a store.

Whoever looks for a checkpoint's files does it with the few operations that both have, so a checkpoint is found in the
same way wherever it lies.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeAlias

from .byte_source import ByteSource
from .source_file import SourceFile


class VirtualPath(ABC):
    """A name that is not a local file's; used as a `pathlib.Path` is.

    Args:
        inside: The path within the archive or store.
    """

    def __init__(self, inside: PurePosixPath) -> None:
        self.inside = inside

    @abstractmethod
    def __str__(self) -> str:
        """What messages call it."""

    @abstractmethod
    def at(self, inside: PurePosixPath) -> VirtualPath:
        """Another name in the same archive or store."""

    @abstractmethod
    def is_dir(self) -> bool:
        """Whether it is a folder."""

    @abstractmethod
    def is_file(self) -> bool:
        """Whether it is a file."""

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Of what is in the folder."""

    @abstractmethod
    def bytes(self) -> ByteSource:
        """The bytes of a file; raises `OSError` or `CheckpointError` where there are none."""

    def open(self, mode: str = "rb") -> BinaryIO:
        """A file object on the bytes; raises as `bytes`."""
        return self.bytes().open()

    def __truediv__(self, name: str) -> VirtualPath:
        return self.at(self.inside / name)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and str(other) == str(self)

    def __hash__(self) -> int:
        return hash(str(self))

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is no local file")

    @property
    def home(self) -> Path | None:
        """The local path, of a place that stands for one."""
        return None

    @property
    def name(self) -> str:
        """The last part."""
        return self.inside.name

    @property
    def suffix(self) -> str:
        """The last part's ending, with its dot."""
        return self.inside.suffix

    @property
    def parent(self) -> VirtualPath:
        """The folder it is in."""
        return self.at(self.inside.parent)

    def with_name(self, name: str) -> VirtualPath:
        """Another name in the same folder."""
        return self.at(self.inside.with_name(name))

    def resolve(self) -> VirtualPath:
        """Itself: there are no links."""
        return self


Place: TypeAlias = Path | VirtualPath


def bytes_of(path: Place) -> ByteSource:
    """The bytes of a file of a source.

    Raises:
        OSError: there is no such file.
    """
    return SourceFile.of(path) if isinstance(path, Path) else path.bytes()


def names_in(folder: Place) -> Iterator[str]:
    """The names in a folder, in any order; raises `OSError` where there is none."""
    if isinstance(folder, VirtualPath):
        yield from folder.names()
        return
    with os.scandir(folder) as found:
        yield from (entry.name for entry in found)


__all__ = ["Place", "VirtualPath", "bytes_of", "names_in"]
