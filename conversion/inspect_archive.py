"""Looks at GLM-130B in the archive it was released as: sixty parts of one tar, or the joined tar."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .inspect_files import Looked
from .inspect_glm130b import describe
from .inspect_look import Look, Question
from .inspect_parts import (
    DOWNLOAD,
    FoundParts,
    Hole,
    SpanWithHoles,
    look_for_parts,
    size_findings,
)
from .inspect_ranks import Ranks, look_at_ranks
from .inspect_report import Finding, Report, Stretch, has_errors, worst_first
from .inspect_swaps import swapped_parts
from .operations import CheckpointError
from .places import Place
from .rank_files import LATEST, RANK_FILE
from .source_file import SourceFile
from .tar_archive import BLOCK, TarArchive

CLOSING_BYTES = 10_240
"""Of a tar's last record, which closes it with empty blocks."""


@dataclass
class Opened:
    """An archive as far as it can be read.

    Attributes:
        found: Its parts.
        archive: What is in them.
        problem: Where reading its headers ended too early; None if they are sound to the end.
        swapped: Place -> part that belongs there, where parts took one another's place.
    """

    found: FoundParts
    archive: TarArchive
    problem: CheckpointError | None
    swapped: dict[int, int]

    @property
    def last_needed(self) -> int:
        """Number of the part that the archive ends in, as far as its headers tell."""
        return max(self.archive.end - 1, 0) // self.found.whole if self.found.whole else 0


def look_at_parts(question: Question) -> Look | None:
    """Looks at the parts of an archive, or at a tar."""
    found = look_for_parts(question.source)
    if found is None:
        return None
    opened = _open(found)
    findings = [finding for finding in found.findings if not _is_behind(opened, finding)]
    if not opened.swapped:
        findings += size_findings(found, opened.last_needed if opened.problem is None else found.last)
    findings += _findings_on_swaps(opened)
    findings += _findings_on_the_end(opened, findings)
    form = "parts of the released archive" if found.whole else "the released archive, joined"
    ranks = _ranks(opened.archive)
    if ranks is None:
        if not has_errors(findings):
            findings.append(Finding("unknown", "no rank files of GLM-130B in the archive"))
        report = Report(str(question.source), "", form, "", files=found.facts, findings=worst_first(findings))
        return Look(report)
    ranks.findings = [*findings, *_without_consequences(ranks, opened, findings)]
    ranks.findings += _lost(ranks, found)
    return describe(question, ranks, found.folder, form, found.facts)


def _open(found: FoundParts) -> Opened:
    """Reads the headers; with a hole behind the last part where they lead beyond it; in another order where parts took
    one another's place.
    """
    archive, problem = _read(found, {}, with_tail=False)
    if problem is None and not any(_is_unreadable(archive)):
        return Opened(found, archive, None, {})
    if problem is not None:
        archive, _ = _read(found, {}, with_tail=True)
    swapped = _last_elsewhere(found) or swapped_parts(found, archive)
    if swapped:
        mended, left = _read(found, swapped, with_tail=False)
        if left is not None:
            mended, _ = _read(found, swapped, with_tail=True)
        return Opened(found, mended, left, swapped)
    return Opened(found, archive, problem, {})


def _last_elsewhere(found: FoundParts) -> dict[int, int]:
    """The last part and another one where they took one another's place; nothing where they did not.

    The last is the only one that may be shorter.
    """
    short = [number for number in found.paths if found.sizes[number] < found.whole and number not in found.unread]
    if len(short) != 1 or short[0] == found.last or found.sizes[found.last] != found.whole:
        return {}
    order = {short[0]: found.last, found.last: short[0]}
    return order if _read(found, order, with_tail=False)[1] is None else {}


def _read(found: FoundParts, order: dict[int, int], with_tail: bool) -> tuple[TarArchive, CheckpointError | None]:
    problems: list[CheckpointError] = []
    pattern = found.folder / found.pattern
    span = SpanWithHoles(pattern, found.segments(order, with_tail))
    return TarArchive(pattern, span, problems), problems[0] if problems else None


def _is_unreadable(archive: TarArchive) -> Iterator[bool]:
    """Of every rank, whether its headers are not as they should be."""
    ranks = _ranks(archive)
    for looked in ranks.files.values() if ranks is not None else ():
        yield looked.file is None


def _is_behind(opened: Opened, finding: Finding) -> bool:
    """Whether a part is said to be missing that the archive has no need of."""
    needless = {opened.found.name(n) for n in opened.found.unread if n > opened.last_needed}
    is_missing = finding.kind == "missing" and any(place.file in needless for place in finding.places)
    return opened.problem is None and is_missing


def _ranks(archive: TarArchive) -> Ranks | None:
    """The ranks in an archive, in whichever of its folders they are."""
    files = [archive.root / name for name in sorted(archive.members)]
    tops = [file.parent for file in files if file.name == LATEST]
    ranked = Counter(file.parent for file in files if RANK_FILE.fullmatch(file.name))
    place: Place | None = tops[0] if tops else (ranked.most_common(1)[0][0] if ranked else None)
    return None if place is None else look_at_ranks(place)


def _findings_on_swaps(opened: Opened) -> Iterator[Finding]:
    for place, number in sorted(opened.swapped.items()):
        here, there = opened.found.name(place), opened.found.name(number)
        yield Finding(
            "mismatch",
            f"its bytes are those of another place in the archive; what belongs here is in {there}",
            (Stretch(here),),
            remedy=f"Rename {there} to {here}, or download both again.",
        )


def _findings_on_the_end(opened: Opened, before: list[Finding]) -> Iterator[Finding]:
    """What the headers say of the archive's end: parts missing behind the last one, or too many."""
    found, archive = opened.found, opened.archive
    if opened.problem is None:
        for number in sorted(found.paths.keys() - found.unread) if found.whole else ():
            if number * found.whole >= archive.end and not _closes(found, number, archive.end):
                text = f"the archive ends in {found.name(opened.last_needed)}"
                yield Finding("extra", text, (Stretch(found.name(number)),), remedy="Move it elsewhere.")
        return
    real = archive.source.segments[:-1]  # the last is the hole behind
    behind = archive.end - sum(segment.nbytes for segment in real)
    if found.last in found.unread and behind > 0:
        behind = 0
    if behind > 0 and found.whole:
        last = (archive.end - 1) // found.whole
        for number in range(found.last + 1, last + 1):
            text = f"the archive's headers lead to part {last}, at least"
            yield Finding("missing", text, (Stretch(found.name(number)),), remedy="Download it.")
        size = found.sizes[found.last]
        if size < found.whole and last > found.last:
            text = f"{size:,} bytes, every part but the last has {found.whole:,}, and this is not the last"
            yield Finding("short", text, (Stretch(found.name(found.last), size, found.whole),), remedy=DOWNLOAD)
        elif last == found.last:
            yield _short_by(found.name(last), size, behind)
    elif behind > 0:
        yield _short_by(found.name(0), found.sizes[0], behind)
    elif not has_errors(before):
        places = tuple(  # of the header
            Stretch(segment.source.path.name, segment.start, segment.start + segment.nbytes)
            for segment in archive.source.locate(archive.end, BLOCK)
            if not isinstance(segment.source, Hole)
        )
        text = str(opened.problem).removeprefix(f"{archive.path}: ")
        text = re.sub(rf"^{re.escape(str(found.folder))}/[^:]*: byte [0-9,]+: ", "", text)
        yield Finding("damaged", text, places or (Stretch(found.name(found.last)),), remedy=DOWNLOAD)


def _closes(found: FoundParts, number: int, end: int) -> bool:
    """Whether a part behind the members is what closes the tar: empty blocks, up to a whole record of them."""
    source = SourceFile.of(found.paths[number])
    try:
        is_empty = not any(source.read_bytes(0, min(BLOCK, source.size)))
    finally:
        source.close()
    return is_empty and number * found.whole < end + CLOSING_BYTES + BLOCK


def _short_by(name: str, size: int, behind: int) -> Finding:
    text = f"{size:,} bytes: the archive's headers lead {behind:,} bytes further"
    return Finding("short", text, (Stretch(name, size, size + behind),), remedy=DOWNLOAD)


def _without_consequences(ranks: Ranks, opened: Opened, before: list[Finding]) -> Iterator[Finding]:
    """What is wrong with the ranks, but what only follows from parts that are not there."""
    names_of_parts = {opened.found.name(number) for number in opened.found.unread}
    for finding in ranks.findings:
        follows = finding.kind == "missing" and opened.problem is not None and before
        in_hole = any(place.file in names_of_parts for place in finding.places) and before
        if not follows and not in_hole and "is not there, or not whole" not in finding.text:
            yield finding


def _lost(ranks: Ranks, found: FoundParts) -> Iterator[Finding]:
    """Which ranks and tensors the missing bytes are of."""
    for looked in ranks.files.values():
        lost = Counter(hole for hole, _ in _tensors_in_holes(looked))
        names = dict(reversed(list(_tensors_in_holes(looked))))
        for hole, number in lost.items():
            text = f"{number} tensors of {looked.name} lie in it, e.g. {names[hole]}"
            yield Finding("missing", text, (Stretch(hole),), tensor=names[hole], remedy=DOWNLOAD)


def _tensors_in_holes(looked: Looked) -> Iterator[tuple[str, str]]:
    """(part, tensor) for every tensor with bytes that are not there."""
    source = looked.source
    if isinstance(source, SpanWithHoles):
        for name, stored in looked.tensors.items():
            for hole in source.holes(stored.offset, stored.offset + stored.extent):
                yield hole.source.path.name, name


__all__ = ["look_at_parts"]
