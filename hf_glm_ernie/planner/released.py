"""Speeds that GLM-130B's authors published, to stand beside what the planner predicts.

Source: `docs/quantization.md` (both tables) and `docs/inference-with-fastertransformer.md` of the GLM-130B repository.
All in tensor parallel, one row; a decoding figure is the seconds in which a text of so many tokens is generated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from hf_glm_ernie.configuration_glm130b import Glm130bConfig

FASTER_TRANSFORMER, RELEASED_CODE = "FasterTransformer", "SwissArmyTransformer"
LENGTHS = (128, 512, 1024, 2048)
SAME_SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Released:
    """A published measurement.

    Args:
        program: What ran.
        cards: How many.
        card: Of which kind, a name in `CARDS`.
        bits: 4 or 8; `None` for fp16.
        tokens: Length of the text.
        decode: Seconds in which it was generated; `None` where memory did not suffice or nothing was published.
        prefill: Seconds of one forward of so many tokens, or `None`.
    """

    program: str
    cards: int
    card: str
    bits: int | None
    tokens: int
    decode: float | None
    prefill: float | None

    @property
    def tokens_per_second(self) -> float | None:
        """Of the decoding."""
        return None if self.decode is None else self.tokens / self.decode


Seconds = tuple[float | None, ...]
# Program, cards, card, bits, seconds of decoding and of the prefill by `LENGTHS`.
TABLE: tuple[tuple[str, int, str, int | None, Seconds, Seconds], ...] = (
    (FASTER_TRANSFORMER, 8, "A100-40GB", 4, (4.29, 17.7, 37.8, 86.0), (0.145, 0.183, 0.313, 0.495)),
    (FASTER_TRANSFORMER, 4, "A100-80GB", 4, (6.62, 27.1, 56.2, 123), (0.174, 0.272, 0.439, 0.810)),
    (FASTER_TRANSFORMER, 8, "V100-32GB", 4, (6.97, 28.1, 58.4, 125), (0.309, 0.666, 1.208, 2.304)),
    (FASTER_TRANSFORMER, 4, "V100-32GB", 4, (11.4, 45.87, 93.5, 196), (0.448, 0.843, 1.488, 2.803)),
    (FASTER_TRANSFORMER, 8, "RTX 3090", 4, (5.07, 20.5, 42.7, 90.3), (0.283, 0.915, 1.793, 3.477)),
    (FASTER_TRANSFORMER, 4, "RTX 3090", 4, (8.16, 32.3, 66.5, 150), (0.374, 1.300, None, None)),
    (FASTER_TRANSFORMER, 8, "RTX 2080 Ti", 4, (6.77, 27.29, 56.02, None), (0.392, 1.044, None, None)),
    (FASTER_TRANSFORMER, 8, "A100-40GB", None, (None, 18.77, 39.81, 89.88), (None, 0.120, 0.220, None)),
    (RELEASED_CODE, 8, "A100-40GB", None, (None, 45.21, 89.00, 179.22), (None, 0.145, 0.250, 0.453)),
    (RELEASED_CODE, 8, "V100-32GB", 8, (None, 106.35, 216.50, 449.17), (None,) * 4),
    (RELEASED_CODE, 4, "RTX 3090", 4, (None, 138.66, 292.69, 649.64), (None,) * 4),
    (RELEASED_CODE, 8, "RTX 2080 Ti", 4, (None, 117.39, 240.96, 528.66), (None,) * 4),
)
RELEASED: tuple[Released, ...] = tuple(
    Released(program, cards, card, bits, *length)
    for program, cards, card, bits, decode, prefill in TABLE
    for length in zip(LENGTHS, decode, prefill, strict=True)
    if length[1:] != (None, None)
)


def released_for(config: PreTrainedConfig, cards: Sequence[str], bits: int | None) -> tuple[Released, ...]:
    """The published measurements of the same model in the same format on the same cards."""
    model = Glm130bConfig()
    if config.model_type != model.model_type or any(getattr(config, n) != getattr(model, n) for n in SAME_SHAPE):
        return ()
    return tuple(one for one in RELEASED if (one.bits, [one.card] * one.cards) == (bits, list(cards)))


__all__ = ["RELEASED", "Released", "released_for"]
