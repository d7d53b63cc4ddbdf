"""Static folders of ERNIE 3.0's unified model as the tests make them, and the converter's command as they call it.

Names and shapes are written down from the design notes, independently of the converter's table; so is `expected`, what
each array must become.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conversion.__main__ import main

from .paddle_writing import as_torch, lod_record, program

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """A tiny model, every size another number."""

    vocabulary: int = 50
    hidden: int = 12
    layers: int = 2
    heads: int = 3
    inner: int = 20
    branch_hidden: int = 8
    branch_layers: int = 2
    branch_heads: int = 2
    branch_inner: int = 14
    positions: int = 16

    @property
    def settings(self) -> dict[str, Any]:
        """As the original's `ernie_config.json` spells them."""
        return {
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers + self.branch_layers,
            "num_sharing_layers": self.layers,
            "branch_hidden_size": self.branch_hidden,
            "branch_num_attention_heads": self.branch_heads,
            "hidden_act": "gelu",
            "branch_hidden_act": "gelu",
            "max_position_embeddings": self.positions,
            "initializer_range": 0.02,
            "vocab_size": self.vocabulary,
            "bos_token_id": 1,
            "pad_token_id": 0,
            "end_token_id": 29,
        }


SIZES = Sizes()
ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "out"}
HEADS = {"multi_sent_sorted_fc": ("reorder_head", 33), "sentence_distance_fc": ("distance_head", 3)}


def linear(static: str, ours: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {f"{static}.w_0": (f"{ours}.weight", (inputs, outputs))}
    return found | ({f"{static}.b_0": (f"{ours}.bias", (outputs,))} if bias else {})


def norm(static: str, ours: str, width: int) -> dict[str, tuple[Any, ...]]:
    return {f"{static}_scale": (f"{ours}.weight", (width,)), f"{static}_bias": (f"{ours}.bias", (width,))}


def layer(static: str, ours: str, width: int, inner: int) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for theirs, mine in ATTENTION.items():
        found |= linear(f"{static}_multi_head_att_{theirs}_fc", f"{ours}.self_attn.{mine}_proj", width, width)
    found |= linear(f"{static}_ffn_fc_0", f"{ours}.linear1", width, inner)
    found |= linear(f"{static}_ffn_fc_1", f"{ours}.linear2", inner, width)
    found |= norm(f"{static}_pre_att_layer_norm", f"{ours}.norm1", width)
    return found | norm(f"{static}_pre_ffn_layer_norm", f"{ours}.norm2", width)


def layout(
    branches: tuple[str, ...] = ("nlu", "nlg"), first: int | None = None, types: int = 0, sizes: Sizes = SIZES
) -> dict[str, tuple[Any, ...]]:
    """Static name -> (our name, static shape).

    Args:
        branches: Those in the folder.
        first: Number of a branch's first layer; default: counted on, as in the 10B.
        types: Rows of the token type embeddings.
        sizes: Of the model.
    """
    wide, narrow = sizes.hidden, sizes.branch_hidden
    first = sizes.layers if first is None else first
    found: dict[str, tuple[Any, ...]] = {
        "word_embedding": ("ernie3.embeddings.word_embeddings.weight", (sizes.vocabulary, wide)),
        "pos_embedding": ("ernie3.embeddings.position_embeddings.weight", (sizes.positions, wide)),
    }
    if types:
        found["sent_embedding"] = ("ernie3.embeddings.token_type_embeddings.weight", (types, wide))
    for number in range(sizes.layers):
        found |= layer(f"encoder_layer_{number}", f"ernie3.encoder.layers.{number}", wide, sizes.inner)
    found |= norm("server_post_encoder_layer_norm", "ernie3.encoder_norm", wide)
    found |= linear("sharing_to_task_fc", "ernie3.task_projection", wide, narrow, bias=False)
    for name in branches:
        for number in range(sizes.branch_layers):
            ours = f"ernie3.branches.{name}.layers.{number}"
            found |= layer(f"{name}_encoder_layer_{first + number}", ours, narrow, sizes.branch_inner)
        found |= norm(f"{name}_post_encoder_layer_norm", f"ernie3.branches.{name}.norm", narrow)
        found |= linear(f"{name}_mask_lm_trans_fc", f"{name}_lm_head.transform", narrow, narrow)
        found |= norm(f"{name}_mask_lm_trans_layer_norm", f"{name}_lm_head.layer_norm", narrow)
        found |= linear(f"{name}_mask_lm_out_fc", f"{name}_lm_head.decoder", narrow, sizes.vocabulary)
    if "nlu" in branches:
        found |= linear("nlu_pooled_fc", "pooler.dense", narrow, narrow)
        for static, (ours, classes) in HEADS.items():
            found |= linear(static, ours, narrow, classes)
    return found


def random_arrays(names: dict[str, tuple[Any, ...]], kind: str = "float32", seed: int = 0) -> Arrays:
    """Random numbers of a dtype; bfloat16 as its bits."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, (_, shape) in names.items():
        array = (random.standard_normal(shape) * 0.3 + ("norm" in name)).astype("f4")
        if kind == "bfloat16":
            array = (array.view("u4") >> 16).astype("u2")
        arrays[name] = array.astype("f2") if kind == "float16" else array
    return arrays


def expected(names: dict[str, tuple[Any, ...]], arrays: Arrays) -> dict[str, torch.Tensor]:
    """What the arrays become: Linears are transposed, all else stays."""
    tensors = {}
    for name, (ours, _) in names.items():
        tensor = as_torch(arrays[name])
        tensors[ours] = tensor.T.contiguous() if name.endswith(".w_0") else tensor
    return tensors


def write_static(folder: Path, arrays: Arrays, settings: dict[str, Any] | None = None) -> Path:
    """One file for each variable, and `ernie_config.json` if given."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        (folder / name).write_bytes(lod_record(array))
    if settings is not None:
        (folder / "ernie_config.json").write_text(json.dumps(settings))
    return folder


def write_combined(folder: Path, arrays: Arrays, settings: dict[str, Any]) -> Path:
    """All variables in one file, their names in the program beside it."""
    folder.mkdir(parents=True)
    (folder / "__params__").write_bytes(b"".join(lod_record(arrays[name]) for name in sorted(arrays)))
    (folder / "__model__").write_bytes(program({name: array.shape for name, array in arrays.items()}))
    (folder / "ernie_config.json").write_text(json.dumps(settings))
    return folder


def convert(source: Path, output: Path, *arguments: str) -> int:
    """Runs the command, without computing with the result; returns its exit status."""
    return main(["ernie3", f"--source={source}", f"--output={output}", "--no-reference", *arguments])
