"""Runs the authors' evaluation tasks: a YAML file and its data in, metrics of each file and group out.

The parts: `tasks` reads, `scoring` and `answers` run the model, `metrics` counts.

Source: `evaluation/tasks.py` and `tasks` of the GLM-130B repository.
"""

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_glm_ernie.host_arguments import check_model_and_tokenizer, short, whole_number

from .answers import answer_ids, answer_text, generate_answers, lambada_bans, last_word, last_words
from .metrics import (
    accuracy,
    best_over_truths,
    bits_per_byte,
    exact_match,
    perplexity,
    same_word,
    word_f1,
)
from .scoring import TextLoss, cond_log_probs, lm_loss
from .tasks import (
    GenerationTaskConfig,
    LanguageModelTaskConfig,
    TaskConfig,
    TaskRow,
    read_rows,
    read_task,
    read_texts,
    task_files,
)


@dataclass(frozen=True)
class FileResult:
    """What one data file gave.

    Attributes:
        metrics: Value by name.
        size: What the file counts for in an average: its rows, or its windows.
        predictions: One for each row: the index of the choice taken (CrowS-Pairs: its log-probability), or the
            answer; the loss of each text in a language-modelling task.
    """

    metrics: dict[str, float]
    size: int
    predictions: list[Any]


@dataclass(frozen=True)
class TaskResult:
    """What a task gave.

    Attributes:
        name: Name of the task.
        files: For each group its files, by their path below the task's folder.
    """

    name: str
    files: dict[str, dict[str, FileResult]]

    @property
    def groups(self) -> dict[str, dict[str, dict[str, float]]]:
        """For each group and metric `max`, `median` and `average` over the files, the last weighted by their size."""
        return {group: summarize(files) for group, files in self.files.items()}

    @property
    def overall(self) -> dict[str, dict[str, float]]:
        """As `groups`, over all files (the authors print it for MMLU)."""
        return summarize({f"{group}/{name}": r for group, files in self.files.items() for name, r in files.items()})

    def describe(self) -> str:
        """The result as text, a line for each file and metric."""
        lines = [f"{self.name}:"]
        for group, files in self.files.items():
            for name, result in files.items():
                values = ", ".join(f"{metric} = {value:.3f}" for metric, value in result.metrics.items())
                lines.append(f"    {name} ({result.size}): {values}")
            lines += _summary_lines(f"group {group}", self.groups[group])
        if len(self.files) > 1:
            lines += _summary_lines("overall", self.overall)
        return "\n".join(lines)


def _summary_lines(name: str, summary: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"  {name} {metric}: " + ", ".join(f"{kind} = {value:.3f}" for kind, value in values.items())
        for metric, values in summary.items()
    ]


def summarize(files: dict[str, FileResult]) -> dict[str, dict[str, float]]:
    """Largest, median and average (weighted by size) value of each metric over files that have it."""
    summary = {}
    for metric in dict.fromkeys(metric for result in files.values() for metric in result.metrics):
        having = [result for result in files.values() if metric in result.metrics]
        values, sizes = [result.metrics[metric] for result in having], [result.size for result in having]
        average = sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
        summary[metric] = {"max": max(values), "median": statistics.median(values), "average": average}
    return summary


def evaluate_task(
    model: Any,
    tokenizer: Any,
    task: str | os.PathLike[str] | TaskConfig,
    data_path: str | os.PathLike[str],
    *,
    max_seq_length: int | None = None,
    batch_size: int | None = None,
    masks_in_text: bool = True,
    progress: bool = True,
) -> TaskResult:
    """Runs a task of the authors' evaluation.

    Args:
        model: A `Glm130bForCausalLM`.
        tokenizer: Its tokenizer.
        task: A YAML file in the authors' format, or a config that `read_task` made.
        data_path: Folder below which the task's `path` lies.
        max_seq_length: In place of the task's, for a model with a shorter context.
        batch_size: Rows per forward, in place of the task's `micro_batch_size`.
        masks_in_text: Whether a `[MASK]` written in a text is that token; the authors' tokenizer takes it for text.
        progress: Whether to show bars.

    Returns:
        Metrics and predictions of each file.

    Raises:
        FileNotFoundError: no task file, or a group without data.
        TypeError: no model or no tokenizer where it belongs, a count that is no number.
        ValueError: a mistake in task file or data, a count below 1, or rows longer than the model's context.
    """
    check_model_and_tokenizer(model, tokenizer)
    for name, value in (("max_seq_length", max_seq_length), ("batch_size", batch_size)):
        if value is not None:
            whole_number(name, value)
    if not isinstance(task, TaskConfig | str | os.PathLike):
        raise TypeError(f"task={short(task)} is a {type(task).__name__}; it must be a YAML file or a task's config.")
    config = task if isinstance(task, TaskConfig) else read_task(task)
    size = config.max_seq_length if max_seq_length is None else max_seq_length
    context = model.config.max_position_embeddings
    if size > context:
        raise ValueError(
            f"Task {config.name!r} asks for max_seq_length={size}, and the model's context is {context}: pass "
            f"max_seq_length={context}, or write it into the task file."
        )
    common = {
        "use_task_mask": config.use_task_mask,
        "max_seq_length": size,
        "batch_size": batch_size or config.micro_batch_size,
        "progress": progress,
    }
    run: Callable[..., FileResult] = {"mul": _choices, "gen": _answers, "lm": _texts}[config.type]
    if config.type != "lm":
        common["masks_in_text"] = masks_in_text
    folder = Path(data_path) / config.path
    results = {
        group: {str(path.relative_to(folder)): run(model, tokenizer, config, path, common) for path in paths}
        for group, paths in task_files(config, data_path).items()
    }
    return TaskResult(config.name, results)


def _read(model: Any, tokenizer: Any, config: TaskConfig, path: Path, common: dict[str, Any]) -> list[TaskRow]:
    return read_rows(path, tokenizer, config, model.config.vocab_size, masks_in_text=common["masks_in_text"])


def _choices(model: Any, tokenizer: Any, config: TaskConfig, path: Path, common: dict[str, Any]) -> FileResult:
    rows = _read(model, tokenizer, config, path, common)
    scores = cond_log_probs(
        model,
        tokenizer,
        [row.text for row in rows],
        [row.candidates for row in rows],
        unified_multitask_encoding=config.use_multitask_encoding,
        **common,
    )
    author = config.author_task
    if author.mean_log_probs:
        scores = [
            [value / len(candidate) for value, candidate in zip(values, row.candidates, strict=True)]
            for values, row in zip(scores, rows, strict=True)
        ]
    predictions: list[Any] = [values.index(max(values)) for values in scores]
    if author.metric_of_log_probs:
        predictions = [values[0] for values in scores]
    if author.metric is not None:
        return FileResult(author.metric(predictions, [row.data for row in rows]), len(rows), predictions)
    value = accuracy(predictions, [row.label for row in rows])  # the micro-averages are the same number
    return FileResult(dict.fromkeys(config.metrics, value), len(rows), predictions)


def _answers(model: Any, tokenizer: Any, config: TaskConfig, path: Path, common: dict[str, Any]) -> FileResult:
    assert isinstance(config, GenerationTaskConfig)
    rows = _read(model, tokenizer, config, path, common)
    settings: dict[str, Any] = {"max_gen_length": config.max_gen_length, "unidirectional": config.unidirectional}
    takes_last_word = config.author_task.takes_last_word
    if config.sampling_strategy == "BeamSearchStrategy":
        names = ("num_beams", "length_penalty", "no_repeat_ngram_size", "min_gen_length")
        settings |= {name: getattr(config, name) for name in names}
        if takes_last_word:
            settings["invalid_ids"], settings["banned_prefixes"] = lambada_bans(tokenizer)
    answers = answer_ids(model, tokenizer, [row.text for row in rows], **settings, **common)
    ids = [last_word(tokenizer, beams) if takes_last_word else beams[0] for beams in answers]
    predictions = [answer_text(tokenizer, answer) for answer in ids]
    truths = [[answer_text(tokenizer, answer) for answer in row.candidates] for row in rows]
    metrics = {"Accuracy": same_word} if takes_last_word else {"EM": exact_match, "F1": word_f1}
    values = {
        name: best_over_truths(metric, predictions, truths)
        for name, metric in metrics.items()
        if takes_last_word or name in config.metrics
    }
    return FileResult(values, len(rows), predictions)


def _texts(model: Any, tokenizer: Any, config: TaskConfig, path: Path, common: dict[str, Any]) -> FileResult:
    assert isinstance(config, LanguageModelTaskConfig)
    texts = read_texts(path, tokenizer, config, model.config.vocab_size)
    losses = lm_loss(
        model,
        tokenizer,
        [text.ids for text in texts],
        generation_length=config.generation_length,
        unidirectional=config.unidirectional,
        **common,
    )
    windows, predictions = sum(len(loss.windows) for loss in losses), [loss.loss for loss in losses]
    if config.author_task.has_rows:
        values = {}
        for group in dict.fromkeys(text.group for text in texts):
            chosen = [(loss, text) for loss, text in zip(predictions, texts, strict=True) if text.group == group]
            values[f"BPB:{group}"] = bits_per_byte(sum(x for x, _ in chosen), sum(t.num_bytes for _, t in chosen))
        return FileResult(values, windows, predictions)
    values = {"PPL": perplexity(predictions[0], texts[0].num_words)}
    values["BPB"] = bits_per_byte(predictions[0], texts[0].num_bytes)
    return FileResult({name: values[name] for name in config.metrics}, windows, predictions)


__all__ = [
    "FileResult",
    "TaskResult",
    "TextLoss",
    "cond_log_probs",
    "evaluate_task",
    "generate_answers",
    "last_words",
    "lm_loss",
    "summarize",
]
