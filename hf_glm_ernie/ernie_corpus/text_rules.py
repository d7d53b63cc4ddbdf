"""What is done to one text: repeated characters, repeated paragraphs, short sentences. Pure functions.

The paper's words, and what was chosen where they leave a choice:

- "On the character level, we replace consecutive identical characters (i.e., spaces, tabs, exclamation mark, question
  mark and etc) with one single character." White space, punctuation and symbols (emoji among them) are collapsed;
  letters and digits (100, 看看, book) never are. Neither are brackets and quotes, which nest, nor the two letters of a
  flag. Marks that are written more than once are left at what is usual: …… and —— in Chinese, an ellipsis of three
  dots, http://, C++, --.
- "On the paragraph level, we replace two identical consecutive paragraphs consisting of N sentences with one single
  paragraph where 0 < N < 100." A paragraph is read as a run of N sentences: what is left has no run of 1 to 99
  sentences right behind itself, whether lines end there or not.
- "Sentences with less than 10 words are filtered": `words.py` says what a word is.

A line is a paragraph, and ends a sentence; within it sentences end as [`split_sentences`] says.

Source: ERNIE 3.0 (arXiv 2107.02137), section 3.3.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import TypeAlias

from hf_glm_ernie.ernie3_training.splitting import split_sentences

Paragraphs: TypeAlias = list[list[str]]
"""A text: of each paragraph its sentences. White space stays at the end of a sentence, but not of a paragraph."""

LONGEST_BLOCK = 99  # sentences: "0 < N < 100"
MIN_WORDS = 10

USUAL_RUNS = {"…": 2, "—": 2, ".": 3, "-": 2, "/": 2, "+": 2}
"""Mark -> how many of it are usual in a row; of others one."""

NESTING = frozenset("\"'`")  # quotes that open as they close: Unicode calls them punctuation like any other
_RUN = re.compile(r"([\W_])\1+")


def collapse_repeated_characters(text: str) -> str:
    """Replaces runs of one white space, punctuation mark or symbol by a single one, or by as many as are usual.

    Args:
        text: Any text.

    ```python
    >>> collapse_repeated_characters("真的吗？？？  太好了！！！2000")
    '真的吗？ 太好了！2000'
    ```
    """
    return _RUN.sub(_usual_run, text)


def _usual_run(match: re.Match[str]) -> str:
    run = match[0]
    mark = run[0]
    category = unicodedata.category(mark)
    is_collapsed = mark.isspace() or category in ("Po", "Pd", "Pc") or category[0] == "S"
    if not is_collapsed or mark in NESTING or "\U0001f1e6" <= mark <= "\U0001f1ff":
        return run
    return run[: USUAL_RUNS.get(mark, 1)]


def split_paragraphs(text: str) -> Paragraphs:
    """The sentences of each line that is not blank, without the white space around the line."""
    return [split_sentences(line) for line in map(str.strip, text.splitlines()) if line]


def joined(paragraphs: Paragraphs) -> str:
    """The text of paragraphs, one a line."""
    return "\n".join("".join(sentences) for sentences in paragraphs)


def in_sequence(paragraphs: Paragraphs) -> list[str]:
    """The sentences of a whole text; joined they are the text, so a paragraph's last one has the line's end."""
    sentences = [sentence for paragraph in paragraphs for sentence in [*paragraph[:-1], f"{paragraph[-1]}\n"]]
    if sentences:
        sentences[-1] = sentences[-1][:-1]
    return sentences


def drop_repeated_blocks(paragraphs: Paragraphs, longest: int = LONGEST_BLOCK) -> Paragraphs:
    """Drops what repeats the sentences right before it.

    Sentences are read in order. As soon as the last N equal the N before them, for the smallest such N, the last N
    are dropped. Where lines and white space stand makes no difference.

    Args:
        paragraphs: A text.
        longest: N is from 1 to this many sentences.

    Returns:
        The paragraphs with the sentences that are left; those without any are gone.
    """
    sequence = [sentence.strip() for paragraph in paragraphs for sentence in paragraph]
    if len(set(sequence)) == len(sequence):
        return paragraphs
    kept: list[int] = []
    places: dict[str, list[int]] = {}  # sentence -> where it stands among the kept ones
    for at, sentence in enumerate(sequence):
        before = places.setdefault(sentence, [])
        kept.append(at)
        before.append(len(kept) - 1)
        for place in before[-2::-1]:  # the nearest first: the smallest N
            length = len(kept) - 1 - place
            if length > longest or 2 * length > len(kept):
                break
            if all(sequence[kept[-back]] == sequence[kept[-back - length]] for back in range(1, length + 1)):
                for one in kept[-length:]:
                    places[sequence[one]].pop()
                del kept[-length:]
                break
    if len(kept) == len(sequence):
        return paragraphs
    left = set(kept)
    return _filtered(paragraphs, (at in left for at in range(len(sequence))))


def drop_short_sentences(paragraphs: Paragraphs, is_long: Callable[[str], bool]) -> Paragraphs:
    """The paragraphs with the sentences that are long enough; those without any are gone."""
    return _filtered(paragraphs, (is_long(sentence) for paragraph in paragraphs for sentence in paragraph))


def _filtered(paragraphs: Paragraphs, are_kept: Iterator[bool]) -> Paragraphs:
    left = []
    for paragraph in paragraphs:
        sentences = [sentence for sentence in paragraph if next(are_kept)]
        if sentences:
            if len(sentences) < len(paragraph):
                sentences[-1] = sentences[-1].rstrip()
            left.append(sentences)
    return left


__all__ = [
    "LONGEST_BLOCK",
    "MIN_WORDS",
    "Paragraphs",
    "collapse_repeated_characters",
    "drop_repeated_blocks",
    "drop_short_sentences",
    "in_sequence",
    "joined",
    "split_paragraphs",
]
