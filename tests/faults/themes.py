"""The hostile inputs by theme: each is given the number of damaged files asked for, and most do not need it."""

from collections.abc import Callable, Iterator

from . import reader_cases, settings_cases
from .case import Case

THEMES: dict[str, Callable[[int], Iterator[Case]]] = {
    "settings": settings_cases.spread,
    "readers": reader_cases.cases,
}

__all__ = ["THEMES"]
