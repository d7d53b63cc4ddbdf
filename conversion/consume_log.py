"""What a run that consumes its source is about to release, and what it has: `released.jsonl` in the output's state.

A line of JSON each: `{"verified": file}`, on the disk before anything that only that file of the output needed is
released; `{"part": name, "mtime_ns": .., "inode": ..}`, how a file of the source stands after a stretch of it was
released; `{"released": file}`. So whatever is gone is known, whatever happens to the output's own journal, and what
somebody else does to the source in between is told from what this program did.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .source_file import FileState

LOG = "released.jsonl"
MAX_BYTES = 2**26


@dataclass
class Released:
    """What the lines say.

    Attributes:
        verified: Files of the output whose source may be gone.
        states: File of the source -> (time of modification in ns, inode) after the last release.
        pending: Whether a run was stopped between its last intention and the end of it.
        told: Files of the source whose state was told since that intention.
    """

    verified: set[str] = field(default_factory=set)
    states: dict[str, tuple[int, int]] = field(default_factory=dict)
    pending: bool = False
    told: set[str] = field(default_factory=set)


class ReleaseLog:
    """The log in a folder.

    Args:
        folder: Where.

    Attributes:
        said: What the lines of former runs say, and this one's.
    """

    def __init__(self, folder: Path):
        self.path = folder / LOG
        self.said = Released()
        self._descriptor: int | None = None
        self._end = 0
        if os.path.lexists(self.path):
            self._read()

    def note(self, line: Mapping[str, Any], durable: bool = False) -> None:
        """Appends a line.

        Args:
            line: What to append.
            durable: Whether to return only when it is on the disk, with all before it.

        Raises:
            OSError: the system refuses.
        """
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._descriptor, self._end)  # behind the last whole line
        data = (json.dumps(line) + "\n").encode()
        at = self._end
        while data:
            written = os.pwrite(self._descriptor, data, at)
            data, at = data[written:], at + written
        if durable:
            os.fsync(self._descriptor)
        self._end = at
        self._enter(line)

    def close(self) -> None:
        """Ends the appending."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _read(self) -> None:
        """Takes over whole lines; after a loss of power the last ones may be cut short, or hold anything."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(MAX_BYTES)
        for line in content.split(b"\n")[:-1]:
            try:
                self._enter(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                return
            self._end += len(line) + 1

    def _enter(self, line: Mapping[str, Any]) -> None:
        said = self.said
        if "part" in line:
            said.states[str(line["part"])] = int(line["mtime_ns"]), int(line["inode"])
            said.told.add(str(line["part"]))
            return
        if "verified" in line:
            said.verified.add(str(line["verified"]))
            said.told.clear()
        said.pending = "verified" in line
        if not line.keys() & {"verified", "released"}:
            raise ValueError("no line of this log")

    def note_state(self, name: str, state: FileState) -> None:
        """Notes how a file of the source stands now."""
        self.note({"part": name, "mtime_ns": state.mtime_ns, "inode": state.inode})


__all__ = ["LOG", "ReleaseLog", "Released"]
