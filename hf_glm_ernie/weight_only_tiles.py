"""Tiles of the GPU kernels: tables per architecture instead of tuning at run time, which a graph capture forbids.

A tile is a piece of the weight that one program of a kernel takes at a time. The tables hold what compiles without a
spill and keeps enough bytes in flight (docs/quantization.md, "On GPUs"); nothing here needs Triton or a GPU.
"""

from dataclasses import dataclass
from functools import lru_cache

MIN_GROUP = 32  # columns; a tile of fewer has less than two steps of a tensor core
MAX_SPLIT = 16
MIN_TILES_PER_SPLIT = 4  # else filling the pipeline takes longer than what it carries


@dataclass(frozen=True)
class Tile:
    """Piece of a weight that one program takes at a time.

    Args:
        block_n: Rows of the weight, which are columns of the result.
        block_k: Columns of the weight.
        block_m: Rows of the activations.
        num_warps: Of a program.
        num_stages: Tiles under way from memory at once.
        split_k: Programs that share the columns of the same rows; their sums are added in order by a second kernel.
    """

    block_n: int
    block_k: int
    block_m: int
    num_warps: int
    num_stages: int
    split_k: int = 1


@dataclass(frozen=True)
class Architecture:
    """What the choice of kernels and tiles needs to know of an architecture.

    Args:
        multiprocessors: Of a common card; the number of programs wanted follows.
        rows_limit: Rows up to which the kernel without tensor cores is used.
        crossover: Bits -> rows from which dequantizing and a plain matrix product is faster.
        inline: Whether integers are spread by inline instructions, and tensor cores used.
    """

    multiprocessors: int
    rows_limit: int
    crossover: dict[int, int]
    inline: bool = True


# Compute capability -> what holds for it and for later ones up to the next row.
ARCHITECTURES = {
    70: Architecture(80, 4, {4: 17, 8: 17}, inline=False),  # V100
    75: Architecture(68, 4, {4: 65, 8: 65}, inline=False),  # 2080 Ti: Triton has no tensor cores there
    80: Architecture(108, 0, {4: 65, 8: 65}),  # A100: without tensor cores instructions would take longer than bytes
    86: Architecture(82, 2, {4: 129, 8: 129}),  # 3090
    89: Architecture(128, 2, {4: 257, 8: 257}),  # 4090
    90: Architecture(132, 0, {4: 65, 8: 65}),  # H100, H200; later ones are taken for these
}


def architecture(capability: int) -> Architecture:
    """The row of the table for a compute capability, such as 86.

    Raises:
        ValueError: older than 7.0, for which there are no kernels.
    """
    known = [number for number in ARCHITECTURES if number <= capability]
    if not known:
        raise ValueError(f"compute capability {capability}: the kernels are for {min(ARCHITECTURES)} and later.")
    return ARCHITECTURES[max(known)]


def rows_limit(capability: int) -> int:
    """Rows of activations up to which the kernel without tensor cores is used; 0 where it never is."""
    return architecture(capability).rows_limit


def crossover(capability: int, bits: int) -> int:
    """Rows of activations from which dequantizing and a plain matrix product is faster."""
    return architecture(capability).crossover[bits]


def fitting_columns(wanted: int, group: int, columns: int) -> int:
    """Columns of a tile: a power of two up to `wanted` that lies within one group.

    Args:
        wanted: Of the table.
        group: Columns of a group.
        columns: Of the weight; with one group a last tile may reach beyond them.

    Returns:
        A power of two; 0 where groups do not consist of tiles of at least 32 columns.
    """
    block = wanted
    if group == columns:  # one scale a row
        while block > MIN_GROUP and block // 2 >= columns:
            block //= 2
        return block
    while block >= MIN_GROUP and group % block:
        block //= 2
    return block if block >= MIN_GROUP else 0


@lru_cache(maxsize=1024)
def rows_tile(capability: int, rows: int, shape: tuple[int, int], group: int, bits: int) -> Tile:
    """Tile of the kernel for few rows.

    Args:
        capability: Compute capability.
        rows: Of the activations, 1..4.
        shape: (N, K) of the weight.
        group: Columns of a group.
        bits: 4 or 8.
    """
    block_m = 1 if rows == 1 else 2 if rows == 2 else 4
    block_k = fitting_columns(512 if bits == 4 else 256, group, shape[1])
    return Tile(block_n=8 if block_m == 4 else 16, block_k=block_k, block_m=block_m, num_warps=4, num_stages=3)


@lru_cache(maxsize=1024)
def dot_tile(capability: int, rows: int, shape: tuple[int, int], group: int, bits: int) -> Tile:
    """Tile of the kernel that multiplies by `tl.dot`.

    Args:
        capability: Compute capability.
        rows: Of the activations.
        shape: (N, K) of the weight.
        group: Columns of a group.
        bits: 4 or 8.
    """
    card = architecture(capability)
    if not card.inline:
        tile = Tile(block_n=32, block_k=fitting_columns(64, group, shape[1]), block_m=16, num_warps=4, num_stages=2)
    else:
        block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
        wanted = (256 if bits == 4 else 128) // (1 if block_m == 16 else 2)
        block_k = fitting_columns(wanted, group, shape[1])
        tile = Tile(block_n=64, block_k=block_k, block_m=block_m, num_warps=4, num_stages=4)
    return _split(tile, rows, shape, 4 * card.multiprocessors)


def _split(tile: Tile, rows: int, shape: tuple[int, int], wanted: int) -> Tile:
    """The tile with its columns shared by so many programs that about `wanted` are at work."""
    programs = -(-shape[0] // tile.block_n) * -(-rows // tile.block_m)
    tiles = -(-shape[1] // tile.block_k)
    split = 1
    while split < MAX_SPLIT and 2 * split * programs <= wanted and tiles >= 2 * split * MIN_TILES_PER_SPLIT:
        split *= 2
    return Tile(tile.block_n, tile.block_k, tile.block_m, tile.num_warps, tile.num_stages, split)


__all__ = ["Tile", "crossover", "dot_tile", "rows_limit", "rows_tile"]
