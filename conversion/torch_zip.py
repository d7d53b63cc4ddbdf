"""The little of the zip format that `torch.save` files need to be read and written in place: offsets and checksums.

Everything comes from the archive's own directory through the standard library; torch's layout rules are not relied on.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LOCAL_HEADER_BYTES = 30
DIRECTORY_ENTRY_BYTES = 46
DESCRIPTOR_SIGNATURE = b"PK\x07\x08"


@dataclass(frozen=True, slots=True)
class Record:
    """A stored record: where its bytes begin, how many there are, and whether they are plain."""

    offset: int
    nbytes: int
    is_plain: bool


def read_records(path: Path) -> dict[str, Record]:
    """Records of an archive by name, the archive's root folder left off ("data/0", "byteorder", ...)."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        return {
            info.filename.partition("/")[2]: Record(
                _data_offset(file, info), info.file_size, info.compress_type == zipfile.ZIP_STORED
            )
            for info in archive.infolist()
        }


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
                file.seek(_data_offset(file, info) + info.file_size)
                if file.read(4) != DESCRIPTOR_SIGNATURE:
                    raise ValueError(f"{path}: no data descriptor behind {info.filename}")
                file.write(value.to_bytes(4, "little"))
            # Name, extra field and comment follow the fixed part of an entry.
            entry_at += DIRECTORY_ENTRY_BYTES + sum(_uint16(entry, at) for at in (28, 30, 32))


def _data_offset(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Behind the local header, whose length only the local header itself tells."""
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER_BYTES)
    return info.header_offset + LOCAL_HEADER_BYTES + _uint16(header, 26) + _uint16(header, 28)


def _uint16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


__all__ = ["Record", "read_records", "write_checksums"]
