"""How the GPU kernels of integer weights cut a product into pieces: tables for each compute capability.

No kernel is tuned while it runs: timing inside a captured graph is not possible, and a table gives the same result on
every machine of a kind. The tables come from compiling every entry for every capability (no spilled registers, shared
memory that leaves room for several blocks on a multiprocessor, few instructions a weight: docs/gpu-kernels.md) and,
for the crossovers, from what other libraries measured for kernels of this kind. They have not been timed on a GPU.

A capability is an integer here, 86 for 8.6. One that is not listed takes the next lower entry.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """One block of a kernel.

    Attributes:
        rows: Rows of activations.
        outputs: Rows of the weight.
        words: 16-bit words of a row of the weight in a turn of the loop; four columns each at 4 bits, two at 8.
        num_warps: Warps of 32 threads.
        num_stages: Turns of the loop whose loads are under way at a time.
    """

    rows: int
    outputs: int
    words: int
    num_warps: int
    num_stages: int


ROWS_TILES = {
    1: Tile(1, 16, 256, 4, 2),
    2: Tile(2, 8, 256, 4, 2),
    4: Tile(4, 8, 256, 4, 2),
}
"""Of the rows kernel: rows of activations -> tile, for every capability."""

DOT_TILES = {
    75: (Tile(16, 32, 16, 4, 2),),  # Triton has no tensor cores there: ordinary multiplications
    80: (Tile(8, 128, 64, 4, 4), Tile(16, 128, 32, 4, 4), Tile(32, 128, 32, 4, 4), Tile(64, 128, 32, 8, 3)),
    86: (Tile(8, 128, 32, 4, 4), Tile(16, 128, 32, 4, 4), Tile(32, 128, 32, 4, 4), Tile(64, 128, 32, 8, 3)),
    90: (Tile(8, 128, 64, 4, 4), Tile(16, 128, 64, 4, 4), Tile(32, 128, 32, 4, 4), Tile(64, 128, 32, 8, 3)),
}
"""Of the dot kernel: capability -> tiles by rows of activations. 8.6 and 8.9 have 100 KB of shared memory, not 164."""

ROWS_LIMIT = {70: 4, 80: 0, 86: 4, 90: 0}
"""Rows up to which the rows kernel is taken. A100 and H100 cannot issue its instructions as fast as their memory
delivers weights (docs/gpu-kernels.md), so the dot kernel takes all of them there."""

CROSSOVER_WITHOUT_DOT = 28
"""The same where only the rows kernel fits, which reads the weight again for each four rows."""

CROSSOVER = {70: CROSSOVER_WITHOUT_DOT, 75: 64, 80: 64, 86: 128, 89: 256, 90: 64}
"""Rows from which dequantizing into memory and a matrix product of cuBLAS win."""

LEAST_ROWS_WORDS, LEAST_DOT_WORDS = 4, 16
WHOLE_WORDS = 32  # of a tile of a row with one scale, which may reach over the end
CHUNK_BYTES = 1 << 27
"""Of dequantized weights at a time: 128 MB, large enough for cuBLAS at full speed."""

BLOCKS_A_PROCESSOR = 2
"""Blocks that a multiprocessor should have at the least; columns are split among more blocks until it has."""

ENOUGH_BLOCKS = 1.5
"""Blocks a multiprocessor from which nothing need be split: a second launch costs more than it brings."""

BETTER_BALANCE = 0.1
"""What further parts must gain of the time that multiprocessors are busy, to be worth their sums."""


LEAST_TURNS = 4
"""Turns of the loop in a part: fewer would end before their loads are under way."""


def _at(table: dict[int, int], capability: int) -> int:
    return table[max((known for known in table if known <= capability), default=min(table))]


def rows_limit(capability: int) -> int:
    """Rows of activations up to which the rows kernel is taken."""
    return _at(ROWS_LIMIT, capability)


def crossover(capability: int, bits: int = 4, dot: bool = True) -> int:
    """Rows of activations from which dequantizing and cuBLAS are taken.

    Args:
        capability: Compute capability.
        bits: 4 or 8; no difference is known.
        dot: Whether the dot kernel takes the product.
    """
    return _at(CROSSOVER, capability) if dot else min(CROSSOVER_WITHOUT_DOT, _at(CROSSOVER, capability))


def fitting_words(words: int, group_words: int, num_groups: int, least: int) -> int | None:
    """Words of a tile that lies within one group.

    Args:
        words: Of the tile that is asked for, a power of two.
        group_words: Words of a group.
        num_groups: Groups of a row; with one the last tile may reach over the end.
        least: Fewest words that the kernel takes.

    Returns:
        The largest power of two up to `words` that divides the group, or `None`; with one group no fewer than 32.
    """
    floor = least if num_groups > 1 else max(least, min(words, WHOLE_WORDS))
    while group_words % words and words > floor:
        words //= 2
    return None if num_groups > 1 and group_words % words else words


def rows_tile(rows: int, group_words: int, num_groups: int) -> Tile | None:
    """The tile of the rows kernel, or `None` for groups that it does not take.

    Small groups take more rows of the weight a block in return, so that a block has as much to do.
    """
    tile = ROWS_TILES[1 if rows == 1 else 2 if rows == 2 else 4]
    words = fitting_words(tile.words, group_words, num_groups, LEAST_ROWS_WORDS)
    if words is None:
        return None
    outputs = min(256, tile.outputs * tile.words // words) if num_groups > 1 else tile.outputs
    return Tile(tile.rows, outputs, words, tile.num_warps, tile.num_stages)


def dot_tile(capability: int, rows: int, group_words: int, num_groups: int) -> Tile | None:
    """The tile of the dot kernel, or `None` where the capability or the groups have none."""
    listed = max((known for known in DOT_TILES if known <= capability), default=None)
    if listed is None:
        return None
    tiles = DOT_TILES[listed]
    tile = next((one for one in tiles if rows <= one.rows), tiles[-1])
    words = fitting_words(tile.words, group_words, num_groups, LEAST_DOT_WORDS)
    return None if words is None else Tile(tile.rows, tile.outputs, words, tile.num_warps, tile.num_stages)


def parts_of_columns(blocks: int, tiles: int, processors: int) -> int:
    """Into how many parts the columns are split, so that every multiprocessor has work.

    Args:
        blocks: There are without splitting.
        tiles: Turns of the loop without splitting.
        processors: Multiprocessors of the device.
    """
    least = 1 if blocks >= ENOUGH_BLOCKS * processors else -(-BLOCKS_A_PROCESSOR * processors // blocks)
    most = max(1, tiles // LEAST_TURNS)
    best, busiest = min(least, most), 0.0
    for parts in range(best, min(2 * least, most) + 1):
        at_once = blocks * -(-tiles // -(-tiles // parts))  # a last part may be empty and left out
        busy = at_once / (-(-at_once // processors) * processors)
        if busy > busiest + BETTER_BALANCE:
            best, busiest = parts, busy
    return best


def chunk_rows(width: int, dtype: torch.dtype) -> int:
    """Rows of `width` values in a chunk of dequantized weights."""
    return max(1, CHUNK_BYTES // (width * dtype.itemsize))


__all__ = ["Tile", "chunk_rows", "crossover", "dot_tile", "parts_of_columns", "rows_limit", "rows_tile"]
