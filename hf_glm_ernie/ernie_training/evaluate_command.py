"""`python -m hf_glm_ernie evaluate --task TASK --model FOLDER --data FILE`: what a model scores, and where it fails.

The tables go to the terminal; `--output REPORT.json` writes the report, and beside it the rows with mistakes as JSON
lines and as a page.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .evaluation import DTYPES, evaluate_ernie
from .evaluation_files import check_place, describe, names_beside, write_evaluation
from .tasks import TASKS

DONE, REFUSED = 0, 1  # 2 is argparse's


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 0, or 1 if it was refused (the reason is on stderr)."""
    options = vars(build_parser().parse_args(arguments))
    output, overwrite = options.pop("output"), options.pop("overwrite")
    settings = dict(options.pop("setting") or ())
    settings |= {name: options.pop(name) for name in ("threshold", "language", "cut", "labels", "predicates")}
    try:
        if output is not None:
            check_place(output, overwrite)
        if options["schema"] is not None:
            options["schema"] = read_schema_option(options["schema"])
        given = {name: value for name, value in settings.items() if value is not None}
        found = evaluate_ernie(**options, **given)
        if output is not None:
            write_evaluation(found, output, overwrite)
    except (ImportError, TypeError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    sys.stdout.write(f"{describe(found)}\n")
    if output is not None:
        sys.stdout.write(f"written to {output.parent}: {', '.join(names_beside(output))}\n")
    return DONE


def build_parser() -> argparse.ArgumentParser:
    """The options; what they mean is told in full by [`evaluate_ernie`]."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_glm_ernie evaluate",
        description="Scores of a finished ERNIE model, by label, relation, option, class or type, and its mistakes.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--task", required=True, choices=list(TASKS), help="what the model does")
    add("--model", required=True, metavar="FOLDER", help="of a model, an adapter, or an exported file")
    add("--data", required=True, metavar="FILE", help="rows as for training; a folder: its dev file")
    add("--output", type=Path, metavar="REPORT.json", help="write the report, and beside it the rows with mistakes")
    add("--overwrite", action="store_true", help="replace the files of an earlier run")
    add("--batch_size", "--batch-size", type=int, default=16, metavar="ROWS", help="rows per forward (default: 16)")
    add("--max_length", "--max-length", type=int, default=512, metavar="TOKENS", help="of a row (default: 512)")
    add("--device", help="such as cuda:1 (default: a CUDA device where there is one)")
    add("--dtype", choices=DTYPES, default="float32", help="of the weights (default: float32)")
    add("--no_progress", "--no-progress", dest="show_progress", action="store_const", const=False, help="no bars")
    add("--threshold", type=float, metavar="P", help="what is less likely does not hold (default: 0.5)")
    add("--language", choices=("zh", "en"), help="of UIE's prompts: X的Y (zh, default), Y of X (en)")
    add("--cut", choices=("windows", "sentences"), help="where long contents of UIE are cut (default: windows)")
    add("--labels", nargs="+", metavar="LABEL", help="of UIE: prompts that are labels, whatever they look like")
    add("--predicates", nargs="+", metavar="NAME", help="of UIE: names of relations, to tell them from their subjects")
    add("--schema", metavar="JSON", help="of UIE: ask the whole schema as well; JSON, or a file that holds it")
    add("--setting", action="append", type=_setting, metavar="NAME=VALUE", help="another setting of the task")
    return parser


def read_schema_option(given: str) -> Any:
    """A schema as it stands in JSON, or in a file of it.

    Raises:
        ValueError: it is no JSON.
        OSError: the file cannot be read.
    """
    path = Path(given)
    is_file = given.endswith(".json") or (len(given) < 256 and path.is_file())
    text = path.read_text(encoding="utf-8") if is_file else given
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(
            f'--schema {given[:80]!r} is no JSON ({error}): write it as in \'["产品", {{"产品": ["价格"]}}]\'.'
        ) from None


def _setting(given: str) -> tuple[str, Any]:
    """NAME=VALUE; the value is read as JSON where it is any."""
    name, sign, value = given.partition("=")
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{given!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
