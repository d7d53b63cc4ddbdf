"""Which file belongs where: parts under one another's names, copies, and files that belong nowhere.

A file none of whose marks fit is looked for in every other place, and every other file in its place. Where the marks
themselves cannot be read, because what tells them is in such a file, exchanges are tried one by one (`explore`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .archive_marks import Fit, Fitting, Fragment, belongs
from .archive_places import Layout, PartFile, peek
from .byte_source import SAMPLE_BYTES, WHOLE_BYTES

MOST_TRIALS = 200_000
"""Places of the layouts that `explore` makes."""

SAMPLES = 16
"""Of a file that is compared with another."""


@dataclass(frozen=True)
class Match:
    """Where files belong.

    Attributes:
        holding: Place -> the file that belongs there, as far as it is known.
        copies: File -> the file that it is a copy of.
        twins: Files of which it cannot be told whether they are the copies themselves.
        nowhere: Files none of whose marks fit, and that fit no other place.
    """

    holding: Mapping[int, PartFile]
    copies: Mapping[PartFile, PartFile]
    nowhere: Sequence[PartFile]
    twins: Sequence[PartFile] = ()

    @property
    def alike(self) -> set[PartFile]:
        """Copies, and what may be one."""
        return {*self.copies, *self.twins}


def match(layout: Layout, fragments: Mapping[int, Sequence[Fragment]], fittings: Mapping[int, Fitting]) -> Match:
    """Looks for what belongs in the places that nothing fits, and for where what does not fit belongs.

    Args:
        layout: What is where now.
        fragments: The marks of each place.
        fittings: How they fit what is there.
    """
    wrong = [place for place, fitting in fittings.items() if fitting.is_misfit]
    empty = [place for place in range(layout.count) if place not in layout.holding]
    at_home = {layout.holding[place] for place, one in fittings.items() if one.count(Fit.FITS) and place not in wrong}
    candidates = [file for file in layout.files if file not in at_home]
    found: dict[int, PartFile] = {}
    for place in [*wrong, *empty]:
        for file in candidates:
            is_free = file not in found.values() and file != layout.holding.get(place)
            if is_free and belongs(file, fragments.get(place, ())):
                found[place] = file
                break
    holding = _moved(layout, found, fragments)
    lost = [layout.holding[place] for place in wrong]
    lost = [file for file in lost if holding.get(file.number) == file or file not in holding.values()]
    copies: dict[PartFile, PartFile] = {}
    twins = []
    for file, other in copies_among(layout):
        if file in lost or other in lost:
            copy, original = (file, other) if file in lost else (other, file)
            copies[copy] = original
        elif other not in copies:
            copies[file] = other
            twins += [other] if other not in at_home else []
    return Match(holding, copies, [file for file in lost if file not in copies], twins)


def _moved(
    layout: Layout, found: Mapping[int, PartFile], fragments: Mapping[int, Sequence[Fragment]]
) -> dict[int, PartFile]:
    """What is where after files went where they belong; what they displace goes where they were."""
    where = {file: place for place, file in layout.holding.items()}
    holding = {place: file for place, file in layout.holding.items() if file not in found.values()}
    holding |= found
    for place in found:
        displaced = layout.holding.get(place)
        if displaced is None or displaced in found.values():
            continue
        origin: int | None = place  # backwards along the chain of those that took one another's place
        while origin is not None and origin in found:
            origin = where.get(found[origin])
        if origin is not None and origin not in holding and not _speaks_against(displaced, fragments.get(origin, ())):
            holding[origin] = displaced
    return holding


def _speaks_against(file: PartFile, fragments: Sequence[Fragment]) -> bool:
    return any(fragment.is_strong for fragment in fragments) and not belongs(file, fragments)


def are_alike(file: PartFile, other: PartFile) -> bool:
    """Whether two files have one size and are the same in samples; small files in all bytes."""
    return file.size == other.size and sample_of(file) == sample_of(other)


def sample_of(file: PartFile) -> bytes | None:
    """Bytes spread over a file; None where they cannot be read, or are all the same, as in what was never written."""
    if file.size <= WHOLE_BYTES:
        raw = peek(file.source, 0, file.size)
    else:
        places = [(file.size - SAMPLE_BYTES) * number // (SAMPLES - 1) for number in range(SAMPLES)]
        pieces = [peek(file.source, place, SAMPLE_BYTES) for place in places]
        raw = None if any(piece is None for piece in pieces) else b"".join(piece or b"" for piece in pieces)
    return None if not raw or raw == raw[:1] * len(raw) else raw


def copies_among(layout: Layout) -> Iterator[tuple[PartFile, PartFile]]:
    """Files that are the same as an earlier one, as far as samples tell."""
    seen: dict[tuple[int, int], PartFile] = {}
    for file in layout.files:
        sample = sample_of(file)
        if sample is None:
            continue
        key = (file.size, hash(sample))
        if key in seen and are_alike(file, seen[key]):
            yield file, seen[key]
        seen.setdefault(key, file)


def exchanges(layout: Layout, place: int, trials: int) -> Iterator[Layout]:
    """Layouts in which what is in a place and another file took one another's place.

    Args:
        layout: What is where now.
        place: The place that something is wrong with.
        trials: How many there may be.
    """
    for other in layout.files[:trials]:
        if other == layout.holding.get(place):
            continue
        holding = dict(layout.holding)
        home = next((number for number, file in holding.items() if file == other), None)
        if home is not None:
            holding.pop(home)
            if place in holding:
                holding[home] = holding[place]
        holding[place] = other
        yield layout.with_holding(holding)


__all__ = ["MOST_TRIALS", "Match", "are_alike", "copies_among", "exchanges", "match", "sample_of"]
