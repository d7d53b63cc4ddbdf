"""What else may happen to the weight files of an output once they are verified.

A weight file is partial while it is filled, finished when all its tensors are written, and verified when it was read
back from the disk and holds what was written. From then on its source is not needed for it any more, and the file
itself may go elsewhere. What is done then is a `FileHooks`; this one does nothing.
"""

from collections.abc import Mapping
from pathlib import Path

from .writer import OutputFile


class FileHooks:
    """Does nothing; derive from it what is to be done. `job.run` takes one, and only together with verification.

    Attributes:
        files_at_once: How many files may be partial, or finished and not yet behind `verified`, at one time, where
            files are written one after the other: no further one is begun meanwhile. At least 2, or nothing overlaps.
        ships: Whether `verified` ever says that a file is kept elsewhere.
    """

    files_at_once: int = 3
    ships: bool = False

    def verified(self, path: Path, file: OutputFile, sha256: str) -> bool:
        """Called once a file is verified and the journal's line about it, the file and its name are on the disk.

        Called for one file at a time, in the order of verification, in a thread that is not the writing one (or the
        main one, while what a former run left is looked at). A run that goes on calls it again for every file that a
        former run verified and did not ship, so it must not matter how often it is called.

        Args:
            path: Where the file is.
            file: What it holds.
            sha256: Of the file, hexadecimal.

        Returns:
            Whether the file is safe elsewhere: that is noted, then the file is removed here.

        Raises:
            Exception: ends the run; the file stays, verified.
        """
        return False

    def is_kept(self, file: OutputFile, sha256: str) -> bool:
        """Whether a file that a former run shipped is still where that run said; if not it is written again.

        Called before anything else is done. The journal is a claim, so whoever ships should look.
        """
        return True

    def disk_needed(self, left: Mapping[str, int]) -> int:
        """Bytes that must be free for the weights.

        Args:
            left: File -> bytes that are not on the disk yet, in the order of writing; without finished and shipped
                files.
        """
        return sum(left.values())

    def may_discard(self) -> bool:
        """Whether all work may be removed after an error that makes it useless, such as a source that changed."""
        return True

    def stop(self) -> None:
        """Called in the main thread when the run ends early: a `verified` that takes long should end, by raising."""


__all__ = ["FileHooks"]
