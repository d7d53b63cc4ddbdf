"""Goldens of `label-data`: where they lie, their inputs read by hand, and rows in the form they are stored in."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import GOLDEN

SMALL = GOLDEN / "ernie_label_data"
FULL = Path(__file__).parents[3] / "shared" / "goldens" / "ernie_workflows"
MISSING = "needs the full golden set beside the repository (../shared/goldens/ernie_workflows); the small copies ran"

TEXT = "甲公司在北京"
GOOD = {"text": TEXT, "entities": [{"id": 1, "label": "公司", "start_offset": 0, "end_offset": 3}], "relations": []}

FlatRow = tuple[str, str, list[list[Any]]]
"""(text, prompt, [[text, start, end], ...])."""


@dataclass(frozen=True)
class GoldenRows:
    """What PaddleNLP's converter gave for one input, variant, ratio and kind of split."""

    source: str
    variant: dict[str, Any]
    ratio: int
    is_train: bool
    rows: list[FlatRow]
    random: frozenset[int]
    """Numbers of the rows that other seeds do not give."""

    @property
    def is_label_studio(self) -> bool:
        return self.source.startswith("label_studio")

    @property
    def id(self) -> str:
        return f"{self.source}-{self.variant['name']}-{self.ratio}-{'train' if self.is_train else 'full'}"


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def golden_rows(root: Path) -> Iterator[GoldenRows]:
    """Every set of extraction rows below a folder of goldens."""
    for path in sorted(root.glob("rows/*.*.jsonl")):
        head, *lines = read_lines(path)
        for line in lines:
            rows = [(head["texts"][text], prompt, found) for text, prompt, found in line["rows"]]
            kind = line["negative_ratio"], line["is_train"]
            yield GoldenRows(path.name.split(".")[0], head["variant"], *kind, rows, frozenset(line["random_rows"]))


def records_of(path: Path) -> list[Any]:
    """The lines or tasks of an export."""
    return json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else read_lines(path)


def plain(record: dict[str, Any]) -> tuple[str, list[Any], list[Any]]:
    """An annotated document as the slow reference takes it, read without the package."""
    if "annotations" in record:
        results = record["annotations"][0]["result"]
        spans = [(one["id"], one["value"]) for one in results if one["type"] == "labels"]
        entities = [(id, value["start"], value["end"], value["labels"][0]) for id, value in spans]
        relations = [(one["from_id"], one["to_id"], one["labels"][0]) for one in results if one["type"] == "relation"]
        return record["data"]["text"], entities, relations
    text = record.get("data", record.get("text"))
    if isinstance(record.get("label"), list):
        return text, [(number, *triple) for number, triple in enumerate(record["label"])], []
    holder = record.get("label", record)
    entities = [(one["id"], one["start_offset"], one["end_offset"], one["label"]) for one in holder["entities"]]
    return text, entities, [(one["from_id"], one["to_id"], one["type"]) for one in holder["relations"]]


def flat(row: dict[str, Any]) -> FlatRow:
    assert list(row) == ["content", "result_list", "prompt"]
    return row["content"], row["prompt"], [[one["text"], one["start"], one["end"]] for one in row["result_list"]]


def key(row: FlatRow) -> str:
    return json.dumps(row, ensure_ascii=False)


def bag(rows: list[FlatRow]) -> Counter[str]:
    """Rows without their order."""
    return Counter(map(key, rows))


def contradictory(rows: list[FlatRow]) -> list[FlatRow]:
    """Rows without an answer whose prompt has one for the same text."""
    answered = {(text, prompt) for text, prompt, found in rows if found}
    return [row for row in rows if not row[2] and row[:2] in answered]


def task(*results: Any, text: Any = TEXT, **others: Any) -> dict[str, Any]:
    return {"id": 7, "data": {"text": text}, "annotations": [{"result": list(results), **others}]}


def span(start: int = 0, end: int = 3, label: Any = ("公司",), id: str = "a", **value: Any) -> dict[str, Any]:
    return {"id": id, "type": "labels", "value": {"start": start, "end": end, "labels": list(label), **value}}
