"""The kernels of integer weights on a GPU: `pytest -m gpu`. The same on the CPU, interpreted: see tests/README.md."""

import itertools

import pytest
import torch
from torch import nn

from hf_glm_ernie.weight_only import dequantize, from_storage, storage_shape
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear
from hf_glm_ernie.weight_only_triton import (
    dequantized_linear,
    dot_linear,
    dot_plan,
    problem,
    rows_linear,
    rows_plan,
    transposed,
)

MISSING = problem(torch.device("cuda")) if torch.cuda.is_available() else "no GPU"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(MISSING), reason=f"needs an NVIDIA GPU that torch can use: {MISSING}"),
]
DEVICE = torch.device("cuda:0")
KERNELS = {"rows": rows_linear, "dot": dot_linear, "dequantize": dequantized_linear}
PLANS = {"rows": rows_plan, "dot": dot_plan}
SHAPES = [(33, 68, 1), (130, 384, 3), (256, 4096, 1), (64, 1536, 2)]  # outputs, columns, groups
# Largest difference over the largest result: the result is rounded to its dtype at most twice (fp16 2^-11 each time,
# bf16 2^-8), the sums are fp32.
ALLOWED = {torch.float16: 2**-10, torch.bfloat16: 2**-7}


def weight(outputs: int, columns: int, groups: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(outputs + columns + bits)
    stored = torch.randint(-127, 128, storage_shape(outputs, columns, bits), generator=generator, dtype=torch.int8)
    scale = (torch.rand(outputs, groups, generator=generator) + 0.5) * (0.1 / 2 ** (bits - 1))
    return stored.to(DEVICE), scale.half().to(DEVICE)


def takes(name: str, bits: int, rows: int, shape: tuple[int, int, int]) -> bool:
    outputs, columns, groups = shape
    return name not in PLANS or PLANS[name](DEVICE, bits, rows, outputs, columns, groups) is not None


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", KERNELS)
def test_products_are_those_of_fp64_and_repeat(name: str, bits: int, dtype: torch.dtype) -> None:
    held = 0
    for shape, rows in itertools.product(SHAPES, (1, 2, 3, 5, 17, 70)):
        if not takes(name, bits, rows, shape):
            continue
        stored, scale = weight(*shape, bits)
        x = torch.randn(rows, shape[1], device=DEVICE, dtype=dtype)
        bias = torch.randn(shape[0], device=DEVICE, dtype=dtype)
        q = from_storage(stored, bits)
        values = dequantize(q, scale, torch.float64)
        if dtype == torch.bfloat16:  # exact integers and scales
            values = (q.double().unflatten(1, (shape[2], -1)) * scale.double()[:, :, None]).flatten(1)
        expected = x.double() @ values.T + bias.double()
        y = KERNELS[name](x, stored, scale, bias, bits)
        assert (y.double() - expected).abs().max() <= ALLOWED[dtype] * expected.abs().max(), (shape, rows)
        assert torch.equal(y, KERNELS[name](x, stored, scale, bias, bits)), (shape, rows)
        held += 1
    assert held


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", KERNELS)
def test_fp16_values_are_those_of_the_format_bit_for_bit(name: str, bits: int) -> None:
    """Rows of the unit matrix pick single values; scales from the smallest to the largest."""
    stored, scale = weight(64, 256, 2, bits)
    scale[:7] = torch.tensor([1.0, 0.1, 1e-4, 6.1e-5, 1.3e-6, 6e-8, 300.0], device=DEVICE).half()[:, None]
    unit = torch.eye(256, device=DEVICE, dtype=torch.float16)
    found = torch.cat([KERNELS[name](rows, stored, scale, None, bits) for rows in unit.split(4)]).T
    assert torch.equal(found, dequantize(from_storage(stored, bits), scale, torch.float16))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_gradient_is_that_of_the_values(bits: int) -> None:
    stored, scale = weight(130, 384, 3, bits)
    y = torch.randn(5, 130, device=DEVICE, dtype=torch.float16)
    expected = y.double() @ dequantize(from_storage(stored, bits), scale, torch.float64)
    found = transposed(y, stored, scale, bits).double()
    assert (found - expected).abs().max() <= ALLOWED[torch.float16] * expected.abs().max()


@pytest.mark.parametrize("rows", [1, 8, 300])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_layer_compiles_and_is_captured(bits: int, rows: int) -> None:
    linear = WeightOnlyLinear.from_linear(nn.Linear(256, 128), bits).to(DEVICE)
    x, other = torch.randn(2, rows, 256, device=DEVICE, dtype=torch.float16)
    with torch.inference_mode():
        expected, expected_of_other = linear(x), linear(other)
        assert torch.equal(torch.compile(linear, fullgraph=True)(x), expected)
        graph, held = torch.cuda.CUDAGraph(), x.clone()
        with torch.cuda.graph(graph):
            y = linear(held)
        held.copy_(other)
        graph.replay()
        torch.cuda.synchronize()
    assert torch.equal(y, expected_of_other)


def test_weights_of_a_second_device_run_there() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two NVIDIA GPUs that torch can use")
    linear = WeightOnlyLinear.from_linear(nn.Linear(256, 128), 4).to(DEVICE)
    x = torch.randn(1, 256, device=DEVICE, dtype=torch.float16)
    expected = linear(x)
    with torch.cuda.device(0):  # while the first is current
        assert torch.equal(linear.to("cuda:1")(x.to("cuda:1")).to(DEVICE), expected)
