"""Turns a model folder into a Hub repository that opens with transformers alone.

`publish` takes a folder a converter or `save_pretrained` wrote and makes another beside it: the same weights (linked,
so that 260 GB are not copied), configuration files that name the classes, the few files those classes are in, a model
card. Before the folder gets its name, another process that cannot see this package opens it, and what it computes is
compared with what this package computes from the folder it was made of.

In order: look (`publish_source`), plan, build, check (`publish_check`), card (`publish_card`), and only where asked
for, push (`publish_hub`).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from hf_glm_ernie.weight_only import METHOD

from . import publish_check
from .folder_files import count, write_code, write_json
from .job import progress_bar
from .json_files import read_json
from .output_folder import refuse_existing
from .publish_card import CardTexts, host_requirement, model_card
from .publish_check import FULL, STRUCTURE
from .publish_classes import license_of, remote_classes
from .publish_hub import check_repo_name
from .publish_source import PublishError, Source, read_source

CHECKS = ("auto", FULL, STRUCTURE)
OURS = ("hf_glm_ernie", "conversion")
OPTIONAL = ("accelerate", "sentencepiece", "peft", "datasets", "bitsandbytes", "torchao", "lm_eval")
"""Hidden from the process that opens a repository; the latter only where no other library quantized the weights."""

BLOCK_BYTES = 16 * 2**20
SPARE_BYTES = 2**30
CHECK_SECONDS = 3600
TRIAL_TOKENS = 6
GENERATED_TOKENS = 8
LARGE_TEXT_BYTES = 10 * 10**6
"""The Hub takes a larger file as LFS only."""

TOLERANCE = 1e-3
"""The same code on the same machine gives the same numbers, so what is seen is 0; this leaves room for threads."""

RESIDUES = ("is_local", "local_files_only", "name_or_path", "_name_or_path", "_commit_hash", "auto_map")
GITATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in ("bin", "model", "pt", "safetensors")
)


@dataclass(frozen=True)
class Publication:
    """A repository that is fully planned.

    Attributes:
        source: What it is made of.
        repo: `OWNER/NAME`.
        output: Folder to be made.
        texts: What the card says that only the publisher knows.
        mode: Kind of check, `FULL` or `STRUCTURE`.
        why: What decided on it.
        links: Whether the weights are hard links.
        classes: `auto_map` of config.json.
    """

    source: Source
    repo: str
    output: Path
    texts: CardTexts
    mode: str
    why: str
    links: bool
    classes: Mapping[str, str] = field(default_factory=dict)

    @property
    def tokenizer_class(self) -> str | None:
        """`file.Class` of the tokenizer the repository carries."""
        return self.source.row.tokenizer if self.classes and self.source.has_tokenizer else None

    def describe(self) -> str:
        """The plan in a few lines."""
        source = self.source
        nbytes, files = source.nbytes, count(len(source.weights), "weight file")
        how = "linked, no further disk" if self.links else "COPIED: links are not possible there"
        code = ", ".join(self.classes) if self.classes else "none needed, transformers has the classes"
        left_out = f"\n  left out     {', '.join(source.left_out)}" if source.left_out else ""
        return (
            f"{source.folder} -> {self.repo}\n"
            f"  folder       {self.output}\n"
            f"  weights      {files}, {nbytes:,} bytes, {how}\n"
            f"  code for     {code}\n"
            f"  check        {self.mode}: {self.why}{left_out}"
        )


def plan_publication(
    folder: Path, repo: str, output: Path | None, texts: CardTexts | None = None, check: str = "auto"
) -> Publication:
    """Looks at everything that can be seen to fail before anything is made.

    Args:
        folder: What to publish.
        repo: `OWNER/NAME`.
        output: Folder to be made; None for `<folder>_hub`.
        texts: For the card; None for the model type's licence and nothing else.
        check: One of `CHECKS`.

    Raises:
        PublishError: the folder, the name or the disk will not do.
        WriteError: the output exists.
    """
    check_repo_name(repo)
    source = read_source(folder)
    output = default_output(folder) if output is None else output
    refuse_existing(output)
    building = _building(output)
    if building.exists():
        raise PublishError(f"{building}: left by a run that was killed. Remove it: rm -r {building}")
    if output.resolve().is_relative_to(folder.resolve()):
        raise PublishError(f"{output}: lies inside {folder}. Choose an --output beside it.")
    existing = next(parent for parent in output.absolute().parents if parent.exists())
    links = _can_link(source.weights[0], existing)
    free = shutil.disk_usage(existing).free
    if not links and source.nbytes + SPARE_BYTES > free:
        raise PublishError(
            f"{output}: on another file system than {folder}, so {source.nbytes:,} bytes are to be copied and "
            f"{free:,} are free. Choose an --output on the same file system; there the weights are linked."
        )
    mode, why = _choose_check(check, source)
    if texts is None:
        texts = CardTexts(license_of(source.row, source.config))
    classes = remote_classes(source.row, source.quant_method)
    return Publication(source, repo, output, texts, mode, why, links, classes)


def default_output(folder: Path) -> Path:
    """Where the repository's folder goes unless told otherwise: beside the source."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}_hub")


def publish(publication: Publication, show_progress: bool = True) -> dict[str, str]:
    """Makes the repository's folder; either it is complete and checked, or it is not there.

    Args:
        publication: The plan.
        show_progress: Whether bars go to stderr.

    Returns:
        File -> SHA-256, for every file but the card.

    Raises:
        PublishError: a file changed since its conversion, or the folder does not open or compute as it should.
    """
    building = _building(publication.output)
    building.mkdir(parents=True)
    try:
        _write_settings(publication, building)
        tokenizer = publication.tokenizer_class
        write_code(building, [*publication.classes.values(), *([] if tokenizer is None else [tokenizer])])
        _place_weights(publication, building, show_progress)
        checks = _checked(publication, building, show_progress)
        sha256 = _checksums(publication, building, show_progress)
        config = read_json(building / "config.json")
        model_card(
            publication.repo,
            publication.source.row,
            config,
            publication.source.record,
            publication.texts,
            bool(publication.classes),
            publication.source.has_tokenizer,
            [*_recorded(publication), *checks],
            sha256,
        ).save(building / "README.md")
        refuse_existing(publication.output)
        building.rename(publication.output)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return sha256


def _building(output: Path) -> Path:
    return output.with_name(f"{output.name}.incomplete")


def _can_link(file: Path, parent: Path) -> bool:
    """Whether a file can get a second name in a folder; tried, because file systems differ."""
    trial = parent / f".{file.name}.{os.getpid()}.link"
    try:
        os.link(file.resolve(), trial)
    except OSError:
        return False
    trial.unlink()
    return True


def _choose_check(check: str, source: Source) -> tuple[str, str]:
    needed, free = source.nbytes * 5 // 4 + SPARE_BYTES, psutil.virtual_memory().available
    if check != "auto":
        return check, "as asked for"
    if needed <= free:
        return FULL, "opened and computed with in a fresh process, without this package"
    return STRUCTURE, (
        f"names, shapes and kinds of number in a fresh process, without this package; computing takes about "
        f"{needed:,} bytes of memory and {free:,} are free"
    )


# Building.


def _write_settings(publication: Publication, folder: Path) -> None:
    """Writes the small files, with the classes they name."""
    source = publication.source
    for path in source.small:
        shutil.copyfile(path, folder / path.name)
    config = {key: value for key, value in source.config.items() if key not in RESIDUES}
    auto_map: dict[str, Any] = dict(publication.classes)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        settings = read_json(tokenizer)
        settings = {key: value for key, value in settings.items() if key not in RESIDUES}
        if publication.tokenizer_class is not None:
            auto_map["AutoTokenizer"] = [publication.tokenizer_class, None]
            settings["auto_map"] = {"AutoTokenizer": auto_map["AutoTokenizer"]}
        write_json(tokenizer, settings)
    write_json(folder / "config.json", config | ({"auto_map": auto_map} if auto_map else {}))
    _write_generation_config(source, folder)
    large = [path.name for path in folder.iterdir() if path.suffix == ".json" and _size(path) > LARGE_TEXT_BYTES]
    lines = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in sorted(large))
    (folder / ".gitattributes").write_text(GITATTRIBUTES + lines, encoding="utf-8")


def _write_generation_config(source: Source, folder: Path) -> None:
    """Makes sure that a model that generates has its defaults in a file, and that they stand for themselves."""
    path = folder / "generation_config.json"
    if path.is_file():
        settings = read_json(path)
        settings.pop("_from_model_config", None)
        write_json(path, settings)
    elif source.row.auto_classes[source.architecture] == "AutoModelForCausalLM":
        ids = {name: source.config.get(name) for name in ("eos_token_id", "pad_token_id")}
        write_json(path, {"do_sample": False} | {name: value for name, value in ids.items() if value is not None})


def _place_weights(publication: Publication, folder: Path, show_progress: bool) -> None:
    source = publication.source
    what = "linking" if publication.links else "copying"
    with progress_bar(what, source.nbytes, 0, show_progress) as progress:
        for path in source.weights:
            if publication.links:
                os.link(path.resolve(), folder / path.name)
            else:
                shutil.copyfile(path, folder / path.name)
            progress(_size(path))


def _checksums(publication: Publication, folder: Path, show_progress: bool) -> dict[str, str]:
    """SHA-256 of every file; those of the conversion's record must be the same.

    Raises:
        PublishError: a weight file is not what the converter wrote.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    sha256 = {}
    with progress_bar("hashing", sum(map(_size, files)), 0, show_progress) as progress:
        for path in files:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    progress(len(block))
            sha256[path.name] = digest.hexdigest()
    recorded = publication.source.record.get("sha256") or {}
    changed = sorted(name for name, value in recorded.items() if sha256.get(name) != value)
    if changed:
        raise PublishError(
            f"{publication.source.folder}: {changed[0]} is not the file the converter wrote (conversion.json has "
            "another SHA-256). Convert again; or, if it was changed on purpose, save the model with save_pretrained "
            "into a new folder and publish that."
        )
    return sha256


def _size(path: Path) -> int:
    return path.stat().st_size


# Checking.


def _recorded(publication: Publication) -> list[tuple[str, str, str]]:
    recorded = publication.source.record.get("sha256") or {}
    if not recorded:
        return []
    same = f"equal, {count(len(recorded), 'file')}"
    return [("bytes of the weights", "what the converter wrote and read back", same)]


def _checked(publication: Publication, folder: Path, show_progress: bool) -> list[tuple[str, str, str]]:
    """Opens the folder in a fresh process and compares; returns rows for the card.

    Raises:
        PublishError: it does not open, or differs.
    """
    source, mode = publication.source, publication.mode
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress_bar("checking", 2 * source.nbytes, 0, show_progress) as progress,
    ):
        request = _request(publication, folder, Path(scratch))
        seen = _stranger(request, Path(scratch))
        progress(source.nbytes)
        _check_classes(publication, seen)
        where = f"transformers {seen['transformers']}, torch {seen['torch']}"
        rows = [("opens in a process without the package", "", f"yes, {where} ({mode} check)")]
        mine = Path(scratch) / "mine.safetensors"
        ours = publish_check.observe(
            request | {"folder": str(source.folder), "trust_remote_code": False, "outputs": str(mine)}
        )
        progress(source.nbytes)
        rows += _compared(seen, ours)
        if mode == STRUCTURE:
            return [*rows, ("names, shapes, kinds of number", "the classes", f"equal, {seen['tensors']} tensors")]
        return [*rows, _difference(load_file(request["outputs"]), load_file(mine), source)]


def _request(publication: Publication, folder: Path, scratch: Path) -> dict[str, Any]:
    source = publication.source
    foreign = source.quant_method not in (None, METHOD)
    auto_class = source.row.auto_classes[source.architecture]
    return {
        "folder": str(folder),
        "auto_class": auto_class,
        "trust_remote_code": bool(publication.classes),
        "mode": publication.mode,
        "hidden": [*OURS, *(() if foreign else OPTIONAL)],
        "inputs": trial_inputs(source),
        "texts": list(source.row.texts) if source.has_tokenizer else [],
        "generate": GENERATED_TOKENS if auto_class == "AutoModelForCausalLM" else 0,
        "outputs": str(scratch / "outputs.safetensors"),
        "report": str(scratch / "report.json"),
    }


def trial_inputs(source: Source) -> dict[str, Any]:
    """A row for `forward`: some ids of the vocabulary, and what else the model type asks for."""
    config = source.config
    ids = [1 + 17 * i % (config["vocab_size"] // 2) for i in range(TRIAL_TOKENS)]
    marks = [config.get(name) for name in ("mask_token_id", "sop_token_id") if source.row.model_type == "glm130b"]
    ids += [mark for mark in marks if mark is not None]
    row: list[Any] = [[ids, ids[::-1]]] if source.architecture.endswith("ForMultipleChoice") else [ids]
    return {"input_ids": row} | dict(source.row.extra_inputs)


def _stranger(request: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """What a fresh process sees: no package of ours, no network, no cache, another working directory."""
    path = scratch / "request.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    environment = os.environ | {
        "HF_HOME": str(scratch / "home"),
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [sys.executable, "-P", str(Path(publish_check.__file__)), str(path)],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise PublishError(
            f"{request['folder']}: does not open in a process without this package ({host_requirement()}): {last} "
            "Nothing was published. If the folder opens with the package, please report this."
        )
    report: dict[str, Any] = read_json(Path(request["report"]))
    return report


def _check_classes(publication: Publication, seen: Mapping[str, Any]) -> None:
    """Makes sure that the classes came from where the repository says."""
    source = publication.source
    expected = "transformers_modules." if publication.classes else "transformers.models."
    if not seen["class"].startswith(expected):
        raise PublishError(f"{source.folder}: the model was opened as {seen['class']}, expected {expected}...")
    if source.quant_method == METHOD and not seen["quantized_linears"]:
        raise PublishError(f"{source.folder}: quantized, but opened without a quantized linear.")


def _compared(seen: Mapping[str, Any], ours: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for key, what in (("ids", "ids of {} texts"), ("decoded", "{} decoded texts"), ("generated", "{} generated ids")):
        if key not in seen:
            continue
        if seen[key] != ours[key]:
            raise PublishError(
                f"the repository gives other {key} than this package: {seen[key]!r} instead of {ours[key]!r}. Is the "
                "folder's tokenizer of another version? Load and save it with this one."
            )
        rows.append((what.format(len(seen[key])), "this package", "equal"))
    return rows


def _difference(
    theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor], source: Source
) -> tuple[str, str, str]:
    """The row on outputs; the largest difference over the largest output."""
    if theirs.keys() != ours.keys():
        raise PublishError(f"{source.folder}: outputs {sorted(theirs)} instead of {sorted(ours)}.")
    differences = [
        float((theirs[name] - ours[name]).abs().max() / ours[name].abs().max().clamp_min(1e-6)) for name in ours
    ]
    worst = max(differences)
    if worst > TOLERANCE:
        raise PublishError(
            f"{source.folder}: the repository's outputs differ from this package's by {worst:.1e} of the largest; "
            f"allowed is {TOLERANCE:g}."
        )
    numbers = ", ".join(sorted(ours))
    return (
        f"{numbers} on {count(TRIAL_TOKENS, 'token')}",
        "this package on the source folder",
        f"differ by {worst:.1e}",
    )


def read_parity(path: Path) -> tuple[tuple[str, str, str], ...]:
    """Rows for the card from a JSON file: a list of objects with `what`, `with` and `result`.

    Raises:
        PublishError: it is something else.
    """
    try:
        content: Sequence[Mapping[str, Any]] = read_json(path)
        return tuple((str(row["what"]), str(row["with"]), str(row["result"])) for row in content)
    except (ValueError, KeyError, TypeError) as error:
        raise PublishError(
            f'{path}: should be a JSON list of {{"what": ..., "with": ..., "result": ...}} ({error!r}).'
        ) from error


__all__ = ["CHECKS", "Publication", "default_output", "plan_publication", "publish", "read_parity", "trial_inputs"]
