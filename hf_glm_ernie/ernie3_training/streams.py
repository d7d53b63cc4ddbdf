"""Streams that yield whole batches: how ranks and workers share the data, and how a stream goes on where it stopped.

The data are dealt out to `world_size * workers` shards; a worker of a rank reads its own shard only, so no row is
read twice and none is missed. A rank's batches come from its workers in turn, as PyTorch's `DataLoader` takes them:
batch k of a rank is batch k // workers of worker k % workers. Thus every batch knows its number in the whole run,
which a schedule of lengths and sizes needs.

A shard is read by a [`BatchReader`], whose state says where it is. `torchdata`'s `StatefulDataLoader` collects the
workers' states and hands them back, so a run goes on at any step at once and reads what it would have read:

    loader = StatefulDataLoader(stream, batch_size=None, num_workers=2)
    ...
    state = loader.state_dict()  # later, in another process: loader.load_state_dict(state)

A stream shards itself, so it must not be sharded once more; [`Ernie3PretrainingTrainer`] reads it as it is.
"""

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

STATE = {"shard", "shards", "batch", "reader"}


@dataclass(frozen=True)
class Shard:
    """Which part of the data one worker reads: `index` of `count`, and of its rank's `workers` the `worker`th."""

    index: int
    count: int
    worker: int
    workers: int


class BatchReader(abc.ABC):
    """Reads the batches of one shard in order."""

    @abc.abstractmethod
    def read(self, number: int) -> dict[str, Any] | None:
        """The shard's next batch; `None`: there is none any more.

        Args:
            number: Which batch of the rank it is, from 0.
        """

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Where the reading is: what JSON can hold."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the state says."""


class ShardedStream(IterableDataset, abc.ABC):
    """A stream of batches for one rank.

    Args:
        seed: Decides every random choice.
        rank: This process, from 0.
        world_size: How many processes share the data.
        num_batches: After how many batches of this rank the stream ends; `None`: it has no end of its own.
        shuffle_buffer_size: Rows of a `datasets.IterableDataset` that are shuffled together; every worker holds as
            many of each. Sequences are shuffled as wholes.

    Raises:
        ValueError: a rank outside the world.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_batches: int | None = None,
        shuffle_buffer_size: int = 1000,
    ) -> None:
        self.seed = seed
        self.num_batches = num_batches
        self.shuffle_buffer_size = shuffle_buffer_size
        self._start: Mapping[str, Any] | None = None
        self._reading: tuple[Shard, int, BatchReader] | None = None  # with the number of its next batch
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
    def reader(self, shard: Shard) -> BatchReader:
        """Reads one shard, from its beginning."""

    def state_dict(self) -> dict[str, Any]:
        """Behind the last batch that this process, or this worker, took: what JSON can hold."""
        if self._reading is None:
            return dict(self._start or {})
        shard, number, reader = self._reading
        return {"shard": shard.index, "shards": shard.count, "batch": number, "reader": reader.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration begin where the state says, with as many workers and ranks as before.

        Args:
            state: What [`state_dict`] gave, of the same data and settings; empty: from the beginning.

        Raises:
            ValueError: something else.
        """
        if state and set(state) != STATE:
            raise ValueError(f"The state has {sorted(state)}; state_dict() of a stream gives {sorted(STATE)}.")
        self._start, self._reading = dict(state) or None, None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        shard = Shard(self.rank * workers + worker, self.world_size * workers, worker, workers)
        reader, number = self.reader(shard), worker
        if self._start is not None:
            found = (self._start["shard"], self._start["shards"])
            if found != (shard.index, shard.count):
                raise ValueError(
                    f"The state is of shard {found[0]} of {found[1]}, this is shard {shard.index} of {shard.count}: "
                    "to go on where a run stopped takes as many processes and workers as it had."
                )
            reader.load_state_dict(self._start["reader"])
            number = self._start["batch"]
        while self.num_batches is None or number < self.num_batches:
            batch = reader.read(number)
            if batch is None:
                return
            number += workers
            self._reading = (shard, number, reader)
            yield batch


__all__ = ["BatchReader", "Shard", "ShardedStream"]
