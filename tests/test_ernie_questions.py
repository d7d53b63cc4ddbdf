"""Answers to questions about texts: windows, candidates and probabilities against the rule written out, runners."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ErnieConfig, ErnieForQuestionAnswering

from hf_glm_ernie import ErnieTokenizer, answer_questions
from hf_glm_ernie.ernie_tasks.qa_answers import qa_answers
from hf_glm_ernie.ernie_tasks.qa_features import qa_features
from hf_glm_ernie.ernie_tasks.questions import question_records
from hf_glm_ernie.ernie_training.qa_scores import exact_match, qa_scores
from hf_glm_ernie.ernie_training.qa_task import Reading
from tests.support.ernie_training_goldens import golden, tokenizer_of

QA = golden("qa")
EXAMPLES = QA["examples"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ErnieTokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("qa"), QA["vocabulary"])


@pytest.fixture(scope="module")
def model() -> ErnieForQuestionAnswering:
    torch.manual_seed(0)
    config = ErnieConfig(
        vocab_size=len(QA["vocabulary"]),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=64,
        initializer_range=0.3,  # logits from -3 to 3: probabilities that differ
    )
    return ErnieForQuestionAnswering(config).eval()


def best_spans(model: Any, tokenizer: Any, example: dict[str, Any], longest: int) -> dict[tuple[int, int], float]:
    """Every span of every window with its best score: loops over all pairs, a window a forward."""
    found: dict[tuple[int, int], float] = {}
    for window in qa_features(tokenizer, [{**example, "answers": None}], 64, 16):
        ids, types = (torch.tensor([one]) for one in (window.input_ids, window.token_type_ids))
        with torch.no_grad():
            outputs = model(input_ids=ids, token_type_ids=types)
        for first, begin in enumerate(window.offsets):
            for last in range(first, min(first + longest, len(window.offsets))):
                end = window.offsets[last]
                if begin is not None and end is not None:
                    score = float(outputs.start_logits[0, first] + outputs.end_logits[0, last])
                    place = begin[0], end[1]
                    found[place] = max(score, found.get(place, score))
    return found


def test_the_best_of_all_spans_is_found(model, tokenizer) -> None:
    examples = [{name: one[name] for name in ("question", "context")} for one in EXAMPLES]
    answers = answer_questions(model, tokenizer, examples, max_answer_length=12, n_best=3, batch_size=5)
    assert len(answers) == len(examples)
    assert max(len(qa_features(tokenizer, [one], 64, 16)) for one in examples) > 3
    for example, answer in zip(examples, answers, strict=True):
        spans = best_spans(model, tokenizer, example, 12)
        (start, end), score = max(spans.items(), key=lambda one: one[1])
        assert (answer["start"], answer["end"]) == (start, end)
        assert answer["text"] == example["context"][start:end]
        assert answer["candidates"][0] == {name: answer[name] for name in ("text", "start", "end", "probability")}
        places = [(one["start"], one["end"]) for one in answer["candidates"]]
        assert len(set(places)) == len(places) <= 3
        chances = [one["probability"] for one in answer["candidates"]]
        assert chances == sorted(chances, reverse=True)
        if len(places) > 1:  # the ratio is that of the scores, fp32 in batches of other widths: 5e-7 seen
            ratio = np.exp(score - spans[places[1]])
            assert chances[0] / chances[1] == pytest.approx(ratio, rel=1e-5)


def test_batches_and_ways_of_asking_change_nothing(model, tokenizer) -> None:
    examples = [{name: one[name] for name in ("question", "context")} for one in EXAMPLES[:6]]
    questions, contexts = ([one[name] for one in examples] for name in ("question", "context"))
    together = answer_questions(model, tokenizer, questions, contexts, batch_size=64, show_progress=True)
    for i, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        alone = answer_questions(model, tokenizer, question, context, batch_size=1)[0]
        assert (alone["start"], alone["end"]) == (together[i]["start"], together[i]["end"])
        assert alone["probability"] == pytest.approx(together[i]["probability"], abs=1e-6)  # 2e-8 seen
    assert answer_questions(model, tokenizer, questions, contexts[0])[0] == together[0]
    assert answer_questions(model, tokenizer, questions[0], contexts)[0] == together[0]
    assert answer_questions(model, tokenizer, [], []) == []
    assert model.training is False


def peaks(inputs: dict[str, torch.Tensor], start: int, end: int) -> dict[str, np.ndarray]:
    """Logits that are high at two tokens: what a function may give in a model's place."""
    logits = {name: np.zeros(tuple(inputs["input_ids"].shape), np.float32) for name in ("start_logits", "end_logits")}
    logits["start_logits"][:, start] = logits["end_logits"][:, end] = 5.0
    return logits


def test_no_answer(tokenizer) -> None:
    question, context = EXAMPLES[0]["question"], EXAMPLES[0]["context"][:20]
    behind = len(tokenizer(question, add_special_tokens=False)["input_ids"]) + 2

    def sure(**inputs: torch.Tensor) -> dict[str, np.ndarray]:
        return peaks(inputs, behind + 1, behind + 3)

    def nothing(**inputs: torch.Tensor) -> dict[str, np.ndarray]:
        return peaks(inputs, 0, 0)

    settings: dict[str, Any] = {"may_be_unanswerable": True, "max_length": 64}
    found = answer_questions(sure, tokenizer, question, context, **settings)[0]
    assert (found["text"], found["start"], found["null_difference"]) == (context[1:4], 1, -10.0)
    found = answer_questions(nothing, tokenizer, question, context, **settings)[0]
    assert (found["text"], found["start"], found["end"], found["null_difference"]) == ("", None, None, 10.0)
    assert found["probability"] > 0.99
    found = answer_questions(nothing, tokenizer, question, context, null_threshold=10.0, **settings)[0]
    assert found["text"] != ""
    found = answer_questions(nothing, tokenizer, question, context, max_length=64)[0]
    assert found["text"] != ""
    assert "null_difference" not in found

    def crossed(**inputs: torch.Tensor) -> dict[str, np.ndarray]:  # the best starts stand behind the best ends
        length = inputs["input_ids"].shape[1]
        rising = np.broadcast_to(np.arange(length, dtype=np.float32), (1, length)).copy()
        return {"start_logits": rising, "end_logits": -rising}

    long = "".join(one["context"] for one in EXAMPLES)[:120]
    length = len(tokenizer(question, long)["input_ids"])
    assert length > 60
    found = answer_questions(crossed, tokenizer, question, long, max_length=length)
    assert (found[0]["text"], found[0]["start"], found[0]["candidates"][0]["end"]) == ("", None, None)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "words"),
    [
        (("谁？",), {}, TypeError, r"contexts=None, but questions are strings"),
        ((["谁？", "谁？"], ["甲", "乙", "丙"]), {}, ValueError, r"2 questions and 3 contexts"),
        (({"question": "谁？"},), {}, TypeError, r"questions\[0\] is a dict with \['question'\]"),
        (({"question": "谁？", "context": "甲"}, "乙"), {}, TypeError, r"contexts must be None where questions are"),
        (("谁？", " "), {}, ValueError, r"Example 0 has no text in 'context'"),
        ((["谁？", 3], "甲"), {}, TypeError, r"questions\[1\] is a int"),
        (("谁？", "甲"), {"n_best": 0}, ValueError, r"n_best=0 must be at least 1"),
        (("谁？", "甲"), {"stride": 0}, ValueError, r"stride=0 must be at least 1"),
        (("谁？", "甲"), {"max_length": 5}, ValueError, r"leaves 0 for the context"),
        (("谁？", "甲"), {"may_be_unanswerable": "no"}, TypeError, r"must be True or False"),
    ],
)
def test_what_is_refused(model, tokenizer, arguments: Any, settings: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        answer_questions(model, tokenizer, *arguments, **settings)


def test_models_that_do_not_fit(tokenizer) -> None:
    def other(**inputs: torch.Tensor) -> Any:
        return {"logits": inputs["input_ids"]}

    def nan(**inputs: torch.Tensor) -> Any:
        return {name: np.full(inputs["input_ids"].shape, np.nan) for name in ("start_logits", "end_logits")}

    with pytest.raises(TypeError, match=r"gives 'logits', but no 'start_logits'"):
        answer_questions(other, tokenizer, "谁？", "甲")
    with pytest.raises(ValueError, match=r"logits that are no numbers"):
        answer_questions(nan, tokenizer, "谁？", "甲")
    slow = SimpleNamespace(is_fast=False, pad_token_id=0, model_max_length=512)
    with pytest.raises(TypeError, match=r"tokenizer is a SimpleNamespace"):
        answer_questions(nan, slow, "谁？", "甲")


def test_the_task_scores_and_tells_its_mistakes(tokenizer) -> None:
    """On the original's logits, padded as a `Trainer` pads them; unanswerable questions among them."""
    datasets = pytest.importorskip("datasets", reason="tasks read rows as datasets")
    rows = datasets.Dataset.from_list(
        [{name: example[name] for name in ("id", "question", "context", "answers")} for example in EXAMPLES]
    )
    task = Reading(tokenizer, QA["max_seq_length"], {"doc_stride": QA["doc_stride"]})
    encoded = rows.map(task.encode, batched=True, with_indices=True, remove_columns=rows.column_names)
    assert len(encoded) == len(QA["features"])
    longest = max(map(len, encoded["input_ids"])) + 3
    logits = np.full((2, len(encoded), longest), -100.0)
    for i, one in enumerate(QA["features"]):
        logits[:, i, : len(one["logits"][0])] = one["logits"]
    prediction = SimpleNamespace(predictions=tuple(logits), label_ids=None)
    with pytest.raises(ValueError, match=r"call measure_on"):
        task.metrics(prediction)
    task.measure_on(rows, encoded)
    features = qa_features(tokenizer, EXAMPLES, QA["max_seq_length"], QA["doc_stride"])
    starts, ends = ([one["logits"][i] for one in QA["features"]] for i in (0, 1))
    expected = [one.text for one in qa_answers(EXAMPLES, features, starts, ends)]
    gold = [example["answers"]["text"] for example in EXAMPLES]
    scores = task.metrics(prediction)
    assert scores == qa_scores(expected, gold)
    assert "unanswerable_f1" in scores
    report = task.report(rows, encoded, prediction)
    wrong = [i for i, (one, right) in enumerate(zip(expected, gold, strict=True)) if not is_right(one, right)]
    assert [one["row"] for one in report["mistakes"]] == wrong
    assert wrong
    for one in report["mistakes"]:
        assert [mark["text"] for mark in one["found"]] == [expected[one["row"]]]
        assert [mark["text"] for mark in one["gold"]] == list(dict.fromkeys(gold[one["row"]]))
        assert all(one["text"][mark["start"] : mark["end"]] == mark["text"] for mark in one["found"] + one["gold"])
    assert sum(one["gold"] for one in report["by_class"].values()) == len(EXAMPLES)


def is_right(found: str, gold: list[str]) -> bool:
    return any(exact_match(found, one) for one in gold or [""])


def test_records_are_those_of_training_rows() -> None:
    row = {"id": "1", "question": "谁？", "context": "甲", "answers": {"text": ["甲"], "answer_start": [0]}}
    assert question_records([row]) == [{"question": "谁？", "context": "甲"}]
