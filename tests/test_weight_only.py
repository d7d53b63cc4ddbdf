"""Integers in place of weights: the four functions against a reference in plain Python, the linear and its kernels
against dequantized weights.
"""

import copy
import io
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_glm_ernie import weight_only_cpu
from hf_glm_ernie import weight_only_kernels as kernels
from hf_glm_ernie.weight_only import (
    check_scales,
    dequantize,
    from_storage,
    pack_int4,
    quantize,
    to_storage,
    unpack_int4,
)
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear
from tests.reference import weight_only_naive as naive

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [
    (1, 2, 1),
    (3, 10, 5),
    (5, 6, 1),
    (7, 96, 3),
    (16, 64, 2),
    (80, 128, 4),
    (33, 62, 1),
]  # rows, columns, groups
# One output in bf16 or fp16 is off by half a unit of its last place, in bf16 twice where the result is scaled.
RELATIVE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def weights(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) * torch.logspace(-2, 1, rows)[:, None]).to(dtype)


def make_linear(rows: int, columns: int, bits: int, groups: int = 1, bias: bool = True) -> WeightOnlyLinear:
    torch.manual_seed(rows + columns)
    return WeightOnlyLinear.from_linear(nn.Linear(columns, rows, bias=bias), bits, groups)


def reference(linear: WeightOnlyLinear, x: torch.Tensor) -> torch.Tensor:
    """In fp64, from the values that define the numbers."""
    bias = None if linear.bias is None else linear.bias.detach().double()
    return F.linear(x.detach().double(), linear.dequantized_weight().double(), bias)


# The four functions.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_integers_and_scales_are_those_of_the_reference(
    bits: int, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    rows, columns, groups = shape
    weight = weights(rows, columns, dtype)
    q, scale = quantize(weight, bits, groups)
    assert (q.dtype, q.shape) == (torch.int8, (rows, columns))
    assert (scale.dtype, scale.shape) == (torch.float16, (rows, groups))
    expected_q, expected_scale = naive.quantize(weight.tolist(), bits, groups, halves=dtype == torch.float16)
    assert q.tolist() == expected_q
    assert scale.tolist() == expected_scale
    assert dequantize(q, scale).tolist() == naive.dequantize(expected_q, expected_scale)
    if bits == 4:
        assert pack_int4(q).tolist() == naive.pack_int4(expected_q)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_value_is_off_by_half_a_step(bits: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, columns, groups = shape
    weight = weights(rows, columns, dtype)
    q, scale = quantize(weight, bits, groups)
    step = scale.double().repeat_interleave(columns // groups, 1)
    largest = 2 ** (bits - 1) - 1
    # The quotient is rounded to fp32, or to fp16 where the weight is fp16, before it is rounded to an integer.
    quotient_rounding = largest * 2.0 ** (-11 if dtype == torch.float16 else -24)
    error = (weight.double() - q.double() * step).abs()
    assert (error <= step * (0.5 + quotient_rounding)).all()
    # The product is rounded to fp16 once more: half a unit of 11 bits of it (the second term: among subnormals).
    product_rounding = (q.double() * step).abs() * 2.0**-11 + 2.0**-25
    assert ((weight.double() - dequantize(q, scale).double()).abs() <= error + product_rounding).all()


@pytest.mark.parametrize("shape", [(1, 2), (3, 10), (33, 62), (64, 128)])
def test_unpacking_undoes_packing(shape: tuple[int, int]) -> None:
    q = torch.randint(-8, 8, shape, dtype=torch.int8)
    packed = pack_int4(q)
    assert packed.shape == (shape[0], shape[1] // 2)
    assert torch.equal(unpack_int4(packed), q)
    every_byte = torch.arange(-128, 128, dtype=torch.int8)[None]
    assert torch.equal(pack_int4(unpack_int4(every_byte)), every_byte)


@pytest.mark.parametrize("bits", [4, 8])
def test_stored_integers_never_have_the_shape_of_the_weight(bits: int) -> None:
    """A float linear of a program that does not know the format must refuse them."""
    q, _ = quantize(weights(6, 4), bits)
    stored = to_storage(q, bits)
    assert stored.dtype == torch.int8
    assert stored.shape != q.shape
    assert torch.equal(from_storage(stored, bits), q)


def test_extreme_groups() -> None:
    smallest = 2.0**-24
    weight = torch.zeros(5, 4)
    weight[1] = smallest / 8  # the rounded scale would be zero
    weight[2] = 10.4 * smallest  # the rounded scale would be 1 where 1.49 is needed
    weight[3, 0] = 65400.0
    weight[4] = torch.tensor([-1.0, 0.5, 0.25, 1.0])
    q, scale = quantize(weight, bits=4)
    assert scale[0].item() == 1.0
    assert not q[0].any()
    check_scales(scale)
    error = (weight - q * scale.float()).abs()
    assert (error <= scale.float() / 2).all()
    assert torch.isfinite(dequantize(q, scale)).all()


def test_a_big_weight_is_cut_into_pieces_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights(20, 64)
    whole = quantize(weight, 4, 2)
    packed = pack_int4(whole[0])
    monkeypatch.setattr("hf_glm_ernie.weight_only.ELEMENTS_AT_ONCE_ON_CPU", 3 * 64)
    assert all(torch.equal(a, b) for a, b in zip(quantize(weight, 4, 2), whole, strict=True))
    assert torch.equal(pack_int4(whole[0]), packed)


def test_integers_are_packed_from_memory_of_any_kind() -> None:
    q = torch.randint(-8, 8, (6, 8), dtype=torch.int8)
    packed = pack_int4(q)
    odd = torch.cat([torch.zeros(1, dtype=torch.int8), q.flatten()])[1:].view(6, 8)  # no int16 can lie there
    assert odd.storage_offset() == 1
    assert torch.equal(pack_int4(odd), packed)
    assert torch.equal(pack_int4(q.t().contiguous().t()), packed)
    assert torch.equal(pack_int4(torch.cat([q, q], 1)[:, 8:]), packed)
    assert pack_int4(q[:0]).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_any_kind_of_memory_have_the_same_integers(dtype: torch.dtype) -> None:
    weight = weights(12, 16).to(dtype)
    expected = quantize(weight, 8, 2)
    for other in (weight.t().contiguous().t(), torch.cat([weight, weight], 1)[:, 16:]):
        assert all(torch.equal(a, b) for a, b in zip(quantize(other, 8, 2), expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_in_every_dtype(dtype: torch.dtype, value: float) -> None:
    weight = weights(4, 8).to(dtype)
    weight[2, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        quantize(weight, 4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: quantize(torch.ones(2, 4), 3), ValueError, "bits=3"),
        (lambda: quantize(torch.ones(2, 4), True), ValueError, "bits=True"),
        (lambda: quantize(torch.ones(2, 4), 8, 3), ValueError, "4 columns.*3 groups"),
        (lambda: quantize(torch.ones(2, 6), 4, 2), ValueError, "3 columns a group"),
        (lambda: quantize(torch.ones(2, 5), 4), ValueError, "5 columns"),
        (lambda: quantize(torch.ones(2, 4, dtype=torch.int32), 4), TypeError, "int32"),
        (lambda: quantize(torch.ones(2, 4, dtype=torch.float64), 4), TypeError, "float64"),
        (lambda: quantize(torch.ones(4), 4), ValueError, "shape"),
        (lambda: quantize(torch.tensor([[1.0, math.nan]]), 8), ValueError, "not finite"),
        (lambda: quantize(torch.tensor([[1.0, 65504.0]]), 8), ValueError, "65472"),
        (lambda: pack_int4(torch.ones(2, 3, dtype=torch.int8)), ValueError, "even"),
        (lambda: pack_int4(torch.full((2, 2), 8, dtype=torch.int8)), ValueError, "4 bits"),
        (lambda: pack_int4(torch.ones(2, 2)), TypeError, "float32"),
        (lambda: unpack_int4(torch.ones(2, 2)), TypeError, "float32"),
        (lambda: unpack_int4(torch.ones(2, dtype=torch.int8)), ValueError, "shape"),
        (lambda: from_storage(torch.ones(2, 2, dtype=torch.int8), 8), ValueError, "1, rows"),
        (lambda: from_storage(torch.ones(1, 2, 2), 8), TypeError, "float32"),
        (lambda: dequantize(torch.ones(2, 4), torch.ones(2, 1).half()), TypeError, "float32"),
        (lambda: dequantize(torch.ones(2, 4).char(), torch.ones(2).half()), ValueError, "shape"),
        (lambda: dequantize(torch.ones(2, 4).char(), torch.ones(2, 3).half()), ValueError, "3 groups"),
        (lambda: check_scales(torch.ones(2, 1)), TypeError, "float16"),
        (lambda: check_scales(torch.ones(2).half()), ValueError, "rows, groups"),
        (lambda: WeightOnlyLinear(4, 4, bits=2), ValueError, "bits=2"),
        (lambda: WeightOnlyLinear(6, 4, num_groups=4), ValueError, "6 columns"),
    ],
)
def test_refusals(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -0.5])
def test_damaged_scales_are_named(value: float) -> None:
    scale = torch.ones(4, 2, dtype=torch.float16)
    scale[2, 1] = value
    with pytest.raises(ValueError, match=r"layer\.weight_scale.*row 2, group 1"):
        check_scales(scale, "layer.weight_scale")


@pytest.mark.parametrize("bits", [4, 8])
def test_the_released_integers_are_reproduced(shared_goldens: Path, bits: int) -> None:
    """What the original quantized, quantized here: the same bits."""
    folder = shared_goldens / "model" / "small"
    name = "49300/mp_rank_00_model_states.pt"
    weight = torch.load(folder / "tp1" / name, weights_only=True)["module"]
    released = torch.load(folder / f"tp1-int{bits}" / name, weights_only=True)["module"]
    names = [name.removesuffix("_scale") for name in released if name.endswith("_scale")]
    assert len(names) == 4 * 3
    for name in names:
        q, scale = quantize(weight[name], bits)
        assert torch.equal(to_storage(q, bits).view(released[name].shape), released[name])
        assert torch.equal(scale[:, 0], released[name + "_scale"])


# The linear and its kernels.

KERNEL_SHAPES = [(16, 64, 1), (80, 128, 2), (33, 62, 1), (48, 96, 3), (7, 10, 5)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", KERNEL_SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_kernel_against_the_reference(
    bits: int, shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns, groups = shape
    monkeypatch.setattr(kernels, "BLOCK_WEIGHTS", 16 * columns)  # several blocks, the last one short
    linear = make_linear(rows, columns, bits, groups, bias=False)
    tried = set()
    for repacked in (False, True):
        if repacked and not linear.repack():
            continue
        for batch in (0, 1, 3, 40):
            x = torch.randn(batch, columns, dtype=dtype)
            expected = reference(linear, x)
            for name in {"reference", "blocks", linear.kernel_for(x).name}:
                y = kernels.multiply(x, linear.weight, linear.weight_scale, None, bits, linear.layout, name)
                tried.add(name)
                assert y.dtype == dtype
                bound = RELATIVE[dtype] * max(expected.abs().max().item() if batch else 0.0, 1e-6)
                assert ((y.double() - expected).abs() <= bound).all(), (name, repacked, batch)
    wanted = {"reference", "blocks"}
    if dtype == torch.bfloat16 and rows % 16 == 0 and (bits == 4 or groups == 1):
        wanted.add(f"torch_int{bits}")
    assert wanted <= tried
    assert (linear.layout == "torch_int4") == (bits == 4 and rows % 16 == 0)


@pytest.mark.parametrize("shape", KERNEL_SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_fp32_is_the_plain_computation(bits: int, shape: tuple[int, int, int]) -> None:
    """In fp32 nothing but the order of a sum may differ from dequantizing and multiplying."""
    linear = make_linear(shape[0], shape[1], bits, shape[2])
    x = torch.randn(5, shape[1])
    plain = F.linear(x, linear.dequantized_weight(), linear.bias)
    assert (linear(x) - plain).abs().max() < 2e-6
    by_hand = naive.linear(
        x.tolist(),
        from_storage(linear.weight.data, bits).tolist(),
        linear.weight_scale.tolist(),
        linear.bias.tolist(),
    )
    assert (linear(x) - torch.tensor(by_hand)).abs().max() < 2e-6


def test_the_choice_names_its_reason() -> None:
    linear = make_linear(64, 64, 4)
    assert linear.kernel_for(torch.randn(2, 3, 64)).name == "blocks"
    assert linear.kernel_for(torch.randn(1, 64).bfloat16()) == kernels.KernelChoice(
        "blocks", "the bytes lie as released; `repack()` or `build_cpu_kernel()` makes few rows fast"
    )
    assert linear.repack()
    assert linear.kernel_for(torch.randn(1, 64).bfloat16()).name == "torch_int4"
    assert linear.kernel_for(torch.randn(200, 64).bfloat16()).name == "blocks"
    assert make_linear(64, 64, 8).kernel_for(torch.randn(1, 64).bfloat16()).name == "torch_int8"
    assert linear.kernel_for(torch.empty(1, 64, device="meta")).name == "reference"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("bits", "layout"), [(4, "released"), (4, "torch_int4"), (8, "released")])
def test_gradients_reach_the_input_and_the_bias(bits: int, dtype: torch.dtype, layout: str) -> None:
    linear = make_linear(48, 96, bits, 3).to(dtype)
    assert linear.repack() or layout == "released"
    if layout == "released":
        linear.unpack()
    assert linear.layout == layout
    x = torch.randn(2, 3, 96, dtype=dtype, requires_grad=True)
    y = linear(x)
    up = torch.randn_like(y)
    y.backward(up)
    expected = up.double() @ linear.dequantized_weight().double()
    assert (x.grad.double() - expected).abs().max() < RELATIVE[dtype] * expected.abs().max()
    assert torch.allclose(linear.bias.grad.double(), up.double().sum((0, 1)), rtol=2e-2, atol=1e-2)
    assert linear.weight.grad is None
    assert linear.weight_scale.grad is None
    assert not linear.weight.requires_grad


def test_gradients_by_finite_differences() -> None:
    linear = make_linear(8, 6, 8)
    x = torch.randn(2, 6, requires_grad=True)
    linear(x).pow(2).sum().backward()
    step = 1e-2
    for i, j in ((0, 0), (1, 5)):
        shift = torch.zeros(2, 6)
        shift[i, j] = step
        with torch.no_grad():
            slope = (linear(x + shift).pow(2).sum() - linear(x - shift).pow(2).sum()) / (2 * step)
        assert slope.item() == pytest.approx(x.grad[i, j].item(), rel=1e-3, abs=1e-3)


def test_no_dequantized_weight_is_kept_for_the_backward() -> None:
    linear = make_linear(64, 64, 4)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        linear(torch.randn(2, 64, requires_grad=True))
    assert all(t.data_ptr() in (linear.weight.data_ptr(), linear.weight_scale.data_ptr()) for t in kept)
    assert len(kept) == 2


def test_autocast_sets_the_dtype() -> None:
    linear = make_linear(32, 64, 4)
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x)
        plain = linear.to_linear()(x)
    assert y.dtype == plain.dtype == torch.bfloat16
    assert torch.allclose(y.float(), plain.float(), atol=2e-2)
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_checkpointing_gives_the_same_gradient() -> None:
    linear = make_linear(64, 64, 4)
    first = torch.randn(3, 64, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    linear(linear(first)).sum().backward()
    checkpoint(lambda t: linear(linear(t)), second, use_reentrant=False).sum().backward()
    assert torch.equal(first.grad, second.grad)


@pytest.mark.parametrize("bits", [4, 8])
def test_compiles_without_a_break(bits: int) -> None:
    linear = make_linear(64, 64, bits)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    first = torch.randn(3, 64, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    y, expected = compiled(first), linear(second)
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(first.grad, second.grad)
    with torch.no_grad():
        assert torch.equal(compiled(first[:1]), linear(first[:1]))


def test_the_operator_is_registered_as_torch_wants_it() -> None:
    linear = make_linear(16, 32, 4)
    x = torch.randn(2, 32, requires_grad=True)
    torch.library.opcheck(
        torch.ops.weight_only_int.linear_with_bias.default,
        (x, linear.weight, linear.weight_scale, linear.bias, 4, "released"),
    )


def test_meta_and_to_empty() -> None:
    linear = WeightOnlyLinear(64, 32, bits=4, num_groups=2, device="meta", dtype=torch.bfloat16)
    assert linear(torch.empty(5, 64, device="meta", dtype=torch.bfloat16)).shape == (5, 32)
    assert {p.device.type for p in linear.parameters()} == {"meta"}
    empty = linear.to_empty(device="cpu")
    assert empty.weight_scale.dtype == torch.float16
    assert empty.bias.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_casting_the_module_leaves_the_scales(dtype: torch.dtype) -> None:
    linear = make_linear(32, 64, 4)
    scale = linear.weight_scale.clone()
    linear.to(dtype)
    assert torch.equal(linear.weight_scale, scale)
    assert linear.weight_scale.dtype == torch.float16
    assert linear.bias.dtype == dtype
    linear.weight_scale.data = linear.weight_scale.data.float()  # as programs do that widen what they will train on
    assert linear.float()(torch.randn(1, 64)).dtype == torch.float32
    assert linear.state_dict()["weight_scale"].dtype == torch.float16


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rows", [16, 48, 64, 112, 192])
def test_repacking_is_not_seen_from_outside(rows: int, groups: int) -> None:
    linear = make_linear(rows, 128, 4, groups)
    before = copy.deepcopy(linear.state_dict())
    size = linear.weight.untyped_storage().nbytes()
    x = torch.randn(4, 128)
    y = linear(x)
    assert linear.repack()
    assert not torch.equal(linear.weight, before["weight"])
    assert linear.weight.untyped_storage().nbytes() == size
    assert torch.equal(linear(x), y)
    for name, tensor in linear.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for copied in (copy.deepcopy(linear), torch.load(_saved(linear), weights_only=False)):
        assert torch.equal(copied(x), y)
        assert torch.equal(copied.state_dict()["weight"], before["weight"])
    other = make_linear(rows, 128, 4, groups)
    other.load_state_dict(linear.state_dict())
    assert torch.equal(other(x), y)
    linear.load_state_dict(before)
    assert torch.equal(linear(x), y)
    assert linear.layout == "released"
    linear.repack()
    linear.unpack()
    assert torch.equal(linear.weight, before["weight"])


def _saved(linear: WeightOnlyLinear) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(linear, file)
    file.seek(0)
    return file


def test_what_cannot_be_repacked_stays_as_it_is() -> None:
    for linear in (make_linear(33, 64, 4), make_linear(64, 62, 4), make_linear(64, 64, 8)):
        x = torch.randn(2, linear.in_features).bfloat16()
        y = linear(x)
        assert not linear.repack()
        assert torch.equal(linear(x), y)


def test_an_unknown_packing_of_torch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another torch may pack in another order: what cannot be undone exactly is left alone."""
    linear = make_linear(64, 64, 4)
    other = 96 - kernels._torch_block_rows()
    kernels._packing_is_known.cache_clear()
    monkeypatch.setattr(kernels, "_torch_block_rows", lambda: other)
    assert not linear.repack()
    assert linear.layout == "released"
    kernels._packing_is_known.cache_clear()


# The kernel that is compiled on the machine.


@pytest.fixture
def cpu_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = weight_only_cpu.missing_features()
    if missing or shutil.which("c++") is None:
        pytest.skip(f"the CPU kernel needs {', '.join(missing) or 'a C++ compiler'}")
    monkeypatch.setitem(weight_only_cpu._state, "built", False)  # and so it is again for the other tests
    weight_only_cpu.build_cpu_kernel()


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_kernel")
@pytest.mark.parametrize("bits", [4, 8])
def test_the_compiled_kernel_against_the_reference(bits: int) -> None:
    more = [(1, 2, 1), (21, 4160, 1), (9, 8192, 2), (17, 4096, 8)]
    # What is left after whole registers: 1, 31, 33 and 49 bytes of 4-bit integers; rows that no block divides.
    more += [(25, 130, 1), (47, 190, 1), (24, 194, 1), (50, 226, 1), (31, 2048, 32)]
    for rows, columns, groups in [*KERNEL_SHAPES, *more]:
        linear = make_linear(rows, columns, bits, groups, bias=False)
        for dtype in FLOATS:
            for batch in (*range(10), 100):
                x = torch.randn(batch, columns, dtype=dtype)
                assert linear.kernel_for(x).name == "cpu_extension"
                y, expected = linear(x), reference(linear, x)
                assert (y.dtype, y.shape) == (dtype, (batch, rows))
                # Beside fp32 it does not round the values to fp16 (2 ** -11 of each product); then one rounding of the
                # result. In fp32 only the sums are rounded.
                products = x.double().abs() @ linear.dequantized_weight().double().abs().T
                bound = (
                    (2.0**-20 if dtype == torch.float32 else 2.0**-11) * products
                    + RELATIVE[dtype] * expected.abs()
                    + 1e-6
                )
                assert ((y.double() - expected).abs() <= bound).all(), (rows, columns, groups, dtype, batch)


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_kernel")
def test_the_compiled_kernel_in_training_and_compilation() -> None:
    linear = make_linear(48, 96, 4, 3)
    x = torch.randn(2, 3, 96).half()
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    up = torch.randn(2, 3, 48).half()
    linear(first).backward(up)
    torch.compile(linear, fullgraph=True, backend="aot_eager")(second).backward(up)
    expected = up.double() @ linear.dequantized_weight().double()
    assert (first.grad.double() - expected).abs().max() < 1e-3 * expected.abs().max()
    assert torch.equal(first.grad, second.grad)
    with pytest.raises(TypeError, match="bf16 or fp16 or fp32"):
        torch.ops.weight_only_int_cpu.linear(torch.ones(1, 96).double(), linear.weight, linear.weight_scale, 4)
    with pytest.raises(ValueError, match="do not belong together"):
        torch.ops.weight_only_int_cpu.linear(torch.ones(1, 64).half(), linear.weight, linear.weight_scale, 4)


def test_without_a_compiled_kernel_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_only_cpu, "_state", {"built": False, "asked": False})
    monkeypatch.setattr(weight_only_cpu.platform, "machine", lambda: "arm64")
    with pytest.raises(RuntimeError, match="x86-64"):
        weight_only_cpu.build_cpu_kernel()
    said: list[str] = []
    monkeypatch.setattr(weight_only_cpu.logger, "warning", said.append)
    assert not weight_only_cpu.cpu_kernel_is_ready()
    assert not said  # HF_GLM_ERNIE_CPU_KERNEL=0
    monkeypatch.setitem(weight_only_cpu._state, "asked", False)
    monkeypatch.delenv("HF_GLM_ERNIE_CPU_KERNEL")
    linear = make_linear(16, 32, 4)
    assert linear(torch.randn(1, 32).bfloat16()).dtype == torch.bfloat16
    linear(torch.randn(1, 32).bfloat16())
    assert len(said) == 1
    assert "x86-64" in said[0]
    assert "HF_GLM_ERNIE_CPU_KERNEL=0" in said[0]


def test_wrong_inputs_are_named() -> None:
    linear = make_linear(32, 64, 4)
    with pytest.raises(TypeError, match="int64"):
        linear(torch.ones(1, 64, dtype=torch.int64))
    with pytest.raises(ValueError, match="in_features = 64"):
        linear(torch.ones(1, 32))
    with pytest.raises(ValueError, match="input is on meta and the weight on cpu"):
        linear(torch.ones(1, 64, device="meta"))


def test_a_linear_made_of_a_linear() -> None:
    plain = nn.Linear(64, 32).bfloat16().eval()
    linear = WeightOnlyLinear.from_linear(plain, 8)
    assert isinstance(linear, nn.Linear)
    assert not linear.training
    assert linear.bias.dtype == torch.bfloat16
    back = linear.to_linear(torch.bfloat16)
    assert type(back) is nn.Linear
    assert torch.equal(back.bias, plain.bias)
    assert (back.weight - plain.weight).abs().max() <= linear.weight_scale.max() * 0.75
    assert "bits=8" in repr(linear)


def test_a_weight_anywhere_in_memory() -> None:
    """torch's 8-bit operator ends the process at an address that is no multiple of 16; safetensors promises 8."""
    out_features, in_features = 32, 32
    x = torch.randn(4, in_features).bfloat16()
    memory = torch.zeros(out_features * in_features + 64, dtype=torch.int8)
    values = torch.randint(-127, 128, (out_features * in_features,), dtype=torch.int8)
    scale = torch.ones(out_features, 1, dtype=torch.float16)
    expected = x.float() @ values.view(out_features, in_features).float().T
    for offset in (8, 1, 16):
        start = -memory.data_ptr() % 16 + offset
        weight = memory[start : start + values.numel()]
        weight.copy_(values)
        y = kernels.multiply(
            x, weight.view(1, out_features, in_features), scale, None, 8, kernels.RELEASED, "torch_int8"
        )
        torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
