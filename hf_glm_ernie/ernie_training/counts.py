"""Precision, recall and F1 of things that were found, from how many there are."""

from collections.abc import Hashable, Iterable, Set
from typing import NamedTuple


class Counts(NamedTuple):
    """How many were found rightly, how many were found, and how many there are."""

    correct: int
    found: int
    gold: int

    @property
    def precision(self) -> float:
        """Share of what was found that is right; 0 where nothing was found."""
        return self.correct / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Share of what there is that was found; 0 where there is nothing."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of both; 0 where nothing is right."""
        return 2 * self.precision * self.recall / (self.precision + self.recall) if self.correct else 0.0

    def scores(self) -> dict[str, float]:
        """The three under the names that the `Trainer` logs."""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1}

    def report(self) -> dict[str, float]:
        """The three, and the numbers they come from."""
        return self.scores() | {"correct": self.correct, "found": self.found, "gold": self.gold}


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of several counts."""
    return Counts(*(sum(column) for column in zip(*counts, strict=True))) if (counts := list(counts)) else NONE


def matches(found: Set[Hashable], gold: Set[Hashable]) -> Counts:
    """Counts what two sets have in common."""
    return Counts(len(found & gold), len(found), len(gold))


NONE = Counts(0, 0, 0)

__all__ = ["NONE", "Counts", "matches", "total"]
