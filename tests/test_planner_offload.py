"""Layers in main memory: how many rows are few, what the planner counts, and what its command prints."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from hf_glm_ernie import set_offload
from hf_glm_ernie.__main__ import main
from hf_glm_ernie.inference.offload import rows_worth_computing
from hf_glm_ernie.inference.staged_copies import ALIGNMENT, block_bytes
from hf_glm_ernie.planner import plan
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from tests.support.offloading import in_memory
from tests.support.tiny_models import tiny_config, tiny_model


def test_rows_worth_computing() -> None:
    assert [rows_worth_computing(size) for size in (0.5, 1, 2, 4)] == [10, 20, 40, 80]
    assert rows_worth_computing(0.01) == 1
    model = in_memory(tiny_model(), "model.layers.1")
    assert set_offload(model, "compute").rows == 80  # fp32
    assert set_offload(model, "copy").rows == 0


@pytest.mark.parametrize("way", ["compute", "copy"])
@pytest.mark.parametrize("bits", [None, 4])
def test_the_planner_counts_what_is_taken(bits: int | None, way: str, tmp_path: Path) -> None:
    """The two buffers to the byte; the cache where the layers compute; what page-locked memory is rounded up to."""
    tiny_model(num_hidden_layers=8).save_pretrained(tmp_path)
    quantized = {} if bits is None else {"quantization_config": WeightOnlyConfig(bits=bits)}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, **quantized)
    options: dict[str, Any] = {"bits": bits, "dtype": "float32", "reserve": 0, "context": 16}
    whole = plan(model.config, "1x1GiB", **(options | {"bits": None})).devices[0]
    planned = plan(tmp_path, [f"{whole.used - 1}B"], cpu="2MiB", offload=way, **options)
    assert planned.fits
    assert planned.offload == way
    main_device, memory = planned.devices
    layers = [name for name in planned.offloaded if ".layers." in name]
    assert 2 <= len(layers) < 8
    block = block_bytes(model.get_submodule(layers[0]))
    taken = set_offload(in_memory(model, *layers), way)
    per_layer = whole.cache // 8
    assert taken.staging_bytes == 2 * block
    inside = 8 - len(layers)
    if way == "compute":
        assert main_device.staging == 2 * block + per_layer
        assert (main_device.cache, memory.cache) == (inside * per_layer, len(layers) * per_layer)
        assert memory.activations > per_layer
    else:
        # the norm is copied too, each time
        assert main_device.staging == 2 * block + 2 * 64 * 4 * ("model.norm" in planned.offloaded)
        assert (main_device.cache, memory.cache) == (8 * per_layer, 0)
    power = 1 << (block - 1).bit_length()
    assert memory.staging == len(layers) * (power - block)
    assert ALIGNMENT * 16 > block - sum(t.nbytes for t in model.get_submodule(layers[0]).parameters()) >= 0


def test_command_prints_what_to_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_config(architectures=["Glm130bForCausalLM"], num_hidden_layers=8).save_pretrained(tmp_path)
    options = {"bits": 4, "devices": "1x250KiB", "cpu": "1MiB", "reserve": "0", "context": 16}
    command = ["plan", "--config", str(tmp_path / "config.json"), "--reserve", "0", "--context", "16"]
    command += ["--bits", "4", "--devices", "1x250KiB", "--cpu", "1MiB"]
    for way in ("compute", "copy"):
        assert main([*command, "--offload", way]) == 0
        text = capsys.readouterr().out
        pasted = text.partition("pass to from_pretrained:\n")[2].replace("and then call:\n", "")
        names: dict[str, Any] = {"hf_glm_ernie": type("", (), {"set_offload": lambda *given: given}), "model": 1}
        device_map, _, call = pasted.strip().rpartition("\n")
        exec(device_map, names)
        planned = plan(tmp_path, offload=way, **options)
        assert names["device_map"] == planned.device_map
        assert eval(call, names) == (1, way)
        assert planned.describe() + "\n" == text
    assert main(command) == 0
    assert "run faster with offload compute or copy" in capsys.readouterr().out
    many = plan(tmp_path, offload="compute", batch=12, **(options | {"devices": "1x700KiB"}))
    assert "batch 12: offload copy is faster from 11 rows on" in many.describe()
    assert main([*command[:-2], "--offload", "compute"]) == 1
    assert "offload='compute' is about layers in main memory beside accelerators" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offload": "host"}, "offload='host' is not one of accelerate, compute, copy"),
        ({"offload": "copy", "devices": None}, "beside accelerators: pass devices"),
        ({"offload": "copy", "cpu": None}, "and cpu='128GiB'"),
    ],
)
def test_ways_of_offload_that_cannot_be_planned(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(tiny_config(), **({"devices": "1x1GiB", "cpu": "1GiB"} | change))
