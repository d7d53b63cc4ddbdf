"""Pre-training of ERNIE 3.0 with the host's Trainer: all tasks in one forward, memories carried between steps.

What [`Ernie3PretrainingTrainer`] adds to the host's Trainer:

- The memories of the document rows go from step to step, apart for every row, and are empty where a document begins.
  They are detached, so no gradient crosses steps. A checkpoint holds them (a file per process), and a resumed run goes
  on exactly; where the file is missing, documents that were begun go on with empty memories, and a warning says so.
- Every task's loss is the mean over its labels in the whole step, over all processes and accumulated batches, or in
  the whole evaluation; it is logged, and weighted in the sum. Rows and tokens that were read are logged beside it,
  padding and fillers apart.
- A [`ProgressiveSchedule`] sets learning rate and dropout by the step; lengths and batch sizes by the step are the
  data's part ([`Ernie3PretrainingMixture`]).
- A stream that shards itself is read as it is. A checkpoint holds where it was (a file per process), so a resumed run
  goes on at once, with as many processes and workers as before.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from transformers.utils import logging

from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM, TASK_BRANCHES

from .fillers import count_labels, count_read
from .mean_losses import MeanLosses
from .memories import MemoryBank, memories_without_columns
from .schedule import ProgressiveDropout, ProgressiveSchedule
from .streams import ShardedStream

logger = logging.get_logger(__name__)

MEMORIES_FILE, STREAM_FILE = "ernie3_memories_{}.safetensors", "ernie3_stream_{}.json"  # in a checkpoint, by process
LABEL_COUNTS = "label_counts"  # in a mixed batch of a training step: task -> labels, counted once
ORDER = {task: place for place, task in enumerate(TASK_BRANCHES)}
# What a builder's rows may hold; the host would drop columns that `forward` does not name.
COLUMNS = [
    "task",
    "input_ids",
    "labels",
    "reorder_labels",
    "distance_labels",
    "credible_labels",
    "genre_ids",
    "document_ids",
]


class Ernie3PretrainingTrainer(Trainer):
    """Trains an `Ernie3ForPreTraining` on any mixture of its tasks.

    Data are an [`Ernie3PretrainingMixture`] (then set `max_steps`), or rows that the builders made together with an
    [`Ernie3PretrainingCollator`]; document language modelling needs the mixture. Logs hold `{task}_loss`, the mean
    since the last log over all processes, before weights, and `rows_read` and `tokens_read` since then; evaluation
    gives `eval_{task}_loss`, the mean over the task's labels in all batches of all processes, and `eval_loss`, their
    weighted sum, with memories of its own.

    Args:
        *args: Of `transformers.Trainer`.
        task_weights: Task -> weight of its loss in the sum; 1 where a task is not named.
        schedule: Learning rate and dropout by the step. The arguments' `learning_rate` must be the schedule's peak.
            Pass the same schedule to the mixture.
        **kwargs: Of `transformers.Trainer`.

    Raises:
        ValueError: a weight for an unknown task or a negative one, or a learning rate that is not the schedule's peak.

    ```python
    >>> from transformers import TrainingArguments
    >>> from hf_glm_ernie import (
    ...     Ernie3PretrainingMixture,
    ...     Ernie3PretrainingTrainer,
    ...     KnowledgeMasking,
    ...     SentenceReordering,
    ... )

    >>> tasks = [(texts, KnowledgeMasking(tokenizer)), (paragraphs, SentenceReordering(tokenizer))]
    >>> mixture = Ernie3PretrainingMixture(tokenizer, tasks, documents, batch_size=24, length=512)
    >>> trainer = Ernie3PretrainingTrainer(model, TrainingArguments("out", max_steps=1000), train_dataset=mixture)
    >>> trainer.train()
    ```
    """

    columns = COLUMNS
    part_of_tasks = ""  # of the model: what reads mixed batches, and where the schedule sets the dropout
    takes_plain_rows = False  # beside mixed batches
    sums_tasks = True  # whether the loss is the weighted sum of the tasks' and nothing else

    def __init__(
        self,
        *args: Any,
        task_weights: Mapping[str, float] | None = None,
        schedule: ProgressiveSchedule | None = None,
        **kwargs: Any,
    ) -> None:
        for task, weight in (task_weights or {}).items():
            if task not in TASK_BRANCHES or weight < 0:
                raise ValueError(
                    f"task_weights has {weight} for {task!r}; weights are at least 0, the tasks are "
                    f"{', '.join(TASK_BRANCHES)}."
                )
        self.task_weights = dict(task_weights or {})
        self.schedule = schedule
        self._memories = {"train": MemoryBank(), "eval": MemoryBank()}
        self._train_loader: StatefulDataLoader | None = None
        self._stream_state: dict[str, Any] | None = None  # of the checkpoint that training goes on from
        self._read = torch.zeros(2, dtype=torch.int64)  # rows and tokens since the last log
        super().__init__(*args, **kwargs)
        self.mean_losses = {phase: MeanLosses(self.loss_names()) for phase in ("train", "eval")}
        self._signature_columns = self.columns  # type: ignore[assignment]  # the host sets None first
        self.add_callback(_SaveData(self))
        if schedule is not None:
            peak = schedule.learning_rate[1]
            if abs(self.args.learning_rate - peak) > 1e-9 * peak:
                raise ValueError(
                    f"TrainingArguments(learning_rate={self.args.learning_rate}) must be the schedule's peak, {peak}."
                )
            self.add_callback(ProgressiveDropout(schedule, self.part_of_tasks))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the host's; a checkpoint's memories and the place in the data are read, too."""
        folder = (
            get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        )
        self._memories["train"].clear()
        self._stream_state = None
        if folder:
            self._load_data(Path(folder))
        skips = self.args.ignore_data_skip
        # a stream that knows its place has nothing to skip
        self.args.ignore_data_skip = skips or self._stream_state is not None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.ignore_data_skip = skips
            if self._train_loader is not None:
                # It lets go of its workers, which end at once. Later, as garbage of a cycle with the Trainer, their
                # queues are closed first, and each worker that hears nothing is waited for, five seconds.
                self._train_loader.load_state_dict({})

    def _load_data(self, folder: Path) -> None:
        path = folder / self._file(MEMORIES_FILE)
        if path.is_file():
            self._memories["train"].load(path, self.args.device)
        else:
            logger.warning(f"{path} does not exist: documents that were begun go on with empty memories.")
        path = folder / self._file(STREAM_FILE)
        if path.is_file():
            self._stream_state = json.loads(path.read_text(encoding="utf-8"))
        elif isinstance(self.train_dataset, ShardedStream) and not self.args.ignore_data_skip:
            logger.warning(f"{path} does not exist: every batch that was trained on is built again to be skipped.")

    def get_train_dataloader(self) -> DataLoader:
        """A stream that shards itself as it is; other data as the host reads them."""
        if not isinstance(self.train_dataset, ShardedStream):
            return super().get_train_dataloader()
        self._train_loader = self._stream_loader(self.train_dataset)
        if self._stream_state is not None:
            self._train_loader.load_state_dict(self._stream_state)
        return self._train_loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The same for evaluation; a stream needs its `num_batches`.

        Raises:
            ValueError: a stream without an end.
        """
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = (
            self.eval_dataset[dataset] if isinstance(dataset, str) and isinstance(self.eval_dataset, dict) else dataset
        )
        if not isinstance(dataset, ShardedStream):
            return super().get_eval_dataloader(eval_dataset)
        if dataset.num_batches is None:
            raise ValueError("A stream to evaluate on must end: give it num_batches.")
        return self._stream_loader(dataset)

    def _stream_loader(self, stream: ShardedStream) -> StatefulDataLoader:
        alike = self.get_tp_size()  # the processes that share every layer read the same rows
        stream.set_rank(self.args.process_index // alike, self.args.world_size // alike)
        workers = self.args.dataloader_num_workers
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata 0.11 on torch 2.13
            return StatefulDataLoader(
                stream,
                batch_size=None,  # the stream's items are batches
                num_workers=workers,
                pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
                persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
                prefetch_factor=self.args.dataloader_prefetch_factor,
            )

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule's learning rate where there is one, else the host's."""
        if self.schedule is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = self.optimizer if optimizer is None else optimizer
        assert optimizer is not None
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.learning_rate_factor())
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """As the host's, and of mixed batches the number of labels that each task has in the whole step.

        Returns:
            The batches of a step, and of mixed ones (tasks,) fp32 in the order of `TASK_BRANCHES`. A mixed batch has
            its own number of labels beside it, for [`compute_loss`].
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not any("batches" in batch for batch in batches):
            return batches, items
        labels = torch.zeros(len(TASK_BRANCHES))
        for place, batch in enumerate(batches):
            counts = _labels_by_task(batch.get("batches", {}))
            for task, inputs in batch.get("batches", {}).items():
                labels[ORDER[task]] += counts[task]
                self._read += torch.tensor(count_read(task, inputs))
            if counts:
                batches[place] = {**batch, LABEL_COUNTS: counts}
        labels = labels.to(self.accelerator.device)
        return batches, self.accelerator.reduce(labels, "sum") if self.args.average_tokens_across_devices else labels

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """One forward of all tasks, with the memories of the document rows.

        Args:
            model: The model, wrapped or not.
            inputs: {"batches": {task: inputs}}, in a training step with what [`get_batch_samples`] has counted.
            return_outputs: Whether to return the outputs too.
            num_items_in_batch: Of a mixed batch the labels of each task in the whole step, as
                [`get_batch_samples`] counts them; `None`: every task's loss is the mean over this batch.

        Raises:
            ValueError: inputs of another form.
        """
        labels = inputs.get(LABEL_COUNTS, {})
        inputs = {name: value for name, value in inputs.items() if name != LABEL_COUNTS}
        if set(inputs) != {"batches"} and ("batches" in inputs or not self.takes_plain_rows):
            raise ValueError(
                f"A batch must be {{'batches': {{task: inputs}}}}, got {sorted(inputs)}. Use "
                "Ernie3PretrainingMixture, or data_collator=Ernie3PretrainingCollator(tokenizer)."
            )
        phase = "train" if model.training else "eval"
        shares: dict[str, torch.Tensor] = {}
        labels = labels or _labels_by_task(inputs.get("batches", {}))
        if "batches" in inputs and isinstance(num_items_in_batch, torch.Tensor):
            shares, num_items_in_batch = self._label_shares(labels, num_items_in_batch), None
        inputs, stream_ids = self._with_memories(inputs, phase, shares)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if stream_ids is not None:
            self._memories[phase].put(stream_ids, outputs.memories)
        losses = self.losses_to_log(outputs, mixed="batches" in inputs)
        parts = {f"{task}_loss": share for task, share in shares.items()}
        weights = {f"{task}_loss": count for task, count in labels.items()} if phase == "eval" else {}
        self.mean_losses[phase].add({name: loss * parts.get(name, 1.0) for name, loss in losses.items()}, weights)
        return (loss, outputs) if return_outputs else loss

    def _label_shares(self, labels: Mapping[str, torch.Tensor], in_step: torch.Tensor) -> dict[str, torch.Tensor]:
        """The factors that turn a batch's mean losses into its part of the step's, which is taken as a mean itself:
        over the accumulated batches by the host, over the processes by what wraps the model.
        """
        slots = self.current_gradient_accumulation_steps
        if self.args.average_tokens_across_devices:
            slots *= self.args.world_size
        return {task: count * slots / in_step[ORDER[task]].clamp_min(1) for task, count in labels.items()}

    def _with_memories(
        self, inputs: dict[str, Any], phase: str, shares: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, Any], torch.Tensor | None]:
        """A mixed batch with its tasks' weights and the memories of its document rows, and the numbers of those."""
        if "batches" not in inputs:
            return inputs, None
        batches = {task: dict(batch) for task, batch in inputs["batches"].items()}
        documents, stream_ids = batches.get(DOCUMENT_LM), None
        if documents is not None:
            stream_ids, reset = documents.pop("stream_ids"), documents.pop("memory_reset")
            documents["memories"] = self._memories[phase].take(stream_ids, reset)
            if documents["memories"] is None:
                bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
                config = bare.get_submodule(self.part_of_tasks).config
                documents["memories"] = memories_without_columns(config, stream_ids)
            documents["return_memories"] = True
        weights = {task: self.task_weights.get(task, 1.0) * shares.get(task, 1.0) for task in batches}
        return {"batches": batches, "task_weights": weights}, stream_ids

    def loss_names(self) -> list[str]:
        """Every loss that logs may hold beside the sum."""
        return [f"{task}_loss" for task in TASK_BRANCHES]

    def losses_to_log(self, outputs: Any, mixed: bool) -> dict[str, torch.Tensor]:
        """A pass's losses under the names of [`loss_names`]; those of tasks where the batch was a mixed one."""
        return {f"{task}_loss": loss for task, loss in outputs.losses.items()} if mixed else {}

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The loss alone: the tasks' predictions have no common form."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The host's, with each task's loss among the metrics; fillers have no labels and count in none of them."""
        self._memories["eval"].clear()
        self.mean_losses["eval"].clear()
        output: Any = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        means = self.mean_losses["eval"].means(self.accelerator)
        output.metrics.update({f"{prefix}_{name}": mean for name, mean in means.items()})
        if self.sums_tasks and means:  # the host's is a mean over batches, whichever tasks have labels there
            output.metrics[f"{prefix}_loss"] = sum(
                self.task_weights.get(task, 1.0) * means.get(f"{task}_loss", 0.0) for task in TASK_BRANCHES
            )
        self._memories["eval"].clear()
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds every loss's mean since the last log to the log of a training step."""
        if "loss" in logs:
            logs |= self.mean_losses["train"].means(self.accelerator)
            read = self.accelerator.reduce(self._read.to(self.accelerator.device), "sum") // self.get_tp_size()
            logs |= dict(zip(("rows_read", "tokens_read"), read.tolist(), strict=True)) if read[0] else {}
            self._read.zero_()
        super().log(logs, start_time)

    def _file(self, name: str) -> str:
        return name.format(self.args.process_index)


def _labels_by_task(batches: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {task: count_labels(inputs) for task, inputs in batches.items()}


class _SaveData(TrainerCallback):
    """Puts the memories, and where the stream is, into every checkpoint; counts epochs on where a run was resumed."""

    def __init__(self, trainer: Ernie3PretrainingTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._stream_state is not None:
            state.epoch = state.global_step / state.max_steps  # the host would begin at 0: it has skipped nothing

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if not folder.is_dir():
            return
        bank, loader = self.trainer._memories["train"], self.trainer._train_loader
        if len(bank):
            bank.save(folder / self.trainer._file(MEMORIES_FILE))
        if loader is not None:
            text = json.dumps(loader.state_dict())
            (folder / self.trainer._file(STREAM_FILE)).write_text(text, encoding="utf-8")


__all__ = ["COLUMNS", "Ernie3PretrainingTrainer"]
