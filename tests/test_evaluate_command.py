"""`evaluate`: the shipped sample's known figure, mistakes and their places, files, what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, ErnieConfig, ErnieModel

from conversion.__main__ import main as convert
from hf_glm_ernie import ErnieForUIE, evaluate_ernie
from hf_glm_ernie.__main__ import main
from hf_glm_ernie.ernie_data import LabelDataArguments, label_data
from hf_glm_ernie.ernie_training.counts import Counts
from hf_glm_ernie.ernie_training.evaluation import MOST
from hf_glm_ernie.ernie_training.few_shot import draw_shots
from hf_glm_ernie.ernie_training.mistakes import Mark, compare
from hf_glm_ernie.ernie_training.span_scores import span_counts
from hf_glm_ernie.ernie_training.task_mistakes import tag_mistake
from hf_glm_ernie.ernie_training.tasks import TASKS
from hf_glm_ernie.ernie_training.utc_scores import holds

pytest.importorskip("datasets", reason="evaluation needs datasets")

SAMPLE = Path(__file__).parents[1] / "examples" / "sample-ernie"


def export(file: Path) -> Path:
    """The sample's Chinese texts as doccano exports them."""
    lines = []
    for line in (SAMPLE / "extractions.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["language"] != "zh":
            continue
        answers = [(label, one) for label, found in record["answers"].items() for one in found]
        ids = {(one["start"], one["end"]): number for number, (_, one) in enumerate(answers)}
        entities = [
            {"id": ids[a["start"], a["end"]], "label": label, "start_offset": a["start"], "end_offset": a["end"]}
            for label, a in answers
        ]
        relations = [
            {"id": 0, "from_id": ids[a["start"], a["end"]], "to_id": ids[o["start"], o["end"]], "type": predicate}
            for _, a in answers
            for predicate, objects in a.get("relations", {}).items()
            for o in objects
        ]
        numbered = [one | {"id": number} for number, one in enumerate(relations)]
        lines.append(json.dumps({"text": record["text"], "entities": entities, "relations": numbered}))
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted UIE sample and rows made of its texts: the first 14 are train, the others dev."""
    root = tmp_path_factory.mktemp("evaluate")
    assert convert(["ernie", f"--source={SAMPLE / 'uie'}", f"--output={root / 'uie'}", "--dtype=float32"]) == 0
    arguments = LabelDataArguments(splits=(0.7, 0.3, 0), shuffle=False, negative_ratio=3, seed=0, progress=False)
    label_data(export(root / "export.jsonl"), root / "rows", arguments)
    return root


def test_counts_give_the_known_figure() -> None:
    assert Counts(68, 95, 69).f1 == pytest.approx(0.8293, abs=5e-5)  # as it is printed


def test_the_sample_gives_its_known_figure(sample: Path) -> None:
    """68, 95 and 69 answers on train, all right on dev."""
    train = evaluate_ernie("uie", sample / "uie", sample / "rows" / "train.txt", show_progress=False)
    classes = train.by_class.values()
    found = sum(one["found"] + one["found_without_gold"] for one in classes)
    assert (sum(one["correct"] for one in classes), found, sum(one["gold"] for one in classes)) == (68, 95, 69)
    assert round(train.scores["f1"], 4) == 0.8293
    assert train.scores["f1_entities"] == 1.0
    assert train.by_class.keys() == {"时间", "人物", "地点", "公司", "X的创始人", "X的成立时间"}
    # Every mistake is told: the answers of the listing are those that were counted.
    told = {side: sum(len(one[side]) for one in train.mistakes) for side in ("missing", "wrong", "spurious")}
    assert told["missing"] + told["wrong"] == 69 - 68
    assert told["spurious"] + told["wrong"] == 95 - 68
    for one in train.mistakes:
        for mark in [*one["gold"], *one["found"], *one["missing"], *one["spurious"]]:
            assert one["text"][mark["start"] : mark["end"]] == mark["text"]
    schema = ["时间", "人物", "地点", {"公司": ["创始人", "成立时间"]}]
    dev = evaluate_ernie("uie", sample / "uie", sample / "rows", schema=schema, show_progress=False)
    assert dev.scores["f1"] == 1.0
    assert dev.mistakes == []
    assert dev.end_to_end is not None
    assert dev.end_to_end["scores"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert dev.end_to_end["rows_not_asked"] == 0
    assert dev.end_to_end["by_class"]["公司 -> 创始人"]["gold"] == dev.by_class["X的创始人"]["gold"]


def test_long_rows_are_told_in_their_own_offsets(sample: Path, tmp_path: Path) -> None:
    """A wrong gold span far behind a cut: the found one stands where the text has it."""
    first = json.loads((sample / "rows" / "dev.txt").read_text(encoding="utf-8").splitlines()[0])
    prefix = "  " + "今天没有什么事。" * 30
    row = {"content": prefix + first["content"], "prompt": first["prompt"]}
    row["result_list"] = [{"text": prefix[2:4], "start": 2, "end": 4}]
    (tmp_path / "row.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    found = evaluate_ernie("uie", sample / "uie", tmp_path / "row.jsonl", show_progress=False)
    (mistake,) = found.mistakes
    assert mistake["row"] == 0
    assert mistake["found"]
    for mark in mistake["found"] + mistake["gold"]:
        assert mistake["text"][mark["start"] : mark["end"]] == mark["text"]
    assert mistake["missing"] or mistake["wrong"] or mistake["spurious"]


def test_command_writes_all_files_or_none(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--task", "uie", "--model", str(sample / "uie"), "--no-progress"]
    arguments += ["--data", str(sample / "rows" / "train.txt"), "--output", str(tmp_path / "out" / "report.json")]
    assert main(arguments) == 0
    assert "X的创始人" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.json", "report.mistakes.jsonl", "report.mistakes.html"}
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    lines = (tmp_path / "out" / "report.mistakes.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == report["rows_with_mistakes"] > 0
    page = (tmp_path / "out" / "report.mistakes.html").read_text(encoding="utf-8")
    assert page.count("<section>") == len(lines)
    assert main(arguments) == 1
    assert "already has report.json" in capsys.readouterr().err
    headless = tmp_path / "out" / "headless"
    model = ErnieForUIE.from_pretrained(sample / "uie")
    ErnieModel(ErnieConfig(**{**model.config.to_dict(), "model_type": "ernie"})).save_pretrained(headless)
    AutoTokenizer.from_pretrained(sample / "uie").save_pretrained(headless)
    for more, said in (
        (["--setting", "stride=3"], "stride is not read by the task uie"),
        (["--threshold", "1.5"], "threshold=1.5"),
        (["--schema", "[x"], "is no JSON"),
        (["--output", str(tmp_path / "report.txt")], "is no .json file"),
        (["--model", str(tmp_path / "nothing")], "There is no folder"),
        (["--model", str(headless)], "without the head of this task, ErnieForUIE"),
    ):
        assert main([*arguments, "--output", str(tmp_path / "other.json"), *more]) == 1
        assert said in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    for task in ("classification", "tokens", "qa", "choice"):
        opened: Any = TASKS[task](None, 64)
        opened.labels = opened.names = SimpleNamespace(kind="single", names=[])  # as learnt from rows
        with pytest.raises(ValueError, match="type ernie_uie; this task takes an ERNIE encoder"):
            opened.open_model(str(sample / "uie"))


def plain(told: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    wrong = [(one["gold"]["text"], one["found"]["text"]) for one in told["wrong"]]
    return [one["text"] for one in told["missing"]], wrong, [one["text"] for one in told["spurious"]]


def test_what_is_wrong_is_told_apart() -> None:
    gold = [Mark("甲乙", 0, 2), Mark("丙", 4, 5), Mark("丁", 7, 8)]
    found = [Mark("乙", 1, 2), Mark("丁", 7, 8), Mark("戊", 9, 10)]
    assert plain(compare(found, gold)) == (["丙"], [("甲乙", "乙")], ["戊"])
    assert plain(compare([Mark("负向", -4, -2)], [Mark("正向", -7, -5)])) == ([], [("正向", "负向")], [])
    assert plain(compare([Mark("b")], [Mark("a")])) == (["a"], [], ["b"])
    assert plain(compare([Mark("b")], [Mark("a")], one_holds=True)) == ([], [("a", "b")], [])
    told = tag_mistake(3, ["New", "York", "is", "big"], [0, 1, 3], ["B-P", "O", "O"], ["B-P", "I-P", "O"], True)
    assert told["wrong"][0]["gold"] == {"text": "New York", "start": 0, "end": 2, "label": "P"}


def test_shots_are_drawn_for_every_label() -> None:
    labels = [["ab"[n % 2]] if n % 3 else [] for n in range(60)] + [["rare"]]
    texts = [n // 4 for n in range(60)] + [99]
    drawn = [draw_shots(texts, labels, shots, seed=1) for shots in (1, 2, 3)]
    assert drawn[0] == draw_shots(texts, labels, 1, seed=1) != draw_shots(texts, labels, 1, seed=2)
    assert set(drawn[0]) < set(drawn[1]) < set(drawn[2])
    for shots, rows in enumerate(drawn, 1):
        assert 60 in rows  # the only one of its label
        assert all(n in rows for n in range(60) if texts[n] in {texts[row] for row in rows})
        for label in "ab":
            assert len({texts[n] for n in rows if label in labels[n]}) >= shots
    with pytest.raises(ValueError, match="shots"):
        draw_shots(texts, labels, 0)


def test_at_a_threshold_of_one_what_is_certain_counts() -> None:
    certain = np.array([[0, 1, 0, 0]], dtype=np.float32)
    assert span_counts(certain, certain, certain, certain, MOST) == [Counts(1, 1, 1)]
    assert holds(np.array([[60.0, 5.0]], dtype=np.float32), MOST).tolist() == [[True, False]]
