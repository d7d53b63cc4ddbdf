"""A few instructions of PTX in numpy, for the inline assembly of the kernels: every input, no card.

A register holds 32 bits; the packed ones hold two values of 16. What a block of assembly writes to is `$0`, `$1`, ...,
what it reads follows, as in Triton's `inline_asm_elementwise`. From the PTX ISA, sections 9.7.8 (`lop3`, `shr`), 9.7.9
(`mov`, `prmt`) and 9.7.4 (packed arithmetic: one rounding to nearest even, subnormals kept).
"""

import re
from collections.abc import Callable

import numpy as np

Bits = np.ndarray  # of uint32


def run(assembly: str, outputs: int, *inputs: Bits) -> list[Bits]:
    """What a block writes, register by register.

    Args:
        assembly: `{ .reg .b32 a; shr.u32 a, $2, 8; ... }`.
        outputs: Registers that it writes, `$0` first.
        inputs: What stands in the registers after those.
    """
    registers: dict[str, Bits] = {f"${outputs + place}": value for place, value in enumerate(inputs)}
    for statement in re.sub(r"//.*", "", assembly).strip().strip("{}").split(";"):
        name, _, operands = statement.strip().partition(" ")
        if not name or name == ".reg":
            continue
        target, *sources = (word.strip() for word in operands.split(","))
        registers[target] = INSTRUCTIONS[name](*(_value(source, registers) for source in sources))
    return [registers[f"${place}"] for place in range(outputs)]


def _value(word: str, registers: dict[str, Bits]) -> Bits:
    return registers[word] if word in registers else np.uint32(int(word, 0))


def lop3(a: Bits, b: Bits, c: Bits, table: Bits) -> Bits:
    """Bit by bit the entry of the table at (a, b, c)."""
    result = np.uint32(0)
    for entry in range(8):
        if int(table) >> entry & 1:
            parts = (value if entry & bit else ~value for value, bit in ((a, 4), (b, 2), (c, 1)))
            result = result | np.bitwise_and.reduce(np.broadcast_arrays(*parts))
    return result


def prmt(a: Bits, b: Bits, selector: Bits) -> Bits:
    """Four bytes of the eight of a (0 to 3) and b (4 to 7); with bit 3 of the selector, their sign in every bit."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.uint64(0)
    for place in range(4):
        choice = int(selector) >> 4 * place & 15
        byte = both >> np.uint64(8 * (choice & 7)) & np.uint64(255)
        if choice & 8:
            byte = (byte >> np.uint64(7)) * np.uint64(255)
        result = result | byte << np.uint64(8 * place)
    return result.astype(np.uint32)


def halves(bits: Bits, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The two values of a packed register, low half first, in fp64."""
    low, high = (bits & np.uint32(0xFFFF)).astype(np.uint16), (bits >> np.uint32(16)).astype(np.uint16)
    if dtype == "f16x2":
        return low.view(np.float16).astype(np.float64), high.view(np.float16).astype(np.float64)
    wide = (half.astype(np.uint32) << np.uint32(16) for half in (low, high))
    first, second = (half.view(np.float32).astype(np.float64) for half in wide)
    return first, second


def packed(low: np.ndarray, high: np.ndarray, dtype: str) -> Bits:
    """The inverse of [`halves`], rounding to nearest even."""
    return _rounded(low, dtype) | _rounded(high, dtype) << np.uint32(16)


def _rounded(value: np.ndarray, dtype: str) -> Bits:
    if dtype == "f16x2":
        return np.asarray(value).astype(np.float16).view(np.uint16).astype(np.uint32)
    single = np.asarray(value).astype(np.float32)
    assert (single == value).all(), "what is rounded to bf16 here is exact in fp32, or it would be rounded twice"
    bits = single.view(np.uint32)
    return (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)


def _packed(operation: Callable[..., np.ndarray], dtype: str) -> Callable[..., Bits]:
    """An operation on two values at once. fp64 holds its result exactly as long as the operands are alike in size."""

    def on_both(*operands: Bits) -> Bits:
        lanes = zip(*(halves(np.asarray(operand, np.uint32), dtype) for operand in operands), strict=True)
        low, high = (operation(*lane) for lane in lanes)
        return packed(low, high, dtype)

    return on_both


INSTRUCTIONS: dict[str, Callable[..., Bits]] = {
    "mov.b32": lambda a: a,
    "shr.u32": lambda a, count: a >> count,
    "shr.b32": lambda a, count: a >> count,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "lop3.b32": lop3,
    "prmt.b32": prmt,
    **{
        f"{name}.{dtype}": _packed(operation, dtype)
        for dtype in ("f16x2", "bf16x2")
        for name, operation in (
            ("fma.rn", lambda a, b, c: a * b + c),
            ("add.rn", lambda a, b: a + b),
            ("add", lambda a, b: a + b),
            ("sub.rn", lambda a, b: a - b),
            ("sub", lambda a, b: a - b),
            ("mul.rn", lambda a, b: a * b),
            ("mul", lambda a, b: a * b),
        )
    },
}
