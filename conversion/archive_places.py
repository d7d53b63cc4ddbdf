"""The parts of an archive where their names put them, though some are missing, short or not what they are called.

A part that is not there, or ends too early, leaves a hole of its size: what is behind it stays where it was, and can
be looked at. Which file fills a place is a choice (`Layout.holding`), so that what is damaged by an exchange of names
can be read as it was meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from .archive_parts import MAX_PARTS, PART, part_name, part_number
from .byte_source import ByteSource
from .inspect_report import Finding, Stretch
from .operations import CheckpointError
from .places import Place, bytes_of
from .source_span import Segment, SourceSpan

RELEASED_PART_BYTES = 2**32
RELEASED_STEM = "glm-130b-sat.tar"

NOT_CUT = 2**62
"""Bytes of the only part of an archive that is in one piece."""

DOWNLOAD = "Download it again."


class HoleError(CheckpointError):
    """Bytes that no part holds."""


class Hole(ByteSource):
    """Bytes that are not there; reading them says so."""

    def __init__(self, path: Any, nbytes: int) -> None:
        super().__init__(path, nbytes)

    @property
    def size(self) -> int:
        """How many there should be."""
        return int(self.state)

    def read(self, view: memoryview, offset: int) -> None:
        """Raises `HoleError`."""
        raise HoleError(f"{self.path}: {len(view):,} bytes from {offset:,} on are not there.")

    def available(self, offset: int, nbytes: int) -> int:
        """None."""
        return 0

    def close(self) -> None:
        """Nothing."""

    def look(self) -> Any:
        """Always the same."""
        return self.state

    @property
    def identity(self) -> tuple[str | int, ...]:
        """Its size."""
        return ("", self.size)

    def will_read(self, offset: int, nbytes: int) -> None:
        """Nothing."""

    def forget(self, offset: int, nbytes: int) -> None:
        """Nothing."""


@dataclass(frozen=True)
class PartFile:
    """A file that is called a part.

    Attributes:
        name: Of the file.
        number: The place that its name gives it.
        source: Its bytes.
    """

    name: str
    number: int
    source: ByteSource = field(compare=False, hash=False)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.source.size


@dataclass(frozen=True)
class Layout:
    """An archive's places, and the file that fills each.

    Attributes:
        path: What the archive is called.
        files: Every file that is called a part of it, in order.
        part_bytes: Size of every part but the last.
        count: How many places there are.
        holding: Place -> the file in it. A place that is not in it is a hole.
    """

    path: Place
    files: tuple[PartFile, ...]
    part_bytes: int
    count: int
    holding: Mapping[int, PartFile]

    def name_of(self, place: int) -> str:
        """The name of the part that belongs there, which may not be there."""
        named = next((file.name for file in self.files if file.number == place), None)
        return named or part_name(self.files[0].name, place)

    @property
    def is_cut(self) -> bool:
        """Whether it is in parts."""
        return self.part_bytes != NOT_CUT

    def room(self, place: int) -> int:
        """Bytes of a place; the last one is as long as what is in it."""
        if place < self.count - 1 or place not in self.holding:
            return self.part_bytes
        return self.holding[place].size

    @property
    def size(self) -> int:
        """Of all places."""
        return self.part_bytes * (self.count - 1) + self.room(self.count - 1)

    @cached_property
    def span(self) -> SourceSpan:
        """Their bytes, holes among them."""
        segments = []
        for place in range(self.count):
            room, file = self.room(place), self.holding.get(place)
            there = 0 if file is None else min(file.size, room)
            if file is not None and there:
                segments.append(Segment(file.source, 0, there))
            if room > there:
                segments.append(Segment(Hole(self.name_of(place), room), there, room - there))
        return SourceSpan(self.path, segments)

    def pieces(self, start: int, stop: int) -> Iterable[tuple[int, int, int]]:
        """(place, first byte in it, the byte behind the last) of a stretch of the archive, also behind its end."""
        while start < stop:
            place = start // self.part_bytes
            end = min(stop, (place + 1) * self.part_bytes)
            yield place, start - place * self.part_bytes, end - place * self.part_bytes
            start = end

    def stretches(self, start: int, stop: int) -> tuple[Stretch, ...]:
        """Where bytes of the archive are, by the names of the files that they are in or should be in."""
        found = []
        for place, begin, end in self.pieces(start, max(stop, start + 1)):
            file = self.holding.get(place)
            found.append(Stretch(file.name if file is not None else self.name_of(place), begin, end))
        return tuple(found)

    def close(self) -> None:
        """Closes all files, of which there may be more than a process may hold open."""
        for file in self.files:
            file.source.close()

    def with_holding(self, holding: Mapping[int, PartFile]) -> Layout:
        """The same places with other files in them."""
        return replace(self, holding=dict(holding))


def peek(source: ByteSource, offset: int, nbytes: int) -> bytes | None:
    """Bytes, or None where they are not there or cannot be read."""
    if offset < 0 or nbytes < 0 or offset + nbytes > source.size:
        return None
    try:
        return bytes(source.read_bytes(offset, nbytes))
    except (CheckpointError, OSError):
        return None


def lay_out(folder: Place, stem: str, names: Sequence[str]) -> tuple[Layout, list[Finding]]:
    """Puts the parts of an archive where their names say.

    Args:
        folder: Where they are.
        stem: What their names begin with.
        names: Of what is in the folder; one of them at least is a part.

    Returns:
        The places, and what is wrong with the names. Sizes are looked at later, when it is known what is in a part.
    """
    files: list[PartFile] = []
    findings: list[Finding] = []
    holding: dict[int, PartFile] = {}
    for name in sorted(names):
        match = PART.fullmatch(name)
        if match is None or match["stem"] != stem:
            continue
        number = part_number(match["number"])
        if number >= MAX_PARTS:
            findings.append(Finding("extra", "no part of any archive", (Stretch(name),), remedy="Move it elsewhere."))
            continue
        if not (folder / name).is_file():
            continue
        try:
            files.append(PartFile(name, number, bytes_of(folder / name)))
        except OSError as error:
            findings.append(Finding("damaged", f"cannot be read ({error.strerror or error})", (Stretch(name),)))
    files.sort(key=lambda file: (file.number, file.name))
    whole = usual_size(files, stem)
    for file in files:
        before = holding.get(file.number)
        if before is None or (before.size != whole and file.size == whole):
            holding[file.number] = file
    count = max(holding, default=-1) + 1
    return Layout(folder / f"{stem}.part_*", tuple(files), max(whole, 1), count, holding), findings


def whole_tar(path: Place) -> Layout:
    """A tar that is not cut: one place, which is as long as the file."""
    file = PartFile(path.name, 0, bytes_of(path))
    return Layout(path, (file,), NOT_CUT, 1, {0: file})


def usual_size(files: Sequence[PartFile], stem: str) -> int:
    """The size of a whole part: that of most, or the largest where no two are alike."""
    last = max((file.number for file in files), default=0)
    sizes = Counter(file.size for file in files if file.number < last and file.size)
    most = max(sizes.values(), default=0)
    if most > 1:
        usual = max(size for size, times in sizes.items() if times == most)
    else:
        usual = max((file.size for file in files), default=0)
    return RELEASED_PART_BYTES if stem == RELEASED_STEM and 2**31 < usual < RELEASED_PART_BYTES else usual


__all__ = ["DOWNLOAD", "Hole", "HoleError", "Layout", "PartFile", "lay_out", "peek", "usual_size", "whole_tar"]
