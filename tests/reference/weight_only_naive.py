"""The weight-only format number by number in plain Python, without torch: slow, and meant to be obviously right."""

import struct
from fractions import Fraction

Rows = list[list[int]]
Values = list[list[float]]


def half(value: float) -> float:
    """The nearest fp16 number (ties to even)."""
    return struct.unpack("<e", struct.pack("<e", value))[0]


def single(value: float) -> float:
    """The nearest fp32 number."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def next_half(value: float) -> float:
    """The next larger fp16 number of a positive one."""
    (pattern,) = struct.unpack("<H", struct.pack("<e", value))
    return struct.unpack("<e", struct.pack("<H", pattern + 1))[0]


def scale_of(group: list[float], bits: int) -> float:
    """Scale of one group: its largest absolute value takes the largest integer."""
    largest = 2 ** (bits - 1) - 1
    absmax = max(abs(value) for value in group)
    if absmax == 0:
        return 1.0
    scale = half(single(absmax / largest))
    # A rounded scale may leave the largest value out of reach only where fp16 is coarse (subnormal).
    return next_half(scale) if absmax > (largest + 0.5) * scale else scale


def nearest_integer(value: float) -> int:
    """Rounds half to even."""
    return round(Fraction(value))


def quantize(weight: Values, bits: int, num_groups: int, halves: bool) -> tuple[Rows, Values]:
    """Integers and scales; `halves`: the weight is fp16, so that the quotient is rounded to fp16 before it is rounded
    to an integer.
    """
    largest = 2 ** (bits - 1) - 1
    integers, scales = [], []
    for row in weight:
        size = len(row) // num_groups
        row_integers, row_scales = [], []
        for g in range(num_groups):
            group = row[g * size : (g + 1) * size]
            scale = scale_of(group, bits)
            row_scales.append(scale)
            for value in group:
                quotient = half(value / scale) if halves else single(value / scale)
                row_integers.append(max(-largest, min(largest, nearest_integer(quotient))))
        integers.append(row_integers)
        scales.append(row_scales)
    return integers, scales


def dequantize(integers: Rows, scales: Values) -> Values:
    """Products rounded to fp16."""
    return [
        [half(q * row_scales[k // (len(row) // len(row_scales))]) for k, q in enumerate(row)]
        for row, row_scales in zip(integers, scales, strict=True)
    ]


def pack_int4(integers: Rows) -> Rows:
    """Bytes as signed numbers: even column high, odd column low."""
    packed = []
    for row in integers:
        unsigned = [(row[2 * j] % 16) * 16 + row[2 * j + 1] % 16 for j in range(len(row) // 2)]
        packed.append([byte - 256 if byte > 127 else byte for byte in unsigned])
    return packed


def linear(x: Values, integers: Rows, scales: Values, bias: list[float] | None) -> Values:
    """`x @ weight.T + bias` in Python's doubles."""
    weight = dequantize(integers, scales)
    return [
        [
            sum(a * b for a, b in zip(row, column, strict=True)) + (bias[n] if bias is not None else 0.0)
            for n, column in enumerate(weight)
        ]
        for row in x
    ]
