"""`python -m hf_glm_ernie prepare-corpus INPUT... --output FOLDER`: files to a corpus for pre-training."""

import argparse
from collections.abc import Sequence
from typing import Any

from hf_glm_ernie.commands.running import run
from hf_glm_ernie.planner.device_lists import parse_size

from .near_duplicates import SHINGLE_SIZE
from .prepare import CorpusArguments, prepare_corpus
from .reading import ERROR, LINES, SAMPLE_BY, SKIP
from .report import CorpusReport
from .stages import JIEBA, OUTPUT_FORMATS, PARQUET, SEGMENTERS
from .text_rules import MIN_WORDS


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 0, or 1 if it was refused (the reason is on stderr)."""
    options = vars(build_parser().parse_args(arguments))
    inputs, output = options.pop("inputs"), options.pop("output")

    def prepare() -> CorpusReport:
        sizes = {name: parse_size(options[name], f"--{name.replace('_', '-')}") for name in ("unit_size", "memory")}
        return prepare_corpus(inputs, output, CorpusArguments(**options | sizes))

    return run(prepare, describe=CorpusReport.describe)


def build_parser() -> argparse.ArgumentParser:
    """The options; [`CorpusArguments`] has them in full."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_glm_ernie prepare-corpus",
        description="Deduplicates texts by character, paragraph and document, drops short sentences, splits into "
        "sentences: as ERNIE 3.0's corpus was prepared. The same call goes on with a run that was stopped.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files, addresses or patterns: .jsonl, .json (an object a line), .txt, also .gz and the like; .parquet",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="for the corpus and report.json")
    for group in (_add_reading, _add_rules, _add_running):
        group(parser)
    return parser


def _add_reading(parser: Any) -> None:
    parser.add_argument("--column", default="text", metavar="NAME", help="of the text (default: text)")
    parser.add_argument(
        "--sample-by", choices=SAMPLE_BY, default=LINES, help=f"what a document is in .txt (default: {LINES})"
    )
    parser.add_argument(
        "--skip-unreadable",
        dest="unreadable",
        action="store_const",
        const=SKIP,
        default=ERROR,
        help="leave out and count records that cannot be read (default: they end the run)",
    )


def _add_rules(parser: Any) -> None:
    parser.add_argument(
        "--min-words",
        type=int,
        default=MIN_WORDS,
        metavar="N",
        help=f"of a sentence that stays (default: {MIN_WORDS})",
    )
    parser.add_argument(
        "--segmenter",
        choices=SEGMENTERS,
        default=JIEBA,
        help="what is a word of Chinese: jieba's (default), or each of its characters (three times faster)",
    )
    parser.add_argument(
        "--near-duplicates",
        type=float,
        metavar="SIMILARITY",
        help="drop documents that are nearly an earlier one: Jaccard similarity of shingles, such as 0.8",
    )
    parser.add_argument(
        "--shingle-size",
        type=int,
        default=SHINGLE_SIZE,
        metavar="N",
        help=f"characters of a shingle (default: {SHINGLE_SIZE})",
    )
    parser.add_argument("--word-spans", action="store_true", help="add the column spans: words, for knowledge masking")


def _add_running(parser: Any) -> None:
    parser.add_argument(
        "--format", dest="output_format", choices=OUTPUT_FORMATS, default=PARQUET, help=f"default: {PARQUET}"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument(
        "--unit-size",
        default="256MiB",
        metavar="SIZE",
        help="of input that becomes one file: small files are put together up to this (default: 256MiB)",
    )
    parser.add_argument(
        "--memory", default="1GiB", metavar="SIZE", help="a process may take to find duplicates (default: 1GiB)"
    )
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no bars")
