"""A hostile input of the command line, and what may come of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECONDS = 2.0
"""Of processor time a case may take."""

EXTRA_BYTES = 10**9
"""Of address space beside what the imported libraries have."""


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        name: What it is, unique among its kind.
        make: Fills an empty folder; returns the arguments of `python -m conversion`.
        may_pass: Whether the command may also accept it, as with a flipped bit of a weight.
    """

    name: str
    make: Callable[[Path], list[str]]
    may_pass: bool = False


__all__ = ["EXTRA_BYTES", "SECONDS", "Case"]
