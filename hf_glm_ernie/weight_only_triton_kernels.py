"""The Triton programs that `weight_only_triton.py` launches: they read stored integers as released.

Four-bit integers: byte j of a row holds column 2j in its high nibble and column 2j + 1 in its low one. A program never
puts the two beside each other; it splits the activations the same way, pair by pair, and adds both products.

Integers become floating point by inline instructions (`INLINE`) where the compiler's own conversions would take most of
the time: `prmt` puts bytes into 16-bit lanes, and `lop3` puts a nibble, its sign bit flipped, into the mantissa of
1024 (fp16) or 128 (bf16); subtracting the constant leaves the integer, exactly. The branch beside it does the same in
plain Triton, which the interpreter runs.

In fp16 the product with the scale is rounded to fp16, as in the original. In bf16 the integers are multiplied as they
are and the sum, of a group where there are several, is scaled in fp32.
"""

from types import SimpleNamespace
from typing import Any

try:
    import triton
    import triton.language as tl

    TRITON_ERROR = ""
except ImportError as error:  # the kernels are optional, and this file travels with models
    triton, TRITON_ERROR = None, str(error)
    tl: Any = SimpleNamespace(constexpr=lambda value: value)  # type: ignore[no-redef]


def _jit(function: Any) -> Any:
    return function if triton is None else triton.jit(function, do_not_specialize=["M"])


def _helper(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


# (a & b) ^ c is table 0x6a of lop3, (a & b) | c is 0xea. Outputs: even columns (2 registers), odd ones (2).
INT4_FP16 = tl.constexpr("""{
.reg .b32 a, b, c, d;
prmt.b32 a, $4, 0, 0x4140;
prmt.b32 b, $4, 0, 0x4342;
lop3.b32 $0, a, 0x00f000f0, 0x64806480, 0x6a;
lop3.b32 $1, b, 0x00f000f0, 0x64806480, 0x6a;
lop3.b32 $2, a, 0x000f000f, 0x64086408, 0x6a;
lop3.b32 $3, b, 0x000f000f, 0x64086408, 0x6a;
mov.b32 c, 0x2c002c00;
mov.b32 d, 0xd480d480;
fma.rn.f16x2 $0, $0, c, d;
fma.rn.f16x2 $1, $1, c, d;
mov.b32 c, 0x64086408;
sub.f16x2 $2, $2, c;
sub.f16x2 $3, $3, c;
}""")
INT4_BF16 = tl.constexpr("""{
.reg .b32 a, b, c, d;
prmt.b32 a, $4, 0, 0x4140;
prmt.b32 b, $4, 0, 0x4342;
lop3.b32 $2, a, 0x000f000f, 0x43084308, 0x6a;
lop3.b32 $3, b, 0x000f000f, 0x43084308, 0x6a;
shr.u32 a, a, 4;
shr.u32 b, b, 4;
lop3.b32 $0, a, 0x000f000f, 0x43084308, 0x6a;
lop3.b32 $1, b, 0x000f000f, 0x43084308, 0x6a;
mov.b32 c, 0x3f803f80;
mov.b32 d, 0xc308c308;
fma.rn.bf16x2 $0, $0, c, d;
fma.rn.bf16x2 $1, $1, c, d;
fma.rn.bf16x2 $2, $2, c, d;
fma.rn.bf16x2 $3, $3, c, d;
}""")
INT8_FP16 = tl.constexpr("""{
.reg .b32 a, c;
xor.b32 a, $2, 0x80808080;
mov.b32 c, 0x64646464;
prmt.b32 $0, a, c, 0x4140;
prmt.b32 $1, a, c, 0x4342;
mov.b32 c, 0x64806480;
sub.f16x2 $0, $0, c;
sub.f16x2 $1, $1, c;
}""")
# 128 + the low seven bits, less 128, or 256 where the sign bit is set.
INT8_BF16 = tl.constexpr("""{
.reg .b32 a, b, c;
prmt.b32 $0, $2, 0, 0x4140;
prmt.b32 $1, $2, 0, 0x4342;
lop3.b32 a, $0, 0x00800080, 0xc300c300, 0xea;
lop3.b32 b, $1, 0x00800080, 0xc300c300, 0xea;
lop3.b32 $0, $0, 0x007f007f, 0x43004300, 0xea;
lop3.b32 $1, $1, 0x007f007f, 0x43004300, 0xea;
mov.b32 c, 0x3f803f80;
fma.rn.bf16x2 $0, $0, c, a;
fma.rn.bf16x2 $1, $1, c, b;
}""")
TIMES_SCALE = tl.constexpr("mul.rn.f16x2 $0, $1, $2;")
EVEN_AND_ODD = tl.constexpr("prmt.b32 $0, $2, $3, 0x5410; prmt.b32 $1, $2, $3, 0x7632;")


@_helper
def _pair(packed, DTYPE: tl.constexpr, INLINE: tl.constexpr):
    """Integers of the even and of the odd columns in `DTYPE`; packed: int8 of any shape."""
    registers: tl.constexpr = "=&r,=&r,=&r,=&r,r"
    if INLINE and DTYPE == tl.float16:
        even, odd = tl.inline_asm_elementwise(INT4_FP16, registers, [packed], (tl.float16, tl.float16), True, 4)
    elif INLINE:
        even, odd = tl.inline_asm_elementwise(INT4_BF16, registers, [packed], (tl.bfloat16, tl.bfloat16), True, 4)
    else:
        even, odd = (packed >> 4).to(DTYPE), ((packed << 4) >> 4).to(DTYPE)
    return even, odd


@_helper
def _single(stored, DTYPE: tl.constexpr, INLINE: tl.constexpr):
    """8-bit integers in `DTYPE`; stored: int8 of any shape."""
    if INLINE and DTYPE == tl.float16:
        values = tl.inline_asm_elementwise(INT8_FP16, "=&r,=&r,r", [stored], tl.float16, True, 4)
    elif INLINE:
        values = tl.inline_asm_elementwise(INT8_BF16, "=&r,=&r,r", [stored], tl.bfloat16, True, 4)
    else:
        values = stored.to(DTYPE)
    return values


@_helper
def _times(values, scale, INLINE: tl.constexpr):
    """Products rounded to fp16; values: (N, K) fp16; scale: (N,) fp16."""
    scale = tl.broadcast_to(scale[:, None], values.shape)
    if INLINE:
        values = tl.inline_asm_elementwise(TIMES_SCALE, "=r,r,r", [values, scale], tl.float16, True, 2)
    else:
        values = values * scale
    return values


@_helper
def _halves(words, DTYPE: tl.constexpr, TO: tl.constexpr, INLINE: tl.constexpr):
    """Even and odd columns, in `TO`, of pairs of `DTYPE` that lie in int32 words."""
    registers: tl.constexpr = "=&r,=&r,r,r"
    if INLINE and DTYPE == tl.float16:
        even, odd = tl.inline_asm_elementwise(EVEN_AND_ODD, registers, [words], (tl.float16, tl.float16), True, 2)
    elif INLINE:
        even, odd = tl.inline_asm_elementwise(EVEN_AND_ODD, registers, [words], (tl.bfloat16, tl.bfloat16), True, 2)
    else:
        even = words.to(tl.int16).to(DTYPE, bitcast=True)
        odd = (words >> 16).to(tl.int16).to(DTYPE, bitcast=True)
    return even.to(TO), odd.to(TO)


@_jit
def rows_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, y_ptr, M, N, K, GROUPS,
    BITS: tl.constexpr, GROUPED: tl.constexpr, WHOLE: tl.constexpr, INLINE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`BLOCK_M` rows of x against `BLOCK_N` rows of the weight, without tensor cores; sums in fp32.

    x_ptr: (M, K) fp16 or bf16; weight_ptr: stored int8; scale_ptr: (N, GROUPS) fp16; bias_ptr: (N,) or None;
    y_ptr: (M, N) as x. GROUPED: more than one group, each of whole tiles. WHOLE: tiles divide K.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    EXACT: tl.constexpr = DTYPE == tl.float16  # values are rounded to fp16 before the product
    BYTES: tl.constexpr = BLOCK_K // 2 if BITS == 4 else BLOCK_K
    row_bytes = K // 2 if BITS == 4 else K
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, byte = tl.minimum(n, N - 1), tl.arange(0, BYTES)  # what lies outside is read twice and not stored
    from_row = tl.minimum(m, M - 1)
    weight_at = weight_ptr + row[:, None].to(tl.int64) * row_bytes + byte[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N, BYTES), tl.float32)
    scale = tl.load(scale_ptr + row * GROUPS)
    for first in tl.range(0, row_bytes, BYTES):
        if GROUPED:
            scale = tl.load(scale_ptr + row * GROUPS + first // (row_bytes // GROUPS))
        inside = first + byte < row_bytes
        stored = tl.load(weight_at + first) if WHOLE else tl.load(weight_at + first, inside[None, :], other=0)
        if BITS == 4:
            words_at = x_ptr.to(tl.pointer_type(tl.int32)) + from_row[:, None] * row_bytes + (first + byte)[None, :]
            words = tl.load(words_at) if WHOLE else tl.load(words_at, inside[None, :], other=0)
            even, odd = _pair(stored, tl.float16, INLINE)
            if EXACT:
                even, odd = _times(even, scale, INLINE), _times(odd, scale, INLINE)
            x_even, x_odd = _halves(words, DTYPE, tl.float32, False)
            part = even.to(tl.float32)[None, :, :] * x_even[:, None, :]
            part += odd.to(tl.float32)[None, :, :] * x_odd[:, None, :]
        else:
            x_at = x_ptr + from_row[:, None] * row_bytes + (first + byte)[None, :]
            x = tl.load(x_at) if WHOLE else tl.load(x_at, inside[None, :], other=0.0)
            values = _single(stored, tl.float16, INLINE)
            if EXACT:
                values = _times(values, scale, INLINE)
            part = values.to(tl.float32)[None, :, :] * x.to(tl.float32)[:, None, :]
        if GROUPED and not EXACT:
            part *= scale.to(tl.float32)[None, :, None]
        total += part
    y = tl.sum(total, 2)
    if not GROUPED and not EXACT:
        y *= scale.to(tl.float32)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + row).to(tl.float32)[None, :]
    tl.store(y_ptr + m[:, None] * N + n[None, :], y.to(DTYPE), (m < M)[:, None] & (n < N)[None, :])


@_helper
def _tile_product(
    x_ptr, weight_at, scale, from_row, first, byte, row_bytes, total,
    BITS: tl.constexpr, EXACT: tl.constexpr, WHOLE: tl.constexpr, INLINE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """`total` plus the product of one tile: (N, K) of the weight with (M, K) of x, transposed."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    TO: tl.constexpr = tl.float16 if EXACT else DOT
    inside = first + byte < row_bytes
    stored = tl.load(weight_at + first) if WHOLE else tl.load(weight_at + first, inside[None, :], other=0)
    if BITS == 4:
        words_at = x_ptr.to(tl.pointer_type(tl.int32)) + from_row[None, :] * row_bytes + (first + byte)[:, None]
        words = tl.load(words_at) if WHOLE else tl.load(words_at, inside[:, None], other=0)
        even, odd = _pair(stored, TO, INLINE)
        if EXACT:
            even, odd = _times(even, scale, INLINE), _times(odd, scale, INLINE)
        x_even, x_odd = _halves(words, DTYPE, DOT, INLINE)
        total = tl.dot(even.to(DOT), x_even, total)
        return tl.dot(odd.to(DOT), x_odd, total)
    x_at = x_ptr + from_row[None, :] * row_bytes + (first + byte)[:, None]
    x = tl.load(x_at) if WHOLE else tl.load(x_at, inside[:, None], other=0.0)
    values = _single(stored, TO, INLINE)
    if EXACT:
        values = _times(values, scale, INLINE)
    return tl.dot(values.to(DOT), x.to(DOT), total)


@_jit
def dot_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, y_ptr, M, N, K, GROUPS,
    BITS: tl.constexpr, GROUPED: tl.constexpr, WHOLE: tl.constexpr, INLINE: tl.constexpr, DOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    """`BLOCK_N` rows of the weight, as the first factor, against `BLOCK_M` rows of x by `tl.dot`; sums in fp32.

    As `rows_kernel`; DOT: dtype of both factors. With SPLIT_K > 1, y_ptr is (SPLIT_K, M, N) fp32 and gets the sums of
    each program without the bias.
    """
    EXACT: tl.constexpr = x_ptr.dtype.element_ty == tl.float16
    BYTES: tl.constexpr = BLOCK_K // 2 if BITS == 4 else BLOCK_K
    row_bytes = K // 2 if BITS == 4 else K
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, byte = tl.minimum(n, N - 1), tl.arange(0, BYTES)  # what lies outside is read twice and not stored
    from_row = tl.minimum(m, M - 1)
    weight_at = weight_ptr + row[:, None].to(tl.int64) * row_bytes + byte[None, :]
    share = tl.cdiv(tl.cdiv(row_bytes, BYTES), SPLIT_K) * BYTES
    begin = tl.program_id(2) * share
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    scale = tl.load(scale_ptr + row * GROUPS)
    for first in tl.range(begin, tl.minimum(begin + share, row_bytes), BYTES):
        if GROUPED:
            scale = tl.load(scale_ptr + row * GROUPS + first // (row_bytes // GROUPS))
        if GROUPED and not EXACT:
            part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            part = _tile_product(
                x_ptr, weight_at, scale, from_row, first, byte, row_bytes, part, BITS, EXACT, WHOLE, INLINE, DOT
            )
            total += part * scale.to(tl.float32)[:, None]
        else:
            total = _tile_product(
                x_ptr, weight_at, scale, from_row, first, byte, row_bytes, total, BITS, EXACT, WHOLE, INLINE, DOT
            )
    if not GROUPED and not EXACT:
        total *= scale.to(tl.float32)[:, None]
    if SPLIT_K == 1:
        if bias_ptr is not None:
            total += tl.load(bias_ptr + row).to(tl.float32)[:, None]
    y_at = y_ptr + (tl.program_id(2) * M + m[None, :]) * N + n[:, None]
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), (m < M)[None, :] & (n < N)[:, None])


@_jit
def finish_kernel(
    part_ptr, scale_ptr, bias_ptr, y_ptr, M, N, PARTS: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Adds parts in their order, scales the columns, adds the bias. part_ptr: (PARTS, M, N); y_ptr: (M, N)."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1)
    inside = n < N
    at = m.to(tl.int64) * N + n
    total = tl.load(part_ptr + at, inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        total += tl.load(part_ptr + part * M * N + at, inside, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        total *= tl.load(scale_ptr + n, inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + n, inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), inside)


@_jit
def dequantize_kernel(
    weight_ptr, scale_ptr, values_ptr, N, STRIDE, BEGIN, END, COLUMNS, GROUPS,
    BITS: tl.constexpr, GROUPED: tl.constexpr, SCALED: tl.constexpr, INLINE: tl.constexpr,
    BLOCK_N: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Values, or integers where not SCALED, of the bytes BEGIN..END of N rows.

    weight_ptr: stored int8, rows STRIDE bytes apart; values_ptr: (N, columns of those bytes), any float; COLUMNS: of
    the whole weight.
    """
    PER_BYTE: tl.constexpr = 8 // BITS
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    byte = BEGIN + tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    inside = (n < N)[:, None] & (byte < END)[None, :]
    row = tl.minimum(n, N - 1).to(tl.int64)
    stored = tl.load(weight_ptr + row[:, None] * STRIDE + byte[None, :], inside, other=0)
    if GROUPED:
        group = byte * PER_BYTE // (COLUMNS // GROUPS)
        scale = tl.load(scale_ptr + row[:, None] * GROUPS + group[None, :], inside, other=0.0)
    else:
        scale = tl.broadcast_to(tl.load(scale_ptr + row)[:, None], stored.shape)
    if BITS == 4:
        even, odd = _pair(stored, tl.float16, INLINE)
        if SCALED:
            even, odd = even * scale, odd * scale
        values = tl.interleave(even, odd)
    else:
        values = _single(stored, tl.float16, INLINE)
        if SCALED:
            values = values * scale
    column = tl.program_id(1) * (BYTES * PER_BYTE) + tl.arange(0, BYTES * PER_BYTE)
    width = (END - BEGIN) * PER_BYTE
    stored_at = values_ptr + row[:, None] * width + column[None, :]
    tl.store(stored_at, values.to(values_ptr.dtype.element_ty), (n < N)[:, None] & (column < width)[None, :])
