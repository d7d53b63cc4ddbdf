"""Tiny ERNIE 3.0 models with random weights, for tests that need no checkpoint."""

from typing import Any

import torch
from torch import nn

from hf_glm_ernie.configuration_ernie3 import Ernie3Config

PAD, CLS, SEP, MASK = 0, 1, 2, 3
FIRST_WORD = 4
END, SENTENCE, SOFT = 120, 121, 124
VOCABULARY = 128
UNIVERSAL_LAYERS, BRANCH_LAYERS = 3, 2
MEMORY = 6


def tiny_config(**overrides: Any) -> Ernie3Config:
    """A config of a few thousand parameters; both stacks differ in width, heads and layers."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": UNIVERSAL_LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "branch_hidden_size": 24,
        "branch_num_hidden_layers": BRANCH_LAYERS,
        "branch_num_attention_heads": 3,
        "branch_intermediate_size": 40,
        "max_position_embeddings": 64,
        "memory_length": MEMORY,
        "eos_token_id": END,
        "sentence_token_id": SENTENCE,
        "soft_prompt_token_id": SOFT,
        "soft_prompt_length": 3,
    }
    return Ernie3Config(**(settings | overrides))


def shake(model: nn.Module, seed: int = 0) -> None:
    """Gives every parameter a value that shows: predictions vary with position, memory and context."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            elif "embeddings" in name:
                parameter.copy_(0.7 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)


def tiny_model(model_class: Any, seed: int = 0, **overrides: Any) -> Any:
    """A model of any class, in evaluation mode."""
    model = model_class(tiny_config(**overrides)).eval()
    shake(model, seed)
    return model


def random_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """(rows, length) ids of words: none is special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, END, (rows, length), generator=generator)


def left_padded(ids: torch.Tensor, padding: int) -> torch.Tensor:
    """The same rows behind `padding` pad ids."""
    return torch.cat((torch.full((len(ids), padding), PAD), ids), dim=1)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference between two tensors of one shape, computed in fp64."""
    assert found.shape == expected.shape
    return (found.double() - expected.double()).abs().max().item()


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the gradients of every parameter that has one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
