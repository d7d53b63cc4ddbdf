"""Zero-shot scores the slow way: one row, one token, one forward at a time, the model's own logits, no padding.

Written from the definitions of the ERNIE 3.0 papers' scores: a chain of conditional probabilities for the
unidirectional branch, one `[MASK]` at a time for the bidirectional one. Independent of the package.
"""

import itertools
import math
from typing import Any

import torch

CLS, SEP, MASK = 1, 2, 3


def plain(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def log_probability(logits: torch.Tensor, token: int) -> float:
    values = [float(value) for value in logits]
    largest = max(values)
    return values[token] - largest - math.log(sum(math.exp(value - largest) for value in values))


def token(model: Any, ids: list[int], place: int, direction: str) -> float:
    """log P(ids[place] | ids before it), or given all others."""
    with torch.no_grad():
        if direction == "uni":
            return log_probability(model(torch.tensor([ids[:place]]), branch="nlg").logits[0, -1], ids[place])
        masked = [*ids[:place], MASK, *ids[place + 1 :]]
        return log_probability(model(torch.tensor([masked]), branch="nlu").logits[0, place], ids[place])


def total(model: Any, ids: list[int], places: list[int], direction: str) -> float:
    return sum(token(model, ids, place, direction) for place in places)


def pair_score(model: Any, tokenizer: Any, x: str, y: str, score: str, direction: str) -> float:
    before, _, after = x.partition("{}")
    left, middle, right = plain(tokenizer, before), plain(tokenizer, y), plain(tokenizer, after)
    if score == "P(True|x,y)":
        with torch.no_grad():
            logits = model(torch.tensor([[CLS, *left, SEP, *middle]]), branch="nlu").distance_logits[0]
        return log_probability(logits, 0)
    row = [CLS, *left, *middle, *right]
    of_y = list(range(1 + len(left), 1 + len(left) + len(middle)))
    of_x = [place for place in range(1, len(row)) if place not in of_y]
    if score == "P(x,y)":
        return total(model, row, sorted(of_x + of_y), direction)
    if score == "P(y|x)":
        return total(model, row, of_y, direction) / len(of_y)
    if score == "P(y|x)/P(y)":
        alone = [CLS, *middle]
        return total(model, row, of_y, direction) - total(model, alone, list(range(1, len(alone))), direction)
    assert score == "P(x|y)"
    if direction == "bi":
        return total(model, row, of_x, direction)
    turned = [CLS, *middle, *left]
    return total(model, turned, list(range(1 + len(middle), len(turned))), direction)


def best_assignment(scores: list[list[float]]) -> tuple[int, ...]:
    """Every way of giving each text another choice, the one with the highest sum."""
    ways = itertools.permutations(range(len(scores[0])), len(scores))
    return max(ways, key=lambda way: sum(row[choice] for row, choice in zip(scores, way, strict=True)))


def originality(model: Any, tokenizer: Any, text: str) -> float:
    """P(original) of the credible head, class 1."""
    with torch.no_grad():
        logits = model(torch.tensor([[CLS, *plain(tokenizer, text)]]), branch="nlu").credible_logits[0]
    return math.exp(log_probability(logits, 1))
