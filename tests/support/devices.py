"""What models hold, and what they take while they run."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
)


def check_layers_whole(model: nn.Module, device_map: dict[str, Any]) -> None:
    classes = model._no_split_modules
    inside = tuple(f"{name}." for name, module in model.named_modules() if type(module).__name__ in classes)
    assert inside
    assert not [module for module in device_map if module.startswith(inside)]
    loose = [
        name for name, _ in model.named_parameters() if not any(f"{name}.".startswith(f"{m}.") for m in device_map)
    ]
    assert "" in device_map or not loose


def bytes_held(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared memory once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def measured_peak(model: nn.Module, inputs: dict[str, Any]) -> tuple[int, Any]:
    """The most bytes that torch's CPU allocator handed out above what it held at the start of a forward."""
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        output = model(**inputs)
    alive = highest = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        highest = max(highest, alive)
    return highest, output
