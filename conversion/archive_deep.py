"""Every byte of an archive's tensors held against the checksums that torch wrote, across the borders of its parts.

Records are read in the order of the file, several at a time where there are cores; a record that is in a part that is
missing, short or not what it is called is passed over, because that is told already. A checksum covers a whole record:
where that lies in two parts, only zeros that were never written tell which of them is damaged.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .archive_check import Survey
from .archive_findings import as_finding
from .archive_pickle import read_small
from .archive_places import Layout, peek
from .archive_zip import Contradiction, ZipRecord, ZipView
from .inspect_report import NOTE, Deep, Finding, Stretch
from .operations import CheckpointError
from .source_span import SourceSpan
from .torch_zip import DESCRIPTOR_SIGNATURE

BLOCK_BYTES = 4 * 2**20
ZERO_BYTES = 2**16
"""So many zeros in a row are no weights, if the checksum is wrong as well."""

MOST_THREADS = 4


@dataclass(frozen=True, slots=True)
class Summed:
    """A record with its checksum; offsets are the archive's.

    Attributes:
        start: First byte.
        stop: The byte behind the last.
        name: The tensor in it, or what the record is called.
        member: The rank's file.
        crc32: None where none was computed.
    """

    start: int
    stop: int
    name: str
    member: str
    crc32: int | None


@dataclass
class _Sum:
    """What reading a record came to.

    Attributes:
        crc32: Of its bytes.
        zeros: First byte of each stretch of zeros, and the byte behind it.
        error: Why it could not be read, and from which byte on.
    """

    crc32: int
    zeros: list[tuple[int, int]]
    error: tuple[str, int] | None = None


def records_of(survey: Survey) -> Iterator[Summed]:
    """The records that can be checked, in order."""
    layout = _of_parts_that_belong(survey)
    span = layout.span
    for member, view in sorted(survey.structure.views.items(), key=lambda pair: pair[0].offset):
        source = span.part(layout.path, member.offset, member.nbytes)
        names = read_small(source, view).names
        for other in survey.structure.views.items():
            if not names and other[1].nbytes == view.nbytes:  # ranks of one checkpoint have the same names
                names = read_small(span.part(layout.path, other[0].offset, other[0].nbytes), other[1]).names
        for record in view.records:
            start = member.offset + record.offset
            name = names.get(record.entry.name, record.entry.name)
            if record.entry.nbytes and _is_there(layout, start, start + record.entry.nbytes):
                crc32 = _checksum(span, member.offset, record, view)
                yield Summed(start, start + record.entry.nbytes, name, member.name, crc32)


def _of_parts_that_belong(survey: Survey) -> Layout:
    strangers = {*survey.match.copies, *survey.match.nowhere}
    strangers |= {file for file in survey.layout.files if file.name in survey.unfinished}
    holding = {place: file for place, file in survey.layout.holding.items() if file not in strangers}
    return survey.layout.with_holding(holding)


def _is_there(layout: Layout, start: int, stop: int) -> bool:
    for place, _, end in layout.pieces(start, stop):
        file = layout.holding.get(place)
        if file is None or end > file.size:
            return False
    return True


def _checksum(span: SourceSpan, at: int, record: ZipRecord, view: ZipView) -> int | None:
    """What the directory says; where that is another rank's, what stands behind the record."""
    if not view.is_lent:
        return record.entry.crc32 or None
    behind = peek(span, at + record.stop, 8) if record.entry.has_descriptor else None
    if behind is None or behind[:4] != DESCRIPTOR_SIGNATURE:
        return None
    return int.from_bytes(behind[4:], "little") or None


def read_through(survey: Survey, on_bytes: Callable[[int], object]) -> tuple[list[Finding], Deep]:
    """Reads every record of an archive, and holds it against its checksum.

    Args:
        survey: What the headers tell.
        on_bytes: Called with the number of bytes just read, by one thread at a time.

    Returns:
        What is wrong, and how fast it went.
    """
    layout, begun = _of_parts_that_belong(survey), time.perf_counter()
    span = layout.span
    records = list(records_of(survey))
    checked = [record for record in records if record.crc32 is not None]
    lock = threading.Lock()

    def one(record: Summed) -> _Sum:
        return _sum(span, record, lambda nbytes: _told(lock, on_bytes, nbytes))

    findings: list[Finding] = []
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for record, found in zip(checked, pool.map(one, checked), strict=True):
                findings += _of_sum(layout, record, found)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    unchecked = len(records) - len(checked)
    if unchecked:
        text = f"{unchecked} of {len(records)} records have no checksum, so changed numbers in them cannot be told"
        names = sorted({record.member for record in records if record.crc32 is None})
        findings.append(Finding("unchecked", text, tuple(Stretch(name) for name in names), NOTE))
    layout.close()
    return findings, Deep(sum(one.stop - one.start for one in checked), time.perf_counter() - begun)


def checked_bytes(survey: Survey) -> int:
    """How many bytes `read_through` reads."""
    return sum(record.stop - record.start for record in records_of(survey) if record.crc32 is not None)


def _told(lock: threading.Lock, on_bytes: Callable[[int], object], nbytes: int) -> None:
    with lock:
        on_bytes(nbytes)


_memory = threading.local()


def _buffer() -> bytearray:
    """A block's memory, one for each thread."""
    if not hasattr(_memory, "buffer"):
        _memory.buffer = bytearray(BLOCK_BYTES)
    return _memory.buffer  # type: ignore[no-any-return]


def _sum(span: SourceSpan, record: Summed, on_bytes: Callable[[int], object]) -> _Sum:
    found = _Sum(0, [])
    whole = memoryview(_buffer())
    for start in range(record.start, record.stop, BLOCK_BYTES):
        view = whole[: min(BLOCK_BYTES, record.stop - start)]
        try:
            span.read(view, start)
        except (CheckpointError, OSError) as error:
            found.error = (str(error), start)
            return found
        span.forget(start, len(view))
        found.crc32 = zlib.crc32(view, found.crc32)
        _note_zeros(found.zeros, view, start)
        on_bytes(len(view))
    return found


NOTHING = bytes(ZERO_BYTES)


def _note_zeros(zeros: list[tuple[int, int]], view: memoryview, at: int) -> None:
    for begin in range(0, len(view), ZERO_BYTES):
        piece = view[begin : begin + ZERO_BYTES]
        if not piece[0] and piece == NOTHING[: len(piece)]:
            if zeros and zeros[-1][1] == at + begin:
                zeros[-1] = (zeros[-1][0], at + begin + len(piece))
            else:
                zeros.append((at + begin, at + begin + len(piece)))


def _of_sum(layout: Layout, record: Summed, found: _Sum) -> Iterator[Finding]:
    if found.error is not None:
        reason, start = found.error
        text = f"{record.member}: {record.name} cannot be read ({reason})"
        yield as_finding(layout, Contradiction(start, min(start + BLOCK_BYTES, record.stop), text), record.name)
    elif found.crc32 != record.crc32:
        text = f"{record.member}: {record.name} has not the checksum that the archive has for it"
        long = [one for one in found.zeros if one[1] - one[0] >= ZERO_BYTES]
        start, stop = record.start, record.stop
        if long:
            start, stop = long[0][0], long[-1][1]
            text += "; there are zeros in it"
        yield as_finding(layout, Contradiction(start, stop, text), record.name)


__all__ = ["Summed", "checked_bytes", "read_through", "records_of"]
