"""Decoding on CUDA devices that are not there (`support/fake_cuda.py`): launches, bytes, copies between devices, and
every place where the host waits for a device. `python -m tests.support.decode_step` prints it all as a table.

And on the CPU: the step of a static cache, as the host compiles it, is one graph.
"""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, GenerationMixin

from hf_glm_ernie import Glm130bForCausalLM
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear
from hf_glm_ernie.weight_only_tiles import chunk_rows
from tests.support.fake_cuda import why_not
from tests.support.tiny_models import GMASK, MASK, PAD, SOP, tiny_model

ROOT = Path(__file__).parents[1]

A_CALL, A_TOKEN = "a call", "a token"

EVERY_CALL = {
    "host_inputs._first_outside: value": "ids outside of the vocabulary are refused; on a device they end the process",
    "utils._tensor_or_none: to device": "the host: ids of special tokens",
    "utils._prepare_special_tokens: value": "the host: whether one of them is negative, or padding ends a text",
    "utils.generate: value": "the host: whether rows are padded on the right, or not at all",
}
"""Where `generate` waits once, before it begins, and why."""

NEW_HOSTS = {"utils._get_logits_processor: value": "the host: whether the ids are an encoder's"}
WITH_MASK = {"generation_glm130b._check_room: value": "the longest row must leave room"}
WITHOUT_MASK = {"generation_glm130b._infer_padding: value": "whether there are pads to make a mask for"}
WITH_CACHE = {
    "modeling_glm130b._layout: to host": "what the cache remembers of its rows, for calls that go on with it",
    "cache_utils.lazy_initialization: to device": "the host: a layer's empty keys and values, or its length",
}
WITH_BEAMS = {"utils._beam_search: to device": "the host: scores of beams that have not begun"}
WITH_BLANKS = {
    "prefix_glm130b.padded: to device": "the texts",
    "generation_glm130b.__call__: to device": "how long each text's answer may be",
    "generation_glm130b._answers: to host": "the answers",
}

EVERY_TOKEN = {"utils.__call__: value": "the host: whether all rows have ended"}
EVERY_TOKEN_OF_BEAMS = {"utils._beam_search: value": "the host: whether all beams have ended; in the end, lengths"}
"""Where `generate` waits for every token, and why."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What a process that has the fake devices counted: a guard that is registered stays for good."""
    if reason := why_not():
        pytest.skip(f"fake CUDA devices: {reason}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.decode_step", "--json"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def steps(found: dict[str, Any]) -> dict[str, Any]:
    return found["steps"]


def of_integers(steps: dict[str, Any]) -> dict[str, Any]:
    if found := {name: step for name, step in steps.items() if name.startswith("INT")}:
        return found
    pytest.skip("integer weights take large blocks where Triton is not installed")


def test_a_step_waits_for_no_device(steps: dict[str, Any]) -> None:
    """With both caches, padded rows or not, on one device, on four layer by layer, and on a tensor-parallel rank."""
    assert {name: step["waits"] for name, step in steps.items() if step["waits"]} == {}
    assert sum("padded" in name for name in steps) >= 2


def test_a_step_by_hand(found: dict[str, Any]) -> None:
    """A caller who passes ids and a cache; a static one alone knows on the device whether it was begun anew."""
    assert found["by_hand"]["dynamic"]["waits"] == []
    assert found["by_hand"]["static"]["waits"] == ["modeling_glm130b._layout: value"]


def test_every_layer_adds_the_same(found: dict[str, Any]) -> None:
    """The steps are counted with 4 and with 8 layers; here are all 70."""
    whole, counted = found["whole"], found["steps"]["unquantized float16, static cache, 1 row, one device, 3090"]
    for name in ("launches", "bytes", "weights", "by_name", "waits"):
        assert whole[name] == counted[name], name


def test_launches_of_an_unquantized_step(steps: dict[str, Any]) -> None:
    """7 products and 17 (dynamic) or 20 (static) other kernels in each of 70 layers, and 30 beside them. Before, 1,888
    and 2,315; of padded rows 2,182 and 2,321, for every layer made numbers of the mask.
    """
    for rows in ("1 row", "4 padded rows"):
        assert steps[f"unquantized float16, dynamic cache, {rows}, one device, 3090"]["launches"] <= 1720
        assert steps[f"unquantized float16, static cache, {rows}, one device, 3090"]["launches"] <= 1940


def test_launches_of_a_step_of_integers(steps: dict[str, Any]) -> None:
    """1,923 and 1,709 for one row, 2,199 of 32 rows, whose products are summed from parts; before, 489,088."""
    for name, step in of_integers(steps).items():
        assert step["launches"] <= 3500, name
        assert sum(step["by_name"].get(f"{kind}_kernel", 0) for kind in ("rows", "dot")) == 490, name


def test_bytes_of_a_step(steps: dict[str, Any]) -> None:
    """One row reads the weights once, 256 tokens of keys and values, which a dynamic cache also writes anew, and
    little else: 1.028 and 1.041 times the weights in INT4; before, 24.7 times, in bf16 17.1.
    """
    single = {name: step["ratio"] for name, step in steps.items() if ", 1 row," in name}
    assert len(single) >= 2
    assert all(1 < ratio <= 1.05 for ratio in single.values()), single


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_four_devices_copy_once_each(steps: dict[str, Any], kind: str) -> None:
    """cos, sin, mask and hidden states to each further device, and the last hidden states back; before, 160 copies."""
    name = f"INT4 float16, {kind} cache, 4 padded rows, four devices, 3090"
    moves = [(source, target) for source, target, _ in of_integers(steps)[name]["moves"]]
    assert len(moves) == 13
    for index in range(1, 4):
        sources = [source for source, target in moves if target == f"cuda:{index}"]
        assert sorted(sources) == sorted(["cuda:0"] * 3 + [f"cuda:{index - 1}"])
    assert moves[-1] == ("cuda:3", "cuda:0")


def test_a_prompt_of_integers_is_dequantized_in_chunks(found: dict[str, Any]) -> None:
    """2,048 tokens through two layers: 14 products in chunks of 128 MB, and the waits of every prompt alone."""
    if not found["prefill"]:
        pytest.skip("integer weights take large blocks where Triton is not installed")
    shapes = [(12288, 12288)] * 4 + [(32768, 12288)] * 2 + [(12288, 32768)]  # q, k, v and o; gate and up; down
    chunks = sum(-(-rows // chunk_rows(columns, torch.float16)) for rows, columns in shapes)
    for dtype, step in found["prefill"].items():
        assert step["by_name"]["dequantize_kernel"] == 2 * chunks, dtype
        assert set(step["waits"]) == set(WITH_CACHE)


def test_nothing_is_used_on_two_devices(found: dict[str, Any]) -> None:
    """The fake devices tell: without the host's hooks a model on several fails."""
    assert "cuda:0 and cuda:1" in found["lost"]


CALLS = [
    ("greedy", WITHOUT_MASK | WITH_CACHE, EVERY_TOKEN),
    ("greedy, padded rows", WITH_MASK | WITH_CACHE, EVERY_TOKEN),
    ("greedy, static cache", WITHOUT_MASK | WITH_CACHE, EVERY_TOKEN),
    ("greedy, static cache, padded rows", WITH_MASK | WITH_CACHE, EVERY_TOKEN),
    ("greedy, no cache", WITHOUT_MASK, EVERY_TOKEN),
    ("greedy, four devices, padded rows", WITH_MASK | WITH_CACHE, EVERY_TOKEN),
    ("sampling", WITHOUT_MASK | WITH_CACHE, EVERY_TOKEN),
    ("beams", WITHOUT_MASK | WITH_CACHE | WITH_BEAMS, EVERY_TOKEN_OF_BEAMS),
    ("fill_blanks", WITH_MASK | WITH_CACHE | WITH_BLANKS, EVERY_TOKEN),
    ("fill_blanks, static cache", WITH_MASK | WITH_CACHE | WITH_BLANKS, EVERY_TOKEN),
    ("fill_blanks, beams", WITH_MASK | WITH_CACHE | WITH_BEAMS | WITH_BLANKS, EVERY_TOKEN_OF_BEAMS),
]


@pytest.mark.parametrize(("name", "once", "always"), CALLS, ids=[name for name, *_ in CALLS])
def test_generation_waits_where_it_must(
    found: dict[str, Any], name: str, once: dict[str, str], always: dict[str, str]
) -> None:
    once = EVERY_CALL | once
    if "has_encoder_input_ids" in inspect.getsource(GenerationMixin._get_logits_processor):
        once = once | NEW_HOSTS
    assert found["calls"][name] == dict.fromkeys(once, A_CALL) | dict.fromkeys(always, A_TOKEN)


def test_every_call_is_compared(found: dict[str, Any]) -> None:
    assert set(found["calls"]) == {name for name, *_ in CALLS}


def quantized(model: Glm130bForCausalLM) -> Glm130bForCausalLM:
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                setattr(parent, name, WeightOnlyLinear.from_linear(linear, bits=4))
    return model


@pytest.mark.parametrize("bits", [None, 4])
def test_the_step_of_a_static_cache_is_one_graph(bits: int | None) -> None:
    """As the host compiles it on accelerators, by itself: no break, no second compilation for a later token, another
    prompt or the same room; one more for the first other room, and that one holds for every further room.
    """
    model = tiny_model() if bits is None else quantized(tiny_model())
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, None
    settings = CompileConfig(fullgraph=True, backend="eager")
    settings._compile_all_devices = True
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for ids, new in (([9, 8, MASK, 7, 6, SOP], 10), ([9, 8, GMASK, SOP], 12), ([9, SOP], 20), ([9, 7, SOP], 29)):
        rows = torch.tensor([[PAD, *ids], [8, *ids]])
        inputs = {"input_ids": rows, "attention_mask": (rows != PAD).long(), "max_new_tokens": new, "do_sample": False}
        static = inputs | {"cache_implementation": "static"}
        found = model.generate(**static, compile_config=settings)
        assert torch.equal(found, model.generate(**inputs, disable_compile=True))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1, 1, 2, 2]
    assert not counters["graph_break"]
    torch._dynamo.reset()
