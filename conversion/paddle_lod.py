"""Paddle's static-graph parameters: LoDTensor files, one for each variable or many in one, read and written.

A file of one variable is named after it. A combined file (`.pdiparams`, `__params__`) is the same records one behind
the other, without names: the names are those of the persistable variables of the program beside it (`.pdmodel`,
`__model__`), sorted. `paddle.jit.save` also writes `.pdiparams.info`, which knows the names of the layers' parameters.

A record is, all little-endian: u32 0, u64 number of levels of detail, for each u64 bytes and those bytes; u32 0, i32
length of a TensorDesc, the TensorDesc {1: dtype, 2: each dimension}, the elements in row-major order.

Sources: Paddle 2.6 `SerializeToStream` (`lod_tensor.cc`, `tensor_util.cc`), `framework.proto`, `static/io.py`
(`save_vars`) and `jit/api.py` (`save`); the 1.x releases wrote the same.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import torch

from .lazy_files import MAX_DIMENSIONS, CheckpointError, LazyFile, StoredTensor, checked_spec, row_major
from .operations import Shape, TensorSpec
from .paddle_pickle import foreign_kind, read_structured_names
from .source_file import SourceFile
from .state_map import PlannedTensor
from .tensor_names import MAX_TENSORS, check_names
from .writer import OutputFile, WriteError

LOD_DTYPES = {
    0: torch.bool,
    1: torch.int16,
    2: torch.int32,
    3: torch.int64,
    4: torch.float16,
    5: torch.float32,
    6: torch.float64,
    20: torch.uint8,
    21: torch.int8,
    22: torch.bfloat16,
}
LOD_CODES = {dtype: code for code, dtype in LOD_DTYPES.items()}

PROGRAM_NAMES = ("__model__",)
OTHER_NAMES = (*PROGRAM_NAMES, "README", "LICENSE", "NOTICE", "VERSION")
OTHER_SUFFIXES = (
    ".info",
    ".json",
    ".log",
    ".md",
    ".model",
    ".pdmodel",
    ".py",
    ".sh",
    ".txt",
    ".vocab",
    ".yaml",
    ".yml",
)
"""What may lie among the variables of a folder without being one, with hidden files."""

NOT_SAVED_TYPES = (9, 10, 15, 17)  # FEED_MINIBATCH, FETCH_LIST, READER, RAW: variables without a value of their own

MAX_LEVELS = 64
MAX_DESCRIPTION_BYTES = 4096
MAX_PROGRAM_BYTES = 2**26
MAX_PROGRAM_FIELDS = 1_000_000
"""Of a program: a large one has some tens of thousands of operators, and variables of some ten fields each."""


def open_lod_file(path: Path, name: str) -> LazyFile:
    """Opens the file of one variable.

    Args:
        path: The file.
        name: Name of the variable.

    Raises:
        CheckpointError: missing, cut short, or no such file.
    """
    with _open(path) as file:
        source = SourceFile.of(path)
        size = source.size
        stored = _read_record(path, file, size)
        if file.tell() != size:
            raise CheckpointError(
                f"{path}: {size - file.tell():,} bytes behind the tensor. If this is a combined file, it needs the "
                "program (.pdmodel or __model__) beside it; otherwise copy it again."
            )
    return LazyFile(source, {name: stored})


def open_lod_folder(folder: Path) -> list[LazyFile]:
    """Opens a folder that holds one file for each variable; a name with slashes is a file in a folder.

    Files that are known not to be variables (program, settings, vocabulary, ...) are passed over.

    Returns:
        One file for each variable, by name.

    Raises:
        CheckpointError: a file that is neither a variable nor known; none at all.
    """
    names = sorted(variables_in(folder))
    check_names(names, folder)
    if not names:
        raise CheckpointError(f"{folder}: no files of variables. Pass the folder that Paddle's save_vars wrote.")
    return [open_lod_file(folder / name, name) for name in names]


def variables_in(folder: Path) -> Iterator[str]:
    """Paths, relative to a folder, of the files in it that may be variables."""
    seen = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        seen += len(folders) + len(files)
        if seen > MAX_TENSORS:
            raise CheckpointError(f"{folder}: more than {MAX_TENSORS:,} files. Pass the folder of the weights alone.")
        within = os.path.relpath(parent, folder)
        for name in files:
            path = Path(parent, name)
            if not _is_other(name) and path.is_file():
                yield name if within == os.curdir else f"{within}/{name}"


def open_lod_combined(path: Path, program: Path) -> LazyFile:
    """Opens a combined file with the names from its program, and with those of `<path>.info` where that is there.

    Only files that hold every persistable variable of the program can be read, as `save_inference_model`, `jit.save`
    and `save_persistables` write them: nothing in the file would tell which variables another choice left out.

    Args:
        path: The combined file.
        program: The `.pdmodel` or `__model__` that was saved with it.

    Raises:
        CheckpointError: missing, cut short, no such file, or the program of another file.
    """
    variables = read_program(program)
    tensors: dict[str, StoredTensor] = {}
    with _open(path) as file:
        source = SourceFile.of(path)
        size = source.size
        for name in sorted(variables):
            if file.tell() == size:
                raise CheckpointError(
                    f"{path}: holds {len(tensors)} variables, {program} names {len(variables)}; the first one missing "
                    f"is {name}. Copy both files of the same model again."
                )
            stored = _read_record(path, file, size)
            declared = variables[name]
            if len(declared) != len(stored.spec.shape) or any(
                wanted not in (-1, length) for wanted, length in zip(declared, stored.spec.shape, strict=True)
            ):
                raise CheckpointError(
                    f"{path}: variable {len(tensors) + 1} has shape {list(stored.spec.shape)}, but {name} in "
                    f"{program} has {list(declared)}. Copy both files of the same model again."
                )
            tensors[name] = stored
        if file.tell() != size:
            raise CheckpointError(
                f"{path}: {size - file.tell():,} bytes behind the {len(variables)} variables that {program} names. "
                "Copy both files of the same model again."
            )
    info = path.with_name(path.name + ".info")
    structured = read_structured_names(info) if info.is_file() else {}
    names = {name: structured.get(name, name) for name in tensors}
    check_names(names.values(), info)
    if len(set(names.values())) < len(names):
        raise CheckpointError(f"{info}: gives one name to two variables. Copy it again, or remove it.")
    return LazyFile(
        source,
        {names[name]: stored for name, stored in tensors.items()},
        {names[name]: name for name in tensors if name in structured},
    )


def looks_like_lod(path: Path) -> bool:
    """Whether a file begins as a LoDTensor record without levels of detail does, as parameters have none."""
    with path.open("rb") as file:
        return file.read(16) == bytes(16)


def read_program(path: Path) -> dict[str, Shape]:
    """The persistable variables of a program and their shapes, -1 for a length that is not fixed.

    Args:
        path: A `.pdmodel` or `__model__`, a ProgramDesc protocol buffer.

    Raises:
        CheckpointError: missing or not such a file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. It holds the names for the combined file; copy it, too.")
    size = path.stat().st_size
    if size > MAX_PROGRAM_BYTES:
        raise CheckpointError(f"{path}: {size:,} bytes, no program is that large. Copy the file again.")
    variables: dict[str, Shape] = {}
    fields_of = _Reader(MAX_PROGRAM_FIELDS).fields
    try:
        for block in _all(fields_of(memoryview(path.read_bytes())), 1):
            for variable in _all(fields_of(block), 3):
                fields = dict(fields_of(variable))
                kind = dict(fields_of(_message(fields[2])))
                if fields.get(3) and kind[1] not in NOT_SAVED_TYPES:
                    name = bytes(_message(fields[1])).decode()
                    description = dict(fields_of(_message(kind[3])))[1]  # of a LoDTensorDesc
                    variables[name] = _description(fields_of(_message(description)))[1]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a Paddle program (malformed at {error}; {size:,} bytes). Copy the file again."
        ) from error
    check_names(variables, path)
    if not variables:
        raise CheckpointError(f"{path}: a program without parameters ({size:,} bytes). Copy the file again.")
    return variables


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Copy the complete checkpoint.")
    other = foreign_kind(path)
    if other is not None:
        raise CheckpointError(f"{path}: {other}")
    return path.open("rb")


def _is_other(name: str) -> bool:
    return name.startswith(".") or name in OTHER_NAMES or Path(name).suffix in OTHER_SUFFIXES


def _read_record(path: Path, file: BinaryIO, size: int) -> StoredTensor:
    """Reads a record's header at the file's position and goes behind its elements."""
    start = file.tell()
    try:
        spec = _read_header(file, size)
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise CheckpointError(
            f"{path}: no variable in Paddle's format at byte {start} of {size:,} ({error}). If it does not belong to "
            "the checkpoint, move it elsewhere; otherwise copy it again."
        ) from error
    offset = file.tell()
    if offset + spec.nbytes > size:
        raise CheckpointError(
            f"{path}: should end at byte {offset + spec.nbytes:,} but has {size:,}. The file is damaged or was cut "
            "short; copy it again."
        )
    file.seek(offset + spec.nbytes)
    return StoredTensor(spec, row_major(spec.shape), offset)


def _read_header(file: BinaryIO, size: int) -> TensorSpec:
    version, levels = struct.unpack("<IQ", file.read(12))
    if version or levels > MAX_LEVELS:
        raise ValueError(f"version {version}, {levels} levels of detail")
    for _ in range(levels):
        (nbytes,) = struct.unpack("<Q", file.read(8))
        if nbytes > size - file.tell():
            raise ValueError(f"a level of detail of {nbytes} bytes")
        file.seek(nbytes, os.SEEK_CUR)
    version, length = struct.unpack("<Ii", file.read(8))
    if version or not 0 < length <= MAX_DESCRIPTION_BYTES:
        raise ValueError(f"version {version}, description of {length} bytes")
    code, shape = _description(_Reader(MAX_DESCRIPTION_BYTES).fields(memoryview(file.read(length))))
    if code not in LOD_DTYPES:
        raise ValueError(f"dtype number {code}; known: {', '.join(map(str, LOD_DTYPES))}")
    return checked_spec(shape, LOD_DTYPES[code])


def _description(message: "Iterable[Field]") -> tuple[int, Shape]:
    """(dtype number, shape) of the fields of a TensorDesc."""
    fields = list(message)
    codes = [value for number, value in fields if number == 1]
    shape: list[int] = []
    for value in (value for number, value in fields if number == 2):
        shape.extend([value] if isinstance(value, int) else _packed(value))
    if len(codes) != 1 or not isinstance(codes[0], int):
        raise ValueError("a tensor without dtype")
    return codes[0], tuple(n - 2**64 if n >= 2**63 else n for n in shape)


Field = tuple[int, int | memoryview]
"""Number and value of a field: a number for varints, bytes for all else."""


class _Reader:
    """Reads protocol buffer messages, up to a number of fields of all together.

    Args:
        most: That number, so that a file of many little fields does not take minutes.
    """

    def __init__(self, most: int):
        self._left = most

    def fields(self, message: memoryview) -> Iterator[Field]:
        """The fields of a message; nothing is copied."""
        position = 0
        while position < len(message):
            self._left -= 1
            if self._left < 0:
                raise ValueError("more fields than any program has")
            key, position = _varint(message, position)
            number, wire = key >> 3, key & 7
            if wire == 0:
                value, position = _varint(message, position)
                yield number, value
                continue
            if wire == 2:
                length, position = _varint(message, position)
            else:
                length = {1: 8, 5: 4}[wire]
            if length > len(message) - position:
                raise ValueError(f"byte {position}")
            yield number, message[position : position + length]
            position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"byte {position}")


def _packed(values: memoryview) -> Iterator[int]:
    if len(values) > 10 * MAX_DIMENSIONS:  # bytes of a number, at most
        raise ValueError(f"{len(values)} bytes of lengths")
    position = 0
    while position < len(values):
        value, position = _varint(values, position)
        yield value


def _all(fields: "Iterable[Field]", number: int) -> Iterator[memoryview]:
    """Every message in field `number`."""
    return (_message(value) for field, value in fields if field == number)


def _message(value: int | memoryview) -> memoryview:
    if not isinstance(value, memoryview):
        raise TypeError("a number where a message belongs")
    return value


class LodFile(OutputFile):
    """The file of one variable, to be filled at a fixed offset.

    Args:
        tensor: The variable; its name names the file.
        folder: Folder of the file, relative to the output folder.

    Raises:
        WriteError: a name that is no file name, a dtype that Paddle's files cannot have.
    """

    def __init__(self, tensor: PlannedTensor, folder: str = ""):
        path = PurePosixPath(folder) / tensor.name
        if not tensor.name or PurePosixPath(tensor.name).is_absolute() or ".." in path.parts:
            raise WriteError(f"{tensor.name!r} cannot be the name of a file. Rename the variable.")
        if tensor.spec.dtype not in LOD_CODES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in LOD_CODES)
            raise WriteError(f"{tensor.name} is {tensor.spec.dtype}; Paddle's files hold one of {allowed}")
        self.name = path.as_posix()
        self.tensors: tuple[PlannedTensor, ...] = (tensor,)
        description = b"\x08" + _as_varint(LOD_CODES[tensor.spec.dtype])
        description += b"".join(b"\x10" + _as_varint(n) for n in tensor.spec.shape)
        self._header = struct.pack("<IQIi", 0, 0, 0, len(description)) + description
        self.size = len(self._header) + tensor.spec.nbytes

    def skeleton(self) -> Iterable[tuple[int, bytes]]:
        """The header."""
        return [(0, self._header)]

    def offsets(self, path: Path) -> dict[str, int]:
        """Behind the header."""
        return {self.tensors[0].name: len(self._header)}


def _as_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


__all__ = [
    "LodFile",
    "looks_like_lod",
    "open_lod_combined",
    "open_lod_file",
    "open_lod_folder",
    "read_program",
    "variables_in",
]
