"""The little of the zip format that `torch.save` files need to be read and written in place: offsets and checksums.

Everything comes from the archive's own directory; torch's layout rules are not relied on. The directory is read here
and not by the standard library, which allocates whatever the end of the file claims, and not by torch, whose reader is
C++ that believes it: every entry has to lie where its local header is, in front of the directory, and over no other.

Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 to 4.5.
"""

import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .byte_source import ByteSource

LOCAL_HEADER_BYTES = 30
DIRECTORY_ENTRY_BYTES = 46
LOCAL_SIGNATURE = b"PK\x03\x04"
ENTRY_SIGNATURE = b"PK\x01\x02"
DESCRIPTOR_SIGNATURE = b"PK\x07\x08"
END_SIGNATURE, END_BYTES = b"PK\x05\x06", 22
END_64_SIGNATURE, END_64_BYTES = b"PK\x06\x06", 56
LOCATOR_64_SIGNATURE, LOCATOR_64_BYTES = b"PK\x06\x07", 20

PADDING_FIELD, PADDING = b"FB", b"Z"
"""With which torch moves records to the multiples of 64 bytes."""

ALIGNMENT = 64
"""torch writes records at multiples of it."""

STORED = 0
HAS_DESCRIPTOR = 8
ENCRYPTED = 1 | 64
ZIP64_EXTRA = 1
MAX_COMMENT_BYTES = 65535
MAX_RECORDS = 100_000
MAX_DIRECTORY_BYTES = 2**25
"""A rank of GLM-130B has some 900 records; torch writes about 100 bytes of directory for each."""


class ZipError(ValueError):
    """The archive is damaged, or one that torch does not write. The message says how.

    Attributes:
        spans: First byte of what is damaged, and the byte behind it, where that is known; of several, one is damaged.
    """

    def __init__(self, message: str, *spans: tuple[int, int]):
        super().__init__(message)
        self.spans = spans


class CutShortError(ZipError):
    """The archive has no end: its file was cut short, or its last bytes were overwritten."""


@dataclass(frozen=True, slots=True)
class Record:
    """A stored record: where its bytes begin, how many there are, whether they are plain, and their CRC-32.

    torch writes 0 where it was told to compute no checksums.
    """

    offset: int
    nbytes: int
    is_plain: bool
    crc32: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the directory says of a record."""

    name: str
    raw_name: bytes
    is_plain: bool
    stored_bytes: int
    header_offset: int
    crc32: int
    common: bytes
    place: tuple[int, int]

    @property
    def header_span(self) -> tuple[int, int]:
        """Where its local header is, the name included."""
        return self.header_offset, self.header_offset + LOCAL_HEADER_BYTES + len(self.raw_name)


def read_records(source: ByteSource) -> dict[str, Record]:
    """Records of an archive by name, the archive's root folder left off ("data/0", "byteorder", ...).

    Args:
        source: The archive's bytes.

    Raises:
        ZipError: damaged, cut short, or with records that cannot be read in place: over one another, elsewhere than
            their local headers, under one name, encrypted, or outside of the archive's folder.
    """
    with source.open() as file:
        start, directory = _directory(file, source.size)
        entries = list(directory)
    records: dict[str, Record] = {}
    behind: list[tuple[int, int, str]] = []
    for entry in entries:
        if entry.header_offset > start - LOCAL_HEADER_BYTES - len(entry.raw_name):
            raise ZipError(
                f"{entry.name} should lie at byte {entry.header_offset}, behind the records", (start, source.size)
            )
    spans = [entry.header_span for entry in entries]
    places = [(begin, end - begin) for begin, end in spans]
    headers = source.read_many(places)
    offsets = [_data_offset(entry, header) for entry, header in zip(entries, headers, strict=True)]
    # What stands between a header and its record, of a length that the header alone tells.
    between = [(end, max(0, min(at, source.size) - end)) for at, (_, end) in zip(offsets, spans, strict=True)]
    extras = source.read_many(between)
    for entry, offset, extra in zip(entries, offsets, extras, strict=True):
        if not _is_whole(extra) or (extra[:2] == PADDING_FIELD and offset % ALIGNMENT):
            raise ZipError(f"the header of {entry.name} tells a wrong length", entry.header_span)
        record = Record(offset, entry.stored_bytes, entry.is_plain, entry.crc32)
        name = entry.name.partition("/")[2]
        if name in records:
            raise ZipError(f"two records are called {name}", (start, source.size))
        records[name] = record
        behind.append((entry.header_offset, record.offset + record.nbytes, entry.name))
    behind.sort()
    for (_, end, name), (begin, *_) in zip(behind, [*behind[1:], (start, 0, "")], strict=True):
        if end > begin:
            raise ZipError(f"{name} reaches to byte {end}, into what begins at byte {begin}", (begin, end))
    return records


def damaged_headers(source: ByteSource) -> Iterator[tuple[str, tuple[tuple[int, int], ...]]]:
    """Where what stands around the records of an archive that can be read is not as it was written.

    The directory, the header before a record and the descriptor behind it say the same; torch fills the space between
    a header and its record with one letter. Nothing of that is needed to read a tensor, and no checksum covers it.

    Args:
        source: The archive's bytes, which `read_records` takes.

    Yields:
        What is wrong; first byte and the byte behind the last of everything that it may be wrong in.
    """
    with source.open() as file:
        _, directory = _directory(file, source.size)
        entries = list(directory)
    for entry in entries:
        begin, end = entry.header_span
        header = source.read_bytes(begin, end - begin)
        offset = end + _uint16(header, 28)
        if header[4:14] != entry.common or not _is_one_of(header[14:26], entry):
            what = f"the header of {entry.name} is another than the archive's directory says"
            yield what, ((begin, end), entry.place)
        filling = bytes(source.read_bytes(end, offset - end))
        if PADDING * 4 in filling and not _is_padding(filling):
            yield f"the space before {entry.name} is not as torch leaves it", ((end, offset),)
        behind = offset + entry.stored_bytes
        if _uint16(header, 6) & HAS_DESCRIPTOR:
            wide = max(entry.stored_bytes, entry.header_offset) >= 2**32  # as miniz writes it
            size = entry.stored_bytes.to_bytes(8 if wide else 4, "little")
            expected = DESCRIPTOR_SIGNATURE + entry.crc32.to_bytes(4, "little") + 2 * size
            if source.read_bytes(behind, len(expected)) != expected:
                what = f"what stands behind {entry.name} are not its checksum and size"
                yield what, ((behind, behind + len(expected)), entry.place)


def _is_one_of(header: bytearray, entry: _Entry) -> bool:
    """Whether checksum and sizes in a header are the entry's, or left open for those behind the record."""
    size = min(entry.stored_bytes, 0xFFFFFFFF).to_bytes(4, "little")
    known = entry.crc32.to_bytes(4, "little") + 2 * size
    return header in (known, bytes(12), bytes(4) + b"\xff" * 8, known[:4] + b"\xff" * 8)


def _is_whole(extra: bytes | bytearray) -> bool:
    """Whether extra fields follow one another to the end; otherwise the header tells a wrong length of them."""
    at = 0
    while at + 4 <= len(extra):
        at += 4 + _uint16(extra, at + 2)
    return at == len(extra)


def _is_padding(extra: bytes) -> bool:
    """Whether one of a header's extra fields is torch's, all of one letter, and all of them are whole."""
    at, is_torchs = 0, False
    while at + 4 <= len(extra):
        nbytes = _uint16(extra, at + 2)
        content = extra[at + 4 : at + 4 + nbytes]
        if len(content) < nbytes or (extra[at : at + 2] == PADDING_FIELD and content.strip(PADDING)):
            return False
        is_torchs |= extra[at : at + 2] == PADDING_FIELD
        at += 4 + nbytes
    return at == len(extra) and is_torchs


def _directory(file: IO[bytes], size: int) -> tuple[int, Iterator[_Entry]]:
    """First byte of the directory, and its entries."""
    tail_at = max(0, size - END_BYTES - MAX_COMMENT_BYTES)
    file.seek(tail_at)
    tail = file.read(size - tail_at)
    at = tail.rfind(END_SIGNATURE)
    if at < 0 or len(tail) - at < END_BYTES:
        raise CutShortError(f"cut short, {size} bytes without the end of the archive", (tail_at, size))
    disk, _, _, count, nbytes, start, comment = struct.unpack("<4H2IH", tail[at + 4 : at + END_BYTES])
    end = tail_at + at
    if disk or len(tail) - at - END_BYTES != comment:
        raise ZipError("its end is damaged", (tail_at, size))
    file.seek(max(0, end - LOCATOR_64_BYTES))
    locator = file.read(LOCATOR_64_BYTES)
    if locator[:4] == LOCATOR_64_SIGNATURE and end >= LOCATOR_64_BYTES + END_64_BYTES:
        (at_64,) = struct.unpack("<Q", locator[8:16])
        file.seek(min(at_64, size))
        record = file.read(END_64_BYTES)
        if len(record) < END_64_BYTES or record[:4] != END_64_SIGNATURE or at_64 + END_64_BYTES > end:
            raise ZipError("its end is damaged", (tail_at, size))
        count, nbytes, start = struct.unpack("<3Q", record[32:56])
        end = at_64
    if count > MAX_RECORDS or nbytes > MAX_DIRECTORY_BYTES:
        raise ZipError(
            f"{count:,} records, {nbytes:,} bytes of directory; no checkpoint of one rank has so many", (end, size)
        )
    if start + nbytes != end:
        raise ZipError(f"a directory of {nbytes} bytes at byte {start}, which should end at byte {end}", (end, size))
    file.seek(start)
    return start, _entries(file.read(nbytes), count, start)


def _entries(directory: bytes, count: int, start: int) -> Iterator[_Entry]:
    at, span = 0, (start, start + len(directory))
    for _ in range(count):
        entry = directory[at : at + DIRECTORY_ENTRY_BYTES]
        if len(entry) < DIRECTORY_ENTRY_BYTES or entry[:4] != ENTRY_SIGNATURE:
            raise ZipError("its directory is damaged", span)
        flags, method = struct.unpack("<2H", entry[8:12])
        stored, whole, name_bytes, extra_bytes, comment_bytes = struct.unpack("<2I3H", entry[20:34])
        (header_offset,) = struct.unpack("<I", entry[42:46])
        at += DIRECTORY_ENTRY_BYTES
        raw_name = directory[at : at + name_bytes]
        name = raw_name.decode("utf-8", "replace")
        extra = directory[at + name_bytes : at + name_bytes + extra_bytes]
        at += name_bytes + extra_bytes + comment_bytes
        if at > len(directory):
            raise ZipError("its directory is damaged", span)
        whole, stored, header_offset = _large(extra, whole, stored, header_offset)
        if flags & ENCRYPTED:
            raise ZipError(f"{name} is encrypted", span)
        if ".." in name.split("/") or name.startswith("/") or "\0" in name or "\ufffd" in name:
            raise ZipError(f"a record is called {name!r}", span)
        if method == STORED and stored != whole:
            raise ZipError(f"{name} has {stored} bytes stored for {whole}", span)
        crc32 = int.from_bytes(entry[16:20], "little")
        place = start + at - DIRECTORY_ENTRY_BYTES - name_bytes - extra_bytes - comment_bytes, start + at
        yield _Entry(name, raw_name, method == STORED, stored, header_offset, crc32, entry[6:16], place)
    if at != len(directory):
        raise ZipError("its directory is damaged", span)


def _large(extra: bytes, *values: int) -> tuple[int, ...]:
    """Numbers of an entry; those that do not fit four bytes stand in its extra field."""
    missing = values.count(0xFFFFFFFF)
    if not missing:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, nbytes = struct.unpack("<2H", extra[at : at + 4])
        at += 4
        if kind == ZIP64_EXTRA and nbytes // 8 >= missing and at + nbytes <= len(extra):
            wide = iter(struct.unpack(f"<{nbytes // 8}Q", extra[at : at + nbytes // 8 * 8]))
            return tuple(next(wide) if value == 0xFFFFFFFF else value for value in values)
        at += nbytes
    raise ZipError("its directory lacks a number that does not fit four bytes")


def write_checksums(path: Path, checksums: Mapping[str, int]) -> None:
    """Sets the CRC-32 of records, in the descriptor behind the data and in the archive's directory.

    Args:
        path: An archive as torch writes it, each record followed by a data descriptor.
        checksums: Record name without the root folder -> CRC-32.

    Raises:
        ValueError: a record without a descriptor.
    """
    with zipfile.ZipFile(path) as archive:
        infos, entry_at = archive.infolist(), archive.start_dir
    with path.open("r+b") as file:
        for info in infos:
            file.seek(entry_at)
            entry = file.read(DIRECTORY_ENTRY_BYTES)
            value = checksums.get(info.filename.partition("/")[2])
            if value is not None:
                file.seek(entry_at + 16)
                file.write(value.to_bytes(4, "little"))
                file.seek(_behind_header(file, info.header_offset)[0] + info.file_size)
                if file.read(4) != DESCRIPTOR_SIGNATURE:
                    raise ValueError(f"{path}: no data descriptor behind {info.filename}")
                file.write(value.to_bytes(4, "little"))
            # Name, extra field and comment follow the fixed part of an entry.
            entry_at += DIRECTORY_ENTRY_BYTES + sum(_uint16(entry, at) for at in (28, 30, 32))


def _data_offset(entry: _Entry, header: bytearray) -> int:
    """Where a record's bytes begin, by its local header, its name included, which has to be of the same record."""
    offset = entry.header_offset + LOCAL_HEADER_BYTES + _uint16(header, 26) + _uint16(header, 28)
    is_same = header[LOCAL_HEADER_BYTES:] == entry.raw_name and _uint16(header, 26) == len(entry.raw_name)
    if header[:4] != LOCAL_SIGNATURE or not is_same or (_uint16(header, 8) == STORED) != entry.is_plain:
        raise ZipError(
            f"{entry.name} is not at byte {entry.header_offset}, where the archive's directory says",
            entry.header_span,
            entry.place,
        )
    return offset


def _behind_header(file: IO[bytes], at: int) -> tuple[int, bytes]:
    """Behind a local header, whose length only the header itself tells, and its fixed part."""
    file.seek(at)
    header = file.read(LOCAL_HEADER_BYTES)
    return at + LOCAL_HEADER_BYTES + _uint16(header, 26) + _uint16(header, 28), header


def _uint16(data: bytes | bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


__all__ = [
    "CutShortError",
    "Record",
    "ZipError",
    "damaged_headers",
    "read_records",
    "write_checksums",
]
