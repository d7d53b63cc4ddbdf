"""From a teacher, texts and a schema to a student's folder: rows, resuming, layers, the table, the command, export."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, ErnieConfig, ErnieModel

from examples import export_ernie, finetune_ernie, made_up_labels
from hf_glm_ernie import OnnxEncoder, extract
from hf_glm_ernie.ernie_distillation import command
from hf_glm_ernie.ernie_distillation.distil import DistilArguments, distil_uie
from hf_glm_ernie.ernie_distillation.labelling import drawn_texts, label_texts
from hf_glm_ernie.ernie_distillation.student import keep_layers
from hf_glm_ernie.ernie_tasks.gplinker_schema import label_maps_of
from tests.support.publishing import ERNIE, make_source

pytest.importorskip("datasets", reason="needs datasets (the extra `train`)")

LABELS = list(made_up_labels.LABELS)
SIZES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


class Teacher:
    """Knows the made-up texts' answers, and counts the tokens that it is given."""

    def __init__(self, tokenizer: Any, texts: list[made_up_labels.LabelledText]):
        self.tokenizer, self.tokens, self.calls = tokenizer, 0, 0
        self.answers: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for text in texts:
            for label in LABELS:
                row = tokenizer(label, text.text).encodings[0]
                ends = [(one.start, one.end - 1) for one in text.entities if one.label == label]
                self.answers[tuple(row.ids)] = [tuple(row.char_to_token(place, 1) for place in end) for end in ends]

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        self.calls += 1
        self.tokens += int(attention_mask.sum())
        start, end = torch.zeros(2, *input_ids.shape)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            for first, last in self.answers[tuple(ids[: mask.sum()].tolist())]:
                start[row, first] = end[row, last] = 0.99
        return {"start_prob": start, "end_prob": end}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up texts, some labelled, and a small random encoder."""
    made = tmp_path_factory.mktemp("distil")
    made_up_labels.main(["--output", str(made / "orders"), "--texts", "30", "--two-orders", "0"])
    tokenizer = AutoTokenizer.from_pretrained(ERNIE / "masked-lm")
    torch.manual_seed(0)
    ErnieModel(ErnieConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **SIZES)).save_pretrained(
        made / "encoder"
    )
    tokenizer.save_pretrained(made / "encoder")
    return made


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    texts = made_up_labels.make_texts(60, two_orders=0)
    return Teacher(AutoTokenizer.from_pretrained(folder / "encoder"), texts)


def arguments(folder: Path, **settings: Any) -> DistilArguments:
    given = {"texts": folder / "orders" / "unlabelled.txt", "labelled": folder / "orders" / "orders.jsonl"}
    given |= {"schema": LABELS, "encoder": str(folder / "encoder"), "epochs": 1, "progress": False}
    return DistilArguments(**(given | settings))


@pytest.fixture(scope="module")
def student(folder: Path, teacher: Teacher) -> Iterator[Path]:
    teacher.tokens = teacher.calls = 0
    measured = distil_uie(teacher, teacher.tokenizer, folder / "student", arguments(folder, layers=1))
    assert [one.name for one in measured] == ["teacher", "student"]
    assert measured[0].entity_f1 == 1.0  # it knows the answers
    return folder / "student"


def test_rows_are_the_labels_and_the_teachers_answers(folder: Path, student: Path) -> None:
    data = student / "data"
    counts = {
        name: len((data / f"{name}_data.json").read_text("utf-8").splitlines()) for name in ("train", "dev", "test")
    }
    assert counts == {"train": 24 + 30, "dev": 3, "test": 3}
    gold = {one.text: one for one in made_up_labels.make_texts(60, two_orders=0)}
    for line in (data / "train_data.json").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        expected = {(one.label, one.start, one.text) for one in gold[row["text"]].entities}
        assert {(one["type"], one["start_index"], one["text"]) for one in row["entity_list"]} == expected
    maps = json.loads((data / "label_maps.json").read_text(encoding="utf-8"))
    assert maps == {"entity2id": {name: number for number, name in enumerate(LABELS)}, "schema": LABELS}


def test_the_student_opens_and_answers(folder: Path, student: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(student), AutoTokenizer.from_pretrained(student)
    assert (model.config.num_hidden_layers, model.config.entity_labels, model.config.schema) == (1, LABELS, LABELS)
    answers = extract(model, tokenizer, ["陈静3月1日买了长风地图。"], threshold=0)
    assert set(answers[0]) <= set(LABELS)
    assert answers[0]  # every pair has a probability above 0
    report = json.loads((student / "comparison.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in report] == ["teacher", "student"]
    assert not (student / "training").exists()


def test_a_student_reads_a_fifth_of_the_teachers_tokens(folder: Path, student: Path, teacher: Teacher) -> None:
    """Five labels: one row in place of five, without the prompt and its [SEP]."""
    from hf_glm_ernie import uie

    model, tokenizer = AutoModel.from_pretrained(student), AutoTokenizer.from_pretrained(student)
    texts = (folder / "orders" / "unlabelled.txt").read_text(encoding="utf-8").splitlines()
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(int(kwargs["attention_mask"].sum())), with_kwargs=True
    )
    teacher.tokens = 0
    uie(teacher, teacher.tokenizer, LABELS, texts)
    extract(model, tokenizer, texts)
    assert teacher.tokens > 5 * sum(seen) > 0


def test_labelling_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    texts, maps, asked = [f"第{i}天" for i in range(7)], label_maps_of(["时间"]), []
    (tmp_path / "texts").write_text("\n".join([*texts, "", "  "]), encoding="utf-8")
    rows = tmp_path / "rows.jsonl"

    def answer(given: list[str]) -> list[dict[str, Any]]:
        asked.extend(given)
        found = [re.search(r"第\d", text) for text in given]
        return [{"时间": [{"text": one.group(), "start": 0, "end": 2}]} for one in found if one]

    number, drawn = drawn_texts(tmp_path / "texts", 0, 10, 1)
    assert label_texts(answer, drawn, number, maps, rows, show_progress=False) == 0
    whole = rows.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert [json.loads(line)["text"] for line in lines] == texts == asked
    rows.write_bytes(b"".join(lines[:4]) + lines[4][:9])  # stopped in the middle of a line
    asked.clear()
    assert label_texts(answer, drawn_texts(tmp_path / "texts", 0, 10, 1)[1], 7, maps, rows, show_progress=False) == 4
    assert asked == texts[4:]
    assert rows.read_bytes() == whole
    with pytest.raises(ValueError, match="line 1, is of another text"):
        label_texts(answer, iter(texts[1:]), 6, maps, rows, show_progress=False)
    number, some = drawn_texts(tmp_path / "texts", 2, 2, 1)
    chosen = list(some)
    assert number == len(chosen) == 4
    assert chosen == sorted(set(chosen), key=texts.index)


def test_a_folder_that_holds_something_is_refused(
    folder: Path, student: Path, teacher: Teacher, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="is not empty"):
        distil_uie(teacher, teacher.tokenizer, student, arguments(folder))
    with pytest.raises(ValueError, match="is not empty"):  # it is done
        distil_uie(teacher, teacher.tokenizer, student, arguments(folder, resume=True))
    (tmp_path / "mine").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty"):
        distil_uie(teacher, teacher.tokenizer, tmp_path, arguments(folder, overwrite=True))
    assert (tmp_path / "mine").exists()


def test_texts_that_cannot_be_used_leave_no_folder(folder: Path, teacher: Teacher, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(ValueError, match="holds no text"):
        distil_uie(teacher, teacher.tokenizer, tmp_path / "student", arguments(folder, texts=empty))
    assert not (tmp_path / "student").exists()


def test_a_run_goes_on_with_the_same_settings_only(
    folder: Path, student: Path, teacher: Teacher, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    for name in ("settings.json", "synthetic.jsonl"):
        (tmp_path / "data" / name).write_bytes((student / "data" / name).read_bytes())
    with pytest.raises(ValueError, match=r"other settings \(schema\)"):
        distil_uie(teacher, teacher.tokenizer, tmp_path, arguments(folder, resume=True, schema=["顾客"]))
    teacher.calls = 0
    measured = distil_uie(teacher, teacher.tokenizer, tmp_path, arguments(folder, resume=True, layers=1))
    assert teacher.calls == 3  # the rounds of the comparison: 15 windows in one batch; nothing is labelled again
    assert len(measured) == 2
    assert (tmp_path / "config.json").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schema": "情感倾向[正向,负向]"}, "options"),
        ({"synthetic_ratio": 0, "labelled": None}, "nothing to learn from"),
        ({"epochs": 0}, "epochs=0"),
        ({"layers": 0}, "layers=0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"resume": True, "overwrite": True}, "different things"),
        ({"texts": Path("nowhere.txt")}, "no file nowhere.txt"),
    ],
)
def test_arguments_are_checked(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(folder, **settings)


def test_layers_are_spread_evenly(folder: Path) -> None:
    def encoder() -> Any:
        model = AutoModel.from_pretrained(folder / "encoder", num_hidden_layers=7)
        return type("Holder", (), {"ernie": model, "config": model.config})

    model = encoder()
    own = list(model.ernie.encoder.layer)
    keep_layers(model, 4)
    assert [own.index(layer) for layer in model.ernie.encoder.layer] == [0, 2, 4, 6]
    assert model.config.num_hidden_layers == 4
    with pytest.raises(ValueError, match="from 1 to the 7 layers"):
        keep_layers(encoder(), 8)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a real UIE model, and without labelled texts: the student is measured by the teacher's own answers."""
    make_source("uie", tmp_path / "uie")
    held_out = [json.loads(line) for line in (ERNIE / "extractions.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [one["text"] for one in held_out if one["language"] == "zh"]
    (tmp_path / "texts").write_text("\n".join(texts), encoding="utf-8")
    given = ["--teacher", str(tmp_path / "uie"), "--texts", str(tmp_path / "texts")]
    given += [
        "--schema",
        '{"公司": ["创始人"]}',
        "--output",
        str(tmp_path / "student"),
        "--epochs",
        "1",
        "--no-progress",
    ]
    capsys.readouterr()
    assert command.main([*given, "--encoder", str(folder / "encoder")]) == 0
    printed = capsys.readouterr().out
    assert "against the teacher's own answers" in printed
    assert re.search(r"^teacher +1\.0000 +1\.0000 ", printed, flags=re.MULTILINE)
    assert len((tmp_path / "student" / "data" / "dev_data.json").read_text(encoding="utf-8").splitlines()) == 2
    assert command.main([*given, "--encoder", str(folder / "encoder")]) == 1
    assert "is not empty" in capsys.readouterr().err
    given[1] = str(folder / "encoder")
    assert command.main(given) == 1
    assert "not ernie_uie" in capsys.readouterr().err


def test_schemas_of_a_command_line(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"公司": ["创始人"]}', encoding="utf-8")
    assert command.read_schema_option(str(tmp_path / "schema.json")) == {"公司": ["创始人"]}
    assert command.read_schema_option("时间, 地点") == ["时间", "地点"]
    assert command.read_schema_option("情感倾向[正向,负向],地点") == ["情感倾向[正向,负向]", "地点"]
    with pytest.raises(ValueError, match="no JSON"):
        command.read_schema_option("['时间']")


@pytest.mark.slow
def test_an_exported_student_answers_alike(student: Path, tmp_path: Path) -> None:
    if missing := [name for name in export_ernie.ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)} (the extra `onnx`)")
    assert export_ernie.main(["--model", str(student), "--output", str(tmp_path / "out"), "--format", "onnx"]) == 0
    encoder, model = OnnxEncoder(tmp_path / "out"), AutoModel.from_pretrained(student)
    texts = ["陈静3月1日买了长风地图。", "我是何伟。"]
    found, expected = (extract(one, encoder.tokenizer, texts, threshold=0.4) for one in (encoder, model))
    assert [{k: [a["start"] for a in v] for k, v in one.items()} for one in found] == [
        {k: [a["start"] for a in v] for k, v in one.items()} for one in expected
    ]


def test_rows_train_without_a_teacher(folder: Path, student: Path, tmp_path: Path) -> None:
    """`--task gplinker` on PaddleNLP's files: train_data.json, dev_data.json and label_maps.json."""
    given = [
        "--task",
        "gplinker",
        "--method",
        "full",
        "--model",
        str(folder / "encoder"),
        "--data",
        str(student / "data"),
    ]
    given += ["--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--max_length", "40", "--report_to", "none"]
    trainer = finetune_ernie.main([*given, "--save_strategy", "no", "--use_cpu", "true", "--disable_tqdm", "true"])
    assert trainer.model.config.entity_labels == LABELS
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert set(report["scores"]) >= {"eval_f1", "eval_entity_f1"}
    assert report["of_texts"].keys() == {"entity_precision", "entity_recall", "entity_f1", "f1"}
    assert AutoModel.from_pretrained(tmp_path / "out").config.schema == LABELS
