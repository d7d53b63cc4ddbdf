"""`python -m hf_glm_ernie label-data EXPORT --output FOLDER`: from what a label tool exports to rows.

Every option may be written with dashes or, as PaddleNLP's scripts have it, with underscores. `--task_type`,
`--save_dir`, `--is_shuffle`, `--doccano_file` and `--label_studio_file` are taken as well, so that the arguments of
those scripts can be given as they are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_glm_ernie.commands.running import run

from .arguments import DOCCANO_LINES, ROWS, TASKS, LabelDataArguments
from .convert import label_data
from .export_file import DOCCANO, FORMATS, LABEL_STUDIO
from .uie_rows import LANGUAGES


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 0, or 1 if it was refused (the reason is on stderr)."""
    parser = build_parser()
    options = vars(parser.parse_args(arguments))
    files = {"auto": options.pop("export")} | {form: options.pop(form) for form in FORMATS}
    given = [form for form, file in files.items() if file is not None]
    if len(given) != 1:
        parser.error("one export is needed: EXPORT (or --doccano_file, or --label_studio_file)")
    if given != ["auto"]:
        options["export_format"] = given[0]
    export, output = files[given[0]], options.pop("output")
    return run(
        lambda: label_data(export, output, LabelDataArguments(**options)), describe=lambda report: report.describe()
    )


def build_parser() -> argparse.ArgumentParser:
    """The options; what they mean is told in full by [`LabelDataArguments`]."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_glm_ernie label-data",
        description="Annotations of doccano (JSONL) or Label Studio (JSON) as rows for UIE and UTC, as PaddleNLP's.",
        allow_abbrev=False,
    )
    parser.add_argument("export", type=Path, nargs="?", help="the file that the label tool exported")
    for form, *names in ((DOCCANO, "--doccano_file"), (LABEL_STUDIO, "--label_studio_file", "--labelstudio_file")):
        parser.add_argument(*names, dest=form, type=Path, help=argparse.SUPPRESS)
    for group in (_add_task, _add_classes, _add_sampling, _add_files):
        group(parser)
    return parser


def _add(parser: Any, name: str, *others: str, **settings: Any) -> None:
    """An option under its name with dashes and with underscores."""
    names = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}", *others])
    parser.add_argument(*names, **{"dest": name.replace("-", "_")} | settings)


def _add_task(parser: Any) -> None:
    _add(
        parser,
        "task",
        "--task_type",
        choices=TASKS,
        default="ext",
        help="UIE rows of entities and relations (ext, default) or of classes of texts (cls), or UTC rows (utc)",
    )
    _add(
        parser,
        "export-format",
        choices=["auto", *FORMATS],
        default="auto",
        help="default: told by the first character",
    )
    _add(
        parser,
        "write",
        choices=[ROWS, DOCCANO_LINES],
        default=ROWS,
        help="rows (default), or doccano: Label Studio's tasks in doccano's form",
    )
    _add(parser, "default-relation", metavar="TYPE", help="of Label Studio's relations without a label")
    _add(parser, "skip-unlabelled", action="store_true", help="leave out tasks without results and cancelled ones")


def _add_classes(parser: Any) -> None:
    _add(parser, "options", nargs="+", metavar="CLASS", help="or a file, one a line (default: 正向 负向; utc: none)")
    _add(
        parser,
        "unknown-options",
        choices=["error", "drop"],
        default="error",
        help="what to do with classes that are no option (default: error)",
    )
    _add(parser, "prompt-prefix", default="情感倾向", metavar="TEXT", help="of class prompts (default: 情感倾向)")
    _add(parser, "separator", default="##", metavar="TEXT", help="between a label and its classes (default: ##)")
    _add(
        parser,
        "text-separator",
        default="\t",
        metavar="TEXT",
        help="utc: between two texts of a pair (default: a tab)",
    )
    _add(
        parser,
        "schema-lang",
        choices=LANGUAGES,
        default="ch",
        help="prompts of relations: X的Y (ch, default), Y of X (en)",
    )


def _add_sampling(parser: Any) -> None:
    _add(
        parser,
        "negative-ratio",
        type=int,
        default=5,
        metavar="N",
        help="negative rows a positive; -1: all (default: 5)",
    )
    _add(
        parser,
        "eval-negative-ratio",
        type=int,
        metavar="N",
        help="of entities in dev and test (default: as PaddleNLP: doccano -1, Label Studio the training ratio)",
    )
    _add(
        parser,
        "splits",
        type=float,
        nargs="*",
        default=[0.8, 0.1, 0.1],
        metavar="PART",
        help="of train, dev, test (default: 0.8 0.1 0.1); no numbers: train.txt alone",
    )
    _add(
        parser,
        "shuffle",
        "--is_shuffle",
        type=_truth,
        default=True,
        metavar="BOOL",
        help="documents before they are split (default: true)",
    )
    _add(parser, "seed", type=int, default=1000, help="default: 1000")


def _add_files(parser: Any) -> None:
    _add(parser, "output", "--save_dir", type=Path, required=True, metavar="FOLDER", help="for the files")
    _add(parser, "overwrite", action="store_true", help="replace the files of an earlier run")
    _add(parser, "no-progress", dest="progress", action="store_false", help="no bars")


def _truth(word: str) -> bool:
    """`true` or `false`, in any case, with the usual short forms."""
    if word.lower() in ("true", "t", "yes", "y", "1"):
        return True
    if word.lower() in ("false", "f", "no", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
