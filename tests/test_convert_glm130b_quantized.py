"""The converter on quantized checkpoints, and `--bits`: integers and scales forward and back, computed, resumed."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.make_checkpoint_glm130b import RELEASED, rank_shapes
from conversion import glm130b_quantized, output_folder, writer
from conversion.blocks import COMPUTING_COPIES, copy_peak_bytes, row_blocks
from conversion.classes import expected_shapes
from conversion.glm130b import TABLE
from conversion.glm130b_quantized import plan_merging, plan_splitting
from conversion.operations import (
    ConcatBehindAxis,
    ConcatScales,
    Operation,
    Split,
    SplitError,
    SplitGluScales,
    SplitQkvBehindAxis,
    SplitQkvScales,
)
from conversion.state_map import Computation, Piece, PlannedTensor, TensorSpec
from hf_glm_ernie import Glm130bConfig
from hf_glm_ernie.weight_only import quantize, to_storage
from tests.support.converting import convert, kill_then_run, listing, weights, write_settings
from tests.support.quantized_tiny import (
    LINEARS,
    WIDE,
    expected_quantized,
    rank_quantized,
    values,
    whole_quantized,
    write_quantized,
)
from tests.support.tiny import (
    Sizes,
    State,
    change_rank,
    equal_bits,
    expected_state,
    load_rank,
    rank_state,
    whole_state,
    write_released,
)

BITS = [4, 8]
DEGREES = [1, 2, 8]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj")


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_settings(tmp_path_factory.mktemp("settings") / "config.json")


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


# Quantized checkpoints, carried over


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("ranks", DEGREES)
def test_integers_and_scales_are_carried_over_and_back(
    tmp_path: Path, settings: str, capsys: Any, bits: int, ranks: int
) -> None:
    whole = whole_quantized(bits, ranks)
    source = write_quantized(tmp_path / "source", whole, ranks, "1234")
    assert convert(source, tmp_path / "out", settings) == 0
    assert "integers and scales are carried over as they are" in capsys.readouterr().out
    assert equal_bits(weights(tmp_path / "out"), expected_quantized(whole, bits))
    assert config_of(tmp_path / "out")["quantization_config"] == {
        "quant_method": "weight_only_int",
        "bits": bits,
        "group_size": None,
        "num_groups": {"o_proj": ranks, "down_proj": ranks} if ranks > 1 else None,
        "modules_to_not_convert": None,
    }
    assert config_of(tmp_path / "out")["dtype"] == "float16"
    for back in DEGREES:
        output = tmp_path / f"back-{back}"
        arguments = (tmp_path / "out", output, "--reverse", f"--tensor-parallel={back}")
        if back % ranks:
            assert convert(*arguments) == 1
            message = rf"--tensor-parallel {back}: o_proj has {ranks} scales a row.* Pass --tensor-parallel {ranks}, "
            assert re.search(message, capsys.readouterr().err)
            assert not output.exists()
            continue
        assert convert(*arguments) == 0
        assert ("hold copies of its scales (down_proj, o_proj)" in capsys.readouterr().out) == (back > ranks)
        for rank in range(back):
            expected = rank_quantized(whole, rank, back)
            assert equal_bits(load_rank(output, rank, "1234"), expected)
            if back == ranks:
                original = load_rank(source, rank, "1234")
                assert equal_bits(load_rank(output, rank, "1234"), original)
                assert {n for n in original if n.endswith("_scale")} == {n for n in expected if n.endswith("_scale")}


@pytest.mark.parametrize("bits", BITS)
def test_more_ranks_than_groups_hold_the_same_values(tmp_path: Path, settings: str, bits: int) -> None:
    source = write_quantized(tmp_path / "source", whole_quantized(bits, 2), 2)
    assert convert(source, tmp_path / "out", settings) == 0
    assert convert(tmp_path / "out", tmp_path / "back", "--reverse", "--tensor-parallel=8") == 0
    assert convert(tmp_path / "back", tmp_path / "again", settings) == 0
    assert config_of(tmp_path / "again")["quantization_config"]["num_groups"] == {"o_proj": 8, "down_proj": 8}
    assert equal_bits(values(weights(tmp_path / "again")), values(weights(tmp_path / "out")))


def test_the_names_stand_in_the_original_s_order(tmp_path: Path, settings: str, shared_goldens: Path) -> None:
    folder = shared_goldens / "model" / "small"
    source = folder / "tp2-int4"
    assert convert(source, tmp_path / "out", f"--config={folder / 'config.json'}") == 0
    assert convert(tmp_path / "out", tmp_path / "back", "--reverse", "--tensor-parallel=2") == 0
    assert list(load_rank(tmp_path / "back", 1)) == list(load_rank(source, 1))


@pytest.mark.parametrize("bits", BITS)
def test_dtype_changes_neither_integers_nor_scales(tmp_path: Path, settings: str, capsys: Any, bits: int) -> None:
    whole = whole_quantized(bits, 2)
    source = write_quantized(tmp_path / "source", whole, 2)
    assert convert(source, tmp_path / "out", settings, "--dtype=bfloat16") == 0
    out = capsys.readouterr().out
    assert "rounded from float16 to bfloat16" in out
    assert "some tensors are" not in out
    expected = {
        name: tensor if tensor.dtype == torch.int8 or name.endswith("_scale") else tensor.bfloat16()
        for name, tensor in expected_quantized(whole, bits).items()
    }
    assert equal_bits(weights(tmp_path / "out"), expected)
    assert config_of(tmp_path / "out")["dtype"] == "bfloat16"
    assert convert(source, tmp_path / "wide", settings, "--dtype=float32") == 0
    assert convert(tmp_path / "wide", tmp_path / "back", "--reverse", "--tensor-parallel=2", "--dtype=float16") == 0
    assert equal_bits(load_rank(tmp_path / "back", 1), load_rank(source, 1))


def test_shards_hold_integers_and_scales(tmp_path: Path, settings: str) -> None:
    whole = whole_quantized(8, 4)
    source = write_quantized(tmp_path / "source", whole, 4)
    assert convert(source, tmp_path / "out", settings, "--max-shard-size=5KB") == 0
    expected = expected_quantized(whole, 8)
    assert equal_bits(weights(tmp_path / "out"), expected)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert len(set(index["weight_map"].values())) > 3
    assert convert(tmp_path / "out", tmp_path / "back", "--reverse", "--tensor-parallel=4") == 0
    assert equal_bits(load_rank(tmp_path / "back", 3), load_rank(source, 3))


def test_the_card_and_the_record_say_it_is_quantized(tmp_path: Path, settings: str) -> None:
    source = write_quantized(tmp_path / "source", whole_quantized(4, 2), 2)
    assert convert(source, tmp_path / "out", settings) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "4-bit integers with float16 scales in the linears, float16 else" in card
    assert "its integers and scales are rearranged, not changed" in card
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["bits"] is None
    plain = write_released(tmp_path / "plain", whole_state(WIDE), 2)
    assert convert(plain, tmp_path / "bits", settings, "--bits=8") == 0
    card = (tmp_path / "bits" / "README.md").read_text()
    assert "8-bit integers with float16 scales in the linears, float16 else" in card
    assert "the floating-point weights do not come back" in card
    assert json.loads((tmp_path / "bits" / "conversion.json").read_text())["bits"] == 8


# --bits


def quantized_by_hand(state: State, bits: int) -> State:
    """An unquantized converted folder with the linears' weights quantized, each at once."""
    result: State = {}
    for name, tensor in state.items():
        if name.endswith(tuple(f"{target}.weight" for target in TARGETS)):
            q, result[f"{name}_scale"] = quantize(tensor, bits)
            result[name] = to_storage(q, bits)
        else:
            result[name] = tensor
    return result


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_bits_quantizes_what_would_have_been_written(
    tmp_path: Path, settings: str, monkeypatch: pytest.MonkeyPatch, bits: int, dtype: torch.dtype
) -> None:
    """In blocks of a few rows, over the ranks that a row is spread on."""
    monkeypatch.setattr(output_folder, "stream", partial(writer.stream, block_bytes=16 * 32 * 7))
    source = write_released(tmp_path / "source", whole_state(WIDE, dtype=dtype), 4)
    assert convert(source, tmp_path / "out", settings, f"--bits={bits}", "--max-shard-size=4KB") == 0
    state = weights(tmp_path / "out")
    assert equal_bits(state, quantized_by_hand(expected_state(whole_state(WIDE, dtype=dtype), WIDE), bits))
    assert state["model.layers.0.self_attn.o_proj.weight_scale"].shape == (32, 1)
    config = config_of(tmp_path / "out")
    assert (config["quantization_config"]["bits"], config["quantization_config"]["num_groups"]) == (bits, None)
    assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_bits_and_dtype_together_quantize_the_rounded_weight(tmp_path: Path, settings: str) -> None:
    source = write_released(tmp_path / "source", whole_state(WIDE, dtype=torch.float32), 2)
    assert convert(source, tmp_path / "plain", settings, "--dtype=bfloat16") == 0
    assert convert(source, tmp_path / "out", settings, "--dtype=bfloat16", "--bits=4") == 0
    assert equal_bits(weights(tmp_path / "out"), quantized_by_hand(weights(tmp_path / "plain"), 4))


@pytest.mark.parametrize("bits", BITS)
def test_one_scale_a_row_is_written_back_to_any_number_of_ranks(
    tmp_path: Path, settings: str, capsys: Any, bits: int
) -> None:
    source = write_released(tmp_path / "source", whole_state(WIDE), 2)
    assert convert(source, tmp_path / "out", settings, f"--bits={bits}") == 0
    state = weights(tmp_path / "out")
    for ranks in (1, 8):
        capsys.readouterr()
        back = tmp_path / f"back-{ranks}"
        assert convert(tmp_path / "out", back, "--reverse", f"--tensor-parallel={ranks}") == 0
        assert ("hold copies of its scales" in capsys.readouterr().out) == (ranks > 1)
        assert convert(back, tmp_path / f"again-{ranks}", settings) == 0
        again = weights(tmp_path / f"again-{ranks}")
        assert equal_bits(values(again), values(state))
        assert equal_bits(again, state) == (ranks == 1)
        integers = {name: tensor for name, tensor in state.items() if tensor.dtype == torch.int8}
        assert equal_bits({name: again[name] for name in integers}, integers)


def test_a_weight_is_quantized_once_for_its_integers_and_its_scales(
    tmp_path: Path, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.Size] = []

    def count(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(weight.shape)
        return quantize(weight, bits)

    monkeypatch.setattr(glm130b_quantized, "quantize", count)
    monkeypatch.setattr(output_folder, "stream", partial(writer.stream, block_bytes=16 * 48 * 8))
    source = write_released(tmp_path / "source", whole_state(WIDE), 2)
    assert convert(source, tmp_path / "out", settings, "--bits=4") == 0
    assert len(calls) > 2 * WIDE.layers * len(TARGETS)
    assert sum(shape.numel() for shape in calls) == WIDE.layers * (4 * 32 * 32 + 3 * 32 * 48)


def test_a_killed_quantization_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    sizes = Sizes(vocabulary=1024, hidden=256, heads=8, inner=512)
    source = write_released(tmp_path / "source", whole_state(sizes), 2)
    settings = write_settings(tmp_path / "config.json")
    assert convert(source, tmp_path / "whole", settings, "--bits=4", "--max-shard-size=500KB") == 0
    arguments = [f"--source={source}", f"--output={tmp_path / 'out'}", settings, "--bits=4"]
    kill_then_run([*arguments, "--max-shard-size=500KB"], tmp_path / "out", "model-00001*")
    assert listing(tmp_path / "out") == listing(tmp_path / "whole")
    for name in listing(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_scales_alone_are_computed_again_after_an_interruption(
    tmp_path: Path, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the integers of a weight and its scales, which are then nowhere but in the source."""
    source = write_released(tmp_path / "source", whole_state(WIDE), 2)
    assert convert(source, tmp_path / "whole", settings, "--bits=8") == 0
    scales = glm130b_quantized.RowQuantizer.scales

    def interrupt(self: Any, start: int, gather: Any) -> torch.Tensor:
        if "layers.1.mlp.down" in self._name:
            raise KeyboardInterrupt
        return scales(self, start, gather)

    with monkeypatch.context() as patch:
        patch.setattr(glm130b_quantized.RowQuantizer, "scales", interrupt)
        assert convert(source, tmp_path / "out", settings, "--bits=8") == 130
    journal = (tmp_path / "out.incomplete" / ".conversion" / "journal.jsonl").read_text()
    assert "layers.1.mlp.down_proj.weight" in journal
    assert "layers.1.mlp.down_proj.weight_scale" not in journal
    assert convert(source, tmp_path / "out", settings, "--bits=4") == 1  # another job
    assert convert(source, tmp_path / "out", settings, "--bits=8") == 0
    assert equal_bits(weights(tmp_path / "out"), weights(tmp_path / "whole"))


# On paper


def test_the_released_size_on_paper() -> None:
    """INT4 of 130B: about 70 GB, and the same small blocks."""
    expected = expected_shapes("Glm130bForCausalLM", Glm130bConfig())
    parts = {name: TensorSpec(shape, torch.float16) for name, shape, _ in rank_shapes(RELEASED, 8)}
    split, where = Split(8, 96), Path("released")
    plan, how = plan_merging(TABLE, parts, split, expected, None, 4, where)
    linear = 70 * (4 * 12288 * 12288 + 3 * 12288 * 32768)
    rows = 70 * (5 * 12288 + 2 * 32768)
    fp16 = 257_395_589_120 - 2 * linear
    assert plan.nbytes == fp16 + linear // 2 + 2 * rows
    assert 65e9 < plan.nbytes < 70e9
    assert copy_peak_bytes(plan.tensors) <= 4 * 32 * 2**20
    assert how is not None
    assert set(how.groups.values()) == {1}
    stored = {tensor.name: tensor.spec for tensor in plan.tensors}
    back, _ = plan_splitting(TABLE, stored, split, expected, None, 4, where)
    released = {tensor.name: tensor.spec for tensor in back.tensors if tensor.part == 7}
    again, how = plan_merging(TABLE, released, split, expected, None, None, where)
    assert how is not None
    assert how.groups["down_proj"] == 8
    assert again.nbytes == plan.nbytes + 2 * 7 * 70 * 2 * 12288  # eight scales a row in two of four weights
    assert copy_peak_bytes(again.tensors) <= 3 * 32 * 2**20


def test_a_dry_run_tells_the_quantized_size(tmp_path: Path, settings: str, capsys: Any) -> None:
    source = write_released(tmp_path / "source", whole_state(WIDE), 2)
    assert convert(source, tmp_path / "out", settings, "--bits=4", "--dry-run") == 0
    out = capsys.readouterr().out
    expected = quantized_by_hand(expected_state(whole_state(WIDE), WIDE), 4)
    assert f"tensors      {len(expected)}, {sum(tensor.nbytes for tensor in expected.values()):,} bytes" in out
    assert "quantized to 4 bits, one scale a row" in out
    assert not (tmp_path / "out").exists()


def test_blocks_that_are_computed_are_small_enough_for_their_copies() -> None:
    computed = PlannedTensor(
        0,
        "a",
        TensorSpec((1000, 50), torch.int8),
        (Piece(0, "a", (0, 0), (0, 0), (1000, 100)),),
        Computation(TensorSpec((1000, 100), torch.float16), lambda start, gather: gather),
    )
    step = 40_000 // (COMPUTING_COPIES * 4 * 100)
    blocks = list(row_blocks(computed, 40_000))
    assert blocks[:2] == [(0, step), (step, 2 * step)]
    assert blocks[-1][1] == 1000
    assert copy_peak_bytes([computed], 40_000) == 4 * 40_000
    assert list(row_blocks(computed, 1))[:2] == [(0, 1), (1, 2)]


# Operations


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    ("operation", "part"),
    [(SplitQkvScales(), (12,)), (SplitGluScales(), (6,)), (ConcatScales(), (5,)), (ConcatBehindAxis(1), (5, 3))],
    ids=str,
)
def test_shapes_are_inverse(operation: Operation, part: tuple[int, ...], ranks: int) -> None:
    split = Split(ranks, heads=2 * ranks)
    assert operation.part_shape(operation.whole_shapes(part, split), split) == part


def test_shapes_that_do_not_fit_the_operations() -> None:
    split = Split(2, 4)
    for operation in (SplitQkvScales(), SplitGluScales(), ConcatScales()):
        with pytest.raises(SplitError, match="one scale a row, so they are a vector"):
            operation.whole_shapes((12, 1), split)
    with pytest.raises(SplitError, match="a rank holds one scale a row"):
        SplitGluScales().part_shape([(6, 2)] * 2, split)
    with pytest.raises(SplitError, match="4 scales a row, 1 rank\\(s\\) for each, do not lie on 2 rank"):
        ConcatScales().part_shape([(6, 4)], split)
    with pytest.raises(SplitError, match="one more axis in front"):
        SplitQkvBehindAxis().part_shape([(12, 3)] * 3, split)


# Refusals


def on_every_rank(changes: dict[str, torch.Tensor | None]) -> Any:
    def spoil(folder: Path) -> None:
        for rank in range(4):
            change_rank(folder, rank, changes)

    return spoil


def on_rank_2(name: str, row: int, value: float) -> Any:
    def spoil(folder: Path) -> None:
        scale = load_rank(folder, 2)[name].clone()
        scale[row] = value
        change_rank(folder, 2, {name: scale})

    return spoil


FIRST, LAST = "transformer.layers.0", "transformer.layers.1"
DENSE = f"{LAST}.attention.dense.weight"
BAD_CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "one weight in floating point": (
        on_every_rank({DENSE: torch.zeros(32, 8).half(), f"{DENSE}_scale": None}),
        rf"not quantized, while others are \(1\):\s+{DENSE}\s+Nothing was written",
    ),
    "one layer in floating point": (
        on_every_rank(
            {
                name: None if name.endswith("_scale") else rank_state(whole_state(WIDE), 0, 4)[name]
                for linear in LINEARS
                for name in (f"{FIRST}.{linear}.weight", f"{FIRST}.{linear}.weight_scale")
            }
        ),
        rf"while others are \(4\):\s+{FIRST}.attention.dense.weight\s+{FIRST}.attention.query",
    ),
    "a scale missing": (on_every_rank({f"{DENSE}_scale": None}), rf"weights without scales \(1\):\s+{DENSE}\s"),
    "a weight missing": (on_every_rank({DENSE: None}), rf"scales without a quantized weight \(1\):\s+{DENSE}_scale"),
    "scales beside floating point": (
        on_every_rank({DENSE: torch.zeros(32, 8).half()}),
        rf"scales without a quantized weight \(1\):\s+{DENSE}_scale",
    ),
    "all scales missing": (
        on_every_rank({f"{layer}.{linear}.weight_scale": None for layer in (FIRST, LAST) for linear in LINEARS}),
        r"quantized weights without scales \(8\)",
    ),
    "neither width": (
        on_every_rank({DENSE: torch.zeros(32, 6, dtype=torch.int8)}),
        rf"neither 8 nor 4 bits have \(1\):\s+{DENSE}: \[32, 6\] int8; 4 bits have \[32, 4\], 8 bits have \[32, 8\]",
    ),
    "other bits": (
        on_every_rank({DENSE: torch.zeros(32, 4, dtype=torch.int8)}),
        rf"weights of other than 8 bits, which most have \(1\):\s+{DENSE}: 4 bits",
    ),
    "other integers": (
        on_every_rank({DENSE: torch.zeros(32, 8, dtype=torch.uint8)}),
        rf"that are not int8 \(1\):\s+{DENSE}: \[32, 8\] uint8",
    ),
    "quantized embedding": (
        on_every_rank({"transformer.word_embeddings.weight": torch.zeros(18, 32, dtype=torch.int8)}),
        r"integers that are not the weight .* \(1\):\s+transformer.word_embeddings.weight: \[18, 32\] int8",
    ),
    "scales in fp32": (
        on_every_rank({f"{DENSE}_scale": torch.ones(32)}),
        rf"scales that are not float16 \(1\):\s+{DENSE}_scale: \[32\] float32",
    ),
    "too few scales": (
        on_every_rank({f"{DENSE}_scale": torch.ones(31).half()}),
        r"o_proj.weight_scale from .*_scale: \[31, 4\], the model has \[32, 4\]",
    ),
    "scales as a matrix": (
        on_every_rank({f"{DENSE}_scale": torch.ones(32, 1).half()}),
        r"dense.weight_scale of shape \[32, 1\], 4 rank\(s\): there is one scale a row, so they are a vector",
    ),
    "scales of a norm": (
        on_every_rank({f"{FIRST}.input_layernorm.weight_scale": torch.ones(32).half()}),
        rf"scales without a quantized weight \(1\):\s+{FIRST}.input_layernorm.weight_scale",
    ),
    "NaN": (on_rank_2(f"{DENSE}_scale", 5, float("nan")), r"mp_rank_02.*dense.weight_scale.* nan at row 5"),
    "infinite": (on_rank_2(f"{DENSE}_scale", 6, float("inf")), r"mp_rank_02.*dense.weight_scale.* inf at row 6"),
    "zero": (on_rank_2(f"{DENSE}_scale", 0, 0.0), r"mp_rank_02.*dense.weight_scale.* 0.0 at row 0"),
    "negative": (on_rank_2(f"{DENSE}_scale", 31, -0.5), r"mp_rank_02.*dense.weight_scale.* -0.5 at row 31"),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_bad_quantized_checkpoints_are_refused_and_nothing_is_written(
    tmp_path: Path, settings: str, capsys: Any, kind: str
) -> None:
    source = write_quantized(tmp_path / "source", whole_quantized(8, 4), 4)
    spoil, message = BAD_CHECKPOINTS[kind]
    spoil(source)
    refused(capsys, tmp_path, message, source, settings)


def refused(capsys: Any, tmp_path: Path, message: str, source: Path, *arguments: str) -> None:
    """Runs the command; it must fail with that message and leave the folder as it was."""
    before = listing(tmp_path)
    capsys.readouterr()
    assert convert(source, tmp_path / "parent" / "out", *arguments) == 1
    error = capsys.readouterr().err.rpartition("error: ")[2]  # behind a progress bar, if it came to that
    assert re.search(message, error), error
    assert listing(tmp_path) == before


def test_bits_where_they_cannot_be(tmp_path: Path, settings: str, capsys: Any) -> None:
    source = write_quantized(tmp_path / "quantized", whole_quantized(8, 2), 2)
    refused(capsys, tmp_path, r"--bits 4: .* is quantized already, to 8 bits", source, settings, "--bits=4")
    odd = write_released(tmp_path / "odd", whole_state(Sizes(inner=41)), 1)
    refused(capsys, tmp_path, r"--bits 4: .*down_proj.weight has 41 columns", odd, settings, "--bits=4")
    for value in (float("nan"), float("inf"), 1e6):
        whole = whole_state(WIDE, dtype=torch.float32)
        whole[f"{LAST}.mlp.dense_4h_to_h.weight"][3, 4] = value
        source = write_released(tmp_path / f"with-{value}", whole, 2)
        message = r"--bits 8: model.layers.1.mlp.down_proj.weight: .*not finite or above"
        refused(capsys, tmp_path, message, source, settings, "--bits=8")
    for arguments in (["--bits=5"], ["--reverse", "--tensor-parallel=1", "--bits=4"]):
        with pytest.raises(SystemExit):
            convert(source, tmp_path / "out", *arguments)


def edit_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(folder) | changes))


def edit_weights(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Replaces, adds or (with None) removes tensors of the layers."""
    named = {f"model.layers.{name}": tensor for name, tensor in changes.items()}
    state = {name: tensor for name, tensor in (weights(folder) | named).items() if tensor is not None}
    save_file(state, folder / "model.safetensors")


OURS = {"quant_method": "weight_only_int", "bits": 8}
O_PROJ, Q_PROJ = "1.self_attn.o_proj.weight", "0.self_attn.q_proj.weight"
BAD_FOLDERS: dict[str, tuple[Any, str]] = {
    "another method": (
        lambda folder: edit_config(folder, quantization_config=OURS | {"quant_method": "bitsandbytes"}),
        r"config.json: .*the weights are quantized by 'bitsandbytes'",
    ),
    "other bits in the config": (
        lambda folder: edit_config(folder, quantization_config=OURS | {"bits": 4}),
        r"config.json says bits 4, the tensors say 8",
    ),
    "nothing in the config": (
        lambda folder: edit_config(folder, quantization_config=None),
        r"config.json says bits None, the tensors say 8",
    ),
    "a weight in floating point": (
        lambda folder: edit_weights(folder, {O_PROJ: torch.zeros(32, 32), f"{O_PROJ}_scale": None}),
        r"not quantized, while others are \(1\):\s+model.layers.1.self_attn.o_proj.weight",
    ),
    "integers without the axis": (
        lambda folder: edit_weights(folder, {O_PROJ: torch.zeros(32, 32, dtype=torch.int8)}),
        r"o_proj.weight: \[32, 32\] int8; 4 bits have \[32, 16\], 8 bits have \[1, 32, 32\]",
    ),
    "groups where the format has none": (
        lambda folder: edit_weights(folder, {f"{Q_PROJ}_scale": torch.ones(32, 2).half()}),
        r"q_proj has 2 scales a row; the released format has one there",
    ),
    "scales as a vector": (
        lambda folder: edit_weights(
            folder, {f"{layer}.self_attn.o_proj.weight_scale": torch.ones(32).half() for layer in (0, 1)}
        ),
        r"o_proj has no scales of shape \(rows, groups\)",
    ),
    "other groups in one layer": (
        lambda folder: edit_weights(folder, {f"{O_PROJ}_scale": torch.ones(32, 4).half()}),
        r"o_proj.weight_scale: \[32, 4\], the model has \[32, 2\]",
    ),
    "a damaged scale": (
        lambda folder: edit_weights(folder, {f"{O_PROJ}_scale": -torch.ones(32, 2).half()}),
        r"model.layers.1.self_attn.o_proj.weight_scale holds -1.0 at row 0, group 0",
    ),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_bad_quantized_folders_are_not_written_back(tmp_path: Path, settings: str, capsys: Any, kind: str) -> None:
    source = write_quantized(tmp_path / "source", whole_quantized(8, 2), 2)
    assert convert(source, tmp_path / "converted", settings) == 0
    spoil, message = BAD_FOLDERS[kind]
    spoil(tmp_path / "converted")
    refused(capsys, tmp_path, message, tmp_path / "converted", "--reverse", "--tensor-parallel=2")


def test_four_bits_do_not_share_a_byte_between_ranks(tmp_path: Path, settings: str, capsys: Any) -> None:
    odd = write_quantized(tmp_path / "odd", whole_quantized(4, 1, Sizes(inner=41)), 1)
    message = r"dense_4h_to_h.weight: \[32, 20\] int8; 8 bits have \[32, 41\]\s"
    refused(capsys, tmp_path, message, odd, settings)
    source = write_released(tmp_path / "source", whole_state(Sizes(inner=40)), 1)  # 5 columns for each of 8 ranks
    assert convert(source, tmp_path / "out", settings, "--bits=4") == 0
    message = r"dense_4h_to_h.weight for 8 ranks: a number of columns of 20 cannot be divided into 8 equal parts"
    refused(capsys, tmp_path, message, tmp_path / "out", "--reverse", "--tensor-parallel=8")
