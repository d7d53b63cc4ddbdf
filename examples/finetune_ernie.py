"""Fine-tunes an ERNIE encoder: texts into classes, tokens into tags, or UIE's extraction.

    python examples/finetune_ernie.py --task classification --model ernie-base --data reviews.jsonl --output_dir out \
        --method lora --learning_rate 1e-4 --num_train_epochs 3

The data is a .jsonl, .json, .csv or .parquet file, by task:

- `classification`: `text`, `label` (a string or a number), and `text_pair` where two texts are compared;
- `tokens`: `tokens` and `tags`, two lists of strings of the same length;
- `uie`: `content`, `prompt` and `result_list`, whose entries have `start` and `end` in characters of the content, as
  PaddleNLP's own converter of annotations writes them.

`--method` is `full`, `lora`, `qlora` or `ia3`; for classes `prefix`, `prompt` and `p-tuning`, too, and for tags
`prefix`. Every other option is one of transformers' `TrainingArguments`; `accelerate launch` runs it on several
devices. A run that was stopped goes on with `--resume`; a folder that holds one is refused without it, or
`--overwrite_output_dir`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loss_plot import plot_losses
from training_folder import prepare_folder
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_glm_ernie  # noqa: F401  # registers UIE with the Auto classes
from hf_glm_ernie.finetuning.methods import IN_FRONT, AdapterArguments, adapt

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
POSITIONS = ("start_positions", "end_positions")
IGNORED = -100


@dataclass(frozen=True)
class Task:
    """What a task needs: the model's class, PEFT's name for it, its columns, and the linears of its head."""

    model_class: Any
    peft_type: str | None
    columns: tuple[str, ...]
    heads: tuple[str, ...]


TASKS = {
    "classification": Task(AutoModelForSequenceClassification, "SEQ_CLS", ("text", "label"), ("classifier",)),
    "tokens": Task(AutoModelForTokenClassification, "TOKEN_CLS", ("tokens", "tags"), ("classifier",)),
    "uie": Task(AutoModel, None, ("content", "prompt", "result_list"), ("linear_start", "linear_end")),
}


@dataclass
class DataArguments:
    """What is trained on."""

    task: str = field(metadata={"help": f"one of {', '.join(TASKS)}"})
    model: str = field(metadata={"help": "folder of an ERNIE encoder, or of a UIE model"})
    data: str = field(metadata={"help": f"training file: {', '.join(FORMATS)}"})
    eval_data: str | None = field(default=None, metadata={"help": "file to evaluate on, with --eval_strategy"})
    max_length: int = field(default=512, metadata={"help": "tokens of the longest row; longer texts are cut"})
    dtype: str = field(default="float32", metadata={"help": "of the weights: auto (as stored), float32, bfloat16"})
    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint in the output folder"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "begin anew in a folder that holds a run"})

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r} is not one of {', '.join(TASKS)}.")


def main(arguments: list[str] | None = None) -> Trainer:
    """Trains, saves and plots.

    Args:
        arguments: The command line; `None` reads that of the process.

    Returns:
        The trainer, for those who call this from Python.

    Raises:
        ValueError: options that do not go together, or rows that are not what they should be.
    """
    parser = HfArgumentParser(
        (DataArguments, AdapterArguments, TrainingArguments),  # type: ignore[arg-type]  # the host takes dataclasses
        description=__doc__.split("\n")[0],
    )
    parser.set_defaults(weight_decay=0.01, warmup_steps=0.1, report_to=["none"])
    data, adapter, training = parser.parse_args_into_dataclasses(arguments)
    if (data.resume or training.resume_from_checkpoint) and adapter.method == "p-tuning":
        raise ValueError("--resume cannot go on with p-tuning: PEFT saves what its encoder made, not the encoder.")
    checkpoint = prepare_folder(training, data.resume, data.overwrite_output_dir)
    if data.task == "uie":
        if training.label_smoothing_factor:
            raise ValueError("UIE's loss has no labels to smooth: leave --label_smoothing_factor out.")
        training.label_names = list(POSITIONS)
    set_seed(training.seed)

    tokenizer = AutoTokenizer.from_pretrained(data.model)
    with training.main_process_first():
        train = read_file(data.data, TASKS[data.task])
        evaluation = read_file(data.eval_data, TASKS[data.task]) if data.eval_data else None
        names = [] if data.task == "uie" else sorted(names_in(train, TASKS[data.task].columns[1]), key=str)
        encode = encoder_of(data.task, tokenizer, longest_row(data, adapter), names)
        train = train.map(encode, batched=True, with_indices=True, remove_columns=train.column_names)
        if evaluation is not None:
            columns = evaluation.column_names
            evaluation = evaluation.map(encode, batched=True, with_indices=True, remove_columns=columns)
    trainer = Trainer(
        model=adapt(load_model(data, adapter, names), adapter, TASKS[data.task].peft_type, heads_of(data, adapter)),
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        data_collator=collator_of(data.task, tokenizer),
        compute_metrics=None if data.task == "uie" else accuracy,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        plot_losses(trainer.state.log_history, Path(training.output_dir) / "loss.png")
    return trainer


def heads_of(data: DataArguments, adapter: AdapterArguments) -> list[str] | None:
    """The head is trained whole beside an adapter."""
    return None if adapter.method == "full" else list(TASKS[data.task].heads)


def longest_row(data: DataArguments, adapter: AdapterArguments) -> int:
    """Tokens of the longest row: as asked for, but no more than there are positions for behind virtual tokens."""
    positions = AutoConfig.from_pretrained(data.model).max_position_embeddings
    return min(data.max_length, positions - adapter.virtual_tokens * (adapter.method in IN_FRONT))


def load_model(data: DataArguments, adapter: AdapterArguments, names: list[Any]) -> Any:
    """Opens the model, its weights as the method wants them, with a head for these classes."""
    dtype: Any = data.dtype if data.dtype == "auto" else getattr(torch, data.dtype)
    config = AutoConfig.from_pretrained(data.model)
    if names:
        config.id2label = {index: str(name) for index, name in enumerate(names)}
        config.label2id = {str(name): index for index, name in enumerate(names)}
    compute = (config.dtype or torch.float32) if dtype == "auto" else dtype
    keep = ["pooler.dense", *TASKS[data.task].heads]
    return TASKS[data.task].model_class.from_pretrained(
        data.model, config=config, dtype=dtype, quantization_config=adapter.quantization_config(compute, keep)
    )


def read_file(file: str, task: Task) -> Any:
    """Reads a file: a `datasets.Dataset` with the columns of the task.

    Raises:
        ValueError: a file of an unknown kind, or without a column.
        ImportError: no `datasets`.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("Reading data needs the package datasets: pip install datasets") from error
    if Path(file).suffix not in FORMATS:
        raise ValueError(f"{file} is none of {', '.join(FORMATS)}.")
    dataset = load_dataset(FORMATS[Path(file).suffix], data_files=file, split="train")
    if missing := [name for name in task.columns if name not in dataset.column_names]:
        raise ValueError(f"{file} has no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}.")
    return dataset


def names_in(dataset: Any, column: str) -> set[Any]:
    """The classes or tags of a data set.

    Raises:
        ValueError: a row without one.
    """
    names: set[Any] = set()
    for index, value in enumerate(dataset[column]):
        if value is None or value in ("", []):
            raise ValueError(f"Row {index} of the data has no {column}: found {value!r}.")
        names.update(value if isinstance(value, list) else [value])
    return names


Encode = Callable[[Mapping[str, Sequence[Any]], Sequence[int]], dict[str, Any]]


def encoder_of(task: str, tokenizer: Any, max_length: int, names: list[Any]) -> Encode:
    """The function that makes rows of the model's inputs, for `datasets.map(batched=True, with_indices=True)`."""
    numbers = {name: index for index, name in enumerate(names)}

    def number(name: Any, row: int) -> int:
        if name not in numbers:
            raise ValueError(f"Row {row} of the data has {name!r}, which is none of {names} of the training data.")
        return numbers[name]

    def classification(batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        check_texts(batch["text"], "text", rows)
        encoded = tokenizer(list(batch["text"]), batch.get("text_pair"), truncation=True, max_length=max_length)
        return {**encoded, "labels": [number(n, row) for n, row in zip(batch["label"], rows, strict=True)]}

    def tokens(batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        for words, tags, row in zip(batch["tokens"], batch["tags"], rows, strict=True):
            if not words or len(words) != len(tags):
                raise ValueError(f"Row {row} of the data has {len(words or [])} tokens and {len(tags)} tags.")
        words = [list(row) for row in batch["tokens"]]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
        labels = []
        for index, (tags, row) in enumerate(zip(batch["tags"], rows, strict=True)):
            places = encoded.word_ids(index)
            first = [place is not None and place not in places[:i] for i, place in enumerate(places)]
            labels.append([number(tags[p], row) if f else IGNORED for p, f in zip(places, first, strict=True)])
        return {**encoded, "labels": labels}

    def uie(batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        for column in ("content", "prompt"):
            check_texts(batch[column], column, rows)
        texts = list(batch["prompt"]), list(batch["content"])
        encoded = tokenizer(*texts, truncation="only_second", max_length=max_length)
        positions: dict[str, list[list[int]]] = {name: [] for name in POSITIONS}
        for index, (answers, row) in enumerate(zip(batch["result_list"], rows, strict=True)):
            places = answer_tokens(encoded, index, answers, row)
            for name, chosen in zip(POSITIONS, places, strict=True):
                positions[name].append([int(i in chosen) for i in range(len(encoded["input_ids"][index]))])
        return {**encoded, **positions}

    return {"classification": classification, "tokens": tokens, "uie": uie}[task]


def check_texts(values: Sequence[Any], column: str, rows: Sequence[int]) -> None:
    """Raises ValueError where a text is missing."""
    for value, row in zip(values, rows, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"Row {row} of the data has no text in column {column!r}: found {value!r}.")


def answer_tokens(encoded: Any, index: int, answers: list[dict[str, Any]], row: int) -> tuple[set[int], set[int]]:
    """First and last tokens of the answers to one prompt.

    Raises:
        ValueError: an answer outside the text, or behind where the text was cut.
    """
    starts, ends = set(), set()
    for answer in answers:
        start = encoded.char_to_token(index, answer["start"], sequence_index=1)
        end = encoded.char_to_token(index, answer["end"] - 1, sequence_index=1)
        if start is None or end is None or end < start:
            raise ValueError(
                f"Row {row} of the data has an answer at {answer['start']}..{answer['end']}, which is outside its "
                "content, or behind max_length. Cut long contents into rows first."
            )
        starts.add(start)
        ends.add(end)
    return starts, ends


def collator_of(task: str, tokenizer: Any) -> Any:
    """Pads rows to a batch."""
    if task == "classification":
        return DataCollatorWithPadding(tokenizer)
    if task == "tokens":
        return DataCollatorForTokenClassification(tokenizer)

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        plain = [{name: value for name, value in row.items() if name not in POSITIONS} for row in rows]
        batch = dict(tokenizer.pad(plain, return_tensors="pt"))
        length = batch["input_ids"].shape[1]
        for name in POSITIONS:
            batch[name] = torch.tensor([row[name] + [0] * (length - len(row[name])) for row in rows])
        return batch

    return collate


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of classes, or of tags, that are right."""
    labels = prediction.label_ids
    right = np.argmax(prediction.predictions, axis=-1) == labels
    return {"accuracy": float(right[labels != IGNORED].mean())}


if __name__ == "__main__":
    main()
