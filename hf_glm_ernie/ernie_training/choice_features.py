"""Multiple choice as a model's inputs: the text with its question and each choice, or the idiom with its blank.

- A question: `[CLS] text [SEP] question [SEP] choice [SEP]`, the text of type 0. What is too long is cut from its end,
  the longest of the three first; a row's choices share one cut of the text, that of the longest choice.
- A blank, where the question is one and stands in the text: `[CLS] idiom [SEP] left [unused1] right [SEP]`, all of
  type 0; the tokens next to the blank are kept, as many on both sides where there are; every other blank is four
  `[MASK]`. Quotation marks, dashes and dots are written as in ASCII. Where the vocabulary has no `[unused1]`, the
  pieces that the tokenizer makes of it stand for the blank, as in PaddleNLP.

A row with fewer choices than others of its batch is filled with empty ones, which win nothing and count in no loss:
labels are the right choice and how many there are. (PaddleNLP fills with a choice 无效答案, which may win.)

Differences from PaddleNLP: a blank near the end of a short text keeps what stands left of it (there the slice runs
below 0, and that side is lost); texts are not put into lower case, which is the tokenizer's to do.

Source: PaddleNLP, `examples/benchmark/clue/mrc/run_c3.py`, `run_chid.py`. Letters in shape comments: N rows, B batch,
C choices, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .choice_rows import BLANK

SPECIAL_TOKENS = 4  # [CLS] text [SEP] question [SEP] choice [SEP]
MASKS = 4  # an idiom has four characters
BLANK_MARK = "[unused1]"
ASCII = str.maketrans({"“": '"', "”": '"', "―": "-", "—": "-", "‘": "'", "’": "'", "…": "..."})


def encode_choices(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], max_length: int
) -> dict[str, list[Any]]:
    """Encodes rows.

    Args:
        tokenizer: Its encoding of plain text, and its special tokens.
        rows: `context`, `question`, `choices` and `label`.
        numbers: Of the rows in their data, for messages.
        max_length: Tokens of a choice with its text.

    Returns:
        Columns of lists, an entry a row: `input_ids` and `token_type_ids`, a list for each choice, and `labels`, the
        number of the right choice and how many there are.

    Raises:
        ValueError: choices that leave no room for the text.
    """
    columns: dict[str, list[Any]] = {"input_ids": [], "token_type_ids": [], "labels": []}
    for row, number in zip(rows, numbers, strict=True):
        blank = row.get("question") or ""
        in_text = bool(BLANK.fullmatch(blank)) and blank in row["context"]
        encode = _encode_blank if in_text else _encode_question
        try:
            pairs = encode(tokenizer, row, max_length)
        except ValueError as error:
            raise ValueError(f"Row {number} of the data: {error}") from None
        columns["input_ids"].append([ids for ids, _ in pairs])
        columns["token_type_ids"].append([types for _, types in pairs])
        columns["labels"].append([row["label"], len(pairs)])
    return columns


def _encode_question(tokenizer: Any, row: Mapping[str, Any], max_length: int) -> list[tuple[list[int], list[int]]]:
    text, question, *choices = _plain_ids(tokenizer, [row["context"], row.get("question") or "", *row["choices"]])
    room = max_length - SPECIAL_TOKENS
    cuts = [cut_longest([len(text), len(question), len(choice)], room) for choice in choices]
    text, question = text[: min(cut[0] for cut in cuts)], question[: min(cut[1] for cut in cuts)]
    if not text:
        raise ValueError(f"its question and choices leave no room for the text in max_length={max_length} tokens.")
    sep = [tokenizer.sep_token_id]
    pairs = []
    for choice, cut in zip(choices, cuts, strict=True):
        first = [tokenizer.cls_token_id, *text, *sep]
        second = [*question, *sep, *choice[: cut[2]], *sep]
        pairs.append(([*first, *second], [0] * len(first) + [1] * len(second)))
    return pairs


def _encode_blank(tokenizer: Any, row: Mapping[str, Any], max_length: int) -> list[tuple[list[int], list[int]]]:
    blank = row["question"]
    mark, *choices = _plain_ids(tokenizer, [BLANK_MARK, *row["choices"]])
    known = tokenizer.convert_tokens_to_ids(BLANK_MARK)
    mark = mark if known in (None, tokenizer.unk_token_id) else [known]
    before, after = _around(tokenizer, row["context"], blank)
    room = max_length - 3 - len(mark) - max(map(len, choices))  # [CLS] idiom [SEP] left mark right [SEP]
    if room < 1:
        raise ValueError(f"its choices leave no room for the text in max_length={max_length} tokens.")
    left, right = take_around(len(before), len(after), room)
    cut = [*_masked(before[len(before) - left :], tokenizer)][-left:] if left else []
    behind = [*_masked(after[:right], tokenizer)][:right]
    sep = [tokenizer.sep_token_id]
    rows = [[tokenizer.cls_token_id, *choice, *sep, *cut, *mark, *behind, *sep] for choice in choices]
    return [(ids, [0] * len(ids)) for ids in rows]


def _around(tokenizer: Any, context: str, blank: str) -> tuple[list[int | None], list[int | None]]:
    """The tokens on both sides of a blank; `None` stands for another blank."""
    parts = []
    for side in context.replace("——", "--").translate(ASCII).split(blank, 1):
        pieces = _plain_ids(tokenizer, BLANK.split(side))
        ids: list[int | None] = [*pieces[0]]
        for piece in pieces[1:]:
            ids += [None, *piece]
        parts.append(ids)
    return parts[0], parts[1]


def _masked(ids: Sequence[int | None], tokenizer: Any) -> list[int]:
    return [one for token in ids for one in ([tokenizer.mask_token_id] * MASKS if token is None else [token])]


def _plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def cut_longest(lengths: Sequence[int], room: int) -> list[int]:
    """Takes from the longest, of several the first, until all together have room."""
    left = list(lengths)
    while (over := sum(left) - room) > 0:
        longest = max(left)
        second = max((length for length in left if length < longest), default=0)
        place = left.index(longest)
        alone = left.count(longest) == 1
        left[place] -= min(over, longest - second) if alone else 1
        if longest == 0:
            return left
    return left


def take_around(before: int, after: int, room: int) -> tuple[int, int]:
    """How many of the tokens on both sides of a place are kept: half on each, more where the other has fewer."""
    left = min(before, max(room // 2, room - after))
    return left, min(after, room - left)


def assign_choices(logits: np.ndarray, counts: Sequence[int], groups: Sequence[Any] | None = None) -> np.ndarray:
    """The choice of every row.

    Args:
        logits: (N, C).
        counts: Choices of every row; logits behind them do not count.
        groups: Of every row; rows of one group take no choice twice, the likeliest pair of a row and a choice first
            (as PaddleNLP assigns idioms; there only rows that share a batch are of one group). `None`: each row for
            itself.

    Returns:
        (N,) numbers of choices.
    """
    scores = np.where(np.arange(logits.shape[1]) < np.asarray(counts)[:, None], logits, -np.inf)
    chosen = scores.argmax(-1)
    of_group: dict[Any, list[int]] = {}
    for row, group in enumerate(groups or []):
        if group is not None:
            of_group.setdefault(group, []).append(row)
    for rows in of_group.values():
        pairs = sorted(
            ((-scores[row, c], row, c) for row in rows for c in range(int(counts[row]))), key=lambda p: p[0]
        )
        taken: dict[int, int] = {}
        for _, row, choice in sorted(pairs):
            if row not in taken and choice not in taken.values():
                taken[row] = choice
        for row, choice in taken.items():  # more rows than choices: the rest keep their likeliest
            chosen[row] = choice
    return chosen


def choice_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross entropy over the choices that a row has; the `compute_loss_func` of a `Trainer`.

    Args:
        outputs: `logits` (B, C).
        labels: (B, 2) the right choice, and how many there are.
        num_items_in_batch: Labels of the whole step, two a row, or `None`.
    """
    logits = (outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]).float()
    absent = torch.arange(logits.shape[-1], device=logits.device) >= labels[:, 1:]  # (B, C)
    losses = torch.nn.functional.cross_entropy(
        logits.masked_fill(absent, torch.finfo(logits.dtype).min), labels[:, 0], reduction="sum"
    )
    rows = len(labels) if num_items_in_batch is None else num_items_in_batch / 2
    return losses / rows


class ChoiceCollator:
    """Pads encoded rows to a batch; for the `Trainer`.

    Args:
        tokenizer: Its special tokens are used.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns the model's inputs, (B, C, T) int64 each, and `labels` (B, 2). A missing choice is `[CLS] [SEP]`."""
        empty = [self.tokenizer.cls_token_id, self.tokenizer.sep_token_id]
        most = max(len(row["input_ids"]) for row in rows)
        longest = max(len(ids) for row in rows for ids in row["input_ids"])
        shape = (len(rows), most, longest)
        ids, types, mask = (torch.full(shape, fill) for fill in (self.tokenizer.pad_token_id, 0, 0))
        for i, row in enumerate(rows):
            missing = most - len(row["input_ids"])
            choices = [*row["input_ids"], *[empty] * missing]
            kinds = [*row["token_type_ids"], *[[0, 0]] * missing]
            for c, (of_choice, kind) in enumerate(zip(choices, kinds, strict=True)):
                ids[i, c, : len(of_choice)] = torch.tensor(of_choice)
                types[i, c, : len(kind)] = torch.tensor(kind)
                mask[i, c, : len(of_choice)] = 1
        batch = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        return batch | ({"labels": torch.tensor([row["labels"] for row in rows])} if "labels" in rows[0] else {})


__all__ = ["ChoiceCollator", "assign_choices", "choice_loss", "cut_longest", "encode_choices", "take_around"]
