"""What a pickle describes: pickle's own machine over symbols instead of objects, on a copy without the data.

A pickle is a program that names functions and calls them. Two doors stand before it. First the file is walked opcode
by opcode (`_Condenser`): one that weights do not need ends the reading, texts and bytes are stepped over, and the rest
is copied into a short pickle, in which a number stands for each of them. So an array becomes a place in the file, and
opening a file of any size takes little memory. Then `pickle.Unpickler` loads that copy. A function named in it is
never looked up: what stands in for it says a `Dialect`, of which there is one for Paddle's files
(`paddle_unpickler.py`) and one for torch's (`torch_pickle.py`).

Sources: the opcode list in the standard library's `pickletools` and `pickle`.
"""

import codecs
import io
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_TEXT_BYTES = 512  # of a name; whatever is longer is data
MAX_STEPS = 400_000  # opcodes; a checkpoint has some thirty for each tensor
MAX_CONDENSED_BYTES = 32 * 2**20  # of a pickle without its data
CHUNK_BYTES = 2**20

LITERALS = {
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), "bytes"),
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), "str8"),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), "utf-8"),
    "UNICODE": "raw-unicode-escape",
    "STRING": "quoted",
}
"""Opcode of a text or of bytes -> how they are written."""

COPIED = (
    *("PROTO", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT"),
    *("BINFLOAT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("SETITEM", "SETITEMS", "GLOBAL", "REDUCE", "BUILD"),
)
"""Opcodes that are copied as they are. `_Condenser` rewrites a few others; weights need no more."""

OPCODES = {info.code.encode("latin1"): info for info in pickletools.opcodes}

DAMAGE = (
    *(pickle.UnpicklingError, EOFError, struct.error),
    *(ValueError, TypeError, LookupError, AttributeError, OverflowError),
)
"""What walking a damaged pickle raises."""


class PickleRefusal(Exception):
    """The pickle asks for something that weights do not need."""


class Symbol:
    """Stands for something that pickle would make. It cannot be called or given a state, unless it says otherwise.

    Subclasses are not frozen dataclasses: those of Python have a `__setstate__` of their own, which sets any field.
    """

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        """Refused."""
        raise PickleRefusal("calls something that is no function")

    def __setstate__(self, state: Any) -> None:
        """Refused."""
        raise PickleRefusal("sets the state of something that is no array")


@dataclass(slots=True)
class Literal(Symbol):
    """A text or bytes: where it lies in the file and how it is written there.

    Attributes:
        offset: First byte.
        length: Bytes in the file.
        form: "bytes", "str8" (a Python 2 string: text and bytes at once) or "quoted" (the same as Python source
            text), "utf-8" or "raw-unicode-escape" (text).
        raw: The bytes in the file, if they are few.
        is_latin1: Whether it is a text whose characters are the bytes that are meant.
    """

    offset: int
    length: int
    form: str
    raw: bytes = b""
    is_latin1: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the file holds the bytes as they are."""
        return self.form in ("bytes", "str8")

    @property
    def holds_bytes(self) -> bool:
        """Whether it can be the contents of an array."""
        return self.is_plain or self.is_latin1 or self.form == "quoted"


@dataclass(slots=True)
class NameSymbol(Symbol):
    """A class or function named in the pickle, with what stands in for it; or something else of no interest."""

    name: str
    stand_in: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """Calls the stand-in."""
        return Symbol.__call__(self) if self.stand_in is None else self.stand_in(*args)


class Entries(dict[Any, Any], Symbol):
    """A dictionary whose keys are names or numbers, each of which stands in it once."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, Literal):
            key = text(key)
        elif not isinstance(key, int):
            raise PickleRefusal(f"has a dictionary key that is a {type(key).__name__}, not a name")
        if key in self:
            raise PickleRefusal(f"holds the name {key!r} twice")
        super().__setitem__(key, value)


def text(value: Any) -> str:
    """The text of a short literal."""
    if not isinstance(value, Literal) or value.form == "bytes":
        raise TypeError("no text where a text belongs")
    if value.length > MAX_TEXT_BYTES:
        raise PickleRefusal(f"has a name of {value.length:,} bytes")
    if value.form == "quoted":
        return unquote(value.raw).decode("latin1")
    return value.raw.decode("latin1" if value.form == "str8" else value.form)


def unquote(raw: bytes) -> bytes:
    """The bytes of a Python 2 string literal."""
    if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
        raise ValueError("a text without quotes")
    return codecs.escape_decode(raw[1:-1])[0]  # type: ignore[attr-defined]  # what pickle itself calls; not in the stubs


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the pickles of one program may hold beside texts, numbers and their collections.

    Attributes:
        find: Full name of a class or function -> what stands in for it. Raises `PickleRefusal` for any that weights
            do not need. It is not asked for `collections.OrderedDict`.
        entries: What a dictionary becomes.
        persistent: What stands in for something that lies outside of the pickle, from its identifier; None if there
            is no such thing.
        same_as: Further opcodes -> the one that stands for it in the copy.
    """

    find: Callable[[str], NameSymbol]
    entries: type[Entries] = Entries
    persistent: Callable[[Any], Symbol] | None = None
    same_as: Mapping[str, bytes] = field(default_factory=dict)


def describe(file: BinaryIO, size: int, dialect: Dialect) -> Any:
    """The symbol of the object that a pickle describes.

    Args:
        file: The open file.
        size: Its length in bytes.
        dialect: What it may hold.

    Raises:
        PickleRefusal: something that weights do not need.
        Exception: the pickle is damaged: UnpicklingError, IndexError, KeyError, ValueError, TypeError and the like.
    """
    condensed = _Condenser(file, size, dialect)
    condensed.run()
    (value,) = _Machine(condensed).load()
    return value


class _Condenser:
    """Copies a pickle without its data, after looking at every opcode.

    In the copy `persistent_load` is asked for what differs: a number stands for a literal, None for an empty
    dictionary, a list of keys and values for another one, a pair for a function, a tuple of one identifier for what
    lies outside of the pickle, a text for a refusal. The memo is numbered anew, because pickle allocates as many
    places as the largest number says. The copy's value is a tuple of all that the pickle leaves on its stack.
    """

    def __init__(self, file: BinaryIO, size: int, dialect: Dialect):
        self.dialect = dialect
        self.literals: list[Literal] = []
        self.steps = 0
        self.copy = bytearray(pickle.MARK)
        self._file = file
        self._size = size
        self._memo: dict[int, int] = {}  # index in the file -> index in the copy

    def spend(self) -> None:
        """Counts a step, so that a small file cannot ask for endless work or memory."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise PickleRefusal(f"takes more than {MAX_STEPS:,} steps")

    def run(self) -> None:
        """Makes the copy."""
        while (code := self._file.read(1)) != pickle.STOP:
            self.spend()
            if len(self.copy) > MAX_CONDENSED_BYTES:
                raise PickleRefusal(f"has more than {MAX_CONDENSED_BYTES:,} bytes of numbers")
            if code not in OPCODES:
                what = f"byte {code!r} at {self._file.tell() - 1} is no opcode" if code else "the pickle has no end"
                raise ValueError(what)
            copied = self._copied(code, OPCODES[code])
            if copied is None:  # the copy ends here, so that what comes first in the file is refused first
                what = f"uses the opcode {OPCODES[code].name} at byte {self._file.tell() - 1}, which no weights need"
                self.copy += pickle.BINUNICODE + struct.pack("<I", len(what)) + what.encode() + pickle.BINPERSID
                return
            self.copy += copied
        if self._file.tell() != self._size:
            raise ValueError(f"{self._size - self._file.tell()} bytes behind the end of the pickle")
        self.copy += pickle.TUPLE + pickle.STOP

    def _copied(self, code: bytes, info: pickletools.OpcodeInfo) -> bytes | None:
        """What stands in the copy for the opcode that was just read; None for one that no weights need."""
        match info.name:
            case name if name in LITERALS:
                return self._literal(info, LITERALS[name])
            case name if name in COPIED:
                return code + self._argument(info)
            case "EMPTY_DICT":
                return pickle.NONE + pickle.BINPERSID
            case "DICT":
                return pickle.LIST + pickle.BINPERSID
            case "STACK_GLOBAL":
                return pickle.TUPLE2 + pickle.BINPERSID
            case "BINPERSID" if self.dialect.persistent is not None:
                return pickle.TUPLE1 + pickle.BINPERSID
            case "MEMOIZE":
                return self._put(len(self._memo))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                return self._put(self._number(info))
            case "GET" | "BINGET" | "LONG_BINGET":
                return pickle.LONG_BINGET + struct.pack("<I", self._memo[self._number(info)])
            case "FRAME":
                length, left = self._number(info), self._size - self._file.tell()
                if length > left:
                    raise ValueError(f"a frame of {length:,} bytes where {left:,} are left")
                return b""
        return self.dialect.same_as.get(info.name)

    def _put(self, index: int) -> bytes:
        return pickle.LONG_BINPUT + struct.pack("<I", self._memo.setdefault(index, len(self._memo)))

    def _argument(self, info: pickletools.OpcodeInfo) -> bytes:
        """The argument of an opcode, as it is written."""
        if info.arg is None:
            return b""
        if info.arg.n == pickletools.UP_TO_NEWLINE:
            return self._line() + (self._line() if info.name == "GLOBAL" else b"")
        if info.arg.n >= 0:
            return self._read(info.arg.n)
        length = self._read(1)  # LONG1
        return length + self._read(length[0])

    def _number(self, info: pickletools.OpcodeInfo) -> int:
        """A number that is not negative."""
        written = self._argument(info)
        return int(written) if info.name in ("PUT", "GET") else int.from_bytes(written, "little")

    def _read(self, count: int) -> bytes:
        read = self._file.read(count)
        if len(read) != count:
            raise ValueError(f"{count} bytes declared before the end, {len(read)} are left")
        return read

    def _line(self) -> bytes:
        line = self._file.readline(MAX_TEXT_BYTES)
        if not line.endswith(b"\n"):
            raise ValueError(f"a line without end before byte {self._file.tell()}")
        return line

    def _literal(self, info: pickletools.OpcodeInfo, form: str) -> bytes:
        """Goes behind a literal; a number stands for it."""
        assert info.arg is not None
        behind = info.arg.n == pickletools.UP_TO_NEWLINE
        if behind:
            length = self._length_of_line()
        else:  # in as many bytes as the last letter of the argument's name says
            length = int.from_bytes(self._read(int(info.arg.name[-1])), "little", signed=info.name == "BINSTRING")
        offset = self._file.tell()
        if not 0 <= length <= self._size - offset:
            raise ValueError(f"{length:,} bytes declared at byte {offset}, {self._size - offset:,} are left")
        raw = self._file.read(length) if length <= MAX_TEXT_BYTES else b""
        self._file.seek(offset + length + behind)
        self.literals.append(Literal(offset, length, form, raw))
        return pickle.BININT + struct.pack("<i", len(self.literals) - 1) + pickle.BINPERSID

    def _length_of_line(self) -> int:
        """Bytes up to the end of the line; the position stays."""
        start = end = self._file.tell()
        step = MAX_TEXT_BYTES  # names are short, data is long
        while chunk := self._file.read(step):
            newline = chunk.find(b"\n")
            if newline >= 0:
                self._file.seek(start)
                return end + newline - start
            end += len(chunk)
            step = min(2 * step, CHUNK_BYTES)
        raise ValueError(f"a line without end at byte {start}")


class _Machine(pickle.Unpickler):
    """Loads a condensed pickle."""

    def __init__(self, condensed: _Condenser):
        super().__init__(io.BytesIO(condensed.copy))
        self._condensed = condensed

    def find_class(self, module: str, name: str) -> NameSymbol:
        """The stand-in of a name; nothing is imported."""
        if (module, name) == ("collections", "OrderedDict"):
            return NameSymbol("collections.OrderedDict", self._ordered_dict)
        return self._condensed.dialect.find(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Symbol:
        """What `_Condenser` left out."""
        match pid:
            case int():
                return self._condensed.literals[pid]
            case str():
                raise PickleRefusal(pid)
            case (identifier,) if isinstance(pid, tuple) and self._condensed.dialect.persistent is not None:
                return self._condensed.dialect.persistent(identifier)
            case tuple():
                return self.find_class(*map(text, pid))
        items = pid or []
        return self._ordered_dict(zip(items[::2], items[1::2], strict=True))

    def _ordered_dict(self, pairs: Iterable[Any] = ()) -> Entries:
        made = self._condensed.dialect.entries()
        for key, value in pairs:
            self._condensed.spend()
            made[key] = value
        return made


__all__ = [
    "CHUNK_BYTES",
    "DAMAGE",
    "MAX_TEXT_BYTES",
    "Dialect",
    "Entries",
    "Literal",
    "NameSymbol",
    "PickleRefusal",
    "Symbol",
    "describe",
    "text",
    "unquote",
]
