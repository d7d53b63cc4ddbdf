"""Runs hostile inputs through the command line and collects what is wrong."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from .case import Case
from .harness import Server, run_case


def campaign(cases: Iterable[Case], server: Server, folder: Path) -> tuple[int, list[str]]:
    """Runs cases in turn.

    Args:
        cases: The inputs.
        server: Runs them.
        folder: An empty folder for their files.

    Returns:
        How many ran, and what went wrong.
    """
    number, wrong = 0, []
    for case in cases:
        number += 1
        here = folder / "case"
        wrong += [f"{case.name}: {what}" for what in run_case(server, case, here)]
        shutil.rmtree(here, ignore_errors=True)
    return number, wrong


__all__ = ["campaign"]
