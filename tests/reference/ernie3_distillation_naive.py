"""Attention relations and their divergence the slow way: one row, one head, one query, one key at a time.

Written from MiniLM's formula, which the ERNIE 3.0 Titan paper (arXiv 2112.12731) takes over: the relation
of a query with the keys is softmax(q k^T / sqrt(d)), the loss is KL(teacher || student). Independent of the package.
"""

import math

import torch


def relation(queries: torch.Tensor, keys: torch.Tensor, heads: int, real: list[int], head: int, i: int) -> list[float]:
    """The distribution of query i of one row, (T, W) each, over the keys that are real."""
    width = queries.shape[-1] // heads
    scores = []
    for j in real:
        score = 0.0
        for d in range(head * width, (head + 1) * width):
            score += float(queries[i, d]) * float(keys[j, d])
        scores.append(score / math.sqrt(width))
    largest = max(scores)
    exponentials = [math.exp(score - largest) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def divergence(
    teacher: tuple[torch.Tensor, torch.Tensor],
    student: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor,
    heads: int,
) -> float:
    """Mean over rows, heads and real queries of sum_j t_j (log t_j - log s_j), t the teacher's, s the student's."""
    total, count = 0.0, 0
    for row in range(attention_mask.shape[0]):
        real = [t for t in range(attention_mask.shape[1]) if attention_mask[row, t]]
        for head in range(heads):
            for i in real:
                t = relation(teacher[0][row], teacher[1][row], heads, real, head, i)
                s = relation(student[0][row], student[1][row], heads, real, head, i)
                total += sum(p * (math.log(p) - math.log(q)) for p, q in zip(t, s, strict=True))
                count += 1
    return total / count
