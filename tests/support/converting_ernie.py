"""ERNIE checkpoints as the tests make them: the small goldens' arrays under every name and in every file format."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from conversion.__main__ import main

from .ernie_goldens import SMALL
from .paddle_writing import write_pdparams

TABLE = "StructuredToParameterName@@"


def convert(source: "Path | str", output: Path, *arguments: str) -> int:
    """Runs the command, without computing with the result; returns its exit status."""
    return main(["ernie", f"--source={source}", f"--output={output}", "--no-reference", *arguments])


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint of our own goldens, read as the original reads them."""
    with path.open("rb") as file:
        content = pickle.load(file, encoding="latin1")
    return {name: value for name, value in content.items() if name != TABLE}


def small_arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of a small golden."""
    return arrays_of(SMALL / name / "model_state.pdparams")


def small_settings(name: str) -> dict[str, Any]:
    """The settings of a small golden."""
    return json.loads((SMALL / name / "config.json").read_text())


def write_checkpoint(folder: Path, arrays: dict[str, Any], settings: dict[str, Any] | None, protocol: int = 4) -> Path:
    """A folder with `model_state.pdparams` and, if given, `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_pdparams(folder / "model_state.pdparams", arrays, protocol)
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a converted folder."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


STATIC = {
    "embeddings.word_embeddings.weight": "word_embedding",
    "embeddings.position_embeddings.weight": "pos_embedding",
    "embeddings.token_type_embeddings.weight": "sent_embedding",
    "embeddings.task_type_embeddings.weight": "task_embedding",
    "embeddings.layer_norm.weight": "pre_encoder_layer_norm_scale",
    "embeddings.layer_norm.bias": "pre_encoder_layer_norm_bias",
    "pooler.dense.weight": "pooled_fc.w_0",
    "pooler.dense.bias": "pooled_fc.b_0",
    "cls.predictions.transform.weight": "mask_lm_trans_fc.w_0",
    "cls.predictions.transform.bias": "mask_lm_trans_fc.b_0",
    "cls.predictions.layer_norm.weight": "mask_lm_trans_layer_norm_scale",
    "cls.predictions.layer_norm.bias": "mask_lm_trans_layer_norm_bias",
    "cls.predictions.decoder_bias": "mask_lm_out_fc.b_0",
}
STATIC_PARTS = {
    "self_attn.q_proj": "multi_head_att_query_fc",
    "self_attn.k_proj": "multi_head_att_key_fc",
    "self_attn.v_proj": "multi_head_att_value_fc",
    "self_attn.out_proj": "multi_head_att_output_fc",
    "linear1": "ffn_fc_0",
    "linear2": "ffn_fc_1",
    "norm1": "post_att_layer_norm",
    "norm2": "post_ffn_layer_norm",
}


def static_name(name: str) -> str:
    """What ERNIE's static graph calls a tensor of PaddleNLP (design notes, section 3.4)."""
    name = name.removeprefix("ernie.")
    layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer is None:
        return STATIC[name]
    number, part, kind = layer.groups()
    static = f"encoder_layer_{number}_{STATIC_PARTS[part]}"
    if "norm" in part:
        return f"{static}_{'scale' if kind == 'weight' else 'bias'}"
    return f"{static}.{'w_0' if kind == 'weight' else 'b_0'}"


def static_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same checkpoint under static names; the tied decoder is not stored there."""
    tied = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
    return {static_name(name): array for name, array in arrays.items() if name not in tied}
