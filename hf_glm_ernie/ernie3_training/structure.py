"""The two structure-aware tasks: sentence reordering and sentence distance.

Reordering: a paragraph is split into n = 1..m segments of whole sentences, the segments are shuffled, and the class
says how. All permutations of all n are classes of one head, k = 1! + 2! + ... + m! (33 for m = 4): class = number of
permutations of fewer segments + lexicographic rank. The paper says "randomly split into 1 to m segments" and "shuffled
by a random permuted order"; read literally, n is uniform and the permutation is uniform given n. That is the default;
`uniform="classes"` draws all classes equally often, which spends fewer rows on n = 1, where nothing is shuffled.

Distance: two sentences are adjacent (0), in one document but not adjacent (1), or from two documents (2). The three
are equally likely. Within a document the earlier sentence stands first, so that order does not give the class away.

Source: P10, section 3.2.2; the class count 33 is ERNIE-Doc's (`configs/base/zh/task.json`).
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from hf_glm_ernie.configuration_ernie3 import SENTENCE_DISTANCE, SENTENCE_REORDERING
from hf_glm_ernie.inference.token_ids import special_id

from .builders import RowBuilder, checked_texts, fitted
from .tokens import Asking

ADJACENT, SAME_DOCUMENT, OTHER_DOCUMENT = 0, 1, 2
DRAWS = 64  # of a document, until one is another than the row's own


def permutation_classes(segments: int) -> int:
    """How many classes there are for up to `segments` segments: 1! + ... + segments!."""
    return sum(math.factorial(count) for count in range(1, segments + 1))


def permutation_label(permutation: Sequence[int]) -> int:
    """The class of a permutation.

    Args:
        permutation: Which original segment, counted from 0, stands at each place.

    Returns:
        Number of permutations of fewer segments + rank among those of as many in lexicographic order.

    Raises:
        ValueError: something else than the numbers 0..n-1, each once.

    ```python
    >>> permutation_label((0,)), permutation_label((0, 1)), permutation_label((1, 0)), permutation_label((0, 1, 2))
    (0, 1, 2, 3)
    ```
    """
    count = len(permutation)
    if count == 0 or sorted(permutation) != list(range(count)):
        raise ValueError(f"{tuple(permutation)} is no permutation of 0..{count - 1}, each number once.")
    rank = next(rank for rank, one in enumerate(itertools.permutations(range(count))) if one == tuple(permutation))
    return permutation_classes(count - 1) + rank


def label_permutation(label: int) -> tuple[int, ...]:
    """The permutation of a class, the inverse of [`permutation_label`].

    Args:
        label: A class, from 0.

    Raises:
        ValueError: a negative class.
    """
    if label < 0:
        raise ValueError(f"label={label}: classes go from 0.")
    in_order = (one for count in itertools.count(1) for one in itertools.permutations(range(count)))
    return next(itertools.islice(in_order, label, None))


@dataclasses.dataclass(frozen=True)
class SentenceReordering(RowBuilder):
    """Rows of sentence reordering: `[CLS]` and the shuffled segments of a paragraph.

    Columns read: `sentences`, the paragraph as a list ([`split_sentences`] makes one). Columns made: `input_ids`,
    `reorder_labels`. A paragraph of fewer sentences than `max_segments` is split into as many segments at most. With
    `truncation=True` a long paragraph loses its last sentences before it is split (and a first sentence that alone is
    too long its end). Arguments: those of [`RowBuilder`], and:

    Args:
        max_segments: m. The model's `num_reorder_labels` must be `permutation_classes(m)`.
        uniform: What is uniform: the number of segments (as the paper reads), or the classes.
    """

    max_segments: int = dataclasses.field(default=4, kw_only=True)
    uniform: Literal["segments", "classes"] = dataclasses.field(default="segments", kw_only=True)

    task = SENTENCE_REORDERING
    label_column = "reorder_labels"

    def __post_init__(self) -> None:
        if self.max_segments < 1:
            raise ValueError(f"max_segments={self.max_segments} must be at least 1.")
        if self.uniform not in ("segments", "classes"):
            raise ValueError(f"uniform={self.uniform!r} must be 'segments' or 'classes'.")

    def build(self, row: Mapping[str, Any], generator: np.random.Generator, max_length: int) -> Asking:
        """`[CLS] segments` in a random order; its class as `reorder_labels`."""
        tokens = yield checked_texts(row, "sentences", 1)
        sentences = _leading([one.ids for one in tokens], max_length - 1, self.truncation)
        permutation = self._permutation(min(self.max_segments, len(sentences)), generator)
        inner = generator.choice(np.arange(1, len(sentences)), size=len(permutation) - 1, replace=False)
        cuts = [0, *sorted(inner.tolist()), len(sentences)]
        segments = [sentences[start:end] for start, end in itertools.pairwise(cuts)]
        ids = [token for place in permutation for sentence in segments[place] for token in sentence]
        cls = special_id(self.tokenizer, "cls")
        return {"input_ids": [cls, *ids], "reorder_labels": permutation_label(permutation)}

    def _permutation(self, most: int, generator: np.random.Generator) -> tuple[int, ...]:
        if self.uniform == "classes":
            return label_permutation(int(generator.integers(permutation_classes(most))))
        return tuple(generator.permutation(int(generator.integers(1, most + 1))).tolist())


@dataclasses.dataclass(frozen=True)
class SentenceDistance(RowBuilder):
    """Rows of sentence distance: `[CLS] a [SEP] b`, how far apart the two sentences stood.

    Columns read: `sentences`, a document as a list of three sentences at least. Columns made: `input_ids`,
    `distance_labels` (0 adjacent, 1 same document, 2 other document; one third each). With `truncation=True` the
    longer of the two sentences loses its end first. Arguments: those of [`RowBuilder`], and:

    Args:
        documents: Where the other document comes from, each as a list of sentences: any sequence, such as a column of
            the data. A document equal to the row's own is drawn anew. It travels to the processes of `map`.
    """

    documents: Sequence[Sequence[str]] = dataclasses.field(kw_only=True)

    task = SENTENCE_DISTANCE
    label_column = "distance_labels"

    def build(self, row: Mapping[str, Any], generator: np.random.Generator, max_length: int) -> Asking:
        """`[CLS] a [SEP] b` and the class as `distance_labels`."""
        sentences = checked_texts(row, "sentences", 3)
        label = int(generator.integers(3))
        count = len(sentences)
        if label == ADJACENT:
            first = int(generator.integers(count - 1))
            pair = sentences[first], sentences[first + 1]
        elif label == SAME_DOCUMENT:
            # Pairs with a gap of two or more correspond to pairs of different numbers below count - 1.
            low, high = sorted(generator.choice(count - 1, size=2, replace=False).tolist())
            pair = sentences[low], sentences[high + 1]
        else:
            other = self._other(sentences, generator)
            pair = sentences[int(generator.integers(count))], other[int(generator.integers(len(other)))]
        tokens = yield list(pair)
        first_ids, second_ids = self._pair([one.ids for one in tokens], max_length - 2)
        cls = special_id(self.tokenizer, "cls")
        sep = special_id(self.tokenizer, "sep")
        return {"input_ids": [cls, *first_ids, sep, *second_ids], "distance_labels": label}

    def _other(self, sentences: list[str], generator: np.random.Generator) -> list[str]:
        """A document that is not this one."""
        for _ in range(DRAWS if len(self.documents) else 0):
            other = checked_texts(
                {"documents": self.documents[int(generator.integers(len(self.documents)))]}, "documents", 1
            )
            if other != sentences:
                return other
        raise ValueError(
            f"no other document: of {len(self.documents)} in `documents`, {DRAWS} draws gave only this one. The task "
            "needs two different ones at least."
        )

    def _pair(self, pair: list[list[int]], room: int) -> list[list[int]]:
        """The two sentences within `room` tokens: the longer one is cut first."""
        if room < 2:
            raise ValueError(f"max_length={room + 2} leaves no room for two sentences and two special tokens.")
        first, second = map(len, pair)
        half = room // 2
        first_room = room - second if second <= half else min(first, room - half)
        rooms = (min(first, first_room), room - min(first, first_room))
        return [fitted(ids, n, self.truncation, "a sentence of the pair") for ids, n in zip(pair, rooms, strict=True)]


def _leading(sentences: list[list[int]], room: int, truncation: bool) -> list[list[int]]:
    """The first sentences of a paragraph, as many as fit."""
    total = sum(map(len, sentences))
    if total <= room:
        return sentences
    fitted([0] * total, room, truncation, "the paragraph")
    kept, left = [], room
    for sentence in sentences:
        if len(sentence) > left:
            break
        kept.append(sentence)
        left -= len(sentence)
    return kept or [sentences[0][:room]]


__all__ = [
    "ADJACENT",
    "OTHER_DOCUMENT",
    "SAME_DOCUMENT",
    "SentenceDistance",
    "SentenceReordering",
    "label_permutation",
    "permutation_classes",
    "permutation_label",
]
