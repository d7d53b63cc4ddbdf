"""Paddle's `.pdparams`, a pickle of {name: numpy array}: read and written without Paddle and without running pickles.

`pickle_symbols` works out what the pickle describes; here its arrays become tensors of a lazy file. Arrays whose
bytes the file holds as text (protocols 0 to 2: Python 2 had no bytes) or in several slices (protocols 2 and 3 end at
4 GB) do not lie anywhere as they are; they are put together in memory, one at a time, when they are asked for.

Sources: Paddle 2.6 `framework/io.py` (`_build_saved_state_dict`, `_legacy_save`, `load`) and `framework/io_utils.py`
(`_unpack_saved_dict`, `_pack_loaded_dict`).
"""

import codecs
import contextlib
import hashlib
import math
import pickle
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .byte_source import ByteSource
from .lazy_files import CheckpointError, LazyFile, Scratch, StoredTensor, checked_spec, row_major
from .operations import TensorSpec, matrix_shape
from .paddle_unpickler import NUMPY_DTYPES, PADDLE, ArraySymbol
from .pickle_symbols import (
    CHUNK_BYTES,
    DAMAGE,
    MAX_TEXT_BYTES,
    Entries,
    Literal,
    NameSymbol,
    PickleRefusal,
    describe,
    text,
    unquote,
)
from .source_file import SourceFile
from .state_map import PlannedTensor
from .tensor_names import check_names
from .writer import OutputFile, WriteError

NAME_TABLE = "StructuredToParameterName@@"
SLICE_TABLE = "UnpackBigParamInfor@@"

NUMPY_CODES = {dtype: code for code, dtype in NUMPY_DTYPES.items()}
TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


class PaddlePickle(LazyFile):
    """An open `.pdparams` file.

    Args:
        source: The file, as it was before it was read.
        contents: What its pickle describes.

    Attributes:
        extras: Entries that are no tensors: their value if it is a number, a truth value, a short text or None,
            otherwise what they are.
    """

    def __init__(self, source: ByteSource, contents: "_Contents"):
        super().__init__(source, contents.tensors, contents.static_names)
        self.extras = contents.extras
        self._parts = contents.parts
        self._assembled: tuple[str, torch.Tensor] | None = None  # the tensor put together last

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor, in memory of its own; one that has to be put together stays until another takes its place.

        Raises:
            CheckpointError: the bytes of a tensor written as text are not as many as its shape says; it cannot be
                read, or the file is not the same any more.
        """
        stored = self.tensors[name]
        if name not in self._parts or not stored.extent:
            return super().tensor(name)
        if self._assembled is None or self._assembled[0] != name:
            self._assembled = None  # before the next one is made
            flat = torch.frombuffer(self._assemble(name), dtype=stored.spec.dtype)
            self._assembled = name, flat.as_strided(stored.spec.shape, stored.stride)
        return self._assembled[1]

    def digest(self, name: str) -> bytes:
        """A hash of a small tensor's bytes and strides."""
        if name not in self._parts:
            return super().digest(name)
        return hashlib.sha256(str(self.tensors[name].stride).encode() + self._assemble(name)).digest()

    def rectangles(
        self, name: str, start: tuple[int, int], size: tuple[int, int], scratch: Scratch
    ) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
        """A rectangle of a tensor seen as a matrix: in one part, if the tensor has to be put together."""
        if name not in self._parts:
            yield from super().rectangles(name, start, size, scratch)
        elif 0 not in size:
            whole = self.tensor(name)
            whole = whole.reshape(matrix_shape(tuple(whole.shape)))
            yield (0, 0), whole[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]

    def forget(self, name: str) -> None:
        """Drops a tensor from memory and from the system's file cache, when it will not be read again."""
        if name not in self._parts:
            super().forget(name)
        elif self._assembled is not None and self._assembled[0] == name:
            self._assembled = None

    def _assemble(self, name: str) -> bytearray:
        spec = self.tensors[name].spec
        target = bytearray(spec.nbytes)
        view, filled = memoryview(target), 0
        try:
            for part in self._parts[name]:
                for chunk in _decoded(self.bytes, part):
                    view[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {name} is damaged ({error}). Copy the file again.") from error
        if filled != spec.nbytes:
            raise CheckpointError(
                f"{self.path}: {name} has {filled} bytes, its shape {list(spec.shape)} needs {spec.nbytes}. Copy the "
                "file again."
            )
        return target


def _decoded(file: ByteSource, part: Literal) -> Iterator[bytes | bytearray]:
    """The bytes a literal stands for, chunk by chunk."""
    if part.form == "quoted":
        yield unquote(bytes(file.read_bytes(part.offset, part.length)))
        return
    decoder = codecs.getincrementaldecoder(part.form)() if part.is_latin1 else None
    end = part.offset + part.length
    for start in range(part.offset, end, CHUNK_BYTES):
        chunk = file.read_bytes(start, min(CHUNK_BYTES, end - start))
        yield decoder.decode(chunk, start + len(chunk) == end).encode("latin1") if decoder else chunk


def open_pdparams(path: Path) -> PaddlePickle:
    """Opens a file that `paddle.save` wrote, of any pickle protocol. Nothing in it is executed.

    Raises:
        CheckpointError: missing, empty, cut short, another kind of file, a pickle of anything but {name: array}, a
            name that stands twice, an array that no weights file holds (big-endian, objects, ...).
    """
    with _open_pickle(path) as (source, value):
        contents = _Contents(path, value)
    check_names(contents.tensors, path)
    return PaddlePickle(source, contents)


def read_structured_names(path: Path) -> dict[str, str]:
    """Static name -> structured name, from the `.pdiparams.info` that `paddle.jit.save` puts beside a program.

    Raises:
        CheckpointError: as `open_pdparams`.
    """
    with _open_pickle(path) as (_, value):
        return {
            static_name: text(entries["structured_name"])
            for static_name, entries in value.items()
            if "structured_name" in entries
        }


@contextlib.contextmanager
def _open_pickle(path: Path) -> Iterator[tuple[SourceFile, Any]]:
    """A file as it was before it was read, and what the pickle in it describes.

    What goes wrong then or while its symbols are worked on becomes a `CheckpointError`.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Copy the complete checkpoint.")
    other = foreign_kind(path)
    if other is not None:
        raise CheckpointError(f"{path}: {other}")
    source = SourceFile.of(path)
    with path.open("rb") as file:
        try:
            yield source, describe(file, source.size, PADDLE)
        except CheckpointError:
            raise
        except PickleRefusal as refusal:
            raise CheckpointError(
                f"{path}: the pickle {refusal}. Nothing in it was executed. Take the file again from where it was "
                "published; if you trust this one, load it with Paddle where you trust it, and save the state dict "
                "alone with paddle.save."
            ) from refusal
        except DAMAGE as error:
            raise CheckpointError(
                f"{path}: cut short, damaged, or not written by paddle.save ({error or type(error).__name__}; "
                f"{path.stat().st_size:,} bytes). Nothing in it was executed. Copy the file again."
            ) from error


class _Contents:
    """What the dictionary of a `.pdparams` holds; `parts` are the literals of tensors that have to be put together."""

    def __init__(self, path: Path, value: Any):
        self.tensors: dict[str, StoredTensor] = {}
        self.parts: dict[str, tuple[Literal, ...]] = {}
        self.static_names: dict[str, str] = {}
        self.extras: dict[str, Any] = {}
        self._path = path
        self._data: dict[str, Literal] = {}
        if not isinstance(value, Entries):
            raise CheckpointError(
                f"{path}: holds {_kind(value)}, not a dictionary of tensors. Save the whole state dict: "
                "paddle.save(model.state_dict(), path)."
            )
        table = value.pop(NAME_TABLE, {})
        slices = value.pop(SLICE_TABLE, {})
        for name, entry in value.items():
            self._enter(name, entry)
        for name, description in slices.items():
            self._join(name, description)
        self.static_names |= {name: text(static) for name, static in table.items() if name in self.tensors}
        if not self.tensors:
            raise CheckpointError(f"{path}: {_where_the_tensors_are(value)}")

    def _enter(self, name: Any, entry: Any) -> None:
        static_name = None
        if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], ArraySymbol):
            # Saved beside other things, a tensor is a pair with its name in the static graph.
            static_name, entry = text(entry[0]), entry[1]
        if not isinstance(entry, ArraySymbol):
            self.extras[str(name)] = self._plain(entry)
            return
        if not isinstance(name, str):
            raise PickleRefusal(f"holds a tensor under {name!r}, which is no text")
        if entry.spec is None or entry.data is None:
            raise ValueError(f"{name} has no contents")
        self.tensors[name] = StoredTensor(entry.spec, entry.stride, entry.data.offset)
        self._data[name] = entry.data
        if not entry.data.is_plain:
            self.parts[name] = (entry.data,)
        if static_name is not None:
            self.static_names[name] = static_name

    def _plain(self, entry: Any) -> Any:
        if entry is None or isinstance(entry, bool | int | float):
            return entry
        short = isinstance(entry, Literal) and entry.form != "bytes" and entry.length <= MAX_TEXT_BYTES
        return text(entry) if short else _kind(entry)

    def _join(self, name: str, description: Mapping[str, Any]) -> None:
        """Makes one tensor of the slices that a large one was cut into."""
        shape = tuple(description["OriginShape"])
        names = [text(slice_name) for slice_name in description["slices"]]
        missing = [slice_name for slice_name in names if slice_name not in self.tensors]
        if missing or not names:
            raise CheckpointError(
                f"{self._path}: {name} is stored in {len(names)} slices, of which {', '.join(missing) or 'all'} are "
                "missing. Copy the file again."
            )
        if name in self.tensors:
            raise PickleRefusal(f"holds the name {name!r} twice, whole and in slices")
        specs = [self.tensors.pop(slice_name).spec for slice_name in names]
        spec = checked_spec(shape, specs[0].dtype)
        if {(slice_.dtype, len(slice_.shape)) for slice_ in specs} != {(spec.dtype, 1)}:
            raise ValueError(f"the slices of {name} do not belong together")
        if sum(slice_.shape[0] for slice_ in specs) != math.prod(shape):
            raise ValueError(f"the slices of {name} do not make up its shape {list(shape)}")
        self.parts[name] = tuple(self._data[slice_name] for slice_name in names)
        self.tensors[name] = StoredTensor(spec, row_major(shape), min(part.offset for part in self.parts[name]))
        for slice_name in names:
            self.parts.pop(slice_name, None)


def _kind(value: Any) -> str:
    """What something in a pickle is, in words."""
    if isinstance(value, ArraySymbol) or (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], ArraySymbol)
    ):
        return "a single tensor"
    if isinstance(value, Literal):
        return f"{'bytes' if value.form == 'bytes' else 'a text'} of length {value.length}"
    if isinstance(value, NameSymbol):
        return value.name
    if isinstance(value, Entries):
        return f"a dict of {len(value)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _where_the_tensors_are(value: Mapping[Any, Any]) -> str:
    """The rest of an error message about a dictionary without tensors."""
    inner = [
        str(key)
        for key, entry in value.items()
        if isinstance(entry, dict) and any(_kind(item) == "a single tensor" for item in entry.values())
    ]
    if inner:
        return (
            f"holds its tensors in dictionaries inside the dictionary, under {', '.join(inner)}. Save the one of the "
            f"model alone: paddle.save(paddle.load(path)[{inner[0]!r}], new_path)."
        )
    keys = ", ".join(str(key) for key in list(value)[:8])
    return (
        f"a dictionary of {len(value)} entries ({keys}), none of them a tensor. Pass the model's .pdparams, not its "
        ".pdopt."
    )


SAFETENSORS_CONTENT = "a safetensors file by its contents"


def foreign_kind(path: Path) -> str | None:
    """The rest of an error message about a file that is plainly no pickle and no static Paddle file, or None."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(max(0, size - 1))
        last = file.read(1)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not size:
        return "empty, 0 bytes. Copy the file again."
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the weights themselves. Run `git lfs pull`, or download the file itself."
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights; the download brought an error page. Download the file itself."
    if text.startswith(b"{"):
        return "a JSON file, not weights. Pass the folder or the weights file."
    if head.startswith(b"PK\x03\x04"):
        return (
            "a zip archive: either a torch checkpoint, which is not a Paddle one, or a packed folder. Unpack it, or "
            "pass the file that Paddle wrote."
        )
    if head.startswith(TORCH_LEGACY):
        return "a torch checkpoint in the format before torch 1.6, not a Paddle one. Pass the file that Paddle wrote."
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return "a packed folder. Unpack it with `tar xf` and pass the folder."
    if head.startswith(b"\x93NUMPY"):
        return "a single numpy array, not a checkpoint. Pass the file that Paddle wrote."
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return f"{SAFETENSORS_CONTENT}. Rename it to end in .safetensors."
    if _is_prose(head, last):
        beginning = head[:60].decode("utf-8", "ignore")
        return (
            f"a text file, not weights; it begins with {beginning!r}. Pass the weights, or move this file elsewhere."
        )
    return None


def _is_prose(head: bytes, last: bytes) -> bool:
    """Whether a file is text, but not the text that a pickle of protocol 0 is."""
    if head[:1] in (pickle.MARK, pickle.EMPTY_DICT, pickle.EMPTY_LIST) or last == pickle.STOP:
        return False
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)


class PaddleArchive(OutputFile):
    """A `.pdparams` file as PaddleNLP writes it, to be filled at fixed offsets.

    The pickle is of protocol 4 and names numpy's functions as numpy 1 does, which numpy 2 understands too: Paddle 2.6
    cannot read it otherwise.

    Args:
        name: Path relative to the output folder.
        tensors: What it holds, in this order.
        static_names: Name -> name of the same tensor in a static graph; Paddle gives that name to the tensor it loads.
            The tensor's own name where there is none.

    Raises:
        WriteError: a dtype that Paddle's files cannot have.
    """

    def __init__(self, name: str, tensors: Sequence[PlannedTensor], static_names: Mapping[str, str] | None = None):
        self.name = name
        self.tensors = tuple(tensors)
        self._starts: dict[str, int] = {}
        self._between: list[tuple[int, bytes]] = []  # (offset, what is written there)
        position, pending = 0, pickle.PROTO + b"\x04" + pickle.EMPTY_DICT + pickle.MARK
        for tensor in self.tensors:
            if tensor.spec.dtype not in NUMPY_CODES:
                allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in NUMPY_CODES)
                raise WriteError(f"{tensor.name} is {tensor.spec.dtype}; a .pdparams holds one of {allowed}")
            pending += _text(tensor.name) + _array_until_its_data(tensor.spec)
            self._between.append((position, pending))
            self._starts[tensor.name] = position + len(pending)
            position += len(pending) + tensor.spec.nbytes
            pending = pickle.TUPLE + pickle.BUILD
        table = {tensor.name: (static_names or {}).get(tensor.name, tensor.name) for tensor in self.tensors}
        pending += _text(NAME_TABLE) + pickle.EMPTY_DICT + pickle.MARK
        pending += b"".join(_text(name) + _text(static_name) for name, static_name in table.items())
        pending += pickle.SETITEMS + pickle.SETITEMS + pickle.STOP
        self._between.append((position, pending))
        self.size = position + len(pending)

    def skeleton(self) -> Iterable[tuple[int, bytes]]:
        """The pickle around the data."""
        return self._between

    def offsets(self, path: Path) -> dict[str, int]:
        """Known from the plan."""
        return self._starts


def _array_until_its_data(spec: TensorSpec) -> bytes:
    """The opcodes of a numpy array up to the first byte of its data; TUPLE and BUILD follow behind the last."""
    code = NUMPY_CODES[spec.dtype]
    order = "|" if spec.dtype.itemsize == 1 else "<"
    array = _name("numpy.core.multiarray", "_reconstruct") + _name("numpy", "ndarray")
    array += _integer(0) + pickle.TUPLE1 + pickle.SHORT_BINBYTES + b"\x01b" + pickle.TUPLE3 + pickle.REDUCE
    dtype = _name("numpy", "dtype") + _text(code) + pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE3 + pickle.REDUCE
    dtype += pickle.MARK + _integer(3) + _text(order) + 3 * pickle.NONE + _integer(-1) + _integer(-1) + _integer(0)
    dtype += pickle.TUPLE + pickle.BUILD
    shape = pickle.MARK + b"".join(_integer(n) for n in spec.shape) + pickle.TUPLE
    # BINBYTES ends at 4 GiB
    data = pickle.BINBYTES + struct.pack("<I", spec.nbytes) if spec.nbytes < 2**32 else b""
    data = data or pickle.BINBYTES8 + struct.pack("<Q", spec.nbytes)
    return array + pickle.MARK + _integer(1) + shape + dtype + pickle.NEWFALSE + data


def _name(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + pickle.STACK_GLOBAL


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(number: int) -> bytes:
    if -(2**31) <= number < 2**31:
        return pickle.BININT + struct.pack("<i", number)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", number)


__all__ = [
    "PaddleArchive",
    "PaddlePickle",
    "foreign_kind",
    "open_pdparams",
    "read_structured_names",
]
