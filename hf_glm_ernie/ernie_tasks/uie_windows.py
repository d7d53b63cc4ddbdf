"""Texts cut into the windows a model reads, encoded, and the answers of windows put together again.

A window is a piece of a text behind a prompt. A text longer than fits is cut every so many characters, as the
original does, and on request at the ends of sentences first. Every window knows where in its text it begins, so
answers are offsets into the text as it was given.

Source: PaddleNLP 2.8.1, `paddlenlp/taskflow/task.py` (`_auto_splitter`), `paddlenlp/taskflow/utils.py`
(`cut_chinese_sent`, `get_id_and_prob`), `paddlenlp/taskflow/information_extraction.py` (`_auto_joiner`) and
`paddlenlp/utils/tools.py` (`get_span`). Letters in shape comments: T tokens.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import logging

logger = logging.get_logger(__name__)

SPECIAL_TOKENS = 3  # [CLS] prompt [SEP] text [SEP]

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
    """

    question: int
    prompt: str
    text: str
    offset: int


@dataclass(frozen=True)
class EncodedWindow:
    """A window as the model reads it.

    Attributes:
        window: What was encoded.
        input_ids: T ids.
        token_type_ids: T types.
        segments: (T,) 0 = prompt, 1 = text, -1 = special token.
        offsets: (T, 2) first and one past the last character of each token, in its own segment.
    """

    window: Window
    input_ids: list[int]
    token_type_ids: list[int]
    segments: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class Span:
    """An answer in a window: characters `start` to `end` of its prompt or of the whole text."""

    start: int
    end: int
    probability: float
    in_prompt: bool


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


def cut_windows(question: int, prompt: str, text: str, max_length: int, split_sentences: bool) -> Iterator[Window]:
    """Cuts a text into windows of as many characters as tokens are left beside the prompt.

    Args:
        question: Index of the question.
        prompt: Prompt, shorter than `max_length - 3` characters.
        text: Any text; an empty one is one empty window.
        max_length: Tokens the model reads at once.
        split_sentences: Whether sentences are windows of their own.

    Yields:
        The windows, in order.
    """
    width = max_length - len(prompt) - SPECIAL_TOKENS
    for offset, piece in cut_sentences(text) if split_sentences else [(0, text)]:
        for start in range(0, max(len(piece), 1), width):
            yield Window(question, prompt, piece[start : start + width], offset + start)


def encode_windows(tokenizer: Any, windows: Iterable[Window], max_length: int) -> list[EncodedWindow]:
    """Encodes windows; one that has more tokens than the model reads is cut again, so that no text is lost.

    Args:
        tokenizer: A tokenizer with offsets.
        windows: The windows.
        max_length: Tokens the model reads at once.

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
            segments = np.array([-1 if segment is None else segment for segment in row.sequence_ids])
            # The library's own offsets: `return_offsets_mapping` may give the original's guesses for unknown words.
            offsets = np.array(row.offsets).reshape(-1, 2)
            if len(segments) <= max_length:
                encoded.append(EncodedWindow(window, row.ids, row.type_ids, segments, offsets))
            else:
                again += _halves(window, segments, offsets, max_length)
        pending = again
    encoded.sort(key=lambda one: (one.window.question, one.window.offset))
    return encoded


def _halves(window: Window, segments: np.ndarray, offsets: np.ndarray, max_length: int) -> list[Window]:
    """What fits of a window, and the rest."""
    text_starts = offsets[segments == 1, 0]
    room = max_length - (len(segments) - len(text_starts))
    cut = int(text_starts[room]) if room > 0 else 0
    if cut == 0:
        logger.warning(
            f"The prompt {window.prompt[:40]!r} leaves no room for the text in {max_length} tokens: its text is not "
            "read."
        )
        return []
    rest = Window(window.question, window.prompt, window.text[cut:], window.offset + cut)
    return [Window(window.question, window.prompt, window.text[:cut], window.offset), rest]


def pair_spans(start_prob: np.ndarray, end_prob: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Pairs likely starts with likely ends.

    Each start takes the nearest end at or behind it; of the starts that took one end, the last keeps it.

    Args:
        start_prob: (T,) float64.
        end_prob: (T,) float64.
        threshold: Probabilities above it count.

    Returns:
        (start, end) indices of tokens, both included, in order.
    """
    starts, ends = np.flatnonzero(start_prob > threshold), np.flatnonzero(end_prob > threshold)
    nearest = np.searchsorted(ends, starts)
    last_of_its_end = np.diff(nearest, append=len(ends)) != 0
    return [(int(starts[i]), int(ends[nearest[i]])) for i in np.flatnonzero(last_of_its_end & (nearest < len(ends)))]


def window_spans(encoded: EncodedWindow, start_prob: np.ndarray, end_prob: np.ndarray, threshold: float) -> list[Span]:
    """Reads the answers off the probabilities of one window.

    Args:
        encoded: The window.
        start_prob: (T,) float64.
        end_prob: (T,) float64.
        threshold: Probabilities above it count.

    Returns:
        The spans that begin and end in the text, offsets into the whole text, and those that begin and end in the
        prompt. What begins or ends at a special token is no answer.
    """
    spans = []
    for first, last in pair_spans(start_prob, end_prob, threshold):
        segment = encoded.segments[first]
        if segment < 0 or segment != encoded.segments[last]:
            continue
        offset = encoded.window.offset if segment == 1 else 0
        start, end = int(encoded.offsets[first, 0]) + offset, int(encoded.offsets[last, 1]) + offset
        spans.append(Span(start, end, float(start_prob[first] * end_prob[last]), bool(segment == 0)))
    return spans


def elect_option(prompt: str, windows: list[list[Span]]) -> dict[str, Any] | None:
    """Puts the windows of one text to the vote.

    Args:
        prompt: Prompt that holds the options.
        windows: The spans of each window.

    Returns:
        The option most windows chose (then the likelier one), with its mean probability over those windows, or `None`
        where no window chose one. A window chooses its likeliest option.
    """
    votes: dict[str, list[float]] = {}
    for spans in windows:
        options = [span for span in spans if span.in_prompt]
        if options:
            choice = max(options, key=lambda span: span.probability)
            votes.setdefault(prompt[choice.start : choice.end], []).append(choice.probability)
    if not votes:
        return None
    option = max(votes, key=lambda text: (len(votes[text]), sum(votes[text])))
    return {"text": option, "probability": sum(votes[option]) / len(votes[option])}


__all__ = [
    "SPECIAL_TOKENS",
    "EncodedWindow",
    "Span",
    "Window",
    "cut_windows",
    "elect_option",
    "encode_windows",
    "pair_spans",
    "window_spans",
]
