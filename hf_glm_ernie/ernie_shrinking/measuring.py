"""What a stage is worth: bytes of its weights, rows a second, the task's score.

Speeds are measured together at the end, in turns: each turn runs every stage once on the same batches, and a stage's
speed is that of its best turn. So what else the machine does hits all stages alike, and ratios hold where absolute
numbers do not.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments

from hf_glm_ernie.ernie_training.task import ErnieTask

Batch = Mapping[str, torch.Tensor]


@dataclass
class Stage:
    """A row of the table.

    Attributes:
        name: What was done.
        runtime: `torch` or `onnxruntime`.
        path: Folder or file that holds it, under the output; `None` where it was not kept.
        size: Bytes of its weights on disk.
        score: The task's best metric, on the rows to evaluate on.
        rows_a_second: Of the evaluation's rows; 0 until it is measured.
        scores: Every metric.
    """

    name: str
    runtime: str
    path: str | None
    size: int
    score: float
    rows_a_second: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The stage for a JSON file."""
        return asdict(self)


class AsModule(nn.Module):
    """Something that is called like a model, such as an [`OnnxEncoder`], as the host's `Trainer` takes it.

    Args:
        run: Takes inputs by name, gives outputs by name.
        names: Inputs that it takes; others are left out.
    """

    def __init__(self, run: Callable[..., Any], names: Sequence[str]):
        super().__init__()
        self.run, self.names = run, tuple(names)

    def forward(self, **inputs: torch.Tensor) -> Any:
        """The outputs for the inputs that are known; rows without token types are of type 0, as for a model."""
        inputs.setdefault("token_type_ids", torch.zeros_like(inputs["input_ids"]))
        return self.run(**{name: value for name, value in inputs.items() if name in self.names})


NOT_SCORED = ("loss", "hidden_states", "attentions")


class _Scoring(Trainer):
    """A `Trainer` that predicts with whatever gives outputs: there need be no loss."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """No loss, and the outputs but for one."""
        outputs = {name: value for name, value in model(**inputs).items() if name not in NOT_SCORED}
        loss = torch.zeros(())
        return (loss, outputs) if return_outputs else loss


def score_of(model: nn.Module, task: ErnieTask, rows: Any, batch_size: int, folder: Path) -> dict[str, float]:
    """The task's metrics on encoded rows, through the host's evaluation loop.

    Args:
        model: A model, or [`AsModule`].
        task: It makes batches, and scores.
        rows: A dataset with what the model takes, and labels.
        batch_size: Rows at once.
        folder: For the host, which asks for one; nothing is written there.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=batch_size,
        label_names=list(task.label_names),
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=isinstance(model, AsModule),
    )
    trainer = _Scoring(
        model=model,
        args=arguments,
        data_collator=task.collator(),
        compute_metrics=task.metrics,
        preprocess_logits_for_metrics=task.keep,
    )
    found = trainer.predict(rows, metric_key_prefix="eval").metrics or {}
    beside = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    names = {name: name.removeprefix("eval_") for name in found}
    return {short: float(found[name]) for name, short in names.items() if short not in beside}


def measure_speeds(
    runs: Mapping[str, Callable[[Batch], Any]],
    batches: Mapping[str, Sequence[Batch]],
    turns: int = 5,
    show_progress: bool = True,
) -> dict[str, float]:
    """Rows a second of each run, measured in turns.

    Args:
        runs: Stage -> what it does with a batch.
        batches: Stage -> the same rows, as its tokenizer has them.
        turns: Times that every run sees every batch, after one that is not counted.
        show_progress: Whether to draw a progress bar.
    """
    best = dict.fromkeys(runs, float("inf"))
    for turn in tqdm(range(turns + 1), desc="speed", unit="turn", disable=not show_progress):
        for name, run in runs.items():
            began = time.perf_counter()
            for batch in batches[name]:
                run(batch)
            if turn:
                best[name] = min(best[name], time.perf_counter() - began)
    return {name: sum(len(batch["input_ids"]) for batch in batches[name]) / best[name] for name in runs}


def size_of(path: Path) -> int:
    """Bytes of a file, or of the weights in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.iterdir() if one.suffix in (".safetensors", ".bin"))


def table_of(stages: Iterable[Stage], metric: str) -> str:
    """The stages as a table of text: size, speed and score, and what they are of the first stage's."""
    stages = list(stages)
    first = stages[0]
    lines = [f"{'stage':<28}{'runtime':<13}{'MiB':>8}{'size':>7}{'rows/s':>9}{'speed':>8}{metric:>11}{'score':>8}"]
    for one in stages:
        of_first = one.score / first.score if first.score else float("nan")
        lines.append(
            f"{one.name:<28}{one.runtime:<13}{one.size / 2**20:>8.2f}{one.size / first.size:>7.1%}"
            f"{one.rows_a_second:>9.1f}{one.rows_a_second / first.rows_a_second:>7.2f}x"
            f"{one.score:>11.4f}{of_first:>8.1%}"
        )
    return "\n".join(lines)


def plot_stages(stages: Sequence[Stage], metric: str, path: Path) -> bool:
    """Draws score over size, each stage as large as it is fast; `False` where matplotlib is missing.

    Args:
        stages: Measured.
        metric: Name of the score.
        path: The picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    fastest = max(one.rows_a_second for one in stages)
    for number, one in enumerate(stages, start=1):
        area = 40 + 360 * one.rows_a_second / fastest
        axes.scatter(one.size / 2**20, one.score, s=area, alpha=0.6, label=f"{number} {one.name} ({one.runtime})")
        axes.annotate(str(number), (one.size / 2**20, one.score), ha="center", va="center", fontsize=8)
    axes.set(xscale="log", xlabel="size of the weights (MiB)", ylabel=metric, title="area of a point: rows a second")
    axes.legend(fontsize=8, markerscale=0.4)
    figure.savefig(path)
    return True


__all__ = ["AsModule", "Stage", "measure_speeds", "plot_stages", "score_of", "size_of", "table_of"]
