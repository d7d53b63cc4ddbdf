"""Labels of whole texts: one class, several, or a number; and their scores.

What the column holds decides, unless the user does: strings, whole numbers and truth values name classes; lists name
all classes that hold, none, one or several; numbers with a fraction are what is to be predicted (regression), never
names.
"""

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

    def encode(self, label: Any, row: int) -> Any:
        """A label as the model takes it: a number of a class, a 0.0 or 1.0 for every class, or a number.

        Raises:
            ValueError: a class that the training data does not have, or no number.
        """
        if self.kind == REGRESSION:
            if isinstance(label, str | bool) or not isinstance(label, int | float) or not np.isfinite(label):
                raise ValueError(f"Row {row} of the data has the label {label!r}, which is no number.")
            return float(label)
        for one in label if self.kind == MULTI and isinstance(label, list | tuple) else [label]:
            if isinstance(one, list) or one not in self._numbers:
                raise ValueError(
                    f"Row {row} of the data has {one!r}, which is none of {self.names} of the training data."
                )
        if self.kind == SINGLE:
            return self._numbers[label]
        return [float(name in label) for name in self.names]

    def metrics(self, prediction: Any) -> dict[str, float]:
        """The `compute_metrics` of a `Trainer`.

        Args:
            prediction: Its `predictions` are logits (N, classes), (N, 1) for regression, its `label_ids` what
                [`encode`] gave.

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
        counts = self.class_counts(prediction).values()
        return {
            "micro_f1": total(counts).f1,
            "macro_f1": sum(one.f1 for one in counts) / len(counts),
            "accuracy": float(((logits > 0) == (labels == 1)).all(-1).mean()),
        }

    def class_counts(self, prediction: Any) -> dict[Any, Counts]:
        """Class -> how often it was found; nothing for regression. A class holds where its logit is above 0."""
        logits, labels = prediction.predictions, prediction.label_ids
        if self.kind == REGRESSION:
            return {}
        classes = range(len(self.names))
        found = np.stack([logits.argmax(-1) == c for c in classes], -1) if self.kind == SINGLE else logits > 0
        gold = np.stack([labels == c for c in classes], -1) if self.kind == SINGLE else labels == 1
        return {
            name: Counts(int((f & g).sum()), int(f.sum()), int(g.sum()))
            for name, f, g in zip(self.names, found.T, gold.T, strict=True)
        }


__all__ = ["KINDS", "ClassLabels", "kind_of_labels"]
