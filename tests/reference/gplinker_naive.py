"""GlobalPointer and GPLinker as their papers write them, number by number in float64: scores, loss, decoding.

Su Jianlin: GlobalPointer (kexue.fm/archives/8373), Efficient GlobalPointer (8877), GPLinker (8888), and the loss
(7359). Independent of the package.
"""

import math
from collections.abc import Sequence

import torch


def scores(pointers: torch.Tensor, biases: torch.Tensor, mask: torch.Tensor, ordered: bool) -> torch.Tensor:
    """(B, T, 2 D), (B, T, 2 C), (B, T) -> (B, C, T, T) float64; -inf where there is no pair."""
    rows, tokens, width = pointers.shape[0], pointers.shape[1], pointers.shape[2] // 2
    labels = biases.shape[2] // 2
    result = torch.full((rows, labels, tokens, tokens), -math.inf, dtype=torch.float64)
    for b in range(rows):
        for m in range(tokens):
            for n in range(tokens):
                if not mask[b, m] or not mask[b, n] or (ordered and n < m):
                    continue
                query = [pointers[b, m, 2 * d].item() for d in range(width)]
                key = [pointers[b, n, 2 * d + 1].item() for d in range(width)]
                if ordered:
                    query, key = turned(query, m), turned(key, n)
                product = sum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(width)
                for c in range(labels):
                    at_second, at_first = biases[b, n, 2 * c].item(), biases[b, m, 2 * c + 1].item()
                    result[b, c, m, n] = product + (at_second + at_first) / 2
    return result


def turned(vector: list[float], place: int) -> list[float]:
    """Each pair of numbers as a complex one, times exp(i place frequency)."""
    result = []
    for i in range(0, len(vector), 2):
        angle = place / 10000 ** (i / len(vector))
        number = complex(vector[i], vector[i + 1]) * complex(math.cos(angle), math.sin(angle))
        result += [number.real, number.imag]
    return result


def loss(logits: torch.Tensor, marked: Sequence[Sequence[tuple[int, int, int]]]) -> float:
    """(B, C, T, T) and the marked (label, first, second) of each row -> the mean over rows of the sum over labels."""
    rows, labels, tokens = logits.shape[:3]
    total = 0.0
    for b in range(rows):
        for c in range(labels):
            others, chosen = 1.0, 1.0
            for m in range(tokens):
                for n in range(tokens):
                    value = logits[b, c, m, n].item()
                    if (c, m, n) in marked[b]:
                        chosen += math.exp(-value)
                    elif value > -1e9:
                        others += math.exp(value)
            total += math.log(others) + math.log(chosen)
    return total / rows


def entities(logits: torch.Tensor, mask: torch.Tensor) -> list[set[tuple[int, int, int]]]:
    """(B, C, T, T), (B, T) -> of every row the (label, first, last) above zero that begin and end where mask is."""
    return [
        {(c, m, n) for c, m, n in (row > 0).nonzero().tolist() if m <= n and is_text[m] and is_text[n]}
        for row, is_text in zip(logits, mask, strict=True)
    ]


def triples(
    found: list[set[tuple[int, int, int]]], heads: torch.Tensor, tails: torch.Tensor
) -> list[set[tuple[int, int, int, int, int]]]:
    """Entities of every row, (B, R, T, T) twice -> of every row what is linked at both ends."""
    result = []
    for row, head, tail in zip(found, heads, tails, strict=True):
        spans = {(m, n) for _, m, n in row}
        result.append(
            {
                (r, *subject, *obj)
                for r in range(head.shape[0])
                for subject in spans
                for obj in spans
                if head[r, subject[0], obj[0]] > 0 and tail[r, subject[1], obj[1]] > 0
            }
        )
    return result
