"""The numbers of layers in tensors' names. A name is a claim: `layers.100000000.` makes no model of that depth."""

import re
from collections.abc import Collection

from .lazy_files import CheckpointError

NUMBER = "(?:0|[1-9][0-9]{0,5})"
"""As a regular expression: without leading zeros, of ASCII digits, and of no more than any model could need."""

MAX_LAYERS = 1000
"""The deepest published models have some hundreds; GLM-130B has 70."""
SHOWN = 8


def without_gaps(layers: Collection[int], what: str, where: object, start: int = 0, counted: str = "") -> int:
    """How many layers there are, which have to be numbered one after the other.

    What is done here takes as long as there are names, whatever number is in them.

    Args:
        layers: The numbers found.
        what: Their names, for messages.
        where: The checkpoint, for messages.
        start: The first number.
        counted: Why it is that, for messages.

    Raises:
        CheckpointError: none, some missing, some below the first, more than any model has.
    """
    found = set(layers)
    last = max(found, default=start - 1)
    count = last - start + 1
    if found and min(found) >= start and count == len(found):
        if count > MAX_LAYERS:
            raise CheckpointError(
                f"{where}: {count:,} layers {what}; models of up to {MAX_LAYERS:,} layers are converted."
            )
        return count
    gaps: list[int] = []
    number = start
    while len(gaps) < SHOWN and number <= max(last, start):
        if number not in found:
            gaps.append(number)
        number += 1
    missing = max(count, 1) - sum(number >= start for number in found)
    listed = ", ".join(map(str, gaps)) + (f" and {missing - len(gaps):,} more" if missing > len(gaps) else "")
    there = ", ".join(map(str, sorted(found)[:3])) + (" ..." if len(found) > 3 else "")
    raise CheckpointError(
        f"{where}: the layers {what} should be {start}, {start + 1} ... without gaps{counted}; found "
        f"{there or 'none'}, missing {listed or 'none'}. Take the complete checkpoint."
    )


def numbers_in(names: Collection[str], pattern: re.Pattern[str]) -> set[int]:
    """The numbers in the first group of a pattern, of those names that it matches."""
    return {int(match.group(1)) for name in names if (match := pattern.match(name))}


__all__ = ["MAX_LAYERS", "NUMBER", "numbers_in", "without_gaps"]
