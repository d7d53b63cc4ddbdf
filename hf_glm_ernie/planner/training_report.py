"""A plan for training, and how it reads: a row for a card without and with checkpointing, and the steps' limits."""

from dataclasses import dataclass

from .cards import Card
from .report import UNITS
from .speed_table import UNNAMED, aligned, three_digits
from .training_job import TrainingJob
from .training_speed import MACHINE, TrainingSpeed
from .training_state import State

COLUMNS = (
    *("checkpointing", "memory", "reserve", "weights", "gradients", "optimizer", "communication"),
    *("activations", "working", "free", "largest batch", "least cards"),
)
SPEED_COLUMNS = ("checkpointing", "PFLOP", "FLOP/token", "s/step", "steps/day", "tokens/s", "limit")
DAY = 86400


@dataclass(frozen=True)
class TrainingRow:
    """What a card holds in training, in bytes.

    Args:
        checkpointing: Whether layers are computed again in the backward.
        capacity: The card's memory.
        reserve: Set aside of it, see `devices.RESERVE`.
        state: Weights, gradients, optimizer and room for exchanges.
        activations: What the forward leaves for the backward.
        working: The most that is alive beside these: the logits, the layer that is computed, gradients of activations.
        flops: Of forward and backward of the card's rows.
        largest_batch: The most rows of a card that fit; 0 where none does.
        least_cards: The fewest cards that hold the same rows each; `None` where no number does.
        speed: A step's limit; `None` where cards have no names.
    """

    checkpointing: bool
    capacity: int
    reserve: int
    state: State
    activations: int
    working: int
    flops: int
    largest_batch: int
    least_cards: int | None
    speed: TrainingSpeed | None

    @property
    def used(self) -> int:
        """All of it, the reserve too."""
        state = self.state
        held = state.weights + state.gradients + state.optimizer + state.communication
        return self.reserve + held + self.activations + self.working

    @property
    def free(self) -> int:
        """What is left, negative where it does not fit."""
        return self.capacity - self.used

    @property
    def fits(self) -> bool:
        """Whether the card holds it."""
        return self.free >= 0


@dataclass(frozen=True)
class TrainingPlan:
    """What training takes; made by [`plan_training`].

    Args:
        job: What is trained, and how.
        card: The cards, where they have a name.
        rows: Without and with checkpointing, or the one that was asked for.
    """

    job: TrainingJob
    card: Card | None
    rows: tuple[TrainingRow, ...]

    @property
    def fits(self) -> bool:
        """Whether one of the rows does."""
        return any(row.fits for row in self.rows)

    def row(self, checkpointing: bool) -> TrainingRow:
        """The row without or with checkpointing.

        Raises:
            KeyError: it was not asked for.
        """
        for row in self.rows:
            if row.checkpointing == checkpointing:
                return row
        raise KeyError(f"checkpointing={checkpointing} was not planned for.")

    def describe(self) -> str:
        """The plan as text: a card's memory, the steps' limits, and what fits."""
        return describe(self)


def describe(plan: TrainingPlan) -> str:
    """Returns the text, without a newline at the end."""
    largest = max(max(row.used, row.capacity) for row in plan.rows)
    unit = next((name for name, size in UNITS.items() if largest >= size), "KiB")
    parts = [f"{_headline(plan.job)}; sizes of a card in {unit}", "", *_table(plan, unit), "", *_speed(plan), ""]
    return "\n".join([*parts, *_verdict(plan, unit)])


def _headline(job: TrainingJob) -> str:
    rows = job.batch * job.data_parallel * job.accumulation
    trained = "all weights" if job.lora is None else f"LoRA of rank {job.lora}"
    mesh = f"tensor parallel {job.tensor_parallel} x data parallel {job.data_parallel}, sharding {job.sharding}"
    again = f" x {job.accumulation} forwards" if job.accumulation > 1 else ""
    return (
        f"{job.config.model_type}: training of {trained}, {job.precision}, {job.optimizer}; {mesh}; "
        f"context {job.context}, batch {job.batch} a card{again}, {rows} in a step"
    )


def _table(plan: TrainingPlan, unit: str) -> list[str]:
    rows: list[list[str]] = [list(COLUMNS)]
    for row in plan.rows:
        state = row.state
        amounts = (
            *(row.capacity, row.reserve, state.weights, state.gradients, state.optimizer, state.communication),
            *(row.activations, row.working, row.free),
        )
        cells = [f"{amount / UNITS[unit]:.2f}" for amount in amounts]
        least = "-" if row.least_cards is None else str(row.least_cards)
        rows.append([_yes(row.checkpointing), *cells, str(row.largest_batch), least])
    return aligned(rows, left=[0])


def _speed(plan: TrainingPlan) -> list[str]:
    if plan.card is None:
        return [UNNAMED]
    rows: list[list[str]] = [list(SPEED_COLUMNS)]
    for row in plan.rows:
        speed = row.speed
        assert speed is not None
        share = speed.parts[speed.limit] / speed.seconds
        rows.append(
            [
                _yes(row.checkpointing),
                three_digits(speed.flops / 1e15),
                f"{speed.flops / speed.tokens:.3g}",
                three_digits(speed.seconds),
                three_digits(speed.steps(DAY)),
                three_digits(speed.tokens_per_second),
                speed.limit if round(share, 2) == 1 else f"{speed.limit} ({share:.0%})",
            ]
        )
    return [f"speed on {plan.job.cards} x {plan.card.name}, at most", "", *aligned(rows, left=[0, 6])]


def _verdict(plan: TrainingPlan, unit: str) -> list[str]:
    job = plan.job
    logits = job.batch * job.context * job.config.vocab_size * 4
    lines = [
        f"fits {'with' if row.checkpointing else 'without'} checkpointing: {_fit(row, unit)}" for row in plan.rows
    ]
    lines.append(
        f"logits of {job.batch * job.context} tokens x {job.config.vocab_size} words in fp32: "
        f"{logits / UNITS[unit]:.2f} {unit}, in working where the model scores words"
    )
    if not plan.fits:
        lines.append(f"ways out: {', '.join(_ways_out(plan))}")
    if plan.card is not None and job.cards > MACHINE:
        lines.append(f"assumed: machines of {MACHINE} cards")
    return lines


def _fit(row: TrainingRow, unit: str) -> str:
    return "yes" if row.fits else f"no ({-row.free / UNITS[unit]:.2f} {unit} too little)"


def _ways_out(plan: TrainingPlan) -> list[str]:
    job = plan.job
    ways = [] if any(row.checkpointing for row in plan.rows) else ["checkpointing"]
    ways += ["sharding zero-3"] if job.sharding != "zero-3" else []
    enough = [row.least_cards for row in plan.rows if row.least_cards is not None]
    ways += [f"{min(enough)} cards"] if enough else []
    return [*ways, "more tensor parallelism", "a smaller batch or context", *([] if job.lora else ["lora"])]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


__all__ = ["TrainingPlan", "TrainingRow", "describe"]
