"""Rows of closed-domain training as the inputs and labels of an [`ErnieForGPLinker`].

Long texts are read in overlapping windows, as in extraction; a window has what is wholly inside it. (PaddleNLP's
reader cuts the rest of a text off.) What begins or ends with a character that no token holds, such as a blank, counts
from its first token to its last; what no token holds is left out, with a notice.

Source: PaddleNLP, `applications/information_extraction/text/data_distill/utils.py` (`create_dataloader`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from hf_glm_ernie.ernie_tasks.gplinker_schema import LabelMaps, Place
from hf_glm_ernie.ernie_tasks.gplinker_windows import TextWindow, text_windows

from .gplinker_rows import MarkedText

logger = logging.get_logger(__name__)

IGNORED = -100
LABELS = {"entity_labels": 3, "relation_labels": 5}
"""Name -> numbers of each thing that is marked."""
PLACES = ("row", "starts", "ends")


def encode_marked(
    tokenizer: Any, rows: Sequence[MarkedText], numbers: Sequence[int], maps: LabelMaps, max_length: int, overlap: int
) -> dict[str, list[Any]]:
    """Encodes rows.

    Args:
        tokenizer: One of the `tokenizers` library.
        rows: Texts and what is in them.
        numbers: Of the rows in their data.
        maps: Numbers of types and relations.
        max_length: Tokens of a window.
        overlap: Tokens that two windows share, less than half of one.

    Returns:
        Columns of lists, an entry a window: `input_ids`; `entity_labels`, `[type, first, last]` of each entity;
        `relation_labels`, `[relation, first, last, first, last]` of each relation; `row`, the number of the row it
        comes from; `starts` and `ends`, characters of the row's text for each token, -1 for special tokens.
    """
    windows = text_windows(tokenizer, [row.text for row in rows], max_length, min(overlap, max_length // 2))
    columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", *LABELS, *PLACES)}
    held: list[set[Any]] = [set() for _ in rows]
    for window in windows:
        row = rows[window.text]
        tokens = {place: _tokens(window, place) for place in _places(row)}
        columns["input_ids"].append(window.input_ids)
        entities = [
            [maps.entities.index(kind), *own] for kind, place in sorted(row.entities) if (own := tokens[place])
        ]
        relations = [
            [maps.relations.index(name), *subject, *obj]
            for name, first, second in sorted(row.relations)
            if (subject := tokens[first]) and (obj := tokens[second])
        ]
        columns["entity_labels"].append(entities)
        columns["relation_labels"].append(relations)
        columns["row"].append(numbers[window.text])
        columns["starts"].append(np.where(window.is_text, window.offsets[:, 0], -1).tolist())
        columns["ends"].append(np.where(window.is_text, window.offsets[:, 1], -1).tolist())
        held[window.text] |= {place for place, own in tokens.items() if own}
    for row, number, places in zip(rows, numbers, held, strict=True):
        if lost := sorted(_places(row) - places):
            logger.warning(
                f"Row {number} of the data: {[row.text[slice(*place)] for place in lost][:5]} are blank, or longer "
                f"than what windows of {max_length} tokens share, and are left out."
            )
    return columns


def _places(row: MarkedText) -> set[Place]:
    return {place for _, place in row.entities} | {place for _, *places in row.relations for place in places}


def _tokens(window: TextWindow, place: Place) -> tuple[int, int] | None:
    """First and last token of a place that is wholly inside a window, else `None`."""
    starts, ends = window.offsets[:, 0], window.offsets[:, 1]
    inside = window.is_text & (ends > place[0]) & (starts < place[1])
    found = np.flatnonzero(inside)
    if not len(found):
        return None
    first, last = int(found[0]), int(found[-1])
    # What goes on in front of the window or behind it is not wholly inside.
    own = np.flatnonzero(window.is_text)
    cut_before = first == own[0] and window.sees[0] > 0 and place[0] < starts[first]
    cut_behind = last == own[-1] and window.sees[1] < ends[last] and place[1] > ends[last]
    return None if cut_before or cut_behind else (first, last)


class GPLinkerCollator:
    """Pads encoded windows to a batch; for the `Trainer`.

    Args:
        tokenizer: Its `pad_token_id` is used.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns `input_ids` and `attention_mask`, (B, T) int64, and the labels, -100 where a row has fewer."""
        plain = [{"input_ids": row["input_ids"]} for row in rows]
        batch = dict(self.tokenizer.pad(plain, padding_side="right", return_tensors="pt"))
        for name, size in LABELS.items():
            most = max(len(row[name]) for row in rows)
            padded = [row[name] + [[IGNORED] * size] * (most - len(row[name])) for row in rows]
            batch[name] = torch.tensor(padded, dtype=torch.int64).reshape(len(rows), most, size)
        return batch


__all__ = ["IGNORED", "LABELS", "GPLinkerCollator", "encode_marked"]
