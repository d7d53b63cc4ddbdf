"""Local copies of what lies in a store, for readers that know local files alone.

Small files beside a checkpoint (settings, a tokenizer) are copied to a temporary folder that goes with the process.
The readers of ERNIE's formats take a local folder, so their source is copied whole, beside the output and file by
file: a copy is kept, and gone on with, as long as the output is incomplete; then it goes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .job import progress_bar
from .json_files import MAX_SETTINGS_BYTES
from .operations import CheckpointError
from .output_path import incomplete_of
from .paddle_files import TRAINING_FILES
from .places import Place
from .store_source import ObjectPath

COPY = ".source"
"""Ends the name of the folder with a copy, behind the output's."""

COPIED, FILES = "copied.json", "files"
BLOCK_BYTES = 32 * 2**20
MAX_FILES = 20_000
SPARE_BYTES = 2**28


def beside(folder: Place, names: Sequence[str]) -> Path:
    """The local folder in which files beside a checkpoint are: its own, or a temporary one with copies of them.

    Raises:
        CheckpointError: one is too large to be what its name says, or cannot be read.
    """
    if isinstance(folder, Path):
        return folder
    if folder.home is not None:
        return folder.home
    if not isinstance(folder, ObjectPath):
        raise TypeError(f"{folder} has no files beside it")
    home = Path(folder.store.scratch.name)
    for name in names:
        place = folder / name
        if folder.is_dir() and place.is_file():
            source = place.bytes()
            if source.size > MAX_SETTINGS_BYTES:
                raise CheckpointError(f"{place}: {source.size:,} bytes, which no such file has. Look what it is.")
            (home / name).write_bytes(source.read_bytes(0, source.size))
    return home


@contextmanager
def fetched(place: Place, output: Path, show_progress: bool = True) -> Iterator[Path]:
    """A source as a local path: itself, or a copy of what lies in a store, in `<output>.source`.

    The copy is removed, but where an incomplete output stays that comes from it: the next run goes on with both.

    Args:
        place: A file, with what lies beside it, or a folder.
        output: What is made of it.
        show_progress: Whether a bar goes to stderr.

    Raises:
        CheckpointError: nothing is there, the disk is too small, another run is at work, a folder of that name is not
            one of ours, the source changes.
    """
    if isinstance(place, Path):
        yield place
        return
    if not isinstance(place, ObjectPath):
        raise TypeError(f"{place} is in no store")
    copy = output.with_name(output.name + COPY)
    with _claimed(copy):
        try:
            yield _filled(copy, copy / FILES, place, show_progress)
        finally:
            if not os.path.lexists(incomplete_of(output)):
                shutil.rmtree(copy)


@contextmanager
def _claimed(copy: Path) -> Iterator[None]:
    """Makes the folder, or takes over a former run's, for as long as nobody else does."""
    is_new = not os.path.lexists(copy)
    if not is_new and not (copy / COPIED).is_file():
        raise CheckpointError(
            f"{copy}: is there already, and no copy of a source. It is made under that name: move it away, or choose "
            "another --output."
        )
    copy.mkdir(parents=True, exist_ok=True)
    if is_new:
        (copy / COPIED).write_text("{}")
    descriptor = os.open(copy, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise CheckpointError(f"{copy}: another run copies its source here. Wait for it.") from error
    finally:
        os.close(descriptor)


def _filled(copy: Path, into: Path, place: ObjectPath, show_progress: bool) -> Path:
    """The place's copy, with all of its files."""
    is_file = place.is_file()
    folder = place.at(place.inside.parent) if is_file else place
    if not is_file and not place.is_dir():
        raise CheckpointError(f"{place}: no such file or folder.")
    files = {name: folder.at(folder.inside / name).bytes() for name in _names(folder, deep=not is_file)}
    planned = {name: [str(source.path), source.size, source.state.marks] for name, source in files.items()}
    kept = json.loads((copy / COPIED).read_text())
    whole = {
        name for name in files if kept.get(name) == json.loads(json.dumps(planned[name])) and (into / name).is_file()
    }
    _check_disk(copy, sum(source.size for name, source in files.items() if name not in whole))
    total = sum(source.size for source in files.values())
    done = sum(files[name].size for name in whole)
    with progress_bar("fetching", total, done, show_progress) as progress:
        for name in sorted(files.keys() - whole):
            source, target = files[name], into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for start in range(0, source.size, BLOCK_BYTES):
                    file.write(source.read_bytes(start, min(BLOCK_BYTES, source.size - start)))
                    progress(min(BLOCK_BYTES, source.size - start))
            source.expire()
            source.look()
            source.close()
            whole.add(name)
            _note(copy, {name: planned[name] for name in whole})
    return into / place.name if is_file else into


def _note(copy: Path, whole: dict[str, object]) -> None:
    """Notes which files are whole, so that they are not fetched again."""
    fresh = copy / f"{COPIED}.new"
    fresh.write_text(json.dumps(whole))
    fresh.replace(copy / COPIED)


def _names(folder: ObjectPath, deep: bool) -> Iterator[str]:
    """The files of a folder, those in its folders too if it is named itself, but what a training run leaves."""
    pending, found = [""], 0
    while pending:
        inside = pending.pop()
        here = folder.at(folder.inside / inside) if inside else folder
        for name in sorted(here.names()):
            found += 1
            if found > MAX_FILES:
                raise CheckpointError(f"{folder}: more than {MAX_FILES:,} files, so not a checkpoint's folder.")
            if ".." in name or TRAINING_FILES.fullmatch(name):
                continue
            if (here / name).is_file():
                yield f"{inside}{name}"
            elif deep:
                pending.append(f"{inside}{name}/")


def _check_disk(copy: Path, needed: int) -> None:
    free = shutil.disk_usage(copy).free
    if needed + SPARE_BYTES > free:
        raise CheckpointError(
            f"{copy}: the copy of the source takes {needed:,} bytes of disk, {free:,} are free. Free some, or choose "
            "another --output."
        )


__all__ = ["beside", "fetched"]
