"""Weights in one file or in shards with an index: every file looked at, what is missing named, what is extra, too.

Which content a file should have is known where somebody recorded it: a converter in conversion.json, the Hub's
downloads in `.cache/huggingface/download` or in the name that the cache gives a file.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .folder_files import RECORD
from .inspect_downloads import HUB_DOWNLOADS, findings_on, unfinished_in
from .inspect_files import COPY_AGAIN, Looked, look_at
from .inspect_report import ERROR, WARNING, Finding, Stretch
from .json_files import MAX_SETTINGS_BYTES, read_json
from .lazy_files import LazyFile
from .operations import TensorSpec
from .safetensors_files import MAX_HEADER_BYTES
from .tensor_names import MAX_TENSORS, entries

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<ending>\.[a-z]+)")
SHA256 = re.compile(r"[0-9a-f]{64}")
SHOWN = 3


@dataclass
class Shards:
    """The weight files of a folder.

    Attributes:
        files: Those that are there.
        findings: What is wrong with them.
    """

    files: list[Looked] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Of every tensor in the files that could be opened."""
        return {name: stored.spec for file in self.files for name, stored in file.tensors.items()}


def look_at_shards(
    folder: Path, single: str, opener: Callable[[Any], LazyFile], extra_severity: str = WARNING
) -> Shards | None:
    """Looks at the weights in a folder; None if there are none, nor any that are being downloaded.

    Args:
        folder: The folder.
        single: What the file is called where there is one; shards are called after it.
        opener: Reads the header of one file.
        extra_severity: Of shards that no index names.
    """
    stem, _, ending = single.rpartition(".")
    unfinished = {
        name: beside
        for name, beside in unfinished_in(folder).items()
        if not name or name in (single, f"{single}.index.json") or _is_shard(name, stem, f".{ending}")
    }
    shards = Shards(findings=findings_on(unfinished))
    present = {name for name in entries(folder) if _is_shard(name, stem, f".{ending}")}
    index = folder / f"{single}.index.json"
    placed: dict[str, str] = {}
    if index.is_file():
        placed = _read_index(index, shards)
    elif (folder / single).is_file() or single in unfinished:
        present = {single} if (folder / single).is_file() else set()
    elif present or any(_is_shard(name, stem, f".{ending}") for name in unfinished):
        shards.findings.append(
            Finding("missing", "the index of the shards", (Stretch(index.name),), remedy=COPY_AGAIN)
        )
    elif not unfinished:
        return None
    elif single not in unfinished:
        shards.findings.append(Finding("missing", "the weights", (Stretch(single),), remedy="Copy or download them."))
    wanted = set(placed.values()) or present | _numbered(present)
    for name in sorted(wanted - present - set(unfinished)):
        if not (folder / name).is_file():
            shards.findings.append(
                Finding(
                    "missing",
                    "named by the index" if placed else "by the others' names",
                    (Stretch(name),),
                    remedy="Copy or download it.",
                )
            )
        else:
            present.add(name)
    for name in sorted(present - wanted):
        shards.findings.append(
            Finding("extra", "no shard that the index names", (Stretch(name),), extra_severity, remedy="Move it away.")
        )
    digests = recorded_digests(folder)
    for name in sorted(present & wanted):
        looked = look_at(folder / name, name, opener, sha256=digests.get(name, ""))
        shards.files.append(replace(looked, file=None, findings=()) if name in unfinished else looked)
        shards.findings += shards.files[-1].findings
    shards.findings += _misplaced(shards.files, placed, index.name)
    return shards


def _is_shard(name: str, stem: str, ending: str) -> bool:
    match = SHARD.fullmatch(name)
    return match is not None and match["stem"] == stem and match["ending"] == ending


def _numbered(present: set[str]) -> set[str]:
    """The names that files named "3 of 57" call for."""
    wanted: set[str] = set()
    for name in sorted(present)[:1]:
        match = SHARD.fullmatch(name)
        if match is not None and int(match["count"]) <= MAX_TENSORS:
            count = int(match["count"])
            wanted = {f"{match['stem']}-{n:05d}-of-{count:05d}{match['ending']}" for n in range(1, count + 1)}
    return wanted


def _read_index(index: Path, shards: Shards) -> dict[str, str]:
    """Tensor -> file; what is no name of a file there is left out."""
    try:
        raw = read_json(index, unique_names=True, most=MAX_HEADER_BYTES)
        placed = raw["weight_map"] if isinstance(raw, dict) else None
        if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
            raise ValueError("no weight_map of tensors and files")
        outside = sorted({name for name in placed.values() if Path(name).name != name or name in ("", "..")})
        if outside:
            raise ValueError(f"names {outside[0]!r}, which is no file beside it")
    except (ValueError, OSError, KeyError) as error:
        text = f"not an index of weights ({error})"
        shards.findings.append(Finding("damaged", text, (Stretch(index.name),), remedy=COPY_AGAIN))
        return {}
    return placed


def _misplaced(files: list[Looked], placed: Mapping[str, str], index: str) -> Iterator[Finding]:
    """Tensors that do not lie where the index says."""
    if not placed:
        return
    for file in files:
        if file.file is None:
            continue
        told = {name for name, there in placed.items() if there == file.name}
        missing, more = sorted(told - file.tensors.keys()), sorted(file.tensors.keys() - told)
        for names, what in ((missing, "does not hold"), (more, "holds, and the index does not say so,")):
            if names:
                text = f"{what} {len(names)} tensors, e.g. {', '.join(names[:SHOWN])}; {index} is of other files"
                yield Finding(
                    "mismatch", text, (Stretch(file.name),), ERROR, names[0], "Copy the index and the shards again."
                )


def recorded_digests(folder: Path) -> dict[str, str]:
    """File -> the SHA-256 it should have, where a converter or a download recorded one."""
    digests: dict[str, str] = {}
    for name in entries(folder):
        path = folder / name
        noted = folder / HUB_DOWNLOADS / f"{name}.metadata"
        value = ""
        if path.is_symlink() and folder.parent.name == "snapshots":
            value = path.readlink().name
        elif noted.is_file():
            value = next(iter(noted.read_bytes()[:500].decode("ascii", "replace").splitlines()[1:2]), "")
        if SHA256.fullmatch(value):
            digests[name] = value
    return digests | _of_the_record(folder)


def _of_the_record(folder: Path) -> dict[str, str]:
    try:
        record = read_json(folder / RECORD, most=MAX_SETTINGS_BYTES)
    except (OSError, ValueError):
        return {}
    found = record.get("sha256") if isinstance(record, dict) else None
    values = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in values if isinstance(value, str) and SHA256.fullmatch(value)}


__all__ = ["Shards", "look_at_shards", "recorded_digests"]
