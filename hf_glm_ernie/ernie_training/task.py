"""What a task of fine-tuning is: rows in, a model's inputs and labels out, and how the answers are scored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from hf_glm_ernie.configuration_ernie_task import ErnieTaskConfig

from .data_files import read_data


class ErnieTask(ABC):
    """A task; subclasses say what is theirs.

    Args:
        tokenizer: Of the model.
        max_length: Tokens of a row.
        settings: The script's options, by name; a task reads those it knows.

    Attributes:
        columns: What a row has to have.
        heads: Ends of the names of the head's linears: trained whole beside an adapter.
        peft_type: PEFT's name for the task, or `None`.
        label_names: What the `Trainer` takes for labels.
        best: The metric that the task is judged by.
        reads: Settings that an evaluation may be given; `None`: the task does not say.
    """

    columns: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("classifier",)
    peft_type: str | None = None
    label_names: tuple[str, ...] = ("labels",)
    best: str = "accuracy"
    reads: tuple[str, ...] | None = None
    keep: Callable[[Any, Any], Any] | None = None
    """`preprocess_logits_for_metrics`: what of a batch's outputs is kept for the scores."""
    loss: Callable[..., Any] | None = None
    """`compute_loss_func` of the `Trainer`, where the model's own loss is not the task's."""

    def __init__(self, tokenizer: Any, max_length: int, settings: Mapping[str, Any] | None = None):
        self.tokenizer, self.max_length, self.settings = tokenizer, max_length, dict(settings or {})

    def read(self, file: Path) -> Any:
        """Reads a file of rows: a `datasets.Dataset`, see [`read_data`]."""
        return read_data(file, self.columns)

    def measure_on(self, rows: Any, encoded: Any) -> None:  # noqa: B027  # most tasks score row by row
        """Says what predictions will belong to, for scores that need more than logits and labels.

        Args:
            rows: The data as it was read.
            encoded: What `encode` made of it.
        """

    def learn(self, train: Any) -> None:  # noqa: B027  # most tasks learn nothing from the rows
        """Reads off the training rows what the model has to know, such as the names of classes."""

    def learn_of_model(self, config: Any, rows: Any) -> None:  # noqa: B027  # likewise
        """Reads off a finished model what `learn` reads off training rows.

        Args:
            config: Of the model.
            rows: What it is measured on.
        """

    def labels_of(self, rows: Any) -> list[list[str]]:
        """What the rows are examples of, for drawing a few of each: classes, options, types of entities.

        Raises:
            ValueError: the task has no such labels.
        """
        raise ValueError(f"{type(self).__name__} has no labels of which a few examples could be drawn.")

    @abstractmethod
    def open_model(self, folder: str, **options: Any) -> Any:
        """Opens the model with a head for this task; options go to `from_pretrained`."""

    @abstractmethod
    def encode(self, batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Makes rows of the model's inputs and labels, for `datasets.map(batched=True, with_indices=True)`."""

    @abstractmethod
    def collator(self) -> Any:
        """Pads rows to a batch."""

    @abstractmethod
    def metrics(self, prediction: Any) -> dict[str, float]:
        """The `compute_metrics` of a `Trainer`."""

    @abstractmethod
    def report(self, rows: Any, encoded: Any, prediction: Any) -> dict[str, Any]:
        """Scores by class, label or option, and where the mistakes are.

        Args:
            rows: The data as it was read.
            encoded: What `encode` made of it.
            prediction: Of the `Trainer`, for the encoded rows.

        Returns:
            `by_class`: a class -> its scores; `mistakes`: the rows that have any, each a dict with its number, `row`.
        """


def encoder_config(folder: str) -> Any:
    """The config of an encoder's folder, with a head of the host's classes or without one.

    Raises:
        ValueError: a folder of UIE, UTC or GPLinker, for which the host has no such heads.
    """
    config = AutoConfig.from_pretrained(folder)
    if isinstance(config, ErnieTaskConfig):
        raise ValueError(
            f"{folder} holds a model of the type {config.model_type}; this task takes an ERNIE encoder (ernie, "
            "ernie_compact), such as the one that model was made from."
        )
    return config


def with_names(folder: str, names: Sequence[Any], **settings: Any) -> Any:
    """The config of an encoder's folder, with these classes; raises as [`encoder_config`]."""
    config = encoder_config(folder)
    if names:
        config.id2label = {number: str(name) for number, name in enumerate(names)}
        config.label2id = {str(name): number for number, name in enumerate(names)}
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def own_config(folder: str, config_class: type[ErnieTaskConfig], and_from: Sequence[str] = ()) -> Any:
    """The config of a folder of one of our models; of a plain encoder's, the same with a new head.

    Args:
        folder: Of the model.
        config_class: What the task takes.
        and_from: Types of models whose encoder may be taken as well.

    Raises:
        ValueError: a folder of something else.
    """
    config = AutoConfig.from_pretrained(folder)
    if isinstance(config, config_class):
        return config
    if config.model_type not in ("ernie", "ernie_compact", *and_from):
        raise ValueError(
            f"{folder} holds a model of the type {config.model_type}; this task takes {config_class.model_type}, or "
            "an ERNIE encoder (ernie), which gets a new head."
        )
    known = config_class.__dataclass_fields__.keys() - {"model_type"}
    return config_class(**{name: value for name, value in config.to_dict().items() if name in known})


def rows_in(batch: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows of a batch of columns."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def check_texts(values: Sequence[Any], column: str, rows: Sequence[int]) -> None:
    """Raises ValueError where a text is missing."""
    for value, row in zip(values, rows, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"Row {row} of the data has no text in column {column!r}: found {value!r}.")


__all__ = ["ErnieTask", "check_texts", "encoder_config", "own_config", "rows_in", "with_names"]
