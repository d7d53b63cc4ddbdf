"""The life of a repository's folder: made beside its final name, given the name when it is whole, or gone.

Everything, files for the check included, is in `<output>.incomplete/`, so that one place is left when the process is
killed; the next run recognizes it and clears it. Beside the repository's files there is `.publication/` until the end,
with a note of who is at work. The folder itself is locked as long as a run works on it, the change of its name
included: a folder that is not locked was left behind. What another program put there is never removed.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import hf_glm_ernie

from .json_files import read_json
from .output_path import flush, incomplete_of, refuse_existing, rename_new
from .publish_config import PublishError
from .publish_source import CARRIED, WEIGHT_FILE
from .regular_files import printable
from .safetensors_files import SAFETENSORS_INDEX

STATE = ".publication"
NOTE = "note.json"
CARD = "README.md"
SMALL = frozenset((*CARRIED, SAFETENSORS_INDEX, "config.json", CARD, ".gitattributes"))
CODE = frozenset(path.name for path in Path(hf_glm_ernie.__file__).parent.glob("*.py"))


class Building:
    """A repository's folder under construction; a context manager that holds its lock.

    Args:
        output: The final name.
        weights: Names of the weight files that will be there; for a Space, of all its files.
        about: What the note says: `repo`, `source`.

    Raises:
        PublishError: another run is at work, or something else stands under the folder's name.
        WriteError: the output exists.
    """

    def __init__(self, output: Path, weights: Collection[str], about: Mapping[str, str]):
        self.output = output
        self.path = incomplete_of(output)
        self.scratch = self.path / STATE / "scratch"
        self._note = {"weights": sorted(weights), "pid": os.getpid(), **about}
        self._names = frozenset(weights) | SMALL | CODE
        self._made_parents: list[Path] = []
        self._descriptor = -1

    def __enter__(self) -> "Building":
        refuse_published(self.output)
        self._made_parents = [parent for parent in self.path.parents if not parent.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.path.mkdir()
        self._descriptor = _lock(self.path)
        try:
            left = _names_left(self.path)
        except BaseException:
            os.close(self._descriptor)
            raise
        try:
            _clear(self.path, left)
            refuse_existing(self.output)  # another run may have given it its name a moment ago
            self.scratch.mkdir(parents=True)
            (self.path / STATE / NOTE).write_text(json.dumps(self._note), encoding="utf-8")
        except BaseException:
            self._discard()
            os.close(self._descriptor)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
        os.close(self._descriptor)

    def publish(self, names: Collection[str]) -> None:
        """Gives the folder its name.

        Args:
            names: Every file that should be in it.

        Raises:
            PublishError: something else is in it.
            WriteError: the output exists.
        """
        there = set(os.listdir(self.path)) - {STATE}
        if there != set(names) or not there <= self._names:
            odd = sorted((there ^ set(names)) | (there - self._names))[0]
            raise PublishError(f"{self.path}: {printable(odd)} came or went while the folder was made. Run again.")
        for name in names:
            if name in SMALL | CODE:
                flush(self.path / name)
        refuse_existing(self.output)
        shutil.rmtree(self.path / STATE)
        flush(self.path)
        try:
            rename_new(self.path, self.output)
        except FileExistsError:
            refuse_existing(self.output)
            raise
        with contextlib.suppress(OSError):  # it has its name
            flush(self.output.parent)

    def _discard(self) -> None:
        """Removes what this run made, empty parent folders included; never what it did not make."""
        with contextlib.suppress(OSError):
            _clear(self.path, self._names)
            shutil.rmtree(self.path / STATE, ignore_errors=True)
            self.path.rmdir()
        for parent in self._made_parents:
            with contextlib.suppress(OSError):
                parent.rmdir()


def refuse_published(output: Path) -> None:
    """Raises a `WriteError` that says what is there, if anything stands under the output's name."""
    if os.path.lexists(output / CARD) and os.path.lexists(output / "config.json"):
        try:
            title = re.match(r"---\n.*?\n---\s+# (\S+/\S+)\n", (output / CARD).read_text("utf-8"), flags=re.DOTALL)
            when = datetime.fromtimestamp((output / CARD).stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        except (OSError, ValueError):
            title = None
        if title is not None:
            raise PublishError(
                f"{output}: already exists, the repository {printable(title[1])}, made {when}. To send it: hf upload "
                f"{printable(title[1])} {output} . Otherwise choose another --output, or remove it first."
            )
    refuse_existing(output)


def is_left_behind(folder: Path) -> bool:
    """Whether a killed run left a folder behind that the next run may clear.

    Args:
        folder: Where an output is to be made.

    Raises:
        PublishError: another run is at work there, or something else stands there.
    """
    if not os.path.lexists(folder):
        return False
    descriptor = _lock(folder)
    try:
        _names_left(folder)
    finally:
        os.close(descriptor)
    return True


def _names_left(folder: Path) -> frozenset[str]:
    """The names in a locked folder, all of them a publication's. Raises `PublishError` if they are not."""
    there = set(os.listdir(folder))
    note = _read_note(folder)
    if note is not None:
        ours = SMALL | CODE | {name for name in note.get("weights") or () if isinstance(name, str)}
    else:  # the note comes first and goes last but for the name
        ours = _listed_in_card(folder)
    foreign = sorted(there - ours - {STATE})
    foreign += [name for name in there - {STATE} if not stat.S_ISREG(os.lstat(folder / name).st_mode)]
    if foreign or (folder / STATE).is_symlink():
        raise PublishError(
            f"{folder}: holds {printable((foreign or [STATE])[0])}, which no run of this command left there, so it is "
            "neither gone on with nor removed. Move it elsewhere, or choose another --output."
        )
    return frozenset(there)


def _read_note(folder: Path) -> dict[str, Any] | None:
    """What the run that was at work noted; None if there is no note, or only its beginning."""
    state = folder / STATE
    if state.is_symlink() or not (state / NOTE).is_file():
        return None
    try:
        note = read_json(state / NOTE)
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def _listed_in_card(folder: Path) -> frozenset[str]:
    """The names in the table of checksums of a whole folder that did not get its name."""
    card = folder / CARD
    if card.is_symlink() or not card.is_file():
        return frozenset()
    listed = re.findall(r"^[0-9a-f]{64}  (\S+)$", card.read_text("utf-8", errors="replace"), flags=re.MULTILINE)
    known = frozenset(name for name in listed if name in SMALL | CODE or WEIGHT_FILE.fullmatch(name))
    return known | {CARD} if "config.json" in known else frozenset()


def _lock(folder: Path) -> int:
    """Locks a folder; the descriptor that holds the lock.

    Raises:
        PublishError: another run holds it, or gave the folder its name.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError as error:
        raise PublishError(
            f"{folder}: stands where the folder is to be made. Move it, or choose another --output."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        note = _read_note(folder) or {}
        who = f" (process {note['pid']}, for {printable(note.get('repo'))})" if "pid" in note else ""
        raise PublishError(
            f"{folder}: another publish is at work here{who}. Wait for it, or choose another --output."
        ) from error
    except OSError:
        pass  # some network file systems have no locks
    if not os.path.lexists(folder) or os.fstat(descriptor).st_ino != os.lstat(folder).st_ino:
        os.close(descriptor)
        raise PublishError(f"{folder}: another publish ended a moment ago. Look at its folder, or run again.")
    return descriptor


def _clear(folder: Path, names: Collection[str]) -> None:
    """Removes files of a folder by name."""
    shutil.rmtree(folder / STATE / "scratch", ignore_errors=True)
    for name in sorted(set(names) & set(os.listdir(folder)), key=lambda name: name == CARD):  # it lists the others
        if name != STATE:
            (folder / name).unlink()
    shutil.rmtree(folder / STATE, ignore_errors=True)


__all__ = ["Building", "is_left_behind", "refuse_published"]
