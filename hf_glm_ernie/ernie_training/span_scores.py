"""Precision, recall and F1 of UIE's answers, as PaddleNLP's `SpanEvaluator` counts them.

A probability above 0.5, or another threshold, marks a start or an end; starts and ends are paired as in extraction. A
span is right where the same pair of tokens is marked by the labels. How many there are is the larger number of the
row's starts and ends, not of its pairs: where two answers share a token the original counts so, and so do the
published figures.

Source: PaddleNLP 2.8.1, `paddlenlp/metrics/span.py` (`SpanEvaluator`), `paddlenlp/utils/tools.py` (`get_span`).
Letters in shape comments: N rows, T tokens.
"""

from typing import Any

import numpy as np
import torch

from hf_glm_ernie.ernie_tasks.uie_spans import pair_spans

from .counts import Counts, total

THRESHOLD = 0.5


def row_counts(
    start_prob: np.ndarray,
    end_prob: np.ndarray,
    gold_start: np.ndarray,
    gold_end: np.ndarray,
    threshold: float = THRESHOLD,
) -> Counts:
    """Counts the spans of one row.

    Args:
        start_prob: (T,) probabilities, or 0 and 1.
        end_prob: (T,) likewise.
        gold_start: (T,) 1 where an answer starts; anything below, such as the padding -100, is none.
        gold_end: (T,) 1 at the last token of an answer.
        threshold: Probabilities above it count.
    """
    found = set(pair_spans(start_prob, end_prob, threshold))
    gold = set(pair_spans(gold_start, gold_end, THRESHOLD))
    return Counts(len(found & gold), len(found), int(max((gold_start == 1).sum(), (gold_end == 1).sum())))


def span_counts(
    start_prob: np.ndarray,
    end_prob: np.ndarray,
    gold_start: np.ndarray,
    gold_end: np.ndarray,
    threshold: float = THRESHOLD,
) -> list[Counts]:
    """Counts the spans of every row; all four are (N, T)."""
    rows = zip(start_prob, end_prob, gold_start, gold_end, strict=True)
    return [row_counts(*row, threshold) for row in rows]


def span_metrics(prediction: Any, threshold: float = THRESHOLD) -> dict[str, float]:
    """The `compute_metrics` of a `Trainer` for UIE.

    Args:
        prediction: Its `predictions` are the start and the end probabilities (what [`keep_probabilities`] keeps), its
            `label_ids` the start and the end positions, all (N, T).
        threshold: Probabilities above it count.

    Returns:
        `precision`, `recall` and `f1` over all rows; `--metric_for_best_model eval_f1`.
    """
    (start, end), (gold_start, gold_end) = prediction.predictions[:2], prediction.label_ids
    return total(span_counts(start, end, gold_start, gold_end, threshold)).scores()


def keep_probabilities(outputs: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The `preprocess_logits_for_metrics` of a `Trainer` for UIE: of a batch's outputs only the probabilities."""
    return outputs[0], outputs[1]


__all__ = ["THRESHOLD", "keep_probabilities", "row_counts", "span_counts", "span_metrics"]
