"""What PaddleNLP does to the inputs of an ERNIE encoder and the host's `ErnieModel` does not.

- The embedding of the pad id is zero at lookup, whatever the stored row holds.
- Without an attention mask, pad ids are masked.
- A 2-D mask adds -1e4 to the scores, a 4-D integer or boolean mask -1e9, and a 4-D float mask is added as given.
- Without task type ids, every token has the task type `config.task_id`.

`ErnieForUIE` and `ErnieForUTC` pass through here, so both give PaddleNLP's numbers on PaddleNLP's inputs.
Source: PaddleNLP 2.8.1, `paddlenlp/transformers/ernie/modeling.py` (`ErnieModel`, `ErnieEmbeddings`); paddlepaddle
2.6.2, `nn/layer/transformer.py` (`_convert_attention_mask`). Letters in shape comments: B batch, T tokens, H heads.
"""

from typing import Any

import torch
from torch import nn
from transformers import ErnieModel, ErniePreTrainedModel

from .compact_ernie import make_compact
from .host_inputs import check_columns, check_mask, check_tokens
from .host_interface import CarriesItsCode, check_arguments

# What PaddleNLP adds to the scores of masked tokens, by the kind of mask.
MASKED_BY_2D = -1e4
MASKED_BY_4D = -1e9

# Attention implementations that take an additive 4-D mask. The others (flash, flex) build their own from a 2-D one.
ADDITIVE = ("eager", "sdpa")


def additive_mask(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turns any mask PaddleNLP takes into what is added to the attention scores.

    Args:
        attention_mask: (B, T), 1 = attend; or (B, T, T) or (B, 1 or H, T, T): integers and booleans with 1 = attend,
            floating point numbers as what is added.
        dtype: Dtype of the scores. What it cannot hold becomes its smallest number.

    Returns:
        (B, 1, 1, T) or (B, 1 or H, T, T) in `dtype`.

    Raises:
        ValueError: a mask of another number of dimensions.
    """
    if attention_mask.ndim not in (2, 3, 4):
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}; it must be (batch, tokens), (batch, tokens, "
            "tokens) or (batch, heads or 1, tokens, tokens)."
        )
    if attention_mask.ndim == 2:
        return ((1.0 - attention_mask.to(dtype)) * MASKED_BY_2D)[:, None, None, :]
    mask = attention_mask[:, None] if attention_mask.ndim == 3 else attention_mask
    if not mask.is_floating_point():
        mask = (1.0 - mask.float()) * MASKED_BY_4D
    return mask.clamp(min=torch.finfo(dtype).min).to(dtype)


def encoder_inputs(
    word_embeddings: nn.Module,
    config: Any,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    task_type_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    token_type_ids: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> dict[str, torch.Tensor | None]:
    """Fills in what PaddleNLP fills in.

    Args:
        word_embeddings: The encoder's word embedding; it is called, so that adapters and hooks on it take part.
        config: The model's config: `pad_token_id`, `use_task_id`, `task_id` and the attention implementation.
        input_ids: (B, T) int64, or `None` where `inputs_embeds` is given.
        attention_mask: As in [`additive_mask`], or `None`: pad ids are masked (given embeddings, nothing is).
        task_type_ids: (B, T) int64, or `None`.
        inputs_embeds: (B, T, hidden), used as given.
        token_type_ids: (B, T) int64, or `None`; only checked.
        position_ids: (B, T) int64, or `None`; only checked.

    Returns:
        `inputs_embeds`, `attention_mask` and `task_type_ids` for the host's `ErnieModel`.

    Raises:
        TypeError: an argument of another type.
        ValueError: not exactly one of `input_ids` and `inputs_embeds`, a shape that does not fit, no rows or no
            tokens, rows longer than the model; on the CPU ids, positions or types out of range, a mask of other
            values.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
    check_tokens(input_ids, inputs_embeds, config.vocab_size, config.hidden_size)
    tokens = inputs_embeds if input_ids is None else input_ids
    assert tokens is not None
    longest = config.max_position_embeddings
    if position_ids is None and tokens.shape[1] > longest:
        raise ValueError(
            f"Rows of {tokens.shape[1]} tokens are longer than the model's {longest} positions: cut them."
        )
    check_columns("position_ids", position_ids, tokens, longest - 1, " (config.max_position_embeddings)")
    check_columns("token_type_ids", token_type_ids, tokens, config.type_vocab_size - 1, " (config.type_vocab_size)")
    if config.use_task_id:
        last = config.task_type_vocab_size - 1
        check_columns("task_type_ids", task_type_ids, tokens, last, " (config.task_type_vocab_size)")
    check_mask(attention_mask, tokens, patterns=(3, 4))
    if input_ids is not None:
        inputs_embeds = word_embeddings(input_ids)
        if config.pad_token_id is not None:
            pads = input_ids == config.pad_token_id
            inputs_embeds = inputs_embeds.masked_fill(pads[..., None], 0.0)
            attention_mask = (~pads).long() if attention_mask is None else attention_mask
    assert inputs_embeds is not None
    if task_type_ids is None and config.use_task_id:
        task_type_ids = torch.full(inputs_embeds.shape[:-1], config.task_id, device=inputs_embeds.device)
    if attention_mask is not None and config._attn_implementation in ADDITIVE:
        attention_mask = additive_mask(attention_mask, inputs_embeds.dtype)
    return {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "task_type_ids": task_type_ids}


class ErnieTaskModel(CarriesItsCode, ErniePreTrainedModel):
    """An ERNIE encoder that is given PaddleNLP's inputs; a subclass puts its head on `_encode`.

    The pooler belongs to the checkpoints; its output is not used.
    """

    _auto_class = "AutoModel"
    # The loss is a mean, so a trainer must average it over accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: Any):
        super().__init__(config)
        self.ernie = ErnieModel(config)
        make_compact(self.ernie, config)

    def _encode(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        task_type_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        options: Any,
    ) -> Any:
        """The encoder's outputs for a forward's arguments; `options` are the rest of them, for the encoder.

        Raises:
            TypeError: an option that nothing reads.
            ValueError: as in [`encoder_inputs`].
        """
        check_arguments(type(self).__name__, options, self.config._attn_implementation)
        inputs = encoder_inputs(
            self.get_input_embeddings(),
            self.config,
            input_ids,
            attention_mask,
            task_type_ids,
            inputs_embeds,
            token_type_ids,
            position_ids,
        )
        return self.ernie(token_type_ids=token_type_ids, position_ids=position_ids, **inputs, **options)


__all__ = ["ErnieTaskModel", "additive_mask", "encoder_inputs"]
