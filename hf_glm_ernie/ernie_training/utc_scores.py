"""UTC's scores as PaddleNLP counts them, and those of every option besides.

PaddleNLP takes all pairs of a row and an option as one list of yes and no. What it calls micro F1 counts both answers
and so is the share of pairs that are right; its macro F1 is the mean of the F1 of yes and of no. Neither looks at
which option a pair belongs to; that is [`option_counts`].

Source: PaddleNLP, `applications/zero_shot_text_classification/run_eval.py` and `run_train.py` (`compute_metrics`).
Letters in shape comments: N rows, O options.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .counts import Counts, total


def holds(logits: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """(N, O) whether the probability of an option, a sigmoid for itself, is above a threshold."""
    return (torch.from_numpy(logits).sigmoid() > threshold).numpy()


def pair_scores(logits: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """Scores of all pairs of a row and an option.

    Args:
        logits: (N, O).
        labels: (N, O) of 0 and 1; -100 where there is no option.
        threshold: An option holds where its probability is above this.

    Returns:
        `micro_f1` and `macro_f1`.
    """
    counted = labels >= 0
    found, gold = holds(logits, threshold)[counted], labels[counted] == 1
    answers = [Counts(int((f & g).sum()), int(f.sum()), int(g.sum())) for f, g in ((found, gold), (~found, ~gold))]
    seen = [answer for answer in answers if answer.found or answer.gold]  # as scikit-learn: classes that occur
    return {
        "micro_f1": total(answers).f1,
        "macro_f1": sum(answer.f1 for answer in seen) / len(seen) if seen else 0.0,
    }


def single_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose likeliest option is the one that holds (of several the first).

    Args:
        logits: (N, O).
        labels: (N, O) of 0 and 1; -100 where there is no option, which never wins (in PaddleNLP it may).
    """
    if not len(labels):
        return 0.0
    best = np.where(labels >= 0, logits, -np.inf).argmax(-1)
    return float((best == labels.argmax(-1)).mean())


def option_counts(
    choices: Sequence[Sequence[str]], logits: np.ndarray, labels: np.ndarray, threshold: float = 0.5
) -> dict[str, Counts]:
    """Counts every option over all rows that offer it.

    Args:
        choices: The options of every row.
        logits: (N, O).
        labels: (N, O) of 0 and 1, -100 behind a row's options.
        threshold: An option holds where its probability is above this.

    Returns:
        Option -> its counts, in the order in which they first occur.
    """
    found = holds(logits, threshold)
    counts: dict[str, list[Counts]] = {}
    for names, row, right in zip(choices, found, labels == 1, strict=True):
        for name, one, gold in zip(names, row, right, strict=False):
            counts.setdefault(name, []).append(Counts(int(one and gold), int(one), int(gold)))
    return {name: total(rows) for name, rows in counts.items()}


def utc_metrics(prediction: Any, single_label: bool = False, threshold: float = 0.5) -> dict[str, float]:
    """The `compute_metrics` of a `Trainer` for UTC.

    Args:
        prediction: Its `predictions` are logits and its `label_ids` labels, both (N, O).
        single_label: Whether every row has one label: `accuracy` as well.
        threshold: An option holds where its probability is above this.

    Returns:
        `micro_f1` and `macro_f1`; `--metric_for_best_model eval_macro_f1`.
    """
    scores = pair_scores(prediction.predictions, prediction.label_ids, threshold)
    accuracy = {"accuracy": single_accuracy(prediction.predictions, prediction.label_ids)} if single_label else {}
    return scores | accuracy


__all__ = ["holds", "option_counts", "pair_scores", "single_accuracy", "utc_metrics"]
