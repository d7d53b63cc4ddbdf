"""GLM-130B's rank files looked at together: which are missing, damaged, of another checkpoint."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .glm130b import TABLE, sizes_of_rank
from .glm130b_settings import Sizes
from .inspect_downloads import findings_on, unfinished_in
from .inspect_files import COPY_AGAIN, Looked, finding_of, look_at_torch
from .inspect_report import Finding, Stretch
from .operations import CheckpointError, TensorSpec
from .places import Place, names_in
from .rank_files import LATEST, MAX_RANKS, RANK_FILE, iteration_folder
from .tensor_names import entries

Value = TypeVar("Value")

ALIKE = 0.999
"""Of the largest rank's bytes, a whole rank has at least so many."""


@dataclass
class Ranks:
    """The ranks of one iteration.

    Attributes:
        folder: Where they are.
        within: What the folder is called in the report, with a slash behind it.
        iteration: Its name.
        files: Rank -> its file.
        findings: What is wrong with them, each and together.
        sizes: Of the model, where a rank tells.
        degree: How many ranks there should be; 0 where nobody can tell.
    """

    folder: Place
    within: str
    iteration: str
    files: dict[int, Looked] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    sizes: Sizes | None = None
    degree: int = 0

    @property
    def sound(self) -> dict[int, Looked]:
        """Those that could be opened."""
        return {rank: looked for rank, looked in self.files.items() if looked.file is not None}

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Of the first that could be opened."""
        first = next(iter(self.sound.values()), None)
        return {} if first is None else {name: stored.spec for name, stored in first.tensors.items()}


def rank_name(rank: int) -> str:
    """A rank's file, as released."""
    return f"mp_rank_{rank:02d}_model_states.pt"


def look_at_ranks(place: Place) -> Ranks | None:
    """Looks at a checkpoint in a folder; None if there is nothing of one.

    Args:
        place: The folder with `latest`, or an iteration's folder.
    """
    found = _iteration(place)
    if found is None:
        return None
    folder, problems = found
    within = "" if folder == place else f"{folder.name}/"
    ranks = Ranks(folder, within, folder.resolve().name, findings=problems)
    unfinished = unfinished_in(folder)
    for name in entries(folder):
        match = RANK_FILE.fullmatch(name)
        rank = int(match[1]) if match is not None and len(match[1]) < 6 else -1
        if match is None:
            continue
        if rank in ranks.files or not 0 <= rank < MAX_RANKS:
            what = f"the same rank as {ranks.files[rank].name}" if rank in ranks.files else "no rank of any checkpoint"
            ranks.findings.append(Finding("extra", what, (Stretch(within + name),), remedy="Move it elsewhere."))
            continue
        looked = look_at_torch(folder / name, within + name)
        ranks.files[rank] = replace(looked, file=None, findings=()) if name in unfinished else looked
    of_ranks = {name: beside for name, beside in unfinished.items() if not name or RANK_FILE.fullmatch(name)}
    ranks.findings += findings_on(of_ranks, within)
    _count(ranks, place, set(of_ranks))
    ranks.findings += [finding for looked in ranks.files.values() for finding in _of_file(ranks, looked)]
    ranks.findings += [*_iterations_differ(ranks), *_names_differ(ranks), *_copies_differ(ranks)]
    return ranks


def _iteration(place: Place) -> tuple[Place, list[Finding]] | None:
    """The folder of the rank files, and what is wrong with the way there."""
    inside = entries(place)
    here = any(map(_is_rank, inside))
    iterations = [name for name in inside if (place / name).is_dir() and any(map(_is_rank, names_in(place / name)))]
    if not here and not iterations:
        return None
    try:
        return iteration_folder(place), []
    except (CheckpointError, OSError) as error:
        problem = finding_of(error, place, LATEST, None)
        problem = replace(problem, kind="missing" if LATEST not in inside else "mismatch")
        unfinished_ranks = here and not any(map(RANK_FILE.fullmatch, inside))
        return place if here else place / iterations[-1], [] if unfinished_ranks else [problem]


def _is_rank(name: str) -> bool:
    """Whether a name is a rank's file, or that of its download."""
    return name.startswith("mp_rank_") and "_model_states.pt" in name


def _count(ranks: Ranks, place: Place, downloading: set[str]) -> None:
    """How many ranks there should be, and which of them are missing or too many."""
    told: Counter[tuple[Sizes, int]] = Counter()
    for looked in ranks.sound.values():
        try:
            told[sizes_of_rank({name: stored.spec for name, stored in looked.tensors.items()}, looked.name)] += 1
        except CheckpointError as error:
            ranks.findings.append(finding_of(error, looked.name, looked.name, looked.source, COPY_AGAIN))
    if told:
        ranks.sizes, ranks.degree = told.most_common(1)[0][0]
    numbers = [int(match[1]) for name in downloading if (match := RANK_FILE.fullmatch(name))]
    wanted = min(ranks.degree or max([*ranks.files, *numbers], default=-1) + 1, MAX_RANKS)
    for rank in range(wanted):
        name = rank_name(rank)
        if rank not in ranks.files and name not in downloading:
            beside = [f"{other}/{name}" for other in entries(place) if (place / other / name).is_file()]
            hint = f" There is {', '.join(beside)}, of another iteration." if beside else ""
            ranks.findings.append(
                Finding(
                    "missing",
                    f"rank {rank} of {wanted} is not there.{hint}",
                    (Stretch(ranks.within + name),),
                    remedy="Copy or download it.",
                )
            )
    for rank in sorted(ranks.files):
        if rank >= wanted:
            ranks.findings.append(
                Finding(
                    "extra",
                    f"the other files are parts of {wanted} ranks",
                    (Stretch(ranks.files[rank].name),),
                    remedy="Move it elsewhere.",
                )
            )


def _of_file(ranks: Ranks, looked: Looked) -> Iterator[Finding]:
    """What is wrong with one file; what is only shorter than the others is named so."""
    whole = max((other.nbytes for other in ranks.sound.values()), default=0)
    for finding in looked.findings:
        if finding.kind == "short" and looked.nbytes >= ALIKE * whole > 0:
            yield replace(finding, kind="damaged")
        elif finding.kind == "short" and whole:
            text = f"{looked.nbytes:,} bytes, the other ranks have {whole:,}; {finding.text}"
            places = (Stretch(looked.name, looked.nbytes, whole),)
            yield replace(
                finding, kind="short", text=text, places=places, remedy=f"Wait if it is being copied. {COPY_AGAIN}"
            )
        else:
            yield finding


def _iterations_differ(ranks: Ranks) -> Iterator[Finding]:
    said = {rank: str(looked.rest["iteration"]) for rank, looked in ranks.sound.items() if "iteration" in looked.rest}
    usual = _usual(list(said.values()))
    for rank, iteration in said.items():
        if iteration != usual:
            yield _of_others(ranks, rank, f"of iteration {iteration}, the others are of {usual}")


def _names_differ(ranks: Ranks) -> Iterator[Finding]:
    """Ranks that hold other names or shapes than most."""
    held = {
        rank: tuple((name, str(stored.spec)) for name, stored in sorted(looked.tensors.items()))
        for rank, looked in ranks.sound.items()
    }
    usual = _usual(list(held.values()))
    for rank, tensors in held.items():
        if usual is not None and tensors != usual:
            differing = sorted(set(tensors) ^ set(usual))
            names = sorted({name for name, _ in differing})
            here = dict(tensors).get(names[0], "not there")
            there = dict(usual).get(names[0], "not there")
            text = f"{len(names)} names or shapes differ from the other ranks', e.g. {names[0]}: {here}, not {there}"
            yield _of_others(ranks, rank, text, names[0])


def _copies_differ(ranks: Ranks) -> Iterator[Finding]:
    """Ranks whose copies of what all hold alike have other checksums than most ranks': those of the archives'
    directories, so nothing is read.
    """
    names = TABLE.replicated(sorted(ranks.specs))
    sums = {rank: {one.name: one.crc32 for one in looked.summed} for rank, looked in ranks.sound.items()}
    other: dict[int, list[str]] = {}
    for name in names:
        held = {rank: values[name] for rank, values in sums.items() if name in values}
        usual = _usual(list(held.values()))
        for rank, value in held.items():
            if value != usual:
                other.setdefault(rank, []).append(name)
    for rank, differing in other.items():
        text = (
            f"{len(differing)} of the {len(names)} tensors that every rank should hold alike differ from the other "
            f"ranks', e.g. {differing[0]}: a rank of another iteration or model, or a damaged one"
        )
        yield replace(
            _of_others(ranks, rank, text, differing[0]),
            remedy="Copy all ranks of one iteration; or, if they are known to belong together, convert with "
            "--replicated-from-rank-0.",
        )


def _of_others(ranks: Ranks, rank: int, text: str, tensor: str = "") -> Finding:
    return Finding(
        "mismatch", text, (Stretch(ranks.files[rank].name),), tensor=tensor, remedy="Copy all ranks of one iteration."
    )


def _usual(values: Sequence[Value]) -> Value | None:
    """What most have; the first, where none has more."""
    return Counter(values).most_common(1)[0][0] if values else None


__all__ = ["Ranks", "look_at_ranks", "rank_name"]
