"""What is done at once: files are read by units, each by one process, and finished or begun anew as a whole.

Units are cut from the list of files alone, so they, the order of the corpus and what is written are the same for any
number of processes. Small files are put together; a large one is never split, so what is to be read by many processes
must be many files.
"""

import dataclasses
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from .reading import format_of

READABLE_TYPE = "file"


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of the corpus: its path or address, and its bytes, -1 if nobody knows."""

    path: str
    size: int


@dataclasses.dataclass(frozen=True)
class Unit:
    """Files that are read one after the other, and what a process has to do at once."""

    files: tuple[SourceFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(max(file.size, 0) for file in self.files)

    @property
    def paths(self) -> list[str]:
        """The files' paths."""
        return [file.path for file in self.files]


def find_files(inputs: Sequence[str | Path]) -> list[SourceFile]:
    """Files that paths, addresses and patterns name, in the order of the corpus.

    Args:
        inputs: Each a file, or a pattern with `*`, `?` or `[`, whose files are sorted by name.

    Raises:
        ValueError: no input; a file of an unknown kind; one that is named twice; a pattern that matches nothing.
        FileNotFoundError: no such file.
    """
    found: list[SourceFile] = []
    for given in map(str, inputs):
        system, path = url_to_fs(given)
        if glob.has_magic(path) and not system.exists(path):
            there = sorted(system.glob(path, detail=True).items())
            matches = [(name, one) for name, one in there if one["type"] == READABLE_TYPE]
            if not matches:
                raise ValueError(f"{given}: no file matches.")
        else:
            matches = [(path, _information(system, path, given))]
        is_local = "file" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)
        for name, one in matches:
            size = one.get("size")
            found.append(SourceFile(name if is_local else system.unstrip_protocol(name), -1 if size is None else size))
    if not found:
        raise ValueError("No input was given.")
    seen: set[str] = set()
    for file in found:
        format_of(file.path)
        if file.path in seen:
            raise ValueError(f"{file.path} is named twice: all its documents would be duplicates.")
        seen.add(file.path)
    return found


def _information(system: Any, path: str, given: str) -> dict[str, Any]:
    information = system.info(path)
    if information["type"] != READABLE_TYPE:
        raise ValueError(f"{given} is a folder: name its files, for example {given.rstrip('/')}/*.jsonl")
    return information


def cut_units(files: Sequence[SourceFile], unit_size: int) -> list[Unit]:
    """Puts files that follow one another together, up to `unit_size` bytes and one file at least."""
    units: list[Unit] = []
    taken: list[SourceFile] = []
    for file in files:
        if taken and sum(max(one.size, 0) for one in taken) + max(file.size, 0) > unit_size:
            units.append(Unit(tuple(taken)))
            taken = []
        taken.append(file)
    return [*units, Unit(tuple(taken))] if taken else units


__all__ = ["SourceFile", "Unit", "cut_units", "find_files"]
