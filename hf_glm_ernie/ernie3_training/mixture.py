"""One stream of batches in which every task has its share of rows.

Every batch holds every task, so that one forward trains all of them (what DDP and FSDP need). A ratio says which share
of the rows a task gets; shares that are no whole rows are rounded by largest remainder, and every task has one row at
least. The papers publish no ratios: equal ones are the default. With a schedule these are the rows of a whole step,
dealt out to its *slots*, the batches of all ranks; a slot without a row of some task has a filler in its place
(`fillers.py`).

Rows are built when they are read, so that each epoch masks, splits and pairs anew, and at the length that holds at
that step. Every task reads its data without end, each epoch in another order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM, TASK_BRANCHES
from hf_glm_ernie.inference.token_ids import special_id

from .builders import RowBuilder
from .collator import mixed_batch
from .documents import DocumentReader, stream_segments
from .fillers import document_filler
from .packing import PACKED_TASKS, pack_rows
from .schedule import ProgressiveSchedule
from .sources import source_of
from .streams import BatchReader, Shard, ShardedStream


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


def rows_of_slot(counts: Mapping[str, int], slot: int, slots: int) -> dict[str, int]:
    """Deals the rows of a step out to its slots, one after the other, as cards are dealt.

    Args:
        counts: Task -> rows in the step.
        slot: Which of the slots, from 0.
        slots: How many: processes times accumulated batches.

    Returns:
        Task -> rows of this slot, 0 where it has none. All slots together have every row; each has as many as any
        other, or one more or less, of each task and of all.
    """
    dealt, offset = {}, 0
    for task, count in counts.items():
        first = (slot - offset) % slots  # the task's first row that falls to this slot
        dealt[task] = len(range(first, count, slots))
        offset += count
    return dealt


class Ernie3PretrainingMixture(ShardedStream):
    """Endless batches of all tasks, for one rank. Arguments: those of [`ShardedStream`], and:

    Args:
        tokenizer: For the pad id, and for documents that are texts.
        tasks: (rows of data, builder) of each task but document language modelling. The rows are any sequence of
            dicts, such as a `datasets.Dataset`, a stream of them (`datasets.IterableDataset`), or [`WeightedSources`]
            of several.
        documents: The documents of document language modelling, likewise, each with `input_ids` or `text`; `None`:
            without.
        batch_size: Rows per batch on this rank; with a schedule `None`.
        length: Columns per row of a document; other rows are as long as their builders allow. With a schedule
            `None`.
        ratios: Task -> share of the rows; tasks that are not named have 1.
        schedule: Lengths and batch sizes by step. Its batch is dealt out to ranks and accumulated batches, so that a
            step reads the rows that the schedule says, however many there are; a rank whose share has no row of some
            task gets a filler, a row that nothing is learned from. Builders must cut (`truncation=True`), and none
            makes rows longer than its own `max_length`.
        gradient_accumulation_steps: Batches per step.
        pad_to_multiple_of: Widths become multiples of this.
        packing: Whether documents share rows, and so do texts of `PACKED_TASKS`, up to their builder's `max_length`.
            A row then holds several of them, and a batch more texts than rows.

    Yields:
        {"batches": {task: {"branch", "input_ids", ...}}}; those of "document_lm" with `memory_reset`, `stream_ids`;
        those packed with `document_ids`.

    Raises:
        ValueError: no task, two builders of one task, ratios of tasks that are not there, fewer rows of data than
            shards, a batch with fewer rows than tasks, settings that contradict each other.
    """

    def __init__(
        self,
        tokenizer: Any,
        tasks: Sequence[tuple[Any, RowBuilder]] = (),
        documents: Any = None,
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
        # Documents first: their rows stay in the slots they are in while batches grow.
        names = [DOCUMENT_LM] * (documents is not None) + [builder.task for _, builder in tasks]
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
        row_counts(self.batch_size or schedule.batch_size[0], self.ratios)  # type: ignore[union-attr]  # one of both

    def rows_at(self, number: int) -> dict[str, int]:
        """How many rows of each task this rank's batch has.

        Args:
            number: Which batch of this rank, from 0.

        Returns:
            Task -> rows; with a schedule 0 where the rank's share of the step has none.
        """
        if self.schedule is None:
            assert self.batch_size is not None
            return row_counts(self.batch_size, self.ratios)
        step, part = divmod(number, self.gradient_accumulation_steps)
        counts = row_counts(self.schedule.at(step).batch_size, self.ratios)
        slots = self.world_size * self.gradient_accumulation_steps
        return rows_of_slot(counts, part * self.world_size + self.rank, slots)

    def length_at(self, number: int) -> int | None:
        """Tokens per row of a batch by the schedule; `None` without one."""
        step = number // self.gradient_accumulation_steps
        return None if self.schedule is None else self.schedule.at(step).length

    def reader(self, shard: Shard) -> "_MixtureReader":
        """Reads one shard, from its beginning."""
        return _MixtureReader(self, shard)


class _MixtureReader(BatchReader):
    def __init__(self, mixture: Ernie3PretrainingMixture, shard: Shard) -> None:
        self.mixture, self.shard = mixture, shard
        options: dict[str, Any] = {"seed": mixture.seed, "shuffle_buffer_size": mixture.shuffle_buffer_size}
        self.sources = {
            task: source_of(rows, shard, task=task, **options) for task, (rows, _) in mixture.tasks.items()
        }
        self.segments = None
        if mixture.documents is not None:
            documents = source_of(mixture.documents, shard, task=DOCUMENT_LM, **options)
            self.segments = DocumentReader(documents, mixture.tokenizer, mixture.packing)
        # Built rows that found no room in a row yet.
        self.waiting: dict[str, list[dict[str, Any]]] = {
            task: [] for task in self.sources if mixture.packing and task in PACKED_TASKS
        }

    def read(self, number: int) -> dict[str, Any]:
        length = self.mixture.length_at(number)
        groups = {
            task: self._segments(count, length) if task == DOCUMENT_LM else self._rows(task, count, length)
            for task, count in self.mixture.rows_at(number).items()
        }
        pad = special_id(self.mixture.tokenizer, "pad")
        return mixed_batch(groups, pad, self.mixture.pad_to_multiple_of)

    def _segments(self, count: int, length: int | None) -> list[dict[str, Any]]:
        assert self.segments is not None
        if not count:
            return [document_filler(special_id(self.mixture.tokenizer, "cls"))]
        return stream_segments(self.segments.read(count, length or self.mixture.length), self.shard)

    def _rows(self, task: str, count: int, length: int | None) -> list[dict[str, Any]]:
        builder = self.mixture.tasks[task][1]
        if not count:
            return [builder.filler()]
        most = builder.max_length if length is None else min(length, builder.max_length)

        def build(count: int) -> list[dict[str, Any]]:
            drawn = [next(self.sources[task]) for _ in range(count)]
            places = [(one.place, builder.epoch + one.epoch) for one in drawn]
            return builder.rows([one.row for one in drawn], places, most)

        if task not in self.waiting:
            return build(count)
        packed, self.waiting[task] = pack_rows(build, count, most, self.waiting[task])
        return packed

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"tasks": {task: source.state_dict() for task, source in self.sources.items()}}
        state["waiting"] = {task: list(rows) for task, rows in self.waiting.items()}
        return state if self.segments is None else state | {"documents": self.segments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        found = {*state["tasks"], *([DOCUMENT_LM] if "documents" in state else [])}
        if found != set(self.mixture.ratios):
            raise ValueError(
                f"The state is of the tasks {sorted(found)}, but there are {sorted(self.mixture.ratios)}."
            )
        if set(state["waiting"]) != set(self.waiting):
            raise ValueError(
                f"The state is of a mixture that packs rows of {sorted(state['waiting'])}, this one packs those of "
                f"{sorted(self.waiting)}: pass the same packing= and the same tasks."
            )
        for task, source in self.sources.items():
            source.load_state_dict(state["tasks"][task])
        self.waiting = {task: list(rows) for task, rows in state["waiting"].items()}
        if self.segments is not None:
            self.segments.load_state_dict(state["documents"])


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


__all__ = ["Ernie3PretrainingMixture", "row_counts", "rows_of_slot"]
