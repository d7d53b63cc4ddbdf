"""The headers of torch's pickles: `torch.save` archives of {member: {name: tensor}}.

torch itself does not see the file: `torch.load(weights_only=True)` calls what a pickle asks for, a `bytearray` of
6 GB among it, and its reader of archives, which is C++, believes them: a `byteorder` record that says `big` ends the
process. Here the archive's directory is read by `torch_zip`, the pickle by `pickle_symbols`, and a tensor is a place
in the file that both agree on. Nothing in a pickle is executed.
"""

import io
import zlib
from collections.abc import Mapping
from typing import Any

from .byte_source import ByteSource
from .lazy_files import CheckpointError, LazyFile, StoredTensor
from .pickle_symbols import DAMAGE, MAX_TEXT_BYTES, Entries, Literal, NameSymbol, PickleRefusal, describe, text
from .places import Place, bytes_of
from .tensor_names import check_names
from .torch_pickle import TORCH, TensorSymbol
from .torch_zip import Record, ZipError, read_records

PICKLE, BYTE_ORDER, VERSION = "data.pkl", "byteorder", "version"
MAX_PICKLE_BYTES = 2**26
"""A rank of GLM-130B has some 100 kB."""
NEWEST_VERSION = 10
"""Of the archive's layout, as torch counts; 3 is usual."""


def open_torch_file(path: Place, member: str) -> tuple[LazyFile, dict[str, Any]]:
    """Opens a `torch.save` file of the form {member: {name: tensor}, ...}.

    Args:
        path: The file.
        member: Key under which the tensors lie.

    Returns:
        The lazy file, and those of the other entries of the outer dictionary that are a number or a short text.

    Raises:
        CheckpointError: missing, cut short, a legacy (non-zip) file, an archive that torch does not write, not tensors
            (nothing is executed), not of that form.
    """
    _check_is_zip(path)
    source = bytes_of(path)
    try:
        records = read_records(source)
        pickled = _read_pickle(source, records)
        loaded = describe(io.BytesIO(pickled), len(pickled), TORCH)
        if not isinstance(loaded, Entries) or not isinstance(loaded.get(member), Entries):
            raise CheckpointError(_not_of_the_form(path, member, loaded))
        tensors = {name: _stored_tensor(path, member, name, value, records) for name, value in loaded[member].items()}
        rest = {key: _plain(value) for key, value in loaded.items() if key != member and _is_plain(value)}
    except CheckpointError:
        raise
    except PickleRefusal as refusal:
        raise CheckpointError(
            f"{path}: the pickle {refusal}. Nothing in it was executed. Copy the file again; or, if you trust it, "
            f'load it where you trust it and save {{"{member}": state_dict}} alone.'
        ) from refusal
    except ZipError as error:
        raise CheckpointError(f"{path}: {error}. Copy the file again.") from error
    except DAMAGE as error:
        raise CheckpointError(
            f"{path}: the pickle is damaged or holds more than tensors ({error or type(error).__name__}). Nothing in "
            "it was executed. Copy the file again."
        ) from error
    check_names(tensors, path)
    return LazyFile(source, tensors), rest


def _not_of_the_form(path: Place, member: str, loaded: Any) -> str:
    found = f"keys {sorted(map(str, loaded))[:8]}" if isinstance(loaded, Entries) else f"a {_kind(loaded)}"
    return (
        f'{path}: expected {{"{member}": {{name: tensor}}}} as GLM-130B\'s files hold it, found {found}. '
        f'Save it again with torch.save({{"{member}": state_dict}}, path).'
    )


def _check_is_zip(path: Place) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Copy the complete checkpoint.")
    with path.open("rb") as file:
        start = file.read(4)
        size = file.seek(0, io.SEEK_END)
    if start[:1] == b"\x80":
        raise CheckpointError(
            f"{path}: a torch file in the format before torch 1.6, which cannot be read piece by piece. Save it "
            "again with torch.save(torch.load(path, weights_only=True), path)."
        )
    if start[:2] != b"PK" and any(start):  # a hole at the start is damage, and named as such
        raise CheckpointError(
            f"{path}: not a torch checkpoint ({size} bytes, starting with {start!r}). Copy the file again."
        )
    if not start:
        raise CheckpointError(f"{path}: not a torch checkpoint (0 bytes). Copy the file again.")


def _read_pickle(source: ByteSource, records: Mapping[str, Record]) -> bytes:
    """The pickle of an archive whose other records are as torch writes them on a machine like this.

    Raises:
        CheckpointError: compressed, without a pickle or with an endless one, of another byte order or layout.
    """
    path = source.path
    packed = sorted(name for name, record in records.items() if not record.is_plain)
    if packed:
        raise CheckpointError(
            f"{path}: {packed[0]} is compressed, torch stores plainly. Save the file again with torch.save."
        )

    def content(name: str, most: int) -> bytes:
        record = records[name]
        if record.nbytes > most:
            raise CheckpointError(
                f"{path}: {name} has {record.nbytes:,} bytes, no checkpoint needs more than {most:,}. Copy the "
                "file again."
            )
        raw = bytes(source.read_bytes(record.offset, record.nbytes))
        if record.crc32 and zlib.crc32(raw) != record.crc32:  # 0 where torch was told to compute none
            raise ValueError(f"{name} has not the checksum that the archive has for it")
        return raw

    if PICKLE not in records:
        raise CheckpointError(
            f"{path}: a zip archive without {PICKLE}, so not a torch checkpoint. Pass the file that torch.save wrote."
        )
    order = content(BYTE_ORDER, 100) if BYTE_ORDER in records else b"little"  # none before torch 2.1
    if order != b"little":
        what = "written on a big-endian machine" if order == b"big" else f"of the byte order {order!r}"
        raise CheckpointError(f"{path}: {what}. Save it again on a little-endian one.")
    version = content(VERSION, 100).strip() if VERSION in records else b"3"
    if not version.isdigit() or int(version) > NEWEST_VERSION:
        raise CheckpointError(
            f"{path}: in the layout {version!r}; known are those up to {NEWEST_VERSION}. Save it again with an "
            "older torch."
        )
    return content(PICKLE, MAX_PICKLE_BYTES)


def _stored_tensor(path: Place, member: str, name: Any, value: Any, records: Mapping[str, Record]) -> StoredTensor:
    if not isinstance(name, str) or not isinstance(value, TensorSymbol):
        raise CheckpointError(
            f"{path}: the entry {name!r} of '{member}' is a {_kind(value)}, not a dense tensor. Remove it and save "
            "the file again."
        )
    record, storage = records.get(f"data/{value.storage.key}"), value.storage
    if record is None or record.nbytes < storage.numel * storage.dtype.itemsize:
        is_there = "which is not there" if record is None else f"which has {record.nbytes:,} bytes"
        raise CheckpointError(
            f"{path}: {name} should lie in {storage.numel:,} elements of data/{storage.key}, {is_there}. Copy the "
            "file again."
        )
    return StoredTensor(value.spec, value.stride, record.offset + value.offset * value.spec.dtype.itemsize)


def _kind(value: Any) -> str:
    """What something in a pickle is, in words."""
    if isinstance(value, NameSymbol):
        return value.name
    if isinstance(value, Literal):
        return "text"
    return {"TensorSymbol": "tensor", "Entries": "dict", "StateEntries": "dict"}.get(
        type(value).__name__, type(value).__name__
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, Literal) and value.form != "bytes" and value.length <= MAX_TEXT_BYTES
    )


def _plain(value: Any) -> Any:
    return text(value) if isinstance(value, Literal) else value


__all__ = ["open_torch_file"]
