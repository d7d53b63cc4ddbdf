"""The command line's side of `--consume`: says what goes, asks, converts."""

import sys
from collections.abc import Callable
from pathlib import Path

from .consume import Consumption
from .consume_open import open_to_consume
from .job import Job, run
from .operations import ConversionError, SettingsError
from .places import Place
from .publication import finish_without_plan
from .verify import verify_file


def convert_and_consume(
    source: Place,
    output: Path,
    plan: Callable[[Place], Job],
    is_sure: bool,
    is_dry_run: bool,
    reference: Callable[[Path, Path, bool], object] | None,
    threads: int,
    say: Callable[[str], object],
) -> None:
    """Plans a conversion and runs it, deleting its source as the output is verified.

    Args:
        source: What is converted.
        output: Folder to be made.
        plan: Plans the conversion of a source.
        is_sure: Do not ask.
        is_dry_run: Print the plan and stop.
        reference: As for `job.run`.
        threads: As for `job.run`.
        say: Tells the user a few lines.

    Raises:
        ConversionError: as `job.run`; nobody said that the source may go.
    """
    opened = open_to_consume(source, output)
    try:
        job = plan(opened.place)
    except ConversionError:
        # A run that was stopped at its very last step has deleted what it is planned from.
        if opened.skeleton is None and not is_dry_run and finish_without_plan(output):
            say(f"done: {output}")
            return
        raise
    consumption = Consumption(job, opened, output)
    try:
        say(f"{job.describe(threads)}\n{consumption.describe()}")
        if is_dry_run:
            say("dry run: nothing was written")
            return
        if not is_sure:
            ask(consumption.question)
        run(consumption.job, output, verify_file, reference=reference, threads=threads, hooks=consumption)
    finally:
        consumption.close()
    say(f"done: {output}")


def ask(question: str) -> None:
    """Returns if the user says yes.

    Raises:
        SettingsError: the user does not, or there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise SettingsError(f"{question} There is no terminal to ask on: add --yes if that is meant.")
    try:
        answer = input(f"{question}\nType yes to go on: ")
    except EOFError:
        answer = ""
    if answer.strip().lower() != "yes":
        raise SettingsError("--consume was not confirmed; nothing was deleted or written.")


__all__ = ["ask", "convert_and_consume"]
