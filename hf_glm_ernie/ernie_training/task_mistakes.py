"""The rows of each task that have mistakes, with their texts, what is right and what the model found."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_glm_ernie.ernie_tasks.uie_spans import pair_spans

from .entity_scores import OUTSIDE, entities_of
from .mistakes import Mark, compare
from .uie_labels import answer_tokens, encoded_pieces
from .uie_rows import UIERow


def extraction_mistake(
    tokenizer: Any,
    row: UIERow,
    probabilities: Sequence[tuple[np.ndarray, np.ndarray]],
    max_length: int,
    cut: str,
    threshold: float,
) -> dict[str, Any]:
    """What is wrong in one row of UIE.

    Args:
        tokenizer: That of the model.
        row: The row as it was read.
        probabilities: Of the starts and of the ends, (T,) each, for every piece that the row was cut into.
        max_length: Tokens of a row.
        cut: Where it was cut.
        threshold: Probabilities above it count.

    Returns:
        `row`, `text`, `prompt` and what [`compare`] gives; offsets are characters of the row's content, or negative
        ones of its prompt, as in the data.
    """
    found, gold = [], []
    pieces, encodings = encoded_pieces(tokenizer, [row], max_length, cut)
    for piece, encoding, (starts, ends) in zip(pieces, encodings, probabilities, strict=True):
        length = len(encoding.ids)
        places = (answer_tokens(piece, answer, encoding) for answer in piece.answers)
        gold += [_mark(row, piece, encoding, place) for place in places if place is not None]
        pairs = pair_spans(starts[:length], ends[:length], threshold)
        found += [_mark(row, piece, encoding, pair) for pair in pairs]
    return {"row": row.number, "text": row.content, "prompt": row.prompt, **compare(found, gold)}


def _mark(row: UIERow, piece: UIERow, encoding: Any, place: tuple[int, int]) -> Mark:
    """Tokens of a piece as a span of the row; what begins or ends outside one text has no place."""
    segments = {encoding.sequence_ids[token] for token in place}
    start, end = encoding.offsets[place[0]][0], encoding.offsets[place[1]][1]
    if segments == {1}:
        return Mark(piece.content[start:end], piece.begin + start, piece.begin + end)
    if segments == {0}:
        before = len(row.prompt) + 1
        return Mark(row.prompt[start:end], start - before, end - before)
    return Mark(f"tokens {place[0]} to {place[1]}, across the prompt, the text or special tokens")


def choice_mistakes(
    rows: Any, found: Iterable[Sequence[str]], gold: Iterable[Sequence[str]], texts: Sequence[str], one_holds: bool
) -> list[dict[str, Any]]:
    """The rows whose classes or options are wrong.

    Args:
        rows: The data as it was read.
        found: The names that the model gives to every row.
        gold: Those that hold.
        texts: Columns of the row's texts.
        one_holds: Whether every row has exactly one.
    """
    mistakes = []
    for number, (names, right) in enumerate(zip(found, gold, strict=True)):
        if set(names) != set(right):
            told = compare([Mark(str(name)) for name in names], [Mark(str(name)) for name in right], one_holds)
            mistakes.append({"row": number, "text": text_of(rows[number], texts), **told})
    return mistakes


def tag_mistake(
    number: int, words: Sequence[str], held: Sequence[int], found: Sequence[str], gold: Sequence[str], entities: bool
) -> dict[str, Any]:
    """What is wrong in one row of tags.

    Args:
        number: Of the row.
        words: All of the row's.
        held: The numbers of the words that have tags: a word without a token has none, and what was cut off neither.
        found: Their tags.
        gold: The right ones.
        entities: Whether tags mark entities; else every word with a wrong tag is a mistake of its own.

    Returns:
        `row`, `text` and what [`compare`] gives; offsets count words.
    """
    joint = "" if all(len(word) < 2 or not word.isascii() for word in words) else " "

    def mark(kind: str, first: int, last: int) -> Mark:
        begin, end = held[first], held[last] + 1
        return Mark(joint.join(words[begin:end]), begin, end, kind)

    if entities:
        pairs = [sorted(entities_of(tags), key=lambda one: one[1:]) for tags in (found, gold)]
    else:
        wrong = [i for i, tags in enumerate(zip(found, gold, strict=True)) if tags[0] != tags[1]]
        pairs = [[(tags[i], i, i) for i in wrong] for tags in (found, gold)]
    marked, right = ([mark(*one) for one in side if entities or one[0] != OUTSIDE] for side in pairs)
    return {"row": number, "text": joint.join(words), **compare(marked, right)}


def text_of(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The texts of a row, one a line."""
    return "\n".join(row[column] for column in columns if row.get(column))


__all__ = ["choice_mistakes", "extraction_mistake", "tag_mistake", "text_of"]
