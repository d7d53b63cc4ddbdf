"""The parts that a large archive was cut into: which belong together, in which order, and whether all are there.

GLM-130B's weights come as `glm-130b-sat.tar.part_00` to `part_59`, 4 GiB each but the last: a plain tar cut by
`split`. Names tell the order; sizes tell what was not copied whole.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .operations import CheckpointError
from .places import names_in

PART = re.compile(r"(?P<stem>.+)\.part[_-]?(?P<number>[0-9]{1,6}|[a-z]{2,3})")
"""As `split -d` numbers, or `split` without it letters."""

TAR = re.compile(r".+\.tar")
UNFINISHED = (".aria2", ".part", ".crdownload", ".download", ".incomplete", ".tmp")
"""Endings of what a download that is not finished leaves, beside the file or instead of it."""

MAX_PARTS = 10_000
SHOWN = 8


@dataclass(frozen=True)
class Parts:
    """The parts of one archive.

    Attributes:
        folder: Where they are.
        stem: What their names begin with.
        paths: In order, all of them.
    """

    folder: Path
    stem: str
    paths: Sequence[Path]

    @property
    def pattern(self) -> Path:
        """A name for all of them, for messages."""
        return self.paths[0] if len(self.paths) == 1 else self.folder / f"{self.stem}.part_*"


def find_parts(source: Path) -> Parts | None:
    """The parts that a source names: a folder of them, any one of them, or a tar that is whole. None: none of these.

    Raises:
        CheckpointError: parts of several archives; one missing, twice, or still being copied; a size that does not
            fit.
    """
    if source.is_file():
        match = PART.fullmatch(source.name)
        if match is None:
            return Parts(source.parent, source.name, [source]) if TAR.fullmatch(source.name) else None
        return _checked(source.parent, match["stem"])
    if not source.is_dir():
        return None
    names = list(names_in(source))
    stems = sorted({match["stem"] for name in names if (match := PART.fullmatch(name))})
    if len(stems) > 1:
        shown = ", ".join(f"{stem}.part_*" for stem in stems[:SHOWN])
        raise CheckpointError(
            f"{source}: parts of {len(stems)} archives: {shown}. Pass the first part of one of them."
        )
    if stems:
        return _checked(source, stems[0])
    tars = sorted(name for name in names if TAR.fullmatch(name))
    return Parts(source, tars[0], [source / tars[0]]) if len(tars) == 1 else None


def _checked(folder: Path, stem: str) -> Parts:
    numbered = _numbered(folder, stem)
    names = set(names_in(folder))
    unfinished = sorted(
        path.name for path in numbered.values() if any(path.name + ending in names for ending in UNFINISHED)
    )
    if unfinished:
        raise CheckpointError(
            f"{folder}: {_shown(unfinished)} still being downloaded (a file of the download lies beside). Wait for "
            "it, or start the download again."
        )
    example = next(iter(numbered.values())).name
    missing = [name_of(example, number) for number in range(max(numbered)) if number not in numbered]
    if missing:
        raise CheckpointError(
            f"{folder}: missing {_shown(missing)}; there are {len(numbered)} parts up to "
            f"{numbered[max(numbered)].name}. Download what is missing."
        )
    paths = [numbered[number] for number in sorted(numbered)]
    _check_sizes(folder, paths)
    return Parts(folder, stem, paths)


def _numbered(folder: Path, stem: str) -> dict[int, Path]:
    numbered: dict[int, Path] = {}
    for name in sorted(names_in(folder)):
        match = PART.fullmatch(name)
        if match is None or match["stem"] != stem or not (folder / name).is_file():
            continue
        number = number_of(match["number"])
        if number in numbered:
            raise CheckpointError(f"{folder}: {numbered[number].name} and {name} are the same part. Remove one.")
        if number >= MAX_PARTS:
            raise CheckpointError(f"{folder}: {name} is no part of any archive. Remove it.")
        numbered[number] = folder / name
    return numbered


def _check_sizes(folder: Path, paths: Sequence[Path]) -> None:
    """All parts but the last have one size, which is the largest: the others are short."""
    sizes = [path.stat().st_size for path in paths]
    whole = max(sizes)
    short = [f"{path.name} ({size:,})" for path, size in zip(paths[:-1], sizes, strict=False) if size != whole]
    if len(sizes) > 1 and sizes[-1] == whole and len(short) == len(sizes) - 1:
        raise CheckpointError(
            f"{paths[-1]}: {whole:,} bytes, more than the parts before it ({sizes[0]:,}); the last part is the "
            "shortest one. It is damaged, or no part of this archive."
        )
    if short:
        raise CheckpointError(
            f"{folder}: {_shown(short)} bytes; every part but the last has {whole:,}. Still being copied, or cut "
            "short: download again what is short."
        )
    if not sizes[-1]:
        raise CheckpointError(f"{paths[-1]}: 0 bytes. Download it again.")


def number_of(text: str) -> int:
    """The number of a part, from the last group of `PART`."""
    if text.isdigit():
        return int(text)
    number = 0
    for letter in text:
        number = 26 * number + ord(letter) - ord("a")
    return number


def name_of(example: str, number: int) -> str:
    """The name of a part, in the manner of another's."""
    match = PART.fullmatch(example)
    assert match is not None
    text = match["number"]
    if text.isdigit():
        digits = f"{number:0{len(text)}d}"
    else:
        digits = ""
        for _ in text:
            number, letter = divmod(number, 26)
            digits = chr(ord("a") + letter) + digits
    return example[: match.start("number")] + digits


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


__all__ = ["MAX_PARTS", "PART", "TAR", "UNFINISHED", "Parts", "find_parts", "name_of", "number_of"]
