"""The Triton kernels of integer weights, as Triton's interpreter runs them on the CPU, and which of them is chosen.

What the interpreter cannot show (inline assembly, registers, the device's own rounding) is shown elsewhere.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_glm_ernie import weight_only_kernels as kernels
from hf_glm_ernie import weight_only_tiles as tiles
from hf_glm_ernie import weight_only_triton as on_gpu
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear
from tests.support.kernel_cases import CASES, Case

ROOT = Path(__file__).parents[1]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def interpreted(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """What the chosen cases gave; all of them in one process, for starting one takes longer than most cases."""
    chosen = [getattr(item, "callspec", None) for item in request.session.items]
    names = [one.params["case"].name for one in chosen if one and isinstance(one.params.get("case"), Case)]
    names = names or [case.name for case in CASES if case.is_quick]
    program = [sys.executable, "-m", "tests.support.interpreted_kernels"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        program, cwd=ROOT, env=environment, input="\n".join(names), capture_output=True, text=True, check=False
    )
    found = {line["what"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, done.stderr[-3000:]
    return found


@needs_triton
@pytest.mark.parametrize(
    "case",
    [case if case.is_quick else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
    ids=lambda c: c.name,
)
def test_a_kernel_against_dequantizing_in_fp64(interpreted: dict[str, dict[str, Any]], case: Case) -> None:
    found = interpreted[case.name]
    width = case.shape[1] if case.kernel == "transposed" else case.shape[0]
    assert found["shape"] == [case.rows, width]
    # In units of what roundings allow (interpreted_kernels.allowed); the worst seen are 0.990 (fp16), 0.99 (bf16, cut
    # off there) and 0.3 (fp32).
    assert found["error"] <= 1
    assert found["repeats"]  # bit for bit: parts of a split sum are added in order
    if case.kernel in ("rows", "dot"):
        assert len(found["launches"]) <= 2
        assert found["launches"][0] == f"{case.kernel}_kernel"


@needs_triton
def test_some_cases_split_their_columns(interpreted: dict[str, dict[str, Any]]) -> None:
    for kernel in ("rows", "dot"):
        split = [name for name, found in interpreted.items() if "sum_kernel" in found.get("launches", [])]
        assert [name for name in split if name.startswith(kernel)]


@needs_triton
@pytest.mark.parametrize("kernel", ["rows", "dot", "dequantize"])
@pytest.mark.parametrize("bits", [4, 8])
def test_fp16_values_are_those_of_the_original(interpreted: dict[str, dict[str, Any]], bits: int, kernel: str) -> None:
    """Every integer with scales of every size that fp16 has: the product rounded to fp16, bit for bit."""
    assert interpreted[f"exact {bits} {kernel}"]["equal"]
    assert interpreted["exact fp32"]["equal"]
    # Half a unit of fp16 (2 ** -11 = 4.9e-4) of the result, twice where torch adds the bias; seen: 4.1e-4.
    assert interpreted[f"by hand {bits} {kernel}"]["error"] < 4.9e-4


@needs_triton
@pytest.mark.parametrize("kernel", ["rows", "dot", "dequantize"])
def test_tensors_that_lie_oddly(interpreted: dict[str, dict[str, Any]], kernel: str) -> None:
    """Slices, transposed activations, weights at any byte, no rows at all, scales below zero."""
    found = {name: right for name, right in interpreted[f"odd {kernel}"].items() if name != "what"}
    assert len(found) == 16
    assert all(found.values()), found


# Which kernel is chosen.

CARDS = {
    "V100": ((7, 0), 80),
    "2080 Ti": ((7, 5), 68),
    "3090": ((8, 6), 82),
    "A100": ((8, 0), 108),
    "H200": ((9, 0), 132),
}
CUDA = torch.device("cuda", 0)


def forget() -> None:
    for function in (on_gpu.device_capability, on_gpu.problem, on_gpu.rows_plan, on_gpu.dot_plan):
        function.cache_clear()


@pytest.fixture
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Devices that are this card."""
    capability, processors = CARDS[request.param]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=processors)
    )
    forget()
    yield request.param
    forget()


CHOSEN = {  # card -> kernels for 1, 4, 5, 16 and 300 rows of one weight
    "V100": ("rows", "rows", "rows", "rows", "dequantize"),
    "2080 Ti": ("rows", "rows", "dot", "dot", "dequantize"),
    "3090": ("rows", "rows", "dot", "dot", "dequantize"),
    "A100": ("dot", "dot", "dot", "dot", "dequantize"),
    "H200": ("dot", "dot", "dot", "dot", "dequantize"),
}


@needs_triton
@pytest.mark.parametrize("card", CARDS, indirect=True)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_kernel_follows_the_card_and_the_rows(card: str, bits: int) -> None:
    for rows, name in zip((1, 4, 5, 16, 300), CHOSEN[card], strict=True):
        choice = kernels.choose_kernel(CUDA, torch.float16, bits, 12288, 12288, 1, rows)
        assert choice.name == f"triton_{name}", (rows, choice)
        assert f"{rows} rows" in choice.reason


@needs_triton
@pytest.mark.parametrize("card", ["A100"], indirect=True)
def test_odd_shapes_and_dtypes_have_a_kernel_too(card: str) -> None:
    def choose(bits: int, columns: int, groups: int, rows: int, dtype: torch.dtype = torch.bfloat16) -> str:
        return kernels.choose_kernel(CUDA, dtype, bits, columns, 512, groups, rows).name

    assert choose(4, 1024, 32, 1) == "triton_rows"  # groups of 32 columns: 8 words, less than a step of a tensor core
    assert choose(4, 1024, 32, 28) == "triton_dequantize"
    assert choose(4, 1024, 16, 1) == choose(8, 1024, 32, 1) == "triton_dot"
    assert choose(4, 1024, 1, 1, torch.float32) == "triton_rows"
    assert choose(4, 1030, 1, 1) == choose(8, 99, 1, 1) == choose(4, 60, 10, 1) == "triton_dequantize"
    assert choose(4, 1024, 1, 0) == "triton_dequantize"


@pytest.mark.parametrize("what", ["triton", "an old card", "rocm", "another device"])
def test_without_the_kernels_blocks_are_taken_and_the_reason_is_said(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, said = CUDA, "below 7.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=28))
    if what == "triton":
        monkeypatch.setattr(on_gpu, "triton", None)
        said = "Triton is not installed"
    elif importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    elif what == "rocm":
        monkeypatch.setattr(torch.version, "hip", "6.4")
        said = "ROCm"
    elif what == "another device":
        device, said = torch.device("xpu"), "not for xpu"
    forget()
    choice = kernels.choose_kernel(device, torch.float16, 4, 128, 128, 1, 1)
    forget()
    assert choice.name == "blocks"
    assert said in choice.reason


def test_the_modules_can_be_imported_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\nfrom hf_glm_ernie.weight_only_linear import WeightOnlyLinear, choose_kernel\n"
        "from hf_glm_ernie import weight_only_triton\n"
        "print(WeightOnlyLinear(64, 32)(torch.ones(1, 64)).shape[1])\n"
        "print(choose_kernel(torch.device('cuda'), torch.float16, 4, 64, 64, 1, 1).name)\n"
        "print(weight_only_triton.problem(torch.device('cuda')))\n"
    )
    # not a fresh_python: torch has found Triton in it
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["32", "blocks", "Triton is not installed (pip install triton)"]


def test_parts_of_columns_keep_multiprocessors_busy() -> None:
    """96 blocks on an H100, of which 132 could run: four parts make 2.9 for each; few turns are not cut further."""
    assert tiles.parts_of_columns(96, 48, 132) == 4
    assert tiles.parts_of_columns(256, 48, 132) == 1
    assert tiles.parts_of_columns(24, 48, 132) == 11
    assert tiles.parts_of_columns(6, 3, 132) == 1


def test_a_bias_is_trained_where_the_input_is_not() -> None:
    for shape in ((64,), (3, 64), (2, 3, 64), (0, 64)):
        linear = WeightOnlyLinear.from_linear(torch.nn.Linear(64, 32), 4)
        y = linear(torch.randn(shape))
        up = torch.randn_like(y)
        y.backward(up)
        assert torch.equal(linear.bias.grad, up.reshape(-1, 32).sum(0))


def test_blocks_on_accelerators_are_large() -> None:
    """A weight of GLM-130B's attention in 5 blocks; on the CPU, where a block stays in the cache, in 73."""
    weight, scale = torch.empty(12288, 6144, dtype=torch.int8, device="meta"), torch.empty(12288, 1, device="meta")
    block = kernels._Block(weight, scale, 4, torch.float16, integers=False)
    assert -(-12288 // block.rows) == 5
    assert -(-12288 // (kernels.BLOCK_WEIGHTS // 12288)) == 73
