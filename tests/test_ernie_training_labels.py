"""What a column of labels asks for, which files a folder of data holds, which folders a task opens."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, ErnieConfig

from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.configuration_ernie_utc import ErnieUTCConfig
from hf_glm_ernie.ernie_training.class_labels import ClassLabels, kind_of_labels
from hf_glm_ernie.ernie_training.data_files import find_files, read_data
from hf_glm_ernie.ernie_training.task import own_config
from hf_glm_ernie.ernie_training.text_tasks import Classification


def prediction(logits: Any, labels: Any) -> Any:
    return SimpleNamespace(predictions=np.array(logits), label_ids=np.array(labels))


def test_one_class_a_text() -> None:
    for labels, names in (
        (["good", "bad", "bad"], ["bad", "good"]),
        ([2, 0, 1], [0, 1, 2]),
        ([True, False], [False, True]),
    ):
        found = ClassLabels(labels)
        assert (found.kind, found.names) == ("single_label_classification", names)
        assert found.encode(labels[0], 0) == names.index(labels[0])
    scores = found.metrics(prediction([[1.0, 2.0], [3.0, 0.0]], [1, 1]))
    assert scores == {"accuracy": 0.5}
    assert found.class_counts(prediction([[1.0, 2.0], [3.0, 0.0]], [1, 1])) == {False: (0, 1, 0), True: (1, 1, 2)}
    with pytest.raises(ValueError, match=r"Row 3 of the data has 'new', which is none of \[False, True\]"):
        found.encode("new", 3)


def test_several_classes_a_text() -> None:
    found = ClassLabels([["b", "a"], [], ["c"]])
    assert (found.kind, found.names) == ("multi_label_classification", ["a", "b", "c"])
    assert [found.encode(label, 0) for label in (["b", "a"], [])] == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    scores = found.metrics(prediction([[1.0, 2.0, -1.0], [-1.0, 1.0, -1.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    # a: found 1 of 1; b: 1 right of 2 found; c: none of 1.
    assert scores == {"micro_f1": pytest.approx(2 / 3), "macro_f1": pytest.approx((1 + 2 / 3) / 3), "accuracy": 0.5}
    with pytest.raises(ValueError, match=r"Row 2 of the data has 'd', which is none of"):
        found.encode(["a", "d"], 2)


def test_one_name_where_several_may_hold() -> None:
    labels = ClassLabels([["退款", "投诉"], ["投诉"]])
    assert labels.encode("退款", 0) == labels.encode(["退款"], 0) == [0.0, 1.0]
    with pytest.raises(ValueError, match="'退', which is none of"):
        labels.encode("退", 0)


@pytest.mark.parametrize(("threshold", "f1"), [(0, 2 / 3), (1, 1.0)])
def test_thresholds_at_the_ends(threshold: float, f1: float) -> None:
    task = Classification(None, 8, {"threshold": threshold})
    task.learn({"label": [["a"], ["b"]]})  # at 0 all four hold, two of them right: 2 * 2 / (4 + 2)
    found = task.metrics(prediction([[40.0, -3.0], [9.0, 50.0]], [[1.0, 0.0], [0.0, 1.0]]))
    assert found["micro_f1"] == pytest.approx(f1)


def test_numbers_are_no_names() -> None:
    found = ClassLabels([1.5, -2.0, 3.0])
    assert (found.kind, found.names) == ("regression", [])
    assert found.encode(2, 0) == 2.0
    scores = found.metrics(prediction([[1.0], [2.0], [4.0]], [1.0, 2.0, 3.0]))
    assert scores == {"mse": pytest.approx(1 / 3), "pearson": pytest.approx(0.98198, abs=1e-5)}
    assert found.metrics(prediction([[1.0], [1.0]], [1.0, 2.0]))["pearson"] == 0.0
    assert found.class_counts(prediction([[1.0]], [1.0])) == {}
    with pytest.raises(ValueError, match=r"Row 3 of the data has the label 'x', which is no number"):
        found.encode("x", 3)
    # Whole numbers are names, unless the user says that they are numbers.
    assert ClassLabels([1, 5, 3], "regression").kind == "regression"


@pytest.mark.parametrize(
    ("labels", "kind", "words"),
    [
        (["a", None], None, r"Row 1 of the data has no label: found None"),
        (["a", ""], None, r"Row 1 of the data has no label: found ''"),
        ([1.0, float("nan")], None, r"Row 1 of the data has no label: found nan"),
        ([["a"], [""]], None, r"Row 1 of the data has the list of labels \[''\]"),
        ([[0.5, 1.0]], None, r"has the list of labels \[0\.5, 1\.0\]: lists name the classes that hold"),
        ([{"a": 1}], None, r"the label {'a': 1}, a dict. A label is the name of a class, a list of names"),
        (["a", 1.5], None, r"Row 0 of the data has a label for single_label_.*, row 1 one for regression"),
        ([1.5], "single_label_classification", r"problem_type='single_label_classification', but .* of regression"),
        (["a"], "multi_label_classification", r"but the labels are those of single_label_classification: 'a'"),
        ([["a"]], "regression", r"but the labels are those of multi_label_classification"),
        (["a"], "ranking", r"problem_type='ranking' is not one of single_label_classification, multi"),
    ],
)
def test_labels_that_do_not_go_together(labels: list[Any], kind: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassLabels(labels, kind)


def test_no_labels_at_all() -> None:
    assert kind_of_labels([]) == "single_label_classification"


def test_files_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no train file: train\.jsonl, train\.json, train\.txt"):
        find_files(str(tmp_path), None)
    train, dev = tmp_path / "train.txt", tmp_path / "dev.txt"
    train.write_text('{"content": "北京", "prompt": "地点"}\n', encoding="utf-8")
    assert find_files(str(tmp_path), None) == (train, None)
    dev.touch()
    assert find_files(str(tmp_path), None) == (train, dev)
    assert find_files(str(tmp_path), "other.json") == (train, Path("other.json"))
    assert find_files(str(train), None) == (train, None)
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(ValueError, match=r"has train\.jsonl and train\.txt: name the file itself"):
        find_files(str(tmp_path), None)


def test_a_file_of_rows(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="reading data needs datasets")
    from tests.support.finetuning import cache_in

    file = tmp_path / "train.txt"
    file.write_text('{"content": "北京", "prompt": "地点"}\n', encoding="utf-8")
    with cache_in(tmp_path / "cache"):
        assert read_data(file, ("content",))[0]["prompt"] == "地点"
        with pytest.raises(ValueError, match=r"train\.txt has no column result_list; it has content, prompt"):
            read_data(file, ("content", "result_list"))
    with pytest.raises(ValueError, match=r"train\.md is none of \.jsonl, \.json, \.txt, \.csv, \.parquet"):
        read_data(tmp_path / "train.md", ())
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone\.json"):
        read_data(tmp_path / "gone.json", ())


def test_folders_that_a_task_opens(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 50}
    for name, config in (("plain", ErnieConfig), ("uie", ErnieUIEConfig), ("bert", BertConfig)):
        config(**settings).save_pretrained(tmp_path / name)
    assert type(own_config(str(tmp_path / "uie"), ErnieUIEConfig)) is ErnieUIEConfig
    made = own_config(str(tmp_path / "plain"), ErnieUTCConfig)
    assert (type(made), made.vocab_size, made.hidden_size) == (ErnieUTCConfig, 50, 8)
    for name, kind in (("bert", "bert"), ("uie", "ernie_uie")):
        with pytest.raises(
            ValueError, match=rf"holds a model of the type {kind}; this task takes ernie_utc, or an ERNIE"
        ):
            own_config(str(tmp_path / name), ErnieUTCConfig)
