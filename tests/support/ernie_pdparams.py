"""UIE and UTC models from PaddleNLP's files, read without the converter."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.configuration_ernie_utc import ErnieUTCConfig
from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
from hf_glm_ernie.modeling_ernie_utc import ErnieForUTC


def converted(folder: Path, **settings: Any) -> Any:
    """A model from PaddleNLP's file, read without the converter: names spelled out, linears transposed."""
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    arrays = pickle.loads((folder / "model_state.pdparams").read_bytes(), encoding="latin1")
    config_class, model_class = {"UIE": (ErnieUIEConfig, ErnieForUIE), "UTC": (ErnieUTCConfig, ErnieForUTC)}[
        case["class"]
    ]
    if "config_args" in case:
        config = config_class(**case["config_args"], **settings)
    else:
        config = config_class.from_pretrained(folder, **settings)
    model = model_class(config)
    arrays.pop("StructuredToParameterName@@", None)
    state = {}
    for name, array in arrays.items():
        tensor = torch.from_numpy(np.array(array))
        state[_our_name(name)] = tensor.T if tensor.ndim == 2 and "_embeddings" not in name else tensor
    model.load_state_dict(state)
    return model.eval()


def _our_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "encoder":  # PaddleNLP 2.3 and 2.4
        parts[0] = "ernie"
    own = ".".join(parts[4:-1])
    ours = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    if own in ours:
        return f"ernie.encoder.layer.{parts[3]}.{ours[own]}.{parts[-1]}"
    return ".".join(parts).replace("layer_norm", "LayerNorm")
