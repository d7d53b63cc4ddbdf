"""Sets of bytes as sorted ranges [start, stop) that neither touch nor overlap."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

Range = tuple[int, int]
"""First byte, and the byte behind the last."""


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The set of all bytes in some ranges, which may overlap and be in any order."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if start >= stop:
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return found


def without(ranges: Sequence[Range], taken: Sequence[Range]) -> list[Range]:
    """The bytes of a set that are not in another."""
    left: list[Range] = []
    number = 0
    for start, stop in ranges:
        while number < len(taken) and taken[number][1] <= start:
            number += 1
        ahead = number
        while start < stop and ahead < len(taken) and taken[ahead][0] < stop:
            if start < taken[ahead][0]:
                left.append((start, taken[ahead][0]))
            start = max(start, taken[ahead][1])
            ahead += 1
        if start < stop:
            left.append((start, stop))
    return left


def whole_blocks(ranges: Iterable[Range], block: int) -> list[Range]:
    """The blocks of a file of which every byte is in a set."""
    inside = ((-(-start // block) * block, stop // block * block) for start, stop in ranges)
    return merged(inside)


def count(ranges: Iterable[Range]) -> int:
    """How many bytes there are."""
    return sum(stop - start for start, stop in ranges)


def behind(ranges: Sequence[Range], offset: int) -> int:
    """The number of the first range that ends behind a byte, of those that lie there or later."""
    number = bisect_right(ranges, (offset, offset)) - 1
    return number if number >= 0 and ranges[number][1] > offset else number + 1


def free_until(ranges: Sequence[Range], offset: int, stop: int) -> int:
    """Where the first byte of a set is, from `offset` on; `stop` if there is none before."""
    number = behind(ranges, offset)
    return min(stop, max(offset, ranges[number][0])) if number < len(ranges) else stop


__all__ = ["Range", "behind", "count", "free_until", "merged", "whole_blocks", "without"]
