"""Fine-tuning ERNIE encoders: classes and tags of a small separable task, UIE's extraction, adapters, resumed runs."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ErnieForSequenceClassification, Trainer

from conversion.__main__ import main as conversion_main
from hf_glm_ernie import ErnieForUIE, ErnieForUTC, Evaluation, evaluate_ernie, uie, utc

datasets = pytest.importorskip("datasets", reason="the training scripts need datasets")
pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")

from examples import finetune_ernie  # noqa: E402  # needs them
from hf_glm_ernie.finetuning.weight_only import load_adapter  # noqa: E402  # likewise
from tests.support.finetuning import cache_in  # noqa: E402  # likewise

SAMPLE = Path(__file__).parents[1] / "examples" / "sample-ernie"
NEAR = ["法国", "北京", "大熊猫", "竹子", "月亮", "海洋", "冬天", "面包", "音乐", "火车"]
OPENINGS = ["我觉得", "昨天听说", "老师说", "大家都知道", "书上写着"]
GOOD, BAD = ["很好", "真美", "好极了", "很快乐"], ["很坏", "太差", "糟透了", "很难过"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ernie")
    for name in ("masked-lm", "uie"):
        arguments = ["ernie", f"--source={SAMPLE / name}", f"--output={root / name}", "--dtype=float32"]
        assert conversion_main(arguments) == 0
    return {name: root / name for name in ("masked-lm", "uie")}


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """Opinions; the label follows from the last words."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        good = rng.random() < 0.5
        text = rng.choice(OPENINGS) + rng.choice(NEAR) + rng.choice(GOOD if good else BAD) + "。"
        rows.append({"text": text, "label": "good" if good else "bad"})
    return rows


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return file


def finetune(task: str, model: Path, data: Path, output: Path, **options: Any) -> Trainer:
    settings = {
        "task": task,
        "model": model,
        "data": data,
        "output_dir": output,
        "per_device_train_batch_size": 16,
        "logging_steps": 5,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    words = [str(word) for name, value in (settings | options).items() for word in (f"--{name}", value)]
    with cache_in(output / "cache"):
        return finetune_ernie.main(words)


def base_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = trainer.model.get_base_model().state_dict()
    return {n.replace(".base_layer", ""): t for n, t in state.items() if "lora_" not in n and "classifier" not in n}


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full", "learning_rate": 1e-3},
        {"method": "lora", "learning_rate": 1e-2},
        {"method": "qlora", "weights": "int4", "learning_rate": 1e-2},
    ],
    ids=lambda options: options["method"],
)
def test_a_separable_task_is_learnt(folders, tmp_path, options: dict[str, Any]) -> None:
    train = write(tmp_path / "train.jsonl", sentences(320, seed=1))
    test = write(tmp_path / "test.jsonl", sentences(200, seed=2))
    arguments = {"eval_data": test, "max_steps": 60, "eval_strategy": "steps", "eval_steps": 60}
    trainer = finetune("classification", folders["masked-lm"], train, tmp_path / "out", **arguments, **options)
    accuracy = next(entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry)
    assert accuracy > 0.95  # 1.0 seen in all three
    if options["method"] == "full":
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    else:
        names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
        arguments = finetune_ernie.AdapterArguments(**{k: v for k, v in options.items() if k != "learning_rate"})
        config = arguments.quantization_config(torch.float32, ["pooler.dense", "classifier"])
        base = AutoModelForSequenceClassification.from_pretrained(
            folders["masked-lm"], quantization_config=config, **names
        )
        before = base_of(trainer)
        untouched = {name: tensor for name, tensor in base.state_dict().items() if "classifier" not in name}
        assert before.keys() == untouched.keys()
        # The sample's pooler is stored, so everything but the new head comes from the folder.
        assert all(torch.equal(before[name], tensor) for name, tensor in untouched.items())
        model = load_adapter(base, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    held_out = sentences(100, seed=3)
    with torch.no_grad():
        outputs = model.eval()(**tokenizer([row["text"] for row in held_out], padding=True, return_tensors="pt"))
    names = [model.config.id2label[index] for index in outputs.logits.argmax(-1).tolist()]
    assert sum(name == row["label"] for name, row in zip(names, held_out, strict=True)) > 95


@pytest.mark.parametrize(("method", "least"), [("prefix", 0.9), ("prompt", 0.75), ("p-tuning", 0.7)])
def test_virtual_tokens_learn_and_open_exactly(folders, tmp_path, method: str, least: float) -> None:
    """Fewer numbers are trained than in an adapter. Seen: 95%, 87% and 78% of held-out texts; a guess has half."""
    train = write(tmp_path / "train.jsonl", sentences(320, seed=1))
    test = write(tmp_path / "test.jsonl", sentences(200, seed=2))
    options = {"method": method, "max_steps": 60, "learning_rate": 3e-2, "max_length": 128}
    trainer = finetune("classification", folders["masked-lm"], train, tmp_path / "out", eval_data=test, **options)
    assert trainer.evaluate()["eval_accuracy"] > least
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    base = AutoModelForSequenceClassification.from_pretrained(folders["masked-lm"], **names)
    stored = base.state_dict()
    for name, tensor in trainer.model.get_base_model().state_dict().items():  # only the new head was trained
        assert "classifier" in name or torch.equal(tensor, stored[name])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer([row["text"] for row in sentences(20, seed=3)], padding=True, return_tensors="pt")
    opened = load_adapter(base, tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(opened(**inputs).logits, trainer.model.eval()(**inputs).logits)


def test_a_text_is_cut_to_the_positions_behind_virtual_tokens(folders, tmp_path) -> None:
    rows = [{"text": "北京很好。" * 60, "label": label} for label in ("good", "bad")]
    train = write(tmp_path / "train.jsonl", rows)
    for method in ("prefix", "prompt", "full"):
        trainer = finetune(
            "classification", folders["masked-lm"], train, tmp_path / method, method=method, max_steps=1
        )
        longest = max(map(len, trainer.train_dataset["input_ids"]))
        assert longest == 128 - (0 if method == "full" else 16)


def test_tags_of_tokens_are_learnt(folders, tmp_path) -> None:
    def rows(count: int, seed: int) -> list[dict[str, Any]]:
        rng = random.Random(seed)
        made = []
        for _ in range(count):
            opening, thing, end = rng.choice(OPENINGS), rng.choice(NEAR), rng.choice(GOOD + BAD)
            tags = ["O"] * len(opening) + ["B"] + ["I"] * (len(thing) - 1) + ["O"] * len(end)
            made.append({"tokens": list(opening + thing + end), "tags": tags})
        return made

    train, test = write(tmp_path / "train.jsonl", rows(200, 1)), write(tmp_path / "test.jsonl", rows(100, 2))
    arguments = {"eval_data": test, "max_steps": 60, "eval_strategy": "steps", "eval_steps": 60}
    trainer = finetune(
        "tokens", folders["masked-lm"], train, tmp_path / "out", learning_rate=1e-3, method="full", **arguments
    )
    scores = next(entry for entry in trainer.state.log_history if "eval_accuracy" in entry)
    assert scores["eval_accuracy"] > 0.95
    assert scores["eval_f1"] > 0.95  # of the entities; 1.0 seen
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert report["by_class"][""]["gold"] == 100
    assert report["scores"]["eval_f1"] == scores["eval_f1"]
    check_measured("tokens", tmp_path / "out", test)


def check_measured(task: str, folder: Path, data: Path) -> Evaluation:
    """What `evaluate` finds of a finished folder is what the training script wrote."""
    report = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    found = evaluate_ernie(task, folder, data, show_progress=False, max_length=128)
    assert found.by_class == report["by_class"]
    assert found.mistakes == report["mistakes"]
    assert {f"eval_{name}": score for name, score in found.scores.items()}.items() <= report["scores"].items()
    return found


def answers_in(text: str, prompt: str, *found: str) -> dict[str, Any]:
    spans = [{"text": f, "start": text.index(f), "end": text.index(f) + len(f)} for f in found]
    return {"content": text, "prompt": prompt, "result_list": spans}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_uie_learns_a_new_name(folders, tmp_path, method: str) -> None:
    rng = random.Random(0)
    texts = [(o + t + e, t) for o in OPENINGS for t in NEAR for e in rng.sample(GOOD + BAD, 2)]
    rng.shuffle(texts)
    train = write(tmp_path / "train.jsonl", [answers_in(text, "话题", thing) for text, thing in texts[:80]])
    held_out = texts[80:]
    rate = {"full": 1e-3, "lora": 1e-2}[method]
    trainer = finetune("uie", folders["uie"], train, tmp_path / "out", learning_rate=rate, method=method, max_steps=60)
    assert trainer.args.label_names == ["start_positions", "end_positions"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    if method == "full":
        model = ErnieForUIE.from_pretrained(tmp_path / "out")
    else:
        model = load_adapter(ErnieForUIE.from_pretrained(folders["uie"]), tmp_path / "out").merge_and_unload()
        measured = evaluate_ernie("uie", tmp_path / "out", train, max_length=128, show_progress=False)
        assert measured.scores["f1"] > 0.9  # of the adapter's own folder; the base has never heard of it
    found = uie(model.eval(), tokenizer, ["话题"], [text for text, _ in held_out])
    right = sum([a["text"] for a in f.get("话题", [])] == [t] for f, (_, t) in zip(found, held_out, strict=True))
    assert right >= 0.9 * len(held_out)


def uie_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows as PaddleNLP's converter writes them, those among them that once stopped the script."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        opening, thing, end = rng.choice(OPENINGS), rng.choice(NEAR), rng.choice(GOOD + BAD)
        text = f"{opening} {thing} {end}。"
        rows.append(answers_in(text, "话题", thing))
        place = -7 if end in GOOD else -4
        option = {"text": "正向" if end in GOOD else "负向", "start": place, "end": place + 2}
        rows.append({"content": text, "prompt": "情感倾向[正向,负向]", "result_list": [option]})
        rows.append(answers_in(text, f"{thing}的评价", end))
    blank = {"content": " 听说 北京 很好", "prompt": "话题", "result_list": [{"text": " 北京 ", "start": 3, "end": 7}]}
    empty = {"content": "", "prompt": "话题", "result_list": []}
    long = answers_in("昨天听说大家都很忙。" * 20 + "北京很好", "话题", "北京")
    return [*rows, blank, empty, long]


def test_uie_takes_the_rows_of_paddlenlp_and_keeps_the_best_model(folders, tmp_path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write(data / "train.txt", uie_rows(60, seed=1))
    write(data / "dev.txt", uie_rows(20, seed=2))
    options = {
        "method": "full",
        "learning_rate": 2e-3,
        "max_steps": 40,
        "eval_strategy": "steps",
        "eval_steps": 20,
        "save_strategy": "steps",
        "save_steps": 20,
        "metric_for_best_model": "eval_f1",
        "load_best_model_at_end": True,
    }
    trainer = finetune("uie", folders["uie"], data, tmp_path / "out", **options)
    scores = [entry["eval_f1"] for entry in trainer.state.log_history if "eval_f1" in entry]
    assert trainer.state.best_metric == max(scores)
    assert max(scores) > 0.5  # 0.65 seen after these few steps, 0.8 after 60
    assert len(trainer.eval_dataset) == 64  # 63 rows, of which one is cut in two (the model has 128 positions)
    assert max(map(len, trainer.train_dataset["input_ids"])) <= 128
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert report["scores"]["eval_f1"] == max(scores)
    assert report["by_class"].keys() == {"话题", "情感倾向[正向,负向]", "X的评价"}
    assert report["by_class"]["话题"]["gold"] == 22
    assert {one["row"] for one in report["mistakes"]} <= set(range(63))
    assert check_measured("uie", tmp_path / "out", data).mistakes


def test_utc_learns_its_choices(folders, tmp_path) -> None:
    """From an encoder without the head; every row offers its own choices in its own order."""

    def rows(count: int, seed: int) -> list[dict[str, Any]]:
        rng = random.Random(seed)
        made = []
        for row in sentences(count, seed):
            choices = ["很好", "很坏"] + ["音乐"] * rng.randint(0, 1)
            rng.shuffle(choices)
            label = choices.index("很好" if row["label"] == "good" else "很坏")
            made.append({"text_a": row["text"], "text_b": "", "question": "", "choices": choices, "labels": [label]})
        return made

    train, test = write(tmp_path / "train.jsonl", rows(320, 1)), write(tmp_path / "test.jsonl", rows(100, 2))
    options = {"eval_data": test, "max_steps": 60, "learning_rate": 1e-3, "method": "full"}
    trainer = finetune("utc", folders["masked-lm"], train, tmp_path / "out", **options)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    scores = {name: report["scores"][f"eval_{name}"] for name in ("micro_f1", "macro_f1", "accuracy")}
    assert min(scores.values()) > 0.95, scores  # 0.98 seen
    assert report["by_class"].keys() == {"很好", "很坏", "音乐"}
    assert report["by_class"]["音乐"]["gold"] == 0
    check_measured("utc", tmp_path / "out", test)
    assert trainer.model.config.vocab_size == len(trainer.processing_class)
    few = finetune("utc", folders["masked-lm"], train, tmp_path / "few", max_steps=1, method="full", shots=4)
    assert len(few.train_dataset) == 8  # of 320; a row holds one of two options
    model, tokenizer = ErnieForUTC.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    answers = utc(
        model.eval(), tokenizer, ["很坏", "很好"], [row["text"] for row in sentences(20, seed=3)], single_label=True
    )
    right = [
        row["label"] == {"很好": "good", "很坏": "bad"}[a["predictions"][0]["label"]]
        for a, row in zip(answers, sentences(20, seed=3), strict=True)
    ]
    assert sum(right) >= 19
    with pytest.raises(ValueError, match=r"has no embedding row for \[O-MASK\], and an adapter trains none"):
        finetune("utc", folders["masked-lm"], train, tmp_path / "adapter", max_steps=1, method="lora")


def test_several_classes_of_a_text(folders, tmp_path) -> None:
    def rows(count: int, seed: int) -> list[dict[str, Any]]:
        made = []
        for row in sentences(count, seed):
            labels = [row["label"]] + ["said"] * ("说" in row["text"])
            made.append({"text": row["text"], "label": labels if row["label"] == "good" else labels[1:]})
        return made

    train, test = write(tmp_path / "train.jsonl", rows(320, 1)), write(tmp_path / "test.jsonl", rows(100, 2))
    options = {"eval_data": test, "max_steps": 40, "learning_rate": 1e-3, "method": "full"}
    trainer = finetune("classification", folders["masked-lm"], train, tmp_path / "out", **options)
    assert trainer.model.config.problem_type == "multi_label_classification"
    check_measured("classification", tmp_path / "out", test)
    assert trainer.model.config.id2label == {0: "good", 1: "said"}
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert report["scores"]["eval_micro_f1"] > 0.95  # 1.0 seen
    assert report["by_class"]["said"]["f1"] > 0.95
    wrong = write(tmp_path / "wrong.jsonl", [{"text": "北京", "label": ["new"]}])
    with pytest.raises(ValueError, match=r"Row 0 of the data has 'new', which is none of \['good', 'said'\]"):
        finetune("classification", folders["masked-lm"], train, tmp_path / "no", eval_data=wrong, max_steps=1)


def test_numbers_with_a_fraction_are_predicted(folders, tmp_path) -> None:
    def rows(count: int, seed: int) -> list[dict[str, Any]]:
        return [
            {"text": row["text"], "label": (1.0 if row["label"] == "good" else -1.0) + 0.5 * ("说" in row["text"])}
            for row in sentences(count, seed)
        ]

    train, test = write(tmp_path / "train.jsonl", rows(320, 1)), write(tmp_path / "test.jsonl", rows(100, 2))
    options = {"eval_data": test, "max_steps": 40, "learning_rate": 1e-3, "method": "full"}
    trainer = finetune("classification", folders["masked-lm"], train, tmp_path / "out", **options)
    assert (trainer.model.config.problem_type, trainer.model.config.num_labels) == ("regression", 1)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert report["scores"]["eval_pearson"] > 0.95  # 0.998 seen


def test_a_resumed_run_is_the_uninterrupted_one(folders, tmp_path) -> None:
    train = write(tmp_path / "train.jsonl", sentences(64, seed=1))
    options = {"method": "lora", "save_strategy": "steps", "save_steps": 4, "max_steps": 8, "learning_rate": 1e-3}
    whole = finetune("classification", folders["masked-lm"], train, tmp_path / "whole", **options)
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    (tmp_path / "whole" / "checkpoint-4").rename(resumed / "checkpoint-4")
    again = finetune("classification", folders["masked-lm"], train, resumed, resume="true", **options)
    first, second = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_texts_and_numbers_as_labels(folders, tmp_path) -> None:
    rows = [{"text": "北京", "text_pair": "法国", "label": i % 3} for i in range(6)]
    data = write(tmp_path / "pairs.jsonl", rows)
    trainer = finetune("classification", folders["masked-lm"], data, tmp_path / "out", method="full", max_steps=1)
    assert isinstance(trainer.model, ErnieForSequenceClassification)
    assert trainer.model.config.id2label == {0: "0", 1: "1", 2: "2"}
    first = trainer.train_dataset[0]
    assert 1 in first["token_type_ids"]


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("classification", {"text": None, "label": "good"}, r"Row 1 of the data has no text in column 'text'"),
        ("classification", {"text": "北京", "label": None}, r"Row 1 of the data has no label: found None"),
        ("classification", {"content": "北京", "label": "good"}, r"has no column text; it has content, label"),
        ("tokens", {"tokens": ["北"], "tags": ["O", "O"]}, r"Row 1 of the data has 1 tokens and 2 tags"),
        (
            "uie",
            {"content": "北京很好", "prompt": "话题", "result_list": [{"start": 2, "end": 9, "text": "很好"}]},
            r"Row 1 of the data has an answer at 2\.\.9, which is outside its content",
        ),
    ],
)
def test_rows_that_are_not_what_they_should_be(folders, tmp_path, task: str, row: dict[str, Any], words: str) -> None:
    fine = {
        "classification": {"text": "北京", "label": "good"},
        "tokens": {"tokens": ["北"], "tags": ["O"]},
        "uie": answers_in("北京很好", "话题", "北京"),
    }[task]
    data = write(tmp_path / "bad.jsonl", [row if "content" in row and task != "uie" else fine, row])
    folder = folders["uie" if task == "uie" else "masked-lm"]
    with pytest.raises(ValueError, match=words):
        finetune(task, folder, data, tmp_path / "out", max_steps=1, method="full")


def test_options_that_do_not_go_together(folders, tmp_path) -> None:
    data = write(tmp_path / "train.jsonl", sentences(8, seed=1))
    uie_data = write(tmp_path / "uie.jsonl", [answers_in("北京很好", "话题", "北京")])
    tags = write(tmp_path / "tags.jsonl", [{"tokens": ["北", "京"], "tags": ["B", "I"]}])
    for task, folder, file, options, words in (
        ("tokens", "masked-lm", tags, {"method": "prompt"}, "no place for with task_type='TOKEN_CLS'"),
        ("uie", "uie", uie_data, {"method": "prefix"}, "no place for with task_type=None"),
        ("classification", "masked-lm", data, {"method": "p-tuning", "resume": True}, "cannot go on with p-tuning"),
        ("uie", "uie", uie_data, {"label_smoothing_factor": 0.1}, "no labels to smooth"),
        (
            "regression",
            "masked-lm",
            data,
            {},
            "task='regression' is not one of classification, tokens, gplinker, uie, utc, qa",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            finetune(task, folders[folder], file, tmp_path / "out", max_steps=1, **options)


@pytest.mark.parametrize("task", ["classification", "tokens"])
def test_an_adapter_keeps_the_names_of_its_classes(folders: dict[str, Path], tmp_path: Path, task: str) -> None:
    """`evaluate` opens the folder alone, and scores as the script did."""
    names = ["查物流", "退款", "投诉"]
    rows = [
        {"text": f"第{i}次", "label": name, "tokens": list("说三次"), "tags": [name] * 3}
        for i, name in enumerate(names)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    finetune(task, folders["masked-lm"], data, tmp_path / "adapter", max_steps=1, method="lora", eval_data=data)
    report = json.loads((tmp_path / "adapter" / "evaluation.json").read_text(encoding="utf-8"))
    found = evaluate_ernie(task, tmp_path / "adapter", data)
    assert set(names) <= set(found.by_class)
    assert found.scores == pytest.approx({name: report["scores"][f"eval_{name}"] for name in found.scores})
