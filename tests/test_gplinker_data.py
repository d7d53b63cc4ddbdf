"""Closed-domain extraction around the model: schemas, label maps, rows, windows, labels, answers, scores."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from hf_glm_ernie import ErnieForGPLinker, ErnieGPLinkerConfig, extract
from hf_glm_ernie.ernie_data.documents import Document, Entity, Relation
from hf_glm_ernie.ernie_distillation.marked import marked_of_answers, marked_of_document
from hf_glm_ernie.ernie_tasks.gplinker_schema import answers_of, label_maps_of, read_label_maps
from hf_glm_ernie.ernie_tasks.gplinker_windows import is_settled_elsewhere, text_windows
from hf_glm_ernie.ernie_training.gplinker_labels import GPLinkerCollator, encode_marked
from hf_glm_ernie.ernie_training.gplinker_rows import MarkedText, as_row, labels_in, read_marked
from hf_glm_ernie.ernie_training.gplinker_scores import keep_found
from hf_glm_ernie.ernie_training.gplinker_task import Linking
from tests.support.publishing import ERNIE

COMPANIES = ["时间", {"公司": ["创始人", {"子公司": ["成立时间"]}]}]
OPINIONS = ["观点词", {"评价维度": ["观点词", "情感倾向[正向,负向]"]}]
TEXT = "甲公司由张三创立，有乙公司，2005年成立。"
MARKED = MarkedText(
    TEXT,
    frozenset({("公司", (0, 3)), ("object", (4, 6)), ("子公司", (10, 13)), ("object", (14, 19))}),
    frozenset(
        {("创始人", (0, 3), (4, 6)), ("子公司", (0, 3), (10, 13)), ("成立时间", (10, 13), (14, 19))},
    ),
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ERNIE / "masked-lm")


@pytest.mark.parametrize(
    ("schema", "entities", "relations"),
    [
        (["时间", "地点"], ("时间", "地点"), ()),
        ({"武器名称": ["产国", "类型"]}, ("武器名称", "object"), ("产国", "类型")),
        (COMPANIES, ("时间", "公司", "子公司", "object"), ("创始人", "子公司", "成立时间")),
        ({"地震触发词": ["震级", "时间"]}, ("地震触发词", "object"), ("震级", "时间")),
        (OPINIONS, ("评价维度", "观点词"), ("正向", "负向")),
    ],
)
def test_labels_of_a_schema(schema: Any, entities: tuple[str, ...], relations: tuple[str, ...]) -> None:
    """PaddleNLP's numbers; but that 时间 at the top is a type beside a name that has others below it."""
    maps = label_maps_of(schema)
    assert (maps.entities, maps.relations) == (entities, relations)
    again = read_label_maps(json.loads(json.dumps(maps.as_dict())), "label_maps.json")
    assert (again.entities, again.relations, again.opinion) == (entities, relations, maps.opinion)


def test_numbers_of_label_maps_are_kept() -> None:
    maps = {"entity2id": {"b": 1, "a": 0}, "relation2id": {"q": 1, "p": 0}, "schema": {"a": ["p", "q"]}}
    assert read_label_maps(maps, "f").entities == ("a", "b")
    assert read_label_maps(maps, "f").relations == ("p", "q")


@pytest.mark.parametrize(
    "schema", ["情感倾向[正向,负向]", {"a": ["b[x,y]"]}, {"a": ["b", "c", "d[x,y]"]}, {"a": [{"b": ["c"]}, "d[x,y]"]}]
)
def test_options_about_something_else_are_refused(schema: Any) -> None:
    with pytest.raises(ValueError, match="options"):
        label_maps_of(schema)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([], "holds no label maps"),
        ({"entity2id": {"a": 1}}, "entity2id must give every label a number"),
        ({"entity2id": {"a": 0}, "schema": {"a": ["p"]}}, "asks for p"),
    ],
)
def test_label_maps_are_checked(maps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_label_maps(maps, "label_maps.json")


def test_answers_have_the_schemas_form() -> None:
    maps = label_maps_of(COMPANIES)
    entities = dict.fromkeys(MARKED.entities, 0.9)
    answers = answers_of(maps, TEXT, entities, dict.fromkeys(MARKED.relations, 0.8))
    assert list(answers) == ["公司"]
    (company,) = answers["公司"]
    assert (company["text"], company["start"], company["end"], company["probability"]) == ("甲公司", 0, 3, 0.9)
    assert company["relations"]["创始人"] == [{"text": "张三", "start": 4, "end": 6, "probability": 0.8}]
    (below,) = company["relations"]["子公司"]
    assert below["relations"]["成立时间"][0]["text"] == "2005年"
    assert marked_of_answers(TEXT, answers, maps) == MARKED


def test_opinions_there_and_back() -> None:
    maps, text = label_maps_of(OPINIONS), "服务很好，也热情，房间小"
    entities = {
        ("评价维度", (0, 2)): 0.9,
        ("观点词", (3, 4)): 0.9,
        ("观点词", (6, 8)): 0.9,
        ("评价维度", (9, 11)): 0.7,
    }
    entities[("观点词", (11, 12))] = 0.6
    relations = {
        ("正向", (0, 2), (3, 4)): 0.9,
        ("负向", (0, 2), (6, 8)): 0.6,
        ("负向", (9, 11), (11, 12)): 0.8,
        ("正向", (9, 11), (0, 2)): 1.0,  # of what is no opinion
    }
    service, room = answers_of(maps, text, entities, relations)["评价维度"]
    assert service["relations"]["情感倾向[正向,负向]"] == [{"text": "正向", "probability": 0.9}]
    assert [one["text"] for one in service["relations"]["观点词"]] == ["好", "热情"]
    assert room["relations"]["情感倾向[正向,负向]"][0]["text"] == "负向"
    marked = marked_of_answers(text, answers_of(maps, text, entities, relations), maps)
    assert marked.relations == {
        ("正向", (0, 2), (3, 4)),
        ("正向", (0, 2), (6, 8)),
        ("负向", (9, 11), (11, 12)),
    }
    row = as_row(marked, is_opinion=True)
    assert row["aso_list"][0] == {
        "aspect": "服务",
        "sentiment": "正向",
        "opinion": "好",
        "aspect_start_index": 0,
        "opinion_start_index": 3,
    }
    assert read_marked(row, 0, maps) == marked


def test_annotations_become_rows() -> None:
    """Types of no schema become `object`; relations of none are left out (PaddleNLP's training stops at them)."""
    entities = [Entity(1, 0, 3, "公司"), Entity(2, 4, 6, "人物"), Entity(3, 14, 19, "时间")]
    relations = [Relation(1, 2, "创始人"), Relation(1, 3, "注册时间")]
    maps = label_maps_of({"公司": ["创始人"]})
    marked = marked_of_document(Document(TEXT, entities, relations), maps)
    assert marked.entities == {("公司", (0, 3)), ("object", (4, 6)), ("object", (14, 19))}
    assert marked.relations == {("创始人", (0, 3), (4, 6))}
    alone = marked_of_document(Document(TEXT, entities, relations), label_maps_of(["公司"]))
    assert alone.entities == {("公司", (0, 3))}
    senta = [Entity(1, 0, 2, "评价维度##负向"), Entity(2, 3, 4, "观点词")]
    marked = marked_of_document(Document("服务很差", senta, [Relation(1, 2, "观点词")]), label_maps_of(OPINIONS))
    assert marked.relations == {("负向", (0, 2), (3, 4))}


def test_rows_there_and_back() -> None:
    row = as_row(MARKED)
    assert row["spo_list"][0] == {
        "subject": "甲公司",
        "predicate": "创始人",
        "object": "张三",
        "subject_start_index": 0,
        "object_start_index": 4,
    }
    assert read_marked(row, 0, label_maps_of(COMPANIES)) == MARKED
    assert labels_in([row]) == (
        ["公司", "子公司", "object"],
        ["创始人", "子公司", "成立时间"],
        [{"公司": ["创始人", "子公司"]}, {"子公司": ["成立时间"]}],
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None}, "has no text"),
        (
            {"text": TEXT, "entity_list": [{"text": "乙", "type": "公司", "start_index": 0}]},
            "'乙' at 0, where the text",
        ),
        ({"text": TEXT, "entity_list": [{"text": "甲", "type": "人", "start_index": 0}]}, "entity of type '人'"),
        ({"text": TEXT, "entity_list": [{"text": "", "type": "公司", "start_index": 0}]}, "must be a text"),
        ({"text": TEXT, "entity_list": "甲"}, "no list of dicts"),
        (
            {
                "text": TEXT,
                "spo_list": [
                    {
                        "subject": "甲",
                        "predicate": "父",
                        "object": "公",
                        "subject_start_index": 0,
                        "object_start_index": 1,
                    }
                ],
            },
            "predicate '父'",
        ),
    ],
)
def test_rows_are_checked(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Row 7 of the data .*{message}"):
        read_marked(row, 7, label_maps_of(COMPANIES))


def test_windows_cover_a_text_and_know_their_edges(tokenizer: Any) -> None:
    text = "年月日北京" * 10
    windows = text_windows(tokenizer, [text, ""], 22, 5)
    assert [one.text for one in windows] == [0, 0, 0, 1]
    assert [len(one.input_ids) for one in windows] == [22, 22, 22, 2]
    assert [one.place(1, len(one.input_ids) - 2) for one in windows[:3]] == [(0, 20), (15, 35), (30, 50)]
    assert [one.sees for one in windows] == [(0, 19), (16, 34), (31, 50), (0, 0)]
    assert is_settled_elsewhere(windows, 0, (18, 20))
    assert not is_settled_elsewhere(windows, 1, (18, 20))
    assert not is_settled_elsewhere(windows, 0, (14, 20))  # longer than what both share
    assert not is_settled_elsewhere(windows, 2, (48, 50))
    with pytest.raises(ValueError, match="overlap=20"):
        text_windows(tokenizer, [text], 22, 20)


def test_labels_of_windows(tokenizer: Any) -> None:
    maps = label_maps_of(COMPANIES)
    columns = encode_marked(tokenizer, [MARKED], [3], maps, 64, 8)
    (entities,), (relations,) = columns["entity_labels"], columns["relation_labels"]
    offsets = np.array([columns["starts"][0], columns["ends"][0]])
    named = {(maps.entities[kind], (int(offsets[0, m]), int(offsets[1, n]))) for kind, m, n in entities}
    assert named == MARKED.entities
    assert len(relations) == 3
    assert columns["row"] == [3]
    # In short windows each has what is wholly inside it.
    cut = encode_marked(tokenizer, [MARKED], [3], maps, 14, 6)
    assert len(cut["input_ids"]) > 1
    found = set()
    for entities, starts, ends in zip(cut["entity_labels"], cut["starts"], cut["ends"], strict=True):
        found |= {(maps.entities[kind], (starts[m], ends[n])) for kind, m, n in entities}
    assert found == MARKED.entities
    assert sum(map(len, cut["relation_labels"])) < 3 * len(cut["input_ids"])
    batch = GPLinkerCollator(tokenizer)([dict(zip(cut, one, strict=True)) for one in zip(*cut.values(), strict=True)])
    assert batch["entity_labels"].shape[2] == 3
    assert batch["relation_labels"].shape[2] == 5
    assert batch["input_ids"].shape == batch["attention_mask"].shape


def made_model(tokenizer: Any, schema: Any, answers: list[MarkedText]) -> Any:
    """A model whose scores are 3 at what the texts hold and -3 elsewhere, as if it had learnt them by heart."""
    maps = label_maps_of(schema)
    names = {"entity_labels": list(maps.entities), "relation_labels": list(maps.relations), "schema": schema}
    config = ErnieGPLinkerConfig(vocab_size=len(tokenizer), max_position_embeddings=24, **names)

    def run(input_ids: torch.Tensor, **_: torch.Tensor) -> dict[str, torch.Tensor]:
        shape = input_ids.shape[0], input_ids.shape[1], input_ids.shape[1]
        scores = [
            torch.full((shape[0], len(labels), *shape[1:]), -3.0) for labels in (maps.entities, *[maps.relations] * 2)
        ]
        for text in answers:
            encoded = encode_marked(tokenizer, [text], [0], maps, 24, 12)
            for ids, entities, relations in zip(
                *(encoded[n] for n in ("input_ids", "entity_labels", "relation_labels")), strict=True
            ):
                for row in range(shape[0]):
                    if input_ids[row, : len(ids)].tolist() == ids:
                        for kind, m, n in entities:
                            scores[0][row, kind, m, n] = 3.0
                        for kind, m, n, first, last in relations:
                            scores[1][row, kind, m, first] = scores[2][row, kind, n, last] = 3.0
        return dict(zip(("entity_logits", "head_logits", "tail_logits"), scores, strict=True))

    class Made:
        def __call__(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return run(**inputs)

    made = Made()
    made.config = config  # type: ignore[attr-defined]
    return made


def test_extraction_reads_long_texts_whole(tokenizer: Any) -> None:
    long = MarkedText(
        f"{TEXT}{TEXT}",
        MARKED.entities | {(kind, (s + len(TEXT), e + len(TEXT))) for kind, (s, e) in MARKED.entities},
        MARKED.relations,
    )
    model, maps = made_model(tokenizer, COMPANIES, [MARKED, long]), label_maps_of(COMPANIES)
    found = extract(model, tokenizer, [TEXT, {"text": long.text}, ""], batch_size=2, overlap=12)
    assert marked_of_answers(TEXT, found[0], maps) == MARKED
    read = marked_of_answers(long.text, found[1], maps)
    assert {one for one in read.entities if one[0] == "公司"} == {
        ("公司", (0, 3)),
        ("公司", (len(TEXT), len(TEXT) + 3)),
    }
    assert read.relations == MARKED.relations
    assert found[2] == {}
    probability = found[0]["公司"][0]["relations"]["创始人"][0]["probability"]
    assert probability == pytest.approx(torch.tensor(3.0).sigmoid().item() ** 2)
    assert extract(model, tokenizer, TEXT, threshold=0.96) == [{}]  # the sigmoid of 3 is 0.953


def test_extraction_refuses_other_models(tokenizer: Any) -> None:
    with pytest.raises(TypeError, match="uie\\(model"):
        extract(_Uie(), tokenizer, TEXT)
    model = made_model(tokenizer, COMPANIES, [MARKED])
    with pytest.raises(ValueError, match="threshold"):
        extract(model, tokenizer, TEXT, threshold=2)


class _Uie:
    config = SimpleNamespace(model_type="ernie_uie")

    def __call__(self) -> None: ...


def test_scores_of_a_trainer(tokenizer: Any) -> None:
    maps = label_maps_of(COMPANIES)
    model = made_model(tokenizer, COMPANIES, [MARKED])
    encoded = encode_marked(tokenizer, [MARKED, MARKED], [0, 1], maps, 24, 12)
    rows = [dict(zip(encoded, one, strict=True)) for one in zip(*encoded.values(), strict=True)]
    batch = GPLinkerCollator(tokenizer)(rows)
    outputs = model(input_ids=batch["input_ids"])
    kept = keep_found(tuple(outputs.values()), None)
    task = Linking(tokenizer, 24)
    task.maps = maps
    labels = tuple(batch[name].numpy() for name in task.label_names)
    prediction = SimpleNamespace(predictions=tuple(one.numpy() for one in kept), label_ids=labels)
    assert task.metrics(prediction)["f1"] == task.metrics(prediction)["entity_f1"] == 1.0
    outputs["tail_logits"][0] = -3.0
    prediction.predictions = tuple(one.numpy() for one in keep_found(tuple(outputs.values()), None))
    scores = task.metrics(prediction)
    assert (scores["entity_f1"], scores["triple_precision"], scores["triple_recall"]) == (1.0, 1.0, 0.5)
    report = task.report([as_row(MARKED)] * 2, encoded, prediction)
    assert [one["row"] for one in report["mistakes"]] == [0]
    missing = [(one["label"], one["text"]) for one in report["mistakes"][0]["missing"]]
    assert len(missing) == len(MARKED.relations)
    assert {label for label, _ in missing} == {kind for kind, _, _ in MARKED.relations}
    assert not report["mistakes"][0]["spurious"]
    assert report["by_class"]["创始人"]["recall"] == 0.5
    assert report["of_texts"]["triple_recall"] == 0.5


def test_labels_come_from_model_data_or_rows(tokenizer: Any, tmp_path: Path) -> None:
    row, folder = as_row(MARKED), tmp_path / "data"
    task = Linking(tokenizer, 24)
    task.learn([row])
    assert task.maps.relations == ("创始人", "子公司", "成立时间")
    folder.mkdir()
    (folder / "label_maps.json").write_text(json.dumps(label_maps_of(COMPANIES).as_dict()), encoding="utf-8")
    for data in (folder, folder / "train_data.json"):
        task = Linking(tokenizer, 24, {"data": str(data)})
        task.learn([row])
        assert task.maps.entities == ("时间", "公司", "子公司", "object")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ErnieGPLinkerConfig(vocab_size=len(tokenizer), entity_labels=["公司"], **small)
    ErnieForGPLinker(config).save_pretrained(tmp_path / "model")
    task = Linking(tokenizer, 24, {"data": str(folder), "model": str(tmp_path / "model")})
    task.learn([row])
    assert task.maps.entities == ("公司",)
