"""The hostile inputs by theme: each is given the number of damaged files asked for, and most do not need it."""

from collections.abc import Callable, Iterator

from .case import Case

THEMES: dict[str, Callable[[int], Iterator[Case]]] = {}

__all__ = ["THEMES"]
