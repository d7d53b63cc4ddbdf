"""The schema editor: what a person types, as the schema that `uie` takes.

Two ways to write one, told apart by the first character:

- JSON, as in Python: `["人物", {"公司": ["创始人", "成立时间"]}]`.
- A simple list: names separated by commas or line ends; what is asked about an answer stands behind a colon, to the
  end of the line: `公司: 创始人, 成立时间`. Commas inside brackets belong to the name (`情感倾向[正向,负向]`).
"""

import json
import re
from typing import Any

from page_refusals import Refusal

LONGEST_SCHEMA = 4_000  # characters
DEEPEST_SCHEMA = 32  # levels of lists and objects
MOST_NAMES = 64  # every name is a question about the text, or about every answer above it

_SEPARATORS = re.compile(r"[,，;；、](?![^\[［]*[\]］])")  # not inside the brackets of options
_COLON = re.compile(r"[:：](?![^\[［]*[\]］])")


def parse_schema(text: str) -> Any:
    """Reads a schema that was typed.

    Args:
        text: JSON or a simple list, see above.

    Returns:
        A schema as `uie` takes it; whether its names are any good is for `uie` to say.

    Raises:
        Refusal: nothing was typed, broken JSON (with its line and column), a colon with nothing on one side, or more
            than is sane to ask.
    """
    if len(text) > LONGEST_SCHEMA:
        raise Refusal("schema_long", count=len(text), most=LONGEST_SCHEMA)
    if not text.strip():
        raise Refusal("schema_empty")
    schema = _from_json(text) if text.lstrip()[0] in '[{"' else _from_lines(text)
    names = count_names(schema)
    if names > MOST_NAMES:
        raise Refusal("schema_names", count=names, most=MOST_NAMES)
    return schema


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Refusal("schema_json", line=error.lineno, column=error.colno, what=error.msg) from error
    except RecursionError as error:
        raise Refusal("schema_deep") from error


def _from_lines(text: str) -> list[Any]:
    schema: list[Any] = []
    for number, line in enumerate(text.splitlines(), 1):
        head, *below = _COLON.split(line, maxsplit=1)
        *others, last = _names(head) or [""]
        if below and not last:
            raise Refusal("schema_head", line=number, what=line.strip())
        if below and not _names(below[0]):
            raise Refusal("schema_below", line=number, what=line.strip())
        schema += others
        if last:
            schema.append({last: _names(below[0])} if below else last)
    return schema


def _names(text: str) -> list[str]:
    return [name.strip() for name in _SEPARATORS.split(text) if name.strip()]


def count_names(schema: Any) -> int:
    """How many names a schema holds, on all levels.

    Raises:
        Refusal: more levels than the page can show.
    """
    total, pending = 0, [(schema, 1)]
    while pending:
        part, level = pending.pop()
        if level > DEEPEST_SCHEMA:
            raise Refusal("schema_deep")
        if isinstance(part, dict):
            total += len(part)
            pending += [(below, level + 1) for below in part.values()]
        elif isinstance(part, list):
            pending += [(below, level + 1) for below in part]
        else:
            total += 1
    return total


__all__ = ["LONGEST_SCHEMA", "MOST_NAMES", "count_names", "parse_schema"]
