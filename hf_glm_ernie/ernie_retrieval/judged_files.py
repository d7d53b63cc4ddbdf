"""Files of queries with passages that answer them and passages that do not, and files of passages.

Three forms are read, each a row a line:

- `.tsv` with the columns of RocketQA's files: `query, title, text, title, text, label` (a passage that answers and one
  that does not; the label is not read), or `query, title, text, label` (1: it answers, 0: it does not);
- `.tsv` with two columns, `query, text`: PaddleNLP's pairs for in-batch negatives;
- `.jsonl`: `{"query", "pos": [...], "neg": [...]}`, as FlagEmbedding's files, `neg` may be left out. A passage is a
  string or `{"title", "text"}`.

A file of passages is a `.tsv` of `title, text`, or of RocketQA's four columns, or a `.jsonl` of passages.

Sources: PaddlePaddle/RocketQA, `rocketqa/reader/reader_de_train.py` and `reader_ce_train.py`, `examples/data`,
`research/DuReader-Retrieval-Baseline`; PaddleNLP, `applications/neural_search/recall/in_batch_negative`. RocketQA's
readers also take every blank out of Chinese files, those between English words among them; here they stay.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

Passage = str | tuple[str, str]
"""A text, or a title (it may be empty) and a text."""

COLUMNS = {2: "query, text", 4: "query, title, text, label", 6: "query, title, text, title, text, label"}
PASSAGE_COLUMNS = {2: "title, text", 4: "-, title, text, label"}
LONG_FILE = 20_000_000
"""Bytes from which reading takes seconds, and has a progress bar."""


@dataclass(frozen=True)
class JudgedQuery:
    """A query, passages that answer it and passages that do not; none twice."""

    query: str
    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...]


@dataclass(frozen=True)
class _Line:
    """A line of a file, for messages."""

    place: str
    text: str

    def wrong(self, what: str) -> ValueError:
        return ValueError(f"{self.place}: {what}")


def read_queries(path: Path) -> list[JudgedQuery]:
    """Reads a file of queries with their passages; the lines of a query, wherever they stand, become one.

    Returns:
        The queries in the order of their first lines.

    Raises:
        ValueError: a form that is not known, a line that is not of the file's form, a query or a passage without text,
            a passage that both answers and does not answer a query, no line at all.
        FileNotFoundError: no such file.
    """
    judged: dict[str, tuple[dict[Passage, None], dict[Passage, None]]] = {}
    places: dict[str, str] = {}
    for line, (query, positives, negatives) in _rows(path, COLUMNS, _of_columns, _of_record):
        _check_text(line, "query", query)
        yes, no = judged.setdefault(query, ({}, {}))
        for passages, found in ((positives, yes), (negatives, no)):
            for passage in passages:
                _check_passage(line, passage)
                found[passage] = None
        places.setdefault(query, line.place)
        if both := next((passage for passage in (*positives, *negatives) if passage in yes and passage in no), None):
            raise line.wrong(f"the passage {_short(both)} both answers and does not answer the query {_short(query)}.")
    return [JudgedQuery(query, tuple(yes), tuple(no)) for query, (yes, no) in judged.items()]


def read_passages(path: Path) -> list[Passage]:
    """Reads a file of passages, each once, in order. Raises as [`read_queries`]."""
    passages: dict[Passage, None] = {}
    for line, passage in _rows(path, PASSAGE_COLUMNS, _passage_of_columns, _passage_of_record):
        _check_passage(line, passage)
        passages[passage] = None
    return list(passages)


def _rows(
    path: Path,
    columns: dict[int, str],
    of_columns: Callable[[_Line, list[str]], Any],
    of_record: Callable[[_Line, Any], Any],
) -> Iterator[tuple[_Line, Any]]:
    """The rows of a file, each with its line."""
    if path.suffix not in (".tsv", ".jsonl"):
        raise ValueError(f"{path} is neither a .tsv nor a .jsonl file.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    expected: int | None = None
    found = False
    for line in _lines(path):
        found = True
        if path.suffix == ".jsonl":
            try:
                record = json.loads(line.text)
            except json.JSONDecodeError as error:
                raise line.wrong(f"this is no JSON: {error}.") from error
            yield line, of_record(line, record)
            continue
        cells = line.text.split("\t")
        expected = expected or len(cells)
        if len(cells) != expected or expected not in columns:
            allowed = "; ".join(f"{number} ({names})" for number, names in columns.items())
            before = f" The lines before have {expected}." if len(cells) != expected else ""
            raise line.wrong(f"{len(cells)} columns, where one of these is wanted: {allowed}.{before}")
        yield line, of_columns(line, cells)
    if not found:
        raise ValueError(f"{path} has no lines.")


def _lines(path: Path) -> Iterator[_Line]:
    """Lines that are not blank. Only line feeds end one: texts hold the other characters that Python splits at."""
    size = path.stat().st_size
    with (
        path.open(encoding="utf-8", newline="\n") as file,
        tqdm(total=size, desc=f"reading {path.name}", unit="B", unit_scale=True, disable=size < LONG_FILE) as bar,
    ):
        for number, text in enumerate(file, 1):
            bar.update(len(text.encode()))
            if text.strip():
                yield _Line(f"{path}:{number}", text.rstrip("\r\n"))


def _of_columns(line: _Line, cells: list[str]) -> tuple[str, list[Passage], list[Passage]]:
    if len(cells) == 2:
        return cells[0], [cells[1]], []
    if len(cells) == 6:
        return cells[0], [(cells[1], cells[2])], [(cells[3], cells[4])]
    passage: list[Passage] = [(cells[1], cells[2])]
    if cells[3] not in ("0", "1"):
        raise line.wrong(f"the label {cells[3]!r} is neither 1 (the passage answers the query) nor 0.")
    return (cells[0], passage, []) if cells[3] == "1" else (cells[0], [], passage)


def _of_record(line: _Line, record: Any) -> tuple[str, list[Passage], list[Passage]]:
    if not isinstance(record, dict) or not {"query", "pos"} <= set(record):
        raise line.wrong(f"a row has query, pos and, where there are, neg; found {_short(record)}.")
    lists = [record["pos"], record.get("neg") or []]
    if not all(isinstance(passages, list) for passages in lists) or not lists[0]:
        raise line.wrong("pos is a list of at least one passage, neg a list.")
    positives, negatives = ([_passage_of_record(line, passage) for passage in passages] for passages in lists)
    return record["query"], positives, negatives


def _passage_of_columns(line: _Line, cells: list[str]) -> Passage:
    return (cells[0], cells[1]) if len(cells) == 2 else (cells[1], cells[2])


def _passage_of_record(line: _Line, record: Any) -> Passage:
    if isinstance(record, dict) and set(record) <= {"title", "text"} and "text" in record:
        return (record["title"] or "", record["text"]) if "title" in record else record["text"]
    if isinstance(record, str):
        return record
    raise line.wrong(f"a passage is a string or {{'title': ..., 'text': ...}}; found {_short(record)}.")


def _check_passage(line: _Line, passage: Passage) -> None:
    title, text = ("", passage) if isinstance(passage, str) else passage
    for what, value in (("title", title), ("text", text)):
        if not isinstance(passage, str) and not isinstance(value, str):
            raise line.wrong(f"the {what} {_short(value)} is no string.")
    if not title.strip():
        _check_text(line, "passage", text)


def _check_text(line: _Line, what: str, text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise line.wrong(f"a {what} without text: {_short(text)}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def have_titles(passages: Sequence[Passage]) -> bool:
    """Whether one of them has a title beside it, if only an empty one."""
    return any(not isinstance(passage, str) for passage in passages)


__all__ = ["JudgedQuery", "Passage", "have_titles", "read_passages", "read_queries"]
