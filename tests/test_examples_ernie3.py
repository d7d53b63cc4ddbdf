"""The pre-training example and the distillation behind it: their texts and a few steps; all of it when slow."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import distil_ernie3
import ernie3_negatives
import ernie3_prompts
import ernie3_texts
import loss_plot
import pretrain_ernie3
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_glm_ernie import (
    Ernie3Config,
    Ernie3ForPreTraining,
    ProgressiveSchedule,
    RankedText,
    build_control_prompt,
)

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


def the_end(prompts: list[str]) -> list[str]:
    return ["the evening was cold." if prompt.isascii() else "傍晚很冷。" for prompt in prompts]


def test_every_imitation_begins_as_its_story(texts: ernie3_texts.Texts) -> None:
    pairs = pretrain_ernie3.write_pairs(texts, the_end, 30, 3)
    assert [row["credible_labels"] for row in pairs] == [1, 0] * 30
    for story, imitation in zip(pairs[::2], pairs[1::2], strict=True):
        (end,) = the_end([story["text"]])
        assert imitation["text"].endswith(end)
        assert story["text"].startswith(imitation["text"].removesuffix(end))


def test_the_generator_learns_to_write(texts: ernie3_texts.Texts, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = pretrain_ernie3.build_model(texts.tokenizer).config
    stories = [story for document in texts.documents for story in document]
    generate = ernie3_negatives.train_generator(stories, texts.tokenizer, config, 128, 60, tmp_path)
    ids = texts.tokenizer(texts.unseen[0][0].text, return_tensors="pt")["input_ids"]
    loss = generate.model(ids, labels=ids).loss.item()
    pairs = pretrain_ernie3.write_pairs(texts, generate, 30, 3)
    assert (loss < 2.5, len(pairs) > 30) == (True, True), f"loss {loss:.2f}, {len(pairs)} rows"


@pytest.fixture(scope="module")
def trained(texts: ernie3_texts.Texts, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    model = pretrain_ernie3.build_model(texts.tokenizer)
    schedule = ProgressiveSchedule(2, pretrain_ernie3.LENGTHS, (14, 14), (1e-4, 1e-3), total_steps=5)
    pairs = pretrain_ernie3.write_pairs(texts, the_end, 40, 3)
    mixture = pretrain_ernie3.build_mixture(texts, pairs, schedule, 3)
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
    assert pretrain_ernie3.classify(trained[0], rows, turned, texts.tokenizer, 80, tmp_path / "turned") < 0.25


def test_any_causal_model_takes_the_generators_place(trained: Trained, texts: ernie3_texts.Texts) -> None:
    options = pretrain_ernie3.parse_arguments(["--output=x", f"--generator={trained[0]}"])
    generate = pretrain_ernie3.choose_generator(options, texts, Ernie3Config())
    assert type(generate.model).__name__ == "Ernie3ForCausalLM"
    assert len(generate([texts.unseen[0][0].sentences[0]] * 3)) == 3


def test_the_credible_share_is_that_of_texts_told_right(
    texts: ernie3_texts.Texts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head that knows every story, but takes Chinese imitations for stories too."""
    stories = texts.unseen[0] + texts.unseen[1]

    def rerank(model: Any, tokenizer: Any, found: list[str], **options: Any) -> list[RankedText]:
        known = {story.text for story in stories}
        return [
            RankedText(text=text, probability=0.9 if text in known else 0.1 if text.isascii() else 0.8, index=place)
            for place, text in reversed(list(enumerate(found)))
        ]

    monkeypatch.setattr(ernie3_negatives, "rerank", rerank)
    assert ernie3_negatives.show_credible(None, texts.tokenizer, stories, the_end, 128) == pytest.approx(0.75)
    printed = capsys.readouterr().out
    assert "75.0% of 32 texts" in printed
    assert "first in 100.0% of 16 pairs" in printed


def test_prompts_say_what_the_labellers_found(texts: ernie3_texts.Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    stories = [texts.documents[0][0], texts.documents[1][0]]
    assert [story.language for story in stories] == ["zh", "en"]
    english = ernie3_prompts.described(stories)[1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    plain = ernie3_prompts.described(stories)
    assert plain[1] == english
    for row, story in zip(plain, stories, strict=True):
        assert row["keywords"] == [name for name in story.names.values() if name in story.text] != []
    assert {row["topic"] for row in plain} <= set(texts.topics)


def test_keywords_are_jiebas_where_it_is_installed(texts: ernie3_texts.Texts) -> None:
    pytest.importorskip("jieba", reason="needs jieba, whose TF-IDF finds the keywords: pip install jieba")
    (row,) = ernie3_prompts.described([texts.documents[0][0]])
    assert 1 <= len(row["keywords"]) <= 3
    assert all(word in row["text"] for word in row["keywords"])


def test_each_mark_is_one_token_in_the_saved_tokenizer(
    trained: Trained, texts: ernie3_texts.Texts, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    row = ernie3_prompts.described(texts.unseen[0][:1])[0]
    ids = ernie3_prompts.prompt_of(tokenizer, row, num_soft_prompts=0, length=60).input_ids
    assert ids == ernie3_prompts.prompt_of(texts.tokenizer, row, num_soft_prompts=0, length=60).input_ids
    marks = {f"[{slash}{name}]" for name in ("t", "k", "senti", "w") for slash in ("", "/")}
    names = tokenizer.convert_ids_to_tokens(ids)
    assert {name for name in names if name.startswith("[")} == marks | {"[CLS]"}
    ernie3_texts.build_tokenizer([" ".join(["about", "words", "60", *names])], tmp_path)
    ernie3_prompts.show_marks(tokenizer, tmp_path / "vocab.txt", row)
    before, after = (int(word) for word in capsys.readouterr().out.split(",")[0].split() if word.isdigit())
    assert after == len(ids)
    assert before > after + 16


def test_what_is_written_to_order_is_judged(
    trained: Trained, texts: ernie3_texts.Texts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Asked for, the stories themselves; without a prompt one and the same story."""
    rows = pretrain_ernie3.StoryRows(texts.unseen, texts.tokenizer, texts.topics)
    pretrain_ernie3.classify(trained[0], rows, rows, texts.tokenizer, 80, tmp_path)
    stories = [story for document in texts.unseen for story in document]

    def write(model: Any, tokenizer: Any, prompts: list[Any]) -> list[str]:
        if prompts[0] == build_control_prompt(tokenizer):
            return [stories[0].text] * len(prompts)
        assert all(prompt.genre_id for prompt in prompts)
        return [story.text for story in stories]

    monkeypatch.setattr(ernie3_prompts, "write", write)
    shares = ernie3_prompts.show_control(trained[0], tmp_path, stories, texts.topics)
    assert shares["keywords"] == 1.0
    assert shares["plain keywords"] < 0.7
    assert shares["topic"] > 0.8
    topics = [texts.topics[story.topic] for story in stories]
    assert abs(shares["plain topic"] - topics.count(topics[0]) / len(topics)) < 0.2


def test_texts_are_written_to_the_prompts_of_a_saved_model(trained: Trained, texts: ernie3_texts.Texts) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(trained[0]), AutoModelForCausalLM.from_pretrained(trained[0])
    prompts = [
        ernie3_prompts.prompt_of(tokenizer, row, num_soft_prompts=count)
        for count, row in enumerate(ernie3_prompts.described(texts.unseen[0][:3]), 1)
    ]
    greedy = {"do_sample": False, "top_p": None, "max_new_tokens": 12}
    together = ernie3_prompts.write(model.eval(), tokenizer, prompts, **greedy)
    assert together == [ernie3_prompts.write(model, tokenizer, [prompt], **greedy)[0] for prompt in prompts]


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

    sizes = ["--steps=5", "--documents=20", "--batch-size=14", "--generator-steps=30", "--imitations=20"]
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
