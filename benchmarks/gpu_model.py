"""Models under `benchmarks/gpu.py`: GLM-130B in INT4 with random weights, built on the device without a file."""

import statistics
import time
import warnings
from functools import partial
from typing import Any

import torch
from gpu_machine import Machine
from gpu_report import Notes
from transformers import DynamicCache, PreTrainedModel, StaticCache

from hf_glm_ernie import Glm130bConfig
from hf_glm_ernie.host_interface import named_cache
from hf_glm_ernie.planner import plan
from hf_glm_ernie.planner.sizes import Job, model_on_meta
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig

ASKED = 0.6
"""Part of the memory's limit that decoding has to reach."""

SPARE_BYTES = 10 * 2**30
"""Left free beside the weights: cache, activations of a prompt of 2048 tokens, chunks of dequantized weights."""

PROMPT, NEW = 2048, 64
DRY_SIZES = {"vocab_size": 640, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256}
DRY_IDS = {"mask_token_id": 600, "gmask_token_id": 601, "smask_token_id": 602, "sop_token_id": 603}


def config_of(layers: int, dry: bool) -> Glm130bConfig:
    """GLM-130B's own sizes with so many layers, or small ones; INT4, no token ends a text."""
    small: dict[str, Any] = DRY_SIZES | DRY_IDS if dry else {}
    config = Glm130bConfig(num_hidden_layers=layers, eos_token_id=None, eop_token_id=None, pad_token_id=None, **small)
    config.quantization_config = WeightOnlyConfig(bits=4)
    return config


def build(here: Machine, layers: int) -> PreTrainedModel:
    """The model with random integers, filled in place: nothing larger than itself is ever held."""
    job = Job(config_of(layers, here.dry), torch.float16, context=128, batch=1)
    model = model_on_meta(job).to_empty(device=here.device)
    for name, parameter in model.named_parameters():
        data = parameter.data
        if data.dtype == torch.int8:
            data.random_(-128, 128, generator=here.generator)  # both nibbles of a byte, each over its whole range
        elif name.endswith("weight_scale"):
            columns: Any = model.get_submodule(name.rpartition(".")[0]).in_features
            data.fill_(0.25 / float(columns) ** 0.5)  # outputs as large as inputs: integers have a deviation of 4.6
        elif "norm" in name:
            data.fill_(float(name.endswith("weight")))
        elif name.endswith("bias"):
            data.zero_()
        else:
            data.normal_(0.0, 0.02, generator=here.generator)
    rotary: Any = model.get_submodule("model.rotary_emb")
    for name, bits in rotary.compute_bits().items():
        getattr(rotary, name).copy_(bits)
    model.generation_config.eos_token_id = None
    return model


def prompt(model: PreTrainedModel, rows: int, length: int) -> torch.Tensor:
    """(rows, length) random ids that end in `<sop>`."""
    ids = torch.randint(10, 500, (rows, length)).to(model.device)
    ids[:, -1] = model.config.sop_token_id
    return ids


def weight_bytes(model: PreTrainedModel) -> int:
    """What a token reads: everything, the output projection once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def _layers_that_fit(here: Machine) -> tuple[int, int]:
    """(layers to build, layers of the whole model)."""
    if here.dry:
        return 2, 2
    whole = Glm130bConfig().num_hidden_layers
    free = torch.cuda.mem_get_info(here.device)[0] - SPARE_BYTES
    outside = 150528 * 12288 * 2
    a_layer = 12288**2 * 12 // 2
    return max(0, min(whole, int((free - outside) // (1.01 * a_layer)))), whole


def whole(notes: Notes, here: Machine) -> None:
    """The 130B in INT4: tokens/s against the limit, prefill, batches."""
    layers, of = _layers_that_fit(here)
    if layers < 1:
        notes.skip("not one layer and the embedding fit beside what is used already")
        return
    if layers < of:
        notes.row(what=f"only {layers} of {of} layers fit; tokens/s are of these, the limit too")
    bandwidth, _ = here.bandwidth()
    started = time.monotonic()
    model = build(here, layers)
    here.wait()
    notes.row(what=f"{layers} layers built", seconds=time.monotonic() - started, GB=weight_bytes(model) / 1e9)
    limit = bandwidth / weight_bytes(model)
    length, new = (16, 4) if here.dry else (PROMPT, NEW)
    with torch.inference_mode():
        with notes.guarded(what="a step, static cache, captured"):
            _captured_step(notes, here, model, length // 8, limit)
        with notes.guarded(what="a step, dynamic cache"):
            _step(notes, here, model, length // 8)
        with notes.guarded(what=f"prompt of {length} tokens"):
            _prefill(notes, here, model, length)
        for rows in notes.in_time((1, 8, 32)):
            with notes.guarded(what=f"decode, {rows} rows, dynamic cache"):
                _decode(notes, here, model, rows, length // 8, new, limit, static=False)
        if here.device.type == "cuda":
            notes.row(what="peak memory so far", GB=torch.cuda.max_memory_allocated(here.device) / 1e9)
            torch.cuda.empty_cache()
        for rows in notes.in_time((1,)):  # last, for compiling 70 layers can take minutes
            with notes.guarded(what=f"decode, {rows} rows, static cache, compiled"):
                _decode(notes, here, model, rows, length // 8, new, limit, static=True)


def _decode(
    notes: Notes, here: Machine, model: Any, rows: int, length: int, new: int, limit: float, static: bool
) -> None:
    """tokens/s of a row: the time of a long answer less that of a short one, which both have the prompt."""
    ids = prompt(model, rows, length)
    options: dict[str, Any] = {"do_sample": False, "attention_mask": torch.ones_like(ids)}
    if static:
        # one size of cache for both lengths, so that one graph serves both
        options |= {"cache_implementation": "static", "max_length": length + new + 1}

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        options["stopping_criteria"] = [_StopsAfter(length + tokens)]
        budget = {} if static else {"max_new_tokens": tokens}
        found = model.generate(ids, **budget, **options)
        here.wait()
        assert found.shape == (rows, length + tokens), f"{tuple(found.shape)} ids, not {length + tokens} each"
        return time.perf_counter() - started

    first = seconds(new)  # compiles, where there is something to compile
    each = [(seconds(new) - seconds(2)) / (new - 2) for _ in range(1 if here.dry else 3)]
    step = statistics.median(each)
    name = f"decode, {rows} rows, {'static cache, compiled' if static else 'dynamic cache'}"
    notes.row(
        what=name, seconds=step, **{"tokens/s": rows / step, "of limit": 1 / step / limit, "first call, s": first}
    )
    if rows == 1 and static and not here.dry:
        notes.check(f"decoding at {ASKED:.0%} of the memory's limit", 1 / step / limit >= ASKED)


def _captured_step(notes: Notes, here: Machine, model: Any, length: int, limit: float) -> None:
    """One decoding step with a static cache, captured into a CUDA graph as it is: what the kernels allow."""
    room = length + 512  # every replay writes one place further, as many as there are replays
    cache = StaticCache(config=model.config, max_cache_len=room)
    model(prompt(model, 1, length), use_cache=True, **named_cache(cache))
    token = torch.full((1, 1), 7, device=model.device)
    ahead = torch.zeros(1, 1, 1, room, dtype=torch.bool, device=model.device)
    ahead[..., : length + 1] = True
    inputs = {
        "attention_mask": ahead,
        "position_ids": torch.full_like(token, length),
        "token_type_ids": torch.ones_like(token),
        "use_cache": True,
        **named_cache(cache),
    }
    step = here.seconds([lambda: model(token, **inputs)], 1.0, graph=True)
    reached = 1 / step / limit
    notes.row(what="a step, static cache, captured", seconds=step, **{"tokens/s": 1 / step, "of limit": reached})
    if not here.dry:
        notes.check(f"a captured step at {ASKED:.0%} of the memory's limit", reached >= ASKED)


class _StopsAfter:
    """Ends a text at a length, whatever the cache was made for."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        over = input_ids.shape[1] >= self.length
        return torch.full((input_ids.shape[0],), over, dtype=torch.bool, device=input_ids.device)


def _prefill(notes: Notes, here: Machine, model: Any, length: int) -> None:
    ids = prompt(model, 1, length)
    # the prompt's mask is asked for a value, so no graph takes it
    seconds = here.seconds([lambda: model(ids, logits_to_keep=1, use_cache=False)], 1.0, graph=False)
    weights = sum(p.numel() * (2 if p.dtype == torch.int8 else 1) for p in model.model.layers.parameters())
    notes.row(what=f"prompt of {length} tokens", seconds=seconds, **{"TFLOP/s": 2 * weights * length / seconds / 1e12})


def _step(notes: Notes, here: Machine, model: Any, length: int) -> None:
    """One decoding step with a dynamic cache: launches, and whether the host waits for the device."""
    cache = DynamicCache(config=model.config)
    model(prompt(model, 1, length), use_cache=True, **named_cache(cache))
    token = torch.full((1, 1), 7, device=model.device)
    inputs = {
        "position_ids": torch.full_like(token, length),
        "token_type_ids": torch.ones_like(token),
        "use_cache": True,
        **named_cache(cache),
    }
    model(token, **inputs)
    here.wait()
    waits: list[str] = []
    if here.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model(token, **inputs)
            waits = [f"{one.filename}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        notes.row(what="waits of a step, dynamic cache", waits=", ".join(waits) or "none")
    notes.check("no wait for the device in a decoding step", not waits)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if here.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        model(token, **inputs)
        here.wait()
    ran = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    launches = sum(not event.name.startswith(("Memcpy", "Memset")) for event in ran)
    notes.row(what="a step, dynamic cache", launches=launches)


def layer(notes: Notes, here: Machine) -> None:
    """One layer of full width against the time its weights take."""
    bandwidth, _ = here.bandwidth()
    model: Any = build(here, 1)
    block = model.model.layers[0]
    hidden, read = model.config.hidden_size, sum(p.nbytes for p in block.parameters())
    lengths = (8, 16) if here.dry else (256, 2048)
    with torch.inference_mode():
        for length in notes.in_time(lengths):
            x = here.normal(1, length, hidden, dtype=torch.float16)
            places = torch.arange(length, device=here.device)[None]
            tables = model.model.rotary_emb(places, torch.float16)
            whole_prompt = here.seconds([partial(block, x, position_embeddings=tables)], 0.5)
            notes.row(what=f"prompt of {length} tokens", seconds=whole_prompt)
            cache: Any = DynamicCache(config=model.config)
            block(x, position_embeddings=tables, past_key_values=cache)
            held = [(each.keys, each.values) for each in cache.layers]  # a graph reads what was there at its capture
            one = model.model.rotary_emb(places[:, -1:] + 1, torch.float16)

            def step(x: torch.Tensor = x, one: Any = one, cache: Any = cache, length: int = length) -> None:
                block(x[:, -1:], position_embeddings=one, past_key_values=cache)
                cache.crop(-1)

            seconds = here.seconds([step], 0.5)
            bound = (read + 2 * length * hidden * 2) / bandwidth
            notes.row(what=f"one token behind {length}", seconds=seconds, **{"of limit": bound / seconds})
            del held


def planner(notes: Notes, here: Machine) -> None:
    """What the planner says of this card, to lay beside what was measured."""
    name = "H200" if here.dry else torch.cuda.get_device_name(here.device)
    try:
        speed = plan("glm130b", name, bits=4, context=PROMPT).speed
    except ValueError as error:
        notes.skip(f"{name}: {error}")
        return
    if speed is None:
        notes.skip(f"the planner predicts nothing for {name}: the model does not fit it")
        return
    for step in speed.steps:
        notes.row(step=step.kind, rows=step.rows, limit=step.limit, **{"at most, tokens/s": step.tokens_per_second})
