"""What training retrieval computes, in loops over single queries.

Written from RocketQA (arXiv 2010.08191, section 3) and PaddleNLP's `ErnieDualEncoder.forward` and
`ErnieCrossEncoder.matching`: the softmax of a query's dot products with all passages of the batch, where its own
positive is right; the probability of the second of two classes.
"""

import math

import torch


def in_batch_loss(
    queries: torch.Tensor, positives: torch.Tensor, negatives: list[torch.Tensor], scale: float = 1.0
) -> float:
    """Mean over the queries.

    Args:
        queries: (N, H).
        positives: (N, H), of each query.
        negatives: Hard negatives, each (N, H).
        scale: Of the dot products.
    """
    passages = [row for table in (positives, *negatives) for row in table]
    total = 0.0
    for number, query in enumerate(queries):
        products = []
        for passage in passages:
            product = 0.0
            for one, other in zip(query.tolist(), passage.tolist(), strict=True):
                product += one * other
            products.append(scale * product)
        largest = max(products)
        total += largest + math.log(sum(math.exp(product - largest) for product in products)) - products[number]
    return total / len(queries)


def two_class_loss(logits: torch.Tensor, labels: list[int]) -> float:
    """Mean of -log of the right class's probability; (N, 2)."""
    total = 0.0
    for (no, yes), label in zip(logits.tolist(), labels, strict=True):
        total += math.log(math.exp(no) + math.exp(yes)) - (yes if label else no)
    return total / len(labels)


def mean_reciprocal_rank(queries: torch.Tensor, passages: torch.Tensor, right: list[set[int]], cut: int = 10) -> float:
    """Mean over the queries of 1 / rank of the first right passage; 0 where none is among the first `cut`."""
    total = 0.0
    for query, wanted in zip(queries, right, strict=True):
        products = [float(query @ passage) for passage in passages]
        order = sorted(range(len(passages)), key=lambda k: -products[k])[:cut]
        total += next((1 / (rank + 1) for rank, k in enumerate(order) if k in wanted), 0.0)
    return total / len(queries)
