"""Looks at folders for `from_pretrained`: converted, quantized, fine-tuned, made smaller; every model type of ours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

import hf_glm_ernie
from hf_glm_ernie.weight_only import METHOD

from .bert_names import KEPT_FILE, task_of_bert
from .bert_names import MODEL_TYPE as BERT
from .folder_files import RECORD
from .inspect_files import dtype_of, look_at
from .inspect_look import Look, Question, in_shell
from .inspect_released_folders import released_folder
from .inspect_report import NOTE, WARNING, Finding, Report, Stretch, has_errors, worst_first
from .inspect_shards import Shards, look_at_shards
from .json_files import MAX_SETTINGS_BYTES, read_json
from .operations import ConversionError
from .publish_classes import PUBLISHED
from .publish_config import check_config, check_sizes
from .publish_settings import config_class_of
from .safetensors_files import (
    SAFETENSORS_DTYPES,
    SAFETENSORS_SINGLE,
    open_safetensors_file,
    read_safetensors_header,
)

CONFIG = "config.json"
FAMILIES = {"glm130b": "GLM-130B", "ernie3": "ERNIE 3.0 10B", BERT: "BERT"}
"""Model type -> family; every other one of ours is an ERNIE encoder."""

SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "kept_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
TOKENIZERS = ("tokenizer.json", "vocab.txt", "ice_text.model")
SHOWN = 3


@dataclass(frozen=True)
class Folder:
    """A folder for `from_pretrained`, as far as it can be read.

    Attributes:
        path: Where.
        raw: Its config.json.
        model_type: In it.
        shards: Its weights.
        findings: What is wrong beside the weight files.
        wanted: Names of the tensors that its class saves, once that is known.
    """

    path: Path
    raw: Mapping[str, Any]
    model_type: str
    shards: Shards
    findings: list[Finding] = field(default_factory=list)
    wanted: set[str] = field(default_factory=set)

    @property
    def architecture(self) -> str:
        """The class that config.json names; empty where it names none."""
        names = self.raw.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""

    @property
    def method(self) -> str:
        """How the weights are quantized; empty where they are not."""
        settings = self.raw.get("quantization_config")
        return str(settings.get("quant_method", "")) if isinstance(settings, dict) else ""


def look_at_converted(question: Question) -> Look | None:
    """Looks at a folder with config.json of one of our model types, and weights in torch's layout."""
    folder = question.source.parent if question.source.name == CONFIG else question.source
    if not folder.is_dir() or not (folder / CONFIG).is_file():
        return None
    try:
        raw = read_json(folder / CONFIG, most=MAX_SETTINGS_BYTES)
    except (OSError, ValueError):
        raw = None
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(model_type, str) or model_type not in (*PUBLISHED, BERT):
        return None
    shards = look_at_shards(folder, SAFETENSORS_SINGLE, open_safetensors_file)
    if shards is None or not _is_torchs(folder, model_type, shards):
        return None
    found = Folder(folder, raw, model_type, shards)
    if not has_errors(shards.findings):
        found.findings.extend(_findings_on_tensors(found))
    found.findings.extend(_findings_beside(found))
    return Look(_report(question, found), [file for file in shards.files if file.file is not None])


def _is_torchs(folder: Path, model_type: str, shards: Shards) -> bool:
    """Whether the weights are in torch's layout: PaddleNLP calls its config.json and its safetensors the same."""
    if model_type != "ernie" or (folder / RECORD).is_file():
        return True
    for file in shards.files:
        if file.file is not None:
            written_by = read_safetensors_header(folder / file.name, SAFETENSORS_DTYPES)[1].get("format")
            return written_by == "pt" or any("LayerNorm" in name for name in file.tensors)
    return True


def _findings_on_tensors(found: Folder) -> Iterator[Finding]:
    """Tensors that the class needs and the files do not have, and others."""
    specs = found.shards.specs
    elements = 2 * sum(spec.nbytes // spec.dtype.itemsize for spec in specs.values())
    path = found.path / CONFIG
    try:
        if found.model_type == BERT:
            architecture = _bert_class(found.raw)
            check_sizes(path, found.raw, len(specs), elements)
        else:
            architecture = check_config(path, found.raw, len(specs), elements)[1]
        config = config_class_of(found.model_type).from_dict(dict(found.raw))
        wanted, tied = _parameters(architecture, config)
    except (ConversionError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        text = str(error).removeprefix(f"{path}: ").removeprefix(f"{found.path}: ")
        yield Finding("settings", text, (Stretch(CONFIG),))
        return
    if found.method not in ("", METHOD):
        yield Finding(
            "unchecked",
            f"quantized by {found.method}, whose names of tensors are its own: whether all are there is not checked",
            severity=NOTE,
        )
        return
    found.wanted.update(wanted.keys() - tied)
    missing = sorted(found.wanted - specs.keys())
    scales = [f"{name}_scale" for name, spec in specs.items() if spec.dtype == torch.int8 and name.endswith(".weight")]
    missing += sorted(set(scales) - specs.keys())
    if missing:
        names = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        yield Finding(
            "missing", f"{architecture} needs {names}", tensor=missing[0], remedy="Convert, or save the model, again."
        )
    integers = {name for name, spec in specs.items() if not spec.dtype.is_floating_point}
    for name in sorted(wanted.keys() & specs.keys() - integers):
        if wanted[name] != specs[name].shape:
            text = f"{name} is {list(specs[name].shape)}, config.json asks for {list(wanted[name])}"
            yield Finding("mismatch", text, tensor=name, remedy="Take config.json and weights of one model.")


def _bert_class(raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else ""
    if task_of_bert(name) is None:
        raise ValueError(f"architectures is {names!r}, no class that an ERNIE encoder becomes")
    return name


def _parameters(architecture: str, config: PreTrainedConfig) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Names and shapes of what a class saves, and the names of those that it shares with others."""
    model_class = getattr(hf_glm_ernie if architecture in hf_glm_ernie.__all__ else transformers, architecture)
    with torch.device("meta"):
        model = model_class(config)
    names = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    own = {name for name, _ in model.named_parameters()}
    return names, {name for name, _ in model.named_parameters(remove_duplicate=False)} - own


def _findings_beside(found: Folder) -> Iterator[Finding]:
    if not any((found.path / name).is_file() for name in TOKENIZERS):
        yield Finding("information", "no tokenizer in the folder", severity=NOTE)
    if found.model_type == BERT and "ernie" in found.raw and found.raw["ernie"]:
        kept = found.path / KEPT_FILE
        if kept.is_file():
            yield from look_at(kept, KEPT_FILE, open_safetensors_file).findings
    if not (found.path / RECORD).is_file():
        text = "no conversion.json: not written by a converter, or saved since; contents are not known by checksums"
        yield Finding("information", text, severity=NOTE)
    elif not any(file.sha256 for file in found.shards.files):
        text = "conversion.json holds no checksums of these files (--no-verify, or saved since)"
        yield Finding("unchecked", text, (Stretch(RECORD),), WARNING if found.shards.files else NOTE)


def _report(question: Question, found: Folder) -> Report:
    family = FAMILIES.get(found.model_type, "ERNIE")
    title = PUBLISHED[found.model_type].title if found.model_type in PUBLISHED else "an ERNIE encoder as BERT"
    how = f"quantized by {found.method}" if found.method else "floats"
    sizes = {name: value for name in SIZES if type(value := found.raw.get(name)) is int}
    findings = worst_first([*found.shards.findings, *found.findings])
    is_complete = not has_errors(findings)
    return Report(
        source=str(question.source),
        family=family,
        form=f"folder for from_pretrained, {how}",
        name=f"{title}: {found.architecture or 'no class'}",
        sizes=sizes,
        dtype=dtype_of(found.shards.specs.values()),
        files=[file.facts for file in found.shards.files],
        findings=findings,
        command=in_shell("publish", str(found.path), "--repo=OWNER/NAME", "--dry-run")
        if is_complete and found.model_type in PUBLISHED
        else "",
        advice=_advice(is_complete, found),
        released=released_folder(found.path, found.raw, found.architecture, found.shards.specs, found.wanted),
    )


def _advice(is_complete: bool, found: Folder) -> str:
    if not is_complete:
        return "mend what is named above, or convert again"
    if found.model_type in PUBLISHED:
        return "open it (`python -m hf_glm_ernie plan --model FOLDER` tells where it fits), or publish it"
    return "open it with from_pretrained"


__all__ = ["look_at_converted"]
