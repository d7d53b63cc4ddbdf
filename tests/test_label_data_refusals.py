"""`label-data` on exports that cannot be used: problems with file, line or task and annotation; nothing stays."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from hf_glm_ernie.ernie_data import AnnotationError, LabelDataArguments, export_file, label_data, reading
from tests.support.label_data import GOOD, TEXT, span, task


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
        r"entity 2 \(id 2, label 'x##好'\): class '好' is not among the options \['正向', '负向'\]",
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
    "unknown class": (
        task(span(label=["公司##好"])),
        r"entity 1 \(id 'a', label '公司##好'\): class '好' is not among",
    ),
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
