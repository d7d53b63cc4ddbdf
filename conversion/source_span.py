"""A stretch of bytes that lies in one file or runs over several, read as if it were a file of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .byte_source import ByteSource
from .places import Place


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of one source: `nbytes` from `start` on."""

    source: ByteSource
    start: int
    nbytes: int


class SourceSpan(ByteSource):
    """Segments one behind the other.

    Args:
        path: What messages call the stretch; what cannot be read is named by its own source.
        segments: In order; none is empty.
    """

    def __init__(self, path: Place, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self._ends = list(accumulate(segment.nbytes for segment in segments))
        self.worthwhile_gap = max((segment.source.worthwhile_gap for segment in segments), default=0)
        super().__init__(path, tuple(segment.source.state for segment in segments))

    @property
    def size(self) -> int:
        """Of all segments."""
        return self._ends[-1] if self._ends else 0

    def locate(self, offset: int, nbytes: int) -> Iterator[Segment]:
        """Where bytes of the stretch lie, in order; no more than there are."""
        number = bisect_right(self._ends, offset)
        while nbytes > 0 and number < len(self.segments):
            segment = self.segments[number]
            skipped = offset - (self._ends[number] - segment.nbytes)
            taken = min(nbytes, segment.nbytes - skipped)
            yield Segment(segment.source, segment.start + skipped, taken)
            offset, nbytes, number = offset + taken, nbytes - taken, number + 1

    def available(self, offset: int, nbytes: int) -> int:
        """As far as every segment's source goes on."""
        found = 0
        for segment in self.locate(offset, nbytes):
            here = segment.source.available(segment.start, segment.nbytes)
            found += here
            if here < segment.nbytes:
                break
        return found

    def part(self, path: Place, offset: int, nbytes: int) -> SourceSpan:
        """A stretch of the stretch."""
        return SourceSpan(path, list(self.locate(offset, nbytes)))

    def read(self, view: memoryview, offset: int) -> None:
        """Fills `view` from as many segments as it takes.

        Raises:
            CheckpointError: as the segments' sources do, by their own names.
        """
        for segment in self.locate(offset, len(view)):
            segment.source.read(view[: segment.nbytes], segment.start)
            view = view[segment.nbytes :]
        if view:
            raise ValueError(f"{self.path}: {len(view)} bytes behind the last of {self.size}")

    def read_many(self, places: Sequence[tuple[int, int]]) -> list[bytearray]:
        """Many short stretches; each source is asked for all of its own at a time. Raises as `read`."""
        pieces = [list(self.locate(offset, nbytes)) for offset, nbytes in places]
        by_source: dict[ByteSource, list[Segment]] = {}
        for segment in (segment for stretch in pieces for segment in stretch):
            by_source.setdefault(segment.source, []).append(segment)
        found = {
            source: iter(source.read_many([(segment.start, segment.nbytes) for segment in segments]))
            for source, segments in by_source.items()
        }
        stretches = [bytearray().join(next(found[segment.source]) for segment in stretch) for stretch in pieces]
        for (offset, nbytes), stretch in zip(places, stretches, strict=True):
            if len(stretch) != nbytes:
                raise ValueError(f"{self.path}: {nbytes} bytes at {offset}, there are {self.size}")
        return stretches

    def will_read(self, offset: int, nbytes: int) -> None:
        """Has the system fetch what is about to be read."""
        for segment in self.locate(offset, nbytes):
            segment.source.will_read(segment.start, segment.nbytes)

    def forget(self, offset: int, nbytes: int) -> None:
        """Drops bytes from the system's file cache."""
        for segment in self.locate(offset, nbytes):
            segment.source.forget(segment.start, segment.nbytes)

    def close(self) -> None:
        """Closes the sources, which others may share; they are opened again when they are read."""
        for segment in self.segments:
            segment.source.close()

    def look(self) -> tuple[Any, ...]:
        """What can be told of every source."""
        return tuple(segment.source.look() for segment in self.segments)

    def expire(self) -> None:
        """What was told of the sources a moment ago counts no more."""
        for segment in self.segments:
            segment.source.expire()

    @property
    def tells_changes(self) -> bool:
        """Whether all sources do."""
        return all(segment.source.tells_changes for segment in self.segments)

    @property
    def identity(self) -> tuple[str | int, ...]:
        """Names and states of the sources, and the sample of the stretch."""
        places = [(*segment.source.identity, segment.start, segment.nbytes) for segment in self.segments]
        return (str(self.path), repr(places), self.sample_digest)


__all__ = ["Segment", "SourceSpan"]
