"""`label-data` on files: PaddleNLP's scripts run whole, bad annotations, what stays when something fails."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_glm_ernie import __main__ as package
from hf_glm_ernie.ernie_data import AnnotationError, command, export_file, reading, spool
from hf_glm_ernie.ernie_data.arguments import LabelDataArguments
from hf_glm_ernie.ernie_data.convert import label_data
from tests.reference.label_data_naive import Naive
from tests.support.label_data import FULL, MISSING, SMALL, bag, contradictory, flat, plain, read_lines, records_of

TEXT = "甲公司在北京"
GOOD = {"text": TEXT, "entities": [{"id": 1, "label": "公司", "start_offset": 0, "end_offset": 3}], "relations": []}
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


# Bad annotations.


def entity(**changes: Any) -> dict[str, Any]:
    return {
        **GOOD,
        "entities": [GOOD["entities"][0], {"id": 2, "label": "x", "start_offset": 4, "end_offset": 6} | changes],
    }


BAD_LINES = {
    "outside": (
        entity(end_offset=7),
        r"line 2: entity 2 \(id 2, label 'x'\): \[4, 7\) is outside the text, which has 6",
    ),
    "before": (entity(start_offset=-1), r"entity 2 .*: \[-1, 6\) is outside"),
    "empty span": (entity(end_offset=4), r"entity 2 .*: \[4, 4\) is empty"),
    "backwards": (entity(start_offset=6, end_offset=4), r"entity 2 .*: \[6, 4\) is empty"),
    "float": (entity(start_offset=4.0), r"entity 2 .*: its start is 4.0: an integer is needed"),
    "bool": (entity(start_offset=True), r"entity 2 .*: its start is True: an integer"),
    "no label": (entity(label=""), r"entity 2 .*: its label is empty"),
    "label kind": (entity(label=None), r"entity 2 .*: its label is None: a string"),
    "id kind": (entity(id=None), r"entity 2 .*: its id is None: a string or an integer"),
    "same ids": (entity(id=1), r"entities 1 and 2 have the same id 1"),
    "unknown class": (
        entity(label="x##好"),
        r"entity 2 \(label 'x##好'\): class '好' is not among the options \['正向', '负向'\]",
    ),
    "no class": (entity(label="x##"), r"class '' is not among the options"),
    "only class": (entity(label="##正向"), r"entity 2 .*has nothing before '##'"),
    "entity kind": ({**GOOD, "entities": [5]}, "entity 1 is 5: a JSON object is needed"),
    "no start": ({**GOOD, "entities": [{"id": 1, "label": "x"}]}, r"entity 1 .* has no 'start_offset'; its keys are"),
    "entities kind": ({**GOOD, "entities": {}}, "'entities' is {}: a list is needed"),
    "relation": (
        {**GOOD, "relations": [{"from_id": 1, "to_id": 9, "type": "r"}]},
        r"relation 1 \('r'\) goes to id 9, which no entity has; ids are \[1\]",
    ),
    "no type": ({**GOOD, "relations": [{"from_id": 1, "to_id": 1}]}, "relation 1 has no 'type'"),
    "text": ({**GOOD, "text": 5}, "'text' is 5: a string is needed"),
    "surrogate": ({**GOOD, "text": "a\ud800"}, "'text' has half of a surrogate pair at character 1"),
    "form": ({"text": TEXT}, r"the line has no 'entities' or 'label'; its keys are \['text'\]"),
    "no text": ({"label": []}, "the line has no 'text' or 'data'"),
    "triple": ({"text": TEXT, "label": [[0, 1]]}, r"label 1 is \[0, 1\]: \[start, end, label\] is needed"),
    "classes": ({"text": TEXT, "label": ["正向"]}, "label 1 is '正向': a list is needed"),
    "triple outside": (
        {"data": TEXT, "label": [[0, 9, "x"]]},
        r"label 1 \(\[0, 9, 'x'\]\): \[0, 9\) is outside the text",
    ),
    "list": ([1], r"the line is \[1\]: a JSON object is needed"),
    "label studio": ({"data": {"text": TEXT}, "annotations": []}, "this looks like a Label Studio task"),
}


def refused(export: Path, folder: Path, message: str, **given: Any) -> str:
    """Converts and expects the refusal; nothing may be left."""
    with pytest.raises(ValueError, match=message) as caught:
        label_data(export, folder / "rows", LabelDataArguments(**given))
    assert not (folder / "rows").exists()
    assert str(export) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_lines_are_named(name: str, tmp_path: Path) -> None:
    record, message = BAD_LINES[name]
    export = tmp_path / "export.jsonl"
    export.write_text(f"{json.dumps(GOOD)}\n{json.dumps(record)}\n\n{json.dumps(GOOD)}\n", encoding="utf-8")
    assert f"{export}: nothing was written\n  line 2: " in refused(export, tmp_path, message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"text": "a"', "line 2: it is not JSON: Expecting ',' delimiter at character 14: "),
        (b"\xff\xfe", r"line 2: it is not UTF-8: byte 0 is b'\\xff'"),
        (b"[" * 100_000, "line 2: it cannot be read as JSON: maximum recursion depth"),
        (b'{"text": ' + b"9" * 5000 + b"}", "line 2: it cannot be read as JSON: .*digit"),
        (b"NaN", "line 2: the line is nan: a JSON object"),
    ],
    ids=["cut", "bytes", "deep", "digits", "nan"],
)
def test_lines_that_are_no_json(data: bytes, message: str, tmp_path: Path) -> None:
    export = tmp_path / "export.jsonl"
    export.write_bytes(json.dumps(GOOD).encode() + b"\n" + data + b"\n")
    refused(export, tmp_path, message)


def test_all_problems_are_told_up_to_twenty(tmp_path: Path) -> None:
    export = tmp_path / "export.jsonl"
    export.write_text("5\n" * 3 + json.dumps(GOOD) + "\n6\n", encoding="utf-8")
    told = refused(export, tmp_path, "line 1").splitlines()
    assert [line.split(":")[0].strip() for line in told[1:]] == ["line 1", "line 2", "line 3", "line 5"]
    export.write_text("5\n" * 50, encoding="utf-8")
    told = refused(export, tmp_path, r"nothing was written \(the first 20 problems\)").splitlines()
    assert len(told) == 1 + reading.MOST_PROBLEMS


def task(*results: Any, text: Any = TEXT, **others: Any) -> dict[str, Any]:
    return {"id": 7, "data": {"text": text}, "annotations": [{"result": list(results), **others}]}


def span(start: int = 0, end: int = 3, label: Any = ("公司",), id: str = "a", **value: Any) -> dict[str, Any]:
    return {"id": id, "type": "labels", "value": {"start": start, "end": end, "labels": list(label), **value}}


BAD_TASKS = {
    "outside": (
        task(span(end=9)),
        r"task 2 \(id 7\): result 1 \(id 'a', label '公司'\): \[0, 9\) is outside the text",
    ),
    "empty span": (task(span(3, 3)), r"result 1 .*: \[3, 3\) is empty"),
    "no labels": (task(span(label=())), r"result 1 \(id 'a'\) has no label"),
    "same ids": (task(span(), span(1, 2)), "entities 1 and 2 have the same id 'a'"),
    "other text": (task(span(text="北京")), r"result 1 .*: its text is '北京', but \[0, 3\) is '甲公司'"),
    "utf-16": (
        task(span(3, 5, text="甲公"), text="😀甲公司"),
        r"but \[3, 5\) .*outside|but \[3, 5\) is '司'|is outside the text",
    ),
    "utf-16 inside": (
        task(span(2, 4, text="甲公"), text="😀甲公司在"),
        r"but \[2, 4\) is '公司'; the offsets count UTF-16 units \(JavaScript's characters\), code points are needed",
    ),
    "type": (task({"id": "c", "type": "choices"}), r"result 1 \(id 'c'\) is of type 'choices': extraction takes"),
    "no type": (task({"id": "c"}), "result 1 has no 'type'"),
    "relation": (
        task(span(), {"type": "relation", "from_id": "a", "to_id": "z", "labels": ["r"]}),
        r"relation 1 \('r'\) goes to id 'z', which no entity has; ids are \['a'\]",
    ),
    "unnamed relation": (
        task(span(), {"type": "relation", "from_id": "a", "to_id": "a", "labels": []}),
        r"result 2 \(a relation\) has no label: name it, or say what such relations are",
    ),
    "no annotation": ({"id": 7, "data": {"text": TEXT}, "annotations": []}, "it has no annotation: label the task"),
    "json-min": ({"id": 7, "text": TEXT, "label": []}, r"the task has no 'data'; its keys are"),
    "image": ({"data": {"image": "a.png"}, "annotations": []}, "task 2: this is a task on an image; only texts"),
    "text": (task(text=["a"]), r"'data.text' is \['a'\]: a string"),
    "unknown class": (task(span(label=["公司##好"])), r"entity 'a' \(label '公司##好'\): class '好' is not among"),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_bad_tasks_are_named(name: str, tmp_path: Path) -> None:
    record, message = BAD_TASKS[name]
    export = tmp_path / "export.json"
    export.write_text(json.dumps([task(span()), record, task()]), encoding="utf-8")
    refused(export, tmp_path, message)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (task(), r"task 1 \(id 7\): annotation 1 has an empty 'result': no choice was made"),
        (task({"value": {}}), "the value of result 1 has no 'choices'"),
        (task({"value": {"choices": ["贵"]}}), "the text: class '贵' is not among the options"),
        (task({"value": {"choices": "正向"}}), "its 'choices' is '正向': a list"),
        (task({"value": {"choices": [""]}}), "choice 1 is empty"),
    ],
)
@pytest.mark.parametrize("name", ["cls", "utc"])
def test_bad_choices_are_named(record: Any, message: str, name: str, tmp_path: Path) -> None:
    """An empty result is an IndexError without a place in the original."""
    export = tmp_path / "export.json"
    export.write_text(json.dumps([record]), encoding="utf-8")
    refused(export, tmp_path, message, task=name, options=["正向", "负向"])


GOOD_TASK = json.dumps(task(span()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[{GOOD_TASK}, {GOOD_TASK}", "behind task 2: the file ends before the list does"),
        (f"[{GOOD_TASK}, ", "task 2: the file ends before the list does"),
        (f"[{GOOD_TASK} {GOOD_TASK}]", "behind task 1: '{' stands where"),
        (f"[{GOOD_TASK},]", "behind task 1: a comma, and no task follows"),
        (f"[{GOOD_TASK}] x", "behind the list of 1 tasks: 'x'"),
        (f'[{GOOD_TASK}, {{"id": 1, "x" 5}}]', "task 2: it is not JSON: Expecting ':' delimiter at its character 15"),
        (f'[{GOOD_TASK}, {{"id": "1}}]', "task 2: it is not JSON: Unterminated string"),
        ("[5]", "task 1: '5' stands where a task"),
        ("[" * 100_000, r"task 1: '\[' stands where a task"),
        ('[{"a": ' + "[" * 100_000, "task 1: it cannot be read as JSON: maximum recursion"),
        ("[]", "holds no document"),
    ],
)
def test_lists_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    export = tmp_path / "export.json"
    export.write_text(text, encoding="utf-8")
    refused(export, tmp_path, message)


def test_a_list_that_is_no_utf_8(tmp_path: Path) -> None:
    export = tmp_path / "export.json"
    for tail in (b"\xff\xff\xff\xff", b"\xe4\xb8"):
        export.write_bytes(f"[{GOOD_TASK}, ".encode() + tail)
        refused(export, tmp_path, rf"it is not UTF-8: byte {len(GOOD_TASK) + 3} is b'\\x{tail[0]:x}'")


def test_an_empty_export_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_bytes(b"\xef\xbb\xbf \n")
    refused(tmp_path / "export.json", tmp_path, "is empty: an export of doccano")
    with pytest.raises(FileNotFoundError):
        label_data(tmp_path / "nothing", tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_list_is_read_in_pieces(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut anywhere: inside characters, escapes, numbers, strings."""
    draw = random.Random(0)
    letters = 'a"\\\u00e9\u4e2d😀\n{}[],: 1e5'
    tasks = [
        {"n": draw.random(), "s": "".join(draw.choice(letters) for _ in range(30)), "x": [None, True, -1.5e-9, {}]}
        for _ in range(40)
    ]
    export = tmp_path / "export.json"
    for form in ({"ensure_ascii": False}, {"indent": 3}, {"separators": (" , ", " : ")}):
        export.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(tasks, **form).encode() + b" \n")
        monkeypatch.setattr(export_file, "CHUNK", chunk)
        told: list[int] = []
        found = list(export_file.read_records(export, "label-studio", told.append))
        assert [one for _, one in found] == tasks
        assert [where for where, _ in found] == [f"task {number}" for number in range(1, 41)]
        assert sum(told) == export.stat().st_size


def test_a_task_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_file, "CHUNK", 100)
    monkeypatch.setattr(export_file, "LONGEST_TASK", 1000)
    export = tmp_path / "export.json"
    export.write_text('[{"a": "' + "x" * 10_000 + '"}]', encoding="utf-8")
    told: list[int] = []
    with pytest.raises(AnnotationError, match="task 1: it is not JSON: Unterminated string"):
        list(export_file.read_records(export, "label-studio", told.append))
    assert sum(told) < 3000


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


def test_an_interruption_leaves_nothing(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spool.Spool, "copy_to", interrupted)
    with pytest.raises(KeyboardInterrupt):
        label_data(export, export.parent / "a" / "b")
    assert sorted(everything(export.parent)) == ["export.jsonl"]
    assert not (export.parent / "a").exists()


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
    with pytest.raises(SystemExit) as ended:
        command.main([str(export), "--output", "x", "--shuffle", "perhaps"])
    assert ended.value.code == 2
    assert "'perhaps' is neither true nor false" in capsys.readouterr().err
