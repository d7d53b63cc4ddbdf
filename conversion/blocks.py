"""How tensors are cut into blocks of rows while they are written, and what that takes in memory.

Everything is in bytes and known before anything is read. A tensor that is copied goes through one of two buffers of a
block each. One that is computed is cut so that a block with all the temporary copies that computing it makes is as
large as a block that is copied; several are under way at once, two for each computing thread: so a thread has the next
one waiting while its last one is being written.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import torch

from .operations import matrix_shape
from .state_map import PlannedTensor

BLOCK_BYTES = 32 * 2**20
"""Size of each of the two write buffers, and at most of the stretch of the source that is in memory."""

COMPUTING_COPIES = 4
"""Copies of a block in fp32, at most: three while it is computed, its input and its result among them, and one of the
block that waits."""


def blocks_under_way(threads: int) -> int:
    """How many blocks may be read and not yet written at a time.

    Args:
        threads: How many compute.
    """
    return 2 * threads


def row_blocks(tensor: PlannedTensor, block_bytes: int) -> Iterator[tuple[int, int]]:
    """(first, behind last) row of each block: as many rows as fit `block_bytes`, at least one.

    Rows that are computed count with all the temporary copies of them.
    """
    rows = _rows(tensor)
    step = max(1, block_bytes // max(tensor.spec.row_nbytes, _computing_row_nbytes(tensor)))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def copy_peak_bytes(tensors: Iterable[PlannedTensor], block_bytes: int = BLOCK_BYTES, threads: int = 1) -> int:
    """Upper bound of what `writer.stream` takes in memory: two buffers, a stretch of the source, what is computed.

    A row wider than a block counts in full. A source is at most 4 bytes an element wide, and read whole if it is
    smaller than a block, whatever part of it a tensor needs.

    Args:
        tensors: What is written.
        block_bytes: Size of a block.
        threads: How many compute.
    """
    tensors = tuple(tensors)
    sources: Counter[tuple[int, str]] = Counter()
    for tensor in tensors:
        for piece in tensor.pieces:
            sources[piece.part, piece.source] += 4 * piece.size[0] * piece.size[1]
    largest = max((tensor.spec.nbytes for tensor in tensors), default=0)
    widest = max((4 * piece.size[1] for tensor in tensors for piece in tensor.pieces), default=0)
    buffers = 2 * max(min(block_bytes, largest), widest)
    scratch = max(min(block_bytes, max(sources.values(), default=0)), widest)
    of_blocks = [_computing_row_nbytes(tensor) * _rows_of_first_block(tensor, block_bytes) for tensor in tensors]
    of_all = sum(_computing_row_nbytes(tensor) * _rows(tensor) for tensor in tensors)
    return buffers + scratch + min(threads * max(of_blocks, default=0), of_all)


def _rows(tensor: PlannedTensor) -> int:
    return tensor.spec.nbytes // tensor.spec.row_nbytes


def _rows_of_first_block(tensor: PlannedTensor, block_bytes: int) -> int:
    return next((stop for _, stop in row_blocks(tensor, block_bytes)), 0)


def _computing_row_nbytes(tensor: PlannedTensor) -> int:
    """Bytes that computing one row takes; 0 for a tensor that is copied."""
    if tensor.computation is None:
        return 0
    return COMPUTING_COPIES * torch.float32.itemsize * matrix_shape(tensor.computation.gathered.shape)[1]


__all__ = ["BLOCK_BYTES", "COMPUTING_COPIES", "blocks_under_way", "copy_peak_bytes", "row_blocks"]
