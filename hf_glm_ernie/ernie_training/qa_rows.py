"""Questions about texts as rows, from the files in which CMRC 2018, DRCD and SQuAD are handed out.

A row is `{"id", "context", "question", "answers": {"text": [...], "answer_start": [...]}}`: that of `datasets`. Read
are files of such rows; of rows whose `answers` are a list of `{"text", "answer_start"}`; and JSON that nests questions
in paragraphs, `{"data": [{"paragraphs": [{"context", "qas": [...]}]}]}` (SQuAD, and CMRC 2018 as CLUE has it), where
`is_impossible` questions have no answer.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .data_files import read_data, rows_dataset

COLUMNS = ("context", "question", "answers")
COLUMNS_OF_ANSWERS = ("text", "answer_start")


def read_questions(file: Path) -> Any:
    """Reads a file: a `datasets.Dataset` of rows.

    Raises:
        ValueError: a file of an unknown kind, without a column, or a paragraph, question or answer that lacks what
            it must have.
        FileNotFoundError: no such file.
        ImportError: no `datasets`.
    """
    nested = nested_questions(file)
    if nested is not None:
        return rows_dataset(nested)
    dataset = read_data(file, COLUMNS)
    rows = [
        {"id": str(i), **row, "answers": plain_answers(row["answers"], f"{file}, row {i}")}
        for i, row in enumerate(dataset)
    ]
    return rows_dataset([{name: row[name] for name in ("id", *COLUMNS)} for row in rows])


def nested_questions(file: Path) -> list[dict[str, Any]] | None:
    """The rows of a JSON file that nests questions in paragraphs; `None` for any other file."""
    if file.suffix != ".json" or not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # a row a line
        return None
    if isinstance(content, Mapping) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list) or not all(isinstance(one, Mapping) and "paragraphs" in one for one in content):
        return None
    return list(_rows(content, file))


def _rows(articles: list[Mapping[str, Any]], file: Path) -> Iterator[dict[str, Any]]:
    for number, article in enumerate(articles):
        for place, paragraph in enumerate(article["paragraphs"]):
            where = f"{file}, data[{number}].paragraphs[{place}]"
            context, asked = (_of(paragraph, name, where) for name in ("context", "qas"))
            for i, one in enumerate(asked):
                of_question = f"{where}.qas[{i}]"
                answers = [] if one.get("is_impossible") else one.get("answers")
                yield {
                    "id": str(one.get("id", f"{number}-{place}-{i}")),
                    "context": context,
                    "question": _of(one, "question", of_question),
                    "answers": plain_answers(answers, of_question),
                }


def _of(record: Mapping[str, Any], name: str, where: str) -> Any:
    if not isinstance(record, Mapping) or name not in record:
        found = ", ".join(record) if isinstance(record, Mapping) else type(record).__name__
        raise ValueError(f"{where} has no {name!r}; it has {found}.")
    return record[name]


def plain_answers(answers: Any, where: str) -> dict[str, list[Any]]:
    """Answers as two lists of the same length, empty ones where there is no answer.

    Args:
        answers: Two lists in a dict, a list of dicts with `text` and `answer_start`, or `None`.
        where: The row, for the message.

    Raises:
        ValueError: anything else.
    """
    if isinstance(answers, list):
        texts, starts = ([_of(one, name, f"{where}, an answer") for one in answers] for name in COLUMNS_OF_ANSWERS)
    elif isinstance(answers, Mapping):
        texts, starts = (list(answers.get(name) or ()) for name in COLUMNS_OF_ANSWERS)
    elif answers is None:
        texts, starts = [], []
    else:
        raise ValueError(f"{where} has the answers {answers!r}; they are {{'text': [...], 'answer_start': [...]}}.")
    if len(texts) != len(starts) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where} has the answers {answers!r}: each text has one answer_start.")
    if not all(isinstance(start, int) for start in starts):
        raise ValueError(f"{where} has the answers {answers!r}: answer_start is a number of a character.")
    return {"text": texts, "answer_start": starts}


__all__ = ["COLUMNS", "nested_questions", "plain_answers", "read_questions"]
