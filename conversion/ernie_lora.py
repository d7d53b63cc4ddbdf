"""A LoRA adapter of PaddleNLP's, and how it is merged into the linears of the checkpoint it was trained on.

PaddleNLP's `LoRALinear` computes x W + (x A B) s, so what is written for a linear is W + s A B, and as transformers
has it, W' + s B' A' with ' the transpose. W is (in, out), A (in, r), B (r, out); s is lora_alpha / r, or
lora_alpha / sqrt(r) with `rslora`. The sum is made in float32, whatever the weights are stored in, and rounded once.
A folder holds `<linear>.lora_A`, `<linear>.lora_B` and, as they are, the tensors that were trained beside them
(`trainable_modules`, `trainable_bias`): these take the place of the base's.

Nothing is loaded whole: rows of W' and B' are gathered a block at a time; A, of r columns, is read once for each.

Refused, because the files do not tell the merged weights: PiSSA, which takes its first matrices out of the base
when it begins; the ranks of tensor parallelism apart; `LoRAMergedLinear` (`enable_lora_list`), which ERNIE lacks;
quantization-aware training.

Sources: PaddleNLP 2.8.1 `peft/lora/lora_layers.py`, `lora_config.py`, `lora_model.py` (2.8.0 is the same, 2.7.2 has
no rslora).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from hf_glm_ernie.configuration_arguments import Range

from .ernie_names import DECODER
from .ernie_prefix import known_tail
from .lazy_files import CheckpointError, NamedFiles, TensorFiles
from .operations import SettingsError, TensorSpec
from .paddle_adapters import LORA_SETTINGS, LORA_WEIGHTS, SAFETENSORS_WEIGHTS
from .paddle_files import open_weights
from .setting_kinds import TRUTH, Kind, number, whole
from .settings_files import check_kinds, read_settings_object, shown
from .state_map import Computation, Piece, Plan, PlannedTensor

LORA_KINDS: Mapping[str, Kind] = {
    "r": whole(1),
    "lora_alpha": number(Range(0, 1e6, is_open=True)),
    **dict.fromkeys(("rslora", "pissa", "do_qat", "merge_weights"), TRUTH),
}
DEFAULT_RANK = DEFAULT_ALPHA = 8
"""What `LoRAConfig` takes where the file is silent."""

ADAPTER_PART = 1
"""Of `MergedFiles`: the base is 0."""

MATRICES = ("lora_A", "lora_B")


class MergedFiles(TensorFiles):
    """The files of a base, part 0, and of its adapter, part 1.

    Args:
        base: Its files.
        adapter: Its files.
    """

    def __init__(self, base: TensorFiles, adapter: TensorFiles):
        super().__init__([*base.files, *adapter.files])
        self._halves = (base, adapter)

    def number_of(self, part: int, name: str) -> int:
        """The number of the file that holds `name` of a part."""
        return (len(self._halves[0].files) if part else 0) + self._halves[part].number_of(0, name)


@dataclass(frozen=True)
class Adapter:
    """An open adapter.

    Attributes:
        folder: Where it lies.
        files: Its weights.
        rank: Columns of A, rows of B.
        scaling: What the product of A and B is multiplied by.
        linears: PaddleNLP's 2.5 name of a linear's weight -> the names of its A and B in the file.
        whole: PaddleNLP's 2.5 name -> the name in the file, of what takes the place of the base's.
    """

    folder: Path
    files: NamedFiles
    rank: int
    scaling: float
    linears: Mapping[str, tuple[str, str]]
    whole: Mapping[str, str]

    def describe(self) -> str:
        """What it is, in words."""
        beside = f", {len(self.whole)} tensors whole" if self.whole else ""
        return f"LoRA of rank {self.rank} (scaling {self.scaling:g}) on {len(self.linears)} linears{beside}"

    def check_against(self, specs: Mapping[str, TensorSpec], base: Path) -> None:
        """Makes sure that the adapter was trained on a checkpoint of these tensors.

        Raises:
            CheckpointError: a linear is missing there or of another size.
        """
        for name, (a, b) in self.linears.items():
            if name.endswith("_embeddings.weight") or name == f"{DECODER}.weight":
                raise CheckpointError(
                    f"{self.folder}: {a} is on {name}, which is no linear; PaddleNLP's LoRA has none there."
                )
            if name not in specs:
                raise CheckpointError(f"{self.folder}: {a} belongs to {name}, which --base {base} does not have.")
            made = (self.files.specs[a].shape[0], self.files.specs[b].shape[1])
            if specs[name].shape != made:
                raise CheckpointError(
                    f"{self.folder}: {a} and {b} make {list(made)}, but {name} of --base {base} is "
                    f"{list(specs[name].shape)}. Pass the checkpoint that the adapter was trained on."
                )

    def merge(self, plan: Plan, made_of: Mapping[str, str]) -> Plan:
        """The same plan with the merged weights.

        Args:
            plan: Of a source whose pieces are named as in the files.
            made_of: Planned tensor -> PaddleNLP's 2.5 name of what it is made of.
        """
        return replace(plan, tensors=tuple(self._merged(tensor, made_of[tensor.name]) for tensor in plan.tensors))

    def _merged(self, tensor: PlannedTensor, name: str) -> PlannedTensor:
        if name in self.whole:
            pieces = tuple(replace(piece, part=ADAPTER_PART) for piece in tensor.pieces)
            tensor = replace(tensor, pieces=pieces)
        if name not in self.linears:
            return tensor
        a, b = self.linears[name]
        rows, columns = tensor.spec.shape
        beside = Piece(ADAPTER_PART, b, (0, 0), (0, columns), (rows, self.rank), transposed=True)
        gathered = TensorSpec((rows, columns + self.rank), torch.float32)
        first = cache(partial(self._first_matrix, a))
        computation = Computation(gathered, partial(_with_product, self.scaling, first))
        return replace(tensor, pieces=(*tensor.pieces, beside), computation=computation)

    def _first_matrix(self, name: str) -> torch.Tensor:
        return self.files.rows(0, name, 0, self.files.specs[name].shape[0]).float()


def add_product(rows: torch.Tensor, second: torch.Tensor, first: torch.Tensor, scaling: float) -> torch.Tensor:
    """Rows of W' + s B' A'.

    Args:
        rows: (n, in) float32, of W'.
        second: (n, r) float32, the same rows of B'.
        first: (in, r) float32, A.
        scaling: s.
    """
    return rows + (second @ first.t()) * scaling


def _with_product(
    scaling: float, first: Callable[[], torch.Tensor], start: int, gather: Callable[[], torch.Tensor]
) -> Callable[[], torch.Tensor]:
    matrix, gathered = first(), gather()
    columns = matrix.shape[0]
    return partial(add_product, gathered[:, :columns], gathered[:, columns:], matrix, scaling)


def open_adapter(path: Path) -> Adapter:
    """Opens a LoRA folder. Nothing in it is executed.

    Args:
        path: The folder, or one of its files.

    Raises:
        CheckpointError: no weights, unknown tensors, matrices that do not go together.
        SettingsError: no settings, or ones whose merged weights the files do not tell.
    """
    folder = path if path.is_dir() else path.parent
    settings = _read_lora_settings(folder / LORA_SETTINGS)
    rank, alpha = settings.get("r") or DEFAULT_RANK, settings.get("lora_alpha") or DEFAULT_ALPHA
    scaling = alpha / (math.sqrt(rank) if settings.get("rslora") else rank)
    files = _open_lora_weights(folder)
    linears, whole_names = _sorted_names(files, folder)
    for a, b in linears.values():
        of_rank = [files.specs[a].shape[1:], files.specs[b].shape[:1]]
        if any(len(files.specs[one].shape) != 2 for one in (a, b)) or of_rank != [(rank,), (rank,)]:
            raise CheckpointError(
                f"{folder}: {a} is {list(files.specs[a].shape)} and {b} {list(files.specs[b].shape)}, but "
                f"{LORA_SETTINGS} says r {rank}. Take the settings that were saved with the weights."
            )
    return Adapter(folder, files, rank, scaling, linears, whole_names)


def _read_lora_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SettingsError(
            f"{path}: not there. It tells lora_alpha, which the weights do not; without it they cannot be merged. "
            "Copy it from where the adapter was saved."
        )
    settings = read_settings_object(path, str(path))
    check_kinds(settings, LORA_KINDS, path)
    for key, why in NOT_MERGED.items():
        if settings.get(key):
            raise SettingsError(
                f"{path}: {key} is {shown(settings[key])}: {why}. Merge it with PaddleNLP and convert the result."
            )
    degree = settings.get("tensor_parallel_degree")
    if isinstance(degree, int) and degree > 1:
        raise SettingsError(
            f"{path}: tensor_parallel_degree is {degree}: every rank saved a part of its own. Save it again from "
            "PaddleNLP with merge_tensor_parallel=True."
        )
    return settings


NOT_MERGED: Mapping[str, str] = {
    "pissa": "the training first took its matrices out of the base, so the base as it was released does not fit",
    "enable_lora_list": "the matrices are of query, key and value in one linear, which ERNIE does not have",
    "do_qat": "the weights were trained to be rounded, with scales that transformers does not read",
}
"""Setting -> why the merged weights cannot be told."""


def _open_lora_weights(folder: Path) -> NamedFiles:
    for name in (LORA_WEIGHTS, f"{SAFETENSORS_WEIGHTS}.index.json", SAFETENSORS_WEIGHTS):
        if (folder / name).is_file():
            return open_weights(folder / name)
    raise CheckpointError(
        f"{folder}: {LORA_SETTINGS}, but neither {LORA_WEIGHTS} nor {SAFETENSORS_WEIGHTS} (or its .index.json). Copy "
        "the complete adapter."
    )


def _sorted_names(files: NamedFiles, folder: Path) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """(linears, whole tensors) of an adapter's names, as `Adapter` has them."""
    matrices: dict[str, dict[str, str]] = {}
    whole_names: dict[str, str] = {}
    for name in files.specs:
        stem, _, last = name.rpartition(".")
        known = known_tail(f"{stem}.weight" if last in MATRICES else name)
        if known is None:
            raise CheckpointError(
                f"{folder}: {name} is no matrix of LoRA on an ERNIE encoder or its heads, nor a tensor of theirs. Is "
                "this an adapter of another model?"
            )
        found = matrices.setdefault(known, {}) if last in MATRICES else whole_names
        key = last if last in MATRICES else known
        if key in found:
            raise CheckpointError(f"{folder}: {found[key]} and {name} are two names of one tensor. Remove one.")
        found[key] = name
    for linear, pair in matrices.items():
        if len(pair) != len(MATRICES):
            (there,) = pair.values()
            raise CheckpointError(f"{folder}: {there} of {linear} stands alone; lora_A and lora_B go together.")
    if not matrices:
        raise CheckpointError(f"{folder}: no lora_A and lora_B among {len(files.specs)} tensors. Copy it again.")
    return {linear: (pair["lora_A"], pair["lora_B"]) for linear, pair in matrices.items()}, whole_names


__all__ = ["Adapter", "MergedFiles", "add_product", "open_adapter"]
