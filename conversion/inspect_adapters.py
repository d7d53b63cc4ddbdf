"""Looks at PEFT's adapters: a few trained matrices beside a model's weights, no model themselves."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .inspect_files import Looked, dtype_of, look_at_archive
from .inspect_look import Look, Question
from .inspect_report import NOTE, Finding, Report, Stretch, has_errors, worst_first
from .inspect_shards import Shards, look_at_shards
from .json_files import MAX_SETTINGS_BYTES, read_json
from .lazy_files import StoredTensor
from .safetensors_files import SAFETENSORS_SINGLE, open_safetensors_file

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?P<rest>\..+)?")
SHOWN = 3


def look_at_adapter(question: Question) -> Look | None:
    """Looks at a folder with PEFT's adapter_config.json, and no whole model in it."""
    folder = question.source.parent if question.source.name in (CONFIG, WEIGHTS, PICKLED) else question.source
    if not folder.is_dir() or not (folder / CONFIG).is_file() or (folder / SAFETENSORS_SINGLE).is_file():
        return None
    findings: list[Finding] = []
    settings = _settings(folder, findings)
    shards = look_at_shards(folder, WEIGHTS, open_safetensors_file) or _pickled(folder)
    findings += shards.findings
    for file in shards.files:
        findings.extend(_halves(file))
    kind = settings.get("peft_type")
    kind = kind if isinstance(kind, str) else "of an unknown kind"
    base = settings.get("base_model_name_or_path")
    sizes = {"rank": rank} if type(rank := settings.get("r")) is int else {}
    is_complete = not has_errors(findings)
    report = Report(
        source=str(question.source),
        family="",
        form="adapter of PEFT's",
        name=f"a {kind} adapter, trained on {base if isinstance(base, str) and base else 'a model it does not name'}",
        sizes=sizes,
        dtype=dtype_of(shards.specs.values()),
        files=[file.facts for file in shards.files],
        findings=worst_first(findings),
        advice="open its base with from_pretrained, then PeftModel.from_pretrained(model, FOLDER); nothing to convert"
        if is_complete
        else "copy or save the adapter again",
    )
    return Look(report, [file for file in shards.files if file.file is not None])


def _settings(folder: Path, findings: list[Finding]) -> Mapping[str, Any]:
    try:
        raw = read_json(folder / CONFIG, most=MAX_SETTINGS_BYTES)
        if not isinstance(raw, dict) or not isinstance(raw.get("peft_type"), str):
            raise ValueError("no object with peft_type")
    except (OSError, ValueError) as error:
        findings.append(Finding("damaged", f"not an adapter's settings ({error})", (Stretch(CONFIG),)))
        return {}
    return raw


def _pickled(folder: Path) -> Shards:
    """The weights as older PEFTs saved them; what is missing where there are none."""
    if not (folder / PICKLED).is_file():
        missing = Finding("missing", "the adapter's weights", (Stretch(WEIGHTS),), remedy="Copy or download it.")
        return Shards(findings=[missing])
    looked = look_at_archive(folder / PICKLED, PICKLED)
    note = Finding("unchecked", "a pickle; what is in it is not looked at", (Stretch(PICKLED),), NOTE)
    return Shards([looked], [*looked.findings, note])


def _halves(file: Looked) -> Iterator[Finding]:
    """Products of two matrices of which one is missing, or does not fit."""
    halves: dict[tuple[str, str], dict[str, StoredTensor]] = {}
    for name, stored in file.tensors.items():
        if match := HALF.fullmatch(name):
            halves.setdefault((match["module"], match["rest"] or ""), {})[match["half"]] = stored
    lonely = sorted(module for (module, _), pair in halves.items() if len(pair) == 1)
    if lonely:
        text = f"only one of lora_A and lora_B for {len(lonely)} modules, e.g. {', '.join(lonely[:SHOWN])}"
        yield Finding("missing", text, (Stretch(file.name),), tensor=lonely[0], remedy="Save the adapter again.")
    for (module, _), pair in halves.items():
        shapes = [pair[half].spec.shape for half in sorted(pair)]
        if len(shapes) == 2 and all(len(shape) == 2 for shape in shapes) and shapes[0][0] != shapes[1][1]:
            text = f"{module}: lora_A is {list(shapes[0])}, lora_B {list(shapes[1])}"
            yield Finding("mismatch", text, (Stretch(file.name),), tensor=module, remedy="Save the adapter again.")


__all__ = ["look_at_adapter"]
