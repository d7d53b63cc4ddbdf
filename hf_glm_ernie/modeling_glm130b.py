"""GLM-130B: a prefix language model that fills blanks.

What is unusual about it, compared with a plain decoder:

- A row is context, `<sop>`, answer. The context is bidirectional, `<sop>` and the answer are causal. Both the
  attention pattern and the positions follow from the ids (`prefix_glm130b.py`), so a caller passes ids and nothing
  else.
- DeepNorm as the released code lays it out: the residual branch is the *normalised* input times `(2 * num_layers) **
  0.5`.
- GeGLU feed-forward; biases everywhere but in the output projection, which is the word embedding.
- Rotary tables rounded to fp16 end to end, in any compute dtype (`rotary_glm130b.py`). The weights were trained with
  them.
- Attention scores of the 130B model overflow fp16. The eager path keeps the released remedy (divide the query by the
  layer's number, multiply back in fp32); the kernels behind `sdpa` and `flex_attention` hold scores in fp32.

In memory q, k, v and the two GeGLU halves are separate linears; the released checkpoint fuses them and the converter
splits them.

Order of the file: functions on tensors, modules from leaf to root, the model, the head.
Sources: arXiv 2210.02414 [P]; SwissArmyTransformer 0.2.12, `model/official/glm130B_model.py` [S]; `generate.py` of
the GLM-130B repository [R]. Letters in shape comments: B batch, L query length, S key length (cache included), H
heads, D head size.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_glm130b import Glm130bConfig
from .generation_glm130b import Glm130bGenerationMixin
from .host_inputs import check_columns, check_mask, check_tokens, kept_positions
from .host_interface import (
    CACHE_NAMES,
    CarriesItsCode,
    GivenToLayers,
    check_arguments,
    given_cache,
    named_cache,
    returned_cache,
)
from .inputs_glm130b import check_training_batch, labels_seen_first, refuse_joined_rows
from .prefix_glm130b import (
    ROWS_OF_CACHE,
    layout,
    mask_for_layers,
    plain_position_ids,
    prefix_attention_mask,
    prefix_token_type_ids,
    row_states,
)
from .quantization_weight_only import WeightOnlyQuantizer  # noqa: F401  # so that a Hub repository carries it
from .rotary_glm130b import Glm130bRotaryEmbedding, rotated

logger = logging.get_logger(__name__)

# What a saved folder says about its code: every Auto class that opens it.
HUB_CLASSES = {
    "AutoConfig": "configuration_glm130b.Glm130bConfig",
    "AutoModel": "modeling_glm130b.Glm130bModel",
    "AutoModelForCausalLM": "modeling_glm130b.Glm130bForCausalLM",
}


def eager_attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that cannot overflow fp16 [S `SelfAttentionWithFP32SoftmaxMixin`].

    The query is divided by the layer's number before the product, which is then taken to fp32, multiplied back,
    masked and normalised.

    Args:
        module: The attention layer; its `layer_idx` counts from 0.
        query: (B, H, L, D).
        key: (B, H, S, D).
        value: (B, H, S, D).
        attention_mask: (B, 1, L, S), added to the scores, or `None`.
        scaling: Factor of the scores, `D ** -0.5`.
        dropout: Probability of dropping an attention weight.
        **kwargs: Not used; other implementations take more.

    Returns:
        (B, L, H, D) in the dtype of the query, and the weights (B, H, L, S).
    """
    layer_number = float(module.layer_idx + 1)
    scores = (
        torch.matmul(query * (scaling / layer_number), key.transpose(2, 3)).float() * layer_number
    )  # (B, H, L, S) fp32
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def deepnorm_linear(in_features: int, out_features: int, gain: float) -> nn.Linear:
    """A linear with bias that a new model initialises with this Xavier gain (see
    `Glm130bPreTrainedModel._init_weights`).
    """
    linear = nn.Linear(in_features, out_features)
    linear.deepnorm_gain = gain  # type: ignore[assignment]  # torch types every attribute as tensor or module
    return linear


class Glm130bMLP(nn.Module):
    """GeGLU with exact (erf) gelu: `down(up(x) * gelu(gate(x)))`; the released first half is `up`, the second
    `gate`.
    """

    def __init__(self, config: Glm130bConfig):
        super().__init__()
        gain = (2 * config.num_hidden_layers) ** -0.5
        self.gate_proj = deepnorm_linear(config.hidden_size, config.intermediate_size, gain)
        self.up_proj = deepnorm_linear(config.hidden_size, config.intermediate_size, gain)
        self.down_proj = deepnorm_linear(config.intermediate_size, config.hidden_size, gain)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.up_proj(hidden_states) * F.gelu(self.gate_proj(hidden_states)))


class Glm130bAttention(nn.Module):
    """Multi-head attention with rotary positions taken from `position_ids`, which may repeat."""

    def __init__(self, config: Glm130bConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = 1
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True  # where no mask is given, sdpa may use its causal kernel
        gain = (2 * config.num_hidden_layers) ** -0.5
        self.q_proj = deepnorm_linear(config.hidden_size, config.hidden_size, 1.0)
        self.k_proj = deepnorm_linear(config.hidden_size, config.hidden_size, 1.0)
        self.v_proj = deepnorm_linear(config.hidden_size, config.hidden_size, gain)
        self.o_proj = deepnorm_linear(config.hidden_size, config.hidden_size, gain)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        cache = given_cache(cache, past_key_values)
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)  # (B, H, L, D)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)

        cos, sin = position_embeddings
        query = rotated(query, cos, sin)  # one after the other, so that the first gives its memory back
        key = rotated(key, cos, sin)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)  # (B, H, S, D)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.o_proj(output), weights


class Glm130bDecoderLayer(GradientCheckpointingLayer):
    """A decoder layer in the released DeepNorm order: `y = norm(x); h = alpha * y + attention(y)`, and the same with
    the MLP.
    """

    def __init__(self, config: Glm130bConfig, layer_idx: int):
        super().__init__()
        self.alpha = (2 * config.num_hidden_layers) ** 0.5
        self.dropout = config.hidden_dropout
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Glm130bAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Glm130bMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,  # the cache among them, under the host's name: its gradient checkpointing takes it out
    ) -> torch.Tensor:
        attention_input = self.input_layernorm(hidden_states)
        attention_output, _ = self.self_attn(
            attention_input,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            **kwargs,
        )
        hidden_states = self._residual(attention_input, attention_output)
        mlp_input = self.post_attention_layernorm(hidden_states)
        return self._residual(mlp_input, self.mlp(mlp_input))

    def _residual(self, branch_input: torch.Tensor, branch_output: torch.Tensor) -> torch.Tensor:
        if self.training:
            branch_output = F.dropout(branch_output, p=self.dropout)
        return torch.add(branch_output, branch_input, alpha=self.alpha)


class Glm130bPreTrainedModel(CarriesItsCode, PreTrainedModel):
    """What the host must know about every GLM-130B model: sharding, attention implementations, initialisation."""

    config: Glm130bConfig
    hub_classes = HUB_CLASSES
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Glm130bDecoderLayer"]
    _skip_keys_device_placement = CACHE_NAMES
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = False  # its mask function drops the prefix without a word
    _supports_attention_backend = False  # serving engines bring causal masks of their own
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": Glm130bDecoderLayer, "attentions": Glm130bAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """DeepNorm [P, 2.1 and B.2]: Xavier normal for the layers' linears, biases 0; the embedding as the host
        does.
        """
        if isinstance(module, nn.Linear) and hasattr(module, "deepnorm_gain"):
            init.xavier_normal_(module.weight, gain=float(module.deepnorm_gain))  # type: ignore[arg-type]  # see there
            init.zeros_(module.bias)
        elif isinstance(module, Glm130bRotaryEmbedding):
            for name, bits in module.compute_bits().items():  # `from_pretrained` builds on the meta device
                init.copy_(getattr(module, name), bits)
        else:
            super()._init_weights(module)


class Glm130bModel(Glm130bPreTrainedModel):
    """The decoder without the output projection."""

    _auto_class = "AutoModel"

    def __init__(self, config: Glm130bConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Glm130bDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary_emb = Glm130bRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[misc]  # the host's TransformersKwargs names position_ids too
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Runs the layers.

        Args:
            input_ids: (B, L) int64. What stands before the first `<sop>` of a row is read in both directions.
            attention_mask: (B, S) with 0 = padding, or (B, 1, L, S) bool (True = may attend) or float (added) in
                place of the pattern.
            position_ids: (B, L) int64 in place of those that follow from the ids.
            token_type_ids: (B, L), 0 = context, 1 = after, in place of those that follow from the ids.
            cache: Cache of the earlier tokens of the same rows.
            inputs_embeds: (B, L, hidden) in place of `input_ids`. `<sop>` and masks are recognised where they are
                the rows of the embedding, bit for bit, as behind the virtual tokens of prompt tuning; else pass
                `token_type_ids` and `position_ids` too, or every row is causal.
            use_cache: Whether to return a cache; default from the config.
            past_key_values: The name of `cache` before transformers 5.24.
            **kwargs: `output_hidden_states` and `output_attentions`; more only where the attention implementation is
                the user's own, which gets it.

        Returns:
            `last_hidden_state` (B, L, hidden), the cache under the host's name (`cache`, before transformers 5.24
            `past_key_values`), and what was asked for.

        Raises:
            TypeError: an argument that nothing reads, or of another type.
            ValueError: both or none of `input_ids` and `inputs_embeds`; a shape that does not fit, no rows or no
                tokens; on the CPU ids outside the vocabulary, positions and types out of range, a mask of other
                values; a `<sop>` whose context was cached as causal by an earlier call; rows joined by a collator.
        """
        refuse_joined_rows(kwargs)
        check_arguments(type(self).__name__, kwargs, self.config._attn_implementation)
        cache = given_cache(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        check_tokens(input_ids, inputs_embeds, self.config.vocab_size, self.config.hidden_size)
        if input_ids is not None:
            inputs_embeds = self._embed(input_ids)
        assert inputs_embeds is not None
        check_columns("token_type_ids", token_type_ids, inputs_embeds, 1, " (0 = context, 1 = after)")
        check_columns("position_ids", position_ids, inputs_embeds, *self.rotary_emb.last_position)
        check_mask(attention_mask, inputs_embeds, 0 if cache is None else cache.get_seq_length())
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)

        # Whoever gives types has a context to speak of; else a look at the types decides how attention is computed.
        looks = token_type_ids is None
        # A decoding step of `generate` brings types and positions, and its cache knows its rows.
        settled = cache is None or inputs_embeds.shape[1] == 1 or torch.compiler.is_compiling()
        if token_type_ids is None or position_ids is None or not settled:
            token_type_ids, position_ids, rows = self._layout(
                input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids, cache
            )
            if rows is not None:
                setattr(cache, ROWS_OF_CACHE, rows)
        mask = prefix_attention_mask(self.config, inputs_embeds, attention_mask, cache, token_type_ids, looks)
        position_embeddings = self.rotary_emb(position_ids, inputs_embeds.dtype)
        given = GivenToLayers((mask, position_embeddings), self._finish_mask)
        hidden_states = F.dropout(inputs_embeds, p=self.config.hidden_dropout) if self.training else inputs_embeds
        for layer in self.layers[: self.config.num_hidden_layers]:  # fewer while `assistant_early_exit` drafts
            mask, position_embeddings = given.of(layer)
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                **named_cache(cache),
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **named_cache(cache))

    def _finish_mask(self, mask: Any, position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> tuple[Any, Any]:
        mask = mask_for_layers(mask, self.config._attn_implementation, position_embeddings[0].dtype)
        return mask, position_embeddings

    def _embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, L) ids -> (B, L, hidden), the gradient shrunk in training [P, 3.1]."""
        embeds = self.embed_tokens(input_ids)
        if self.training and self.config.embedding_gradient_shrink != 1:
            embeds = torch.lerp(embeds.detach(), embeds, self.config.embedding_gradient_shrink)
        return embeds

    def marked_ids(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Finds the tokens that lay a row out by their embeddings.

        Args:
            inputs_embeds: (B, L, hidden).

        Returns:
            int64 (B, L): the ids of `<sop>`, `[MASK]` and `[sMASK]` where they stand, -1 elsewhere.
        """
        known = (self.config.sop_token_id, self.config.mask_token_id, self.config.smask_token_id)
        ids = torch.tensor([index for index in known if index is not None], device=inputs_embeds.device)
        marked = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
        for index, row in zip(ids, self.embed_tokens(ids).detach(), strict=True):
            marked = torch.where((inputs_embeds.detach() == row.to(inputs_embeds.dtype)).all(-1), index, marked)
        return marked

    def _layout(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor, list[int] | None]:
        """(B, L) types (`None` = causal) and positions, and what a cache that begins here is to remember of rows."""
        padding = attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 else None
        past_length = 0 if cache is None else cache.get_seq_length()
        if input_ids is None:
            if token_type_ids is not None or attention_mask is not padding:
                if position_ids is None:
                    batch_size, length = inputs_embeds.shape[:2]
                    position_ids = plain_position_ids(batch_size, length, padding, past_length, inputs_embeds.device)
                return token_type_ids, position_ids, None
            input_ids = self._ids_seen_in(inputs_embeds, past_length)

        tracing = torch.compiler.is_compiling()
        known = getattr(cache, ROWS_OF_CACHE, None)
        begins = known is None or not (tracing or bool(past_length > 0))
        explicit = token_type_ids is not None and position_ids is not None
        rows = None if begins or explicit else known
        types, positions = layout(self.config, input_ids, padding, token_type_ids, position_ids, past_length, rows)
        if cache is None or tracing or not begins:
            return types, positions, None
        starts_answer = (types == 0).any(-1, keepdim=True)
        if self.config.sop_token_id is not None:
            starts_answer = starts_answer | (input_ids == self.config.sop_token_id).any(-1, keepdim=True)
        real = None if padding is None else padding[:, -input_ids.shape[1] :]
        return types, positions, row_states(types, positions, real, starts_answer)[:, 0].tolist()

    def _ids_seen_in(self, inputs_embeds: torch.Tensor, past_length: int) -> torch.Tensor:
        """The ids that lay a row out, as far as its embeddings show them."""
        ids = self.marked_ids(inputs_embeds)
        if torch.compiler.is_compiling() or past_length:
            return ids
        if prefix_token_type_ids(ids, self.config.sop_token_id).all():
            logger.warning_once(
                "inputs_embeds without token_type_ids and without the embedding of <sop>: every row is read as "
                "causal. For a prefix pass token_type_ids (0 = context, 1 = <sop> and after) and position_ids."
            )
        return ids


class Glm130bForCausalLM(Glm130bPreTrainedModel, Glm130bGenerationMixin):
    """GLM-130B with its output projection, tied to the word embedding: loss, logits and `generate`."""

    _auto_class = "AutoModelForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]  # lists as in the host
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: Glm130bConfig):
        super().__init__(config)
        self.model = Glm130bModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            value = labels_seen_first(self, value, type(self).forward)
        super().__setattr__(name, value)

    @can_return_tuple
    def forward(  # type: ignore[misc]  # as above
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Runs the model and projects to the vocabulary; arguments as in [`Glm130bModel.forward`], and:

        Args:
            labels: (B, L) int64 ids, -100 where nothing is scored. They are shifted here: `labels[:, i]` is predicted
                at `i - 1`. Context and `<sop>` carry -100, the answer and `<eop>` their ids; a row without `<sop>`
                is causal and may carry labels everywhere.
            logits_to_keep: Number of last positions to project (0 = all), or a 1-D tensor of their indices.
            input_ids: (B, L) int64.
            attention_mask: (B, S), or (B, 1, L, S).
            position_ids: (B, L) int64.
            token_type_ids: (B, L), 0 = context, 1 = after.
            cache: Cache of the earlier tokens.
            inputs_embeds: (B, L, hidden) in place of `input_ids`.
            use_cache: Whether to return a cache.
            past_key_values: The name of `cache` before transformers 5.24.
            **kwargs: For the model, `num_items_in_batch` for the loss, and `shift_labels`, (B, L) int64 in place of
                `labels` and shifted already: `shift_labels[:, i]` is predicted at `i`. (No argument of its own: the
                host's Trainer takes every one with `labels` in its name for one that a batch must have.)

        Returns:
            `logits` (B, kept, vocabulary), `loss` where labels were given, and what the model returns.

        Raises:
            ValueError: as the model; labels on context, or rows joined into one without `token_type_ids`, unless
                `config.allow_context_labels`.
        """
        shift_labels: Any = kwargs.pop("shift_labels", None)  # type: ignore[typeddict-item]  # see above
        check_training_batch(
            *(self, labels, input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds, shift_labels),
            logits_to_keep=logits_to_keep,
        )
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            cache=given_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = kept_positions(logits_to_keep)
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None or shift_labels is not None:
            targets = {"labels": labels, "shift_labels": shift_labels}
            loss = self.loss_function(logits=logits, vocab_size=self.config.vocab_size, **targets, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **named_cache(returned_cache(outputs)),
        )


__all__ = ["Glm130bForCausalLM", "Glm130bModel", "Glm130bPreTrainedModel"]
