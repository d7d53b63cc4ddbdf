"""How much a task needs each attention head and each neuron: by the gradients of its loss, before anything is removed.

As in DynaBERT, with a mask of ones on every head: a head's importance is the absolute gradient of the loss by its
mask, a neuron's the absolute sum of weight times gradient over the weights that lead to it and, added, over those that
lead away. Both are first-order estimates of how the loss changes when the part is set to zero. Absolute values are
taken for each batch and added up.

PaddleNLP hands the model ids and token types alone, so that UIE and UTC are measured on inputs that they never see;
here a batch is what the task makes of its rows, masks and positions included.

Source: DynaBERT (arXiv 2004.04037), section 2.1; PaddleNLP 2.8.1, `trainer/trainer_compress.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Importance:
    """What [`measure_importance`] found; greater is more important, and only the order within a layer counts.

    Attributes:
        heads: (layers, heads) fp32.
        neurons: (layers, intermediate size) fp32.
    """

    heads: torch.Tensor
    neurons: torch.Tensor


def measure_importance(model: Any, batches: Iterable[Mapping[str, torch.Tensor]]) -> Importance:
    """Measures heads and neurons of an encoder with its head.

    Args:
        model: With a loss; it is left as it was, in evaluation mode.
        batches: What its forward takes, labels included.

    Returns:
        The importance, summed over the batches.

    Raises:
        ValueError: there is no batch, or the model gives no loss for one.
    """
    model.eval()
    layers = model.base_model.encoder.layer
    masks = [torch.ones(one.attention.self.num_attention_heads, device=model.device) for one in layers]
    handles = [_mask_heads(one, mask.requires_grad_()) for one, mask in zip(layers, masks, strict=True)]
    heads = torch.zeros(len(layers), len(masks[0]))
    neurons = torch.zeros(len(layers), model.config.intermediate_size)
    seen = 0
    try:
        with torch.enable_grad():
            for batch in batches:
                loss = model(**batch).loss
                if loss is None:
                    raise ValueError("The model gives no loss: importance is measured on rows with labels.")
                loss.backward()
                heads += torch.stack([_gradient(mask).abs().cpu() for mask in masks])
                neurons += torch.stack([neuron_importance(one).cpu() for one in layers])
                model.zero_grad(set_to_none=True)
                for mask in masks:
                    mask.grad = None
                seen += 1
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    if not seen:
        raise ValueError("There are no rows to measure importance on.")
    return Importance(heads, neurons)


def neuron_importance(layer: Any) -> torch.Tensor:
    """(intermediate size,) of a layer whose weights have gradients: those before a neuron, and those behind it."""
    into, out = layer.intermediate.dense, layer.output.dense
    before = (into.weight.detach() * _gradient(into.weight)).sum(1) + into.bias.detach() * _gradient(into.bias)
    behind = (out.weight.detach() * _gradient(out.weight)).sum(0)
    return before.abs().float() + behind.abs().float()


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _mask_heads(layer: Any, mask: torch.Tensor) -> Any:
    """Multiplies what a layer's heads give, (B, T, heads * width), with a mask of a number a head."""

    def multiply(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        context = inputs[0]
        return ((context.unflatten(-1, (len(mask), -1)) * mask[:, None].to(context.dtype)).flatten(-2),)

    return layer.attention.output.dense.register_forward_pre_hook(multiply)


__all__ = ["Importance", "measure_importance", "neuron_importance"]
