"""A small tokenizer and small texts for the tests of ERNIE 3.0's pre-training data."""

from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from hf_glm_ernie.tokenization_ernie3 import Ernie3Tokenizer
from tests.support.ernie_vocabulary import SMALL, write_vocabulary

PIECES = [piece for piece in SMALL["vocabulary"] if piece != "[UNK]"][:-1]
OWN = ["[END]", "<S>", "[gEND]", "[soft]", "[UNK]"]


def small_tokenizer(folder: Path, **options: Any) -> Ernie3Tokenizer:
    """204 pieces and the tokens of the unified model."""
    pieces = list(dict.fromkeys(PIECES))
    return Ernie3Tokenizer(str(write_vocabulary(folder, [*pieces, *OWN])), **options)


def random_text(generator: np.random.Generator, length: int) -> str:
    """A text of ordinary characters, a token each, without an end mark."""
    return "".join(
        generator.choice(list("今天气真好我们去公园玩吧百度飞桨是一个开源的深学习平台")) for _ in range(length)
    )


def within_three_sigma(count: int, trials: int, probability: float) -> bool:
    """Whether a binomial count lies within three standard deviations of its mean."""
    return abs(count - trials * probability) <= 3 * sqrt(trials * probability * (1 - probability))
