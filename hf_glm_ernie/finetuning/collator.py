"""Rows of `finetuning/objectives.py` to batches for GLM-130B's `forward`, and the loss with smoothed labels.

The model derives types, positions and mask from ids, which is right for one blank in a row. Rows with several blanks
need their own positions; packed rows also need a mask that keeps them apart: (B, 1, L, L), bool, which sdpa, eager and
flex attention all take. The collator looks at what it is given and passes what is needed.

Letters in shape comments: B batch, L tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .objectives import COLUMNS, IGNORED


def packed_segments(token_type_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Numbers the rows within packed rows: each begins where context follows an answer.

    Args:
        token_type_ids: (B, L), 0 = context, 1 = `<sop>` and after.
        attention_mask: (B, L), 0 = padding.

    Returns:
        (B, L) int64: 1, 2, ...; 0 at padding.
    """
    context = token_type_ids == 0
    begins = context.clone()
    begins[:, 1:] &= ~context[:, :-1]
    begins[:, 0] = True
    return begins.cumsum(-1) * attention_mask.long()


def packed_attention_mask(token_type_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mask of packed rows: block-diagonal; in each block the context in both directions, the rest causal.

    Args:
        token_type_ids: (B, L), 0 = context, 1 = `<sop>` and after.
        attention_mask: (B, L), 0 = padding.

    Returns:
        (B, 1, L, L) bool, True = may attend. Padding attends to itself, for a softmax over nothing is no number.
    """
    segments = packed_segments(token_type_ids, attention_mask)
    length = segments.shape[-1]
    positions = torch.arange(length, device=segments.device)
    causal = positions[:, None] >= positions  # (L, L)
    context = token_type_ids == 0
    both = context[:, :, None] & context[:, None, :]
    visible = (segments[:, :, None] == segments[:, None, :]) & (causal | both)
    real = attention_mask.bool()
    visible &= real[:, :, None] & real[:, None, :]
    return (visible | (positions[:, None] == positions))[:, None]


@dataclass(frozen=True)
class Glm130bCollator:
    """Pads rows on the right and adds the mask they need; give it to `Trainer` as `data_collator`.

    Args:
        pad_token_id: Id of `<pad>` (any id serves: padding is masked).
        pad_to_multiple_of: Rounds the length up, for kernels that like it.
        layout: Whether a batch carries `position_ids` and `token_type_ids`. `False` for prompt and prefix tuning:
            PEFT drops them, so only rows that the model lays out by itself the same way are accepted then.

    A batch holds `input_ids`, `labels`, `attention_mask` - (B, L), or (B, 1, L, L) where rows are packed - and the
    layout, all but the mask (B, L) int64.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    layout: bool = True

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            rows: From the classes of `finetuning/objectives.py`. Further columns are left out.

        Returns:
            Tensors for the model.

        Raises:
            ValueError: a column is missing or of another length than the ids, a label lies outside the blanks, or
                (`layout=False`) a row needs its own layout.
        """
        for number, row in enumerate(rows):
            _check_row(number, row)
        length = max(len(row["input_ids"]) for row in rows)
        if self.pad_to_multiple_of:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        fill = {"input_ids": self.pad_token_id, "token_type_ids": 1, "position_ids": 0, "labels": IGNORED}
        batch = {
            name: torch.tensor([[*row[name], *[fill[name]] * (length - len(row[name]))] for row in rows])
            for name in COLUMNS
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = (torch.arange(length) < lengths[:, None]).long()
        packed = bool((packed_segments(batch["token_type_ids"], mask) > 1).any())
        if not self.layout:
            _check_derived(batch, packed)
            return {"input_ids": batch["input_ids"], "attention_mask": mask, "labels": batch["labels"]}
        return batch | {"attention_mask": packed_attention_mask(batch["token_type_ids"], mask) if packed else mask}


def _check_row(number: int, row: Mapping[str, Any]) -> None:
    """Raises where a row is not what the objective makes."""
    if missing := [name for name in COLUMNS if name not in row]:
        raise ValueError(
            f"Row {number} of the batch has no {', '.join(missing)}; it has {sorted(row)}. Make rows with the classes "
            "of hf_glm_ernie.finetuning.objectives, and pass remove_unused_columns=False to TrainingArguments where "
            "it is not theirs."
        )
    lengths = {name: len(row[name]) for name in COLUMNS}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of row {number} of the batch differ in length: {lengths}.")
    for index, (label, kind) in enumerate(zip(row["labels"], row["token_type_ids"], strict=True)):
        if label != IGNORED and (kind == 0 or index == 0):
            raise ValueError(
                f"labels[{index}] = {label} of row {number} of the batch lies outside the blanks: context carries "
                f"{IGNORED}, only what follows <sop> is scored."
            )


def _check_derived(batch: dict[str, torch.Tensor], packed: bool) -> None:
    """Raises where the model, seeing ids alone, would lay a row out otherwise."""
    # Behind a blank that another one follows, the label is <eop> and the id that one's <sop>.
    several = bool(((batch["labels"] != IGNORED) & (batch["labels"] != batch["input_ids"])).any())
    if packed or several:
        what = "is packed" if packed else "holds several blanks"
        raise ValueError(
            f"A row of the batch {what}, which needs positions of its own, and PEFT drops them in prompt and prefix "
            "tuning. Train on unpacked rows of one blank (InstructionPairs, or BlankInfilling with mask_share=0)."
        )


def shifted_label_smoothing(epsilon: float) -> Callable[..., torch.Tensor]:
    """The loss with smoothed labels, for `Trainer(compute_loss_func=...)`.

    `TrainingArguments(label_smoothing_factor=...)` alone is wrong for a model that the host does not list: the
    `Trainer` compares each prediction with the token itself instead of the next one, without a word.

    Args:
        epsilon: Share of the loss that goes to all tokens alike, in 0..1.

    Returns:
        A function of the model's outputs, the labels and the number of scored tokens in the whole batch.

    Raises:
        ValueError: epsilon outside 0..1.
    """
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon={epsilon} must be at least 0 and below 1.")

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"][:, -labels.shape[1] :]  # prompt tuning puts tokens in front
        targets = labels[:, 1:].to(logits.device)
        total = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=IGNORED,
            label_smoothing=epsilon,
            reduction="sum",
        )
        return total / ((targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)

    return loss


__all__ = ["Glm130bCollator", "packed_attention_mask", "packed_segments", "shifted_label_smoothing"]
