"""Answers from the start and end logits of windows, as PaddleNLP and the SQuAD scripts choose them.

Source: PaddleNLP 2.8.1, `paddlenlp/metrics/squad.py` (`compute_prediction`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .qa_features import QAFeature


@dataclass(frozen=True)
class QACandidate:
    """A possible answer.

    Attributes:
        text: Of the context; "" is no answer, "empty" stands where there is no candidate at all.
        start: First character in the context, 0 without an answer.
        end: One past the last one.
        start_logit: Of its first token.
        end_logit: Of its last token.
        probability: Among the candidates of this question.
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    probability: float = 0.0

    @property
    def score(self) -> float:
        """What candidates are ordered by."""
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class QAAnswer:
    """The answer to a question.

    Attributes:
        text: The answer; "" where there is none.
        candidates: The likeliest first.
        null_difference: By how much "no answer" scores above the likeliest answer; `None` unless it may be chosen.
    """

    text: str
    candidates: list[QACandidate]
    null_difference: float | None = None


def qa_answers(
    examples: Sequence[Mapping[str, Any]],
    features: Sequence[QAFeature],
    start_logits: Sequence[Any],
    end_logits: Sequence[Any],
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
    may_be_unanswerable: bool = False,
    null_threshold: float = 0.0,
    merge: bool = False,
) -> list[QAAnswer]:
    """Chooses an answer to every question.

    Args:
        examples: With their `context`.
        features: Of [`qa_features`], in the order of the logits.
        start_logits: (T,) for every window; longer rows are padded.
        end_logits: (T,) likewise.
        n_best: Starts and ends looked at in a window, and candidates kept of a question.
        max_answer_length: Tokens of an answer.
        may_be_unanswerable: Whether there may be no answer (SQuAD 2): the logits of `[CLS]` stand for that.
        null_threshold: "No answer" is chosen where its score is higher by more than this.
        merge: Whether a span that several windows hold is one candidate, with the best of its scores. PaddleNLP
            lists it as often as it was seen, and its probability is split.

    Returns:
        One for each example.
    """
    windows: list[list[int]] = [[] for _ in examples]
    for i, feature in enumerate(features):
        windows[feature.example].append(i)
    answers = []
    for example, own in zip(examples, windows, strict=True):
        found: list[QACandidate] = []
        null: QACandidate | None = None
        for i in own:
            length = len(features[i].offsets)
            starts, ends = np.asarray(start_logits[i])[:length], np.asarray(end_logits[i])[:length]
            found += window_candidates(features[i], example["context"], starts, ends, n_best, max_answer_length)
            nothing = QACandidate("", 0, 0, float(starts[0]), float(ends[0]))
            null = nothing if null is None or nothing.score < null.score else null
        if merge:
            found = _distinct(found)
        answers.append(_choose(found, null if may_be_unanswerable else None, n_best, null_threshold))
    return answers


def window_candidates(
    feature: QAFeature,
    context: str,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    n_best: int,
    max_answer_length: int,
) -> list[QACandidate]:
    """The candidates of one window: its best starts with its best ends, both in the context, not too long."""
    found = []
    offsets = feature.offsets
    ends = [int(end) for end in np.argsort(end_logits)[: -n_best - 1 : -1]]
    for start in map(int, np.argsort(start_logits)[: -n_best - 1 : -1]):
        for end in ends:
            if not start <= end < min(len(offsets), start + max_answer_length):
                continue
            first, last = offsets[start], offsets[end]
            if first is not None and last is not None:
                text = context[first[0] : last[1]]
                logits = float(start_logits[start]), float(end_logits[end])
                found.append(QACandidate(text, first[0], last[1], *logits))
    return found


def _distinct(found: list[QACandidate]) -> list[QACandidate]:
    best: dict[tuple[int, int], QACandidate] = {}
    for one in found:
        place = one.start, one.end
        if place not in best or one.score > best[place].score:
            best[place] = one
    return list(best.values())


def _choose(found: list[QACandidate], null: QACandidate | None, n_best: int, null_threshold: float) -> QAAnswer:
    if null is not None:
        found = [*found, null]
    kept = sorted(found, key=lambda one: one.score, reverse=True)[:n_best]
    if null is not None and null not in kept:
        kept.append(null)
    if not any(one.text for one in kept):
        kept.insert(0, QACandidate("empty", 0, 0, 0.0, 0.0))
    scores = np.array([one.score for one in kept])
    weights = np.exp(scores - scores.max())
    kept = [
        QACandidate(one.text, one.start, one.end, one.start_logit, one.end_logit, float(probability))
        for one, probability in zip(kept, weights / weights.sum(), strict=True)
    ]
    if null is None:
        return QAAnswer(kept[0].text, kept)
    best = next(one for one in kept if one.text)
    difference = null.score - best.score
    return QAAnswer("" if difference > null_threshold else best.text, kept, difference)


__all__ = ["QAAnswer", "QACandidate", "qa_answers", "window_candidates"]
