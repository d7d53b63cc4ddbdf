"""Pre-training of ERNIE 3.0 with the host's Trainer: all tasks in one forward, memories carried between steps.

What [`Ernie3PretrainingTrainer`] adds to the host's Trainer:

- The memories of the document rows go from step to step, apart for every row, and are empty where a document begins.
  They are detached, so no gradient crosses steps. A checkpoint holds them (a file per process), and a resumed run goes
  on exactly; where the file is missing, documents that were begun go on with empty memories, and a warning says so.
- Every task's loss is logged, and weighted in the sum.
- A [`ProgressiveSchedule`] sets learning rate and dropout by the step; lengths and batch sizes by the step are the
  data's part ([`Ernie3PretrainingMixture`]).
- A stream that shards itself is read as it is. Resuming skips the batches that were seen, as the host does it, so it
  needs as many processes and workers as before.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from transformers.utils import logging

from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM, TASK_BRANCHES

from .mean_losses import MeanLosses
from .memories import MemoryBank
from .schedule import ProgressiveDropout, ProgressiveSchedule
from .streams import ShardedStream

logger = logging.get_logger(__name__)

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
    since the last log over all processes, before weights; evaluation gives `eval_{task}_loss`, with memories of its
    own.

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
    part_with_dropout = ""  # of the model: where the schedule sets the dropout
    takes_plain_rows = False  # beside mixed batches

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
        super().__init__(*args, **kwargs)
        self.mean_losses = {phase: MeanLosses(self.loss_names()) for phase in ("train", "eval")}
        self._signature_columns = self.columns  # type: ignore[assignment]  # the host sets None first
        self.add_callback(_SaveMemories(self))
        if schedule is not None:
            peak = schedule.learning_rate[1]
            if abs(self.args.learning_rate - peak) > 1e-9 * peak:
                raise ValueError(
                    f"TrainingArguments(learning_rate={self.args.learning_rate}) must be the schedule's peak, {peak}."
                )
            self.add_callback(ProgressiveDropout(schedule, self.part_with_dropout))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the host's; a checkpoint's memories are read, too."""
        folder = (
            get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        )
        self._memories["train"].clear()
        if folder:
            path = Path(folder) / self._memory_file()
            if path.is_file():
                self._memories["train"].load(path, self.args.device)
            else:
                logger.warning(f"{path} does not exist: documents that were begun go on with empty memories.")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """A stream that shards itself as it is; other data as the host reads them."""
        if isinstance(self.train_dataset, ShardedStream):
            return self._stream_loader(self.train_dataset)
        return super().get_train_dataloader()

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

    def _stream_loader(self, stream: ShardedStream) -> DataLoader:
        stream.set_rank(self.args.process_index, self.args.world_size)
        workers = self.args.dataloader_num_workers
        return DataLoader(
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
            inputs: {"batches": {task: inputs}}.
            return_outputs: Whether to return the outputs too.
            num_items_in_batch: Not used: every task's loss is a mean over its own labels.

        Raises:
            ValueError: inputs of another form.
        """
        if set(inputs) != {"batches"} and ("batches" in inputs or not self.takes_plain_rows):
            raise ValueError(
                f"A batch must be {{'batches': {{task: inputs}}}}, got {sorted(inputs)}. Use "
                "Ernie3PretrainingMixture, or data_collator=Ernie3PretrainingCollator(tokenizer)."
            )
        phase = "train" if model.training else "eval"
        inputs, stream_ids = self._with_memories(inputs, phase)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if stream_ids is not None:
            self._memories[phase].put(stream_ids, outputs.memories)
        self.mean_losses[phase].add(self.losses_to_log(outputs, mixed="batches" in inputs))
        return (loss, outputs) if return_outputs else loss

    def _with_memories(self, inputs: dict[str, Any], phase: str) -> tuple[dict[str, Any], torch.Tensor | None]:
        """A mixed batch with its tasks' weights and the memories of its document rows, and the numbers of those."""
        if "batches" not in inputs:
            return inputs, None
        batches = {task: dict(batch) for task, batch in inputs["batches"].items()}
        documents, stream_ids = batches.get(DOCUMENT_LM), None
        if documents is not None:
            stream_ids, reset = documents.pop("stream_ids"), documents.pop("memory_reset")
            documents["memories"] = self._memories[phase].take(stream_ids, reset)
            documents["return_memories"] = True
        weights = {task: self.task_weights.get(task, 1.0) for task in batches}
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
        """The host's, with each task's loss among the metrics."""
        self._memories["eval"].clear()
        self.mean_losses["eval"].clear()
        output: Any = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        means = self.mean_losses["eval"].means(self.accelerator)
        output.metrics.update({f"{prefix}_{name}": mean for name, mean in means.items()})
        self._memories["eval"].clear()
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds every loss's mean since the last log to the log of a training step."""
        if "loss" in logs:
            logs |= self.mean_losses["train"].means(self.accelerator)
        super().log(logs, start_time)

    def _memory_file(self) -> str:
        return f"ernie3_memories_{self.args.process_index}.safetensors"


class _SaveMemories(TrainerCallback):
    """Puts the memories into every checkpoint."""

    def __init__(self, trainer: Ernie3PretrainingTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        bank = self.trainer._memories["train"]
        if len(bank) and folder.is_dir():
            bank.save(folder / self.trainer._memory_file())


__all__ = ["COLUMNS", "Ernie3PretrainingTrainer"]
