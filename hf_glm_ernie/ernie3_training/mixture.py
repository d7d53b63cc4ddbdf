"""One stream of batches in which every task has its share of rows.

Every batch holds every task, so that one forward trains all of them (what DDP and FSDP need). A ratio says which share
of the rows a task gets; shares that are no whole rows are rounded by largest remainder, and every task has one row at
least. The papers publish no ratios: equal ones are the default.

Rows are built when they are read, so that each epoch masks, splits and pairs anew, and at the length that holds at
that step. Every task reads its data without end, each epoch in another order.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM, TASK_BRANCHES
from hf_glm_ernie.inference.token_ids import special_id

from .builders import RowBuilder, shuffled
from .collator import mixed_batch
from .documents import DocumentReader, stream_segments
from .packing import PACKED_TASKS, pack_rows
from .schedule import ProgressiveSchedule
from .streams import Shard, ShardedStream


def row_counts(batch_size: int, ratios: Mapping[str, float]) -> dict[str, int]:
    """How many rows of a batch each task gets.

    Args:
        batch_size: Rows of the batch.
        ratios: Task -> share, in any unit, more than 0.

    Returns:
        Task -> rows, at least 1 each, `batch_size` together; within one row of the exact share wherever that allows.

    Raises:
        ValueError: fewer rows than tasks, or a ratio that is not positive.
    """
    if batch_size < len(ratios):
        raise ValueError(f"A batch of {batch_size} rows cannot hold {len(ratios)} tasks, one row each at least.")
    for task, ratio in ratios.items():
        if not ratio > 0:
            raise ValueError(f"The ratio of {task} is {ratio}; it must be more than 0. Leave the task out instead.")
    total = sum(ratios.values())
    exact = {task: batch_size * ratio / total for task, ratio in ratios.items()}
    counts = {task: max(int(share), 1) for task, share in exact.items()}
    while sum(counts.values()) < batch_size:
        counts[max(counts, key=lambda task: exact[task] - counts[task])] += 1
    while sum(counts.values()) > batch_size:
        counts[min((task for task in counts if counts[task] > 1), key=lambda task: exact[task] - counts[task])] -= 1
    return counts


class Ernie3PretrainingMixture(ShardedStream):
    """Endless batches of all tasks, for one rank. Arguments: those of [`ShardedStream`], and:

    Args:
        tokenizer: For the pad id, and for documents that are texts.
        tasks: (rows of data, builder) of each task but document language modelling. The rows are any sequence of
            dicts, such as a `datasets.Dataset`.
        documents: The documents of document language modelling, each with `input_ids` or `text`; `None`: without.
        batch_size: Rows per batch on this rank; with a schedule `None`.
        length: Columns per row of a document; other rows are as long as their builders allow. With a schedule
            `None`.
        ratios: Task -> share of the rows; tasks that are not named have 1.
        schedule: Lengths and batch sizes by step; its batch is split among ranks and accumulated batches. Builders
            must cut (`truncation=True`), and none makes rows longer than its own `max_length`.
        gradient_accumulation_steps: Batches per step.
        pad_to_multiple_of: Widths become multiples of this.
        packing: Whether documents share rows, and so do texts of `PACKED_TASKS`, up to their builder's `max_length`.
            A row then holds several of them, and a batch more texts than rows.

    Yields:
        {"batches": {task: {"branch", "input_ids", ...}}}; those of "document_lm" with `memory_reset`, `stream_ids`;
        those packed with `document_ids`.

    Raises:
        ValueError: no task, two builders of one task, ratios of tasks that are not there, fewer rows of data than
            shards, settings that contradict each other.
    """

    def __init__(
        self,
        tokenizer: Any,
        tasks: Sequence[tuple[Sequence[Mapping[str, Any]], RowBuilder]] = (),
        documents: Sequence[Mapping[str, Any]] | None = None,
        *,
        batch_size: int | None = None,
        length: int | None = None,
        ratios: Mapping[str, float] | None = None,
        schedule: ProgressiveSchedule | None = None,
        gradient_accumulation_steps: int = 1,
        pad_to_multiple_of: int | None = None,
        packing: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        names = [builder.task for _, builder in tasks] + [DOCUMENT_LM] * (documents is not None)
        _check(names, ratios or {})
        if (schedule is None) != (batch_size is not None):
            raise ValueError(f"Pass either batch_size or a schedule, got batch_size={batch_size}, {schedule=}.")
        if schedule is not None and length is not None:
            raise ValueError(f"Pass either length={length} or a schedule, which has lengths of its own.")
        if schedule is not None and (strict := [one.task for _, one in tasks if not one.truncation]):
            raise ValueError(f"The schedule changes lengths, so the builders of {strict} need truncation=True.")
        self.tokenizer, self.documents = tokenizer, documents
        self.tasks = {builder.task: (rows, builder) for rows, builder in tasks}
        self.batch_size, self.length = batch_size, length if length is not None else 512
        self.ratios = {task: (ratios or {}).get(task, 1.0) for task in names}
        self.schedule, self.gradient_accumulation_steps = schedule, gradient_accumulation_steps
        self.pad_to_multiple_of, self.packing = pad_to_multiple_of, packing

    def sizes(self, number: int) -> tuple[int, int | None]:
        """Rows, and tokens per row, of a batch.

        Args:
            number: Which batch of this rank, from 0.

        Returns:
            The rows of this rank's batch, at least one a task; and the length, `None` without a schedule.
        """
        if self.schedule is None:
            assert self.batch_size is not None
            return self.batch_size, None
        settings = self.schedule.at(number // self.gradient_accumulation_steps)
        share = settings.batch_size // (self.world_size * self.gradient_accumulation_steps)
        return max(share, len(self.ratios)), settings.length

    def batches(self, shard: Shard) -> Iterator[dict[str, Any]]:
        """All batches of one shard."""
        pad = special_id(self.tokenizer, "pad")
        cursors = {task: self._places(task, shard) for task in self.tasks}
        reader = None
        if self.documents is not None:
            reader = DocumentReader(
                self.documents,
                self.tokenizer,
                seed=self.seed,
                index=shard.index,
                count=shard.count,
                packing=self.packing,
            )
        waiting: dict[str, list[dict[str, Any]]] = {task: [] for task in PACKED_TASKS if self.packing}
        for number in itertools.count(shard.worker, shard.workers):
            size, length = self.sizes(number)
            groups: dict[str, list[dict[str, Any]]] = {}
            for task, count in row_counts(size, self.ratios).items():
                if task == DOCUMENT_LM:
                    assert reader is not None
                    groups[task] = stream_segments(reader.read(count, length or self.length), shard)
                    continue
                most = self.tasks[task][1].max_length
                most = most if length is None else min(length, most)
                build = functools.partial(self._rows, task, cursors[task], most)
                if task in waiting:
                    groups[task], waiting[task] = pack_rows(build, count, most, waiting[task])
                else:
                    groups[task] = build(count)
            yield mixed_batch(groups, pad, self.pad_to_multiple_of)

    def _rows(self, task: str, cursor: Iterator[tuple[int, int]], most: int, count: int) -> list[dict[str, Any]]:
        rows, builder = self.tasks[task]
        places = list(itertools.islice(cursor, count))
        epochs = [(index, builder.epoch + epoch) for index, epoch in places]
        return builder.rows([rows[index] for index, _ in places], epochs, most)

    def _places(self, task: str, shard: Shard) -> Iterator[tuple[int, int]]:
        """(index, epoch) of the rows that a shard reads."""
        count = len(self.tasks[task][0])
        if count < shard.count:
            raise ValueError(f"{task}: {count} rows cannot be shared by {shard.count} shards (ranks times workers).")
        for epoch in itertools.count():
            for index in shuffled(count, self.seed, task, epoch)[shard.index :: shard.count]:
                yield int(index), epoch


def _check(names: list[str], ratios: Mapping[str, float]) -> None:
    if not names:
        raise ValueError("There is nothing to train: pass tasks, documents or both.")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"Two builders make rows of {sorted(twice)}; every task may have one.")
    unknown = set(ratios) - set(names)
    if unknown:
        raise ValueError(
            f"ratios names {sorted(unknown)}, but the tasks are {names} (of {', '.join(TASK_BRANCHES)} in all)."
        )


__all__ = ["Ernie3PretrainingMixture", "row_counts"]
