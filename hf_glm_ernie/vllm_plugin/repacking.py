"""From the integers as we store them to the words that vLLM's mixed-precision kernels read; functions on tensors only.

Ours (`hf_glm_ernie/weight_only.py`): signed integers of a weight (N, K), int8; with 4 bits two columns a byte, the
even column in the *high* nibble; fp16 scales (N, G), symmetric, G any number of groups that divides K.

vLLM's `uint4b8` and `uint8b128`: unsigned integers, the signed value plus 8 or 128, packed along the input into int32
words (N, K * bits / 32), the first column in the *lowest* bits (compressed-tensors' order, from which each kernel
makes its own); scales (N, K / group) for groups of 32, 64 or 128 columns, or one for a whole row.

So 4-bit bytes have their nibbles exchanged and both have the highest bit of every integer flipped, which adds half the
range: no integer is ever unpacked. A byte order is not asked for: bytes become words as the machine, always a
little-endian one, lays them. Scales of larger groups are repeated until a kernel takes their size: the same values.
"""

import math

import torch

from hf_glm_ernie.weight_only import SUPPORTED_BITS, storage_shape

WORD = 32  # bits
WHOLE_ROW = -1  # how vLLM writes one group a row
GROUP_SIZES = (128, 64, 32)  # the larger ones first: fewer scales to read
HALF_RANGE = {4: 0x88, 8: 0x80}  # the highest bit of every integer of a byte


def packed_words(stored: torch.Tensor, bits: int) -> torch.Tensor:
    """Stored integers as the words that `uint4b8` or `uint8b128` kernels read.

    Args:
        stored: int8, (N, K / 2) for 4 bits and (1, N, K) for 8, contiguous or not.
        bits: 4 or 8.

    Returns:
        int32 (N, K * bits / 32): column j of a row lies in the bits `bits * j` and above, as the value plus half the
        range.

    Raises:
        TypeError: not int8.
        ValueError: other bits, another shape, or columns that do not fill whole words.
    """
    if stored.dtype != torch.int8:
        raise TypeError(f"stored integers are {stored.dtype}; they are torch.int8.")
    if bits not in SUPPORTED_BITS:
        raise ValueError(f"bits={bits!r}: there are 4 and 8.")
    if stored.ndim != len(storage_shape(1, 2, bits)) or (bits == 8 and stored.shape[0] != 1):
        raise ValueError(f"stored integers of shape {tuple(stored.shape)} are none of {bits} bits.")
    rows = stored if bits == 4 else stored[0]
    if not fills_words(rows.shape[1] * 8 // bits, bits):
        raise ValueError(
            f"stored integers have {rows.shape[1] * 8 // bits} columns, which do not fill words of {WORD // bits}."
        )
    octets = rows.contiguous().view(torch.uint8)
    if bits == 4:
        octets = (octets << 4) | (octets >> 4)
    return (octets ^ HALF_RANGE[bits]).view(torch.int32)


def fills_words(columns: int, bits: int) -> bool:
    """Whether rows of so many integers fill whole words."""
    return columns * bits % WORD == 0


def shared_groups(groups: list[int], ranks: int) -> int:
    """The fewest groups in which weights side by side, cut among ranks, all keep their values.

    Args:
        groups: Groups G of each of the weights, which have the same columns.
        ranks: How many parts the columns are cut into.

    Returns:
        A number that every one of `groups` divides, and `ranks` too. It divides the columns where all these do.
    """
    return math.lcm(*groups, ranks)


def repeated_scales(scale: torch.Tensor, groups: int) -> torch.Tensor:
    """Scales of larger groups as those of smaller ones.

    Args:
        scale: (N, G).
        groups: A multiple of G.

    Returns:
        (N, groups): the value of an integer is the one it had.

    Raises:
        ValueError: not two axes, or no multiple.
    """
    if scale.ndim != 2 or groups % scale.shape[1]:
        raise ValueError(f"scales of shape {tuple(scale.shape)} cannot be repeated to {groups} groups a row.")
    return scale.repeat_interleave(groups // scale.shape[1], dim=1)


def group_sizes(columns: int, groups: int) -> list[int]:
    """The group sizes to ask kernels for, the best first.

    Args:
        columns: K, of this rank.
        groups: G, of this rank.

    Returns:
        Of -1 (one group a row), 128, 64 and 32 those that leave every value as it is; none where groups are smaller
        than 32 columns or not a multiple of it.
    """
    width = columns // groups
    whole = [WHOLE_ROW] if groups == 1 else []
    return whole + [size for size in GROUP_SIZES if width % size == 0]


__all__ = ["fills_words", "group_sizes", "packed_words", "repeated_scales", "shared_groups"]
