"""UIE: universal information extraction on an ERNIE encoder.

The input is a pair, `[CLS] prompt [SEP] text [SEP]`; for every token the model gives the probability that an answer
to the prompt starts there and the probability that one ends there. The encoder is the host's `ErnieModel`; what
PaddleNLP does differently on the way in stands in `inputs_ernie.py`. From texts to answers: `uie`.

Source: PaddleNLP 2.8.1, `paddlenlp/transformers/ernie/modeling.py` (`UIE`); the loss: `model_zoo/uie/finetune.py` of
the PaddleNLP repository. Letters in shape comments: B batch, T tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_ernie_uie import ErnieUIEConfig
from .host_inputs import check_probabilities
from .inputs_ernie import ErnieTaskModel
from .quantization_weight_only import WeightOnlyQuantizer  # noqa: F401  # so that a Hub repository carries it

# What a saved folder says about its code: every Auto class that opens it.
HUB_CLASSES = {"AutoConfig": "configuration_ernie_uie.ErnieUIEConfig", "AutoModel": "modeling_ernie_uie.ErnieForUIE"}


@dataclass
class ErnieUIEOutput(ModelOutput):
    """What [`ErnieForUIE`] returns.

    Args:
        loss: Scalar, where start and end positions were given.
        start_prob: (B, T) probability that an answer starts at the token.
        end_prob: (B, T) probability that an answer ends with the token.
        start_logits: (B, T) the same before the sigmoid.
        end_logits: (B, T) the same before the sigmoid.
        hidden_states: The embedding's output and every layer's, each (B, T, hidden), where asked for.
        attentions: Every layer's attention weights, each (B, heads, T, T), where asked for (eager attention).
    """

    loss: torch.Tensor | None = None
    start_prob: torch.Tensor | None = None
    end_prob: torch.Tensor | None = None
    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ErnieForUIE(ErnieTaskModel):
    """ERNIE with a start and an end probability for every token.

    The pooler belongs to the checkpoints; its output is not used.
    """

    config: ErnieUIEConfig
    config_class = ErnieUIEConfig
    hub_classes = HUB_CLASSES

    def __init__(self, config: ErnieUIEConfig):
        super().__init__(config)
        self.linear_start = nn.Linear(config.hidden_size, 1)
        self.linear_end = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc]  # the host types keyword arguments so, and mypy wants them total
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ErnieUIEOutput:
        """Scores every token as the start and as the end of an answer.

        Args:
            input_ids: (B, T) int64; pad ids embed to zero.
            attention_mask: (B, T) with 1 = attend, (B, 1 or heads, T, T) likewise, or floating point numbers of that
                shape, which are added to the scores. Left out, pad ids are masked.
            token_type_ids: (B, T) int64: 0 = prompt, 1 = text. Left out, 0.
            task_type_ids: (B, T) int64. Left out, `config.task_id`.
            position_ids: (B, T) int64. Left out, 0 .. T - 1.
            inputs_embeds: (B, T, hidden) in place of `input_ids`.
            start_positions: (B, T) of 0 and 1, integers or floating point: 1 where an answer starts. Training with
                the host's `Trainer` takes `label_names=["start_positions", "end_positions"]`.
            end_positions: (B, T), 1 at the last token of an answer.
            **kwargs: For the encoder: `output_hidden_states`, `output_attentions`; and `return_dict`.

        Returns:
            An [`ErnieUIEOutput`]. `loss` is the mean of the two binary cross-entropies over all B * T tokens,
            padding included, as in PaddleNLP's fine-tuning, taken from the logits in fp32.

        Raises:
            TypeError: an argument that nothing reads.
            ValueError: only one of the two kinds of positions; not exactly one of ids and embeddings.
        """
        outputs = self._encode(
            input_ids, attention_mask, token_type_ids, task_type_ids, position_ids, inputs_embeds, kwargs
        )
        start_logits = self.linear_start(outputs.last_hidden_state).squeeze(-1)  # (B, T)
        end_logits = self.linear_end(outputs.last_hidden_state).squeeze(-1)  # (B, T)
        return ErnieUIEOutput(
            loss=span_loss(start_logits, end_logits, start_positions, end_positions),
            start_prob=start_logits.sigmoid(),
            end_prob=end_logits.sigmoid(),
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def span_loss(
    start_logits: torch.Tensor,
    end_logits: torch.Tensor,
    start_positions: torch.Tensor | None,
    end_positions: torch.Tensor | None,
) -> torch.Tensor | None:
    """The mean of the start and the end cross-entropy; all four are (B, T). `None` without positions."""
    if start_positions is None and end_positions is None:
        return None
    if start_positions is None or end_positions is None:
        given = "end_positions" if start_positions is None else "start_positions"
        raise ValueError(f"Only {given} was given: the loss takes start_positions and end_positions, or neither.")
    for name, given_positions in (("start_positions", start_positions), ("end_positions", end_positions)):
        check_probabilities(name, given_positions, tuple(start_logits.shape))
    start = F.binary_cross_entropy_with_logits(start_logits.float(), start_positions.float())
    end = F.binary_cross_entropy_with_logits(end_logits.float(), end_positions.float())
    return (start + end) / 2


__all__ = ["ErnieForUIE", "ErnieUIEOutput"]
