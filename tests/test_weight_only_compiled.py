"""The GPU kernels' machine code: what every card will run, compiled and read without one, and its inline assembly.

What this cannot show: speed, races, and how the hardware rounds. docs/gpu-kernels.md says how it is done.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.kernel_table import CASES, PROCESSORS, busiest, for_rows, slots_over_need
from hf_glm_ernie import weight_only_triton_kernels as kernels
from hf_glm_ernie.weight_only import dequantize
from tests.support.ahead_of_time import Compiled, compiled_elsewhere, inner_loop, loaded_bytes, opcode, problem
from tests.support.assembly import halves, packed, run

PAGE = Path(__file__).parents[1] / "docs" / "gpu-kernels.md"
needs_triton = pytest.mark.skipif(bool(problem()), reason=problem() or "Triton is here")

# What users' cards take first, by capability: one scale a row for one and eight rows, and what differs beside it. The
# slow test below compiles the rest.
FIRST = r"INT[48] dot \w+ 8 rows, 1 groups, split"
WANTED = {
    70: r"INT4 rows (fp16|bf16) 1 rows, 1 groups, split",
    75: r"INT[48] rows \w+ 1 rows, 1 groups, split|INT4 rows fp16 4 rows, 1 groups, split"
    r"|INT4 dot bf16 8 rows, 1 groups, split",
    80: FIRST + r"|INT4 dot fp16 (8 rows, 1 groups$|8 rows, (16|96) groups, split|(16|32|64) rows, 1 groups, split)"
    r"|INT4 dequantize fp16|sum",
    86: FIRST + r"|INT[48] rows \w+ 1 rows, 1 groups, split",
    89: r"INT[48] rows \w+ 1 rows, 1 groups, split",
    90: FIRST + r"|INT4 dot \w+ (16|96) groups|INT4 dot bf16 8 rows, 16 groups, split|INT4 dot fp16 64 rows, 1 .*t$",
}
SHARED = {70: 96, 75: 64, 80: 163, 86: 99, 89: 99, 90: 227}  # KB a block may have, CUDA C++ Programming Guide


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Compiled]:
    found = compiled_elsewhere(tmp_path_factory.mktemp("triton"), WANTED)
    assert {one.capability for one in found} == set(WANTED)
    return found


@needs_triton
def test_nothing_is_spilled_and_blocks_fit(compiled: list[Compiled]) -> None:
    for one in compiled:
        assert one.stack == 0, one
        assert one.registers * one.threads <= 65536, one  # of a multiprocessor
        assert one.shared <= 1024 * SHARED[one.capability], one


@needs_triton
def test_two_blocks_of_one_token_share_a_multiprocessor(compiled: list[Compiled]) -> None:
    """While one block waits for its loads or its barrier another computes."""
    total = {70: 96, 75: 64, 80: 164, 86: 100, 89: 100, 90: 228}  # KB of a multiprocessor; a block costs one KB more
    for one in compiled:
        if one.tile_rows in (1, 8):
            assert 2 * one.registers * one.threads <= 65536, one
            assert 2 * (one.shared + 1024) <= 1024 * total[one.capability], one


@needs_triton
def test_the_loop_reads_its_tile_once(compiled: list[Compiled]) -> None:
    """The loop that is counted is the loop over the columns, and it was not unrolled: it loads the bytes of a tile."""
    for one in compiled:
        if one.loop and re.match(r"INT\d dot \w+ \d+ rows, 1 groups", one.name):
            bits = int(one.name[3])
            for outputs in (32, 64, 128, 256):
                columns = one.weights // outputs
                if one.loaded * one.threads == one.weights * bits // 8 + 2 * one.tile_rows * columns:
                    break
            else:
                pytest.fail(f"{one}: reads something else than a tile of weights and of activations")


@needs_triton
def test_instructions_a_weight(compiled: list[Compiled]) -> None:
    """Bounds just above what Triton 3.7.1 gives: the smaller tiles of 8.6 take the most."""
    limits = {"INT4 dot": 2.4, "INT8 dot": 3.3, "INT4 rows": 4.2, "INT8 rows": 4.6}
    seen = 0
    for one in compiled:
        fits = one.tile_rows in (1, 8) and "1 groups" in one.name
        if fits and one.loop and (one.capability >= 80 or "rows fp" in one.name or "rows bf" in one.name):
            assert one.instructions <= limits[" ".join(one.name.split()[:2])], one
            seen += 1
    assert seen >= 16


@needs_triton
@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: one.card)
def test_a_card_can_issue_what_its_memory_delivers(compiled: list[Compiled], processor: object) -> None:
    """At one row, where nothing but the memory should be the limit; by every unit, not the issue slots alone."""
    for _, bits, dtype in CASES:
        one = for_rows(compiled, processor.capability, bits, dtype, 1)
        assert slots_over_need(processor, one.instructions, bits) >= 1.0, one
        assert slots_over_need(processor, busiest(one)[0], bits) >= 1.0, one


def test_the_formula() -> None:
    """By hand: 132 * 4 * 32 * 1.83e9 / 1.75 / 2 bytes a second over 4.8e12."""
    h200 = next(one for one in PROCESSORS if one.card == "H200")
    assert slots_over_need(h200, 1.75, 4) == pytest.approx(1.841, abs=0.001)


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(1800)  # 745 variants at about 0.6 s of processor time each, one after the other
def test_every_variant(tmp_path: Path) -> None:
    """All groups, tiles and dtypes. On 8.0 and 9.0 the rows kernel is taken only where no dot kernel is."""
    wanted = {70: r"INT\d rows", 75: ".", 80: "INT. d|sum", 86: ".", 89: ".", 90: "INT. d|sum"}
    for one in compiled_elsewhere(tmp_path, wanted):
        assert one.stack == 0, one
        assert one.shared <= 1024 * SHARED[one.capability], one


LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
.L_x_0:
        /*0020*/              @!P0 LOP3.LUT R4, R4, 0xf, RZ, 0xc0, !PT ;
        /*0030*/                   LDGSTS.E.BYPASS.LTC128B.128 [R9], [R6.64] ;
        /*0040*/                   NOP ;
        /*0050*/               @P0 BRA `(.L_x_0) ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   BRA `(.L_x_2) ;
"""


def test_the_inner_loop_is_found() -> None:
    loop = inner_loop(LISTING)
    assert [opcode(line) for line in loop] == ["LOP3", "LDGSTS", "BRA"]
    assert [loaded_bytes(line) for line in loop] == [0, 16, 0]
    assert inner_loop("") == []


# The inline assembly, over every word --------------------------------------------------------------------------------

LOW = np.arange(65536, dtype=np.uint32)
HIGH = np.random.default_rng(0).permutation(LOW)
WORDS = LOW | HIGH << np.uint32(16)


def integers(words: np.ndarray, bits: int) -> list[np.ndarray]:
    """Columns of words, by the rules of the format: the even column of a byte in its high nibble, both signed."""
    pair = [(words >> shift & 255).astype(np.uint8).view(np.int8).astype(np.int64) for shift in (0, 8)]
    if bits == 8:
        return pair
    return [value for byte in pair for value in (byte >> 4, ((byte << 4).astype(np.int8) >> 4).astype(np.int64))]


def twice(value: float) -> np.ndarray:
    both = np.asarray(value)
    assert np.float16(value) == value
    return packed(both, both, "f16x2")


@needs_triton
@pytest.mark.parametrize("bits", [4, 8])
def test_bf16_assembly_gives_the_integers(bits: int) -> None:
    columns = 16 // bits
    results = run(getattr(kernels, f"INT{bits}_BF16").value, columns, WORDS)
    for result, low, high in zip(results, integers(LOW, bits), integers(HIGH, bits), strict=True):
        first, second = halves(result, "bf16x2")
        assert (first == low).all()
        assert (second == high).all()


def fp16_values(bits: int, scale: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the assembly makes of every word with a scale, times what the sum is multiplied with; exact in fp64."""
    mantissa, exponent = np.frexp(scale)
    mantissa, exponent = 2 * mantissa, exponent - 1
    offset = twice(mantissa * (-8 if bits == 4 else -128) / 512)
    factors = (twice(mantissa * 2048), twice(mantissa * 32768)) if bits == 4 else (twice(mantissa * 32768),)
    results = run(getattr(kernels, f"INT{bits}_FP16").value, 16 // bits, WORDS, *factors, offset)
    return [tuple(half * 2.0 ** (exponent + 9) for half in halves(result, "f16x2")) for result in results]


@needs_triton
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale", [1.0, 0.00413513, 2.0**-24, 3 * 2.0**-24, 2.0**-14 - 2.0**-24, 0.3333, 510.5])
def test_fp16_assembly_gives_the_rounded_products(bits: int, scale: float) -> None:
    """The bits of `dequantize`, for ordinary and subnormal scales, and 2^-9 times the integers for scale 1."""
    rounded = torch.tensor([[scale]], dtype=torch.float16)
    for found, words in zip(zip(*fp16_values(bits, rounded.item()), strict=True), (LOW, HIGH), strict=True):
        for value, column in zip(found, integers(words, bits), strict=True):
            expected = dequantize(torch.from_numpy(column.astype(np.int8))[None], rounded)[0]
            assert (value == expected.numpy()).all()


@needs_triton
def test_fp16_assembly_for_every_scale() -> None:
    """All positive finite fp16 numbers, every integer of 4 bits: 31,743 scales by 16."""
    scales = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)
    mantissa, exponent = np.frexp(scales.astype(np.float64))
    mantissa, exponent = 2 * mantissa, exponent - 1
    words = np.repeat(np.arange(16, dtype=np.uint32)[:, None] * np.uint32(0x1111), len(scales), 1)
    factors = [packed(mantissa * size, mantissa * size, "f16x2") for size in (2048, 32768, -8 / 512)]
    for result in run(kernels.INT4_FP16.value, 4, words, *factors):
        value = halves(result, "f16x2")[0] * 2.0 ** (exponent + 9)
        column = integers(words, 4)[0].astype(np.float16)
        with np.errstate(over="ignore"):
            expected = column * scales
        inside = np.isfinite(expected)  # LARGEST_VALUE keeps the products of quantize within fp16
        assert (value[inside] == expected.astype(np.float64)[inside]).all()
