"""Looks at GLM-130B in the archive it was released as: sixty parts of one tar, or the joined tar.

What is wrong with the parts is `archive_check`'s to say; here what lies in them is looked at as any ranks are, with
holes where parts are missing, and with every part where it belongs.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from .archive_check import Survey, survey
from .archive_deep import checked_bytes, read_through
from .inspect_deep import around
from .inspect_glm130b import describe
from .inspect_look import Look, Question
from .inspect_ranks import Ranks, look_at_ranks
from .inspect_report import Deep, FileFacts, Finding, Report, Stretch, has_errors, worst_first
from .operations import CheckpointError
from .places import Place
from .rank_files import LATEST, RANK_FILE
from .tar_archive import Member, TarArchive, check_plain

SHOWN = 3

OF_PARTS = ("missing", "damaged", "short", "unknown", "downloading")
"""What follows for the ranks from parts that are not there or not sound."""


def look_at_parts(question: Question) -> Look | None:
    """Looks at the parts of an archive, or at a tar."""
    found = survey(question.source)
    if found is None:
        return None
    findings = [_with_members(found, finding) for finding in found.findings]
    if 0 in found.layout.holding:
        try:
            check_plain(found.layout.path, found.layout.span)
        except CheckpointError as error:  # of which nothing that is said of headers is worth saying
            text = str(error).removeprefix(f"{found.layout.path}: ")
            findings = [Finding("damaged", text, (Stretch(found.layout.holding[0].name),))]
    facts = tuple(FileFacts(file.name, file.size, None) for file in found.layout.files)
    form = "parts of the released archive" if found.layout.is_cut else "the released archive, joined"
    ranks = _ranks(found)
    if ranks is None:
        if not has_errors(findings):
            findings.append(Finding("unknown", "no rank files of GLM-130B in the archive"))
        return Look(Report(str(question.source), "", form, "", files=facts, findings=worst_first(findings)))
    is_sound = not has_errors(findings)
    ranks.findings = [*findings, *(one for one in ranks.findings if is_sound or one.kind not in OF_PARTS)]
    home = question.source if question.source.is_dir() else question.source.parent
    look = describe(question, ranks, home, form, facts)
    return replace(look, nbytes=checked_bytes(found), read=partial(_read, found, ranks))


def _read(found: Survey, ranks: Ranks, on_bytes: Callable[[int], object]) -> tuple[list[Finding], Deep]:
    """Every record's checksum; and where nothing is wrong so far, also what stands around the records."""
    findings, deep = read_through(found, on_bytes)
    if not has_errors([*found.findings, *findings]):
        for file in ranks.files.values():
            findings += around(file) if file.is_readable else ()
    return findings, deep


def _ranks(found: Survey) -> Ranks | None:
    """The ranks in an archive, in whichever of its folders they are."""
    members = [one for one in found.structure.members.members if one.is_file and one.name]
    places = {one.name: Member(one.offset, one.nbytes) for one in members}
    archive = TarArchive(found.layout.path, found.layout.span, places)
    files = [archive.root / name for name in sorted(archive.members)]
    tops = [file.parent for file in files if file.name == LATEST]
    ranked = Counter(file.parent for file in files if RANK_FILE.fullmatch(file.name))
    place: Place | None = tops[0] if tops else (ranked.most_common(1)[0][0] if ranked else None)
    return None if place is None else look_at_ranks(place)


def _with_members(found: Survey, finding: Finding) -> Finding:
    """A finding on a part that is not there, with what of the archive's files lies in it."""
    layout = found.layout
    numbers = {layout.name_of(place): place for place in range(layout.count)}
    place = numbers.get(finding.places[0].file) if len(finding.places) == 1 else None
    if place is None or finding.kind not in ("missing", "short", "downloading") or not layout.is_cut:
        return finding
    held = list(_held(found, place * layout.part_bytes, (place + 1) * layout.part_bytes))
    more = f" and {len(held) - SHOWN} files more" if len(held) > SHOWN else ""
    return replace(finding, text=f"{finding.text}; in it are {', '.join(held[:SHOWN])}{more}") if held else finding


def _held(found: Survey, start: int, stop: int) -> Iterator[str]:
    for member in found.structure.members.members:
        if member.is_file and member.name and member.offset < stop and member.offset + member.nbytes > start:
            begin, end = max(start, member.offset), min(stop, member.offset + member.nbytes)
            yield f"bytes {begin - member.offset:,} to {end - member.offset:,} of {member.name}"


__all__ = ["look_at_parts"]
