"""Ends or disturbs a command at one call after the other, runs it again, and looks at what became of the files.

Whatever happens: nothing incomplete under the final name, the source as it was, a clear message, and the same command
run again gives the very bytes of a run that was left alone.
"""

import errno
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .flows import OUTPUT, Flow
from .harness import TEMPORARY, Fault, Server, faults_of, snapshot

MADE = "made"
CHANGES = "wcrsd"
"""The calls that make or change something; see `harness.Fault`."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: Of the campaign.
        kinds: The calls it may strike.
        how: As in `harness.Fault`.
        sticks: Whether the disk stays full.
        dies: Whether the process cannot say anything.
        in_source: Whether reads of the source are struck instead of what is made.
        times: How many runs are struck before one is left alone.
    """

    name: str
    kinds: str
    how: int
    sticks: bool = False
    dies: bool = False
    in_source: bool = False
    times: int = 1


KINDS = (
    Kind("kill -9", CHANGES, -signal.SIGKILL, dies=True),
    Kind("kill -9, twice", CHANGES, -signal.SIGKILL, dies=True, times=2),
    Kind("SIGINT", CHANGES, -signal.SIGINT),
    Kind("SIGTERM", CHANGES, -signal.SIGTERM),
    Kind("full disk", "wc", errno.ENOSPC, sticks=True),
    Kind("write error", "wcs", errno.EIO),
    Kind("rename or remove error", "rd", errno.EACCES),
    Kind("read error", "i", errno.EIO, in_source=True),
)


class Subject:
    """A flow with its source, and what it makes when it is left alone; a context manager of a temporary folder."""

    def __init__(self, flow: Flow, server: Server):
        self.flow = flow
        self._server = server

    def __enter__(self) -> "Subject":
        self._temporary = tempfile.TemporaryDirectory(prefix="faults-")
        self._folder = Path(self._temporary.name).resolve() / "a"
        self._folder.mkdir()
        self._arguments = self.flow.prepare(self._folder)
        (self._folder / TEMPORARY).mkdir()
        self._source = snapshot(self._folder)
        outcome = self._server.run(self._arguments, self._folder)
        if outcome.status:
            raise RuntimeError(f"{self.flow.name}: {outcome.text}")
        self.whole = self._made()
        self._clear()
        return self

    def __exit__(self, *error: object) -> None:
        self._temporary.cleanup()

    def calls(self, kind: Kind) -> int:
        """How many calls of an undisturbed run a kind of fault may strike."""
        outcome = self._server.run(self._arguments, self._folder, self._fault(kind, 0))
        self._clear()
        assert outcome.calls is not None
        return outcome.calls

    def strike(self, kind: Kind, nth: int) -> list[str]:
        """Runs with a fault, then without; what is wrong."""
        wrong = []
        for time in range(kind.times):
            outcome = self._server.run(self._arguments, self._folder, self._fault(kind, 1 + (nth - 1) // (time + 1)))
            if not (kind.dies and outcome.status < 0):
                wrong += faults_of(outcome, may_pass=True, seconds=None)
            final = self._made()
            if final and final != self.whole:
                wrong.append(f"a final folder that is not whole: {_difference(final, self.whole)}")
            if final:
                break
        else:
            again = self._server.run(self._arguments, self._folder)
            if again.status:
                wrong.append(f"cannot be run again: {again.text.strip()[-300:]}")
            elif self._made() != self.whole:
                wrong.append(f"mixed after resuming: {_difference(self._made(), self.whole)}")
        wrong += self._leftovers()
        self._clear()
        return wrong

    def _fault(self, kind: Kind, nth: int) -> Fault:
        folder = self._folder / ("source" if kind.in_source else MADE)
        return Fault(str(folder), kind.kinds, nth, kind.how, kind.sticks)

    def _made(self) -> dict[str, str]:
        return snapshot(self._folder / OUTPUT)

    def _leftovers(self) -> list[str]:
        """What is there beside source and result."""
        now = snapshot(self._folder)
        changed = sorted(name for name, value in self._source.items() if now.get(name) != value)
        extra = sorted(
            name for name in now if name not in self._source and name != MADE and not name.startswith(OUTPUT + "/")
        )
        extra = [name for name in extra if name != OUTPUT]
        wrong = [f"the source changed: {', '.join(changed[:3])}"] if changed else []
        return wrong + ([f"left over at the end: {', '.join(extra[:3])}"] if extra else [])

    def _clear(self) -> None:
        for name in snapshot(self._folder):
            if "/" not in name and name not in self._source:
                path = self._folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in (self._folder / TEMPORARY).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def campaign(flow: Flow, kinds: Iterable[Kind], server: Server, most: int) -> tuple[Counter[str], list[str]]:
    """Strikes a flow at up to `most` places by each kind.

    Returns:
        Number of runs by kind, and what went wrong.
    """
    runs: Counter[str] = Counter()
    wrong: list[str] = []
    with Subject(flow, server) as subject:
        for kind in kinds:
            for nth in spread(subject.calls(kind), most):
                runs[kind.name] += 1
                wrong += [f"{flow.name}, {kind.name} at call {nth}: {what}" for what in subject.strike(kind, nth)]
    return runs, wrong


def spread(last: int, most: int) -> list[int]:
    """Up to `most` numbers from 1 to `last`, evenly, both ends among them."""
    if last <= most:
        return list(range(1, last + 1))
    return sorted({1 + round(number * (last - 1) / max(most - 1, 1)) for number in range(most)})


def _difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    return ", ".join(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))[:4])


__all__ = ["KINDS", "Kind", "Subject", "campaign", "spread"]
