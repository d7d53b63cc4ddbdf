"""ERNIE 3.0 and ERNIE 3.0 Titan: one wide universal stack, and behind it a small branch for each kind of task.

What is unusual about it, compared with a plain encoder or decoder:

- Two stacks of different width run one after the other; a bias-free projection joins them. The branch of a call
  decides how *both* read: `"nlu"` in both directions, `"nlg"` causally.
- A long text goes through the generation branch in segments. Every layer of both stacks hands its last states to the
  next segment ([`Ernie3Memories`]), where they stand in front of the keys. The memory is the layer's own output of
  the segment before (same-layer recurrence), or its input as in Transformer-XL.
- One key/value cache serves both stacks: the universal layers have the indices 0 .. N - 1, the branch's N and up.
- Pre-norm, with one more norm behind each stack; exact gelu; biases everywhere but in the projection.
- Positions are absolute and go on counting from segment to segment; Transformer-XL's relative ones are a config
  choice (`attention_ernie3.py`).
- Several documents may share a row (`document_ids`): the memory in front belongs to the first, the one handed on to
  the last, and none sees another.
- A placeholder id stands for one learned soft prompt vector of the row's genre (Titan).

Order of the file: what a call takes and returns, modules from leaf to root, the model.
Sources: P10 = ERNIE 3.0, arXiv 2107.02137; PT = ERNIE 3.0 Titan, arXiv 2112.12731; the layer order is that of the
never released `ernie3-10b` model on a side branch of PaddleNLP. Letters in shape comments: B batch, L this call's
tokens, S key columns, M memory columns, W width of a stack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    packed_sequence_mask_function,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_ernie3 import add_types_to_keys, eager_attention_forward, relative_scores, remember
from .configuration_ernie3 import BRANCHES, HUB_CLASSES, Ernie3Config, StackSizes
from .host_inputs import check_tokens
from .host_interface import (
    CACHE_NAME,
    CACHE_NAMES,
    CarriesItsCode,
    GivenToLayers,
    check_arguments,
    copy_code,
    given_cache,
    named_cache,
)
from .inputs_ernie3 import Embedded, Ernie3Embeddings, check_documents, check_inputs
from .memory_ernie3 import (
    Ernie3Memories,
    KeyColumns,
    cache_with_memory,
    check_memories,
    documents_of,
    key_columns,
    next_memories,
    note_memory,
    real_tokens,
    visible_columns,
)
from .quantization_weight_only import WeightOnlyQuantizer  # noqa: F401  # so that a Hub repository carries it


@dataclass
class Ernie3ModelOutput(BaseModelOutputWithPast):
    """What [`Ernie3Model`] returns.

    Args:
        last_hidden_state: (B, L, branch width), behind the branch's norm.
        cache: The cache, for the generation branch where one is used; before transformers 5.24 `past_key_values`.
        hidden_states: The embedding's output, then every universal layer's, each (B, L, hidden), then every branch
            layer's, each (B, L, branch width); where asked for.
        attentions: Every layer's attention weights (B, heads, L, S), where asked for (eager attention).
        memories: What this segment hands to the next one, where asked for.
    """

    memories: Ernie3Memories | None = None


class Ernie3Attention(nn.Module):
    """Multi-head attention over [memory; input]."""

    def __init__(self, config: Ernie3Config, layer_idx: int, sizes: StackSizes):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        width = sizes.width
        self.num_heads = sizes.num_heads
        self.head_dim = width // self.num_heads
        self.num_key_value_groups = 1
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # the branch decides, call by call
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.relative = config.position_embedding_type == "relative"
        self.has_types = bool(config.type_vocab_size or config.task_type_vocab_size)
        if self.relative:
            self.r_proj = nn.Linear(config.hidden_size, width)
            self.r_w_bias = nn.Parameter(torch.zeros(width))
            self.r_r_bias = nn.Parameter(torch.zeros(width))
            if self.has_types:
                self.t_proj = nn.Linear(config.hidden_size, width)
                self.r_t_bias = nn.Parameter(torch.zeros(width))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        memory: torch.Tensor | None = None,
        cache: Cache | None = None,
        relative_states: torch.Tensor | None = None,
        relative_index: torch.Tensor | None = None,
        type_states: torch.Tensor | None = None,
        dropout: float = 0.0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        cache = given_cache(cache, past_key_values)
        sources = hidden_states if memory is None else torch.cat((memory, hidden_states), dim=1)
        query = self._heads(self.q_proj(hidden_states))  # (B, heads, L, D)
        key = self._heads(self.k_proj(sources))  # (B, heads, M + L, D)
        value = self._heads(self.v_proj(sources))
        if relative_states is not None and relative_index is not None:
            positions = self._heads(self.r_proj(relative_states)[None])[0].transpose(0, 1)  # (N, heads, D)
            bias = relative_scores(query + self._per_head(self.r_r_bias), positions, relative_index)
            kwargs["position_bias"] = bias * self.scaling
            query = query + self._per_head(self.r_w_bias)
            if type_states is not None:
                types = self._heads(self.t_proj(type_states))
                r_w_bias, r_t_bias = self._per_head(self.r_w_bias)[:, 0], self._per_head(self.r_t_bias)[:, 0]
                query, key = add_types_to_keys(query, key, types, r_w_bias, r_t_bias)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)  # (B, heads, S, D)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = dropout if self.training else 0.0
        output, weights = attention(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.out_proj(output.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, L, W) -> (B, heads, L, D)."""
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _per_head(self, bias: torch.Tensor) -> torch.Tensor:
        """(W,) -> (heads, 1, D)."""
        return bias.view(-1, 1, self.head_dim)


class Ernie3Layer(GradientCheckpointingLayer):
    """A pre-norm layer: `x = x + attention(norm1(x)); x = x + linear2(act(linear1(norm2(x))))`."""

    def __init__(self, config: Ernie3Config, layer_idx: int, sizes: StackSizes):
        super().__init__()
        self.config = config
        self.norm1 = nn.LayerNorm(sizes.width, eps=config.layer_norm_eps)
        self.self_attn = Ernie3Attention(config, layer_idx, sizes)
        self.norm2 = nn.LayerNorm(sizes.width, eps=config.layer_norm_eps)
        self.linear1 = nn.Linear(sizes.width, sizes.inner_width)
        self.activation = ACT2FN[sizes.activation]
        self.linear2 = nn.Linear(sizes.inner_width, sizes.width)

    def forward(
        self,
        hidden_states: torch.Tensor,
        relative_states: torch.Tensor | None = None,
        type_states: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
        hidden_dropout: float = 0.0,
        **kwargs: Any,
    ) -> torch.Tensor:
        if memory is not None:
            memory = memory.to(hidden_states.dtype)
            memory = self.norm1(memory) if self.config.memory_pre_norm else memory
        kwargs |= {"memory": memory, "relative_states": relative_states, "type_states": type_states}
        attention_output, _ = self.self_attn(self.norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + F.dropout(attention_output, p=hidden_dropout, training=self.training)
        inner = self.activation(self.linear1(self.norm2(hidden_states)))
        return hidden_states + F.dropout(self.linear2(inner), p=hidden_dropout, training=self.training)


class Ernie3Stack(nn.Module):
    """Layers in a row, and what they remember."""

    def __init__(self, config: Ernie3Config, first_layer: int, sizes: StackSizes):
        super().__init__()
        self.remembers_output = config.recurrence == "same_layer"
        layers = range(first_layer, first_layer + sizes.num_layers)
        self.layers = nn.ModuleList([Ernie3Layer(config, layer, sizes) for layer in layers])

    def forward(
        self,
        hidden_states: torch.Tensor,
        memories: Sequence[torch.Tensor] | None,
        columns: torch.Tensor | None,
        relative_states: torch.Tensor | None = None,
        type_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs the layers.

        Args:
            hidden_states: (B, L, W).
            memories: One (B, M, W) for each layer, or `None`.
            columns: (B, K) int64 of the M + L columns, those to remember; `None`: nothing is remembered.
            relative_states: (N, hidden), the distances' rows, or `None`.
            type_states: (B, M + L, hidden), the types of the keys, or `None`.
            **kwargs: For every layer.

        Returns:
            (B, L, W), and for each layer (B, K, W) to remember.
        """
        kept: list[torch.Tensor] = []
        patterns = {name: kwargs.pop(name) for name in ("attention_mask", "relative_index") if name in kwargs}
        given = GivenToLayers((columns, relative_states, type_states, *patterns.values()))
        for i, layer in enumerate(self.layers):
            memory = None if memories is None else memories[i]
            before = hidden_states
            columns, relative_states, type_states, *values = given.of(layer)
            kwargs |= dict(zip(patterns, values, strict=True))
            # by position what has a gradient: the host's reentrant checkpointing follows no other arguments
            hidden_states = layer(hidden_states, relative_states, type_states, memory=memory, **kwargs)
            if columns is not None:
                states = hidden_states if self.remembers_output else before
                remembered = remember(memory, states, columns.to(states.device))
                # beside an accelerator too, where the CPU has computed a layer (`set_offload`): see `check_memories`
                kept.append(remembered.to(columns.device) if states.device.type == "cpu" else remembered)
        return hidden_states, kept


class Ernie3Branch(Ernie3Stack):
    """The layers of one kind of task, and the norm behind them."""

    def __init__(self, config: Ernie3Config):
        super().__init__(config, config.num_hidden_layers, config.branch_sizes)
        self.norm = nn.LayerNorm(config.branch_hidden_size, eps=config.layer_norm_eps)


@dataclass
class _LayersOfBothStacks(OutputRecorder):
    """Records the output of every layer; transformers from 5.23 on counts an index of -1 by the number named here."""

    num_hidden_layers_key: str = "num_generation_layers"


class Ernie3PreTrainedModel(CarriesItsCode, PreTrainedModel):
    """What the host must know about every ERNIE 3.0 model: sharding, attention implementations, initialisation."""

    config: Ernie3Config
    hub_classes = HUB_CLASSES
    base_model_prefix = "ernie3"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Ernie3Layer"]  # the embeddings' tables may part: Accelerate's FSDP2 takes the words' alone
    _skip_keys_device_placement = [*CACHE_NAMES, "memories"]  # they stay with their layers
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = False  # takes no bias for relative positions, and drops the memory's mask of a static cache
    _supports_attention_backend = False  # serving engines bring causal masks of their own
    _can_compile_fullgraph = True
    _can_record_outputs: Any = {"hidden_states": _LayersOfBothStacks(Ernie3Layer), "attentions": Ernie3Attention}

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in the host. The folder carries the code of every class that opens it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            copy_code(Path(save_directory), HUB_CLASSES)

    def post_init(self) -> None:
        """As in the host; with relative positions no rule splits the layers, so none splits the heads either."""
        super().post_init()
        if self.config.position_embedding_type == "relative":
            self._tp_plan = {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """N(0, `initializer_range`) for matrices and tables, norms 1 and 0, biases 0."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)  # the PAD row too: the original has no padding_idx
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Ernie3Attention):
            for name in ("r_w_bias", "r_r_bias", "r_t_bias"):
                if hasattr(module, name):
                    init.zeros_(getattr(module, name))

    def freeze_universal(self) -> None:
        """Stops the universal part from learning: embeddings, universal stack, its norm and the projection [P10]."""
        base = self.base_model
        for part in (base.embeddings, base.encoder, base.encoder_norm, base.task_projection):
            part.requires_grad_(False)


class Ernie3Model(Ernie3PreTrainedModel):
    """The universal stack and its branches, without heads.

    Args:
        config: The settings.
        branches: Which of `config.branches` to build; `None`: all of them.
    """

    _auto_class = "AutoModel"
    # the heads and branches that a checkpoint of another class holds
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)branches\.(nlu|nlg)\.", r"_lm_head\.", r"^pooler\.", r"_head\."]

    def __init__(self, config: Ernie3Config, branches: Sequence[str] | None = None):
        super().__init__(config)
        names = list(config.branches if branches is None else branches)
        if missing := [name for name in names if name not in config.branches]:
            raise ValueError(
                f"{type(self).__name__} needs the branch {missing[0]!r}, but config.branches={config.branches}."
            )
        self.embeddings = Ernie3Embeddings(config)
        self.encoder = Ernie3Stack(config, 0, config.universal_sizes)
        self.encoder_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.task_projection = nn.Linear(config.hidden_size, config.branch_hidden_size, bias=False)
        self.branches = nn.ModuleDict({name: Ernie3Branch(config) for name in names})
        self.gradient_checkpointing = False
        self.post_init()
        absent = tuple(f"branches.{name}." for name in BRANCHES if name not in names)
        # the host warns of rules that no layer follows
        for plan in ("_tp_plan", "_fsdp_plan"):
            rules = getattr(self, plan) or {}
            setattr(self, plan, {rule: style for rule, style in rules.items() if not rule.startswith(absent)})

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embedding."""
        self.embeddings.word_embeddings = value  # type: ignore[assignment]  # whatever the host puts there

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[misc]  # the host's TransformersKwargs names position_ids too
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        genre_ids: torch.Tensor | None = None,
        branch: str | None = None,
        memories: Ernie3Memories | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_memories: bool | None = None,
        past_key_values: Cache | None = None,
        document_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Ernie3ModelOutput:
        """Runs the universal stack and one branch.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, S) with 0 = padding, S counting cached tokens but not the memory; or (B, 1, L, M + S)
                bool (True = may attend) or float (added) in place of the pattern. Left out, pad ids are padding.
            position_ids: (B, L) int64 in place of those counted over real tokens and on from the memory. For one
                behind the table see `config.position_overflow`. Not read where positions are relative.
            token_type_ids: (B, L) int64; no effect where the model has no such embedding.
            task_type_ids: (B, L) int64; likewise.
            genre_ids: (B,) int64, the genre of each row's soft prompt. The k-th placeholder of a row becomes the
                genre's k-th vector. With a filled cache placeholders are words: they stand in a row's first call.
            branch: `"nlu"` or `"nlg"`. Left out: `"nlu"` where the model has it.
            memories: What the segment before returned; `"nlg"` only. With a cache, the first call takes them whole
                and puts them into the cache, later ones take `memories.without_states()`.
            cache: Cache of the earlier tokens of the same rows; `"nlg"` only.
            inputs_embeds: (B, L, hidden) in place of `input_ids`.
            use_cache: Whether to return a cache (`"nlg"`); default from the config.
            return_memories: Whether to return memories (`"nlg"`); left out, where memories came in. A call on a
                filled cache returns none: it does not see the states of the tokens before.
            past_key_values: The name of `cache` before transformers 5.24.
            document_ids: (B or 1, L) int64, another number at each border between documents that share a row; what
                padding has does not matter. Each is read as if alone: attention and positions stay within it.
                `memories` belong to a row's first document and go on with its last. No cache is taken or made.
            **kwargs: `output_hidden_states` and `output_attentions`; more only where the attention implementation is
                the user's own, which gets it.

        Returns:
            `last_hidden_state` (B, L, branch width), the cache under the host's name (`cache`, before transformers
            5.24 `past_key_values`), `memories`, and what was asked for.

        Raises:
            TypeError: an argument that nothing reads.
            ValueError: ids and embeddings both or neither; a branch that is not there; memories or a cache for
                `"nlu"`; memories, genres or documents that do not fit; a mask too short; with relative positions a
                text beyond the table.
        """
        check_arguments(type(self).__name__, kwargs, self.config._attn_implementation)
        cache = given_cache(cache, past_key_values)
        branch = self._choose_branch(branch, memories, cache, return_memories)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either input_ids or inputs_embeds, and not both.")
        check_tokens(input_ids, inputs_embeds, self.config.vocab_size, self.config.hidden_size)
        tokens: torch.Tensor = inputs_embeds if input_ids is None else input_ids  # type: ignore[assignment]  # see above
        check_memories(self.config, memories, tokens.shape[0], tokens.device)
        check_inputs(self.config, tokens, attention_mask, position_ids, token_type_ids, task_type_ids)
        check_documents(document_ids, tokens, attention_mask, cache, genre_ids)
        if branch == "nlg" and use_cache and cache is None and document_ids is None:
            cache = DynamicCache(config=self.config)
        columns = key_columns(tokens.shape[1], memories, cache)
        note_memory(cache, columns)
        real = real_tokens(self.config, input_ids, attention_mask, columns, tokens.shape[0])
        documents = documents_of(document_ids, real, columns, tokens.shape[0])
        keep, carried = next_memories(self.config, tokens, real, memories, columns, documents, return_memories)
        whole_pattern = attention_mask is not None and len(attention_mask.shape) == 4
        real = None if whole_pattern else real  # a pattern of the caller's own says what is padding, too
        mask = attention_mask if whole_pattern else visible_columns(real, memories, columns)
        distances, index = self._distances(columns, mask, branch == "nlg", tokens.device)
        if position_ids is None and distances is None:
            position_ids = columns.positions(real, memories, documents, tokens.device)
        given = (input_ids, inputs_embeds, genre_ids, position_ids, token_type_ids, task_type_ids)
        embedded = self.embeddings(*given, columns.continues, distances, columns.new_memory)
        settings = self._for_every_layer(embedded, index, branch, mask, columns, documents, cache) | kwargs
        hidden_states, states = self._run(embedded.hidden_states, branch, memories, keep, **settings)
        return Ernie3ModelOutput(
            last_hidden_state=hidden_states,
            memories=None if carried is None else carried.with_states(states),
            **named_cache(cache if branch == "nlg" else None),
        )

    @property
    def default_branch(self) -> str:
        """The branch of a call that names none."""
        return "nlu" if "nlu" in self.branches else "nlg"

    def _choose_branch(self, branch: str | None, memories: Any, cache: Any, return_memories: bool | None) -> str:
        branch = self.default_branch if branch is None else branch
        if branch not in self.branches:
            raise ValueError(f"branch={branch!r} is not one of this model's branches {list(self.branches)}.")
        if branch == "nlu":
            for name, value in (
                ("memories", memories),
                (CACHE_NAME, cache),
                ("return_memories", return_memories or None),
            ):
                if value is not None:
                    raise ValueError(
                        f"{name} is for branch='nlg' only: the branch 'nlu' reads a text in both directions, so "
                        f"nothing can be carried on. Leave {name} out or pass branch='nlg'."
                    )
        return branch

    def _for_every_layer(
        self,
        embedded: Embedded,
        relative_index: torch.Tensor | None,
        branch: str,
        mask: Any,
        columns: KeyColumns,
        documents: torch.Tensor | None,
        cache: Cache | None,
    ) -> dict[str, Any]:
        """What every layer of both stacks needs: the branch's pattern, the cache, and relative positions."""
        causal = branch == "nlg"
        apart = None
        if documents is not None:  # the memory's columns belong to the first one
            apart = packed_sequence_mask_function(F.pad(documents, (columns.memory, 0)))
        if causal:
            sizes = cache_with_memory(cache, columns.new_memory)
            pattern = create_causal_mask(
                self.config, embedded.hidden_states, mask, sizes, None, and_mask_function=apart
            )
        else:
            pattern = create_bidirectional_mask(self.config, embedded.hidden_states, mask, and_mask_function=apart)
        if apart is not None and pattern is None:
            raise ValueError(
                f"attn_implementation={self.config._attn_implementation!r} takes no pattern, so it would not keep the "
                "documents of a row apart. Use 'sdpa', 'eager' or 'flex_attention', or leave document_ids out."
            )
        settings = {"attention_mask": pattern, "is_causal": causal, **named_cache(cache)}
        if relative_index is not None:
            states = {"relative_states": embedded.relative_states, "type_states": embedded.type_states}
            settings |= {"relative_index": relative_index, **states}
        return settings

    def _distances(
        self, columns: KeyColumns, mask: Any, causal: bool, device: torch.device
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The distances that occur, (N,) int64, and which of them each pair has, (B or 1, L, S) int64.

        Both are `None` where positions are absolute.
        """
        if not self.embeddings.relative:
            return None, None
        columns.check_reach(self.config.max_position_embeddings, self.config.memory_length)
        visible = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        first = 0 if causal else 1 - columns.length  # later keys are masked where the reading is causal
        distances = torch.arange(first, columns.total, device=device)
        return distances, (columns.distances(visible, device) - first).clamp(0, len(distances) - 1)

    def _run(
        self,
        hidden_states: torch.Tensor,
        branch: str,
        memories: Ernie3Memories | None,
        keep: torch.Tensor | None,
        **settings: Any,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Both stacks, from the embedding's output to (B, L, branch width) and every layer's states to remember."""
        config = self.config
        states = None if memories is None else memories.states
        # read at every forward: a schedule may set them
        dropouts = {"hidden_dropout": config.hidden_dropout_prob, "dropout": config.attention_probs_dropout_prob}
        number = config.num_hidden_layers
        hidden_states, kept = self.encoder(hidden_states, states and states[:number], keep, **dropouts, **settings)
        hidden_states = self.task_projection(self.encoder_norm(hidden_states))
        dropouts["hidden_dropout"] = config.branch_hidden_dropout_prob
        dropouts["dropout"] = config.branch_attention_probs_dropout_prob
        stack: Any = self.branches[branch]
        hidden_states, branch_kept = stack(hidden_states, states and states[number:], keep, **dropouts, **settings)
        return stack.norm(hidden_states), (*kept, *branch_kept)


__all__ = ["Ernie3Memories", "Ernie3Model", "Ernie3ModelOutput", "Ernie3PreTrainedModel"]
