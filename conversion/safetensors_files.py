"""The headers of safetensors files, the index of shards, and a folder of both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .byte_source import ByteSource
from .json_files import parse_json
from .lazy_files import CheckpointError, LazyFile, NamedFiles, StoredTensor, checked_spec, row_major
from .places import Place, bytes_of
from .tensor_names import MAX_TENSORS, check_names

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER_BYTES = 5_000_000
"""Of a header or an index: a tensor takes some 120 bytes of it, the models here have some thousands."""

SAFETENSORS_SINGLE = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"


def open_safetensors_file(path: Place) -> LazyFile:
    """Opens a safetensors file.

    Raises:
        CheckpointError: missing, cut short, a malformed header, a name that stands twice, a dtype not handled here.
    """
    tensors, _, source = read_safetensors_header(path, SAFETENSORS_DTYPES)
    return LazyFile(source, tensors)


def read_safetensors_header(
    path: Place, dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, StoredTensor], dict[str, str], ByteSource]:
    """Where the tensors of a safetensors file lie, its metadata, and its bytes as they were before they were read.

    Args:
        path: The file.
        dtypes: The format's name of a dtype -> what it is here.

    Raises:
        CheckpointError: missing, cut short, a malformed header, a name that stands twice, a dtype not among `dtypes`,
            tensors that overlap or leave bytes between or behind them.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Copy the complete folder.")
    source = bytes_of(path)
    size = source.size
    with source.open() as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(
                f"{path}: cut short or not a safetensors file ({size} bytes, header of {length}). Copy it again."
            )
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path}: a header of {length:,} bytes; no checkpoint here needs more than {MAX_HEADER_BYTES:,}. Copy "
                "the file again."
            )
        raw = file.read(length)
    if raw.count(b"[") + raw.count(b"{") > 4 * MAX_TENSORS:  # an entry is an object of two lists
        raise CheckpointError(
            f"{path}: a header of more than {MAX_TENSORS:,} tensors; no checkpoint has so many. Copy the file again."
        )
    start = 8 + length
    try:
        header = _object(parse_json(raw, unique_names=True), "the header")
        metadata = _object(header.pop("__metadata__", {}), "__metadata__")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ holds something else than texts")
        tensors = {name: _safetensors_entry(entry, start, dtypes) for name, entry in header.items()}
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: malformed safetensors header ({error}). Copy the file again.") from error
    check_names(tensors, path)
    _check_covered(path, tensors, start, size)
    return tensors, metadata, source


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is a {type(value).__name__}, not an object")
    return value


def _safetensors_entry(entry: Any, base: int, dtypes: Mapping[str, torch.dtype]) -> StoredTensor:
    entry = _object(entry, "an entry")
    missing = {"dtype", "shape", "data_offsets"} - entry.keys()
    if missing:
        raise ValueError(f"an entry without {', '.join(sorted(missing))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise ValueError(f"dtype {dtype}; handled: {', '.join(dtypes)}")
    if not isinstance(shape, list):
        raise ValueError(f"a shape that is a {type(shape).__name__}")
    spec = checked_spec(tuple(shape), dtypes[dtype])
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(n) is not int for n in offsets):
        raise ValueError("data_offsets that are no pair of whole numbers")
    begin, end = offsets
    if begin < 0 or end - begin != spec.nbytes:
        raise ValueError(f"bytes {begin} to {end} for a tensor of {spec.nbytes}")
    return StoredTensor(spec, row_major(spec.shape), base + begin)


def _check_covered(path: Place, tensors: Mapping[str, StoredTensor], start: int, size: int) -> None:
    """Makes sure that the tensors cover all bytes behind the header once, as the format demands.

    Raises:
        CheckpointError: they do not.
    """
    at = start
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].extent)):
        end = stored.offset + stored.extent
        if end > size:
            raise CheckpointError(
                f"{path}: {name} should end at byte {end} but the file has {size} bytes. The file is damaged or was "
                "cut short; copy it again."
            )
        if stored.offset != at:
            what = "overlaps the tensor before it" if stored.offset < at else "leaves bytes before it to no tensor"
            raise CheckpointError(f"{path}: {name} at byte {stored.offset} {what}. Copy the file again.")
        at = end
    if tensors and at != size:
        raise CheckpointError(f"{path}: {size - at:,} bytes behind the last tensor. Copy the file again.")


def read_weight_map(index: Place) -> dict[str, str]:
    """Tensor -> file, from the index of a folder's shards, all of which are there.

    Raises:
        CheckpointError: no such file, not an index, a shard that is missing or lies elsewhere.
    """
    if not index.is_file():
        raise CheckpointError(f"{index}: no such file. Copy the complete folder.")
    what = "a safetensors index" if index.name == SAFETENSORS_INDEX else "an index of weights"
    try:
        with index.open("rb") as file:
            raw = file.read(MAX_HEADER_BYTES + 1)
        if len(raw) > MAX_HEADER_BYTES:
            raise ValueError(f"it has more than {MAX_HEADER_BYTES:,} bytes")
        content = _object(parse_json(raw, unique_names=True), "it")
        weight_map = _object(content.get("weight_map"), "weight_map")
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ValueError("weight_map holds something else than names of files")
    except ValueError as error:
        raise CheckpointError(f"{index}: not {what} ({error}). Copy the folder again.") from error
    check_names(weight_map, index)
    shards = sorted(set(weight_map.values()))
    elsewhere = [shard for shard in shards if not _is_file_name(shard)]
    if elsewhere or not shards:
        raise CheckpointError(f"{index}: names {', '.join(elsewhere[:8]) or 'no shards'}. Copy the folder again.")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise CheckpointError(f"{index.parent}: missing {shown}, which the index names. Copy the missing shards.")
    return weight_map


def _is_file_name(name: str) -> bool:
    """Whether a name is that of a file in the same folder, and printable."""
    return Path(name).name == name and name not in ("", "..") and name.isprintable() and len(name.encode()) <= 255


class SafetensorsFolder(NamedFiles):
    """A folder with `model.safetensors`, or shards and `model.safetensors.index.json`.

    Raises:
        CheckpointError: no weights; a shard missing, extra or unreadable; a name in two shards; an index that does not
            match.
    """

    def __init__(self, folder: Place):
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder.")
        index, single = folder / SAFETENSORS_INDEX, folder / SAFETENSORS_SINGLE
        if not index.is_file() and not single.is_file():
            raise CheckpointError(f"{folder}: neither {single.name} nor {index.name}. --source is a converted folder.")
        weight_map = read_weight_map(index) if index.is_file() else {}
        paths = [folder / name for name in sorted(set(weight_map.values()))] or [single]
        super().__init__([open_safetensors_file(path) for path in paths], folder)
        if weight_map:
            self.check_index(index, weight_map)


__all__ = [
    "SAFETENSORS_DTYPES",
    "SAFETENSORS_INDEX",
    "SAFETENSORS_SINGLE",
    "SafetensorsFolder",
    "open_safetensors_file",
    "read_safetensors_header",
    "read_weight_map",
]
