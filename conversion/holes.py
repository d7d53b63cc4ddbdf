"""Gives back the disk that a stretch of a file takes, the file otherwise as it is.

Linux (`fallocate`) and macOS (`fcntl`) punch holes on most of their file systems. Where a hole begins and ends the
system tells (`SEEK_HOLE`), which is how what is gone is known after a loss of power.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import sys
import tempfile
from pathlib import Path

KEEP_SIZE, PUNCH_HOLE = 1, 2  # linux/falloc.h
F_PUNCHHOLE = 99  # sys/fcntl.h of macOS
TRIAL_BLOCKS = 4


def punch(descriptor: int, start: int, nbytes: int) -> None:
    """Gives back whole blocks of a file; what is read there from now on is zeros.

    Args:
        descriptor: The file, open for writing.
        start: First byte, at the beginning of a block.
        nbytes: A number of whole blocks.

    Raises:
        OSError: neither the system nor the file system can do that, or the file may not be written to.
    """
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None, use_errno=True)
        fallocate = getattr(library, "fallocate64", None) or library.fallocate
        arguments = (descriptor, PUNCH_HOLE | KEEP_SIZE, ctypes.c_int64(start), ctypes.c_int64(nbytes))
        while fallocate(*arguments):
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
    elif sys.platform == "darwin":
        fcntl.fcntl(descriptor, F_PUNCHHOLE, struct.pack("=IIqq", 0, 0, start, nbytes))
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def has_hole(descriptor: int, start: int, stop: int) -> bool:
    """Whether any byte of [start, stop) lies in a hole.

    Raises:
        OSError: the file system cannot tell.
    """
    return start < stop and os.lseek(descriptor, start, os.SEEK_HOLE) < stop


def block_bytes(path: Path) -> int:
    """The blocks in which the file system of a file or folder gives back disk."""
    return max(os.statvfs(path).f_bsize, 4096)


def can_punch(folder: Path) -> bool:
    """Whether a hole in a file of this folder gives back disk, and is told; tried with a file that goes at once.

    Raises:
        OSError: no file can be made there.
    """
    block = block_bytes(folder)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\1" * TRIAL_BLOCKS * block)
        file.flush()
        descriptor = file.fileno()
        os.fsync(descriptor)
        before = os.fstat(descriptor).st_blocks
        with contextlib.suppress(OSError, AttributeError):
            punch(descriptor, block, 2 * block)
            os.fsync(descriptor)
            gone = os.pread(descriptor, 2 * block, block) == bytes(2 * block)
            told = has_hole(descriptor, 0, 3 * block) and not has_hole(descriptor, 0, block)
            return gone and told and os.fstat(descriptor).st_blocks < before
    return False


__all__ = ["block_bytes", "can_punch", "has_hole", "punch"]
