"""The converter's command on tiny checkpoints in the released layout: forward, back, and all that can be wrong."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks.make_checkpoint_glm130b import RELEASED, rank_shapes, write_checkpoint
from conversion import writer
from conversion.__main__ import main, parse_size
from conversion.glm130b import TABLE
from conversion.state_map import Split, TensorSpec
from conversion.verify import expected_shapes
from conversion.writer import copy_peak_bytes
from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM

from .tiny import (
    Hostile,
    Sizes,
    State,
    change_rank,
    equal_bits,
    expected_state,
    load_rank,
    rank_path,
    rank_state,
    whole_state,
    write_ice_text_model,
    write_released,
)

DEGREES = [1, 2, 4, 8]
SIZES = Sizes()


def convert(source: Path, output: Path, *arguments: str) -> int:
    return main(["glm130b", f"--source={source}", f"--output={output}", *arguments])


def write_settings(path: Path, **settings: Any) -> str:
    path.write_text(json.dumps(SIZES.settings | settings))
    return f"--config={path}"


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_settings(tmp_path_factory.mktemp("settings") / "config.json")


def weights(folder: Path) -> State:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Forward and back


@pytest.mark.parametrize("ranks", DEGREES)
def test_every_degree_converts_to_the_same_model_and_back(tmp_path: Path, settings: str, ranks: int) -> None:
    whole = whole_state(SIZES)
    source = write_released(tmp_path / "source", whole, ranks, "1234")
    assert convert(source, tmp_path / "out", settings) == 0
    assert equal_bits(weights(tmp_path / "out"), expected_state(whole, SIZES))
    for back in DEGREES:
        output = tmp_path / f"back-{back}"
        assert convert(tmp_path / "out", output, "--reverse", f"--tensor-parallel={back}") == 0
        assert (output / "latest").read_text() == "1234"
        assert listing(output) == sorted(
            ["1234", "latest", *(f"1234/mp_rank_{rank:02d}_model_states.pt" for rank in range(back))]
        )
        for rank in range(back):
            for mmap in (True, False):
                assert equal_bits(load_rank(output, rank, "1234", mmap), rank_state(whole, rank, back))


def test_the_folder_loads_and_knows_itself(tmp_path: Path, settings: str) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 2)
    assert convert(source, tmp_path / "out", settings, "--max-shard-size=10KB") == 0
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model) is Glm130bForCausalLM
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert model.dtype == torch.float16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    config = model.config
    assert config.architectures == ["Glm130bForCausalLM"]
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, 32, 40)
    assert (config.vocab_size, config.num_attention_heads, config.max_position_embeddings) == (72, 8, 64)
    expected = expected_state(whole_state(SIZES), SIZES)
    assert equal_bits({name: model.state_dict()[name] for name in expected}, expected)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in expected.values())
    assert index["weight_map"].keys() == expected.keys()
    assert max(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")) < 12_000
    defaults = GenerationConfig.from_pretrained(tmp_path / "out")
    assert defaults.do_sample is False
    assert defaults.max_new_tokens == 32  # half of the context of 64; the original's 256 from 512 on


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype_is_converted_as_torch_does(tmp_path: Path, settings: str, dtype: str, capsys: Any) -> None:
    whole = whole_state(SIZES)
    source = write_released(tmp_path / "source", whole, 2)
    assert convert(source, tmp_path / "out", settings, f"--dtype={dtype}") == 0
    expected = {name: tensor.to(getattr(torch, dtype)) for name, tensor in expected_state(whole, SIZES).items()}
    assert equal_bits(weights(tmp_path / "out"), expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    assert ("rounded from float16 to bfloat16" in capsys.readouterr().out) == (dtype == "bfloat16")
    if dtype == "float32":  # exact, so the way back is too
        arguments = ["--reverse", "--tensor-parallel=2", "--dtype=float16"]
        assert convert(tmp_path / "out", tmp_path / "back", *arguments) == 0
        assert equal_bits(load_rank(tmp_path / "back", 1), rank_state(whole, 1, 2))


def test_mixed_dtypes_are_kept(tmp_path: Path, settings: str, capsys: Any) -> None:
    whole = {n: t.float() if "layernorm" in n else t for n, t in whole_state(SIZES).items()}
    source = write_released(tmp_path / "source", whole, 4)
    assert convert(source, tmp_path / "out", settings) == 0
    assert equal_bits(weights(tmp_path / "out"), expected_state(whole, SIZES))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert "some tensors are float32" in capsys.readouterr().out
    assert convert(tmp_path / "out", tmp_path / "back", "--reverse", "--tensor-parallel=4") == 0
    assert equal_bits(load_rank(tmp_path / "back", 3), rank_state(whole, 3, 4))


def test_leftover_rotary_tables_are_dropped_with_a_notice(tmp_path: Path, settings: str, capsys: Any) -> None:
    whole = whole_state(SIZES)
    leftovers: State = {
        "mixins.rotary-embedding.rotary_emb.inv_freq": torch.ones(2).half(),
        "transformer.layers.0.attention.rotary_emb.inv_freq": torch.ones(2).half(),
    }
    source = write_released(tmp_path / "source", whole | leftovers, 2)
    assert convert(source, tmp_path / "out", settings) == 0
    assert "left out: 2 tensors, e.g. " in capsys.readouterr().out
    assert equal_bits(weights(tmp_path / "out"), expected_state(whole, SIZES))
    assert convert(tmp_path / "out", tmp_path / "back", "--reverse", "--tensor-parallel=2") == 0
    assert "2 leftover rotary tables of the original are not written back" in capsys.readouterr().out
    assert equal_bits(load_rank(tmp_path / "back", 0), rank_state(whole, 0, 2))


@pytest.mark.parametrize("name", ["small", "deep"])
def test_the_original_s_own_splits_convert_alike(tmp_path: Path, shared_goldens: Path, name: str) -> None:
    folder = shared_goldens / "model" / name
    states = {}
    for source in sorted(path for path in folder.glob("tp?") if (path / "latest").exists()):
        assert convert(source, tmp_path / source.name, f"--config={folder / 'config.json'}") == 0
        states[source.name] = weights(tmp_path / source.name)
        ranks = int(source.name.removeprefix("tp"))
        back = tmp_path / f"back-{source.name}"
        assert convert(tmp_path / "tp1", back, "--reverse", f"--tensor-parallel={ranks}") == 0
        for rank in range(ranks):
            assert equal_bits(load_rank(back, rank), load_rank(source, rank))
    assert states.keys() >= {"tp1", "tp2"}
    assert all(equal_bits(state, states["tp1"]) for state in states.values())


def test_a_folder_saved_by_the_host_converts_back(tmp_path: Path) -> None:
    """After fine-tuning: one file, no record of a conversion."""
    config = Glm130bConfig(
        **dict.fromkeys(("mask_token_id", "gmask_token_id", "smask_token_id", "sop_token_id", "eop_token_id")),
        vocab_size=72,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=8,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = Glm130bForCausalLM(config)
    model.save_pretrained(tmp_path / "tuned")
    assert convert(tmp_path / "tuned", tmp_path / "back", "--reverse", "--tensor-parallel=2") == 0
    assert (tmp_path / "back" / "latest").read_text() == "49300"  # the released iteration
    settings = write_settings(tmp_path / "config.json")
    assert convert(tmp_path / "back", tmp_path / "again", settings) == 0
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert equal_bits(weights(tmp_path / "again"), state)


# Settings and tokenizer


def test_the_tokenizer_decides_the_special_ids(tmp_path: Path) -> None:
    sizes = Sizes(vocabulary=512)
    source = write_released(tmp_path / "source", whole_state(sizes), 2)
    pieces = write_ice_text_model(source / "ice_text.model")  # found beside `latest`
    settings = write_settings(tmp_path / "config.json", num_image_tokens=10)
    assert convert(source, tmp_path / "out", settings) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for field, token in (
        ("mask", "[MASK]"),
        ("gmask", "[gMASK]"),
        ("smask", "[sMASK]"),
        ("sop", "<sop>"),
        ("eop", "<eop>"),
    ):
        assert config[f"{field}_token_id"] == tokenizer.convert_tokens_to_ids(token)
    assert config["eos_token_id"] == [config["eop_token_id"], 12]  # </s> is piece 2, behind 10 image tokens
    assert config["pad_token_id"] == 13
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == config["eos_token_id"]
    assert (tmp_path / "out" / "ice_text.model").read_bytes() == pieces.read_bytes()
    ids = tokenizer("the lazy [MASK]")["input_ids"]
    assert ids[-1] == config["sop_token_id"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.generate(torch.tensor([ids]), max_new_tokens=3).shape[1] <= len(ids) + 3


def test_released_ids_are_taken_where_they_fit_and_left_empty_where_not(
    tmp_path: Path, settings: str, capsys: Any
) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 1)
    assert convert(source, tmp_path / "out", settings) == 0
    assert "the released special ids do not fit a vocabulary of 72: mask_token_id," in capsys.readouterr().out
    config = Glm130bConfig.from_pretrained(tmp_path / "out")
    assert config.mask_token_id is config.sop_token_id is config.eos_token_id is config.pad_token_id is None
    sizes = Sizes(layers=1, hidden=16, heads=2, inner=8, vocabulary=150528)
    source = write_released(tmp_path / "large", whole_state(sizes), 1)
    assert convert(source, tmp_path / "large-out", write_settings(tmp_path / "c.json", num_attention_heads=2)) == 0
    config = Glm130bConfig.from_pretrained(tmp_path / "large-out")
    assert (config.mask_token_id, config.sop_token_id, config.eos_token_id) == (150000, 150004, [150005, 20002])


def test_settings_in_the_original_s_words_or_the_host_s(tmp_path: Path, capsys: Any) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 1)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "num_layers": 2,
                "num_hidden_layers": 2,
                "inner_hidden_size": 40,
                "num_attention_heads": 4,
                "max_position_embeddings": 99,
                "rotary_dtype": "float32",
                "mask_token_id": 7,
                "eos_token_id": [5, 6],
                "seed": 3,
                "hiden_dropout": 0.3,
            }
        )
    )
    assert convert(source, tmp_path / "out", f"--config={path}") == 0
    assert "that are not used: hiden_dropout (did you mean hidden_dropout?), seed" in capsys.readouterr().out
    config = Glm130bConfig.from_pretrained(tmp_path / "out")
    assert (config.num_attention_heads, config.max_position_embeddings, config.rotary_dtype) == (4, 99, "float32")
    assert (config.mask_token_id, config.eos_token_id, config.hidden_dropout) == (7, [5, 6], 0.1)
    assert not equal_bits(weights(tmp_path / "out"), expected_state(whole_state(SIZES), SIZES))  # 4 heads, not 8


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
        r"nothing is made for \(18\)",
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
    "quantized": (
        on_all_ranks({f"{QKV}.weight": torch.zeros(24, 32, dtype=torch.int8), f"{QKV}.weight_scale": torch.ones(24)}),
        r"a quantized checkpoint \(transformer.layers.1.attention.query_key_value.weight and 1 more",
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


def test_ranks_known_to_belong_together_convert_on_request(tmp_path: Path, settings: str, capsys: Any) -> None:
    whole = whole_state(SIZES)
    source = write_released(tmp_path / "source", whole, 4)
    change_rank(source, 3, {"transformer.final_layernorm.bias": torch.zeros(32).half()})
    assert convert(source, tmp_path / "out", settings, "--replicated-from-rank-0") == 0
    assert "1 tensor that every rank should hold alike differ from rank 00 on rank 03" in capsys.readouterr().out
    assert equal_bits(weights(tmp_path / "out"), expected_state(whole, SIZES))


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
        "model_type is 'llama', not 'glm130b'",
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


# The run


def test_a_killed_conversion_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 in the middle of the real command, once per direction."""
    sizes = Sizes(vocabulary=4096, hidden=512, heads=8, inner=1024)
    source = write_released(tmp_path / "source", whole_state(sizes), 2)
    settings = write_settings(tmp_path / "config.json")
    assert convert(source, tmp_path / "whole", settings, "--max-shard-size=1MB") == 0
    forward = [f"--source={source}", f"--output={tmp_path / 'out'}", settings, "--max-shard-size=1MB"]
    kill_then_run(forward, tmp_path / "out", "model-00001*")
    assert listing(tmp_path / "out") == listing(tmp_path / "whole")
    assert all(
        (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        for name in listing(tmp_path / "out")
    )
    back = [f"--source={tmp_path / 'out'}", f"--output={tmp_path / 'back'}", "--reverse", "--tensor-parallel=4"]
    kill_then_run(back, tmp_path / "back", ".conversion/partial/49300/mp_rank_03*")
    for rank in range(4):
        assert equal_bits(load_rank(tmp_path / "back", rank), rank_state(whole_state(sizes), rank, 4))


SLOWLY = """
import sys, time
from conversion import writer
from conversion.__main__ import main
real = writer.pwrite_all
def slow(*arguments):
    time.sleep(0.05)
    real(*arguments)
writer.pwrite_all = slow
sys.exit(main(sys.argv[1:]))
"""


def kill_then_run(arguments: list[str], output: Path, appears: str) -> None:
    """Kills the command once a file has appeared in its incomplete folder, then runs it again to the end."""
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "glm130b", *arguments], cwd=root, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    incomplete = output.with_name(output.name + ".incomplete")
    while not list(incomplete.glob(appears)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    assert main(["glm130b", *arguments]) == 0
    assert not incomplete.exists()


def test_an_interrupted_command_says_how_to_go_on(
    tmp_path: Path, settings: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 2)

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer, "pwrite_all", interrupt)
        assert convert(source, tmp_path / "out", settings) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert convert(source, tmp_path / "out", settings) == 0


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, settings: str, capsys: Any) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 2)
    before = listing(tmp_path)
    assert convert(source, tmp_path / "out", settings, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "tensors      39, " in out
    assert "dry run: nothing was written" in out
    assert listing(tmp_path) == before


def test_the_released_size_by_a_dry_run_on_files_without_data(tmp_path: Path, capsys: Any) -> None:
    """Eight rank files of 32 GB each, all holes: their headers are all a dry run reads."""
    write_checkpoint(tmp_path / "source", RELEASED, 8, headers_only=True)
    (tmp_path / "source" / "config.json").unlink()  # the released size needs no settings
    assert sum(path.stat().st_size for path in (tmp_path / "source" / "49300").iterdir()) > 257 * 10**9
    assert convert(tmp_path / "source", tmp_path / "out", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "tensors      1263, 257,395,589,120 bytes; the largest 3,699,376,128 bytes" in out
    assert "peak memory  100,663,296 bytes for the copy" in out  # the limit is 8 GiB


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_the_released_size_on_paper(dtype: torch.dtype | None) -> None:
    """Both directions planned on shapes: every target of the real model, far under 8 GiB."""
    expected = expected_shapes(Glm130bForCausalLM, Glm130bConfig())
    parts = {name: TensorSpec(shape, torch.float16) for name, shape, _ in rank_shapes(RELEASED, 8)}
    plan = TABLE.forward(parts, Split(8, 96), expected, dtype)
    assert {tensor.name for tensor in plan.tensors} == expected.keys() - {"lm_head.weight"}
    for tensor in plan.tensors:
        covered = sum(piece.size[0] * piece.size[1] for piece in tensor.pieces)
        assert covered * tensor.spec.dtype.itemsize == tensor.spec.nbytes
    assert copy_peak_bytes(plan.tensors) < 8 * 2**30 // 64
    merged = {tensor.name: tensor.spec for tensor in plan.tensors}
    back = TABLE.reverse(merged, Split(8, 96), expected, torch.float16)
    assert {tensor.name: tensor.spec for tensor in back.tensors if tensor.part == 7} == parts
    assert copy_peak_bytes(back.tensors) < 8 * 2**30 // 64


def test_the_record_and_the_card_say_where_the_folder_comes_from(tmp_path: Path, settings: str) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 2, "777")
    assert convert(source, tmp_path / "out", settings) == 0
    digest = hashlib.sha256((tmp_path / "out" / "model.safetensors").read_bytes()).hexdigest()
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (record["iteration"], record["tensor_parallel"]) == ("777", 2)
    assert record["sha256"] == {"model.safetensors": digest}
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlanguage:\n- en\n- zh\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    assert "license: other" in card
    assert digest in card
    assert "Iteration 777 of a 2-way tensor-parallel checkpoint" in card
    assert "{" not in card.replace("{layers}", "")


def test_the_command_runs_from_a_checkout_and_shows_progress(tmp_path: Path, settings: str) -> None:
    source = write_released(tmp_path / "source", whole_state(SIZES), 2)
    command = [
        sys.executable,
        "-m",
        "conversion",
        "glm130b",
        "--source",
        source,
        "--output",
        tmp_path / "out",
        settings,
    ]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    assert finished.stdout.startswith("GLM-130B ")
    assert finished.stdout.endswith(f"done: {tmp_path / 'out'}\n")
    assert "writing: 100%" in finished.stderr
    assert "verifying: 100%" in finished.stderr
