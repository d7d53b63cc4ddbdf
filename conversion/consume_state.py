"""Where a run that consumes its source keeps what it needs, and the mark it leaves beside the source meanwhile.

The state is a folder in the output's own state. The mark is a small file beside the files that are being consumed: it
names the output, so that nobody takes files with holes for whole ones. Both go at the end.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from .consume_log import LOG
from .consume_skeleton import FRESH_SKELETON, SKELETON
from .json_files import read_json
from .operations import CheckpointError
from .output_path import flush

CONSUMED = "consumed"
"""Folder of the state."""

NAMES = (FRESH_SKELETON, LOG, SKELETON)
"""Files in it, in the order in which they are removed."""

MARK = "CONSUMED_BY_CONVERSION.json"
MAX_FOLDERS = 1000
MAX_MARK_BYTES = 10**5
NOTE = (
    "A conversion with --consume deletes the files beside this one as their content is written elsewhere. They may "
    "have holes that read as zeros: nothing but that conversion can use them. This file goes when it is done."
)


def remove_consumed(state: Path) -> None:
    """Removes the folder, if it is there, from an output's state."""
    folder = state / CONSUMED
    for name in NAMES:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (folder / name).unlink()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folder.rmdir()


def write_mark(folder: Path, output: Path, digest: str) -> None:
    """Leaves the mark; it is on the disk when this returns.

    Args:
        folder: Where files are consumed.
        output: What is made of them.
        digest: Of the skeleton.
    """
    fresh = folder / f"{MARK}.new"
    content = {"note": NOTE, "output": os.path.abspath(output), "skeleton": digest}
    fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    flush(fresh)
    fresh.replace(folder / MARK)
    flush(folder)


def read_mark(folder: Path) -> tuple[str, str] | None:
    """The output and the skeleton's digest that a mark names; None where there is no mark."""
    path = folder / MARK
    if not os.path.lexists(path):
        return None
    try:
        content = read_json(path, most=MAX_MARK_BYTES)
        return str(content["output"]), str(content["skeleton"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: left by a conversion that deletes the files beside it, and damaged ({error}). Go on with that "
            "conversion and its --output; without it the files are of no use."
        ) from error


def remove_mark(folder: Path) -> None:
    """Removes the mark, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        (folder / f"{MARK}.new").unlink()
    with contextlib.suppress(FileNotFoundError):
        (folder / MARK).unlink()


def refuse_marked(source: Path) -> None:
    """Makes sure that nothing consumes a source.

    Args:
        source: A folder, in which the files are or in whose folders, or one of the files.

    Raises:
        CheckpointError: something does, or did and was stopped.
    """
    for folder in _folders(source):
        if (found := read_mark(folder)) is not None:
            raise marked(folder, found[0])


def marked(folder: Path, output: str) -> CheckpointError:
    """The refusal of a source that another conversion consumes."""
    return CheckpointError(
        f"{folder}: a conversion with --consume deletes the files in there, and was not finished: what is left can "
        f"only be used by going on with it. Run the same command again: with --consume, and --output {output}."
    )


def _folders(source: Path) -> Iterator[Path]:
    if not source.is_dir():
        yield source.parent
        return
    yield source
    with contextlib.suppress(OSError), os.scandir(source) as found:
        for number, entry in enumerate(found):
            if number >= MAX_FOLDERS:
                return
            if entry.is_dir():
                yield Path(entry)


__all__ = [
    "CONSUMED",
    "MARK",
    "NAMES",
    "marked",
    "read_mark",
    "refuse_marked",
    "remove_consumed",
    "remove_mark",
    "write_mark",
]
