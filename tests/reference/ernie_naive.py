"""ERNIE's encoder and masked-LM head in plain numpy and float64, from PaddleNLP's arrays under PaddleNLP's names.

Written from the paper's block (post-LN, Vaswani et al. 2017; arXiv 1907.12412) and the names of the design notes,
section 3.2; one row and one head at a time. A Linear of Paddle is x W + b with W of (in, out).
"""

import math
from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def linear(arrays: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return x @ arrays[f"{name}.weight"].astype("f8") + arrays[f"{name}.bias"].astype("f8")


def layer_norm(arrays: Arrays, name: str, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return centred / deviation * arrays[f"{name}.weight"].astype("f8") + arrays[f"{name}.bias"].astype("f8")


def activate(name: str, x: np.ndarray) -> np.ndarray:
    if name == "relu":
        return np.maximum(x, 0.0)
    assert name == "gelu"
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def encode(
    arrays: Arrays, ids: list[int], types: list[int], heads: int, activation: str, eps: float, prefix: str = ""
) -> np.ndarray:
    """Hidden states, (T, hidden), of one row without padding; the task type is 0 where there are task embeddings."""

    def table(name: str, rows: list[int]) -> np.ndarray:
        return arrays[f"{prefix}embeddings.{name}_embeddings.weight"].astype("f8")[rows]

    x = table("word", ids) + table("position", list(range(len(ids)))) + table("token_type", types)
    if f"{prefix}embeddings.task_type_embeddings.weight" in arrays:
        x = x + table("task_type", [0] * len(ids))
    x = layer_norm(arrays, f"{prefix}embeddings.layer_norm", x, eps)
    layer = 0
    while f"{prefix}encoder.layers.{layer}.norm1.weight" in arrays:
        x = block(arrays, f"{prefix}encoder.layers.{layer}", x, heads, activation, eps)
        layer += 1
    return x


def block(arrays: Arrays, name: str, x: np.ndarray, heads: int, activation: str, eps: float) -> np.ndarray:
    query, key, value = (linear(arrays, f"{name}.self_attn.{part}_proj", x) for part in "qkv")
    size = x.shape[1] // heads
    mixed = np.zeros_like(x)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for row in range(len(x)):
            scores = key[:, own] @ query[row, own] / math.sqrt(size)
            weights = np.exp(scores - scores.max())
            mixed[row, own] = weights / weights.sum() @ value[:, own]
    x = layer_norm(arrays, f"{name}.norm1", x + linear(arrays, f"{name}.self_attn.out_proj", mixed), eps)
    inner = activate(activation, linear(arrays, f"{name}.linear1", x))
    return layer_norm(arrays, f"{name}.norm2", x + linear(arrays, f"{name}.linear2", inner), eps)


def pooled(arrays: Arrays, hidden: np.ndarray, prefix: str = "") -> np.ndarray:
    """What the pooler makes of the first token, (hidden,)."""
    return np.tanh(linear(arrays, f"{prefix}pooler.dense", hidden[0]))


def word_logits(arrays: Arrays, hidden: np.ndarray, activation: str, eps: float, prefix: str) -> np.ndarray:
    """The masked-LM head's, (T, words)."""
    x = activate(activation, linear(arrays, "cls.predictions.transform", hidden))
    x = layer_norm(arrays, "cls.predictions.layer_norm", x, eps)
    words = arrays[f"{prefix}embeddings.word_embeddings.weight"].astype("f8")
    return x @ words.T + arrays["cls.predictions.decoder_bias"].astype("f8")
