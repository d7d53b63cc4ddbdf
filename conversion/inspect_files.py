"""Weight files looked at one by one: what is wrong with each is noted, and the next one is looked at.

The readers of the conversions say what is wrong; here their errors become findings, with the bytes they are about
where the reader knows. What of a file has a checksum is listed for `inspect_deep`.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .byte_source import ByteSource
from .folder_files import dtype_name
from .inspect_report import FileFacts, Finding, Stretch
from .lazy_files import LazyFile, StoredTensor
from .operations import CheckpointError, ConversionError, TensorSpec
from .places import Place, bytes_of
from .source_span import SourceSpan
from .torch_files import BYTE_ORDER, MAX_PICKLE_BYTES, PICKLE, VERSION, open_torch_file
from .torch_zip import CutShortError, Record, ZipError, read_records

SMALL_RECORDS = (PICKLE, BYTE_ORDER, VERSION)
RECORDS = {PICKLE: "the pickle, which names the tensors,"}
"""Record -> what it is, in words."""

COPY_AGAIN = "Copy or download this file again."


@dataclass(frozen=True, slots=True)
class Summed:
    """Bytes with a checksum: where they are in the file, what they are, and their CRC-32."""

    start: int
    stop: int
    name: str
    crc32: int


@dataclass(frozen=True)
class Looked:
    """A weight file that was looked at.

    Attributes:
        name: From the source's folder on.
        source: Its bytes; None where they cannot be read.
        file: The open file; None where something is wrong with it.
        summed: What of it has a checksum, in order.
        rest: What stands beside the tensors.
        findings: What is wrong with it.
        is_archive: Whether it is a torch archive, whose headers can be compared with its directory.
        sha256: What it should have, where that is recorded.
    """

    name: str
    source: ByteSource | None
    file: LazyFile | None
    summed: tuple[Summed, ...] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    is_archive: bool = False
    sha256: str = ""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Name -> where it lies; empty where the file cannot be opened."""
        return {} if self.file is None else self.file.tensors

    @property
    def nbytes(self) -> int:
        """Its size, 0 where it cannot be read."""
        return 0 if self.source is None else self.source.size

    @property
    def is_readable(self) -> bool:
        """Whether enough of it is known to read it through."""
        return self.file is not None or bool(self.summed)

    @property
    def facts(self) -> FileFacts:
        """For the report."""
        return FileFacts(
            self.name,
            None if self.source is None else self.source.size,
            None if self.file is None else len(self.file.tensors),
            isinstance(self.source, SourceSpan),
        )

    def places(self, start: int, stop: int) -> tuple[Stretch, ...]:
        """Where bytes of the file lie: in the file itself, or in the parts of the archive that it is a member of."""
        return places_of(self.source, self.name, start, stop)


def places_of(source: ByteSource | None, name: str, start: int, stop: int) -> tuple[Stretch, ...]:
    """Where bytes of a file lie.

    Args:
        source: Its bytes.
        name: What the report calls the file.
        start: First byte.
        stop: The byte behind the last.
    """
    if isinstance(source, SourceSpan):
        found = source.locate(start, stop - start)
        return tuple(Stretch(part.source.path.name, part.start, part.start + part.nbytes) for part in found)
    return (Stretch(name, start, stop),)


def look_at(
    path: Place, name: str, opener: Callable[[Any], LazyFile], remedy: str = COPY_AGAIN, sha256: str = ""
) -> Looked:
    """Opens a weight file, and notes what is wrong.

    Args:
        path: The file.
        name: What the report calls it.
        opener: Reads its header; raises `ConversionError`.
        remedy: What to do where it is damaged.
        sha256: What the file should have, where that is recorded.
    """
    source: ByteSource | None = None
    try:
        source = bytes_of(path)
        return Looked(name, source, opener(path), sha256=sha256)
    except (ConversionError, OSError) as error:
        return Looked(name, source, None, findings=(finding_of(error, path, name, source, remedy),), sha256=sha256)


def look_at_torch(path: Place, name: str) -> Looked:
    """Opens a torch archive as GLM-130B's ranks are, and lists its records' checksums."""
    rest: dict[str, Any] = {}

    def opener(place: Place) -> LazyFile:
        file, values = open_torch_file(place, "module")
        rest.update(values)
        return file

    looked = look_at(path, name, opener)
    if looked.source is None:
        return looked
    try:
        records = read_records(looked.source)
        damaged = [one for one in SMALL_RECORDS if one in records and not _is_whole(looked.source, records[one])]
    except (ZipError, ConversionError, OSError):
        return looked
    findings = [
        Finding(
            "damaged",
            f"{RECORDS.get(one, one)} has not the checksum that the archive has for it",
            looked.places(records[one].offset, records[one].offset + records[one].nbytes),
            tensor=one,
            remedy=COPY_AGAIN,
        )
        for one in damaged
    ]
    file = looked.file if not damaged else None
    summed = [one for one in _summed(records, file or LazyFile(looked.source, {})) if one.name not in damaged]
    return Looked(name, looked.source, file, tuple(summed), rest, tuple(findings) or looked.findings, is_archive=True)


def _is_whole(source: ByteSource, record: Record) -> bool:
    """Whether a small record has its checksum, if it has one."""
    if not record.crc32 or record.nbytes > MAX_PICKLE_BYTES:
        return True
    return zlib.crc32(source.read_bytes(record.offset, record.nbytes)) == record.crc32


def look_at_archive(path: Place, name: str) -> Looked:
    """Opens any torch archive, and lists its records' checksums; its pickle is not looked at."""

    def opener(place: Place) -> LazyFile:
        source = bytes_of(place)
        try:
            read_records(source)
        except ZipError as error:
            raise CheckpointError(f"{place}: {error}") from error
        return LazyFile(source, {})

    looked = look_at(path, name, opener)
    if looked.file is None or looked.source is None:
        return looked
    summed = _summed(read_records(looked.source), looked.file)
    return Looked(name, looked.source, looked.file, summed, is_archive=True)


def _summed(records: Mapping[str, Record], file: LazyFile) -> tuple[Summed, ...]:
    """Records in order, each under the name of the tensor in it."""
    tensors = {stored.offset: name for name, stored in file.tensors.items()}
    found = [
        Summed(record.offset, record.offset + record.nbytes, tensors.get(record.offset, name), record.crc32)
        for name, record in records.items()
        if record.crc32 or not record.nbytes
    ]
    return tuple(sorted(found, key=lambda one: one.start))


def dtype_of(specs: Iterable[TensorSpec]) -> str:
    """The dtype that most bytes have; empty where there are none."""
    sizes: Counter[str] = Counter()
    for spec in specs:
        sizes[dtype_name(spec.dtype)] += spec.nbytes
    return sizes.most_common(1)[0][0] if sizes else ""


def finding_of(
    error: ConversionError | OSError, path: object, name: str, source: ByteSource | None, remedy: str = ""
) -> Finding:
    """What an error of a reader says of a file.

    Args:
        error: The reader's.
        path: The file, as the reader calls it.
        name: What the report calls it.
        source: The file's bytes, if they can be read.
        remedy: What to do, where the message does not say it.
    """
    if isinstance(error, OSError):
        text = f"cannot be read ({error.strerror or error})"
        return Finding("missing" if isinstance(error, FileNotFoundError) else "damaged", text, (Stretch(name),))
    text = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
    cause = error.__cause__
    spans = cause.spans if isinstance(cause, ZipError) else ()
    places = tuple(place for span in spans for place in places_of(source, name, *span)) or (Stretch(name),)
    return Finding("short" if isinstance(cause, CutShortError) else "damaged", text, places, remedy=remedy)


__all__ = [
    "COPY_AGAIN",
    "Looked",
    "Summed",
    "dtype_of",
    "finding_of",
    "look_at",
    "look_at_archive",
    "look_at_torch",
    "places_of",
]
