"""Exact match and F1 of answers to questions.

Answers are compared without punctuation, English articles and case. F1 compares characters, for Chinese, or words.
PaddleNLP compares the characters of the first blank-separated piece only, so that 甲乙 丙丁 and 甲乙 戊己 are equal;
here all characters but the blanks count.

Source: PaddleNLP 2.8.1, `paddlenlp/metrics/squad.py` (`squad_evaluate`).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

UNITS = ("characters", "words")
PUNCTUATION = frozenset(string.punctuation + "，。：？！“”；’《》·、「」（）－～『』")
ARTICLES = re.compile(r"\b(a|an|the)\b")


def plain_answer(text: str) -> str:
    """An answer without punctuation, articles, case, and blanks but single ones."""
    kept = "".join(char for char in text.lower() if char not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", kept).split())


def exact_match(found: str, gold: str) -> float:
    """1 where two answers are the same, else 0."""
    return float(plain_answer(found) == plain_answer(gold))


def answer_f1(found: str, gold: str, unit: str = "characters") -> float:
    """The F1 of what two answers have in common, each character or word as often as it stands in both."""
    pieces = [plain_answer(text) for text in (found, gold)]
    one, other = ([*p.replace(" ", "")] if unit == "characters" else p.split() for p in pieces)
    if not one or not other:
        return float(one == other)
    common = (Counter(one) & Counter(other)).total()
    return 2 * common / (len(one) + len(other))


def qa_scores(found: Sequence[str], gold: Sequence[Sequence[str]], unit: str = "characters") -> dict[str, float]:
    """Scores of many answers, in percent.

    Args:
        found: One answer for each question, "" for none.
        gold: The right answers to each question, of which the one counts that scores best; none where the question
            has no answer.
        unit: `"characters"` or `"words"`.

    Returns:
        `exact_match` and `f1` over all questions, and where some have no answer the same with `answerable_` and
        `unanswerable_` in front.

    Raises:
        ValueError: another unit, or another number of answers than of questions.
    """
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r} is not one of {UNITS}.")
    if len(found) != len(gold):
        raise ValueError(f"There are {len(found)} answers to {len(gold)} questions.")
    rows: dict[str, list[tuple[float, float]]] = {"": [], "answerable_": [], "unanswerable_": []}
    for answer, right in zip(found, gold, strict=True):
        right = [text for text in right if plain_answer(text)]
        options = right or [""]
        row = max(exact_match(answer, o) for o in options), max(answer_f1(answer, o, unit) for o in options)
        rows[""].append(row)
        rows["answerable_" if right else "unanswerable_"].append(row)
    if not rows["unanswerable_"]:
        rows = {"": rows[""]}
    return {
        f"{kind}{name}": 100 * sum(row[i] for row in of_kind) / len(of_kind) if of_kind else 0.0
        for kind, of_kind in rows.items()
        for i, name in enumerate(("exact_match", "f1"))
    }


__all__ = ["answer_f1", "exact_match", "plain_answer", "qa_scores"]
