"""Streams that yield whole batches: how ranks and workers share the data, and how a stream goes on where it stopped.

The data are dealt out to `world_size * workers` shards; a worker of a rank reads its own shard only, so no row is
read twice and none is missed. A rank's batches come from its workers in turn, as PyTorch's `DataLoader` takes them:
batch k of a rank is batch k // workers of worker k % workers. Thus every batch knows its number in the whole run,
which a schedule of lengths and sizes needs, and a stream resumes from a number alone.

A stream shards itself, so it must not be sharded once more: give it to `DataLoader(stream, batch_size=None)`, as
[`Ernie3PretrainingTrainer`] does.
"""

import abc
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info


@dataclass(frozen=True)
class Shard:
    """Which part of the data one worker reads: `index` of `count`, and of its rank's `workers` the `worker`th."""

    index: int
    count: int
    worker: int
    workers: int


class ShardedStream(IterableDataset, abc.ABC):
    """A stream of batches for one rank.

    Args:
        seed: Decides every random choice.
        rank: This process, from 0.
        world_size: How many processes share the data.
        num_batches: After how many batches of this rank the stream ends; `None`: it has no end of its own.

    Raises:
        ValueError: a rank outside the world.
    """

    def __init__(self, *, seed: int = 0, rank: int = 0, world_size: int = 1, num_batches: int | None = None) -> None:
        self.seed = seed
        self.num_batches = num_batches
        self.start = 0
        self._taken = 0
        self.set_rank(rank, world_size)

    def set_rank(self, rank: int, world_size: int) -> None:
        """Says which process this is.

        Raises:
            ValueError: a rank outside the world.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must be at least 0 and less than world_size={world_size}.")
        self.rank, self.world_size = rank, world_size

    @abc.abstractmethod
    def batches(self, shard: Shard) -> Iterator[dict[str, Any]]:
        """All batches of one shard from the first one on."""

    def state_dict(self) -> dict[str, int]:
        """How many batches of this rank were taken: kept by the stream itself where it is read without workers, else
        for the reader to count.
        """
        return {"batches": self._taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lets the next iteration begin behind the batches that were taken, with as many workers and ranks as before.

        Args:
            state: {"batches": how many batches this rank took since the very beginning}.

        Raises:
            ValueError: a negative number.
        """
        if state["batches"] < 0:
            raise ValueError(f"batches={state['batches']} must be at least 0.")
        self.start = self._taken = state["batches"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # PyTorch asks worker 0 first, so after a restart worker 0 gets the next batch, whoever's turn it was.
        origin = (self.start + worker) % workers
        shard = Shard(self.rank * workers + origin, self.world_size * workers, origin, workers)
        numbered = zip(itertools.count(origin, workers), self.batches(shard), strict=False)
        for number, batch in numbered:
            if self.num_batches is not None and number >= self.num_batches:
                return
            if number >= self.start:
                self._taken = number + 1
                yield batch


__all__ = ["Shard", "ShardedStream"]
