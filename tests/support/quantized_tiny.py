"""Tiny quantized checkpoints in the released layout, and what the converter should make of them.

Integers and scales are random, every bit pattern among the integers: nothing of them is computed, so a mistake in
rearranging shows wherever it is. Like `tiny`, this knows neither the converter's table nor its rules for storage.
"""

from dataclasses import replace
from pathlib import Path

import torch

from .converting import SIZES
from .tiny import Sizes, State, expected_state, rank_path, rank_state, whole_state

WIDE = replace(SIZES, inner=48)
"""Eight ranks of it hold an even number of columns each, as 4 bits need."""

LINEARS = ("attention.query_key_value", "attention.dense", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h")
CUT_BY_COLUMNS = ("attention.dense", "mlp.dense_4h_to_h")


def whole_quantized(bits: int, ranks: int, sizes: Sizes = WIDE, seed: int = 0) -> State:
    """All ranks together: integers side by side, scales (rows, ranks) where the ranks cut columns, else (rows,)."""
    generator = torch.Generator().manual_seed(seed + 1)
    state: State = {}
    for name, tensor in whole_state(sizes, seed).items():
        if not name.endswith(tuple(f"{linear}.weight" for linear in LINEARS)):
            state[name] = tensor
            continue
        rows, columns = tensor.shape
        width = columns if bits == 8 else columns // 2
        by_columns = name.endswith(tuple(f"{linear}.weight" for linear in CUT_BY_COLUMNS))
        state[name] = torch.randint(-128, 128, (rows, width), generator=generator, dtype=torch.int8)
        scales = torch.rand((rows, ranks) if by_columns else (rows,), generator=generator)
        state[f"{name}_scale"] = (scales + 0.01).half()
    return state


def rank_quantized(whole: State, rank: int, ranks: int) -> State:
    """One rank's part. With more ranks than scales a row, neighbours hold copies."""
    part = rank_state(whole, rank, ranks)
    for name, tensor in whole.items():
        if name.endswith("_scale") and tensor.ndim == 2:
            part[name] = tensor[:, rank * tensor.shape[1] // ranks].clone()
    return part


def expected_quantized(whole: State, bits: int, sizes: Sizes = WIDE) -> State:
    """What the converted folder should hold."""
    state = expected_state(whole, sizes)
    for name, tensor in state.items():
        if name.endswith("_scale") and tensor.ndim == 1:
            state[name] = tensor[:, None]
        elif tensor.dtype == torch.int8 and bits == 8:
            state[name] = tensor[None]
    return state


def write_quantized(folder: Path, whole: State, ranks: int, iteration: str = "49300") -> Path:
    """Writes a whole quantized state in the released layout; returns the folder."""
    (folder / iteration).mkdir(parents=True)
    (folder / "latest").write_text(iteration)
    for rank in range(ranks):
        torch.save({"module": rank_quantized(whole, rank, ranks)}, rank_path(folder, rank, iteration))
    return folder


def values(state: State) -> State:
    """A converted folder's tensors with integers times scales in place of both, column by column."""
    result: State = {}
    for name, tensor in state.items():
        if name.endswith("_scale"):
            continue
        scale = state.get(f"{name}_scale")
        if scale is None:
            result[name] = tensor
            continue
        q = tensor[0] if tensor.ndim == 3 else torch.stack([tensor >> 4, (tensor << 4) >> 4], -1).flatten(1)
        columns = q.shape[1] // scale.shape[1]
        result[name] = q.half() * scale.repeat_interleave(columns, dim=1)
    return result
