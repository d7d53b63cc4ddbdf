"""The parts of an archive looked at: which are there, short, too many, being downloaded; holes where bytes are not.

`archive_parts` refuses an archive of which a part is missing. Here a hole takes its place, so that everything around
it can be looked at all the same.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from .archive_parts import MAX_PARTS, PART, TAR, name_of, number_of
from .byte_source import ByteSource
from .inspect_downloads import findings_on, unfinished_in
from .inspect_report import FileFacts, Finding, Stretch
from .operations import CheckpointError
from .places import Place
from .source_file import SourceFile
from .source_span import Segment, SourceSpan
from .tensor_names import entries

TAIL_BYTES = 2**50
"""Of the hole behind an archive that is cut short: more than any has."""

DOWNLOAD = "Download this part again."


class MissingBytesError(CheckpointError):
    """Bytes that lie in a part of an archive that is not there, or not whole."""


class Hole(ByteSource):
    """Bytes that are not there.

    Args:
        path: The part they should be in.
        nbytes: How many.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        super().__init__(path, None)
        self._nbytes = nbytes

    @property
    def size(self) -> int:
        """How many there should be."""
        return self._nbytes

    def read(self, view: memoryview, offset: int) -> None:
        """Raises `MissingBytesError`."""
        raise MissingBytesError(f"{self.path}: is not there, or not whole, and what is asked for lies in it")

    def close(self) -> None:
        """Nothing."""

    def look(self) -> None:
        """Nothing."""

    @property
    def identity(self) -> tuple[str | int, ...]:
        """The part's name."""
        return (str(self.path),)

    def will_read(self, offset: int, nbytes: int) -> None:
        """Nothing."""

    def forget(self, offset: int, nbytes: int) -> None:
        """Nothing."""


class SpanWithHoles(SourceSpan):
    """Parts one behind the other, some of which may be holes: what lies before a hole can be read to its last byte."""

    def part(self, path: Place, offset: int, nbytes: int) -> SpanWithHoles:
        """A stretch of the stretch."""
        return SpanWithHoles(path, list(self.locate(offset, nbytes)))

    def open(self) -> BinaryIO:
        """A file object that reads ahead as far as there are bytes."""
        return cast(BinaryIO, io.BufferedReader(_UpToHoles(self)))

    def holes(self, start: int, stop: int) -> list[Segment]:
        """Those in a stretch."""
        return [segment for segment in self.locate(start, stop - start) if isinstance(segment.source, Hole)]


class _UpToHoles(io.RawIOBase):
    def __init__(self, span: SpanWithHoles) -> None:
        self._span, self._at = span, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._span.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        segment = next(self._span.locate(self._at, len(buffer)), None)
        if segment is None:
            return 0
        view = memoryview(buffer)[: segment.nbytes]
        segment.source.read(view, segment.start)
        self._at += len(view)
        return len(view)


@dataclass
class FoundParts:
    """The parts of one archive, as far as they are there.

    Attributes:
        folder: Where.
        pattern: A name for all of them.
        paths: Number -> part; a joined archive is part 0.
        sizes: Number -> its bytes.
        whole: Bytes of every part but the last; 0 for a joined archive.
        findings: What is wrong with them.
        unread: Numbers of the parts whose bytes count as not there: missing, being downloaded.
    """

    folder: Path
    pattern: str
    paths: dict[int, Path] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    whole: int = 0
    findings: list[Finding] = field(default_factory=list)
    unread: set[int] = field(default_factory=set)

    @property
    def last(self) -> int:
        """The highest number that is there."""
        return max(self.paths, default=0)

    def name(self, number: int) -> str:
        """What a part is called, whether it is there or not."""
        if number in self.paths or not self.whole:
            return self.paths[min(number, self.last)].name
        return name_of(next(iter(self.paths.values())).name, number)

    def segments(self, order: Mapping[int, int], with_tail: bool) -> list[Segment]:
        """What the archive is put together from.

        Args:
            order: Number of a place -> number of the part that is to be there, where it is another.
            with_tail: Whether a hole follows the last part.
        """
        segments = []
        for place in range(self.last + 1):
            number = order.get(place, place)
            size = self.sizes.get(number, 0) if number not in self.unread else 0
            if size:
                segments.append(Segment(SourceFile.of(self.paths[number]), 0, size))
            if size < self.whole and place < self.last:
                segments.append(Segment(Hole(self.folder / self.name(number), self.whole), size, self.whole - size))
        if with_tail:
            segments.append(Segment(Hole(self.folder / self.name(self.last + 1), TAIL_BYTES), 0, TAIL_BYTES))
        return segments

    @property
    def facts(self) -> tuple[FileFacts, ...]:
        """For the report."""
        return tuple(FileFacts(self.paths[number].name, self.sizes[number], None) for number in sorted(self.paths))


def look_for_parts(source: Path) -> FoundParts | None:
    """The parts that a source names: a folder of them, one of them, a tar that is whole; None: none of these."""
    if source.is_file():
        match = PART.fullmatch(source.name)
        if match is None:
            return _joined(source) if TAR.fullmatch(source.name) else None
        return _parts(source.parent, match["stem"])
    if not source.is_dir():
        return None
    names = [*entries(source), *filter(None, unfinished_in(source))]
    stems = Counter(match["stem"] for name in names if (match := PART.fullmatch(name)))
    if not stems:
        tars = [name for name in names if TAR.fullmatch(name)]
        return _joined(source / tars[0]) if tars and (source / tars[0]).is_file() else None
    stem = stems.most_common(1)[0][0]
    found = _parts(source, stem)
    for other in sorted(stems.keys() - {stem}):
        text = f"parts of another archive; those of {stem} were looked at"
        found.findings.append(Finding("extra", text, (Stretch(f"{other}.part_*"),), remedy="Move them elsewhere."))
    return found


def _joined(path: Path) -> FoundParts:
    found = FoundParts(path.parent, path.name, {0: path}, {0: path.stat().st_size})
    unfinished = {name: by for name, by in unfinished_in(path.parent).items() if name == path.name}
    found.findings += findings_on(unfinished)
    return found


def _parts(folder: Path, stem: str) -> FoundParts:
    found = FoundParts(folder, f"{stem}.part_*")
    unfinished = unfinished_in(folder)
    of_it = {name: by for name, by in unfinished.items() if (m := PART.fullmatch(name)) and m["stem"] == stem}
    numbers = set()
    for name in sorted({*entries(folder), *of_it}):
        match = PART.fullmatch(name)
        if match is None or match["stem"] != stem or not (name in of_it or (folder / name).is_file()):
            continue
        number = number_of(match["number"])
        if number in numbers or number >= MAX_PARTS:
            what = f"the same part as {found.name(number)}" if number in numbers else "no part of any archive"
            found.findings.append(Finding("extra", what, (Stretch(name),), remedy="Remove one, or move it elsewhere."))
            continue
        numbers.add(number)
        found.paths[number] = folder / name
        found.sizes[number] = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if name in of_it:
            found.unread.add(number)
    sound = [size for number, size in found.sizes.items() if number not in found.unread]
    usual = Counter(size for size in sound if size).most_common(1)
    found.whole = usual[0][0] if usual and usual[0][1] > 1 else max(sound, default=0)
    found.findings += findings_on(of_it)
    for number in range(found.last):
        if number not in found.paths:
            found.unread.add(number)
            text = f"part {number} of the archive is not there"
            found.findings.append(Finding("missing", text, (Stretch(found.name(number)),), remedy="Download it."))
    return found


def size_findings(found: FoundParts, last_needed: int) -> list[Finding]:
    """Parts that are shorter or longer than the others.

    Args:
        found: The parts.
        last_needed: Number of the part that the archive ends in, which may be shorter.
    """
    findings = []
    for number in sorted(found.paths.keys() - found.unread):
        size, name = found.sizes[number], found.paths[number].name
        if size < found.whole and number < last_needed:
            text = f"{size:,} bytes, every part but the last has {found.whole:,}: cut short, or still being copied"
            findings.append(Finding("short", text, (Stretch(name, size, found.whole),), remedy=DOWNLOAD))
        elif size > found.whole > 0:
            text = f"{size:,} bytes, every part but the last has {found.whole:,}: more than it should"
            findings.append(Finding("damaged", text, (Stretch(name, found.whole, size),), remedy=DOWNLOAD))
    return findings


__all__ = ["DOWNLOAD", "FoundParts", "Hole", "MissingBytesError", "SpanWithHoles", "look_for_parts", "size_findings"]
