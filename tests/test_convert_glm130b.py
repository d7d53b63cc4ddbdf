"""The converter's command on tiny checkpoints in the released layout: forward and back, interrupted, on paper."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks.make_checkpoint_glm130b import RELEASED, rank_shapes, write_checkpoint
from conversion import writer
from conversion.classes import expected_shapes
from conversion.glm130b import TABLE
from conversion.state_map import Split, TensorSpec
from conversion.writer import copy_peak_bytes
from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM
from tests.support.converting import SIZES, convert, kill_then_run, listing, weights, write_settings
from tests.support.fresh import fresh_python
from tests.support.tiny import (
    Sizes,
    State,
    change_rank,
    equal_bits,
    expected_state,
    load_rank,
    rank_state,
    whole_state,
    write_ice_text_model,
    write_released,
)

DEGREES = [1, 2, 4, 8]


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_settings(tmp_path_factory.mktemp("settings") / "config.json")


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
    assert "2 leftover rotary tables of the original, not written back" in capsys.readouterr().out
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
    assert tokenizer.model_max_length == config["max_position_embeddings"] == sizes.context
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


# The run


def test_ranks_known_to_belong_together_convert_on_request(tmp_path: Path, settings: str, capsys: Any) -> None:
    whole = whole_state(SIZES)
    source = write_released(tmp_path / "source", whole, 4)
    change_rank(source, 3, {"transformer.final_layernorm.bias": torch.zeros(32).half()})
    assert convert(source, tmp_path / "out", settings, "--replicated-from-rank-0") == 0
    assert "1 tensor that every rank should hold alike differ from rank 00 on rank 03" in capsys.readouterr().out
    assert equal_bits(weights(tmp_path / "out"), expected_state(whole, SIZES))


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
    expected = expected_shapes("Glm130bForCausalLM", Glm130bConfig())
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
    words = ["-m", "conversion", "glm130b", "--source", source, "--output", tmp_path / "out", settings]
    finished = fresh_python(words, Path(__file__).parents[1], check=True)
    assert finished.stdout.startswith("GLM-130B ")
    assert finished.stdout.endswith(f"done: {tmp_path / 'out'}\n")
    assert "writing: 100%" in finished.stderr
    assert "verifying: 100%" in finished.stderr
