"""Lazy tensors: where each lies in its file, read only when it is used; one file or many.

The bytes are mapped read-only here rather than by `torch.load(mmap=True)`: torch's mapping is private and writable,
Linux charges such a mapping against RAM plus swap, and a 33 GB rank is refused ("Cannot allocate memory") on a machine
with less than that. A read-only mapping is free, and its pages can be handed back (`release`) as soon as they are
copied; otherwise everything ever read would count as this process's memory.
"""

import hashlib
import math
import mmap
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .operations import ConversionError, Shape, TensorSpec

MAX_DIMENSIONS = 64  # numpy's own limit


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
    if name not in specs or len(specs[name].shape) != 2 or 0 in specs[name].shape:
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


__all__ = [
    "MAX_DIMENSIONS",
    "CheckpointError",
    "LazyFile",
    "NamedFiles",
    "StoredTensor",
    "TensorFiles",
    "checked_spec",
    "matrix_shape_of",
    "row_major",
]
