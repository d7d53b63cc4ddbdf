"""Lazy tensors from checkpoint files: torch's pickles and safetensors, one file or many.

Opening a file reads its header only. The pickle goes through `torch.load(weights_only=True)`, so nothing in it is ever
executed, under a `FakeTensorMode`, which makes tensors of shape, dtype and file offset without data. The bytes are
then mapped read-only here rather than by `torch.load(mmap=True)`: torch's mapping is private and writable, Linux
charges such a mapping against RAM plus swap, and a 33 GB rank is refused ("Cannot allocate memory") on a machine with
less than that. A read-only mapping is free, and its pages can be handed back (`release`) as soon as they are copied;
otherwise everything ever read would count as this process's memory.
"""

import hashlib
import json
import math
import mmap
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .state_map import ConversionError, Shape, TensorSpec
from .torch_zip import read_records

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
MAX_DIMENSIONS = 64  # numpy's own limit
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


class CheckpointError(ConversionError):
    """The files are not the checkpoint they should be. The message names the file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in its file; strides in elements, offset in bytes."""

    spec: TensorSpec
    stride: tuple[int, ...]
    offset: int

    @property
    def extent(self) -> int:
        """Bytes from the first to behind the last element."""
        if 0 in self.spec.shape:
            return 0
        return (
            sum((n - 1) * step for n, step in zip(self.spec.shape, self.stride, strict=True)) + 1
        ) * self.spec.dtype.itemsize


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a tensor that lies in row-major order without gaps."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def checked_spec(shape: Shape, dtype: torch.dtype) -> TensorSpec:
    """A spec of a shape from a file.

    Raises:
        ValueError: no tensor can have that shape.
    """
    if len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("a shape that is no list of lengths")
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:  # also what a length of 0 hides
        raise ValueError(f"the shape {list(shape)}")
    return TensorSpec(shape, dtype)


def matrix_shape_of(specs: Mapping[str, TensorSpec], name: str, where: object) -> Shape:
    """The shape of a tensor that tells a size of the model, and so must be there and a matrix.

    Args:
        specs: What the checkpoint holds.
        name: The tensor.
        where: The checkpoint, for messages.

    Raises:
        CheckpointError: it is missing or not a matrix.
    """
    if name not in specs or len(specs[name].shape) != 2:
        is_there = f"of shape {list(specs[name].shape)}" if name in specs else "missing"
        raise CheckpointError(f"{where}: {name} should be a matrix, it is {is_there}. Take the complete checkpoint.")
    return specs[name].shape


class LazyFile:
    """A file whose tensors are views of a read-only mapping.

    Args:
        path: The file.
        tensors: Name -> where it lies.
        static_names: Name -> name of the same tensor in a static graph, where a file of Paddle's tells.
        stays_open: Whether it is mapped from now on, or only from when a tensor is asked for until it is forgotten: a
            checkpoint of one file for each variable has more files than a process may hold open.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, StoredTensor],
        static_names: Mapping[str, str] | None = None,
        stays_open: bool = True,
    ):
        self.path = path
        self.tensors = tensors
        self.static_names = dict(static_names or {})
        self._stays_open = stays_open
        self._mapping = self._opened() if stays_open else None
        size = path.stat().st_size
        for name, stored in tensors.items():
            if stored.offset < 0 or stored.offset + stored.extent > size:
                raise CheckpointError(
                    f"{path}: {name} should end at byte {stored.offset + stored.extent} but the file has {size} "
                    "bytes. The file is damaged or was cut short; copy it again."
                )

    def _opened(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, unread: its bytes come from disk when they are used. Not to be written to."""
        stored = self.tensors[name]
        elements = stored.extent // stored.spec.dtype.itemsize
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # read-only is what is wanted
            if not elements:  # which torch.frombuffer does not accept
                return torch.empty(stored.spec.shape, dtype=stored.spec.dtype)
            self._mapping = self._mapping or self._opened()
            flat = torch.frombuffer(self._mapping, dtype=stored.spec.dtype, count=elements, offset=stored.offset)
        return flat.as_strided(stored.spec.shape, stored.stride)

    def digest(self, name: str) -> bytes:
        """A hash of a small tensor's bytes and strides.

        Not read through the mapping: the system would fetch megabytes around every little tensor.
        """
        stored = self.tensors[name]
        with self.path.open("rb", buffering=0) as file:
            file.seek(stored.offset)
            return hashlib.sha256(str(stored.stride).encode() + file.read(stored.extent)).digest()

    def release(self, name: str) -> None:
        """Hands a tensor's pages back: they stay in the system's file cache, not in this process's memory."""
        stored = self.tensors[name]
        if self._mapping is None or not stored.extent:
            return
        start = stored.offset - stored.offset % mmap.PAGESIZE
        # Whole pages, neighbours' bytes included: the mapping is shared with the file, so nothing can be lost.
        self._mapping.madvise(mmap.MADV_DONTNEED, start, stored.offset + stored.extent - start)

    def forget(self, name: str) -> None:
        """Also drops a tensor from the system's file cache, when it will not be read again.

        A checkpoint larger than memory would push everything else out of the cache.
        """
        self.release(name)
        self._mapping = self._mapping if self._stays_open else None
        if hasattr(os, "posix_fadvise"):  # not on macOS
            stored = self.tensors[name]
            with self.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), stored.offset, stored.extent, os.POSIX_FADV_DONTNEED)


def open_torch_file(path: Path, member: str) -> tuple[LazyFile, dict[str, Any]]:
    """Opens a `torch.save` file of the form {member: {name: tensor}, ...}.

    Args:
        path: The file.
        member: Key under which the tensors lie.

    Returns:
        The lazy file, and the other entries of the outer dictionary.

    Raises:
        CheckpointError: missing, cut short, a legacy (non-zip) file, not tensors (nothing is executed), not of that
            form.
    """
    loaded = _load_headers(path)
    if not isinstance(loaded, dict) or not isinstance(loaded.get(member), dict):
        found = f"keys {sorted(map(str, loaded))[:8]}" if isinstance(loaded, dict) else f"a {type(loaded).__name__}"
        raise CheckpointError(
            f'{path}: expected {{"{member}": {{name: tensor}}}} as GLM-130B\'s files hold it, found {found}. '
            f'Save it again with torch.save({{"{member}": state_dict}}, path).'
        )
    records = _data_records(path)
    tensors = {}
    for name, value in loaded[member].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            raise CheckpointError(
                f"{path}: the entry {name!r} of '{member}' is a {type(value).__name__}, not a dense tensor. Remove "
                "it and save the file again."
            )
        tensors[name] = _stored_tensor(path, name, value, records)
    rest = {key: value for key, value in loaded.items() if key != member}
    return LazyFile(path, tensors), rest


def _load_headers(path: Path) -> Any:
    _check_is_zip(path)
    try:
        with FakeTensorMode():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {named.group(1)}, which is no tensor" if named else "is damaged or holds more than tensors"
        raise CheckpointError(
            f"{path}: the pickle {what}. Nothing in it was executed. Copy the file again; or, if you trust it, load "
            f'it where you trust it and save {{"module": state_dict}} alone.'
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, AttributeError, TypeError, IndexError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: not a readable torch checkpoint ({first_line}). Copy the file again."
        ) from error


def _check_is_zip(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Copy the complete checkpoint.")
    with path.open("rb") as file:
        start = file.read(4)
    if zipfile.is_zipfile(path):
        return
    if start == b"PK\x03\x04":
        raise CheckpointError(
            f"{path}: cut short, {path.stat().st_size} bytes without the end of the archive. Copy the file again."
        )
    if start[:1] == b"\x80":
        raise CheckpointError(
            f"{path}: a torch file in the format before torch 1.6, which cannot be read piece by piece. Save it "
            "again with torch.save(torch.load(path, weights_only=True), path)."
        )
    size = path.stat().st_size
    raise CheckpointError(
        f"{path}: not a torch checkpoint ({size} bytes, starting with {start!r}). Copy the file again."
    )


def _data_records(path: Path) -> dict[int, int]:
    """Offset -> length in bytes of every tensor record of a torch zip file."""
    records = read_records(path)
    data = {name: record for name, record in records.items() if name.startswith("data/")}
    packed = sorted(name for name, record in data.items() if not record.is_plain)
    if packed:
        raise CheckpointError(
            f"{path}: {packed[0]} is compressed, torch stores plainly. Save the file again with torch.save."
        )
    order = records.get("byteorder")
    if order is not None:
        with path.open("rb") as file:
            file.seek(order.offset)
            if file.read(order.nbytes) != b"little":
                raise CheckpointError(
                    f"{path}: written on a big-endian machine. Save it again on a little-endian one."
                )
    return {record.offset: record.nbytes for record in data.values()}


def _stored_tensor(path: Path, name: str, value: torch.Tensor, records: Mapping[int, int]) -> StoredTensor:
    storage = value.untyped_storage()
    offset = getattr(storage, "_checkpoint_offset", None)
    if offset is None:
        raise CheckpointError(
            f"torch {torch.__version__} does not tell where tensors lie in a file. Install torch 2.7 or later."
        )
    # torch computes offsets from its own layout rules; the archive's directory has the last word.
    if records.get(offset, -1) < storage.nbytes():
        raise CheckpointError(
            f"{path}: {name} does not lie where the archive's directory says. Save it again with torch.save."
        )
    spec = TensorSpec(tuple(value.shape), value.dtype)
    return StoredTensor(spec, tuple(value.stride()), offset + value.storage_offset() * value.dtype.itemsize)


def open_safetensors_file(path: Path) -> LazyFile:
    """Opens a safetensors file.

    Raises:
        CheckpointError: missing, cut short, a malformed header, a name that stands twice, a dtype not handled here.
    """
    return LazyFile(path, read_safetensors_header(path, SAFETENSORS_DTYPES)[0])


def read_safetensors_header(
    path: Path, dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Where the tensors of a safetensors file lie, and its metadata.

    Args:
        path: The file.
        dtypes: The format's name of a dtype -> what it is here.

    Raises:
        CheckpointError: missing, cut short, a malformed header, a name that stands twice, a dtype not among `dtypes`.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Copy the complete folder.")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{path}: cut short or not a safetensors file ({size} bytes, header of {length}). Copy it again."
            )
        raw = file.read(length)
    start = 8 + length
    try:
        header = json.loads(raw, object_pairs_hook=refuse_duplicates)
        metadata = dict(header.pop("__metadata__", {}))
        tensors = {name: _safetensors_entry(entry, start, dtypes) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: malformed safetensors header ({error}). Copy the file again.") from error
    return tensors, metadata


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(object_pairs_hook=...)`: a dictionary, or `ValueError` with the names that stand twice."""
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"names that stand twice: {', '.join(twice)}")
    return dict(pairs)


def _safetensors_entry(entry: Mapping[str, Any], base: int, dtypes: Mapping[str, torch.dtype]) -> StoredTensor:
    shape: Shape = tuple(int(n) for n in entry["shape"])
    if entry["dtype"] not in dtypes:
        raise ValueError(f"dtype {entry['dtype']}; handled: {', '.join(dtypes)}")
    spec = TensorSpec(shape, dtypes[entry["dtype"]])
    begin, end = entry["data_offsets"]
    if begin < 0 or min(shape, default=0) < 0 or end - begin != spec.nbytes:
        raise ValueError(f"bytes {begin} to {end} for a tensor of {spec.nbytes}")
    return StoredTensor(spec, row_major(shape), base + begin)


class TensorFiles:
    """Several lazy files as one source: tensors are named by (file number, name)."""

    def __init__(self, files: Sequence[LazyFile]):
        self.files = tuple(files)

    def file_of(self, part: int, name: str) -> LazyFile:
        """The file that holds `name` of part `part`."""
        return self.files[part]

    def tensor(self, part: int, name: str) -> torch.Tensor:
        """The unread tensor `name` of file `part`."""
        return self.file_of(part, name).tensor(name)

    def release(self, part: int, name: str) -> None:
        """Hands its pages back; it may be read again."""
        self.file_of(part, name).release(name)

    def forget(self, part: int, name: str) -> None:
        """Also drops it from the system's file cache."""
        self.file_of(part, name).forget(name)

    def identity(self) -> list[tuple[str, int, int]]:
        """(path, size, modification time) of each file, by which a resumed run knows its source again."""
        stats = [(file.path.resolve(), file.path.stat()) for file in self.files]
        return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


class NamedFiles(TensorFiles):
    """Files that share no name: tensors are asked for by name, whichever file they lie in.

    Args:
        files: The open files.
        folder: Where they lie, for messages.

    Attributes:
        specs: Name -> shape and dtype, in the order of the files.

    Raises:
        CheckpointError: a name that stands in two files.
    """

    def __init__(self, files: Sequence[LazyFile], folder: Path):
        super().__init__(files)
        self._home: dict[str, int] = {}
        for number, file in enumerate(self.files):
            for name in file.tensors:
                if name in self._home:
                    raise CheckpointError(
                        f"{folder}: {name} stands in {self.files[self._home[name]].path.name} and in "
                        f"{file.path.name}. Remove one."
                    )
                self._home[name] = number
        self.specs = {name: file.tensors[name].spec for file in self.files for name in file.tensors}

    def file_of(self, part: int, name: str) -> LazyFile:
        """The file that holds `name`; the names are unique, so `part` does not matter."""
        return self.files[self._home[name]]

    def check_index(self, index: Path, weight_map: Mapping[str, str]) -> None:
        """Makes sure that the tensors lie where an index says.

        Raises:
            CheckpointError: they do not.
        """
        placed = {name: self.files[number].path.name for name, number in self._home.items()}
        wrong = sorted(name for name in weight_map.keys() | placed.keys() if weight_map.get(name) != placed.get(name))
        if wrong:
            raise CheckpointError(
                f"{index}: {len(wrong)} names do not lie where it says, e.g. {wrong[0]} "
                f"(index: {weight_map.get(wrong[0])}, shards: {placed.get(wrong[0])}). Copy the folder again."
            )


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, from the index of a folder's shards, all of which are there.

    Raises:
        CheckpointError: no such file, not an index, a shard that is missing or lies elsewhere.
    """
    if not index.is_file():
        raise CheckpointError(f"{index}: no such file. Copy the complete folder.")
    try:
        entries = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=refuse_duplicates)["weight_map"]
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
    "CheckpointError",
    "LazyFile",
    "NamedFiles",
    "SafetensorsFolder",
    "StoredTensor",
    "TensorFiles",
    "checked_spec",
    "matrix_shape_of",
    "open_safetensors_file",
    "open_torch_file",
    "read_safetensors_header",
    "read_weight_map",
    "refuse_duplicates",
    "row_major",
]
