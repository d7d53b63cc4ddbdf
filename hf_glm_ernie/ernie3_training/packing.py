"""Several documents, or several texts, in one row: what fills a row of a fixed width with next to no padding.

Documents are cut where a row is full: a row holds the rest of the document that its stream has open, then whole
documents, then the beginning of one that the stream's next row goes on with ([`document_row`]). Texts that cannot be
cut, such as those with masked words, are laid into rows whole ([`pack_rows`]). Both number what shares a row
(`document_ids`), and `Ernie3ForPreTraining` reads each as if it had a row of its own.

Pure functions: what is open or waits is given and returned as plain numbers and lists, so that a stream can be saved.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from hf_glm_ernie.configuration_ernie3 import KNOWLEDGE_MASKED_LM, KNOWLEDGE_TEXT_PREDICTION

from .builders import IGNORED

Row = dict[str, Any]

# Tasks whose rows may share one: every label belongs to a token, none to the row.
PACKED_TASKS = (KNOWLEDGE_MASKED_LM, KNOWLEDGE_TEXT_PREDICTION)
# How many texts may wait for a row with room. With 16, rows of 512 columns are 94 % full of texts of 50 to 300 tokens.
MOST_WAITING = 16


class OpenDocument(NamedTuple):
    """A document that a row is inside of: its ids, how many of them were read, and its place in the data."""

    ids: Sequence[int]
    start: int
    place: int


def document_row(
    open_document: OpenDocument | None, following: Iterator[OpenDocument], length: int, packing: bool
) -> tuple[Row | None, OpenDocument | None]:
    """Cuts the next row of a stream of documents.

    A piece whose document goes on has one more column behind its tokens, with the attention mask 0: the token that
    comes next, a label for the piece's last one. So every token but a document's first is predicted exactly once.

    Args:
        open_document: What the stream's row before left open; `None`: nothing.
        following: The documents that nobody has read, in their order. As many are taken as fit.
        length: Columns of the row, at least 2.
        packing: Whether other documents follow the first one in the row.

    Returns:
        The row: `input_ids`, `attention_mask`, `labels` (-100 for the first token of the row and of each document),
        `memory_reset` (whether the row's first document begins in it), and with `packing` `document_ids`, from 0 on.
        `None` where nothing is left to read. And the document that is still open; with nothing of it read where the
        row's last column was too little for it.

    Raises:
        ValueError: a length below 2.
    """
    if length < 2:
        raise ValueError(f"length={length} must be at least 2: a token and the one that it predicts.")
    document = open_document or next(following, None)
    if document is None:
        return None, None
    row: Row = {"input_ids": [], "attention_mask": [], "labels": [], "memory_reset": document.start == 0}
    numbers: list[int] = []
    while document is not None:
        ids, start, _ = document
        room = length - len(row["input_ids"])
        goes_on = len(ids) - start > room
        if room < 1 + goes_on:
            break
        end = start + room - 1 if goes_on else len(ids)
        columns = list(ids[start : end + goes_on])
        row["input_ids"] += columns
        row["attention_mask"] += [1] * (end - start) + [0] * goes_on
        row["labels"] += [IGNORED, *columns[1:]]
        numbers += [numbers[-1] + 1 if numbers else 0] * len(columns)
        if goes_on:
            document = document._replace(start=end)
            break
        document = next(following, None) if packing and len(row["input_ids"]) < length else None
    return row | ({"document_ids": numbers} if packing else {}), document


def pack_rows(
    build: Callable[[int], list[Row]], count: int, length: int, waiting: Sequence[Row]
) -> tuple[list[Row], list[Row]]:
    """Lays rows into `count` rows of at most `length` columns, each where it is the first to fit.

    Rows that fit nowhere wait for the next call, which takes them first, the oldest before all others: whatever the
    sizes, none waits more than `MOST_WAITING` calls. When so many wait, the rows are as full as they get.

    Args:
        build: Makes the next so many rows, each with `input_ids`, `labels` and nothing else but `task`; fewer where
            there are no more.
        count: How many rows to fill.
        length: Columns of each at most.
        waiting: What the call before returned; at first nothing.

    Returns:
        The packed rows, `count` where there was enough: `input_ids`, `labels` and `document_ids`, from 0 on in each.
        And the rows that wait, in their order.

    Raises:
        ValueError: a row longer than `length`, or one with other columns.
    """
    packed: list[list[Row]] = [[] for _ in range(count)]
    room = [length] * count
    arriving, left_over = list(waiting), list[Row]()
    while arriving or (any(room) and (arriving := build(MOST_WAITING - len(left_over)))):
        for row in arriving:
            size = _checked_size(row, length)
            place = next((at for at in range(count) if room[at] >= size), None)
            if place is None:
                left_over.append(row)
            else:
                packed[place].append(row)
                room[place] -= size
        arriving = []
        if len(left_over) >= MOST_WAITING:
            break
    return [_joined(rows) for rows in packed if rows], left_over


def _checked_size(row: Row, length: int) -> int:
    size = len(row["input_ids"])
    if set(row) - {"task"} != {"input_ids", "labels"}:
        raise ValueError(f"A row to pack has {sorted(row)}; only rows of input_ids and labels can share one.")
    if size > length:
        raise ValueError(f"A row of {size} tokens does not fit into one of length={length}. Build it shorter.")
    return size


def _joined(rows: list[Row]) -> Row:
    return {name: value for name, value in rows[0].items() if name == "task"} | {
        "input_ids": [token for row in rows for token in row["input_ids"]],
        "labels": [label for row in rows for label in row["labels"]],
        "document_ids": [number for number, row in enumerate(rows) for _ in row["input_ids"]],
    }


__all__ = ["MOST_WAITING", "PACKED_TASKS", "OpenDocument", "document_row", "pack_rows"]
