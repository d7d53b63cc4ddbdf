"""Texts cut into the windows a model reads, and encoded.

A window is a piece of a text behind a prompt. A text longer than fits is cut every so many characters, as the
original does, and on request at the ends of sentences first. Neighbours share `overlap` characters, so that an answer
of up to so many, over the edge of one window, is whole in the next; with an overlap of 0 windows are the original's.
Every window knows where in its text it begins, so answers are offsets into the text as it was given.

Source: PaddleNLP 2.8.1, `paddlenlp/taskflow/task.py` (`_auto_splitter`) and `paddlenlp/taskflow/utils.py`
(`cut_chinese_sent`). Letters in comments: T tokens.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

SPECIAL_TOKENS = 3  # [CLS] prompt [SEP] text [SEP]

USUAL_OVERLAP = 64
"""Characters that neighbouring windows share, but at most a quarter of a window."""

# A sentence ends between the two groups.
SENTENCE_ENDS = [
    re.compile(pattern)
    for pattern in (
        r"([。！？?])([^”’])",
        r"(\.{6})([^”’])",
        r"(…{2})([^”’])",
        r"([。！？?][”’])([^，。！？?])",
    )
]


@dataclass(frozen=True)
class Window:
    """A piece of a text behind a prompt.

    Attributes:
        question: Index of the question it belongs to.
        prompt: What stands before the text.
        text: The piece.
        offset: Where the piece begins, in characters of the whole text.
        goes_on_before: Whether the piece was cut off from text before it.
        goes_on_behind: Whether the piece was cut off from text behind it.
    """

    question: int
    prompt: str
    text: str
    offset: int
    goes_on_before: bool = False
    goes_on_behind: bool = False

    @property
    def end(self) -> int:
        """One past its last character, in characters of the whole text."""
        return self.offset + len(self.text)


@dataclass(frozen=True)
class EncodedWindow:
    """A window as the model reads it.

    Attributes:
        window: What was encoded.
        input_ids: T ids.
        token_type_ids: T types.
        encoding: What the tokenizers library gave.
    """

    window: Window
    input_ids: list[int]
    token_type_ids: list[int]
    encoding: Any

    @cached_property
    def segments(self) -> list[int | None]:
        """T of 0 = prompt, 1 = text, `None` = special token. Read where there are answers only, for it takes time."""
        return self.encoding.sequence_ids

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """T of first and one past the last character of each token, in its own segment.

        The library's own: `return_offsets_mapping` may give the original's guesses for unknown words.
        """
        return self.encoding.offsets


def cut_sentences(text: str) -> list[tuple[int, str]]:
    """Cuts a text behind 。！？?, …… and ......, closing quotes included, and at line breaks.

    Args:
        text: Any text.

    Returns:
        (offset, sentence) pairs: everything but the line breaks and the white space at the end. At least one pair.
    """
    marked = text
    for end in SENTENCE_ENDS:
        marked = end.sub(r"\1\n\2", marked)
    sentences, offset = [], 0
    for sentence in marked.rstrip().split("\n"):
        offset = text.index(sentence, offset)
        if sentence:
            sentences.append((offset, sentence))
        offset += len(sentence)
    return sentences or [(0, "")]


def shared(width: int, overlap: int | None) -> int:
    """How many characters windows of a width share: what was asked for, at most half of them."""
    return min(USUAL_OVERLAP, width // 4) if overlap is None else min(overlap, width // 2)


def cut_windows(
    question: int, prompt: str, text: str, max_length: int, split_sentences: bool, overlap: int | None = None
) -> Iterator[Window]:
    """Cuts a text into windows of as many characters as tokens are left beside the prompt.

    Args:
        question: Index of the question.
        prompt: Prompt, shorter than `max_length - 3` characters.
        text: Any text; an empty one is one empty window.
        max_length: Tokens the model reads at once.
        split_sentences: Whether sentences are windows of their own.
        overlap: Characters that neighbours share, see [`shared`].

    Yields:
        The windows, in order.
    """
    width = max_length - len(prompt) - SPECIAL_TOKENS
    both = shared(width, overlap)
    for offset, piece in cut_sentences(text) if split_sentences else [(0, text)]:
        for start in range(0, max(len(piece) - both, 1), width - both):
            end = start + width
            yield Window(question, prompt, piece[start:end], offset + start, start > 0, end < len(piece))


def encode_windows(
    tokenizer: Any, windows: Iterable[Window], max_length: int, overlap: int | None = None
) -> list[EncodedWindow]:
    """Encodes windows; one that has more tokens than the model reads is cut again, so that no text is lost.

    Args:
        tokenizer: A tokenizer with offsets.
        windows: The windows.
        max_length: Tokens the model reads at once.
        overlap: Characters that windows share which were cut again, see [`shared`].

    Returns:
        The encoded windows. Those of one text are in order.
    """
    encoded: list[EncodedWindow] = []
    pending = list(windows)
    while pending:
        batch = tokenizer(
            [window.prompt for window in pending],
            [window.text for window in pending],
            return_token_type_ids=True,
            verbose=False,
        )
        again: list[Window] = []
        for window, row in zip(pending, batch.encodings, strict=True):
            one = EncodedWindow(window, row.ids, row.type_ids, row)
            if len(one.input_ids) <= max_length:
                encoded.append(one)
            else:
                again += _halves(one, max_length, overlap)
        pending = again
    encoded.sort(key=lambda one: (one.window.question, one.window.offset))
    return encoded


def _halves(encoded: EncodedWindow, max_length: int, overlap: int | None) -> list[Window]:
    """What fits of a window, and the rest."""
    window = encoded.window
    text_starts = [
        start for (start, _), segment in zip(encoded.offsets, encoded.segments, strict=True) if segment == 1
    ]
    room = max_length - (len(encoded.input_ids) - len(text_starts))
    cut = text_starts[room] if room > 0 else 0
    if cut == 0:
        logger.warning(
            f"The prompt {window.prompt[:40]!r} leaves no room for the text in {max_length} tokens: its text is not "
            "read."
        )
        return []
    begin = cut - shared(cut, overlap)
    rest = replace(window, text=window.text[begin:], offset=window.offset + begin, goes_on_before=True)
    return [replace(window, text=window.text[:cut], goes_on_behind=True), rest]


__all__ = ["SPECIAL_TOKENS", "EncodedWindow", "Window", "cut_sentences", "cut_windows", "encode_windows", "shared"]
