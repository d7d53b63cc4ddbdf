"""What a file may say: layers, names, folders, vocabularies and what stands beside them, checked before it is used."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from conversion import tensor_names
from conversion.layer_numbers import without_gaps
from conversion.lazy_files import CheckpointError
from conversion.operations import SettingsError
from conversion.safetensors_files import open_safetensors_file
from conversion.tensor_names import check_names, entries
from conversion.tokenizer_files import check_tokenizer_files
from hf_glm_ernie.tokenization_ernie_vocabulary import read_vocabulary
from hf_glm_ernie.tokenization_icetext import parse_ice_text
from hf_glm_ernie.tokenization_icetext_checks import check_layout, check_normalization
from tests.support.tiny import write_ice_text_model


@pytest.mark.parametrize(
    ("layers", "start", "says"),
    [
        ({0, 1, 3}, 0, "found 0, 1, 3, missing 2"),
        ({999_999}, 0, "found 999999, missing 0, 1, 2, 3, 4, 5, 6, 7 and 999,991 more"),
        (set(), 2, "found none, missing 2"),
        ({1, 2}, 2, "found 1, 2, missing none"),
        (set(range(1001)), 0, "1,001 layers"),
    ],
)
def test_layers_are_as_many_as_there_are_names(layers: set[int], start: int, says: str) -> None:
    assert without_gaps({2, 3, 4}, "layers.*", "here", 2) == 3
    with pytest.raises(CheckpointError, match=says):
        without_gaps(layers, "layers.*", "here", start)


@pytest.mark.parametrize(("name", "says"), [("", "0 characters"), ("n" * 513, "513 characters"), ("a\0b", "printed")])
def test_names_of_tensors_are_short_and_can_be_printed(name: str, says: str) -> None:
    check_names(["ernie.词.weight"], Path("a"))
    with pytest.raises(CheckpointError, match=says):
        check_names([name], Path("a"))


def test_a_checkpoint_has_so_many_files_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "cab":
        (tmp_path / name).touch()
    assert entries(tmp_path) == ["a", "b", "c"]
    monkeypatch.setattr(tensor_names, "MAX_TENSORS", 2)
    with pytest.raises(CheckpointError, match="more than 2 files"):
        entries(tmp_path)
    with pytest.raises(CheckpointError, match="3 tensors"):
        check_names("abc", tmp_path)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"a": [0, 8], "b": [4, 12]}, "b at byte .* overlaps"),
        ({"a": [0, 8], "b": [12, 20]}, "leaves bytes before it"),
        ({"a": [0, 8]}, "12 bytes behind the last tensor"),
        ({"a": [0.0, 8.0]}, "no pair of whole numbers"),
        ({"a": [False, 8]}, "no pair of whole numbers"),
    ],
)
def test_safetensors_cover_their_file_once(header: dict[str, list[Any]], says: str, tmp_path: Path) -> None:
    written = {name: {"dtype": "F32", "shape": [2], "data_offsets": place} for name, place in header.items()}
    text = json.dumps(written).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(20))
    with pytest.raises(CheckpointError, match=says):
        open_safetensors_file(tmp_path / "a.safetensors")


def test_safetensors_without_tensors_or_with_empty_ones_are_read(tmp_path: Path) -> None:
    import torch

    for tensors in ({}, {"a": torch.zeros(0, 3), "b": torch.zeros(2), "c": torch.zeros(0)}):
        (tmp_path / "a.safetensors").write_bytes(save(tensors))
        assert open_safetensors_file(tmp_path / "a.safetensors").tensors.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\t0\nb\t1000000000000", "line 2: the id 1000000000000 is too high"),
        ("a\t0\nb\t" + "9" * 300, "line 2: the id 9{20} is too high"),
        ("a\n" + "b" * 513, "line 2 has 513 characters"),
        ("a\nb\0c", "line 2 holds a NUL"),
        ("\n" * 150_001, "150,001 lines"),
        ("a" * 10_000_001, "10,000,001 bytes"),
    ],
)
def test_a_vocabulary_has_limits(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_vocabulary(tmp_path / "vocab.txt")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("added_tokens.json", {"x": "5"}, "an object of tokens and ids"),
        ("added_tokens.json", {"x": True}, "an object of tokens and ids"),
        ("added_tokens.json", [], "expected an object of settings, found list"),
        ("tokenizer_config.json", {"unk_token": ["a"]}, r"unk_token is \['a'\]; it is a token"),
        ("tokenizer_config.json", {"do_lower_case": "no"}, "do_lower_case is 'no'; it is true or false"),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "vocab_file is '/etc/passwd'"),
        ("special_tokens_map.json", {"other": {"x": 1}}, "other is .* a token"),
        ("tokenizer.json", 5, "expected an object"),
    ],
)
def test_what_stands_beside_a_vocabulary_is_checked(file: str, content: Any, says: str, tmp_path: Path) -> None:
    check_tokenizer_files(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=says):
        check_tokenizer_files(tmp_path)


@pytest.mark.parametrize("numbers", [(-1, 80), (True, 80), ("0", 80), (10**7, 80), (0, 1), (0, 10**8), (0, None)])
def test_the_pieces_around_a_model_are_numbers_in_range(numbers: tuple[Any, Any]) -> None:
    check_layout(20000, 80)
    with pytest.raises(ValueError, match="must be a whole number"):
        check_layout(*numbers)


def test_a_sentencepiece_model_is_checked_before_compiled_code_sees_it(tmp_path: Path) -> None:
    proto = parse_ice_text(write_ice_text_model(tmp_path / "ice_text.model").read_bytes())

    def refused(says: str, edit: Callable[[Any], Any]) -> None:
        changed = type(proto)()
        changed.CopyFrom(proto)
        edit(changed)
        with pytest.raises(ValueError, match=says):
            parse_ice_text(changed.SerializeToString())

    refused("pieces of up to 1,000,000 bytes", lambda m: m.pieces.add(piece="m" * 10**6, score=-1, type=1))
    refused("score is not finite", lambda m: m.pieces.add(piece="x", score=float("nan"), type=1))
    refused("an empty piece", lambda m: m.pieces.add(piece="", score=-1, type=1))
    refused("has the piece 'z' twice", lambda m: [m.pieces.add(piece="z", score=-1, type=1) for _ in "12"])
    refused("2 pieces of type UNKNOWN", lambda m: m.pieces.add(piece="<u>", score=-1, type=2))
    refused("at most 8,000,000", lambda m: setattr(m.trainer_spec, "unk_surface", "m" * 8_000_000))
    for edit in (
        lambda m: m.pieces.add(piece="qqqq", score=-1, type=1),
        lambda m: setattr(m.trainer_spec, "unk_surface", "qqqq"),
    ):
        changed = type(proto)()
        changed.CopyFrom(proto)
        edit(changed)
        with pytest.raises(ValueError, match="not UTF-8 text"):
            parse_ice_text(changed.SerializeToString().replace(b"qqqq", b"\xe5qqq"))
    table = proto.normalizer_spec.precompiled_charsmap
    assert len(table) > 10**5
    length = int.from_bytes(table[:4], "little")
    units, texts = struct.unpack(f"<{length // 4}I", table[4 : 4 + length]), table[4 + length :]

    def made(new: Any, behind: bytes = texts) -> bytes:
        return struct.pack("<I", 4 * len(new)) + struct.pack(f"<{len(new)}I", *new) + behind

    check_normalization(made(units), "it")
    for damaged, says in (
        (table[:3], "a trie of"),
        (made(units[:300]), "a trie of"),
        (made(units[:256]), "leads outside"),
        (made([0x7FFFFFFF, *units[1:]]), "unit 0 leads outside"),
        (made([u | 0x7FFFFFFF if u >> 31 else u for u in units]), "points outside of the texts"),
        (made(units, b"\xff" + texts[1:]), "not UTF-8"),
        (made(units, texts + b"x"), "do not end"),
    ):
        with pytest.raises(ValueError, match=says):
            check_normalization(damaged, "it")
