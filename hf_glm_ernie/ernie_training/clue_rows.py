"""CLUE's classification files, and MSRA's names, as rows of ours, read as they were downloaded.

Which file it is shows in its keys, as in PaddleNLP:

| keys | task | text | text_pair |
|---|---|---|---|
| `sentence`, `label` | TNEWS, IFLYTEK | the sentence | |
| `sentence1`, `sentence2`, `label` | AFQMC, OCNLI, CMNLI | the first | the second |
| `keyword`, `abst`, `label` | CSL | the keywords, joined by a blank | the abstract |
| `text`, `target`, `label` | CLUEWSC2020 | the text, `_` around the noun, `[` and `]` around the pronoun | |

Rows whose label is `-` (OCNLI and CMNLI: the annotators did not agree) are left out. Labels stay strings. MSRA's
train.tsv and test.tsv hold a text and its tags a line, both separated by the character 2, below a header.

Source: PaddleNLP, `examples/benchmark/clue/classification/run_clue_classifier.py` (`convert_example`),
`paddlenlp/datasets/clue.py` and `msra_ner.py`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .choice_rows import read_records
from .data_files import FORMATS, check_file, read_data, rows_dataset

logger = logging.get_logger(__name__)

NO_GOLD = "-"
SEPARATOR = "\x02"


def read_class_rows(file: Path) -> Any:
    """Reads a file of texts and classes, CLUE's forms among them: a `datasets.Dataset` with `text` and `label`.

    Raises:
        ValueError: a file of an unknown kind, without a column, or a row of CLUE's that is not as it should be.
        FileNotFoundError: no such file.
        ImportError: no `datasets`.
    """
    if FORMATS.get(file.suffix) != "json" or not file.is_file():
        return read_data(file, ("text", "label"))
    first = _first_record(file)
    if not _is_clue(first):
        return read_data(file, ("text", "label"))
    rows = [clue_row(record, f"{file}, row {i}") for i, record in enumerate(read_records(file))]
    kept = [row for row in rows if row["label"] != NO_GOLD]
    if len(kept) < len(rows):
        logger.warning(f"{file}: {len(rows) - len(kept)} of {len(rows)} rows have no agreed label (-): left out.")
    return rows_dataset(kept)


def _first_record(file: Path) -> Any:
    with file.open(encoding="utf-8-sig") as lines:
        line = next((line for line in lines if line.strip()), "")
    if not line.lstrip().startswith("{"):
        return None
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _is_clue(record: Any) -> bool:
    return isinstance(record, Mapping) and any(name in record for name in ("sentence", "sentence1", "abst", "target"))


def clue_row(record: Any, where: str) -> dict[str, Any]:
    """A record of one of CLUE's classification tasks as `text`, `label` and, of pairs, `text_pair`.

    Raises:
        ValueError: a record without a label (test sets have none), or with other keys; a noun or a pronoun that does
            not stand where it is said to.
    """
    if not isinstance(record, Mapping) or "label" not in record:
        raise ValueError(f"{where} has no label: CLUE's test files cannot be trained or evaluated on.")
    if "abst" in record:
        texts = [" ".join(_list(record, "keyword", where)), record["abst"]]
    elif "target" in record:
        texts = [mark_pronoun(record.get("text"), record["target"], where)]
    elif "sentence1" in record:
        texts = [record["sentence1"], record.get("sentence2")]
    else:
        texts = [record.get("sentence")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where} has {', '.join(map(str, record))}, and a text that is none: {texts!r:.80}.")
    return dict(zip(("text", "text_pair"), texts, strict=False)) | {"label": str(record["label"])}


def mark_pronoun(text: Any, target: Any, where: str) -> str:
    """A text with `_` around `span1` and `[` and `]` around `span2`.

    Args:
        text: As in CLUEWSC2020.
        target: `span1_text`, `span1_index`, `span2_text`, `span2_index`.
        where: The row, for the message.

    Raises:
        ValueError: a span that does not stand at its index.
    """
    marks = []
    for number, (before, behind) in ((1, "__"), (2, "[]")):
        words = target.get(f"span{number}_text") if isinstance(target, Mapping) else None
        index = target.get(f"span{number}_index") if isinstance(target, Mapping) else None
        if not isinstance(text, str) or not isinstance(words, str) or not isinstance(index, int):
            raise ValueError(f"{where} has the target {target!r:.99}; wanted are text and index of span1 and span2.")
        if index < 0 or text[index : index + len(words)] != words or not words:
            there = text[max(index, 0) : max(index, 0) + len(words)]
            raise ValueError(f"{where} has {words!r} at {index}, where its text has {there!r}.")
        marks += [(index, 1, before), (index + len(words), 0, behind)]  # where two meet, the closing one comes first
    for place, _, mark in sorted(marks, reverse=True):
        text = f"{text[:place]}{mark}{text[place:]}"
    return text


def read_tag_rows(file: Path) -> Any:
    """Reads a file of words and tags, MSRA's `.tsv` among them: a `datasets.Dataset` with `tokens` and `tags`.

    Raises:
        ValueError: a file of an unknown kind, without a column, or a line of a .tsv that is not as it should be.
        FileNotFoundError: no such file.
        ImportError: no `datasets`.
    """
    if file.suffix != ".tsv":
        return read_data(file, ("tokens", "tags"))
    check_file(file)
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")):
        if number == 0 or not line.strip():  # the header
            continue
        parts = [part.split(SEPARATOR) for part in line.rstrip("\r").split("\t")]
        if len(parts) != 2 or len(parts[0]) != len(parts[1]):
            raise ValueError(
                f"{file}, line {number + 1}: wanted are words and as many tags, each separated by \\x02, with a tab "
                f"between; found {line[:60]!r}."
            )
        rows.append({"tokens": parts[0], "tags": parts[1]})
    return rows_dataset(rows)


def _list(record: Mapping[str, Any], name: str, where: str) -> list[str]:
    found = record.get(name)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{where} has the {name} {found!r:.80}; it must be a list of texts.")
    return found


__all__ = ["clue_row", "mark_pronoun", "read_class_rows", "read_tag_rows"]
