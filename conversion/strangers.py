"""What in an output folder was not made by its conversion: it is neither published nor removed, but named."""

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from .consume_state import CONSUMED, NAMES
from .folder_claim import LOCK
from .journal import FRESH, JOURNAL, STATE
from .writer import WriteError

PARTIAL, SMALL = "partial", "small"
"""Folders of the state: weight files that are being filled; small files that are being written."""

SHOWN = 10


def strangers(folder: Path, files: Collection[str], small: Collection[str]) -> list[str]:
    """Names of what does not belong there; links and devices never do, and are not followed.

    Args:
        folder: The output folder.
        files: Weight files of the plan.
        small: Small files that this conversion wrote.
    """
    state = folder / STATE
    found = [name for name in _unexpected(folder, {*files, *small}) if name.partition("/")[0] != STATE]
    if not os.path.lexists(state):
        return found
    if not stat.S_ISDIR(os.lstat(state).st_mode):
        return [*found, STATE]
    for entry in os.scandir(state):
        inside = f"{STATE}/{entry.name}"
        if entry.name in (PARTIAL, SMALL) and entry.is_dir(follow_symlinks=False):
            # A file that has another name elsewhere would be written to under both.
            allowed = set(files) if entry.name == PARTIAL else None
            found += [f"{inside}/{name}" for name in _unexpected(Path(entry), allowed, most_names=1)]
        elif entry.name == CONSUMED and entry.is_dir(follow_symlinks=False):
            found += [f"{inside}/{name}" for name in _unexpected(Path(entry), set(NAMES), most_names=1)]
        elif entry.name not in (JOURNAL, FRESH, LOCK) or not entry.is_file(follow_symlinks=False):
            found.append(inside)
    return sorted(found)


def refuse_strangers(folder: Path, files: Collection[str], small: Collection[str]) -> None:
    """Raises `WriteError` that names what does not belong in the output folder, if anything."""
    found = strangers(folder, files, small)
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise WriteError(
            f"{folder}: {', '.join(found[:SHOWN])}{more} was not made by this conversion, or was changed since. It "
            "would become part of the output, so nothing is done: move it out of the folder and run the same command "
            "again."
        )


def _unexpected(folder: Path, allowed: Collection[str] | None, most_names: int | None = None) -> Iterator[str]:
    """Relative paths of everything but allowed plain files and the folders they need; None allows all plain files.

    A folder that is not needed is named itself, not what is in it.
    """
    needed = None if allowed is None else {str(parent) for name in allowed for parent in PurePosixPath(name).parents}
    pending = [""]
    while pending:
        inside = pending.pop()
        for entry in os.scandir(folder / inside):
            name = f"{inside}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if needed is None or name in needed:
                    pending.append(f"{name}/")
                else:
                    yield name
                continue
            is_plain = entry.is_file(follow_symlinks=False)
            links = entry.stat(follow_symlinks=False).st_nlink
            if not is_plain or (allowed is not None and name not in allowed) or links > (most_names or links):
                yield name


__all__ = ["PARTIAL", "SMALL", "refuse_strangers", "strangers"]
