"""Products that the interpreted kernels are compared on."""

from typing import NamedTuple


class Case(NamedTuple):
    """One product.

    Attributes:
        kernel: `"rows"`, `"dot"`, `"dequantize"` or `"transposed"`.
        bits: 4 or 8.
        shape: (N, K, G) of the weight.
        rows: Of the activations.
        dtype: `"fp32"`, `"fp16"` or `"bf16"`.
        bias: Whether there is one.
    """

    kernel: str
    bits: int
    shape: tuple[int, int, int]
    rows: int
    dtype: str
    bias: bool = True

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.kernel} INT{self.bits} {'x'.join(map(str, self.shape))} {self.rows} {self.dtype}"

    @property
    def is_quick(self) -> bool:
        """Whether `make test` runs it: every kernel, shape, width and dtype, with fewer numbers of rows."""
        return self.kernel in ("rows", "transposed") or self.rows in ({17} if self.kernel == "dequantize" else {2, 33})


HALVES = ("fp16", "bf16")
# One scale a row, with columns no multiple of a tile; groups of 32, 64, 96 and 768; rows of no block.
ROWS_SHAPES = [(37, 76, 1), (9, 128, 4), (16, 192, 2), (5, 1536, 2)]
DOT_SHAPES = [(130, 76, 1), (70, 256, 2), (37, 128, 2), (16, 1536, 2), (20, 2304, 1)]
# Bytes of a row or group that no tile divides, and odd ones.
ANY_SHAPES = [(7, 10, 5), (19, 62, 1), (33, 114, 3), (70, 256, 2)]
CASES = [
    *(Case("rows", bits, shape, rows, dtype) for bits in (4, 8) for shape in ROWS_SHAPES for dtype in HALVES
      for rows in ((1, 3) if shape[1] < 1000 else (2, 5))),
    Case("rows", 4, (16, 8192, 1), 1, "fp16"), Case("rows", 8, (16, 4096, 1), 2, "bf16"),  # in parts
    *(Case("rows", bits, (9, 64, 1), 4, "fp32") for bits in (4, 8)),
    *(Case("dot", bits, shape, rows, dtype) for bits in (4, 8) for shape in DOT_SHAPES for dtype in HALVES
      for rows in (1, 5, 16, 17, 33)),
    *(Case("dot", bits, (70, 128, 1), 2, dtype, bias=False) for bits in (4, 8) for dtype in HALVES),
    *(Case("dequantize", bits, shape, rows, dtype) for bits in (4, 8) for shape in ANY_SHAPES
      for dtype in ("fp32", *HALVES) for rows in (1, 17)),
    *(Case("transposed", bits, shape, 5, dtype, bias=False) for bits in (4, 8) for shape in ANY_SHAPES
      for dtype in ("fp32", *HALVES)),
]  # fmt: skip
