"""A checkpoint in a tar that is not unpacked: where its members lie.

`tarfile` reads the headers (ustar, GNU and pax), one seek for each member, wherever the borders of the parts are that
the archive is cut into; a member is then a stretch of bytes like any other. What tar passes over in silence is an
error here: a header that is damaged ends the reading for `tarfile` as the end of the archive does.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from .byte_source import ByteSource
from .operations import CheckpointError
from .places import Place, VirtualPath
from .source_span import SourceSpan

BLOCK = tarfile.BLOCKSIZE
MAX_MEMBERS = 20_000
MAX_HEADER_BYTES = 2**20
"""That one header may take with its long names; a damaged one may claim any number."""

COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
}


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive: where its bytes begin, and how many there are."""

    offset: int
    nbytes: int


class TarArchive:
    """A tar.

    Args:
        path: What messages call it.
        source: Its bytes, over all its parts.
        members: Where its files lie, for those who have found that out in their own way; default: as its headers say.

    Attributes:
        members: Files by name.
        folders: Names of folders, whether the archive lists them or not; "." is one.

    Raises:
        CheckpointError: compressed, no tar, with a damaged header, cut short, with members that cannot be read in
            place (sparse), under unsafe names, or twice.
    """

    def __init__(self, path: Place, source: SourceSpan, members: Mapping[str, Member] | None = None) -> None:
        self.path = path
        self.source = source
        self.members: dict[str, Member] = {}
        self.folders: set[str] = {"."}
        if members is None:
            self._read()
        for name, member in (members or {}).items():
            self.members[name] = member
            self.folders.update(str(parent) for parent in PurePosixPath(name).parents)

    @property
    def root(self) -> MemberPath:
        """The folder that all members are in."""
        return MemberPath(self, PurePosixPath())

    def _read(self) -> None:
        check_plain(self.path, self.source)
        for name, info in _infos(self.path, self.source):
            self._add(name, info)

    def _add(self, name: PurePosixPath, info: tarfile.TarInfo) -> None:
        self.folders.update(str(parent) for parent in name.parents)
        if info.isdir():
            self.folders.add(str(name))
            return
        if not info.isreg():
            return  # a link or a device is nothing that a checkpoint is read from
        if str(name) in self.members:
            raise CheckpointError(f"{self.path}: two members are called {name}. Unpack it, and pass the folder.")
        self.members[str(name)] = Member(info.offset_data, info.size)


class MemberPath(VirtualPath):
    """A file or folder of an archive."""

    def __init__(self, archive: TarArchive, inside: PurePosixPath) -> None:
        super().__init__(inside)
        self.archive = archive

    def __str__(self) -> str:
        inside = str(self.inside)
        return str(self.archive.path) if inside == "." else f"{self.archive.path}:{inside}"

    def at(self, inside: PurePosixPath) -> MemberPath:
        """Another name in the same archive."""
        return MemberPath(self.archive, inside)

    def is_dir(self) -> bool:
        """Whether members are in it, or it is listed as a folder."""
        return str(self.inside) in self.archive.folders

    def is_file(self) -> bool:
        """Whether it is a member."""
        return str(self.inside) in self.archive.members

    def names(self) -> Iterator[str]:
        """Of members and folders in it."""
        archive, inside = self.archive, self.inside
        for name in {*archive.members, *archive.folders} - {"."}:
            path = PurePosixPath(name)
            if path.parent == inside:
                yield path.name

    def bytes(self) -> ByteSource:
        """The bytes of a file."""
        member = self.archive.members[str(self.inside)]
        return self.archive.source.part(self, member.offset, member.nbytes)


def check_plain(path: Place, source: ByteSource) -> None:
    """Raises `CheckpointError` for what is compressed, or too short for a tar."""
    start = bytes(source.read_bytes(0, min(BLOCK, source.size)))
    for magic, (kind, program) in COMPRESSED.items():
        if start.startswith(magic):
            raise CheckpointError(
                f"{path}: compressed with {kind}, so nothing in it can be read in place. Join the parts if there are "
                f"several (cat), decompress with {program}, and pass the result."
            )
    if len(start) < BLOCK:
        raise CheckpointError(f"{path}: {source.size} bytes, a tar has at least {BLOCK}. Copy it again.")


def _infos(path: Place, source: SourceSpan) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo]]:
    """Name and header of every member; raises `CheckpointError` unless the archive is sound to its end."""
    last = "the first member"
    end = 0
    try:
        with tarfile.open(fileobj=cast(BinaryIO, _Headers(source)), mode="r:", errors="strict") as archive:
            for number, info in enumerate(archive):
                if number >= MAX_MEMBERS:
                    raise CheckpointError(f"{path}: more than {MAX_MEMBERS:,} members, so no checkpoint's archive.")
                if info.issparse():
                    raise CheckpointError(
                        f"{path}: {info.name} is stored sparse, with its gaps left out, so it cannot be read in "
                        "place. Unpack it, and pass the folder."
                    )
                end = info.offset_data + (info.size if info.isreg() else 0)
                if end > source.size:
                    raise _cut_short(path, source, info.name, end)
                yield _safe_name(path, info.name), info
                last = f"{info.name} ends"
            end = archive.offset
    except (tarfile.TarError, UnicodeError, ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where(source, end)}: no tar header where {last} ({error}). {AGAIN}") from error
    closing = source.read_bytes(min(end, source.size), min(BLOCK, max(0, source.size - end)))
    if len(closing) < BLOCK:
        raise CheckpointError(
            f"{path}: ends at byte {source.size:,} without the empty block that closes a tar, where {last}. {MORE}"
        )
    if any(closing):
        raise CheckpointError(f"{where(source, end)}: no tar header where {last}. {AGAIN}")


AGAIN = (
    "That part is damaged, or is not the one its name says, or the one before it is: compare their checksums with "
    "those published, and copy that one again."
)
MORE = "The parts behind the last one are missing, or the archive was cut short."


def where(source: SourceSpan, offset: int) -> str:
    """The file that a byte of an archive is in, and its number there."""
    for segment in source.locate(offset, 1):
        return f"{segment.source.path}: byte {segment.start:,}"
    return f"{source.path}: byte {offset:,}"


def _cut_short(path: Place, source: SourceSpan, name: str, end: int) -> CheckpointError:
    return CheckpointError(
        f"{path}: {name} should end at byte {end:,}, and there are {source.size:,} bytes: {end - source.size:,} are "
        f"missing. {MORE}"
    )


def _safe_name(path: Place, name: str) -> PurePosixPath:
    """The name of a member as it is looked for."""
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\0" in name or not name.isprintable():
        raise CheckpointError(f"{path}: a member is called {name!r}. Unpack it with care, and pass the folder.")
    return inside


class _Headers(io.RawIOBase):
    """What `tarfile` reads headers from: never more at a time than a header takes."""

    def __init__(self, source: ByteSource) -> None:
        self._file = source.open()

    def read(self, size: int = -1) -> bytes:
        """At most a header."""
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header that claims {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As the file."""
        return self._file.tell()


__all__ = ["BLOCK", "MAX_HEADER_BYTES", "MAX_MEMBERS", "Member", "MemberPath", "TarArchive", "check_plain", "where"]
