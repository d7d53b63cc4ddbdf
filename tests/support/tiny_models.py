"""Tiny GLM-130B models with random weights, for tests that need no checkpoint."""

from typing import Any

import torch

from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM

PAD, EOS = 3, 2
MASK, GMASK, SMASK, SOP, EOP = 100, 101, 102, 104, 105
LAYERS, HEADS = 3, 4


def tiny_config(**overrides: Any) -> Glm130bConfig:
    """A config of a few thousand parameters whose special ids fit its vocabulary of 128."""
    settings: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 256,
        "mask_token_id": MASK,
        "gmask_token_id": GMASK,
        "smask_token_id": SMASK,
        "sop_token_id": SOP,
        "eop_token_id": EOP,
        "eos_token_id": [EOP, EOS],
        "pad_token_id": PAD,
    }
    return Glm130bConfig(**(settings | overrides))


def tiny_model(seed: int = 0, scale: float = 1.5, **overrides: Any) -> Glm130bForCausalLM:
    """A model whose predictions vary with position and context (weights scaled up, biases not zero)."""
    torch.manual_seed(seed)
    model = Glm130bForCausalLM(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.mul_(scale)
            elif name.endswith(".bias"):
                parameter.normal_(std=0.05)
            elif "embed" in name:
                parameter.mul_(5.0)
    return model
