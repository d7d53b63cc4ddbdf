"""`--threads`: how many threads compute what is not copied, the weights that `--bits` quantizes above all."""

import argparse
import os
import re

USEFUL_THREADS = 8
"""One thread reads for all that compute, and keeps no more of them busy (about 1.2 * 10^9 weights a second each)."""

MOST_THREADS = 64
"""Each takes a block of memory (`blocks.copy_peak_bytes`): 2 GiB in all."""


def default_threads() -> int:
    """The CPUs that this process may use, but no more than are of use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    return min(cpus, USEFUL_THREADS)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Adds the option; it gives `threads`, an int."""
    parser.add_argument(
        "--threads",
        type=parse_threads,
        default=default_threads(),
        metavar="N",
        help=f"how many compute what is not copied, as with --bits; at most {MOST_THREADS}, 32 MiB of memory each "
        f"(default: the CPUs this process may use, up to {USEFUL_THREADS})",
    )


def parse_threads(text: str) -> int:
    """A whole number from 1 to `MOST_THREADS`. Raises `argparse.ArgumentTypeError`."""
    if not re.fullmatch(r"0*[1-9][0-9]?", text) or int(text) > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads, 1 to {MOST_THREADS}")
    return int(text)


__all__ = ["add_threads", "default_threads", "parse_threads"]
