"""Layers in main memory, computed there or copied ahead: the numbers of one device, and what crosses when.

Both devices are the CPU here, with Accelerate's hooks as `dispatch_model` puts them on layers in main memory; a copy
to the other device is then a copy into its buffers. On fake CUDA devices (`support/offload_on_fakes.py`) every use of
two devices at once is an error, and the bytes that cross are counted. Nothing here has run on a GPU.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, ErnieConfig, ErnieModel
from transformers.cache_utils import DynamicCache

from hf_glm_ernie import set_offload
from hf_glm_ernie.host_interface import named_cache
from hf_glm_ernie.inference import staged_copies
from hf_glm_ernie.inference.crossings import Crossings
from hf_glm_ernie.inference.staged_copies import CopyStream, HostBlock, SameDevice, block_bytes
from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig, repack
from hf_glm_ernie.weight_only_kernels import RELEASED, TORCH_INT4
from tests.support import tiny_ernie3
from tests.support.fake_cuda import why_not
from tests.support.offloading import INPUTS, LAYER_NAMES, generated, in_memory, logits
from tests.support.tiny_models import GMASK, LAYERS, SOP, tiny_model

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
FEW = 2  # rows: a step of both texts is computed on the CPU, the prompt is not
GENERATIONS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 3},
    "static beams": {"num_beams": 2, "cache_implementation": "static"},
}


class Log(SameDevice):
    """A stream that copies as late as it may, and writes down what is asked of it.

    A buffer holds rubbish from the moment that its copy is begun; the values come when somebody waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self.lines: list[str] = []
        self.layers: list[int] = []  # addresses, in the order they were first copied
        self.buffers: list[int] = []
        self.ends = 0

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
        number, slot = (
            known.index(pointer) if pointer in known else known.append(pointer) or len(known) - 1  # type: ignore[func-returns-value]
            for known, pointer in ((self.layers, source.data_ptr()), (self.buffers, target.data_ptr()))
        )
        self.lines.append(f"copy {number} into {slot} after {after}")
        target.fill_(255)
        return target, source, number

    def wait(self, event: Any) -> None:
        self.lines.append(f"wait {event[2]}")
        event[0].copy_(event[1])

    def computed(self) -> Any:
        self.ends += 1
        self.lines.append(f"end {self.ends}")
        return self.ends


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Log]:
    """Those that were made, newest last."""
    made: list[Log] = []

    def make(device: torch.device) -> Log:
        made.append(Log(device))
        return made[-1]

    monkeypatch.setattr(staged_copies, "copy_stream", make)
    return made


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("way", ["compute", "copy"])
def test_the_numbers_of_one_device(way: str, bits: int | None, tmp_path: Path, streams: list[Log]) -> None:
    """Prompts through copies, steps on the CPU or through copies; the same kernels, so the same bits."""
    tiny_model().save_pretrained(tmp_path)
    quantized = {} if bits is None else {"quantization_config": WeightOnlyConfig(bits=bits)}
    alone, spread = (AutoModelForCausalLM.from_pretrained(tmp_path, **quantized) for _ in range(2))
    in_memory(spread, "model.layers.1", "model.layers.2", "model.norm")
    found = set_offload(spread, way, FEW if way == "compute" else None)
    assert found.layers == ("model.layers.1", "model.layers.2")
    assert found.others == ("model.norm",)
    assert torch.equal(logits(spread), logits(alone))
    for options in GENERATIONS.values():
        assert torch.equal(generated(spread, **options), generated(alone, **options))
    copies = [line for line in streams[0].lines if line.startswith("copy")]
    prompts = 1 + len(GENERATIONS)
    # of beams, three or two for each text, a step has more rows than are few
    steps = 4 * (2 if way == "compute" else len(GENERATIONS))
    assert len(copies) == 2 * (prompts + steps)


def test_bytes_in_the_order_of_the_cpu_never_leave_it(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    options: dict[str, Any] = {"quantization_config": WeightOnlyConfig(bits=4), "dtype": torch.bfloat16}
    alone, spread = (AutoModelForCausalLM.from_pretrained(tmp_path, **options) for _ in range(2))
    set_offload(in_memory(spread, *LAYER_NAMES), "compute", 2 * 6)
    if not repack(spread):
        pytest.skip("this processor's packing of 4-bit weights is not known")
    linear = spread.model.layers[0].mlp.up_proj
    logits(spread)  # all on the CPU
    assert linear.layout == TORCH_INT4
    set_offload(spread, "compute", FEW)
    assert torch.equal(logits(spread), logits(alone))
    assert linear.layout == RELEASED


def test_everything_in_memory_and_tied_weights_stay_one() -> None:
    alone, spread = tiny_model(), in_memory(tiny_model(), "model.embed_tokens", "lm_head", *LAYER_NAMES)
    set_offload(spread, "compute", FEW)
    assert spread.lm_head.weight is spread.model.embed_tokens.weight
    assert torch.equal(logits(spread), logits(alone))
    assert torch.equal(generated(spread), generated(alone))


def test_a_layer_lies_in_memory_once() -> None:
    """Its tensors are views of one block with storages of their own, and the hooks' table has let go of them."""
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    in_memory(model, *LAYER_NAMES)
    table = model.model.layers[0].mlp.up_proj._hf_hook.weights_map.dataset
    assert any(name.startswith("model.layers.") for name in table.state_dict)
    set_offload(model, "copy")
    assert not any(name.startswith("model.layers.") for name in table.state_dict)
    block: HostBlock = model.model.layers[0]._offloaded_unit.block
    first, last = block.bytes.data_ptr(), block.bytes.data_ptr() + block.bytes.numel()
    parameters = list(model.model.layers[0].parameters())
    assert all(first <= tensor.data_ptr() < last and tensor.data_ptr() % 8 == 0 for tensor in parameters)
    assert len({tensor.untyped_storage().data_ptr() for tensor in parameters}) == len(parameters)
    assert block.bytes.numel() == block_bytes(model.model.layers[0])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_ernie_3_with_memories() -> None:
    """Memories cross with their layers' rows, from a segment computed on one device to one on the other."""
    names = [*(f"ernie3.encoder.layers.{i}" for i in range(3)), "ernie3.branches.nlg.layers.1", "ernie3.embeddings"]
    alone = tiny_ernie3.tiny_model(Ernie3ForCausalLM)
    spread = in_memory(tiny_ernie3.tiny_model(Ernie3ForCausalLM), *names)
    found = set_offload(spread, "compute", 4)
    assert len(found.layers) == 4
    ids = tiny_ernie3.random_ids(2, 5)
    results = []
    for model in (spread, alone):
        with torch.no_grad():
            first = model(ids, return_memories=True)
            second = model(ids[:, :2], memories=first.memories)
            more = model.generate(ids, memories=second.memories, max_new_tokens=4, do_sample=False)
        results.append((second.logits, more, *second.memories.states))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_an_encoder_and_its_embeddings() -> None:
    config = ErnieConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48
    )
    torch.manual_seed(0)
    model = ErnieModel(config).eval()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        in_memory(model, "embeddings", "encoder.layer.0", "encoder.layer.2")
        for way, rows in (("compute", 8), ("compute", 7), ("copy", None)):
            assert set_offload(model, way, rows).layers == ("encoder.layer.0", "encoder.layer.2")
            assert torch.equal(model(ids).last_hidden_state, expected)


# Order of the copies -------------------------------------------------------------------------------------------------


def test_a_layer_is_copied_while_the_one_before_it_computes(streams: list[Log]) -> None:
    model = in_memory(tiny_model(), *LAYER_NAMES)
    set_offload(model, "copy")
    logits(model)
    (log,) = streams
    assert log.lines == [
        "end 1",  # whatever used the buffers' memory before
        "copy 0 into 0 after 1",  # begun with the forward of the model
        "wait 0",
        "copy 1 into 1 after 1",  # begun before layer 0 is computed ...
        "end 2",  # ... which is what ends here
        "wait 1",
        "copy 2 into 0 after 2",  # not before layer 0 has been computed
        "end 3",
        "wait 2",
        "end 4",
    ]
    log.lines.clear()
    logits(model)
    assert [line for line in log.lines if "copy" in line] == [
        "copy 0 into 1 after 3",
        "copy 1 into 0 after 4",
        "copy 2 into 1 after 5",
    ]


def test_steps_of_decoding_copy_nothing(streams: list[Log]) -> None:
    model = in_memory(tiny_model(), *LAYER_NAMES)
    set_offload(model, "compute", FEW)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**INPUTS, use_cache=True, **named_cache(cache))
        (log,) = streams
        assert sum("copy" in line for line in log.lines) == LAYERS
        log.lines.clear()
        mask = torch.cat((INPUTS["attention_mask"], torch.ones(2, 1, dtype=torch.long)), dim=1)
        model(torch.tensor([[5], [6]]), attention_mask=mask, use_cache=True, **named_cache(cache))
    assert not log.lines


def test_a_stream_waits_for_what_used_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls on the accelerator's streams and events, with stand-ins for them."""
    calls: list[str] = []

    class AStream:
        def __init__(self, name: str = "copies", device: Any = None) -> None:
            self.name = name

        def wait_event(self, event: Any) -> None:
            calls.append(f"{self.name} waits for {event}")

        def record_event(self) -> str:
            calls.append(f"{self.name} records")
            return f"event of {self.name}"

    class Runtime:
        Stream = AStream

        @staticmethod
        @contextmanager
        def stream(stream: AStream) -> Iterator[None]:
            calls.append(f"in {stream.name}")
            yield
            calls.append(f"out of {stream.name}")

        @staticmethod
        def current_stream(device: Any) -> AStream:
            return AStream("current")

    monkeypatch.setattr(torch, "get_device_module", lambda device: Runtime)
    stream = CopyStream(torch.device("cuda:0"))
    target = torch.zeros(4)
    event = stream.copy(target, torch.ones(4), stream.computed())
    stream.wait(event)
    assert torch.equal(target, torch.ones(4))
    assert calls == [
        "current records",
        "in copies",
        "copies waits for event of current",
        "copies records",
        "out of copies",
        "current waits for event of copies",
    ]


def test_the_same_tensor_crosses_once() -> None:
    crossings, meta = Crossings(), torch.device("meta")
    cos, sin = torch.ones(2), torch.ones(2)
    first = crossings.move({"position_embeddings": (cos, sin), "flag": True, "none": None}, meta)
    second = crossings.move([(cos, sin)], meta)
    assert first["position_embeddings"][0] is second[0][0]
    assert first["flag"] is True
    assert crossings.move(cos, CPU) is cos
    cos.add_(1)
    assert crossings.move(cos, meta) is not first["position_embeddings"][0]
    del cos, sin
    assert not len(crossings.copies)  # they die with their originals


# Fake CUDA devices ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_fakes() -> dict[str, list[dict[str, Any]]]:
    if reason := why_not():
        pytest.skip(f"no fake CUDA devices: {reason}")
    command = [sys.executable, "-m", "tests.support.offload_on_fakes"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_step_moves_rows_and_no_weights(on_fakes: dict[str, Any]) -> None:
    """fp16, 2 texts, 64 wide, 4 heads of 16: one crossing each way for three layers and the norm behind them."""
    for case in (case for case in on_fakes["glm130b"] if case["way"] == "compute"):
        step = case["step"]
        hidden, tables = 2 * 64 * 2, 2 * (2 * 16 * 2)
        mask = 2 * 80 * 2 if case["cache"] == "static" else 0  # a number for each column
        assert step["weights"] == 0
        assert step["to memory"] == hidden + tables + mask
        assert step["to device"] == hidden
        assert step["cache"] == ["cuda:0", "cuda:1", "cuda:0", "cpu", "cpu", "cpu"]
        assert step["logits"] == "cuda:0"


def test_a_prompt_moves_each_weight_once_and_the_cache_back(on_fakes: dict[str, Any]) -> None:
    for case in (case for case in on_fakes["glm130b"] if case["way"] == "compute"):
        prompt, length = case["prompt"], 80 if case["cache"] == "static" else 64
        assert prompt["cache"] == ["cuda:0", "cuda:1", "cuda:0", "cpu", "cpu", "cpu"]
        if case["rows"] >= 2 * 64:  # the CPU computes prompts of this length too
            assert prompt["weights"] == 0
            continue
        assert prompt["weights"] == case["weights"]
        counters = 3 * 8 if case["cache"] == "static" else 0  # a static cache counts its tokens in a tensor
        assert prompt["to memory"] == 3 * 2 * (2 * length * 64) * 2 + counters


def test_copies_bring_each_weight_once_a_forward(on_fakes: dict[str, Any]) -> None:
    copying = [case for case in on_fakes["glm130b"] if case["way"] == "copy"]
    assert len(copying) == 2
    for case in copying:
        for name in ("prompt", "step"):
            assert case[name]["weights"] == case["weights"]
            assert case[name]["to memory"] == 0
            assert case[name]["cache"][3:] == ["cuda:0"] * 3


def test_memories_lie_beside_the_accelerator_whoever_computed_them(on_fakes: dict[str, Any]) -> None:
    """A segment of few tokens is computed on the CPU, the next one or the one before it is not."""
    for text in on_fakes["ernie3"]:
        assert text["layers"] == 3
        assert text["memories"] == ["cuda"] * 5
        assert text["cache"] == ["cuda", "cpu", "cuda", "cpu", "cpu"]
        assert text["logits"] == "cuda"


# What else happens to models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["compute", "copy"])
def test_saved_as_before(way: str, tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "before")
    in_memory(model, *LAYER_NAMES)
    set_offload(model, way)
    logits(model)
    with pytest.warns(UserWarning, match="offloaded modules"):
        model.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_come_back_where_a_forward_fails(streams: list[Log]) -> None:
    model = in_memory(tiny_model(), *LAYER_NAMES)
    expected = logits(tiny_model())
    set_offload(model, "copy")
    weight = model.model.layers[1].mlp.up_proj.weight
    attention = model.model.layers[1].self_attn.forward
    model.model.layers[1].self_attn.forward = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        logits(model)
    assert model.model.layers[1].mlp.up_proj.weight is weight
    model.model.layers[1].self_attn.forward = attention
    assert torch.equal(logits(model), expected)


CHANGES: dict[str, Callable[[nn.Parameter], None]] = {
    "in place": lambda weight: weight.data.mul_(2),
    "other memory": lambda weight: setattr(weight, "data", weight.data * 2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_weights_that_change_between_forwards(layer: int, change: Any, streams: list[Log]) -> None:
    """As adapters do that are merged; no copy outlives the forward it was made for."""
    alone, spread = tiny_model(), in_memory(tiny_model(), *LAYER_NAMES)
    set_offload(spread, "copy")
    logits(spread)
    for model in (alone, spread):
        change(model.model.layers[layer].mlp.up_proj.weight)
    assert torch.equal(logits(spread), logits(alone))
    block = spread.model.layers[layer]._offloaded_unit.block
    set_offload(spread, "copy")  # takes what lies elsewhere into a block again
    assert (spread.model.layers[layer]._offloaded_unit.block is block) == (change is CHANGES["in place"])
    assert torch.equal(logits(spread), logits(alone))


@pytest.mark.parametrize("way", ["compute", "copy"])
def test_lora_on_layers_in_memory(way: str, tmp_path: Path, streams: list[Log]) -> None:
    """Answers, gradients, merging, and an adapter that PEFT opens."""
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    rows = FEW if way == "compute" else None
    spread = in_memory(tiny_model(), *LAYER_NAMES)
    set_offload(spread, way, rows)
    adapted = []
    for model in (spread, tiny_model()):
        torch.manual_seed(1)
        adapted.append(get_peft_model(model, config))
    spread, alone = adapted
    assert torch.equal(logits(spread), logits(alone))
    assert torch.equal(generated(spread), generated(alone))
    ids = torch.tensor([[9, 8, 7, GMASK, SOP, 5, 6]])
    labels = torch.tensor([[-100] * 5 + [5, 6]])
    for model in (spread, alone):
        model(ids, labels=labels).loss.backward()
    pairs = list(zip(spread.parameters(), alone.parameters(), strict=True))
    assert sum(one.grad is not None for one, _ in pairs) == 4 * LAYERS
    for one, other in pairs:
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    alone.save_pretrained(tmp_path)
    for model in (spread, alone):
        model.merge_adapter()
    assert torch.equal(logits(spread), logits(alone))
    opened = PeftModel.from_pretrained(tiny_model(), str(tmp_path))
    fresh = in_memory(tiny_model(), *LAYER_NAMES)
    set_offload(fresh, way, rows)
    assert torch.equal(logits(PeftModel.from_pretrained(fresh, str(tmp_path))), logits(opened))


def test_another_device_map_afterwards_is_noticed() -> None:
    """What PEFT's `from_pretrained` does beside an accelerator."""
    model = in_memory(tiny_model(), *LAYER_NAMES)
    expected = logits(tiny_model())
    set_offload(model, "compute")
    in_memory(model, *LAYER_NAMES)
    with pytest.raises(RuntimeError, match=r"model\.layers\.0 have been taken away.*set_offload\(\) again"):
        logits(model)
    assert set_offload(model, "compute").layers == tuple(LAYER_NAMES)
    assert torch.equal(logits(model), expected)


def test_chosen_again(streams: list[Log]) -> None:
    model = in_memory(tiny_model(), *LAYER_NAMES)
    expected = logits(tiny_model())
    for way, rows in (("compute", 100), ("copy", None), ("compute", FEW)):
        found = set_offload(model, way, rows)
        assert (found.way, found.rows, found.layers) == (way, rows or 0, tuple(LAYER_NAMES))
        assert torch.equal(logits(model), expected)
    hooks = model.model.layers[0]._forward_hooks, model._forward_hooks
    assert [len(of_module) for of_module in hooks] == [1, 1]


def test_compiled_with_interruptions_and_not_as_one_graph() -> None:
    model = in_memory(tiny_model(num_hidden_layers=2), "model.layers.1")
    expected = logits(tiny_model(num_hidden_layers=2))
    set_offload(model, "compute")
    torch.testing.assert_close(logits(torch.compile(model, backend="eager")), expected, rtol=0, atol=1e-6)
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        logits(torch.compile(model, backend="eager", fullgraph=True))
    torch.compiler.reset()
