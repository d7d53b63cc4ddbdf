"""The headers of safetensors files, the index of shards, and a folder of both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .json_files import MAX_BYTES, parse_json, read_json
from .lazy_files import CheckpointError, LazyFile, NamedFiles, StoredTensor, row_major
from .operations import Shape, TensorSpec
from .source_file import FileState

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
SAFETENSORS_SINGLE = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"


def open_safetensors_file(path: Path) -> LazyFile:
    """Opens a safetensors file.

    Raises:
        CheckpointError: missing, cut short, a malformed header, a name that stands twice, a dtype not handled here.
    """
    tensors, _, state = read_safetensors_header(path, SAFETENSORS_DTYPES)
    return LazyFile(path, state, tensors)


def read_safetensors_header(
    path: Path, dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, StoredTensor], dict[str, str], FileState]:
    """Where the tensors of a safetensors file lie, its metadata, and the state of the file before they were read.

    Args:
        path: The file.
        dtypes: The format's name of a dtype -> what it is here.

    Raises:
        CheckpointError: missing, cut short, a malformed header, a name that stands twice, a dtype not among `dtypes`.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Copy the complete folder.")
    state = FileState.of(path)
    size = state.size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_BYTES):
            raise CheckpointError(
                f"{path}: cut short or not a safetensors file ({size} bytes, header of {length}). Copy it again."
            )
        raw = file.read(length)
    start = 8 + length
    try:
        header = parse_json(raw, unique_names=True)
        metadata = dict(header.pop("__metadata__", {}))
        tensors = {name: _safetensors_entry(entry, start, dtypes) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: malformed safetensors header ({error}). Copy the file again.") from error
    return tensors, metadata, state


def _safetensors_entry(entry: Mapping[str, Any], base: int, dtypes: Mapping[str, torch.dtype]) -> StoredTensor:
    shape: Shape = tuple(int(n) for n in entry["shape"])
    if entry["dtype"] not in dtypes:
        raise ValueError(f"dtype {entry['dtype']}; handled: {', '.join(dtypes)}")
    spec = TensorSpec(shape, dtypes[entry["dtype"]])
    begin, end = entry["data_offsets"]
    if begin < 0 or min(shape, default=0) < 0 or end - begin != spec.nbytes:
        raise ValueError(f"bytes {begin} to {end} for a tensor of {spec.nbytes}")
    return StoredTensor(spec, row_major(shape), base + begin)


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, from the index of a folder's shards, all of which are there.

    Raises:
        CheckpointError: no such file, not an index, a shard that is missing or lies elsewhere.
    """
    if not index.is_file():
        raise CheckpointError(f"{index}: no such file. Copy the complete folder.")
    try:
        entries = read_json(index, unique_names=True)["weight_map"]
        weight_map = {str(name): str(shard) for name, shard in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = "a safetensors index" if index.name == SAFETENSORS_INDEX else "an index of weights"
        raise CheckpointError(f"{index}: not {what} ({error}). Copy the folder again.") from error
    shards = sorted(set(weight_map.values()))
    elsewhere = [shard for shard in shards if Path(shard).name != shard]
    if elsewhere or not shards:
        raise CheckpointError(f"{index}: names {', '.join(elsewhere) or 'no shards'}. Copy the folder again.")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent}: missing {', '.join(missing)}, which the index names. Copy the missing shards."
        )
    return weight_map


class SafetensorsFolder(NamedFiles):
    """A folder with `model.safetensors`, or shards and `model.safetensors.index.json`.

    Raises:
        CheckpointError: no weights; a shard missing, extra or unreadable; a name in two shards; an index that does not
            match.
    """

    def __init__(self, folder: Path):
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
