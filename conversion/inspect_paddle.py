"""Looks at what Paddle, PaddleNLP and ERNIE-kit write: ERNIE's encoders, UIE, UTC, and ERNIE 3.0's unified model.

Every form that `ernie` and `ernie3` read: pickles, whole or in shards, safetensors in Paddle's layout, static graphs,
folders of a training run, LoRA adapters with their base.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from . import ernie, ernie3
from .classes import expected_shapes
from .ernie3_names import PROJECTION
from .ernie_source import read_source
from .inspect_downloads import findings_on, unfinished_in
from .inspect_files import Looked, dtype_of, finding_of, look_at
from .inspect_look import Look, Question, needs_of, noted
from .inspect_released import pieces_of, released_ernie, released_ernie3
from .inspect_report import ERROR, NOTE, Finding, Needs, Released, Report, has_errors, worst_first
from .inspect_shards import Shards, look_at_shards, recorded_digests
from .lazy_files import LazyFile
from .operations import ConversionError
from .paddle_adapters import LORA_SETTINGS, LORA_WEIGHTS, is_lora
from .paddle_files import (
    COMBINED_NAMES,
    PDPARAMS,
    SAFETENSORS,
    TRAINING_FILES,
    open_paddle_source,
    open_weights,
)
from .paddle_lod import looks_like_lod, open_lod_file, variables_in
from .tensor_names import entries

WEIGHTS = re.compile(r".+\.(pdparams|pdiparams)(\.index\.json)?|__params__|params|model\.safetensors(\.index\.json)?")
ENCODERS, UNIFIED = "ERNIE", "ERNIE 3.0 10B"

UNIFIED_SIZES = (
    *("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "branch_hidden_size"),
    *("branch_num_hidden_layers", "branch_intermediate_size", "vocab_size", "max_position_embeddings"),
)


def look_at_paddle(question: Question) -> Look | None:
    """Looks at a file or folder of weights that one of Paddle's programs wrote."""
    source = question.source
    folder = source if source.is_dir() else source.parent
    if not _is_paddles(source):
        return None
    shards = _weights(source, folder)
    is_unified = PROJECTION in shards.specs
    findings, released, task = list(shards.findings), None, ""
    needs: list[Needs] = []
    sizes: dict[str, int] = {}
    if not has_errors(findings):
        if is_unified:
            sizes, released, needs = _unified(question, findings)
        elif is_lora(source) and question.base is None:
            text = "a LoRA adapter: converting it needs the checkpoint it was trained on"
            findings.append(Finding("information", text, severity=NOTE, remedy="Pass it with --base."))
        else:
            sizes, released, needs, task = _encoder(question, findings)
    kind = "a LoRA adapter of PaddleNLP's" if is_lora(source) else _form(source, shards)
    report = Report(
        source=str(source),
        family=UNIFIED if is_unified else ENCODERS,
        form=kind,
        name="ERNIE 3.0's unified model" if is_unified else f"an ERNIE encoder{', ' + task if task else ''}",
        sizes=sizes,
        dtype=dtype_of(shards.specs.values()),
        files=[file.facts for file in shards.files],
        findings=worst_first(findings),
        needs=needs,
        command=_command(question, is_unified, needs, findings),
        advice=_advice(question, findings),
        released=released,
    )
    return Look(report, [file for file in shards.files if file.file is not None])


def _is_paddles(source: Path) -> bool:
    """Whether anything here is called as weights of Paddle's are, or is one of its static variables."""
    if source.is_file():
        return bool(WEIGHTS.fullmatch(source.name)) or source.suffix == ".safetensors" or looks_like_lod(source)
    if not source.is_dir():
        return False
    names = [*entries(source), *filter(None, unfinished_in(source))]
    if any(WEIGHTS.fullmatch(name) or TRAINING_FILES.fullmatch(name) for name in names) or is_lora(source):
        return True
    if any(name.startswith(("model-", "model_state-")) for name in names):
        return True
    return any((source / name).is_file() and looks_like_lod(source / name) for name in names)


def _weights(source: Path, folder: Path) -> Shards:
    """The weight files, each looked at by itself where there are several."""
    if source.is_dir():
        for single in (PDPARAMS, SAFETENSORS):
            shards = look_at_shards(folder, single, _open_one, ERROR)
            if shards is not None:
                return shards
        if static := _static(folder):
            return static
    if is_lora(source):
        return _one(folder / LORA_WEIGHTS, folder)
    if source.is_file() and not source.name.endswith(".index.json"):
        return _one(source, folder)
    shards = Shards(findings=findings_on(unfinished_in(folder)))
    try:
        opened = open_paddle_source(source)
    except (ConversionError, OSError) as error:
        if not shards.findings:
            shards.findings.append(finding_of(error, source, source.name, None))
        return shards
    digests = recorded_digests(folder)
    for file in opened.files:
        name = str(Path(file.path).relative_to(folder))
        shards.files.append(Looked(name, file.bytes, file, sha256=digests.get(name, "")))
    return shards


def _one(path: Path, folder: Path) -> Shards:
    unfinished = {name: by for name, by in unfinished_in(folder).items() if name in ("", path.name)}
    shards = Shards(findings=findings_on(unfinished))
    if path.name not in unfinished:
        shards.files.append(look_at(path, path.name, _open_one, sha256=recorded_digests(folder).get(path.name, "")))
        shards.findings += shards.files[0].findings
    return shards


def _static(folder: Path) -> Shards | None:
    """A folder of one file for each variable, every one looked at; None if it is not one."""
    names = entries(folder)
    if any((folder / name).is_file() for name in COMBINED_NAMES) or any(name.endswith(".pdiparams") for name in names):
        return None
    for place, within in ((folder, ""), (folder / "params", "params/")):
        if not place.is_dir():
            continue
        variables = sorted(variables_in(place))
        if any(looks_like_lod(place / name) for name in variables):
            unfinished = unfinished_in(place)
            shards = Shards(findings=findings_on(unfinished, within))
            for name in variables:
                if name in unfinished or name in unfinished.values():
                    continue
                shards.files.append(look_at(place / name, within + name, _opener(name)))
                shards.findings += shards.files[-1].findings
            return shards
    return None


def _open_one(path: Path) -> LazyFile:
    return open_weights(path).files[0]


def _opener(name: str) -> Callable[[Path], LazyFile]:
    return lambda path: open_lod_file(path, name)


def _encoder(question: Question, findings: list[Finding]) -> tuple[dict[str, int], Released | None, list[Needs], str]:
    """Sizes, released name, needs and task of an encoder."""
    sizes: dict[str, int] = {}
    released, task = None, ""
    needs: list[Needs] = []
    with noted(findings, question.source):
        read = read_source(question.source, question.base, question.config, None)
        chosen, _ = ernie.choose_task(read.names, read.settings, None, question.source)
        of_tensors = ernie.read_sizes(read.specs, question.source)
        sizes, task = {name: value for name, value in asdict(of_tensors).items() if value}, chosen.name
        pieces = pieces_of(question.vocab or read.tokenizer_folder / "vocab.txt")
        dtypes = {spec.dtype for spec in read.specs.values()}
        released = released_ernie(of_tensors, task, read.settings.values, dtypes, pieces)
        options = ernie.ForwardOptions(
            settings=question.config, headers_only=True, vocab=question.vocab, base=question.base
        )
        job = ernie.plan_forward(question.source, options, expected_shapes)
        needs = [needs_of(job)]
        findings += [Finding("information", notice, severity=NOTE) for notice in job.notices]
    return sizes, released, needs, task


def _unified(question: Question, findings: list[Finding]) -> tuple[dict[str, int], Released | None, list[Needs]]:
    """Sizes, likeness and needs of the unified model."""
    with noted(findings, question.source):
        options = ernie3.ForwardOptions(settings=question.config, headers_only=True, vocab=question.vocab)
        job = ernie3.plan_forward(question.source, options, expected_shapes)
        findings += [Finding("information", notice, severity=NOTE) for notice in job.notices]
        config = json.loads(job.options["config"])
        sizes = {name: config[name] for name in UNIFIED_SIZES if config.get(name)}
        return sizes, released_ernie3(sizes, job.first_part), [needs_of(job)]
    return {}, None, []


def _form(source: Path, shards: Shards) -> str:
    names = [file.name for file in shards.files] or [source.name]
    several = ", shards" if len(names) > 1 else ""
    if names[0].endswith(".safetensors"):
        return f"safetensors in Paddle's layout{several}"
    if names[0].endswith((".pdparams", ".index.json")):
        return f"pickle of Paddle's{several}"
    if names[0].endswith(".pdiparams") or names[0] == "__params__":
        return "static graph, one file for all variables"
    if names == ["params"]:
        return (
            "ERNIE-kit's params"
            if not looks_like_lod(source / "params" if source.is_dir() else source)
            else ("static graph, one file for all variables")
        )
    return "static graph, one file for each variable"


def _command(question: Question, is_unified: bool, needs: Sequence[Needs], findings: Sequence[Finding]) -> str:
    if has_errors(findings):
        return ""
    if not needs:  # an adapter without its base
        return question.command("ernie", "--base=CHECKPOINT")
    return question.command("ernie3" if is_unified else "ernie")


def _advice(question: Question, findings: Sequence[Finding]) -> str:
    if has_errors(findings):
        return "mend what is named above, and look again"
    if is_lora(question.source) and question.base is None:
        return f"convert it with the checkpoint that {LORA_SETTINGS} names"
    return "convert it"


__all__ = ["look_at_paddle"]
