"""Words with tags as a tagger's inputs and labels.

The first token of a word carries its tag; the others, special tokens and padding carry -100 and count in no loss and
no score. Which token belongs to which word is the tokenizer's answer: PaddleNLP takes the i-th token to be the i-th
word, so a word of no token, or of several, shifts all tags behind it.

Source: PaddleNLP, `model_zoo/ernie-3.0/utils.py` (`token_convert_example`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

IGNORED = -100


def word_labels(word_ids: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """Labels of the tokens of one row.

    Args:
        word_ids: The word of each token, `None` for special tokens, as `BatchEncoding.word_ids` gives them.
        tags: The tag of each word. A word without a token has no label, one behind where the row was cut neither.
    """
    before: int | None = None
    labels = []
    for word in word_ids:
        labels.append(IGNORED if word is None or word == before else tags[word])
        before = word
    return labels


def encode_tagged_words(
    tokenizer: Any,
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[Any]],
    numbers: Mapping[Any, int],
    max_length: int,
    rows: Sequence[int],
) -> dict[str, list[Any]]:
    """Encodes rows of words.

    Args:
        tokenizer: One of the `tokenizers` library.
        words: Of every row.
        tags: Of every row, one a word.
        numbers: Tag -> number.
        max_length: Tokens of a row; what is longer is cut at its end.
        rows: Numbers of the rows in the data, for messages.

    Returns:
        What the tokenizer gives, and `labels`.

    Raises:
        ValueError: no words, another number of tags than of words, an unknown tag.
    """
    for of_row, tags_of_row, row in zip(words, tags, rows, strict=True):
        if not of_row or not tags_of_row or len(of_row) != len(tags_of_row):
            raise ValueError(
                f"Row {row} of the data has {len(of_row or [])} tokens and {len(tags_of_row or [])} tags; each token "
                "has one tag."
            )
        for tag in tags_of_row:
            if tag not in numbers:
                raise ValueError(f"Row {row} of the data has {tag!r}, which is none of {list(numbers)}.")
    encoded = tokenizer([list(one) for one in words], is_split_into_words=True, truncation=True, max_length=max_length)
    labels = [word_labels(encoded.word_ids(i), [numbers[tag] for tag in one]) for i, one in enumerate(tags)]
    return {**encoded, "labels": labels}


__all__ = ["IGNORED", "encode_tagged_words", "word_labels"]
