"""What `benchmarks/gpu.py` writes down: rows as they come, so that a part that is stopped keeps those it had."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass
class Part:
    """One part of the benchmark.

    Attributes:
        name: As `--parts` names it.
        status: `"ok"`, `"failed"`, `"stopped"` (out of time, rows are kept) or `"skipped"`.
        note: Why, where it is not ok.
        seconds: It took.
        rows: Figures, each a dict of the same keys.
        checks: What was asked for -> whether it was reached.
    """

    name: str
    status: str = "ok"
    note: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)


class Notes:
    """Where a part writes to: a file of JSON lines, each whole when the next begins.

    Args:
        path: The file; it is begun anew.
        deadline: `time.monotonic()` at which the part has to be done.
    """

    def __init__(self, path: Path, deadline: float):
        self.path, self.deadline = path, deadline
        path.write_text("", encoding="utf-8")

    @property
    def seconds_left(self) -> float:
        """Until the deadline; negative behind it."""
        return self.deadline - time.monotonic()

    def row(self, **figures: Any) -> None:
        """Adds a row."""
        self._line({"row": figures})

    def check(self, asked: str, reached: bool) -> None:
        """Adds whether something that is asked for was reached; once missed it stays missed."""
        self._line({"check": asked, "reached": bool(reached)})

    def skip(self, why: str) -> None:
        """Says that the part, or the rest of it, cannot be done here."""
        self._line({"skip": why})

    @contextmanager
    def guarded(self, **figure: Any) -> Iterator[None]:
        """What raises inside becomes a row with these keys and an error, and what follows goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever fails on an unknown machine is a result
            said = " ".join(str(error).split())[:200]
            self.row(**figure, error=f"{type(error).__name__}: {said}")
            self.check("every row was measured", False)

    def _line(self, content: Row) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")

    def in_time(self, things: Any) -> Iterator[Any]:
        """The things one after the other until the time is over; what is left out is said."""
        things = list(things)
        for done, thing in enumerate(things):
            if self.seconds_left <= 0:
                self.skip(f"{len(things) - done} of {len(things)} left out: out of time")
                return
            yield thing


def read_part(name: str, path: Path) -> Part:
    """A part from the lines that were written; a last one that was cut is left out."""
    part = Part(name)
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            content = json.loads(line)
        except ValueError:
            break
        if "row" in content:
            part.rows.append(content["row"])
        elif "check" in content:
            part.checks[content["check"]] = part.checks.get(content["check"], True) and content["reached"]
        else:
            part.note = "; ".join(filter(None, (part.note, content["skip"])))
    return part


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table, a column for each key that any row has."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    lines += ["| " + " | ".join(_text(row.get(key, "")) for key in keys) + " |" for row in rows]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def page(title: str, parts: list[Part]) -> str:
    """Everything as Markdown, the summary at the end."""
    sections = [f"# {title}"]
    for part in parts:
        head = f"## {part.name}: {part.status}, {part.seconds:.0f} s"
        sections.append("\n\n".join(filter(None, (head, part.note, table(part.rows) if part.rows else ""))))
    sections.append("## summary\n\n" + "\n".join(summary(parts)))
    return "\n\n".join(sections) + "\n"


def summary(parts: list[Part]) -> list[str]:
    """A line for each part that is not whole and for each figure that is asked for."""
    lines = [f"- {part.status.upper()} {part.name}: {part.note}" for part in parts if part.status != "ok"]
    for part in parts:
        lines += [f"- {'PASS' if reached else 'FAIL'} {asked}" for asked, reached in part.checks.items()]
    return lines or ["- nothing was measured"]


def write(folder: Path, title: str, parts: list[Part]) -> None:
    """`results.json` and `results.md`, replaced as a whole."""
    texts = {
        "results.json": json.dumps({"title": title, "parts": [asdict(part) for part in parts]}, indent=1),
        "results.md": page(title, parts),
    }
    for name, text in texts.items():
        fresh = folder / f".{name}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(folder / name)
