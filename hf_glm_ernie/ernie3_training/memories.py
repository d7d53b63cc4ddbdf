"""Keeps the memories of document rows between training steps, row by row.

A batch's rows may be others than the last batch's: several workers take turns, a schedule adds rows, a row may run
out of documents. So memories are kept under the row's `stream_ids`, and each batch gets those of its own rows.

What is kept are the model's states of `memory_length` tokens in every layer, per row of every worker: for the 10B
model 48 * 128 * 4096 + 12 * 128 * 768 numbers, 50 MiB in 16 bits.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.memory_ernie3 import Ernie3Memories

from .fillers import NO_STREAM

Kept = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]  # states (M, W) of every layer, mask (M,), tokens_seen ()


class MemoryBank:
    """The memories of every row of every stream, under the row's number."""

    def __init__(self) -> None:
        self._rows: dict[int, Kept] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        """Forgets everything: all rows begin anew."""
        self._rows.clear()

    def take(self, stream_ids: torch.Tensor, memory_reset: torch.Tensor) -> Ernie3Memories | None:
        """The memories of a batch.

        Args:
            stream_ids: (B,) int64, which row each is.
            memory_reset: (B,) bool, which rows begin another document.

        Returns:
            Memories in the order of the batch, nothing visible in rows that begin anew or were never seen; `None`
            where that is all of them.
        """
        fresh = memory_reset.tolist()
        rows = [
            None if is_fresh else self._rows.get(stream)
            for stream, is_fresh in zip(stream_ids.tolist(), fresh, strict=True)
        ]
        known = [row for row in rows if row is not None]
        if not known:
            return None
        width = max(len(mask) for _, mask, _ in known)
        states, mask, seen = known[0]
        blank = ([state.new_zeros(0, state.shape[-1]) for state in states], mask.new_zeros(0), seen.new_zeros(()))
        padded = [blank if row is None else row for row in rows]
        return Ernie3Memories(
            states=tuple(
                torch.stack([F.pad(row[0][layer], (0, 0, width - len(row[1]), 0)) for row in padded])
                for layer in range(len(states))
            ),
            mask=torch.stack([F.pad(row[1], (width - len(row[1]), 0)) for row in padded]),
            tokens_seen=torch.stack([row[2] for row in padded]),
        )

    def put(self, stream_ids: torch.Tensor, memories: Ernie3Memories | None) -> None:
        """Keeps what the model returned for a batch.

        Args:
            stream_ids: (B,) int64, which row each is; `NO_STREAM` for one to forget.
            memories: What the model returned; `None` for a model without memory.

        Raises:
            ValueError: memories without states, mask or tokens seen.
        """
        if memories is None:
            return
        if memories.states is None or memories.mask is None or memories.tokens_seen is None:
            raise ValueError(
                "The memories to keep must have states, mask and tokens_seen, as a training forward gives."
            )
        for place, stream in enumerate(stream_ids.tolist()):
            if stream == NO_STREAM:
                continue
            states = [state[place].detach() for state in memories.states]
            self._rows[stream] = (states, memories.mask[place], memories.tokens_seen[place])

    def save(self, path: Path) -> None:
        """Writes everything into a safetensors file."""
        tensors: dict[str, torch.Tensor] = {}
        for stream, (states, mask, seen) in self._rows.items():
            tensors |= {f"{stream}.states.{layer}": state.contiguous() for layer, state in enumerate(states)}
            tensors |= {f"{stream}.mask": mask.contiguous(), f"{stream}.tokens_seen": seen.contiguous()}
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)

    def load(self, path: Path, device: torch.device) -> None:
        """Reads what [`save`] wrote, in place of what is here.

        Raises:
            FileNotFoundError: there is no such file.
        """
        # on the CPU first: of several processes each has a device "cpu:0", which safetensors does not know
        tensors = {name: tensor.to(device) for name, tensor in load_file(path).items()}
        self._rows = {}
        for name in tensors:
            stream, _, part = name.partition(".")
            if part == "mask":
                layers = sum(other.startswith(f"{stream}.states.") for other in tensors)
                states = [tensors[f"{stream}.states.{layer}"] for layer in range(layers)]
                self._rows[int(stream)] = (states, tensors[name], tensors[f"{stream}.tokens_seen"])


def memories_without_columns(config: Ernie3Config, stream_ids: torch.Tensor) -> Ernie3Memories | None:
    """Memories with nothing in them, for a batch that goes on with no document.

    The loss is that of a call without memories, but every layer normalises a memory as in a call that has one. ZeRO-3
    gathers weights call by call of the modules and waits for all processes each time: were one process's rows without
    memories, it would wait for what never comes.

    Args:
        config: The model's.
        stream_ids: (B,) int64, for the number of rows and the device.

    Returns:
        Memories of no columns; `None` for a model without memory.
    """
    if not config.memory_length:
        return None
    rows = len(stream_ids)
    widths = [config.hidden_size] * config.num_hidden_layers
    widths += [config.branch_hidden_size] * config.branch_num_hidden_layers
    return Ernie3Memories(
        states=tuple(torch.zeros(rows, 0, width, device=stream_ids.device) for width in widths),
        mask=torch.zeros(rows, 0, dtype=torch.bool, device=stream_ids.device),
        tokens_seen=torch.zeros_like(stream_ids),
    )


__all__ = ["MemoryBank", "memories_without_columns"]
