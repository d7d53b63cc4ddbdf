"""Symmetric integers in place of a linear's weight: four pure functions and the rules of the stored tensors.

A weight (N = out_features, K = in_features) becomes integers `q` and fp16 scales, one for each row and group of
columns: `weight[n, k] ~ q[n, k] * scale[n, k // (K / G)]` with G groups. The released quantized GLM-130B checkpoints
are of this kind with G = 1; merged tensor-parallel ranks, each quantized by itself, give G = ranks for the weights
that are split along their input.

How the integers are stored:

- 4 bits: int8 (N, K / 2), column 2j in the high nibble of byte j and column 2j + 1 in the low one, both signed, as
  released.
- 8 bits: int8 (1, N, K). The leading axis says nothing; it is there so that a float linear of a program that does not
  know this format refuses the tensor for its shape, where it would take (N, K) integers for weights without a word.

The value of an integer is the product with its scale *rounded to fp16*, in any compute dtype: the original multiplies
in fp16. Quantization rounds the scale to fp16 first and divides in the dtype of the weight, for the same reason.

Sources: GLM-130B's `quantization/layers.py` and `kernels/quantization.cu` (packing); `tools/convert_tp.py` (ranks).
"""

import sys

import torch

METHOD = "weight_only_int"  # the format's name, in a config's `quant_method`
SUPPORTED_BITS = (4, 8)
LARGEST_VALUE = 65472.0  # with a scale rounded up, the value is still within fp16
ELEMENTS_AT_ONCE = 1 << 22  # temporaries of the functions below stay this small
ELEMENTS_AT_ONCE_ON_CPU = 1 << 19  # larger ones leave the core's cache, and are new memory from the system each time
WAY_OUT = "Take LoRA, which merges into integers, or dequantize the model first (model.dequantize())."  # of adapters


def holds_integers(module: object) -> bool:
    """Whether a module is a `WeightOnlyLinear`; by name, for a Hub model may bring a copy of the class."""
    return type(module).__name__ == "WeightOnlyLinear"


def check_bits(bits: int) -> None:
    """Raises ValueError where `bits` is a width this format does not have."""
    if type(bits) is not int or bits not in SUPPORTED_BITS:
        raise ValueError(f"bits={bits!r}: the weight-only format has 4 and 8 bits. Pass bits=4 or bits=8.")


def check_groups(in_features: int, num_groups: int, bits: int, name: str = "the weight") -> None:
    """Checks that a row can be cut into groups.

    Args:
        in_features: Columns K of the weight.
        num_groups: Groups G of columns, each with a scale of its own.
        bits: 4 or 8.
        name: What the message calls the weight.

    Raises:
        ValueError: G does not divide K, or (4 bits) leaves groups of an odd number of columns: two columns share a
            byte, and a byte has one scale.
    """
    if num_groups < 1 or in_features % num_groups:
        raise ValueError(
            f"{name} has {in_features} columns, which cannot be cut into {num_groups} groups of equal size. Choose a "
            "number of groups (or a group size) that divides the columns, or leave the module unquantized through "
            "modules_to_not_convert."
        )
    if bits == 4 and (in_features // num_groups) % 2:
        raise ValueError(
            f"{name} has {in_features} columns in {num_groups} groups: {in_features // num_groups} columns a group, "
            "an odd number. Two columns share a byte at 4 bits, so a group must be even; use 8 bits, other groups, or "
            "modules_to_not_convert."
        )


def check_scales(scale: torch.Tensor, name: str = "weight_scale") -> None:
    """Checks the values of scales.

    Args:
        scale: (N, G) fp16, on a device that holds values.
        name: What the message calls them.

    Raises:
        TypeError: not fp16.
        ValueError: not (N, G), or a value that is NaN, infinite, zero or negative.
    """
    if scale.dtype != torch.float16:
        raise TypeError(f"{name} is {scale.dtype}; scales are torch.float16, as released.")
    if scale.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(scale.shape)}; scales are (rows, groups), (rows, 1) for one a row.")
    right = torch.isfinite(scale) & (scale > 0)
    if not bool(right.all()):
        row, group = (~right).nonzero()[0].tolist()
        raise ValueError(
            f"{name} holds {scale[row, group].item()} at row {row}, group {group} ({int((~right).sum())} such values "
            "in all). Scales are finite and above zero, so the file is damaged or was not written as scales: fetch it "
            "again, or quantize again."
        )


def quantize(weight: torch.Tensor, bits: int, num_groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds a weight to integers, in the original's order: scale to fp16 first, then the quotient.

    Args:
        weight: (N, K) fp32, fp16 or bf16.
        bits: 4 (integers -7..7) or 8 (-127..127).
        num_groups: Groups G of columns, each with a scale of its own.

    Returns:
        Integers, int8 (N, K), and scales, fp16 (N, G). With s the scale of a weight w, `abs(w - q * s) <= s / 2`, up
        to the rounding of the quotient in the dtype of the weight (for fp16 and 8 bits s / 32 more).

    Raises:
        TypeError: a weight that is not floating-point.
        ValueError: unsupported bits, groups that do not divide K, values that are not finite or beyond fp16.

    ```python
    >>> import torch
    >>> from hf_glm_ernie.weight_only import quantize

    >>> quantize(torch.tensor([[0.5, -1.0, 0.75, 7.0]]), bits=4)
    (tensor([[ 0, -1,  1,  7]], dtype=torch.int8), tensor([[1.]], dtype=torch.float16))
    ```
    """
    check_bits(bits)
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"weight is {weight.dtype}; quantize takes torch.float32, torch.float16 or torch.bfloat16.")
    if weight.ndim != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; quantize takes (rows, columns).")
    rows, columns = weight.shape
    check_groups(columns, num_groups, bits)
    groups = weight.detach().unflatten(1, (num_groups, columns // num_groups))
    step = _rows_at_once(weight)
    parts = [slice(first, first + step) for first in range(0, rows, step)]
    absmax = torch.empty(rows, num_groups, device=weight.device)
    for part in parts:
        absmax[part] = _absmax(groups[part])
    scale = _scales(absmax, 2 ** (bits - 1) - 1)
    q = torch.empty(groups.shape, dtype=torch.int8, device=weight.device)
    for part in parts:
        q[part] = _rounded_quotients(groups[part], scale[part], 2 ** (bits - 1) - 1)
    return q.flatten(1), scale


def _absmax(part: torch.Tensor) -> torch.Tensor:
    """Largest magnitude along the last axis, fp32; NaN where there is one."""
    if part.dtype.itemsize > 2:
        return part.abs().amax(-1)
    # Magnitudes of fp16 and of bf16 rise with their bits, NaN above all, and CPUs compare integers ten times as fast.
    return (part.view(torch.int16) & 0x7FFF).amax(-1).view(part.dtype).float()


def _scales(absmax: torch.Tensor, largest: int) -> torch.Tensor:
    """(N, G) fp32 -> scales of that shape, by which the largest magnitude becomes the largest integer."""
    if absmax.device.type != "meta" and not bool((absmax <= LARGEST_VALUE).all()):  # NaN fails the comparison
        raise ValueError(
            f"weight holds values that are not finite or above {LARGEST_VALUE:g}: values are fp16 once they "
            "are dequantized. Repair the weight, or leave the module unquantized through modules_to_not_convert."
        )
    scale = (absmax / largest).to(torch.float16)
    # Far down in the subnormal numbers fp16 is so coarse that the rounded scale would leave weights out of the
    # integers' reach; there the next larger one is taken.
    too_small = absmax > (largest + 0.5) * scale.float()
    scale = torch.where(too_small, (scale.view(torch.int16) + 1).view(torch.float16), scale)
    return torch.where(absmax == 0, torch.ones_like(scale), scale)


def _rounded_quotients(part: torch.Tensor, scale: torch.Tensor, largest: int) -> torch.Tensor:
    """(n, G, K / G) and scales (n, G) -> integers of the first shape, in fp32."""
    dtype = torch.promote_types(part.dtype, scale.dtype)  # fp16 stays fp16: the quotient is rounded to it, as it was
    quotient = part.to(dtype) / scale[..., None].to(dtype)
    return quotient.float().round_().clamp_(-largest, largest)


def dequantize(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values of integers: the product with the scale, rounded to fp16 as in the original, in any dtype.

    Args:
        q: (N, K) int8.
        scale: (N, G) fp16.
        dtype: Of the result.

    Returns:
        (N, K) in `dtype`.

    Raises:
        TypeError: integers that are not int8, scales that are not fp16.
        ValueError: shapes that do not belong together.
    """
    _check_pair(q, scale)
    rows, columns = q.shape
    groups = scale.shape[1]
    values = q.reshape(rows, groups, columns // groups).to(torch.float16) * scale[:, :, None]
    return values.reshape(rows, columns).to(dtype)


def _check_pair(q: torch.Tensor, scale: torch.Tensor) -> None:
    if q.dtype != torch.int8 or scale.dtype != torch.float16:
        raise TypeError(f"integers are {q.dtype} and scales {scale.dtype}; they are torch.int8 and torch.float16.")
    if q.ndim != 2 or scale.ndim != 2 or q.shape[0] != scale.shape[0]:
        raise ValueError(
            f"integers of shape {tuple(q.shape)} and scales of shape {tuple(scale.shape)}: they are (rows, columns) "
            "and (rows, groups). Integers of a file go through from_storage first."
        )
    check_groups(q.shape[1], scale.shape[1], 8)


def pack_int4(q: torch.Tensor) -> torch.Tensor:
    """Puts two columns into a byte as released: column 2j into the high nibble of byte j, 2j + 1 into the low one.

    Args:
        q: (N, K) int8 with values -8..7, K even.

    Returns:
        (N, K / 2) int8.

    Raises:
        TypeError: not int8.
        ValueError: K odd, or values that need more than 4 bits.
    """
    if q.dtype != torch.int8:
        raise TypeError(f"integers are {q.dtype}; pack_int4 takes torch.int8.")
    if q.ndim != 2 or q.shape[1] % 2:
        raise ValueError(f"integers of shape {tuple(q.shape)}: pack_int4 takes (rows, an even number of columns).")
    if q.device.type != "meta" and q.numel():
        smallest, largest = torch.aminmax(q)
        if smallest < -8 or largest > 7:
            raise ValueError("integers outside -8..7 do not fit into 4 bits.")
    packed = torch.empty(q.shape[0], q.shape[1] // 2, dtype=torch.int8, device=q.device)
    step = _rows_at_once(q)
    even, odd = (0, 8) if sys.byteorder == "little" else (8, 0)  # bits below each column of a pair
    for first in range(0, q.shape[0], step):
        pairs = q[first : first + step].clone(memory_format=torch.contiguous_format).view(torch.int16)
        low = (pairs >> odd).bitwise_and_(15)
        packed[first : first + step] = pairs.bitwise_right_shift_(even).bitwise_left_shift_(4).bitwise_or_(low)
    return packed


def _rows_at_once(matrix: torch.Tensor) -> int:
    """How many rows of a matrix to work on at a time."""
    elements = ELEMENTS_AT_ONCE_ON_CPU if matrix.device.type == "cpu" else ELEMENTS_AT_ONCE
    return max(1, elements // max(matrix.shape[1], 1))


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of [`pack_int4`].

    Args:
        packed: (N, K / 2) int8.

    Returns:
        (N, K) int8 with values -8..7.

    Raises:
        TypeError: not int8.
        ValueError: not two axes.
    """
    if packed.dtype != torch.int8:
        raise TypeError(f"packed integers are {packed.dtype}; unpack_int4 takes torch.int8.")
    if packed.ndim != 2:
        raise ValueError(f"packed integers of shape {tuple(packed.shape)}: unpack_int4 takes (rows, bytes).")
    return torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(1)


def storage_shape(out_features: int, in_features: int, bits: int) -> tuple[int, ...]:
    """Shape of the stored integers of a weight (out_features, in_features)."""
    return (out_features, in_features // 2) if bits == 4 else (1, out_features, in_features)


def to_storage(q: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers (N, K) as they are stored: (N, K / 2) packed for 4 bits, (1, N, K) for 8."""
    check_bits(bits)
    return pack_int4(q) if bits == 4 else q[None]


def from_storage(stored: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of [`to_storage`]: integers (N, K), for 8 bits a view of what was given.

    Args:
        stored: (N, K / 2) for 4 bits, (1, N, K) for 8, int8.
        bits: 4 or 8.

    Returns:
        (N, K) int8.

    Raises:
        TypeError: not int8.
        ValueError: another shape than the width has, or unsupported bits.
    """
    check_bits(bits)
    if stored.dtype != torch.int8:
        raise TypeError(f"stored integers are {stored.dtype}; they are torch.int8.")
    if bits == 4:
        return unpack_int4(stored)
    if stored.ndim != 3 or stored.shape[0] != 1:
        raise ValueError(f"stored integers of shape {tuple(stored.shape)}: with 8 bits they are (1, rows, columns).")
    return stored[0]


__all__ = ["check_scales", "dequantize", "from_storage", "pack_int4", "quantize", "to_storage", "unpack_int4"]
