"""A prediction, and how it reads: a row for each step, then what was published of the same machine."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from .cards import Card
from .released import Released
from .speed import LAUNCH, Step

UNCOMPILED = "uncompiled tokens/s"
COLUMNS = ("step", "rows", "texts/s", "tokens/s", "ms", "GB read", "limit", UNCOMPILED)
UNNAMED = "speed: not predicted for amounts of memory alone; name the cards, as in 4xRTX3090"


@dataclass(frozen=True)
class Compared:
    """A published measurement beside the limit of the same step.

    Args:
        released: The measurement.
        decode: Part of the limit that was reached in decoding, 0 to 1; `None` where it cannot be said.
        prefill: The same of the prefill.
    """

    released: Released
    decode: float | None = None
    prefill: float | None = None


@dataclass(frozen=True)
class Speed:
    """How fast a plan can be at the most.

    Args:
        steps: What was predicted.
        cards: Of the devices that compute, in order.
        context: Tokens in the cache in decoding, and of a prompt or text.
        released: What was published of the same model in the same format on the same cards.
    """

    steps: tuple[Step, ...]
    cards: tuple[Card, ...]
    context: int
    released: tuple[Compared, ...] = ()

    def step(self, kind: str, rows: int = 1) -> Step:
        """The step of a kind with so many rows.

        Raises:
            KeyError: none such was predicted.
        """
        for step in self.steps:
            if (step.kind, step.rows) == (kind, rows):
                return step
        known = ", ".join(f"{step.kind} of {step.rows}" for step in self.steps)
        raise KeyError(f"{kind} of {rows} rows was not predicted; there are {known}.")


def describe_speed(speed: Speed, unit: str, size: int) -> list[str]:
    """The lines of a prediction.

    Args:
        speed: The prediction.
        unit: Name of the unit in which lacking memory is given.
        size: Its bytes.
    """
    names = [f"{len(list(same))} x {name}" for name, same in groupby(card.name for card in speed.cards)]
    columns = [name for name in COLUMNS if any(_cell(name, step) for step in speed.steps)]
    rows = [columns, *([_cell(name, step) for name in columns] for step in speed.steps)]
    lines = [f"speed on {', '.join(names)}, at most: what the hardware allows with {speed.context} tokens of context"]
    lines += ["", *aligned(rows, left=[columns.index("step"), columns.index("limit")])]
    lacking = [f"{step.rows} rows by {step.lacking / size:.2f}" for step in _once(speed.steps) if step.lacking > 0]
    if lacking:
        lines.append(f"a device has too little memory for {', '.join(lacking)} {unit}")
    if UNCOMPILED in columns:
        lines.append(f"{UNCOMPILED}: with every kernel launched from Python, {LAUNCH * 1e6:.0f} us each")
    return lines + [line for same in groupby(speed.released, key=_program) for line in _published(*same)]


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Columns of equal width, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _cell(column: str, step: Step) -> str:
    """What stands in a column; nothing where it would say nothing."""
    share = step.parts[step.limit] / step.seconds
    launched = f"{three_digits(step.uncompiled_tokens_per_second)} (launches)" if step.launching > step.seconds else ""
    cells = {
        "step": step.kind if step.kind == "decode" else f"{step.kind} {step.tokens}",
        "rows": str(step.rows),
        "texts/s": three_digits(step.rows / step.seconds) if step.kind == "forward" else "",
        "tokens/s": three_digits(step.tokens_per_second),
        "ms": three_digits(1000 * step.seconds),
        "GB read": three_digits(step.read / 1e9),
        "limit": step.limit if round(share, 2) == 1 else f"{step.limit} ({share:.0%})",
        UNCOMPILED: launched,
    }
    return cells[column]


def three_digits(value: float) -> str:
    """A number as people compare it."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3g}"


def _once(steps: Iterable[Step]) -> list[Step]:
    return list({step.rows: step for step in steps}.values())


def _program(compared: Compared) -> str:
    return compared.released.program


def _published(program: str, compared: Iterable[Compared]) -> list[str]:
    decoded, prefilled = [], []
    for one in compared:
        released = one.released
        if released.tokens_per_second is not None:
            decoded.append(f"{released.tokens_per_second:.1f}{_share(one.decode)} for {released.tokens}")
        if released.prefill is not None:
            prefilled.append(f"{released.prefill:.2f}{_share(one.prefill)} for {released.tokens}")
    lines = [f"released: {program}, tensor parallel, 1 row; in brackets, part of the limit for as many tokens"]
    lines.append(f"  tokens/s {', '.join(decoded)} tokens")
    return [*lines, f"  seconds of prefill {', '.join(prefilled)} tokens"] if prefilled else lines


def _share(share: float | None) -> str:
    return "" if share is None else f" ({share:.0%})"


__all__ = ["UNNAMED", "Compared", "Speed", "aligned", "describe_speed", "three_digits"]
