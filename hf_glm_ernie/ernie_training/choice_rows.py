"""Multiple choice as rows, from the files in which C3 and CHID are handed out.

A row is `{"context", "question", "choices": [...], "label": number of the right one}`, and `group`, where rows share
choices that are right at most once. Read are files of such rows (`answer`, the right choice's text, may stand in place
of `label`), and:

- C3 as downloaded (`[[lines of the text], [{"question", "choice", "answer"}, ...], id]`, two to four choices) and as
  `datasets` has it (`context`, `question`, `choice`, `answer`);
- CHID as downloaded (a row a line, `{"candidates", "content": [...]}`, the numbers of the right idioms in the file
  `..._answer.json` beside it) and as `datasets` has it (`answers` with `candidate_id`). Every blank, `#idiom000378#`,
  becomes a row, whose question is the blank.

Source: PaddleNLP, `examples/benchmark/clue/mrc/run_c3.py` and `run_chid.py`, which read them through `datasets`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .data_files import FORMATS, check_file, read_data, rows_dataset

COLUMNS = ("context", "choices", "label")
BLANK = re.compile(r"#idiom\d*#")


def read_choices(file: Path) -> Any:
    """Reads a file, or several that a pattern names (`[dm]-train.json`): a `datasets.Dataset` of rows.

    Raises:
        ValueError: a file of an unknown kind, or a record that is none of the known forms or lacks an answer.
        FileNotFoundError: no such file, or no answers beside CHID's.
        ImportError: no `datasets`.
    """
    files = sorted(file.parent.glob(file.name)) or [file]
    rows = [row for one in files for row in _rows_of(one)]
    if not rows:
        raise ValueError(f"{file} has no rows.")
    grouped = any(row["group"] is not None for row in rows)
    return rows_dataset(rows if grouped else [{k: v for k, v in row.items() if k != "group"} for row in rows])


def _rows_of(file: Path) -> Iterator[dict[str, Any]]:
    answers: Mapping[str, int] | None = None
    for number, record in enumerate(read_records(file)):
        where = f"{file}, record {number}"
        if isinstance(record, Mapping) and "candidates" in record:
            if "answers" not in record and answers is None:
                answers = _answers_beside(file)
            yield from chid_rows(record, number, answers, where)
        else:
            yield from c3_rows(record, where) if isinstance(record, list) else [plain_row(record, where)]


def read_records(file: Path) -> list[Any]:
    """The records of a JSON file, one list or one a line, or of another file that `datasets` reads.

    Raises:
        ValueError: a file of an unknown kind, or one that is no JSON.
        FileNotFoundError: no such file.
    """
    check_file(file)
    if FORMATS.get(file.suffix) != "json":
        return list(read_data(file, ()))
    text = file.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = None
    if isinstance(content, list):
        return content
    if content is not None:
        return [content]
    records = []
    for number, line in enumerate(text.splitlines()):
        try:
            records += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number + 1} is no JSON: {error}.") from None
    return records


def plain_row(record: Any, where: str) -> dict[str, Any]:
    """A record with one question as a row; see the module's description."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is {record!r:.80}, which is no record of multiple choice.")
    context, choices = record.get("context"), record.get("choices", record.get("choice"))
    context = "\n".join(context) if isinstance(context, list) else context
    if not isinstance(context, str) or not isinstance(choices, list):
        raise ValueError(
            f"{where} has {', '.join(map(str, record))}; wanted are context, question, choices and label (or answer), "
            "C3's context, question, choice and answer, or CHID's content and candidates."
        )
    label = record.get("label")
    if label is None:
        label = _place(record.get("answer"), choices, where)
    return _row(context, record.get("question") or "", choices, label, record.get("group"), where)


def c3_rows(record: Sequence[Any], where: str) -> Iterator[dict[str, Any]]:
    """The questions about one of C3's texts."""
    if len(record) < 2 or not all(isinstance(part, list) for part in record[:2]):
        raise ValueError(f"{where} is no record of C3: wanted is [[lines], [questions], id].")
    for i, asked in enumerate(record[1]):
        of_question = f"{where}, question {i}"
        if not isinstance(asked, Mapping) or not {"question", "choice", "answer"} <= set(asked):
            raise ValueError(f"{of_question} is {asked!r:.80}; wanted are question, choice and answer.")
        yield plain_row({"context": record[0], **asked}, of_question)


def chid_rows(
    record: Mapping[str, Any], number: int, answers: Mapping[str, int] | None, where: str
) -> Iterator[dict[str, Any]]:
    """The blanks of one of CHID's records: of one or several texts with shared candidates.

    Args:
        record: `content` and `candidates`, and `answers` in the form of `datasets`.
        number: Of the record; its rows share it as their group.
        answers: Blank -> number of its idiom, where the record has none.
        where: The record, for messages.

    Raises:
        ValueError: a blank without an answer, or fewer answers than blanks.
    """
    contents = record.get("content")
    contents = [contents] if isinstance(contents, str) else contents
    if not isinstance(contents, list) or not all(isinstance(text, str) for text in contents):
        raise ValueError(f"{where} has the content {contents!r:.80}; it must be a text or a list of texts.")
    blanks = [(text, blank) for text in contents for blank in BLANK.findall(text)]
    own = record.get("answers")
    if own is not None:
        numbers = own.get("candidate_id") if isinstance(own, Mapping) else own
        if not isinstance(numbers, list) or len(numbers) != len(blanks):
            raise ValueError(f"{where} has {len(blanks)} blanks and the answers {own!r:.80}; each blank has one.")
    else:
        missing = [blank for _, blank in blanks if blank not in (answers or {})]
        if missing:
            raise ValueError(f"{where} has the blank {missing[0]}, for which there is no answer.")
        numbers = [answers[blank] for _, blank in blanks] if answers else []
    for (text, blank), label in zip(blanks, numbers, strict=True):
        yield _row(text, blank, record["candidates"], label, number, f"{where}, {blank}")


def _answers_beside(file: Path) -> Mapping[str, int]:
    beside = file.with_name(f"{file.stem}_answer.json")
    if not beside.is_file():
        raise FileNotFoundError(
            f"{file} holds CHID's texts without answers, and there is no {beside.name} beside it, as CLUE's download "
            "has it."
        )
    found = json.loads(beside.read_text(encoding="utf-8"))
    if not isinstance(found, Mapping):
        raise ValueError(f"{beside} must hold an object that gives every blank the number of its idiom.")
    return found


def _place(answer: Any, choices: list[Any], where: str) -> int:
    if answer not in choices:
        raise ValueError(f"{where} has the answer {answer!r}, which is none of its choices {choices!r}.")
    return choices.index(answer)


def _row(context: str, question: str, choices: Any, label: Any, group: Any, where: str) -> dict[str, Any]:
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError(f"{where} has the choices {choices!r}: at least two texts, none of them empty.")
    if not isinstance(question, str):
        raise ValueError(f"{where} has the question {question!r}, which is no text.")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
        raise ValueError(f"{where} has the label {label!r}; it is a number from 0 to {len(choices) - 1}.")
    return {"context": context, "question": question, "choices": choices, "label": label, "group": group}


__all__ = ["BLANK", "COLUMNS", "c3_rows", "chid_rows", "plain_row", "read_choices", "read_records"]
