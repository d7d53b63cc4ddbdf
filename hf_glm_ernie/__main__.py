"""Command line of the package.

    python -m hf_glm_ernie plan --model glm130b --bits 4 --devices 4x24GiB
    python -m hf_glm_ernie lm-eval --model glm130b --model_args pretrained=FOLDER --tasks NAME
    python -m hf_glm_ernie serve FOLDER --port 8000
    python -m hf_glm_ernie label-data EXPORT --output FOLDER
    python -m hf_glm_ernie evaluate --task uie --model FOLDER --data dev.txt
    python -m hf_glm_ernie shrink --task TASK --model FOLDER --data FOLDER --output FOLDER
    python -m hf_glm_ernie prepare-corpus INPUT... --output FOLDER
    python -m hf_glm_ernie distil-uie --teacher FOLDER --texts FILE --schema SCHEMA --output FOLDER

The second is lm-evaluation-harness's own command with this package's model class registered, the third `transformers
serve`, which then opens this package's folders. `label-data` makes rows for UIE and UTC of what label tools export,
`evaluate` measures a fine-tuned ERNIE on rows, `shrink` makes it smaller, `distil-uie` teaches a student one schema.
`prepare-corpus` makes of texts what the unified model is pre-trained on.

A command is a row of [`COMMANDS`]: its module has a `main(arguments)` that returns the exit status, and is imported
when the command is asked for.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

REFUSED = 1  # 2 is argparse's


class Command(NamedTuple):
    """A command: the module that runs it, and its line in the list of commands."""

    module: str
    help: str


COMMANDS = {
    "plan": Command(
        "planner.command",
        "where a model fits and how fast it can be: bytes and limits per device, from the config alone",
    ),
    "lm-eval": Command(
        "glm130b_evaluation.lm_eval", "lm-evaluation-harness with the model class glm130b; all options are its own"
    ),
    "serve": Command("serving.command", "an OpenAI-compatible server: `transformers serve`; all options are its own"),
    "shrink": Command("ernie_shrinking.command", "a trained ERNIE encoder made smaller: pruned, distilled, in INT8"),
    "distil-uie": Command(
        "ernie_distillation.command", "a student of one forward for one schema, from a UIE teacher and texts"
    ),
    "prepare-corpus": Command(
        "ernie_corpus.command",
        "texts as ERNIE 3.0's corpus was prepared: deduplicated, short sentences dropped, split",
    ),
    "label-data": Command("ernie_data.command", "exports of doccano and Label Studio as rows for UIE and UTC"),
    "evaluate": Command("ernie_training.evaluate_command", "scores of a fine-tuned ERNIE by class, and its mistakes"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns its exit status: 0 done, 1 refused (the reason is on stderr); others are its own."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = build_parser().parse_args(arguments[:1]).command
    try:
        command = importlib.import_module(f".{COMMANDS[name].module}", __package__)
    except ImportError as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    return command.main(arguments[1:])


def build_parser() -> argparse.ArgumentParser:
    """The list of commands; their options are their own."""
    parser = argparse.ArgumentParser(prog="python -m hf_glm_ernie", description="GLM-130B and ERNIE 3.0.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
