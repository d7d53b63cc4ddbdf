"""A conversion whose output goes elsewhere: every file is sent once it is verified, and then removed here.

The local work folder holds the file that is being written and the one that is being sent. What decides whether the
model can be opened is sent last, after all files were found there once more: so what is not complete does not open.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from .file_hooks import FileHooks
from .hub_target import HubTarget
from .job import Job
from .store import HUB
from .store_target import StoreTarget
from .target import SendingStoppedError, Target
from .writer import OutputFile, WriteError

LAST = ("model.safetensors.index.json", "config.json", "latest")
"""Without these nothing is opened."""


class Shipping(FileHooks):
    """Sends the files of a job.

    Args:
        target: Where to.
        job: The job.
        show_progress: Whether bars go to stderr.
    """

    files_at_once = 2
    ships = True

    def __init__(self, target: Target, job: Job, show_progress: bool = True) -> None:
        self._target = target
        self._weights = {file.name: file for file in job.files}
        self._stopping = threading.Event()
        self._show_progress = show_progress

    def compare_known(self, known: Collection[str]) -> None:
        """Refuses a target with other files than those of a former run, and makes it where there is none."""
        self._target.refuse_others(known)
        self._target.prepare()

    def is_kept(self, file: OutputFile, sha256: str) -> bool:
        """Whether a file is there that a former run has sent."""
        return self._target.holds(file.name, sha256, None)

    def disk_needed(self, left: Mapping[str, int]) -> int:
        """The two files in a row that take the most."""
        return max((sum(two) for two in pairwise([0, *left.values()])), default=0)

    def verified(self, path: Path, file: OutputFile, sha256: str) -> bool:
        """Sends a file, unless it is there."""
        if not self._target.holds(file.name, sha256, path):
            with self._bar(file.name, path.stat().st_size) as bar:

                def count(nbytes: int) -> None:
                    if self._stopping.is_set():
                        raise SendingStoppedError("the run ends")
                    bar.update(nbytes)

                self._target.send(path, file.name, sha256, count)
        return True

    def _bar(self, name: str, size: int) -> tqdm[None]:
        return tqdm(
            total=size,
            desc=f"sending {name}",
            unit="B",
            unit_scale=True,
            unit_divisor=1000,
            position=1,
            leave=False,
            disable=not self._show_progress,
        )

    def deliver(self, folder: Path, small: Collection[str]) -> bool:
        """Sends the small files, after all others were found there; compares what the target lists with what was sent.

        Args:
            folder: Where they are.
            small: Their names.
        """
        if missing := sorted(self._weights.keys() - self._target.names()):
            raise WriteError(
                f"{self._target.url}: {', '.join(missing[:8])} was sent and is not there any more. Run the same "
                "command again."
            )
        self._target.refuse_others([*self._weights, *small])
        names = sorted(set(small) - set(LAST)) + [name for name in LAST if name in small]
        sha256 = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
        self._target.send_small(folder, names, sha256)
        if wrong := [name for name in names if not self._target.holds(name, sha256[name], folder / name)]:
            raise WriteError(f"{self._target.url}: {wrong[0]} did not arrive as it was sent. Run the command again.")
        return True

    def may_discard(self) -> bool:
        """Removes what was sent, which is of no use; whether that was possible."""
        try:
            if there := self._target.names() & self._weights.keys():
                self._target.remove(there)
        except WriteError as error:
            tqdm.write(f"note: {error}", file=sys.stderr)
            return False
        return True

    def stop(self) -> None:
        """Ends the sending where that is possible; the Hub's client goes on to the end of a file."""
        self._stopping.set()


def parse_target(text: str, private: bool = False) -> Target:
    """The target that a URL names.

    Raises:
        ConversionError: an impossible name, or a store that cannot be written to.
    """
    return HubTarget(text, private) if text.startswith(f"{HUB}://") else StoreTarget(text)


def work_folder(target: Target, inside: Path) -> Path:
    """The local name under which an output is made on its way to a target; `.incomplete` is put behind it."""
    letters = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in target.name)
    return inside / f"{letters.strip('.') or 'output'}-{target.scheme}"


def for_target(job: Job, target: Target) -> Job:
    """A job whose files are finished one after the other, and that is another for another target."""
    return replace(job, by_tensor=False, options={**job.options, "target": target.url})


__all__ = ["Shipping", "for_target", "parse_target", "work_folder"]
