"""Looks at output folders that are not finished: how far they are, and what goes on with them.

The journal says which tensors are written, with the checksum of each; `--deep` reads them again. It does not say what
they are made from: that the same command does.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .inspect_files import Looked, Summed, look_at
from .inspect_look import Look, Question, in_shell
from .inspect_report import NOTE, Finding, Report, Stretch, worst_first
from .inspect_shards import SHARD
from .journal import JOURNAL, STATE
from .json_files import MAX_SETTINGS_BYTES, read_json
from .lazy_files import LazyFile
from .output_path import INCOMPLETE, incomplete_of
from .paddle_lod import open_lod_file
from .paddle_pickle import open_pdparams
from .rank_files import RANK_FILE
from .safetensors_files import open_safetensors_file
from .strangers import PARTIAL
from .torch_files import open_torch_file

MAX_JOURNAL_BYTES = 2**26
MAX_FILES = 20_000
FAMILIES = {"glm130b": "GLM-130B", "ernie3": "ERNIE 3.0 10B", "ernie": "ERNIE"}


def look_at_unfinished(question: Question) -> Look | None:
    """Looks at a folder with a conversion's state in it, or at one that is named and not there yet."""
    folder = question.source
    if not folder.exists() and incomplete_of(folder).is_dir():
        folder = incomplete_of(folder)
    if not (folder / STATE).is_dir():
        return None
    findings: list[Finding] = []
    written = _journal(folder / STATE / JOURNAL, findings)
    files = [
        _looked(path, name, written.tensors.get(name, {}), written.sha256.get(name, ""))
        for name, path in _weight_files(folder)
    ]
    findings += [finding for file in files for finding in file.findings]
    findings.append(Finding("unfinished", _how_far(folder, files, written), (Stretch(folder.name),)))
    command, options = _command(folder, [file.name for file in files])
    output = folder.with_name(folder.name.removesuffix(INCOMPLETE))
    report = Report(
        source=str(question.source),
        family=FAMILIES.get(command, ""),
        form="output folder of a conversion, not finished",
        name=f"a conversion that was interrupted, or is running: {written.count:,} tensors are written",
        files=[file.facts for file in files],
        findings=worst_first(findings),
        command=in_shell(command, "--source=SOURCE", f"--output={output}", *options),
        advice="run the command that made it again, with its source and options: it goes on where it was. It began",
    )
    return Look(report, [file for file in files if file.file is not None])


@dataclass
class Written:
    """What a journal says is done.

    Attributes:
        tensors: File -> tensor -> CRC-32.
        sha256: File -> SHA-256, of those that were verified.
        shipped: Files that are kept elsewhere.
    """

    tensors: dict[str, dict[str, int]] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    shipped: set[str] = field(default_factory=set)

    @property
    def count(self) -> int:
        """Of the tensors."""
        return sum(map(len, self.tensors.values()))


def _journal(path: Path, findings: list[Finding]) -> Written:
    """What the journal says; what is wrong with it is a finding."""
    where = (Stretch(f"{STATE}/{JOURNAL}"),)
    written = Written()
    try:
        if not path.is_file() or path.is_symlink():
            raise ValueError("no plain file")
        with path.open("rb") as file:
            content = file.read(MAX_JOURNAL_BYTES)
        lines = content.split(b"\n")[:-1]
        for number, line in enumerate(lines):
            said = json.loads(line)
            if not isinstance(said, dict) or (number == 0) != ("fingerprint" in said):
                raise ValueError(f"line {number + 1}")
            if {"file", "tensor"} <= said.keys():
                written.tensors.setdefault(str(said["file"]), {})[str(said["tensor"])] = int(said["crc32"])
            elif {"file", "sha256"} <= said.keys():
                written.sha256[str(said["file"])] = str(said["sha256"])
            elif {"file", "shipped"} <= said.keys():
                written.shipped.add(str(said["file"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        findings.append(
            Finding(
                "damaged",
                f"not a conversion's journal ({error})",
                where,
                remedy="Remove the folder, and convert again.",
            )
        )
    else:
        age = time.time() - path.stat().st_mtime
        findings.append(Finding("information", f"was last written {age / 60:,.0f} minutes ago", where, NOTE))
    return written


def _weight_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name in the output and path of every weight file, finished or not."""
    seen = 0
    for root in (folder, folder / STATE / PARTIAL):
        for path in sorted(root.rglob("*")) if root.is_dir() else ():
            inside = path.relative_to(root)
            if inside.parts[0] == STATE or path.is_symlink() or not path.is_file():
                continue
            seen += 1
            if seen > MAX_FILES:
                return
            if path.suffix in (".safetensors", ".pdparams") or RANK_FILE.fullmatch(path.name) or root != folder:
                yield inside.as_posix(), path


def _looked(path: Path, name: str, written: Mapping[str, int], sha256: str) -> Looked:
    """A weight file with the journal's checksums of what is written in it."""

    def opener(place: Path) -> LazyFile:
        if name.endswith(".safetensors"):
            return open_safetensors_file(place)
        if name.endswith(".pt"):
            return open_torch_file(place, "module")[0]
        return open_pdparams(place) if name.endswith(".pdparams") else open_lod_file(place, name)

    looked = look_at(path, name, opener, remedy="The same command writes it again.", sha256=sha256)
    summed = [
        Summed(stored.offset, stored.offset + stored.extent, tensor, written[tensor])
        for tensor, stored in looked.tensors.items()
        if tensor in written
    ]
    return replace(looked, summed=tuple(sorted(summed, key=lambda one: one.start)))


def _how_far(folder: Path, files: list[Looked], written: Written) -> str:
    finished = {file.name for file in files if (folder / file.name).is_file()} | written.shipped
    count = next((int(match["count"]) for name in written.tensors if (match := SHARD.fullmatch(name))), 0)
    nbytes = sum(one.stop - one.start for file in files for one in file.summed)
    of = f" of {count}" if count else ""
    shipped = f", {len(written.shipped)} of them kept elsewhere" if written.shipped else ""
    return (
        f"{len(finished)}{of} weight files are finished, {len(written.sha256)} verified{shipped}; "
        f"{written.count:,} tensors are written, {nbytes:,} bytes of them here"
    )


def _command(folder: Path, names: list[str]) -> tuple[str, list[str]]:
    """The conversion that makes such files, and its direction."""
    if any(RANK_FILE.fullmatch(Path(name).name) for name in names):
        return "glm130b", ["--reverse", "--tensor-parallel=N"]
    if names and not any(name.endswith(".safetensors") for name in names):
        return "ernie" if any(name.endswith(".pdparams") for name in names) else "ernie3", ["--reverse"]
    try:
        raw = read_json(folder / "config.json", most=MAX_SETTINGS_BYTES)
    except (OSError, ValueError):
        raw = {}
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if model_type == "bert":
        return "ernie", ["--as-bert"]
    return model_type if model_type in ("glm130b", "ernie3") else "ernie", []


__all__ = ["look_at_unfinished"]
