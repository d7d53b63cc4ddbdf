"""Texts as an [`ErnieForGPLinker`] reads them: alone, and where they are long in windows that overlap.

A window is `[CLS] piece [SEP]`. What is found in several windows is one answer. What touches the inner edge of a
window may be cut by it; where a neighbour has the same place with a token more on both sides, only the neighbour is
asked.

Letters in shape comments: T tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .gplinker_schema import Place

SPECIAL_TOKENS = 2  # [CLS] text [SEP]


@dataclass(frozen=True)
class TextWindow:
    """A piece of a text as the model reads it.

    Attributes:
        text: Index of the text.
        input_ids: T ids.
        offsets: (T, 2) first and one past the last character of each token, in the text; of no meaning where
            `is_text` is false.
        is_text: (T,) whether it is a token of the text.
        sees: From the first character that the window reads with a token before it to the last with one behind it:
            what touches no inner edge lies between.
    """

    text: int
    input_ids: list[int]
    offsets: np.ndarray
    is_text: np.ndarray
    sees: Place

    def place(self, first: int, last: int) -> Place:
        """Characters of the tokens `first` to `last`."""
        return int(self.offsets[first, 0]), int(self.offsets[last, 1])

    def holds_whole(self, place: Place) -> bool:
        """Whether a place touches no inner edge of the window."""
        return self.sees[0] <= place[0] and place[1] <= self.sees[1]


def text_windows(tokenizer: Any, texts: Sequence[str], max_length: int, overlap: int) -> list[TextWindow]:
    """Encodes texts.

    Args:
        tokenizer: One of the `tokenizers` library.
        texts: Any texts.
        max_length: Tokens of a window, at least `overlap + 3`.
        overlap: Tokens that two neighbouring windows share.

    Returns:
        The windows, those of one text in order; at least one for each.

    Raises:
        ValueError: a tokenizer without offsets, or windows that are all overlap.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets. Load the tokenizer with AutoTokenizer (one of "
            "the `tokenizers` library, as ErnieTokenizer)."
        )
    width = max_length - SPECIAL_TOKENS
    if not 0 <= overlap < width:
        raise ValueError(
            f"overlap={overlap} must be at least 0 and below the {width} tokens of a text that a window has "
            f"(max_length={max_length} with [CLS] and [SEP])."
        )
    if not texts:
        return []
    encodings = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False).encodings
    return [
        window
        for number, encoding in enumerate(encodings)
        for window in _windows(number, encoding, width, overlap, (tokenizer.cls_token_id, tokenizer.sep_token_id))
    ]


def _windows(number: int, encoding: Any, width: int, overlap: int, ends: tuple[int, int]) -> Iterable[TextWindow]:
    ids, offsets = encoding.ids, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    begin = 0
    while True:
        stop = min(begin + width, len(ids))
        own = offsets[begin:stop]
        is_text = np.array([False, *[True] * len(own), False])
        first = 0 if begin == 0 else int(own[0, 1])
        last = int(own[-1, 0]) if stop < len(ids) else int(offsets[-1, 1]) if len(ids) else 0
        edge = np.zeros((1, 2), dtype=np.int64)
        around = np.concatenate((edge, own, edge))
        yield TextWindow(number, [ends[0], *ids[begin:stop], ends[1]], around, is_text, (first, last))
        if stop == len(ids):
            return
        begin = stop - overlap


def is_settled_elsewhere(windows: Sequence[TextWindow], index: int, place: Place) -> bool:
    """Whether what a window finds at a place touches its edge, and a neighbour has the place whole.

    Args:
        windows: All of them, those of one text side by side.
        index: Of the window.
        place: In its text.
    """
    if windows[index].holds_whole(place):
        return False
    beside = [windows[i] for i in (index - 1, index + 1) if 0 <= i < len(windows)]
    return any(one.text == windows[index].text and one.holds_whole(place) for one in beside)


__all__ = ["SPECIAL_TOKENS", "TextWindow", "is_settled_elsewhere", "text_windows"]
