"""Files of a folder that somebody else filled, opened so that nothing leads out of it.

A name may be a link to a private file, a pipe that is never written to, or a device. Only regular files are read, and
no link is followed, but for one kind: a snapshot in the Hub's cache consists of links into `blobs` beside it.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .json_files import MAX_BYTES
from .operations import ConversionError
from .source_file import FileState

BLOCK_BYTES = 16 * 2**20


class NotRegularError(ConversionError):
    """A name of a folder is no file of that folder."""


def real_place(path: Path) -> Path:
    """Where a file's bytes are: the path itself, or the blob that a link in a snapshot of the Hub's cache names.

    Args:
        path: The file; the folder it is in is a resolved path.

    Raises:
        NotRegularError: a link to anywhere else.
    """
    if not path.is_symlink():
        return path
    repository = path.parent.parent.parent
    target = Path(os.path.normpath(path.parent / path.readlink()))
    in_cache = path.parent.parent.name == "snapshots" and target.parent == repository / "blobs"
    if in_cache and not target.parent.is_symlink():
        return target
    raise NotRegularError(
        f"{path}: a symbolic link to {path.readlink()}; links are followed in the Hub's cache only, so that nothing "
        f"from elsewhere gets out. Put the file itself there: cp --remove-destination {target} {path}"
    )


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Opens a file of a folder; see `real_place`.

    Raises:
        NotRegularError: a link that leads elsewhere, or no regular file.
        OSError: it cannot be opened.
    """
    place = real_place(path)
    _refuse_others(path, os.lstat(place))
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise NotRegularError(f"{path}: became a symbolic link a moment ago. Run the command again.") from error
    with os.fdopen(descriptor, "rb") as file:
        _refuse_others(path, os.fstat(descriptor))
        yield file


def _refuse_others(path: Path, seen: os.stat_result) -> None:
    if stat.S_ISREG(seen.st_mode):
        return
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
    what = kinds.get(stat.S_IFMT(seen.st_mode), "a device or socket")
    raise NotRegularError(f"{path}: {what}, not a file. Remove it, or put the file itself there.")


def identify(path: Path) -> FileState:
    """The state of a file of a folder. Raises as `open_regular`."""
    with open_regular(path) as file:
        return FileState.of(file.fileno())


def read_regular(path: Path) -> bytes:
    """The content of a small file of a folder.

    Raises:
        NotRegularError: as `open_regular`; or larger than a small file may be.
    """
    with open_regular(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise NotRegularError(f"{path}: more than {MAX_BYTES:,} bytes, the limit of a file beside the weights.")
    return content


def printable(name: object) -> str:
    """A name out of a file or folder for a terminal: no control characters."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(name))


__all__ = [
    "BLOCK_BYTES",
    "NotRegularError",
    "identify",
    "open_regular",
    "printable",
    "read_regular",
    "real_place",
]
