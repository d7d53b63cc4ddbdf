"""What layers in main memory take, where `set_offload` runs them: buffers, page-locked memory, a step on the CPU."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from hf_glm_ernie.inference.offload import COMPUTE, rows_worth_computing
from hf_glm_ernie.inference.staged_copies import block_bytes, pinned_bytes

from .sizes import Job, trace


class OffloadSizes:
    """Bytes beside weights and cache, of layers that are computed on the CPU or copied ahead.

    Args:
        job: What is run.
        model: The whole model on the meta device, with the cache that [`reserve_cache`] put into it.
        leaves: Bytes of the modules that hold tensors.
        layers: Names of the modules that stay whole.
        caches: Bytes of cache by the name of the attention.
        way: `"compute"` or `"copy"`.

    Attributes:
        largest_block: Of a layer's weights, as they lie in a buffer.
        step_activations: What a step of decoding takes on the CPU: one token of each row, and the cache of a layer
            once more, for a dynamic cache is copied when it grows.
    """

    def __init__(
        self,
        job: Job,
        model: PreTrainedModel,
        leaves: Mapping[str, int],
        layers: Sequence[str],
        caches: Mapping[str, int],
        way: str,
    ) -> None:
        self.way = way
        numbered = [name for name in layers if name.rpartition(".")[2].isdigit()]
        self.caches = {name: _inside(caches, name) for name in numbered}
        self.blocks = {name: block_bytes(model.get_submodule(name)) - self.caches[name] for name in numbered}
        in_layers = tuple(f"{name}." for name in numbered)
        # Embeddings are looked up where they lie, and buffers alone (rotary tables) stay on the accelerator.
        self.others = {
            name: leaves[name]
            for name, module in model.named_modules()
            if name in leaves and not name.startswith(in_layers)
            if not isinstance(module, nn.Embedding) and any(True for _ in module.parameters(recurse=False))
        }
        self.largest_block = max(self.blocks.values(), default=0)
        self.step_activations = 0
        self.few = way == COMPUTE and job.batch <= most_rows(job)
        if way == COMPUTE:
            self.step_activations = trace(replace(job, context=1)).activations + max(self.caches.values(), default=0)

    def room(self, capacity: int) -> int:
        """What modules with their cache may take of main memory, so that page-locked memory, which comes in powers of
        two, still fits.
        """
        taken = [(self.blocks[name] + self.caches[name], self._in_memory(name)) for name in self.blocks]
        share = min((counted / real for counted, real in taken if real), default=1.0)
        return max(0, math.floor((capacity - self.step_activations) * min(1.0, share)))

    def _in_memory(self, layer: str) -> int:
        return pinned_bytes(self.blocks[layer]) + (self.caches[layer] if self.way == COMPUTE else 0)

    def lost_by_pinning(self, modules: Sequence[str]) -> int:
        """What page-locked memory takes above the layers' own size."""
        return sum(pinned_bytes(self.blocks[name]) - self.blocks[name] for name in self._layers(modules))

    def staging(self, modules: Sequence[str]) -> int:
        """What the device that computes prompts takes for modules in main memory: two buffers, in `"compute"` the
        cache of one layer while it is there, and the largest of the other modules where it is copied.
        """
        layers = self._layers(modules)
        size = 2 * max((self.blocks[name] for name in layers), default=0)
        if self.way == COMPUTE:
            size += max((self.caches[name] for name in layers), default=0)
        prefixes = tuple(f"{module}." for module in modules if module)
        others = [size for leaf, size in self.others.items() if "" in modules or f"{leaf}.".startswith(prefixes)]
        return size + (0 if self.few else max(others, default=0))

    def _layers(self, modules: Sequence[str]) -> list[str]:
        prefixes = tuple(f"{module}." for module in modules if module)
        return [name for name in self.blocks if "" in modules or f"{name}.".startswith(prefixes)]


def most_rows(job: Job) -> int:
    """The most rows that [`set_offload`] has the CPU compute."""
    quantization = getattr(job.config, "quantization_config", None)
    return rows_worth_computing(job.dtype.itemsize if quantization is None else quantization.bits / 8)


def _inside(sizes: Mapping[str, int], module: str) -> int:
    return sum(size for name, size in sizes.items() if f"{name}.".startswith(f"{module}."))


__all__ = ["OffloadSizes", "most_rows"]
