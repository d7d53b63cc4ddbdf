"""PaddleNLP's outputs for rows of training data, and a tokenizer that cuts as the original's did."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_glm_ernie import ErnieTokenizer
from tests.conftest import GOLDEN

SHARED = Path(__file__).parents[3] / "shared" / "goldens"
needs_full_set = pytest.mark.skipif(
    not (SHARED / "ernie_workflows").is_dir(),
    reason="needs the full golden sets beside the repository (../shared/goldens/ernie_workflows); the small copies in "
    "tests/golden ran",
)


def golden(name: str) -> Any:
    return json.loads((GOLDEN / "ernie_training" / f"{name}.json").read_text(encoding="utf-8"))


def full_lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED / "ernie_workflows" / file).read_text(encoding="utf-8").splitlines()]


def tokenizer_of(folder: Path, vocabulary: list[str] | None = None) -> ErnieTokenizer:
    """A tokenizer with these tokens, or with the released ones."""
    if vocabulary is None:
        return ErnieTokenizer(str(SHARED / "ernie" / "tokenizer" / "vocab.txt"))
    path = folder / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8", newline="\n")
    return ErnieTokenizer(str(path))
