"""What a pickle describes, worked out without running it: a machine that knows only what weights need.

A pickle is a program: pickle's own machine looks up the functions it names and calls them. This one walks the same
opcodes over symbols. A function named in the file is never looked up; the few that numpy arrays need (`_reconstruct`,
`dtype`, ...) are worked out on paper here, and any other name or opcode stops the reading. String and byte literals
are stepped over, not read, so an array becomes a place in the file and opening a file of any size takes little memory.

Sources: the opcode list in the standard library's `pickletools`, numpy's `__reduce__` and `__reduce_ex__`, and what
Paddle 2.6 adds in `framework/io.py` (`_pickle_save`).
"""

import codecs
import math
import os
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import torch

from .operations import Shape, TensorSpec

NUMPY_DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "u2": torch.bfloat16,  # numpy has no bfloat16 and Paddle has no uint16
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}

MAX_TEXT_BYTES = 512  # of a name; whatever is longer is data
MAX_STEPS = 400_000  # opcodes; a checkpoint has some thirty for each tensor
MAX_DIMENSIONS = 64  # numpy's own limit
CHUNK_BYTES = 2**20


class PickleRefusal(Exception):
    """The pickle asks for something that weights do not need."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A string or bytes literal: where it lies in the file and how it is written there.

    `form` is "bytes", "str8" (a Python 2 string: text and bytes at once) or "quoted" (the same as Python source
    text), "utf-8" or "raw-unicode-escape" (text).
    """

    offset: int
    length: int
    form: str


@dataclass(frozen=True, slots=True)
class Latin1Text:
    """Bytes written as the text whose characters are those bytes."""

    text: Literal


@dataclass(slots=True)
class DtypeSymbol:
    """A numpy dtype; its byte order arrives after it was made."""

    code: str
    order: str = "="


@dataclass(slots=True)
class ArraySymbol:
    """A numpy array; everything about it arrives after it was made."""

    spec: TensorSpec | None = None
    stride: tuple[int, ...] = ()
    data: Literal | Latin1Text | None = None


@dataclass(frozen=True, slots=True)
class NameSymbol:
    """A class or function named in the pickle, with what calling it means here; or something else of no interest."""

    name: str
    call: Callable[["Machine", tuple[Any, ...]], Any] | None


def _reconstruct(machine: "Machine", args: tuple[Any, ...]) -> ArraySymbol:
    if len(args) != 3 or not isinstance(args[0], NameSymbol) or args[0].name != "numpy.ndarray":
        raise PickleRefusal("makes an array that is not a plain numpy array")
    return ArraySymbol()


def _frombuffer(machine: "Machine", args: tuple[Any, ...]) -> ArraySymbol:
    data, dtype, shape, order = args
    array = ArraySymbol()
    _fill(array, shape, dtype, machine.text(order) == "F", data)
    return array


def _dtype(machine: "Machine", args: tuple[Any, ...]) -> DtypeSymbol:
    return DtypeSymbol(machine.text(args[0]))


def _scalar(machine: "Machine", args: tuple[Any, ...]) -> NameSymbol:
    return NameSymbol("a numpy number", None)


def _encode(machine: "Machine", args: tuple[Any, ...]) -> Latin1Text:
    text, codec = args
    if machine.text(codec) != "latin1" or text.form not in ("utf-8", "raw-unicode-escape"):
        raise PickleRefusal("calls _codecs.encode for something else than the bytes of an array")
    return Latin1Text(text)


def _ordered_dict(machine: "Machine", args: tuple[Any, ...]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for pair in args[0] if args else ():
        machine.spend()
        key, value = pair
        machine.enter(made, key, value)
    return made


def _tuple(machine: "Machine", args: tuple[Any, ...]) -> tuple[Any, ...]:
    (items,) = args
    if not isinstance(items, tuple):
        raise PickleRefusal("makes a tuple of something else than a tuple")
    return items


def _bytes(machine: "Machine", args: tuple[Any, ...]) -> Literal:
    if args:
        raise PickleRefusal("calls bytes() with arguments, where Paddle's files call it for an empty array only")
    return Literal(0, 0, "bytes")


def _eval(machine: "Machine", args: tuple[Any, ...]) -> ArraySymbol:
    """`paddle.save` writes a static graph's tensor as eval('data', {'data': array}): that array, and nothing else."""
    try:
        source, names = args
        array = names["data"]
        if machine.text(source) == "data" and len(names) == 1 and isinstance(array, ArraySymbol):
            return array
    except (ValueError, TypeError, KeyError):
        pass
    raise PickleRefusal("calls builtins.eval, which runs whatever the file says")


def _known_names() -> Iterator[tuple[str, Callable[["Machine", tuple[Any, ...]], Any] | None]]:
    yield from (("numpy.ndarray", None), ("numpy.dtype", _dtype))
    for package in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
        yield f"{package}.multiarray._reconstruct", _reconstruct
        yield f"{package}.multiarray.scalar", _scalar
        yield f"{package}.numeric._frombuffer", _frombuffer
    yield from (("_codecs.encode", _encode), ("collections.OrderedDict", _ordered_dict))
    for module in ("builtins", "__builtin__"):  # Python 3 and what protocols 0 to 2 write for it
        yield from ((f"{module}.tuple", _tuple), (f"{module}.bytes", _bytes), (f"{module}.eval", _eval))


KNOWN_NAMES = {name: NameSymbol(name, call) for name, call in _known_names()}


def _fill(array: ArraySymbol, shape: Any, dtype: Any, fortran: bool, data: Any) -> None:
    """Gives an array its contents after checking that they belong together."""
    if not isinstance(dtype, DtypeSymbol) or not isinstance(shape, tuple):
        raise ValueError("an array without shape or dtype")
    if dtype.code not in NUMPY_DTYPES:
        raise PickleRefusal(
            f"holds an array of numpy dtype {dtype.code!r}; weights are one of {', '.join(NUMPY_DTYPES)}"
        )
    if dtype.order == ">":
        raise PickleRefusal("holds an array in big-endian byte order. Save it again on a little-endian machine")
    spec = checked_spec(shape, NUMPY_DTYPES[dtype.code])
    needed = spec.nbytes
    literal = data.text if isinstance(data, Latin1Text) else data
    as_text = isinstance(data, Latin1Text) or (isinstance(data, Literal) and data.form == "quoted")
    if not isinstance(literal, Literal) or (not as_text and literal.form not in ("bytes", "str8")):
        raise PickleRefusal("holds an array whose contents are no bytes")
    if literal.length < needed or (not as_text and literal.length != needed):
        raise ValueError(f"{literal.length} bytes for an array of shape {list(shape)} that needs {needed}")
    array.spec, array.stride, array.data = spec, _strides(shape, fortran), data


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


def _strides(shape: Shape, fortran: bool) -> tuple[int, ...]:
    strides, step = [], 1
    for n in shape if fortran else reversed(shape):
        strides.append(step)
        step *= n
    return tuple(strides if fortran else reversed(strides))


class Machine:
    """Walks a pickle's opcodes with a stack and a memo as pickle's own machine does, over symbols instead of objects.

    Args:
        file: The open file.
        size: Its length in bytes.
    """

    def __init__(self, file: BinaryIO, size: int):
        self.file = file
        self.size = size
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def run(self) -> Any:
        """The symbol of the object that the pickle describes.

        Raises:
            PickleRefusal: something that weights do not need.
            Exception: the pickle is damaged: IndexError, KeyError, ValueError, TypeError and the like.
        """
        while True:
            self.spend()
            code = self.file.read(1)
            if code == pickle.STOP:
                (value,) = self.stack
                if self.file.tell() != self.size:
                    raise ValueError(f"{self.size - self.file.tell()} bytes behind the end of the pickle")
                return value
            operation = OPERATIONS.get(code)
            if operation is None:
                self._refuse(code)
            act, *parameters = operation
            act(self, *parameters)

    def spend(self) -> None:
        """Counts a step, so that a small file cannot ask for endless work or memory."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise PickleRefusal(f"takes more than {MAX_STEPS:,} steps")

    def _refuse(self, code: bytes) -> NoReturn:
        if not code:
            raise ValueError("the pickle has no end")
        name = next((known.name for known in pickletools.opcodes if known.code == code.decode("latin1")), None)
        if name is None:
            raise ValueError(f"byte {code!r} at {self.file.tell() - 1} is no opcode")
        raise PickleRefusal(f"uses the opcode {name} at byte {self.file.tell() - 1}, which no weights need")

    def text(self, literal: Any) -> str:
        """The text of a short literal."""
        if not isinstance(literal, Literal) or literal.form == "bytes":
            raise TypeError("no text where a text belongs")
        if literal.length > MAX_TEXT_BYTES:
            raise PickleRefusal(f"has a name of {literal.length:,} bytes")
        position = self.file.tell()
        self.file.seek(literal.offset)
        raw = self.file.read(literal.length)
        self.file.seek(position)
        if literal.form == "quoted":
            return unquote(raw).decode("latin1")
        return raw.decode("latin1" if literal.form == "str8" else literal.form)

    def enter(self, target: dict[Any, Any], key: Any, value: Any) -> None:
        """Sets an entry of a dictionary."""
        if isinstance(key, Literal):
            key = self.text(key)
        elif not isinstance(key, int):
            raise PickleRefusal(f"has a dictionary key that is a {type(key).__name__.strip('_')}, not a name")
        if key in target:
            raise PickleRefusal(f"holds the name {key!r} twice")
        target[key] = value

    def number(self, layout: str) -> Any:
        """The next number of a fixed width."""
        return struct.unpack(layout, self.file.read(struct.calcsize(layout)))[0]

    def index(self, layout: str) -> int:
        """The next index into the memo; layout "line" for one written as text."""
        return int(self.line()) if layout == "line" else int(self.number(layout))

    def step_over(self, length: int, form: str) -> None:
        """Pushes the literal that starts here and goes behind it."""
        offset = self.file.tell()
        if not 0 <= length <= self.size - offset:
            raise ValueError(f"{length:,} bytes declared at byte {offset}, {self.size - offset:,} are left")
        self.stack.append(Literal(offset, length, form))
        self.file.seek(offset + length)

    def line(self) -> str:
        """The rest of a line, for the opcodes whose argument is one."""
        raw = self.file.readline(MAX_TEXT_BYTES)
        if not raw.endswith(b"\n"):
            raise ValueError(f"a line without end before byte {self.file.tell()}")
        return raw[:-1].decode("ascii")

    def step_over_line(self, form: str) -> None:
        """Pushes a literal that ends at the end of the line."""
        start = self.file.tell()
        end, step = start, MAX_TEXT_BYTES  # names are short, data is long
        while chunk := self.file.read(step):
            found = chunk.find(b"\n")
            if found >= 0:
                self.file.seek(start)
                self.step_over(end + found - start, form)
                self.file.seek(1, os.SEEK_CUR)
                return
            end += len(chunk)
            step = min(2 * step, CHUNK_BYTES)
        raise ValueError(f"a line without end at byte {start}")

    def since_mark(self) -> list[Any]:
        """Takes what was pushed since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def take(self, count: int) -> tuple[Any, ...]:
        """Takes the topmost `count` things, the last one pushed last."""
        if count > len(self.stack):
            raise IndexError("the stack is empty")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items


def unquote(raw: bytes) -> bytes:
    """The bytes of a Python 2 string literal."""
    if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
        raise ValueError("a text without quotes")
    return codecs.escape_decode(raw[1:-1])[0]  # type: ignore[attr-defined]  # what pickle itself calls; not in the stubs


def _ignore_protocol(machine: Machine) -> None:
    version = machine.number("<B")
    if version > pickle.HIGHEST_PROTOCOL:
        raise ValueError(f"pickle protocol {version}")


def _ignore_frame(machine: Machine) -> None:
    length, left = machine.number("<Q"), machine.size - machine.file.tell()
    if length > left:
        raise ValueError(f"a frame of {length:,} bytes where {left:,} are left")


def _mark(machine: Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _constant(machine: Machine, value: bool | None) -> None:
    machine.stack.append(value)


def _number(machine: Machine, layout: str) -> None:
    machine.stack.append(machine.number(layout))


def _integer_line(machine: Machine) -> None:
    line = machine.line()
    machine.stack.append({"00": False, "01": True}[line] if line in ("00", "01") else int(line.removesuffix("L")))


def _float_line(machine: Machine) -> None:
    machine.stack.append(float(machine.line()))


def _long(machine: Machine) -> None:
    machine.stack.append(int.from_bytes(machine.file.read(machine.number("<B")), "little", signed=True))


def _literal(machine: Machine, layout: str, form: str) -> None:
    machine.step_over(machine.number(layout), form)


def _literal_line(machine: Machine, form: str) -> None:
    machine.step_over_line(form)


def _empty(machine: Machine, kind: type) -> None:
    machine.stack.append(kind())


def _tuple_of(machine: Machine, count: int) -> None:
    machine.stack.append(machine.take(count))


def _collect(machine: Machine, kind: type) -> None:
    items = machine.since_mark()  # takes the stack away, so not inside the next line
    machine.stack.append(kind(items))


def _dict(machine: Machine) -> None:
    items = machine.since_mark()
    machine.stack.append({})
    _set_entries(machine, items)


def _append(machine: Machine, one: bool) -> None:
    items = machine.take(1) if one else machine.since_mark()
    target = machine.stack[-1]
    if not isinstance(target, list):
        raise PickleRefusal("appends to something that is no list")
    target.extend(items)


def _set_item(machine: Machine, one: bool) -> None:
    _set_entries(machine, machine.take(2) if one else machine.since_mark())


def _set_entries(machine: Machine, items: Sequence[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict):
        raise PickleRefusal("sets an entry of something that is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        machine.enter(target, key, value)


def _global(machine: Machine, on_stack: bool) -> None:
    if on_stack:
        module, name = (machine.text(part) for part in machine.take(2))
    else:
        module, name = machine.line(), machine.line()
    known = KNOWN_NAMES.get(f"{module}.{name}")
    if known is None:
        raise PickleRefusal(f"names {module}.{name}, which no weights need")
    machine.stack.append(known)


def _reduce(machine: Machine) -> None:
    callee, args = machine.take(2)
    if not isinstance(callee, NameSymbol) or callee.call is None or not isinstance(args, tuple):
        raise PickleRefusal("calls something that is no function")
    machine.stack.append(callee.call(machine, args))


def _build(machine: Machine) -> None:
    (state,) = machine.take(1)
    target = machine.stack[-1]
    if isinstance(target, DtypeSymbol) and isinstance(state, tuple) and len(state) > 1:
        target.order = machine.text(state[1])
    elif isinstance(target, ArraySymbol) and target.spec is None and isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, fortran, data = state
        _fill(target, shape, dtype, bool(fortran), data)
    else:
        raise PickleRefusal("sets the state of something that is no array")


def _put(machine: Machine, layout: str) -> None:
    machine.memo[machine.index(layout)] = machine.stack[-1]


def _memoize(machine: Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: Machine, layout: str) -> None:
    machine.stack.append(machine.memo[machine.index(layout)])


OPERATIONS: dict[bytes, tuple[Any, ...]] = {
    pickle.PROTO: (_ignore_protocol,),
    pickle.FRAME: (_ignore_frame,),
    pickle.MARK: (_mark,),
    pickle.NONE: (_constant, None),
    pickle.NEWTRUE: (_constant, True),
    pickle.NEWFALSE: (_constant, False),
    pickle.BININT: (_number, "<i"),
    pickle.BININT1: (_number, "<B"),
    pickle.BININT2: (_number, "<H"),
    pickle.BINFLOAT: (_number, ">d"),
    pickle.INT: (_integer_line,),
    pickle.LONG: (_integer_line,),
    pickle.LONG1: (_long,),
    pickle.FLOAT: (_float_line,),
    pickle.SHORT_BINBYTES: (_literal, "<B", "bytes"),
    pickle.BINBYTES: (_literal, "<I", "bytes"),
    pickle.BINBYTES8: (_literal, "<Q", "bytes"),
    pickle.BYTEARRAY8: (_literal, "<Q", "bytes"),
    pickle.SHORT_BINSTRING: (_literal, "<B", "str8"),
    pickle.BINSTRING: (_literal, "<i", "str8"),
    pickle.SHORT_BINUNICODE: (_literal, "<B", "utf-8"),
    pickle.BINUNICODE: (_literal, "<I", "utf-8"),
    pickle.BINUNICODE8: (_literal, "<Q", "utf-8"),
    pickle.UNICODE: (_literal_line, "raw-unicode-escape"),
    pickle.STRING: (_literal_line, "quoted"),
    pickle.EMPTY_TUPLE: (_empty, tuple),
    pickle.EMPTY_LIST: (_empty, list),
    pickle.EMPTY_DICT: (_empty, dict),
    pickle.TUPLE1: (_tuple_of, 1),
    pickle.TUPLE2: (_tuple_of, 2),
    pickle.TUPLE3: (_tuple_of, 3),
    pickle.TUPLE: (_collect, tuple),
    pickle.LIST: (_collect, list),
    pickle.DICT: (_dict,),
    pickle.APPEND: (_append, True),
    pickle.APPENDS: (_append, False),
    pickle.SETITEM: (_set_item, True),
    pickle.SETITEMS: (_set_item, False),
    pickle.GLOBAL: (_global, False),
    pickle.STACK_GLOBAL: (_global, True),
    pickle.REDUCE: (_reduce,),
    pickle.BUILD: (_build,),
    pickle.MEMOIZE: (_memoize,),
    pickle.PUT: (_put, "line"),
    pickle.BINPUT: (_put, "<B"),
    pickle.LONG_BINPUT: (_put, "<I"),
    pickle.GET: (_get, "line"),
    pickle.BINGET: (_get, "<B"),
    pickle.LONG_BINGET: (_get, "<I"),
}
"""Opcode -> what it does and with which parameters. Opcodes that weights do not need are left out."""


__all__ = [
    "CHUNK_BYTES",
    "MAX_TEXT_BYTES",
    "NUMPY_DTYPES",
    "ArraySymbol",
    "Latin1Text",
    "Literal",
    "Machine",
    "NameSymbol",
    "PickleRefusal",
    "checked_spec",
    "unquote",
]
