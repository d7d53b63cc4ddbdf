"""From rows of lists to padded tensors, and from rows of several tasks to one batch for one forward.

A batch of several tasks is {"batches": {task: inputs of the task}}, which are the arguments of
`Ernie3ForPreTraining.forward`. One forward with every task in it, instead of a task per step, is what DDP and FSDP
need: all parameters take part in every step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_glm_ernie.configuration_ernie3 import TASK_BRANCHES

from .builders import IGNORED

# Columns with a value per token, and what fills them up; None = the pad id. Other columns have a value per row.
TOKEN_FILLS: dict[str, int | None] = {"input_ids": None, "attention_mask": 0, "labels": IGNORED, "document_ids": 0}


def collate_rows(
    rows: Sequence[Mapping[str, Any]], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> dict[str, torch.Tensor]:
    """Pads the rows of one task on the right.

    Args:
        rows: Rows with the same columns; those of `TOKEN_FILLS` (`input_ids`, ..) are lists of one length per row,
            others a number or a truth value per row. A column `task` is left out.
        pad_token_id: Fills up `input_ids`.
        pad_to_multiple_of: The width becomes a multiple of this.

    Returns:
        Tensors (B, T) int64 and (B,) int64 or bool, with an `attention_mask` (B, T) int64, 1 = token: the rows' own,
        else all their tokens.

    Raises:
        TypeError: a number per token that is not whole.
        ValueError: no rows, rows with different columns, a row without tokens, or one whose labels are not as many.
    """
    if not rows:
        raise ValueError("There are no rows to collate.")
    columns = [name for name in rows[0] if name != "task"]
    for place, row in enumerate(rows):
        if sorted(name for name in row if name != "task") != sorted(columns):
            raise ValueError(f"Row {place} has the columns {sorted(row)}, row 0 has {sorted(rows[0])}.")
        count = len(row["input_ids"])
        short = [name for name in columns if name in TOKEN_FILLS and len(row[name]) != count]
        if count == 0 or short:
            raise ValueError(
                f"Row {place} has {count} input_ids" + (f" and {short} of another length." if short else ".")
            )
    multiple = pad_to_multiple_of or 1
    width = -(-max(len(row["input_ids"]) for row in rows) // multiple) * multiple
    batch: dict[str, torch.Tensor] = {}
    for name in columns:
        if name in TOKEN_FILLS:
            fill = TOKEN_FILLS[name]
            filled = np.full((len(rows), width), pad_token_id if fill is None else fill, np.int64)
            for place, row in enumerate(rows):  # NumPy reads a list some ten times as fast as PyTorch
                np.copyto(filled[place, : len(row[name])], row[name], casting="same_kind")
            batch[name] = torch.from_numpy(filled)
        else:
            batch[name] = torch.tensor([row[name] for row in rows])
    if "attention_mask" not in batch:
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(width)[None, :] < lengths[:, None]).long()
    return batch


class Ernie3PretrainingCollator:
    """Makes one batch of rows of any tasks: the `data_collator` for datasets whose rows the builders made.

    Mixed datasets (`datasets.interleave_datasets` with probabilities, or `concatenate_datasets`) work: columns that a
    row's task does not have hold `None` there and are left out. Pass `remove_unused_columns=False` to the
    `TrainingArguments` of a plain `Trainer`: it would drop the column `task`.

    Args:
        tokenizer: For its pad id.
        pad_to_multiple_of: Widths become multiples of this.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        self.pad_token_id = tokenizer.pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
        """Groups the rows by their `task` and pads each group.

        Returns:
            {"batches": {task: {"branch", "input_ids", "attention_mask", ...}}}.

        Raises:
            ValueError: a row without a known `task`, or rows of a task that do not fit together.
        """
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for place, row in enumerate(rows):
            if row.get("task") not in TASK_BRANCHES:
                raise ValueError(
                    f"Row {place} has the task {row.get('task')!r}; the column 'task' must hold one of "
                    f"{', '.join(TASK_BRANCHES)}. (A Trainer with remove_unused_columns=True removes it.)"
                )
            present = {name: value for name, value in row.items() if value is not None}
            groups.setdefault(row["task"], []).append(present)
        return mixed_batch(groups, self.pad_token_id, self.pad_to_multiple_of)


def mixed_batch(
    groups: Mapping[str, Sequence[Mapping[str, Any]]], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """The arguments of `Ernie3ForPreTraining.forward` for rows of several tasks.

    Args:
        groups: The rows of each task.
        pad_token_id: Fills up `input_ids`.
        pad_to_multiple_of: Widths become multiples of this.

    Returns:
        {"batches": {task: {"branch", "input_ids", "attention_mask", ...}}}, the tasks in the order of their names.
    """
    return {
        "batches": {
            task: {"branch": TASK_BRANCHES[task], **collate_rows(groups[task], pad_token_id, pad_to_multiple_of)}
            for task in sorted(groups)
        }
    }


__all__ = ["Ernie3PretrainingCollator", "collate_rows", "mixed_batch"]
