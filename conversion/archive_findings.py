"""What was seen of an archive in parts, in words: each finding names its parts and the bytes in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from .archive_marks import Fit, Fragment
from .archive_match import Match, are_alike
from .archive_members import RECORD_BYTES, TarMember, damaged_blocks
from .archive_pickle import read_small
from .archive_places import DOWNLOAD, Layout, PartFile, peek
from .archive_structure import Structure
from .archive_zip import Contradiction
from .inspect_report import NOTE, WARNING, Finding, Stretch
from .tar_archive import BLOCK

LATEST = "latest"
MANY = 3
"""Marks in a row that are not there become one finding."""

MOST_OF_A_PART = 12
"""Damaged places of a part that are told of one by one."""

ZEROS_BEHIND = 2**20
"""Zeros behind the end of a tar that nobody minds."""


def closing(structure: Structure) -> tuple[int, int] | None:
    """First byte behind the members, and behind the zeros that tar writes there; None where it is not known."""
    end = structure.members.end
    return None if end is None else (end, -(-(end + 2 * BLOCK) // RECORD_BYTES) * RECORD_BYTES)


def last_place(layout: Layout, structure: Structure) -> int | None:
    """The place that the end of the archive is in; None where it is not known."""
    found = closing(structure)
    if found is None:
        return None
    end, padded = found
    if structure.members.is_end_sound and end + BLOCK <= layout.size < padded:
        return (layout.size - 1) // layout.part_bytes  # a tar that is not filled up
    return (padded - 1) // layout.part_bytes


def findings_on_files(
    named: Layout, layout: Layout, structure: Structure, match: Match, unfinished: Mapping[str, str]
) -> list[Finding]:
    """What is wrong with whole parts: missing, of another size, under another's name, too many.

    Args:
        named: The parts where their names put them.
        layout: The parts where they belong.
        structure: What the headers tell.
        match: What belongs where.
        unfinished: Files that are still being downloaded.
    """
    last = last_place(layout, structure)
    copies = match.copies
    strangers = [*copies, *match.nowhere]
    return [
        *_missing(named, layout, last, unfinished, strangers),
        *_exchanged(named, layout, structure),
        *_copied(copies, match.twins, last),
        *_nowhere(layout, structure, match.nowhere, unfinished, last),
        *_sizes(layout, structure, last, unfinished, strangers),
        *_too_many(named, layout, structure, last, copies),
    ]


def _missing(
    named: Layout, layout: Layout, last: int | None, unfinished: Mapping[str, str], strangers: Sequence[PartFile]
) -> Iterator[Finding]:
    count = layout.count if last is None else last + 1
    names = {file.name for file in named.files}
    absent = [place for place in range(count) if place not in layout.holding]
    gone = [layout.name_of(place) for place in absent]
    gone = [name for name in gone if name not in names and name not in unfinished]
    if gone:
        at_least = "" if last is not None else " at least"
        what = "a part is not there" if len(gone) == 1 else f"{len(gone)} parts{at_least} are not there"
        yield Finding("missing", what, tuple(Stretch(name) for name in gone), remedy="Download what is missing.")
    for place in absent:
        name = layout.name_of(place)
        file = next((one for one in named.files if one.name == name), None)
        if file is not None and file in layout.holding.values() and file not in strangers:
            text = "what belongs there is in no file: the file of that name is another part"
            yield Finding("missing", text, (Stretch(name),), remedy=DOWNLOAD)


def _exchanged(named: Layout, layout: Layout, structure: Structure) -> Iterator[Finding]:
    """Files in other places than their names say: pairs, and longer rounds."""
    homes = {file: place for place, file in named.holding.items()}
    moved = {homes[file]: place for place, file in layout.holding.items() if homes.get(file, place) != place}
    told: set[int] = set()
    for origin, place in moved.items():
        if origin in told:
            continue
        here, there = named.name_of(origin), layout.name_of(place)
        proved, proved_back = (structure.fittings[one].count(Fit.FITS) > 0 for one in (place, moved.get(place, place)))
        if moved.get(place) == origin:
            told |= {origin, place}
            if not proved:
                here, there = there, here
            back = f"and {there} what {here} should"
            if not (proved and proved_back):
                back = f"and {there} presumably what {here} should, by which nothing can be told"
            remedy = f"Exchange the names of {here} and {there}."
            yield Finding("swapped", f"{here} holds what {there} should, {back}", _both(here, there), remedy=remedy)
        elif proved:
            told |= {origin}
            places = _both(here, there) if place in named.holding else (Stretch(here),)
            yield Finding("swapped", f"{here} holds what {there} should", places, remedy=f"Call {here} {there}.")
    for place, file in layout.holding.items():
        if file not in homes:  # of two files with one number, the one that was not looked at first
            text = f"{file.name} holds what {layout.name_of(place)} should"
            yield Finding("swapped", text, (Stretch(file.name),), remedy=f"Keep it as {layout.name_of(place)}.")


def _both(here: str, there: str) -> tuple[Stretch, Stretch]:
    return Stretch(here), Stretch(there)


def _copied(copies: Mapping[PartFile, PartFile], twins: Collection[PartFile], last: int | None) -> Iterator[Finding]:
    for file, other in copies.items():
        if file.number == other.number:
            continue  # told as two files of one number
        is_behind = last is not None and file.number > last
        remedy = "Move it elsewhere." if is_behind else f"Download {file.name} again."
        text = f"{file.name} is a copy of {other.name}"
        places: tuple[Stretch, ...] = (Stretch(file.name),)
        if not is_behind and other in twins:
            text = f"{other.name} and {file.name} hold the same, and one of them is a copy"
            places, remedy = (Stretch(other.name), Stretch(file.name)), "Download both again."
        yield Finding("extra" if is_behind else "copy", text, places, remedy=remedy)


def _nowhere(
    layout: Layout,
    structure: Structure,
    files: Sequence[PartFile],
    unfinished: Mapping[str, str],
    last: int | None,
) -> Iterator[Finding]:
    """Parts none of whose marks are there."""
    for place, file in layout.holding.items():
        if file not in files or file.name in unfinished or (last is not None and place > last):
            continue
        fitting = structure.fittings[place]
        bad = [fragment for fragment, fit in fitting.fits if fit in (Fit.NEAR, Fit.MISSES, Fit.ZEROS)]
        count, whole = len(bad), Stretch(file.name, 0, file.size)
        if fitting.is_empty:
            text = f"zeros where {_counted(bad)} should be: it was never written, or not downloaded"
            yield Finding("damaged", text, (whole,), remedy=DOWNLOAD)
        elif count <= MANY:
            text = f"{_counted(bad)} should be here, and something else is: damaged, or a part of another archive"
            yield Finding("damaged", text, (Stretch(file.name, bad[0].start, bad[-1].stop),), remedy=DOWNLOAD)
        else:
            text = f"{count} of the {len(fitting.fits)} headers that should be in it are not: of another archive"
            yield Finding("mismatch", text, (whole,), remedy=DOWNLOAD)


def _counted(fragments: Sequence[Fragment]) -> str:
    return fragments[0].mark.what if len(fragments) == 1 else f"{len(fragments)} headers"


def _sizes(
    layout: Layout,
    structure: Structure,
    last: int | None,
    unfinished: Mapping[str, str],
    strangers: Sequence[PartFile],
) -> Iterator[Finding]:
    found = closing(structure)
    for place, file in sorted(layout.holding.items()):
        if file.name in unfinished or file in strangers or (last is not None and place > last):
            continue
        if last is not None and place == last and found is not None:
            yield from _size_of_last(layout, file, found, structure.members.is_end_sound)
        elif file.size < layout.part_bytes and (place < layout.count - 1 or not file.size or last is not None):
            whole = layout.part_bytes
            text = f"{file.size:,} bytes, and every part but the last has {whole:,}"
            remedy = f"Wait if it is still being downloaded; {DOWNLOAD[0].lower()}{DOWNLOAD[1:]}"
            yield Finding("short", text, (Stretch(file.name, file.size, whole),), remedy=remedy)
        elif file.size > layout.part_bytes:
            text = f"{file.size:,} bytes, and every part but the last has {layout.part_bytes:,}"
            yield Finding("damaged", text, (Stretch(file.name, layout.part_bytes, file.size),), remedy=DOWNLOAD)


def _size_of_last(layout: Layout, file: PartFile, found: tuple[int, int], is_sound: bool) -> Iterator[Finding]:
    end, padded = found
    before = (layout.count - 1) * layout.part_bytes if layout.count > 1 else 0
    before = (padded - 1) // layout.part_bytes * layout.part_bytes if padded <= before else before
    least = (end + BLOCK if is_sound else padded) - before
    if file.size < least:
        text = f"{file.size:,} bytes, and by the tar's headers the last part has {padded - before:,}"
        remedy = f"Wait if it is still being downloaded; {DOWNLOAD[0].lower()}{DOWNLOAD[1:]}"
        yield Finding("short", text, (Stretch(file.name, file.size, padded - before),), remedy=remedy)
    elif file.size < padded - before:
        text = "the zeros that tar fills up with end early; nothing is read from them"
        yield Finding("short", text, tuple(layout.stretches(before + file.size, padded)), NOTE)
    elif file.size > padded - before:
        nbytes = file.size - (padded - before)
        behind = peek(file.source, padded - before, min(nbytes, ZEROS_BEHIND))
        if behind is None or nbytes > ZEROS_BEHIND or any(behind):
            text = f"{nbytes:,} bytes behind the end of the archive"
            places = (Stretch(file.name, padded - before, file.size),)
            yield Finding("extra", text, places, WARNING, remedy="Converting passes over them. " + DOWNLOAD)


def _too_many(
    named: Layout, layout: Layout, structure: Structure, last: int | None, copies: Mapping[PartFile, PartFile]
) -> Iterator[Finding]:
    kept = set(layout.holding.values())
    for file in named.files:
        first = named.holding.get(file.number)
        if first is not None and first != file and file not in kept:
            is_same = "the same" if are_alike(file, first) else "not the same"
            text = f"the same part as {first.name}, by its number, and {is_same} content"
            yield Finding("extra", text, (Stretch(file.name),), remedy="Move it elsewhere.")
    if last is None:
        return
    for place, file in sorted(layout.holding.items()):
        if place <= last or file in copies:
            continue
        raw = peek(file.source, 0, min(file.size, ZEROS_BEHIND))
        is_padding = raw is not None and file.size <= ZEROS_BEHIND and not any(raw)
        if not is_padding or not file.size:
            text = f"behind the end of the archive, which is in {layout.name_of(last)}"
            yield Finding("extra", text, (Stretch(file.name),), remedy="Move it elsewhere.")


def findings_on_structure(layout: Layout, structure: Structure, quiet: Iterable[PartFile] = ()) -> list[Finding]:
    """What is damaged inside of the parts.

    Args:
        layout: The parts where they belong.
        structure: What the headers tell.
        quiet: Files that are told of as a whole.
    """
    silent = {place for place, file in layout.holding.items() if file in set(quiet)}
    silent |= {place for place in range(layout.count) if place not in layout.holding}
    damage = [
        *_of_tar(layout, structure),
        *_of_marks(layout, structure, silent),
        *_of_archives(layout, structure),
        *_of_latest(layout, structure),
    ]
    found: list[Finding] = []
    told: set[tuple[int, int]] = set()
    counts: Counter[int] = Counter()
    for one in damage:
        is_told = any(start < one.stop and one.start < stop for start, stop in told)
        if is_told or _is_explained(layout, one, silent):
            continue
        place = one.start // layout.part_bytes
        counts[place] += 1
        if counts[place] <= MOST_OF_A_PART:
            told.add((one.start, one.stop))
            found.append(as_finding(layout, one))
    for place, count in counts.items():
        if count > MOST_OF_A_PART:
            text = f"{count - MOST_OF_A_PART} more damaged places"
            found.append(Finding("damaged", text, (Stretch(layout.holding[place].name),), remedy=DOWNLOAD))
    return found


def _is_explained(layout: Layout, one: Contradiction, silent: set[int]) -> bool:
    """Whether a part is told of that some of the bytes should be in."""
    for start, end in ((one.start, max(one.stop, one.start + 1)), *one.others, *one.told_by):
        for place, _, stop in layout.pieces(start, end):
            file = layout.holding.get(place)
            if place in silent or file is None or stop > file.size:
                return True
    return False


def as_finding(layout: Layout, one: Contradiction, tensor: str = "") -> Finding:
    """Damage, by the names of the parts."""
    places = list(layout.stretches(one.start, one.stop))
    text = one.text
    if len({place.file for place in places}) > 1:
        text += f"; it lies in {len(places)} parts, and which of them is damaged cannot be told"
    for start, stop in one.others:
        others = layout.stretches(start, stop)
        text += f"; damaged is that, or {', '.join(map(str, others))}"
        places += others
    severity = WARNING if one.is_harmless else "error"
    remedy = "Nothing is read by these bytes, but others may have changed, too. " if one.is_harmless else ""
    return Finding("damaged", text, tuple(places), severity, tensor, remedy + "Download the part again.")


def _of_tar(layout: Layout, structure: Structure) -> Iterator[Contradiction]:
    last = begins = "the archive begins"
    span = layout.span
    for member in structure.members.members:
        if not member.is_sound:
            yield Contradiction(*damaged_blocks(span, member.header_at), f"no tar header where {last}")
        if member.is_sparse:
            text = f"{member.name} is stored sparse, with its gaps left out; unpack the archive and convert the folder"
            yield Contradiction(member.header_at, member.offset, text)
        padding = peek(span, member.stop, member.next_at - member.stop)
        if padding and any(padding):
            text = f"the filling behind {member.name} is not empty"
            yield Contradiction(member.stop, member.next_at, text, is_harmless=True)
        last = f"{member.name or 'a member'} ends"
    for start, _ in structure.members.unknown:
        before = [member for member in structure.members.members if member.next_at == start]
        where = f"{before[0].name or 'a member'} ends" if before else "one should be"
        yield Contradiction(*damaged_blocks(span, start), f"no tar header where {where if start else begins}")
    found = closing(structure)
    if found is not None:
        raw = peek(span, found[0], min(found[1], span.size) - found[0]) if span.size > found[0] else None
        if raw and any(raw):
            first = next(index for index, byte in enumerate(raw) if byte)
            is_harmless = structure.members.is_end_sound
            text = f"something else than zeros where the archive ends, behind {last}"
            yield Contradiction(found[0] + first, found[0] + len(raw.rstrip(b"\0")), text, is_harmless=is_harmless)


def _of_marks(layout: Layout, structure: Structure, silent: set[int]) -> Iterator[Contradiction]:
    """Marks that are not there in parts that hold others."""
    for place, fitting in structure.fittings.items():
        if place in silent:
            continue
        at = place * layout.part_bytes if layout.count > 1 else 0
        run: list[Fragment] = []
        is_zero = True
        for fragment, fit in [*fitting.fits, (None, Fit.FITS)]:
            if fragment is not None and fit in (Fit.NEAR, Fit.MISSES, Fit.ZEROS):
                if not fragment.mark.is_told:
                    run.append(fragment)
                    is_zero = is_zero and fit is Fit.ZEROS
                continue
            if run and fit is Fit.FITS:
                yield from _of_run(run, at, is_zero)
                run, is_zero = [], True


def _of_run(run: Sequence[Fragment], at: int, is_zero: bool) -> Iterator[Contradiction]:
    if len(run) > MANY:
        what = "zeros" if is_zero else "something else"
        text = f"{what} where {len(run)} headers should be"
        yield Contradiction(at + run[0].start, at + run[-1].stop, text)
        return
    for fragment in run:
        mark = fragment.mark
        text = f"{mark.what} is not what it should be"
        yield Contradiction(mark.start, mark.stop, text, mark.others)


def _of_archives(layout: Layout, structure: Structure) -> Iterator[Contradiction]:
    span = layout.span
    for member, view in structure.views.items():
        source = span.part(layout.path, member.offset, member.nbytes)
        small = read_small(source, view)
        for one in (*view.damage, *small.damage):
            yield replace(one, text=f"{member.name}: {one.text}").moved(member.offset)
        if view.directory_at is None and not view.is_lent and not view.damage:
            text = f"{member.name}: the end of its archive cannot be read"
            yield Contradiction(member.stop - BLOCK, member.stop, text)


def _of_latest(layout: Layout, structure: Structure) -> Iterator[Contradiction]:
    """`latest`, which has no checksum, names a folder that is there."""
    members = structure.members.members
    for member in members:
        is_latest = member.name.rpartition("/")[2] == LATEST and member.is_file and 0 < member.nbytes <= BLOCK
        raw = peek(layout.span, member.offset, member.nbytes) if is_latest else None
        if raw is None or not all(other.is_sound for other in members):
            continue
        home = member.name.removesuffix(LATEST)
        folders = {other.name.removeprefix(home).partition("/")[0] for other in members if _is_below(other, home)}
        if folders and raw.decode("utf-8", "replace").strip() not in folders:
            text = f"{member.name} names {raw[:40]!r}, and the folder there is called {', '.join(sorted(folders))}"
            yield Contradiction(member.offset, member.stop, text)


def _is_below(member: TarMember, home: str) -> bool:
    return member.name.startswith(home) and "/" in member.name.removeprefix(home)


__all__ = ["as_finding", "closing", "findings_on_files", "findings_on_structure", "last_place"]
