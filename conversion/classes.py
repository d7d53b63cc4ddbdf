"""The model classes whose names and shapes a conversion is held against."""

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM, Ernie3ForMaskedLM
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
from hf_glm_ernie.modeling_ernie_utc import ErnieForUTC
from hf_glm_ernie.modeling_glm130b import Glm130bForCausalLM

from .operations import Shape

OURS: dict[str, type[PreTrainedModel]] = {
    model_class.__name__: model_class
    for model_class in (
        *(Glm130bForCausalLM, ErnieForUIE, ErnieForUTC),
        *(Ernie3ForPreTraining, Ernie3ForCausalLM, Ernie3ForMaskedLM),
    )
}
"""Classes by name; every other one is transformers' own."""


def expected_shapes(architecture: str, config: PreTrainedConfig) -> dict[str, Shape]:
    """Names and shapes of a class's state, tied names included, from a model without data, on `meta`."""
    model_class = OURS.get(architecture) or getattr(transformers, architecture)
    with torch.device("meta"):
        model = model_class(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


__all__ = ["expected_shapes"]
