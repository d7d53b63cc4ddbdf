"""What the options of the command line may be."""

import argparse
import math
import re
from pathlib import Path

from hf_glm_ernie.configuration_arguments import EPSILON
from hf_glm_ernie.planner.devices import parse_size as parse_amount

from .operations import ConversionError
from .places import Place
from .store import is_url
from .store_source import parse_place

MAX_SHARD_BYTES = 10**15


def parse_size(text: str) -> int:
    """Bytes from "5GB" (10^9 each), "500MiB" (2^20 each) or a plain number. Raises `argparse.ArgumentTypeError`."""
    number, unit = re.fullmatch(r"([\d.]*)\s*(.*)", text.strip(), flags=re.DOTALL).groups()  # type: ignore[union-attr]  # it matches any text
    try:
        size = parse_amount(number + (unit.upper().replace("IB", "iB") or "B"), "size")
    except (ValueError, OverflowError):
        size = 0
    if not 1 <= size <= MAX_SHARD_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write e.g. 5GB, 500MiB or a number of bytes, at most {MAX_SHARD_BYTES:.0e}"
        )
    return size


def parse_source(text: str) -> Place:
    """A local path, or a place in a store. Raises `argparse.ArgumentTypeError`."""
    try:
        return parse_place(text)
    except ConversionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_output(text: str) -> Path:
    """A folder whose name every library can write to. Raises `argparse.ArgumentTypeError`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no text in UTF-8, which the tokenizers library asks of a path; choose another"
        ) from error
    return Path(text)


def parse_output_or_url(text: str) -> Path | str:
    """A folder, or a URL. Raises `argparse.ArgumentTypeError`."""
    return text if is_url(text) else parse_output(text)


def parse_count(text: str) -> int:
    """A whole number above 0. Raises `argparse.ArgumentTypeError`."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse_index(text: str) -> int:
    """A whole number, 0 or more. Raises `argparse.ArgumentTypeError`."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def parse_eps(text: str) -> float:
    """The epsilon of a LayerNorm. Raises `argparse.ArgumentTypeError`."""
    try:
        eps = float(text)
    except ValueError:
        eps = math.nan
    if not EPSILON.holds(eps):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number {EPSILON}, such as 1e-12")
    return eps


__all__ = [
    "parse_count",
    "parse_eps",
    "parse_index",
    "parse_output",
    "parse_output_or_url",
    "parse_size",
    "parse_source",
]
