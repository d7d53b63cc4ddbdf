"""A report to paste into an issue: what was looked at and what came out, nothing of the one who looked.

No path, no name of a user or a machine, no word out of somebody's files: of names only those that releases have,
of findings their kind and place, of values numbers and the names of dtypes.
"""

import platform
import re
from collections.abc import Iterator

import torch
import transformers

import hf_glm_ernie

from .inspect_report import Check, Finding, Report, Stretch

FILES = re.compile(
    r"mp_rank_[0-9]{2}_model_states\.pt|latest|glm-130b-sat\.tar(\.part_[0-9]{2})?|ice_text\.model"
    r"|model_state(-[0-9]{5}-of-[0-9]{5})?\.pdparams(\.index\.json)?|params|__params__|vocab\.txt"
    r"|model(-[0-9]{5}-of-[0-9]{5})?\.safetensors(\.index\.json)?|adapter_model\.safetensors|lora_model_state\.pdparams"
    r"|(adapter_config|lora_config|config|conversion|generation_config|tokenizer|tokenizer_config)\.json"
)
"""Names of files that are released, or that the host gives."""

TENSORS = re.compile(
    r"(transformer\.(word_embeddings|final_layernorm|layers\.[0-9]{1,3}\.(input_layernorm|post_attention_layernorm"
    r"|attention\.(query_key_value|dense)|mlp\.dense_(h_to_4h|4h_to_h)))\.(weight|bias)(_scale)?|data\.pkl)"
)
"""Of GLM-130B's ranks."""

VALUES = re.compile(r"[0-9][0-9 ,.]*|(float|bfloat|int|uint)[0-9]+(, (float|bfloat|int|uint)[0-9]+)*|none|relu|gelu")
"""What a value may be to be shown."""


def as_paste(report: Report) -> str:
    """The text."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    yield "hf-glm-ernie, inspect --report"
    yield (
        f"hf-glm-ernie {hf_glm_ernie.__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {platform.system()} {platform.machine()}"
    )
    yield f"looked at: {report.family or 'unknown'}; {report.form or 'unknown'}; {report.dtype or 'dtype unknown'}"
    read = "headers" if report.deep is None else f"everything, {report.deep.nbytes:,} bytes"
    yield f"read: {read}"
    yield "files: {}, {:,} bytes".format(*report.nbytes)
    if report.sizes:
        yield "sizes: " + ", ".join(f"{name} {value:,}" for name, value in report.sizes.items())
    yield f"status: {report.status}"
    for finding in report.findings:
        if finding.severity != "note":
            yield f"  {_finding(finding)}"
    if report.released is None:
        yield "released? the sizes are no released model's that is known here"
        return
    yield f"released? {report.released.name}: {'as released' if report.released.holds else 'not as released'}"
    for check in report.released.checks:
        yield f"  {_check(check)}"


def _finding(finding: Finding) -> str:
    places = "; ".join(dict.fromkeys(map(_place, finding.places))) or "the whole"
    tensor = f" ({finding.tensor})" if TENSORS.fullmatch(finding.tensor) else ""
    return f"{finding.severity}, {finding.kind}: {places}{tensor}"


def _place(place: Stretch) -> str:
    name = place.file.rpartition("/")[2]
    shown = name if FILES.fullmatch(name) else "a file"
    return str(Stretch(shown, place.start, place.stop))


def _check(check: Check) -> str:
    found = check.found if VALUES.fullmatch(check.found) else "another"
    return (
        f"ok  {check.what}: {check.expected}" if check.holds else f"NO  {check.what}: {check.expected}; here {found}"
    )


__all__ = ["as_paste"]
