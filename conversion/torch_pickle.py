"""Torch's pickles of state dicts: what stands in for storages, for the functions that make tensors of them, the rest.

How a pickle is read without being executed: `pickle_symbols.py`. Whatever `torch.load(weights_only=True)` would make
beside dense tensors (sizes, devices, sets, sparse tensors, ...) becomes a symbol without content, so that it may stand
beside the weights, and nothing is allocated for it. Any other name is refused.

Sources: torch 2.13 `_weights_only_unpickler.py` (names that are allowed), `_utils.py` (`_rebuild_*`), `_tensor.py`
(`_reduce_ex_internal`), `serialization.py` (`persistent_id`).
"""

import math
import pickle
from dataclasses import dataclass
from typing import Any

import torch

from .lazy_files import checked_spec
from .operations import TensorSpec
from .pickle_symbols import Dialect, Entries, NameSymbol, PickleRefusal, Symbol, text

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Storages of tensors that are read; what lies in another one is no weight."""

OTHER_STORAGES = ("UntypedStorage", "TypedStorage", *(f"{kind}Storage" for kind in ("ComplexFloat", "ComplexDouble")))
QUANTIZED_STORAGES = tuple(f"{kind}Storage" for kind in ("QInt8", "QInt32", "QUInt8", "QUInt4x2", "QUInt2x4"))
MODULES_OF_STORAGES = ("torch", "torch.cuda", "torch.storage")

WITHOUT_CONTENT = (
    *("collections.Counter", "torch.serialization._get_layout", "torch.Size", "torch.Tensor", "torch.device"),
    *("_codecs.encode", "torch.nn.parameter.Parameter"),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("bytearray", "set", "complex")),
    *(f"torch._utils._rebuild_{kind}" for kind in ("qtensor", "tensor_v3", "sparse_tensor", "nested_tensor")),
    *(f"torch._utils._rebuild_{kind}" for kind in ("meta_tensor_no_storage", "wrapper_subclass")),
    *(f"torch._utils._rebuild_device_tensor_from_{kind}" for kind in ("numpy", "cpu_tensor")),
    *(f"torch.{kind}" for kind in ("strided", "sparse_coo", "per_tensor_affine", "per_channel_affine")),
)
"""Names of things that may stand beside the weights."""


class StateEntries(Entries):
    """A dictionary that may have attributes, as `state_dict()` gives its own; they are passed over."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Nothing."""


@dataclass(slots=True)
class Other(NameSymbol):
    """Something that is no dense tensor: a class, what calling it makes, what that makes with a state."""

    def __call__(self, *args: Any) -> "Other":
        """What the call would make."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Nothing."""


@dataclass(slots=True)
class StorageSymbol(Symbol):
    """A record of the archive, `data/<key>`, as the pickle claims it to be."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(slots=True)
class TensorSymbol(Symbol):
    """A dense tensor in a storage; offset and strides in elements, checked to lie in the storage as claimed."""

    spec: TensorSpec
    stride: tuple[int, ...]
    storage: StorageSymbol
    offset: int


def _storage(identifier: Any) -> Symbol:
    """What lies in a record, from ("storage", class, key, device, number of elements)."""
    if not isinstance(identifier, tuple) or len(identifier) != 5 or text(identifier[0]) != "storage":
        raise PickleRefusal("names something outside of it that is no storage of torch's")
    _, kind, key, _, numel = identifier
    if not isinstance(kind, NameSymbol) or not kind.name.endswith("Storage"):
        raise PickleRefusal("has a storage of no known class")
    if type(numel) is not int or not 0 <= numel < 2**60:
        raise ValueError(f"a storage of {numel!r} elements")
    dtype = STORAGES.get(kind.name.rpartition(".")[2])
    return Other(kind.name) if dtype is None else StorageSymbol(text(key), dtype, numel)


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Symbol:
    """`torch._utils._rebuild_tensor_v2`."""
    if isinstance(storage, Other):
        return Other(f"tensor of {storage.name}")
    if not isinstance(storage, StorageSymbol) or not isinstance(shape, tuple):
        raise ValueError("a tensor without a storage or a shape")
    if metadata:
        raise PickleRefusal("holds a tensor seen conjugated or negated. Save its .resolve_conj().resolve_neg()")
    spec = checked_spec(shape, storage.dtype)
    fits = isinstance(stride, tuple) and len(stride) == len(shape)
    if not fits or any(type(n) is not int or n < 0 for n in stride) or type(offset) is not int or offset < 0:
        raise ValueError(f"a tensor of shape {list(shape)} without an offset and strides of the same kind")
    behind = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1
    if 0 not in shape and behind > storage.numel:
        raise ValueError(f"a tensor of shape {list(shape)} that ends at element {behind} of {storage.numel}")
    if math.prod(shape) > storage.numel:
        raise PickleRefusal(
            f"holds a tensor of shape {list(shape)} that shows {storage.numel} elements several times. Save it with "
            ".contiguous()"
        )
    return TensorSymbol(spec, stride, storage, offset)


def _parameter(data: Any, *args: Any) -> Any:
    """`torch._utils._rebuild_parameter` and `..._with_state`: its tensor."""
    return data


def _subclass(function: Any, kind: Any, args: Any, state: Any) -> Symbol:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with attributes, or of a subclass."""
    if isinstance(function, NameSymbol) and isinstance(args, tuple) and isinstance(kind, NameSymbol):
        if kind.name in ("torch.Tensor", "torch.nn.parameter.Parameter"):
            made = function(*args)
            return made if isinstance(made, Symbol) else Other("torch.Tensor")
        return Other(kind.name)
    raise ValueError("a tensor of no known class")


STAND_INS: dict[str, NameSymbol] = {
    **{name: Other(name) for name in WITHOUT_CONTENT},
    **{
        f"{module}.{name}": Other(f"{module}.{name}")
        for module in MODULES_OF_STORAGES
        for name in (*STORAGES, *OTHER_STORAGES, *QUANTIZED_STORAGES)
    },
    **{str(dtype): Other(str(dtype)) for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
    **{f"torch._utils.{name}": NameSymbol(name, _tensor) for name in ("_rebuild_tensor", "_rebuild_tensor_v2")},
    **{
        f"torch._utils.{name}": NameSymbol(name, _parameter)
        for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")
    },
    "torch._tensor._rebuild_from_type_v2": NameSymbol("_rebuild_from_type_v2", _subclass),
}


def _find(name: str) -> NameSymbol:
    stand_in = STAND_INS.get(name)
    if stand_in is None:
        raise PickleRefusal(f"holds {name}, which is no tensor")
    return stand_in


TORCH = Dialect(_find, StateEntries, _storage, same_as={"EMPTY_SET": pickle.EMPTY_LIST, "NEWOBJ": pickle.REDUCE})
"""Of what `torch.save` writes."""

__all__ = ["TORCH", "Other", "StorageSymbol", "TensorSymbol"]
