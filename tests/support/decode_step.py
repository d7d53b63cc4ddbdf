"""What decoding with GLM-130B asks of CUDA devices, counted on fake ones (`fake_cuda.py`).

    python -m tests.support.decode_step            # prints the table of docs/generate.md and every wait
    python -m tests.support.decode_step --json     # what tests/test_decode_step.py reads

Steps are at full width, for 70 layers and 256 tokens in the cache. Whole calls of `generate` and `fill_blanks`, for
the places where the host waits, are of a small model: places do not depend on sizes.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from accelerate import dispatch_model
from torch import nn
from transformers import Cache, DynamicCache, StaticCache

from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM, fill_blanks, weight_only_linear, weight_only_triton
from hf_glm_ernie.host_interface import named_cache
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear
from tests.support.fake_cuda import DEVICES, Tally, Watch, fake_tensors, load, watched
from tests.support.tiny_models import EOP, EOS, GMASK, MASK, PAD, SMASK, SOP, tiny_config

LAYERS = 70
CONTEXT, ROOM = 256, 512  # tokens in the cache, and tokens a static one holds
OPERATORS = {"weight_only_int::linear_with_bias": weight_only_linear._run}
FEW, MORE = 3, 5  # tokens that two calls write: what they differ by belongs to the tokens
PROMPT = 6


def build(
    config: Glm130bConfig, dtype: torch.dtype = torch.float16, bits: int | None = None, ranks: int = 1
) -> Glm130bForCausalLM:
    """A model on `cuda:0`, or the part of it that one of several tensor-parallel ranks has."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda:0"):
            model = Glm130bForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                shared_columns = name in ("o_proj", "down_proj")
                columns = linear.in_features // (ranks if shared_columns else 1)
                rows = linear.out_features // (1 if shared_columns else ranks)
                if bits:
                    setattr(parent, name, WeightOnlyLinear(columns, rows, bits=bits, device="cuda:0", dtype=dtype))
                elif ranks > 1:
                    setattr(parent, name, nn.Linear(columns, rows, device="cuda:0", dtype=dtype))
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, [EOP, EOS]
    return model


def spread(model: Glm130bForCausalLM, hooks: bool = True) -> Glm130bForCausalLM:
    """The model over all devices, layer by layer; without the host's hooks nothing moves between them."""
    layers = model.config.num_hidden_layers
    places: dict[str, Any] = dict.fromkeys(("model.embed_tokens", "lm_head", "model.rotary_emb"), "cuda:0")
    places |= {f"model.layers.{i}": f"cuda:{i * DEVICES // layers}" for i in range(layers)}
    places["model.norm"] = f"cuda:{DEVICES - 1}"
    for name, device in places.items():
        for module in model.get_submodule(name).modules():
            for key, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, key, nn.Parameter(parameter.to(device), requires_grad=False))
    model.lm_head.weight = model.model.embed_tokens.weight
    if not hooks:
        return model
    with mock.patch("accelerate.hooks.set_module_tensor_to_device"):  # all are where they belong; it makes no fake one
        return dispatch_model(model, places, "cuda:0", skip_keys=model._skip_keys_device_placement)


def filled(model: Glm130bForCausalLM, kind: str, rows: int) -> Cache:
    """A cache with `CONTEXT` tokens of each row, on the devices of the layers."""
    config = model.config
    cache: Any = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=ROOM)
    for index, layer in enumerate(model.model.layers):
        weight = layer.input_layernorm.weight
        heads = layer.self_attn.k_proj.out_features // config.head_dim
        shape = (rows, heads, CONTEXT, config.head_dim)
        cache.update(*(torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in "kv"), index)
    return cache


def step(model: Glm130bForCausalLM, setting: "Setting") -> Tally:
    """One step as `generate` makes it: what is prepared for it, and its forward."""
    rows, cache = setting.rows, filled(model, setting.kind, setting.rows)
    prompt = torch.zeros(rows, CONTEXT, dtype=torch.long, device="cuda:0")
    ids = torch.zeros(rows, CONTEXT + 1, dtype=torch.long, device="cuda:0")
    arguments = {
        "attention_mask": torch.ones_like(ids) if setting.padded else None,
        "prompt_token_type_ids": prompt,
        "prompt_position_ids": prompt,
        "answer_step": prompt[:, :1],
        "logits_to_keep": 1,
        "use_cache": True,
    } | named_cache(cache)
    watch = Watch(OPERATORS)
    with cards(setting.card, watch), watched(watch) as tally:
        inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **arguments)
        logits = model(**inputs, return_dict=True).logits
    assert logits.shape == (rows, 1, model.config.vocab_size)
    return tally


def prefill(dtype: torch.dtype, tokens: int = 2048) -> dict[str, Any]:
    """A prompt through two layers of INT4 at full width, as `generate` passes it."""
    model = build(Glm130bConfig(num_hidden_layers=2), dtype, bits=4)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="cuda:0")
    layout = {"prompt_token_type_ids": ids, "prompt_position_ids": ids, "answer_step": ids[:, :1]}
    cache: Any = named_cache(DynamicCache(config=model.config))
    watch = Watch(OPERATORS)
    with cards("3090", watch), watched(watch) as tally:
        inputs = model.prepare_inputs_for_generation(ids, is_first_iteration=True, use_cache=True, **layout, **cache)
        logits = model(**inputs, logits_to_keep=1, return_dict=True).logits
    assert logits.shape == (1, 1, model.config.vocab_size)
    return summary(model, tally)


def step_by_hand(model: Glm130bForCausalLM, kind: str, rows: int = 1) -> Tally:
    """One step of a caller who passes the new ids and the cache, and nothing else, behind a prompt of his."""
    ids = torch.zeros(rows, PROMPT, dtype=torch.long, device="cuda:0")
    cache: Any = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=ROOM)
    with watched(Watch(OPERATORS)):
        model(ids, use_cache=True, **named_cache(cache))
    with watched(Watch(OPERATORS, {"modeling_glm130b._layout": 1})) as tally:  # there is something in the cache
        model(ids[:, :1], use_cache=True, **named_cache(cache))
    return tally


def summary(model: nn.Module, tally: Tally) -> dict[str, Any]:
    """What a test and a table want of a step."""
    weights = sum(parameter.nbytes for parameter in model.parameters())  # all that a step must read, once
    return {
        "launches": tally.launched,
        "bytes": tally.bytes,
        "weights": weights,
        "ratio": tally.bytes / weights,
        "waits": [str(wait) for wait in tally.waits],
        "moves": tally.moves,
        "by_name": tally.launches,
    }


CARDS = {"2080 Ti": ((7, 5), 68), "3090": ((8, 6), 82), "A100": ((8, 0), 108), "H100": ((9, 0), 132)}
"""Compute capability and multiprocessors, which say what kernels of integer weights are taken."""


@contextmanager
def cards(name: str, watch: Watch) -> Iterator[None]:
    """All devices are of this kind, and launches of Triton's kernels are counted in place of made."""
    capability, processors = CARDS[name]
    properties = SimpleNamespace(multi_processor_count=processors)
    cached = (
        *(weight_only_triton.device_capability, weight_only_triton.problem),
        *(weight_only_triton.rows_plan, weight_only_triton.dot_plan),
    )
    with (
        mock.patch.object(weight_only_triton, "_launch", watch.launch),
        mock.patch("torch.cuda.get_device_capability", return_value=capability),
        mock.patch("torch.cuda.get_device_properties", return_value=properties),
    ):
        for function in cached:
            function.cache_clear()
        yield
    for function in cached:
        function.cache_clear()


class Setting(NamedTuple):
    """A step: how the weights are held, the cache and its rows, where the model lies, on which cards."""

    bits: int | None = None
    dtype: torch.dtype = torch.float16
    kind: str = "static"
    rows: int = 1
    padded: bool = False
    where: str = "one device"
    card: str = "3090"

    @property
    def name(self) -> str:
        weights = f"INT{self.bits}" if self.bits else "unquantized"
        rows = f"{self.rows} padded rows" if self.padded else f"{self.rows} row" + "s" * (self.rows > 1)
        return f"{weights} {str(self.dtype)[6:]}, {self.kind} cache, {rows}, {self.where}, {self.card}"


BOTH = ("static", "dynamic")
STEPS = [
    *(Setting(4, dtype, kind) for dtype in (torch.float16, torch.bfloat16) for kind in BOTH),
    Setting(8),
    *(Setting(4, card=card) for card in CARDS if card != "3090"),
    Setting(4, kind="dynamic", rows=32),
    *(Setting(4, kind=kind, rows=4, padded=True, where="four devices") for kind in BOTH),
    *(Setting(4, kind=kind, rows=4, padded=True, where="a rank of four", card="H100") for kind in BOTH),
    *(Setting(kind=kind) for kind in BOTH),
    *(Setting(kind=kind, rows=4, padded=True) for kind in BOTH),
]


def step_of(setting: Setting, layers: int) -> dict[str, Any]:
    """One step of a model of so many layers."""
    ranks = 4 if setting.where == "a rank of four" else 1
    model = build(Glm130bConfig(num_hidden_layers=layers), setting.dtype, setting.bits, ranks)
    return summary(model, step(spread(model) if setting.where == "four devices" else model, setting))


def count_step(setting: Setting) -> dict[str, Any]:
    """One step of 70 layers, from one of 4 and one of 8: every further layer adds the same."""
    few, more = (step_of(setting, layers) for layers in (DEVICES, 2 * DEVICES))

    def of_all(name: str, group: str = "") -> int:
        one, other = (found[group][name] if group else found[name] for found in (few, more))
        each, rest = divmod(other - one, DEVICES)
        assert not rest, name
        return one + each * (LAYERS - DEVICES)

    assert few["by_name"].keys() == more["by_name"].keys()
    counted = {name: of_all(name) for name in ("launches", "bytes", "weights")}
    by_name = {name: of_all(name, "by_name") for name in more["by_name"]}
    return more | counted | {"ratio": counted["bytes"] / counted["weights"], "by_name": by_name}


def count_steps() -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs the steps; those with integer weights only where Triton is installed."""
    for setting in STEPS:
        if not setting.bits or weight_only_triton.triton is not None:
            yield setting.name, count_step(setting)


class Tokenizer:
    """As much of a tokenizer as `fill_blanks` asks for."""

    sop_token_id, eos_token_id, pad_token_id = SOP, EOS, PAD
    mask_token_id, smask_token_id, gmask_token_id = MASK, SMASK, GMASK

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [9, *(8 for _ in text), MASK, 7, SOP]}

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def generates(new: int, rows: int = 2, padded: bool = False, over_devices: bool = False, **settings: Any) -> Tally:
    """A whole call of `generate`."""
    model = build(tiny_config(num_hidden_layers=DEVICES))
    model = spread(model) if over_devices else model
    projected: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda module, args: projected.append(args[0].shape[1]))
    ids = torch.full((rows, PROMPT), 9, device="cuda:0")
    mask = torch.ones_like(ids) if padded else None
    with watched(Watch(OPERATORS, answers(new, padded))) as tally:
        output = model.generate(ids, attention_mask=mask, max_new_tokens=new, disable_compile=True, **settings)
    assert output.shape == (rows, PROMPT + new)
    assert projected == [1] * new  # logits of the last position alone, of the prompt too
    return tally


def fills(new: int, **settings: Any) -> Tally:
    """A whole call of `fill_blanks`, of two texts with a blank each."""
    model = build(tiny_config(num_hidden_layers=DEVICES))
    with watched(Watch(OPERATORS, answers(new, True))) as tally:
        fill_blanks(model, Tokenizer(), ["a", "abc"], max_new_tokens=new, disable_compile=True, **settings)
    return tally


def answers(new: int, padded: bool) -> dict[str, Any]:
    """What a machine would find: ids in the vocabulary, some padding or none, an end after so many tokens."""
    return {
        "host_inputs._first_outside": 1,
        "generation_glm130b._check_room": PROMPT,
        "utils.generate": chain([0], repeat(0 if padded else 1)),  # no padding on the right; is the mask all ones
        "utils.__call__": chain(repeat(0, new - 1), [1]),
        "utils._beam_search": chain([PAD, PAD], repeat(1, new - 1), [0, PROMPT + new, new]),
    }


CALLS: dict[str, Callable[[int], Tally]] = {
    "greedy": generates,
    "greedy, padded rows": lambda new: generates(new, padded=True),
    "greedy, static cache": lambda new: generates(new, cache_implementation="static"),
    "greedy, static cache, padded rows": lambda new: generates(new, padded=True, cache_implementation="static"),
    "greedy, no cache": lambda new: generates(new, use_cache=False),
    "greedy, four devices, padded rows": lambda new: generates(new, padded=True, over_devices=True),
    "sampling": lambda new: generates(new, do_sample=True, top_k=20, top_p=0.9, temperature=0.7),
    "beams": lambda new: generates(new, num_beams=3),
    "fill_blanks": fills,
    "fill_blanks, static cache": lambda new: fills(new, cache_implementation="static"),
    "fill_blanks, beams": lambda new: fills(new, num_beams=3),
}


def waits_of(call: Callable[[int], Tally]) -> dict[str, str]:
    """The places where a call waits, and whether they belong to the call or to its tokens."""
    few, more = (Counter(map(str, call(new).waits)) for new in (FEW, MORE))
    return {place: "a call" if few[place] == count else "a token" for place, count in more.items()}


def lost_between_devices() -> str:
    """What is said of a model whose layers lie on several devices where nothing moves what they pass on."""
    model = spread(build(tiny_config(num_hidden_layers=DEVICES)), hooks=False)
    try:
        step(model, Setting(kind="dynamic"))
    except RuntimeError as error:
        return str(error)
    return ""


def report() -> dict[str, Any]:
    """Everything, as the test reads it."""
    with fake_tensors():
        small = build(tiny_config())
        return {
            "steps": dict(count_steps()),
            "whole": step_of(Setting(), LAYERS),
            "by_hand": {kind: summary(small, step_by_hand(small, kind)) for kind in ("dynamic", "static")},
            "prefill": {str(dtype): prefill(dtype) for dtype in (torch.float16, torch.bfloat16)}
            if weight_only_triton.triton is not None
            else {},
            "calls": {name: waits_of(call) for name, call in CALLS.items()},
            "lost": lost_between_devices(),
        }


def table(steps: dict[str, dict[str, Any]]) -> str:
    """The steps as a page shows them."""
    lines = ["| one step | launches | bytes / weights | copies between devices | waits |", "|---|---|---|---|---|"]
    for name, found in steps.items():
        figures = (f"{found['launches']:,}", f"{found['ratio']:.3f}", len(found["moves"]), len(found["waits"]))
        lines.append(f"| {name} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the report."""
    load()
    found = report()
    if "--json" in sys.argv[1:]:
        sys.stdout.write(json.dumps(found))
        return
    sys.stdout.write(table(found["steps"]) + "\n")
    for name, waits in found["calls"].items():
        sys.stdout.write(f"\n{name}\n" + "".join(f"  {place}, {often}\n" for place, often in waits.items()))


if __name__ == "__main__":
    main()
