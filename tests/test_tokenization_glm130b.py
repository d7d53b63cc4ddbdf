"""Glm130bTokenizer against the original's outputs, and against sentencepiece on texts made to trip it up."""

import base64
import functools
import json
import lzma
import pickle
import random
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken
from transformers import AutoTokenizer, TextStreamer, TokenizersBackend

from hf_glm_ernie import Glm130bTokenizer, tokenization_glm130b
from hf_glm_ernie.tokenization_glm130b import PLAIN_TOKENIZER_NOTE
from tests.conftest import GOLDEN, SHARED_GOLDENS
from tests.reference.ice_tokenizer import IceTokenizer
from tests.support.ice_text import TRAINING_TEXT, train

KINDS = ("unigram", "bpe", "unigram_identity")
MODES = {  # golden mode -> arguments of the tokenizer
    "special": {},
    "default": {"split_special_tokens": True},
    "no_linebreak": {"split_special_tokens": True, "linebreak": False},
    "no_whitespaces": {"split_special_tokens": True, "whitespaces": False},
    "no_prefix": {"split_special_tokens": True, "add_dummy_prefix": False},
}

# What the pieces of random texts are made of: each has tripped up a tokenizer before.
TRAPS = [
    *("licence of the Work", "GLM ", "千里之行", "始于足下。", " ", "  ", "\n", "\t", "\r\n", "   ", " " * 79),
    *(" " * 80, " " * 161, "e\u0301\u0301", "a\u030a\u0327", "\u0338", "\u1112\u1161\u11ab", "ｶﾞ", "ﾞ", "Å"),
    *("㍿", "ﷺ", "½", "①", "ＡＢＣ", "\U0001f469\u200d\U0001f467", "\U0001f1e8\U0001f1f3", "\U00020000"),
    *("\ufeff", "\u3000", "\u2028", "\x85", "\x00", "\x01", "\x7f", "\uffff", "\ufdd0", "▁", "▁▁", "▁a"),
    *("<n>", "<|tab|>", "<|blank_2|>", "<|blank_80|>", "<|blank_81|>", "<|blank_02|>", "</s>", "<s>", "<unk>"),
    *("<pad>", "<0x41>", "<image_5>", "[", "MASK]", "<", "|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<eod>", "<ENC>", "<dBLOCK>", "［ＭＡＳＫ］", "-" * 13, "哈" * 9, "ﬁ", "\u200b"),
]


def random_texts(count: int, seed: int) -> list[str]:
    """Texts of traps, random characters of many scripts and runs of one character."""
    rng = random.Random(seed)
    blocks = [(0, 0x2FF), (0x300, 0x36F), (0x590, 0x6FF), (0x1100, 0x11FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF)]
    blocks += [(0xAC00, 0xD7A3), (0xFF00, 0xFFEF), (0x1F300, 0x1FAFF)]

    def piece() -> str:
        kind = rng.random()
        if kind < 0.65:
            return rng.choice(TRAPS)
        if kind < 0.85:
            return chr(rng.randint(*rng.choice(blocks)))
        return rng.choice("ab哈-=. ") * rng.randint(1, 25)

    return ["".join(piece() for _ in range(rng.choice((0, 1, 1, 2, 3, 6, 15)))) for _ in range(count)]


def small_golden(name: str, folder: Path) -> tuple[Path, int, list[dict[str, Any]]]:
    """A model with the original's outputs, kept in this repository: its path, number of image tokens and rows."""
    data = json.loads((GOLDEN / f"tokenizer_{name}.json").read_text(encoding="utf-8"))
    path = folder / "ice_text.model"
    path.write_bytes(lzma.decompress(base64.b85decode(data["model"])))
    return path, data["num_image_tokens"], data["rows"]


def full_rows(kind: str) -> list[dict[str, Any]]:
    text = (SHARED_GOLDENS / "tokenizer" / f"{kind}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def full_model(kind: str) -> Path:
    return SHARED_GOLDENS / "icetk" / kind / "ice_text.model"


@functools.lru_cache(maxsize=1)  # each takes a second and 100 MB
def full_tokenizer(kind: str, mode: str = "special") -> Glm130bTokenizer:
    """Of the released size; whoever changes it makes one of their own."""
    return Glm130bTokenizer.from_ice_text_model(full_model(kind), **MODES[mode])


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small unigram model with the released normalization."""
    return train(tmp_path_factory.mktemp("model") / "ice_text.model")


@pytest.fixture
def tokenizer(model: Path) -> Glm130bTokenizer:
    return Glm130bTokenizer.from_ice_text_model(model, num_image_tokens=10)


@pytest.fixture(scope="session")
def reference(model: Path) -> IceTokenizer:
    return IceTokenizer(model, num_image_tokens=10)


def check_rows(tokenizer: Glm130bTokenizer, rows: list[dict[str, Any]], mode: str) -> None:
    """Ids, tokens and decoded text of every row are the original's."""
    batch = tokenizer([row["text"] for row in rows], add_special_tokens=False)
    decoded = tokenizer.decode(batch["input_ids"])
    for index, row in enumerate(rows):
        found = {"ids": batch["input_ids"][index], "tokens": batch.tokens(index), "decoded": decoded[index]}
        assert found == row[mode], row["text"]
        assert batch[index].ids == row[mode]["ids"]  # the lazily made record


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["unigram", "bpe"])
def test_small_golden(name: str, mode: str, tmp_path: Path) -> None:
    path, num_image_tokens, rows = small_golden(name, tmp_path)
    tokenizer = Glm130bTokenizer.from_ice_text_model(path, num_image_tokens, **MODES[mode])
    check_rows(tokenizer, rows, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_full_golden(kind: str, mode: str, shared_goldens: Path) -> None:
    check_rows(full_tokenizer(kind, mode), full_rows(kind), mode)


def test_split_special_tokens_as_argument_of_the_call(tmp_path: Path) -> None:
    path, num_image_tokens, rows = small_golden("unigram", tmp_path)
    tokenizer = Glm130bTokenizer.from_ice_text_model(path, num_image_tokens)
    for row in rows:
        for split, mode in ((True, "default"), (False, "special")):
            encoded = tokenizer(row["text"], add_special_tokens=False, split_special_tokens=split)
            assert encoded["input_ids"] == row[mode]["ids"]
            assert encoded.tokens() == row[mode]["tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_released_special_ids(kind: str, shared_goldens: Path) -> None:
    tokenizer = full_tokenizer(kind)
    ids = json.loads((SHARED_GOLDENS / "tokenizer" / f"{kind}.special.json").read_text(encoding="utf-8"))
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids
    named = (tokenizer.mask_token_id, tokenizer.gmask_token_id, tokenizer.smask_token_id, tokenizer.sop_token_id)
    assert named == (150000, 150001, 150002, 150004)
    assert (tokenizer.eop_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (150005, 20002, 20003)
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, len(tokenizer)) == (20000, None, 150344)
    assert tokenizer.convert_tokens_to_ids("<image_19999>") == 19999


def test_generation_golden(shared_goldens: Path) -> None:
    """A default call gives what the original's generation gave its model."""
    rows = (SHARED_GOLDENS / "generation" / "fill_blanks.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(row) for row in rows]
    tokenizer = full_tokenizer("unigram")
    expected = [row["calls"][0]["input_ids"] for row in rows]
    assert tokenizer([row["text"] for row in rows])["input_ids"] == expected
    assert [tokenizer.encode(row["text"]) for row in rows] == expected


MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # trainer options, arguments of the tokenizer
    "unigram": ({}, {}),
    "unigram_no_bytes": ({"character_coverage": 0.98}, {"num_image_tokens": 7, "byte_fallback": False}),
    "unigram_short_blanks": ({}, {"num_image_tokens": 7, "max_blank_length": 5}),
    "unigram_case_folding": ({"normalization_rule_name": "nmt_nfkc_cf"}, {"num_image_tokens": 7}),
    "unigram_keeps_spaces": ({"remove_extra_whitespaces": False}, {"num_image_tokens": 7}),
    "unigram_no_prefix": ({"add_dummy_prefix": False}, {"num_image_tokens": 7}),
    "unigram_across_spaces": ({"split_by_whitespace": False, "vocab_size": 1200}, {"num_image_tokens": 7}),
    "unigram_without_line_break": ({"user_defined_symbols": []}, {"num_image_tokens": 7}),
    "bpe": ({"model_type": "bpe"}, {"num_image_tokens": 7}),
    "bpe_own_bytes": ({"model_type": "bpe", "byte_fallback": True, "vocab_size": 800}, {"byte_fallback": False}),
    "char": ({"model_type": "char"}, {"num_image_tokens": 7}),
}


@pytest.mark.parametrize("name", MODELS)
def test_random_texts_equal_sentencepiece(name: str, tmp_path: Path) -> None:
    """Every kind of model: ids, tokens, decoded text and prompts of texts that are hard to get right."""
    options, arguments = MODELS[name]
    arguments = {"num_image_tokens": 0} | arguments
    path = train(tmp_path / "ice_text.model", **options)
    tokenizer = Glm130bTokenizer.from_ice_text_model(path, **arguments)
    reference = IceTokenizer(path, **arguments)
    texts = random_texts(300, seed=len(name))
    for special in (True, False):
        batch = tokenizer(texts, add_special_tokens=False, split_special_tokens=not special)
        for index, text in enumerate(texts):
            ids = reference.encode(text, special_tokens=special)
            assert batch["input_ids"][index] == ids, text
            assert batch.tokens(index) == reference.tokenize(text, special_tokens=special), text
            assert tokenizer.decode(ids) == reference.decode(ids, special_tokens=special), text
    for text in texts:
        kinds = {mask for mask in ("[MASK]", "[gMASK]", "[sMASK]") if mask in text}
        # A layout that is written out is read as one here (test_chat_glm130b.py); the original would not.
        if len(kinds) < 2 and "MASK]<sop>" not in text and "</s><sop>" not in text:
            assert tokenizer(text)["input_ids"] == reference.prompt(text), text


def test_model_that_keeps_spaces_as_they_are(model: Path, tmp_path: Path) -> None:
    """`escape_whitespaces` off: no option of the trainer gives it, but the file format has it."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    proto.normalizer_spec.escape_whitespaces = False
    path = tmp_path / "ice_text.model"
    path.write_bytes(proto.SerializeToString())
    tokenizer = Glm130bTokenizer.from_ice_text_model(path, num_image_tokens=0)
    reference = IceTokenizer(path, num_image_tokens=0)
    for text in random_texts(100, seed=1):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == reference.encode(text, special_tokens=True), text
        assert tokenizer.decode(ids) == reference.decode(ids, special_tokens=True), text


def test_random_ids_decode_as_sentencepiece(tokenizer: Glm130bTokenizer, reference: IceTokenizer) -> None:
    """Ids that no text gives: bytes that are no UTF-8, leading spaces. Control pieces are shown here, not there."""
    rng = random.Random(0)
    control = {tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<pad>")}
    space = tokenizer.convert_tokens_to_ids("▁")
    for _ in range(400):
        ids = [rng.randrange(10, len(tokenizer)) for _ in range(rng.randint(0, 4))]
        ids += [rng.randrange(len(tokenizer) - 256, len(tokenizer)) for _ in range(rng.randint(0, 6))]
        rng.shuffle(ids)
        ids = [space] * rng.choice((0, 0, 1, 2)) + [index for index in ids if index not in control]
        assert tokenizer.decode(ids) == reference.decode(ids, special_tokens=True), ids


def test_default_call(tokenizer: Glm130bTokenizer) -> None:
    def tokens(text: str, **options: Any) -> list[str]:
        return tokenizer(text, **options).tokens()

    assert tokens("")[-2:] == ["[gMASK]", "<sop>"]
    assert tokens("of the")[-3:] == ["▁the", "[gMASK]", "<sop>"]
    assert tokens("of [MASK] the") == ["▁of", "[MASK]", "▁the", "</s>", "<sop>"]
    assert tokens("of [sMASK]") == ["▁of", "[sMASK]", "<sop>"]
    assert tokens("of [sMASK] ") == ["▁of", "[sMASK]", "</s>", "<sop>"]
    assert tokens("[MASK]of[MASK]") == ["[MASK]", "▁of", "[MASK]", "<sop>"]
    assert "<eop>" not in tokens("of <eop> the")  # plain text, as in the original's generation
    assert tokens("of [MASK]", split_special_tokens=True)[-2:] == ["[gMASK]", "<sop>"]
    assert "[MASK]" not in tokens("of [MASK]", split_special_tokens=True)


def test_two_kinds_of_mask(tokenizer: Glm130bTokenizer) -> None:
    with pytest.raises(ValueError, match=r"two kinds of mask, \[MASK\] and \[gMASK\].*split_special_tokens"):
        tokenizer(["fine", "a [MASK] b [gMASK]"])
    assert tokenizer("a [MASK] b [gMASK]", add_special_tokens=False)["input_ids"]


def test_offsets_of_examples(tokenizer: Glm130bTokenizer) -> None:
    text = "of  the\n[MASK]\té㍿ -"
    encoded = tokenizer(text, return_offsets_mapping=True)
    spans = dict(zip(encoded.tokens(), encoded["offset_mapping"], strict=True))
    assert text[slice(*spans["▁of"])] == "of"
    assert text[slice(*spans["<|blank_2|>"])] == "  "
    assert text[slice(*spans["<n>"])] == "\n"
    assert text[slice(*spans["[MASK]"])] == "[MASK]"
    assert text[slice(*spans["<|tab|>"])] == "\t"
    assert [text[slice(*spans[token])] for token in ("<0xC3>", "<0xA9>")] == ["é", "é"]
    assert spans["<sop>"] == (0, 0)
    assert encoded.char_to_token(text.index("é")) == encoded.tokens().index("<0xC3>")
    assert encoded.char_to_token(text.index("MASK")) == encoded.tokens().index("[MASK]")
    assert encoded.token_to_chars(encoded.tokens().index("<n>")) == (7, 8)


@pytest.mark.parametrize("options", [{}, {"normalization_rule_name": "identity"}], ids=["nfkc", "identity"])
def test_offsets_point_at_what_became_the_token(options: dict[str, Any], tmp_path: Path) -> None:
    """The characters of a token's place, taken by themselves, make the token (with others of the same place)."""
    path = train(tmp_path / "ice_text.model", **options)
    tokenizer = Glm130bTokenizer.from_ice_text_model(path, num_image_tokens=0)
    reference = IceTokenizer(path, num_image_tokens=0)
    for text in random_texts(300, seed=3):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = encoded["offset_mapping"]
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(spans)), text
        for span, group in groupby(zip(encoded["input_ids"], spans, strict=True), key=lambda item: item[1]):
            made = reference.decode([index for index, _ in group], special_tokens=True)
            there = reference.encode(text[slice(*span)], special_tokens=True)
            assert made.strip(" ") == reference.decode(there, special_tokens=True).strip(" "), (text, span)


def test_words(tokenizer: Glm130bTokenizer) -> None:
    encoded = tokenizer(["of", "the Work", "[MASK]"], is_split_into_words=True, return_offsets_mapping=True)
    assert encoded.tokens() == [*tokenizer.tokenize("of"), *tokenizer.tokenize("the Work"), "[MASK]", "<sop>"]
    assert encoded.word_ids()[0] == 0
    assert encoded.word_ids()[-2:] == [2, None]
    batch = tokenizer([["of"], ["the", "Work"]], is_split_into_words=True, add_special_tokens=False)
    assert [len(row) for row in batch["input_ids"]] == [1, 2]
    assert tokenizer("of the  Work").word_ids()[:2] == [0, 1]


def test_pairs_are_prompt_and_answer(tokenizer: Glm130bTokenizer) -> None:
    encoded = tokenizer("of [MASK]", "the", return_token_type_ids=True, return_special_tokens_mask=True)
    assert encoded.tokens() == ["▁of", "[MASK]", "<sop>", "▁the", "<eop>"]
    assert encoded["token_type_ids"] == [0, 0, 1, 1, 1]
    assert encoded["special_tokens_mask"] == [0, 0, 1, 0, 1]
    assert encoded.sequence_ids() == [0, 0, None, 1, None]
    plain = tokenizer([("of", "the"), ("the", "of")], add_special_tokens=False)
    assert [plain.tokens(0), plain.tokens(1)] == [["▁of", "▁the"], ["▁the", "▁of"]]
    assert (plain.n_sequences, tokenizer("of").n_sequences) == (2, 1)
    assert tokenizer(["of"], ["the"]).tokens() == ["▁of", "[gMASK]", "<sop>", "▁the", "<eop>"]
    assert (tokenizer.num_special_tokens_to_add(), tokenizer.num_special_tokens_to_add(pair=True)) == (2, 3)


def test_padding(tokenizer: Glm130bTokenizer) -> None:
    texts = ["of", "of the Work [MASK] of"]
    alone = [tokenizer(text)["input_ids"] for text in texts]
    gap = len(alone[1]) - len(alone[0])
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[tokenizer.pad_token_id] * gap + alone[0], alone[1]]
    assert batch["attention_mask"].tolist() == [[0] * gap + [1] * len(alone[0]), [1] * len(alone[1])]
    assert list(batch) == ["input_ids", "attention_mask"]
    assert batch[0].ids == batch["input_ids"][0].tolist()
    right = tokenizer(texts, padding="max_length", max_length=12, padding_side="right", truncation=True)
    assert right["input_ids"][0] == alone[0] + [tokenizer.pad_token_id] * (12 - len(alone[0]))
    full = tokenizer(texts, padding=True, pad_to_multiple_of=8, return_offsets_mapping=True)
    assert {len(row) for row in full["input_ids"]} == {8}
    assert full["input_ids"][1][-len(alone[1]) :] == alone[1]


def test_truncation_keeps_what_the_model_needs(tokenizer: Glm130bTokenizer) -> None:
    text = "of the Work the Work of [gMASK]"
    ids = tokenizer(text)["input_ids"]
    mask_and_sop = ids[-2:]
    assert tokenizer(text, truncation=True, max_length=5)["input_ids"] == ids[:3] + mask_and_sop
    tokenizer.truncation_side = "left"
    assert tokenizer(text, truncation=True, max_length=5)["input_ids"] == ids[-5:]
    assert tokenizer(text, truncation=True, max_length=len(ids))["input_ids"] == ids
    plain = tokenizer("of the Work the Work of", truncation=True, max_length=5)["input_ids"]
    assert plain == ids[-5:]
    whole = tokenizer("of the Work", truncation=True, max_length=2, add_special_tokens=False)
    assert whole["input_ids"] == tokenizer("of the Work", add_special_tokens=False)["input_ids"][-2:]
    with pytest.raises(ValueError, match=r"would cut \[MASK\] out.*truncation_side"):
        tokenizer("[MASK] of the Work the Work of", truncation=True, max_length=5)
    tokenizer.truncation_side = "right"
    assert tokenizer("[MASK] of the Work", truncation=True, max_length=4).tokens() == [
        "[MASK]",
        "▁of",
        "</s>",
        "<sop>",
    ]
    with pytest.raises(ValueError, match=r"max_length=2.*no room.*raise max_length"):
        tokenizer("of the Work", truncation=True, max_length=2)


def test_truncation_that_cannot_be_done_says_why(tokenizer: Glm130bTokenizer) -> None:
    """The library's own errors are bare exceptions, also in the host's tokenizers."""
    with pytest.raises(
        ValueError, match=r"'only_second' cuts the second text of a pair, and a single text.*only_first"
    ):
        tokenizer("of the Work", truncation="only_second", max_length=4)
    assert tokenizer("of", truncation="only_second", max_length=4)["input_ids"] == tokenizer("of")["input_ids"]
    with pytest.raises(ValueError, match=r"'only_first' with max_length=5 leaves nothing.*truncation=True"):
        tokenizer("of", "of the Work of the Work", truncation="only_first", max_length=5)
    with pytest.raises(ValueError, match=r"'only_second' with max_length=5 leaves nothing"):
        tokenizer("of the Work of the Work", "of", truncation="only_second", max_length=5)
    pair = tokenizer("of the", "of the Work of the Work", truncation="only_second", max_length=6)["input_ids"]
    assert pair == tokenizer("of the", "of")["input_ids"]


def test_overflowing_tokens(tokenizer: Glm130bTokenizer) -> None:
    ids = tokenizer("of the Work of the Work", add_special_tokens=False)["input_ids"]
    windows = tokenizer(
        ["of the Work of the Work", "of"], truncation=True, max_length=5, stride=1, return_overflowing_tokens=True
    )
    tail = [tokenizer.gmask_token_id, tokenizer.sop_token_id]
    assert windows["input_ids"][:2] == [ids[:3] + tail, ids[2:5] + tail]
    assert windows["overflow_to_sample_mapping"] == [0] * (len(windows["input_ids"]) - 1) + [1]


def test_save_and_load(tokenizer: Glm130bTokenizer, model: Path, tmp_path: Path) -> None:
    texts = random_texts(100, seed=5)
    tokenizer.truncation_side = "left"
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "ice_text.model").read_bytes() == model.read_bytes()
    for loaded in (
        Glm130bTokenizer.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert type(loaded) is Glm130bTokenizer
        assert (loaded.num_image_tokens, loaded.padding_side, loaded.model_max_length) == (10, "left", 2048)
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.special_tokens_map == tokenizer.special_tokens_map
        assert set(loaded.all_special_ids) == set(tokenizer.all_special_ids)
        for text in texts:
            assert loaded(text, add_special_tokens=False) == tokenizer(text, add_special_tokens=False)
    split = Glm130bTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    assert split.tokenize("<eop>") != ["▁", "<eop>"]


@pytest.mark.parametrize("mode", ["no_linebreak", "no_whitespaces", "no_prefix"])
def test_rules_are_saved(mode: str, tmp_path: Path) -> None:
    path, num_image_tokens, rows = small_golden("unigram", tmp_path)
    Glm130bTokenizer.from_ice_text_model(path, num_image_tokens, **MODES[mode]).save_pretrained(tmp_path / "saved")
    check_rows(AutoTokenizer.from_pretrained(tmp_path / "saved"), rows, mode)


def test_folder_with_only_the_original_file(model: Path, tokenizer: Glm130bTokenizer) -> None:
    loaded = Glm130bTokenizer.from_pretrained(model.parent, num_image_tokens=10)
    assert loaded("of [MASK]") == tokenizer("of [MASK]")
    assert Glm130bTokenizer.from_pretrained(model, num_image_tokens=0).sop_token_id == tokenizer.sop_token_id - 10


# Rows of each full golden set whose ids tokenizer.json alone gives otherwise: seven are one special token and nothing
# else, the others hold `e\u0301\u0301\u0301` and `\u302b` after a Latin digraph. The model card quotes these counts.
PLAIN_EXCEPTIONS = {"unigram": 9, "bpe": 9, "unigram_identity": 7}


@pytest.mark.parametrize("kind", KINDS)
def test_plain_tokenizer_has_counted_exceptions(kind: str, shared_goldens: Path, tmp_path: Path) -> None:
    full_tokenizer(kind).save_pretrained(tmp_path)
    plain = TokenizersBackend.from_pretrained(tmp_path)
    assert type(plain) is TokenizersBackend
    assert (plain.padding_side, plain.pad_token_id, plain.gmask_token_id) == ("left", 20003, 150001)
    assert plain.model_input_names == ["input_ids", "attention_mask"]
    rows = full_rows(kind)
    found = plain([row["text"] for row in rows], add_special_tokens=False)["input_ids"]
    different = [row["text"] for row, ids in zip(rows, found, strict=True) if ids != row["special"]["ids"]]
    assert len(different) == PLAIN_EXCEPTIONS[kind]
    assert f"{max(PLAIN_EXCEPTIONS.values())} of {len(rows)} texts" in PLAIN_TOKENIZER_NOTE
    assert [plain.decode(row["special"]["ids"]) for row in rows] == [row["special"]["decoded"] for row in rows]


def test_plain_tokenizer_on_ordinary_text(tokenizer: Glm130bTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    plain = TokenizersBackend.from_pretrained(tmp_path)
    for text in [
        "千里之行，始于足下。\n\nof the  Work [MASK] of",
        "def f(x):\n    return\tx\n",
        *TRAINING_TEXT.split("\n")[:80],
    ]:
        assert (
            plain(text, add_special_tokens=False)["input_ids"]
            == tokenizer(text, add_special_tokens=False)["input_ids"]
        )
    ids = tokenizer("of [MASK] the")["input_ids"]
    assert plain.decode(ids, skip_special_tokens=True) == "of the"


def test_without_sentencepiece(tokenizer: Glm130bTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class runs on tokenizer.json alone: ordinary texts, prompts, offsets and decoding are the same."""
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(tokenization_glm130b, "SENTENCEPIECE_ERROR", ImportError("No module named 'sentencepiece'"))
    bare = Glm130bTokenizer.from_pretrained(tmp_path)
    for text in ("of the Work", "of  [MASK]\nthe Work", "千里之行 [gMASK]"):
        assert bare(text) == tokenizer(text)
        assert bare(text).tokens() == tokenizer(text).tokens()
        ids = bare(text, add_special_tokens=False)["input_ids"]
        assert bare.decode(ids) == tokenizer.decode(ids)
    assert bare("of [MASK]", split_special_tokens=True) == tokenizer("of [MASK]", split_special_tokens=True)
    spans = [row("of the\nWork", return_offsets_mapping=True)["offset_mapping"] for row in (bare, tokenizer)]
    assert spans[0] == spans[1]
    bare.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "ice_text.model").is_file()
    with pytest.raises(ImportError, match=r"linebreak.*sentencepiece"):
        Glm130bTokenizer.from_pretrained(tmp_path, linebreak=False)


def test_added_tokens(tokenizer: Glm130bTokenizer, tmp_path: Path) -> None:
    size = len(tokenizer)
    assert tokenizer.add_tokens(["<new>", AddedToken("word", single_word=True), AddedToken("strip", lstrip=True)]) == 3
    assert (
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>"]}, replace_extra_special_tokens=False) == 1
    )
    for loaded in (tokenizer, (tokenizer.save_pretrained(tmp_path), Glm130bTokenizer.from_pretrained(tmp_path))[1]):
        assert loaded.convert_tokens_to_ids(["<new>", "word", "strip", "<|user|>"]) == [size + i for i in range(4)]
        text = "of <new> the <|user|>"
        encoded = loaded(text, add_special_tokens=False, return_offsets_mapping=True)
        assert encoded.tokens() == ["▁of", "▁", "<new>", "▁the", "▁", "<|user|>"]
        assert loaded.decode(encoded["input_ids"]) == text
        assert loaded.decode(encoded["input_ids"], skip_special_tokens=True) == "of <new> the "
        assert [text[a:b] for a, b in encoded["offset_mapping"]] == ["of", " ", "<new>", " the", " ", "<|user|>"]
        assert loaded.encode("<new>", add_special_tokens=False) == [size]
        assert size + 3 not in loaded.encode(text, split_special_tokens=True)
        assert size + 1 not in loaded.encode("words", add_special_tokens=False)
        assert loaded.tokenize("of  strip") == ["▁of", "strip"]
        assert loaded("<new> [MASK] <new>").tokens() == ["<new>", "[MASK]", "▁", "<new>", "</s>", "<sop>"]


def test_decode(tokenizer: Glm130bTokenizer) -> None:
    ids = tokenizer("of [MASK] the", "Work")["input_ids"]
    assert tokenizer.decode(ids) == "of[MASK] the</s><sop> Work<eop>"
    assert tokenizer.decode([tokenizer.pad_token_id, *ids], skip_special_tokens=True) == "of the Work"
    assert tokenizer.decode(tokenizer("of", return_tensors="pt")["input_ids"]) == ["of[gMASK]<sop>"]
    assert tokenizer.decode([tokenizer.unk_token_id]) == " ⁇ "
    assert tokenizer.clean_up_tokenization_spaces is False
    for wrong in (-100, len(tokenizer), 2**40):  # as the library: what no token has is left out
        assert tokenizer.decode([wrong, *ids, wrong]) == tokenizer.decode(ids)


def test_streaming(tokenizer: Glm130bTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    """Printing token by token gives the whole text, characters of several byte tokens included."""
    text = "of the  Work\né千里之行,\U0001f469 of\n"
    streamer = TextStreamer(tokenizer)
    for index in tokenizer(text, add_special_tokens=False)["input_ids"]:
        streamer.put(torch.tensor([index]))
    streamer.end()
    assert capsys.readouterr().out == text + "\n"


def test_never_looks_for_the_network(tokenizer: Glm130bTokenizer) -> None:
    """The host asks the Hub about tokenizers of more than 100,000 tokens that have a pre-tokenizer."""
    assert tokenizer.backend_tokenizer.pre_tokenizer is None


def bad_models(folder: Path) -> Iterator[tuple[Path, type[Exception], str]]:
    yield folder / "absent.model", FileNotFoundError, "No sentencepiece model at .*ice_text.model"
    (folder / "text.model").write_text("not a model")
    data = train(folder / "cut.model").read_bytes()
    (folder / "cut.model").write_bytes(data[: len(data) // 2])
    yield folder / "cut.model", ValueError, r"cut.model is not a sentencepiece model"
    yield folder / "text.model", ValueError, "text.model.* is not a sentencepiece model"
    (folder / "empty.model").write_bytes(b"")
    yield folder / "empty.model", ValueError, "it has no pieces"
    yield train(folder / "word.model", model_type="word"), ValueError, "type word.*unigram, bpe, char"
    yield train(folder / "suffix.model", treat_whitespace_as_suffix=True), ValueError, "treat_whitespace_as_suffix"
    yield train(folder / "eos.model", eos_id=-1), ValueError, "no end-of-sentence piece '</s>'"
    yield train(folder / "bytes.model", byte_fallback=True, vocab_size=800), ValueError, "byte_fallback=False"


def test_bad_models(tmp_path: Path) -> None:
    for path, error, message in bad_models(tmp_path):
        with pytest.raises(error, match=message):
            Glm130bTokenizer.from_ice_text_model(path, num_image_tokens=0)


def test_bad_input(tokenizer: Glm130bTokenizer, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"A text must be a string.*found int 5"):
        tokenizer([5])
    with pytest.raises(ValueError, match="list of as many second texts"):
        tokenizer(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"half a surrogate pair.*character 1"):
        tokenizer("a\ud800")
    with pytest.raises(FileNotFoundError, match=r"Neither tokenizer.json nor ice_text.model"):
        Glm130bTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not belong together"):
        Glm130bTokenizer.from_pretrained(tmp_path, num_image_tokens=11)
    for arguments in ({"num_image_tokens": -1}, {"max_blank_length": 1}):
        with pytest.raises(ValueError, match=r"num_image_tokens=.* must be a whole number from 0"):
            Glm130bTokenizer.from_ice_text_model(model, **arguments)
    plain = train(tmp_path / "plain.model", user_defined_symbols=[])
    with pytest.raises(ValueError, match=r"add_dummy_prefix=False.*'<n>'"):
        Glm130bTokenizer.from_ice_text_model(plain, add_dummy_prefix=False)
    (tmp_path / "ice_text.model").unlink()
    with pytest.raises(ValueError, match=r"linebreak.* need the file ice_text.model beside it"):
        Glm130bTokenizer.from_pretrained(tmp_path, linebreak=False)
    with pytest.raises(NotImplementedError, match="from_ice_text_model"):
        tokenizer.train_new_from_iterator([["a"]], 100)


def test_end_token_that_is_not_there(tokenizer: Glm130bTokenizer) -> None:
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"needs the token None.*set the named tokens"):
        tokenizer("[MASK] of")


def test_pad_token_without_one_in_the_model(tmp_path: Path) -> None:
    path = train(tmp_path / "ice_text.model", pad_id=-1)
    tokenizer = Glm130bTokenizer.from_ice_text_model(path, num_image_tokens=0)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
