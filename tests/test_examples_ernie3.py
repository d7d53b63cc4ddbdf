"""The pre-training example and the distillation behind it: their texts and a few steps; all of it when slow."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import distil_ernie3
import ernie3_texts
import loss_plot
import pretrain_ernie3
import pytest
import torch

from hf_glm_ernie import Ernie3ForPreTraining, ProgressiveSchedule

Trained = tuple[Path, list[dict[str, float]]]  # the folder of a model, and its log
TASKS = {
    "knowledge_masked_lm",
    "document_lm",
    "sentence_reordering",
    "sentence_distance",
    "knowledge_text_prediction",
    "credible",
    "controllable_lm",
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> ernie3_texts.Texts:
    return ernie3_texts.Texts(20, 3, tmp_path_factory.mktemp("texts"))


def test_no_training_document_combines_names_as_an_unseen_one_does(texts: ernie3_texts.Texts) -> None:
    def names(documents: list[list[ernie3_texts.Story]]) -> set[tuple[str, ...]]:
        return {tuple(sorted(document[0].names.items())) for document in documents}

    assert len(texts.documents) == 40
    assert len(texts.unseen) == 2
    assert names(texts.documents).isdisjoint(names(texts.unseen))


def test_every_fact_kept_back_is_known_from_another_sentence(texts: ernie3_texts.Texts) -> None:
    facts = {(row["head"], row["relation"], row["tail"]) for row in texts.triples}
    sentences = {row["sentence"] for row in texts.triples}
    assert len(texts.kept_back) > 30
    for row in texts.kept_back:
        assert row["sentence"] not in sentences
    known = [(row["head"], row["relation"], row["tail"]) in facts for row in texts.kept_back]
    assert all(known)


def test_the_vocabulary_has_every_word(texts: ernie3_texts.Texts) -> None:
    ids = texts.tokenizer([story.text for document in texts.documents + texts.unseen for story in document])[
        "input_ids"
    ]
    assert texts.tokenizer.unk_token_id not in {token for row in ids for token in row}


@pytest.fixture(scope="module")
def trained(texts: ernie3_texts.Texts, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    model = pretrain_ernie3.build_model(texts.tokenizer)
    schedule = ProgressiveSchedule(2, pretrain_ernie3.LENGTHS, (14, 14), (1e-4, 1e-3), total_steps=5)
    mixture = pretrain_ernie3.build_mixture(texts, schedule, 3)
    log = pretrain_ernie3.pretrain(model, mixture, schedule, folder, 4)
    model.save_pretrained(folder / "model")
    texts.tokenizer.save_pretrained(folder / "model")
    return folder / "model", log


def test_every_task_is_in_every_step(trained: Trained, tmp_path: Path) -> None:
    log = trained[1]
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert all({f"{task}_loss" for task in TASKS} <= set(row) for row in log)
    assert set(pretrain_ernie3.falls(log)) == TASKS
    pretrain_ernie3.plot_losses(log, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_falls_is_the_mean_of_a_tenth() -> None:
    log = [{"step": step, "credible_loss": float(step)} for step in range(1, 51)]
    assert pretrain_ernie3.falls(log) == {"credible": (3.0, 48.0)}


def test_the_model_answers(
    trained: Trained,
    texts: ernie3_texts.Texts,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    pretrain_ernie3.show_answers(trained[0], texts.tokenizer, texts.kept_back[:4], texts.unseen)
    printed = capsys.readouterr().out
    assert "of 4 right" in printed
    assert "Second segments of 2 unseen documents" in printed
    rows = pretrain_ernie3.StoryRows(texts.unseen, texts.tokenizer, texts.topics)
    plots = [row["labels"] for row in rows.rows]
    most = max(map(plots.count, plots)) / len(plots)
    assert most < 0.5
    # Seen: 44%, the share of the plot that is told most often, after one step, and 94% after eighty.
    accuracy = pretrain_ernie3.classify(trained[0], rows, rows, texts.tokenizer, 80, tmp_path)
    assert accuracy > 0.75
    turned = pretrain_ernie3.StoryRows(texts.unseen, texts.tokenizer, texts.topics)
    for row in turned.rows:
        row["labels"] = (row["labels"] + 1) % (1 + max(plots))
    assert pretrain_ernie3.classify(trained[0], rows, turned, texts.tokenizer, 80, tmp_path) < 0.25


@pytest.mark.parametrize("plot", [pretrain_ernie3.plot_losses, loss_plot.plot_losses])
def test_without_matplotlib_a_plot_says_what_is_missing(
    plot: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plot([{"step": 1, "loss": 2.0, "credible_loss": 1.0}], tmp_path / "losses.png")
    assert not list(tmp_path.iterdir())
    assert "No losses.png: pip install matplotlib. The numbers are in " in capsys.readouterr().out


def test_the_model_is_saved_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no picture")

    sizes = ["--steps=5", "--documents=20", "--batch-size=14"]
    monkeypatch.setattr("sys.argv", ["pretrain_ernie3.py", f"--output={tmp_path / 'out'}", *sizes])
    monkeypatch.setattr(pretrain_ernie3, "plot_losses", fail)
    with pytest.raises(RuntimeError, match="no picture"):
        pretrain_ernie3.main()
    opened = Ernie3ForPreTraining.from_pretrained(tmp_path / "out" / "model")
    assert opened.config.hidden_size == 96
    assert "credible_loss" in (tmp_path / "out" / "losses.csv").read_text("utf-8")


def arguments(teacher: Path, output: Path, **changed: Any) -> argparse.Namespace:
    options = distil_ernie3.parse_arguments([f"--teacher={teacher}", f"--output={output}"])
    output.mkdir()
    vars(options).update(changed)
    return options


def test_students_come_out_without_their_auxiliary_layer(trained: Trained, tmp_path: Path) -> None:
    few = {"teacher_steps": 2, "steps": 4, "label_steps": 2, "label_draws": 1, "documents": 20}
    options = arguments(trained[0], tmp_path / "students", **few)
    measured = distil_ernie3.distil(options)
    students = {"distilled-unified", "alone-unified", "distilled-encoder", "alone-encoder"}
    assert set(measured) == {"teacher", *students}
    assert all(0 <= measured[name]["accuracy"] <= 1 for name in students)
    assert measured["distilled-unified"]["loss"] != measured["alone-unified"]["loss"]
    depths = {
        name: json.loads((options.output / f"student-{name}" / "config.json").read_text("utf-8"))
        for name in ("unified", "encoder")
    }
    assert depths["encoder"]["num_hidden_layers"] == 2
    assert depths["unified"]["branch_num_hidden_layers"] == 1
    assert Ernie3ForPreTraining.from_pretrained(options.output / "teacher").config.hidden_size == 96


def test_few_labels_are_as_many_of_every_plot_and_language(texts: ernie3_texts.Texts) -> None:
    stories = distil_ernie3.few_labels(texts, 3, 0)[0]
    plots = [(story.topic, story.language) for story in stories]
    assert len(set(plots)) == len(texts.topics)
    assert all(plots.count(one) == 3 for one in plots)
    assert all(len(story.sentences) == 1 for story in stories)
    assert stories == distil_ernie3.few_labels(texts, 3, 0)[0] != distil_ernie3.few_labels(texts, 3, 1)[0]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_run_learns_and_its_students_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every task's loss falls to 0.8 or less; the teacher helps both students it teaches, with every seed."""
    monkeypatch.setattr("sys.argv", ["pretrain_ernie3.py", f"--output={tmp_path / 'ernie3'}"])
    pretrain_ernie3.main()
    table = capsys.readouterr().out.split("ratio")[1].split("\n\n")[0].split("\n")[1:]
    ratios = {line.split()[0]: float(line.split()[3]) for line in table}
    assert set(ratios) == TASKS
    assert all(ratio <= 0.8 for ratio in ratios.values())
    found = [
        distil_ernie3.distil(arguments(tmp_path / "ernie3" / "model", tmp_path / f"students{seed}", student_seed=seed))
        for seed in (1, 2, 3)
    ]
    for one in found:
        # Seen with one seed: the teacher 0.78 (2.26 as pre-training leaves it), the unified student 1.66 against 2.25,
        # the encoder 2.87 against 3.44. Three seeds in the sweep: 1.71 .. 1.73 against 2.19 .. 2.42.
        assert one["teacher"]["loss"] < 1.2
        assert one["distilled-unified"]["loss"] < one["alone-unified"]["loss"] - 0.2
        assert one["distilled-encoder"]["loss"] < one["alone-encoder"]["loss"]
