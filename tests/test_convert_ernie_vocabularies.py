"""Which tokenizer a `vocab.txt` of ERNIE's gets: WordPiece, byte pairs or none; token types of a model of one type."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModel, AutoTokenizer

from hf_glm_ernie import ErnieTokenizer
from tests.support.converting_ernie import convert, small_arrays, small_settings, write_checkpoint

BRACKETS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
ANGLES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = ["low", "##er", "##est", "new", "wid", "the", "a", ".", ","]
POSITIONS = 48
TEXTS = ["lower newest widest", "the newer the wider, a low.", "low lower lowest"]
CORPUS = [*TEXTS, "The New York river is wider.", "newer rivers, lower banks"] * 4


def english_checkpoint(folder: Path, lines: list[str], **settings: object) -> Path:
    """The layout of ernie-3.0-tiny-mini-v2-en: one token type, no task embeddings; with a vocabulary."""
    arrays = {key: array for key, array in small_arrays("features").items() if "task_type" not in key}
    random = np.random.default_rng(1)
    arrays["embeddings.token_type_embeddings.weight"] = random.standard_normal((1, 24)).astype("f4")
    arrays["embeddings.word_embeddings.weight"] = random.standard_normal((len(lines), 24)).astype("f4")
    arrays["embeddings.position_embeddings.weight"] = random.standard_normal((POSITIONS, 24)).astype("f4")
    said = small_settings("features") | {
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 1,
        "use_task_id": False,
        "vocab_size": len(lines),
    }
    said = {key: value for key, value in said.items() if key != "pad_token_id"} | settings
    source = write_checkpoint(folder, arrays, said)
    (source / "vocab.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return source


def trained_merges(cased: bool = False) -> tuple[list[str], list[tuple[str, str]]]:
    """(all 256 bytes and the pieces made of them, in the order of the merges; the merges)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS if cased else [text.lower() for text in CORPUS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    return sorted(alphabet) + [first + second for first, second in merges], merges


def original_ids(lines: list[str], merges: list[tuple[str, str]], text: str) -> list[int]:
    """Byte pairs the plain way: the earliest merge anywhere in a word, again and again."""
    ids = []
    for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text):
        parts = list(word)
        while True:
            ranks = {pair: merges.index(pair) for pair in pairwise(parts) if pair in merges}
            if not ranks:
                break
            best = min(ranks, key=lambda pair: ranks[pair])
            at = list(pairwise(parts)).index(best)
            parts[at : at + 2] = ["".join(best)]
        ids += [lines.index(part) for part in parts]
    return ids


def check_types_and_model(folder: Path) -> None:
    """Token types are 0 for pairs, padded and cut ones too, and the model takes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = tokenizer(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")
    assert int(pairs["token_type_ids"].max()) == 0
    cut = tokenizer(TEXTS[0], TEXTS[1], truncation=True, max_length=8, return_tensors="pt")
    assert cut["token_type_ids"].tolist() == [[0] * 8]
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**pairs).last_hidden_state
    assert bool(hidden.isfinite().all())


@pytest.mark.parametrize("special", [BRACKETS, ANGLES], ids=["brackets", "angles"])
def test_word_pieces_of_a_model_of_one_token_type(
    special: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = special + WORDS
    source = english_checkpoint(tmp_path / "source", lines)
    assert convert(source, tmp_path / "model") == 0
    said = capsys.readouterr().out
    assert "the tokenizer gives 0 for every text, for second ones, too" in said
    pad = lines.index("[PAD]" if special is BRACKETS else "<pad>")
    assert ("pad_token_id is 1, the id of <pad> in the vocabulary" in said) == (pad == 1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert isinstance(tokenizer, ErnieTokenizer)
    first, last = ("[CLS]", "[SEP]") if special is BRACKETS else ("<s>", "</s>")
    names = [first, "low", "##er", "the", last, "new", "##est", last]
    assert tokenizer.convert_ids_to_tokens(tokenizer("lower THE", "newest")["input_ids"]) == names
    assert tokenizer.pad_token_id == pad
    assert json.loads((tmp_path / "model" / "config.json").read_text())["pad_token_id"] == pad
    check_types_and_model(tmp_path / "model")
    assert convert(tmp_path / "model", tmp_path / "back", "--reverse") == 0
    assert (tmp_path / "back" / "vocab.txt").read_text().split() == lines
    assert convert(tmp_path / "back", tmp_path / "again") == 0
    check_types_and_model(tmp_path / "again")


def test_a_second_type_is_saved_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(BRACKETS + WORDS), encoding="utf-8")
    one, two = ErnieTokenizer(str(path), second_type=0), ErnieTokenizer(str(path))
    assert one("low", "new")["token_type_ids"] == [0] * 5
    assert two("low", "new")["token_type_ids"] == [0, 0, 0, 1, 1]
    one.save_pretrained(tmp_path / "saved")
    assert ErnieTokenizer.from_pretrained(tmp_path / "saved")("low", "new")["token_type_ids"] == [0] * 5
    with pytest.raises(ValueError, match="second_type is 2"):
        ErnieTokenizer(str(path), second_type=2)


@pytest.mark.parametrize("special", [BRACKETS, ANGLES], ids=["brackets", "angles"])
@pytest.mark.parametrize("has_merges", [False, True], ids=["in order", "merges.txt"])
def test_byte_pairs(has_merges: bool, special: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the order of the ids, or with `merges.txt` beside whatever order they are in."""
    pieces, merges = trained_merges()
    lines = special + (sorted(pieces, key=lambda piece: (-len(piece), piece)) if has_merges else pieces)
    source = english_checkpoint(tmp_path / "source", lines)
    if has_merges:
        (source / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
    assert convert(source, tmp_path / "model") == 0
    said = capsys.readouterr().out
    assert "has byte pairs (Ġ), which PaddleNLP would read as WordPiece" in said
    assert f"with {'the merges of merges.txt' if has_merges else 'merges in the order of its ids'}, lowercases" in said
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    first, last = (lines.index(token) for token in (("[CLS]", "[SEP]") if special is BRACKETS else ("<s>", "</s>")))
    for text in [*TEXTS, "é 河 \t  x", "NEWER Low"]:
        expected = [first, *original_ids(lines, merges, text.lower()), last]
        assert tokenizer(text)["input_ids"] == expected
        assert tokenizer.decode(expected, skip_special_tokens=True) == text.lower()
    pair = [first, *original_ids(lines, merges, "low"), last, *original_ids(lines, merges, "new"), last]
    assert tokenizer("low", "new")["input_ids"] == pair
    check_types_and_model(tmp_path / "model")
    assert convert(tmp_path / "model", tmp_path / "back", "--reverse") == 0
    assert (tmp_path / "back" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1] == lines
    assert convert(tmp_path / "back", tmp_path / "again") == 0
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert all(again(text)["input_ids"] == tokenizer(text)["input_ids"] for text in TEXTS)


def test_byte_pairs_with_capital_letters_keep_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces, merges = trained_merges(cased=True)
    assert any("Y" in piece and len(piece) > 1 for piece in pieces)
    source = english_checkpoint(tmp_path / "source", ANGLES + pieces)
    assert convert(source, tmp_path / "model") == 0
    assert "keeps capital letters" in capsys.readouterr().out
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")("New York")["input_ids"]
    assert ids == [0, *original_ids(ANGLES + pieces, merges, "New York"), 2]
    (source / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert convert(source, tmp_path / "lower") == 0  # what the settings say is taken
    ids = AutoTokenizer.from_pretrained(tmp_path / "lower")("New York")["input_ids"]
    assert ids == [0, *original_ids(ANGLES + pieces, merges, "new york"), 2]


def refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert convert(source, tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.incomplete").exists()
    return capsys.readouterr().err


def test_byte_pairs_whose_merges_cannot_be_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As RoBERTa's vocabulary is: by frequency."""
    pieces, _ = trained_merges()
    letters, made = [one for one in pieces if len(one) == 1], [one for one in pieces if len(one) > 1]
    source = english_checkpoint(tmp_path / "source", ANGLES + letters + made[::-1])
    message = refused(source, tmp_path, capsys)
    assert "its ids are not in the order of the merges" in message
    assert "Put the merges.txt of the training" in message
    (source / "vocab.txt").rename(source / "vocab.txt.away")
    assert convert(source, tmp_path / "model") == 0
    assert "no vocab.txt: the folder has no tokenizer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("a byte", "none for 1 of the 256 bytes (e.g. Q)"),
        ("special", "a byte-pair vocabulary without [CLS] or <s> and the others"),
        ("both", "pieces of byte pairs and 9 of WordPiece in one vocabulary"),
        ("merges", "line 2: 'lo xyz' is no merge of two pieces"),
        ("long", "pieces so long that their merges would take"),
        ("text", "merges.txt: not UTF-8 text (byte 0)"),
    ],
)
def test_byte_pairs_that_are_none(case: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces, _ = trained_merges()
    lines = ANGLES + pieces
    if case == "a byte":
        lines.remove("Q")
    elif case == "special":
        lines = ANGLES[:3] + pieces
    elif case == "long":
        lines += ["l" * 490 + chr(97 + number // 26) + chr(97 + number % 26) for number in range(220)]
    elif case == "both":
        lines += [f"##{number}" for number in range(9)]
    source = english_checkpoint(tmp_path / "source", lines)
    if case in ("merges", "text"):
        (source / "merges.txt").write_bytes(b"l o\nlo xyz\n" if case == "merges" else b"\xff\n")
    assert wanted in refused(source, tmp_path, capsys)


@pytest.mark.parametrize("has_model", [False, True])
def test_ernie_tiny_gets_no_tokenizer(has_model: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its words are cut by a pickle, which is not opened, and a sentencepiece model."""
    lines = BRACKETS + (WORDS if has_model else ["▁low", "▁the", "er", "▁new"])
    source = english_checkpoint(tmp_path / "source", lines)
    (source / "dict.wordseg.pickle").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    if has_model:
        (source / "spm_cased_simp_sampled.model").write_bytes(b"\x00")
    assert convert(source, tmp_path / "model") == 0
    assert "no tokenizer: the vocabulary is of sentencepiece" in capsys.readouterr().out
    assert not (tmp_path / "model" / "vocab.txt").exists()
    assert AutoModel.from_pretrained(tmp_path / "model").config.vocab_size == len(lines)
