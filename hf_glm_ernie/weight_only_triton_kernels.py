"""Triton kernels for weights that are stored as integers; `weight_only_triton.py` launches them.

Triton is no requirement: where it is missing this module imports all the same, and its functions cannot be launched.

A row of the weight is read as 16-bit words, four columns (4 bits) or two (8 bits) each, as released: byte 2i is the
low half of word i, and of its two columns the even one is the high nibble. So a word holds column 4i in bits 4-7,
4i + 1 in bits 0-3, 4i + 2 in bits 12-15, 4i + 3 in bits 8-11.

fp16: a value is the product of integer and scale rounded to fp16, bit for bit as `weight_only.dequantize` has it, at
the price of one instruction. With `scale = mantissa * 2^e`, 1 <= mantissa < 2, a nibble with its sign bit flipped that
is left where it lies in a word reads as the subnormal fp16 number `u * 2^-24` (or `u * 2^-20`), u = q + 8. One
multiply-add then gives `round(q * mantissa) * 2^-9`: the product is exact, it is rounded once, and it is no subnormal
number, so these are the bits of `round(q * scale)`. What is left, `2^(e + 9)`, multiplies the sum in fp32, which is
exact. fp32 activations are multiplied with the same values.

bf16: the integers are exact in bf16, and the fp32 sum is multiplied with the scale.

The inline assembly does on two words at once what `_column` does on one; it cannot run under Triton's interpreter, so
each use has a plain branch (`ASSEMBLY`). No kernel uses atomic additions: a result repeats bit for bit.

Letters: x (M, K) activations, w (N, words of a row) weight, y (M, N) result; G groups of columns with a scale each.
"""

from types import SimpleNamespace
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None
    tl = SimpleNamespace(constexpr=str)


# Triton compiles anew where a number is 1 or becomes a multiple of 16; of these no code depends on it.
COUNTS = ("M", "tiles", "tiles_a_split")


def _jit(function: Any) -> Any:
    return function if triton is None else triton.jit(function, do_not_specialize=COUNTS)


# Four operands of a dot from two words: $4 the words; fp16: $5, $6 the factors of high and low nibbles, $7 the offset.
# Table 0x6a is (a and b) xor c: it cuts the nibbles out, flips their sign bits and sets the exponent of bf16.
INT4_FP16 = tl.constexpr("""{ .reg .b32 v;
shr.u32 v, $4, 8;
lop3.b32 $0, $4, 0x00f000f0, 0x00800080, 0x6a; lop3.b32 $1, $4, 0x000f000f, 0x00080008, 0x6a;
lop3.b32 $2, v, 0x00f000f0, 0x00800080, 0x6a; lop3.b32 $3, v, 0x000f000f, 0x00080008, 0x6a;
fma.rn.f16x2 $0, $0, $5, $7; fma.rn.f16x2 $1, $1, $6, $7;
fma.rn.f16x2 $2, $2, $5, $7; fma.rn.f16x2 $3, $3, $6, $7; }""")
# 128 + u reads as bf16; less 136 it is q.
INT4_BF16 = tl.constexpr("""{ .reg .b32 a, b, c, m, n;
shr.u32 a, $4, 4; shr.u32 b, $4, 8; shr.u32 c, $4, 12;
lop3.b32 $0, a, 0x000f000f, 0x43084308, 0x6a; lop3.b32 $1, $4, 0x000f000f, 0x43084308, 0x6a;
lop3.b32 $2, c, 0x000f000f, 0x43084308, 0x6a; lop3.b32 $3, b, 0x000f000f, 0x43084308, 0x6a;
mov.b32 m, 0x3f803f80; mov.b32 n, 0xc308c308;
fma.rn.bf16x2 $0, $0, m, n; fma.rn.bf16x2 $1, $1, m, n;
fma.rn.bf16x2 $2, $2, m, n; fma.rn.bf16x2 $3, $3, m, n; }""")
# Two operands from two words: $2 the words, $3 the factor, $4 the offset.
INT8_FP16 = tl.constexpr("""{ .reg .b32 v;
shr.u32 v, $2, 8;
lop3.b32 $0, $2, 0x00ff00ff, 0x00800080, 0x6a; lop3.b32 $1, v, 0x00ff00ff, 0x00800080, 0x6a;
fma.rn.f16x2 $0, $0, $3, $4; fma.rn.f16x2 $1, $1, $3, $4; }""")
# bf16 has no room for the eight bits at once: 128 + low seven bits, less 128 or, with the sign, 256.
INT8_BF16 = tl.constexpr("""{ .reg .b32 v, p, q, m;
shr.u32 v, $2, 8;
lop3.b32 $0, $2, 0x007f007f, 0x43004300, 0xea; lop3.b32 p, $2, 0x00800080, 0x43004300, 0xea;
lop3.b32 $1, v, 0x007f007f, 0x43004300, 0xea; lop3.b32 q, v, 0x00800080, 0x43004300, 0xea;
mov.b32 m, 0xbf80bf80;
fma.rn.bf16x2 $0, p, m, $0; fma.rn.bf16x2 $1, q, m, $1; }""")


@_jit
def _scale_parts(scale, BITS: tl.constexpr, ROUND: tl.constexpr):
    """(N,) fp16 scales -> what becomes of a column that lies high or low in its byte, and of the sum.

    Factors of the two places and the offset, (N, 1) fp16; the fp32 factor (N,) of the sum. With `ROUND` a value is
    `round(q * mantissa) * 2^-9`; without, `q * 2^-9`, and the whole scale comes after the sum.
    """
    wide = scale.to(tl.float32)
    if ROUND:
        bits = wide.to(tl.int32, bitcast=True)
        mantissa = ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
        after = (bits & -0x800000).to(tl.float32, bitcast=True) * 512.0  # with the sign
    else:
        mantissa = tl.full(scale.shape, 1.0, tl.float32)
        after = wide * 512.0
    high = (mantissa * 2048.0).to(tl.float16)[:, None]
    low = (mantissa * 32768.0).to(tl.float16)[:, None]
    offset = (mantissa * (-0.015625 if BITS == 4 else -0.25)).to(tl.float16)[:, None]
    return high, low, offset, after


@_jit
def _column(words, SHIFT: tl.constexpr, BITS: tl.constexpr, low, VALUES: tl.constexpr, DOT: tl.constexpr):
    """One column of each word, from bit `SHIFT` on: the integer, or with `VALUES` what `_scale_parts` says."""
    q = ((words << (16 - BITS - SHIFT)) >> (16 - BITS)).to(tl.int16)
    if VALUES:
        # low / 2^15 is the mantissa; the product is rounded before 2^-9 moves it
        return ((q.to(tl.float16) * (low * 0.000030517578125).to(tl.float16)) * 0.001953125).to(DOT)
    return q.to(tl.float32).to(DOT)


@_jit
def _columns_of_4_bits(words, high, low, offset, VALUES: tl.constexpr, DOT: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Columns 4i, 4i + 1, 4i + 2 and 4i + 3 of words i."""
    if not ASSEMBLY:
        return (
            _column(words, 4, 4, low, VALUES, DOT),
            _column(words, 0, 4, low, VALUES, DOT),
            _column(words, 12, 4, low, VALUES, DOT),
            _column(words, 8, 4, low, VALUES, DOT),
        )
    elif VALUES:
        return tl.inline_asm_elementwise(
            INT4_FP16, "=r,=r,=r,=r,r,r,r,r", [words, high, low, offset],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            INT4_BF16, "=r,=r,=r,=r,r", [words],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip


@_jit
def _columns_of_8_bits(words, low, offset, VALUES: tl.constexpr, DOT: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Columns 2i and 2i + 1 of words i."""
    if not ASSEMBLY:
        return _column(words, 0, 8, low, VALUES, DOT), _column(words, 8, 8, low, VALUES, DOT)
    elif VALUES:
        return tl.inline_asm_elementwise(
            INT8_FP16, "=r,=r,r,r,r", [words, low, offset], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    else:
        return tl.inline_asm_elementwise(
            INT8_BF16, "=r,=r,r", [words], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )


@_jit
def _tile_dot(words, xs, high, low, offset, part, BITS: tl.constexpr, VALUES: tl.constexpr, DOT: tl.constexpr,
              BLOCK_M: tl.constexpr, WORDS: tl.constexpr, ASSEMBLY: tl.constexpr):  # fmt: skip
    """Adds the product of one tile of the weight, (BLOCK_N, WORDS), and of x, (BLOCK_M, columns), to `part`."""
    if BITS == 4:
        w0, w1, w2, w3 = _columns_of_4_bits(words, high, low, offset, VALUES, DOT, ASSEMBLY)
        even, odd = tl.split(xs.reshape(BLOCK_M, WORDS, 2, 2))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        part = tl.dot(w0.to(DOT), x0.T, part)
        part = tl.dot(w1.to(DOT), x1.T, part)
        part = tl.dot(w2.to(DOT), x2.T, part)
        part = tl.dot(w3.to(DOT), x3.T, part)
    else:
        w0, w1 = _columns_of_8_bits(words, low, offset, VALUES, DOT, ASSEMBLY)
        x0, x1 = tl.split(xs.reshape(BLOCK_M, WORDS, 2))
        part = tl.dot(w0.to(DOT), x0.T, part)
        part = tl.dot(w1.to(DOT), x1.T, part)
    return part


@_jit
def dot_kernel(x, w, scale, bias, y, M, N, K, row_words, G, group_words, tiles, tiles_a_split,
               BITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WORDS: tl.constexpr,
               ROUND: tl.constexpr, VALUES: tl.constexpr, DOT: tl.constexpr, GROUPED: tl.constexpr,
               SPLIT: tl.constexpr, BIAS: tl.constexpr, ASSEMBLY: tl.constexpr):  # fmt: skip
    """Tiles of (BLOCK_N rows of the weight) x (BLOCK_M rows of x) on the tensor cores, the weight as first operand.

    Operands are of dtype `DOT`: values as `_scale_parts` says or, without `VALUES`, integers.
    With `SPLIT` program 2 takes a part of the columns, and y is (parts, M, N) fp32, without bias. A tile of `WORDS`
    lies within one group.
    """
    COLUMNS: tl.constexpr = 16 // BITS * WORDS
    UNIT: tl.constexpr = 1.0 if VALUES else 0.001953125  # integers carry no 2^-9
    rn = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rm = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    rk, rx = tl.arange(0, WORDS), tl.arange(0, COLUMNS)
    first = tl.program_id(2) * tiles_a_split
    last = tl.minimum(first + tiles_a_split, tiles)
    inside_n = tl.where(rn < N, rn, 0)
    w_at = w + inside_n[:, None].to(tl.int64) * row_words + (first * WORDS + rk)[None, :]
    x_at = x + rm[:, None].to(tl.int64) * K + (first * COLUMNS + rx)[None, :]
    scale_at = scale + inside_n.to(tl.int64) * G
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    coming = tl.load(scale_at + first * WORDS // group_words)
    high, low, offset, after = _scale_parts(coming, BITS, ROUND)
    for tile in range(first, last):
        if GROUPED:  # the scales of the next tile are under way while this one is multiplied
            high, low, offset, after = _scale_parts(coming, BITS, ROUND)
            coming = tl.load(scale_at + tl.minimum(tile + 1, tiles - 1) * WORDS // group_words)
        words = tl.load(w_at, mask=(tile * WORDS + rk < row_words)[None, :], other=0)
        # rows that are not there are masked and not repeated: a masked copy moves no bytes
        xs = tl.load(x_at, mask=(rm < M)[:, None] & (tile * COLUMNS + rx < K)[None, :], other=0.0).to(DOT)
        if GROUPED:
            part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            part = _tile_dot(words, xs, high, low, offset, part, BITS, VALUES, DOT, BLOCK_M, WORDS, ASSEMBLY)
            total += part * (after * UNIT)[:, None]
        else:
            total = _tile_dot(words, xs, high, low, offset, total, BITS, VALUES, DOT, BLOCK_M, WORDS, ASSEMBLY)
        w_at += WORDS
        x_at += COLUMNS
    if not GROUPED:
        total = total * (after * UNIT)[:, None]
    inside = (rm < M)[None, :] & (rn < N)[:, None]
    if SPLIT:
        rows = tl.program_id(2).to(tl.int64) * M + rm[None, :]
        tl.store(y + rows * N + rn[:, None], total, mask=inside)
    else:
        if BIAS:
            total += tl.load(bias + rn, mask=rn < N, other=0.0).to(tl.float32)[:, None]
        tl.store(y + rm[None, :].to(tl.int64) * N + rn[:, None], total.to(y.dtype.element_ty), mask=inside)


@_jit
def _tile_row(total, words, x_at, left, high, low, offset, BITS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Adds the products of a tile, (BLOCK_N, WORDS), and of `left` columns of a row of x to `total`, word by word."""
    WORDS: tl.constexpr = words.shape[1]
    rx = tl.arange(0, 16 // BITS * WORDS)
    xs = tl.load(x_at + rx, mask=rx < left, other=0.0)
    if BITS == 4:
        w0, w1, w2, w3 = _columns_of_4_bits(words, high, low, offset, True, tl.float16, ASSEMBLY)
        even, odd = tl.split(xs.reshape(WORDS, 2, 2))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        total += w0.to(tl.float32) * x0.to(tl.float32)[None, :]
        total += w1.to(tl.float32) * x1.to(tl.float32)[None, :]
        total += w2.to(tl.float32) * x2.to(tl.float32)[None, :]
        total += w3.to(tl.float32) * x3.to(tl.float32)[None, :]
    else:
        w0, w1 = _columns_of_8_bits(words, low, offset, True, tl.float16, ASSEMBLY)
        x0, x1 = tl.split(xs.reshape(WORDS, 2))
        total += w0.to(tl.float32) * x0.to(tl.float32)[None, :]
        total += w1.to(tl.float32) * x1.to(tl.float32)[None, :]
    return total


@_jit
def _tile_rows(total, words, x_at, left, high, low, offset, after, BITS: tl.constexpr, GROUPED: tl.constexpr,
               ASSEMBLY: tl.constexpr):  # fmt: skip
    """As `_tile_row`; with groups the tile's own sum is scaled before it is added."""
    if GROUPED:
        part = tl.zeros(total.shape, tl.float32)
        part = _tile_row(part, words, x_at, left, high, low, offset, BITS, ASSEMBLY)
        total += part * after[:, None]
    else:
        total = _tile_row(total, words, x_at, left, high, low, offset, BITS, ASSEMBLY)
    return total


@_jit
def rows_kernel(x, w, scale, bias, y, M, N, K, row_words, G, group_words, tiles, tiles_a_split,
                BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, WORDS: tl.constexpr,
                ROUND: tl.constexpr, GROUPED: tl.constexpr, SPLIT: tl.constexpr,
                BIAS: tl.constexpr, ASSEMBLY: tl.constexpr):  # fmt: skip
    """Up to four rows of x on the ordinary units, `ROWS` of them at a time, from compute capability 7.0 on.

    Values are fp16 in any case: `ROUND` for fp16 and fp32 activations; integers times 2^-9, exact, for bf16.
    Program 1 takes further rows of x; program 2, with `SPLIT`, a part of the columns, as in `dot_kernel`.
    """
    COLUMNS: tl.constexpr = 16 // BITS * WORDS
    rn = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * ROWS
    rk = tl.arange(0, WORDS)
    first = tl.program_id(2) * tiles_a_split
    last = tl.minimum(first + tiles_a_split, tiles)
    inside_n = tl.where(rn < N, rn, 0)
    w_at = w + inside_n[:, None].to(tl.int64) * row_words + (first * WORDS + rk)[None, :]
    x_at = x + row.to(tl.int64) * K + first * COLUMNS
    # rows past the last read the last once more, and are not stored
    step1 = tl.where(row + 1 < M, 1, 0).to(tl.int64) * K
    step2 = tl.where(row + 2 < M, 2, 0).to(tl.int64) * K
    step3 = tl.where(row + 3 < M, 3, 0).to(tl.int64) * K
    scale_at = scale + inside_n.to(tl.int64) * G
    total0 = tl.zeros((BLOCK_N, WORDS), tl.float32)
    total1, total2, total3 = total0, total0, total0
    coming = tl.load(scale_at + first * WORDS // group_words)
    high, low, offset, after = _scale_parts(coming, BITS, ROUND)
    for tile in range(first, last):
        if GROUPED:
            high, low, offset, after = _scale_parts(coming, BITS, ROUND)
            coming = tl.load(scale_at + tl.minimum(tile + 1, tiles - 1) * WORDS // group_words)
        words = tl.load(w_at, mask=(tile * WORDS + rk < row_words)[None, :], other=0)
        left = K - tile * COLUMNS
        total0 = _tile_rows(total0, words, x_at, left, high, low, offset, after, BITS, GROUPED, ASSEMBLY)
        if ROWS > 1:
            total1 = _tile_rows(total1, words, x_at + step1, left, high, low, offset, after, BITS, GROUPED, ASSEMBLY)
        if ROWS > 2:
            total2 = _tile_rows(total2, words, x_at + step2, left, high, low, offset, after, BITS, GROUPED, ASSEMBLY)
            total3 = _tile_rows(total3, words, x_at + step3, left, high, low, offset, after, BITS, GROUPED, ASSEMBLY)
        w_at += WORDS
        x_at += COLUMNS
    if GROUPED:
        after = tl.full((BLOCK_N,), 1.0, tl.float32)
    y_at = y + (tl.program_id(2).to(tl.int64) * M + row) * N + rn
    added = tl.zeros((BLOCK_N,), tl.float32)
    if BIAS:
        added = tl.load(bias + rn, mask=rn < N, other=0.0).to(tl.float32)
    kind = y.dtype.element_ty
    tl.store(y_at, (tl.sum(total0, 1) * after + added).to(kind), mask=rn < N)
    if ROWS > 1:
        tl.store(y_at + N, (tl.sum(total1, 1) * after + added).to(kind), mask=rn < tl.where(row + 1 < M, N, 0))
    if ROWS > 2:
        tl.store(y_at + 2 * N, (tl.sum(total2, 1) * after + added).to(kind), mask=rn < tl.where(row + 2 < M, N, 0))
        tl.store(y_at + 3 * N, (tl.sum(total3, 1) * after + added).to(kind), mask=rn < tl.where(row + 3 < M, N, 0))


@_jit
def sum_kernel(parts, scale, bias, y, M, N, y_stride, PARTS: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr,
               BIAS: tl.constexpr):  # fmt: skip
    """Adds (PARTS, M, N) up in order in fp32, times the scales (N,), plus the bias, and rounds once into rows of y."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64)
    inside = at < N
    total = tl.load(parts + row * N + at, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + (row + part * M) * N + at, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        total = total * tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        total += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * y_stride + at, total.to(y.dtype.element_ty), mask=inside)


@_jit
def dequantize_kernel(w, scale, out, N, width, first_byte, row_bytes, G, group_bytes, BITS: tl.constexpr,
                      VALUES: tl.constexpr, GROUPED: tl.constexpr, BLOCK_N: tl.constexpr,
                      BLOCK: tl.constexpr):  # fmt: skip
    """Bytes first_byte .. first_byte + width of N rows -> values (N, columns), or integers, in the dtype of `out`.

    Any number of bytes a row and a group: nothing is read as words here.
    """
    rn = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rb = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (rn < N)[:, None] & (rb < width)[None, :]
    rows = rn[:, None].to(tl.int64)
    at = first_byte + rb
    raw = tl.load(w + rows * row_bytes + at[None, :], mask=inside, other=0)
    if GROUPED:
        factor = tl.load(scale + rows * G + (at // group_bytes)[None, :], mask=inside, other=0.0)
    else:
        factor = tl.load(scale + rows * G, mask=(rn < N)[:, None], other=0.0)
    kind = out.dtype.element_ty
    if BITS == 4:
        even, odd = (raw >> 4).to(tl.float16), ((raw << 4).to(tl.int8) >> 4).to(tl.float16)
        if VALUES:
            even, odd = even * factor, odd * factor
        both = tl.join(even.to(tl.float32).to(kind), odd.to(tl.float32).to(kind)).reshape(BLOCK_N, 2 * BLOCK)
        columns = tl.program_id(1) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
        where = (rn < N)[:, None] & (columns < 2 * width)[None, :]
        tl.store(out + rows * (2 * width) + columns[None, :], both, mask=where)
    else:
        value = raw.to(tl.float16)
        if VALUES:
            value = value * factor
        tl.store(out + rows * width + rb[None, :], value.to(tl.float32).to(kind), mask=inside)


__all__ = ["dequantize_kernel", "dot_kernel", "rows_kernel", "sum_kernel"]
