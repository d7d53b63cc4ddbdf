"""What is wrong with the parts of an archive, all of it, named by part and byte range.

The converter stops at the first thing that does not fit. Here the looking goes on: a part that is missing leaves a
hole, a header that cannot be read is gone around, a part under a wrong name is put where it belongs, and only then is
said what is wrong. Headers alone are read, so it takes seconds at any size; what is between them is in
`archive_deep`. Nothing is allocated that a file claims, nothing executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .archive_findings import findings_on_files, findings_on_structure
from .archive_match import Match, match
from .archive_parts import PART, TAR
from .archive_places import Layout, lay_out, whole_tar
from .archive_structure import Structure, explored, extended
from .inspect_downloads import findings_on, unfinished_in
from .inspect_report import Finding, Stretch, worst_first
from .places import Place, names_in

ROUNDS = 4


@dataclass
class Survey:
    """What an archive in parts is, and what is wrong with it.

    Attributes:
        named: The parts where their names put them.
        layout: The parts where they belong.
        structure: What the headers tell.
        match: What belongs where.
        findings: What is wrong, the worst first.
        unfinished: Files whose download is not finished -> the file that tells.
    """

    named: Layout
    layout: Layout
    structure: Structure
    match: Match
    findings: Sequence[Finding] = ()
    unfinished: dict[str, str] = field(default_factory=dict)

    @property
    def renames(self) -> dict[str, str]:
        """Name of a file -> the name it should have."""
        homes = {file: place for place, file in self.named.holding.items()}
        return {
            file.name: self.named.name_of(place)
            for place, file in self.layout.holding.items()
            if homes.get(file) != place
        }

    @property
    def again(self) -> list[str]:
        """Names of parts to be downloaded again, or for the first time."""
        bad = ("missing", "short", "damaged", "copy", "mismatch", "downloading")
        names = [place.file for one in self.findings if one.kind in bad for place in one.places]
        return sorted(set(names))


def survey(source: Place) -> Survey | None:
    """Looks at the parts of an archive by their headers. Never stops at the first thing that is wrong.

    Args:
        source: A folder of parts, one of the parts, a tar, or a folder that holds one.

    Returns:
        What was found; None where there are no parts.
    """
    found = _parts(source)
    if found is None:
        return None
    folder, named, findings = found
    layout = named
    for _ in range(ROUNDS):
        layout, structure = explored(extended(layout))
        matched = match(layout, structure.fragments, structure.fittings)
        if dict(matched.holding) == dict(layout.holding):
            break
        layout = layout.with_holding(matched.holding)
    result = Survey(named, layout, structure, matched, unfinished=unfinished_in(folder))
    ours = [name for name in result.unfinished if PART.fullmatch(name) or any(name == one.name for one in named.files)]
    findings += findings_on({name: result.unfinished[name] for name in ours})
    findings += findings_on_files(named, layout, structure, matched, result.unfinished)
    told = [file for file in layout.files if file.name in result.unfinished or file in matched.alike]
    findings += findings_on_structure(layout, structure, [*told, *matched.nowhere])
    result.findings = worst_first(findings)
    layout.close()
    return result


def _parts(source: Place) -> tuple[Place, Layout, list[Finding]] | None:
    """The folder, what is in which place by name, and what is wrong with the names."""
    is_part = source.is_file() and PART.fullmatch(source.name)
    if source.is_file() and not is_part:
        return (source.parent, whole_tar(source), []) if TAR.fullmatch(source.name) else None
    folder = source.parent if is_part else source
    if not folder.is_dir():
        return None
    names = list(names_in(folder))
    stems = sorted({match_["stem"] for name in names if (match_ := PART.fullmatch(name))})
    if not stems:
        tars = [name for name in names if TAR.fullmatch(name)]
        return (folder, whole_tar(folder / tars[0]), []) if len(tars) == 1 else None
    by_stem = {stem: [name for name in names if _is_of(name, stem)] for stem in stems}
    stem = max(stems, key=lambda one: len(by_stem[one]))
    if is_part:
        stem = is_part["stem"]
    layout, findings = lay_out(folder, stem, by_stem[stem])
    for other in stems:
        if other != stem:
            places = tuple(Stretch(name) for name in sorted(by_stem[other])[:8])
            text = f"{len(by_stem[other])} parts of another archive, {other}, beside those of {stem}"
            findings.append(Finding("extra", text, places, remedy="Move them to a folder of their own."))
    return (folder, layout, findings) if layout.count else None


def _is_of(name: str, stem: str) -> bool:
    found = PART.fullmatch(name)
    return found is not None and found["stem"] == stem


__all__ = ["Survey", "survey"]
