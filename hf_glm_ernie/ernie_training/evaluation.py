"""Measuring a finished model: a folder and a file of rows in, scores by class and the rows with mistakes out.

    folder -> model, or an exported file's runner -> outputs of every row -> ErnieTask.metrics and ErnieTask.report

The task ([`TASKS`]) says how rows are read, encoded and scored, the same as in training; what training learns from its
rows, such as the names of classes, is read off the model. Rows of like length share a batch, the longest come first.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, EvalPrediction
from transformers.utils import logging

from hf_glm_ernie.ernie_tasks.onnx_encoder import OnnxEncoder
from hf_glm_ernie.ernie_tasks.runners import call_model, longest_row
from hf_glm_ernie.host_arguments import one_of, probability_threshold, whole_number
from hf_glm_ernie.inference.batches import in_batches

from .data_files import find_split
from .end_to_end import score_schema
from .task import ErnieTask
from .tasks import TASKS

logger = logging.get_logger(__name__)

PADDING = -100  # as the `Trainer` pads predictions and labels
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"
MOST = float(np.nextafter(np.float32(1), np.float32(0)))
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class Evaluation:
    """What a model scores.

    Attributes:
        task: Name of the task.
        model: The folder.
        data: The file.
        rows: How many there are.
        scores: Over all rows; what they are called is the task's.
        by_class: Class, label, relation, option or type of entity -> its scores.
        mistakes: Rows with mistakes: `row`, its number, and what the task tells of it.
        end_to_end: Of UIE with a schema: the same of the whole schema, asked as [`uie`] asks it.
    """

    task: str
    model: str
    data: str
    rows: int
    scores: dict[str, float]
    by_class: dict[str, dict[str, float]]
    mistakes: list[dict[str, Any]]
    end_to_end: dict[str, Any] | None = field(default=None)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def evaluate_ernie(
    task: str,
    model: str | Path,
    data: str | Path,
    *,
    batch_size: int = 16,
    max_length: int = 512,
    device: str | None = None,
    dtype: str = "float32",
    schema: Any = None,
    show_progress: bool | None = None,
    **settings: Any,
) -> Evaluation:
    """Measures a finished model on a file of rows.

    Args:
        task: A name of [`TASKS`].
        model: Folder of a fine-tuned model; of an adapter that was trained on one (needs PEFT); or one that
            `examples/export_ernie.py` wrote (needs onnxruntime).
        data: Rows as for training; a folder's `dev` file.
        batch_size: Rows per forward.
        max_length: Tokens per row, at most what the model has positions for.
        device: Where a model runs, such as "cuda:1"; `None`: a CUDA device where there is one.
        dtype: Of the weights: "auto" (as stored), "float32", "bfloat16", "float16".
        schema: Of UIE: the whole schema is asked as well, relations of the subjects that were found.
        show_progress: Whether to show progress bars; `None`: from a few batches on.
        **settings: The task's own, such as `threshold`; see its class.

    Raises:
        TypeError: a setting of another type.
        ValueError: an unknown task, a setting that the task does not read, a folder that holds another model, rows
            that are not what they should be.
        FileNotFoundError: no such folder or file.
        ImportError: a package is missing.

    ```python
    >>> from hf_glm_ernie import evaluate_ernie

    >>> found = evaluate_ernie("uie", "uie-tuned", "rows/dev.txt")
    >>> found.scores["f1"], found.by_class["产品"]["f1"], found.mistakes[:3]
    ```
    """
    one_of("task", task, TASKS)
    one_of("dtype", dtype, DTYPES)
    check_settings(task, settings)
    if settings.get("threshold") is not None:  # at 1 what is certain counts, in the fp32 of the kept probabilities
        settings["threshold"] = min(float(settings["threshold"]), MOST)
    batch_size, max_length = whole_number("batch_size", batch_size), whole_number("max_length", max_length)
    if schema is not None and task != "uie":
        raise ValueError(f"schema is UIE's, and task is {task!r}: leave it out.")
    folder, file = _model_folder(Path(model)), _data_file(Path(data))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = _config_of(folder)
    made = TASKS[task](tokenizer, min(max_length, config.max_position_embeddings), settings)
    rows = made.read(file)
    if not len(rows):
        raise ValueError(f"{file} holds no rows.")
    made.learn_of_model(config, rows)
    opened = open_finished(made, folder, device, dtype)
    made.max_length = longest_row(opened, tokenizer, max_length)
    encoded = rows.map(made.encode, batched=True, with_indices=True, remove_columns=rows.column_names)
    made.measure_on(rows, encoded)
    prediction = predict(made, opened, encoded, batch_size, show_progress)
    report = made.report(rows, encoded, prediction)
    whole = None
    if schema is not None:
        shared = {name: settings[name] for name in ("threshold", "language") if settings.get(name) is not None}
        shared |= {"batch_size": batch_size, "max_length": max_length, "show_progress": show_progress}
        whole = score_schema(opened, tokenizer, schema, rows, **shared)
    classes, mistakes = report.get("by_class", {}), report.get("mistakes", [])
    scores = made.metrics(prediction)
    return Evaluation(task, str(folder), str(file), len(rows), scores, classes, mistakes, whole)


def check_settings(task: str, settings: Mapping[str, Any]) -> None:
    """Raises ValueError where a setting is not read by a task, or out of range."""
    reads = TASKS[task].reads
    for name, value in settings.items():
        if reads is not None and name not in reads and value is not None:
            known = ", ".join(reads) or "none"
            raise ValueError(f"{name} is not read by the task {task}, whose settings are: {known}.")
    if settings.get("threshold") is not None:
        probability_threshold("threshold", settings["threshold"])
    for name, allowed in (("language", ("zh", "en")), ("cut", ("windows", "sentences"))):
        if settings.get(name) is not None:
            one_of(name, settings[name], allowed)


def open_finished(task: ErnieTask, folder: Path, device: str | None, dtype: str) -> Any:
    """Opens what a folder holds: weights, an adapter on the model it names, or an exported file.

    Args:
        task: That knows the folder's classes.
        folder: The folder.
        device: Where a model runs; `None`: a CUDA device where there is one. An exported file runs where onnxruntime
            runs it.
        dtype: Of the weights.

    Raises:
        ValueError: none of these is in the folder, or a model without the task's head.
        ImportError: the package that opens it is missing.
    """
    options = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if (folder / ADAPTER).is_file():
        from hf_glm_ernie.finetuning.weight_only import load_adapter  # needs PEFT

        base = _base_of(folder)
        return load_adapter(task.open_model(base, **options), folder).to(place).eval()
    if any((folder / name).is_file() for name in WEIGHTS):
        model = task.open_model(str(folder), **options).to(place).eval()
        stored = AutoConfig.from_pretrained(folder).architectures or []
        if type(model).__name__ not in stored:  # what was opened has a head of random values
            raise ValueError(
                f"{folder} holds {', '.join(stored) or 'no class'} without the head of this task, "
                f"{type(model).__name__}: train it (examples/finetune_ernie.py), or name the task it was trained for."
            )
        return model
    if any(folder.glob("*.onnx")):
        return OnnxEncoder(folder)
    raise ValueError(f"{folder} holds neither weights ({', '.join(WEIGHTS[:2])}), nor {ADAPTER}, nor an .onnx file.")


def predict(
    task: ErnieTask, model: Any, encoded: Any, batch_size: int, show_progress: bool | None = None
) -> EvalPrediction:
    """What a `Trainer`'s `predict` gives, of anything that runs a model.

    Args:
        task: Pads rows and says what of the outputs is kept.
        model: A transformers model, an [`OnnxEncoder`], or what is called alike.
        encoded: Of `task.encode`.
        batch_size: Rows per forward.
        show_progress: Whether to show a bar; `None`: from a few batches on.

    Returns:
        `predictions` and `label_ids`, an array (N, ...) or a tuple of them, padded with -100.
    """
    collate, taken = task.collator(), _inputs_of(model)
    columns = [name for name in encoded.column_names if name in {*taken, *task.label_names}]
    wanted = encoded.select_columns(columns) if taken else encoded

    def run(indices: list[int]) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
        batch = dict(collate([wanted[i] for i in indices]))
        labels = tuple(batch.pop(name) for name in task.label_names)
        inputs = {name: value for name, value in batch.items() if not taken or name in taken}
        outputs = call_model(model, inputs)
        kept: Any = tuple(value for name, value in outputs.items() if name != "loss")
        kept = kept[0] if len(kept) == 1 else kept
        if task.keep is not None:
            kept = task.keep(kept, labels if len(labels) > 1 else labels[0])
        tensors = kept if isinstance(kept, tuple) else (kept,)
        arrays = [[_array(one) for one in side] for side in (tensors, labels)]
        return [([one[i] for one in arrays[0]], [one[i] for one in arrays[1]]) for i in range(len(indices))]

    lengths = [len(ids) for ids in encoded["input_ids"]]
    found = in_batches(model, run, lengths, batch_size, what="Measuring", show_progress=show_progress)
    sides = ([_padded(column) for column in zip(*side, strict=True)] for side in zip(*found, strict=True))
    predictions: Any
    labels: Any
    predictions, labels = (one[0] if len(one) == 1 else tuple(one) for one in sides)
    return EvalPrediction(predictions=predictions, label_ids=labels)


def _inputs_of(model: Any) -> set[str]:
    """Names of the inputs that a model takes; none where it does not say."""
    names = getattr(model, "input_names", None)
    if names is not None:
        return set(names)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(base.forward).parameters) if hasattr(base, "forward") else set()


def _array(value: Any) -> np.ndarray:
    tensor = torch.as_tensor(value).detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of any length as one array, (N, ...)."""
    shape = np.max([row.shape for row in rows], axis=0).astype(int) if rows[0].ndim else ()
    whole = np.full((len(rows), *shape), PADDING, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        place: Any = (i, *(slice(size) for size in row.shape))
        whole[place] = row
    return whole


def _model_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: give that of a fine-tuned model.")
    return folder


def _data_file(file: Path) -> Path:
    """The file itself, or the one in a folder named `dev`."""
    if not file.is_dir():
        return file
    dev = find_split(file, "dev")
    if dev is None:
        raise ValueError(f"{file} is a folder without a dev file: name the file itself.")
    return dev


def _base_of(folder: Path) -> str:
    """The folder of the model that an adapter was trained on."""
    named = json.loads((folder / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not named:
        raise ValueError(f"{folder / ADAPTER} does not say which model the adapter was trained on.")
    return str(named)


def _config_of(folder: Path) -> Any:
    """The config in a folder; of an adapter without one, its base's."""
    if (folder / "config.json").is_file() or not (folder / ADAPTER).is_file():
        return AutoConfig.from_pretrained(folder)
    return AutoConfig.from_pretrained(_base_of(folder))


__all__ = ["Evaluation", "check_settings", "evaluate_ernie", "open_finished", "predict"]
