"""Files that label tools export, record by record: a million lines, or one JSON list of a gigabyte, are never held.

doccano writes JSONL, Label Studio one list of tasks. A list is decoded task by task from a buffer that holds a few of
them; one that does not end within `LONGEST_TASK` characters is no task.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .documents import AnnotationError, shown

DOCCANO, LABEL_STUDIO = "doccano", "label-studio"
FORMATS = (DOCCANO, LABEL_STUDIO)
CHUNK, LONGEST_TASK = 1 << 20, 1 << 26  # bytes, characters

MARK = b"\xef\xbb\xbf"  # that some editors put before UTF-8
BLANK = re.compile(r"[ \t\r\n]*")

Record = tuple[str, Any]
"""Where it stands in the file, and what it is; an `AnnotationError` stands for a record that is not JSON."""


def format_of(path: Path) -> str:
    """The tool that wrote a file, by its first character: `[` is Label Studio's list, anything else doccano's lines.

    Raises:
        ValueError: the file is empty.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            if first := piece.removeprefix(MARK).lstrip():
                return LABEL_STUDIO if first[:1] == b"[" else DOCCANO
    raise ValueError(f"{path} is empty: an export of doccano (JSONL) or Label Studio (JSON) is needed")


def read_records(path: Path, form: str, on_bytes: Callable[[int], object]) -> Iterator[Record]:
    """The records of a file, in order.

    Args:
        path: The export.
        form: One of `FORMATS`.
        on_bytes: Told how many bytes were read since the last time.

    Raises:
        AnnotationError: a list that is not one, or a task in it that is not JSON: what follows cannot be read.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(MARK)) == MARK:
            on_bytes(len(MARK))
        else:
            file.seek(0)
        yield from _lines(file, on_bytes) if form == DOCCANO else _tasks(file, on_bytes)


def _lines(file: IO[bytes], on_bytes: Callable[[int], object]) -> Iterator[Record]:
    for number, line in enumerate(file, 1):
        on_bytes(len(line))
        if line.strip():
            yield f"line {number}", _parsed(line)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        return AnnotationError(f"it is not UTF-8: byte {error.start} is {data[error.start : error.start + 1]!r}")
    except json.JSONDecodeError as error:
        return AnnotationError(f"it is not JSON: {error.msg} at character {error.pos + 1}: {shown(data.decode())}")
    except (ValueError, RecursionError) as error:
        return AnnotationError(f"it cannot be read as JSON: {error}")


class _Buffer:
    """The part of a text file that is being decoded."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], object]):
        self._file, self._on_bytes = file, on_bytes
        self._cut = b""  # of a character, at the end of what was read
        self.text, self.at = "", 0

    def more(self, wanted: int = 0) -> bool:
        """Reads on, `CHUNK` bytes at least; `False` at the end of the file."""
        data = self._file.read(max(CHUNK, wanted))
        self._on_bytes(len(data))
        piece = self._cut + data
        try:
            text = piece.decode()
            self._cut = b""
        except UnicodeDecodeError as error:
            if not data or len(piece) - error.start > 3:
                where = f"byte {self._file.tell() - len(piece) + error.start}"
                raise AnnotationError(
                    f"it is not UTF-8: {where} is {piece[error.start : error.start + 1]!r}"
                ) from None
            text, self._cut = piece[: error.start].decode(), piece[error.start :]
        self.text, self.at = self.text[self.at :] + text, 0
        return bool(data)

    def next_character(self) -> str:
        """The next that is not blank, not taken; empty at the end of the file."""
        while True:
            self.at = BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        """The JSON value that begins here, taken.

        Raises:
            AnnotationError: it is not JSON, or does not end.
        """
        while True:
            try:
                value, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                place, pending = error.pos - self.at + 1, len(self.text) - self.at
                # Only an error at the end can go away with more text; that of an open string is told at its start.
                open_end = error.msg.startswith(("Unterminated", "Invalid \\")) or len(self.text) - error.pos < 10
                if open_end and pending < LONGEST_TASK and self.more(pending):
                    continue
                found = shown(self.text[self.at : self.at + 99])
                raise AnnotationError(f"it is not JSON: {error.msg} at its character {place}: {found}") from None
            except (ValueError, RecursionError) as error:
                raise AnnotationError(f"it cannot be read as JSON: {error}") from None
            return value


def _tasks(file: IO[bytes], on_bytes: Callable[[int], object]) -> Iterator[Record]:
    buffer = _Buffer(file, on_bytes)
    if buffer.next_character() != "[":
        raise AnnotationError("this is no JSON list: export from Label Studio as JSON (not JSON-MIN, not CSV)")
    buffer.at += 1
    number, first = 0, buffer.next_character()
    while first != "]":
        number += 1
        if first != "{":
            raise AnnotationError(f"task {number}: {_not_a_task(first)}")
        try:
            task = buffer.value()
        except AnnotationError as error:
            raise AnnotationError(f"task {number}: {error}") from None
        yield f"task {number}" + (f" (id {shown(task['id'])})" if "id" in task else ""), task
        first = buffer.next_character()
        if first == ",":
            buffer.at += 1
            first = buffer.next_character()
            if first == "]":
                raise AnnotationError(f"behind task {number}: a comma, and no task follows it")
        elif first != "]":
            raise AnnotationError(f"behind task {number}: {_not_a_task(first)}")
    buffer.at += 1
    if rest := buffer.next_character():
        raise AnnotationError(f"behind the list of {number} tasks: {rest!r}; the file should end there")


def _not_a_task(first: str) -> str:
    return (
        f"{first!r} stands where a task (a JSON object) or the end of the list is needed"
        if first
        else ("the file ends before the list does: is the export complete?")
    )
