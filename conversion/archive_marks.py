"""What must stand where in an archive, and which file has it there.

Headers of the tar, headers and descriptors of the records, the directory and the end of each rank's archive are marks:
bytes that are known before they are read. They are spread over all parts (the released archive has more than a hundred
in each), so a file none of whose marks fit is not the part that its name says, and one that lacks a few is damaged
there. A file that does not fit where it is called is looked for in every other place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from .archive_members import TarMember
from .archive_places import Layout, PartFile
from .archive_zip import ZipView, descriptor_of, peek_many
from .torch_zip import (
    DIRECTORY_ENTRY_BYTES,
    END_BYTES,
    END_SIGNATURE,
    ENTRY_SIGNATURE,
    LOCAL_HEADER_BYTES,
    LOCAL_SIGNATURE,
)

STRONG_BYTES = 6
"""Expected bytes that are not there by chance: one in 10**14."""

WINDOW_BYTES = 8192
"""Marks so close to one another are read together."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Bytes that should be somewhere.

    Attributes:
        start: First byte of the header or record they are in.
        stop: The byte behind it.
        pieces: (first byte, bytes) that it has.
        what: In words.
        others: Stretches that are damaged instead, for all that can be told.
        is_told: Whether damage of a byte or two is found elsewhere.
    """

    start: int
    stop: int
    pieces: tuple[tuple[int, bytes], ...]
    what: str
    others: tuple[tuple[int, int], ...] = ()
    is_told: bool = False


@dataclass(frozen=True, slots=True)
class Fragment:
    """What of a mark is in one place; offsets are the place's."""

    mark: Mark
    pieces: tuple[tuple[int, bytes], ...]

    @property
    def start(self) -> int:
        """First expected byte."""
        return self.pieces[0][0]

    @property
    def stop(self) -> int:
        """Behind the last expected byte."""
        offset, expected = self.pieces[-1]
        return offset + len(expected)

    @property
    def nbytes(self) -> int:
        """How many bytes are expected."""
        return sum(len(expected) for _, expected in self.pieces)

    @property
    def is_strong(self) -> bool:
        """Whether they cannot be there by chance."""
        return self.nbytes >= STRONG_BYTES


class Fit(Enum):
    """How a fragment fits what is there."""

    FITS = "fits"
    NEAR = "but for a byte or two"
    MISSES = "something else"
    ZEROS = "zeros"
    NOTHING = "behind the end of the file, or cannot be read"


@dataclass(frozen=True)
class Fitting:
    """How the marks of a place fit a file.

    Attributes:
        fits: One for each fragment.
    """

    fits: tuple[tuple[Fragment, Fit], ...]

    def count(self, *kinds: Fit) -> int:
        """How many strong fragments fit in one of these ways."""
        return sum(fit in kinds and fragment.is_strong for fragment, fit in self.fits)

    @property
    def is_sound(self) -> bool:
        """Whether nothing speaks against it, and something for it."""
        return self.count(Fit.FITS) > 0 and not any(fit in (Fit.NEAR, Fit.MISSES, Fit.ZEROS) for _, fit in self.fits)

    @property
    def is_misfit(self) -> bool:
        """Whether it is another part: nothing speaks for it, or very little and it is alike in many marks.

        Ranks differ by a digit, and so do their headers where they lie at the same bytes of two parts.
        """
        fits, near, misses = self.count(Fit.FITS), self.count(Fit.NEAR), self.count(Fit.MISSES)
        against = misses + self.count(Fit.ZEROS)
        return (against > near and not fits) or (near > 1 and near + misses > 2 * fits)

    @property
    def is_empty(self) -> bool:
        """Whether a misfit has zeros everywhere: never written."""
        return self.is_misfit and not self.count(Fit.MISSES, Fit.NEAR)


def marks_of_members(members: Iterable[TarMember]) -> Iterator[Mark]:
    """What the tar's headers have, whatever else is in them."""
    for member in members:
        last = member.offset - 512
        pieces = [(last + 257, b"ustar")]
        if member.is_sound and member.offset - member.header_at == 512 and len(member.name) < 100:
            name = member.name.encode("utf-8", "replace")
            pieces.insert(0, (last, name))
        yield Mark(last, member.offset, tuple(pieces), f"the tar header of {member.name or 'a member'}")


def marks_of_zip(view: ZipView, at: int) -> Iterator[Mark]:
    """What a torch archive has around its records.

    Args:
        view: The archive.
        at: Where it begins.
    """
    for record in view.records:
        entry, begin = record.entry, at + record.entry.header_at
        name_at = begin + LOCAL_HEADER_BYTES
        pieces: tuple[tuple[int, bytes], ...] = (
            (begin, LOCAL_SIGNATURE),
            (begin + 26, len(entry.raw_name).to_bytes(2, "little")),
        )
        pieces = (*pieces, (name_at, entry.raw_name))
        yield Mark(begin, at + entry.header_stop, pieces, f"the header of {entry.name}", is_told=record.is_near)
        if entry.has_descriptor and record.is_sound:
            behind, expected = at + record.stop, descriptor_of(record)
            pieces = ((behind, expected[:4]), (behind + 8, expected[8:])) if view.is_lent else ((behind, expected),)
            listed = () if view.is_lent else ((at + entry.at, at + entry.stop),)
            yield Mark(behind, behind + len(expected), pieces, f"what stands behind {entry.name}", listed)
    if view.is_lent and view.directory_at is not None:
        for entry in view.entries:
            pieces = ((at + entry.at, ENTRY_SIGNATURE), (at + entry.at + DIRECTORY_ENTRY_BYTES, entry.raw_name))
            yield Mark(at + entry.at, at + entry.stop, pieces, f"the directory's entry of {entry.name}")
    end = at + view.nbytes - END_BYTES
    yield Mark(end, end + END_BYTES, ((end, END_SIGNATURE + bytes(4)),), "the end of the archive", is_told=True)


def by_place(marks: Iterable[Mark], layout: Layout) -> dict[int, list[Fragment]]:
    """The marks of each place, cut at its borders, in order."""
    found: dict[int, list[Fragment]] = {}
    for mark in marks:
        cut: dict[int, list[tuple[int, bytes]]] = {}
        for start, expected in mark.pieces:
            skipped = 0
            for place, begin, end in layout.pieces(start, start + len(expected)):
                cut.setdefault(place, []).append((begin, expected[skipped : skipped + end - begin]))
                skipped += end - begin
        for place, pieces in cut.items():
            found.setdefault(place, []).append(Fragment(mark, tuple(pieces)))
    for fragments in found.values():
        fragments.sort(key=lambda fragment: fragment.start)
    return found


def fit(file: PartFile, fragments: Sequence[Fragment]) -> Fitting:
    """How the marks of a place fit a file."""
    there = [(index, fragment) for index, fragment in enumerate(fragments) if fragment.stop <= file.size]
    windows: list[tuple[int, int]] = []
    for _, fragment in there:
        if windows and fragment.start <= windows[-1][1] + 64 and fragment.stop - windows[-1][0] <= WINDOW_BYTES:
            windows[-1] = (windows[-1][0], max(windows[-1][1], fragment.stop))
        else:
            windows.append((fragment.start, fragment.stop))
    read = iter(peek_many(file.source, [(start, stop - start) for start, stop in windows]))
    file.source.close()
    results = [Fit.NOTHING] * len(fragments)
    number, raw = -1, None
    for index, fragment in there:
        while number < 0 or fragment.stop > windows[number][1]:
            number, raw = number + 1, next(read)
        results[index] = _fit_of(fragment, raw, windows[number][0])
    return Fitting(tuple(zip(fragments, results, strict=True)))


def _fit_of(fragment: Fragment, raw: bytes | None, at: int) -> Fit:
    if raw is None:
        return Fit.NOTHING
    wrong, is_zero = 0, True
    for start, expected in fragment.pieces:
        found = raw[start - at : start - at + len(expected)]
        wrong += sum(one != other for one, other in zip(found, expected, strict=True)) if found != expected else 0
        is_zero = is_zero and not any(found)
    if not wrong:
        return Fit.FITS
    if wrong <= max(1, fragment.nbytes // 12) and fragment.nbytes > 2 * wrong:
        return Fit.NEAR
    return Fit.ZEROS if is_zero else Fit.MISSES


def belongs(file: PartFile, fragments: Sequence[Fragment]) -> bool:
    """Whether a file fits a place: all marks, or nearly all; the first that does not ends the reading."""
    strong = [fragment for fragment in fragments if fragment.is_strong]
    if not strong:
        return False
    few = [fragment for fragment in strong if fragment.stop <= file.size][:3]
    if not few or not fit(file, few).count(Fit.FITS, Fit.NEAR):
        return False
    whole = fit(file, strong)
    good, bad = whole.count(Fit.FITS), whole.count(Fit.MISSES, Fit.ZEROS) + max(0, whole.count(Fit.NEAR) - 1)
    return good > 4 * bad


def fit_all(layout: Layout, fragments: Mapping[int, Sequence[Fragment]]) -> dict[int, Fitting]:
    """How every place's marks fit the file that is in it."""
    return {place: fit(file, fragments.get(place, ())) for place, file in sorted(layout.holding.items())}


__all__ = [
    "Fit",
    "Fitting",
    "Fragment",
    "Mark",
    "belongs",
    "by_place",
    "fit",
    "fit_all",
    "marks_of_members",
    "marks_of_zip",
]
