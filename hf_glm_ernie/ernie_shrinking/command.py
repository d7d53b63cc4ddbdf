"""`python -m hf_glm_ernie shrink --task T --model FOLDER --data FOLDER --output FOLDER`: a smaller encoder."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_glm_ernie.commands.running import run
from hf_glm_ernie.ernie_training.tasks import TASKS

from .arguments import INT8_STEPS, ShrinkArguments
from .measuring import Stage, table_of
from .shrink import PICTURE, shrink
from .static_int8 import METHODS

NO_STEP = "none"


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 0, or 1 if it was refused (the reason is on stderr)."""
    options = vars(build_parser().parse_args(arguments))
    quiet = options.pop("quiet")
    options["int8"] = tuple(step for step in options["int8"] if step != NO_STEP)
    return run(
        lambda: shrink(ShrinkArguments(**options), show_progress=not quiet),
        describe=lambda stages: _described(stages, options["output"]),
    )


def _described(stages: Sequence[Stage], output: Path) -> str:
    """The table of the stages, the folder, and what is lacking where no picture could be drawn."""
    metric = next(name for name, value in stages[0].scores.items() if value == stages[0].score)
    lines = [table_of(stages, metric), str(output)]
    if not (output / PICTURE).is_file():
        lines.append(f"No {PICTURE}: pip install matplotlib.")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The options; what they mean is told in full by [`ShrinkArguments`]."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_glm_ernie shrink",
        description="Makes a trained ERNIE encoder smaller: pruning with distillation, a corpus's vocabulary, INT8.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    defaults = {field.name: field.default for field in dataclasses.fields(ShrinkArguments)}

    def add(name: str, help: str, **settings: Any) -> None:
        default = defaults[name]
        required = default is dataclasses.MISSING
        taken: dict[str, Any] = {"required": True} if required else {"default": default}
        flags = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        parser.add_argument(*flags, dest=name, help=help, **taken, **settings)

    add("task", "what the model was trained for", choices=TASKS)
    add("model", "folder of the trained model", type=Path)
    add("data", "its rows: a file, or a folder with train and dev", type=Path)
    add("output", "folder to be made", type=Path)
    add("eval_data", "rows to measure on, in place of the folder's dev", type=Path)
    add("width", "share of heads and neurons that stay; 1: all", type=float)
    add("epochs", "of distillation; 0: none", type=float)
    add("learning_rate", "of distillation", type=float)
    add("batch_size", "rows at once", type=int)
    add("vocabulary", "data: tokens of the rows stay; FILES of text: theirs too; none: all stay", nargs="+")
    add("characters", "single characters that stay as well: none, ascii, all, or the characters themselves")
    add("max_length", "tokens of a row, and positions that stay (with a smaller vocabulary)", type=int)
    add("int8", "steps; none: no INT8", nargs="+", choices=(*INT8_STEPS, NO_STEP))
    add("calibration", "how static ranges are found", choices=METHODS)
    add("calibration_rows", "rows they are found on", type=int)
    add("speed_rows", "rows that speeds are measured on", type=int)
    add("problem_type", "of classification, as in training")
    add("cut", "where long contents of uie are cut, as in training")
    add("language", "of uie's relation prompts: zh, en")
    add("seed", "of everything random", type=int)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


__all__ = ["build_parser", "main"]
