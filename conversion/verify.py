"""Checks of a written file against what was planned and written.

One reading gives both checksums. What limits it is SHA-256 on one core: about 1.8 GB/s where the processor has
instructions for it (SHA-NI), 1.3 GB/s with the CRC-32; a slower disk limits it instead. hashlib, zlib and the reading
hold no lock of Python's for blocks of this size, so it goes on beside the writing, if there is a core for it.
"""

import hashlib
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from .lazy_files import LazyFile
from .operations import ConversionError
from .paddle_lod import LodFile, open_lod_file
from .paddle_pickle import open_pdparams
from .safetensors_files import open_safetensors_file
from .torch_files import open_torch_file
from .verification import Progress
from .writer import OutputFile

BLOCK_BYTES = 4 * 2**20
"""What is read at a time: enough for the reading to be fast, and not much beside the blocks of the writing."""

CAUSE = "The disk or the memory may be faulty, or the machine lost power."


class VerifyError(ConversionError):
    """A written file does not hold what was written to it."""


def verify_file(folder: Path, file: OutputFile, checksums: Mapping[str, int], progress: Progress) -> str:
    """Re-reads a written file from disk: names, shapes, dtypes, and the CRC-32 of every tensor as it was when written.

    Args:
        folder: The folder the file is in.
        file: What was planned.
        checksums: CRC-32 by tensor name.
        progress: Called with the number of tensor bytes read.

    Returns:
        The file's SHA-256, hexadecimal.

    Raises:
        VerifyError: something differs.
    """
    path = folder / file.name
    written = _open(path, file)
    planned = {tensor.name: tensor.spec for tensor in file.tensors}
    stored = {name: tensor.spec for name, tensor in written.tensors.items()}
    if planned != stored:
        wrong = sorted(name for name in planned.keys() | stored.keys() if planned.get(name) != stored.get(name))
        raise VerifyError(f"{path}: {len(wrong)} tensors are not as planned, e.g. {wrong[0]}. {CAUSE}")
    digest, actual = _read_through(path, written, progress)
    damaged = sorted(name for name, value in actual.items() if value != checksums[name])
    if damaged:
        raise VerifyError(
            f"{path}: {len(damaged)} tensors read back differently than written, e.g. {damaged[0]}. {CAUSE}"
        )
    return digest


def _open(path: Path, file: OutputFile) -> LazyFile:
    if isinstance(file, LodFile):  # named after its variable, without a suffix of its own
        return open_lod_file(path, file.tensors[0].name)
    if path.suffix == ".safetensors":
        return open_safetensors_file(path)
    if path.suffix == ".pdparams":
        return open_pdparams(path)
    return open_torch_file(path, "module")[0]


def _read_through(path: Path, written: LazyFile, progress: Progress) -> tuple[str, dict[str, int]]:
    """SHA-256 of a file and CRC-32 of each tensor in it, in one pass that holds one block at a time."""
    spans = sorted((stored.offset, stored.offset + stored.extent, name) for name, stored in written.tensors.items())
    digest = hashlib.sha256()
    checksums: dict[str, int] = {}
    position = 0

    def read_to(end: int, name: str | None) -> None:
        nonlocal position
        while position < end:
            block = memoryview(buffer)[: min(end - position, len(buffer))]
            count = os.preadv(descriptor, [block], position)
            if not count:
                raise VerifyError(f"{path}: ends at byte {position}, expected {end}. {CAUSE}")
            digest.update(block[:count])
            if name is not None:
                checksums[name] = zlib.crc32(block[:count], checksums.get(name, 0))
                progress(count)
            position += count

    buffer = bytearray(min(BLOCK_BYTES, path.stat().st_size))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        # So that the bytes come from the disk, not from the memory they were written from.
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for start, end, name in spans:
            read_to(start, None)
            read_to(end, name)
        read_to(path.stat().st_size, None)
    finally:
        os.close(descriptor)
    return digest.hexdigest(), checksums


__all__ = ["VerifyError", "verify_file"]
