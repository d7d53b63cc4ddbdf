"""Streams planned tensors into output files: safetensors shards or `torch.save` archives.

A file is laid out first (header, or an archive without its data) and then filled at fixed offsets, block by block of
rows, so the largest thing in memory is a block, whatever the size of the tensor. Two blocks take turns: one is filled
from the source while a thread computes the checksum of the other and writes it.
"""

import errno
import json
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .blocks import BLOCK_BYTES, blocks_under_way, copy_peak_bytes, row_blocks
from .lazy_files import Scratch, TensorFiles, as_buffer
from .operations import matrix_shape
from .source_file import SourceFile
from .state_map import ConversionError, PlannedTensor
from .torch_zip import read_records, write_checksums

ZIP_ERRORS = (zipfile.BadZipFile, ValueError, EOFError, KeyError, NotImplementedError, OverflowError, struct.error)
"""What `zipfile` raises for archives that are none, or none any more."""

SAFETENSORS_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8"}
SKELETON_BYTES_PER_TENSOR = 512  # archive headers, alignment and directory entry of one record, rounded up


class WriteError(ConversionError):
    """Something cannot be written as asked. The message says what, where and what to do."""


class DtypeRangeError(WriteError):
    """A finite weight would become infinite in the dtype asked for."""


class OutputFile:
    """One file to be written.

    Attributes:
        name: Path relative to the output folder.
        tensors: What it holds.
        size: Its size in bytes, rounded up where it is not known.
        is_known: Whether every byte beside the data of the tensors is known before the file is made.
    """

    name: str
    tensors: tuple[PlannedTensor, ...]
    size: int
    is_known: ClassVar[bool] = True

    def skeleton(self) -> Iterable[tuple[int, bytes]]:
        """Everything but the data of the tensors: (offset, bytes), in order."""
        raise NotImplementedError

    def create(self, path: Path) -> None:
        """Makes the file, which must not be there, with everything but the data of its tensors."""
        with path.open("xb") as file:
            for offset, content in self.skeleton():
                file.seek(offset)
                file.write(content)
            file.truncate(self.size)

    def is_laid_out(self, path: Path) -> bool:
        """Whether a file is as `create` made it, whatever the data of its tensors; as far as that is known."""
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != self.size:
                return False
            for offset, content in self.skeleton():
                file.seek(offset)
                if file.read(len(content)) != content:
                    return False
        return True

    def offsets(self, path: Path) -> dict[str, int]:
        """Where each tensor's data belongs, in bytes."""
        raise NotImplementedError

    def finish(self, path: Path, checksums: Mapping[str, int]) -> None:
        """Adds what is known only now, the CRC-32 of each tensor; most formats have no checksums."""


class SafetensorsShard(OutputFile):
    """A safetensors file.

    Args:
        name: File name.
        tensors: What it holds, in this order, but wider dtypes first so that every tensor is aligned to its elements.
        metadata: Text entries for the header.
    """

    def __init__(self, name: str, tensors: Sequence[PlannedTensor], metadata: Mapping[str, str]):
        self.name = name
        self.tensors = tuple(sorted(tensors, key=lambda tensor: -tensor.spec.dtype.itemsize))
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        end = 0
        for tensor in self.tensors:
            start, end = end, end + tensor.spec.nbytes
            dtype = SAFETENSORS_NAMES[tensor.spec.dtype]
            header[tensor.name] = {"dtype": dtype, "shape": list(tensor.spec.shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._prefix = len(text).to_bytes(8, "little") + text
        self._starts = {
            tensor.name: len(self._prefix) + header[tensor.name]["data_offsets"][0] for tensor in self.tensors
        }
        self.size = len(self._prefix) + end

    def skeleton(self) -> Iterable[tuple[int, bytes]]:
        """The header."""
        return [(0, self._prefix)]

    def offsets(self, path: Path) -> dict[str, int]:
        """Known from the header."""
        return self._starts


class TorchArchive(OutputFile):
    """A `torch.save` file of {member: {name: tensor}}.

    torch writes the archive around fake tensors and leaves room for their data (`torch.serialization.skip_data`), so
    the pickle is torch's own. The data and its checksums are filled in here; torch does not look at the checksums,
    other zip tools do.

    Args:
        name: Path relative to the output folder; the file's stem also names the records inside, as torch does it.
        tensors: What it holds.
        member: Key of the tensors.
    """

    is_known = False

    def __init__(self, name: str, tensors: Sequence[PlannedTensor], member: str):
        self.name = name
        self.tensors = tuple(tensors)
        self._member = member
        self.size = sum(tensor.spec.nbytes + SKELETON_BYTES_PER_TENSOR for tensor in tensors) + 2**16

    def create(self, path: Path) -> None:
        """Saves fake tensors: the data is a hole in the file."""
        with FakeTensorMode():
            fakes = {tensor.name: torch.empty(tensor.spec.shape, dtype=tensor.spec.dtype) for tensor in self.tensors}
        with torch.serialization.skip_data(materialize_fake_tensors=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                torch.save({self._member: fakes}, path)
            except RuntimeError as error:  # which is how torch's own writer says that the system took no more bytes
                raise OSError(errno.EIO, f"torch cannot write it ({_first_line(error)})", str(path)) from error

    def is_laid_out(self, path: Path) -> bool:
        """Whether it is an archive with room for the same tensors."""
        try:
            self.offsets(path)
        except OSError:
            return False
        return True

    def offsets(self, path: Path) -> dict[str, int]:
        """Read from the archive: torch numbers the records in the order of the tensors."""
        try:
            records = read_records(SourceFile.of(path))
        except ZIP_ERRORS as error:  # torch does not notice every write that fails
            raise OSError(errno.EIO, f"it was not written as it should ({error})", str(path)) from error
        starts, size = {}, path.stat().st_size
        for number, tensor in enumerate(self.tensors):
            record = records.get(f"data/{number}")
            if record is None or record.nbytes != tensor.spec.nbytes or record.offset + record.nbytes > size:
                has = "nothing" if record is None else f"{record.nbytes} bytes at {record.offset}"
                raise OSError(
                    errno.EIO, f"record {number} has {has}, {tensor.name} needs {tensor.spec.nbytes}", str(path)
                )
            starts[tensor.name] = record.offset
        return starts

    def finish(self, path: Path, checksums: Mapping[str, int]) -> None:
        """Enters the checksums, so that other zip tools find the archive sound."""
        values = {f"data/{number}": checksums[tensor.name] for number, tensor in enumerate(self.tensors)}
        try:
            write_checksums(path, values)
        except ZIP_ERRORS as error:
            raise OSError(errno.EIO, f"it was not written as it should ({error})", str(path)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def plan_shards(
    tensors: Sequence[PlannedTensor], max_shard_bytes: int, metadata: Mapping[str, str], quantized: bool = False
) -> list[SafetensorsShard]:
    """Distributes tensors over `model.safetensors` or `model-0000x-of-0000y.safetensors`, in order.

    Args:
        tensors: What is to be written.
        max_shard_bytes: Upper limit of the data in one shard; a tensor larger than that has a shard of its own.
        metadata: Text entries for each header.
        quantized: Whether int8 is among the dtypes that are allowed.

    Raises:
        WriteError: a dtype that the model's files cannot have.
    """
    allowed_dtypes = [dtype for dtype in SAFETENSORS_NAMES if quantized or dtype.is_floating_point]
    groups: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if tensor.spec.dtype not in allowed_dtypes:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed_dtypes)
            raise WriteError(f"{tensor.name} is {tensor.spec.dtype}; weights are one of {allowed}")
        if groups[-1] and filled + tensor.spec.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.spec.nbytes
    if len(groups) == 1:
        return [SafetensorsShard("model.safetensors", groups[0], metadata)]
    return [
        SafetensorsShard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group, metadata)
        for number, group in enumerate(groups, start=1)
    ]


@dataclass(frozen=True, slots=True)
class Task:
    """A tensor to be written into an open file at a byte offset."""

    tensor: PlannedTensor
    file: str
    descriptor: int
    offset: int


def stream(
    tasks: Iterable[Task],
    uses: Counter[tuple[int, str]],
    source: TensorFiles,
    on_bytes: Callable[[int], object],
    on_tensor: Callable[[Task, int], None],
    block_bytes: int = BLOCK_BYTES,
    threads: int = 1,
) -> None:
    """Writes tensors, copied or computed from the source, into their files.

    Args:
        tasks: What to write and where to; taken one by one, so files may be opened as their first task is drawn.
        uses: How many of the tasks read each (file, name) of the source; it is forgotten after the last.
        source: Where the pieces are; read in this thread only.
        on_bytes: Called with the number of bytes written, after each block, in the writing thread.
        on_tensor: Called with a finished task and the CRC-32 of its bytes, in the writing thread.
        block_bytes: Size of each of the two buffers.
        threads: How many compute; `blocks.copy_peak_bytes` tells the memory.

    Raises:
        DtypeRangeError: a finite number that the target dtype cannot hold.
        SourceChangedError: a file of the source is not what it was, after the task that read it and before it is told
            to be finished.
        OSError: writing failed, e.g. the disk is full.
    """
    scratch, buffers = Scratch(block_bytes), _TwoBuffers(block_bytes)
    pending: deque[Future[None]] = deque()
    write = _BlockWriter(on_bytes, on_tensor, block_bytes)

    with (
        _one_thread_each(),
        ThreadPoolExecutor(max_workers=1) as writing,
        ThreadPoolExecutor(max_workers=threads) as computing,
    ):
        for task in tasks:
            spec = task.tensor.spec
            for start, stop in row_blocks(task.tensor, block_bytes):
                while len(pending) >= blocks_under_way(threads):
                    pending.popleft().result()
                data: torch.Tensor | Future[torch.Tensor]
                if task.tensor.computation is None:
                    data = buffers.take((stop - start) * spec.row_nbytes)
                    fill_block(data, task.tensor, start, stop, source, scratch)
                else:
                    data = computing.submit(computed_block(task.tensor, start, stop, source, scratch))
                last = stop * spec.row_nbytes == spec.nbytes
                if last:
                    source.check(sources_of(task.tensor))
                offset = task.offset + start * spec.row_nbytes
                pending.append(writing.submit(write.block, task, data, offset, start == 0, last))
                if task.tensor.computation is None:
                    buffers.lend(pending[-1])
            for used in sources_of(task.tensor):
                uses[used] -= 1
                if not uses[used]:
                    source.forget(*used)
        while pending:
            pending.popleft().result()


class _TwoBuffers:
    """Memory for blocks that are copied: one of two is filled while the other may still be written.

    Args:
        block_bytes: Size of each; a larger block has a larger one made.
    """

    def __init__(self, block_bytes: int):
        self._block_bytes = block_bytes
        self._memory = [torch.empty(0, dtype=torch.uint8) for _ in range(2)]
        self._written: list[Future[None] | None] = [None, None]
        self._turn = 0

    def take(self, nbytes: int) -> torch.Tensor:
        """The one whose turn it is, (nbytes,) uint8, once what it held is written."""
        self._turn = 1 - self._turn
        written = self._written[self._turn]
        if written is not None:
            written.result()
        if len(self._memory[self._turn]) < nbytes:
            self._memory[self._turn] = torch.empty(max(nbytes, self._block_bytes), dtype=torch.uint8)
        return self._memory[self._turn][:nbytes]

    def lend(self, written: Future[None]) -> None:
        """Says when what was put into it will have been written."""
        self._written[self._turn] = written


class _BlockWriter:
    """Writes the blocks of one tensor after the other, in the writing thread; the arguments are those of `stream`."""

    def __init__(
        self, on_bytes: Callable[[int], object], on_tensor: Callable[[Task, int], None], block_bytes: int
    ) -> None:
        self._on_bytes, self._on_tensor = on_bytes, on_tensor
        self._write_behind = WriteBehind(block_bytes)
        self._checksum = 0
        self._is_sound = True

    def block(
        self, task: Task, data: torch.Tensor | Future[torch.Tensor], offset: int, first: bool, last: bool
    ) -> None:
        """Writes a block at an offset, once it is computed; after the last of a tensor, says so."""
        if not self._is_sound:  # the block before was not written, so this one must not complete its tensor
            return
        self._is_sound = False
        view = as_buffer(data.result() if isinstance(data, Future) else data)
        self._checksum = zlib.crc32(view, 0 if first else self._checksum)
        pwrite_all(task.descriptor, view, offset)
        self._write_behind.wrote(task, offset, len(view))
        self._on_bytes(len(view))
        if last:
            self._on_tensor(task, self._checksum)
        self._is_sound = True


class WriteBehind:
    """Keeps the file cache from filling up with output: a finished stretch goes to disk at once and then leaves it.

    Otherwise a checkpoint larger than memory pushes everything else out, and the system stops the writer now and then
    until the disk has caught up.

    Args:
        stretch: How many bytes of a file to let go at a time.
    """

    def __init__(self, stretch: int):
        self._stretch = stretch
        self._reached: dict[str, int] = {}

    def wrote(self, task: Task, offset: int, nbytes: int) -> None:
        """Notes that bytes of a file were written; its large tensors are written from front to back."""
        start, end = self._reached.setdefault(task.file, offset), offset + nbytes
        if end - start >= self._stretch and hasattr(os, "posix_fadvise"):  # not on macOS
            # Told that pages are not needed, Linux starts writing the dirty ones and drops those already written.
            begin = max(0, start - 4 * self._stretch)
            os.posix_fadvise(task.descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)
            self._reached[task.file] = end


def sources_of(tensor: PlannedTensor) -> set[tuple[int, str]]:
    """(file, name) of every source tensor a planned tensor reads."""
    return {(piece.part, piece.source) for piece in tensor.pieces}


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Nothing in here is shared out further among threads, by any of those that work in here.

    One thread copies faster than the disk; several would wait for one another wherever other programs run. Blocks that
    are computed have threads of their own.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fill_block(
    buffer: torch.Tensor, tensor: PlannedTensor, start: int, stop: int, source: TensorFiles, scratch: Scratch
) -> None:
    """Assembles rows `start` to `stop` of a planned tensor that is copied.

    Args:
        buffer: Bytes of the block, (rows * row bytes,) uint8.
        tensor: The planned tensor.
        start: First row.
        stop: Row behind the last.
        source: Where the pieces are.
        scratch: Memory that the source is read into.

    Raises:
        DtypeRangeError: a finite number that the target dtype cannot hold.
    """
    block = buffer.view(tensor.spec.dtype).view(stop - start, -1)  # (rows, columns)
    _gather(block, tensor, start, source, scratch)


def computed_block(
    tensor: PlannedTensor, start: int, stop: int, source: TensorFiles, scratch: Scratch
) -> Callable[[], torch.Tensor]:
    """Gathers what rows `start` to `stop` of a planned tensor are computed from.

    Args: as of `fill_block`.

    Returns:
        What computes them, in any thread: the bytes of the block, (rows * row bytes,) uint8; raises as `fill_block`.
    """
    assert tensor.computation is not None
    gathered = tensor.computation.gathered

    def gather() -> torch.Tensor:
        rows = torch.empty(stop - start, matrix_shape(gathered.shape)[1], dtype=gathered.dtype)
        _gather(rows, tensor, start, source, scratch)
        return rows

    compute = tensor.computation.rows(start, gather)
    shape = (stop - start, tensor.spec.row_nbytes // tensor.spec.dtype.itemsize)

    def block() -> torch.Tensor:
        values = compute()
        if values.dtype != tensor.spec.dtype:
            narrower = torch.empty(shape, dtype=tensor.spec.dtype)
            _copy(narrower, values, tensor.name)
            values = narrower
        return values.reshape(shape).contiguous().view(torch.uint8).flatten()

    return block


def _gather(block: torch.Tensor, tensor: PlannedTensor, start: int, source: TensorFiles, scratch: Scratch) -> None:
    """Copies the rows of the pieces from row `start` on into a block of shape (rows, columns)."""
    stop = start + len(block)
    for piece in tensor.pieces:
        first = max(start, piece.target_start[0])
        behind = min(stop, piece.target_start[0] + piece.size[0])
        if first >= behind:
            continue
        column, width = piece.target_start[1], piece.size[1]
        target = block[first - start : behind - start, column : column + width]
        corner, size = (
            (piece.source_start[0] + first - piece.target_start[0], piece.source_start[1]),
            (len(target), width),
        )
        if piece.repeated:
            corner, size = piece.source_start, (1, width)
        if piece.transposed:
            corner, size = corner[::-1], size[::-1]
        for place, part in source.rectangles(piece.part, piece.source, corner, size, scratch):
            if piece.transposed:
                place, part = place[::-1], part.t()
            rows, columns = (slice(begin, begin + length) for begin, length in zip(place, part.shape, strict=True))
            rows = slice(None) if piece.repeated else rows
            _copy(target[rows, columns], part, tensor.name)


def _copy(target: torch.Tensor, values: torch.Tensor, name: str) -> None:
    target.copy_(values)
    narrows = torch.finfo(target.dtype).max < torch.finfo(values.dtype).max if target.is_floating_point() else False
    if narrows and not torch.equal(torch.isfinite(target), torch.isfinite(values)):
        largest = values[torch.isfinite(values)].abs().max().item()
        raise DtypeRangeError(
            f"{name}: a weight of magnitude {largest:g} does not fit {target.dtype} (largest "
            f"{torch.finfo(target.dtype).max:g}). Convert with --dtype bfloat16 or float32."
        )


def pwrite_all(descriptor: int, view: memoryview, offset: int) -> None:
    """Writes all of `view`; the system may take it in several parts."""
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Gives back the `OSError` that a library written in Rust makes a plain `Exception` of, its number in the text.

    Args:
        path: What the library writes to.
    """
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


__all__ = [
    "BLOCK_BYTES",
    "DtypeRangeError",
    "OutputFile",
    "SafetensorsShard",
    "Task",
    "TorchArchive",
    "WriteBehind",
    "WriteError",
    "computed_block",
    "copy_peak_bytes",
    "fill_block",
    "plan_shards",
    "pwrite_all",
    "sources_of",
    "stream",
    "system_errors",
]
