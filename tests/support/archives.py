"""Tar archives in parts, as the released weights come: written where the tests want them cut, holes kept as holes.

    archive = write_archive(folder, members)                          # folder/glm-130b-sat.tar, whole
    archive = write_archive(folder, members, borders=[700, 1536])     # .part_00 .. .part_02, cut at these bytes
    archive = write_archive(folder, members, part_bytes=4096)         # .part_00 .. of 4096 bytes, the last shorter
    archive = write_archive(folder, members, tarfile.PAX_FORMAT, name="weights.tar")
    parts = cut(folder / "glm-130b-sat.tar", borders=[700])           # of a tar that is there, beside it
    archive.members["glm-130b-sat/latest"].data                       # byte of the joined tar where its data begins
    archive.at(offset)                                                # (part, byte in it) of a byte of the joined tar
    members = released_members([(5, path), (4, path), (0, path)])     # names of the released archive

`members` are (name, content) in the order of the archive; the content is the path of a file, bytes, or None for a
folder. Only headers and the stretches of a file that hold data are copied (`data_extents`), so an archive of sparse
files of 260 GB takes as little disk as they do, and seconds.
"""

import itertools
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

NAME = "glm-130b-sat.tar"
PART_BYTES = 4 * 2**30
"""Size of a released part; the last one is shorter."""

MTIME = 1_660_000_000
COPY_BYTES = 2**22

Content = Path | bytes | None
Members = Sequence[tuple[str, Content]]


@dataclass(frozen=True)
class Place:
    """Where a member lies in the joined tar, in bytes: its (first) header, its data, the size of its data."""

    header: int
    data: int
    size: int


@dataclass(frozen=True)
class Archive:
    """A tar that was written.

    Attributes:
        parts: Its files in order; one if it was not cut.
        borders: Bytes of the joined tar at which the second and every further part begin.
        size: Of the joined tar.
        members: Name -> where it lies.
    """

    parts: tuple[Path, ...]
    borders: tuple[int, ...]
    size: int
    members: dict[str, Place]

    def at(self, offset: int) -> tuple[Path, int]:
        """The part that holds a byte of the joined tar, and the byte's place in that part."""
        number = sum(border <= offset for border in self.borders)
        return self.parts[number], offset - (0, *self.borders)[number]


def write_archive(
    folder: Path,
    members: Members,
    tar_format: int = tarfile.GNU_FORMAT,
    *,
    name: str = NAME,
    part_bytes: int | None = None,
    borders: Sequence[int] = (),
) -> Archive:
    """Writes one plain tar, whole or in parts.

    Args:
        folder: Where it goes; made if it is not there.
        members: (name, content) in order.
        tar_format: `tarfile.USTAR_FORMAT`, `GNU_FORMAT` or `PAX_FORMAT`. What ustar cannot say is a ValueError.
        name: Of the tar; its parts are `<name>.part_00`, ...
        part_bytes: Size of every part but the last.
        borders: Instead, the bytes of the tar at which the second and every further part begin, in rising order.
    """
    headers, places, end = _layout(members, tar_format)
    size = -(-(end + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE  # two empty blocks end it
    cuts = tuple(range(part_bytes, size, part_bytes)) if part_bytes else tuple(borders)
    folder.mkdir(parents=True, exist_ok=True)
    with _Parts(folder / name, size, cuts) as parts:
        for (_, content), place, header in zip(members, places, headers, strict=True):
            parts.write(header, place.header)
            if isinstance(content, bytes):
                parts.write(content, place.data)
            elif content is not None:
                with content.open("rb") as file:
                    parts.copy(file, place.data)
    return Archive(parts.paths, cuts, size, {name: place for (name, _), place in zip(members, places, strict=True)})


def cut(tar: Path, borders: Sequence[int], folder: Path | None = None) -> tuple[Path, ...]:
    """Cuts any file into `<its name>.part_00`, ..., holes kept.

    Args:
        tar: The file, which stays.
        borders: Bytes at which the second and every further part begin, in rising order.
        folder: Where the parts go; default: beside it.
    """
    with (
        tar.open("rb") as file,
        _Parts((folder or tar.parent) / tar.name, tar.stat().st_size, tuple(borders)) as parts,
    ):
        parts.copy(file, 0)
    return parts.paths


def released_members(ranks: Sequence[tuple[int, Path]], iteration: str = "49300") -> list[tuple[str, Content]]:
    """The members of the released archive.

    Args:
        ranks: (number, file) of each rank, in the order of the archive.
        iteration: Name of the folder of the ranks, and what `latest` says.
    """
    top = NAME.removesuffix(".tar")
    members: list[tuple[str, Content]] = [
        (top, None),
        (f"{top}/latest", iteration.encode()),
        (f"{top}/{iteration}", None),
    ]
    return members + [(f"{top}/{iteration}/mp_rank_{rank:02d}_model_states.pt", path) for rank, path in ranks]


def data_extents(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """(first byte, byte behind the last) of each stretch of a file that is not a hole."""
    size = os.fstat(file.fileno()).st_size
    if not hasattr(os, "SEEK_DATA"):
        yield from [(0, size)] if size else []
        return
    end = 0
    while end < size:
        try:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole to the end
            return
        end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        yield start, end


def _layout(members: Members, tar_format: int) -> tuple[list[bytes], list[Place], int]:
    """Header and place of each member, and the byte behind the last."""
    headers, places, end = [], [], 0
    for name, content in members:
        info = tarfile.TarInfo(name)
        info.mtime, info.mode = MTIME, 0o755 if content is None else 0o644
        info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
        info.size = content.stat().st_size if isinstance(content, Path) else len(content or b"")
        header = info.tobuf(tar_format)
        places.append(Place(end, end + len(header), info.size))
        headers.append(header)
        end += len(header) + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return headers, places, end


class _Parts:
    """Files that are written as the one file they make together; nothing but a hole at first.

    Args:
        whole: Path of the one file; that of a part has `.part_00` behind it.
        size: Of the one file.
        borders: Where it is cut.
    """

    def __init__(self, whole: Path, size: int, borders: tuple[int, ...]):
        bounds = (0, *borders, size)
        if any(start >= stop for start, stop in itertools.pairwise(bounds)):
            raise ValueError(f"borders {borders} of {size} bytes: they rise, and no part is empty")
        names = [f"{whole.name}.part_{number:02d}" for number in range(len(borders) + 1)] if borders else [whole.name]
        self.paths = tuple(whole.with_name(name) for name in names)
        self._bounds = bounds
        self._files: list[BinaryIO] = []
        self._closing = ExitStack()

    def __enter__(self) -> "_Parts":
        with self._closing as closing:
            for path, (start, stop) in zip(self.paths, itertools.pairwise(self._bounds), strict=True):
                self._files.append(closing.enter_context(path.open("wb")))
                self._files[-1].truncate(stop - start)
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def write(self, content: bytes, offset: int) -> None:
        """Writes bytes at an offset of the one file."""
        for file, (start, stop) in zip(self._files, itertools.pairwise(self._bounds), strict=True):
            first, behind = max(start, offset), min(stop, offset + len(content))
            if first < behind:
                file.seek(first - start)
                file.write(content[first - offset : behind - offset])

    def copy(self, source: BinaryIO, offset: int) -> None:
        """Copies a file to an offset of the one file, without its holes."""
        for start, stop in data_extents(source):
            source.seek(start)
            for first in range(start, stop, COPY_BYTES):
                self.write(source.read(min(COPY_BYTES, stop - first)), offset + first)
