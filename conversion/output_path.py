"""Where an output may go: a new name, in a folder that can be made, outside the source; and renames that replace
nothing.
"""

import contextlib
import ctypes
import errno
import os
import stat
import sys
from pathlib import Path

from .writer import WriteError

INCOMPLETE = ".incomplete"
"""Ends the name of a folder that is being filled."""

AT_FDCWD, RENAME_NOREPLACE, RENAME_EXCL = -100, 1, 4  # linux/fcntl.h, linux/fs.h; sys/stdio.h of macOS
NOT_KNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def incomplete_of(output: Path) -> Path:
    """The folder in which an output is made."""
    return output.with_name(output.name + INCOMPLETE)


def check_output(output: Path, source: Path | None = None) -> None:
    """Makes sure that an output can be made where it is asked for; makes nothing.

    Args:
        output: The folder to be made.
        source: What is converted, where the caller knows.

    Raises:
        WriteError: it exists, is no name for a new folder, or would lie in a file or in the source.
    """
    if "\0" in str(output) or output.name == ".." or output.name.endswith(INCOMPLETE):
        raise WriteError(
            f"{str(output)!r}: no name for an output; it is `..`, has a NUL in it, or ends with {INCOMPLETE}, as the "
            "folders do in which outputs are made. Choose another --output."
        )
    try:
        refuse_existing(output)
        incomplete = incomplete_of(output)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISDIR(os.lstat(incomplete).st_mode):
                raise foreign(incomplete)
        for parent in output.absolute().parents:
            if os.path.lexists(parent) and not parent.is_dir():
                raise WriteError(f"{output}: {parent} is no folder. Choose another --output.")
    except OSError as error:  # a name too long, a loop of links
        raise WriteError(f"{output}: {error.strerror}. Choose another --output.") from error
    if source is not None and source.is_dir():
        inside, whole = (os.path.realpath(path) for path in (output, source))
        if os.path.commonpath([inside, whole]) == whole:
            raise WriteError(
                f"{output}: lies inside the source {source}, which must stay as it is while it is read. Choose an "
                "--output beside it."
            )


def refuse_existing(output: Path) -> None:
    """Raises `WriteError` if anything stands under the output's name."""
    if os.path.lexists(output):
        raise WriteError(f"{output}: already exists. Choose another --output, or remove it first.")


def foreign(incomplete: Path) -> WriteError:
    """The refusal of a folder that was not begun by a conversion."""
    return WriteError(
        f"{incomplete}: is there already and holds no journal of a conversion, so it is not touched. The output is "
        "made under that name: move it away, or choose another --output."
    )


def rename_new(source: Path, target: Path) -> None:
    """Renames; unlike `os.rename`, which replaces a file and an empty folder, never to a name that is taken.

    Where neither the system nor the file system can do that in one step, the name is looked at first: in between, at
    most an empty folder or a file of that instant could be replaced.

    Raises:
        FileExistsError: the name is taken.
    """
    number = _rename_by_the_system(os.fsencode(source), os.fsencode(target))
    if number in NOT_KNOWN:
        if os.path.lexists(target):
            number = errno.EEXIST
        else:
            os.rename(source, target)
            number = 0
    if number:
        raise OSError(number, os.strerror(number), str(target))


def _rename_by_the_system(source: bytes, target: bytes) -> int:
    """Renames without replacing; an errno, 0 if it was done."""
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform.startswith("linux") and hasattr(library, "renameat2"):
        arguments = (AT_FDCWD, source, AT_FDCWD, target, RENAME_NOREPLACE)
        return ctypes.get_errno() if library.renameat2(*arguments) else 0
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return ctypes.get_errno() if library.renamex_np(source, target, RENAME_EXCL) else 0
    return errno.ENOSYS


def flush(path: Path) -> None:
    """Returns once a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no fsync of folders.
        if error.errno not in NOT_KNOWN:
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


__all__ = ["INCOMPLETE", "check_output", "flush", "foreign", "incomplete_of", "refuse_existing", "rename_new"]
