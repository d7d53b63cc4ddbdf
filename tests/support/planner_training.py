"""What a real training step saves and allocates on the CPU, for the planner to be held against."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_glm_ernie.planner.training_job import MIXED, SINGLE, TrainingJob


def job_of(model: PreTrainedModel, context: int, batch: int, **changes: Any) -> TrainingJob:
    """The planner's job of a real model, with the CPU's kernels."""
    model.config.architectures = [type(model).__name__]
    return TrainingJob(model.config, context, batch, **({"precision": SINGLE, "device_type": "cpu"} | changes))


def _loss(model: nn.Module, inputs: dict[str, Any], precision: str) -> tuple[torch.Tensor, Any]:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == MIXED):
        outputs = model(**inputs)
    if outputs.get("loss") is not None:
        return outputs.loss, outputs.get("memories")
    return torch.stack([value.float().mean() for value in outputs.values() if value.requires_grad]).sum(), None


def saved_for_backward(model: nn.Module, inputs: dict[str, Any], precision: str = SINGLE) -> int:
    """Bytes of the storages that autograd keeps of a forward, each once, parameters and inputs left out."""
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    own |= {value.untyped_storage().data_ptr() for value in inputs.values() if isinstance(value, torch.Tensor)}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = _loss(model, inputs, precision)
    assert loss.requires_grad  # and the graph is alive, so no address was given out twice
    return sum(kept.values())


def step_peak(model: nn.Module, inputs: dict[str, Any], precision: str = SINGLE) -> int:
    """The most bytes that torch's CPU allocator handed out in forward and backward above what it held before; every
    gradient is given back when it is complete.
    """

    def give_back(parameter: torch.Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(give_back) for p in model.parameters() if p.requires_grad]
    with torch.profiler.profile(profile_memory=True) as profile:
        loss, _ = _loss(model, inputs, precision)
        loss.backward()
    for hook in hooks:
        hook.remove()
    alive = highest = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        highest = max(highest, alive)
    return highest
