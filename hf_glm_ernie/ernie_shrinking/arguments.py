"""What `shrink` is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_glm_ernie.ernie_training.class_labels import KINDS
from hf_glm_ernie.ernie_training.tasks import TASKS
from hf_glm_ernie.ernie_training.uie_rows import CUTS

from .static_int8 import METHODS

EMBEDDINGS, DYNAMIC, STATIC = "embeddings", "dynamic", "static"
INT8_STEPS = (EMBEDDINGS, DYNAMIC, STATIC)
DATA, NONE = "data", "none"
"""For `vocabulary`: the rows of the task alone; no reduction."""


@dataclass(frozen=True)
class ShrinkArguments:
    """How an encoder is made smaller.

    Attributes:
        task: A name of `TASKS`.
        model: Folder of the teacher, trained for the task.
        data: Its rows, as they are trained on: a file, or a folder with `train` and `dev`.
        output: Folder to be made.
        eval_data: Rows that importance, ranges and scores are measured on, in place of the folder's `dev`.
        width: Share of heads and neurons that stay; 1: nothing is pruned.
        epochs: Of distillation, of which the one with the best score stays; 0: none.
        learning_rate: Its highest.
        batch_size: Rows at once, everywhere.
        vocabulary: What the kept tokens are of beside the rows: "data": nothing; else text files; "none": all stay.
        characters: Single characters that stay as well: "none", "ascii", "all", or the characters themselves.
        max_length: Tokens of a row, and positions that stay; `None`: as many as the model has, 512 at most.
        int8: Steps: "embeddings" (integers in the folder and in the exported files), "dynamic" and "static"
            (INT8 products in files for onnxruntime).
        calibration: How ranges are found for "static": "minmax", "percentile" or "entropy".
        calibration_rows: Rows they are found on.
        speed_rows: Rows that speeds are measured on.
        problem_type: Of classification, as in training.
        cut: Where long contents of uie are cut, as in training.
        language: Of uie's relation prompts.
        seed: Of everything random.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a value that is not one of the above; nothing to do.
    """

    task: str
    model: Path
    data: Path
    output: Path
    eval_data: Path | None = None
    width: float = 0.5
    epochs: float = 3
    learning_rate: float = 5e-5
    batch_size: int = 16
    vocabulary: Sequence[str] = (DATA,)
    characters: str = "ascii"
    max_length: int | None = None
    int8: Sequence[str] = INT8_STEPS
    calibration: str = "minmax"
    calibration_rows: int = 128
    speed_rows: int = 128
    problem_type: str | None = None
    cut: str = "windows"
    language: str = "zh"
    seed: int = 42

    def __post_init__(self) -> None:
        allowed: dict[str, Any] = {
            "task": TASKS,
            "calibration": METHODS,
            "problem_type": (None, *KINDS),
            "cut": CUTS,
            "language": ("zh", "en"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(filter(None, values))}.")
        for name in (
            "batch_size",
            "calibration_rows",
            "speed_rows",
            *(["max_length"] * (self.max_length is not None)),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a whole number above 0.")
        if not 0 < self.width <= 1:
            raise ValueError(f"width={self.width!r} is the share of heads and neurons that stay: above 0, at most 1.")
        if not self.epochs >= 0:
            raise ValueError(f"epochs={self.epochs!r} is below 0. 0 leaves distillation out.")
        if wrong := [step for step in self.int8 if step not in INT8_STEPS]:
            raise ValueError(f"int8={wrong[0]!r} is not one of {', '.join(INT8_STEPS)}.")
        if {NONE, DATA} & set(self.vocabulary) and len(self.vocabulary) > 1:
            raise ValueError(f"vocabulary={list(self.vocabulary)!r}: {DATA} and {NONE} stand alone; or name files.")
        for file in self.corpus_files:
            if not file.is_file():
                raise ValueError(f"vocabulary={str(file)!r} is no file, nor {DATA} (the rows alone) or {NONE}.")
        if self.width == 1 and not self.reduces_vocabulary and not self.int8:
            raise ValueError("width=1, vocabulary=none and no int8 step: there is nothing to do.")

    @property
    def reduces_vocabulary(self) -> bool:
        """Whether tokens and positions are left out."""
        return tuple(self.vocabulary) not in ((NONE,), ())

    @property
    def corpus_files(self) -> list[Path]:
        """Text files whose tokens stay."""
        return [Path(name) for name in self.vocabulary if name not in (DATA, NONE)]


__all__ = ["DATA", "DYNAMIC", "EMBEDDINGS", "INT8_STEPS", "NONE", "STATIC", "ShrinkArguments"]
