"""Runs the Triton kernels under Triton's interpreter on the CPU and prints what came out, a line of JSON a case. The
names of the cases (`kernel_cases.py`) come on stdin, a line each.

A program of its own: the interpreter is chosen by a variable that must be set before Triton is imported, and the
process of the tests has it imported otherwise. An error is measured in units of what may be lost (`allowed`).
"""

import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F

from hf_glm_ernie import weight_only_triton as on_gpu
from hf_glm_ernie.weight_only import dequantize, quantize, to_storage
from hf_glm_ernie.weight_only_kernels import RELEASED, multiply
from tests.reference import weight_only_naive as naive
from tests.support.kernel_cases import CASES, Case

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
KERNELS = {"rows": on_gpu.rows_linear, "dot": on_gpu.dot_linear, "dequantize": on_gpu.dequantized_linear}
# Of the result, for its rounding: half a unit of fp16's 11 bits; a whole one of bf16's 8, for the interpreter cuts
# bf16 off where a device rounds.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}
launches: list[str] = []


def weights(rows: int, columns: int, groups: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (N, K) and scales (N, G) of a weight whose rows are of different sizes."""
    generator = torch.Generator().manual_seed(rows + columns)
    weight = torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 1, rows)[:, None]
    return quantize(weight, bits, groups)


def values_of(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the kernels multiply, in fp64: values rounded to fp16; for bf16 exact products of integers and scales."""
    if dtype != torch.bfloat16:
        return dequantize(q, scale).double()
    return q.double() * scale.double().repeat_interleave(q.shape[1] // scale.shape[1], 1)


def allowed(case: Case, products: torch.Tensor, expected: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What a result may be off by; products: sums of absolute values."""
    rounding = ROUNDING[DTYPES[case.dtype]]
    bound = rounding * expected.abs() + 2.0**-20 * products  # fp32 sums in any order
    if case.kernel == "dequantize" and bias is not None:  # torch's product is rounded without the bias, and the bias
        bound += rounding * (bias.double().abs() + (expected - bias.double()).abs())
    if case.dtype == "bf16" and (case.kernel == "transposed" or (case.kernel == "dequantize" and case.shape[2] > 1)):
        bound += (2.0**-7 + 2.0**-11) * products  # there each value is rounded to fp16 and then to bf16
    return bound


def run(case: Case) -> dict[str, Any]:
    """Error, whether a second run gives the same bits, and the launches of one run."""
    torch.manual_seed(case.rows)
    dtype = DTYPES[case.dtype]
    q, scale = weights(*case.shape, case.bits)
    values, stored = values_of(q, scale, dtype), to_storage(q, case.bits)
    bias = torch.randn(case.shape[0]) if case.bias else None
    if case.kernel == "transposed":
        values = values.T
    x = torch.randn(case.rows, values.shape[1]).to(dtype)
    expected = F.linear(x.double(), values, None if bias is None else bias.double())
    bound = allowed(case, x.double().abs() @ values.T.abs(), expected, bias)

    def call() -> torch.Tensor:
        if case.kernel == "transposed":
            return on_gpu.transposed(x, stored, scale, case.bits)
        return KERNELS[case.kernel](x, stored, scale, bias, case.bits)

    launches.clear()
    y = call()
    made = list(launches)
    error = (y.double() - expected).abs() / bound.clamp(min=1e-30)
    result = {"error": error.max().item() if y.numel() else 0.0, "shape": list(y.shape), "dtype": str(y.dtype)}
    return result | {"repeats": torch.equal(y, call()), "launches": made}


def exact(bits: int, kernel: str, dtype: str = "fp16") -> dict[str, Any]:
    """Values as a kernel has them, read out by rows of x with a single 1."""
    generator = torch.Generator().manual_seed(bits)
    columns, outputs = (64, 256) if bits == 4 else (256, 128)
    q = (torch.arange(columns) % 2**bits - 2 ** (bits - 1)).to(torch.int8).repeat(outputs, 1)
    # Scales of every size that fp16 has, subnormal ones too, up to where the largest value leaves it.
    largest = (torch.tensor(65504.0 / 2 ** (bits - 1)).half().view(torch.int16) - 1).item()
    scale = torch.randint(1, largest, (outputs, 1), generator=generator).to(torch.int16).view(torch.float16)
    scale[:3, 0] = torch.tensor([1, 1023, 1024], dtype=torch.int16).view(torch.float16)
    x = torch.eye(columns, dtype=DTYPES[dtype])[: 4 if kernel == "rows" else columns]
    y = KERNELS[kernel](x, to_storage(q, bits), scale, None, bits)
    return {"equal": torch.equal(y.T, dequantize(q, scale, DTYPES[dtype])[:, : x.shape[0]])}


def by_hand(bits: int, kernel: str) -> dict[str, Any]:
    """Against the reference in plain Python; fp16."""
    q, scale = weights(5, 64, 2 if kernel == "dequantize" else 1, bits)
    x, bias = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).half(), torch.linspace(-1, 1, 5)
    y = KERNELS[kernel](x, to_storage(q, bits), scale, bias, bits)
    expected = torch.tensor(naive.linear(x.tolist(), q.tolist(), scale.tolist(), bias.tolist()))
    return {"error": ((y - expected).abs() / expected.abs().clamp(min=0.1)).max().item()}


def odd(kernel: str) -> dict[str, bool]:
    """Tensors that lie oddly, through the function that `WeightOnlyLinear` calls."""
    found = {}
    for bits in (4, 8):
        q, scale = weights(24, 128, 1, bits)
        stored, bias = to_storage(q, bits), torch.randn(24)
        x = torch.randn(3, 128).half()

        def product(x: torch.Tensor, weight: torch.Tensor, bits: int = bits, s: Any = scale, b: Any = bias) -> Any:
            return multiply(x, weight, s, b, bits, RELEASED, f"triton_{kernel}")

        expected = product(x, stored)
        found[f"{bits} x transposed"] = torch.equal(product(x.T.contiguous().T, stored), expected)
        wide = torch.zeros(3, 130).half()
        wide[:, 1:129] = x
        found[f"{bits} x is a slice"] = torch.equal(product(wide[:, 1:129], stored), expected)
        for offset in (1, 2, 8):
            memory = torch.zeros(stored.numel() + offset, dtype=torch.int8)
            memory[offset:] = stored.flatten()
            found[f"{bits} weight at {offset}"] = torch.equal(product(x, memory[offset:].view(stored.shape)), expected)
        spread = torch.stack([stored, stored], -1)[..., 0]
        found[f"{bits} weight spread"] = torch.equal(product(x, spread), expected)
        found[f"{bits} no rows"] = product(x[:0], stored).shape == (0, 24)
        negative = product(x, stored, s=-scale, b=None)
        found[f"{bits} negative scales"] = torch.equal(negative, -product(x, stored, b=None))
    return found


def say(what: str, found: dict[str, Any]) -> None:
    """A line of the answer."""
    sys.stdout.write(json.dumps({"what": what, **found}) + "\n")


def main() -> None:
    """Runs what is asked for, and what is no case of a table."""
    launch = on_gpu._launch

    def watched(kernel: Any, grid: Any, *args: Any, **meta: Any) -> None:
        launches.append(kernel.__name__ if hasattr(kernel, "__name__") else kernel.fn.__name__)
        launch(kernel, grid, *args, **meta)

    on_gpu._launch = watched
    wanted = set(sys.stdin.read().splitlines())
    for case in CASES:
        if case.name in wanted:
            say(case.name, run(case))
    for bits in (4, 8):
        for kernel in KERNELS:
            say(f"exact {bits} {kernel}", exact(bits, kernel))
            say(f"by hand {bits} {kernel}", by_hand(bits, kernel))
    say("exact fp32", exact(4, "rows", "fp32"))
    for kernel in KERNELS:
        say(f"odd {kernel}", odd(kernel))


if __name__ == "__main__":
    main()
