"""CUDA devices that are not there: shapes, dtypes and devices of everything torch would run on them, and no values.

`load` registers a device guard (`fake_cuda.cpp`) with a torch built without CUDA, so that fake tensors on `cuda:0` to
`cuda:3` behave as on a machine that has them: using two devices in one operator without a move is an error. It changes
the process for good: programs of their own do it, never a test.

[`Watch`] runs operators on such tensors and writes down what a machine would pay for.

- A launch is an operator that computes, fills or copies: one each, as torch launches it after taking composite
  operators apart. Views, questions about shapes and `empty` launch nothing. Attention counts as on CUDA, where a mask
  of bools is turned into numbers for every call, and copied where rows of it do not begin at multiples of 8, before
  one fused kernel runs. Operators of ours run the functions behind them, whose kernels count themselves ([`launch`]).
- Bytes are those of every tensor read and every tensor written; of tables that rows are taken from, the rows.
- The host waits where it asks for a value (`item`, `tolist`, `bool`), where the shape of a result depends on values,
  and where memory of its own that is not pinned is copied to a device or back.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import transformers.utils.import_utils
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICES = 4
SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = os.environ.get("CXX", "c++")

aten = torch.ops.aten

FREE = {
    "empty",
    "empty_strided",
    "empty_like",
    "new_empty",
    "lift_fresh",
    "detach",
    "_unsafe_view",
    "_reshape_alias",
    "alias",
    "device",
    "sym_size",
    "sym_numel",
    "sym_stride",
    "_fused_sdp_choice",
}
"""Operators that launch nothing and are no views by their schema."""

TAKEN_FROM_A_TABLE = {"embedding", "index", "index_select", "gather"}
"""Their first tensor is read where the others say."""

PUT_INTO_A_TABLE = {"index_copy_", "index_put_", "scatter_", "_index_put_impl_"}
"""Their first tensor is written where the others say."""

SHAPE_DEPENDS_ON_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}

MASK_ALIGNMENT = 8  # elements, of the rows of a mask that the fused attention of CUDA reads as it lies


def why_not() -> str:
    """What is missing for the devices; empty where they can be had."""
    if torch.backends.cuda.is_built():
        return "this torch is built with CUDA and has devices of its own"
    command = shlex.split(COMPILER)[0]
    return "" if shutil.which(command) else f"the compiler {command} is missing"


def load() -> None:
    """Compiles the guard, in about a second, and registers it with this process.

    Raises:
        RuntimeError: see [`why_not`].
        subprocess.CalledProcessError: the compiler fails.
    """
    if reason := why_not():
        raise RuntimeError(f"No fake CUDA devices: {reason}.")
    torch_folder = Path(torch.__file__).parent
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", f"-isystem{torch_folder / 'include'}"]
    flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "fake_cuda.so")
        links = [f"-L{torch_folder / 'lib'}", "-lc10", "-o", str(library)]
        subprocess.run([*shlex.split(COMPILER), *flags, str(SOURCE), *links], check=True)
        ctypes.CDLL(str(library))
    # The host takes fake tensors for a sign that a graph is traced, and would leave out what it asks of real ones.
    transformers.utils.import_utils.is_fake_tensor = lambda tensor: False


@dataclass(frozen=True)
class Wait:
    """A place where the host waits for a device.

    Attributes:
        place: `file.function` of ours or of the host that is nearest.
        what: `"value"`, `"shape"`, `"to device"` or `"to host"`.
        line: `path:number` of it, for people.
    """

    place: str
    what: str
    line: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


@dataclass
class Tally:
    """What ran.

    Attributes:
        launches: By operator or kernel.
        read: Bytes.
        written: Bytes.
        waits: In the order they happened.
        moves: (from, to, bytes) of copies between devices.
    """

    launches: dict[str, int] = field(default_factory=dict)
    read: int = 0
    written: int = 0
    waits: list[Wait] = field(default_factory=list)
    moves: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def launched(self) -> int:
        return sum(self.launches.values())

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def count(self, name: str, reads: Iterator[int] | list[int], writes: Iterator[int] | list[int]) -> None:
        """One launch."""
        self.launches[name] = self.launches.get(name, 0) + 1
        self.read += sum(reads)
        self.written += sum(writes)


def size_of(tensor: torch.Tensor) -> int:
    """Bytes that reading a tensor once brings; an expanded one is read where it lies."""
    elements = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= length if stride else 1
    return elements * tensor.itemsize


def tensors_in(values: Any) -> list[torch.Tensor]:
    found = [value for value in torch.utils._pytree.tree_leaves(values) if isinstance(value, torch.Tensor)]
    return list({id(tensor): tensor for tensor in found}.values())


class Watch(TorchDispatchMode):
    """Runs operators and keeps a [`Tally`] of them.

    Args:
        operators: What stands behind operators of ours: qualified name -> function.
        answers: What is answered where the host asks for a value: place -> value, or an iterator of them; else 0.
    """

    def __init__(
        self, operators: Mapping[str, Callable[..., Any]] | None = None, answers: Mapping[str, Any] | None = None
    ):
        super().__init__()
        self.tally = Tally()
        self.operators, self.answers = operators or {}, answers or {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        namespace, name = func._schema.name.split("::")
        if func._schema.name in self.operators:
            with self:
                return self.operators[func._schema.name](*args, **kwargs)
        if name == "_local_scalar_dense":
            return self._answer(args[0])
        if name in SHAPE_DEPENDS_ON_VALUES:
            self._wait("shape")
        result = func(*args, **kwargs)
        if namespace != "prim" and name not in FREE and not func.is_view:
            self._count(name, args, kwargs, result)
        return result

    def launch(self, kernel: Any, grid: Any, *args: Any, **meta: Any) -> None:
        """In place of a launch of a Triton kernel: every tensor among its arguments is read or written once."""
        name = getattr(kernel, "__name__", None) or getattr(kernel.fn, "__name__", "kernel")
        self.tally.count(name, [size_of(tensor) for tensor in tensors_in(args)], [])

    def _answer(self, tensor: torch.Tensor) -> Any:
        place = "" if tensor.device.type == "cpu" else self._wait("value").place
        answer = self.answers.get(place, 0)
        answer = next(answer) if isinstance(answer, Iterator) else answer
        return {torch.bool: bool}.get(tensor.dtype, float if tensor.is_floating_point() else int)(answer)

    def values_of(self, tensor: torch.Tensor) -> Any:
        """What `tolist` gives, zeros: one copy to the host. (A fake tensor asks for value after value.)"""
        if tensor.device.type != "cpu":
            self._wait("to host")
            self.tally.count("copy to host", [size_of(tensor)], [])
        values: Any = 0
        for length in reversed(tensor.shape):
            values = [values] * length
        return values

    def _wait(self, what: str) -> Wait:
        place, line = nearest_place()
        self.tally.waits.append(Wait(place, what, line))
        return self.tally.waits[-1]

    def _count(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(result)
        devices = {tensor.device for tensor in (*inputs, *outputs)}
        if not any(device.type == "cuda" for device in devices):
            return
        if name in ("_to_copy", "copy_"):
            self._copied(name, args, kwargs, outputs[0])
        sizes = [size_of(tensor) for tensor in inputs]
        if name in TAKEN_FROM_A_TABLE:
            sizes[0] = sum(size_of(tensor) for tensor in outputs)
        writes = [size_of(tensor) for tensor in outputs]
        if name in PUT_INTO_A_TABLE:
            sizes[0], writes = 0, [size_of(inputs[-1])]
        elif name in ("copy_", "fill_", "zero_"):
            sizes[0] = 0  # written, not read
        self.tally.count(name, sizes, writes)

    def _copied(self, name: str, args: Any, kwargs: Any, result: torch.Tensor) -> None:
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
        if source.device == target.device:
            return
        if "cpu" not in (source.device.type, target.device.type):
            self.tally.moves.append((str(source.device), str(target.device), size_of(source)))
        elif not (kwargs.get("non_blocking") and source.device.type == "cpu"):
            self._wait("to host" if target.device.type == "cpu" else "to device")


def nearest_place() -> tuple[str, str]:
    """`file.function`, and `path:number`, of the nearest caller in this package or the host's."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if any(package in path.parts for package in ("hf_glm_ernie", "transformers", "accelerate", "peft")):
            return f"{path.stem}.{frame.f_code.co_name}", f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere", ""


class FusedAttention(TorchFunctionMode):
    """Attention as CUDA runs it: what is done to a mask, and one kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attention(*args, **kwargs)

    def _attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        mask = attn_mask
        if mask is None:
            return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, kwargs.get("is_causal", False))[0]
        if mask.dtype == torch.bool:
            mask = torch.where(mask, torch.zeros((), dtype=query.dtype, device=query.device), -torch.inf)
        if any(stride % MASK_ALIGNMENT for stride in mask.stride()[:-1]) or mask.stride(-1) != 1:
            length = mask.shape[-1]
            mask = F.pad(mask, (0, MASK_ALIGNMENT - length % MASK_ALIGNMENT))[..., :length]
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        return aten._scaled_dot_product_efficient_attention(query, key, value, mask, False)[0]


@contextmanager
def watched(watch: Watch) -> Iterator[Tally]:
    """Runs what is inside under `watch`, without gradients; its tally begins anew."""
    watch.tally = Tally()
    values_of = mock.patch.object(FakeTensor, "tolist", lambda tensor: watch.values_of(tensor))
    with FusedAttention(), torch.no_grad(), watch, values_of:
        yield watch.tally


def fake_tensors() -> FakeTensorMode:
    """A mode in which every tensor is fake."""
    return FakeTensorMode(allow_non_fake_inputs=False)
