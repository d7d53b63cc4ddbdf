"""Fine-tuning ERNIE encoders to read: answers in texts, multiple choice; recipes and several seeds."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from conversion.__main__ import main as conversion_main
from hf_glm_ernie import answer_questions

pytest.importorskip("datasets", reason="the training scripts need datasets")
pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")

from examples import finetune_ernie  # needs them
from tests.support.finetuning import cache_in  # likewise

SAMPLE = Path(__file__).parents[1] / "examples" / "sample-ernie"
THINGS = ["法国", "北京", "大熊猫", "竹子", "月亮", "海洋", "冬天", "面包", "音乐", "火车"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ernie") / "masked-lm"
    assert conversion_main(["ernie", f"--source={SAMPLE / 'masked-lm'}", f"--output={folder}", "--dtype=float32"]) == 0
    return folder


def finetune(model: Path, data: Path, output: Path, *more: str, **options: Any) -> Any:
    settings = {
        "model": model,
        "data": data,
        "output_dir": output,
        "per_device_train_batch_size": 16,
        "learning_rate": 2e-3,
        "method": "full",
        "logging_steps": 5,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    words = [str(word) for name, value in (settings | options).items() for word in (f"--{name}", value)]
    with cache_in(output / "cache"):
        return finetune_ernie.main([*words, *more])


def write(file: Path, rows: list[Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


def question_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """What is said of a thing, or which thing it is said of; every fifth question has no answer."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        thing, end = rng.choice(THINGS), rng.choice(["很好", "很坏", "真美"])
        context = f"昨天听说{thing}{end}。" + "大家都很忙。" * rng.randint(0, 4)
        asked = (("谁？", [thing]), ("怎么样？", [end]), ("谁？", [thing]), ("怎么样？", [end]), ("为什么？", []))
        question, texts = asked[i % 5]
        answers = {"text": texts, "answer_start": [context.index(text) for text in texts]}
        rows.append({"id": str(i), "context": context, "question": question, "answers": answers})
    return rows


def test_answers_are_learnt_and_found(encoder, tmp_path) -> None:
    write(tmp_path / "data" / "train.jsonl", question_rows(320, 1))
    write(tmp_path / "data" / "dev.jsonl", question_rows(60, 2))
    options = {"max_steps": 60, "max_length": 32, "version_2_with_negative": True, "save_strategy": "no"}
    trainer = finetune(encoder, tmp_path / "data", tmp_path / "out", task="qa", **options)
    assert max(map(len, trainer.train_dataset["input_ids"])) == 32  # the longest texts are windows
    assert len(trainer.train_dataset) > 320
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert report["scores"]["eval_exact_match"] > 90  # 100.0 seen
    assert report["scores"]["eval_unanswerable_exact_match"] > 90
    assert report["by_class"].keys() == {"who", "how", "why"}
    assert len(report["mistakes"]) == round(60 * (1 - report["scores"]["eval_exact_match"] / 100))
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = question_rows(40, 3)
    asked = [{name: row[name] for name in ("question", "context")} for row in rows]
    answers = answer_questions(model, tokenizer, asked, may_be_unanswerable=True, max_length=32)
    right = [
        (a["text"], a["start"]) == ((r["answers"]["text"] or [""])[0], (r["answers"]["answer_start"] or [None])[0])
        for a, r in zip(answers, rows, strict=True)
    ]
    assert sum(right) >= 37


def c3(count: int, seed: int) -> list[Any]:
    """Of C3's form: what is said to be good is the answer, among two to four choices."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        choices = rng.sample(THINGS, rng.randint(2, 4))
        answer = rng.choice(choices)
        asked = {"question": "什么很好？", "choice": choices, "answer": answer}
        made.append([[f"男：{answer}很好。"], [asked], f"d-{i}"])
    return made


def test_a_recipe_with_several_seeds(encoder, tmp_path, capsys) -> None:
    """C3 as downloaded, two files a split; the recipe says all but the rate, the epochs and the rows a step."""
    data = tmp_path / "c3_public"
    data.mkdir()
    for i, name in enumerate(("d-train", "m-train", "d-dev", "m-dev")):
        (data / f"{name}.json").write_text(json.dumps(c3((100, 30)["dev" in name], i), ensure_ascii=False))
    options = {"recipe": "clue/c3/ernie-3.0-nano", "num_train_epochs": 3}
    finetune(encoder, data, tmp_path / "out", "--seeds", "1", "2", **options)
    report = json.loads((tmp_path / "out" / "seeds.json").read_text(encoding="utf-8"))
    assert report["seeds"].keys() == {"1", "2"}
    assert report["summary"]["eval_accuracy"]["min"] > 0.9  # 1.0 seen; a guess has a third
    one = json.loads((tmp_path / "out" / "seed-1" / "evaluation.json").read_text(encoding="utf-8"))
    assert one["scores"] == report["seeds"]["1"]
    assert set(one["by_class"]) == {"2 choices", "3 choices", "4 choices"}
    printed = capsys.readouterr().out
    assert "seed 2" in printed
    mean = 100 * report["summary"]["eval_accuracy"]["mean"]
    assert f"accuracy {mean:.2f}   published 55.11" in printed
    assert "here otherwise: learning_rate=0.002 (2e-05), num_train_epochs=3.0 (8), rows a step=16 (24)" in printed
    with pytest.raises(ValueError, match=r"holds a run already \(seeds\.json\)"):
        finetune(encoder, data, tmp_path / "out", "--seeds", "1", "2", **options)
    assert finetune(encoder, data, tmp_path / "out", "--seeds", "1", "2", resume=True, **options) is None


def test_the_published_grid(encoder, tmp_path, capsys) -> None:
    """Reading comprehension: three rates by two sizes. One that is done already is not trained again."""
    write(tmp_path / "data" / "train.jsonl", question_rows(8, 1))
    write(tmp_path / "data" / "dev.jsonl", question_rows(5, 2))
    kept = tmp_path / "out" / "lr-1e-05-batch-24"
    kept.mkdir(parents=True)
    (kept / "evaluation.json").write_text('{"scores": {"eval_exact_match": 101.0}}')
    options = {"recipe": "clue/cmrc2018/ernie-3.0-base-zh", "grid": True, "max_steps": 1, "resume": True}
    more = {"save_strategy": "no", "load_best_model_at_end": False, "eval_strategy": "no"}
    finetune(encoder, tmp_path / "data", tmp_path / "out", **options, **more)
    report = json.loads((tmp_path / "out" / "grid.json").read_text(encoding="utf-8"))
    assert report["runs"].keys() == {f"lr-{rate}e-05-batch-{size}" for rate in (1, 2, 3) for size in (24, 32)}
    assert (report["best"], report["metric"]) == ("lr-1e-05-batch-24", "eval_exact_match")
    settings = torch.load(tmp_path / "out" / "lr-3e-05-batch-32" / "training_args.bin", weights_only=False)
    assert (settings.learning_rate, settings.per_device_train_batch_size) == (3e-5, 32)
    printed = capsys.readouterr().out
    assert "exact_match 101.00   published 70.71" in printed
    assert "learning_rate" not in printed.split("clue/cmrc2018")[1]


def test_accumulated_rows_are_one_step(encoder, tmp_path) -> None:
    """Rows with two and with four choices: the loss of a step is the mean over its rows, however they come."""
    row = {"context": "北京很好。", "question": "什么？"}
    rows = [{**row, "choices": THINGS[: 2 + 2 * (i % 2)], "label": i % 2} for i in range(8)]
    write(tmp_path / "data" / "train.jsonl", rows)
    losses = []
    for size, steps in ((8, 1), (4, 2), (1, 8)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        more = {"logging_first_step": True, "save_strategy": "no", "task": "choice"}
        trainer = finetune(encoder, tmp_path / "data", tmp_path / f"out{size}", **options, **more)
        first = next(entry for entry in trainer.state.log_history if "grad_norm" in entry)
        losses.append((first["loss"], first["grad_norm"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # sums in another order: 1e-7 seen
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


@pytest.mark.parametrize(
    ("more", "options", "words"),
    [
        ((), {}, r"task=None is not one of .*, utc, qa, choice\. Or give a --recipe"),
        ((), {"task": "qa", "n_best": 0}, r"n_best=0 must be at least 1"),
        ((), {"task": "choice", "label_smoothing_factor": 0.1}, r"The loss of choice has no labels to smooth"),
        ((), {"task": "qa", "dropout": 1.0}, r"dropout=1.0 must be at least 0 and below 1"),
        (("--seeds", "1", "1"), {"task": "qa"}, r"seeds=\[1, 1\] names a seed twice"),
        (("--seeds", "1", "2"), {"task": "qa"}, r"--seeds compares scores: give --eval_data"),
        ((), {"recipe": "clue/cmrc2018"}, r"--recipe clue/cmrc2018 was published with scores: give --eval_data"),
        ((), {"task": "qa", "grid": True}, r"--grid runs the published grid of a --recipe"),
        ((), {"recipe": "clue/squad"}, r"recipe='clue/squad' is none of clue/TASK"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, more: tuple[str, ...], options: dict[str, Any], words: str) -> None:
    write(tmp_path / "data" / "train.jsonl", question_rows(4, 1))
    with pytest.raises(ValueError, match=words):
        finetune(tmp_path / "none", tmp_path / "data", tmp_path / "out", *more, **options)
