"""The torch archive in a member that may be damaged: what its directory still tells, and where it contradicts itself.

`torch_zip` reads an archive or refuses it. Here every number that stands in two places is compared, and a
contradiction is a place in the file: the end of the archive, an entry of its directory, the header before a record and
the descriptor behind it say the same; entries agree with one another in what torch writes alike. Another rank's
directory stands in for one that is not there: ranks of one checkpoint have the same layout.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from .archive_members import TORCH_END
from .archive_places import peek
from .byte_source import ByteSource
from .torch_zip import (
    DESCRIPTOR_SIGNATURE,
    DIRECTORY_ENTRY_BYTES,
    END_64_BYTES,
    END_64_SIGNATURE,
    END_BYTES,
    END_SIGNATURE,
    ENTRY_SIGNATURE,
    HAS_DESCRIPTOR,
    LOCAL_HEADER_BYTES,
    LOCAL_SIGNATURE,
    LOCATOR_64_BYTES,
    LOCATOR_64_SIGNATURE,
    MAX_DIRECTORY_BYTES,
    MAX_RECORDS,
    STORED,
    ZIP64_EXTRA,
)

WIDE = 0xFFFFFFFF
ALIGNMENT = 64
"""torch writes records at multiples of it, filling the header before with a field of its own."""
PADDING_FIELD = b"FB"
VERSIONS = (b"\x1e\x03-\0", b"-\0-\0")
"""Of who made an archive, and who can read it: torch's and Python's."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Bytes that are not what they should be.

    Attributes:
        start: First byte.
        stop: The byte behind the last.
        text: In words.
        others: Stretches that are damaged instead, for all that can be told.
        is_harmless: Whether nothing is read by them.
        told_by: What tells how they should be; where that is not there, nothing is known.
    """

    start: int
    stop: int
    text: str
    others: tuple[tuple[int, int], ...] = ()
    is_harmless: bool = False
    told_by: tuple[tuple[int, int], ...] = ()

    def moved(self, by: int) -> Contradiction:
        """The same in what the archive is a part of."""
        others = tuple((start + by, stop + by) for start, stop in self.others)
        told_by = tuple((start + by, stop + by) for start, stop in self.told_by)
        return replace(self, start=self.start + by, stop=self.stop + by, others=others, told_by=told_by)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the directory says of a record.

    Attributes:
        at: Where the entry is.
        stop: The byte behind it.
        raw_name: The record's name, with the archive's folder.
        crc32: Of the record; 0 where none was computed.
        nbytes: Of the record, as it is stored.
        whole: Of the record, as it is unpacked; the same, unless the entry is damaged.
        header_at: Where its header is.
        common: Version, flags, method and time, which the header repeats.
        constant: What torch writes alike in all entries.
    """

    at: int
    stop: int
    raw_name: bytes
    crc32: int
    nbytes: int
    whole: int
    header_at: int
    common: bytes
    constant: bytes

    @property
    def name(self) -> str:
        """The record's name without the archive's folder."""
        return self.raw_name.decode("utf-8", "replace").partition("/")[2]

    @property
    def has_descriptor(self) -> bool:
        """Whether size and checksum stand behind the record as well."""
        return bool(int.from_bytes(self.common[2:4], "little") & HAS_DESCRIPTOR)

    @property
    def is_wide(self) -> bool:
        """Whether the sizes behind it take 8 bytes: miniz writes so from 4 GiB on, of size or of place."""
        return max(self.nbytes, self.header_at) >= WIDE

    @property
    def header_stop(self) -> int:
        """Behind the name in the record's header."""
        return self.header_at + LOCAL_HEADER_BYTES + len(self.raw_name)


@dataclass(frozen=True, slots=True)
class ZipRecord:
    """A record.

    Attributes:
        entry: Of the directory.
        offset: Where its bytes begin.
        is_sound: Whether its header was read, and tells so.
        is_near: Whether its header is where it should be, whole or with a byte that is wrong.
    """

    entry: Entry
    offset: int
    is_sound: bool
    is_near: bool

    @property
    def stop(self) -> int:
        """Behind its bytes."""
        return self.offset + self.entry.nbytes

    @property
    def end(self) -> int:
        """Behind its descriptor, where torch begins the next header."""
        return self.stop + (len(descriptor_of(self)) if self.entry.has_descriptor else 0)


@dataclass
class ZipView:
    """What is known of a torch archive.

    Attributes:
        nbytes: Of the archive.
        directory_at: Where its directory begins; None where it is not known.
        entries: Of the directory, in its order.
        records: In the order of their bytes.
        damage: Where it contradicts itself.
        is_read: Whether the directory was read to its end.
        is_lent: Whether the entries are another rank's.
    """

    nbytes: int
    directory_at: int | None = None
    entries: Sequence[Entry] = ()
    records: Sequence[ZipRecord] = ()
    damage: list[Contradiction] = field(default_factory=list)
    is_read: bool = False
    is_lent: bool = False


def view_zip(source: ByteSource) -> ZipView:
    """Reads the end and the directory of an archive as far as they can be read."""
    view = ZipView(source.size)
    claims = _end(source, view)
    if claims is None:
        return view
    start, nbytes, count = claims
    view.directory_at = start
    raw = peek(source, start, nbytes)
    if raw is None:
        return view
    view.entries = list(_entries(raw, start, count, view))
    view.is_read = len(view.entries) == count and (not view.entries or view.entries[-1].stop == start + nbytes)
    if view.is_read:
        view.damage += _odd_entries(view.entries)
    return view


def _end(source: ByteSource, view: ZipView) -> tuple[int, int, int] | None:
    """First byte, bytes and entries of the directory, by the records at the end that agree with where they are."""
    size = source.size
    end = peek(source, size - END_BYTES, END_BYTES)
    locator = peek(source, size - END_BYTES - LOCATOR_64_BYTES, LOCATOR_64_BYTES)
    wide = peek(source, size - TORCH_END, END_64_BYTES)
    claims: list[tuple[int, int, int]] = []
    has_wide = _near(wide, END_64_SIGNATURE) or _near(locator, LOCATOR_64_SIGNATURE)
    behind = size - TORCH_END if has_wide else size - END_BYTES
    if wide is not None and has_wide:
        count, nbytes, start = struct.unpack("<3Q", wide[32:56])
        claims.append((start, nbytes, count))
    if end is not None:
        (count,), (nbytes, start) = struct.unpack("<H", end[10:12]), struct.unpack("<2I", end[12:20])
        if has_wide and claims:  # what does not fit stands in the wide record only
            count = claims[0][2] if count == 0xFFFF else count
            nbytes, start = (claims[0][1] if nbytes == WIDE else nbytes), (claims[0][0] if start == WIDE else start)
        claims.append((start, nbytes, count))
    fitting = [one for one in claims if one[0] + one[1] == behind and one[1] <= MAX_DIRECTORY_BYTES]
    fitting = [one for one in fitting if one[2] <= MAX_RECORDS and one[1] >= one[2] * DIRECTORY_ENTRY_BYTES]
    good = next((one for one in fitting if _starts_entry(source, one)), fitting[0] if fitting else None)
    _check_end(view, size, (end, locator, wide), good, has_wide)
    return good


def _starts_entry(source: ByteSource, claim: tuple[int, int, int]) -> bool:
    return not claim[2] or peek(source, claim[0], 4) == ENTRY_SIGNATURE


def _check_end(
    view: ZipView,
    size: int,
    ends: tuple[bytes | None, bytes | None, bytes | None],
    good: tuple[int, int, int] | None,
    has_wide: bool,
) -> None:
    """Compares the records at the end with what they should be for a directory."""
    end, locator, wide = ends
    at = size - END_BYTES
    if end is not None and (good is not None or not _near(end, END_SIGNATURE)):
        start, nbytes, count = good or (0, 0, 0)
        fits = end[:8] == END_SIGNATURE + bytes(4) and end[20:] == bytes(2) and good is not None
        for value, width, number in zip((8, 10, 12, 16), (2, 2, 4, 4), (count, count, nbytes, start), strict=True):
            narrow = (1 << 8 * width) - 1
            fits = fits and int.from_bytes(end[value : value + width], "little") in (number, narrow)
        if not fits:
            view.damage.append(Contradiction(at, size, "the end of the archive is not what torch writes there"))
    if good is None or not has_wide:
        return
    start, nbytes, count = good
    at_64, at_locator = size - TORCH_END, size - END_BYTES - LOCATOR_64_BYTES
    if wide is not None:
        numbers = struct.pack("<4Q", count, count, nbytes, start)
        head = END_64_SIGNATURE + struct.pack("<Q", END_64_BYTES - 12)
        if wide[:12] != head or wide[16:24] != bytes(8) or wide[24:] != numbers:
            view.damage.append(Contradiction(at_64, at_locator, "the record of the directory's place is damaged"))
        elif wide[12:16] not in VERSIONS:
            text = "the version in the record of the directory's place is none that torch writes"
            view.damage.append(Contradiction(at_64, at_locator, text, is_harmless=True))
    if locator is not None and locator != LOCATOR_64_SIGNATURE + struct.pack("<IQI", 0, at_64, 1):
        view.damage.append(Contradiction(at_locator, at, "the record of the end's place is damaged"))


def _near(found: bytes | None, expected: bytes) -> bool:
    """Whether bytes begin with others, but for one."""
    return found is not None and sum(a == b for a, b in zip(found, expected, strict=False)) >= len(expected) - 1


def _entries(directory: bytes, start: int, count: int, view: ZipView) -> Iterator[Entry]:
    at, before = 0, 0
    for _ in range(count):
        fixed = directory[at : at + DIRECTORY_ENTRY_BYTES]
        if len(fixed) < DIRECTORY_ENTRY_BYTES or fixed[:4] != ENTRY_SIGNATURE:
            # The entry before may have said a wrong length, so it is as much to blame.
            stop = min(len(directory), at + DIRECTORY_ENTRY_BYTES)
            found = Contradiction(start + before, start + stop, "the archive's directory is damaged")
            view.damage.append(found)
            return
        crc32, stored, whole, name_bytes, extra_bytes, comment_bytes = struct.unpack("<3I3H", fixed[16:34])
        (header_at,) = struct.unpack("<I", fixed[42:46])
        before, name_at = at, at + DIRECTORY_ENTRY_BYTES
        at = name_at + name_bytes + extra_bytes + comment_bytes
        raw_name = directory[name_at : name_at + name_bytes]
        wide = _wide(directory[name_at + name_bytes : name_at + name_bytes + extra_bytes], [whole, stored, header_at])
        if at > len(directory) or wide is None or (wide[0] != wide[1] and fixed[10:12] == bytes(2)):
            stop = min(at, len(directory))
            view.damage.append(Contradiction(start + before, start + stop, "an entry of the directory is damaged"))
            if at > len(directory):
                return
            wide = wide or [whole, stored, header_at]
        constant = fixed[4:16] + fixed[34:42] + struct.pack("<H", comment_bytes)
        yield Entry(
            start + before,
            start + at,
            bytes(raw_name),
            crc32,
            wide[1],
            wide[0],
            wide[2],
            bytes(fixed[6:16]),
            bytes(constant),
        )


def _wide(extra: bytes, values: list[int]) -> list[int] | None:
    """Numbers that do not fit four bytes, from an extra field; None where it is not as it should be."""
    missing = values.count(WIDE)
    if not extra and not missing:
        return values
    if len(extra) != 4 + 8 * missing or struct.unpack("<2H", extra[:4]) != (ZIP64_EXTRA, 8 * missing):
        return None
    numbers = iter(struct.unpack(f"<{missing}Q", extra[4:]))
    return [next(numbers) if value == WIDE else value for value in values]


def _odd_entries(entries: Sequence[Entry]) -> Iterator[Contradiction]:
    """Entries that differ from nearly all others in what is alike in all."""
    kinds = Counter(entry.constant for entry in entries)
    usual, times = kinds.most_common(1)[0] if kinds else (b"", 0)
    if len(entries) - times > 2 or times < 4:
        return
    for entry in entries:
        if entry.constant != usual:
            text = f"the directory's entry of {entry.name} differs from all others in what torch writes alike"
            yield Contradiction(entry.at, entry.stop, text, is_harmless=True)


def lend(view: ZipView, lender: ZipView, root: bytes | None) -> None:
    """Gives an archive whose directory cannot be read the entries of another of the same size.

    Args:
        view: The archive; changed.
        lender: One whose directory was read.
        root: The folder that names begin with; None if it is the lender's.
    """
    entries = []
    for entry in lender.entries:
        inside = entry.raw_name.partition(b"/")[2]
        raw_name = entry.raw_name if root is None else root + b"/" + inside
        entries.append(replace(entry, raw_name=raw_name, crc32=0))
    view.entries, view.directory_at, view.is_lent = entries, lender.directory_at, True


def find_records(source: ByteSource, view: ZipView, lender: ZipView | None) -> None:
    """Reads the headers of all records, and compares them with the directory.

    Args:
        source: The archive's bytes.
        view: The archive; changed.
        lender: Another of the same layout, if there is one: it tells which of two is wrong.
    """
    if not view.entries:
        return
    usual = {} if lender is None else {entry.name: entry for entry in lender.entries}
    entries = _in_file_order(view.entries)
    places = [(entry.header_at, LOCAL_HEADER_BYTES + len(entry.raw_name)) for entry in entries]
    records: list[ZipRecord] = []
    ends = [entry.header_at for entry in entries[1:]] + [view.directory_at or view.nbytes]
    for entry, header, end in zip(entries, peek_many(source, places), ends, strict=True):
        if records and not view.is_lent and (header is None or not is_near(header, entry)):
            entry, header = _found_elsewhere(source, entry, header, records[-1].end, view)
        entry, record = _record(source, entry, header, end, view)
        records.append(record)
        if header is not None and record.is_near and not view.is_lent:
            view.damage += _of_header(entry, header, usual.get(entry.name), entries)
    view.records = records


def _in_file_order(entries: Sequence[Entry]) -> list[Entry]:
    """As the directory has them, which is how torch writes them, unless it is clearly another order."""
    starts = [entry.header_at for entry in entries]
    back = sum(one > other for one, other in pairwise(starts))
    return list(entries) if back <= 1 else sorted(entries, key=lambda entry: entry.header_at)


def _found_elsewhere(
    source: ByteSource, entry: Entry, header: bytes | None, expected: int, view: ZipView
) -> tuple[Entry, bytes | None]:
    """An entry that leads nowhere, although its record's header is where the record before it ends."""
    moved = replace(entry, header_at=expected)
    there = peek(source, expected, LOCAL_HEADER_BYTES + len(entry.raw_name))
    if expected == entry.header_at or there is None or not is_near(there, moved):
        return entry, header
    view.damage.append(Contradiction(entry.at, entry.stop, f"the directory's entry of {entry.name} leads elsewhere"))
    return moved, there


def _record(
    source: ByteSource, entry: Entry, header: bytes | None, end: int, view: ZipView
) -> tuple[Entry, ZipRecord]:
    """A record between its header and the next one."""
    near = header is not None and is_near(header, entry)
    offset = None
    if header is not None and _is_local(entry, header):
        offset, is_wrong = _behind(source, entry, header)
        if is_wrong:
            text = f"the header of {entry.name} tells a wrong length"
            view.damage.append(Contradiction(entry.header_at, entry.header_stop + 4, text))
    is_sound = offset is not None
    width = (24 if entry.is_wide else 16) if entry.has_descriptor else 0
    if offset is not None and entry.whole != entry.nbytes and offset + entry.whole + width == end:
        entry = replace(entry, nbytes=entry.whole)
    if offset is None:  # torch leaves nothing between a record's descriptor and the next header
        offset = end - width - entry.nbytes
    if offset < entry.header_stop or offset + entry.nbytes > view.nbytes:
        offset, is_sound = min(max(offset, entry.header_stop), view.nbytes), False
    return entry, ZipRecord(entry, offset, is_sound, near)


def peek_many(source: ByteSource, places: Sequence[tuple[int, int]]) -> list[bytes | None]:
    """As `peek`, of many places at once."""
    inside = all(offset >= 0 and offset + nbytes <= source.size for offset, nbytes in places)
    if inside:
        try:
            return [bytes(one) for one in source.read_many(places)]
        except (ValueError, OSError):
            pass  # one by one, for those that can be read
    return [peek(source, offset, nbytes) for offset, nbytes in places]


def _behind(source: ByteSource, entry: Entry, header: bytes) -> tuple[int | None, bool]:
    """Where a record's bytes begin by its header, if it can be believed, and whether it is wrong."""
    nbytes = int.from_bytes(header[28:30], "little")
    extra = peek(source, entry.header_stop, nbytes)
    offset = entry.header_stop + nbytes
    if extra is None:
        return None, offset > source.size
    if not _is_extra(extra) or (PADDING_FIELD in extra[:2] and offset % ALIGNMENT):
        return None, True
    return offset, False


def _is_local(entry: Entry, header: bytes) -> bool:
    name_bytes = int.from_bytes(header[26:28], "little")
    return (
        header[:4] == LOCAL_SIGNATURE
        and name_bytes == len(entry.raw_name)
        and header[LOCAL_HEADER_BYTES:] == entry.raw_name
        and (header[8:10] == bytes(2)) == (entry.common[4:6] == STORED.to_bytes(2, "little"))
    )


def _is_extra(extra: bytes) -> bool:
    """Whether extra fields follow one another to the end."""
    at = 0
    while at + 4 <= len(extra):
        at += 4 + int.from_bytes(extra[at + 2 : at + 4], "little")
    return at == len(extra)


def _of_header(entry: Entry, header: bytes, usual: Entry | None, entries: Sequence[Entry]) -> Iterator[Contradiction]:
    """Where the header of a record and the directory contradict one another."""
    fits = _is_local(entry, header) and header[4:14] == entry.common
    plain = int.from_bytes(header[14:18], "little") in (0, entry.crc32)
    narrow = all(int.from_bytes(header[at : at + 4], "little") in (0, WIDE, entry.nbytes) for at in (18, 22))
    if fits and plain and narrow:
        return
    text = f"the header of {entry.name} and the archive's directory contradict one another"
    roots = Counter(other.raw_name.partition(b"/")[0] for other in entries)
    is_listed_right = (
        usual is not None
        and usual.common == entry.common
        and entry.raw_name.partition(b"/")[0] == roots.most_common(1)[0][0]
        and sum(other.raw_name == entry.raw_name for other in entries) == 1
    )
    others = () if is_listed_right else ((entry.at, entry.stop),)
    yield Contradiction(entry.header_at, entry.header_stop, text, others, told_by=((entry.at, entry.stop),))


def is_near(header: bytes, entry: Entry) -> bool:
    """Whether a header is the one of a record but for a few bytes."""
    expected = LOCAL_SIGNATURE + len(entry.raw_name).to_bytes(2, "little") + entry.raw_name
    found = header[:4] + header[26:28] + header[LOCAL_HEADER_BYTES:]
    return sum(a != b for a, b in zip(found, expected, strict=False)) <= max(1, len(expected) // 12)


def descriptor_of(record: ZipRecord) -> bytes:
    """What stands behind a record: signature, checksum, sizes."""
    entry = record.entry
    sizes = struct.pack("<2Q" if entry.is_wide else "<2I", entry.nbytes, entry.nbytes)
    return DESCRIPTOR_SIGNATURE + struct.pack("<I", entry.crc32) + sizes


__all__ = [
    "Contradiction",
    "Entry",
    "ZipRecord",
    "ZipView",
    "descriptor_of",
    "find_records",
    "is_near",
    "lend",
    "peek_many",
    "view_zip",
]
