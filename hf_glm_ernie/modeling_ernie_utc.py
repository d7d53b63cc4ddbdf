"""UTC: unified tag classification on an ERNIE encoder.

The input holds the options, each behind an `[O-MASK]` token, and the text: `[CLS] [O-MASK] option [O-MASK] option
[SEP] text [SEP]`. An option's logit is the scaled product of a query at one token (in practice the first `[SEP]`) and
a key at the option's `[O-MASK]`. Options do not see each other: that is the caller's 4-D attention mask and restarted
positions. The encoder is the host's `ErnieModel`; what PaddleNLP does differently on the way in stands in
`inputs_ernie.py`. From texts to labels: `utc`.

Source: PaddleNLP 2.8.1, `paddlenlp/transformers/ernie/modeling.py` (`UTC`); the loss:
`paddlenlp/experimental/autonlp/utils.py` (`UTCLoss`). Letters in shape comments: B batch, T tokens, O options.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_ernie_utc import ErnieUTCConfig
from .host_inputs import check_labels_of, traced
from .inputs_ernie import ErnieTaskModel
from .quantization_weight_only import WeightOnlyQuantizer  # noqa: F401  # so that a Hub repository carries it

PREDICT_SIZE = 64  # width of query and key, the same in every released model
ABSENT = -1e12  # logit of an option that is not there

# What a saved folder says about its code: every Auto class that opens it.
HUB_CLASSES = {"AutoConfig": "configuration_ernie_utc.ErnieUTCConfig", "AutoModel": "modeling_ernie_utc.ErnieForUTC"}


@dataclass
class ErnieUTCOutput(ModelOutput):
    """What [`ErnieForUTC`] returns.

    Args:
        loss: Scalar, where labels were given.
        logits: (B, O) one per option; -1e12 (in fp16 its smallest number) for an option that is not there.
        hidden_states: The embedding's output and every layer's, each (B, T, hidden), where asked for.
        attentions: Every layer's attention weights, each (B, heads, T, T), where asked for (eager attention).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def tag_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """PaddleNLP's multi-label loss: every chosen option above zero, every other one below.

    Args:
        logits: (B, O).
        labels: (B, O) of 0 and 1, integers or floating point; -100 where there is no option.

    Returns:
        The mean over the batch of `log(1 + sum of exp(logit) of the others) + log(1 + sum of exp(-logit) of the
        chosen)`, fp32.
    """
    logits = logits.float()
    lowest = torch.finfo(logits.dtype).min
    zero = torch.zeros_like(logits[..., :1])  # the 1 inside the logarithms
    others = torch.cat((logits.masked_fill(labels != 0, lowest), zero), dim=-1)
    chosen = torch.cat(((-logits).masked_fill(labels != 1, lowest), zero), dim=-1)
    return (others.logsumexp(-1) + chosen.logsumexp(-1)).mean()


class ErnieForUTC(ErnieTaskModel):
    """ERNIE with a logit for every option that the input spells out.

    The pooler belongs to the checkpoints; its output is not used.
    """

    config: ErnieUTCConfig
    config_class = ErnieUTCConfig
    hub_classes = HUB_CLASSES

    def __init__(self, config: ErnieUTCConfig):
        super().__init__(config)
        self.linear_q = nn.Linear(config.hidden_size, PREDICT_SIZE)
        self.linear_k = nn.Linear(config.hidden_size, PREDICT_SIZE)
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc]  # the host types keyword arguments so, and mypy wants them total
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        omask_positions: torch.Tensor | None = None,
        cls_positions: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ErnieUTCOutput:
        """Scores every option of every row.

        Args:
            input_ids: (B, T) int64; pad ids embed to zero.
            attention_mask: (B, T) with 1 = attend, (B, 1 or heads, T, T) likewise, or floating point numbers of that
                shape, which are added to the scores. Left out, pad ids are masked.
            token_type_ids: (B, T) int64: 1 = options, 0 = text. Left out, 0.
            position_ids: (B, T) int64. Left out, 0 .. T - 1.
            omask_positions: (B, O) int64, the index of each option's `[O-MASK]` in its row; 0 = no such option.
            cls_positions: (B,) int64, the index of the token that stands for the text.
            labels: (B, O) of 0 and 1, -100 where there is no option.
            task_type_ids: (B, T) int64. Left out, `config.task_id`.
            inputs_embeds: (B, T, hidden) in place of `input_ids`.
            **kwargs: For the encoder: `output_hidden_states`, `output_attentions`; and `return_dict`.

        Returns:
            An [`ErnieUTCOutput`]; for `loss` see `tag_loss`.

        Raises:
            TypeError: an argument that nothing reads.
            ValueError: positions of the options or of the text left out or outside the row; labels of another shape or
                other than 0, 1 and -100; not exactly one of ids and embeddings.
        """
        if omask_positions is None or cls_positions is None:
            missing = "omask_positions" if omask_positions is None else "cls_positions"
            raise ValueError(
                f"{missing} is missing: the model scores the options at omask_positions (batch, options) against the "
                "token at cls_positions (batch,)."
            )
        outputs = self._encode(
            input_ids, attention_mask, token_type_ids, task_type_ids, position_ids, inputs_embeds, kwargs
        )
        hidden = outputs.last_hidden_state  # (B, T, hidden)
        _check_places(hidden, omask_positions, cls_positions, labels)
        query = self.linear_q(tokens_at(hidden, cls_positions[:, None]))  # (B, 1, 64)
        keys = self.linear_k(tokens_at(hidden, omask_positions))  # (B, O, 64)
        logits = torch.matmul(query, keys.transpose(1, 2)).squeeze(1) / PREDICT_SIZE**0.5  # (B, O)
        logits = logits.masked_fill(omask_positions <= 0, max(ABSENT, torch.finfo(logits.dtype).min))
        return ErnieUTCOutput(
            loss=None if labels is None else tag_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _check_places(
    hidden: torch.Tensor, omask_positions: torch.Tensor, cls_positions: torch.Tensor, labels: Any
) -> None:
    """Refuses places outside the rows, and labels of another shape, which would broadcast."""
    if traced():
        return
    rows, last = hidden.shape[0], hidden.shape[1] - 1
    for name, places, dimensions in (("omask_positions", omask_positions, 2), ("cls_positions", cls_positions, 1)):
        if places.ndim != dimensions or places.shape[0] != rows:
            wanted = f"({rows}, options)" if dimensions == 2 else f"({rows},)"
            raise ValueError(f"{name} has shape {tuple(places.shape)}, not {wanted}.")
        check_labels_of(name, places, tuple(places.shape), last + 1, ignored=0)
    check_labels_of("labels", labels, tuple(omask_positions.shape), 2)


def tokens_at(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(B, T, hidden) and (B, P) indices -> (B, P, hidden)."""
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


__all__ = ["ErnieForUTC", "ErnieUTCOutput"]
