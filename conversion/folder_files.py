"""What is written and said about every converted folder, whatever the model: index, code, checksums, notices."""

import json
import pkgutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.dynamic_module_utils import custom_object_save

from .operations import TensorSpec
from .safetensors_files import SAFETENSORS_INDEX
from .state_map import Plan
from .writer import OutputFile

RECORD = "conversion.json"
"""Where the folder comes from; `--reverse` reads it back."""


PIPELINES = {
    "AutoModel": "feature-extraction",
    "AutoModelForPreTraining": "fill-mask",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMultipleChoice": "multiple-choice",
}
"""Auto class -> `pipeline_tag` of a model card."""


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes readable JSON. Half a surrogate pair, which UTF-8 cannot hold, is written as JSON spells it.

    Raises:
        ValueError: there is NaN or an infinite number in it, which are not JSON.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def write_code(folder: Path, classes: Iterable[str]) -> None:
    """Copies the files of classes (`file.Class`, as in `auto_map`) and what they import, by the host's own rules."""
    for reference in sorted(set(classes)):
        custom_object_save(pkgutil.resolve_name(f"hf_glm_ernie.{reference.replace('.', ':')}"), folder)


def write_index(folder: Path, files: Sequence[OutputFile]) -> None:
    """Writes the index of the shards, where there are several."""
    if len(files) < 2:
        return
    tensors = [tensor for file in files for tensor in file.tensors]
    totals = {
        "total_parameters": sum(tensor.spec.nbytes // tensor.spec.dtype.itemsize for tensor in tensors),
        "total_size": sum(tensor.spec.nbytes for tensor in tensors),
    }
    weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
    write_json(folder / SAFETENSORS_INDEX, {"metadata": totals, "weight_map": weight_map})


def checksum_table(sha256: Mapping[str, str] | None) -> str:
    """Markdown: file and SHA-256, for a model card."""
    if not sha256:
        return "Not computed: the conversion ran with --no-verify."
    return "| file | SHA-256 |\n|---|---|\n" + "\n".join(f"| {name} | `{sum_}` |" for name, sum_ in sha256.items())


def main_dtype(plan: Plan, sources: Iterable[TensorSpec]) -> tuple[torch.dtype, list[str]]:
    """The dtype most bytes have, and notices on others and on rounding."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in plan.tensors:
        sizes[tensor.spec.dtype] += tensor.spec.nbytes
    main = sizes.most_common(1)[0][0]
    notices = []
    if len(sizes) > 1:
        others = ", ".join(dtype_name(dtype) for dtype in sizes if dtype != main)
        notices.append(f"some tensors are {others}; loading in {dtype_name(main)} converts them")
    rounded = {spec.dtype for spec in sources} - {main} if main != torch.float32 and len(sizes) == 1 else set()
    if rounded:
        notices.append(
            f"weights are rounded from {', '.join(map(dtype_name, rounded))} to {dtype_name(main)}; --reverse cannot "
            "undo it"
        )
    return main, notices


def notices_on_left_out(dropped: Mapping[str, str], name_all: bool = False) -> list[str]:
    """A line for each reason why source tensors are left out, with the first one's name or with all."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"left out: {count(len(names), 'tensor')}, {', '.join(names) if name_all else f'e.g. {names[0]}'} ({reason})"
        for reason, names in by_reason.items()
    ]


def dtype_name(dtype: object) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def count(number: int, noun: str) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


__all__ = [
    "PIPELINES",
    "RECORD",
    "checksum_table",
    "count",
    "dtype_name",
    "main_dtype",
    "notices_on_left_out",
    "write_code",
    "write_index",
    "write_json",
]
