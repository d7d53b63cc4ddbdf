"""UTC's rows: the choices and the text as the model reads them, each row with choices of its own.

`[CLS] [O-MASK] choice [O-MASK] choice [SEP] text [SEP] second text [SEP]`; the third `[SEP]` stands also where there
is no second text. Every choice has positions of its own from 0 and does not see the other choices; the text begins at
0 again. Token types: choices 1, text 0, second text with the `[SEP]` before it 1, `[CLS]` and the last `[SEP]` 0.

Source: PaddleNLP 2.8.1, `paddlenlp/prompt/template.py` (`UTCTemplate`), `paddlenlp/prompt/prompt_tokenizer.py`
(`MLMPromptTokenizer`) and `paddlenlp/prompt/prompt_utils.py` (`PromptDataCollatorWithPadding`). Letters in shape
comments: B batch, T tokens, O choices.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

OPTION_TOKEN = "[O-MASK]"
MASKED = -1e4  # added to the attention scores between choices, and of padding


class TemplateRow(NamedTuple):
    """A row of T tokens and O choices.

    Attributes:
        input_ids: T ids.
        token_type_ids: T types.
        position_ids: T positions.
        omask_positions: O indices of the choices' `[O-MASK]`.
        cls_positions: The index of the token that stands for the text: the first `[SEP]`.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    position_ids: list[int]
    omask_positions: list[int]
    cls_positions: int


def template_row(
    tokenizer: Any, options: Sequence[Sequence[int]], first: Sequence[int], second: Sequence[int], max_length: int
) -> TemplateRow:
    """Puts choices and texts together; texts are cut at their end where they are long, of two the longer one first.

    Args:
        tokenizer: Its `cls_token_id` and `sep_token_id` are used.
        options: Ids of every choice, its `[O-MASK]` first.
        first: Ids of the text.
        second: Ids of the second text; none where there is none.
        max_length: Tokens of the row.

    Raises:
        ValueError: choices that leave no room for the text.
    """
    before = 1 + sum(map(len, options))
    room = max_length - before - 3
    if room < 1:
        raise ValueError(
            f"The {len(options)} choices take {before - 1} tokens and leave no room for the text in {max_length} "
            "(max_length, at most the model's positions). Use fewer or shorter choices, or raise max_length."
        )
    kept = _kept_lengths(len(first), len(second), room)
    first, second = first[: kept[0]], second[: kept[1]]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids, types, positions, places = [cls], [0], [0], []
    for option in options:
        places.append(len(ids))
        ids += option
        types += [1] * len(option)
        positions += range(len(option))
    ids += [sep, *first, sep, *second, sep]
    types += [0] * (1 + len(first)) + [1] * (1 + len(second)) + [0]
    positions += [*range(len(first) + len(second) + 2), 0]
    return TemplateRow(ids, types, positions, places, before)


def template_batch(rows: Sequence[TemplateRow], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pads rows to a batch.

    Args:
        rows: At least one.
        pad_token_id: What ids are padded with.

    Returns:
        `input_ids`, `token_type_ids`, `position_ids` (B, T); `attention_mask` (B, 1, T, T) fp32, 0 or -1e4;
        `omask_positions` (B, O), 0 where a row has fewer choices; `cls_positions` (B,).
    """
    width, options = max(len(row.input_ids) for row in rows), max(len(row.omask_positions) for row in rows)

    def padded(name: str, length: int, value: int) -> torch.Tensor:
        lists = [getattr(row, name) for row in rows]
        return torch.tensor([[*one, *[value] * (length - len(one))] for one in lists])

    tokens = torch.arange(width)
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    texts = torch.tensor([row.cls_positions for row in rows])
    omask = padded("omask_positions", options, 0)  # (B, O)
    begun = ((omask[:, None, :] <= tokens[None, :, None]) & (omask[:, None, :] > 0)).sum(-1)  # (B, T)
    owner = torch.where(tokens < texts[:, None], begun, 0)  # (B, T) number of the choice from 1 on, 0 = no choice
    apart = (owner[:, :, None] != owner[:, None, :]) & (owner[:, :, None] > 0) & (owner[:, None, :] > 0)
    padding = tokens >= lengths[:, None]  # (B, T)
    hidden = apart | padding[:, :, None] | padding[:, None, :]
    return {
        "input_ids": padded("input_ids", width, pad_token_id),
        "token_type_ids": padded("token_type_ids", width, 0),
        "position_ids": padded("position_ids", width, 0),
        "attention_mask": torch.where(hidden, MASKED, 0.0)[:, None],
        "omask_positions": omask,
        "cls_positions": texts,
    }


def _kept_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept: the shorter one whole, as long as it takes no more than half the room."""
    if first + second <= room:
        return first, second
    half = room // 2
    if second <= half:
        return room - second, second
    return (first, room - first) if first <= half else (half, half)


__all__ = ["MASKED", "OPTION_TOKEN", "TemplateRow", "template_batch", "template_row"]
