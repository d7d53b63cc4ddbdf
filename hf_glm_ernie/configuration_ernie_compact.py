"""Configuration of ERNIE encoders that were made smaller: fewer heads than their width asks for, INT8 embeddings.

The host derives the width of a head from `hidden_size / num_attention_heads` and takes as many heads. An encoder
whose least important heads were taken out (PaddleNLP's `compress`, after DynaBERT) keeps its hidden size and the width
of its heads, and has fewer of them: `num_attention_heads` goes on to say how wide a head is, `kept_attention_heads`
how many there are. Fewer neurons are the host's own `intermediate_size`, a smaller vocabulary its `vocab_size`.
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
    "kept_attention_heads": SIZE,
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
EMBEDDING_BITS = (None, 8)


@strict
class ErnieCompactConfig(ErnieConfig):
    r"""The settings of `transformers.ErnieConfig`, and what pruning and quantizing leave of an encoder.

    Args:
        kept_attention_heads: Heads of every layer, each `hidden_size / num_attention_heads` wide; `None`: all of
            `num_attention_heads`.
        embedding_bits: 8: word and position embeddings are integers with a scale for each row; `None`: floats.

    Raises:
        ValueError: an argument that is no setting.
        StrictDataclassClassValidationError: (huggingface_hub) a number out of its range.

    ```python
    >>> from hf_glm_ernie import ErnieCompactConfig

    >>> ErnieCompactConfig(num_attention_heads=12, kept_attention_heads=6, intermediate_size=1536).kept_attention_heads
    6
    ```
    """

    model_type = "ernie_compact"

    kept_attention_heads: int | None = None
    embedding_bits: int | None = None

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

    def validate_what_is_left(self) -> None:
        """Checks what was taken out (called by the host's `@strict` validation)."""
        kept = self.kept_attention_heads
        if kept is not None and kept > self.num_attention_heads:
            raise ValueError(
                f"kept_attention_heads={kept} is more than num_attention_heads={self.num_attention_heads}."
            )
        if self.embedding_bits not in EMBEDDING_BITS:
            raise ValueError(f"embedding_bits={self.embedding_bits!r} is not 8 or None.")


__all__ = ["ErnieCompactConfig"]
