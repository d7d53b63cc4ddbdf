"""JSON that somebody else wrote: read within limits, and never believed.

A file may be a gigabyte, nested a hundred thousand deep, name a key twice, spell NaN, or be UTF-16. Python's reader
takes all of that, or ends in a RecursionError; here each is a ValueError that says what is wrong. What the values mean
is checked by whoever asked for the file.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

MAX_BYTES = 100_000_000
"""Of a file of settings, an index or a header: the limit of the safetensors library for its header."""

HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""Perhaps: most escapes of these are whole pairs."""

MAX_DEPTH = 64
"""Of lists and objects in one another; a configuration has about five."""


def read_json(path: Path, unique_names: bool = False) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        unique_names: Whether a name that stands twice in one object is an error, or the last one counts.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON in UTF-8, or beyond the limits.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes, the limit is {MAX_BYTES:,}")
    return parse_json(path.read_bytes(), unique_names)


def parse_json(data: bytes, unique_names: bool = False) -> Any:
    """The content of JSON in UTF-8, without a byte order mark, NaN and Infinity.

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
            text, parse_constant=_refuse_constant, object_pairs_hook=_once_each if unique_names else None
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from None
    _check_depth(content)
    if HALF_PAIR.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("holds half a surrogate pair, which is no text") from None
    return content


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word}, which is no number in JSON")


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


__all__ = ["MAX_BYTES", "parse_json", "read_json"]
