"""Which bytes cross between main memory and fake CUDA devices where layers are offloaded, printed as JSON.

    python -m tests.support.offload_on_fakes

A program of its own: the fake devices (`fake_cuda.py`) change the process for good. GLM-130B's cases say way, bits,
cache, and for the prompt and a step each: bytes of weights and of everything else, to the device and back, and where
the layers' cache lies afterwards; ERNIE 3.0's where memories and logits of segments lie.

Page-locked memory and streams are not there on fakes, so each tensor of a layer is copied by itself; their order is
tested with stand-ins.
"""

import json
import sys
from typing import Any
from unittest import mock

import torch
from accelerate import dispatch_model
from torch import nn
from transformers import Cache, DynamicCache, StaticCache

from hf_glm_ernie import Ernie3ForCausalLM, Glm130bForCausalLM, set_offload
from hf_glm_ernie.host_interface import named_cache, returned_cache
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear
from tests.support import tiny_ernie3
from tests.support.fake_cuda import Watch, fake_tensors, load, watched
from tests.support.tiny_models import SOP, tiny_config

LAYERS, PROMPT, ROOM, ROWS = 6, 64, 80, 2
IN_MEMORY = (3, 4, 5)  # layers, and the norm behind them
MAIN = "cuda:0"


class Crossing(Watch):
    """Counts the bytes that go from main memory to a device and back, apart for tensors whose names it knows."""

    def __init__(self, weights: dict[int, str]) -> None:
        super().__init__()
        self.weights = weights
        self.bytes = dict.fromkeys(("weights", "to device", "to memory"), 0)

    def _copied(self, name: str, args: Any, kwargs: Any, result: torch.Tensor) -> None:
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
        if "cpu" in (source.device.type, target.device.type) and source.device != target.device:
            way = "to memory" if target.device.type == "cpu" else "to device"
            if source.dtype == torch.int8 or tuple(source.shape) in self.weights.values():
                way = "weights" if way == "to device" else "weights back"
            self.bytes[way] = self.bytes.get(way, 0) + source.nbytes


def build(bits: int | None) -> Glm130bForCausalLM:
    """A model over two devices and main memory, as Accelerate's `dispatch_model` leaves it, in fp16."""
    torch.set_default_dtype(torch.float16)
    with torch.device(MAIN):
        model = Glm130bForCausalLM(tiny_config(num_hidden_layers=LAYERS)).eval()
    torch.set_default_dtype(torch.float32)
    places: dict[str, Any] = {"model.embed_tokens": MAIN, "lm_head": MAIN, "model.rotary_emb": MAIN}
    places |= {f"model.layers.{i}": "cpu" if i in IN_MEMORY else f"cuda:{i % 2}" for i in range(LAYERS)}
    places["model.norm"] = "cpu"
    for layer in model.model.layers if bits else []:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                sizes = (linear.in_features, linear.out_features)
                setattr(parent, name, WeightOnlyLinear(*sizes, bits=bits, device=MAIN, dtype=torch.float16))
    return spread(model, places)


def spread(model: Any, places: dict[str, str]) -> Any:
    """Puts modules where they belong, with Accelerate's hooks."""
    for name, device in places.items():
        for owner in model.get_submodule(name).modules():
            for key, parameter in list(owner._parameters.items()):
                if parameter is not None:
                    setattr(owner, key, nn.Parameter(parameter.to(device), requires_grad=False))
    model.tie_weights()
    with mock.patch("accelerate.hooks.set_module_tensor_to_device"):  # all are where they belong; it makes no fake one
        dispatch_model(model, places, MAIN, skip_keys=model._skip_keys_device_placement)
        return model


def case(way: str, bits: int | None, kind: str, rows: int | None) -> dict[str, Any]:
    """A prompt and a step of decoding."""
    model = build(bits)
    with mock.patch("accelerate.hooks.set_module_tensor_to_device"):
        found = set_offload(model, way, rows, pin=False)
    in_memory = [model.model.layers[i] for i in IN_MEMORY]
    tensors = [tensor for layer in [*in_memory, model.model.norm] for tensor in layer.parameters()]
    shapes = {id(tensor): tuple(tensor.shape) for tensor in tensors}
    cache: Cache = (
        DynamicCache(config=model.config)
        if kind == "dynamic"
        else StaticCache(config=model.config, max_cache_len=ROOM)
    )
    result: dict[str, Any] = {"way": way, "bits": bits, "cache": kind, "rows": found.rows}
    result |= {"main": str(found.main), "layers": found.layers, "others": found.others}
    result["weights"] = sum(tensor.nbytes for tensor in tensors)
    for name, length in (("prompt", PROMPT), ("step", 1)):
        ids = torch.full((ROWS, length), SOP, device=MAIN)
        types = torch.ones_like(ids)
        positions = torch.ones_like(ids)
        watch = Crossing(shapes)
        with watched(watch):
            outputs = model(
                ids, token_type_ids=types, position_ids=positions, logits_to_keep=1, use_cache=True,
                **named_cache(cache),
            )  # fmt: skip
        cache = returned_cache(outputs)
        result[name] = watch.bytes | {
            "logits": str(outputs.logits.device),
            "cache": [str(layer.keys.device) for layer in cache.layers],
        }
        assert all(tensor.device.type == "cpu" for tensor in tensors)
        if kind == "dynamic":  # a static one asks for a value first, which no fake tensor has
            cache.reorder_cache(torch.arange(ROWS, device=MAIN))  # as beams do
    return result


def segments(first: int, second: int) -> dict[str, Any]:
    """ERNIE 3.0 over two devices and memory: two segments of some tokens and a step behind them; where things lie."""
    with torch.device(MAIN):
        model = Ernie3ForCausalLM(tiny_ernie3.tiny_config()).eval()
    names = ("ernie3.embeddings", "ernie3.encoder_norm", "ernie3.task_projection", "nlg_lm_head")
    places = dict.fromkeys((*names, "ernie3.branches.nlg.norm"), MAIN)
    places |= {f"ernie3.encoder.layers.{i}": place for i, place in enumerate((MAIN, "cpu", "cuda:1"))}
    places |= {f"ernie3.branches.nlg.layers.{i}": "cpu" for i in range(2)}
    spread(model, places)
    with mock.patch("accelerate.hooks.set_module_tensor_to_device"):
        found = set_offload(model, "compute", 4, pin=False)
    ids = torch.full((1, first + second + 1), 9, device=MAIN)
    with watched(Watch()):
        one = model(ids[:, :first], return_memories=True)
        two = model(ids[:, first : first + second], memories=one.memories, use_cache=True)
        cache = returned_cache(two)
        last = model(ids[:, -1:], memories=one.memories.without_states(), use_cache=True, **named_cache(cache))
    return {
        "layers": len(found.layers),
        "memories": [state.device.type for state in one.memories.states],
        "cache": [layer.keys.device.type for layer in cache.layers],
        "logits": last.logits.device.type,
    }


def main() -> None:
    """Prints the cases."""
    load()
    with fake_tensors():
        cases = [
            case("compute", None, "dynamic", None),
            case("compute", 4, "static", None),
            case("compute", 4, "dynamic", ROWS * PROMPT),
            case("copy", None, "static", None),
            case("copy", 4, "dynamic", None),
        ]
        texts = [segments(first, second) for first, second in ((8, 2), (2, 8))]
    sys.stdout.write(json.dumps({"glm130b": cases, "ernie3": texts}))


if __name__ == "__main__":
    main()
