"""The journal of an output folder: which job it is of, and the CRC-32 of everything finished in it.

A line of JSON each: first the fingerprint of the job, then `{"file", "tensor", "crc32"}` for a tensor of a weight
file, `{"file", "crc32"}` for what is around the tensors where the plan does not tell it, `{"file", "sha256"}` for a
weight file that was verified, `{"file", "shipped": true}` for one that is kept elsewhere since, and `{"small",
"crc32"}` for a small file. A line is appended when what it speaks of is written; the last may be cut short by a kill.
What it says is a claim: a line that this job could not have written refuses the folder, and what is in the folder is
read again before the work goes on behind it (`recheck.py`).
"""

import json
import os
import re
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .writer import OutputFile, WriteError

JOURNAL, FRESH = "journal.jsonl", "journal.new"
LINE_BYTES = 256
"""More than a line has beside its names."""

SMALL_FILES, LONGEST_NAME = 1000, 1024


@dataclass
class Progress:
    """What is done.

    Attributes:
        checksums: Weight file -> tensor -> CRC-32.
        around: Weight file -> the CRC-32 that everything but its tensors had, at first or in the end.
        small: Small file -> the CRC-32 it has, or had before the run that wrote it anew was stopped.
        verified: Weight file -> SHA-256, of those that were read back whole.
        shipped: Weight files that are kept elsewhere; all of them verified.
    """

    checksums: dict[str, dict[str, int]]
    around: dict[str, set[int]] = field(default_factory=dict)
    small: dict[str, set[int]] = field(default_factory=dict)
    verified: dict[str, str] = field(default_factory=dict)
    shipped: set[str] = field(default_factory=set)

    def forget(self, file: str) -> None:
        """Takes out a weight file that is no more."""
        self.checksums[file] = {}
        self.verified.pop(file, None)
        self.shipped.discard(file)


class Journal:
    """The journal in a folder's state.

    Args:
        state: The folder of the state.
        files: What the output will hold.
        fingerprint: Of the job.
        ships: Whether this job ships files.
    """

    def __init__(self, state: Path, files: Mapping[str, OutputFile], fingerprint: str, ships: bool = False):
        self.path = state / JOURNAL
        self._fresh = state / FRESH
        self._files = files
        self._fingerprint = fingerprint
        self._ships = ships
        self._descriptor: int | None = None
        self._turn = threading.Lock()  # files are begun in one thread and tensors finished in another

    def read(self) -> Progress:
        """What a former run says it has done.

        Raises:
            WriteError: another job's, or nothing this job could have written.
        """
        lines = self._content().split(b"\n")[:-1]  # a last line that was cut short has no end
        if not lines or not isinstance(first := self._parsed(lines[0], 1), dict) or "fingerprint" not in first:
            raise self._damaged(1, "no fingerprint of a job")
        if first != {"fingerprint": self._fingerprint}:
            raise WriteError(
                f"{self._folder}: left by a conversion of another source or with other options, so it cannot be "
                f"continued. Run that one again to finish it, or remove the folder: rm -r {self._folder}"
            )
        progress = Progress({name: {} for name in self._files})
        tensors = {name: {tensor.name for tensor in file.tensors} for name, file in self._files.items()}
        for number, line in enumerate(lines[1:], start=2):
            self._enter(self._parsed(line, number), number, progress, tensors)
        return progress

    def restart(self, progress: Progress) -> None:
        """Writes the journal anew with what still holds, so that no line speaks of what was removed since."""
        self.close()
        lines: list[dict[str, Any]] = [{"fingerprint": self._fingerprint}]
        lines += [{"small": name, "crc32": value} for name, values in progress.small.items() for value in values]
        lines += [{"file": name, "crc32": value} for name, values in progress.around.items() for value in values]
        for file, done in progress.checksums.items():
            lines += [{"file": file, "tensor": tensor, "crc32": value} for tensor, value in done.items()]
        lines += [{"file": name, "sha256": value} for name, value in progress.verified.items()]
        lines += [{"file": name, "shipped": True} for name in sorted(progress.shipped)]
        self._fresh.unlink(missing_ok=True)
        descriptor = os.open(self._fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            _write_all(descriptor, "".join(json.dumps(line) + "\n" for line in lines).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._fresh.replace(self.path)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)

    def note(self, line: Mapping[str, Any], durable: bool = False) -> None:
        """Appends a line. After one that failed nothing is appended: it would stand behind half a line.

        Args:
            line: What to append.
            durable: Whether to return only when it is on the disk, with all lines before it; others may append
                meanwhile.
        """
        with self._turn:
            if self._descriptor is None:
                return
            try:
                _write_all(self._descriptor, (json.dumps(line) + "\n").encode())
                descriptor = os.dup(self._descriptor) if durable else None
            except OSError:
                self.close()
                raise
        if descriptor is not None:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Ends the appending."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    @property
    def _folder(self) -> Path:
        return self.path.parents[1]

    def _content(self) -> bytes:
        """The bytes of a plain file that is no larger than this job could have made it."""
        most = LINE_BYTES + SMALL_FILES * (LINE_BYTES + 6 * LONGEST_NAME)
        for name, file in self._files.items():  # JSON may write a character in six
            most += 4 * (LINE_BYTES + 6 * len(name))
            most += sum(LINE_BYTES + 6 * (len(name) + len(tensor.name)) for tensor in file.tensors)
        status = os.lstat(self.path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise self._damaged(1, "no plain file, or larger than any of this conversion")
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            return opened.read(most)

    def _parsed(self, line: bytes, number: int) -> Any:
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(number, "no JSON") from error

    def _enter(self, line: Any, number: int, progress: Progress, tensors: Mapping[str, set[str]]) -> None:
        """Takes a line over into the progress, if this job can have written it."""
        keys = line.keys() if isinstance(line, dict) else set()
        if keys in ({"file", "sha256"}, {"file", "shipped"}):
            self._enter_whole(line, number, progress)
            return
        value = line["crc32"] if "crc32" in keys else None
        if type(value) is not int or not 0 <= value < 2**32:
            raise self._damaged(number, "no checksum")
        if keys == {"small", "crc32"}:
            if not is_plain_name(line["small"]) or line["small"] in self._files or len(progress.small) >= SMALL_FILES:
                raise self._damaged(number, "no name of a small file")
            progress.small.setdefault(line["small"], set()).add(value)
            return
        file, tensor = line.get("file"), line.get("tensor")
        known = isinstance(file, str) and isinstance(tensor, str) and tensor in tensors.get(file, ())
        is_around = isinstance(file, str) and file in self._files and not self._files[file].is_known
        if keys == {"file", "crc32"} and is_around:
            progress.around.setdefault(file, set()).add(value)
            return
        if keys != {"file", "tensor", "crc32"} or not known or tensor in progress.checksums[file]:
            raise self._damaged(number, "no tensor of this conversion, or one for the second time")
        progress.checksums[file][tensor] = value

    def _enter_whole(self, line: Mapping[str, Any], number: int, progress: Progress) -> None:
        """Takes over what a line says of a whole weight file: verified after its last tensor, shipped after that."""
        file = line["file"]
        if not isinstance(file, str) or file not in self._files:
            raise self._damaged(number, "no file of this conversion")
        if "shipped" in line:
            is_next = self._ships and file in progress.verified and file not in progress.shipped
            if line["shipped"] is not True or not is_next:
                raise self._damaged(number, "no file that can have been shipped, or one for the second time")
            progress.shipped.add(file)
            return
        is_complete = len(progress.checksums[file]) == len(self._files[file].tensors)
        if not isinstance(line["sha256"], str) or not re.fullmatch(r"[0-9a-f]{64}", line["sha256"], re.ASCII):
            raise self._damaged(number, "no SHA-256")
        if not is_complete or file in progress.verified:
            raise self._damaged(number, "verified before it was complete, or for the second time")
        progress.verified[file] = line["sha256"]

    def _damaged(self, number: int, what: str) -> WriteError:
        return WriteError(
            f"{self.path}: not a journal that this conversion wrote (line {number}: {what}), so the folder cannot be "
            f"continued; nothing in it was touched. If you do not need it, remove it: rm -r {self._folder}"
        )


def is_plain_name(name: object) -> bool:
    """Whether it is a path of a file below a folder, other than the folder's state."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or "\0" in name:
        return False
    parts = name.split("/")
    return parts[0] != STATE and not {"", ".", ".."} & set(parts)


STATE = ".conversion"
"""Folder of the state, inside the output folder."""


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


__all__ = ["FRESH", "JOURNAL", "STATE", "Journal", "Progress", "is_plain_name"]
