"""The command `inspect`: its options, the lookers in the order they are asked, reading everything, the exit status."""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .consume_state import refuse_marked
from .inspect_adapters import look_at_adapter
from .inspect_archive import look_at_parts
from .inspect_converted import look_at_converted
from .inspect_deep import read_through
from .inspect_downloads import findings_on, unfinished_in
from .inspect_glm130b import look_at_glm130b
from .inspect_look import MEND, Look, Looker, Question
from .inspect_paddle import look_at_paddle
from .inspect_paste import as_paste
from .inspect_report import WARNING, Finding, Report, Stretch, has_errors, worst_first
from .inspect_text import as_json, as_text
from .inspect_unfinished import look_at_unfinished
from .job import progress_bar
from .operations import ConversionError
from .tensor_names import entries

LOOKERS: Sequence[Looker] = (
    look_at_unfinished,
    look_at_glm130b,
    look_at_parts,
    look_at_adapter,
    look_at_converted,
    look_at_paddle,
)
"""Asked one after the other; the first that knows the source answers."""

LOOKED_FOR = (
    "mp_rank_XX_model_states.pt, parts of their archive, config.json with model.safetensors or its shards, "
    "model_state.pdparams, *.pdparams, *.pdiparams, params, files of static variables, adapter_config.json, "
    "lora_config.json, .conversion"
)
SHOWN = 12

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
    return as_paste(report) if options.report else as_text(report), report.exit_status


def inspect(question: Question, deep: bool = False, show_progress: bool = False) -> Report:
    """Looks at a checkpoint; whatever is wrong with it is in the report.

    Args:
        question: What to look at.
        deep: Whether everything is read.
        show_progress: Whether a bar goes to stderr.
    """
    look = _look(question)
    report = replace(look.report, findings=worst_first([*look.report.findings, *_on_space(question, look.report)]))
    if not deep or not look.files:
        return report
    total = sum(file.nbytes for file in look.files) if look.nbytes is None else look.nbytes
    with progress_bar("reading", total, 0, show_progress) as progress:
        findings, read = read_through(look.files, progress) if look.read is None else look.read(progress)
    if has_errors(findings):
        report = replace(report, command="", advice=MEND)
    return replace(report, findings=worst_first([*report.findings, *findings]), deep=read)


def _on_space(question: Question, report: Report) -> Iterator[Finding]:
    """A warning where the output that the command names would not fit, with every way to convert that would not."""
    try:
        free = shutil.disk_usage(question.output.absolute().parent).free
    except OSError:
        return
    too_large = [need.options or "as stored" for need in report.needs if need.disk_bytes > free]
    if too_large:
        text = f"{free:,} bytes are free where the output would go; not enough for: {', '.join(too_large)}"
        yield Finding("space", text, severity=WARNING, remedy="Free some, or choose an --output on another disk.")


def _look(question: Question) -> Look:
    source = question.source
    try:
        refuse_marked(source)
    except ConversionError as error:
        return Look(Report(str(source), "", "", "", findings=(Finding("unfinished", str(error)),)))
    try:
        for looker in LOOKERS:
            if (found := looker(question)) is not None:
                return found
        return Look(_unknown(source))
    except DAMAGE as error:
        text = str(error).removeprefix(f"{source}: ")
        return Look(Report(str(source), "", "", "", findings=(Finding("damaged", text),)))


def _unknown(source: Path) -> Report:
    """Of what no looker knows: a download, nothing at all, or something else."""
    if not source.exists():
        begun = {name: by for name, by in unfinished_in(source.parent).items() if name == source.name}
        absent = Finding("missing", "no such file or folder", (Stretch(source.name),), remedy="Look for its name.")
        return Report(str(source), "", "", "", findings=findings_on(begun) or [absent])
    findings = findings_on(unfinished_in(source))
    if not has_errors(findings):
        names = entries(source) if source.is_dir() else []
        there = f" There is: {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}." if names else ""
        text = f"no checkpoint, folder or adapter that is known here.{there}"
        findings += [Finding("unknown", text, remedy=f"Looked for: {LOOKED_FOR}. Pass the folder that holds them.")]
    return Report(str(source), "", "", "", findings=findings)


__all__ = ["add_options", "inspect", "run_inspect"]
