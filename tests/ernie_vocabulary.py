"""The vocabularies that the tests of ERNIE's tokenizer use, and PaddleNLP's outputs with the small one."""

import json
from pathlib import Path

from tests.conftest import GOLDEN

SMALL = json.loads((GOLDEN / "ernie_tokenizer_small.json").read_text(encoding="utf-8"))
FULL = Path(__file__).parents[2] / "shared" / "goldens" / "ernie"


def released_lines() -> list[str]:
    """The released vocabulary where it is at hand, else the small one; one token a line."""
    path = FULL / "tokenizer" / "vocab.txt"
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else SMALL["vocabulary"]


def write_vocabulary(folder: Path, lines: list[str]) -> Path:
    path = folder / "vocab.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return path
