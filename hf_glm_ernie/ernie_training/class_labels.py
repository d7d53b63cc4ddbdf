"""Labels of whole texts: one class, several, or a number; and their scores.

What the column holds decides, unless the user does: strings, whole numbers and truth values name classes; lists name
all classes that hold, none, one or several; numbers with a fraction are what is to be predicted (regression), never
names.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .counts import Counts, total

KINDS = ("single_label_classification", "multi_label_classification", "regression")
"""transformers' names (`config.problem_type`)."""
SINGLE, MULTI, REGRESSION = KINDS


def kind_of_labels(labels: Sequence[Any]) -> str:
    """What a column of labels asks for.

    Raises:
        ValueError: a row without a label, or rows of different kinds.
    """
    kinds: dict[str, int] = {}
    for row, label in enumerate(labels):
        if label is None or label == "" or (isinstance(label, float) and not np.isfinite(label)):
            raise ValueError(f"Row {row} of the data has no label: found {label!r}.")
        if isinstance(label, list | tuple):
            _check_classes(label, row)
            kind = MULTI
        elif isinstance(label, str | int):
            kind = SINGLE
        elif isinstance(label, float):
            kind = REGRESSION
        else:
            raise ValueError(
                f"Row {row} of the data has the label {label!r}, a {type(label).__name__}. A label is the name of a "
                "class, a list of names, or a number with a fraction."
            )
        kinds.setdefault(kind, row)
    if len(kinds) > 1:
        (first, row), (second, other) = list(kinds.items())[:2]
        raise ValueError(f"Row {row} of the data has a label for {first}, row {other} one for {second}.")
    return next(iter(kinds), SINGLE)


def _check_classes(label: Sequence[Any], row: int) -> None:
    for one in label:
        if not isinstance(one, str | int) or one == "":
            raise ValueError(
                f"Row {row} of the data has the list of labels {list(label)!r}: lists name the classes that hold."
            )


class ClassLabels:
    """What a column of training labels asks for, and how a label is given to the model.

    Args:
        labels: Of the training rows.
        kind: One of [`KINDS`]; `None`: as [`kind_of_labels`] says.

    Attributes:
        kind: One of [`KINDS`].
        names: The classes, sorted; none for regression.

    Raises:
        ValueError: labels that are missing, of different kinds, or that the kind cannot take.
    """

    def __init__(self, labels: Sequence[Any], kind: str | None = None):
        found = kind_of_labels(labels)
        if kind is not None and kind not in KINDS:
            raise ValueError(f"problem_type={kind!r} is not one of {', '.join(KINDS)}.")
        self.kind = kind or found
        if {self.kind, found} in ({SINGLE, MULTI}, {REGRESSION, MULTI}) or (self.kind == SINGLE and found != SINGLE):
            raise ValueError(
                f"problem_type={kind!r}, but the labels are those of {found}: {labels[0]!r} is the first."
            )
        held = {one for label in labels for one in (label if self.kind == MULTI else [label])}
        self.names: list[Any] = [] if self.kind == REGRESSION else sorted(held, key=str)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    @classmethod
    def of_model(cls, config: Any, kind: str | None = None) -> "ClassLabels":
        """The classes of a finished model; what [`encode`] takes are their names, or numbers where they have none.

        Args:
            config: Of the model: `id2label`, `problem_type`.
            kind: One of [`KINDS`]; `None`: as the config says, else one class, or a number where there is one output.

        Raises:
            ValueError: another kind.
        """
        kind = kind or config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)
        if kind not in KINDS:
            raise ValueError(f"problem_type={kind!r} is not one of {', '.join(KINDS)}.")
        labels = cls.__new__(cls)
        labels.kind = kind
        labels.names = [] if kind == REGRESSION else [config.id2label[i] for i in range(config.num_labels)]
        labels._numbers = numbers_of_names(labels.names)
        return labels

    def encode(self, label: Any, row: int) -> Any:
        """A label as the model takes it: a number of a class, a 0.0 or 1.0 for every class, or a number.

        Raises:
            ValueError: a class that the training data does not have, or no number.
        """
        if self.kind == REGRESSION:
            if isinstance(label, str | bool) or not isinstance(label, int | float) or not np.isfinite(label):
                raise ValueError(f"Row {row} of the data has the label {label!r}, which is no number.")
            return float(label)
        held = label if self.kind == MULTI and isinstance(label, list | tuple) else [label]
        for one in held:
            if isinstance(one, list) or one not in self._numbers:
                raise ValueError(
                    f"Row {row} of the data has {one!r}, which is none of {self.names} of the training data."
                )
        if self.kind == SINGLE:
            return self._numbers[label]
        numbers = {self._numbers[one] for one in held}
        return [float(number in numbers) for number in range(len(self.names))]

    def metrics(self, prediction: Any, threshold: float = 0.5) -> dict[str, float]:
        """The `compute_metrics` of a `Trainer`.

        Args:
            prediction: Its `predictions` are logits (N, classes), (N, 1) for regression, its `label_ids` what
                [`encode`] gave.
            threshold: Of several classes those hold whose probability is above this.

        Returns:
            `accuracy` of single classes; `micro_f1`, `macro_f1` (mean over the classes) and `accuracy` (rows with all
            classes right) of several; `mse` and `pearson` of numbers.
        """
        logits, labels = prediction.predictions, prediction.label_ids
        if self.kind == REGRESSION:
            found, gold = logits.reshape(-1).astype(float), labels.reshape(-1).astype(float)
            constant = found.std() == 0 or gold.std() == 0
            return {
                "mse": float(((found - gold) ** 2).mean()),
                "pearson": 0.0 if constant else float(np.corrcoef(found, gold)[0, 1]),
            }
        if self.kind == SINGLE:
            return {"accuracy": float((logits.argmax(-1) == labels).mean())}
        counts = self.class_counts(prediction, threshold).values()
        return {
            "micro_f1": total(counts).f1,
            "macro_f1": sum(one.f1 for one in counts) / len(counts),
            "accuracy": float((self.holding(logits, threshold) == (labels == 1)).all(-1).mean()),
        }

    def holding(self, logits: np.ndarray, threshold: float = 0.5) -> np.ndarray:
        """(N, classes) whether a class holds: the likeliest of one, of several each whose probability is above a
        threshold.
        """
        if self.kind == SINGLE:
            return logits.argmax(-1)[:, None] == np.arange(len(self.names))
        return logits > (math.log(threshold / (1 - threshold)) if threshold else -math.inf)

    def held(self, labels: np.ndarray) -> np.ndarray:
        """(N, classes) whether a class holds, from what [`encode`] gave."""
        return labels[:, None] == np.arange(len(self.names)) if self.kind == SINGLE else labels == 1

    def class_counts(self, prediction: Any, threshold: float = 0.5) -> dict[Any, Counts]:
        """Class -> how often it was found; nothing for regression."""
        logits, labels = prediction.predictions, prediction.label_ids
        if self.kind == REGRESSION:
            return {}
        found, gold = self.holding(logits, threshold), self.held(labels)
        return {
            name: Counts(int((f & g).sum()), int(f.sum()), int(g.sum()))
            for name, f, g in zip(self.names, found.T, gold.T, strict=True)
        }


def numbers_of_names(names: Sequence[str]) -> dict[Any, int]:
    """Number of every class or tag of a model, by its name; by what data calls it where a name is a number or truth
    value written out, or was never given (`LABEL_3`).
    """
    numbers: dict[Any, int] = {}
    for number, name in enumerate(names):
        if name == f"LABEL_{number}":
            numbers[number] = number
        elif name in ("True", "False"):
            numbers[name == "True"] = number
        elif name.isdecimal():
            numbers[int(name)] = number
        numbers[name] = number
    return numbers


__all__ = ["KINDS", "ClassLabels", "kind_of_labels", "numbers_of_names"]
