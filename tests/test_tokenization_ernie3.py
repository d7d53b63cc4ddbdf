"""Ernie3Tokenizer against the original's outputs and its slow rendering, its files, how the Auto classes open them."""

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, TokenizersBackend

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from hf_glm_ernie.tokenization_ernie3 import NUM_PIECES, Ernie3Tokenizer
from tests.reference.ernie3_tokenizer import GONE, Ernie3Reference, random_paragraphs
from tests.reference.ernie_tokenizer import random_texts
from tests.support.ernie_vocabulary import SMALL, needs_unicode_14, released_lines, write_vocabulary
from tests.support.fresh import fresh_python

SMALL_LINES = [*SMALL["vocabulary"][:-1], "；", "’", "[UNK]"]
NUM_SMALL = len(SMALL_LINES) - 1

# What the original's `_tokenize` gave (PaddleNLP 2.8.1's basic and WordPiece tokenizers, the vocabulary above).
ORIGINAL = [
    ("今天气真好。我们去公园玩吧！", "今 天 气 真 好 。 <S> 我 们 去 公 园 玩 吧 ！ <S>"),
    ("今天气真好", "今 天 气 真 好"),
    ("今天气真好， the world", "今 天 气 真 好 ， the world"),
    ("“今天好。”我们去", "“ 今 天 好 。 ” <S> 我 们 去"),
    ("今天好！？我们", "今 天 好 ！ ？ <S> 我 们"),
    ("今天 我们 the world 吧", "今 天 <S> 我 们 the world 吧"),
    ("今天好。 我们", "今 天 好 。 我 们"),
    ("今天好？！”。我们", "今 天 好 ？ ！ ” <S> 。 <S> 我 们"),
    ("今天……我们……", "今 天 … … <S> 我 们 … …"),
    ("今天…………我们", "今 天 … … <S> … … 我 们"),
    ("今天………………我们", "今 天 … … <S> … … … <S> … 我 们"),
    ("今天好。’”！’”我们", "今 天 好 。 ’ ” <S> ！ ’ ” 我 们"),
    ("the world... gpt......", "the world . . . gpt . . . . . ."),
    ("今天……”我们”", "今 天 … … ” <S> 我 们 ” <S>"),
    ("今天好;我们!", "今 天 好 ; <S> 我 们 ! <S>"),
    ("今天好\u200b 我们", "今 天 好 我 们"),
    ("今天好。\u200b", "今 天 好 。 <S>"),
    ("今天好” \u200b", "今 天 好 ” <S>"),
    ("\u200b", ""),
    ("今天!?;a", "今 天 ! ? ; <S> a"),
]


def small(tmp_path: Path, **settings: Any) -> Ernie3Tokenizer:
    path = write_vocabulary(tmp_path, SMALL_LINES)
    return Ernie3Tokenizer.from_released_vocabulary(path, num_pieces=None, **settings)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Ernie3Tokenizer:
    return small(tmp_path)


def test_begin_and_end_may_be_others(tokenizer: Ernie3Tokenizer, tmp_path: Path) -> None:
    """A new token gets a new id, as in the host, and survives saving; None takes the attribute away."""
    tokenizer.save_pretrained(tmp_path / "own")
    other = Ernie3Tokenizer.from_pretrained(tmp_path / "own", eos_token="[STOP]", bos_token=None)
    assert (other.eos_token, other.eos_token_id, other.bos_token) == ("[STOP]", len(tokenizer), None)
    other.save_pretrained(tmp_path / "other")
    again = Ernie3Tokenizer.from_pretrained(tmp_path / "other")
    assert again.eos_token_id == other.eos_token_id
    assert again("今天好。")["input_ids"] == tokenizer("今天好。")["input_ids"]


def lines_of(tokenizer: Ernie3Tokenizer) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))


@pytest.mark.parametrize(("text", "expected"), ORIGINAL)
def test_outputs_of_the_original(text: str, expected: str, tokenizer: Ernie3Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.tokenize(text) == expected.split()
    assert tokenizer(text).tokens() == ["[CLS]", *expected.split()]
    without = small(tmp_path, sentence_marks=False)
    assert without.tokenize(text) == expected.replace("<S>", "").split()


@needs_unicode_14
@pytest.mark.parametrize("lower", [True, False])
def test_random_texts(lower: bool, tmp_path: Path) -> None:
    """Ids of texts and pairs, one by one and in batches, with marks and without, as the slow rules give them."""
    path = write_vocabulary(tmp_path, SMALL_LINES)
    tokenizer = Ernie3Tokenizer.from_released_vocabulary(path, num_pieces=None, do_lower_case=lower)
    plain = Ernie3Tokenizer.from_released_vocabulary(path, num_pieces=None, do_lower_case=lower, sentence_marks=False)
    lines = lines_of(tokenizer)
    reference = Ernie3Reference(lines, lower)
    texts = random_paragraphs(1500, 3, lines) + random_texts(500, 4, lines)
    pairs = texts[::-1]
    found, marked = tokenizer(texts, pairs)["input_ids"], 0
    unmarked = plain([text.replace("<S>", "") for text in texts])["input_ids"]
    for text, pair, ids, others in zip(texts, pairs, found, unmarked, strict=True):
        assert ids == reference.encode(text, pair), (text, pair)
        expected = reference.encode(text.replace("<S>", ""))
        assert [index for index in expected if index != tokenizer.sentence_token_id] == others, text
        marked += tokenizer.sentence_token_id in ids
    assert marked > 900
    for text, pair, ids in list(zip(texts, pairs, found, strict=True))[:50]:
        assert tokenizer(text, pair)["input_ids"] == ids


HAN_EDGES = (0x33FF, 0x3400, 0x4DFF, 0x4E00, 0x9FFF, 0xA000, 0xE000, 0xF900, 0xFEFF, 0x20000)


@needs_unicode_14
def test_every_character_between_sentences(tokenizer: Ernie3Tokenizer) -> None:
    """One character of each kind that Python and the library treat differently, where chunks and sentences meet."""
    reference = Ernie3Reference(lines_of(tokenizer))
    chars = [
        chr(code)
        for code in (*range(0x400), *range(0x1FF0, 0x2070), *range(0x2FF0, 0x3010), 0x1680, 0x180E, *HAN_EDGES)
    ]
    texts = [
        text.format(char) for char in chars for text in ("今天{0}我们", "好。{0}我", "好{0}", "a{0}b”{0}", "……{0}…")
    ]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert ids == reference.encode(text), text


def test_the_whole_vocabulary(tmp_path: Path) -> None:
    """The ids the model has, from the released vocabulary; from a short one, an error."""
    lines = released_lines()
    path = write_vocabulary(tmp_path, lines)
    if len(lines) < NUM_PIECES:
        pytest.skip(
            "needs the released vocabulary beside the repository (../shared/goldens/ernie/tokenizer/vocab.txt)"
        )
    tokenizer = Ernie3Tokenizer.from_released_vocabulary(path)
    config = Ernie3Config()
    assert len(tokenizer) == tokenizer.vocab_size == config.vocab_size == 30000
    assert max(tokenizer.get_vocab().values()) == tokenizer.unk_token_id == 29999
    for name in ("pad", "bos", "sep", "mask", "eos", "sentence", "soft_prompt"):
        assert getattr(tokenizer, f"{name}_token_id") == getattr(config, f"{name}_token_id"), name
    assert (tokenizer.cls_token_id, tokenizer.gend_token_id) == (1, 29983)
    released = ErnieTokenizer(path)
    assert all(
        released.convert_ids_to_tokens(index) == tokenizer.convert_ids_to_tokens(index)
        for index in range(NUM_PIECES)
        if index != 12084
    )
    assert tokenizer.convert_ids_to_tokens([12084, 29981, 29998]) == [
        "[no token 12084]",
        "[unused29981]",
        "[unused29998]",
    ]
    assert tokenizer.encode("$") == [1, 18005]
    assert tokenizer.add_tokens(["新词"]) == 1
    assert tokenizer.encode("新词") == [1, 30000]


def test_a_smaller_vocabulary(tmp_path: Path) -> None:
    """The 21 ids of the model's own follow the pieces; a doubled line counts as in the released file."""
    path = write_vocabulary(tmp_path, SMALL_LINES)
    tokenizer = Ernie3Tokenizer.from_released_vocabulary(path, num_pieces=None)
    assert len(tokenizer) == NUM_SMALL + 21
    own = {"[END]": 0, "<S>": 1, "[gEND]": 4, "[soft]": 5, "[UNK]": 20}
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in own} == {
        token: NUM_SMALL + place for token, place in own.items()
    }
    assert tokenizer.convert_ids_to_tokens(NUM_SMALL + 2) == f"[unused{NUM_SMALL + 2}]"
    dollars = [index for index, line in enumerate(SMALL_LINES) if line == "$"]
    assert len(dollars) == 2
    assert tokenizer.encode("$") == [1, dollars[1]]
    shorter = Ernie3Tokenizer.from_released_vocabulary(path, num_pieces=dollars[0] + 1)
    assert shorter.encode("$") == [1, dollars[0]]
    assert shorter.eos_token_id == dollars[0] + 1


def test_refused_vocabularies(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path, SMALL_LINES)
    size = len(SMALL_LINES)
    with pytest.raises(
        ValueError, match=rf"has ids 0 to {size - 1}, num_pieces=29979 asks for as many from its start"
    ):
        Ernie3Tokenizer.from_released_vocabulary(path)
    with pytest.raises(ValueError, match="num_pieces=0 asks"):
        Ernie3Tokenizer.from_released_vocabulary(path, num_pieces=0)
    with pytest.raises(FileNotFoundError, match="no vocabulary file"):
        Ernie3Tokenizer.from_released_vocabulary(tmp_path / "other.txt")
    with pytest.raises(ValueError, match=r"vocab.txt has no \[END\], <S> among its"):
        Ernie3Tokenizer(path)
    with pytest.raises(ValueError, match=r"has no \[PAD\], \[CLS\], \[SEP\], \[MASK\] among its 23 tokens"):
        Ernie3Tokenizer.from_released_vocabulary(write_vocabulary(tmp_path, ["a", "b"]), num_pieces=None)
    for opening in (Ernie3Tokenizer, lambda: Ernie3Tokenizer.from_pretrained(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"neither vocab.txt nor tokenizer.json"):
            opening()
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        Ernie3Tokenizer(tokenizer_file=tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        Ernie3Tokenizer(tokenizer_file=tmp_path / "tokenizer.json")
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": model}))
    with pytest.raises(ValueError, match="holds a WordLevel model"):
        Ernie3Tokenizer(tokenizer_file=tmp_path / "tokenizer.json")
    released = write_vocabulary(tmp_path, SMALL_LINES)
    ErnieTokenizer(released).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"tokenizer.json has no \[END\]"):
        Ernie3Tokenizer(tokenizer_file=tmp_path / "encoder" / "tokenizer.json")


def test_input_that_is_no_text(tokenizer: Ernie3Tokenizer) -> None:
    for wrong in (5, b"a", [None], {"a": 1}):
        with pytest.raises(ValueError, match=r"text(\[0\])? is a \w+, not a string"):
            tokenizer(wrong)
    with pytest.raises(TypeError, match=r"text\[1\] is a int, not a string: 5"):
        tokenizer(["a", 5])
    with pytest.raises(TypeError, match=r"text_pair\[1\] is a NoneType, not a string"):
        tokenizer(["a", "b"], ["a", None])
    with pytest.raises(ValueError, match="You need to specify either `text`"):
        tokenizer(None)


def test_special_tokens_in_a_text(tokenizer: Ernie3Tokenizer) -> None:
    """One token each, and what stands between them is cut into sentences by itself."""
    assert tokenizer.tokenize("今天。[MASK]我们。") == ["今", "天", "。", "<S>", "[MASK]", "我", "们", "。", "<S>"]
    assert tokenizer.tokenize("今天 [MASK] 我们") == ["今", "天", "[MASK]", "我", "们"]
    assert tokenizer.tokenize("a[soft][soft]b[END]") == ["a", "[soft]", "[soft]", "b", "[END]"]
    assert tokenizer.tokenize("今<S>天") == ["今", "<S>", "天"]
    assert tokenizer.tokenize("今天。<S>") == ["今", "天", "。", "<S>", "<S>"]
    pieces = tokenizer.tokenize("今[MASK]。天<S>", split_special_tokens=True)
    assert pieces == ["今", "[", "mask", "]", "。", "<S>", "天", "<", "s", ">"]


@pytest.mark.parametrize("lower", [True, False])
def test_what_only_looks_like_a_mark(lower: bool, tmp_path: Path) -> None:
    """Neither cleaning nor a character used inside turns text into a sentence mark."""
    tokenizer = small(tmp_path, do_lower_case=lower)
    for text in ("<\u200bS>", "a<\x00S\ufeff>b", "今\x1c天", "今\x1c", "\x1c", "a\x1cb", *GONE):
        assert "<S>" not in [token for token in tokenizer.tokenize(text) if "\x1c" not in text], text
    assert tokenizer.tokenize("今\x1c天") == ["今", "<S>", "天"]  # a blank for Python, between two Chinese characters
    assert tokenizer.tokenize("a\x1cb") == ["a", "b"]
    assert tokenizer.tokenize("<S>", split_special_tokens=True)[0] == "<"


def test_places(tokenizer: Ernie3Tokenizer) -> None:
    """Every token lies where it stands; a mark on the character before it, or on the blank it stands for."""
    text = "今\u200b天气。  我们 去 the각각world！"
    found = tokenizer(text, return_offsets_mapping=True)
    places = [(token, text[slice(*span)]) for token, span in zip(found.tokens(), found["offset_mapping"], strict=True)]
    assert places == [
        ("[CLS]", ""),
        *((char, char) for char in "今天气。我们"),
        ("<S>", " "),
        ("去", "去"),
        ("[UNK]", "the각각world"),
        ("！", "！"),
        ("<S>", "！"),
    ]
    assert found.char_to_token(text.index("！")) == found.tokens().index("！")
    assert found.word_ids()[0] is None
    many = random_paragraphs(500, 8, lines_of(tokenizer))
    batch = tokenizer(many, return_offsets_mapping=True)
    for index, row in enumerate(many):
        spans = batch["offset_mapping"][index][1:]
        assert all(0 <= start <= end <= len(row) for start, end in spans)
        assert [start for start, _ in spans] == sorted(start for start, _ in spans)
        for token, (start, end) in zip(batch.tokens(index)[1:], spans, strict=True):
            if token in "。！？?!；;”’…." and "\u037e" not in row:
                assert row[start:end] == token


def test_rows_and_pairs(tokenizer: Ernie3Tokenizer) -> None:
    ids = tokenizer.convert_tokens_to_ids
    found = tokenizer("今天。", "我们")
    assert list(found) == ["input_ids", "attention_mask"]
    assert found["input_ids"] == ids(["[CLS]", "今", "天", "。", "<S>", "我", "们"])
    assert tokenizer("今天。", "我们", return_token_type_ids=True)["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1]
    assert tokenizer("")["input_ids"] == ids(["[CLS]"])
    assert tokenizer("今天", "")["input_ids"] == ids(["[CLS]", "今", "天"])
    assert tokenizer("今天。", add_special_tokens=False)["input_ids"] == ids(["今", "天", "。", "<S>"])
    assert (tokenizer.num_special_tokens_to_add(), tokenizer.num_special_tokens_to_add(pair=True)) == (1, 1)
    words = tokenizer(["今天", "好。", "the"], is_split_into_words=True)
    assert words.tokens() == ["[CLS]", "今", "天", "好", "。", "<S>", "the"]
    assert words.word_ids() == [None, 0, 0, 1, 1, 1, 2]


def test_padding_and_truncation(tokenizer: Ernie3Tokenizer) -> None:
    ids = tokenizer.convert_tokens_to_ids
    left = tokenizer(["今天。", "我"], padding=True, return_tensors="pt")
    assert left["input_ids"][1].tolist() == [0, 0, 0, *ids(["[CLS]", "我"])]
    assert left["attention_mask"][1].tolist() == [0, 0, 0, 1, 1]
    right = tokenizer(["今天。", "我"], padding=True, padding_side="right")
    assert right["input_ids"][1] == [*ids(["[CLS]", "我"]), 0, 0, 0]
    assert right["attention_mask"][1] == [1, 1, 0, 0, 0]
    cut = tokenizer("今天。我们。", truncation=True, max_length=4)
    assert cut.tokens() == ["[CLS]", "今", "天", "。"]
    pair = tokenizer("今天。", "我们", truncation="only_first", max_length=5)
    assert pair.tokens() == ["[CLS]", "今", "天", "我", "们"]
    windows = tokenizer("今天气真好", truncation=True, max_length=4, stride=1, return_overflowing_tokens=True)
    assert [tokenizer.decode(row) for row in windows["input_ids"]] == ["[CLS] 今 天 气", "[CLS] 气 真 好"]


def test_decoding(tokenizer: Ernie3Tokenizer) -> None:
    ids = [*tokenizer.encode("今天unaffable。我们！"), tokenizer.eos_token_id]
    assert tokenizer.decode(ids) == "[CLS] 今 天 unaffable 。 <S> 我 们 ！ <S> [END]"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "今 天 unaffable 。 我 们 ！"
    assert tokenizer.batch_decode([ids, ids], skip_special_tokens=True)[1] == "今 天 unaffable 。 我 们 ！"
    mask = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert [token for token, one in zip(tokenizer.convert_ids_to_tokens(ids), mask, strict=True) if one] == [
        "[CLS]",
        "<S>",
        "<S>",
        "[END]",
    ]


def test_added_tokens(tokenizer: Ernie3Tokenizer, tmp_path: Path) -> None:
    """As typed, and nothing else: other words, accents and the vocabulary's own tokens stay as they were."""
    before = tokenizer.encode("the unaffable 今天。我们 the")
    assert tokenizer.add_tokens(["ā", "the", "新词", "[MASK]"]) == 2
    assert tokenizer.encode("the unaffable 今天。我们 the") == before
    assert tokenizer.tokenize("a ā 新词 [N]") == ["a", "ā", "新词", "[", "n", "]"]
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["[N]"]}) == 1
    ids = tokenizer.encode("今[N]天 [n]")
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "今", "[N]", "天", "[", "n", "]"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "今 天 [ n ]"
    tokenizer.save_pretrained(tmp_path / "saved")
    for other in (
        Ernie3Tokenizer.from_pretrained(tmp_path / "saved"),
        TokenizersBackend.from_pretrained(tmp_path / "saved"),
    ):
        assert other.encode("今[N]天 [n]") == ids
        assert other.decode(ids, skip_special_tokens=True) == "今 天 [ n ]"
    with pytest.raises(ValueError, match="holds half a surrogate pair"):
        tokenizer.add_tokens(["\udc00"])


def test_half_surrogate_pairs_are_dropped(tokenizer: Ernie3Tokenizer) -> None:
    found = tokenizer(["今\ud83d天", "\udc00"], return_offsets_mapping=True)
    assert found["input_ids"] == [tokenizer.encode("今天"), tokenizer.encode("")]
    assert found["offset_mapping"][0] == [(0, 0), (0, 1), (2, 3)]
    assert tokenizer("a", "今\ud83d天")["input_ids"] == tokenizer("a", "今天")["input_ids"]


def test_saving(tokenizer: Ernie3Tokenizer, tmp_path: Path) -> None:
    """Every file alone is enough; options survive and can be changed on opening."""
    text = "今天。Ày 我们！"
    tokenizer.add_tokens(["新词abc"])
    saved = tmp_path / "saved"
    names = {Path(name).name for name in tokenizer.save_pretrained(saved)}
    assert names == {"tokenizer_config.json", "tokenizer.json", "vocab.txt"}
    again = Ernie3Tokenizer.from_pretrained(saved)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.sentence_token_id == tokenizer.sentence_token_id
    for other in (again, pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode(text + "新词abc") == tokenizer.encode(text + "新词abc")
        assert (other.do_lower_case, other.sentence_marks, other.padding_side) == (True, True, "left")
    without = Ernie3Tokenizer.from_pretrained(saved, sentence_marks=False, padding_side="right")
    assert "<S>" not in without.tokenize(text)
    without.save_pretrained(tmp_path / "without")
    unmarked = Ernie3Tokenizer.from_pretrained(tmp_path / "without")
    assert (unmarked.sentence_marks, unmarked.padding_side) == (False, "right")
    assert "<S>" not in unmarked.tokenize(text)
    assert "<S>" in Ernie3Tokenizer.from_pretrained(tmp_path / "without", sentence_marks=True).tokenize(text)
    assert "À" not in Ernie3Tokenizer.from_pretrained(saved, do_lower_case=False).tokenize(text)
    (saved / "tokenizer.json").unlink()
    from_vocabulary = Ernie3Tokenizer.from_pretrained(saved)
    assert from_vocabulary.encode(text) == tokenizer.encode(text)
    assert Ernie3Tokenizer(saved / "vocab.txt").encode(text) == tokenizer.encode(text)


def test_special_tokens_by_other_names(tmp_path: Path) -> None:
    """As the original's successor writes the mark; without tokens that a vocabulary may lack."""
    lines = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "今", "。", "[END]", "[<S>]", "[UNK]"]
    path = write_vocabulary(tmp_path, lines)
    tokenizer = Ernie3Tokenizer(path, sentence_token="[<S>]", do_lower_case=False)
    assert tokenizer.tokenize("今。今。") == ["今", "。", "[<S>]", "今", "。", "[<S>]"]
    assert tokenizer.sentence_token_id == 7
    assert not hasattr(tokenizer, "soft_prompt_token_id")
    assert len(tokenizer) == len(lines)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert Ernie3Tokenizer.from_pretrained(tmp_path / "saved").encode("今。") == [1, 4, 5, 7]
    with pytest.raises(ValueError, match="sentence_token='今' must begin with a mark"):
        Ernie3Tokenizer(path, sentence_token="今")
    with pytest.raises(ValueError, match=r"has no \[prompt\] among"):
        Ernie3Tokenizer(path, sentence_token="[<S>]", soft_prompt_token="[prompt]")


PLAIN = """
import json, sys
from transformers import AutoTokenizer
texts = json.load(open("texts.json", encoding="utf-8"))
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer(texts, texts[::-1], return_offsets_mapping=True)
    row = tokenizer("a", padding="max_length", max_length=3)
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in found["input_ids"]]
    named = [tokenizer.eos_token_id, tokenizer.sentence_token_id, tokenizer.soft_prompt_token_id, len(tokenizer)]
    print(json.dumps([dict(found), decoded, dict(row), named]))
assert not any(name.startswith("hf_glm_ernie") for name in sys.modules)
"""


def test_plain_auto_tokenizer(tmp_path: Path) -> None:
    """A process that does not import this package opens the saved folder: same ids, marks, places and text.

    With or without a model's settings beside it.
    """
    tokenizer = small(tmp_path)
    for folder, config in (("bare", None), ("model", {"model_type": "ernie3"})):
        tokenizer.save_pretrained(tmp_path / folder)
        if config is not None:
            (tmp_path / folder / "config.json").write_text(json.dumps(config))
    texts = random_paragraphs(300, 9, lines_of(tokenizer))
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    done = fresh_python(["-P", "-c", PLAIN, "bare", "model"], tmp_path, check=True)
    assert len(done.stdout.splitlines()) == 2
    expected = tokenizer(texts, texts[::-1], return_offsets_mapping=True)
    for line in done.stdout.splitlines():
        found, decoded, row, named = json.loads(line)
        assert list(found) == ["input_ids", "attention_mask", "offset_mapping"]
        assert found["input_ids"] == expected["input_ids"]
        assert [[tuple(span) for span in spans] for spans in found["offset_mapping"]] == expected["offset_mapping"]
        assert decoded == tokenizer.batch_decode(expected["input_ids"], skip_special_tokens=True)
        assert row["attention_mask"] == [0, 1, 1]
        assert named == [
            tokenizer.eos_token_id,
            tokenizer.sentence_token_id,
            tokenizer.soft_prompt_token_id,
            len(tokenizer),
        ]


def test_auto_tokenizer_with_this_package(tokenizer: Ernie3Tokenizer, tmp_path: Path) -> None:
    AutoTokenizer.register(Ernie3Config, tokenizer_class=Ernie3Tokenizer, exist_ok=True)  # as the package does
    tokenizer.save_pretrained(tmp_path / "saved")
    for config in (None, {"model_type": "ernie3"}):
        if config is not None:
            (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
        opened = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert type(opened) is Ernie3Tokenizer
        assert opened.encode("今天。") == tokenizer.encode("今天。")
        assert not AutoTokenizer.from_pretrained(tmp_path / "saved", sentence_marks=False).sentence_marks
    assert isinstance(opened, TokenizersBackend)


def test_training_a_vocabulary(tokenizer: Ernie3Tokenizer) -> None:
    """Keeps the rules of cutting; ids and special tokens are the new vocabulary's."""
    trained = tokenizer.train_new_from_iterator([["今天25℃。", "我们 price today！"] * 5], 60)
    assert isinstance(trained, Ernie3Tokenizer)
    assert trained.tokenize("今天。我") == ["今", "天", "。", "<S>", "我"]
    assert len(trained) == max(trained.get_vocab().values()) + 1


def test_time_grows_with_the_text(tokenizer: Ernie3Tokenizer) -> None:
    """Texts on which an expression could look at everything again and again take no longer than others."""

    def seconds(text: str) -> float:
        start = time.perf_counter()
        tokenizer(text)
        return time.perf_counter() - start

    hard = ("…", ".", "。", "” ", " ", "今 ", "！’”", "\u200b", "。\u3000")
    seconds("今天。" * 2000)
    ordinary = min(seconds("今天好我们。" * 5000) for _ in range(3))
    for text in hard:
        spent = min(seconds(text * (30000 // len(text))) for _ in range(2))
        assert spent < 20 * ordinary, (text, spent, ordinary)
