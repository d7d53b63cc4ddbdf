"""Every encoder that PaddleNLP has a name for and that is ERNIE's network, with its sizes.

Checkpoints from the download addresses come as one file without settings. Their sizes tell which of the released
models they are, and with that what tensors cannot tell: the number of heads and the activation. ERNIE-Gram's Chinese
models are the same network, with another epsilon.

Sources: PaddleNLP 2.8.1 `transformers/ernie/configuration.py` (75 names), `transformers/ernie_gram/configuration.py`
(2 names). A size that an entry there leaves out is the class's default: 3072 inner, no task embeddings.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

LAYER_NORM_EPS = 1e-12
"""What PaddleNLP gives to every LayerNorm of ERNIE, whatever its configuration says (`_init_weights`)."""
GRAM_LAYER_NORM_EPS = 1e-5
"""The same of ERNIE-Gram."""


@dataclass(frozen=True)
class Stack:
    """The layers of a size.

    Attributes:
        layers: Their number.
        hidden: The hidden size.
        heads: Attention heads.
        inner: The size between the two linears of a layer.
    """

    layers: int
    hidden: int
    heads: int
    inner: int


@dataclass(frozen=True)
class Released:
    """An encoder with a name.

    Attributes:
        stack: Its layers.
        words: Rows of the word embeddings.
        positions: Rows of the position embeddings.
        types: Token types.
        tasks: Task types; 0 if the model has no task embeddings.
        activation: Of the layers, and of the masked-LM head.
        is_gram: Whether it is an ERNIE-Gram.
    """

    stack: Stack
    words: int
    positions: int
    types: int
    tasks: int = 0
    activation: str = "gelu"
    is_gram: bool = False


BASE, LARGE = Stack(12, 768, 12, 3072), Stack(24, 1024, 16, 4096)
NARROW_LARGE = Stack(24, 1024, 16, 3072)
SIZES: Mapping[str, Stack] = {
    "xbase": Stack(20, 1024, 16, 4096),
    "base": BASE,
    "medium": Stack(6, 768, 12, 3072),
    "mini": Stack(6, 384, 12, 1536),
    "micro": Stack(4, 384, 12, 1536),
    "nano": Stack(4, 312, 12, 1248),
    "pico": Stack(3, 128, 2, 512),
}
"""Of the ERNIE 3.0 encoders."""

OLD_CHINESE = Released(BASE, 18000, 513, 2, activation="relu")
ENGLISH = Released(BASE, 30522, 512, 4)
ENGLISH_LARGE = Released(LARGE, 30522, 512, 4)
ENGLISH_TINY = Released(SIZES["mini"], 50265, 514, 1)
GRAM_CHINESE = Released(BASE, 18018, 512, 2, is_gram=True)


def _of_3_0(size: str, words: int = 40000, has_tasks: bool = True) -> Released:
    tasks = {"base": 3}.get(size, 16) if has_tasks else 0
    return Released(SIZES[size], words, 2048, 4, tasks)


def _released() -> Iterator[tuple[str, Released]]:
    """(name, what it is) in the order of PaddleNLP's list."""
    yield from (
        ("ernie-1.0", OLD_CHINESE),
        ("ernie-1.0-base-zh", OLD_CHINESE),
        ("ernie-1.0-base-zh-cw", Released(BASE, 40000, 512, 4, tasks=3)),
        ("ernie-1.0-large-zh-cw", Released(NARROW_LARGE, 18000, 512, 2, activation="relu")),
        ("ernie-tiny", Released(Stack(3, 1024, 16, 4096), 50006, 600, 2, activation="relu")),
        ("ernie-2.0-base-zh", Released(BASE, 18000, 513, 4, activation="relu")),
        ("ernie-2.0-large-zh", Released(LARGE, 12800, 512, 4, activation="relu")),
        ("ernie-2.0-base-en", ENGLISH),
        ("ernie-2.0-base-en-finetuned-squad", ENGLISH),
        ("ernie-2.0-large-en", ENGLISH_LARGE),
    )
    for kind in ("query-encoder", "para-encoder", "cross-encoder"):
        yield f"rocketqa-zh-dureader-{kind}", OLD_CHINESE
        yield f"rocketqa-v1-marco-{kind}", ENGLISH
        yield f"rocketqav2-en-marco-{kind}", ENGLISH
    for size in ("xbase", "base", "medium", "mini", "micro", "nano"):
        yield f"ernie-3.0-{size}-zh", _of_3_0(size)
    for size in ("base", "medium", "mini", "micro", "nano"):
        yield f"ernie-3.0-tiny-{size}-v1-zh", _of_3_0(size)
        yield f"rocketqa-{size}-cross-encoder", _of_3_0(size)
        yield f"rocketqa-zh-{size}-query-encoder", _of_3_0(size)
        yield f"rocketqa-zh-{size}-para-encoder", _of_3_0(size)
        yield f"uie-{size}", _of_3_0(size)
        yield f"uie-senta-{size}", _of_3_0(size)
    yield from (
        ("uie-base-en", ENGLISH),
        ("uie-base-answer-extractor", _of_3_0("base")),
        ("uie-base-qa-filter", _of_3_0("base")),
        ("ernie-search-base-dual-encoder-marco-en", ENGLISH),
        ("ernie-search-large-cross-encoder-marco-en", ENGLISH_LARGE),
    )
    for size in ("base", "medium", "mini", "micro", "nano", "pico"):
        yield f"ernie-3.0-tiny-{size}-v2-zh", _of_3_0(size, has_tasks=False)
        yield f"utc-{size}", _of_3_0(size, words=39981, has_tasks=False)
    yield from (
        ("ernie-3.0-tiny-mini-v2-en", ENGLISH_TINY),
        ("utc-xbase", _of_3_0("xbase", words=39981)),
        ("utc-large", Released(NARROW_LARGE, 17965, 512, 2, tasks=3, activation="relu")),
        ("ernie-gram-zh", GRAM_CHINESE),
        ("ernie-gram-zh-finetuned-dureader-robust", GRAM_CHINESE),
    )


RELEASED: Mapping[str, Released] = dict(_released())
"""Name -> what it is."""


def find_released(layers: int, hidden: int, inner: int, words: int, positions: int, types: int) -> Released | None:
    """The released encoder of these sizes, which tell all but whether it has task embeddings; None if there is none.

    Args:
        layers: Number of layers; one more than the model's where a layer of the distillation was released with it.
        hidden: Hidden size.
        inner: Size between the two linears of a layer.
        words: Rows of the word embeddings.
        positions: Rows of the position embeddings.
        types: Token types.
    """
    for count in (layers, layers - 1):
        for one in RELEASED.values():
            sizes = (one.stack.layers, one.stack.hidden, one.stack.inner, one.words, one.positions, one.types)
            if sizes == (count, hidden, inner, words, positions, types):
                return one
    return None


__all__ = [
    "GRAM_LAYER_NORM_EPS",
    "LAYER_NORM_EPS",
    "RELEASED",
    "Released",
    "Stack",
    "find_released",
]
