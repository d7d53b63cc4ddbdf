"""Everything read once: checksums of records, files held against what is recorded of them.

What a format tells is checked, no more: a torch archive has a CRC-32 for each record, a converted folder's
conversion.json and the Hub's downloads a SHA-256 for each file, Paddle's files nothing, so of those only the reading
itself is tried.
"""

import hashlib
import time
import zlib
from collections.abc import Callable, Iterator, Sequence

from .byte_source import ByteSource
from .inspect_files import COPY_AGAIN, Looked, Summed
from .inspect_report import NOTE, Deep, Finding, Stretch
from .operations import CheckpointError
from .torch_zip import ZipError, damaged_headers

BLOCK_BYTES = 8 * 2**20
RETRY_BYTES = 2**16
"""Of a stretch that a disk cannot give, so much is named at a time."""


def read_through(files: Sequence[Looked], on_bytes: Callable[[int], object]) -> tuple[list[Finding], Deep]:
    """Reads every byte of the files, one after the other.

    Args:
        files: Those that could be opened.
        on_bytes: Called with the number of bytes just read.

    Returns:
        What is wrong, and how fast it went.
    """
    findings: list[Finding] = []
    begun = time.perf_counter()
    for file in files:
        findings += _of_file(file, on_bytes)
    nbytes = sum(file.nbytes for file in files)
    return findings, Deep(nbytes, time.perf_counter() - begun)


def _of_file(file: Looked, on_bytes: Callable[[int], object]) -> Iterator[Finding]:
    assert file.source is not None
    reading = _Reading(file)
    try:
        for start, stop in _blocks(file.source.size):
            yield from reading.block(start, stop)
            on_bytes(stop - start)
        yield from reading.at_the_end()
        if file.is_archive:
            yield from around(file)
    finally:
        file.source.close()


class _Reading:
    """What is known of a file that is being read from front to back."""

    def __init__(self, file: Looked) -> None:
        self._file = file
        self._buffer = bytearray(min(BLOCK_BYTES, file.nbytes))
        self._whole = hashlib.sha256() if file.sha256 else None
        self._left = list(reversed(file.summed))
        self._value = 0
        self._unread: list[tuple[int, int]] = []
        self._wrong: list[Summed] = []

    def block(self, start: int, stop: int) -> Iterator[Finding]:
        """Reads a block, and ends the records in it."""
        source, view = self._file.source, memoryview(self._buffer)[: stop - start]
        assert source is not None
        try:
            source.read(view, start)
            source.will_read(stop, min(BLOCK_BYTES, source.size - stop))  # while the checksum is computed
        except (CheckpointError, OSError) as error:
            self._unread.append((start, stop))
            where = _unreadable(source, start, stop)
            yield Finding(
                "damaged",
                f"the system cannot read it ({_reason(error)})",
                self._file.places(*where),
                remedy="The disk or the network may be failing; copy the file elsewhere. " + COPY_AGAIN,
            )
            view[:] = bytes(len(view))
        source.forget(start, stop - start)
        if self._whole is not None:
            self._whole.update(view)
        while self._left and self._left[-1].start < stop:
            record = self._left[-1]
            begin, end = max(start, record.start), min(stop, record.stop)
            self._value = zlib.crc32(view[begin - start : end - start], self._value if record.start < start else 0)
            if record.stop > stop:
                break
            if self._value != record.crc32 and not self._is_unread(record):
                self._wrong.append(record)
            self._left.pop()

    def at_the_end(self) -> Iterator[Finding]:
        """What the checksums say of the whole file."""
        for record in self._wrong:
            is_header = record.name.endswith(".pkl")
            yield Finding(
                "damaged",
                f"{'the pickle' if is_header else record.name} has not the checksum that the archive has for it",
                self._file.places(record.start, record.stop),
                tensor=record.name,
                remedy=COPY_AGAIN,
            )
        if self._whole is not None and not self._unread and self._whole.hexdigest() != self._file.sha256:
            yield Finding(
                "mismatch",
                "the content has not the SHA-256 that is recorded for it; the record cannot tell which bytes",
                self._file.places(0, self._file.nbytes),
                remedy=COPY_AGAIN,
            )
        if self._whole is None and 2 * sum(one.stop - one.start for one in self._file.summed) < self._file.nbytes:
            yield Finding(
                "unchecked",
                "was read to its end, and holds no checksums of its tensors: changed numbers cannot be told",
                (Stretch(self._file.name),),
                severity=NOTE,
            )

    def _is_unread(self, record: Summed) -> bool:
        return any(start < record.stop and record.start < stop for start, stop in self._unread)


def around(file: Looked) -> Iterator[Finding]:
    """Headers of an archive that are read by nobody but unzip programs."""
    assert file.source is not None
    try:
        for what, spans in damaged_headers(file.source):
            yield Finding(
                "damaged",
                f"{what}; the tensors can be read, and converting does not need it",
                tuple(place for span in spans for place in file.places(*span)),
                remedy="Bytes changed that nothing depends on: others may have, too. " + COPY_AGAIN,
            )
    except (ZipError, CheckpointError, OSError) as error:
        yield Finding("damaged", f"changed while it was read ({_reason(error)})", (Stretch(file.name),))


def _unreadable(source: ByteSource, start: int, stop: int) -> tuple[int, int]:
    """The part of a block that cannot be read, from its first such piece to its last."""
    bad = []
    for begin in range(start, stop, RETRY_BYTES):
        end = min(begin + RETRY_BYTES, stop)
        try:
            source.read_bytes(begin, end - begin)
        except (CheckpointError, OSError):
            bad += [begin, end]
    return (min(bad), max(bad)) if bad else (start, stop)


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, BLOCK_BYTES):
        yield start, min(start + BLOCK_BYTES, size)


def _reason(error: BaseException) -> str:
    cause = error.__cause__
    inner = cause if isinstance(cause, OSError) else error
    return inner.strerror or str(inner) if isinstance(inner, OSError) else str(inner)


__all__ = ["around", "read_through"]
