"""What the configurations of UIE and UTC share: the host's ERNIE settings and one more.

`task_id` is the task type that PaddleNLP gives to every token where none is named.

Source: PaddleNLP 2.8.1, `paddlenlp/transformers/ernie/configuration.py`.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import ErnieConfig

from .configuration_arguments import (
    DEVIATION,
    EPSILON,
    LAYERS,
    MAX_SIZE,
    PROBABILITY,
    SIZE,
    Range,
    check_activations,
    check_arguments,
    check_ranges,
)

# What the numbers may be; of what may be left out, 0 says so.
RANGES = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": SIZE,
    "intermediate_size": SIZE,
    "max_position_embeddings": SIZE,
    "type_vocab_size": Range(0, MAX_SIZE),
    "task_type_vocab_size": Range(0, MAX_SIZE),
    "hidden_dropout_prob": PROBABILITY,
    "attention_probs_dropout_prob": PROBABILITY,
    "classifier_dropout": PROBABILITY,
    "initializer_range": DEVIATION,
    "layer_norm_eps": EPSILON,
}


@strict
class ErnieTaskConfig(ErnieConfig):
    """The settings of `transformers.ErnieConfig`, and `task_id`.

    Raises:
        ValueError: an argument that is no setting.
        StrictDataclassClassValidationError: (huggingface_hub) a number out of its range, or a `task_id` without a
            row in the task type embedding.
    """

    task_id: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        check_arguments(self, kwargs)
        super().__post_init__(**kwargs)

    def validate_ranges(self) -> None:
        """Checks every number and the activation (called by the host's `@strict` validation)."""
        check_ranges(self, RANGES)
        check_activations(self, ("hidden_act",))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size}."
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id={self.pad_token_id} has no row in the word embedding of {self.vocab_size} (vocab_size)."
            )

    def validate_task_id(self) -> None:
        """Checks `task_id` against the task types there are (called by the host's `@strict` validation)."""
        if self.use_task_id and not 0 <= self.task_id < self.task_type_vocab_size:
            raise ValueError(
                f"task_id={self.task_id} has no row in the task type embedding of {self.task_type_vocab_size} "
                "(task_type_vocab_size). Released checkpoints have task_id 0."
            )


# A base; what is offered are the configurations of the two models.
__all__: list[str] = []
