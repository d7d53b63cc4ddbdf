"""Folders of ERNIE encoders as sentence-transformers' models, with RocketQA's settings.

A dual encoder of RocketQA is two encoders, one for queries and one for passages, whose `[CLS]` states are compared by
dot product; `ErnieDualEncoder(share_parameters=True)` is one encoder for both. Its cross-encoder has two classes, the
second of which is that the passage answers the query.

Sources: PaddleNLP 2.8.1, `paddlenlp/transformers/semantic_search/modeling.py`; PaddlePaddle/RocketQA,
`research/DuReader-Retrieval-Baseline/script` (lengths).
"""

from typing import Any

import torch
from transformers import AutoConfig

from hf_glm_ernie.host_arguments import one_of

MODES = {"cls": "cls", "mean": "mean", "max": "max", "mean_sqrt": "mean_sqrt_len_tokens"}
"""Poolings, and sentence-transformers' words for them."""

INSTALL = "Training retrieval needs sentence-transformers: pip install 'hf-glm-ernie[retrieval]'"
SIDES = ("query", "document")


def dual_encoder(
    query_model: str,
    passage_model: str | None = None,
    *,
    pooling: str = "cls",
    normalize: bool = False,
    query_length: int = 32,
    passage_length: int = 384,
    device: str | None = None,
) -> Any:
    """Opens encoders as one `SentenceTransformer`, in fp32.

    Args:
        query_model: Folder of an encoder that `AutoModel` opens.
        passage_model: That of the encoder of passages, with weights of its own from here on, even if it is the same
            folder; `None`: one encoder for both.
        pooling: As `sentence_embeddings` calls them, without `"pooler"`.
        normalize: Whether vectors are scaled to length 1.
        query_length: Tokens of a query, at most the model's positions; longer ones are cut.
        passage_length: The same of a passage.
        device: Where it runs; `None`: sentence-transformers' choice.

    Returns:
        The model: `encode_query` and `encode_document` give vectors, which are compared by dot product.

    Raises:
        ImportError: no sentence-transformers.
        ValueError: an unknown pooling.
    """
    one_of("pooling", pooling, tuple(MODES))
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Router, Transformer
    except ImportError as error:
        raise ImportError(INSTALL) from error

    def modules(folder: str) -> list[Any]:
        positions = AutoConfig.from_pretrained(folder).max_position_embeddings
        words = Transformer(
            folder,
            model_kwargs={"dtype": torch.float32},
            query_length=min(query_length, positions),
            document_length=min(passage_length, positions),
        )
        last = [Normalize()] if normalize else []
        return [words, Pooling(words.get_embedding_dimension(), pooling_mode=MODES[pooling]), *last]

    one = modules(query_model)
    both = one if passage_model is None else [Router.for_query_document(one, modules(passage_model))]
    return SentenceTransformer(modules=both, similarity_fn_name="dot", device=device)


def cross_encoder(model: str, *, num_labels: int = 2, max_length: int = 384, device: str | None = None) -> Any:
    """Opens an encoder as a `CrossEncoder`, in fp32.

    Args:
        model: Folder of a cross-encoder, or of an encoder, which gets a new head.
        num_labels: 2, as RocketQA has it: the second class is that the passage answers the query; or 1: one logit, as
            sentence-transformers' `rank` and engines want it.
        max_length: Tokens of query and passage, at most the model's positions; the longer text is cut.
        device: Where it runs; `None`: sentence-transformers' choice.

    Raises:
        ImportError: no sentence-transformers.
        ValueError: another number of labels.
    """
    if num_labels not in (1, 2):
        raise ValueError(f"num_labels={num_labels}: a cross-encoder has 2 classes (RocketQA's), or 1 score.")
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise ImportError(INSTALL) from error
    longest = min(max_length, AutoConfig.from_pretrained(model).max_position_embeddings)
    kinds = {"model_kwargs": {"dtype": torch.float32}}
    return CrossEncoder(model, num_labels=num_labels, max_length=longest, device=device, **kinds)


class RelevanceScores:
    """A cross-encoder as sentence-transformers' evaluators and `mine_hard_negatives` want one: a score for each pair.

    Of two classes the score is the probability of the second, that the passage answers the query, as PaddleNLP's
    `ErnieCrossEncoder.matching` gives it; of one logit its sigmoid.

    Args:
        encoder: A `CrossEncoder` with one or two labels.
    """

    def __init__(self, encoder: Any):
        self.encoder = encoder
        self.model_card_data = encoder.model_card_data

    def predict(self, pairs: Any, **options: Any) -> Any:
        """`CrossEncoder.predict`, with one score for a pair; takes its other arguments."""
        return self.encoder.predict(pairs, activation_fn=_relevance, **options)


def _relevance(logits: torch.Tensor) -> torch.Tensor:
    """(B, 2) or (B, 1) or (B,) -> (B,)."""
    if logits.ndim == 1 or logits.shape[-1] == 1:
        return logits.flatten().sigmoid()
    return logits.softmax(-1)[:, 1]


__all__ = ["INSTALL", "MODES", "SIDES", "RelevanceScores", "cross_encoder", "dual_encoder"]
