"""Launches the Triton kernels of `weight_only_triton_kernels.py`: which tile, which grid, which memory.

Three products, all on the bytes as released:

- `rows_linear`: one to four rows of activations, no tensor cores, compute capability 7.0 and up.
- `dot_linear`: up to a few hundred rows, on tensor cores from 8.0 on.
- `dequantized_linear`, and `transposed` for the gradient: the weight is dequantized chunk by chunk into memory that
  cuBLAS reads. Any shape and group.

Every launch goes through `_launch`, with plain numbers and tensors and nothing that waits for the device, so a CUDA
graph can capture it. What can be decided beforehand is decided once for a shape (`_plan`).

Activations here are (M, K) contiguous, biases (N,) or `None`, results (M, N) in the dtype of the activations.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .weight_only_tiles import Tile, chunk_rows, dot_tile, parts_of_columns, rows_tile
from .weight_only_triton_kernels import dequantize_kernel, dot_kernel, rows_kernel, sum_kernel, tl, triton

SUM_BLOCK = 256
DEQUANTIZE_TILE = Tile(16, 16, 256, 4, 2)
KINDS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
LEAST_CAPABILITY = 70


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Every launch goes through here. Triton launches on the current device, and Accelerate does not set it."""
    device = args[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*args, **meta)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on the CPU (`TRITON_INTERPRET=1` before the import)."""
    return triton is not None and "interpreter" in type(dot_kernel).__module__


@lru_cache(maxsize=64)
def device_capability(device: torch.device) -> tuple[int, int]:
    """Compute capability as an integer (86 for 8.6) and multiprocessors of a device."""
    if interpreted() and device.type == "cpu":
        return 80, 4
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor, torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(maxsize=64)
def problem(device: torch.device) -> str:
    """Why the kernels cannot run on a device, or an empty string."""
    if triton is None:
        return "Triton is not installed (pip install triton)"
    if interpreted() and device.type == "cpu":
        return ""
    if device.type != "cuda" or torch.version.hip:
        return (
            f"the Triton kernels are written for NVIDIA GPUs, not for {'ROCm' if torch.version.hip else device.type}"
        )
    capability, _ = device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"compute capability {capability / 10} is below 7.0"
    return ""


@dataclass(frozen=True)
class _Plan:
    """What a product of this shape takes, whatever its values.

    Attributes:
        tile: Of a block.
        grid: Blocks over rows of the weight, rows of activations, parts of the columns.
        integers: Arguments of the kernel after the tensors.
    """

    tile: Tile
    grid: tuple[int, int, int]
    integers: tuple[int, ...]


@lru_cache(maxsize=4096)
def rows_plan(device: torch.device, bits: int, rows: int, outputs: int, columns: int, groups: int) -> _Plan | None:
    """The plan of the rows kernel, or `None` for a shape that it does not take."""
    return _plan(rows_tile(rows, *_words(columns, bits, groups)), device, bits, rows, outputs, columns, groups)


@lru_cache(maxsize=4096)
def dot_plan(device: torch.device, bits: int, rows: int, outputs: int, columns: int, groups: int) -> _Plan | None:
    """The plan of the dot kernel, or `None` for a shape or a device that it does not take."""
    capability, _ = device_capability(device)
    tile = dot_tile(capability, rows, *_words(columns, bits, groups))
    return _plan(tile, device, bits, rows, outputs, columns, groups)


def _words(columns: int, bits: int, groups: int) -> tuple[int, int]:
    """16-bit words of a group, and groups; 0 words where a group is no whole number of them, so that no tile fits."""
    a_word = 16 // bits
    return (columns // groups // a_word if columns // groups % a_word == 0 else 0), groups


def _plan(
    tile: Tile | None, device: torch.device, bits: int, rows: int, outputs: int, columns: int, groups: int
) -> _Plan | None:
    group_words, _ = _words(columns, bits, groups)
    if tile is None or not group_words:
        return None
    row_words = group_words * groups
    tiles = -(-row_words // tile.words)
    across, down = -(-outputs // tile.outputs), -(-rows // tile.rows)
    parts = parts_of_columns(across * down, tiles, device_capability(device)[1])
    a_part = -(-tiles // parts)
    grid = (across, down, -(-tiles // a_part))
    return _Plan(tile, grid, (rows, outputs, columns, row_words, groups, group_words, tiles, a_part))


def rows_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, bits: int
) -> torch.Tensor:
    """`x @ values.T + bias` for a few rows. fp16 and fp32 see values rounded to fp16; bf16 exact integers and scales.

    Args:
        x: (M, K) fp32, fp16 or bf16.
        weight: Stored integers, contiguous.
        scale: (N, G) fp16.
        bias: (N,) or `None`.
        bits: 4 or 8.

    Returns:
        (M, N) in the dtype of `x`.

    Raises:
        ValueError: a shape that the kernel does not take.
    """
    plan = rows_plan(x.device, bits, x.shape[0], scale.shape[0], x.shape[1], scale.shape[1])
    if plan is None:
        raise _no_plan("rows", x, scale, bits)
    constants = {"ROWS": plan.tile.rows, "ROUND": x.dtype != torch.bfloat16}
    return _multiplied(rows_kernel, plan, x, weight, scale, bias, bits, constants)


def dot_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, bits: int
) -> torch.Tensor:
    """As [`rows_linear`], on tensor cores; `x` fp16 or bf16."""
    plan = dot_plan(x.device, bits, x.shape[0], scale.shape[0], x.shape[1], scale.shape[1])
    if plan is None or x.dtype == torch.float32:
        raise _no_plan("dot", x, scale, bits)
    constants = _dot_constants(plan.tile, x.dtype, not interpreted())
    return _multiplied(dot_kernel, plan, x, weight, scale, bias, bits, constants)


def _dot_constants(tile: Tile, dtype: torch.dtype, compiled: bool) -> dict[str, Any]:
    # the interpreter multiplies the bit patterns of bf16, so it gets fp32
    factor = tl.float16 if dtype == torch.float16 else tl.bfloat16 if compiled else tl.float32
    return {"BLOCK_M": tile.rows, "VALUES": dtype == torch.float16, "DOT": factor}


def _no_plan(kernel: str, x: torch.Tensor, scale: torch.Tensor, bits: int) -> ValueError:
    return ValueError(
        f"The {kernel} kernel takes no product of {tuple(x.shape)} {x.dtype} with {scale.shape[0]} rows in "
        f"{scale.shape[1]} groups of {bits} bits on this device; choose_kernel names one that does."
    )


def _multiplied(
    kernel: Any,
    plan: _Plan,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    constants: dict[str, Any],
) -> torch.Tensor:
    rows, outputs = plan.integers[:2]
    y = x.new_empty(rows, outputs)
    parts = plan.grid[2]
    target = y if parts == 1 else x.new_empty((parts, rows, outputs), dtype=torch.float32)
    words = _words_of(weight if bits == 4 else weight[0])
    given = bias if bias is not None else x
    _launch(
        kernel, plan.grid, x, words, scale, given, target, *plan.integers, BITS=bits, BLOCK_N=plan.tile.outputs,
        WORDS=plan.tile.words, GROUPED=scale.shape[1] > 1, SPLIT=parts > 1, BIAS=bias is not None and parts == 1,
        ASSEMBLY=not interpreted(), **constants, num_warps=plan.tile.num_warps, num_stages=plan.tile.num_stages,
    )  # fmt: skip
    if parts > 1:
        _sum(target, None, bias, y)
    return y


def _words_of(stored: torch.Tensor) -> torch.Tensor:
    """16-bit words of stored integers (N, bytes), in place but for a tensor that begins at an odd byte."""
    return (stored.clone() if stored.storage_offset() % 2 else stored).view(torch.int16)


def _sum(parts: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """Writes parts (P, M, N), added up in order, times scales (N, 1), plus the bias (N,), into y, (M, N) or a slice."""
    rows, outputs = y.shape
    given = bias if bias is not None else parts
    _launch(
        sum_kernel, (-(-outputs // SUM_BLOCK), rows), parts, parts if scale is None else scale, given, y, rows,
        outputs, y.stride(0), PARTS=parts.shape[0], BLOCK=SUM_BLOCK, SCALED=scale is not None, BIAS=bias is not None,
        num_warps=4,
    )  # fmt: skip


def dequantized_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, bits: int
) -> torch.Tensor:
    """As [`rows_linear`] for any number of rows, any shape and any groups: chunks of values, and torch's product.

    bf16 with one scale a row multiplies the exact integers and scales the rounded sum; with groups the values are
    rounded to bf16.
    """
    integers = x.dtype == torch.bfloat16 and scale.shape[1] == 1
    y = x.new_empty(x.shape[0], scale.shape[0])
    added = None if bias is None else bias.to(x.dtype)
    for first, last, values in _row_chunks(weight, scale, bits, x.dtype, integers):
        part, here = y[:, first:last], None if added is None else added[first:last]
        if integers and y.numel():
            _sum(torch.mm(x, values.t())[None], scale[first:last], here, part)
        elif here is None:
            torch.mm(x, values.t(), out=part)
        else:
            torch.addmm(here, x, values.t(), out=part)
    return y


def transposed(y: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """`y @ values`, the gradient of the activations.

    Chunks are columns of the weight, so that each product is complete and nothing is added up outside of it.

    Args:
        y: (M, N) fp32, fp16 or bf16.
        weight: Stored integers, contiguous.
        scale: (N, G) fp16.
        bits: 4 or 8.

    Returns:
        (M, K) in the dtype of `y`.
    """
    stored = weight if bits == 4 else weight[0]
    a_byte = 8 // bits
    row_bytes = stored.shape[1]
    result = y.new_empty(y.shape[0], row_bytes * a_byte)
    at_once = max(1, chunk_rows(stored.shape[0], y.dtype) // a_byte)
    for first in range(0, row_bytes, at_once):
        width = min(at_once, row_bytes - first)
        values = _dequantized(stored, scale, bits, y.dtype, False, first, width)
        torch.mm(y, values, out=result[:, first * a_byte : (first + width) * a_byte])
    return result


def _row_chunks(
    weight: torch.Tensor, scale: torch.Tensor, bits: int, dtype: torch.dtype, integers: bool
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yields (first row, row after the last, their values or integers)."""
    stored = weight if bits == 4 else weight[0]
    outputs, row_bytes = stored.shape
    at_once = chunk_rows(row_bytes * 8 // bits, dtype)
    for first in range(0, outputs, at_once):
        last = min(first + at_once, outputs)
        yield (
            first,
            last,
            _dequantized(stored[first:last], scale[first:last], bits, dtype, integers, 0, row_bytes),
        )


def _dequantized(
    stored: torch.Tensor,
    scale: torch.Tensor,
    bits: int,
    dtype: torch.dtype,
    integers: bool,
    first_byte: int,
    width: int,
) -> torch.Tensor:
    """Values, or integers, of some bytes of every row."""
    rows, row_bytes = stored.shape
    groups = scale.shape[1]
    out = torch.empty(rows, width * 8 // bits, dtype=dtype, device=stored.device)
    tile = DEQUANTIZE_TILE
    grid = (-(-rows // tile.outputs), -(-width // tile.words))
    _launch(
        dequantize_kernel, grid, stored, scale, out, rows, width, first_byte, row_bytes, groups, row_bytes // groups,
        BITS=bits, VALUES=not integers, GROUPED=groups > 1, BLOCK_N=tile.outputs, BLOCK=tile.words, num_warps=tile.num_warps,
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class Variant:
    """A kernel as one product takes it, for who compiles it ahead of time.

    Attributes:
        name: For people.
        kernel: The Triton function.
        signature: Argument -> type, `"*fp16"` or `"i32"`.
        constexprs: Argument -> value.
        divisible: Arguments that Triton finds to be multiples of 16.
        num_warps: As launched.
        num_stages: As launched.
        weights: Weights a block takes in one turn of its loop.
        bits: Of a weight; 0 where none is read.
        rows: Of activations in a block; 0 where there are none.
        dtype: Of the activations or values.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    divisible: tuple[str, ...]
    num_warps: int
    num_stages: int
    weights: int
    bits: int
    rows: int
    dtype: torch.dtype


def variants(capability: int) -> Iterator[Variant]:
    """The kernels as GLM-130B's weights of 12288 columns take them on a device of this capability."""
    columns = 12288
    for bits in (4, 8):
        for dtype in (torch.float16, torch.bfloat16):
            for groups in (1, 16, 96):
                words = _words(columns, bits, groups)
                for rows in (1, 2, 4):
                    constants = {"ROWS": rows, "ROUND": dtype != torch.bfloat16}
                    yield from _variants(rows_kernel, "rows", rows_tile(rows, *words), bits, dtype, groups, constants)
                for rows in (8, 16, 32, 64) if capability >= 80 else (16,) if capability >= 75 else ():
                    tile = dot_tile(capability, rows, *words)
                    if tile is not None:
                        constants = _dot_constants(tile, dtype, compiled=True)
                        yield from _variants(dot_kernel, "dot", tile, bits, dtype, groups, constants)
            yield _dequantize_variant(bits, dtype)
    yield _sum_variant()


INTEGERS = ("M", "N", "K", "row_words", "G", "group_words", "tiles", "tiles_a_split")


def _variants(
    kernel: Any, what: str, tile: Tile | None, bits: int, dtype: torch.dtype, groups: int, constants: dict[str, Any]
) -> Iterator[Variant]:
    """With and without splitting."""
    if tile is None:
        return
    kind = KINDS[dtype]
    for split in (False, True):
        y = "*fp32" if split else f"*{kind}"
        signature = {"x": f"*{kind}", "w": "*i16", "scale": "*fp16", "bias": f"*{kind}", "y": y}
        yield Variant(
            name=f"INT{bits} {what} {kind} {tile.rows} rows, {groups} groups{', split' if split else ''}",
            kernel=kernel,
            # Triton compiles a 1, as of one group, in as a constant
            signature=signature | dict.fromkeys(INTEGERS, "i32") | ({} if groups > 1 else {"G": "constexpr"}),
            constexprs={"BITS": bits, "BLOCK_N": tile.outputs, "WORDS": tile.words, "GROUPED": groups > 1}
            | {"SPLIT": split, "BIAS": not split, "ASSEMBLY": True}
            | ({} if groups > 1 else {"G": 1})
            | constants,
            divisible=("x", "w", "scale", "bias", "y", "N", "K", "row_words"),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            weights=tile.outputs * tile.words * 16 // bits,
            bits=bits,
            rows=tile.rows,
            dtype=dtype,
        )


def _dequantize_variant(bits: int, dtype: torch.dtype) -> Variant:
    tile = DEQUANTIZE_TILE
    return Variant(
        name=f"INT{bits} dequantize {KINDS[dtype]}",
        kernel=dequantize_kernel,
        signature={"w": "*i8", "scale": "*fp16", "out": f"*{KINDS[dtype]}"}
        | dict.fromkeys(("N", "width", "first_byte", "row_bytes", "G", "group_bytes"), "i32"),
        constexprs={"BITS": bits, "VALUES": True, "GROUPED": True, "BLOCK_N": tile.outputs, "BLOCK": tile.words},
        divisible=("w", "scale", "out", "width", "row_bytes", "group_bytes"),
        num_warps=tile.num_warps,
        num_stages=3,
        weights=tile.outputs * tile.words * 8 // bits,
        bits=bits,
        rows=0,
        dtype=dtype,
    )


def _sum_variant() -> Variant:
    return Variant(
        name="sum fp16 3 parts",
        kernel=sum_kernel,
        signature={"parts": "*fp32", "scale": "*fp16", "bias": "*fp16", "y": "*fp16"}
        | dict.fromkeys(("M", "N", "y_stride"), "i32"),
        constexprs={"PARTS": 3, "BLOCK": SUM_BLOCK, "SCALED": False, "BIAS": True},
        divisible=("parts", "scale", "bias", "y", "N", "y_stride"),
        num_warps=4,
        num_stages=3,
        weights=SUM_BLOCK,
        bits=0,
        rows=0,
        dtype=torch.float16,
    )


__all__ = [
    "Variant",
    "dequantized_linear",
    "device_capability",
    "dot_linear",
    "dot_plan",
    "problem",
    "rows_linear",
    "rows_plan",
    "transposed",
    "variants",
]
