"""The small records of a torch archive in a damaged member: their checksums, and the names of its tensors."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from .archive_places import peek
from .archive_zip import Contradiction, ZipRecord, ZipView
from .byte_source import ByteSource
from .pickle_symbols import DAMAGE, Entries, PickleRefusal, describe
from .torch_files import MAX_PICKLE_BYTES, PICKLE
from .torch_pickle import TORCH, TensorSymbol

MEMBER = "module"
TENSORS = "data/"


@dataclass(frozen=True)
class SmallRecords:
    """What the small records tell.

    Attributes:
        names: Record -> the tensor in it.
        damage: Those that are not what was written.
    """

    names: dict[str, str]
    damage: tuple[Contradiction, ...]


def read_small(source: ByteSource, view: ZipView) -> SmallRecords:
    """Reads the pickle and what stands beside it, which need no more than seconds at any size.

    Args:
        source: The archive's bytes.
        view: What is known of it.
    """
    names: dict[str, str] = {}
    damage: list[Contradiction] = []
    for record in view.records:
        entry = record.entry
        if entry.name.startswith(TENSORS) or entry.nbytes > MAX_PICKLE_BYTES:
            continue
        raw = peek(source, record.offset, entry.nbytes)
        if raw is None:
            continue
        damage += _checked(source, record, raw, view)
        if entry.name == PICKLE:
            names, wrong = _tensors(raw)
            if wrong and not damage and not entry.crc32:
                damage.append(Contradiction(record.offset, record.stop, f"the pickle is damaged ({wrong})"))
    return SmallRecords(names, tuple(damage))


def _checked(source: ByteSource, record: ZipRecord, raw: bytes, view: ZipView) -> Iterator[Contradiction]:
    """Holds a record against both its checksums; it is damaged where it has neither."""
    found = zlib.crc32(raw)
    if view.is_lent or not record.entry.crc32 or found == record.entry.crc32:
        return
    behind = peek(source, record.stop + 4, 4) if record.entry.has_descriptor else None
    if behind is None or int.from_bytes(behind, "little") != found:
        what = "the pickle, which names the tensors," if record.entry.name == PICKLE else record.entry.name
        text, entry = f"{what} has not the checksum that the archive has for it", record.entry
        yield Contradiction(record.offset, record.stop, text, told_by=((entry.at, entry.stop),))


def _tensors(raw: bytes) -> tuple[dict[str, str], str]:
    """Record -> tensor of a pickle, and what is wrong with it."""
    try:
        loaded = describe(io.BytesIO(raw), len(raw), TORCH)
    except (PickleRefusal, *DAMAGE) as error:
        return {}, str(error) or type(error).__name__
    inside = loaded.get(MEMBER) if isinstance(loaded, Entries) else None
    if not isinstance(inside, Entries):
        return {}, f"no {MEMBER} in it"
    tensors = {str(name): value for name, value in inside.items() if isinstance(value, TensorSymbol)}
    return {f"{TENSORS}{value.storage.key}": name for name, value in tensors.items()}, ""


__all__ = ["MEMBER", "SmallRecords", "read_small"]
