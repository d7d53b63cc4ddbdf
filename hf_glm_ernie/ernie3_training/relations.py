"""Attention relations: what is taught in distillation, and how far two models' relations are apart.

The relation of a query with the keys is softmax(q K^T / sqrt(d)); MiniLMv2 relates the queries among themselves, and
the keys, and the values. All three are taken by forward hooks on the linears that make them, so the models need not
know of it. Position terms of a relative attention are no part of it.

Source: ERNIE 3.0 Titan, arXiv 2112.12731; MiniLM, arXiv 2002.10957; MiniLMv2, arXiv 2012.15828 (relation
heads). Letters in shape comments: B batch, T tokens, W width of all heads together, A heads.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

# Where queries, keys and values are made in a layer: ERNIE 3.0, the host's encoders.
PROJECTIONS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("attention.self.query", "attention.self.key", "attention.self.value"),
)
# Which two of them a relation is between. Titan and MiniLM: the first; MiniLMv2: the others.
RELATIONS = {
    "query-key": ("queries", "keys"),
    "query-query": ("queries", "queries"),
    "key-key": ("keys", "keys"),
    "value-value": ("values", "values"),
}


@dataclass(frozen=True)
class Relations:
    """Queries, keys and values of one attention in one forward.

    Attributes:
        queries: (B, T, W) of any floating point dtype.
        keys: (B, T, W).
        values: (B, T, W).
        heads: How many heads W holds.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    heads: int

    def detach(self) -> "Relations":
        """The same without gradient."""
        return Relations(self.queries.detach(), self.keys.detach(), self.values.detach(), self.heads)


def relation_log_probabilities(
    queries: torch.Tensor, keys: torch.Tensor, heads: int, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities of the relations: log softmax(Q K^T / sqrt(W / A)) over the keys that are no padding.

    Args:
        queries: (B, T, W); what takes their place in other relations.
        keys: (B, T, W); likewise.
        heads: A, a divisor of W.
        attention_mask: (B, T), 1 = token, 0 = padding.

    Returns:
        (B, A, T, T) fp32, query by key. What stands at padding has no meaning.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys))
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])  # (B, A, T, T) fp32
        padding = attention_mask[:, None, None, :] == 0
        return scores.masked_fill(padding, torch.finfo(scores.dtype).min).log_softmax(-1)


def relation_divergence(
    teacher: Relations,
    student: Relations,
    attention_mask: torch.Tensor,
    heads: int,
    relations: Sequence[str] = ("query-key",),
) -> torch.Tensor:
    """KL(teacher || student) of two models' relations on the same batch.

    Args:
        teacher: What the model that teaches has made; the gradient flows into whatever has one.
        student: What the model that learns has made.
        attention_mask: (B, T), 1 = token, 0 = padding; padding counts neither as query nor as key.
        heads: Relation heads: both widths are cut into so many parts.
        relations: Names of `RELATIONS`.

    Returns:
        A scalar, fp32: the mean over relations, rows, relation heads and real queries.

    Raises:
        ValueError: a width that is no multiple of `heads`.
    """
    for name, one in (("teacher", teacher), ("student", student)):
        if one.queries.shape[-1] % heads:
            raise ValueError(
                f"{heads} relation heads do not divide the {name}'s {one.queries.shape[-1]} wide queries."
            )
    real = attention_mask != 0
    sums = []
    for relation in relations:
        first, second = RELATIONS[relation]
        target, of_student = (
            relation_log_probabilities(getattr(one, first), getattr(one, second), heads, attention_mask)
            for one in (teacher, student)
        )
        terms = F.kl_div(of_student, target, reduction="none", log_target=True)
        # Left out, not multiplied by 0: padding may hold anything, NaN as well.
        sums.append(terms.masked_fill(~(real[:, None, :, None] & real[:, None, None, :]), 0.0).sum())
    return torch.stack(sums).mean() / (heads * real.sum()).clamp(min=1)


def common_relation_heads(
    teacher_heads: int, teacher_width: int, student_heads: int, student_width: int, wanted: int | None = None
) -> int:
    """How many relation heads two attentions are compared in.

    Args:
        teacher_heads: Heads of the model that teaches.
        teacher_width: Width of all its heads together.
        student_heads: Heads of the model that learns.
        student_width: Width of all its heads together.
        wanted: A number to be checked; `None` picks one: the teacher's heads where they divide both widths (equal
            numbers of heads compare attention with attention), else the largest smaller number that does.

    Returns:
        The number of relation heads.

    Raises:
        ValueError: `wanted` does not divide both widths, or nothing but 1 does.
    """
    widths = f"{teacher_width} (teacher, {teacher_heads} heads) and {student_width} (student, {student_heads} heads)"
    common = math.gcd(teacher_width, student_width)
    if wanted is not None:
        if wanted < 1 or common % wanted:
            allowed = [n for n in range(1, common + 1) if common % n == 0]
            raise ValueError(f"relation_heads={wanted} does not divide the widths {widths}; these do: {allowed}.")
        return wanted
    heads = max(n for n in range(1, teacher_heads + 1) if common % n == 0)
    if heads == 1 < teacher_heads:
        raise ValueError(
            f"No number of relation heads above 1 divides the widths {widths}. Choose a student whose width shares a "
            "divisor with the teacher's, or pass relation_heads=1."
        )
    return heads


def understanding_layers(model: PreTrainedModel) -> tuple[nn.ModuleList, int, int]:
    """The layers whose last attention is taught, or teaches.

    Args:
        model: An ERNIE 3.0 model with the branch "nlu", or an encoder of the host library laid out as BERT's
            (`encoder.layer`), with or without a head.

    Returns:
        The layers (an auxiliary one among them), how many the config counts, and the heads of each.

    Raises:
        ValueError: an ERNIE 3.0 model without the branch "nlu".
        TypeError: a model of another layout.
    """
    backbone, config = model.base_model, model.config
    branches = getattr(backbone, "branches", None)
    if branches is not None:
        if "nlu" not in branches:
            raise ValueError(
                f"{type(model).__name__} has the branches {sorted(branches)}, but relations are taken from the branch "
                '"nlu". Use a model that has it, e.g. Ernie3ForPreTraining or Ernie3ForMaskedLM.'
            )
        return branches["nlu"].layers, config.branch_num_hidden_layers, config.branch_num_attention_heads
    layers = getattr(getattr(backbone, "encoder", None), "layer", None)
    if not isinstance(layers, nn.ModuleList):
        raise TypeError(
            f"{type(model).__name__} is neither an ERNIE 3.0 model nor an encoder laid out as BERT's (encoder.layer): "
            "there is no attention to take relations from."
        )
    return layers, config.num_hidden_layers, config.num_attention_heads


def last_projections(model: PreTrainedModel) -> tuple[list[nn.Module], int]:
    """The linears that make the last layer's queries, keys and values, and the number of heads.

    Raises:
        ValueError: an ERNIE 3.0 model without the branch "nlu".
        TypeError: a model of another layout.
    """
    layers, _, heads = understanding_layers(model)
    for names in PROJECTIONS:
        try:
            return [layers[-1].get_submodule(name) for name in names], heads
        except AttributeError:
            continue
    raise TypeError(
        f"{type(layers[-1]).__name__} of {type(model).__name__} has no separate queries, keys and values under any of "
        f"the names {PROJECTIONS}."
    )


@contextmanager
def recorded_relations(model: PreTrainedModel) -> Iterator[list[Relations]]:
    """Collects the last layer's queries, keys and values: one entry for each forward of the branch in the block."""
    projections, heads = last_projections(model)
    recorded: list[Relations] = []
    made: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        made[module] = output
        if len(made) == len(projections):  # in whatever order the layer makes them
            queries, keys, values = (made.pop(one) for one in projections)
            recorded.append(Relations(queries, keys, values, heads))

    handles = [one.register_forward_hook(keep) for one in projections]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


__all__ = [
    "RELATIONS",
    "Relations",
    "common_relation_heads",
    "last_projections",
    "recorded_relations",
    "relation_divergence",
    "relation_log_probabilities",
    "understanding_layers",
]
