"""Progressive training: input length, batch size, learning rate and dropout grow together over the first steps.

The paper grows all four "simultaneously and smoothly" and says over how many steps; the shape is not published. Here
all grow linearly. Behind the warm-up length, batch and dropout stay, and the learning rate falls linearly to 0.

Source: P10, section 3.3.2 and its ablation; PT = arXiv 2112.12731, section 4.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from transformers import TrainerCallback

DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "branch_hidden_dropout_prob",
    "branch_attention_probs_dropout_prob",
)


class ProgressiveSettings(NamedTuple):
    """What holds at one step: tokens per row, rows per step over all devices, learning rate, dropout probability."""

    length: int
    batch_size: int
    learning_rate: float
    dropout: float


@dataclasses.dataclass(frozen=True)
class ProgressiveSchedule:
    """Settings as a function of the optimizer's step, counted from 0.

    Args:
        steps: Over how many steps everything grows.
        length: Tokens per row at the start and from `steps` on.
        batch_size: Rows per step, over all devices and accumulated batches, likewise.
        learning_rate: Likewise; the second is the peak.
        dropout: Likewise.
        total_steps: Where the learning rate, falling linearly from the peak, reaches 0; `None`: it stays.
        length_multiple: Lengths on the way are rounded down to a multiple of this.

    Raises:
        ValueError: a setting that shrinks or is out of range, or fewer total steps than `steps`.

    ```python
    >>> from hf_glm_ernie import ProgressiveSchedule

    >>> ProgressiveSchedule.base().at(5_000)
    ProgressiveSettings(length=320, batch_size=1028, learning_rate=5e-05, dropout=0.0)
    ```
    """

    steps: int
    length: tuple[int, int]
    batch_size: tuple[int, int]
    learning_rate: tuple[float, float]
    dropout: tuple[float, float] = (0.0, 0.0)
    total_steps: int | None = None
    length_multiple: int = 8

    def __post_init__(self) -> None:
        if self.steps < 1 or self.length_multiple < 1:
            raise ValueError(f"steps={self.steps} and length_multiple={self.length_multiple} must be at least 1.")
        for name, least in (("length", 1), ("batch_size", 1), ("learning_rate", 0.0), ("dropout", 0.0)):
            first, last = getattr(self, name)
            if not least <= first <= last:
                raise ValueError(f"{name}={(first, last)} must grow from {least} or more: (first, last).")
        if self.dropout[1] >= 1 or self.learning_rate[1] == 0:
            raise ValueError(
                f"dropout={self.dropout} must stay below 1 and learning_rate={self.learning_rate} reach more than 0."
            )
        if self.total_steps is not None and self.total_steps <= self.steps:
            raise ValueError(f"total_steps={self.total_steps} must be more than steps={self.steps}.")

    @classmethod
    def ernie3_10b(cls) -> "ProgressiveSchedule":
        """ERNIE 3.0 10B. Published: 10 000 steps, batch 6144, context 512, peak 1e-4, 375 B tokens, no dropout known.

        Not published: where length and batch start; taken from the ablation of the base model.
        """
        return cls(10_000, (128, 512), (8, 6144), (0.0, 1e-4), total_steps=375_000_000_000 // (6144 * 512))

    @classmethod
    def base(cls) -> "ProgressiveSchedule":
        """The base model of P10's ablation: batch 8 to 2048, length 128 to 512, peak 1e-4, no dropout."""
        return cls(10_000, (128, 512), (8, 2048), (0.0, 1e-4))

    @classmethod
    def large_1_5b(cls) -> "ProgressiveSchedule":
        """The 1.5 B model of P10's ablation: batch 8 to 8192, peak 6e-4, no dropout; lengths as the base's."""
        return cls(10_000, (128, 512), (8, 8192), (0.0, 6e-4))

    @classmethod
    def titan(cls) -> "ProgressiveSchedule":
        """ERNIE 3.0 Titan. Published: 4000 steps, context 512, peak 1e-4. Lengths and batch start, and the batch: as
        the 10B's.
        """
        return cls(4_000, (128, 512), (8, 6144), (0.0, 1e-4))

    def at(self, step: int) -> ProgressiveSettings:
        """The settings of a step.

        Args:
            step: How many steps the optimizer has made.

        Raises:
            ValueError: a negative step.
        """
        if step < 0:
            raise ValueError(f"step={step} must be at least 0.")
        share = min(step / self.steps, 1.0)

        def grown(ends: tuple[float, float]) -> float:
            return ends[0] + (ends[1] - ends[0]) * share

        length = int(grown(self.length))
        if share < 1:
            length = max(length // self.length_multiple * self.length_multiple, self.length[0])
        rate = grown(self.learning_rate)
        if self.total_steps is not None and step > self.steps:
            rate *= max(0.0, (self.total_steps - step) / (self.total_steps - self.steps))
        return ProgressiveSettings(length, int(grown(self.batch_size)), rate, grown(self.dropout))

    def learning_rate_factor(self) -> Callable[[int], float]:
        """For `torch.optim.lr_scheduler.LambdaLR`: the learning rate of a step as a share of the peak.

        Groups with rates of their own, such as layer-wise ones, keep their proportions.
        """
        return lambda step: self.at(step).learning_rate / self.learning_rate[1]


class ProgressiveDropout(TrainerCallback):
    """Sets the model's dropout before every step; the model reads it from its config at every forward.

    Args:
        schedule: The schedule.
        part: Name of the submodule whose dropout it is; "" = the model itself.
    """

    def __init__(self, schedule: ProgressiveSchedule, part: str = "") -> None:
        self.schedule, self.part = schedule, part

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer."""
        probability = self.schedule.at(state.global_step).dropout
        for name in DROPOUTS:
            setattr(kwargs["model"].get_submodule(self.part).config, name, probability)


__all__ = ["ProgressiveDropout", "ProgressiveSchedule", "ProgressiveSettings"]
