"""Cases that are a source with some of its files replaced."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .case import Case
from .sources import source

MEGABYTE = "m" * 10**6
DEEP = "[" * 100_000 + "]" * 100_000


def change(name: str, kind: str, changes: Mapping[str, Any], may_pass: bool = False) -> Case:
    """A source with some files replaced or left out.

    Args:
        name: Of the case.
        kind: Of the source.
        changes: File -> its content, a function that makes it of the old one, or None.
        may_pass: Whether it may be accepted.
    """
    return Case(name, partial(_changed, kind, changes), may_pass)


def _changed(kind: str, changes: Mapping[str, Any], folder: Path) -> list[str]:
    made = source(kind)
    return made.write(folder, {name: new(made.files[name]) if callable(new) else new for name, new in changes.items()})


__all__ = ["DEEP", "MEGABYTE", "change"]
