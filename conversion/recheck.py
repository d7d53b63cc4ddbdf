"""What a former run has written, read again before the work goes on behind it.

A line of the journal says that a tensor was written; after a loss of power its bytes may be missing, a disk may have
damaged them, and anybody can write a line. Reading is bounded by what was written and faster than writing it again.
"""

import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from .journal import Progress
from .writer import BLOCK_BYTES, OutputFile

AROUND_BYTES = 2**16


def damaged_tensors(
    path: Path, file: OutputFile, checksums: Mapping[str, int], on_bytes: Callable[[int], object]
) -> list[str]:
    """Tensors whose bytes are not those that were written.

    Args:
        path: Where the file is now.
        file: What was planned; laid out in the file.
        checksums: CRC-32 by tensor name, of those that are done.
        on_bytes: Called with the number of bytes read.
    """
    starts = file.offsets(path)
    buffer = bytearray(min(BLOCK_BYTES, path.stat().st_size))
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    damaged = []
    try:
        for tensor in file.tensors:
            if tensor.name not in checksums:
                continue
            value = 0
            for block in _blocks(descriptor, buffer, starts[tensor.name], tensor.spec.nbytes):
                value = zlib.crc32(block, value)
            on_bytes(tensor.spec.nbytes)
            if value != checksums[tensor.name]:
                damaged.append(tensor.name)
    finally:
        os.close(descriptor)
    return damaged


def checksum_around(path: Path, file: OutputFile) -> int:
    """CRC-32 of everything in a weight file but the data of its tensors."""
    starts = file.offsets(path)
    spans = sorted((starts[tensor.name], starts[tensor.name] + tensor.spec.nbytes) for tensor in file.tensors)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        size = os.fstat(descriptor).st_size
        value, position, buffer = 0, 0, bytearray(min(AROUND_BYTES, size))
        for start, end in [*spans, (size, size)]:
            for block in _blocks(descriptor, buffer, position, start - position):
                value = zlib.crc32(block, value)
            position = end
    finally:
        os.close(descriptor)
    return value


def checksum_of(path: Path) -> int:
    """CRC-32 of a small file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        return zlib.crc32(file.read())


def recheck(
    progress: Progress,
    files: Mapping[str, OutputFile],
    place: Callable[[str], Path],
    read: Callable[[str, Path], Collection[str]],
    skip: Collection[str] = (),
) -> list[str]:
    """Takes out of the progress what does not hold.

    Args:
        progress: What a former run says.
        files: What the output will hold.
        place: Where a file is now.
        read: (file, where it is) -> those of its tensors that do not hold; called if what is around them does.
        skip: Files that are not looked at.

    Returns:
        The files something was wrong with.
    """
    wrong = []
    for name, file in files.items():
        done = progress.checksums[name]
        if not done or name in skip:
            continue
        path = place(name)
        is_sound = file.is_laid_out(path)
        if is_sound and not file.is_known:
            is_sound = checksum_around(path, file) in progress.around.get(name, ())
        damaged = read(name, path) if is_sound else list(done)
        for tensor in damaged:
            del done[tensor]
        wrong += [name] if damaged else []
    return wrong


def _blocks(descriptor: int, buffer: bytearray, start: int, nbytes: int) -> Iterator[memoryview]:
    """The bytes of a stretch of a file, as far as the file goes."""
    end = start + nbytes
    while start < end:
        block = memoryview(buffer)[: min(end - start, len(buffer))]
        count = os.preadv(descriptor, [block], start)
        if not count:
            return
        yield block[:count]
        start += count


__all__ = ["checksum_around", "checksum_of", "damaged_tensors", "recheck"]
