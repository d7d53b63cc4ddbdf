"""The means of losses that a Trainer logs: summed where they arise, averaged over all processes when asked for."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch


class MeanLosses:
    """Losses by name, since the means were last asked for.

    Args:
        names: Every name there may be, the same on all processes: they exchange one table of all of them, whichever
            losses each has seen.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.seen: dict[str, list[torch.Tensor]] = {}

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Adds a pass's losses, scalars, without waiting for the device."""
        for name, loss in losses.items():
            self.seen.setdefault(name, []).append(loss.detach().float())

    def clear(self) -> None:
        """Forgets everything."""
        self.seen = {}

    def means(self, accelerator: Any) -> dict[str, float]:
        """The mean of every loss that any process has seen, each pass counting once; then forgets them."""
        table = torch.zeros(len(self.names), 2)  # (names, sum and count)
        for place, name in enumerate(self.names):
            if name in self.seen:
                table[place] = torch.tensor([torch.stack(self.seen[name]).sum().item(), len(self.seen[name])])
        self.clear()
        table = accelerator.reduce(table.to(accelerator.device), "sum").cpu()
        return {name: (total / count).item() for name, (total, count) in zip(self.names, table, strict=True) if count}


__all__ = ["MeanLosses"]
