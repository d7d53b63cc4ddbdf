"""Precision, recall and F1 of entities in tag sequences (IOB, IOE and BIOES), as seqeval and PaddleNLP count them.

Lenient: an `I-` that continues nothing begins an entity. An entity is right where its type and both ends are.

Source: PaddleNLP 2.8.1, `paddlenlp/metrics/chunk.py` (`ChunkEvaluator`), which counts with seqeval's `get_entities`.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from .counts import Counts, matches, total

PREFIXES = ("B", "I", "E", "S")
OUTSIDE = "O"


def marks_entities(tags: Collection[str]) -> bool:
    """Whether tags are those of entities: `O` or a prefix, alone or with a type behind a hyphen."""
    parts = [tag.split("-", 1)[0] for tag in tags if tag != OUTSIDE]
    return bool(parts) and all(part in PREFIXES for part in parts)


def entities_of(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities that tags mark.

    Args:
        tags: Such as `B-PER`, `I-PER`, `O`. What is neither `O` nor a prefix with a type counts as `O`.

    Returns:
        (type, first, last) of each, both ends included; the type is "" where a prefix stands alone.
    """
    found, begun = set(), None
    before = OUTSIDE, ""
    for i, tag in enumerate((*tags, OUTSIDE)):
        prefix, _, kind = tag.partition("-")
        if prefix not in PREFIXES:
            prefix, kind = OUTSIDE, ""
        starts = prefix in ("B", "S") or (
            prefix in ("I", "E") and (before[0] in (OUTSIDE, "E", "S") or before[1] != kind)
        )
        if begun is not None and (starts or prefix == OUTSIDE):
            found.add((before[1], begun, i - 1))
            begun = None
        begun = i if starts else begun
        before = prefix, kind
    return found


def entity_counts(found: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, Counts]:
    """Counts the entities of rows of tags.

    Args:
        found: Tags of every row.
        gold: The right ones, as many.

    Returns:
        Type -> its counts, sorted by type.
    """
    pairs = [(entities_of(row), entities_of(right)) for row, right in zip(found, gold, strict=True)]
    kinds = sorted({entity[0] for pair in pairs for entities in pair for entity in entities})
    return {
        kind: total(matches(*({entity for entity in one if entity[0] == kind} for one in pair)) for pair in pairs)
        for kind in kinds
    }


def tag_counts(found: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, Counts]:
    """Counts the tags of rows of tags, each for itself. Returns tag -> its counts, sorted by tag."""
    pairs = [pair for rows in zip(found, gold, strict=True) for pair in zip(*rows, strict=True)]
    return {
        tag: Counts(*(sum(one) for one in zip(*((f == g == tag, f == tag, g == tag) for f, g in pairs), strict=True)))
        for tag in sorted({tag for pair in pairs for tag in pair})
    }


def named_tags(numbers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    """Numbers of tags as names, without the places that have no label.

    Args:
        numbers: (N, T); one that has no name is `O`.
        labels: (N, T), -100 where a place does not count.
        names: The tags, by number.
    """
    by_number = dict(enumerate(names))
    return [
        [by_number.get(int(n), OUTSIDE) for n in row[kept]] for row, kept in zip(numbers, labels >= 0, strict=True)
    ]


def entity_metrics(prediction: Any, names: Sequence[str]) -> dict[str, float]:
    """What a `Trainer` for tags logs: `accuracy` of the tags, and where they mark entities the entities' scores.

    Args:
        prediction: Its `predictions` are logits (N, T, tags) or numbers of tags (N, T); its `label_ids` (N, T) with
            -100 where a place does not count.
        names: The tags, by number.
    """
    labels, numbers = prediction.label_ids, prediction.predictions
    numbers = numbers.argmax(-1) if numbers.ndim > labels.ndim else numbers
    counted = labels >= 0
    scores = {"accuracy": float((numbers == labels)[counted].mean()) if counted.any() else 0.0}
    if marks_entities(names):
        rows = named_tags(numbers, labels, names), named_tags(labels, labels, names)
        scores |= total(entity_counts(*rows).values()).scores()
    return scores


__all__ = ["entities_of", "entity_counts", "entity_metrics", "marks_entities", "named_tags", "tag_counts"]
