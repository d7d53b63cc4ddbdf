"""Zero-shot classification: inputs and answers equal to the original's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_glm_ernie.ernie_tasks.records import choice_records
from hf_glm_ernie.ernie_tasks.utc import utc, utc_inputs
from hf_glm_ernie.modeling_ernie_utc import ErnieForUTC
from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from tests.support.ernie_task_goldens import UTC as CONTENT
from tests.support.ernie_task_goldens import UTC_SETTINGS as SETTINGS
from tests.support.ernie_task_goldens import UTC_TEXTS as TEXTS
from tests.support.ernie_task_goldens import UTC_VOCAB as VOCAB
from tests.support.ernie_task_goldens import tokenizer_of, utc_model


@pytest.fixture(scope="module")
def model() -> ErnieForUTC:
    return utc_model()


@pytest.fixture
def tokenizer(tmp_path: Any) -> ErnieTokenizer:
    return tokenizer_of(VOCAB, tmp_path)


@pytest.mark.parametrize("case", CONTENT["cases"], ids=lambda case: f"{len(case['choices'])}-{case['settings']}")
def test_answers_are_the_originals(case: dict[str, Any], model: ErnieForUTC, tokenizer: ErnieTokenizer) -> None:
    settings = {SETTINGS[name]: value for name, value in case["settings"].items()}
    answers = utc(model, tokenizer, case["choices"], TEXTS, **settings)
    assert sum(map(len, case["predictions"])) >= len(TEXTS)
    for text, answer, expected in zip(TEXTS, answers, case["predictions"], strict=True):
        first, second = (text, "") if isinstance(text, str) else text
        assert (answer.get("text_a", ""), answer.get("text_b", "")) == (first, second)
        assert [one["label"] for one in answer["predictions"]] == [one["label"] for one in expected]
        for one, other in zip(answer["predictions"], expected, strict=True):
            # logits of size 10 in fp32, scores with seven digits
            assert abs(one["score"] - other["score"]) < 2e-5


@pytest.mark.parametrize("case", CONTENT["cases"], ids=lambda case: f"{len(case['choices'])}-{case['settings']}")
def test_inputs_are_the_originals(case: dict[str, Any], tokenizer: ErnieTokenizer) -> None:
    omask = tokenizer.convert_tokens_to_ids("[O-MASK]")
    plain = tokenizer(case["choices"], add_special_tokens=False)["input_ids"]
    options = [[omask, *ids] for ids in plain]
    pairs = [(text, "") if isinstance(text, str) else text for text in TEXTS]
    size = case["settings"].get("batch_size", 1)
    for i, expected in enumerate(case["inputs"]):
        max_length = case["settings"].get("max_seq_len", 128)
        batch = pairs[i * size : (i + 1) * size]
        inputs = utc_inputs(tokenizer, [options] * len(batch), batch, max_length)
        mask = inputs.pop("attention_mask")
        assert sorted(inputs) == sorted(set(expected) - {"attended"})
        for name, tensor in inputs.items():
            assert tensor.tolist() == expected[name], name
        assert set(mask.unique().tolist()) <= {0.0, -1e4}
        assert (mask == 0).sum(-1).tolist() == expected["attended"]


def test_the_order_of_choices_and_the_batch_change_nothing(model: ErnieForUTC, tokenizer: ErnieTokenizer) -> None:
    choices = CONTENT["cases"][-1]["choices"]
    expected = [answer["predictions"] for answer in utc(model, tokenizer, choices, TEXTS, threshold=0)]
    for text, forward in zip(TEXTS, expected, strict=True):
        [backward] = utc(model, tokenizer, {"标签": choices[::-1]}, [text], threshold=0, batch_size=1)
        assert [one["label"] for one in forward] == choices
        for one, other in zip(forward, backward["predictions"][::-1], strict=True):
            assert one["label"] == other["label"]
            assert abs(one["score"] - other["score"]) < 2e-5  # as above


def test_the_option_token_is_added_where_it_is_missing(model: ErnieForUTC, tmp_path: Any) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in VOCAB[:-1]), encoding="utf-8")
    tokenizer = ErnieTokenizer(str(path))
    expected = CONTENT["cases"][0]
    answers = utc(model, tokenizer, expected["choices"], TEXTS, threshold=0)
    assert tokenizer.convert_tokens_to_ids("[O-MASK]") == len(VOCAB) - 1
    for answer, theirs in zip(answers, expected["predictions"], strict=True):
        assert answer["predictions"][0]["score"] == pytest.approx(theirs[0]["score"], abs=2e-5)
    path.write_text("".join(f"{token}\n" for token in [*VOCAB[:-1], "零"]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"\[O-MASK\] has the id"):
        utc(model, ErnieTokenizer(str(path)), ["好", "不"], "文")


@pytest.mark.parametrize(
    ("choices", "texts", "settings", "error", "message"),
    [
        (["好"], "文", {}, ValueError, "at least two"),
        ("好不", "文", {}, ValueError, "at least two"),
        (["好", 3], "文", {}, TypeError, r"choices\[1\] is a int"),
        (["好", "不"], ["文", ""], {}, ValueError, r"texts\[1\] is empty"),
        (["好", "不"], [("文", "文", "文")], {}, TypeError, r"texts\[0\] is neither"),
        (["好", "不"], [None], {}, TypeError, r"texts\[0\] is neither"),
        (["好", "不"], "文", {"max_length": 8}, ValueError, "leave no room"),
        (["好", "不"], "文", {"threshold": 1.5}, ValueError, r"threshold=1\.5 is no probability: .* in \[0, 1\]"),
        (["好", "不"], "文", {"threshold": -0.1}, ValueError, r"threshold=-0\.1 is no probability"),
        (["好", "不"], "文", {"threshold": "0.5"}, ValueError, r"threshold='0\.5' is no probability"),
        (["好", "不"], "文", {"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
        (["好" * 70, "不" * 70], "文", {}, ValueError, "in 128"),
    ],
)
def test_refusals(
    choices: Any,
    texts: Any,
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
    model: ErnieForUTC,
    tokenizer: ErnieTokenizer,
) -> None:
    with pytest.raises(error, match=message):
        utc(model, tokenizer, choices, texts, **settings)


def test_thresholds_from_0_to_1(tokenizer: ErnieTokenizer) -> None:
    def scores(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": torch.tensor([[-60.0, 0.0, 3.0, 90.0]])}  # 90: 1 in fp32

    scores.config = SimpleNamespace(vocab_size=10**6, max_position_embeddings=128)  # type: ignore[attr-defined]
    for threshold, held in ((0, "甲乙丙丁"), (0.5, "丙丁"), (0.99, "丁"), (1, "丁")):
        [answer] = utc(scores, tokenizer, list("甲乙丙丁"), "文", threshold=threshold)
        assert [one["label"] for one in answer["predictions"]] == list(held)


def test_a_row_is_never_longer_than_the_model_reads(
    model: ErnieForUTC, tokenizer: ErnieTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    expected = utc(model, tokenizer, ["好", "不"], "文" * 200)
    assert not caplog.records
    assert utc(model, tokenizer, ["好", "不"], "文" * 200, max_length=4000) == expected
    assert "max_length=4000, but ErnieForUTC reads at most 128 tokens at once" in caplog.text


RECORD: dict[str, Any] = {"text_a": "文", "text_b": "", "question": "", "choices": ["好", "不"]}


def test_a_dict_is_the_record_of_one_text(model: ErnieForUTC, tokenizer: ErnieTokenizer) -> None:
    """Its keys are no texts, and its choices are its own, also beside rows with others."""
    settings: dict[str, Any] = {"single_label": True}
    plain = utc(model, tokenizer, ["好", "不"], "文", **settings)
    assert utc(model, tokenizer, None, RECORD, **settings) == plain
    assert utc(model, tokenizer, ["大", "小"], RECORD | {"labels": [0]}, **settings) == plain
    assert utc(model, tokenizer, ["好", "不"], {"text_a": "文"}, **settings) == plain
    mixed = [RECORD, ("文", "本"), RECORD | {"choices": ["大", "小", "文"], "text_b": "本"}]
    together = utc(model, tokenizer, ["不", "好"], mixed, **settings, batch_size=3)
    alone = [utc(model, tokenizer, ["不", "好"], [one], **settings)[0] for one in mixed]
    for one, other in zip(together, alone, strict=True):
        assert {**one, "predictions": None} == {**other, "predictions": None}
        assert one["predictions"][0]["label"] == other["predictions"][0]["label"]
        # fp32 sums over rows of another width: 1.5e-6 seen
        assert one["predictions"][0]["score"] == pytest.approx(other["predictions"][0]["score"], abs=1e-5)
    assert utc(model, tokenizer, None, []) == []


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ({"text": "文"}, TypeError, r"texts\[0\] is a dict with \['text'\]; a dict holds text_a and, .* nothing else"),
        ([RECORD, RECORD | {"label": 1}], TypeError, r"texts\[1\] is a dict with"),
        (RECORD | {"text_a": None}, TypeError, r"texts\[0\] is neither a string nor a pair of strings, nor a dict"),
        (RECORD | {"text_a": ""}, ValueError, r"texts\[0\] is empty"),
        (RECORD | {"choices": ["好"]}, ValueError, r"texts\[0\]\['choices'\] must be a list of at least two strings"),
        (RECORD | {"choices": ["好", 3]}, TypeError, r"texts\[0\]\['choices'\]\[1\] is a int"),
        ([RECORD, "文"], ValueError, r"choices=None, but texts\[1\] has no choices of its own"),
        (3, TypeError, r"texts is a int \(3\); it must be a string, a dict {'text_a': "),
    ],
)
def test_records_that_are_none(
    texts: Any, error: type[Exception], message: str, model: ErnieForUTC, tokenizer: ErnieTokenizer
) -> None:
    with pytest.raises(error, match=message):
        utc(model, tokenizer, None, texts)


def test_progress_and_mode(model: ErnieForUTC, tokenizer: ErnieTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    model.train()
    utc(model, tokenizer, ["好", "不"], ["文"] * 5, batch_size=1)
    assert "Classifying" in capsys.readouterr().err
    assert model.training
    model.eval()
    utc(model, tokenizer, ["好", "不"], ["文"] * 5, batch_size=1, show_progress=False)
    utc(model, tokenizer, ["好", "不"], ["文"] * 4, batch_size=1)  # a few
    utc(model, tokenizer, ["好", "不"], "文")
    assert capsys.readouterr().err == ""


def test_a_record_with_nothing_for_choices_takes_those_of_all() -> None:
    # rows of `datasets` have every column, None where the file has none
    records = choice_records([{"text_a": "好", "text_b": None, "choices": None}], ["甲", "乙"])
    assert records == [("好", "", ("甲", "乙"))]
    with pytest.raises(ValueError, match="no choices of its own"):
        choice_records({"text_a": "好", "choices": None}, None)
