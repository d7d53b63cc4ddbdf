"""What a model will hold in memory, taken from its own code on the meta device: nothing is allocated.

The weights are those of the model that `from_pretrained` would build: quantized by the quantizer that would load it
and, for tensor parallelism, cut by the model's own plan. Cache and activations are those of a forward on meta tensors,
whose storages are counted while they live.
"""

import copy
import itertools
import re
import weakref
from collections.abc import Container, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import ErnieModel, PreTrainedConfig, PreTrainedModel
from transformers.integrations.accelerate import compute_module_sizes

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.host_interface import returned_cache
from hf_glm_ernie.memory_ernie3 import Ernie3Memories
from hf_glm_ernie.modeling_ernie3 import Ernie3Model
from hf_glm_ernie.modeling_ernie3_heads import (
    Ernie3ForCausalLM,
    Ernie3ForMaskedLM,
    Ernie3ForMultipleChoice,
    Ernie3ForQuestionAnswering,
    Ernie3ForSequenceClassification,
    Ernie3ForTokenClassification,
)
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
from hf_glm_ernie.modeling_ernie_utc import ErnieForUTC
from hf_glm_ernie.modeling_glm130b import Glm130bForCausalLM, Glm130bModel
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig, WeightOnlyQuantizer
from hf_glm_ernie.weight_only_kernels import RELEASED, multiply
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear

# The second layer meets what all layers of a whole model meet: the output of one before it, and its cache. Of each
# stack.
TRACED_LAYERS = 2
STACKS = ("num_hidden_layers", "branch_num_hidden_layers")
HEADS = ("num_attention_heads", "branch_num_attention_heads")

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "glm130b": Glm130bForCausalLM,
    "ernie": ErnieModel,
    "ernie_uie": ErnieForUIE,
    "ernie_utc": ErnieForUTC,
    "ernie3": Ernie3ForCausalLM,
}
OTHER_CLASSES: tuple[type[PreTrainedModel], ...] = (
    Glm130bModel,
    Ernie3Model,
    Ernie3ForMaskedLM,
    Ernie3ForMultipleChoice,
    Ernie3ForPreTraining,
    Ernie3ForQuestionAnswering,
    Ernie3ForSequenceClassification,
    Ernie3ForTokenClassification,
)


@dataclass(frozen=True)
class Job:
    """What is to be run.

    Args:
        config: The model's config, with a `quantization_config` where its weights are quantized.
        dtype: Dtype of the activations and of the weights that are not quantized.
        context: Tokens of a row, prompt and answer together.
        batch: Rows.
        ranks: Devices among which each weight is cut (tensor parallelism); 1 = none is cut.
    """

    config: PreTrainedConfig
    dtype: torch.dtype
    context: int
    batch: int
    ranks: int = 1


@dataclass(frozen=True)
class Transients:
    """What a forward holds beside the weights, in bytes on one device.

    Args:
        activations: The most that is alive at one time, the cache left out.
        cache_per_layer: Keys and values of one layer for all rows and tokens; 0 without a cache. In ERNIE 3.0 those
            of the memory's columns too, and the memory itself; of a layer of the universal stack.
        branch_cache_per_layer: The same of a layer of the branch, where there is one.
    """

    activations: int
    cache_per_layer: int
    branch_cache_per_layer: int = 0


def model_on_meta(job: Job) -> PreTrainedModel:
    """Builds the model as it lies in memory after loading (one rank's part, where ranks are many), on the meta
    device.

    Raises:
        ValueError: heads or rows that cannot be cut into so many ranks, or a model without a tensor-parallel plan.
    """
    with torch.device("meta"):
        model = model_class(job.config)._from_config(copy.deepcopy(job.config), dtype=job.dtype).eval()
    quantization = getattr(job.config, "quantization_config", None)
    if quantization is not None:
        if isinstance(quantization, dict):
            quantization = WeightOnlyConfig.from_dict(quantization)
        quantizer = WeightOnlyQuantizer(quantization, pre_quantized=True)
        quantizer.preprocess_model(model=model, dtype=job.dtype, device_map=None)
    if job.ranks > 1:
        _cut(model, job.ranks)
    return model


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that `config.architectures` names, or the usual one of the model type."""
    ours = {known.__name__: known for known in (*MODEL_CLASSES.values(), *OTHER_CLASSES)}
    name = (getattr(config, "architectures", None) or [""])[0]
    named = ours.get(name) or getattr(transformers, name or "-", None)
    return named or MODEL_CLASSES[config.model_type]


def module_bytes(model: PreTrainedModel) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of parameters and buffers by module name, tied weights once: of all modules ("" is the whole model), and
    of those that hold tensors themselves.
    """
    return compute_module_sizes(model)


def trace(job: Job) -> Transients:
    """Runs a forward on meta tensors, of a prompt as long as the context, and counts what is alive.

    Attention counts as `sdpa`'s fused kernels compute it, without a matrix of scores, except where the config asks for
    `eager`; quantized weights as the kernel that all devices have multiplies them, in blocks of rows.
    """
    config = shallow(job.config)
    model = model_on_meta(replace(job, config=config))
    for module in model.modules():
        if isinstance(module, WeightOnlyLinear):
            module.forward = partial(_forward_in_blocks, module)  # type: ignore[method-assign]
    live = LiveStorages()
    kernels: AbstractContextManager[Any] = FusedAttention()
    if config._attn_implementation == "eager":
        kernels = nullcontext()
    with torch.device("meta"), torch.no_grad(), kernels, live:
        inputs = forward_inputs(model, replace(job, config=config))
        outputs = model(**inputs)
    cached = cached_tensors(inputs, outputs)
    left_out = list(itertools.chain.from_iterable(cached))
    if getattr(config, "position_embedding_type", None) == "absolute" and isinstance(config, Ernie3Config):
        left_out.append(inputs["inputs_embeds"])  # of ids they are let go of where the positions have been added
    return transients_of(config, cached, live.peak(without=left_out))


def shallow(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of a model whose layers are the first and one that stands for all others."""
    config = copy.deepcopy(config)
    for stack in STACKS:
        if hasattr(config, stack):
            setattr(config, stack, min(TRACED_LAYERS, getattr(config, stack)))
    return config


def cached_tensors(inputs: dict[str, Any], outputs: Any) -> list[list[torch.Tensor]]:
    """What a forward leaves for the next, of every layer: keys, values, and the memory it was given."""
    cache: Any = returned_cache(outputs)
    if cache is None and inputs.get("use_cache"):
        raise RuntimeError(f"{type(outputs).__name__} has no cache where one was asked for, so none can be counted.")
    cached = [[layer.keys, layer.values] for layer in cache.layers] if cache is not None else []
    memories = inputs.get("memories")
    for tensors, state in zip(cached, () if memories is None else memories.states, strict=False):
        tensors.append(state)
    return cached


def transients_of(config: PreTrainedConfig, cached: list[list[torch.Tensor]], activations: int) -> Transients:
    """Sums of a traced model's tensors. In ERNIE 3.0 the branch's layers are the last."""
    per_layer = [sum(tensor.nbytes for tensor in tensors) for tensors in cached]
    return Transients(
        activations=activations,
        cache_per_layer=per_layer[0] if per_layer else 0,
        branch_cache_per_layer=per_layer[-1] if per_layer and isinstance(config, Ernie3Config) else 0,
    )


def cache_sizes(model: PreTrainedModel, transients: Transients) -> dict[str, int]:
    """Bytes of cache by the name of the attention that fills it; of two branches only the generating one does."""
    sizes = {}
    for name, module in model.named_modules():
        if hasattr(module, "layer_idx") and ".nlu." not in name:
            in_branch = ".branches." in f".{name}"
            sizes[name] = transients.branch_cache_per_layer if in_branch else transients.cache_per_layer
    return {name: size for name, size in sizes.items() if size}


def reserve_cache(model: PreTrainedModel, sizes: dict[str, int]) -> None:
    """Lets every layer of a model on the meta device hold its part of the cache, so that whoever places modules by
    their size places the cache with them. `sizes` as from [`cache_sizes`].
    """
    for name, size in sizes.items():
        room = torch.empty(size, dtype=torch.uint8, device="meta")
        model.get_submodule(name).register_buffer("planned_cache", room, persistent=False)


def forward_inputs(model: PreTrainedModel, job: Job) -> dict[str, Any]:
    """The forward's arguments on the meta device. What a model would read off the values of ids is given."""
    shape = (job.batch, job.context)
    ones = torch.ones(shape, dtype=torch.long)
    if isinstance(job.config, Ernie3Config):
        return _ernie3forward_inputs(model, job, job.config)
    if job.config.model_type != "glm130b":
        mask = torch.ones(job.batch, 1, job.context, job.context, dtype=torch.bool)
        inputs: dict[str, Any] = {
            "input_ids": ones,
            "attention_mask": mask if job.config.model_type == "ernie" else ones,
        }
        if isinstance(model, ErnieForUTC):
            inputs |= {"omask_positions": ones[:, :1], "cls_positions": ones[:, 0]}
        return inputs
    inputs = {
        "inputs_embeds": torch.empty(*shape, job.config.hidden_size, dtype=job.dtype),
        "attention_mask": torch.ones(job.batch, 1, job.context, job.context, dtype=torch.bool),
        "token_type_ids": ones,
        "position_ids": torch.ones_like(ones),
        "use_cache": True,
    }
    return inputs | ({"logits_to_keep": 1} if isinstance(model, Glm130bForCausalLM) else {})  # as `generate` does


def _ernie3forward_inputs(model: PreTrainedModel, job: Job, config: Ernie3Config) -> dict[str, Any]:
    """Where the model generates: a text that goes on from memories. Embeddings, for ids are looked at."""
    if isinstance(model, Ernie3ForMultipleChoice):
        embeddings = torch.empty(job.batch, 1, job.context, config.hidden_size, dtype=job.dtype)
        return {"inputs_embeds": embeddings}
    embeddings = torch.empty(job.batch, job.context, config.hidden_size, dtype=job.dtype)
    base: Any = model.base_model
    generates = "nlg" in base.branches
    memory = config.memory_length if generates else 0
    inputs: dict[str, Any] = {
        "inputs_embeds": embeddings,
        "attention_mask": torch.ones(job.batch, 1, job.context, memory + job.context, dtype=torch.bool),
    }
    if not generates:
        return inputs
    inputs |= {"branch": "nlg", "use_cache": True, "return_memories": False}
    if memory:
        widths = [config.hidden_size] * config.num_hidden_layers
        widths += [config.branch_hidden_size] * config.branch_num_hidden_layers
        inputs["memories"] = Ernie3Memories(
            states=tuple(torch.empty(job.batch, memory, width, dtype=job.dtype) for width in widths),
            mask=torch.ones(job.batch, memory, dtype=torch.bool),
            tokens_seen=torch.ones(job.batch, dtype=torch.long),
        )
    return inputs | ({"logits_to_keep": 1} if isinstance(model, Ernie3ForCausalLM) else {})


def _forward_in_blocks(module: WeightOnlyLinear, x: torch.Tensor) -> torch.Tensor:
    """What a `WeightOnlyLinear` does on an accelerator; on meta tensors it would choose another kernel by itself."""
    y = multiply(x.flatten(0, -2), module.weight, module.weight_scale, None, module.bits, RELEASED, "blocks")
    y = y.reshape(*x.shape[:-1], -1)
    return y if module.bias is None else y + module.bias


class FusedAttention(TorchFunctionMode):
    """Stands for the kernels behind `sdpa`; on meta tensors torch would take the one that makes all scores."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.scaled_dot_product_attention:
            query, value = args[0], args[2]
            if query.shape[-1] != value.shape[-1]:  # ERNIE 3.0's keys that know their type: no fused kernel takes them
                return function(*args, **(kwargs or {}))
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return function(*args, **(kwargs or {}))


class LiveStorages(TorchDispatchMode):
    """Writes down when the storages that are made under it come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.next_number = itertools.count()
        self.changes: list[tuple[int, int]] = []  # (number of the storage, its bytes, negative when it goes)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(storage) for storage in storages_of((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for storage in storages_of(result):
            if id(storage) not in given and storage not in self.numbers:
                number, size = next(self.next_number), storage.nbytes()
                self.numbers[storage] = number
                self.changes.append((number, size))
                weakref.finalize(storage, self.changes.append, (number, -size))
        return result

    def numbers_of(self, tensors: Iterable[torch.Tensor]) -> set[int | None]:
        """The numbers of some tensors' storages; `None` for one that was not made under this mode."""
        return {self.numbers.get(storage) for storage in storages_of(list(tensors))}

    def alive(self, without: Container[int | None] = ()) -> list[int]:
        """Bytes that were alive before the first change and after each, those of some storages left out."""
        sizes = (0 if number in without else size for number, size in self.changes)
        return list(itertools.accumulate(sizes, initial=0))

    def peak(self, without: Iterable[torch.Tensor] = ()) -> int:
        """The most bytes that were alive at one time, those of some tensors left out."""
        return max(self.alive(self.numbers_of(without)))


def storages_of(tree: Any) -> list[torch.UntypedStorage]:
    """The storages of all tensors in a tree, in its order."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _cut(model: PreTrainedModel, ranks: int) -> None:
    """Leaves one rank's part of every weight that the model's tensor-parallel plan names.

    The part is the largest of the ranks', where they differ.
    """
    plan = model.tp_plan
    if not plan:
        raise ValueError(
            f"{type(model).__name__} has no tensor-parallel plan (base_model_tp_plan in its config). Leave "
            "tensor_parallel out: its layers can be spread over the devices one by one."
        )
    heads = [getattr(model.config, name) for name in HEADS if hasattr(model.config, name)]
    if any(number % ranks for number in heads):
        fitting = [str(n) for n in range(2, 17) if not any(number % n for number in heads)]
        raise ValueError(
            f"{' and '.join(map(str, heads))} attention heads cannot be shared out evenly among {ranks} devices. "
            f"Tensor parallelism takes a number of devices that divides the heads: {', '.join(fitting)}."
        )
    for name, style in parallel_styles(model).items():
        _cut_module(model.get_submodule(name), style, ranks)


def parallel_styles(model: PreTrainedModel) -> dict[str, str]:
    """How the model's tensor-parallel plan cuts each module that it names, in the host's words."""
    plan = model.tp_plan or {}
    rules = [(re.compile(name.replace(".", r"\.").replace("*", r"\d+")), style) for name, style in plan.items()]
    styles = {
        name: next((style for pattern, style in rules if pattern.fullmatch(name)), None)
        for name, _ in model.named_modules()
    }
    return {name: style for name, style in styles.items() if style is not None}


def _cut_module(module: nn.Module, style: str, ranks: int) -> None:
    """Rows (`colwise`, as the plan calls a cut of the outputs; embeddings by `rowwise`) or columns of all tensors."""
    by_columns = style.startswith("rowwise")
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        shape = list(tensor.shape)
        if by_columns and (tensor.ndim == 1 or shape[-1] == 1):  # biases and scales of whole rows are on every rank
            continue
        axis = -1 if by_columns else max(-2, -tensor.ndim)
        shape[axis] = -(-shape[axis] // ranks)
        part = torch.empty(shape, dtype=tensor.dtype, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(module, name, nn.Parameter(part, requires_grad=False) if is_parameter else part)
    for width in ("in_features",) if by_columns else ("out_features", "num_embeddings"):
        if hasattr(module, width):
            setattr(module, width, -(-getattr(module, width) // ranks))


__all__ = [
    "MODEL_CLASSES",
    "FusedAttention",
    "Job",
    "LiveStorages",
    "Transients",
    "cache_sizes",
    "cached_tensors",
    "forward_inputs",
    "model_class",
    "model_on_meta",
    "module_bytes",
    "parallel_styles",
    "reserve_cache",
    "shallow",
    "storages_of",
    "trace",
    "transients_of",
]
