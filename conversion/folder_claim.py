"""Who works in an output folder: made for one run, or taken over from one that was killed; never shared, never
anybody else's.

The lock is the folder's own: it holds while the folder gets another name, dies with the process, and leaves no file
behind. A file in the folder's state is locked, too, because network file systems lock files between machines, and
folders on one alone.
"""

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

from .journal import FRESH, JOURNAL, STATE
from .output_path import foreign
from .writer import WriteError

BEGUN = 0o700
"""Mode of a folder until its journal is in it, so that a run killed in between leaves no folder of unknown origin."""

LOCK = "lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
TRIES = 100


class Claim:
    """The lock on a folder.

    Attributes:
        path: The folder.
        is_held: Whether the folder is this run's.
        has_journal: Whether a former run left its journal.
        made_parents: Parent folders that were made for it, innermost first.
    """

    def __init__(self, path: Path):
        self.path = path
        self.is_held = False
        self.has_journal = False
        self.made_parents: list[Path] = []
        self._descriptors: list[int] = []

    def take(self) -> None:
        """Makes the folder, or takes over a former run's.

        Raises:
            WriteError: another run is at work in it, or it is none of ours.
        """
        for _ in range(TRIES):
            made = self._make()
            if self.take_existing(made):
                return
        raise WriteError(f"{self.path}: comes and goes; another program is at work there.")

    def take_existing(self, is_ours: bool) -> bool:
        """Locks the folder; False if it has just gone.

        Args:
            is_ours: Whether it need not show that it is.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise foreign(self.path) from error
            raise
        self._descriptors.append(descriptor)
        try:
            self._lock(descriptor)
            if not is_same(descriptor, self.path):
                self.release()
                return False
            self._look(is_ours, descriptor)
        except BaseException:
            self.release()
            raise
        self.is_held = True
        return True

    def lock_state(self) -> None:
        """Makes the folder's state and locks the file in it."""
        state = self.path / STATE
        state.mkdir(exist_ok=True)
        descriptor = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        self._descriptors.append(descriptor)
        self._lock(descriptor)

    def shut(self) -> None:
        """Gives the folder the mode of one without a journal, before the journal goes."""
        self.path.chmod(BEGUN)

    def open_up(self) -> None:
        """Gives the folder the mode that folders have here, now that its journal is in it."""
        if _is_begun(self.path.stat()):
            self.path.chmod(stat.S_IMODE((self.path / STATE).stat().st_mode))

    def remove_parents(self) -> None:
        """Removes the parent folders made for it, if they are empty."""
        for parent in self.made_parents:
            try:
                parent.rmdir()
            except OSError:
                return
        self.made_parents = []

    def release(self) -> None:
        """Lets go of the locks."""
        self.is_held = False
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _make(self) -> bool:
        """Whether the folder was not there."""
        for parent in reversed([parent for parent in self.path.parents if not parent.exists()]):
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # another run makes or removes them, too
                parent.mkdir()
                self.made_parents.insert(0, parent)
        try:
            self.path.mkdir(mode=BEGUN)
        except FileExistsError:
            return False
        except FileNotFoundError:
            if not self.path.parent.exists():
                return False  # and so the folder is not there, either
            raise
        return True

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WriteError(
                f"{self.path}: another conversion is writing here. Wait for it, or choose another --output."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise

    def _look(self, is_ours: bool, descriptor: int) -> None:
        """Makes sure that the folder is this program's."""
        self.has_journal = os.path.lexists(self.path / STATE / JOURNAL)
        if self.has_journal:
            if not stat.S_ISDIR(os.lstat(self.path / STATE).st_mode):
                raise foreign(self.path)
        elif not is_ours and not (_is_begun(os.fstat(descriptor)) and self._is_bare()):
            raise foreign(self.path)

    def _is_bare(self) -> bool:
        """Whether nothing is in it but what a run makes before its journal."""
        state = self.path / STATE
        if not set(os.listdir(self.path)) <= {STATE}:
            return False
        return not os.path.lexists(state) or (
            stat.S_ISDIR(os.lstat(state).st_mode) and set(os.listdir(state)) <= {LOCK, FRESH}
        )


def _is_begun(status: os.stat_result) -> bool:
    return status.st_mode & 0o777 == BEGUN


def is_same(descriptor: int, path: Path) -> bool:
    """Whether a path still names what was opened."""
    try:
        named, opened = os.lstat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


__all__ = ["LOCK", "Claim"]
