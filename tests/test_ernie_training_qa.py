"""Reading comprehension: windows, answers and scores as by PaddleNLP, and right where it goes wrong."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hf_glm_ernie import ErnieTokenizer
from hf_glm_ernie.ernie_tasks.qa_answers import qa_answers
from hf_glm_ernie.ernie_tasks.qa_features import QAFeature, qa_features, window_starts
from hf_glm_ernie.ernie_training.qa_scores import answer_f1, exact_match, plain_answer, qa_scores
from tests.support.ernie_training_goldens import golden, tokenizer_of

QA = golden("qa")
GUESSED = {13, 17, 21, 27, 29, 30, 31, 44, 49, 50, 51, 56}
"""Windows with unknown words, whose places the original guesses."""
SETTINGS = {
    "n_best_size": "n_best",
    "max_answer_length": "max_answer_length",
    "version_2_with_negative": "may_be_unanswerable",
    "null_score_diff_threshold": "null_threshold",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ErnieTokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("qa"), QA["vocabulary"])


@pytest.fixture(scope="module")
def features(tokenizer: ErnieTokenizer) -> list[QAFeature]:
    return qa_features(tokenizer, QA["examples"], QA["max_seq_length"], QA["doc_stride"])


def places(offsets: list[Any]) -> list[Any]:
    return [None if place is None else tuple(place) for place in offsets]


def test_windows_and_positions_are_those_of_the_original(features: list[QAFeature]) -> None:
    assert len(features) == len(QA["features"])
    for i, (feature, case) in enumerate(zip(features, QA["features"], strict=True)):
        assert len(feature.input_ids) == len(feature.token_type_ids) == len(feature.offsets) == case["length"]
        assert [feature.start_position, feature.end_position] == case["positions"]
        assert (feature.offsets == places(case["offsets"])) == (i not in GUESSED)


def test_the_stride_is_a_step() -> None:
    assert window_starts(100, 52, 32) == [0, 32, 64]  # neighbours share 20
    assert window_starts(52, 52, 32) == [0]
    assert window_starts(0, 52, 32) == [0]


@pytest.mark.parametrize("case", QA["predictions"], ids=lambda case: str(len(case["kwargs"])))
def test_answers_are_those_of_the_original(features: list[QAFeature], case: dict[str, Any]) -> None:
    settings = {SETTINGS[name]: value for name, value in case["kwargs"].items()}
    there = [replace(f, offsets=places(g["offsets"])) for f, g in zip(features, QA["features"], strict=True)]
    starts, ends = ([one["logits"][i] for one in QA["features"]] for i in (0, 1))
    answers = qa_answers(QA["examples"], there, starts, ends, **settings)
    for example, answer in zip(QA["examples"], answers, strict=True):
        name = example["id"]
        assert answer.text == case["predictions"][name]
        for mine, theirs in zip(answer.candidates, case["nbest"][name], strict=False):
            assert (mine.text, mine.start_logit, mine.end_logit) == (
                theirs["text"],
                theirs["start_logit"],
                theirs["end_logit"],
            )
            assert mine.probability == pytest.approx(theirs["probability"], rel=1e-12)
        assert sum(one.probability for one in answer.candidates) == pytest.approx(1)
        if case["scores_diff"]:
            assert answer.null_difference == pytest.approx(case["scores_diff"][name], rel=1e-12)

    asked = [
        (a.text, e["answers"]["text"]) for a, e in zip(answers, QA["examples"], strict=True) if e["answers"]["text"]
    ]
    scores = qa_scores([found for found, _ in asked], [gold for _, gold in asked])
    assert scores["exact_match"] == case["squad_evaluate"]["exact"]

    def first_piece(text: str) -> str:
        return (plain_answer(text).split() or [""])[0]

    # There F1 looks at the characters before the first blank only: with them it is the same number.
    cut = [max(answer_f1(first_piece(found), first_piece(one)) for one in gold) for found, gold in asked]
    assert 100 * np.mean(cut) == pytest.approx(case["squad_evaluate"]["f1"], rel=1e-12)
    assert scores["f1"] > case["squad_evaluate"]["f1"]


def test_no_answer_is_chosen_where_it_scores_higher(features: list[QAFeature]) -> None:
    example, own = QA["examples"][0], [f for f in features if f.example == 0]
    starts, ends = np.zeros((1, len(own[0].input_ids))), np.zeros((1, len(own[0].input_ids)))
    starts[0, 0] = ends[0, 0] = 3.0
    starts[0, 12] = ends[0, 13] = 2.5
    settings: dict[str, Any] = {"may_be_unanswerable": True}
    answer = qa_answers([example], own, starts, ends, **settings)[0]
    assert (answer.text, answer.null_difference) == ("", 1.0)
    text = example["context"][1:3]
    assert qa_answers([example], own, starts, ends, **settings, null_threshold=1.0)[0].text == text
    found = qa_answers([example], own, starts, ends)[0]
    assert (found.text, found.candidates[0].start, found.candidates[0].end, found.null_difference) == (
        text,
        1,
        3,
        None,
    )


def test_nothing_to_choose_from() -> None:
    nothing = QAFeature(0, [1, 2, 2], [0, 0, 1], [None] * 3, 0, 0)
    answer = qa_answers([{"context": ""}], [nothing], [[1.0, 0, 0]], [[1.0, 0, 0]])[0]
    assert (answer.text, answer.candidates[0].probability) == ("empty", 1.0)
    assert (
        qa_answers([{"context": ""}], [nothing], [[1.0, 0, 0]], [[1.0, 0, 0]], may_be_unanswerable=True)[0].text == ""
    )


def test_all_characters_of_an_answer_count() -> None:
    """There 甲乙 丙丁 against 甲乙 戊己 gives 1."""
    assert answer_f1("甲乙 丙丁", "甲乙 戊己") == 0.5
    assert answer_f1("甲乙 丙丁", "甲乙丙丁") == 1.0
    assert answer_f1("the red car", "a red bus", "words") == 0.5
    assert answer_f1("", "甲") == 0.0
    assert answer_f1("，", "") == 1.0
    assert exact_match("《灯与河》。", "灯与河") == 1.0
    assert exact_match("The  Red-car", "redcar") == 1.0


def test_scores_of_questions_without_an_answer() -> None:
    scores = qa_scores(["甲", "", "乙"], [["甲", "丙"], [], []])
    assert scores == {
        "exact_match": pytest.approx(200 / 3),
        "f1": pytest.approx(200 / 3),
        "answerable_exact_match": 100.0,
        "answerable_f1": 100.0,
        "unanswerable_exact_match": 50.0,
        "unanswerable_f1": 50.0,
    }
    assert qa_scores(["甲"], [["甲"]]) == {"exact_match": 100.0, "f1": 100.0}
    with pytest.raises(ValueError, match=r"1 answers to 2 questions"):
        qa_scores(["甲"], [["甲"], []])
    with pytest.raises(ValueError, match=r"unit='tokens' is not one of"):
        qa_scores(["甲"], [["甲"]], "tokens")


def test_answers_with_blanks_around_them(tokenizer: ErnieTokenizer) -> None:
    example = {"question": "人物", "context": "人物 李四 。", "answers": {"text": [" 李四 "], "answer_start": [2]}}
    feature = qa_features(tokenizer, [example], 64)[0]
    first, last = feature.offsets[feature.start_position], feature.offsets[feature.end_position]
    assert first is not None
    assert last is not None
    assert example["context"][first[0] : last[1]] == "李四"


@pytest.mark.parametrize(
    ("example", "settings", "words"),
    [
        ({"question": " ", "context": "李四"}, {}, r"Example 0 has no text in 'question': found ' '"),
        ({"question": "人物"}, {}, r"Example 0 has no text in 'context': found None"),
        (
            {"question": "人物", "context": "李四。", "answers": {"text": ["李四"], "answer_start": [1]}},
            {},
            r"Example 0 has the answer '李四' at 1, where its context has '四。'",
        ),
        ({"question": "人物", "context": "李四"}, {"max_length": 5}, r"a question of 2 tokens, which leaves 0 for"),
        ({"question": "人物", "context": "李四"}, {"stride": 0}, r"stride=0 must be at least 1"),
    ],
)
def test_examples_that_are_not_what_they_should_be(
    tokenizer: ErnieTokenizer, example: dict[str, Any], settings: dict[str, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        qa_features(tokenizer, [example], **settings)


def test_no_examples(tokenizer: ErnieTokenizer) -> None:
    assert qa_features(tokenizer, []) == []
    assert qa_answers([], [], [], []) == []
