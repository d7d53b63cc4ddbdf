"""An archive as its headers tell it: members, the torch archives in them, and what must stand where.

Where the headers that tell the rest cannot be read, exchanges of two parts are tried: names that were mixed up look
like damage until they are put right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from .archive_marks import Fitting, Fragment, Mark, by_place, fit_all, marks_of_members, marks_of_zip
from .archive_match import MOST_TRIALS, exchanges
from .archive_members import END, Members, TarMember, find_members, member_at
from .archive_parts import MAX_PARTS
from .archive_places import Layout, peek
from .archive_zip import ZipView, find_records, lend, view_zip
from .byte_source import ByteSource
from .tar_archive import BLOCK
from .torch_zip import END_BYTES, LOCAL_HEADER_BYTES, LOCAL_SIGNATURE

SMALLEST_ZIP = 200
RANK_SUFFIX = ".pt"


@dataclass
class Structure:
    """An archive as its headers tell it.

    Attributes:
        members: Of the tar.
        views: Member -> the torch archive in it.
        fragments: The marks of each place.
        fittings: How they fit what is there.
    """

    members: Members
    views: dict[TarMember, ZipView]
    fragments: dict[int, list[Fragment]]
    fittings: dict[int, Fitting]


def read_structure(layout: Layout) -> Structure:
    """Reads the headers of an archive as far as they can be read."""
    span = layout.span
    members = find_members(span)
    views: dict[TarMember, ZipView] = {}
    sources: dict[TarMember, ByteSource] = {}
    for member in members.members:
        if not member.is_file or member.nbytes < SMALLEST_ZIP or member.is_sparse:
            continue
        if member.stop > span.size:
            continue  # `extended` makes room for it
        sources[member] = span.part(layout.path, member.offset, member.nbytes)
        if _is_torch(sources[member], member):
            views[member] = view_zip(sources[member])
    _drop_foreign(views)
    for member, view in views.items():
        others = [one for one in views.values() if one is not view and one.nbytes == view.nbytes and one.is_read]
        lender = min(others, key=lambda one: len(one.damage), default=None)
        if not view.is_read and lender is not None:
            lend(view, lender, _root(sources[member], view, lender, member, views))
        find_records(sources[member], view, lender)
        layout.close()
    marks: list[Mark] = list(marks_of_members(members.members))
    for member, view in views.items():
        marks += marks_of_zip(view, member.offset)
    fragments = by_place(marks, layout)
    return Structure(members, views, fragments, fit_all(layout, fragments))


def extended(layout: Layout) -> Layout:
    """A layout with places for all that the tar's headers tell of, though the last parts are missing."""
    members = find_members(layout.span)
    if members.end is None or members.end + BLOCK <= layout.size:
        return layout
    count = -(-(members.end + 2 * BLOCK) // layout.part_bytes)
    return replace(layout, count=max(layout.count, min(count, MAX_PARTS)))


def _is_torch(source: ByteSource, member: TarMember) -> bool:
    if member.name.endswith(RANK_SUFFIX) or not member.name:
        return True
    return peek(source, 0, 4) == LOCAL_SIGNATURE


def _drop_foreign(views: dict[TarMember, ZipView]) -> None:
    """Takes away directories that name another member: torch calls an archive's folder as it calls the file."""
    stems = {_stem(member.name).encode() for member in views}
    for member, view in views.items():
        folder = view.entries[0].raw_name.partition(b"/")[0] if view.entries else b""
        if member.name and folder in stems and folder != _stem(member.name).encode():
            view.entries, view.is_read, view.damage = (), False, []


def _root(
    source: ByteSource, view: ZipView, lender: ZipView, member: TarMember, views: dict[TarMember, ZipView]
) -> bytes | None:
    """The folder that an archive's names begin with, where its directory does not tell."""
    if view.entries:
        return view.entries[0].raw_name.partition(b"/")[0]
    lent = lender.entries[0].raw_name.partition(b"/")[0] if lender.entries else b""
    header = peek(source, 0, LOCAL_HEADER_BYTES + len(lent) + 1)
    if header is not None and header[:4] == LOCAL_SIGNATURE and header[-1:] == b"/":
        return header[LOCAL_HEADER_BYTES:-1]
    lender_member = next((one for one, other in views.items() if other is lender), None)
    is_own_name = lender_member is not None and lent == _stem(lender_member.name).encode()
    return _stem(member.name).encode() if is_own_name and member.name else None


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def explored(layout: Layout) -> tuple[Layout, Structure]:
    """The structure of an archive; where it cannot be read, that of the first exchange with which it can."""
    structure = read_structure(layout)
    trials = max(1, MOST_TRIALS // max(1, layout.count * 8))
    for start, stop in _unread(layout, structure):
        for place, begin, end in layout.pieces(start, stop):
            if place >= layout.count:
                continue
            for other in exchanges(layout, place, trials):
                speaks = peek(other.holding[place].source, begin, end - begin)
                if speaks and any(speaks) and _is_better(other, structure, start):
                    return other, read_structure(other)
    return layout, structure


def _unread(layout: Layout, structure: Structure) -> Iterator[tuple[int, int]]:
    """Stretches that tell where everything else is, and cannot be read."""
    yield from ((start, min(start + 3 * BLOCK, stop)) for start, stop in structure.members.unknown)
    for member, view in structure.views.items():
        if not view.is_read and not view.is_lent:
            begin = view.directory_at if view.directory_at is not None else max(0, view.nbytes - END_BYTES)
            yield member.offset + begin, member.stop


def _is_better(layout: Layout, before: Structure, start: int) -> bool:
    """Whether what could not be read from a byte on can be read now."""
    if any(start == unknown for unknown, _ in before.members.unknown):
        if member_at(layout.span, start) in (None, END):
            return False
        now = find_members(layout.span)
        return now.is_end_sound and not now.unknown and all(member.is_sound for member in now.members)
    member = next((one for one in before.views if one.offset <= start < one.stop), None)
    if member is None:
        return False
    return view_zip(layout.span.part(layout.path, member.offset, member.nbytes)).is_read


__all__ = ["Structure", "explored", "extended", "read_structure"]
