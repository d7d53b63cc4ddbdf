"""Products of activations with stored integers: the kernels, and the one function that chooses between them.

- `reference`: dequantizes the whole weight, then `torch.nn.functional.linear`. Always right, and the definition of the
  numbers; needs the memory of the full-precision weight while it runs.
- `blocks`: the same in blocks of rows that stay in the cache. fp32 and fp16 activations see the values rounded to fp16
  as in the original. bf16 activations with one scale a row multiply the exact integers and scale the result.
- `torch_int4`, `torch_int8`: torch's own operators for bf16 on CPU, with scale 1 inside, so that the integers are
  exact there, and the fp16 scales applied to the result. The 4-bit one wants the bytes of the weight in an order of
  its own (`TORCH_INT4`); [`to_torch_layout`] and [`to_released_layout`] go there and back without loss.
- `cpu_extension`: the kernel of `weight_only_cpu.py`, wherever it can be compiled. It reads the bytes as released.
- `triton_rows`, `triton_dot`, `triton_dequantize`: on NVIDIA GPUs with Triton, for few, more and many rows of
  activations (`weight_only_triton.py`). They read the bytes as released.

Activations here are (M, K), results (M, N).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from .weight_only import dequantize, from_storage, pack_int4
from .weight_only_cpu import cpu_kernel_is_ready
from .weight_only_tiles import crossover, rows_limit
from .weight_only_triton import (
    dequantized_linear,
    device_capability,
    dot_linear,
    dot_plan,
    problem,
    rows_linear,
    rows_plan,
    transposed,
)

# How the bytes of a stored weight lie.
RELEASED = "released"
TORCH_INT4 = "torch_int4"

# Weights dequantized at once by `blocks`: a few MB, which stay in the cache between writing and multiplying.
BLOCK_WEIGHTS = 1 << 21
# The same on accelerators, where every block costs launches and no cache holds it: 64 MB of fp16.
ACCELERATOR_BLOCK_WEIGHTS = 1 << 25
# Rows of activations up to which torch's operators are faster than `blocks` (4096 x 12288, one core with AVX-512; with
# bytes in the operator's order `blocks` has to bring them back first).
TORCH_INT4_ROWS = 72
TORCH_INT8_ROWS = 12
TORCH_INT4_GROUPS = (256, 128, 64, 32)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class KernelChoice:
    """What multiplies, and why.

    Args:
        name: `"reference"`, `"blocks"`, `"torch_int4"`, `"torch_int8"`, `"cpu_extension"`, `"triton_rows"`,
            `"triton_dot"` or `"triton_dequantize"`.
        reason: One sentence for people.
    """

    name: str
    reason: str


def choose_kernel(
    device: torch.device,
    dtype: torch.dtype,
    bits: int,
    in_features: int,
    out_features: int,
    num_groups: int,
    rows: int,
    layout: str = RELEASED,
) -> KernelChoice:
    """Chooses the kernel of one product.

    Args:
        device: Of activations and weight.
        dtype: Of the activations.
        bits: 4 or 8.
        in_features: Columns K of the weight.
        out_features: Rows N of the weight.
        num_groups: Groups G of columns.
        rows: Rows M of the activations, all leading axes together.
        layout: How the bytes of the weight lie: `"released"` or `"torch_int4"`.

    Returns:
        Name and reason.
    """
    if device.type == "meta":
        return KernelChoice("reference", "the meta device has shapes and no values")
    if device.type != "cpu":
        if missing := problem(device):
            return KernelChoice("blocks", f"the kernels for GPUs cannot run: {missing}")
        shape = (device, bits, rows, out_features, in_features, num_groups)
        return _choose_on_gpu(device_capability(device)[0], dtype, shape)
    if layout == RELEASED and cpu_kernel_is_ready():
        return KernelChoice(
            "cpu_extension", "it was compiled for this machine, and reads any number of rows and groups"
        )
    if dtype != torch.bfloat16:
        return KernelChoice("blocks", f"torch's packed operators run {dtype} in scalar loops on CPU")
    if layout == TORCH_INT4:
        if rows <= TORCH_INT4_ROWS:
            return KernelChoice("torch_int4", f"{rows} rows of bf16: reading the packed weight is what takes time")
        return KernelChoice("blocks", f"{rows} rows: from {TORCH_INT4_ROWS + 1} on a matrix product is faster")
    if bits == 8 and num_groups == 1 and rows <= TORCH_INT8_ROWS and in_features % 16 == 0 and out_features % 16 == 0:
        return KernelChoice("torch_int8", f"{rows} rows of bf16 and one scale a row")
    if bits == 8:
        return KernelChoice(
            "blocks", f"{rows} rows, {num_groups} groups: torch's operator takes few rows and one group"
        )
    return KernelChoice("blocks", "the bytes lie as released; `repack()` or `build_cpu_kernel()` makes few rows fast")


@lru_cache(maxsize=4096)
def _choose_on_gpu(
    capability: int, dtype: torch.dtype, shape: tuple[torch.device, int, int, int, int, int]
) -> KernelChoice:
    """The choice among Triton's kernels; made once for a shape, for hundreds of linears ask for every token.

    Args:
        capability: Compute capability, an integer.
        dtype: Of the activations.
        shape: Device, bits, rows M, N, K and groups, as `dot_plan` takes them.
    """
    _, bits, rows, _, columns, groups = shape
    dot = dot_plan(*shape) if rows and dtype != torch.float32 else None
    few, limit = rows_limit(capability), crossover(capability, bits, dot is not None)
    on = f"{rows} rows of {str(dtype).removeprefix('torch.')} on compute capability {capability / 10}"
    if rows >= limit:
        return KernelChoice("triton_dequantize", f"{on}: from {limit} rows on a product of dense values is faster")
    if rows and (dot is None or rows <= few) and rows_plan(*shape) is not None:
        why = f"up to {few} rows need no tensor cores"
        if dot is None:
            why = f"the dot kernel does not take {columns} columns in {groups} groups, or this dtype"
        return KernelChoice("triton_rows", f"{on}: {why}")
    if dot is not None:
        return KernelChoice("triton_dot", f"{on}: reading the weight is what takes time")
    return KernelChoice("triton_dequantize", f"{on}: no other kernel takes {columns} columns in {groups} groups")


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    layout: str,
    kernel: str,
) -> torch.Tensor:
    """`x @ values.T + bias` by the kernel of this name.

    Args:
        x: (M, K) fp32, fp16 or bf16.
        weight: Stored integers.
        scale: (N, G) fp16.
        bias: (N,) in any floating dtype, or `None`.
        bits: 4 or 8.
        layout: How the bytes of the weight lie.
        kernel: A name of [`KernelChoice`].

    Returns:
        (M, N) in the dtype of `x`.
    """
    if kernel in ON_GPU:
        return ON_GPU[kernel](x.contiguous(), weight.contiguous(), scale.contiguous(), bias, bits)
    y = _product(x, weight, scale, bits, layout, kernel)
    return y if bias is None else y + bias.to(y.dtype)


ON_GPU = {"triton_rows": rows_linear, "triton_dot": dot_linear, "triton_dequantize": dequantized_linear}


def _product(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bits: int, layout: str, kernel: str
) -> torch.Tensor:
    if kernel == "cpu_extension":
        return torch.ops.weight_only_int_cpu.linear(x.contiguous(), weight.contiguous(), scale.contiguous(), bits)
    if kernel == "torch_int4":
        return _torch_int4(x, weight, scale)
    if kernel == "torch_int8":
        ones = torch.ones_like(scale[:, 0], dtype=x.dtype)
        y = torch.ops.aten._weight_int8pack_mm(x.contiguous(), _aligned(weight[0]), ones)
        return (y.float() * scale[:, 0]).to(x.dtype)
    if layout == TORCH_INT4:
        weight = to_released_layout(weight, scale.shape[1])
    if kernel == "reference":
        return F.linear(x, dequantize(from_storage(weight, bits), scale, x.dtype))
    return _blocks(x, weight, scale, bits)


def _aligned(weight: torch.Tensor) -> torch.Tensor:
    """A weight whose memory starts at a multiple of 16 bytes, which torch's operator takes for granted: elsewhere it
    ends the process. A tensor of a mapped safetensors file starts at any multiple of 8.
    """
    if torch.compiler.is_compiling():  # the compiler aligns what it is given
        return weight
    try:
        return weight.clone() if weight.data_ptr() % 16 else weight
    except RuntimeError:  # a tensor without memory, of a trace
        return weight


def multiply_transposed(
    y: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bits: int, layout: str
) -> torch.Tensor:
    """`y @ values`, the gradient of a linear's input, in blocks or chunks.

    Args:
        y: (M, N) fp32, fp16 or bf16.
        weight: Stored integers.
        scale: (N, G) fp16.
        bits: 4 or 8.
        layout: How the bytes of the weight lie.

    Returns:
        (M, K) in the dtype of `y`.
    """
    if layout == TORCH_INT4:
        weight = to_released_layout(weight, scale.shape[1])
    if y.device.type == "cuda" and not problem(y.device):
        return transposed(y.contiguous(), weight.contiguous(), scale.contiguous(), bits)
    rows, columns = _shape(weight, bits)
    compute = _compute_dtype(y)
    wide = y.to(compute)
    result = torch.zeros(y.shape[0], columns, dtype=torch.float32, device=y.device)
    block = _Block(weight, scale, bits, compute, integers=False)
    for first in range(0, rows, block.rows):
        values = block.values(first)
        part = wide[:, first : first + values.shape[0]] @ values
        result += part
    if bits == 4:
        result = result.unflatten(1, (2, columns // 2)).transpose(1, 2).reshape(-1, columns)
    return result.to(y.dtype)


def _blocks(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """The `blocks` kernel on bytes that lie as released."""
    rows, columns = _shape(weight, bits)
    compute = _compute_dtype(x)
    # bf16 holds the integers exactly, and not the fp16 values.
    integers = x.dtype == torch.bfloat16 and scale.shape[1] == 1
    if bits == 4:
        x = x.unflatten(1, (columns // 2, 2)).transpose(1, 2).reshape(-1, columns)
    wide = x.to(compute)
    result = torch.empty(x.shape[0], rows, dtype=x.dtype, device=x.device)
    block = _Block(weight, scale, bits, compute, integers)
    for first in range(0, rows, block.rows):
        values = block.values(first)
        part = wide @ values.t()
        if integers:
            part = part.float() * scale[first : first + block.rows, 0]
        result[:, first : first + block.rows] = part
    return result


class _Block:
    """Buffers that a block of rows is dequantized into, again and again.

    Four-bit columns come in the order the nibbles give them: all even ones, then all odd ones. The other factor is
    brought into that order once, which is cheaper than interleaving every block.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bits: int, dtype: torch.dtype, integers: bool):
        self.bits, self.integers = bits, integers
        self.stored = weight if bits == 4 else weight[0]
        self.scale = scale
        columns = _shape(weight, bits)[1]
        at_once = BLOCK_WEIGHTS if weight.device.type == "cpu" else ACCELERATOR_BLOCK_WEIGHTS
        self.rows = max(16, at_once // max(columns, 1))
        height = min(self.rows, self.stored.shape[0])
        self.result = torch.empty(height, columns, dtype=dtype, device=weight.device)
        needs_half = not integers and dtype != torch.float16
        self.half = torch.empty_like(self.result, dtype=torch.float16) if needs_half else self.result
        self.nibbles = torch.empty(height, columns // 2, dtype=torch.int8, device=weight.device) if bits == 4 else None

    def values(self, first: int) -> torch.Tensor:
        """(n, K) values, or integers, of the rows from `first` on, in a buffer of the next call too."""
        stored = self.stored[first : first + self.rows]
        height = stored.shape[0]
        half = self.half[:height]
        if self.nibbles is None:
            half.copy_(stored)
        else:
            nibbles, width = self.nibbles[:height], stored.shape[1]
            half[:, :width].copy_(torch.bitwise_right_shift(stored, 4, out=nibbles))
            torch.bitwise_left_shift(stored, 4, out=nibbles)
            half[:, width:].copy_(nibbles.bitwise_right_shift_(4))
        if self.integers:
            return half
        scale = self.scale[first : first + self.rows]
        halves = 2 if self.bits == 4 else 1
        half.view(height, halves, scale.shape[1], -1).mul_(scale[:, None, :, None])
        result = self.result[:height]
        return half if result.dtype == torch.float16 else result.copy_(half)


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Dtype of the matrix product: fp16 is widened on CPU, where few processors multiply it."""
    return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype


def _shape(weight: torch.Tensor, bits: int) -> tuple[int, int]:
    """(N, K) of stored integers."""
    return (weight.shape[0], 2 * weight.shape[1]) if bits == 4 else (weight.shape[1], weight.shape[2])


@lru_cache(maxsize=32)
def _unit_scales(blocks: int, rows: int) -> torch.Tensor:
    """(blocks, N, 2) of scale 1 and zero 0 for torch's 4-bit operator; linears of one shape share it."""
    return torch.tensor([1.0, 0.0], dtype=torch.bfloat16).expand(blocks, rows, 2).contiguous()


def torch_int4_group(columns: int) -> int | None:
    """The largest group of torch's 4-bit operator that divides these columns, or `None`."""
    return next((group for group in TORCH_INT4_GROUPS if columns % group == 0), None)


def _torch_int4(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    rows, groups = scale.shape
    columns = x.shape[1] // groups
    group = torch_int4_group(columns)
    packed = weight.view(torch.uint8).view(groups, rows, columns // 2)
    result: torch.Tensor | None = None
    for g in range(groups):
        part_x = x[:, g * columns : (g + 1) * columns].contiguous()
        part = torch.ops.aten._weight_int4pack_mm_for_cpu(
            part_x,
            packed[g],
            group,
            _unit_scales(columns // group, rows),  # type: ignore[operator]  # never None here
        )
        part = part.float() * scale[:, g]
        result = part if result is None else result.add_(part)
    assert result is not None
    return result.to(x.dtype)


def to_torch_layout(weight: torch.Tensor, num_groups: int) -> torch.Tensor | None:
    """Bytes of a 4-bit weight in the order of torch's CPU operator, group of columns after group.

    The operator's order (torch's `int4mm_kernel.cpp`): blocks of 64 rows (32 with AVX2), in them column after column;
    in a column byte d holds row d of the block in its low nibble and row d + 32 in its high one, each plus 8. Rows
    that do not fill a block share a byte in pairs.

    Args:
        weight: (N, K / 2) int8 as released, on CPU.
        num_groups: Groups G of columns.

    Returns:
        int8 of the same shape, or `None` where the operator does not take the shape, or where this torch packs in
        another order.
    """
    rows, width = weight.shape
    fits = weight.device.type == "cpu" and rows % 16 == 0 and torch_int4_group(2 * width // num_groups) is not None
    if not fits or not _packing_is_known(rows % _torch_block_rows()):
        return None
    result = torch.empty_like(weight)
    for released, low, high, packed in _pairs_of_rows(weight, result, num_groups):
        columns = released.transpose(-1, -2)  # (..., bytes of a row, rows)
        first, second = columns[..., low], columns[..., high]
        packed[..., 0, :] = ((first >> 4) | (second & 240)) ^ 136  # even columns; 136 turns -8..7 into 0..15
        packed[..., 1, :] = ((first & 15) | (second << 4)) ^ 136
    return result


def to_released_layout(weight: torch.Tensor, num_groups: int) -> torch.Tensor:
    """The inverse of [`to_torch_layout`], on any device."""
    result = torch.empty_like(weight)
    for released, low, high, packed in _pairs_of_rows(result, weight, num_groups):
        even, odd = packed[..., 0, :] ^ 136, packed[..., 1, :] ^ 136
        columns = released.transpose(-1, -2)
        columns[..., low] = (even << 4) | (odd & 15)
        columns[..., high] = (even & 240) | (odd >> 4)
    return result


def _pairs_of_rows(
    released: torch.Tensor, packed: torch.Tensor, num_groups: int
) -> Iterator[tuple[torch.Tensor, slice, slice, torch.Tensor]]:
    """Goes through both layouts of a weight piece by piece.

    Yields:
        A piece (..., rows, W bytes) of the released layout; which of its rows are low and which high nibbles; and the
        same piece of torch's layout, (..., W, 2 columns, rows / 2). All uint8 views.
    """
    rows, width = released.shape
    width //= num_groups
    block = _torch_block_rows()
    whole = rows - rows % block
    at_once = block * max(1, BLOCK_WEIGHTS // (2 * block * width))
    by_group = packed.view(torch.uint8).view(num_groups, rows * width)
    for g in range(num_groups):
        mine = released.view(torch.uint8)[:, g * width : (g + 1) * width]
        for first in range(0, whole, at_once):
            last = min(first + at_once, whole)
            piece = by_group[g, first * width : last * width].view(-1, width, 2, block // 2)
            yield mine[first:last].unflatten(0, (-1, block)), slice(0, block // 2), slice(block // 2, None), piece
        if whole < rows:
            piece = by_group[g, whole * width :].view(width, 2, (rows - whole) // 2)
            yield mine[whole:], slice(0, None, 2), slice(1, None, 2), piece


@lru_cache(maxsize=8)
def _packing_is_known(rest: int) -> bool:
    """Whether this torch packs whole blocks of rows, and `rest` rows after them, in the order assumed here."""
    generator = torch.Generator().manual_seed(0)
    shape = (2 * _torch_block_rows() + rest, 32)
    q = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.to(torch.int32) + 8, 1)
    return torch.equal(to_released_layout(packed.view(torch.int8).view(shape[0], 16), 1), pack_int4(q))


@lru_cache(maxsize=1)
def _torch_block_rows() -> int:
    """Rows of a block of torch's 4-bit packing, which follows the vectors of the processor."""
    return 64 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 32


__all__ = ["KernelChoice", "choose_kernel", "multiply", "multiply_transposed", "to_released_layout", "to_torch_layout"]
