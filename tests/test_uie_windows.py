"""Windows that overlap, nested answers and given aspects: equal to one unbroken window, whatever stands at an edge."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_glm_ernie.ernie_tasks.uie import uie
from hf_glm_ernie.ernie_tasks.uie_spans import Span, merge_windows, pair_nested, pair_spans
from hf_glm_ernie.ernie_tasks.uie_windows import Window, cut_windows
from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from tests.support.ernie_task_goldens import UIE as CONTENT
from tests.support.ernie_task_goldens import tokenizer_of

OUTSIDE, INSIDE = "上", ("明", "天", "时")  # a letter, and the letters that an answer begins, goes on and ends with


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ErnieTokenizer:
    return tokenizer_of(CONTENT["vocab"], tmp_path_factory.mktemp("vocab"))


class Runs:
    """A model whose answers are the runs of letters of `INSIDE`, as far as its window shows them.

    Where the edge of a window cuts a run through, it takes the piece for an answer, as real models do.
    """

    config = SimpleNamespace(max_position_embeddings=2048)

    def __init__(self, tokenizer: ErnieTokenizer):
        self.ids = set(tokenizer.convert_tokens_to_ids(list(INSIDE)))
        self.rows: list[int] = []

    def __call__(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, **inputs: Any) -> dict[str, Any]:
        start, end = np.zeros(input_ids.shape), np.zeros(input_ids.shape)
        for row, (ids, types) in enumerate(zip(input_ids.tolist(), token_type_ids.tolist(), strict=True)):
            inside = [one in self.ids and kind == 1 for one, kind in zip(ids, types, strict=True)]
            self.rows.append(sum(inputs["attention_mask"][row].tolist()))
            for at, (before, now) in enumerate(itertools.pairwise([False, *inside, False])):
                if now and not before:
                    start[row, at] = 0.9
                if before and not now:
                    end[row, at - 1] = 0.9
        return {"start_prob": start, "end_prob": end}


def places(answers: dict[str, Any], name: str = "选手") -> list[tuple[int, int]]:
    return [(one["start"], one["end"]) for one in answers.get(name, [])]


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_an_answer_at_every_place_is_found_whole_and_once(length: int, tokenizer: ErnieTokenizer) -> None:
    model, run = Runs(tokenizer), ("明" + "天" * 6 + "时")[:length]
    texts = [OUTSIDE * at + run + OUTSIDE * (60 - at) for at in range(61)]
    unbroken = [places(one) for one in uie(model, tokenizer, "选手", texts)]
    assert unbroken == [[(at, at + length)] for at in range(61)]
    for overlap, max_length in ((8, 25), (8, 22), (10, 26), (9, 24)):  # windows of 20, 17, 21 and 19 characters
        found = uie(model, tokenizer, "选手", texts, max_length=max_length, overlap=overlap)
        assert [places(one) for one in found] == unbroken
    broken = uie(model, tokenizer, "选手", texts, max_length=25, overlap=0)
    cut = sum(places(one) != whole for one, whole in zip(broken, unbroken, strict=True))
    assert cut == 3 * (length - 1)  # without an overlap, at each of the three edges


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("split_sentences", [False, True])
def test_random_texts_as_in_one_window(nested: bool, split_sentences: bool, tokenizer: ErnieTokenizer) -> None:
    rng, model = np.random.default_rng(1), Runs(tokenizer)
    texts = []
    for _ in range(60):
        pieces = [OUTSIDE * int(rng.integers(1, 12)) + "天" * int(rng.integers(1, 9)) for _ in range(rng.integers(9))]
        texts.append("。".join(["".join(pieces), "".join(pieces[::-1]) + OUTSIDE]))
    settings: dict[str, Any] = {"allow_nested": nested, "split_sentences": split_sentences}
    expected = uie(model, tokenizer, "选手", texts, **settings)
    assert sum(map(len, map(places, expected))) > 200
    for max_length, overlap in ((37, None), (25, 8), (40, 16)):
        assert uie(model, tokenizer, "选手", texts, max_length=max_length, overlap=overlap, **settings) == expected
    # every character is read at most twice
    model.rows.clear()
    uie(model, tokenizer, "选手", texts, max_length=25, overlap=10, **settings)
    assert sum(rows - 5 for rows in model.rows) <= 2 * sum(map(len, texts))


def test_windows_share_what_they_should() -> None:
    for length, width in itertools.product(range(40), (1, 2, 3, 8, 20)):
        for overlap in (None, *range(width // 2 + 1)):
            text = "".join(chr(0x4E00 + i) for i in range(length))
            windows = list(cut_windows(0, "", text, width + 3, False, overlap))
            both = width // 4 if overlap is None else overlap
            assert windows[0].offset == 0
            assert windows[-1].end == length
            assert all(text[one.offset : one.end] == one.text and len(one.text) <= width for one in windows)
            assert all(one.end - other.offset == both for one, other in itertools.pairwise(windows))
            assert [one.goes_on_before for one in windows] == [False] + [True] * (len(windows) - 1)
            assert [one.goes_on_behind for one in windows] == [True] * (len(windows) - 1) + [False]
            assert len(windows) == 1 or len(text) > width


def merged(found: list[list[tuple[int, int, float]]], nested: bool = False) -> list[tuple[int, int, float]]:
    """Of two windows, characters 0..20 and 12..32."""
    windows = [Window(0, "", "x" * 20, 0, False, True), Window(0, "", "x" * 20, 12, True, False)]
    spans = [[Span(*one, False) for one in own] for own in found]
    return [(one.start, one.end, one.probability) for one in merge_windows(windows, spans, nested)]


@pytest.mark.parametrize(
    ("found", "flat", "nested"),
    [
        # the same place once, with the higher probability
        ([[(13, 16, 0.6)], [(13, 16, 0.8)]], [(13, 16, 0.8)], None),
        ([[(13, 16, 0.8)], [(13, 16, 0.6)]], [(13, 16, 0.8)], None),
        # exactly what both windows share: at an edge of each
        ([[(12, 20, 0.7)], [(12, 20, 0.6)]], [(12, 20, 0.7)], None),
        # cut through, however likely
        ([[(17, 20, 0.99)], [(17, 24, 0.6)]], [(17, 24, 0.6)], None),
        ([[(9, 14, 0.6)], [(12, 14, 0.99)]], [(9, 14, 0.6)], None),
        # found by one window only, at its edge or not: not lost
        ([[(17, 20, 0.9)], []], [(17, 20, 0.9)], None),
        ([[], [(13, 15, 0.9)]], [(13, 15, 0.9)], None),
        # the window that sees more around an answer decides
        ([[(13, 15, 0.6)], [(13, 16, 0.9)]], [(13, 15, 0.6)], None),
        # longer than what is shared: the piece at the edge comes last
        ([[(8, 20, 0.9)], [(14, 24, 0.6)]], [(14, 24, 0.6)], [(8, 20, 0.9), (14, 24, 0.6)]),
        # what both agree on may nest
        ([[(2, 5, 0.9), (13, 17, 0.9), (13, 19, 0.8)], [(13, 17, 0.7), (13, 19, 0.9)]], None, [(2, 5, 0.9),
          (13, 17, 0.9), (13, 19, 0.9)]),
    ],
)  # fmt: skip
def test_answers_of_two_windows(found: Any, flat: Any, nested: Any) -> None:
    if flat is not None:
        assert merged(found) == flat
    assert merged(found, nested=True) == (flat if nested is None else nested)


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ("( ) ( )", [(0, 1), (2, 3)]),  # two names: never one from the first to the last
        ("( ) )", [(0, 1), (0, 2)]),  # 北京, 北京大学
        ("( ( )", [(0, 2), (1, 2)]),  # 北京大学, 大学
        ("( ( ) )", [(0, 3), (1, 2)]),
        ("( ( ( ) )", [(0, 4), (1, 4), (2, 3)]),
        ("( ( ) ( ) )", [(0, 5), (1, 2), (3, 4)]),
        ("( ) ( ) )", [(0, 1), (2, 3), (2, 4)]),
        ("( ( ) . ( ) )", [(0, 2), (1, 2), (4, 5), (4, 6)]),  # nothing goes on over the end of a sentence
        ("( ) . )", [(0, 1)]),
        ("( . )", [(0, 2)]),  # but the original's pairs
        (") ) (", []),
        ("! ! )", [(0, 0), (1, 1), (1, 2)]),  # a start and an end in one token
        ("", []),
    ],
)
def test_nested_pairs(marks: str, expected: list[tuple[int, int]]) -> None:
    signs = marks.split()
    starts = [i for i, sign in enumerate(signs) if sign in "(!"]
    ends = [i for i, sign in enumerate(signs) if sign in ")!"]
    assert pair_nested(starts, ends, lambda first, last: "." not in signs[first:last]) == expected


def test_nested_pairs_are_the_flat_ones_and_more() -> None:
    rng = np.random.default_rng(0)
    more = 0
    for _ in range(3000):
        start, end = rng.random((2, rng.integers(1, 16)))
        starts, ends = (np.flatnonzero(one > 0.6).tolist() for one in (start, end))
        allowed = rng.random() < 0.7
        pairs = pair_nested(starts, ends, lambda first, last, allowed=allowed: allowed)  # type: ignore[misc]
        flat = pair_spans(start, end, 0.6)
        assert set(flat) <= set(pairs)
        assert len(set(pairs)) == len(pairs) <= len(starts) + len(ends)
        assert all(first in starts and last in ends and first <= last for first, last in pairs)
        assert not any(a < c <= b < d for (a, b), (c, d) in itertools.product(pairs, pairs))
        more += len(pairs) - len(flat)
    assert more > 1000


class Fixed:
    """A model with likely starts and ends at given tokens."""

    config = SimpleNamespace(max_position_embeddings=128)

    def __init__(self, starts: list[int], ends: list[int]):
        self.starts, self.ends = starts, ends

    def __call__(self, input_ids: torch.Tensor, **inputs: Any) -> dict[str, torch.Tensor]:
        start, end = torch.zeros(input_ids.shape), torch.zeros(input_ids.shape)
        start[:, self.starts], end[:, self.ends] = 0.8, 0.5
        return {"start_prob": start, "end_prob": end}


def test_nested_answers_have_their_probabilities(tokenizer: ErnieTokenizer) -> None:
    model, text = Fixed([4, 9], [5, 7, 9]), "明天上午。明"  # [CLS] 时 间 [SEP] 明 天 上 午 。 明
    flat, nested = (
        uie(model, tokenizer, "时间", text, threshold=0.4, allow_nested=allow)[0]["时间"] for allow in (False, True)
    )
    assert [one["text"] for one in flat] == ["明天", "明"]
    assert [(one["text"], one["start"], one["end"]) for one in nested] == [
        ("明天", 0, 2),
        ("明天上午", 0, 4),
        ("明", 5, 6),
    ]
    assert all(one["probability"] == pytest.approx(0.4) for one in nested)


SENTIMENT = "情感倾向[正向,负向,未提及]"


class Asked:
    """A model that notes what it is asked, and finds the first letter of every text."""

    config = SimpleNamespace(max_position_embeddings=128)

    def __init__(self, tokenizer: ErnieTokenizer):
        self.tokenizer, self.prompts = tokenizer, []

    def __call__(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, **inputs: Any
    ) -> dict[str, torch.Tensor]:
        prob = torch.zeros(input_ids.shape)
        for row, (ids, types) in enumerate(zip(input_ids, token_type_ids, strict=True)):
            text = int((types == 1).nonzero()[0])
            self.prompts.append(self.tokenizer.decode(ids[1 : text - 1]).replace(" ", ""))
            prob[row, text] = 0.9
        return {"start_prob": prob, "end_prob": prob}


@pytest.mark.parametrize(
    "schema", [["观点词", "时间"], {"评价维度": ["观点词", "时间"]}, [{"评价维度": ["观点词", "时间"]}]]
)
def test_aspects_are_asked_about_in_every_text(schema: Any, tokenizer: ErnieTokenizer) -> None:
    model = Asked(tokenizer)
    found = uie(model, tokenizer, schema, ["明天", "上午"], aspects=["时间", "选手", "时间"])
    assert sorted(set(model.prompts)) == sorted(f"{a}的{n}" for a in ("时间", "选手") for n in ("观点词", "时间"))
    assert len(model.prompts) == 8
    for letter, answers in zip("明上", found, strict=True):
        assert list(answers) == ["评价维度"]
        assert [one["text"] for one in answers["评价维度"]] == ["时间", "选手"]  # in their order, each once
        for one in answers["评价维度"]:
            assert list(one) == ["text", "relations"]
            assert [one["relations"][name][0]["text"] for name in ("观点词", "时间")] == [letter, letter]


def test_aspects_without_an_answer_stay(tokenizer: ErnieTokenizer) -> None:
    found = uie(Fixed([], []), tokenizer, ["观点词", SENTIMENT], ["明天", ""], aspects=["时间"])
    assert found == [{"评价维度": [{"text": "时间"}]}] * 2
    [found] = uie(Fixed([], []), tokenizer, "Opinion", "a", aspects=["time"], language="en")
    assert found == {"Aspect": [{"text": "time"}]}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"aspects": "时间"}, TypeError, "aspects is a str"),
        ({"aspects": {"时间": 1}}, TypeError, "aspects is a dict"),
        ({"aspects": []}, ValueError, "aspects is empty"),
        ({"aspects": ["时间", 3]}, TypeError, r"aspects\[1\] is a int"),
        ({"aspects": ["时间", " "]}, ValueError, r"aspects\[1\] is blank"),
        ({"aspects": ["时" * 200]}, ValueError, "leaves no room"),
        ({"aspects": ["时间"], "schema": "评价维度"}, ValueError, "asks nothing about the aspects"),
        ({"overlap": -1}, ValueError, "overlap=-1 must be at least 0"),
        ({"overlap": 3.5}, TypeError, r"overlap=3\.5 is a float"),
        ({"overlap": True}, TypeError, "overlap=True is a bool"),
        ({"overlap": 62}, ValueError, "overlap=62 is more than half of a window: .* has 122 .* Give at most 61"),
        ({"allow_nested": "yes"}, TypeError, "allow_nested='yes' is a str"),
    ],
)
def test_refusals(settings: dict[str, Any], error: type[Exception], message: str, tokenizer: ErnieTokenizer) -> None:
    schema = settings.pop("schema", "观点词")
    with pytest.raises(error, match=message):
        uie(Fixed([], []), tokenizer, schema, "文", **settings)
