"""Where rows come from: sequences, streams of the `datasets` library, and several of either with weights.

A *source* is one shard's endless reading of some data. It hands out one row at a time, says which row it is, and its
state is a few numbers from which another source goes on at once, bit for bit:

- Of a sequence (a list, a `datasets.Dataset`) an epoch reads every row once, in an order of its own that is computed
  and not stored ([`Permutation`]); the shards take turns in that order. State: epoch and place.
- Of a stream (a `datasets.IterableDataset`: sharded parquet or json lines, local or remote) the library deals the
  files out to the shards, or the rows where there are no files for all, and orders the files anew in every epoch. The
  rows are shuffled in blocks of `shuffle_buffer_size`: a block is read, permuted and handed out. The library's own
  shuffle buffer slides, and what it holds is lost with the process; a block is read again from where it began, so
  nothing is lost. State: the library's, at the block's beginning, and the place in it.
- Of several sources with weights the next row comes from the one that is furthest behind its share. Each goes through
  its own epochs. State: theirs, and how many rows each gave. (`datasets.interleave_datasets` is no way around it: with
  datasets 5.2 its stream reads without end, and gives nothing, where its state is that of an exhausted source.)

Every row of an epoch is read once over all shards. The place that builders draw their random numbers from is the row's
in a sequence; in a stream it is counted by the shard.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers.utils import logging

from .builders import row_generator
from .orders import Permutation
from .streams import Shard

logger = logging.get_logger(__name__)


class Drawn(NamedTuple):
    """A row, its place in the data and how often the data were read before."""

    row: Mapping[str, Any]
    place: int
    epoch: int


class WeightedSources:
    """Several sources of one task, each with its share of the rows.

    Args:
        sources: Sequences or streams.
        weights: The share of each, in any unit, more than 0.

    Raises:
        ValueError: no source, not as many weights, or a weight that is not positive.

    ```python
    >>> from hf_glm_ernie import WeightedSources

    >>> texts = WeightedSources([encyclopedia, news], weights=[3, 1])
    ```
    """

    def __init__(self, sources: Sequence[Any], weights: Sequence[float]) -> None:
        if not sources or len(sources) != len(weights):
            raise ValueError(f"{len(sources)} sources came with {len(weights)} weights; each source has one.")
        for place, weight in enumerate(weights):
            if not weight > 0:
                raise ValueError(f"weights[{place}]={weight} must be more than 0. Leave the source out instead.")
        self.sources, self.weights = list(sources), [float(weight) for weight in weights]


class Source(abc.ABC):
    """One shard's reading of some data."""

    @abc.abstractmethod
    def __next__(self) -> Drawn:
        """The next row.

        Raises:
            StopIteration: all epochs were read.
            ValueError: the data have no row for this shard.
        """

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Where the reading is: numbers, texts, lists and dicts that JSON can hold."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the state says."""

    def is_random_access(self, place: int) -> bool:
        """Whether the row that was drawn from this place can be read again without the rows before it."""
        return False

    def row_at(self, place: int) -> Mapping[str, Any]:
        """That row, where it can."""
        raise NotImplementedError


def source_of(
    data: Any, shard: Shard, *, seed: int, task: str, shuffle_buffer_size: int = 1000, epochs: int | None = None
) -> Source:
    """One shard's reading of data.

    Args:
        data: A sequence of rows, a `datasets.IterableDataset`, or [`WeightedSources`] of such.
        shard: Which part is read.
        seed: Decides the order.
        task: What for; other tasks have other orders.
        shuffle_buffer_size: Rows of a stream that are shuffled together; 1: a stream's own order in every epoch.
        epochs: How often all rows are read; `None`: without end.

    Raises:
        ValueError: a sequence with fewer rows than shards, a buffer below 1.
        TypeError: data of another kind.
    """
    if shuffle_buffer_size < 1:
        raise ValueError(f"shuffle_buffer_size={shuffle_buffer_size} must be at least 1, which does not shuffle.")
    options: dict[str, Any] = {"seed": seed, "shuffle_buffer_size": shuffle_buffer_size, "epochs": epochs}
    if isinstance(data, WeightedSources):
        parts = [
            source_of(one, shard, task=f"{task}, source {place}" if place else task, **options)
            for place, one in enumerate(data.sources)
        ]
        return _Weighted(parts, data.weights)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return _FromSequence(data, shard, seed, task, epochs)
    if all(hasattr(data, name) for name in ("iter", "state_dict", "load_state_dict", "set_epoch")):
        return _FromStream(data, shard, seed, task, shuffle_buffer_size, epochs)
    raise TypeError(
        f"{task}: data are a {type(data).__name__}; pass a sequence of rows, a datasets.Dataset, a "
        "datasets.IterableDataset or WeightedSources of them."
    )


class _FromSequence(Source):
    def __init__(self, rows: Any, shard: Shard, seed: int, task: str, epochs: int | None) -> None:
        if len(rows) < shard.count:
            raise ValueError(
                f"{task}: {len(rows)} rows cannot be shared by {shard.count} shards (ranks times workers), one each "
                "at least. Use fewer workers or split the rows."
            )
        self.rows, self.shard, self.seed, self.task, self.epochs = rows, shard, seed, task, epochs
        self._epoch = self._place = 0
        self._order = self._order_of(0)

    def _order_of(self, epoch: int) -> Permutation:
        return Permutation(len(self.rows), self.seed, f"{self.task}, order", epoch)

    def __next__(self) -> Drawn:
        at = self._place * self.shard.count + self.shard.index
        if at >= len(self.rows):
            self._epoch, self._place, at = self._epoch + 1, 0, self.shard.index
            self._order = self._order_of(self._epoch)
        if self.epochs is not None and self._epoch >= self.epochs:
            raise StopIteration
        self._place += 1
        index = self._order[at]
        return Drawn(self.rows[index], index, self._epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.rows), "epoch": self._epoch, "place": self._place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["rows"] != len(self.rows):
            raise ValueError(
                f"{self.task}: the state is of {state['rows']} rows, but there are {len(self.rows)}: to go on where a "
                "run stopped takes the same data."
            )
        self._epoch, self._place = state["epoch"], state["place"]
        self._order = self._order_of(self._epoch)

    def is_random_access(self, place: int) -> bool:
        return True

    def row_at(self, place: int) -> Mapping[str, Any]:
        return self.rows[place]


class _FromStream(Source):
    def __init__(self, data: Any, shard: Shard, seed: int, task: str, buffer: int, epochs: int | None) -> None:
        self.whole = data
        self.shard, self.seed, self.task, self.buffer, self.epochs = shard, seed, task, buffer, epochs
        self._begin(0, None, 0)

    def _begin(self, epoch: int, state: Mapping[str, Any] | None, block: int) -> None:
        """Opens the data of an epoch, at the beginning of a block."""
        self._epoch, self._block = epoch, block
        self.data = _part_of(self.whole, self.shard, self.task)  # a new one, which no state was loaded into
        # the library orders the files by this number, and leaves them as they are at 0
        generator = row_generator(self.seed, f"{self.task}, files", epoch, 0)
        self.data.set_epoch(int(generator.integers(1, 2**31)) if self.buffer > 1 else 0)
        if state is not None:
            self.data.load_state_dict(state)
        self._blocks = self.data.iter(batch_size=self.buffer)
        self._rows: list[dict[str, Any]] = []
        self._order: list[int] = []
        self._place = 0
        self._state = state  # of the library, where the block begins; None: at the epoch's beginning

    def _read_block(self) -> bool:
        """Reads and permutes the next block; returns whether there was one."""
        begin = self.data.state_dict() if self._rows else self._state
        columns = next(self._blocks, None)
        if not columns:
            return False
        self._block += bool(self._rows)
        self._state, self._place = begin, 0
        count = len(next(iter(columns.values())))
        self._rows = [{name: values[at] for name, values in columns.items()} for at in range(count)]
        generator = row_generator(self.seed, f"{self.task}, block", self._epoch, self._block * self.shard.count)
        self._order = generator.permutation(count).tolist() if self.buffer > 1 else list(range(count))
        return True

    def __next__(self) -> Drawn:
        if self.epochs is not None and self._epoch >= self.epochs:
            raise StopIteration
        if self._place == len(self._rows) and not self._read_block():
            if not self._rows:
                raise ValueError(f"{self.task}: the stream has no row for shard {self.shard.index}.")
            self._begin(self._epoch + 1, None, 0)
            return next(self)
        at = self._order[self._place]
        self._place += 1
        number = self._block * self.buffer + at  # of this shard's rows
        return Drawn(self._rows[at], number * self.shard.count + self.shard.index, self._epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "block": self._block, "place": self._place, "stream": self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._begin(state["epoch"], state["stream"], state["block"])
        if state["place"]:
            if not self._read_block() or state["place"] > len(self._rows):
                raise ValueError(
                    f"{self.task}: the stream has fewer rows than the state says: to go on where a run stopped takes "
                    "the same data."
                )
            self._place = state["place"]


class _Weighted(Source):
    def __init__(self, sources: list[Source], weights: list[float]) -> None:
        self.sources = sources
        self.shares = [weight / sum(weights) for weight in weights]
        self._given = [0] * len(sources)

    def __next__(self) -> Drawn:
        total = sum(self._given) + 1
        behind = [share * total - given for share, given in zip(self.shares, self._given, strict=True)]
        which = behind.index(max(behind))
        drawn = next(self.sources[which])
        self._given[which] += 1
        return drawn._replace(place=drawn.place * len(self.sources) + which)

    def state_dict(self) -> dict[str, Any]:
        return {"given": list(self._given), "sources": [source.state_dict() for source in self.sources]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if len(state["sources"]) != len(self.sources):
            raise ValueError(f"The state is of {len(state['sources'])} sources, but there are {len(self.sources)}.")
        self._given = list(state["given"])
        for source, one in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(one)

    def is_random_access(self, place: int) -> bool:
        return self.sources[place % len(self.sources)].is_random_access(place // len(self.sources))

    def row_at(self, place: int) -> Mapping[str, Any]:
        return self.sources[place % len(self.sources)].row_at(place // len(self.sources))


def _part_of(data: Any, shard: Shard, task: str) -> Any:
    """What a shard reads of a stream; its own copy, so that nobody else moves its epoch."""
    from datasets.distributed import split_dataset_by_node  # data are one of its classes, so it is installed

    if data.num_shards % shard.count and shard.index == 0:
        logger.warning_once(
            f"{task}: {data.num_shards} files cannot be dealt out evenly to {shard.count} shards (ranks times "
            f"workers), so each shard reads all of them and keeps one row in {shard.count}. Write a number of files "
            "that is a multiple, or see datasets' IterableDataset.reshard()."
        )
    return split_dataset_by_node(data, rank=shard.index, world_size=shard.count)


__all__ = ["Drawn", "Source", "WeightedSources", "source_of"]
