"""Rows of UTC's training data as the model's inputs and labels.

A row is `{"text_a", "text_b", "question", "choices": [...], "labels": [...]}`: every row has choices of its own, and
its labels are the numbers of those that hold (none, one or several). `question` belongs to the format and is read by
nothing, here as there. Differences from PaddleNLP's reader: a row with fewer than two choices, or without a text, is
an error rather than left out, and texts of one or two characters are taken.

Source: PaddleNLP, `applications/zero_shot_text_classification/utils.py` (`read_local_dataset`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_glm_ernie.ernie_tasks.utc_template import OPTION_TOKEN, TemplateRow, template_batch, template_row

IGNORED = -100  # label where a row has fewer choices than others of its batch


@dataclass(frozen=True)
class UTCRow:
    """A text and its choices.

    Attributes:
        text_a: The text.
        text_b: The second text, or "".
        choices: At least two.
        labels: Numbers of the choices that hold.
        number: Of the row in its data, for messages.
    """

    text_a: str
    text_b: str
    choices: tuple[str, ...]
    labels: tuple[int, ...]
    number: int = 0


def read_utc_row(row: Mapping[str, Any], number: int) -> UTCRow:
    """Checks a row.

    Args:
        row: `text_a`, `choices` and `labels` (a number or a list of numbers), and `text_b` where there is one.
        number: Of the row in its data, for the message.

    Raises:
        ValueError: no text, fewer than two choices, an empty one or one that stands twice, a label that is no number
            of a choice.
    """
    where = f"Row {number} of the data"
    first, second = row.get("text_a"), row.get("text_b") or ""
    if not isinstance(first, str) or not isinstance(second, str) or not (first.strip() or second.strip()):
        raise ValueError(f"{where} has no text in column 'text_a': found {first!r}, and {second!r} in 'text_b'.")
    choices = row.get("choices")
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        raise ValueError(f"{where} has no list of at least two choices: found {choices!r}.")
    if not all(isinstance(choice, str) and choice for choice in choices) or len(set(choices)) < len(choices):
        raise ValueError(f"{where} has choices that are empty, no text, or the same: {list(choices)!r}.")
    labels = row.get("labels")
    labels = [labels] if isinstance(labels, int) else labels
    if not isinstance(labels, list | tuple):
        raise ValueError(f"{where} has no labels: found {labels!r}; they are numbers of choices, [] for none.")
    for label in labels:
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(choices):
            raise ValueError(
                f"{where} has the label {label!r}, which is no number of its {len(choices)} choices (0 to "
                f"{len(choices) - 1})."
            )
    return UTCRow(first, second, tuple(choices), tuple(labels), number)


def encode_utc_rows(tokenizer: Any, rows: Iterable[UTCRow], max_length: int) -> dict[str, list[Any]]:
    """Encodes rows.

    Args:
        tokenizer: One that has `[O-MASK]`, see [`add_option_token`].
        rows: Of [`read_utc_row`].
        max_length: Tokens of a row; texts are cut, choices are not.

    Returns:
        Columns of lists, an entry a row: those of [`TemplateRow`], and `labels`, 0 or 1 for every choice.

    Raises:
        ValueError: choices that leave no room for the text; a tokenizer without `[O-MASK]`.
    """
    rows = list(rows)
    texts = sorted({text for row in rows for text in (row.text_a, row.text_b, *row.choices)})
    if not texts:
        return {name: [] for name in (*TemplateRow._fields, "labels")}
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    ids = dict(zip(texts, encoded, strict=True))
    omask = option_token_id(tokenizer)
    columns: dict[str, list[Any]] = {name: [] for name in (*TemplateRow._fields, "labels")}
    for row in rows:
        options = [[omask, *ids[choice]] for choice in row.choices]
        try:
            made = template_row(tokenizer, options, ids[row.text_a], ids[row.text_b], max_length)
        except ValueError as error:
            raise ValueError(f"Row {row.number} of the data: {error}") from None
        for name, value in zip(TemplateRow._fields, made, strict=True):
            columns[name].append(value)
        columns["labels"].append([int(i in row.labels) for i in range(len(row.choices))])
    return columns


def option_token_id(tokenizer: Any) -> int:
    """The id of `[O-MASK]`.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    found = tokenizer.convert_tokens_to_ids(OPTION_TOKEN)
    if found in (None, tokenizer.unk_token_id):
        raise ValueError(f"The tokenizer has no token {OPTION_TOKEN}: add_option_token gives it one.")
    return found


def add_option_token(tokenizer: Any, model: Any = None) -> None:
    """Makes `[O-MASK]` a special token of a tokenizer, and gives a model a row for it where it has none.

    The id is the one behind the last (39980 with the vocabulary of ERNIE 3.0, as in the released UTC models).
    PaddleNLP gives it the id of `[UNK]` there, so that every unknown character counts as an option.
    """
    tokenizer.add_tokens([OPTION_TOKEN], special_tokens=True)
    if model is not None and (rows := option_token_id(tokenizer) + 1) > model.config.vocab_size:
        model.resize_token_embeddings(rows, mean_resizing=False)


class UTCCollator:
    """Pads encoded rows to a batch; for the `Trainer`.

    Args:
        tokenizer: Its `pad_token_id` is used.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns what [`template_batch`] gives, and `labels` (B, O), -100 where a row has fewer choices."""
        made = [TemplateRow(*(row[name] for name in TemplateRow._fields)) for row in rows]
        batch = template_batch(made, self.tokenizer.pad_token_id)
        width = batch["omask_positions"].shape[1]
        labels = [[*row["labels"], *[IGNORED] * (width - len(row["labels"]))] for row in rows]
        return batch | {"labels": torch.tensor(labels)}


__all__ = ["UTCCollator", "UTCRow", "add_option_token", "encode_utc_rows", "option_token_id", "read_utc_row"]
