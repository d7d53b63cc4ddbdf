"""The task of a teacher, its rows and its batches, for one tokenizer; again for a smaller one."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoTokenizer

from hf_glm_ernie.ernie_training.data_files import find_files
from hf_glm_ernie.ernie_training.task import ErnieTask
from hf_glm_ernie.ernie_training.tasks import TASKS

from .arguments import ShrinkArguments

LONGEST = 512
"""Tokens of a row, where nothing is said and the model has more positions."""


class TaskRows:
    """What is trained and measured on.

    Args:
        arguments: Of the run.

    Attributes:
        tokenizer: The teacher's, or a smaller one, see [`with_tokenizer`].
        max_length: Tokens of a row.
        task: With what it learnt from the training rows.
        files: Training and evaluation rows as they were read.

    Raises:
        ValueError: a folder or a file that is not what it should be; no rows to evaluate on.
    """

    def __init__(self, arguments: ShrinkArguments):
        folder = Path(arguments.model)
        if not (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"model={str(arguments.model)!r} is not the folder of a whole trained model. "
                "(An adapter is merged first: examples/finetune_ernie.py --method full, or PEFT's merge_and_unload.)"
            )
        config = AutoConfig.from_pretrained(arguments.model)
        positions = config.max_position_embeddings
        self.arguments = arguments
        self.max_length = min(arguments.max_length or LONGEST, positions)
        eval_data = None if arguments.eval_data is None else str(arguments.eval_data)
        train, evaluation = find_files(str(arguments.data), eval_data)
        if evaluation is None:
            raise ValueError(
                f"{arguments.data} has no dev file: importance, ranges and scores are measured on rows that were not "
                "trained on. Name them with --eval-data."
            )
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        reader = TASKS[arguments.task](tokenizer, self.max_length, {})
        self.files = [reader.read(file) for file in (train, evaluation)]
        self.with_tokenizer(tokenizer)

    def with_tokenizer(self, tokenizer: Any) -> None:
        """Takes another tokenizer; [`encode`] has to follow."""
        settings = {name: getattr(self.arguments, name) for name in ("problem_type", "cut", "language")}
        self.tokenizer = tokenizer
        self.task: ErnieTask = TASKS[self.arguments.task](tokenizer, self.max_length, settings)
        self.task.learn(self.files[0])

    def open_teacher(self) -> Any:
        """The trained model, in fp32.

        Raises:
            ValueError: a folder without a head for the task, or with other classes than the data has.
        """
        folder = str(self.arguments.model)
        stored = AutoConfig.from_pretrained(folder)
        teacher = self.task.open_model(folder, dtype=torch.float32).eval()
        name = type(teacher).__name__
        if name not in (stored.architectures or []):
            found = ", ".join(stored.architectures or ["no class"])
            raise ValueError(
                f"{folder} holds {found}, and the task {self.arguments.task} needs {name}, trained: see "
                f"examples/finetune_ernie.py --task {self.arguments.task}."
            )
        if stored.id2label != teacher.config.id2label:
            raise ValueError(
                f"{folder} was trained for the classes {', '.join(map(str, stored.id2label.values()))}; the training "
                f"rows have {', '.join(map(str, teacher.config.id2label.values()))}. Give the rows it was trained on."
            )
        return teacher

    def encode(self, model: Any) -> None:
        """Makes rows of the model's inputs and labels: `train` and `evaluation`."""
        known = {*inspect.signature(model.forward).parameters, *self.task.label_names}
        made = []
        for rows in self.files:
            encoded = rows.map(self.task.encode, batched=True, with_indices=True, remove_columns=rows.column_names)
            self.task.measure_on(rows, encoded)  # the evaluation rows are the last
            made.append(encoded.remove_columns([name for name in encoded.column_names if name not in known]))
        self.train, self.evaluation = made

    def batches(self, rows: int | None = None, labels: bool = True) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of the evaluation rows, or of the first of them."""
        chosen = self.evaluation if rows is None else self.evaluation.select(range(min(rows, len(self.evaluation))))
        for batch in DataLoader(chosen, batch_size=self.arguments.batch_size, collate_fn=self.task.collator()):
            batch.setdefault("token_type_ids", torch.zeros_like(batch["input_ids"]))  # as the models do by themselves
            yield {name: value for name, value in batch.items() if labels or name not in self.task.label_names}


__all__ = ["TaskRows"]
