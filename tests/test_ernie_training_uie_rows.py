"""UIE's training rows: cut, re-based and labelled as by PaddleNLP's reader, and otherwise where that goes wrong."""

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_glm_ernie import ErnieTokenizer
from hf_glm_ernie.ernie_training.uie_labels import UIECollator, encode_uie_rows
from hf_glm_ernie.ernie_training.uie_rows import UIERow, cut_row, read_row
from tests.support.ernie_training_goldens import full_lines, golden, needs_full_set, tokenizer_of

READER = golden("reader")

# Rows of the golden set that PaddleNLP gets wrong, by what is wrong.
LABEL_IS_NO_OPTION = {13, 17, 61, 83}
LEADING_BLANKS = {20, 41, 42, 43, 73}
TOO_LONG = {69}
NOT_SORTED = {80, 89, 95, 98}
CUTS_DIFFER = LEADING_BLANKS | TOO_LONG | NOT_SORTED
BLANK_AT_AN_END = {86}
BLANK_BEHIND_THE_PROMPT = {82}
UNKNOWN_WORD = {87}  # its place is guessed there
LABELS_DIFFER = CUTS_DIFFER | BLANK_AT_AN_END | BLANK_BEHIND_THE_PROMPT | UNKNOWN_WORD


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ErnieTokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("reader"), READER["vocabulary"])


@pytest.fixture
def notices(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged; the host's loggers keep their messages from pytest's handler."""
    for name in ("uie_rows", "uie_labels"):
        monkeypatch.setattr(f"hf_glm_ernie.ernie_training.{name}.logger", logging.getLogger("notices"))
    return caplog


def places(bits: list[int]) -> list[int]:
    return [i for i, bit in enumerate(bits) if bit]


def pieces_of(row: dict[str, Any], max_length: int) -> list[dict[str, Any]]:
    return [piece.as_dict() for piece in cut_row(read_row(row, 0), max_length)]


@pytest.mark.parametrize("entry", READER["rows"], ids=lambda entry: str(entry["i"]))
def test_pieces_and_labels_are_those_of_the_original(tokenizer: ErnieTokenizer, entry: dict[str, Any]) -> None:
    if entry["i"] in LABEL_IS_NO_OPTION:
        with pytest.raises(ValueError, match=r"outside its prompt .* Is the label one of the options\?"):
            read_row(entry["row"], entry["i"])
        return
    row = read_row(entry["row"], entry["i"])
    assert (pieces_of(entry["row"], 64) == entry["pieces"]) == (entry["i"] not in CUTS_DIFFER)
    encoded = encode_uie_rows(tokenizer, [row], 64)
    labels = [
        [len(ids), places(starts), places(ends)]
        for ids, starts, ends in zip(
            encoded["input_ids"], encoded["start_positions"], encoded["end_positions"], strict=True
        )
    ]
    assert (labels == entry["labels"]) == (entry["i"] not in LABELS_DIFFER)


@needs_full_set
@pytest.mark.parametrize("max_length", [64, 128])
def test_every_piece_of_the_full_set(tmp_path: Path, max_length: int) -> None:
    tokenizer = tokenizer_of(tmp_path)
    compared = 0
    for entry in full_lines(f"reader/reader.{max_length}.jsonl"):
        if entry["i"] in LABEL_IS_NO_OPTION | LABELS_DIFFER:
            continue
        assert pieces_of(entry["row"], max_length) == entry["cut_rows"], entry["i"]
        encoded = encode_uie_rows(tokenizer, [read_row(entry["row"], 0)], max_length)
        assert encoded["input_ids"] == [one["input_ids"] for one in entry["encoded"]]
        assert encoded["token_type_ids"] == [one["token_type_ids"] for one in entry["encoded"]]
        for name in ("start_positions", "end_positions"):
            assert list(map(places, encoded[name])) == [one[name] for one in entry["encoded"]], entry["i"]
        compared += len(encoded["input_ids"])
    assert compared > 100


def test_blanks_in_front_of_a_long_content_move_its_answers() -> None:
    """There they stay where they were, two characters too far."""
    row = {
        "content": "　 " + "甲乙丙丁" * 10,
        "prompt": "干支",
        "result_list": [{"text": "丙丁", "start": 4, "end": 6}],
    }
    assert pieces_of(row, 25)[0]["result_list"] == [{"text": "丙丁", "start": 2, "end": 4}]
    # An answer that begins with one of them keeps what is left of it.
    row["result_list"] = [{"text": " 甲", "start": 1, "end": 3}]
    assert pieces_of(row, 25)[0]["result_list"] == [{"text": "甲", "start": 0, "end": 1}]


def test_answers_need_no_order() -> None:
    """There (10, 14) comes into the second piece as (-49, -45), as if it were an option."""
    text = "甲乙丙丁戊己庚辛壬癸" * 13
    row = {"content": text, "prompt": "干支", "result_list": [{"start": s, "end": e} for s, e in ((80, 84), (10, 14))]}
    found = [[(a["start"], a["end"], a["text"]) for a in piece["result_list"]] for piece in pieces_of(row, 64)]
    assert found == [[(10, 14, "甲乙丙丁")], [(21, 25, "甲乙丙丁")], []]


def test_pieces_hold_the_text_and_every_answer_once() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice("甲乙丙丁 。") for _ in range(rng.randint(1, 120)))
        spans = set()
        for _ in range(rng.randint(0, 6)):
            start = rng.randrange(len(text))
            end = min(start + rng.randint(1, 8), len(text))
            if text[start:end].strip() == text[start:end] and not any(s < end and start < e for s, e in spans):
                spans.add((start, end))
        row = {"content": text, "prompt": "问", "result_list": [{"start": s, "end": e} for s, e in spans]}
        for cut in ("windows", "sentences"):
            pieces = cut_row(read_row(row, 0), 24, cut)
            texts = [piece.content for piece in pieces]
            assert "".join(texts) == (text if len(text.strip()) <= 20 else text.strip())
            assert len(pieces) == 1 or max(map(len, texts)) <= 20
            shift = len(text) - len(text.lstrip()) if len(pieces) > 1 else 0
            offsets = [shift + sum(map(len, texts[:i])) for i in range(len(texts))]
            found = [(a.start + o, a.end + o) for piece, o in zip(pieces, offsets, strict=True) for a in piece.answers]
            assert sorted(found) == sorted(spans)


def test_sentences_stay_whole_where_they_fit() -> None:
    text = "第一句话很短。第二句话也不长。第三句话在这里结束了。完"
    pieces = cut_row(UIERow(text, "问", ()), 20, "sentences")
    assert [piece.content for piece in pieces] == ["第一句话很短。第二句话也不长。", "第三句话在这里结束了。完"]


def test_overlapping_answers_stay_whole_or_are_left_out(notices: pytest.LogCaptureFixture) -> None:
    text = "甲乙丙丁戊己庚辛壬癸" * 4

    def found(*spans: tuple[int, int]) -> list[list[tuple[int, int]]]:
        row = {"content": text, "prompt": "问", "result_list": [{"start": s, "end": e} for s, e in spans]}
        return [[a[:2] for a in piece.answers] for piece in cut_row(read_row(row, 7), 24)]

    assert found((15, 22), (12, 17)) == [[], [(3, 10), (0, 5)], []]  # the cut at 20 moves to 12, before both
    assert not notices.messages
    # From 0 on, one in the other: no cut keeps both.
    assert found((0, 14), (12, 22)) == [[], [(0, 10)], []]
    assert found((5, 30)) == [[], []]
    assert len(notices.messages) == 2
    assert "Row 7 of the data, prompt '问': 1 of its answers are blank, longer than 20 characters" in notices.text


def test_an_option_counts_back_from_the_sep_behind_the_prompt(tokenizer: ErnieTokenizer) -> None:
    row = {
        "content": "房间干净明亮",
        "prompt": "情感倾向[正向,负向]",
        "result_list": [{"text": "正向", "start": -7, "end": -5}],
    }
    encoded = encode_uie_rows(tokenizer, [read_row(row, 0)], 512)
    assert places(encoded["start_positions"][0]) == [6]
    assert places(encoded["end_positions"][0]) == [7]
    # Blanks behind the prompt shift nothing (there they do).
    row |= {"prompt": "情感倾向[正向,负向]  ", "result_list": [{"start": -9, "end": -7}]}
    assert places(encode_uie_rows(tokenizer, [read_row(row, 0)], 512)["start_positions"][0]) == [6]


def test_answers_that_begin_or_end_with_blanks(tokenizer: ErnieTokenizer, notices: pytest.LogCaptureFixture) -> None:
    def tokens(start: int, end: int) -> list[list[int]]:
        row = {"content": "  短 句子  ", "prompt": "名", "result_list": [{"start": start, "end": end}]}
        encoded = encode_uie_rows(tokenizer, [read_row(row, 3)], 64)
        return [places(encoded[name][0]) for name in ("start_positions", "end_positions")]

    assert tokens(2, 6) == tokens(0, 6) == tokens(1, 8) == [[3], [5]]
    assert not notices.messages
    assert tokens(3, 4) == [[], []]
    assert "Row 3 of the data, prompt '名': no token holds the answer at 3..4" in notices.text


@pytest.mark.parametrize("content", ["", " ", "\n　"])
def test_an_empty_content_has_no_answers(tokenizer: ErnieTokenizer, content: str) -> None:
    encoded = encode_uie_rows(tokenizer, [read_row({"content": content, "prompt": "名", "result_list": None}, 0)], 64)
    assert encoded["input_ids"] == [[*tokenizer("名")["input_ids"], tokenizer.sep_token_id]]
    assert not any(encoded["start_positions"][0])


def test_characters_of_several_tokens_are_cut_again(tmp_path: Path) -> None:
    """A Hangul syllable is two or three tokens; nothing is truncated and no answer lost."""
    tokenizer = tokenizer_of(tmp_path, ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "ᄀ", "##ᅡ", "##ᄀ", "名", "甲"])
    text = "가 " * 12 + "甲"
    row = {"content": text, "prompt": "名", "result_list": [{"start": s, "end": s + 1} for s in (0, 14, 24)]}
    encoded = encode_uie_rows(tokenizer, [read_row(row, 5)], 29 - 10)
    assert max(map(len, encoded["input_ids"])) <= 19
    assert sum(map(sum, encoded["start_positions"])) == sum(map(sum, encoded["end_positions"])) == 3
    read = [token for ids in encoded["input_ids"] for token in ids[3:-1]]
    assert read == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert set(encoded["row"]) == {5}
    with pytest.raises(
        ValueError, match=r"a prompt of so many tokens, '가가가가가가', that no room|of so many tokens"
    ):
        encode_uie_rows(tokenizer, [read_row({"content": text, "prompt": "가" * 6, "result_list": []}, 0)], 15)


def test_labels_are_padded_with_zeros(tokenizer: ErnieTokenizer) -> None:
    rows = [
        {"content": content, "prompt": "名", "result_list": [{"start": 0, "end": 1}]} for content in ("短", "短句子")
    ]
    columns = encode_uie_rows(tokenizer, [read_row(row, i) for i, row in enumerate(rows)], 64)
    batch = UIECollator(tokenizer)([{name: values[i] for name, values in columns.items()} for i in (0, 1)])
    assert batch["start_positions"].tolist() == [[0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [5, 7]
    assert batch["input_ids"].dtype == torch.int64
    assert "row" not in batch


FINE: dict[str, Any] = {"content": "北京很好", "prompt": "话题", "result_list": []}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"content": None}, r"Row 4 of the data has no text in column 'content': found None"),
        ({"prompt": " "}, r"Row 4 of the data has no text in column 'prompt': found ' '"),
        ({"result_list": ["北京"]}, r"Row 4 of the data has an answer without start and end: '北京'"),
        ({"result_list": [{"start": 0}]}, r"without start and end"),
        ({"result_list": [{"start": 0.5, "end": 2}]}, r"an answer at 0\.5\.\.2; start and end are whole numbers"),
        ({"result_list": [{"start": 2, "end": 9}]}, r"an answer at 2\.\.9, which is outside its content of 4"),
        ({"result_list": [{"start": 2, "end": 2}]}, r"or empty"),
        ({"result_list": [{"start": -1, "end": 1}]}, r"an option at -1\.\.1, which is outside its prompt '话题'"),
        ({"result_list": [{"start": -4, "end": -2}]}, r"the first -3\. Is the label one of the options\?"),
    ],
)
def test_rows_that_are_not_what_they_should_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_row(FINE | change, 4)


def test_a_prompt_that_leaves_no_room(tokenizer: ErnieTokenizer) -> None:
    with pytest.raises(ValueError, match=r"Row 4 of the data has a prompt of 61 characters, '短短.* max_length=64"):
        cut_row(read_row(FINE | {"prompt": "短" * 61}, 4), 64)
    assert len(cut_row(read_row(FINE | {"prompt": "短" * 60}, 4), 64)) == 4


def test_a_tokenizer_without_offsets() -> None:
    with pytest.raises(ValueError, match=r"int gives no character offsets"):
        encode_uie_rows(1, [read_row(FINE, 0)], 64)
