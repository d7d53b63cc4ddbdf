"""The rotary angles of GLM-130B, rounded as released, on every device and in compiled graphs.

The weights were trained with frequencies, angles, cos and sin that are all rounded to fp16, so at position 1,000 an
exact cos is off by up to 0.4. `torch.compile` leaves roundings out: its default backend holds fp16 values in fp32 and
rounds only what it stores. So nothing here is left to a compiler: the values of the context are computed once and
looked up as integers, and what has to be rounded in a graph is rounded by integer arithmetic.

cos and sin are made once a forward. The half that the rotation negates is negated there, in sin, and not in the query
and the key of every layer: the products are the same bit for bit.

Source: SwissArmyTransformer 0.2.12, `model/official/glm130B_model.py` [S]. Letters in shape comments: B batch, H
heads, L query length, D head size.
"""

import torch
from torch import nn

from .configuration_glm130b import Glm130bConfig


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns pairs of a head's numbers, the i-th with the one half a head behind it [S `rotate_half`].

    Args:
        x: (B, H, L, D).
        cos: (B, 1, L, D).
        sin: (B, 1, L, D), its first half negated, as [`Glm130bRotaryEmbedding`] gives it.

    Returns:
        (B, H, L, D).
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounds to `dtype` (nearest, ties to even), also in a compiled graph.

    A compiler that fuses operations holds fp16 and bf16 values in fp32 and leaves their rounding out. Arithmetic on
    the bits, which are integers, it must carry out. Outside of a graph that would be nine kernels in place of one.

    Args:
        values: fp32, any shape.
        dtype: A floating-point dtype.

    Returns:
        The same shape in `dtype`: bit for bit `values.to(dtype)`.
    """
    in_a_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return rounded_by_bits(values, dtype) if in_a_graph else values.to(dtype)


def rounded_by_bits(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[`rounded`] as a graph needs it."""
    if dtype in (torch.float16, torch.bfloat16):
        surplus = 13 if dtype == torch.float16 else 16  # bits of fraction that only fp32 has
        bits = values.view(torch.int32)
        up = (1 << (surplus - 1)) - 1 + ((bits >> surplus) & 1)
        nearest = ((bits + up) >> surplus << surplus).view(torch.float32)
        # Subnormal numbers have fewer bits; what a compiler leaves of them is below 2 ** -25.
        values = torch.where(values.abs() < torch.finfo(dtype).tiny, values, nearest)
    return values.to(dtype)


class Glm130bRotaryEmbedding(nn.Module):
    """Rotary tables as released: frequencies, angles, cos and sin all rounded to fp16 (config `rotary_dtype`).

    The cos and sin of the context are computed once, outside of any compiler, and looked up. Computed in a graph of
    `torch.compile`, cos was off by 0.25 within 2,048 positions.
    """

    inv_freq_bits: torch.Tensor  # (D / 2,) int32
    cos_sin_bits: torch.Tensor  # (config.max_position_embeddings, D) int32: cos, then sin

    def __init__(self, config: Glm130bConfig):
        super().__init__()
        self.config = config
        self.dtype = getattr(torch, config.rotary_dtype)
        # Kept as bit patterns: `model.to(torch.bfloat16)` rounds every floating-point buffer, and these values must
        # not be. In 32 bits, for data parallelism broadcasts buffers and its backends know no integers of 16.
        for name, shape in (
            ("inv_freq_bits", (config.head_dim // 2,)),
            ("cos_sin_bits", (config.max_position_embeddings, config.head_dim)),
        ):
            self.register_buffer(name, torch.empty(shape, dtype=torch.int32), persistent=False)
        if not self.cos_sin_bits.is_meta:
            for name, bits in self.compute_bits().items():
                getattr(self, name).copy_(bits)

    @torch.no_grad()
    def compute_bits(self) -> dict[str, torch.Tensor]:
        """What both buffers hold, by name. Always computed on the CPU, so that every device has the same values."""
        exponents = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device="cpu") / self.config.head_dim
        inv_freq = (1.0 / (self.config.rope_theta**exponents)).to(self.dtype)
        positions = torch.arange(self.config.max_position_embeddings, device="cpu")
        return {
            "inv_freq_bits": inv_freq.view(self._same_width).int(),
            "cos_sin_bits": self._cos_sin(positions, inv_freq).view(self._same_width).int(),
        }

    @property
    def last_position(self) -> tuple[int | None, str]:
        """The last position that the table's dtype holds, and what sets it; behind it angles are infinite."""
        return (
            (65504, f" (config.rotary_dtype={self.config.rotary_dtype!r})")
            if self.dtype == torch.float16
            else (None, "")
        )

    @property
    def _same_width(self) -> torch.dtype:
        return torch.int16 if self.dtype == torch.float16 else torch.int32

    def _values(self, bits: torch.Tensor) -> torch.Tensor:
        """int32 bit patterns -> the values, in the table's dtype."""
        return bits.to(self._same_width).view(self.dtype)

    def _cos_sin(self, position_ids: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
        """Returns cos and sin of positions of any shape, (..., D) in the table's dtype, every step rounded to it."""
        positions = rounded(position_ids[..., None].float(), self.dtype)
        angles = rounded(positions.float() * inv_freq.float(), self.dtype)  # (..., D / 2)
        return rounded(torch.cat((angles.cos(), angles.sin()), dim=-1).float(), self.dtype)

    @torch.no_grad()
    def forward(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Looks cos and sin up; for positions behind the context (`config.max_position_embeddings`) computes them.

        Args:
            position_ids: (B, L) int64, below 65,505 (the largest fp16 position).
            dtype: Compute dtype of the queries.

        Returns:
            cos and sin, (B, 1, L, D) in `dtype`; of sin the first half negated, as [`rotated`] takes it.
        """
        rows = position_ids.clamp(0, self.cos_sin_bits.shape[0] - 1)
        looked_up = self._values(self.cos_sin_bits[rows])  # (B, L, D) in the table's dtype
        # Always computed, seldom taken: asking whether a position is behind the table would wait for the device.
        computed = self._cos_sin(position_ids, self._values(self.inv_freq_bits))
        values = torch.where((rows == position_ids)[..., None], looked_up, computed).float()
        cos, sin = rounded(values, dtype)[:, None].chunk(2, dim=-1)  # (B, 1, L, D / 2)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


__all__ = ["Glm130bRotaryEmbedding", "rotated", "rounded", "rounded_by_bits"]
