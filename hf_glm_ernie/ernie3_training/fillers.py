"""Rows that stand in where a process has no row of a task, and what is counted to make up for uneven shares.

Wrappers that exchange gradients or weights at every forward (DDP, FSDP) wait for all processes, so every process must
run every task in every step, also one whose share of a small batch holds no row of some task. A *filler* is a row of
`[CLS]` alone whose labels are all ignored: it touches every weight of its task and changes none. A row of data has
more tokens, or goes on with a document; that tells them apart.

A task's loss is the mean over its labels in the whole step, whoever holds them: over all processes and accumulated
batches. The model gives the mean over one batch; the Trainer and the wrappers take the mean over batches and
processes. [`count_labels`] is what [`Ernie3PretrainingTrainer`] turns the one into the other with.
"""

from collections.abc import Mapping
from typing import Any

import torch

from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM

from .builders import IGNORED

NO_STREAM = -1  # of a filler among document rows, which has no memory


def document_filler(cls_token_id: int) -> dict[str, Any]:
    """A filler among the rows of document language modelling."""
    return {
        "input_ids": [cls_token_id],
        "attention_mask": [1],
        "labels": [IGNORED],
        "memory_reset": True,
        "stream_ids": NO_STREAM,
    }


def count_labels(inputs: Mapping[str, Any]) -> torch.Tensor:
    """How many labels the loss of a task's batch is the mean of: int64, scalar.

    Args:
        inputs: One task's inputs. On the branch "nlg" the first column of `labels` is not predicted.
    """
    counts = []
    for name, value in inputs.items():
        if name == "labels" and inputs.get("branch") == "nlg":
            value = value[:, 1:]
        if name.endswith("labels"):
            counts.append((value != IGNORED).sum())
    return torch.stack(counts).sum() if counts else torch.tensor(0)


def count_read(task: str, inputs: Mapping[str, Any]) -> tuple[int, int]:
    """How many rows and tokens of data a task's batch holds, without fillers and padding."""
    mask = inputs["attention_mask"].bool()
    real = inputs["stream_ids"] != NO_STREAM if task == DOCUMENT_LM else mask.sum(-1) > 1
    return int(real.sum()), int(mask[real].sum())


__all__ = ["NO_STREAM", "count_labels", "count_read", "document_filler"]
