"""The rules as functions for `datasets`: `map` and `filter` of a `Dataset` or an `IterableDataset`, `batched=True`.

    cleaned = dataset.map(CleanDocuments(), batched=True, remove_columns=dataset.column_names, num_proc=8)
    report = CorpusReport.from_counts(cleaned["counts"])
    kept = cleaned.filter(FirstOccurrences(cleaned["signature"]), batched=True, with_indices=True)

Cleaning leaves as many rows as there were, so that everything is counted; a document of which nothing is left has no
sentences and no signature, and [`FirstOccurrences`] lets it go. What a document's duplicates are can only be said once
all signatures are known: a stream is run through twice, once for the signatures and once for the filter.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_glm_ernie.ernie3_training.masking import segmenter_spans

from .near_duplicates import NUM_PERM, SHINGLE_SIZE, BandKeys
from .occurrences import came_before
from .report import Tally
from .signatures import LONGEST_SENTENCES, SIGNATURE_BYTES, document_signature
from .text_rules import (
    LONGEST_BLOCK,
    MIN_WORDS,
    Paragraphs,
    collapse_repeated_characters,
    drop_repeated_blocks,
    drop_short_sentences,
    in_sequence,
    joined,
    split_paragraphs,
)
from .words import Segmenter, has_words, jieba_words


@dataclasses.dataclass(frozen=True)
class CleanDocuments:
    """The rules for single documents: a map function for `datasets`, `batched=True`.

    Columns read: `text` (or `column`). Columns made:

    - `text`: what is left, a paragraph a line;
    - `sentences`: the same as a list, for [`SentenceReordering`] and [`SentenceDistance`]; joined they are the text;
    - `signature`: 16 bytes, equal of duplicates; `None` where nothing is left;
    - `counts`: for [`CorpusReport.from_counts`].

    Args:
        segmenter: Cuts Chinese text into words; default: jieba. `list` counts every character as a word.
        min_words: Sentences of fewer words are dropped.
        longest_block: Runs of up to so many sentences are dropped where they repeat the run before.
        longest_sentences: How many sentences make the signature.
        column: Where the text is.

    Raises:
        ValueError: a number below its least.
    """

    segmenter: Segmenter = jieba_words
    min_words: int = MIN_WORDS
    longest_block: int = LONGEST_BLOCK
    longest_sentences: int = LONGEST_SENTENCES
    column: str = "text"

    def __post_init__(self) -> None:
        for name, least in (("min_words", 0), ("longest_block", 0), ("longest_sentences", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")

    def __call__(self, rows: Mapping[str, Sequence[str | None]]) -> dict[str, list[Any]]:
        """Columns in, columns out.

        Raises:
            ValueError: a text that is none.
        """
        made: dict[str, list[Any]] = {"text": [], "sentences": [], "signature": [], "counts": []}
        for text in rows[self.column]:
            if not isinstance(text, str):
                raise ValueError(f"column {self.column!r} holds {text!r}: a text is needed; filter such rows out.")
            paragraphs, counts = self.clean(text)
            sentences = in_sequence(paragraphs)
            made["text"].append("".join(sentences))
            made["sentences"].append(sentences)
            made["signature"].append(document_signature(sentences, self.longest_sentences) if sentences else None)
            made["counts"].append([number for tally in counts for number in tally.numbers])
        return made

    def clean(self, text: str) -> tuple[Paragraphs, list[Tally]]:
        """What is left of one text.

        Returns:
            The paragraphs; what was read, and for each of `TEXT_REASONS` what was dropped.
        """
        collapsed = collapse_repeated_characters(text)
        stages = [split_paragraphs(collapsed)]
        stages.append(drop_repeated_blocks(stages[-1], self.longest_block))
        stages.append(drop_short_sentences(stages[-1], self._is_long))
        sizes = [_size(paragraphs) for paragraphs in stages]
        counts = [
            dataclasses.replace(sizes[0], documents=1, characters=len(text)),
            Tally(characters=len(text) - len(collapsed)),
            Tally(characters=len(collapsed) - sizes[0].characters),
            sizes[0] - sizes[1],
            sizes[1] - sizes[2],
            Tally(documents=int(not stages[-1])),
        ]
        return stages[-1], counts

    def _is_long(self, sentence: str) -> bool:
        return has_words(sentence, self.min_words, self.segmenter)


def _size(paragraphs: Paragraphs) -> Tally:
    return Tally(0, len(paragraphs), sum(map(len, paragraphs)), len(joined(paragraphs)))


class NearDuplicateKeys:
    """Adds the column `near_keys`, for [`FirstOccurrences`]: a map function for `datasets`, `batched=True`.

    Args:
        threshold: Jaccard similarity of shingles that is aimed at; datasketch's `MinHashLSH` finds a pair near it with
            the probability that stands in `near_duplicates.py`.
        num_perm: Permutations of `MinHash`.
        shingle_size: Characters of a shingle.

    Raises:
        ImportError: datasketch is not installed.
        ValueError: a threshold that is not between 0 and 1, or a size below 1.
    """

    def __init__(self, threshold: float = 0.8, *, num_perm: int = NUM_PERM, shingle_size: int = SHINGLE_SIZE) -> None:
        self.keys = BandKeys(threshold, num_perm=num_perm, shingle_size=shingle_size)

    def __call__(self, rows: Mapping[str, Sequence[str]]) -> dict[str, list[bytes]]:
        """Column `text` to column `near_keys`: all keys of a text one after the other."""
        return {"near_keys": [row.tobytes() for row in self.keys(rows["text"])]}


class FirstOccurrences:
    """Keeps the first of documents that share a key: a filter for `datasets`, `batched=True, with_indices=True`.

    "Earlier" is earlier in the order of the keys, whether that document is kept or not. In memory this takes 64 bytes
    a key while it is made, and one byte a document then; `prepare_corpus` does the same on disk.

    Args:
        keys: Of every document, in the order in which the filter sees them: its signature, or its `near_keys`. `None`
            of one that is not to be kept anyway.
        key_bytes: Length of one key. Default: that of a signature; a document with several keys is a duplicate if one
            of them came before.

    Raises:
        ValueError: keys that are not all of one number of bytes, a multiple of `key_bytes`.
    """

    def __init__(self, keys: Sequence[bytes | None], key_bytes: int = SIGNATURE_BYTES) -> None:
        given = [at for at, one in enumerate(keys) if one is not None]
        lengths = {len(one) for one in keys if one is not None}
        if len(lengths) > 1 or any(length == 0 or length % key_bytes for length in lengths):
            raise ValueError(
                f"keys of {sorted(lengths)} bytes: all must have as many, a multiple of key_bytes={key_bytes}. "
                "Signatures have 16, and key_bytes=8 goes with near_keys."
            )
        joined_keys = b"".join(one for one in keys if one is not None)
        flat = np.frombuffer(joined_keys, dtype=f"S{key_bytes}") if joined_keys else np.empty(0, dtype="S1")
        width = len(flat) // max(len(given), 1)
        before = came_before(flat, np.repeat(np.arange(len(given)), width)).reshape(len(given), width)
        self.is_first = np.zeros(len(keys), dtype=bool)
        self.is_first[given] = ~before.any(axis=1)

    def __call__(self, rows: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> list[bool]:
        """Whether each document is kept.

        Raises:
            IndexError: more documents than keys.
        """
        if len(indices) and max(indices) >= len(self.is_first):
            raise IndexError(f"document {max(indices)} has no key: {len(self.is_first)} keys were given.")
        return self.is_first[np.asarray(indices, dtype=np.int64)].tolist()


@dataclasses.dataclass(frozen=True)
class WordSpans:
    """Adds the column `spans` that [`KnowledgeMasking`] reads: a map function for `datasets`, `batched=True`.

    The words of more than one character, found once and not in every epoch; a single character is a unit anyway.

    Args:
        segmenter: Cuts text into words; default: jieba.
    """

    segmenter: Segmenter = jieba_words

    def __call__(self, rows: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        """Column `text` to column `spans`: lists of {"start", "end", "kind"}."""
        return {"spans": [self.spans(text) for text in rows["text"]]}

    def spans(self, text: str) -> list[dict[str, Any]]:
        """The spans of one text."""
        found = (span for span in segmenter_spans(text, self.segmenter) if span.end - span.start > 1)
        return [{"start": span.start, "end": span.end, "kind": span.kind} for span in found]


__all__ = ["CleanDocuments", "FirstOccurrences", "NearDuplicateKeys", "WordSpans"]
