"""What a smaller ERNIE encoder has in the place of the host's modules: fewer heads, embeddings of integers.

The host builds the whole encoder; [`make_compact`] then puts narrower linears and embeddings of integers in. Rows of
an embedding are quantized as the rows of an INT8 linear are (`weight_only.py`), and stored like them: integers
-127..127 behind a leading axis, which a program that does not know them refuses, and a scale that is rounded to fp16.
"""

from typing import Any

import torch
from torch import nn

from .weight_only import quantize, storage_shape, to_storage

QUANTIZED_EMBEDDINGS = ("word_embeddings", "position_embeddings")
"""The others have a few rows."""


class Int8Embedding(nn.Module):
    """An embedding of integers; what is looked up is multiplied with the scale of its row.

    Args:
        num_embeddings: Rows.
        embedding_dim: Columns.
        device: Of the integers and scales.

    Attributes:
        weight: (1, rows, columns) int8.
        weight_scale: (rows, 1) in the dtype of the model, which is that of the output.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, device: Any = None):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        shape = storage_shape(num_embeddings, embedding_dim, 8)
        integers = torch.zeros(shape, dtype=torch.int8, device=device)
        self.weight = nn.Parameter(integers, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.ones(num_embeddings, 1, device=device), requires_grad=False)

    @classmethod
    def from_float(cls, embedding: nn.Embedding) -> "Int8Embedding":
        """Quantizes an embedding; a value is at most half a scale away.

        Raises:
            ValueError: values that are not finite.
        """
        weight = embedding.weight.detach()
        rows, width = weight.shape
        new = cls(rows, width, device=weight.device)
        integers, scale = quantize(weight, bits=8)
        new.weight.data, new.weight_scale.data = to_storage(integers, 8), scale.to(weight.dtype)
        return new

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks rows up: ids of any shape -> that shape and columns."""
        tables = (self.weight.flatten(0, 1), self.weight_scale)
        integers, scale = (nn.functional.embedding(ids, table) for table in tables)
        return integers.to(scale.dtype) * scale

    def extra_repr(self) -> str:
        """The sizes, as torch's embeddings print them."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


def keep_heads(encoder: nn.Module, heads: int) -> None:
    """Gives every layer's attention that many heads of the same width, in place; the new linears hold no values yet.

    Args:
        encoder: The host's `ErnieModel`.
        heads: How many.
    """
    for layer in encoder.encoder.layer:  # type: ignore[operator, union-attr]  # the host's list of layers
        attention = layer.attention
        width = heads * attention.self.attention_head_size
        attention.self.num_attention_heads, attention.self.all_head_size = heads, width
        for name in ("query", "key", "value"):
            old = getattr(attention.self, name)
            setattr(attention.self, name, _linear_like(old, old.in_features, width))
        attention.output.dense = _linear_like(attention.output.dense, width, attention.output.dense.out_features)


def _linear_like(linear: nn.Linear, in_features: int, out_features: int) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias=True, device=linear.weight.device, dtype=linear.weight.dtype)


def quantize_embeddings(encoder: nn.Module) -> None:
    """Puts integers in the place of the word and position embeddings of a host's `ErnieModel`, in place.

    Embeddings that are integers already stay as they are.
    """
    for name in QUANTIZED_EMBEDDINGS:
        embedding = getattr(encoder.embeddings, name)
        if isinstance(embedding, nn.Embedding):
            setattr(encoder.embeddings, name, Int8Embedding.from_float(embedding))


def make_compact(encoder: nn.Module, config: Any) -> None:
    """Brings a host's `ErnieModel` that was built from a config into the form that the config names, in place.

    Args:
        encoder: Just built: its values are lost where modules are replaced.
        config: An [`ErnieCompactConfig`], or one that has no such settings.
    """
    if config.kept_attention_heads is not None:
        keep_heads(encoder, config.kept_attention_heads)
    if config.embedding_bits is not None:
        for name in QUANTIZED_EMBEDDINGS:
            old = getattr(encoder.embeddings, name)
            rows, width = old.weight.shape
            setattr(encoder.embeddings, name, Int8Embedding(rows, width, device=old.weight.device))


__all__ = ["Int8Embedding", "keep_heads", "make_compact", "quantize_embeddings"]
