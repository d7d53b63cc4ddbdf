"""Scores of closed-domain extraction: sets of entities and of triples, all of whose parts must be right.

Source: PaddleNLP, `applications/information_extraction/text/data_distill/metric.py`. Letters in shape comments: B rows
of a batch, N rows, T tokens, K things marked in a row.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_glm_ernie.ernie_tasks.gplinker_decoding import FoundRelation, decode_entities, decode_relations
from hf_glm_ernie.modeling_ernie_gplinker import ABSENT

from .counts import Counts, matches, total
from .gplinker_labels import IGNORED, LABELS

Places = tuple[int, ...]


def keep_found(outputs: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The `preprocess_logits_for_metrics` of a `Trainer`: of a batch's scores what they find, a score above 0.

    Args:
        outputs: Entity logits, or entity, head and tail logits, each (B, labels, T, T).
        labels: Not read.

    Returns:
        (B, K, 3) and (B, K, 5) int64, as labels are given; -100 where a row has fewer. The first and the last token of
        a row are [CLS] and [SEP]: nothing begins or ends there.
    """
    logits = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    entity = logits[0]
    absent = max(ABSENT, torch.finfo(entity.dtype).min)
    lengths = (entity[:, 0, 0] > absent / 4).sum(-1, keepdim=True)  # (B, 1): [CLS] makes a pair with every token
    places = torch.arange(entity.shape[-1], device=entity.device)
    entities = decode_entities(entity, (places > 0) & (places < lengths - 1))
    nothing: list[list[FoundRelation]] = [[] for _ in entities]
    relations = decode_relations(entities, *logits[1:3]) if len(logits) > 2 else nothing
    rows: tuple[Any, Any] = (
        [[one[:3] for one in row] for row in entities],
        [[(one.label, *one.subject, *one.object) for one in row] for row in relations],
    )
    made = [_padded(of_rows, size) for of_rows, size in zip(rows, LABELS.values(), strict=True)]
    return made[0].to(entity.device), made[1].to(entity.device)


def _padded(rows: Sequence[Sequence[Sequence[int]]], size: int) -> torch.Tensor:
    most = max(map(len, rows))
    padded = [[*row, *[[IGNORED] * size] * (most - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), most, size)


def sets_of(marked: np.ndarray) -> list[set[Places]]:
    """(N, K, 3 or 5) -> of every row what is marked."""
    return [{tuple(one) for one in row.tolist() if one[0] >= 0} for row in marked]


def set_counts(found: Iterable[set[Any]], gold: Iterable[set[Any]]) -> Counts:
    """Counts what is in both sets of every row."""
    return total(matches(*pair) for pair in zip(found, gold, strict=True))


def by_label(
    found: Sequence[set[Any]], gold: Sequence[set[Any]], names: Mapping[Hashable, str] | None = None
) -> dict[str, Counts]:
    """Counts every label by itself, the first part of what is in a set."""
    labels = sorted({one[0] for of_row in (*found, *gold) for one in of_row})
    own = {
        label: set_counts(*([{one for one in row if one[0] == label} for row in rows] for rows in (found, gold)))
        for label in labels
    }
    return {(names or {}).get(label, label): counts for label, counts in own.items()}


def linking_scores(entities: Counts, triples: Counts, has_relations: bool) -> dict[str, float]:
    """`entity_precision`, `entity_recall`, `entity_f1`; with relations `triple_...`, too; and `f1`.

    `f1` is that of triples where there are relations, else that of entities, as the original chooses its best model.
    """
    named = {f"entity_{name}": value for name, value in entities.scores().items()}
    if has_relations:
        named |= {f"triple_{name}": value for name, value in triples.scores().items()}
    return named | {"f1": (triples if has_relations else entities).f1}


__all__ = ["by_label", "keep_found", "linking_scores", "set_counts", "sets_of"]
