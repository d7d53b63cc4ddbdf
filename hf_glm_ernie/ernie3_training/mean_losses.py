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
        self.seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def add(self, losses: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Adds a pass's losses, scalars, without waiting for the device.

        Args:
            losses: Name -> loss.
            weights: Name -> what the loss counts for in the mean, a scalar on any device; 1 where it is not named.
        """
        for name, loss in losses.items():
            loss = loss.detach().float()
            weight = weights[name].to(loss) if weights and name in weights else torch.ones_like(loss)
            self.seen[name].append(torch.stack((loss * weight, weight)))

    def clear(self) -> None:
        """Forgets everything."""
        self.seen = {name: [] for name in self.seen}

    def means(self, accelerator: Any) -> dict[str, float]:
        """The mean of every loss that any process has seen with a weight above 0; then forgets them."""
        table = torch.zeros(len(self.seen), 2)  # (names, sum and weight)
        for place, passes in enumerate(self.seen.values()):
            if passes:
                table[place] = torch.stack(passes).sum(0).cpu()
        self.clear()
        table = accelerator.reduce(table.to(accelerator.device), "sum").cpu()
        return {name: (total / count).item() for name, (total, count) in zip(self.seen, table, strict=True) if count}


__all__ = ["MeanLosses"]
