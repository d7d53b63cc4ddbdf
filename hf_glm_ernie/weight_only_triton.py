"""Products of activations with stored integers on GPUs: which program runs, with which tiles, and its launch.

The programs are in `weight_only_triton_kernels.py`, the tiles in `weight_only_tiles.py`. Triton is optional: where it
is missing [`problem`] says so and the caller takes `blocks`. Nothing here waits for the device, and all memory comes
from torch's allocator, so that the launches can be captured into a CUDA graph.

Activations are (M, K), results (M, N); weights lie as released: int8 (N, K / 2) for 4 bits, the even column in the
high nibble, and (1, N, K) for 8; scales are fp16 (N, G).
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from .weight_only_tiles import (
    ARCHITECTURES,
    Tile,
    architecture,
    crossover,
    dot_tile,
    fitting_columns,
    rows_limit,
    rows_tile,
)
from .weight_only_triton_kernels import (
    TRITON_ERROR,
    dequantize_kernel,
    dot_kernel,
    finish_kernel,
    rows_kernel,
    tl,
    triton,
)

OLDEST = (7, 0)
CHUNK_BYTES = 96 << 20
"""Of values that are dequantized at once: enough for a matrix product at full speed, little beside the weights."""

INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
"""Whether Triton interprets the programs, for tests, on CPU tensors."""

HALVES = (torch.float16, torch.bfloat16)


@lru_cache(maxsize=64)
def device_capability(device: torch.device) -> int:
    """Compute capability such as 86 of a CUDA device; for interpreted programs that of the newest row."""
    if device.type != "cuda":
        return max(ARCHITECTURES)
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@lru_cache(maxsize=64)
def problem(device: torch.device) -> str:
    """Why the programs cannot run on a device; empty where they can."""
    if triton is None:
        return f"Triton is not installed ({TRITON_ERROR})"
    if INTERPRETED:
        return ""
    if device.type != "cuda":
        return f"Triton's programs are for CUDA devices, not {device.type}"
    if torch.version.hip is not None:
        return "the programs were not tried on ROCm"
    if device_capability(device) < 10 * OLDEST[0]:
        return f"the device has compute capability {device_capability(device) / 10}; 7.0 is the oldest"
    return ""


def choose_program(
    device: torch.device, dtype: torch.dtype, bits: int, shape: tuple[int, int], num_groups: int, rows: int
) -> tuple[str, str]:
    """Name and reason of the program for one product on a device without a [`problem`].

    Args:
        device: Of all tensors.
        dtype: Of the activations.
        bits: 4 or 8.
        shape: (N, K) of the weight.
        num_groups: Groups G of columns.
        rows: Rows M of the activations.

    Returns:
        `"triton_rows"`, `"triton_dot"` or `"triton_dequantize"`, and one sentence.
    """
    capability = device_capability(device)
    group = shape[1] // max(num_groups, 1)
    if dtype not in HALVES:
        return "triton_dequantize", f"the programs that read integers multiply fp16 and bf16, not {dtype}"
    if not fitting_columns(32, group, shape[1]):
        return "triton_dequantize", f"groups of {group} columns do not consist of tiles of 32"
    if rows >= crossover(capability, bits):
        return "triton_dequantize", f"{rows} rows: from {crossover(capability, bits)} on a plain product is faster"
    if rows <= rows_limit(capability):
        return "triton_rows", f"{rows} rows: reading the weight is what takes time"
    return "triton_dot", f"{rows} rows of {dtype} on compute capability {capability / 10}"


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Every launch goes through here. Triton launches on the current device, which need not be that of the tensors."""
    device = args[0].device
    guard = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with guard:
        kernel[grid](*args, **meta)


def _shape(weight: torch.Tensor, bits: int) -> tuple[int, int]:
    """(N, K) of stored integers."""
    return (weight.shape[0], 2 * weight.shape[1]) if bits == 4 else (weight.shape[1], weight.shape[2])


def _in_words(x: torch.Tensor) -> torch.Tensor:
    """Contiguous activations, of which pairs can be read: their memory starts at a multiple of 4 bytes."""
    x = x.contiguous()
    return x.clone() if x.storage_offset() % 2 else x


def _constants(tile: Tile, columns: int, bits: int, num_groups: int, inline: bool) -> dict[str, Any]:
    return {
        "BITS": bits,
        "GROUPED": num_groups > 1,
        "WHOLE": columns % tile.block_k == 0,
        "INLINE": inline,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
    }


def rows_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, bits: int
) -> torch.Tensor:
    """`x @ values.T + bias` for few rows, without tensor cores.

    Args:
        x: (M, K) fp16 or bf16.
        weight: Stored integers.
        scale: (N, G) fp16; groups consist of 32 columns or a multiple.
        bias: (N,) or `None`.
        bits: 4 or 8.

    Returns:
        (M, N) in the dtype of `x`.
    """
    rows, (out_features, columns), groups = x.shape[0], _shape(weight, bits), scale.shape[1]
    y = x.new_empty(rows, out_features)
    if y.numel() == 0:
        return y
    tile = rows_tile(device_capability(x.device), rows, (out_features, columns), columns // groups, bits)
    grid = (-(-out_features // tile.block_n), -(-rows // tile.block_m))
    _launch(
        rows_kernel, grid, _in_words(x), weight.contiguous(), scale.contiguous(), bias, y, rows, out_features, columns,
        groups, **_constants(tile, columns, bits, groups, not INTERPRETED), num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    return y


def dot_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, bits: int
) -> torch.Tensor:
    """As [`rows_linear`], on tensor cores where the architecture has them, for any number of rows."""
    rows, (out_features, columns), groups = x.shape[0], _shape(weight, bits), scale.shape[1]
    y = x.new_empty(rows, out_features)
    if y.numel() == 0:
        return y
    capability = device_capability(x.device)
    tile = dot_tile(capability, rows, (out_features, columns), columns // groups, bits)
    grid = (-(-out_features // tile.block_n), -(-rows // tile.block_m), tile.split_k)
    split = tile.split_k > 1
    sums = torch.empty(tile.split_k, rows, out_features, dtype=torch.float32, device=x.device) if split else y
    _launch(
        dot_kernel, grid, _in_words(x), weight.contiguous(), scale.contiguous(), None if split else bias, sums, rows,
        out_features, columns, groups, **_constants(tile, columns, bits, groups, _inline(capability)),
        DOT=_dot_dtype(x.dtype, capability), SPLIT_K=tile.split_k, num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    if split:
        _finish(sums, None, bias, y)
    return y


def _inline(capability: int) -> bool:
    return architecture(capability).inline and not INTERPRETED


def _dot_dtype(dtype: torch.dtype, capability: int) -> Any:
    if not _inline(capability):  # the interpreter multiplies bit patterns of bf16; Turing has no bf16
        return tl.float32
    return tl.float16 if dtype == torch.float16 else tl.bfloat16


def _finish(parts: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """Writes the sum of (P, M, N) parts, times (N, 1) scales, plus a bias, into y (M, N)."""
    block = 256
    _launch(
        finish_kernel, (-(-y.shape[1] // block), y.shape[0]), parts, scale, bias, y, *y.shape, PARTS=parts.shape[0],
        BLOCK_N=block, num_warps=4,
    )  # fmt: skip


def _dequantize(
    weight: torch.Tensor, scale: torch.Tensor, bits: int, begin: int, end: int, values: torch.Tensor, scaled: bool
) -> None:
    """Writes values (or integers) of the bytes begin..end of each row into (N, columns)."""
    rows, stride, groups = scale.shape[0], weight.shape[-1], scale.shape[1]
    block_n, block_bytes = 8, 256 if bits == 4 else 512
    _launch(
        dequantize_kernel, (-(-rows // block_n), -(-(end - begin) // block_bytes)), weight, scale, values, rows,
        stride, begin, end, stride * (8 // bits), groups, BITS=bits, GROUPED=groups > 1, SCALED=scaled,
        INLINE=not INTERPRETED, BLOCK_N=block_n, BYTES=block_bytes, num_warps=4,
    )  # fmt: skip


def dequantized_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, bits: int
) -> torch.Tensor:
    """As [`rows_linear`], for many rows, groups of any size and fp32 too: values in chunks, then a plain product.

    bf16 with one scale a row multiplies the integers and scales the result; else values are rounded to fp16 as in the
    original and then to the dtype of `x`.
    """
    (out_features, columns), scale = _shape(weight, bits), scale.contiguous()
    y = x.new_empty(x.shape[0], out_features)
    if y.numel() == 0:
        return y
    integers = x.dtype == torch.bfloat16 and scale.shape[1] == 1
    stored = weight.contiguous().view(out_features, -1)
    height = min(out_features, max(16, CHUNK_BYTES // (columns * x.element_size())))
    values = x.new_empty(height, columns)
    for first in range(0, out_features, height):
        part = slice(first, min(first + height, out_features))
        chunk = values[: part.stop - first]
        _dequantize(stored[part], scale[part], bits, 0, stored.shape[1], chunk, not integers)
        torch.mm(x, chunk.t(), out=y[:, part])
    if integers or bias is not None:
        _finish(y[None], scale if integers else None, bias, y)
    return y


def transposed(y: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """`y @ values`, the gradient of a linear's input, in chunks of columns: no sum is cut.

    Args:
        y: (M, N) fp32, fp16 or bf16.
        weight: Stored integers.
        scale: (N, G) fp16.
        bits: 4 or 8.

    Returns:
        (M, K) in the dtype of `y`.
    """
    (rows, columns), scale = _shape(weight, bits), scale.contiguous()
    x = y.new_empty(y.shape[0], columns)
    if x.numel() == 0:
        return x
    stored = weight.contiguous().view(rows, -1)
    width, per_byte = stored.shape[1], 8 // bits
    at_once = min(width, max(16, CHUNK_BYTES // (rows * y.element_size() * per_byte) // 16 * 16))
    values = y.new_empty(rows * at_once * per_byte)
    for begin in range(0, width, at_once):
        end = min(begin + at_once, width)
        chunk = values[: rows * (end - begin) * per_byte].view(rows, -1)
        _dequantize(stored, scale, bits, begin, end, chunk, scaled=True)
        torch.mm(y, chunk, out=x[:, begin * per_byte : end * per_byte])
    return x


@dataclass(frozen=True)
class Variant:
    """One program as it is compiled ahead of time.

    Args:
        name: For people.
        capability: Compute capability such as 86.
        kernel: The function that Triton compiles.
        signature: Argument -> Triton's type, `"constexpr"` for constants, in the order of the function.
        constants: Values of those.
        divisible: Arguments whose value, or address, is a multiple of 16.
        num_warps: Of a program.
        num_stages: Of its loop.
        weights: Weights that one pass of its loop takes.
    """

    name: str
    capability: int
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    num_warps: int
    num_stages: int
    weights: int
    tile: Tile = field(default_factory=lambda: Tile(0, 0, 0, 0, 0))


SHAPE = (12288, 12288)  # of GLM-130B's attention, which its other linears resemble


def variants() -> Iterator[Variant]:
    """The programs that users' GPUs compile, for the table of registers and instructions.

    Yields:
        For each architecture: rows, dot, dequantize and finish, of both widths and dtypes, with one scale a row and
        in groups of 128.
    """
    pointers = {"x_ptr": "", "weight_ptr": "*i8", "scale_ptr": "*fp16", "bias_ptr": "", "y_ptr": ""}
    integers = dict.fromkeys(("M", "N", "K", "GROUPS"), "i32")
    for capability in ARCHITECTURES:
        for bits in (4, 8):
            for half in ("fp16", "bf16"):
                for group in (SHAPE[1], 128):
                    for rows in (1, 4, 5, 16, 32, 64):
                        few = rows <= 4
                        if few and not rows_limit(capability):
                            continue
                        pick = rows_tile if few else dot_tile
                        tile = pick(capability, rows, SHAPE, group, bits)
                        inline = few or architecture(capability).inline
                        constants = _constants(tile, SHAPE[1], bits, SHAPE[1] // group, inline)
                        out = half
                        if not few:
                            dtype = torch.float16 if half == "fp16" else torch.bfloat16
                            constants |= {"DOT": _dot_dtype(dtype, capability), "SPLIT_K": tile.split_k}
                            out = "fp32" if tile.split_k > 1 else half
                        signature = pointers | {"x_ptr": f"*{half}", "bias_ptr": f"*{half}", "y_ptr": f"*{out}"}
                        if out == "fp32":
                            signature["bias_ptr"] = "constexpr"
                            constants["bias_ptr"] = None
                        signature |= integers | dict.fromkeys((c for c in constants if c not in pointers), "constexpr")
                        divisible = tuple(
                            n
                            for n in ("x_ptr", "weight_ptr", "scale_ptr", "bias_ptr", "y_ptr", "N", "K")
                            if signature[n] != "constexpr"
                        )
                        yield Variant(
                            f"{'rows' if few else 'dot'} int{bits} {half} group {group} rows {rows}",
                            capability,
                            rows_kernel if few else dot_kernel,
                            signature,
                            constants,
                            divisible,
                            tile.num_warps,
                            tile.num_stages,
                            tile.block_n * tile.block_k,
                            tile,
                        )


__all__ = ["device_capability", "dequantized_linear", "dot_linear", "problem", "rows_linear", "transposed", "variants"]
