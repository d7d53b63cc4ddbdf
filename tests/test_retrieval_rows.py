"""Files of judged queries, and the rows that dual encoders and cross-encoders are trained on."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_glm_ernie.ernie_retrieval.encoders import cross_encoder, dual_encoder
from hf_glm_ernie.ernie_retrieval.evaluators import cross_evaluator, dual_evaluator
from hf_glm_ernie.ernie_retrieval.judged_files import JudgedQuery, read_passages, read_queries
from hf_glm_ernie.ernie_retrieval.training_rows import all_passages, cross_columns, cross_row, dual_columns


def written(file: Path, *rows: Any) -> Path:
    """Rows of cells, or records."""
    lines = ("\t".join(row) if file.suffix == ".tsv" else json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def test_rocketqas_files_of_dual_encoders(tmp_path: Path) -> None:
    """The lines of a query become one; nothing is held twice, and order is the file's."""
    file = written(
        tmp_path / "dual.train.tsv",
        ("天气", "", "今天下雨。", "", "买了书。", "0"),
        ("首都", "法国", "首都是巴黎。", "日本", "首都是东京。", "0"),
        ("天气", "", "今天下雨。", "", "猫。", "0"),
        ("天气", "", "明天下雪。", "", "买了书。", "0"),
    )
    assert read_queries(file) == [
        JudgedQuery("天气", (("", "今天下雨。"), ("", "明天下雪。")), (("", "买了书。"), ("", "猫。"))),
        JudgedQuery("首都", (("法国", "首都是巴黎。"),), (("日本", "首都是东京。"),)),
    ]


def test_files_of_cross_encoders_pairs_and_records_say_the_same(tmp_path: Path) -> None:
    cross = written(tmp_path / "a.tsv", ("天气", "", "今天下雨。", "1"), ("天气", "", "猫。", "0"))
    record = {"query": "天气", "pos": [{"title": "", "text": "今天下雨。"}], "neg": [{"title": None, "text": "猫。"}]}
    assert read_queries(cross) == read_queries(written(tmp_path / "b.jsonl", record))
    pairs = written(tmp_path / "c.tsv", ("天气", "今天下雨。"))
    assert read_queries(pairs) == read_queries(written(tmp_path / "d.jsonl", {"query": "天气", "pos": ["今天下雨。"]}))


def test_passages(tmp_path: Path) -> None:
    passages = [("标题", "今天下雨。"), ("-", "猫。")]
    assert read_passages(written(tmp_path / "two.tsv", *passages, passages[0])) == passages
    assert read_passages(written(tmp_path / "four.tsv", *(("-", *one, "0") for one in passages))) == passages
    records = ["猫。", {"text": "猫。"}, {"title": "标题", "text": "今天下雨。"}]
    assert read_passages(written(tmp_path / "records.jsonl", *records)) == ["猫。", passages[0]]


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    """Texts of the web hold U+2028 and U+0085; a carriage return at the end of a line is Windows'."""
    (tmp_path / "a.tsv").write_bytes("天\u2028气\t今\u0085天\r\n\n首都\t巴黎\n".encode())
    assert read_queries(tmp_path / "a.tsv") == [
        JudgedQuery("天\u2028气", ("今\u0085天",), ()),
        JudgedQuery("首都", ("巴黎",), ()),
    ]


BAD = [
    ("a.tsv", [("天气", "", "雨", "1"), ("天气", "雨")], r"a\.tsv:2: 2 columns, .*lines before have 4"),
    ("a.tsv", [("天气", "", "雨")], r"a\.tsv:1: 3 columns, where one of these is wanted: 2 \(query, text\)"),
    ("a.tsv", [("天气", "", "雨", "2")], r"a\.tsv:1: the label '2' is neither 1"),
    ("a.tsv", [("", "", "雨", "1")], r"a\.tsv:1: a query without text: ''"),
    ("a.tsv", [("天气", "", " ", "1")], r"a\.tsv:1: a passage without text: ' '"),
    (
        "a.tsv",
        [("天气", "", "雨", "1"), ("天气", "", "雨", "0")],
        r"a\.tsv:2: the passage .* both answers and does",
    ),
    ("a.tsv", [], "has no lines"),
    ("a.jsonl", [], "has no lines"),
    ("a.jsonl", [{"query": "天气", "positive": "雨"}], r"a\.jsonl:1: a row has query, pos"),
    ("a.jsonl", [{"query": "天气", "pos": "雨"}], r"a\.jsonl:1: pos is a list of at least one passage"),
    ("a.jsonl", [{"query": "天气", "pos": []}], r"a\.jsonl:1: pos is a list of at least one passage"),
    (
        "a.jsonl",
        [{"query": "天气", "pos": [["", "雨"]]}],
        r"a\.jsonl:1: a passage is a string or .*found \['', '雨'\]",
    ),
    ("a.jsonl", [{"query": 7, "pos": ["雨"]}], r"a\.jsonl:1: a query without text: 7"),
    ("a.jsonl", [{"query": "天气", "pos": [{"title": 7, "text": "雨"}]}], r"a\.jsonl:1: the title 7 is no string"),
    ("a.jsonl", [{"query": "天气", "pos": [{"title": "天", "text": 7}]}], r"a\.jsonl:1: the text 7 is no string"),
    ("a.csv", [], "neither a .tsv nor a .jsonl file"),
]


@pytest.mark.parametrize(("name", "rows", "message"), BAD)
def test_what_files_may_not_hold(tmp_path: Path, name: str, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_queries(written(tmp_path / name, *rows))


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none\.tsv"):
        read_queries(tmp_path / "none.tsv")
    (tmp_path / "a.jsonl").write_text('{"query": \n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: this is no JSON"):
        read_queries(tmp_path / "a.jsonl")


def judged(positives: int, negatives: int, query: str = "q") -> JudgedQuery:
    return JudgedQuery(query, tuple(f"yes {k}" for k in range(positives)), tuple(f"no {k}" for k in range(negatives)))


@pytest.mark.parametrize("positives", [1, 2, 5])
@pytest.mark.parametrize("negatives", [1, 2, 4])
@pytest.mark.parametrize("taken", [1, 2])
def test_every_passage_is_in_a_row(positives: int, negatives: int, taken: int) -> None:
    if taken > negatives:
        with pytest.raises(ValueError, match=f"'q' has {negatives} passages that do not answer it, and a row takes 2"):
            dual_columns([judged(positives, negatives)], taken)
        return
    one = judged(positives, negatives)
    columns = dual_columns([one], taken)
    assert list(columns) == ["query", "positive", *(f"negative_{k + 1}" for k in range(taken))]
    assert set(columns["positive"]) == set(one.positives)
    rows = list(zip(*(columns[f"negative_{k + 1}"] for k in range(taken)), strict=True))
    assert {text for row in rows for text in row} == set(one.negatives)
    assert all(len(set(row)) == taken for row in rows)
    assert len(rows) == max(positives, -(-negatives // taken))


def test_rows_of_a_dual_encoder() -> None:
    """RocketQA's one negative, or none where there is none; a title makes every passage a pair."""
    assert list(dual_columns([judged(1, 0), judged(2, 0, "p")])) == ["query", "positive"]
    assert len(dual_columns([judged(1, 3), judged(0, 3, "p")])["query"]) == 3  # "p" has nothing to learn
    titled = JudgedQuery("q", (("标题", "雨"),), ("雪",))
    assert dual_columns([titled]) == {"query": ["q"], "positive": [["标题", "雨"]], "negative_1": [["", "雪"]]}
    with pytest.raises(ValueError, match="nothing to train on"):
        dual_columns([judged(0, 2)])


def test_rows_of_a_cross_encoder() -> None:
    """Title and text without anything between their tokens, as RocketQA's reader has them."""
    titled = JudgedQuery("q", (("标题", "雨"), ("", "风")), ("雪",))
    assert cross_columns([titled]) == {"query": ["q"] * 3, "passage": ["标题 雨", "风", "雪"], "label": [1, 1, 0]}
    assert cross_row(("", "风")) == "风"
    assert all_passages([titled, titled]) == [("标题", "雨"), ("", "风"), "雪"]
    with pytest.raises(ValueError, match="the data has one kind only"):
        cross_columns([judged(2, 0)])


def test_without_sentence_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for part in ("sentence_transformer.evaluation", "sentence_transformer.modules", "cross_encoder.evaluation"):
        monkeypatch.setitem(sys.modules, f"sentence_transformers.{part}", None)
    message = r"pip install 'hf-glm-ernie\[retrieval\]'"
    for call in (dual_encoder, cross_encoder):
        with pytest.raises(ImportError, match=message):
            call(str(tmp_path))
    for evaluator in (dual_evaluator, cross_evaluator):
        with pytest.raises(ImportError, match=message):
            evaluator([judged(1, 1)])
    with pytest.raises(ValueError, match="pooling='pooler' is not one of"):
        dual_encoder(str(tmp_path), pooling="pooler")
    with pytest.raises(ValueError, match="num_labels=3: a cross-encoder has 2 classes"):
        cross_encoder(str(tmp_path), num_labels=3)
