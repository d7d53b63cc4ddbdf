"""Scores of spans, entities and options: PaddleNLP's numbers, and the right ones where it goes wrong."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_glm_ernie.ernie_tasks.uie_spans import pair_spans
from hf_glm_ernie.ernie_training.counts import NONE, Counts, total
from hf_glm_ernie.ernie_training.entity_scores import (
    entities_of,
    entity_counts,
    entity_metrics,
    marks_entities,
    named_tags,
)
from hf_glm_ernie.ernie_training.prompt_classes import class_counts, prompt_classes, sort_options
from hf_glm_ernie.ernie_training.span_scores import keep_probabilities, row_counts, span_counts, span_metrics
from hf_glm_ernie.ernie_training.token_labels import encode_tagged_words, word_labels
from hf_glm_ernie.ernie_training.uie_labels import encode_uie_rows
from hf_glm_ernie.ernie_training.uie_rows import read_row
from hf_glm_ernie.ernie_training.utc_scores import option_counts, pair_scores, single_accuracy, utc_metrics
from tests.support.ernie_training_goldens import golden, needs_full_set, tokenizer_of

METRICS = golden("metrics")
UTC = golden("utc")["metrics"]
LANGUAGE = {"ch": "zh", "en": "en"}


def bits(places: list[int], length: int) -> np.ndarray:
    row = np.zeros(length)
    row[places] = 1
    return row


def test_counts_that_are_nothing() -> None:
    assert NONE.report() == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "correct": 0, "found": 0, "gold": 0}
    assert total([]) == NONE
    assert total([Counts(1, 2, 3), Counts(1, 1, 1)]) == (2, 3, 4)
    # The figures of the shipped sample.
    assert Counts(68, 95, 69).f1 == pytest.approx(0.8293, abs=5e-5)


def test_spans_are_paired_as_in_the_original() -> None:
    for case in METRICS["get_span"]:
        found = pair_spans(bits(case["start"], 32), bits(case["end"], 32), 0.5)
        assert [list(span) for span in found] == sorted(case["spans"])


def test_spans_are_counted_as_in_the_original() -> None:
    sum_of_batches = NONE
    for batch in METRICS["span_evaluator"]:
        arrays = [np.array(batch[name]) for name in ("start_prob", "end_prob", "gold_start", "gold_end")]
        counts = total(span_counts(*arrays))
        assert counts == (batch["num_correct"], batch["num_infer"], batch["num_label"])
        sum_of_batches = total([sum_of_batches, counts])
        assert sum_of_batches.scores() == batch["running"]
        # As the Trainer hands them over: padded with -100, what the model gave besides left out.
        padded = [np.pad(array, ((0, 0), (0, 3)), constant_values=-100) for array in arrays]
        prediction = SimpleNamespace(predictions=tuple(padded[:2]), label_ids=tuple(padded[2:]))
        assert span_metrics(prediction) == counts.scores()
    assert keep_probabilities(("start", "end", "more"), None) == ("start", "end")


def test_exactly_one_half_is_no_span() -> None:
    gold = bits([1], 4)
    assert row_counts(np.full(4, 0.5), np.full(4, 0.5), gold, gold) == (0, 0, 1)


@needs_full_set
@pytest.mark.parametrize("lang", ["ch", "en"])
def test_scores_by_label_and_relation(tmp_path: Path, lang: str) -> None:
    """The whole of evaluate.py: its stand-in model's bits against labels that are made here."""
    tokenizer = tokenizer_of(tmp_path)
    prompts, counts = [], []
    for number, (prompt, content, answers, starts, ends) in enumerate(METRICS["rows"][lang]):
        row = read_row({"prompt": prompt, "content": content, "result_list": answers}, number)
        encoded = encode_uie_rows(tokenizer, [row], 64)
        gold = (np.pad(encoded[name][0], (0, 64))[:64] for name in ("start_positions", "end_positions"))
        prompts.append(prompt)
        counts.append(row_counts(bits(starts, 64), bits(ends, 64), *gold))

    def rounded(one: Counts) -> list[float]:
        return [round(score, 5) for score in one.scores().values()]

    by_class = {name: rounded(one) for name, one in class_counts(prompts, counts, LANGUAGE[lang]).items()}
    results = {debug: scores for language, debug, scores in METRICS["by_class"] if language == lang}
    assert results == {False: {"all_classes": rounded(total(counts))}, True: by_class}
    assert next(iter(by_class)) in prompts


def name_in(groups: dict[str, list[int]], row: int, language: str) -> str:
    predicate = next(name for name, rows in groups.items() if row in rows)
    return f"X的{predicate}" if language == "zh" else f"{predicate} of X"


def test_names_of_prompts() -> None:
    for prompt, name in METRICS["prompt_names"]["unify_prompt_name"]:
        # Without a name before the options the original's own is spelled twice over.
        assert sort_options(prompt) == (name if prompt != "[x,y]" else "[x,y]")
    for name, case in METRICS["prompt_names"].items():
        if not name.startswith("relation_types") or name in ("relation_types_ch_4", "relation_types_ch_5"):
            continue
        prompts, groups = case
        language = LANGUAGE[name.split("_")[2]]
        wanted = [name_in(groups, i, language) for i in range(len(prompts))]
        assert prompt_classes(prompts, language) == wanted


def test_every_row_counts_once() -> None:
    """There the second 甲的父亲 is dropped, and of 小甲, 大甲 and 乙 the third counts twice."""
    assert prompt_classes(["甲的父亲", "甲的父亲"]) == ["X的父亲", "X的父亲"]
    assert prompt_classes(["小甲的父亲", "大甲的父亲", "乙的父亲"]) == ["X的父亲"] * 3
    counts = class_counts(["甲的父亲", "甲的父亲", "乙的父亲", "甲"], [Counts(1, 1, 1)] * 3 + [Counts(0, 2, 0)])
    assert counts == {"X的父亲": (3, 3, 3)}  # the last has no answers


def test_what_is_known_decides_over_what_a_prompt_looks_like() -> None:
    assert prompt_classes(["甲的目的地"]) == ["X的地"]
    assert prompt_classes(["甲的目的地"], predicates=["目的地"]) == ["X的目的地"]
    assert prompt_classes(["甲的目的地"], labels=["甲的目的地"]) == ["甲的目的地"]
    assert prompt_classes(["甲的目的地", "乙的目的地"]) == ["X的目的地"] * 2
    assert prompt_classes(["place of birth of A"], "en", predicates=["place of birth"]) == ["place of birth of X"]
    # A 的 inside an option, or at the end, makes no relation.
    assert prompt_classes(["评价[好的,坏的]", "目的"]) == ["评价[坏的,好的]", "目的"]
    assert prompt_classes(["甲的态度[好,坏]"], predicates=["态度"]) == ["X的态度[坏,好]"]
    with pytest.raises(ValueError, match=r"language='ch' is not one of"):
        prompt_classes(["甲"], "ch")


def test_entities_are_counted_as_in_the_original() -> None:
    sum_of_batches = NONE
    for batch in METRICS["chunks"]:
        labels, numbers = np.array(batch["labels"]), np.array(batch["predictions"])
        for row, length in zip(labels, batch["lengths"], strict=True):
            row[length:] = -100
        found, gold = (named_tags(one, labels, METRICS["tags"]) for one in (numbers, labels))
        counts = total(entity_counts(found, gold).values())
        assert counts == (batch["num_correct"], batch["num_infer"], batch["num_label"])
        sum_of_batches = total([sum_of_batches, counts])
        # To the last bit but one: there the mean is taken in another order.
        assert [*sum_of_batches.scores().values()] == pytest.approx(batch["running"], rel=1e-15)


def test_entities_of_every_scheme() -> None:
    assert entities_of(["I-A", "I-A", "I-B", "O", "E-A", "E-A"]) == {
        ("A", 0, 1),
        ("B", 2, 2),
        ("A", 4, 4),
        ("A", 5, 5),
    }
    assert entities_of(["B-A", "I-A", "E-A", "S-A", "B-A", "B-A"]) == {
        ("A", 0, 2),
        ("A", 3, 3),
        ("A", 4, 4),
        ("A", 5, 5),
    }
    assert entities_of(["B", "I", "O", "B"]) == {("", 0, 1), ("", 3, 3)}
    assert entities_of(["B-LOC-CITY", "I-LOC-CITY", "X-LOC"]) == {("LOC-CITY", 0, 1)}
    assert entities_of([]) == set()
    assert marks_entities(["O", "B-A", "I-A"])
    assert marks_entities(["B", "I"])
    assert not marks_entities(["NOUN", "VERB", "O"])
    assert not marks_entities(["O"])


def test_what_the_trainer_logs_of_tags() -> None:
    names = ["B-A", "I-A", "O"]
    labels = np.array([[-100, 0, 1, 2, -100], [-100, 0, 2, 0, -100]])
    numbers = np.array([[1, 0, 1, 2, 0], [0, 2, 2, 0, 1]])
    scores = entity_metrics(SimpleNamespace(predictions=np.eye(3)[numbers], label_ids=labels), names)
    assert scores == {"accuracy": 5 / 6, "precision": 1.0, "recall": 2 / 3, "f1": pytest.approx(0.8)}
    assert entity_metrics(SimpleNamespace(predictions=numbers, label_ids=labels), ["x", "y", "z"]) == {
        "accuracy": 5 / 6
    }


def test_a_word_has_one_label_however_many_tokens_it_has(tmp_path: Path) -> None:
    assert word_labels([None, 0, 0, 2, 3, None], [7, 8, 9, 6]) == [-100, 7, -100, 9, 6, -100]
    cases = golden("qa")
    tokenizer = tokenizer_of(tmp_path, cases["vocabulary"])
    for case in cases["words"]:
        numbers = {number: number for number in case["labels"]}
        made = encode_tagged_words(tokenizer, [case["tokens"]], [case["labels"]], numbers, 64, [0])
        assert len(made["input_ids"][0]) == len(case["out"]["input_ids"])
        held = [label for word, label in zip(case["tokens"], case["labels"], strict=True) if word.strip()]
        # There the labels of words behind a blank, or behind a word of several tokens, are shifted.
        assert [label for label in made["labels"][0] if label >= 0] == held
    with pytest.raises(ValueError, match=r"Row 3 of the data has 1 tokens and 2 tags"):
        encode_tagged_words(tokenizer, [["鲸"]], [["O", "O"]], {"O": 0}, 64, [3])
    with pytest.raises(ValueError, match=r"Row 3 of the data has 'B', which is none of \['O'\]"):
        encode_tagged_words(tokenizer, [["鲸"]], [["B"]], {"O": 0}, 64, [3])


def test_pairs_of_rows_and_options_are_scored_as_in_the_original() -> None:
    logits, labels = np.array(UTC["logits"]), np.array(UTC["labels"])
    for case in UTC["results"]:
        gold = labels if case["labels"] == "with -100" else np.where(labels < 0, 0, labels)
        if case["single_label"]:
            scores = {"accuracy": single_accuracy(logits, gold)}
        else:
            scores = pair_scores(logits, gold, case["threshold"])
        assert scores == pytest.approx(case["result"], rel=1e-12)


def test_an_option_that_is_not_there_never_wins() -> None:
    logits, labels = np.array([[1.0, 2.0, 9.0]]), np.array([[0, 1, -100]])
    assert single_accuracy(logits, labels) == 1.0
    assert utc_metrics(SimpleNamespace(predictions=logits, label_ids=labels)) == {
        "micro_f1": 0.5,
        "macro_f1": pytest.approx(1 / 3),
    }
    assert utc_metrics(SimpleNamespace(predictions=-logits, label_ids=labels), True)["accuracy"] == 0.0


def test_every_option_has_scores_of_its_own() -> None:
    choices = [["退款", "催单"], ["催单", "退款", "其他"]]
    logits, labels = np.array([[3.0, -1.0, -1e12], [2.0, -2.0, 1.0]]), np.array([[1, 1, -100], [0, 0, 1]])
    assert option_counts(choices, logits, labels) == {"退款": (1, 1, 1), "催单": (0, 1, 1), "其他": (1, 1, 1)}
    assert option_counts(choices, logits, labels, 0.95)["其他"] == (0, 0, 1)


def test_a_model_that_is_always_right_scores_one() -> None:
    rng = random.Random(1)
    labels = np.array([[rng.randint(0, 1) for _ in range(5)] for _ in range(20)])
    logits = torch.tensor(labels).float().numpy() * 4 - 2
    assert pair_scores(logits, labels) == {"micro_f1": 1.0, "macro_f1": 1.0}
    assert {one.f1 for one in option_counts([list("abcde")] * 20, logits, labels).values()} == {1.0}
