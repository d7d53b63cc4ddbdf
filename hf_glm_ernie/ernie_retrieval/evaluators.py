"""sentence-transformers' evaluators over judged queries, with the figures that DuReader-retrieval counts.

Its `recall@k` is the share of queries with a passage that answers among the first k: sentence-transformers' name for
it is `accuracy@k` (its `recall@k` is the share of a query's passages that were found). Source: PaddlePaddle/RocketQA,
`research/DuReader-Retrieval-Baseline/metric/evaluation.py`.
"""

from collections.abc import Sequence
from typing import Any

from .encoders import INSTALL, RelevanceScores
from .judged_files import JudgedQuery, Passage, have_titles
from .training_rows import all_passages, cross_row, dual_row

CUTS = (1, 50)
MANY = 500
"""Texts from which an evaluation has a progress bar."""


def dual_evaluator(
    queries: Sequence[JudgedQuery], corpus: Sequence[Passage] = (), *, titles: bool = False, batch_size: int = 32
) -> Any:
    """Searches a corpus for every query: `mrr@10`, `accuracy@1`, `accuracy@50`, `ndcg@10` and more.

    Args:
        queries: Those without a passage that answers are left out.
        corpus: What is searched beside the passages of the queries.
        titles: Whether the encoder was trained on passages with titles; so it is where one here has a title.
        batch_size: Texts of a forward.

    Returns:
        An `InformationRetrievalEvaluator`; called with a dual encoder it gives the figures.

    Raises:
        ImportError: no sentence-transformers.
        ValueError: no query has a passage that answers it.
    """
    try:
        from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    except ImportError as error:
        raise ImportError(INSTALL) from error
    answered = [one for one in queries if one.positives]
    if not answered:
        raise ValueError("No query to evaluate on has a passage that answers it.")
    passages = list(dict.fromkeys([*all_passages(queries), *corpus]))
    numbers = {passage: str(number) for number, passage in enumerate(passages)}
    titles = titles or have_titles(passages)
    return InformationRetrievalEvaluator(
        queries={str(number): one.query for number, one in enumerate(answered)},
        corpus={number: dual_row(passage, titles) for passage, number in numbers.items()},
        relevant_docs={str(k): {numbers[passage] for passage in one.positives} for k, one in enumerate(answered)},
        accuracy_at_k=list(CUTS),
        precision_recall_at_k=list(CUTS),
        batch_size=batch_size,
        show_progress_bar=len(passages) > MANY,
        write_csv=False,
    )


def cross_evaluator(queries: Sequence[JudgedQuery], *, batch_size: int = 32) -> Any:
    """Ranks every query's own passages: `mrr@10`, `map`, `ndcg@10`.

    Args:
        queries: Those that have not both kinds of passages are left out.
        batch_size: Pairs of a forward.

    Returns:
        A `CrossEncoderRerankingEvaluator` for cross-encoders of two classes or of one score.

    Raises:
        ImportError: no sentence-transformers.
        ValueError: no query has both kinds of passages.
    """
    try:
        from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
    except ImportError as error:
        raise ImportError(INSTALL) from error

    class Reranking(CrossEncoderRerankingEvaluator):
        """The library's ranks by one score a pair."""

        def __call__(self, model: Any, *args: Any, **options: Any) -> dict[str, float]:
            return super().__call__(RelevanceScores(model), *args, **options)

    samples: list[dict[str, Any]] = [
        {
            "query": one.query,
            "positive": [cross_row(passage) for passage in one.positives],
            "negative": [cross_row(passage) for passage in one.negatives],
        }
        for one in queries
        if one.positives and one.negatives
    ]
    if not samples:
        raise ValueError("No query to evaluate on has both passages that answer it and passages that do not.")
    pairs = sum(len(one["positive"]) + len(one["negative"]) for one in samples)
    return Reranking(samples, batch_size=batch_size, show_progress_bar=pairs > MANY, write_csv=False)


__all__ = ["cross_evaluator", "dual_evaluator"]
