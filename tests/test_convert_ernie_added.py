"""Checkpoints whose tokenizers have added tokens: ids and rows move together, there and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, TokenizersBackend

from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from tests.support.converting_ernie import arrays_of, convert, weights, write_checkpoint
from tests.support.ernie_vocabulary import SMALL, write_vocabulary

from .conftest import GOLDEN

SOURCES = GOLDEN / "ernie_added_tokens"  # as PaddleNLP saved them
SIZE = len(SMALL["vocabulary"])  # ids; [UNK] has the last one, and PaddleNLP gives it to [E1], too
TOLERANCE = 2e-5
WORDS = "embeddings.word_embeddings.weight"


def copy_of(name: str, folder: Path) -> Path:
    """A source to change."""
    shutil.copytree(SOURCES / name, folder)
    return folder


def arrays(name: str) -> dict[str, Any]:
    return arrays_of(SOURCES / name / "model_state.pdparams")


def settings(name: str) -> dict[str, Any]:
    return json.loads((SOURCES / name / "config.json").read_text())


@pytest.mark.parametrize(
    ("name", "auto", "rows"),
    [("features_resized", AutoModel, SIZE + 3), ("masked_lm_spare", AutoModelForMaskedLM, SIZE + 12)],
)
def test_outputs_are_paddlenlps(
    name: str, auto: Any, rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """[E1], whose row is [UNK]'s there, [UNK] itself, and the tokens behind: hidden states and logits."""
    assert settings(name)["vocab_size"] == rows
    assert convert(SOURCES / name, tmp_path / "model") == 0
    assert "PaddleNLP gives one id to '[UNK]' and '[E1]': each got its own" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = auto.from_pretrained(tmp_path / "model").eval()
    assert model.config.vocab_size == rows + 1
    seen = set()
    for case in json.loads((SOURCES / name / "outputs.json").read_text(encoding="utf-8")):
        encoded = tokenizer(case["text"], return_tensors="pt")
        ids = encoded["input_ids"][0].tolist()
        seen.update(ids)
        assert [index - (index >= SIZE) for index in ids] == case["input_ids"]
        with torch.no_grad():
            output = model(**encoded)[0][0]
        expected = torch.tensor(case["output"])
        if auto is AutoModelForMaskedLM:
            assert torch.equal(output[:, SIZE - 1], output[:, SIZE])  # the row is there twice
            output = torch.cat((output[:, :SIZE], output[:, SIZE + 1 :]), 1)
        assert (output - expected).abs().max() < TOLERANCE
    assert {SIZE - 1, SIZE, SIZE + 1, SIZE + 2, SIZE + 3} <= seen  # [UNK] [E1] [/E1] [e2] café


@pytest.mark.parametrize("name", ["features_resized", "masked_lm_spare"])
def test_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every bit, and the tokenizer's files, which PaddleNLP reads."""
    assert convert(SOURCES / name, tmp_path / "there") == 0
    assert convert(tmp_path / "there", tmp_path / "back", "--reverse") == 0
    assert "'[UNK]' and '[E1]': of the two rows that of the second is kept" in capsys.readouterr().out
    found, expected = arrays_of(tmp_path / "back" / "model_state.pdparams"), arrays(name)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].shape == array.shape
        assert found[key].tobytes() == array.tobytes(), key
    back, source = tmp_path / "back", SOURCES / name
    assert json.loads((back / "config.json").read_text())["vocab_size"] == settings(name)["vocab_size"]
    for file in ("added_tokens.json", "special_tokens_map.json"):
        assert json.loads((back / file).read_text()) == json.loads((source / file).read_text())
    assert (back / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    texts = [case["text"] for case in json.loads((source / "outputs.json").read_text(encoding="utf-8"))]
    there, again = (ErnieTokenizer.from_pretrained(folder) for folder in (tmp_path / "there", back))
    assert there(texts)["input_ids"] == again(texts)["input_ids"]


def test_tokens_added_in_transformers_go_back_with_their_rows(tmp_path: Path) -> None:
    """Of [UNK]'s row and [E1]'s the latter is the one that PaddleNLP looks up; a folder without `vocab.txt`, too."""
    source = copy_of("features_resized", tmp_path / "source")
    for file in ("added_tokens.json", "special_tokens_map.json"):
        (source / file).unlink()
    assert convert(source, tmp_path / "there") == 0
    tokenizer = TokenizersBackend.from_pretrained(tmp_path / "there")
    model = AutoModel.from_pretrained(tmp_path / "there")
    tokenizer.add_special_tokens({"extra_special_tokens": ["[E1]"]})
    assert tokenizer.convert_tokens_to_ids("[E1]") == SIZE
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[SIZE] = 7.0
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    assert convert(tmp_path / "tuned", tmp_path / "back", "--reverse") == 0
    assert json.loads((tmp_path / "back" / "added_tokens.json").read_text()) == {"[E1]": SIZE - 1}
    special = json.loads((tmp_path / "back" / "special_tokens_map.json").read_text())
    assert special["additional_special_tokens"] == ["[E1]"]
    found = arrays_of(tmp_path / "back" / "model_state.pdparams")[WORDS]
    expected = arrays("features_resized")[WORDS]
    assert (found[SIZE - 1] == 7.0).all()
    assert found[: SIZE - 1].tobytes() == expected[: SIZE - 1].tobytes()
    assert found[SIZE:].tobytes() == expected[SIZE + 1 :].tobytes()
    assert (tmp_path / "back" / "vocab.txt").is_file()


def test_ids_of_their_own_stay(tmp_path: Path) -> None:
    """What the vocabulary holds, or a file gives ids behind it, has rows of its own already."""
    source = copy_of("features_resized", tmp_path / "source")
    (source / "added_tokens.json").write_text(json.dumps({"[E1]": SIZE, "[/E1]": SIZE + 1, "[e2]": SIZE + 2}))
    assert convert(source, tmp_path / "own") == 0
    expected = arrays("features_resized")[WORDS]
    assert weights(tmp_path / "own")[WORDS].numpy().tobytes() == expected.tobytes()
    (source / "added_tokens.json").unlink()
    write_vocabulary(source, [*SMALL["vocabulary"], "[E1]", "[/E1]", "[e2]"])
    assert convert(source, tmp_path / "lines") == 0
    assert weights(tmp_path / "lines")[WORDS].numpy().tobytes() == expected.tobytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "lines").convert_tokens_to_ids("[E1]") == SIZE


def test_special_tokens_without_ids_get_paddlenlps(tmp_path: Path) -> None:
    """It adds them when it opens the folder: `additional_special_tokens` with no `added_tokens.json`."""
    source = copy_of("features_resized", tmp_path / "source")
    (source / "added_tokens.json").unlink()
    assert convert(source, tmp_path / "model") == 0
    table, expected = weights(tmp_path / "model")[WORDS].numpy(), arrays("features_resized")[WORDS]
    for token, index in (("[E1]", SIZE - 1), ("[/E1]", SIZE)):
        row = table[AutoTokenizer.from_pretrained(tmp_path / "model").convert_tokens_to_ids(token)]
        assert row.tobytes() == expected[index].tobytes()


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(source: Path, *arguments: str) -> str:
        assert convert(source, tmp_path / "model", *arguments) != 0
        assert not (tmp_path / "model").exists()
        output = capsys.readouterr()
        return output.out + output.err

    mixed = copy_of("features_resized", tmp_path / "mixed")
    (mixed / "added_tokens.json").write_text(json.dumps({"[E1]": SIZE, "[/E1]": SIZE + 1}))
    special = json.loads((mixed / "special_tokens_map.json").read_text())
    special["additional_special_tokens"].append("[E3]")
    (mixed / "special_tokens_map.json").write_text(json.dumps(special))
    assert f"'[E1]' {SIZE}, '[/E1]' {SIZE + 1}, '[E3]' {SIZE + 1}" in refused(mixed)
    damaged = copy_of("features_resized", tmp_path / "damaged")
    (damaged / "added_tokens.json").write_text(json.dumps({"[E1]": SIZE + 5}))
    assert "ids to added tokens that cannot be kept" in refused(damaged)
    bare = copy_of("features_resized", tmp_path / "bare")
    (bare / "vocab.txt").unlink()
    message = refused(bare, f"--vocab={SOURCES / 'masked_lm_spare' / 'vocab.txt'}")
    assert "adds tokens to a vocabulary that is not beside it" in message
    short = {name: array[: SIZE + 2] if name == WORDS else array for name, array in arrays("features_resized").items()}
    folder = copy_of("features_resized", tmp_path / "short")
    write_checkpoint(folder, short, settings("features_resized") | {"vocab_size": SIZE + 2})
    assert f"the vocabulary has ids up to {SIZE + 3}, the model's embeddings end at {SIZE + 2}" in refused(folder)
    own = copy_of("features_resized", tmp_path / "own")
    assert convert(own, tmp_path / "there", f"--vocab={own / 'vocab.txt'}") == 0  # the folder's own: as without it
    assert AutoTokenizer.from_pretrained(tmp_path / "there").convert_tokens_to_ids("[E1]") == SIZE
