"""The hostile inputs by theme: each is given how many are wanted of those that are damaged at random or sampled."""

from collections.abc import Callable, Iterator

from . import publish_cases, reader_cases, settings_cases
from .case import Case

THEMES: dict[str, Callable[[int], Iterator[Case]]] = {
    "settings": settings_cases.spread,
    "readers": reader_cases.cases,
    "publish-folders": lambda number: publish_cases.cases(),
}
SHORT: dict[str, Callable[[], Iterator[Case]]] = {
    "settings": lambda: (case for case in settings_cases.cases() if case.name in settings_cases.SHORT),
    "readers": lambda: (
        case for case in reader_cases.cases(12) if case.name in reader_cases.SHORT or "mutant" in case.name
    ),
    "publish-folders": lambda: (case for case in publish_cases.cases() if case.name in publish_cases.SHORT),
}
"""A few of each."""

__all__ = ["SHORT", "THEMES"]
