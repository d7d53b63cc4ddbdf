"""GLM-130B as vLLM runs it: tensor and pipeline parallel, continuous batching, paged cache.

The layers are those of `hf_glm_ernie/modeling_glm130b.py`, built from vLLM's parallel linears, and the functions that
make the numbers what they are (the rotary tables, the layout of a row) are the same ones. Modules have the names of
the converted folder; q, k, v and the two halves of GeGLU are fused on loading.

Letters in shape comments: L tokens of a step, H heads of this process, D head size.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMRoPE, SupportsPP, SupportsQuant
from vllm.model_executor.models.utils import (
    is_pp_missing_parameter,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

from hf_glm_ernie.configuration_glm130b import Glm130bConfig
from hf_glm_ernie.rotary_glm130b import Glm130bRotaryEmbedding, rotated

from .adapters import use_adapters
from .attention import PrefixAttention, split_prompts
from .positions import decoded, request_positions

FUSED = {
    ".q_proj": (".qkv_proj", "q"),
    ".k_proj": (".qkv_proj", "k"),
    ".v_proj": (".qkv_proj", "v"),
    ".gate_proj": (".gate_up_proj", 0),
    ".up_proj": (".gate_up_proj", 1),
}
"""A linear of the folder -> the linear that it is a part of here, and which part."""


class Glm130bMLP(nn.Module):
    """GeGLU with exact (erf) gelu: `down(up(x) * gelu(gate(x)))`."""

    def __init__(self, config: Glm130bConfig, quant_config: Any, prefix: str) -> None:
        super().__init__()
        width = config.intermediate_size
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size, [width] * 2, bias=True, quant_config=quant_config, prefix=f"{prefix}.gate_up_proj"
        )
        self.down_proj = RowParallelLinear(
            width, config.hidden_size, bias=True, quant_config=quant_config, prefix=f"{prefix}.down_proj"
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(L, hidden) -> (L, hidden)."""
        gate, up = self.gate_up_proj(hidden_states)[0].chunk(2, dim=-1)
        return self.down_proj(up * F.gelu(gate))[0]


class Glm130bAttention(nn.Module):
    """Multi-head attention with rotary positions that may repeat."""

    def __init__(self, config: Glm130bConfig, cache_config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__()
        heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.qkv_proj = QKVParallelLinear(
            *(config.hidden_size, self.head_dim, heads),
            bias=True,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            config.hidden_size, config.hidden_size, bias=True, quant_config=quant_config, prefix=f"{prefix}.o_proj"
        )
        self.attn = PrefixAttention(
            heads // get_tensor_model_parallel_world_size(),
            *(self.head_dim, self.head_dim**-0.5, cache_config, quant_config),
            prefix=f"{prefix}.attn",
        )

    def forward(self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(L, hidden), and cos and sin of the positions, (L, 1, D) -> (L, hidden)."""
        query, key, value = self.qkv_proj(hidden_states)[0].chunk(3, dim=-1)  # (L, H * D)
        query = rotated(query.unflatten(-1, (-1, self.head_dim)), cos, sin).flatten(-2)
        key = rotated(key.unflatten(-1, (-1, self.head_dim)), cos, sin).flatten(-2)
        return self.o_proj(self.attn(query, key, value))[0]


class Glm130bDecoderLayer(nn.Module):
    """A layer in the released DeepNorm order: `y = norm(x); h = alpha * y + attention(y)`, the same with the MLP."""

    def __init__(self, config: Glm130bConfig, cache_config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.alpha = (2 * config.num_hidden_layers) ** 0.5
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Glm130bAttention(config, cache_config, quant_config, f"{prefix}.self_attn")
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Glm130bMLP(config, quant_config, f"{prefix}.mlp")

    def forward(self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(L, hidden), and cos and sin of the positions, (L, 1, D) -> (L, hidden)."""
        branch = self.input_layernorm(hidden_states)
        hidden_states = torch.add(self.self_attn(branch, cos, sin), branch, alpha=self.alpha)
        branch = self.post_attention_layernorm(hidden_states)
        return torch.add(self.mlp(branch), branch, alpha=self.alpha)


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": -1, "intermediate_tensors": 0, "inputs_embeds": 0}
)
class Glm130bModel(nn.Module):
    """The decoder without the output projection: what vLLM compiles."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: Glm130bDecoderLayer(config, vllm_config.cache_config, vllm_config.quant_config, prefix),
            prefix=f"{prefix}.layers",
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary_emb = Glm130bRotaryEmbedding(config)
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states"], config.hidden_size
        )

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """As [`Glm130bForCausalLM.forward`], without the rows."""
        if not get_pp_group().is_first_rank:
            assert intermediate_tensors is not None
            hidden_states = intermediate_tensors["hidden_states"]
        else:
            hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cos, sin = self.rotary_emb(decoded(positions[0])[None], hidden_states.dtype)  # (1, 1, L, D)
        cos, sin = cos[0].transpose(0, 1), sin[0].transpose(0, 1)  # (L, 1, D)
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            hidden_states = layer(hidden_states, cos, sin)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden_states})
        return self.norm(hidden_states)


class Glm130bForCausalLM(nn.Module, SupportsMRoPE, SupportsPP, SupportsLoRA, SupportsQuant):
    """GLM-130B with its output projection, which is the word embedding."""

    packed_modules_mapping: ClassVar = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        use_adapters(vllm_config)
        self.config: Any = vllm_config.model_config.hf_config
        self.model = Glm130bModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            self.config.vocab_size, self.config.hidden_size, prefix=maybe_prefix(prefix, "lm_head")
        )
        self.is_tied = self.config.tie_word_embeddings
        if self.is_tied:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(self.config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any = None) -> tuple[torch.Tensor, int]:
        """The positions of a request, as `positions.py` lays them out. The interface's other argument is of images."""
        return request_positions(self.config, input_tokens)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(L,) ids -> (L, hidden)."""
        return self.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """Runs one step of any mix of prompts and decoding requests.

        Args:
            input_ids: (L,) int64.
            positions: (3, L) int64, see `positions.py`.
            intermediate_tensors: From the earlier stage of a pipeline.
            inputs_embeds: (L, hidden) in place of `input_ids`.

        Returns:
            (L, hidden), or what the next stage of a pipeline takes.
        """
        split_prompts(positions[1])
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """(rows, hidden) -> (rows, vocabulary); `None` in a process that does not sample."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads the tensors of a converted folder.

        Raises:
            ValueError: a tensor that no part of the model takes, or one that the folder lacks.
        """
        parameters = dict(self.named_parameters())
        loaded: set[str] = set()
        came: set[str] = set()
        for name, tensor in weights:
            if (name.startswith("lm_head.") and self.is_tied) or is_pp_missing_parameter(name, self):
                continue
            part = next((part for part in FUSED if f"{part}." in name), None)
            target, shard = (name, ()) if part is None else (name.replace(part, FUSED[part][0]), FUSED[part][1:])
            if target not in parameters:
                raise ValueError(f"The folder's tensor {name} has no place in Glm130bForCausalLM.")
            loader = getattr(parameters[target], "weight_loader", default_weight_loader)
            loader(parameters[target], tensor, *shard)
            loaded.add(target)
            came.add(name)
        # vLLM's own check leaves out linears, and takes one part of a fused one for the whole.
        missing = sorted({name for target in parameters for name in _stored_names(target)} - came)
        if missing:
            raise ValueError(
                f"The folder lacks {len(missing)} of the model's tensors, {', '.join(missing[:3])} among them: its "
                "files are incomplete. Copy or convert it again."
            )
        return loaded


def _stored_names(target: str) -> list[str]:
    """The folder's names of a parameter: several for a fused one."""
    parts = [part for part, (fused, _) in FUSED.items() if f"{fused}." in target]
    return [target.replace(FUSED[part][0], part) for part in parts] or [target]
