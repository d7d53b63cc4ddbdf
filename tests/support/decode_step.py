"""What decoding with GLM-130B asks of CUDA devices, counted on fake ones (`fake_cuda.py`).

    python -m tests.support.decode_step            # prints the table of docs/generate.md and every wait
    python -m tests.support.decode_step --json     # what tests/test_decode_step.py reads

One step at full width, 70 layers, 256 tokens in the cache; and whole calls of `generate` and `fill_blanks` at small
width, for the places where the host waits.
"""

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any
from unittest import mock

import torch
from accelerate import dispatch_model
from torch import nn
from transformers import Cache, DynamicCache, StaticCache

from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM, weight_only_linear
from hf_glm_ernie.generation_glm130b import fill_blanks
from hf_glm_ernie.host_interface import named_cache
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear
from tests.support.fake_cuda import DEVICES, Tally, Watch, fake_tensors, load, watched
from tests.support.tiny_models import EOP, GMASK, PAD, SOP, tiny_config

CONTEXT, ROOM = 256, 512  # tokens in the cache, and tokens a static one holds
OPERATORS = {"weight_only_int::linear": weight_only_linear._run}


def build(config: Glm130bConfig, dtype: torch.dtype, bits: int | None = None) -> Glm130bForCausalLM:
    """A model on `cuda:0`."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda:0"):
            model = Glm130bForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    for layer in model.model.layers if bits else []:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                sizes = (linear.in_features, linear.out_features)
                setattr(parent, name, WeightOnlyLinear(*sizes, bits=bits, device="cuda:0", dtype=dtype))
    return model


def spread(model: Glm130bForCausalLM) -> Glm130bForCausalLM:
    """The model over all devices, layer by layer."""
    layers = model.config.num_hidden_layers
    places: dict[str, Any] = dict.fromkeys(("model.embed_tokens", "lm_head", "model.rotary_emb"), "cuda:0")
    places |= {f"model.layers.{i}": f"cuda:{i * DEVICES // layers}" for i in range(layers)}
    places |= {"model.norm": f"cuda:{DEVICES - 1}"}
    for name, device in places.items():
        for owner, parameters in ((module, module._parameters) for module in model.get_submodule(name).modules()):
            for key, parameter in parameters.items():
                if parameter is not None:
                    moved = nn.Parameter(parameter.to(device), requires_grad=False)
                    setattr(owner, key, moved)
    model.lm_head.weight = model.model.embed_tokens.weight
    with mock.patch("accelerate.hooks.set_module_tensor_to_device"):  # all are where they belong; it makes no fake one
        return dispatch_model(model, places, "cuda:0", skip_keys=model._skip_keys_device_placement)


def filled(model: Glm130bForCausalLM, kind: str, rows: int) -> Cache:
    """A cache with `CONTEXT` tokens of each row, on the devices of the layers."""
    config = model.config
    cache: Any = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=ROOM)
    shape = (rows, config.num_attention_heads, CONTEXT, config.head_dim)
    for index, layer in enumerate(model.model.layers):
        norm = layer.input_layernorm.weight
        cache.update(*(torch.empty(shape, dtype=norm.dtype, device=norm.device) for _ in "kv"), index)
    return cache


def step(model: Glm130bForCausalLM, kind: str, rows: int = 1, padded: bool = False) -> Tally:
    """One step as `generate` makes it: what is prepared for it, and its forward."""
    cache = filled(model, kind, rows)
    prompt = torch.zeros(rows, CONTEXT, dtype=torch.long, device="cuda:0")
    ids = torch.zeros(rows, CONTEXT + 1, dtype=torch.long, device="cuda:0")
    arguments = {
        "attention_mask": torch.ones_like(ids) if padded else None,
        "prompt_token_type_ids": prompt,
        "prompt_position_ids": prompt,
        "answer_step": prompt[:, :1],
        "logits_to_keep": 1,
        "use_cache": True,
    } | named_cache(cache)
    with watched(Watch(OPERATORS)) as tally:
        inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **arguments)
        logits = model(**inputs, return_dict=True).logits
    assert logits.shape == (rows, 1, model.config.vocab_size)
    return tally


def weight_bytes(model: nn.Module) -> int:
    """Of all that a step must read: the parameters, once each."""
    return sum(parameter.nbytes for parameter in model.parameters())
