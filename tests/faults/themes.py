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
    "settings": lambda: _named(settings_cases.cases(), settings_cases.SHORT),
    "readers": lambda: _named(reader_cases.cases(12), reader_cases.SHORT, "mutant"),
    "publish-folders": lambda: _named(publish_cases.cases(), publish_cases.SHORT),
}
"""A few of each."""


def _named(cases: Iterator[Case], names: tuple[str, ...], word: str | None = None) -> Iterator[Case]:
    """Those of some names, and those whose name has a word."""
    return (case for case in cases if case.name in names or (word is not None and word in case.name))


__all__ = ["SHORT", "THEMES"]
