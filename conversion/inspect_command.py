"""The command `inspect`: its options, the lookers in the order they are asked, reading everything, the exit status."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .inspect_deep import read_through
from .inspect_glm130b import look_at_glm130b
from .inspect_look import Look, Looker, Question
from .inspect_report import Finding, Report, worst_first
from .inspect_text import as_json, as_text
from .job import progress_bar
from .operations import ConversionError

LOOKERS: Sequence[Looker] = (look_at_glm130b,)
"""Asked one after the other; the first that knows the source answers."""

DAMAGE = (ConversionError, OSError)
"""What a looker may still raise of files that change under it, or cannot be listed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="a checkpoint, a converted folder, an adapter, ..."
    )
    parser.add_argument(
        "--deep", action="store_true", help="read everything, and check what the format has checksums of"
    )
    parser.add_argument("--tokenizer", type=Path, help="GLM-130B's ice_text.model (default: the one beside, if there)")
    parser.add_argument("--config", type=Path, help="JSON settings (default: those beside the weights, if there)")
    parser.add_argument("--vocab", type=Path, help="ERNIE's vocab.txt (default: the one beside the weights, if there)")
    parser.add_argument(
        "--base", type=Path, metavar="CHECKPOINT", help="what an adapter of PaddleNLP's was trained on"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--report", action="store_true", help="print a text to paste into an issue: no paths, no names")


def run_inspect(options: argparse.Namespace) -> tuple[str, int]:
    """Looks at what the options name.

    Returns:
        What to print, and the exit status: 0 complete, 1 something missing or damaged.
    """
    question = Question(options.source, options.tokenizer, options.config, options.vocab, options.base)
    report = inspect(question, options.deep, show_progress=True)
    if options.json:
        return as_json(report), report.exit_status
    return as_text(report), report.exit_status


def inspect(question: Question, deep: bool = False, show_progress: bool = False) -> Report:
    """Looks at a checkpoint; whatever is wrong with it is in the report.

    Args:
        question: What to look at.
        deep: Whether everything is read.
        show_progress: Whether a bar goes to stderr.
    """
    look = _look(question)
    if not deep or not look.files:
        return look.report
    total = sum(file.nbytes for file in look.files)
    with progress_bar("reading", total, 0, show_progress) as progress:
        findings, read = read_through(look.files, progress)
    return replace(look.report, findings=worst_first([*look.report.findings, *findings]), deep=read)


def _look(question: Question) -> Look:
    source = question.source
    try:
        for looker in LOOKERS:
            if (found := looker(question)) is not None:
                return found
    except DAMAGE as error:
        return Look(_unknown(source, Finding("damaged", str(error).removeprefix(f"{source}: "))))
    return Look(_unknown(source, Finding("unknown", "nothing that is known here")))


def _unknown(source: Path, finding: Finding) -> Report:
    return Report(str(source), "", "", "", findings=(finding,))


__all__ = ["add_options", "inspect", "run_inspect"]
