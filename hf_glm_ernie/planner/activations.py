"""What forward and backward hold beside weights and gradients, and their arithmetic: a step on the meta device.

The model's own code runs with two layers of every stack, and every storage is counted from its birth to its end; the
second layer stands for all that follow. A moment of the step belongs to a *segment*: the forward and the backward down
to a stack's last layer hold what all layers above and below have saved; the backward of a stack no longer holds what
the stack behind it had.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry
from transformers import ErnieForMaskedLM, PreTrainedConfig, PreTrainedModel

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM, Ernie3ForMaskedLM
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from hf_glm_ernie.modeling_glm130b import Glm130bForCausalLM

from .sizes import Job, LiveStorages, forward_inputs, parallel_styles, shallow
from .training_job import TrainingJob, model_to_train
from .training_kernels import TrainingKernels
from .work import LAYER

# With labels for every token; of all others the outputs are summed, which are a few numbers a row or a token.
LANGUAGE_MODELS = (Glm130bForCausalLM, Ernie3ForCausalLM, Ernie3ForMaskedLM, Ernie3ForPreTraining, ErnieForMaskedLM)


@dataclass(frozen=True)
class StepTrace:
    """What a forward and its backward take on one card.

    Args:
        saved: Bytes that are alive at the end of the forward: what the backward needs, and memories for the next.
        peak: The most bytes that are alive at one time, gradients of weights left out.
        flops: FLOP of all products, forward and backward, with what is computed again.
    """

    saved: int
    peak: int
    flops: int


def trace_step(job: TrainingJob, checkpointing: bool) -> StepTrace:
    """Runs a step on the meta device and counts.

    Args:
        job: The step, of one card.
        checkpointing: Whether layers are computed again in the backward (the host's gradient checkpointing).
    """
    whole = job.config
    job = replace(job, config=shallow(whole))
    job.config.use_cache = False
    job.config.allow_context_labels = True  # the labels have no values that could be looked at
    model, base = model_to_train(job)
    if job.tensor_parallel > 1:
        _gather_outputs(base, job.tensor_parallel)
    live = _StoragesAndFlops()
    kernels = TrainingKernels(job.device_type, job.formats.autocast)
    if checkpointing:  # in the backward no mode is on unless it is entered again
        settings = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), kernels)}
        # transformers before 5.24 has the older name only
        getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)(settings)
    marks = _Marks(model, live, lambda: (len(live.changes), live.flops + kernels.attention_flops))
    with torch.device("meta"), kernels, live:
        inputs = _inputs(base, job)
        memories = inputs.get("memories")  # stay with the caller
        loss, kept = _loss(model, base, inputs)
        del inputs
        last = len(live.changes)
        kernels.end_forward()
        end = marks.end_forward()
        loss.backward()
    carried = [0, 0] if memories is None else [memories.states[0].nbytes, memories.states[-1].nbytes]
    del kept
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    forward = _Forward(live.changes, last, end.changes)
    return _whole_depth(live.alive(live.numbers_of(gradients)), forward, marks, end, whole, carried)


def _loss(model: nn.Module, base: PreTrainedModel, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    """The loss, and what the caller keeps for the next step; logits it does not keep."""
    outputs = model(**inputs)
    if isinstance(base, LANGUAGE_MODELS):
        return outputs.loss, outputs.get("memories")
    numbers = [value for value in outputs.values() if isinstance(value, torch.Tensor) and value.requires_grad]
    return torch.stack([value.float().mean() for value in numbers]).sum(), None


def _inputs(base: PreTrainedModel, job: TrainingJob) -> dict[str, Any]:
    """Rows of a batch; what a model would read off the values of ids is given."""
    config = job.config
    ids = torch.ones(job.batch, job.context, dtype=torch.long)
    planned = Job(config, job.formats.computed, job.context, job.batch, job.tensor_parallel)
    planned_inputs = forward_inputs(base, planned)
    pattern = planned_inputs.get("attention_mask")
    if pattern is not None and pattern.ndim == 4 and config._attn_implementation == "eager":
        # what the host makes of padding for attention that adds it to the scores
        planned_inputs["attention_mask"] = pattern.new_empty(pattern.shape, dtype=job.formats.computed)
    labels: dict[str, Any] = {"labels": ids} if isinstance(base, LANGUAGE_MODELS) else {}
    if config.model_type == "glm130b":
        inputs = planned_inputs | {"input_ids": ids, "use_cache": False, "logits_to_keep": 0}
        inputs = {name: value for name, value in inputs.items() if name != "inputs_embeds"}
        return inputs | labels if labels else {n: value for n, value in inputs.items() if n != "logits_to_keep"}
    if not isinstance(config, Ernie3Config):
        return planned_inputs | labels
    inputs = planned_inputs
    if isinstance(base, Ernie3ForPreTraining) and job.branch != "nlg":
        inputs = {"attention_mask": inputs["attention_mask"][..., -job.context :], "branch": job.branch}
    elif "branch" in inputs:
        inputs |= {"use_cache": False, "return_memories": bool(config.memory_length)}
    embedding: Any = base.get_input_embeddings()
    words = embedding(ids)  # ids would be looked at
    inputs["inputs_embeds"] = words[:, None] if inputs.get("inputs_embeds", words).ndim == 4 else words
    return {name: value for name, value in inputs.items() if name != "logits_to_keep"} | labels


def _gather_outputs(base: PreTrainedModel, ranks: int) -> None:
    """Lets projections to the vocabulary bring the parts of all ranks together, as the host does."""
    for name, style in parallel_styles(base).items():
        if style in ("colwise_gather_output", "colwise_rep"):
            base.get_submodule(name).register_forward_hook(
                lambda module, inputs, output: torch.cat([output] * ranks, dim=-1)
            )


class _StoragesAndFlops(LiveStorages):
    """Counts products too. (Torch's own counter keeps tensors of what is computed again, and so their memory.)"""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        count = flop_registry.get(function.overloadpacket)
        self.flops += 0 if count is None else int(count(*args, **(kwargs or {}), out_val=result))
        return result


@dataclass(frozen=True)
class _Mark:
    """A moment: how many storages had changed, the FLOP so far, and the number of what came out of the layer."""

    changes: int
    flops: int
    output: int | None = None


class _Marks:
    """When layers end in the forward, and when their backward begins."""

    def __init__(self, model: nn.Module, live: LiveStorages, now: Any) -> None:
        self.live = live
        self.now = now
        self.forward = True
        self.ends: dict[str, _Mark] = {}
        self.begins: dict[str, _Mark] = {}
        for name, module in model.named_modules():
            match = LAYER.search(name)
            if match is not None and match.end() == len(name):
                module.register_forward_hook(partial(self._layer_ends, name))

    def _layer_ends(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if self.forward:  # and not where it is computed again
            self.ends[name] = _Mark(*self.now(), *self.live.numbers_of([states]))
            if states.requires_grad:
                states.register_hook(partial(self._backward_begins, name))

    def _backward_begins(self, name: str, gradient: torch.Tensor) -> None:
        self.begins[name] = _Mark(*self.now())

    def end_forward(self) -> _Mark:
        """Called between forward and backward."""
        self.forward = False
        return _Mark(*self.now())


def stack_of(layer: str) -> str:
    """The name of a layer's stack."""
    return layer.rpartition(".")[0]


class _Forward:
    """What a forward leaves.

    Args:
        changes: Of storages: (number, bytes), negative where one goes.
        last: How many there were when the last output was there.
        end: How many there were when autocast had dropped its copies of weights.
    """

    def __init__(self, changes: list[tuple[int, int]], last: int, end: int) -> None:
        self.changes = changes
        sizes = dict(changes[:end])  # of those that have gone, negative
        self.left = {number: size for number, size in sizes.items() if size > 0}
        self.dropped = {number: -size for number, size in changes[last:end] if size < 0}

    def of_layer(self, before: _Mark, after: _Mark) -> tuple[int, int]:
        """Bytes that a layer leaves, its input in place of its output, and of copies that are dropped at the end.

        Args:
            before: The end of the layer before.
            after: The end of this layer.
        """
        born = {number for number, _ in self.changes[before.changes : after.changes]}
        kept = (born - {after.output}) | {before.output}
        left = sum(size for number, size in self.left.items() if number in kept)
        return left, sum(size for number, size in self.dropped.items() if number in born)


def _whole_depth(
    alive: list[int],
    forward: _Forward,
    marks: _Marks,
    end: _Mark,
    config: PreTrainedConfig,
    carried: list[int],
) -> StepTrace:
    """The trace of all layers, from that of two of each stack.

    Args:
        alive: Bytes alive after every change.
        forward: What the forward leaves.
        marks: Of the layers.
        end: Of the forward.
        config: Of the whole model.
        carried: Bytes of the memory that a layer is given, of the first stack and of the last.
    """
    total = int(marks.now()[1])
    in_forward = 0
    further: dict[str, int] = {}  # by stack, in the forward's order: what its further layers leave
    for stack in dict.fromkeys(map(stack_of, marks.ends)):
        layers = [layer for layer in marks.ends if stack_of(layer) == stack]
        in_branch = ".branches." in f".{stack}"
        depth = config.branch_num_hidden_layers if in_branch else config.num_hidden_layers
        number = depth - len(layers)
        if number <= 0:
            continue
        first, second = (marks.ends[layer] for layer in layers[:2])
        left, dropped = forward.of_layer(first, second)
        left += carried[in_branch]
        in_forward += number * (left + dropped)
        further[stack] = number * left
        total += number * (second.flops - first.flops)
        if layers[1] in marks.begins:
            begun = marks.begins[layers[1]].flops
            total += number * (min((m.flops for m in marks.begins.values() if m.flops > begun), default=total) - begun)
    peak = max(alive[: end.changes + 1]) + in_forward
    # The backward, from segment to segment: what stacks behind a segment had saved is gone.
    start, held = end.changes, sum(further.values())
    moments = sorted((mark.changes, stack_of(layer)) for layer, mark in marks.begins.items())
    for changes, stack in [*moments, (len(alive) - 1, "")]:
        peak = max(peak, max(alive[start : changes + 1]) + held)
        names = list(further)
        held = sum(further[name] for name in names[: names.index(stack) + 1]) if stack in further else 0
        start = changes
    return StepTrace(alive[end.changes] + sum(further.values()), peak, total)


__all__ = ["StepTrace", "stack_of", "trace_step"]
