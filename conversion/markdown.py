"""Text out of files, put into Markdown so that it stays text: no links, images, HTML, tables or code come of it."""

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"[\\`*_\[\]<>|~$&]")
_AUTOMATIC = re.compile(r"(?i)(?<=\w)(?=://)|(?<=\bwww)(?=\.)|(?=@)")
LONGEST = 500
"""Characters of one piece of text."""


def plain(text: object) -> str:
    """Text for a sentence or a table's cell.

    Args:
        text: Anything; line breaks and control characters become spaces.
    """
    line = _one_line(text)
    line = _SPECIAL.sub(lambda found: f"\\{found.group()}", line)
    return _AUTOMATIC.sub(r"\\", line)  # addresses become links by themselves otherwise


def code(text: object) -> str:
    """Text in a code span, also one that holds backticks."""
    line = _one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table, every cell of whose rows is text.

    Args:
        head: Of the columns.
        rows: Their cells.
    """
    lines = [list(head), ["---"] * len(head), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _one_line(text: object) -> str:
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


__all__ = ["code", "plain", "table"]
