"""Lazy tensors: where each lies in its file, read only when it is used; one file or many.

A tensor is read as rectangles of it, into memory that is used again: what a conversion holds of its source is one
stretch, whatever the size of the tensor. How a file is read, and what tells that it is not the same any more, is in
`source_file`.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from .byte_source import ByteSource
from .operations import CheckpointError, Shape, TensorSpec, matrix_shape
from .places import Place

MAX_OPEN = 128
"""Files of a source held open at a time; systems allow a process as few as 256."""

MAX_ITEM_BYTES = 16
MIN_SCRATCH_BYTES = 64

MAX_DIMENSIONS = 64  # numpy's own limit


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

    @property
    def matrix_stride(self) -> tuple[int, int] | None:
        """Elements from one row to the next and from one column to the next, seen as a matrix (`matrix_shape`).

        One of them is 1. None for what lies otherwise: an element in several places, axes exchanged behind the first.
        """
        rows, columns = matrix_shape(self.spec.shape)
        try:
            there = torch.empty_strided(self.spec.shape, self.stride, device="meta").view(rows, columns)
        except RuntimeError:
            return None
        along = there.stride(1) if columns > 1 else 1
        if along == 1 and (rows == 1 or there.stride(0) >= columns):
            return columns if rows == 1 else there.stride(0), 1
        return (1, along) if (rows == 1 or there.stride(0) == 1) and along >= rows else None


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


class Scratch:
    """Memory that a source is read into again and again, and what of it is there now.

    Fresh memory costs about as much as the reading itself. What is there is not read again: ranks that are cut out of
    the columns of one matrix are written one after the other.

    Args:
        nbytes: How much there is at most; room for one element at least.
    """

    def __init__(self, nbytes: int):
        self.room = max(nbytes, MIN_SCRATCH_BYTES)
        self._memory = torch.empty(self.room, dtype=torch.uint8)
        self._held: tuple[ByteSource | None, int, int] = (None, 0, 0)  # file, first byte, byte behind the last

    def read(self, file: ByteSource, offset: int, nbytes: int) -> torch.Tensor:
        """Bytes of a file, (nbytes,) uint8; they hold until the next are asked for."""
        held, begin, end = self._held
        skipped = offset - begin
        if held is not file or skipped < 0 or offset + nbytes > end or skipped % MAX_ITEM_BYTES:
            skipped = 0
            file.read(as_buffer(self.taken(nbytes)), offset)
            self._held = (file, offset, offset + nbytes)
        return self._memory[skipped : skipped + nbytes]

    def taken(self, nbytes: int) -> torch.Tensor:
        """Memory to be filled by the caller, (nbytes,) uint8."""
        self._held = (None, 0, 0)
        return self._memory[:nbytes]


def as_buffer(raw: torch.Tensor) -> memoryview:
    """The memory of a uint8 tensor."""
    return memoryview(raw.numpy())  # type: ignore[arg-type]  # numpy's stubs do not declare the buffer


class LazyFile:
    """A file whose tensors are read when they are asked for.

    Args:
        source: The file's bytes, as they were before its header was read.
        tensors: Name -> where it lies.
        static_names: Name -> name of the same tensor in a static graph, where a file of Paddle's tells.

    Raises:
        CheckpointError: a tensor that does not lie in the file.
    """

    def __init__(
        self,
        source: ByteSource,
        tensors: Mapping[str, StoredTensor],
        static_names: Mapping[str, str] | None = None,
    ):
        self.path = source.path
        self.tensors = tensors
        self.static_names = dict(static_names or {})
        self.bytes = source
        for name, stored in tensors.items():
            if stored.offset < 0 or stored.offset + stored.extent > source.size:
                raise CheckpointError(
                    f"{self.path}: {name} should end at byte {stored.offset + stored.extent} but the file has "
                    f"{source.size} bytes. The file is damaged or was cut short; copy it again."
                )

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor, in memory of its own.

        Raises:
            CheckpointError: it cannot be read, or the file is not the same any more.
        """
        stored = self.tensors[name]
        raw = torch.empty(stored.extent, dtype=torch.uint8)
        if stored.extent:
            self.bytes.read(as_buffer(raw), stored.offset)
        return torch.as_strided(raw.view(stored.spec.dtype), stored.spec.shape, stored.stride)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of a tensor seen as a matrix, (stop - start, columns), in memory of their own.

        Raises:
            CheckpointError: they cannot be read, or the file is not the same any more.
        """
        spec = self.tensors[name].spec
        size = (stop - start, matrix_shape(spec.shape)[1])
        rows = torch.empty(size, dtype=spec.dtype)
        scratch = Scratch(rows.nbytes)
        for (row, column), part in self.rectangles(name, (start, 0), size, scratch):
            rows[row : row + part.shape[0], column : column + part.shape[1]] = part
        return rows

    def rectangles(
        self, name: str, start: tuple[int, int], size: tuple[int, int], scratch: Scratch
    ) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
        """A rectangle of a tensor seen as a matrix, in as many parts as it takes.

        Args:
            name: The tensor.
            start: First row and column.
            size: Rows and columns.
            scratch: Memory that the parts are read into.

        Yields:
            First row and column of a part, counted from `start`, and the part, (rows, columns), which holds until the
            next one is asked for.

        Raises:
            CheckpointError: it cannot be read, or the file is not the same any more.
        """
        if 0 in size:
            return
        stored = self.tensors[name]
        strides = stored.matrix_stride
        if strides is None:  # a torch file may hold views of any kind; it is in memory for a moment
            whole = self.tensor(name).reshape(matrix_shape(stored.spec.shape))
            yield (0, 0), whole[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]
            return
        lengths = matrix_shape(stored.spec.shape)
        if strides[1] == 1:
            yield from self._rows(stored, strides[0], lengths[1], start, size, scratch)
            return
        for (column, row), part in self._rows(stored, strides[1], lengths[0], start[::-1], size[::-1], scratch):
            yield (row, column), part.t()

    def _rows(
        self,
        stored: StoredTensor,
        pitch: int,
        length: int,
        start: tuple[int, int],
        size: tuple[int, int],
        scratch: Scratch,
    ) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
        """`rectangles` of a tensor whose rows lie together: `length` elements each, a new one every `pitch`."""
        rows, columns = size
        dtype, item = stored.spec.dtype, stored.spec.dtype.itemsize
        first, room = stored.offset + start[0] * pitch * item, scratch.room // item
        if pitch <= room and ((pitch - columns) * item <= self.bytes.worthwhile_gap or rows * pitch <= room):
            step = room // pitch
            for row in range(0, rows, step):
                count = min(step, rows - row)
                whole_rows = scratch.read(
                    self.bytes, first + row * pitch * item, ((count - 1) * pitch + length) * item
                ).view(dtype)
                place = whole_rows.storage_offset() + start[1]
                yield (row, 0), whole_rows.as_strided((count, columns), (pitch, 1), place)
            return
        width = min(columns, room)
        for column in range(0, columns, width):
            taken = min(width, columns - column)
            step = room // taken
            for row in range(0, rows, step):
                part = scratch.taken(min(step, rows - row) * taken * item)
                self._read_apart(
                    as_buffer(part), first + (row * pitch + start[1] + column) * item, taken * item, pitch * item
                )
                yield (row, column), part.view(dtype).view(-1, taken)

    def _read_apart(self, view: memoryview, at: int, width: int, pitch: int) -> None:
        """Reads rows of `width` bytes that lie `pitch` bytes apart, one behind the other."""
        self.bytes.will_read(at, (len(view) // width - 1) * pitch + width)
        for begin in range(0, len(view), width):
            self.bytes.read(view[begin : begin + width], at + begin // width * pitch)

    def digest(self, name: str) -> bytes:
        """A hash of a small tensor's bytes and strides."""
        stored = self.tensors[name]
        return hashlib.sha256(
            str(stored.stride).encode() + self.bytes.read_bytes(stored.offset, stored.extent)
        ).digest()

    def layout_digest(self) -> str:
        """A hash of the names and of where each tensor lies."""
        places = [
            (name, stored.offset, stored.stride, stored.spec.shape, str(stored.spec.dtype))
            for name, stored in self.tensors.items()
        ]
        return hashlib.sha256(repr(places).encode()).hexdigest()

    def forget(self, name: str) -> None:
        """Drops a tensor from the system's file cache, when it will not be read again.

        A checkpoint larger than memory would push everything else out of the cache.
        """
        stored = self.tensors[name]
        self.bytes.forget(stored.offset, stored.extent)


class TensorFiles:
    """Several lazy files as the source of a conversion: tensors are named by (file number, name).

    Their content is sampled when this is made, so that a file that is changed afterwards is found out.

    Args:
        files: The open files.
        sampled: Whether that is done; without it nothing but headers is read, and nothing may be converted.

    Raises:
        SourceChangedError: a file was changed while its header was read.
    """

    def __init__(self, files: Sequence[LazyFile], sampled: bool = True):
        self.files = tuple(files)
        self._open: OrderedDict[int, LazyFile] = OrderedDict()  # least recently used first
        for number, file in enumerate(self.files):
            self._used(number)
            if sampled:
                file.bytes.sample(stored.offset for stored in file.tensors.values())

    def number_of(self, part: int, name: str) -> int:
        """The number of the file that holds `name` of part `part`."""
        return part

    def _used(self, number: int) -> LazyFile:
        """A file that is about to be read; the one that was not for the longest time is closed for it."""
        self._open[number] = self.files[number]
        self._open.move_to_end(number)
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].bytes.close()
        return self.files[number]

    def tensor(self, part: int, name: str) -> torch.Tensor:
        """The whole tensor `name` of file `part`, in memory of its own."""
        return self._used(self.number_of(part, name)).tensor(name)

    def rows(self, part: int, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of it seen as a matrix, (stop - start, columns), in memory of their own."""
        return self._used(self.number_of(part, name)).rows(name, start, stop)

    def digest(self, part: int, name: str) -> bytes:
        """A hash of a small tensor's bytes and strides."""
        return self._used(self.number_of(part, name)).digest(name)

    def rectangles(
        self, part: int, name: str, start: tuple[int, int], size: tuple[int, int], scratch: Scratch
    ) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
        """A rectangle of a tensor seen as a matrix, in parts; see `LazyFile.rectangles`."""
        return self._used(self.number_of(part, name)).rectangles(name, start, size, scratch)

    def forget(self, part: int, name: str) -> None:
        """Drops a tensor from the system's file cache, when it will not be read again."""
        self._used(self.number_of(part, name)).forget(name)

    def check(self, tensors: Collection[tuple[int, str]]) -> None:
        """Makes sure that the files of these tensors are still the ones they were planned from.

        Raises:
            SourceChangedError: one is not.
        """
        for number in {self.number_of(part, name) for part, name in tensors}:
            self.files[number].bytes.check()

    def check_content(self) -> None:
        """Makes sure of all files, and samples their content again.

        Raises:
            SourceChangedError: one is not the one it was planned from.
        """
        for number in range(len(self.files)):
            self._used(number).bytes.check(content=True)

    def identity(self) -> list[tuple[str | int, ...]]:
        """What a resumed run knows each file by: path, size, time, inode, a hash of its samples, one of its layout.

        The names of the tensors may come from another file than the tensors do.
        """
        return [(*file.bytes.identity, file.layout_digest()) for file in self.files]


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

    def __init__(self, files: Sequence[LazyFile], folder: Place):
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

    def number_of(self, part: int, name: str) -> int:
        """The number of the file that holds `name`; the names are unique, so `part` does not matter."""
        return self._home[name]

    def check_index(self, index: Place, weight_map: Mapping[str, str]) -> None:
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
    "Scratch",
    "StoredTensor",
    "TensorFiles",
    "checked_spec",
    "matrix_shape_of",
    "row_major",
]
