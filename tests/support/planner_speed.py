"""Predictions for machines that are put together here: without the trace of activations, which speed does not need."""

import functools

import torch

from hf_glm_ernie.planner.cards import Card, cpu_card, find_card
from hf_glm_ernie.planner.devices import read_config
from hf_glm_ernie.planner.prediction import predict
from hf_glm_ernie.planner.report import Device, DevicePlan, Plan
from hf_glm_ernie.planner.sizes import Job
from hf_glm_ernie.planner.speed_table import Speed
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig

GIB = 2**30


@functools.cache
def predicted(
    cards: int,
    name: str,
    bits: int | None,
    tensor_parallel: bool,
    context: int,
    share: float = 1.0,
    model: str = "glm130b",
) -> Speed:
    """The speed of equal cards with memory enough, each with as many layers, or a part of all.

    Args:
        cards: How many; 0 for the CPU alone.
        name: Of the card.
        bits: 4, 8, or `None` for fp16.
        tensor_parallel: Which way.
        context: Tokens in the cache, and of the prompt.
        share: Part of the cards' FLOP/s that products reach.
        model: A known model.
    """
    config = read_config(model)
    if bits is not None:
        config.quantization_config = WeightOnlyConfig(bits=bits)
    job = Job(config, torch.float16, context, 1, cards if tensor_parallel else 1)
    card = find_card(name) if cards else cpu_card()
    named: dict[Device, Card] = dict.fromkeys(range(cards), card) if cards else {"cpu": card}
    layers = [f"model.layers.{layer}" for layer in range(config.num_hidden_layers)]
    parts = {i: tuple(layers[i::cards]) for i in range(cards)}
    devices = tuple(
        DevicePlan(place, 1000 * GIB, modules=("",) if tensor_parallel or len(named) == 1 else parts[place])
        for place in named
    )
    return predict(Plan(job, devices, None, {}), named, share=share)
