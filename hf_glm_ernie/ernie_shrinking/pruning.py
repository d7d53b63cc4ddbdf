"""Taking heads and neurons out of an ERNIE encoder: the least important ones, as many in every layer.

Queries, keys, values and the first linear of the feed-forward part lose outputs, the two linears behind them inputs;
the hidden size stays, so that a student's hidden states can be held against its teacher's. What is kept stays in its
order. Setting the parts that are removed to zero in the teacher gives the same numbers.
"""

from dataclasses import fields
from typing import Any

import torch

from hf_glm_ernie.configuration_ernie_compact import ErnieCompactConfig
from hf_glm_ernie.modeling_ernie_compact import COMPACT_CLASSES

from .importance import Importance

NOT_OF_THE_NEW = {"architectures"}
"""What a config says about the class it was written by."""


def prune(model: Any, importance: Importance, width: float) -> Any:
    """Makes a narrower student.

    Args:
        model: An encoder with its head; it is not changed.
        importance: Of its heads and neurons.
        width: The share of each that is kept, above 0 and at most 1; of heads `int(heads * width)`, at least one.

    Returns:
        The student, of the class that can hold it, in evaluation mode.

    Raises:
        ValueError: a width out of its range, or a class that cannot be pruned.
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 1:
        raise ValueError(f"width={width!r} is the share of heads and neurons that stay: above 0 and at most 1.")
    heads, neurons = (
        kept(scores, width) for scores in (importance.heads, importance.neurons)
    )  # (layers, how many) each
    student = compact_copy(model, kept_attention_heads=heads.shape[1], intermediate_size=neurons.shape[1])
    for old, new, its_heads, its_neurons in zip(
        model.base_model.encoder.layer, student.base_model.encoder.layer, heads, neurons, strict=True
    ):
        _narrow_layer(old, new, its_heads, its_neurons)
    return student


def kept(scores: torch.Tensor, width: float) -> torch.Tensor:
    """(layers, parts) of scores -> (layers, int(parts * width)) of places, in ascending order."""
    count = max(1, int(scores.shape[1] * width))
    return scores.topk(count, dim=1).indices.sort(dim=1).values


def compact_copy(model: Any, **changes: Any) -> Any:
    """A model of the class that can be smaller, with another configuration and every value that has the same shape.

    Args:
        model: One of the host's ERNIE classes, or of ours; it is not changed.
        **changes: Settings of the new one.

    Raises:
        ValueError: no class can hold it.
    """
    own = isinstance(model.config, ErnieCompactConfig)
    model_class = type(model) if own else COMPACT_CLASSES.get(type(model).__name__)
    if model_class is None:
        raise ValueError(
            f"{type(model).__name__} cannot be made smaller; {', '.join(COMPACT_CLASSES)}, ErnieForUIE and "
            "ErnieForUTC can."
        )
    known = {field.name for field in fields(model_class.config_class)} - NOT_OF_THE_NEW
    settings = {name: value for name, value in model.config.to_dict().items() if name in known}
    config = model_class.config_class(**settings | changes)
    config._attn_implementation = model.config._attn_implementation
    new = model_class(config).to(model.device, model.dtype).eval()
    state = new.state_dict()
    same = {name: value for name, value in model.state_dict().items() if value.shape == state[name].shape}
    new.load_state_dict(state | same)
    return new


@torch.no_grad()
def _narrow_layer(old: Any, new: Any, heads: torch.Tensor, neurons: torch.Tensor) -> None:
    """Copies what is kept of a layer."""
    width = old.attention.self.attention_head_size
    outputs = (heads[:, None] * width + torch.arange(width)).flatten().to(old.attention.output.dense.weight.device)
    neurons = neurons.to(outputs.device)
    for name in ("query", "key", "value"):
        _keep_outputs(getattr(old.attention.self, name), getattr(new.attention.self, name), outputs)
    _keep_inputs(old.attention.output.dense, new.attention.output.dense, outputs)
    _keep_outputs(old.intermediate.dense, new.intermediate.dense, neurons)
    _keep_inputs(old.output.dense, new.output.dense, neurons)


def _keep_outputs(old: Any, new: Any, places: torch.Tensor) -> None:
    new.weight.copy_(old.weight[places])
    new.bias.copy_(old.bias[places])


def _keep_inputs(old: Any, new: Any, places: torch.Tensor) -> None:
    new.weight.copy_(old.weight[:, places])
    new.bias.copy_(old.bias)


__all__ = ["compact_copy", "kept", "prune"]
