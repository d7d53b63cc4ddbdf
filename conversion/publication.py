"""The last step of an output folder: it gets its name, by way of a hidden one that tells which job has finished.

The journal goes in between, so a run that is killed there leaves a folder that needs only its name; the next run of
the same job gives it that, and no other job can take it over.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from .folder_claim import LOCK, Claim
from .journal import FRESH, JOURNAL, STATE, Journal, Progress
from .output_path import flush, refuse_existing, rename_new
from .writer import OutputFile, WriteError


class Publication:
    """Gives a complete folder its name.

    Args:
        output: The final name.
        incomplete: The folder's name until then.
        files: What it holds, beside small files.
        fingerprint: Of the job.
        ships: Whether some of the files may have been shipped, so that the folder need not hold them.

    Attributes:
        is_done: Whether the folder has its name.
        finished: The hidden name.
    """

    def __init__(
        self, output: Path, incomplete: Path, files: Mapping[str, OutputFile], fingerprint: str, ships: bool = False
    ):
        self.is_done = False
        self._output = output
        self._incomplete = incomplete
        self._files = files
        self._fingerprint = fingerprint
        self._ships = ships
        self._prefix = f".{_digest(output.name)}-"
        self.finished = output.with_name(f"{self._prefix}{_digest(fingerprint)}.finished")

    def finish_former(self) -> bool:
        """Ends the publication in which a former run of this job was killed; whether there was nothing else to do.

        Raises:
            WriteError: what that run left is damaged, or another run is in the same place.
        """
        self.refuse_finished(but=self.finished)
        claim = Claim(self.finished)
        try:
            if not claim.take_existing(is_ours=True):
                return False
            if claim.has_journal:
                rename_new(self.finished, self._incomplete)  # where it is resumed
                return False
            damaged = [name for name, file in self._files.items() if not self._is_whole(self.finished / name, file)]
            if damaged:
                raise WriteError(
                    f"{self.finished}: a finished conversion that was not given its name, and {damaged[0]} in it is "
                    f"missing or damaged. Remove the folder, and run the same command again: rm -r {self.finished}"
                )
            self._name()
            flush(self._output.parent)
        finally:
            claim.release()
        return True

    def refuse_finished(self, but: Path | None = None) -> None:
        """Raises `WriteError` if another run is giving its folder the output's name, or was killed then."""
        parent = self._output.parent
        with contextlib.suppress(FileNotFoundError, PermissionError):  # a folder may be written to and not be read
            for name in os.listdir(parent):
                if name.startswith(self._prefix) and parent / name != but:
                    claim = Claim(parent / name)
                    is_there = claim.take_existing(is_ours=True)
                    claim.release()
                    if is_there:
                        raise WriteError(
                            f"{parent / name}: a finished conversion of another source or with other options, killed "
                            f"before it was named {self._output}. Run that one again, or remove the folder: rm -r "
                            f"{parent / name}"
                        )

    def publish(self, progress: Progress) -> None:
        """Gives the complete folder its name.

        Args:
            progress: What is in it, for the journal of a folder that does not get it.

        Raises:
            WriteError: the name was taken meanwhile.
        """
        refuse_existing(self._output)
        rename_new(self._incomplete, self.finished)
        try:
            self._name()
        except BaseException:
            self._take_back(progress)
            raise
        flush(self._output.parent)

    def _is_whole(self, path: Path, file: OutputFile) -> bool:
        if self._ships and not os.path.lexists(path):
            return True
        return path.is_file() and not path.is_symlink() and file.is_laid_out(path)

    def _name(self) -> None:
        """Gives the finished folder the output's name, after the last of its state is gone."""
        remove_state(self.finished)
        flush(self.finished)
        try:
            rename_new(self.finished, self._output)
        except FileExistsError:
            refuse_existing(self._output)
            raise
        self.is_done = True

    def _take_back(self, progress: Progress) -> None:
        """After a publication that failed: the folder is incomplete again, with its journal."""
        if not os.path.lexists(self.finished):
            self.is_done = True  # interrupted just behind the last step
            return
        with contextlib.suppress(OSError):  # otherwise it stays finished, and the next run gives it its name
            journal = Journal(self.finished / STATE, self._files, self._fingerprint)
            journal.path.parent.mkdir(exist_ok=True)
            journal.restart(progress)
            journal.close()
            rename_new(self.finished, self._incomplete)


def remove_state(folder: Path) -> None:
    """Removes the state of a folder, the journal last."""
    for name in (FRESH, LOCK, JOURNAL):
        (folder / STATE / name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (folder / STATE).rmdir()


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


__all__ = ["Publication", "remove_state"]
