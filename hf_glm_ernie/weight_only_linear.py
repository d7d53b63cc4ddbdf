"""A linear whose weight is stored as integers and stays frozen.

`WeightOnlyLinear` holds what `weight_only.py` describes as parameters `weight`, `weight_scale` and `bias`. It is a
`torch.nn.Linear` to those who ask (adapters and tensor parallelism do). Gradients reach the input through the weight
and the bias where it is trained, never the integers or scales, and no dequantized weight is kept for them.

The product is one operator of torch's library, so that `torch.compile`, export and autograd see a single node; which
kernel runs inside is decided when it runs (`weight_only_kernels.py`). Eager inference skips the operator's overhead.

On CPU a 4-bit weight may lie in the order that torch's operator reads (`repack`). Only this module knows: what it
saves, loads, copies to other devices or hands out as values is always in the released order.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .weight_only import check_bits, check_groups, dequantize, from_storage, quantize, storage_shape, to_storage
from .weight_only_adapters import look_at_base_layer
from .weight_only_kernels import (
    FLOATS,
    RELEASED,
    TORCH_INT4,
    KernelChoice,
    choose_kernel,
    multiply,
    multiply_transposed,
    to_released_layout,
    to_torch_layout,
)


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    layout: str,
) -> torch.Tensor:
    """(..., K) -> (..., N) by the kernel that suits."""
    rows = x.reshape(-1, x.shape[-1])
    out_features, groups = weight_scale.shape
    choice = choose_kernel(x.device, x.dtype, bits, rows.shape[1], out_features, groups, rows.shape[0], layout)
    scale = weight_scale.detach().to(torch.float16)
    with _without_autocast(x.device.type):
        added = None if bias is None else bias.detach()
        y = multiply(rows, weight.detach(), scale, added, bits, layout, choice.name)
    return y.reshape(*x.shape[:-1], out_features)


def _without_autocast(device_type: str) -> Any:
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _backward_product(
    grad: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bits: int, layout: str, in_features: int
) -> torch.Tensor:
    rows = grad.reshape(-1, grad.shape[-1])
    scale = weight_scale.detach().to(torch.float16)
    with _without_autocast(grad.device.type):
        result = multiply_transposed(rows, weight.detach(), scale, bits, layout)
    return result.reshape(*grad.shape[:-1], in_features)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, weight_scale, bias, ctx.bits, ctx.layout = inputs
    ctx.save_for_backward(weight, weight_scale)
    ctx.in_features = x.shape[-1]
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    weight, weight_scale = ctx.saved_tensors
    result = of_bias = None
    if ctx.needs_input_grad[0]:
        result = torch.ops.weight_only_int.linear_input_gradient(
            grad, weight, weight_scale, ctx.bits, ctx.layout, ctx.in_features
        )
    if ctx.needs_input_grad[3]:
        of_bias = grad.sum_to_size(grad.shape[-1:]).to(ctx.bias_dtype)
    return result, None, None, of_bias, None, None


def _define_operators() -> None:
    """Defines both operators, unless a copy of this file from a Hub repository has: defining one again frees the
    first, under the feet of the copy that calls it.

    Copies of other versions may be there too, so another schema means another name: up to 0.2 there were `linear`,
    which took no bias, and `linear_backward`.
    """
    if hasattr(torch.ops.weight_only_int, "linear_with_bias"):
        return
    backward = torch.library.custom_op(
        "weight_only_int::linear_input_gradient",
        _backward_product,
        mutates_args=(),
        schema="(Tensor grad, Tensor weight, Tensor weight_scale, int bits, str layout, int in_features) -> Tensor",
    )
    backward.register_fake(lambda grad, *others: grad.new_empty(*grad.shape[:-1], others[-1]))
    forward = torch.library.custom_op(
        "weight_only_int::linear_with_bias",
        _run,
        mutates_args=(),
        schema="(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, int bits, str layout) -> Tensor",
    )
    forward.register_fake(lambda x, weight, scale, *_: x.new_empty(*x.shape[:-1], scale.shape[0]))
    forward.register_autograd(_backward, setup_context=_setup_context)


_define_operators()


class WeightOnlyLinear(nn.Linear):
    """`torch.nn.Linear` with a frozen weight of 4- or 8-bit integers.

    Args:
        in_features: Columns K.
        out_features: Rows N.
        bias: Whether there is a bias.
        bits: 4 or 8.
        num_groups: Groups G of columns, each with a scale of its own for every row.
        device: Of the parameters.
        dtype: Of the bias, and of the activations that are expected; others work too.

    Attributes:
        weight: Stored integers, int8, (N, K / 2) for 4 bits and (1, N, K) for 8.
        weight_scale: (N, G), fp16 whatever the module is cast to.
        bias: (N,) or `None`.

    Raises:
        ValueError: unsupported bits, or groups that do not divide the columns.

    ```python
    >>> import torch
    >>> from hf_glm_ernie.weight_only_linear import WeightOnlyLinear

    >>> linear = WeightOnlyLinear.from_linear(torch.nn.Linear(64, 32), bits=4)
    >>> linear(torch.ones(2, 64)).shape
    torch.Size([2, 32])
    ```
    """

    # For the host: the integers come from a checkpoint, never from an initialisation ...
    _is_hf_initialized = True
    # ... and in tensor parallelism the forward works on this rank's plain tensors.
    _hf_quantized_needs_local_tp = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        bits: int = 4,
        num_groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        nn.Module.__init__(self)
        check_bits(bits)
        check_groups(in_features, num_groups, bits)
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.num_groups = bits, num_groups
        self.layout = RELEASED
        stored = torch.zeros(storage_shape(out_features, in_features, bits), dtype=torch.int8, device=device)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.weight_scale = nn.Parameter(
            torch.ones(out_features, num_groups, dtype=torch.float16, device=device), requires_grad=False
        )
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int = 4, num_groups: int = 1) -> "WeightOnlyLinear":
        """Quantizes a linear; bias and mode are carried over, the given module stays as it is.

        Args:
            linear: What to quantize.
            bits: 4 or 8.
            num_groups: Groups of columns.

        Returns:
            A new module on the same device.
        """
        result = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            bits,
            num_groups,
            "meta",
            linear.weight.dtype,
        )
        q, scale = quantize(linear.weight.detach(), bits, num_groups)
        result.weight = nn.Parameter(to_storage(q, bits), requires_grad=False)
        result.weight_scale = nn.Parameter(scale, requires_grad=False)
        if linear.bias is not None:
            result.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
        return result.train(linear.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N) in the dtype of the input, or autocast's.

        Raises:
            TypeError: an input that is not fp32, fp16 or bf16.
            ValueError: an input of another width, or on another device than the weight.
        """
        device_type = input.device.type
        if device_type != "meta" and torch.is_autocast_enabled(device_type):
            input = input.to(torch.get_autocast_dtype(device_type))
        self._check_input(input)
        arguments = (input, self.weight, self.weight_scale, self.bias, self.bits, self.layout)
        learns = input.requires_grad or (self.bias is not None and self.bias.requires_grad)
        plain = type(input) is torch.Tensor and not (torch.is_grad_enabled() and learns)
        as_is = plain and not torch.compiler.is_compiling()
        return _run(*arguments) if as_is else torch.ops.weight_only_int.linear_with_bias(*arguments)

    def _check_input(self, x: torch.Tensor) -> None:
        if x.dtype not in FLOATS:
            raise TypeError(
                f"input is {x.dtype}; a WeightOnlyLinear takes torch.float32, torch.float16 or torch.bfloat16."
            )
        columns = self.weight.shape[-1] * (2 if self.bits == 4 else 1)  # fewer than in_features on a rank of several
        if x.shape[-1] != columns:
            raise ValueError(f"input has shape {tuple(x.shape)}; the last axis must be in_features = {columns}.")
        if x.device != self.weight.device:
            raise ValueError(f"input is on {x.device} and the weight on {self.weight.device}; move one of them.")

    def kernel_for(self, x: torch.Tensor) -> KernelChoice:
        """Which kernel an input of this shape, dtype and device runs through, and why."""
        rows = x.numel() // max(x.shape[-1], 1)
        return choose_kernel(
            x.device, x.dtype, self.bits, x.shape[-1], self.weight_scale.shape[0], self.weight_scale.shape[1], rows,
            self.layout,
        )  # fmt: skip

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(N, K) values in `dtype`."""
        return dequantize(from_storage(self._released_weight(), self.bits), self.weight_scale.detach().half(), dtype)

    def to_linear(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """A plain linear with these values, on the same device."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta", dtype=dtype)
        linear.weight = nn.Parameter(self.dequantized_weight(dtype))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().to(dtype))
        return linear.train(self.training)

    def repack(self) -> bool:
        """Brings a 4-bit weight on CPU into the order that torch's operator reads, where it can.

        The bytes take the place of the old ones. Not while another thread runs the module.

        Returns:
            Whether the weight now lies that way.
        """
        hooked = hasattr(self, "_hf_hook")  # its weight is brought anew for each forward
        if self.layout == RELEASED and self.bits == 4 and not hooked and type(self.weight.data) is torch.Tensor:
            packed = to_torch_layout(self.weight.data, self.num_groups)
            if packed is not None:
                self.weight.data, self.layout = packed, TORCH_INT4
        return self.layout == TORCH_INT4

    def unpack(self) -> None:
        """Undoes [`repack`]."""
        self.weight.data, self.layout = self._released_weight(), RELEASED

    def _released_weight(self) -> torch.Tensor:
        weight = self.weight.detach()
        return to_released_layout(weight, self.num_groups) if self.layout == TORCH_INT4 else weight

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "WeightOnlyLinear":
        scale = self.weight_scale.data
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != scale.dtype:  # `model.to(torch.bfloat16)` would round the scales
            self.weight_scale.data = scale.to(self.weight_scale.device)
        if self.layout != RELEASED and self.weight.device.type != "cpu":
            self.unpack()
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.layout != RELEASED:
            destination[prefix + "weight"] = self._released_weight()
        if self.weight_scale.dtype != torch.float16:
            destination[prefix + "weight_scale"] = self.weight_scale.detach().half()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.layout != RELEASED and prefix + "weight" in state_dict:
            self.unpack()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"bits={self.bits}, num_groups={self.num_groups}"
        )


# Each copy of this file does so; looking twice changes nothing.
register_module_module_registration_hook(look_at_base_layer)

__all__ = ["WeightOnlyLinear", "choose_kernel"]
