"""`python -m hf_glm_ernie shrink` on small trained models: every stage, what it leaves, what it refuses."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, ErnieConfig, ErnieForSequenceClassification

from conversion.__main__ import main as conversion_main
from hf_glm_ernie import ErnieForUIE, OnnxEncoder, uie
from hf_glm_ernie.__main__ import main as command
from hf_glm_ernie.ernie_shrinking.arguments import ShrinkArguments
from hf_glm_ernie.ernie_shrinking.measuring import Stage, measure_speeds, table_of
from hf_glm_ernie.ernie_shrinking.shrink import ONNX_PACKAGES

pytest.importorskip("datasets", reason="rows are read with datasets")

SAMPLE = Path(__file__).parents[1] / "examples" / "sample-ernie"
missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(missing), reason=f"needs {' and '.join(missing)}: pip install 'hf-glm-ernie[onnx]'"
)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The trained UIE sample, and rows of it that it answers right."""
    root = tmp_path_factory.mktemp("shrink")
    assert conversion_main(["ernie", f"--source={SAMPLE / 'uie'}", f"--output={root / 'uie'}"]) == 0
    rows = []
    for line in (SAMPLE / "extractions.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for prompt, spans in entry["answers"].items():
            results = [{name: span[name] for name in ("text", "start", "end")} for span in spans]
            rows.append({"content": entry["text"], "prompt": prompt, "result_list": results})
    write(root / "data" / "train.jsonl", rows[:32])
    write(root / "data" / "dev.jsonl", rows[32:56])
    return root / "uie", root / "data"


def shrunk(sample: tuple[Path, Path], output: Path, *options: str, task: str = "uie") -> int:
    model, data = sample
    return command(
        [
            *("shrink", "--task", task, "--model", str(model), "--data", str(data), "--output", str(output)),
            "--quiet",
            *("--max-length", "96", *options),
        ]
    )


@needs_onnx
def test_every_stage_of_uie(sample: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "small"
    options = ("--width", "0.5", "--epochs", "1", "--learning-rate", "3e-4", "--speed-rows", "8")
    assert shrunk(sample, output, *options) == 0
    report = json.loads((output / "shrink.json").read_text(encoding="utf-8"))
    names = [(stage["name"], stage["runtime"]) for stage in report["stages"]]
    assert names == [
        *(("teacher", "torch"), ("pruned to 0.5", "torch"), ("distilled", "torch"), ("teacher", "onnxruntime")),
        *(("vocabulary", "torch"), ("INT8 embeddings", "torch"), ("student", "onnxruntime")),
        *(("dynamic INT8", "onnxruntime"), ("static INT8", "onnxruntime")),
    ]
    table = capsys.readouterr().out
    assert all(name in table for name, _ in names)
    stages = dict(zip(names, report["stages"], strict=True))
    sizes = [stages[name, "torch"]["size"] for name in ("teacher", "distilled", "vocabulary", "INT8 embeddings")]
    assert sizes == sorted(sizes, reverse=True)
    assert all(stage["rows_a_second"] > 0 for stage in report["stages"])
    assert report["metric"] == "f1"
    assert stages["teacher", "torch"]["score"] == pytest.approx(stages["teacher", "onnxruntime"]["score"])
    # What needs no training changes nothing (a smaller vocabulary), or little; folder and export are one model.
    scores = {name: stages[name, "torch"]["score"] for name in ("distilled", "vocabulary", "INT8 embeddings")}
    assert scores["vocabulary"] == scores["distilled"]
    assert stages["student", "onnxruntime"]["score"] == pytest.approx(scores["INT8 embeddings"], abs=0.02)
    # Products in integers move a few of 24 rows' answers at most; noise in place of embeddings gives 0.
    for name in ("dynamic INT8", "static INT8"):
        assert stages[name, "onnxruntime"]["score"] == pytest.approx(scores["INT8 embeddings"], abs=0.1), name
    assert (output / "model" / "config.json").is_file()
    for stage in report["stages"]:
        assert stage["path"] is None or (output / stage["path"]).exists()
    files = {file: (output / "onnx" / file).stat().st_size for file in ("model.onnx", "model_int8_static.onnx")}
    assert files["model_int8_static.onnx"] < files["model.onnx"] < sizes[0]
    answers = answers_of_the_folder(output)
    assert answers["torch"] == answers["model.onnx"]


def answers_of_the_folder(output: Path) -> dict[str, Any]:
    """What the student and its exported file extract: `uie` opens both."""
    text, schema = "去年春天，重庆下了一场大雪。", ["时间", "地点"]
    model, tokenizer = ErnieForUIE.from_pretrained(output / "model"), AutoTokenizer.from_pretrained(output / "model")
    encoder = OnnxEncoder(output / "onnx")
    found = {"torch": uie(model, tokenizer, schema, text), "model.onnx": uie(encoder, encoder.tokenizer, schema, text)}
    return {
        name: {label: [(one["start"], one["end"]) for one in spans] for label, spans in answers[0].items()}
        for name, answers in found.items()
    }


def test_steps_can_be_left_out(sample: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "small"
    assert shrunk(sample, output, "--width", "1", "--int8", "embeddings", "--speed-rows", "4") == 0
    report = json.loads((output / "shrink.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in report["stages"]] == ["teacher", "vocabulary", "INT8 embeddings"]
    assert report["stages"][0]["score"] == report["stages"][1]["score"]
    assert report["positions"][1] == 96
    config = ErnieForUIE.from_pretrained(output / "model").config
    assert (config.kept_attention_heads, config.embedding_bits) == (None, 8)
    assert not (output / "onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", "0"], "width=0.0"),
        (["--width", "1", "--vocabulary", "none", "--int8", "none"], "nothing to do"),
        (["--vocabulary", "absent.txt"], "'absent.txt' is no file"),
        (["--vocabulary", "data", "none"], "stand alone"),
        (["--epochs", "-1"], "epochs=-1.0 is below 0"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--eval-data", "absent.jsonl"], "absent.jsonl"),
        (["--cut", "words"], "cut='words' is not one of"),
    ],
)
def test_wrong_options_leave_nothing(
    sample: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert shrunk(sample, tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_models_that_are_not_trained_for_the_task(
    sample: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for name in ("train", "dev"):
        write(data / f"{name}.jsonl", [{"text": "很好", "label": "good"}, {"text": "很坏", "label": "bad"}])
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = ErnieConfig(vocab_size=1909, **sizes, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    ErnieForSequenceClassification(config).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(sample[0]).save_pretrained(tmp_path / "other")
    before = sorted(tmp_path.iterdir())
    for folder, message in (
        (tmp_path / "other", "was trained for the classes no, yes; the training rows have bad, good"),
        (data, "is not the folder of a whole trained model"),
        (sample[0], "ernie_uie"),
    ):
        try:
            status = shrunk((folder, data), tmp_path / "out", task="classification")
            assert status == 1
            error = capsys.readouterr().err
        except ValueError as raised:
            error = str(raised)
        assert message in error
        assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "taken").mkdir()
    assert shrunk(sample, tmp_path / "taken") == 1
    assert "exists already" in capsys.readouterr().err


def test_speeds_and_the_table() -> None:
    calls: list[str] = []
    batch = {"input_ids": torch.zeros(3, 2)}
    runs = {name: lambda _, name=name: calls.append(name) for name in ("first", "second")}
    speeds = measure_speeds(runs, {"first": [batch], "second": [batch, batch]}, turns=2, show_progress=False)
    assert calls == ["first", "second", "second"] * 3  # in turns, the first of which is not counted
    assert all(speed > 0 for speed in speeds.values())
    stages = [Stage("whole", "torch", None, 2**20, 0.8, 10.0), Stage("part", "torch", None, 2**18, 0.6, 25.0)]
    last = table_of(stages, "f1").splitlines()[-1].split()
    assert last == ["part", "torch", "0.25", "25.0%", "25.0", "2.50x", "0.6000", "75.0%"]


def test_arguments_from_python() -> None:
    with pytest.raises(ValueError, match="task='sorting' is not one of"):
        ShrinkArguments(task="sorting", model=Path("a"), data=Path("b"), output=Path("c"))
    with pytest.raises(ValueError, match="int8='all' is not one of"):
        ShrinkArguments(task="uie", model=Path("a"), data=Path("b"), output=Path("c"), int8=("all",))
