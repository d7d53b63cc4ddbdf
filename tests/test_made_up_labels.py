"""The made-up orders: every answer stands where it is said to stand, in every file."""

import json
from pathlib import Path

import pytest

from examples import made_up_labels as made_up


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred texts, half of them with two orders."""
    folder = tmp_path_factory.mktemp("made-up") / "orders"
    made_up.main(["--output", str(folder), "--texts", "100", "--two-orders", "0.5"])
    return folder


def rows_of(path: Path) -> list[dict]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_say_the_same_of_each_text(folder: Path) -> None:
    texts = made_up.make_texts(200, two_orders=0.5)[:100]
    exported = rows_of(folder / "orders.jsonl")
    tasks = json.loads((folder / "requests.json").read_text(encoding="utf-8"))
    tags, classes = (
        [row for split in ("train", "dev", "test") for row in rows_of(folder / name / f"{split}.jsonl")]
        for name in ("tags", "classes")
    )
    for one, line, task, tagged, row in zip(texts, exported, tasks, tags, classes, strict=True):
        assert line["text"] == one.text == task["data"]["text"] == "".join(tagged["tokens"]) == row["text"]
        spans = [(e["label"], line["text"][e["start_offset"] : e["end_offset"]]) for e in line["entities"]]
        names = [(label, entity.text) for order in one.orders for label, entity in order.items()]
        assert sorted(spans) == sorted(names)
        assert sum(tag.startswith("B-") for tag in tagged["tags"]) == len(names) == 5 * len(one.orders)
        assert sorted(task["annotations"][0]["result"][0]["value"]["choices"]) == row["label"] == sorted(one.requests)
    ids = [one["id"] for line in exported for one in (*line["entities"], *line["relations"])]
    assert len(set(ids)) == len(ids)


def test_questions_have_one_answer_where_it_is_said_to_be(folder: Path) -> None:
    rows = [row for split in ("train", "dev", "test") for row in rows_of(folder / "questions" / f"{split}.jsonl")]
    assert len({row["id"] for row in rows}) == len(rows) > 500
    for row in rows:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
        assert row["context"].count(text) >= 1
        assert "{" not in row["question"]


def test_passages_answer_their_question_or_do_not(folder: Path) -> None:
    texts = made_up.make_texts(200, two_orders=0.5)
    orders = {one.text: [(order["城市"].text, order["顾客"].text) for order in one.orders] for one in texts}
    found = [row for split in ("train", "dev", "test") for row in rows_of(folder / "passages" / f"{split}.jsonl")]
    assert len(found) > 100
    for row in found:
        city, _, customer = row["query"].removesuffix("买了什么？").partition("的")
        assert all((city, customer) in orders[text] for text in row["pos"])
        (other,) = row["neg"]
        assert (city, customer) not in orders[other]
        assert city in [place for place, _ in orders[other]]


def test_splits_share_no_text_and_texts_without_labels_are_others(folder: Path) -> None:
    splits = [
        {row["text"] for row in rows_of(folder / "classes" / f"{name}.jsonl")} for name in ("train", "dev", "test")
    ]
    unlabelled = set((folder / "unlabelled.txt").read_text(encoding="utf-8").splitlines())
    assert [len(one) for one in splits] == [80, 10, 10]
    assert len(unlabelled) == 100
    assert len(set.union(*splits, unlabelled)) == 200


def test_refusals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--output", str(folder)], "exists already"),
        (["--output", str(folder / "x"), "--texts", "3"], "at least 10"),
        (["--output", str(folder / "x"), "--two-orders", "2"], "from 0 to 1"),
    ):
        with pytest.raises(SystemExit):
            made_up.main(arguments)
        assert words in capsys.readouterr().err
