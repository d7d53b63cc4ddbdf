"""The kernels under `benchmarks/gpu.py`: whether they are right on the device, and how near to its bandwidth."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from gpu_machine import Call, Machine
from gpu_report import Notes

from hf_glm_ernie.weight_only import dequantize, from_storage, storage_shape
from hf_glm_ernie.weight_only_kernels import choose_kernel, multiply
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear
from hf_glm_ernie.weight_only_triton import (
    dequantized_linear,
    dot_linear,
    dot_plan,
    rows_linear,
    rows_plan,
    transposed,
)

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, int], torch.Tensor]
OURS: dict[str, Linear] = {
    "triton_rows": rows_linear,
    "triton_dot": dot_linear,
    "triton_dequantize": dequantized_linear,
}
PLANS = {"triton_rows": rows_plan, "triton_dot": dot_plan}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

ALLOWED = {torch.float16: 1.5e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}
"""Largest difference over the largest result: two roundings of the result's dtype, and sums in another order."""

SHAPES = ((4096, 12288, 1), (3072, 12288, 16), (130, 384, 3), (33, 68, 1), (64, 256, 8))
ROWS = (1, 2, 3, 4, 5, 9, 17, 33, 130)
DRY_SHAPES, DRY_ROWS = ((24, 128, 2),), (5,)

GLM_SHAPES = ((12288, 12288), (32768, 12288), (12288, 32768))
SPEED_ROWS = (1, 2, 4, 8, 16, 32, 128, 512)
TURNS_BYTES = 2**28  # of weights read before the first is read again: several times the largest second cache


@dataclass(frozen=True)
class Weight:
    """Random integers with their scales, and what they stand for.

    Attributes:
        stored: As a `WeightOnlyLinear` holds them.
        scale: (N, G) fp16.
        bits: 4 or 8.
    """

    stored: torch.Tensor
    scale: torch.Tensor
    bits: int

    @classmethod
    def random(cls, rows: int, columns: int, groups: int, bits: int, here: Machine) -> "Weight":
        """Integers of the whole range but the lowest one, scales that differ."""
        shape = storage_shape(rows, columns, bits)
        stored = torch.empty(shape, dtype=torch.int8, device=here.device).random_(-127, 128, generator=here.generator)
        scale = (torch.rand(rows, groups, device=here.device, generator=here.generator) + 0.5) * (
            0.1 / 2 ** (bits - 1)
        )
        return cls(stored, scale.half(), bits)

    @property
    def nbytes(self) -> int:
        """What a product has to read."""
        return self.stored.nbytes + self.scale.nbytes

    def values(self, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        """(N, K), rounded to fp16 as the format says."""
        return dequantize(from_storage(self.stored, self.bits), self.scale, dtype)

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        """The product with `x` in fp64: fp16 and fp32 with rounded values, bf16 with exact ones."""
        if x.dtype != torch.bfloat16:
            return x.double() @ self.values().double().t()
        q = from_storage(self.stored, self.bits).double().unflatten(1, (self.scale.shape[1], -1))
        return x.double() @ (q * self.scale.double()[:, :, None]).flatten(1).t()


def kernels(notes: Notes, here: Machine) -> None:
    """Every kernel on the device against fp64."""
    shapes, rows = (DRY_SHAPES, DRY_ROWS) if here.dry else (SHAPES, ROWS)
    for bits, dtype, shape in notes.in_time(itertools.product((4, 8), DTYPES.values(), shapes)):
        weight = Weight.random(shape[0], shape[1], shape[2], bits, here)
        for name, kernel in OURS.items():
            sizes = [m for m in rows if _takes(name, here.device, weight, m)]
            if sizes:
                with notes.guarded(kernel=name, bits=bits, dtype=str(dtype)[6:], shape=str(shape)):
                    _hold(notes, here, name, kernel, weight, dtype, sizes)
        with notes.guarded(kernel="gradient", bits=bits, dtype=str(dtype)[6:], shape=str(shape)):
            _hold_gradient(notes, here, weight, dtype, rows[-1])
    for bits in notes.in_time((4, 8)):
        with notes.guarded(kernel="values", bits=bits):
            _hold_values(notes, here, bits)
        with notes.guarded(kernel="layer", bits=bits):
            _hold_operator(notes, here, bits)


def _takes(name: str, device: torch.device, weight: Weight, rows: int) -> bool:
    outputs, groups = weight.scale.shape
    columns = weight.stored.shape[-1] * 8 // weight.bits
    return name not in PLANS or PLANS[name](device, weight.bits, rows, outputs, columns, groups) is not None


def _hold(
    notes: Notes, here: Machine, name: str, kernel: Linear, weight: Weight, dtype: torch.dtype, sizes: list[int]
) -> None:
    """One kernel at several numbers of rows: worst relative difference, and whether results repeat bit for bit."""
    columns = weight.stored.shape[-1] * 8 // weight.bits
    worst, repeats = 0.0, True
    for rows in sizes:
        x, bias = here.normal(rows, columns, dtype=dtype), here.normal(weight.scale.shape[0], dtype=dtype)
        y = kernel(x, weight.stored, weight.scale, bias, weight.bits)
        exact = weight.exact(x) + bias.double()
        worst = max(worst, float((y.double() - exact).abs().max() / exact.abs().max()))
        repeats &= torch.equal(y, kernel(x, weight.stored, weight.scale, bias, weight.bits))
    right = worst <= ALLOWED[dtype]
    notes.row(
        kernel=name, bits=weight.bits, dtype=str(dtype)[6:], shape=f"{weight.scale.shape[0]} x {columns}",
        groups=weight.scale.shape[1], rows=" ".join(map(str, sizes)), worst=worst, right=right, repeats=repeats,
    )  # fmt: skip
    notes.check("kernels are right on the device", right)
    notes.check("results repeat bit for bit", repeats)


def _hold_gradient(notes: Notes, here: Machine, weight: Weight, dtype: torch.dtype, rows: int) -> None:
    y = here.normal(rows, weight.scale.shape[0], dtype=dtype)
    exact = y.double() @ weight.values(torch.float64)
    found = transposed(y, weight.stored, weight.scale, weight.bits).double()
    worst = float((found - exact).abs().max() / exact.abs().max())
    right = worst <= ALLOWED[dtype]
    notes.row(
        kernel="gradient", bits=weight.bits, dtype=str(dtype)[6:], shape=f"{exact.shape[1]} columns",
        groups=weight.scale.shape[1], rows=str(rows), worst=worst, right=right,
    )  # fmt: skip
    notes.check("kernels are right on the device", right)


def _hold_values(notes: Notes, here: Machine, bits: int) -> None:
    """Rows of the unit matrix show the values that the kernels multiply: bit for bit those of the format."""
    columns = 128 if here.dry else 256
    step = columns if here.dry else 4
    scales = torch.tensor([1.0, 0.1, 1e-4, 6.1e-5, 1.3e-6, 6e-8, 300.0], device=here.device).half()
    for groups in (1, 2):
        weight = Weight.random(len(scales), columns, groups, bits, here)
        weight.scale.copy_(scales[:, None].expand(-1, groups))
        unit = torch.eye(columns, device=here.device, dtype=torch.float16)
        for name, kernel in OURS.items():
            parts = [
                kernel(unit[i : i + step], weight.stored, weight.scale, None, bits) for i in range(0, columns, step)
            ]
            exact = torch.equal(torch.cat(parts).t(), weight.values())
            notes.row(kernel=name, bits=bits, dtype="float16", shape="unit matrix", groups=groups, exact=exact)
            notes.check("fp16 values bit for bit", exact)


def _hold_operator(notes: Notes, here: Machine, bits: int) -> None:
    """The layer: compiled, captured into a graph, on the second device while the first is current."""
    linear = WeightOnlyLinear.from_linear(torch.nn.Linear(128, 64), bits).to(here.device)
    x = here.normal(1, 128, dtype=torch.float16)
    with torch.no_grad():
        expected = linear(x)
        compiled = torch.compile(linear, fullgraph=True, backend="eager" if here.dry else "inductor")
        _say(notes, "compiled", bits, torch.equal(compiled(x), expected))
        if here.device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = linear(x)
            graph.replay()
            here.wait()
            _say(notes, "captured into a graph", bits, torch.equal(y, expected))
        if here.device.type == "cuda" and torch.cuda.device_count() > 1:
            second = torch.device("cuda:1")
            _say(
                notes,
                "on the second device",
                bits,
                torch.equal(linear.to(second)(x.to(second)).to(x.device), expected),
            )


def _say(notes: Notes, what: str, bits: int, right: bool) -> None:
    notes.row(kernel=f"layer, {what}", bits=bits, right=right)
    notes.check(f"the layer, {what}, computes the same", right)


def speed(notes: Notes, here: Machine) -> None:
    """GLM-130B's linears beside other kernels: microseconds, GB/s, part of the measured bandwidth."""
    bandwidth, _ = here.bandwidth()
    shapes, rows = (((64, 128),), (1, 3)) if here.dry else (GLM_SHAPES, SPEED_ROWS)
    for bits, (outputs, columns) in notes.in_time(itertools.product((4, 8), shapes)):
        copies = max(2, TURNS_BYTES // (outputs * columns * bits // 8)) if not here.dry else 1
        weights = [Weight.random(outputs, columns, 1, bits, here) for _ in range(copies)]
        for dtype, m in itertools.product(("fp16", "bf16"), rows):
            if notes.seconds_left <= 0:
                break
            x = here.normal(m, columns, dtype=DTYPES[dtype])
            with notes.guarded(shape=f"{outputs} x {columns}", bits=bits, dtype=str(x.dtype)[6:], rows=m):
                _race(notes, here, weights, x, bandwidth)


def _race(notes: Notes, here: Machine, weights: list[Weight], x: torch.Tensor, bandwidth: float) -> None:
    """One shape, width, dtype and number of rows: all kernels."""
    bits, (outputs, _), (rows, columns) = weights[0].bits, weights[0].scale.shape, x.shape
    times: dict[str, float] = {}
    for name in OURS:
        if _takes(name, here.device, weights[0], rows) and (name != "triton_rows" or rows <= 16):
            times[name] = here.seconds(
                [_call(multiply, x, one.stored, one.scale, None, bits, "released", name) for one in weights], 0.05
            )
    for name, calls in _others(x, weights):
        try:
            times[name] = here.seconds(calls(), 0.05)
        except Exception:  # noqa: BLE001
            continue  # this torch, or this device, does not have it
    # on the CPU the layer would take none of these
    chosen = "triton_rows" if here.dry else choose_kernel(x.device, x.dtype, bits, columns, outputs, 1, rows).name
    rate = weights[0].nbytes / times[chosen]
    best = min((name for name in times if name in OURS), key=times.__getitem__)
    notes.row(
        shape=f"{outputs} x {columns}", bits=bits, dtype=str(x.dtype)[6:], rows=rows,
        **{f"{name}, us": seconds * 1e6 for name, seconds in times.items()},
        chosen=chosen.removeprefix("triton_"),
        **{"GB/s": rate / 1e9, "of bandwidth": rate / bandwidth},
        better=best.removeprefix("triton_") if times[best] < 0.95 * times[chosen] else "",
    )  # fmt: skip


def _call(function: Callable[..., Any], *arguments: Any) -> Call:
    return lambda: function(*arguments)


def _others(x: torch.Tensor, weights: list[Weight]) -> Iterator[tuple[str, Callable[[], list[Call]]]]:
    """Other kernels: name, and what makes its calls."""
    yield "dense", lambda: [_call(F.linear, x, one.values(x.dtype)) for one in weights[:2]]
    if x.dtype == torch.bfloat16:
        yield "torch", lambda: [_torch_call(x, one) for one in weights]
    yield "bitsandbytes", lambda: [_bitsandbytes_call(x, one) for one in weights[:2]]


def _torch_call(x: torch.Tensor, weight: Weight) -> Call:
    if weight.bits == 8:
        stored, scale = weight.stored[0], weight.scale[:, 0].to(x.dtype)
        return _call(torch.ops.aten._weight_int8pack_mm, x, stored, scale)
    q = (from_storage(weight.stored, 4).to(torch.int32) + 8).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack((q[:, ::2] << 4) | q[:, 1::2], 8)
    groups = x.shape[1] // 128
    scales = torch.stack((weight.scale.expand(-1, groups), torch.zeros_like(weight.scale).expand(-1, groups)), -1)
    return _call(
        torch.ops.aten._weight_int4pack_mm, x, packed, 128, scales.transpose(0, 1).contiguous().to(torch.bfloat16)
    )


def _bitsandbytes_call(x: torch.Tensor, weight: Weight) -> Call:
    import bitsandbytes as bnb

    outputs, columns = weight.scale.shape[0], x.shape[1]
    dense = weight.values(x.dtype)
    if weight.bits == 4:
        layer: Any = bnb.nn.Linear4bit(columns, outputs, bias=False, compute_dtype=x.dtype, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(dense.cpu(), requires_grad=False, quant_type="nf4", module=layer)
    else:
        layer = bnb.nn.Linear8bitLt(columns, outputs, bias=False, has_fp16_weights=False)
        layer.weight = bnb.nn.Int8Params(dense.cpu(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to(x.device).eval()
    return lambda: layer(x)
