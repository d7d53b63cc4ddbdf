"""What an accelerator's kernels save for the backward, where torch on the meta device would do otherwise.

Autograd works on meta tensors, so a training step can be run there and counted. Three things differ from a real
device, and this mode puts them right: autocast takes no meta tensors; attention and dropout take other kernels.

Source of the casts: torch's documentation, "Autocast Op Reference". Letters in shape comments: B batch, H heads, L
queries, S keys, D head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

PRODUCTS = frozenset(
    ("linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention")
)


@dataclass(frozen=True)
class Device:
    """How a kind of device computes.

    Args:
        single: Functions that autocast computes in fp32, by name; `PRODUCTS` are those in the lower precision.
        fused_dropout: Whether dropout keeps one byte for each number in place of a factor.
        fused_masks_with_gradient: Whether fused attention takes a mask that has a gradient.
    """

    single: frozenset[str]
    fused_dropout: bool
    fused_masks_with_gradient: bool


# What is cast to fp32, of what models use; on the CPU norms and powers are not.
LOSSES = ("cross_entropy", "nll_loss", "mse_loss", "binary_cross_entropy_with_logits", "softmax", "log_softmax")
POWERS = ("layer_norm", "norm", "sum", "cumsum", "exp", "log", "pow", "__pow__", "rsqrt", "reciprocal", "softplus")
DEVICES = {
    "cuda": Device(frozenset((*LOSSES, *POWERS)), fused_dropout=True, fused_masks_with_gradient=True),
    "cpu": Device(frozenset(LOSSES), fused_dropout=False, fused_masks_with_gradient=False),
}


class TrainingKernels(TorchFunctionMode):
    """Stands for a device's autocast, attention and dropout on meta tensors.

    Args:
        device_type: One of `DEVICES`.
        autocast: The dtype of products; `None`: no autocast.

    Attributes:
        attention_flops: FLOP of attention's products so far, forward and backward.
    """

    def __init__(self, device_type: str, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.device = DEVICES[device_type]
        self.autocast = autocast
        self.attention_flops = 0
        self.casts: dict[int, torch.Tensor] | None = {}

    def end_forward(self) -> None:
        """The end of autocast's context: the weights it has cast are kept by those only who saved them."""
        self.casts = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if self.autocast is not None and name in PRODUCTS:
            args, kwargs = self._to(self.autocast, (args, kwargs))
        elif self.autocast is not None and name in self.device.single and kwargs.get("dtype") is None:
            args, kwargs = self._to(torch.float32, (args, kwargs))
        if function is nn.functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if function is nn.functional.dropout and self.device.fused_dropout:
            return _fused_dropout(*args, **kwargs)
        return function(*args, **kwargs)

    def _to(self, dtype: torch.dtype, tree: Any) -> Any:
        """Floating-point tensors in `dtype`. A weight's copy is used again until the forward ends."""

        def cast(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point() or leaf.dtype == dtype:
                return leaf
            if self.casts is None or dtype == torch.float32 or not (leaf.is_leaf and leaf.requires_grad):
                return leaf.to(dtype)
            if id(leaf) not in self.casts:
                self.casts[id(leaf)] = leaf.to(dtype)
            return self.casts[id(leaf)]

        return tree_map(cast, tree)

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        **options: Any,
    ) -> torch.Tensor:
        """Fused, where there is such a kernel; `options` change neither what is saved nor the arithmetic."""
        mask = attn_mask
        fused = query.shape[-1] == value.shape[-1] and (dropout_p == 0 or self.device.fused_dropout)
        if mask is not None and mask.requires_grad:
            fused = fused and self.device.fused_masks_with_gradient
        if not fused:
            return nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout_p, **options)
        if mask is not None and mask.dtype == torch.bool:  # each call makes one that can be added, and keeps it
            mask = mask.new_empty(mask.shape, dtype=query.dtype)
        return _FusedAttention.apply(query, key, value, mask, self)


class _FusedAttention(torch.autograd.Function):
    """Keeps query, key, value, mask, output and the logarithms of the sums, and no scores."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        kernels: TrainingKernels,
    ) -> torch.Tensor:
        batch, heads, length, width = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)  # (B, H, L, D)
        sums = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, output, sums)
        ctx.kernels, ctx.flops = kernels, 4 * batch * heads * length * key.shape[-2] * width
        kernels.attention_flops += ctx.flops
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask, _, _ = ctx.saved_tensors
        ctx.kernels.attention_flops += ctx.flops * 5 // 2  # scores again, and the gradients of four products
        given = [torch.empty_like(tensor) for tensor in (query, key, value)]
        return *given, torch.empty_like(mask) if ctx.needs_input_grad[3] else None, None


def _fused_dropout(
    input: torch.Tensor,  # torch's name: callers pass it
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> torch.Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


__all__ = ["DEVICES", "TrainingKernels"]
