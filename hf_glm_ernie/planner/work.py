"""What a forward has to do, module by module: bytes read, arithmetic, exchanges between ranks, kernels launched.

Counted where the model's own code runs, on the meta device, with the first two layers of every stack; the second
stands for all that follow. What is counted of a layer is what its modules hold and how many rows they see.
"""

import re
from collections import Counter
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, PreTrainedModel

from hf_glm_ernie.weight_only_linear import WeightOnlyLinear

from .sizes import (
    FusedAttention,
    Job,
    cache_sizes,
    cached_tensors,
    forward_inputs,
    model_on_meta,
    parallel_styles,
    shallow,
    transients_of,
)

LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)(?=\.|$)")
# Operators that only make room, or another view of the same memory.
NO_KERNEL = {"empty", "empty_like", "empty_strided", "lift_fresh", "_unsafe_view", "alias"}
# Bytes that a rank sends in a ring, in sizes of the tensor and (ranks - 1) / ranks left out: an all-reduce passes it
# twice, an all-gather once.
TRAFFIC = {"rowwise": 2, "embedding_rowwise": 2, "colwise_gather_output": 1, "colwise_rep": 1}


@dataclass(frozen=True)
class Work:
    """What a module, or several, have to do in a forward. Works add up.

    Args:
        weights: Bytes that are read once, however many rows there are.
        token_bytes: Bytes read for every token: rows of embeddings.
        token_flops: FLOP of matrix products for every token.
        row_flops: FLOP for every row, where only one token of each is looked at: logits of the last, a pooled text.
        pair_flops: FLOP of attention for every pair of a query and a key.
        cache: Bytes of keys and values, and of ERNIE 3.0's memories, of one row at the full context.
        launches: Kernels, when each operator is launched by itself.
        exchanges: All-reduces and all-gathers between ranks.
        token_traffic: Bytes that a rank sends for every token, to be multiplied by (ranks - 1) / ranks.
        row_traffic: The same for every row.
    """

    weights: int = 0
    token_bytes: int = 0
    token_flops: int = 0
    row_flops: int = 0
    pair_flops: int = 0
    cache: int = 0
    launches: int = 0
    exchanges: int = 0
    token_traffic: int = 0
    row_traffic: int = 0

    def __add__(self, other: "Work") -> "Work":
        """The work of both."""
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def measure(job: Job) -> dict[str, Work]:
    """The work of one rank by module name, of modules that hold tensors, layers and attentions; a module's own only,
    not that of modules inside it.
    """
    config = shallow(job.config)
    job = replace(job, config=config, batch=1)
    model = model_on_meta(job)
    for module in model.modules():
        if isinstance(module, WeightOnlyLinear):  # one product, one kernel, whatever the meta device would choose
            module.forward = partial(_one_product, module)  # type: ignore[method-assign]
    seen, launches = _Seen(model), _Launches(model)
    with torch.device("meta"), torch.no_grad(), FusedAttention(), launches:
        inputs = forward_inputs(model, job)
        outputs = model(**inputs)
    cached = cache_sizes(model, transients_of(config, cached_tensors(inputs, outputs), 0))
    works = _works(model, job, seen.rows)
    for name, size in cached.items():
        works[name] = works.get(name, Work()) + Work(cache=size)
    for name, number in launches.numbers.items():
        works[name] = works.get(name, Work()) + Work(launches=number)
    return works


def at_full_depth(works: dict[str, Work], config: PreTrainedConfig) -> dict[str, Work]:
    """The work of all layers of `config`, from that of the first two."""
    whole = {}
    for name, work in works.items():
        match = LAYER.search(name)
        if match is None or match[1] == "0":
            whole[name] = work
            continue
        depth = config.branch_num_hidden_layers if ".branches." in f".{name}" else config.num_hidden_layers
        for layer in range(1, depth):
            whole[f"{name[: match.start(1)]}{layer}{name[match.end(1) :]}"] = work
    return whole


def _works(model: PreTrainedModel, job: Job, rows: Counter[str]) -> dict[str, Work]:
    """Bytes, arithmetic and exchanges of the modules that ran."""
    styles = parallel_styles(model) if job.ranks > 1 else {}
    embedding = model.get_input_embeddings()
    works = {}
    for name, module in model.named_modules():
        # The trace hands in embedded tokens where ids would be looked at.
        number = rows[name] or (job.context if module is embedding else 0)
        if number:
            works[name] = _own(module, number, job) + _exchange(module, styles.get(name), number, job)
            if hasattr(module, "layer_idx"):
                width = job.config.branch_hidden_size if ".branches." in f".{name}" else job.config.hidden_size
                works[name] += Work(pair_flops=4 * width // job.ranks)  # scores and their sum over values
    return works


def _own(module: nn.Module, rows: int, job: Job) -> Work:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if isinstance(module, nn.Embedding):
        return Work(token_bytes=module.weight[0].nbytes * rows // job.context)
    work = Work(weights=sum(tensor.nbytes for tensor in tensors))
    if not isinstance(module, nn.Linear):
        return work
    flops = 2 * module.in_features * module.out_features
    if rows < job.context:
        return replace(work, row_flops=flops * rows)
    return replace(work, token_flops=flops * rows // job.context)


def _exchange(module: Any, style: str | None, rows: int, job: Job) -> Work:
    if style not in TRAFFIC:
        return Work()
    width = module.embedding_dim if isinstance(module, nn.Embedding) else module.out_features
    width *= 1 if style.endswith("rowwise") else job.ranks
    size = TRAFFIC[style] * width * job.dtype.itemsize
    if rows < job.context:
        return Work(exchanges=1, row_traffic=size * rows)
    return Work(exchanges=1, token_traffic=size * rows // job.context)


def _one_product(module: WeightOnlyLinear, x: torch.Tensor) -> torch.Tensor:
    values = torch.empty(module.out_features, module.in_features, dtype=x.dtype, device=x.device)
    return F.linear(x, values, module.bias)


class _Seen:
    """Counts the rows that pass each module: of an embedding the ids, of others the vectors that come out."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.rows: Counter[str] = Counter()
        for name, module in model.named_modules():
            module.register_forward_hook(partial(self._count, name))

    def _count(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Embedding):
            self.rows[name] += inputs[0].numel()
            return
        first = output[0] if isinstance(output, tuple) else output
        self.rows[name] += first.numel() // max(1, first.shape[-1]) if isinstance(first, torch.Tensor) else 1


class _Launches(TorchDispatchMode):
    """Counts operators that launch a kernel, by the layer in which they run ("" outside of layers)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.numbers: Counter[str] = Counter()
        self.layer = ""
        for name, module in model.named_modules():
            match = LAYER.search(name)
            if match is not None and match.end() == len(name):
                module.register_forward_pre_hook(partial(self._enter, name))
                module.register_forward_hook(partial(self._enter, ""))

    def _enter(self, name: str, *_: Any) -> None:
        self.layer = name

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view and function.overloadpacket.__name__ not in NO_KERNEL:
            self.numbers[self.layer] += 1
        return function(*args, **(kwargs or {}))


__all__ = ["Work", "at_full_depth", "measure"]
