"""From the scores of an [`ErnieForGPLinker`] to entities and relations of tokens.

An entity is a pair of tokens whose score is above a threshold and that both belong to the text. A relation holds
between two of these spans where its score of their first tokens and its score of their last tokens are above it. Which
types the spans have plays no part in that.

An untrained model finds half of all pairs. So no more than four spans for each token are looked at, those with the
highest scores; a text has fewer entities.

Source: PaddleNLP, `applications/information_extraction/text/data_distill/utils.py` (`postprocess`).
Letters in shape comments: B batch, T tokens, C entity labels, R relation labels, N spans.
"""

import math
from typing import NamedTuple

import torch

SPANS_A_TOKEN = 4


class FoundEntity(NamedTuple):
    """Tokens `first` to `last`, both included, and their score."""

    label: int
    first: int
    last: int
    score: float


class FoundRelation(NamedTuple):
    """What holds between two spans, tokens included, and the scores of both links."""

    label: int
    subject: tuple[int, int]
    object: tuple[int, int]
    head_score: float
    tail_score: float


def score_of(threshold: float) -> float:
    """The score whose sigmoid is a probability: 0 for 0.5, minus infinity for 0."""
    return math.log(threshold) - math.log1p(-threshold) if threshold > 0 else -math.inf


def probability_of(score: float) -> float:
    """The sigmoid of a score."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else (small := math.exp(score)) / (1 + small)


def decode_entities(logits: torch.Tensor, is_text: torch.Tensor, above: float = 0.0) -> list[list[FoundEntity]]:
    """Reads the entities off the scores.

    Args:
        logits: (B, C, T, T); what is no pair of tokens has a score below any threshold, or no text at its ends.
        is_text: (B, T) bool: false for special tokens and padding, where nothing begins or ends.
        above: The score that an entity exceeds.

    Returns:
        The entities of every row, sorted by label, first and last token.
    """
    row, label, first, last = (logits > above).nonzero().unbind(-1)  # sorted
    fits = (first <= last) & is_text[row, first] & is_text[row, last]
    row, label, first, last = row[fits], label[fits], first[fits], last[fits]
    scores = logits[row, label, first, last]
    most = SPANS_A_TOKEN * is_text.shape[1]
    kept = torch.ones_like(row, dtype=torch.bool)
    for crowded in (row.bincount(minlength=len(is_text)) > most).nonzero()[:, 0]:
        own = (row == crowded).nonzero()[:, 0]
        kept[own] = False
        kept[own[scores[own].topk(most).indices]] = True
    found: list[list[FoundEntity]] = [[] for _ in is_text]
    columns = (one[kept].tolist() for one in (row, label, first, last, scores))
    for number, *entity in zip(*columns, strict=True):
        found[number].append(FoundEntity(*entity))
    return found


def decode_relations(
    entities: list[list[FoundEntity]], head_logits: torch.Tensor, tail_logits: torch.Tensor, above: float = 0.0
) -> list[list[FoundRelation]]:
    """Links the spans of every row.

    Args:
        entities: Of [`decode_entities`].
        head_logits: (B, R, T, T).
        tail_logits: (B, R, T, T).
        above: The score that both links exceed.

    Returns:
        The relations of every row, sorted by label, subject and object.
    """
    found: list[list[FoundRelation]] = []
    for row, own in enumerate(entities):
        spans = sorted({(one.first, one.last) for one in own})
        if not spans:
            found.append([])
            continue
        first, last = torch.tensor(spans, device=head_logits.device).unbind(-1)  # (N,)
        heads = head_logits[row][:, first[:, None], first]  # (R, N, N)
        tails = tail_logits[row][:, last[:, None], last]
        linked = (heads > above) & (tails > above)
        scores = zip(heads[linked].tolist(), tails[linked].tolist(), strict=True)
        found.append(
            [
                FoundRelation(label, spans[subject], spans[obj], *pair)
                for (label, subject, obj), pair in zip(linked.nonzero().tolist(), scores, strict=True)
            ]
        )
    return found


__all__ = ["FoundEntity", "FoundRelation", "decode_entities", "decode_relations", "probability_of", "score_of"]
