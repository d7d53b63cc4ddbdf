"""JSON that somebody else wrote: read within limits, and never believed.

A file may be a gigabyte, nested a hundred thousand deep, name a key twice, spell NaN, hold 1e999, which is infinite,
or half a surrogate pair, which is no text, or be UTF-16. Python's reader takes all of that, or ends in a
RecursionError; here each is a ValueError that says what is wrong. What the values mean is checked by whoever asked for
the file.
"""

import json
import math
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from .places import Place

MAX_BYTES = 100_000_000
"""Of an index or a header: the limit of the safetensors library for its header."""

MAX_SETTINGS_BYTES = 20_000_000
"""Of a file of settings or a tokenizer's: what Python makes of so many brackets takes half a gigabyte."""

HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""Perhaps: most escapes of these are whole pairs."""

MAX_DEPTH = 64
"""Of lists and objects in one another; a configuration has about five."""


def read_json(path: Place, unique_names: bool = False, most: int | None = None) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        unique_names: Whether a name that stands twice in one object is an error, or the last one counts.
        most: Bytes it may have; default: `MAX_BYTES`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON in UTF-8, or beyond the limits.
    """
    most = MAX_BYTES if most is None else most
    if isinstance(path, Path):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("a folder, a pipe or a device, no file")
        size = found.st_size
    else:
        size = path.bytes().size
    with path.open("rb") as file:
        data = file.read(most + 1) if size <= most else b""  # some systems' files do not tell their size
    if size > most or len(data) > most:
        raise ValueError(f"{max(size, len(data)):,} bytes, the limit is {most:,}")
    return parse_json(data, unique_names)


def parse_json(data: bytes, unique_names: bool = False) -> Any:
    """The content of JSON in UTF-8, without a byte order mark, numbers that are not finite, halves of characters.

    Args:
        data: The text.
        unique_names: Whether a name that stands twice in one object is an error, or the last one counts.

    Raises:
        ValueError: it is something else; the message says what.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if text.startswith("\ufeff"):
        raise ValueError("starts with a byte order mark; save it as UTF-8 without one")
    try:
        content = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_once_each if unique_names else None,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from None
    _check_depth(content)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        _check_pairs(content)
    return content


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word}, which is no number in JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]}, which is too large for a number")
    return value


def _check_pairs(content: Any) -> None:
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.start + 1]
        raise ValueError(f"half a surrogate pair, {half!r}, which is no character") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = sorted(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
    if twice:
        raise ValueError(f"names that stand twice: {', '.join(twice)}")
    return dict(pairs)


def _check_depth(content: Any) -> None:
    """Level by level, so that no depth is too much for the check itself."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [part for part in level if isinstance(part, (dict, list))]
        if not level:
            return
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


__all__ = ["MAX_BYTES", "MAX_SETTINGS_BYTES", "parse_json", "read_json"]
