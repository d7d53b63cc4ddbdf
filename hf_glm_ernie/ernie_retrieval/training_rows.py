"""Rows that sentence-transformers trains on, made of judged queries.

A dual encoder's passages with titles are pairs, `[CLS] title [SEP] text [SEP]` with token types 0 and 1, whether the
title is empty or not, as RocketQA's reader makes them. A cross-encoder's second text is the title and the text behind
it, with nothing between their tokens.
"""

from collections.abc import Sequence
from typing import Any

from .judged_files import JudgedQuery, Passage, have_titles


def all_passages(queries: Sequence[JudgedQuery]) -> list[Passage]:
    """The passages of all queries, each once, in order."""
    return list(dict.fromkeys(passage for one in queries for passage in (*one.positives, *one.negatives)))


def dual_row(passage: Passage, titles: bool) -> str | list[str]:
    """A passage as a dual encoder takes it: with `titles` a pair, whose first text may be empty."""
    if isinstance(passage, str):
        return ["", passage] if titles else passage
    return list(passage)


def cross_row(passage: Passage) -> str:
    """A passage as a cross-encoder takes it."""
    return passage if isinstance(passage, str) else " ".join(part for part in passage if part)


def dual_columns(queries: Sequence[JudgedQuery], hard_negatives: int | None = None) -> dict[str, list[Any]]:
    """Columns `query`, `positive`, `negative_1` and so on: every positive and every negative at least once.

    Args:
        queries: What the files hold. One without a passage that answers it gives no row.
        hard_negatives: How many negatives a row has beside those of its batch; `None`: RocketQA's 1, or 0 where no
            query has any.

    Raises:
        ValueError: a query with a positive and fewer negatives than that; no query with a positive.
    """
    if hard_negatives is None:
        hard_negatives = int(any(one.negatives for one in queries))
    titles = have_titles(all_passages(queries))
    columns: dict[str, list[Any]] = {
        name: [] for name in ("query", "positive", *(f"negative_{k + 1}" for k in range(hard_negatives)))
    }
    for one in queries:
        if not one.positives:
            continue
        if len(one.negatives) < hard_negatives:
            raise ValueError(
                f"The query {one.query!r} has {len(one.negatives)} passages that do not answer it, and a row takes "
                f"{hard_negatives}. Give it more, or train with --hard_negatives 0 on those of the batch alone."
            )
        needed = -(-len(one.negatives) // hard_negatives) if hard_negatives else 0
        for row in range(max(len(one.positives), needed)):
            first = row * hard_negatives
            others = [one.negatives[(first + k) % len(one.negatives)] for k in range(hard_negatives)]
            texts = (dual_row(passage, titles) for passage in (one.positives[row % len(one.positives)], *others))
            for column, value in zip(columns.values(), (one.query, *texts), strict=True):
                column.append(value)
    if not columns["query"]:
        raise ValueError("No query has a passage that answers it: there is nothing to train on.")
    return columns


def cross_columns(queries: Sequence[JudgedQuery]) -> dict[str, list[Any]]:
    """Columns `query`, `passage` and `label`: 1 where the passage answers the query, else 0.

    Raises:
        ValueError: only one of the two labels occurs.
    """
    columns: dict[str, list[Any]] = {"query": [], "passage": [], "label": []}
    for one in queries:
        for label, passages in ((1, one.positives), (0, one.negatives)):
            for passage in passages:
                for column, value in zip(columns.values(), (one.query, cross_row(passage), label), strict=True):
                    column.append(value)
    if len(set(columns["label"])) < 2:
        raise ValueError(
            "A cross-encoder learns to tell passages that answer a query from others, and the data has one kind only."
        )
    return columns


__all__ = ["all_passages", "cross_columns", "cross_row", "dual_columns", "dual_row"]
