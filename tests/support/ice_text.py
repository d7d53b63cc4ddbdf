"""A small sentencepiece model with the layout of the released `ice_text.model`."""

import io
from pathlib import Path
from typing import Any

import sentencepiece

from tests.conftest import GOLDEN

TRAINING_TEXT = (GOLDEN.parents[1] / "LICENSE").read_text(encoding="utf-8") + (
    "千里之行，始于足下。学而不思则罔，思而不学则殆。三人行，必有我师焉。温故而知新，可以为师矣。\n"
    "哈哈哈 ---- ==== ....\n"
)


def train(path: Path, **options: Any) -> Path:
    """Trains a small sentencepiece model with the released layout (<unk> <s> </s> <pad> <n>)."""
    defaults = {"model_type": "unigram", "vocab_size": 500, "pad_id": 3, "user_defined_symbols": ["<n>"]}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT.split("\n")),
        model_writer=model,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **(defaults | options),
    )
    path.write_bytes(model.getvalue())
    return path
