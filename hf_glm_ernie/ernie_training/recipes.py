"""PaddleNLP's published settings for CLUE, each with the score that it published, by names like `clue/tnews/MODEL`.

For ten models PaddleNLP published, for every task of CLUE, the learning rate and the batch size that a grid search
found best, and the dev score of that run (`GRID`, `CLUE`): the best of all evaluations, every 100 steps (tasks of
classes) or every epoch (reading). So did it for the ERNIE 3.0 Tiny v2 models, but only the scores: the settings of the
v1 model of their size stand in, which a note says. Without a model, `clue/TASK` takes the settings that
`model_zoo/ernie-3.0/configs/default.yml` gives to all models.

What is the same in all: AdamW, weight decay 0.01 on matrices, warm-up over the first tenth (CHID: 0.06), then linearly
to 0, gradients clipped to 1, seed 42.

Source: PaddleNLP at 00c5293, `examples/benchmark/clue/README.md` (settings, scores; later versions give others to
xbase, 78.39 on average in place of 78.71), `classification/run_clue_classifier.py`, `mrc/run_c3.py`, `run_chid.py`;
`model_zoo/ernie-3.0/configs/default.yml`, `README.md` (MSRA); at 09b1ced, `model_zoo/ernie-tiny/README.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ClueTask:
    """What all models have in common on a task of CLUE.

    Attributes:
        task: Its name in `TASKS`.
        epochs: Of the published runs.
        length: Tokens of a row.
        usual: (learning rate, batch size, epochs) for any model.
        warmup: Share of the steps.
        scores: The metrics that are published.
        settings: Of the script, beside those above.
    """

    task: str
    epochs: int
    length: int
    usual: tuple[float, int, int]
    warmup: float = 0.1
    scores: tuple[str, ...] = ("accuracy",)
    settings: Mapping[str, Any] = field(default_factory=dict)


TASKS_OF_CLUE = {
    "afqmc": ClueTask("classification", 3, 128, (3e-5, 16, 1)),
    "tnews": ClueTask("classification", 3, 128, (5e-5, 32, 3)),
    "iflytek": ClueTask("classification", 3, 128, (5e-5, 16, 3)),
    "cmnli": ClueTask("classification", 2, 128, (2e-5, 32, 4)),
    "ocnli": ClueTask("classification", 5, 128, (5e-5, 64, 6)),
    "cluewsc2020": ClueTask("classification", 50, 128, (3e-5, 16, 50)),
    "csl": ClueTask("classification", 5, 256, (5e-5, 64, 8)),
    "cmrc2018": ClueTask(
        "qa",
        2,
        512,
        (5e-5, 8, 1),
        scores=("exact_match", "f1"),
        settings={"doc_stride": 128, "n_best": 20, "max_answer_length": 50},
    ),
    "chid": ClueTask("choice", 3, 64, (2e-5, 24, 3), warmup=0.06),  # its script's and its example's
    "c3": ClueTask("choice", 8, 512, (2e-5, 24, 8)),  # likewise
    "msra_ner": ClueTask("tokens", 1, 128, (5e-5, 8, 1), scores=("f1",)),
}
"""In the order of PaddleNLP's tables; MSRA is none of CLUE's, but among its examples for ERNIE 3.0."""

IN_GRID = ("afqmc", "tnews", "iflytek", "cmnli", "ocnli", "cluewsc2020", "csl", "cmrc2018", "chid", "c3")
BY_EPOCH = ("cmrc2018", "chid", "c3")
DECISIVE = (
    *("task", "method", "learning_rate", "num_train_epochs", "max_length", "warmup_steps", "weight_decay", "dropout"),
    *("doc_stride", "n_best", "max_answer_length"),
)
EVALUATE_EVERY = 100  # steps, for the others

GRID = {
    "ernie-2.0-large-zh": "1/32 3/64 3/32 2/32 1/16 3/32 1/64 2/24 2/24 3/32",
    "ernie-3.0-xbase-zh": "2/16 3/32 3/32 3/64 3/64 2/32 1/16 3/24 2/24 3/24",
    "ernie-3.0-base-zh": "3/16 3/32 5/32 3/32 2/64 2/16 2/32 2/24 3/24 3/32",
    "ernie-gram-zh": "1/16 5/16 5/16 2/32 2/64 3/16 3/64 3/32 2/24 2/24",
    "ernie-2.0-base-zh": "3/64 3/64 5/16 5/64 5/32 5/16 2/16 2/32 3/24 3/32",
    "ernie-1.0-base-zh": "3/16 3/32 5/16 5/32 3/16 2/8 2/16 3/32 3/24 3/24",
    "ernie-3.0-medium-zh": "3/32 3/64 5/32 2/32 1/64 3/16 2/32 3/24 2/24 1/24",
    "ernie-3.0-mini-zh": "5/64 5/64 5/16 5/32 2/16 2/8 2/16 3/24 3/24 3/24",
    "ernie-3.0-micro-zh": "3/16 5/32 5/16 5/16 2/32 5/16 3/64 3/24 3/32 3/24",
    "ernie-3.0-nano-zh": "2/32 5/16 5/16 5/16 3/16 1/8 3/32 3/24 3/24 2/24",
}
"""Model -> learning rate in 1e-5, and batch size (over all cards), of the tasks in `IN_GRID`."""

CLUE = {
    "ernie-2.0-large-zh": "76.41 59.67 62.29 83.82 79.69 89.14 84.10 71.48/90.35 85.52 78.12",
    "ernie-3.0-xbase-zh": "76.85 59.89 62.41 84.76 82.51 89.80 84.47 75.49/92.67 86.36 84.59",
    "ernie-3.0-base-zh": "75.93 58.26 61.56 83.02 80.10 86.18 82.63 70.71/90.41 84.26 77.88",
    "ernie-gram-zh": "75.28 57.88 60.87 82.90 79.08 88.82 82.83 71.82/90.38 84.04 73.69",
    "ernie-2.0-base-zh": "76.25 58.53 61.72 83.07 78.81 84.21 82.77 68.22/88.71 82.78 73.19",
    "ernie-1.0-base-zh": "74.84 58.91 62.25 81.68 76.58 85.20 82.77 67.32/87.83 82.47 69.68",
    "ernie-3.0-medium-zh": "73.37 57.00 60.67 80.64 76.88 79.28 81.60 65.83/87.30 79.91 69.73",
    "ernie-3.0-mini-zh": "71.85 55.24 54.48 77.19 73.08 71.05 79.30 58.53/81.97 69.71 58.60",
    "ernie-3.0-micro-zh": "71.15 55.05 53.83 74.81 70.41 69.08 76.50 53.77/77.82 62.26 55.53",
    "ernie-3.0-nano-zh": "70.51 54.57 48.36 74.97 70.61 68.75 75.93 52.00/76.35 58.91 55.11",
    "ernie-3.0-tiny-base-v2-zh": "77.43 59.11 61.49 84.56 81.86 82.57 82.50 68.87/89.96 83.55 81.16",
    "ernie-3.0-tiny-medium-v2-zh": "75.88 57.86 61.64 82.89 80.27 79.93 81.27 65.86/87.62 80.75 75.86",
    "ernie-3.0-tiny-mini-v2-zh": "74.40 56.20 55.79 80.17 76.75 72.37 77.77 54.46/81.42 71.50 67.27",
    "ernie-3.0-tiny-micro-v2-zh": "72.52 55.45 54.33 77.81 74.85 66.45 74.43 37.50/69.48 64.89 62.24",
    "ernie-3.0-tiny-nano-v2-zh": "72.75 55.38 48.90 78.01 74.54 66.45 76.37 39.70/73.11 63.04 61.95",
    "ernie-3.0-tiny-pico-v2-zh": "69.35 52.50 21.05 65.65 64.03 63.49 68.60 5.96/29.40 36.77 42.79",
}
"""Model -> dev scores of the tasks in `IN_GRID`: accuracy; of CMRC 2018 exact match and F1."""

MSRA = {"ernie-3.0-medium-zh": "93.04"}
"""Model -> F1 on MSRA's test set, from the table of compressed models."""

STANDS_IN = {
    f"ernie-3.0-tiny-{size}-v2-zh": f"ernie-3.0-{'nano' if size == 'pico' else size}-zh"
    for size in ("base", "medium", "mini", "micro", "nano", "pico")
}
SAME = {f"ernie-3.0-tiny-{size}-v1-zh": f"ernie-3.0-{size}-zh" for size in ("base", "medium", "mini", "micro", "nano")}
"""Another name of the same model -> its name here."""

_THREE = ("ernie-3.0-base-zh", "ernie-3.0-medium-zh", "ernie-3.0-mini-zh", "ernie-3.0-micro-zh", "ernie-3.0-nano-zh")
NO_DROPOUT = {
    "cluewsc2020": (*_THREE, "ernie-gram-zh", "ernie-1.0-base-zh"),
    "iflytek": (*(name for name in _THREE if "medium" not in name), "ernie-gram-zh", "ernie-1.0-base-zh"),
}
"""Task -> models whose best run had no dropout."""


@dataclass(frozen=True)
class Recipe:
    """A task of CLUE as it was run.

    Attributes:
        name: As given.
        settings: Options of `examples/finetune_ernie.py`, by name; the batch size is that of all devices together.
        published: Metric -> score in percent; none where none was published for this name.
        note: What to know about the settings.
    """

    name: str
    settings: dict[str, Any]
    published: dict[str, float]
    note: str

    def changed(self, used: Mapping[str, Any]) -> list[str]:
        """What a run did otherwise, as `name=value (published)`, of the options that the score depends on.

        Args:
            used: Options of the run, by name.
        """
        return [
            f"{name}={used[name]} ({self.settings[name]})"
            for name in DECISIVE
            if name in used and name in self.settings and used[name] != self.settings[name]
        ]

    def beside(self, scores: Mapping[str, float], changed: Sequence[str] = ()) -> str:
        """The scores of a run beside the published ones, a line each.

        Args:
            scores: Metric, with or without `eval_` in front -> score; a share counts as percent.
            changed: Of [`changed`].
        """
        lines = [f"{self.name}: {self.note}"]
        if changed:
            lines.append(f"  here otherwise: {', '.join(changed)}")
        for metric in TASKS_OF_CLUE[self.name.split("/")[1]].scores:
            found = scores.get(metric, scores.get(f"eval_{metric}"))
            if found is not None:
                percent = found if self.settings["task"] == "qa" else 100 * found
                published = self.published.get(metric)
                beside = "none published for this name" if published is None else f"published {published:.2f}"
                lines.append(f"  {metric} {percent:.2f}   {beside}")
        return "\n".join(lines)


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Args:
        name: `clue/TASK` or `clue/TASK/MODEL`, the model by PaddleNLP's name with or without `-zh`.

    Raises:
        ValueError: there is none of this name; the message lists what there is.
    """
    parts = name.split("/")
    if parts[0] != "clue" or len(parts) not in (2, 3) or parts[1] not in TASKS_OF_CLUE:
        raise ValueError(
            f"recipe={name!r} is none of clue/TASK or clue/TASK/MODEL, the task one of {', '.join(TASKS_OF_CLUE)}; "
            f"the model, where one is given, one of {', '.join(CLUE)}."
        )
    task = parts[1]
    if len(parts) == 2:
        rate, batch, epochs = TASKS_OF_CLUE[task].usual
        return Recipe(name, _settings(task, rate, batch, epochs, None), {}, "the settings for any model")
    given = parts[2] if parts[2].endswith("-zh") else f"{parts[2]}-zh"
    model = SAME.get(given, given)
    if model not in CLUE:
        raise ValueError(
            f"recipe={name!r} names the model {parts[2]!r}; there are recipes for {', '.join([*CLUE, *SAME])}, and "
            f"clue/{task} for any."
        )
    published = _published(task, model)
    if task not in IN_GRID:
        rate, batch, epochs = TASKS_OF_CLUE[task].usual
        return Recipe(name, _settings(task, rate, batch, epochs, None), published, "the settings for any model")
    source = STANDS_IN.get(model, model)
    rate, batch = _best(task, source)
    note = "the best of a grid"
    if source != model:
        note += f", for {source}: that of {model} was not published"
    dropout = 0.0 if source in NO_DROPOUT.get(task, ()) else None
    return Recipe(name, _settings(task, rate, batch, TASKS_OF_CLUE[task].epochs, dropout), published, note)


def published_grid(name: str) -> list[dict[str, Any]]:
    """The settings that PaddleNLP searched for a recipe's task: `learning_rate`, `per_device_train_batch_size`, and
    `dropout` where that was searched as well.

    Raises:
        ValueError: no such recipe, or a task without a grid.
    """
    task = find_recipe(name).name.split("/")[1]
    if task not in IN_GRID:
        raise ValueError(f"No grid was published for {task}; there are grids for {', '.join(IN_GRID)}.")
    rates, batches = ((1, 2, 3), (24, 32)) if task in BY_EPOCH else ((1, 2, 3, 5), (16, 32, 64))
    batches = (8, *batches) if task == "cluewsc2020" else batches
    dropouts = ({}, {"dropout": 0.0}) if task in NO_DROPOUT else ({},)
    return [
        {"learning_rate": float(f"{rate}e-5"), "per_device_train_batch_size": batch, **dropout}
        for dropout in dropouts
        for rate in rates
        for batch in batches
    ]


def _best(task: str, model: str) -> tuple[float, int]:
    rate, batch = GRID[model].split()[IN_GRID.index(task)].split("/")
    return float(f"{rate}e-5"), int(batch)


def _published(task: str, model: str) -> dict[str, float]:
    scores = CLUE[model].split()[IN_GRID.index(task)] if task in IN_GRID else MSRA.get(model, "")
    numbers = [float(score) for score in scores.split("/") if score]
    return dict(zip(TASKS_OF_CLUE[task].scores, numbers, strict=False))


def _settings(task: str, rate: float, batch: int, epochs: int, dropout: float | None) -> dict[str, Any]:
    """Options of the script."""
    of_task = TASKS_OF_CLUE[task]
    every = "epoch" if task in BY_EPOCH else "steps"
    return {
        "task": of_task.task,
        "method": "full",
        "learning_rate": rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": 32,
        "max_length": of_task.length,
        "warmup_steps": of_task.warmup,
        "weight_decay": 0.01,
        "adam_epsilon": 1e-8,
        "seed": 42,
        "eval_strategy": every,
        "save_strategy": every,
        "eval_steps": EVALUATE_EVERY,
        "save_steps": EVALUATE_EVERY,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{of_task.scores[0]}",
        "greater_is_better": True,
        "dropout": dropout,
        **of_task.settings,
    }


__all__ = ["CLUE", "GRID", "IN_GRID", "TASKS_OF_CLUE", "Recipe", "find_recipe", "published_grid"]
