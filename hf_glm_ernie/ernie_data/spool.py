"""Lines kept in a file of their own and read back in any order; files that appear under their names all at once."""

import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

encode = json.JSONEncoder(ensure_ascii=False).encode  # made once; `json.dumps` makes one a call


class Spool:
    """Lines in a file; what stays in memory is eight bytes a line.

    Args:
        path: A new file.
    """

    def __init__(self, path: Path):
        self._file = path.open("xb+")
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, line: bytes) -> None:
        """Appends a line; it may hold anything."""
        self._file.write(line)
        self._ends.append(self._ends[-1] + len(line))

    def finish(self) -> None:
        """Ends the writing; lines can be read from here on."""
        self._file.flush()

    def __getitem__(self, index: int) -> bytes:
        start, end = self._ends[index], self._ends[index + 1]
        return os.pread(self._file.fileno(), end - start, start)

    def copy_to(self, file: IO[bytes]) -> None:
        """Appends all lines to another file, in their order."""
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """A folder inside `output` for what is being made, gone at the end; `output` too, if it was made for nothing.

    Raises:
        ValueError: `output` is a file.
        OSError: it cannot be made or written.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: a folder is needed for the rows")
    made = [one for one in (output, *output.parents) if not one.exists()]
    output.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".label-data-", dir=output) as folder:
            yield Path(folder)
    finally:
        for one in made:
            if any(one.iterdir()):
                break
            one.rmdir()


def refuse_existing(output: Path, names: Iterable[str], overwrite: bool) -> None:
    """Raises a ValueError if `output` has one of the files and they are not to be replaced."""
    there = [name for name in names if (output / name).exists()]
    if there and not overwrite:
        raise ValueError(
            f"{output} already has {', '.join(there)}: give another folder, or --overwrite to replace them"
        )


def publish(work: Path, output: Path, names: Sequence[str], replaced: Iterable[str]) -> None:
    """Puts finished files into the output folder: all of them, or none if one cannot be put there.

    Args:
        work: A folder beside or inside `output` that holds them.
        output: Where they go.
        names: Of the files.
        replaced: Names of earlier runs that do not stay.
    """
    for name in names:
        with (work / name).open("rb") as file:
            os.fsync(file.fileno())
    away, placed = [], []
    try:
        for name in replaced:
            if (output / name).exists():
                os.replace(output / name, work / f"{name}.replaced")
                away.append(name)
        for name in names:
            os.replace(work / name, output / name)
            placed.append(name)
    except BaseException:
        for name in placed:
            (output / name).unlink()
        for name in away:
            os.replace(work / f"{name}.replaced", output / name)
        raise
