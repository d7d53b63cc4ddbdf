"""What the converter refuses, each with a message that names it and the way out, and nothing left behind."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion import writer
from conversion.command_values import parse_size
from tests.support.converting import SIZES, convert, listing, write_settings
from tests.support.tiny import (
    Hostile,
    Sizes,
    change_rank,
    load_rank,
    rank_path,
    rank_state,
    whole_state,
    write_ice_text_model,
    write_released,
)


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_settings(tmp_path_factory.mktemp("settings") / "config.json")


# Settings and tokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": None}, r"num_attention_heads is None; it is a whole number above 0"),
        ({"num_attention_heads": 5}, r"num_attention_heads 5 must divide the hidden size 32"),
        ({"num_attention_heads": 32}, r"into heads of even size"),
        ({"num_attention_heads": 2}, r"num_attention_heads 2 must be a multiple of the 4 tensor-parallel ranks"),
        ({"num_attention_heads": "8"}, r"num_attention_heads is '8'; it is a whole number above 0"),
        ({"max_sequence_length": 0}, r"max_position_embeddings is 0; it is a whole number above 0"),
        ({"max_position_embeddings": 65}, r"max_position_embeddings is given twice, as 64 and as 65"),
        ({"hidden_size": 64}, r"--config says hidden_size is 64, the tensors say 32"),
        ({"num_layers": 3}, r"--config says num_hidden_layers is 3, the tensors say 2"),
        ({"inner_hidden_size": 41}, r"--config says intermediate_size is 41, the tensors say 40"),
        ({"vocab_size": 71}, r"--config says vocab_size is 71, the tensors say 72"),
        ({"rotary_dtype": "int8"}, r"rotary_dtype='int8' is not one of"),
        ({"hidden_dropout": "much"}, r"hidden_dropout"),
        ({"mask_token_id": 72}, r"mask_token_id 72 is outside the vocabulary of 72 ids \(0 \.\. 71\)"),
        ({"eos_token_id": [3, -1]}, r"eos_token_id -1 is outside the vocabulary"),
        ({"sop_token_id": "<sop>"}, r"a token id must be a whole number, found '<sop>'"),
        ({"num_image_tokens": -1}, r"num_image_tokens is -1; it is a whole number, 0 or more"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, capsys: Any, change: dict[str, Any], message: str
) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 4)
    refused(capsys, tmp_path, message, source, write_settings(tmp_path / "config.json", **change))


def refused(capsys: Any, tmp_path: Path, message: str, source: Path, *arguments: str) -> str:
    """Runs the command; it must fail with that message and leave the folder as it was."""
    before = listing(tmp_path)
    capsys.readouterr()
    assert convert(source, tmp_path / "parent" / "out", *arguments) == 1
    error = capsys.readouterr().err.rpartition("error: ")[2]  # behind a progress bar, if it came to that
    assert re.search(message, error), error
    assert listing(tmp_path) == before
    return error


def test_settings_that_are_missing_are_asked_for(tmp_path: Path, capsys: Any) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 2)
    message = r"num_attention_heads cannot be read from the tensors, and this is not the released size \(vocab_size 72"
    error = refused(capsys, tmp_path, message, source)
    assert '--config FILE.json with {"num_attention_heads": ..., "max_sequence_length": ...}' in error
    path = tmp_path / "config.json"
    path.write_text('{"num_attention_heads": 8}')
    refused(capsys, tmp_path, '"max_sequence_length" is missing', source, f"--config={path}")
    refused(capsys, tmp_path, "nowhere.json: cannot be read as JSON", source, "--config=nowhere.json")
    path.write_text("[1]")
    refused(capsys, tmp_path, "expected an object of settings, found list", source, f"--config={path}")
    path.write_text('{"num_attention_heads": 8,')
    refused(capsys, tmp_path, "cannot be read as JSON", source, f"--config={path}")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, capsys: Any) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 2)
    settings = write_settings(tmp_path / "config.json", num_image_tokens=0)
    pieces = write_ice_text_model(tmp_path / "ice_text.model")
    message = r"the tokenizer has ids up to \d+, the model's vocabulary ends at 71"
    refused(capsys, tmp_path, message, source, settings, f"--tokenizer={pieces}")
    refused(capsys, tmp_path, r"--tokenizer nowhere: no such file", source, settings, "--tokenizer=nowhere")
    pieces.write_bytes(b"nonsense")
    refused(capsys, tmp_path, r"--tokenizer .*ice_text.model: ", source, settings, f"--tokenizer={pieces}")
    source = write_released(tmp_path / "wide", whole_state(Sizes(vocabulary=512)), 2)
    write_ice_text_model(pieces)
    settings = write_settings(tmp_path / "config.json", num_image_tokens=0, mask_token_id=3)
    message = r"--config says mask_token_id is 3, the tokenizer says \d+"
    refused(capsys, tmp_path, message, source, settings, f"--tokenizer={pieces}")


# Wrong input


def missing_rank(folder: Path) -> None:
    rank_path(folder, 1).unlink()


def last_rank_missing(folder: Path) -> None:
    rank_path(folder, 3).unlink()


def last_ranks_missing(folder: Path) -> None:
    for rank in (2, 3):
        rank_path(folder, rank).unlink()


def extra_rank(folder: Path) -> None:
    shutil.copy(rank_path(folder, 3), rank_path(folder, 4))


def truncated_rank(folder: Path) -> None:
    path = rank_path(folder, 2)
    os.truncate(path, path.stat().st_size * 2 // 3)


def rank_of_another_iteration(folder: Path) -> None:
    torch.save({"module": rank_state(whole_state(SIZES, seed=1), 2, 4)}, rank_path(folder, 2))


def rank_of_another_shape(folder: Path) -> None:
    torch.save({"module": rank_state(whole_state(Sizes(inner=48)), 2, 4)}, rank_path(folder, 2))


def hostile_rank(folder: Path) -> None:
    torch.save({"module": Hostile(folder / "executed")}, rank_path(folder, 2))


def on_all_ranks(changes: dict[str, torch.Tensor | None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for rank in range(4):
            change_rank(folder, rank, changes)

    return spoil


QKV = "transformer.layers.1.attention.query_key_value"
BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing rank": (missing_rank, r"missing mp_rank_01_model_states.pt; found mp_rank_00.*Copy the missing ranks"),
    "last rank missing": (
        last_rank_missing,
        r"holds 1/4 of the model .query_key_value 24 of 96 rows.*3 rank files are there.*Missing: mp_rank_03_model",
    ),
    "half of the ranks": (last_ranks_missing, r"Missing: mp_rank_02_model_states.pt, mp_rank_03_model_states.pt"),
    "extra rank": (extra_rank, r"5 rank files are there.*Too many: mp_rank_04_model_states.pt; move"),
    "truncated rank": (truncated_rank, r"mp_rank_02_model_states.pt: cut short.*Copy the file again"),
    "rank of another iteration": (
        rank_of_another_iteration,
        r"differ from rank 00 on rank 02, e.g. .*different iterations.*--replicated-from-rank-0",
    ),
    "rank of another shape": (rank_of_another_shape, r"mp_rank_02.*\[32, 12\] float16, in mp_rank_00.*\[32, 10\]"),
    "hostile pickle": (hostile_rank, r"mp_rank_02.*the pickle holds .*Nothing in it was executed"),
    "unknown name": (
        on_all_ranks({"transformer.position_embeddings.weight": torch.zeros(3)}),
        r"source names the table does not know \(1\):\s+transformer.position_embeddings.weight\s+Nothing was written",
    ),
    "name twice": (
        on_all_ranks({"transformer.layers.00.input_layernorm.bias": torch.zeros(32)}),
        r"does not know \(1\):\s+transformer.layers.00.input_layernorm.bias",
    ),
    "missing name": (
        on_all_ranks({f"{QKV}.bias": None}),
        r"nothing is made for \(3\):\s+model.layers.1.self_attn.k_proj.bias \(from transformer.layers.1.attention",
    ),
    "missing layer": (
        lambda folder: [
            on_all_ranks(dict.fromkeys((n for n in load_rank(folder, 0) if ".layers.0." in n), None))(folder)
        ],
        r"the layers transformer.layers.\* should be 0, 1 ... without gaps; found 1, missing 0",
    ),
    "missing embedding": (
        on_all_ranks({"transformer.word_embeddings.weight": None}),
        r"no tensor transformer.word_embeddings.weight, so this is not a complete GLM-130B checkpoint",
    ),
    "wrong shape on all ranks": (
        on_all_ranks({f"{QKV}.bias": torch.zeros(36).half()}),
        r"model.layers.1.self_attn.q_proj.bias from .*: \[48\], the model has \[32\]",
    ),
    "wrong number of dimensions": (
        on_all_ranks({"transformer.word_embeddings.weight": torch.zeros(18).half()}),
        r"word_embeddings.weight should be a matrix, its shape is \[18\]",
    ),
    "uneven rows": (
        on_all_ranks(
            {f"transformer.layers.{i}.attention.query_key_value.weight": torch.zeros(25, 32) for i in (0, 1)}
        ),
        r"query_key_value has 25 rows on a rank, which is no equal part of 3 x 32",
    ),
    "quantized in part": (
        on_all_ranks({f"{QKV}.weight": torch.zeros(24, 32, dtype=torch.int8), f"{QKV}.weight_scale": torch.ones(24)}),
        r"the quantized weights do not fit together:\s+weights that are not quantized, while others are \(7\)",
    ),
    "other model": (
        lambda folder: [torch.save({"module": {"bert.x": torch.zeros(2)}}, rank_path(folder, r)) for r in range(4)],
        r"no tensor transformer.word_embeddings.weight.*Names found: bert.x",
    ),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_refused_and_nothing_is_written(
    tmp_path: Path, capsys: Any, settings: str, kind: str
) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 4)
    spoil, message = BAD_CHECKPOINTS[kind]
    spoil(source)
    refused(capsys, tmp_path, message, source, settings)
    assert not (source / "executed").exists()


def test_an_existing_output_is_refused_before_anything_is_read(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    assert convert(tmp_path / "nowhere", tmp_path / "out") == 1
    assert "out: already exists" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, settings: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 2)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "pwrite_all", full)
    message = "the disk is full .*nothing was left behind. Free some space and run the same command again"
    refused(capsys, tmp_path, message, source, settings)


BAD_MERGED: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        ["--tensor-parallel=2"],
        "config.json: not the conf",
    ),
    "config of another model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
        ["--tensor-parallel=2"],
        "model_type is 'llama', expected 'glm130b'",
    ),
    "quantized": (
        lambda folder: edit_config(folder, quantization_config={"quant_method": "x"}),
        ["--tensor-parallel=2"],
        "the weights are quantized",
    ),
    "untied": (
        lambda folder: edit_config(folder, tie_word_embeddings=False),
        ["--tensor-parallel=2"],
        "no place for a",
    ),
    "wrong heads": (
        lambda folder: edit_config(folder, num_attention_heads=5),
        ["--tensor-parallel=1"],
        "must divide hidden_size",
    ),
    "wrong sizes": (
        lambda folder: edit_config(folder, hidden_size=64),
        ["--tensor-parallel=2"],
        r"cannot be written as a GLM-130B checkpoint of 2 ranks.*\s.*shapes that do not fit",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ["--tensor-parallel=2"],
        "neither model.safetensors nor",
    ),
    "heads do not divide": (lambda folder: None, ["--tensor-parallel=3"], "3 does not divide the 8 attention heads"),
    "sixteen ranks": (lambda folder: None, ["--tensor-parallel=16"], "16 does not divide the 8 attention heads"),
    "no ranks": (lambda folder: None, ["--tensor-parallel=0"], "0 does not divide"),
    "iteration is no name": (
        lambda folder: (folder / "conversion.json").write_text('{"iteration": "../x", "tensor_parallel": 1}'),
        ["--tensor-parallel=2"],
        "names the iteration '../x', which is not a folder name",
    ),
}


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", BAD_MERGED)
def test_bad_folders_are_not_converted_back(tmp_path: Path, settings: str, capsys: Any, kind: str) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 2)
    assert convert(source, tmp_path / "converted", settings) == 0
    spoil, arguments, message = BAD_MERGED[kind]
    spoil(tmp_path / "converted")
    refused(capsys, tmp_path, message, tmp_path / "converted", "--reverse", *arguments)


def test_vocabulary_or_inner_size_that_do_not_divide(tmp_path: Path, capsys: Any) -> None:
    for sizes, message in ((Sizes(vocabulary=73), "73 rows of the"), (Sizes(inner=41), "41 inner size")):
        source = write_released(tmp_path / message[:2] / "source", whole_state(sizes), 1)
        settings = write_settings(tmp_path / "config.json")
        assert convert(source, source.with_name("converted"), settings) == 0
        arguments = ["--reverse", "--tensor-parallel=2"]
        refused(capsys, tmp_path, f"2 does not divide the {message}", source.with_name("converted"), *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--reverse"],
        ["--tensor-parallel=2"],
        ["--reverse", "--tensor-parallel=2", "--config=x"],
        ["--max-shard-size=big"],
        ["--max-shard-size=0"],
        ["--dtype=int8"],
    ],
)
def test_arguments_that_do_not_go_together(tmp_path: Path, capsys: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        convert(tmp_path, tmp_path / "out", *arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_sizes() -> None:
    assert [parse_size(text) for text in ("5GB", "500MiB", "1.5 kB", "7")] == [5 * 10**9, 500 * 2**20, 1500, 7]
