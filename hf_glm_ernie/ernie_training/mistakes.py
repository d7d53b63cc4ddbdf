"""What is wrong in the answers to a row: which are missing, which are spurious, and which stand for one another.

An answer that overlaps one that was missed, or that took its place where only one can hold, is wrong rather than
spurious: the model saw that something is there and got its ends or its label wrong.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Mark(NamedTuple):
    """An answer: a span, an option or a class.

    Attributes:
        text: Of the span; the name of the option or class.
        start: First character of the row's text, or word of its words; negative in a prompt; `None` without a place.
        end: One past the last.
        label: Type of an entity; `None` where the row asks for one kind only.
    """

    text: str
    start: int | None = None
    end: int | None = None
    label: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What is known of it."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def compare(found: Iterable[Mark], gold: Iterable[Mark], one_holds: bool = False) -> dict[str, list[Any]]:
    """Tells apart what is wrong.

    Args:
        found: The answers, in the order in which they are to be listed.
        gold: The right ones.
        one_holds: Whether only one can hold, so that one in the place of another is wrong.

    Returns:
        `gold` and `found`, all of them; `missing` and `spurious` ones; `wrong` ones, dicts of the `gold` one that was
        meant and the `found` one. Marks are given by [`Mark.as_dict`].
    """
    found, gold = list(dict.fromkeys(found)), list(dict.fromkeys(gold))
    spurious = [one for one in found if one not in gold]
    missing, wrong = [], []
    for meant in (one for one in gold if one not in found):
        near = [one for one in spurious if one_holds or _shared(one, meant)]
        if not near:
            missing.append(meant.as_dict())
            continue
        best = max(near, key=lambda one: (_shared(one, meant), one.label == meant.label))
        spurious.remove(best)
        wrong.append({"gold": meant.as_dict(), "found": best.as_dict()})
    return {
        "gold": [one.as_dict() for one in gold],
        "found": [one.as_dict() for one in found],
        "missing": missing,
        "wrong": wrong,
        "spurious": [one.as_dict() for one in spurious],
    }


def _shared(one: Mark, other: Mark) -> int:
    """Characters that two have in common; 1 where both are options of a prompt, of which one holds."""
    if one.start is None or one.end is None or other.start is None or other.end is None:
        return 0
    if one.start < 0 and other.start < 0:
        return 1
    return max(0, min(one.end, other.end) - max(one.start, other.start))


__all__ = ["Mark", "compare"]
