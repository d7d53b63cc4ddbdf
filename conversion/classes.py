"""The model classes whose names and shapes a conversion is held against."""

import torch
import transformers
from transformers import PreTrainedConfig

import hf_glm_ernie

from .operations import Shape


def expected_shapes(architecture: str, config: PreTrainedConfig) -> dict[str, Shape]:
    """Names and shapes of a class's state, tied names included, from a model without data, on `meta`."""
    model_class = getattr(hf_glm_ernie if architecture in hf_glm_ernie.__all__ else transformers, architecture)
    with torch.device("meta"):
        model = model_class(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


__all__ = ["expected_shapes"]
