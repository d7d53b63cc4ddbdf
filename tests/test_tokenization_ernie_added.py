"""ErnieTokenizer's added tokens against PaddleNLP's outputs, and the true places of tokens."""

import json
import logging
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import (
    ErnieConfig,
    ErnieForTokenClassification,
    TokenClassificationPipeline,
    TokenizersBackend,
)

from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from hf_glm_ernie.tokenization_ernie_added import MARK, build_marking_normalizer, has_case
from hf_glm_ernie.tokenization_ernie_vocabulary import read_vocabulary
from tests.conftest import GOLDEN
from tests.reference.ernie_tokenizer import random_texts
from tests.support.ernie_vocabulary import FULL, SMALL, paddle_folder, released_lines, write_vocabulary
from tests.support.fresh import fresh_python

LINES = SMALL["vocabulary"]
SIZE = len(LINES)
ADDED = json.loads((GOLDEN / "ernie_added_tokens.json").read_text(encoding="utf-8"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> ErnieTokenizer:
    return ErnieTokenizer(write_vocabulary(tmp_path, LINES))


def with_steps(path: Path, case: dict[str, Any], **options: Any) -> ErnieTokenizer:
    """A tokenizer of the goldens."""
    tokenizer = ErnieTokenizer(path, do_lower_case=case["do_lower_case"], **options)
    for kind, tokens in case["steps"]:
        if kind == "special" and tokens:
            tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        elif kind == "added":
            tokenizer.add_tokens(list(tokens))
    return tokenizer


@pytest.mark.parametrize("number", range(len(ADDED)))
def test_golden_of_added_tokens(number: int, tmp_path: Path) -> None:
    """Random tokens of troublesome letters in random texts: tokens, ids, text, PaddleNLP's places; saved, too."""
    case = ADDED[number]
    tokenizer = with_steps(write_vocabulary(tmp_path, LINES), case, exact_offsets=False)
    assert tokenizer.paddlenlp_ids() == case["ids"]
    tokenizer.save_pretrained(tmp_path / "saved")
    again = ErnieTokenizer.from_pretrained(tmp_path / "saved")
    for text, tokens, offsets, decoded in zip(
        case["texts"], case["tokens"], case["offsets"], case["decoded"], strict=True
    ):
        ids = [case["ids"][one] + 1 if one in case["ids"] else tokenizer.convert_tokens_to_ids(one) for one in tokens]
        for one in (tokenizer, again):
            found = one(text, add_special_tokens=False, return_offsets_mapping=True)
            assert one.tokenize(text) == tokens, text
            assert found["input_ids"] == ids, text
            assert one.convert_ids_to_tokens(ids) == tokens
            assert one.convert_tokens_to_ids(tokens) == ids
            if offsets is not None:
                assert [list(span) for span in found["offset_mapping"]] == offsets, text
            if "[UNK]" not in tokens:  # to PaddleNLP that has the first added token's id, and its name
                assert one.decode(ids) == decoded, text


PLAIN = """
import json, sys
from transformers import AutoTokenizer
for folder, texts in json.load(open("cases.json", encoding="utf-8")):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer(texts, return_offsets_mapping=True)
    print(json.dumps([found["input_ids"], found["offset_mapping"], tokenizer.batch_decode(found["input_ids"])]))
assert not any(name.startswith("hf_glm_ernie") for name in sys.modules)
"""


def test_plain_auto_tokenizer_has_them_too(tmp_path: Path) -> None:
    """A process that does not import this package: the same ids, places and text."""
    path = write_vocabulary(tmp_path, LINES)
    tokenizers = [with_steps(path, case) for case in ADDED]
    cases = []
    for number, (case, tokenizer) in enumerate(zip(ADDED, tokenizers, strict=True)):
        tokenizer.save_pretrained(tmp_path / str(number))
        cases.append((str(number), case["texts"]))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = fresh_python(["-P", "-c", PLAIN], tmp_path, check=True)
    for line, case, tokenizer in zip(done.stdout.splitlines(), ADDED, tokenizers, strict=True):
        ids, offsets, decoded = json.loads(line)
        expected = tokenizer(case["texts"], return_offsets_mapping=True)
        assert ids == expected["input_ids"]
        assert [[tuple(span) for span in row] for row in offsets] == expected["offset_mapping"]
        assert decoded == tokenizer.batch_decode(ids)


def with_words(folder: Path, *words: str) -> ErnieTokenizer:
    """A tokenizer whose vocabulary has some more words, and [UNK] last."""
    return ErnieTokenizer(write_vocabulary(folder, [*LINES[:-1], *words, "[UNK]"]))


def test_letters_with_accents_are_not_those_without(tmp_path: Path) -> None:
    tokenizer = with_words(tmp_path, "cat", "is", "here", "cafe", "é")
    size = SIZE + 5
    assert tokenizer.add_tokens(["ā"]) == 1
    assert tokenizer.tokenize("the cat is here Ā") == ["the", "cat", "is", "here", "ā"]
    assert tokenizer.add_tokens(["é"]) == 0
    assert tokenizer.tokenize("é e É") == ["e", "e", "e"]
    assert tokenizer.add_tokens(["Café"]) == 1
    assert tokenizer.tokenize("cafe Café CAFÉ Cafe") == ["cafe", "café", "café", "cafe"]
    assert tokenizer.convert_tokens_to_ids(["ā", "Café", "café", "Cafe"]) == [size, size + 1, size + 1, size - 1]
    assert tokenizer.tokenize("Cafe\u0301 caf\u200bé") == ["cafe", "cafe"]


def test_the_released_vocabulary(tmp_path: Path) -> None:
    """The numbers of the released tokenizer."""
    if not FULL.is_dir():
        pytest.skip("needs the released vocabulary beside the repository (../shared/goldens/ernie)")
    tokenizer = ErnieTokenizer(write_vocabulary(tmp_path, released_lines()))
    assert tokenizer.convert_tokens_to_ids("é") == 32585
    assert (tokenizer.add_tokens(["é"]), len(tokenizer)) == (0, 39979)
    assert tokenizer.add_tokens(["ā"]) == 1
    assert tokenizer.encode("the cat is here ā") == [1, 1499, 8977, 2775, 5303, 39980, 2]
    assert tokenizer.encode("好\ud83d的") == [1, 170, 5, 2]
    assert tokenizer.paddlenlp_ids() == {"ā": 39979}


def test_leftmost_then_longest(tokenizer: ErnieTokenizer) -> None:
    """As PaddleNLP's trie, also where tokens overlap and for tokens without letters that were there before."""
    tokenizer.add_tokens(["手机", "手机壳"])
    assert not any(token.normalized for token in tokenizer.added_tokens_decoder.values())
    assert tokenizer.tokenize("手机壳手机") == ["手机壳", "手机"]
    assert tokenizer.backend_tokenizer.encode("手机").tokens[1] == "手机"  # needs no mark
    tokenizer.add_tokens(["The手机", "new york", "york city"])
    assert tokenizer.tokenize("the手机壳手机壳") == ["the手机", "[UNK]", "手机壳"]
    assert tokenizer.tokenize("New York city york city")[0::5] == ["new york", "york city"]
    assert len({*tokenizer.convert_tokens_to_ids(["手机", "手机壳", "the手机", "new york", "york city"])}) == 5


def test_added_tokens(tokenizer: ErnieTokenizer, tmp_path: Path) -> None:
    """They follow [UNK] in the order given, and come back from a saved folder."""
    assert max(tokenizer.get_vocab().values()) == tokenizer.unk_token_id == SIZE - 1
    assert len(tokenizer) == SIZE - 1
    assert tokenizer.add_tokens(["新词abc", AddedToken("[S]", special=True), "", "the", "The", "[MASK]"]) == 2
    assert len(tokenizer) == max(tokenizer.get_vocab().values()) + 1 == SIZE + 2  # the hole is filled
    ids = tokenizer.encode("a新词ABCb [s][S]", add_special_tokens=False)
    assert (ids[1], ids[-1], ids.count(SIZE + 1)) == (SIZE, SIZE + 1, 1)
    assert tokenizer.encode("[UNK]", add_special_tokens=False) == [SIZE - 1]
    spans = tokenizer("ö新词ABCb", return_offsets_mapping=True)["offset_mapping"]
    assert spans[2] == (1, 6)
    tokenizer.save_pretrained(tmp_path)
    assert read_vocabulary(tmp_path / "vocab.txt")[0] == {token: i for i, token in enumerate(LINES)}
    for other in (ErnieTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode("a新词ABCb [s][S]", add_special_tokens=False) == ids
        assert len(other) == SIZE + 2
        assert other.add_tokens(["新词ABC", "[S]"]) == 0


def test_as_typed(tokenizer: ErnieTokenizer, tmp_path: Path) -> None:
    """On request, and where nothing is lowercased."""
    tokenizer.add_tokens([AddedToken("Xq", normalized=False)])
    assert tokenizer.tokenize("Xq xq") == ["Xq", "x", "##q"]
    cased = ErnieTokenizer(write_vocabulary(tmp_path, LINES), do_lower_case=False)
    cased.add_tokens(["Éa"])
    assert cased.tokenize("Éa éa Ea") == ["Éa", "[UNK]", "[UNK]"]
    cased.save_pretrained(tmp_path / "cased")
    assert ErnieTokenizer.from_pretrained(tmp_path / "cased").tokenize("Éa éa") == ["Éa", "[UNK]"]
    tokenizer.add_tokens(["Éa"])
    tokenizer.save_pretrained(tmp_path / "lower")
    again = ErnieTokenizer.from_pretrained(tmp_path / "lower", do_lower_case=False)
    assert again.tokenize("Éa éa ea") == ["[UNK]", "éa", "e", "##a"]
    again.save_pretrained(tmp_path / "lower")
    assert ErnieTokenizer.from_pretrained(tmp_path / "lower", do_lower_case=True).tokenize("éa ea")[0] == "éa"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("a\ud83d", r"holds half a surrogate pair, '\\ud83d'"),
        ("a\u2060b", r"holds U\+2060, which marks added tokens"),
        ("\0", r"holds U\+0000"),
    ],
)
def test_refused_tokens(token: str, message: str, tokenizer: ErnieTokenizer) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer.add_tokens(["b", token])
    assert len(tokenizer) == SIZE - 1  # none of them was added


def test_too_many_letters_to_hide() -> None:
    accented = [chr(code) for code in range(0xAC00, 0xAC00 + 6401)]  # Hangul syllables, which cleaning decomposes
    with pytest.raises(ValueError, match=r"hold 6401 different characters .* room for 6400"):
        build_marking_normalizer(accented)
    normalizer = build_marking_normalizer(accented[:6400:1600])
    assert normalizer.normalize_str("각가") == unicodedata.normalize("NFD", "각") + "가" + MARK


def test_which_tokens_have_case() -> None:
    """No character that is said to have none is what another one becomes in small letters."""
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        if chr(code).lower() != chr(code):
            assert all(map(has_case, chr(code).lower())), f"U+{code:04X}"


@pytest.mark.parametrize("where", ["special_tokens_map.json", "tokenizer_config.json", "both"])
def test_additional_special_tokens_of_paddlenlp(where: str, tmp_path: Path) -> None:
    """Special in `added_tokens.json`: exactly as typed, left out by `skip_special_tokens`, saved as such."""
    special = ["[E1]", "[/E1]"]
    folder = paddle_folder(tmp_path, LINES, **({} if "map" in where else {"additional_special_tokens": special}))
    if "config" not in where:
        path = folder / "special_tokens_map.json"
        second = {"content": "[/E1]", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
        content = json.loads(path.read_text(encoding="utf-8")) | {"additional_special_tokens": ["[E1]", second]}
        path.write_text(json.dumps(content), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps({"[E1]": SIZE - 1, "[/E1]": SIZE}))
    first = ErnieTokenizer.from_pretrained(folder)
    assert first.paddlenlp_ids() == {"[E1]": SIZE - 1, "[/E1]": SIZE}
    first.save_pretrained(folder / "saved")
    for tokenizer in (first, ErnieTokenizer.from_pretrained(folder / "saved")):
        ids = tokenizer.encode("a [E1]the[/E1] [e1]")
        assert tokenizer.convert_ids_to_tokens(ids)[1:5] == ["a", "[E1]", "the", "[/E1]"]
        assert (ids[2], ids[4]) == (SIZE, SIZE + 1)
        assert tokenizer.decode(ids) == "[CLS] a [E1] the [/E1] [ e1 ] [SEP]"
        assert tokenizer.decode(ids, skip_special_tokens=True) == "a the [ e1 ]"
        assert [*tokenizer.extra_special_tokens] == special
        assert {*special} <= {*tokenizer.all_special_tokens}
    plain = TokenizersBackend.from_pretrained(folder / "saved")
    assert plain.encode("a [E1]the[/E1] [e1]") == ids
    assert plain.decode(ids, skip_special_tokens=True) == "a the [ e1 ]"


def test_half_surrogate_pairs_are_dropped(tokenizer: ErnieTokenizer) -> None:
    """As PaddleNLP does, wherever a text may stand; the others stay where they are."""
    expected = tokenizer("今天")["input_ids"]
    assert tokenizer.tokenize("今\ud83d天\udc00") == ["今", "天"]
    found = tokenizer("今\ud83d天", return_offsets_mapping=True)
    assert found["input_ids"] == expected
    assert found["offset_mapping"][1:3] == [(0, 1), (2, 3)]
    assert tokenizer(["今\ud83d天", "\ud83d\ude00"])["input_ids"] == [expected, [1, 2]]
    pair = tokenizer("a", "今天")["input_ids"]
    assert tokenizer("a", "今\ud83d天")["input_ids"] == tokenizer([("a\ud83d", "今天\udc00")])["input_ids"][0] == pair
    assert tokenizer(["今\ud83d", "天"], is_split_into_words=True)["input_ids"] == expected
    assert tokenizer("a\udc00b", return_offsets_mapping=True)["offset_mapping"][1:3] == [(0, 1), (2, 3)]
    guessing = ErnieTokenizer(tokenizer.vocab_file, exact_offsets=False)
    found = guessing("今\ud83d天각", truncation=True, max_length=4, return_offsets_mapping=True)
    assert found["input_ids"] == expected
    assert found["offset_mapping"] == [(0, 0), (0, 1), (2, 3), (0, 0)]


def test_training_a_vocabulary(tokenizer: ErnieTokenizer) -> None:
    """Added tokens are not the new tokenizer's, and leave no mark in its vocabulary."""
    tokenizer.add_tokens(["Café"])
    trained = tokenizer.train_new_from_iterator([["Café 今天 café"] * 5], 60)
    assert not any(MARK in token or "é" in token for token in trained.get_vocab())
    assert "cafe" in trained.get_vocab()
    assert tokenizer.tokenize("Café") == ["café"]


def test_omask_of_utc(tmp_path: Path) -> None:
    """In the vocabulary, among the additional special tokens, or in `added_tokens.json`: one token behind [UNK]."""
    lines = SMALL["vocabulary"]
    size = len(lines)
    folders = [
        paddle_folder(tmp_path / "lines", [*lines, "[O-MASK]"], additional_special_tokens=["[O-MASK]"]),
        paddle_folder(tmp_path / "config", lines, additional_special_tokens=["[O-MASK]"]),
        paddle_folder(tmp_path / "both", lines, additional_special_tokens=["[O-MASK]"]),
        paddle_folder(tmp_path / "added", lines),
    ]
    for folder in folders[2:]:
        (folder / "added_tokens.json").write_text(json.dumps({"[O-MASK]": size}))
    for folder in folders:
        tokenizer = ErnieTokenizer.from_pretrained(folder)
        expected = [1, lines.index("a"), size, lines.index("the"), 2]
        assert tokenizer.encode("a[O-MASK]the") == expected, folder
        tokenizer.save_pretrained(folder / "saved")
        assert ErnieTokenizer.from_pretrained(folder / "saved").encode("a[O-MASK]the") == expected


def test_paddlenlps_own_ids_of_added_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """PaddleNLP gives the first added token [UNK]'s id; it is moved behind, and the warning says so."""
    size = len(SMALL["vocabulary"])
    folder = paddle_folder(tmp_path, SMALL["vocabulary"])
    (folder / "added_tokens.json").write_text(json.dumps({"[one]": size - 1, "[two]": size}))
    logger = logging.getLogger("transformers")
    logger.propagate = True
    try:
        tokenizer = ErnieTokenizer.from_pretrained(folder)
    finally:
        logger.propagate = False
    assert tokenizer.encode("[two][one]", add_special_tokens=False) == [size + 1, size]
    assert tokenizer.paddlenlp_ids() == {"[one]": size - 1, "[two]": size}
    assert f"'[one]' {size - 1} -> {size}, '[two]' {size} -> {size + 1}" in caplog.text
    (folder / "added_tokens.json").write_text(json.dumps({"[one]": size + 7}))
    with pytest.raises(ValueError, match=rf"cannot be kept: '\[one\]' {size + 7} -> {size}"):
        ErnieTokenizer.from_pretrained(folder)


def test_tokens_added_without_this_package(tmp_path: Path) -> None:
    """They get ids of their own, and keep them when that host saves and opens again."""
    ErnieTokenizer(write_vocabulary(tmp_path, SMALL["vocabulary"])).save_pretrained(tmp_path)
    plain = TokenizersBackend.from_pretrained(tmp_path)
    plain.add_tokens(["new"])
    plain.save_pretrained(tmp_path / "again")
    size = len(SMALL["vocabulary"])
    for tokenizer in (plain, TokenizersBackend.from_pretrained(tmp_path / "again")):
        assert tokenizer.encode("new [UNK]") == [1, size, size - 1, 2]
    assert ErnieTokenizer.from_pretrained(tmp_path / "again").encode("new [UNK]") == [1, size, size - 1, 2]


def test_exact_offsets(tmp_path: Path) -> None:
    """Unknown words lie where they stand, unless PaddleNLP's guesses are asked for."""
    path = write_vocabulary(tmp_path, SMALL["vocabulary"])
    text = "今天 [MASK]한국어 각각 the"
    tokenizer = ErnieTokenizer(path)
    found = tokenizer(text, return_offsets_mapping=True)
    spans = dict(zip(found.tokens(), found["offset_mapping"], strict=True))
    assert text[slice(*spans["the"])] == "the"
    assert text[slice(*spans["[MASK]"])] == "[MASK]"
    unknown = [span for token, span in zip(found.tokens(), found["offset_mapping"], strict=True) if token == "[UNK]"]
    assert [text[slice(*span)] for span in unknown] == ["한국어", "각각"]
    guessed = ErnieTokenizer(path, exact_offsets=False)(text, return_offsets_mapping=True)
    assert guessed["input_ids"] == found["input_ids"]
    assert guessed["offset_mapping"] != found["offset_mapping"]
    assert guessed.encodings[0].offsets == found["offset_mapping"]  # the library's record is always exact
    tokenizer.save_pretrained(tmp_path)
    assert ErnieTokenizer.from_pretrained(tmp_path).exact_offsets


@pytest.mark.parametrize("unknown", ["℃", "巴黎", "℃巴黎"])
def test_places_beside_blanks(unknown: str, tmp_path: Path) -> None:
    """The unit alone, without the blank behind it; PaddleNLP's guess has it."""
    lines = [line for line in [*LINES[:-1], *"巴黎"] if line not in unknown]
    path = write_vocabulary(tmp_path, [*lines, "[UNK]"])
    text = "25℃ 巴黎"
    found = ErnieTokenizer(path)(text, return_offsets_mapping=True)
    assert [text[slice(*span)] for span in found["offset_mapping"][1:-1]] == ["2", "5", "℃", "巴", "黎"]
    assert found.tokens().count("[UNK]") == len(unknown)
    if unknown == "℃":
        guessed = ErnieTokenizer(path, exact_offsets=False)(text, return_offsets_mapping=True)
        assert text[slice(*guessed["offset_mapping"][3])] == "℃ "


@pytest.mark.parametrize("lower", [True, False])
def test_every_place_is_true(lower: bool, tmp_path: Path) -> None:
    """Random texts: what stands at a token's place becomes that token, an unknown word has no blank in it, and no two
    places overlap.
    """
    tokenizer = ErnieTokenizer(write_vocabulary(tmp_path, LINES), do_lower_case=lower)
    clean = tokenizer.backend_tokenizer.normalizer.normalize_str
    unknown = 0
    for text in random_texts(2000, 5, LINES):
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        behind = 0
        for name, (start, end) in zip(found.tokens(), found["offset_mapping"], strict=True):
            piece = clean(text[start:end])
            assert behind <= start < end or (start, end) == (behind - 1, behind), text
            behind = end
            if name == "[UNK]":
                unknown += 1
                assert len((piece if piece != "[UNK]" else "x").split()) == 1, text
                assert text[start:end].strip() == text[start:end], text
            else:
                shown = text[start:end] if name in tokenizer.all_special_tokens else piece
                assert name.removeprefix("##") in shown, text  # one character may become several tokens
    assert unknown > 1000


def test_spans_of_the_hosts_pipeline(tmp_path: Path) -> None:
    """Token classification names true places: the second `ab` is at 8, behind an unknown word that holds `ab`."""
    tokenizer = with_words(tmp_path, "ab")
    text = "ab xx각ab ab"
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = ErnieForTokenClassification(ErnieConfig(vocab_size=SIZE + 1, num_labels=2, **size)).eval()
    pipeline = TokenClassificationPipeline(model=model, tokenizer=tokenizer, ignore_labels=[])
    found = [(one["word"], one["start"], one["end"]) for one in pipeline(text)]
    assert found == [("ab", 0, 2), ("xx각ab", 3, 8), ("ab", 9, 11)]
    guessing = ErnieTokenizer(tokenizer.vocab_file, exact_offsets=False)
    guessed = TokenClassificationPipeline(model=model, tokenizer=guessing, ignore_labels=[])(text)
    assert [(one["start"], one["end"]) for one in guessed] == [(0, 2), (2, 6), (6, 8)]  # the second `ab` has moved
