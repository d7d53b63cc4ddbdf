"""`label-data` on files: PaddleNLP's scripts run whole, what is told, what stays when something fails."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_glm_ernie import __main__ as package
from hf_glm_ernie.ernie_data import LabelDataArguments, command, label_data, spool
from tests.reference.label_data_naive import Naive
from tests.support.label_data import (
    FULL,
    GOOD,
    MISSING,
    SMALL,
    TEXT,
    bag,
    contradictory,
    flat,
    plain,
    read_lines,
    records_of,
    span,
    task,
)

CASES = [case for path in sorted(SMALL.glob("scripts/*.jsonl")) for case in read_lines(path)]


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run_case(case: dict[str, Any], root: Path, output: Path, *more: str) -> None:
    """Runs the command on what a script of PaddleNLP was run on, with the script's own arguments."""
    given = [str(root / "inputs" / one) if one == "utc_options.txt" else one for one in case["args"]]
    given += ["--task", "utc"] if "zero_shot" in case["script"] else []
    given += ["--write", "doccano"] if "labelstudio2doccano" in case["script"] else []
    arguments = ["label-data", str(root / "inputs" / case["input"]), "--output", str(output), "--no-progress"]
    assert package.main([*arguments, *given, *more]) == 0


@pytest.mark.parametrize("case", [one for one in CASES if not one["error"]], ids=lambda one: one["script"])
def test_scripts_are_reproduced(case: dict[str, Any], tmp_path: Path) -> None:
    """Classes, UTC, Label Studio in doccano's form: every file, with the random orders of options and documents."""
    run_case(case, SMALL, tmp_path)
    assert case["files"]
    for name, golden in case["files"].items():
        path = next(tmp_path.iterdir()) if name == "o.jsonl" else tmp_path / name
        if name == "sample_index.json":
            assert json.loads(path.read_text(encoding="utf-8")) == golden
        elif "zero_shot" in case["script"] or name == "o.jsonl":
            assert rows_of(path) == golden
        else:
            expected = [(case["texts"][text], prompt, found) for text, prompt, found in golden]
            assert [flat(row) for row in rows_of(path)] == expected


def naive_splits(case: dict[str, Any], original: bool) -> dict[str, list[Any]]:
    """What a script gives, by the slow reference: documents dealt out, splits converted in turn, rows permuted."""
    words = case["args"]
    is_label_studio = case["input"].startswith("label_studio")
    seed = int(words[words.index("--seed") + 1]) if "--seed" in words else 1000
    ratio = int(words[words.index("--negative_ratio") + 1]) if "--negative_ratio" in words else 5
    documents = [plain(one) for one in records_of(FULL / "inputs" / case["input"])]
    draws, is_shuffled = np.random.RandomState(seed), "False" not in words
    splits = {"train": documents}
    if words != ["--splits"]:
        parts = (0.6, 0.2) if "--splits" in words else (0.8, 0.1)
        order = draws.permutation(len(documents)) if is_shuffled else range(len(documents))
        ends = [0, int(len(documents) * parts[0]), int(len(documents) * sum(parts)), len(documents)]
        names = enumerate(("train", "dev", "test"))
        splits = {name: [documents[i] for i in order[ends[k] : ends[k + 1]]] for k, name in names}
    variant = {"prefix": "情感倾向", "options": ["正向", "负向"], "sep": "##", "lang": "ch"}
    naive, made = Naive(variant, is_label_studio, original, seed), {}
    for name, some in splits.items():
        is_train = name == "train"
        rows = naive.rows(some, ratio if is_train or is_label_studio else -1, is_train)
        if is_train and is_shuffled and not is_label_studio:
            rows = [rows[i] for i in draws.permutation(len(rows))]
        made[f"{name}.txt"] = rows
    return made


def test_extraction_scripts_are_reproduced(tmp_path: Path) -> None:
    """Every file equal but for rows that are wrong there and what takes their places.

    Files whose rows are as many as PaddleNLP's are equal place by place; where nothing can take a place, the rows of a
    permuted file stand otherwise, for there are fewer of them.
    """
    if not FULL.is_dir():
        pytest.skip(MISSING)
    cases = [one for path in sorted(FULL.glob("scripts/*.jsonl")) for one in read_lines(path)]
    cases = [one for one in cases if one["texts"] and "cls" not in one["input"]]
    assert len(cases) == 6
    for number, case in enumerate(cases):
        theirs = naive_splits(case, original=True)
        run_case(case, FULL, tmp_path / str(number), "--unknown-options", "drop")
        for name, golden in case["files"].items():
            path = tmp_path / str(number) / name
            if name == "sample_index.json":
                assert json.loads(path.read_text(encoding="utf-8")) == golden
                continue
            assert theirs[name] == [(case["texts"][text], prompt, found) for text, prompt, found in golden]
            mine = [flat(row) for row in rows_of(path)]
            assert not contradictory(mine)
            wrong = [row for row in theirs[name] if "贵" in [one[0] for one in row[2]]] + contradictory(theirs[name])
            opinions = (
                [row for row in theirs[name] if "观点词" in row[1] and not row[2]] if "studio" in case["input"] else []
            )
            assert not bag(theirs[name]) - bag(mine) - bag(wrong + opinions)
            if len(mine) == len(golden):
                differing = [row for row, one in zip(theirs[name], mine, strict=True) if row != one]
                assert not bag(differing) - bag(wrong + opinions)


def test_documents_in_their_order(tmp_path: Path) -> None:
    """PaddleNLP's script for Label Studio fails without shuffling; its UTC script takes "False" for true."""
    golden = next(one for one in CASES if one["error"])
    assert golden["error"].startswith("UnboundLocalError")
    run_case(golden, SMALL, tmp_path / "ext", "--unknown-options", "drop")
    index = json.loads((tmp_path / "ext" / "sample_index.json").read_text(encoding="utf-8"))
    assert [*index["train_ids"], *index["dev_ids"], *index["test_ids"]] == list(range(42))
    assert [len(part) for part in index.values()] == [25, 8, 9]
    utc = next(one for one in CASES if "utc" in one["input"])
    run_case(utc, SMALL, tmp_path / "utc", "--is_shuffle", "False")
    index = json.loads((tmp_path / "utc" / "sample_index.json").read_text(encoding="utf-8"))
    assert [*index["train_ids"], *index["dev_ids"], *index["test_ids"]] == list(range(24))
    tasks = records_of(SMALL / "inputs" / "label_studio_utc.json")
    first = rows_of(tmp_path / "utc" / "train.txt")[0]
    assert tasks[0]["data"]["text"] == f"{first['text_a']}\t{first['text_b']}"


# What is there, what stays, what is told.


def test_lines_of_every_form_may_stand_together(tmp_path: Path) -> None:
    """A byte order mark, Windows' line ends and blank lines are no lines of their own."""
    lines = [
        GOOD,
        {"text": TEXT, "label": [[0, 3, "公司"]]},
        {"data": TEXT, "label": [[0, 3, "公司"]]},
        {"data": TEXT, "label": {"entities": GOOD["entities"], "relations": []}},
        {"data": TEXT, "label": {"entities": GOOD["entities"]}},
    ]
    data = "\r\n\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "export.jsonl").write_bytes(b"\xef\xbb\xbf" + data.encode())
    report = label_data(tmp_path / "export.jsonl", tmp_path / "rows", LabelDataArguments(splits=()))
    assert [*os.listdir(tmp_path / "rows")] == ["train.txt"]
    results = [{"text": "甲公司", "start": 0, "end": 3}]
    assert (
        rows_of(tmp_path / "rows" / "train.txt") == [{"content": TEXT, "result_list": results, "prompt": "公司"}] * 5
    )
    assert report.describe().splitlines()[1].split() == ["train.txt", "5", "5", "0"]


def test_what_is_not_used_is_counted(tmp_path: Path) -> None:
    tasks = [
        task(span(label=["公司", "机构"])),
        {**task(span()), "annotations": [{"result": [span()]}, {"result": []}]},
        task(span(), was_cancelled=True),
        task(),
        {"data": {"text": TEXT}, "annotations": []},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    report = label_data(tmp_path / "export.json", tmp_path / "a", LabelDataArguments(skip_unlabelled=True))
    assert report.describe().splitlines()[-3:] == [
        "note: 1 document with a span of several labels, of which the first is taken",
        "note: 1 document with more than one annotation, of which the first is taken",
        "note: 3 documents not labelled or cancelled, and left out",
    ]
    index = json.loads((tmp_path / "a" / "sample_index.json").read_text(encoding="utf-8"))
    assert sorted(number for part in index.values() for number in part) == [0, 1]
    tasks = [tasks[3], *tasks[:3]]
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    label_data(tmp_path / "export.json", tmp_path / "c", LabelDataArguments(skip_unlabelled=True))
    index = json.loads((tmp_path / "c" / "sample_index.json").read_text(encoding="utf-8"))
    assert sorted(number for part in index.values() for number in part) == [1, 2]  # as they stand in the export
    (tmp_path / "export.json").write_text(json.dumps(tasks[:4]), encoding="utf-8")
    report = label_data(tmp_path / "export.json", tmp_path / "b")
    assert "note: 1 document cancelled by the annotator, and taken all the same" in report.describe().splitlines()
    assert sum(one.documents for one in report.files.values()) == 4


def test_relations_without_a_label_may_be_named(tmp_path: Path) -> None:
    tasks = [task(span(), {"type": "relation", "from_id": "a", "to_id": "a", "labels": []})]
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    label_data(tmp_path / "export.json", tmp_path / "rows", LabelDataArguments(default_relation="位于", splits=()))
    assert [row["prompt"] for row in rows_of(tmp_path / "rows" / "train.txt")] == ["公司", "甲公司的位于"]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def export(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "data" / "export.jsonl"
    path.parent.mkdir()
    path.write_text(f"{json.dumps(GOOD)}\n" * 10, encoding="utf-8")
    return path


def test_other_files_stay_and_rows_are_not_replaced_unasked(export: Path) -> None:
    folder = export.parent
    label_data(export, folder)
    before = everything(folder)
    assert sorted(before) == ["dev.txt", "export.jsonl", "sample_index.json", "test.txt", "train.txt"]
    with pytest.raises(
        ValueError, match=r"already has train.txt, dev.txt, test.txt, sample_index.json: .*--overwrite"
    ):
        label_data(export, folder)
    assert everything(folder) == before
    label_data(export, folder, LabelDataArguments(splits=(), overwrite=True))
    assert sorted(everything(folder)) == ["export.jsonl", "train.txt"]  # a dev.txt of other rows would mislead
    os.rename(export, folder / "dev.txt")
    with pytest.raises(ValueError, match=r"dev.txt would be replaced by what is made from it"):
        label_data(folder / "dev.txt", folder, LabelDataArguments(overwrite=True))
    with pytest.raises(ValueError, match="is a file: a folder is needed"):
        label_data(folder / "dev.txt", folder / "train.txt")


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_a_failure_at_the_end_leaves_what_was_there(
    fails_at: int, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every renaming fails once: four that put old files away, four that put the new ones there."""
    folder = export.parent
    label_data(export, folder)
    before = everything(folder)
    replace, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == fails_at:
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(spool.os, "replace", failing)
    with pytest.raises(OSError, match="no space left"):
        label_data(export, folder, LabelDataArguments(seed=1, overwrite=True))
    assert everything(folder) == before
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(number: int, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def interrupted(self: spool.Spool, _: Any) -> None:
        made.extend(everything(export.parent))
        os.kill(os.getpid(), number)

    monkeypatch.setattr(spool.Spool, "copy_to", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    of_shell = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            command.main([str(export), "--output", str(export.parent / "a" / "b"), "--splits", "--shuffle", "no"])
    finally:
        signal.signal(signal.SIGINT, of_shell)
    assert len(made) > 2
    assert sorted(everything(export.parent)) == ["export.jsonl"]
    assert not (export.parent / "a").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_datasets_reads_what_is_written(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets (the extra `test`)")
    for name, options in (("doccano_relation.jsonl", ["正向", "负向", "贵"]), ("label_studio_utc.json", None)):
        task = "utc" if "utc" in name else "ext"
        options = options or [str(SMALL / "inputs" / "utc_options.txt")]
        output = tmp_path / task
        label_data(SMALL / "inputs" / name, output, LabelDataArguments(task=task, options=options))
        files = {split: str(output / f"{split}.txt") for split in ("train", "dev", "test")}
        read = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
        for split, path in files.items():
            assert read[split].to_list() == rows_of(Path(path))


def test_utc_rows_of_doccano_too(tmp_path: Path) -> None:
    arguments = LabelDataArguments(
        task="utc", options=["正向", "负向", "中性"], splits=(0.5, 0.25, 0.25), shuffle=False
    )
    label_data(SMALL / "inputs" / "doccano_cls.jsonl", tmp_path, arguments)
    lines = read_lines(SMALL / "inputs" / "doccano_cls.jsonl")
    rows = [row for name in ("train", "dev", "test") for row in rows_of(tmp_path / f"{name}.txt")]
    assert [row["text_a"] for row in rows] == [line["text"] for line in lines]
    assert [[row["choices"][i] for i in row["labels"]] for row in rows] == [line["label"] for line in lines]


def test_dev_and_test_may_be_asked_everything(tmp_path: Path) -> None:
    """PaddleNLP's script for Label Studio keeps the training ratio there, though its README says all."""
    source = SMALL / "inputs" / "label_studio_ext.json"
    counts = {}
    for ratio in (None, -1, 0):
        given = LabelDataArguments(eval_negative_ratio=ratio, unknown_options="drop", negative_ratio=1)
        counts[ratio] = label_data(source, tmp_path / str(ratio), given).files
    assert counts[0]["dev.txt"].rows < counts[None]["dev.txt"].rows < counts[-1]["dev.txt"].rows
    assert counts[0]["train.txt"] == counts[None]["train.txt"] == counts[-1]["train.txt"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "ner"}, r"task is 'ner': one of \['ext', 'cls', 'utc'\]"),
        ({"export_format": "csv"}, "export_format is 'csv'"),
        ({"splits": (0.5, 0.5)}, r"splits are \[0.5, 0.5\]: three parts"),
        ({"splits": (0.8, 0.1, 0.2)}, "sum to 1"),
        ({"splits": (1.5, -0.5, 0.0)}, "parts of 0 or more"),
        ({"seed": -1}, "seed is -1: 0 to 4294967295"),
        ({"task": "utc"}, "UTC needs its options"),
        ({"options": ["nothing/there.txt"]}, "options are the file 'nothing/there.txt', which is not there"),
        ({"task": "utc", "options": ["a"], "text_separator": ""}, "text_separator is empty"),
        ({"task": "utc", "options": ["a", "a"]}, r"options \['a'\] are given more than once"),
        ({"task": "utc", "options": ["a", " "]}, "has an empty one"),
        ({"task": "utc", "write": "doccano"}, "write is 'doccano' and task 'utc'"),
        ({"eval_negative_ratio": -2}, "negative_ratio is -2"),
        ({"default_relation": ""}, "default_relation is empty"),
    ],
)
def test_arguments_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelDataArguments(**wrong)


def test_arguments_of_other_kinds() -> None:
    for wrong in ({"shuffle": "False"}, {"seed": 1.5}, {"negative_ratio": "5"}, {"options": [1]}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} is "):
            LabelDataArguments(**wrong)


def test_the_command_tells_and_refuses(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(export), "--output", str(export.parent / "rows"), "--splits"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["train.txt", "10", "10", "0"]
    assert command.main([str(export), "--save_dir", str(export.parent / "rows")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {export.parent / 'rows'} already has train.txt: ")
    assert command.main([str(export), "--save_dir", str(export.parent / "x"), "--write", "doccano"]) == 1
    assert "is doccano's already" in capsys.readouterr().err
    assert command.main(["--doccano_file", str(export), "--save_dir", str(export.parent / "y")]) == 0
    assert command.main(["--label_studio_file", str(export), "--save_dir", str(export.parent / "z")]) == 1
    assert "this is no JSON list: export from Label Studio as JSON" in capsys.readouterr().err
    for wrong in (["--output", "x"], [str(export), "--doccano_file", str(export), "--output", "x"]):
        with pytest.raises(SystemExit):
            command.main(wrong)
        assert "one export is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        command.main([str(export), "--output", "x", "--shuffle", "perhaps"])
    assert ended.value.code == 2
    assert "'perhaps' is neither true nor false" in capsys.readouterr().err
