"""The attention layer of GLM-130B in vLLM: any of vLLM's kernels, with the rows of `rows.py`.

vLLM makes what a kernel reads (its metadata) before the model runs, and knows nothing of contexts then. So the
metadata keeps the builder that made it and what it was made from, and at the start of the forward, where positions say
how long contexts are, the builder makes it again from the split rows. Only steps with a prompt pay for it; a step that
only decodes is what it is for any other model, so that CUDA graphs replay it.
"""

import functools
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from vllm.config import CacheConfig, VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionType,
    CommonAttentionMetadata,
    subclass_attention_backend,
)
from vllm.v1.attention.selector import get_attn_backend
from vllm.v1.kv_cache_interface import KVCacheSpec

from .rows import Rows, split

MADE_FROM = "glm130b_made_from"
"""On metadata: the builder and the `CommonAttentionMetadata` that it was made from."""


@functools.lru_cache
def prefix_backend(backend: type[AttentionBackend]) -> type[AttentionBackend]:
    """The backend with a builder that keeps what its metadata is made from."""
    builder: Any = backend.get_builder_cls()

    class PrefixBuilder(builder):
        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
            setattr(metadata, MADE_FROM, (self, common_attn_metadata))
            return metadata

        @classmethod
        def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
            support = super().get_cudagraph_support(vllm_config, kv_cache_spec)
            return min(support, AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE, key=lambda level: level.value)

    return subclass_attention_backend("Prefix_", backend, PrefixBuilder)


class PrefixAttention(Attention):
    """Attention of a decoder whose prompts begin with a bidirectional context.

    Args:
        num_heads: Of this process.
        head_size: Width of a head.
        scale: Factor of the scores.
        cache_config: vLLM's settings of the cache.
        quant_config: vLLM's settings of the quantization.
        prefix: Name of the layer in the model.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        cache_config: CacheConfig | None,
        quant_config: Any,
        prefix: str,
    ) -> None:
        cache_dtype = "auto" if cache_config is None else cache_config.cache_dtype
        backend = get_attn_backend(head_size, torch.get_default_dtype(), cache_dtype, attn_type=AttentionType.DECODER)
        super().__init__(
            num_heads=num_heads,
            head_size=head_size,
            scale=scale,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=prefix,
            attn_type=AttentionType.DECODER,
            attn_backend=prefix_backend(backend),
        )

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec | None:
        """Says that the layer is not causal, from which the engine turns chunked prefill and prefix caching off."""
        spec: Any = super().get_kv_cache_spec(vllm_config)
        return None if spec is None else replace(spec, non_causal=True)


def split_prompts(context_lengths: torch.Tensor) -> None:
    """Makes the metadata of this step again where a prompt of it has a context.

    Args:
        context_lengths: (L,) int64, for every token of the step: channel 1 of its positions.
    """
    step = get_forward_context()
    if not isinstance(step.attn_metadata, dict):
        return  # a run that only measures memory
    made: dict[int, Any] = {}
    builder: Any
    common: Any
    for metadata in step.attn_metadata.values():
        builder, common = getattr(metadata, MADE_FROM, (None, None))
        if builder is None or common.max_query_len < 2:
            continue
        if id(metadata) not in made:
            rows = _rows(common, context_lengths)
            made[id(metadata)] = metadata if rows is None else builder.build(0, of_rows(common, rows))
    step.attn_metadata = {name: made.get(id(metadata), metadata) for name, metadata in step.attn_metadata.items()}


def _rows(common: CommonAttentionMetadata, context_lengths: torch.Tensor) -> Rows | None:
    starts = common.query_start_loc_cpu[: common.num_reqs + 1]
    first = starts[:-1].clamp(max=context_lengths.shape[0] - 1).to(context_lengths.device)
    contexts = context_lengths[first].tolist()  # waits for the device: only in steps with a prompt
    return split((starts[1:] - starts[:-1]).tolist(), common.seq_lens[: common.num_reqs].tolist(), contexts)


def of_rows(common: CommonAttentionMetadata, rows: Rows) -> CommonAttentionMetadata:
    """What a kernel's metadata is made from, for these rows in place of one for each request, none of them causal."""
    device = common.seq_lens.device
    starts = torch.zeros(len(rows.queries) + 1, dtype=common.query_start_loc_cpu.dtype)
    starts[1:] = torch.tensor(rows.queries).cumsum(0)
    keys = torch.tensor(rows.keys, dtype=common.seq_lens.dtype)
    requests = torch.tensor(rows.requests)
    of_request = requests.to(device)
    remembered = {field.name: None for field in fields(common) if field.name.startswith("_")}
    changed = {
        "query_start_loc": starts.to(device),
        "query_start_loc_cpu": starts,
        "seq_lens": keys.to(device),
        "num_reqs": len(rows.requests),
        "max_query_len": max(rows.queries),
        "block_table_tensor": common.block_table_tensor.index_select(0, of_request),
        "causal": False,
    }
    if getattr(common, "is_prefilling", None) is not None:
        changed["is_prefilling"] = common.is_prefilling.index_select(0, requests.to(common.is_prefilling.device))
    if getattr(common, "seq_lens_cpu_upper_bound", None) is not None:
        changed["seq_lens_cpu_upper_bound"] = keys
    if getattr(common, "req_idx", None) is not None:
        changed["req_idx"] = common.req_idx[np.asarray(rows.requests)]
    return replace(common, **remembered, **changed)
