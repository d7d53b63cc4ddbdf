"""Paddle's pickles: what stands in for the few names of numpy's that arrays need (`_reconstruct`, `dtype`, ...).

How a pickle is read without being executed: `pickle_symbols.py`. Any other name is refused.

Sources: numpy's `__reduce__` and `__reduce_ex__`, and what Paddle 2.6 adds in `framework/io.py` (`_pickle_save`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from .lazy_files import checked_spec, row_major
from .operations import TensorSpec
from .pickle_symbols import Dialect, Entries, Literal, NameSymbol, PickleRefusal, Symbol, text

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


@dataclass(slots=True)
class DtypeSymbol(Symbol):
    """A numpy dtype; its byte order arrives after it was made."""

    code: str
    order: str = "="

    def __setstate__(self, state: Any) -> None:
        self.order = text(state[1])


@dataclass(slots=True)
class ArraySymbol(Symbol):
    """A numpy array; everything about it arrives after it was made."""

    spec: TensorSpec | None = None
    stride: tuple[int, ...] = ()
    data: Literal | None = None

    def __setstate__(self, state: Any) -> None:
        if self.spec is not None or not isinstance(state, tuple) or len(state) != 5:
            raise PickleRefusal("sets the state of something that is no array")
        _, shape, dtype, fortran, data = state
        self.fill(shape, dtype, bool(fortran), data)

    def fill(self, shape: Any, dtype: Any, fortran: bool, data: Any) -> None:
        """Gives the array its contents after checking that they belong together."""
        if not isinstance(dtype, DtypeSymbol) or not isinstance(shape, tuple):
            raise ValueError("an array without shape or dtype")
        if dtype.code not in NUMPY_DTYPES:
            raise PickleRefusal(
                f"holds an array of numpy dtype {dtype.code!r}; weights are one of {', '.join(NUMPY_DTYPES)}"
            )
        if dtype.order == ">":
            raise PickleRefusal("holds an array in big-endian byte order. Save it again on a little-endian machine")
        self.spec = checked_spec(shape, NUMPY_DTYPES[dtype.code])
        if not isinstance(data, Literal) or not data.holds_bytes:
            raise PickleRefusal("holds an array whose contents are no bytes")
        needed = self.spec.nbytes
        if data.length < needed or (data.is_plain and data.length != needed):  # else some take several in the file
            raise ValueError(f"{data.length} bytes for an array of shape {list(shape)} that needs {needed}")
        self.stride = row_major(shape[::-1])[::-1] if fortran else row_major(shape)
        self.data = data


def _reconstruct(array_class: Any, shape: Any, code: Any) -> ArraySymbol:
    if not isinstance(array_class, NameSymbol) or array_class.name != "numpy.ndarray":
        raise PickleRefusal("makes an array that is not a plain numpy array")
    return ArraySymbol()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> ArraySymbol:
    array = ArraySymbol()
    array.fill(shape, dtype, text(order) == "F", data)
    return array


def _dtype(code: Any, *flags: Any) -> DtypeSymbol:
    return DtypeSymbol(text(code))


def _scalar(*args: Any) -> NameSymbol:
    return NameSymbol("a numpy number")


def _encode(characters: Any, codec: Any) -> Literal:
    """Bytes written as the text whose characters they are."""
    if text(codec) != "latin1" or not isinstance(characters, Literal) or characters.holds_bytes:
        raise PickleRefusal("calls _codecs.encode for something else than the bytes of an array")
    return replace(characters, is_latin1=True)


def _tuple(items: Any) -> tuple[Any, ...]:
    if not isinstance(items, tuple):
        raise PickleRefusal("makes a tuple of something else than a tuple")
    return items


def _bytes(*args: Any) -> Literal:
    if args:
        raise PickleRefusal("calls bytes() with arguments, where Paddle's files call it for an empty array only")
    return Literal(0, 0, "bytes")


def _eval(source: Any, names: Any) -> ArraySymbol:
    """`paddle.save` writes a static graph's tensor as eval('data', {'data': array}): that array, and nothing else."""
    array = names.get("data") if isinstance(names, Entries) and len(names) == 1 else None
    if not isinstance(array, ArraySymbol) or text(source) != "data":
        raise PickleRefusal("calls builtins.eval, which runs whatever the file says")
    return array


def _stand_ins() -> Iterator[tuple[str, Callable[..., Any] | None]]:
    yield from (("numpy.ndarray", None), ("numpy.dtype", _dtype), ("_codecs.encode", _encode))
    for package in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
        yield f"{package}.multiarray._reconstruct", _reconstruct
        yield f"{package}.multiarray.scalar", _scalar
        yield f"{package}.numeric._frombuffer", _frombuffer
    for module in ("builtins", "__builtin__"):  # Python 3 and what protocols 0 to 2 write for it
        yield from ((f"{module}.tuple", _tuple), (f"{module}.bytes", _bytes), (f"{module}.eval", _eval))


STAND_INS = {name: NameSymbol(name, stand_in) for name, stand_in in _stand_ins()}


def _find(name: str) -> NameSymbol:
    stand_in = STAND_INS.get(name)
    if stand_in is None:
        raise PickleRefusal(f"names {name}, which no weights need")
    return stand_in


PADDLE = Dialect(_find)
"""Of what `paddle.save` writes."""

__all__ = ["NUMPY_DTYPES", "PADDLE", "ArraySymbol"]
