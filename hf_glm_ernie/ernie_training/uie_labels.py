"""UIE's rows as the model's inputs and labels.

A row becomes `[CLS] prompt [SEP] content [SEP]` with a 1 at the first and at the last token of every answer, in the
content or, for an option, in the prompt. Nothing is truncated: a piece that has more tokens than characters, and too
many, is cut again.

PaddleNLP's labels, but where those go wrong:

- An answer that begins or ends with a character that no token holds, such as a blank, counts from its first token to
  its last (there the last place of the row is set). One without any token is left out, with a notice.
- Options are found by their place in the prompt, whatever blanks follow it (there these shift them).
- Tokens stand where they really stand, as in [`uie`] (there where a search finds them, a guess for unknown words).

Source: PaddleNLP, `model_zoo/uie/utils.py` (`convert_example`).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers.utils import logging

from .uie_rows import Answer, UIERow, cut_content, cut_row

logger = logging.get_logger(__name__)

POSITIONS = ("start_positions", "end_positions")


def encode_uie_rows(
    tokenizer: Any, rows: Iterable[UIERow], max_length: int, cut: str = "windows"
) -> dict[str, list[Any]]:
    """Encodes rows, cut where they are long.

    Args:
        tokenizer: One of the `tokenizers` library.
        rows: Of [`read_row`].
        max_length: Tokens of a row.
        cut: Where long contents are cut, see [`cut_row`].

    Returns:
        Columns of lists, an entry a piece: `input_ids`, `token_type_ids`, `attention_mask`, `start_positions` and
        `end_positions` (0 or 1 for every token), and `row`, the number of the row it comes from.

    Raises:
        ValueError: a tokenizer without offsets; a prompt that leaves no room for a content.
    """
    pending, encoded = encoded_pieces(tokenizer, rows, max_length, cut)
    columns: dict[str, list[Any]] = {
        "input_ids": [encoding.ids for encoding in encoded],
        "token_type_ids": [encoding.type_ids for encoding in encoded],
        "attention_mask": [encoding.attention_mask for encoding in encoded],
        "row": [row.number for row in pending],
    }
    labels = [answer_labels(row, encoding) for row, encoding in zip(pending, encoded, strict=True)]
    return columns | {name: [pair[i] for pair in labels] for i, name in enumerate(POSITIONS)}


def encoded_pieces(
    tokenizer: Any, rows: Iterable[UIERow], max_length: int, cut: str = "windows"
) -> tuple[list[UIERow], list[Any]]:
    """Cuts rows until every piece fits, see [`encode_uie_rows`].

    Returns:
        The pieces in order, and the encoding of each, a `tokenizers.Encoding`.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets. Load the tokenizer with AutoTokenizer (one of "
            "the `tokenizers` library, as ErnieTokenizer)."
        )
    pending = [piece for row in rows for piece in cut_row(row, max_length, cut)]
    encoded = _encoded(tokenizer, pending)
    # A few characters are more than one token each.
    while long := [i for i, encoding in enumerate(encoded) if len(encoding.ids) > max_length]:
        for i in reversed(long):
            pieces = cut_content(pending[i], _characters_that_fit(encoded[i], max_length, pending[i]), cut)
            pending[i : i + 1] = pieces
            encoded[i : i + 1] = _encoded(tokenizer, pieces)
    return pending, encoded


def answer_labels(row: UIERow, encoding: Any) -> tuple[list[int], list[int]]:
    """Marks the first and the last token of every answer.

    Args:
        row: A row that fits.
        encoding: Of its prompt and content, a `tokenizers.Encoding`.

    Returns:
        Two lists with a 0 or 1 for every token.
    """
    starts, ends = [0] * len(encoding.ids), [0] * len(encoding.ids)
    for answer in row.answers:
        tokens = answer_tokens(row, answer, encoding)
        if tokens is None:
            logger.warning(
                f"Row {row.number} of the data, prompt {row.prompt[:40]!r}: no token holds the answer at "
                f"{answer.start}..{answer.end}, which is left out."
            )
            continue
        starts[tokens[0]] = ends[tokens[1]] = 1
    return starts, ends


def answer_tokens(row: UIERow, answer: Answer, encoding: Any) -> tuple[int, int] | None:
    """First and last token of an answer, or `None` where no token holds a character of it."""
    segment, (start, end) = (1, answer[:2]) if answer.start >= 0 else (0, row.in_prompt(answer))
    tokens = [encoding.char_to_token(place, segment) for place in range(start, end)]
    held = [token for token in tokens if token is not None]
    return (held[0], held[-1]) if held else None


def _encoded(tokenizer: Any, rows: Sequence[UIERow]) -> list[Any]:
    if not rows:
        return []
    texts = [row.prompt for row in rows], [row.content for row in rows]
    return tokenizer(*texts, return_token_type_ids=True, return_attention_mask=True, verbose=False).encodings


def _characters_that_fit(encoding: Any, max_length: int, row: UIERow) -> int:
    """How many characters of the content have room, at least 1."""
    starts = [place[0] for place, part in zip(encoding.offsets, encoding.sequence_ids, strict=True) if part == 1]
    room = max_length - (len(encoding.ids) - len(starts))
    leading = len(row.content) - len(row.content.lstrip())
    fits = starts[room] - leading if 0 < room < len(starts) else 0
    if fits < 1:
        raise ValueError(
            f"Row {row.number} of the data has a prompt of so many tokens, {row.prompt[:40]!r}..., that no room for "
            f"the content is left in max_length={max_length}. Raise it, or shorten the prompt."
        )
    return fits


class UIECollator:
    """Pads encoded rows to a batch; for the `Trainer`.

    Args:
        tokenizer: Its way of padding.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns the model's inputs, (B, T) int64 each, labels padded with 0 as PaddleNLP's loss has them."""
        plain = [{name: value for name, value in row.items() if name not in (*POSITIONS, "row")} for row in rows]
        batch = dict(self.tokenizer.pad(plain, padding_side="right", return_tensors="pt"))
        length = batch["input_ids"].shape[1]
        for name in POSITIONS:
            batch[name] = torch.tensor([row[name] + [0] * (length - len(row[name])) for row in rows])
        return batch


__all__ = ["POSITIONS", "UIECollator", "answer_labels", "answer_tokens", "encode_uie_rows", "encoded_pieces"]
