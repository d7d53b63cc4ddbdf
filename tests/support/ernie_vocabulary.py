"""The vocabularies that the tests of ERNIE's tokenizer use, and PaddleNLP's outputs with the small one."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GOLDEN

SMALL = json.loads((GOLDEN / "ernie_tokenizer_small.json").read_text(encoding="utf-8"))
FULL = Path(__file__).parents[3] / "shared" / "goldens" / "ernie"


def released_lines() -> list[str]:
    """The released vocabulary where it is at hand, else the small one; one token a line."""
    path = FULL / "tokenizer" / "vocab.txt"
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else SMALL["vocabulary"]


def write_vocabulary(folder: Path, lines: list[str]) -> Path:
    path = folder / "vocab.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return path


def paddle_folder(folder: Path, lines: list[str], config: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A tokenizer's folder as PaddleNLP saves it."""
    folder.mkdir(exist_ok=True)
    write_vocabulary(folder, lines)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    settings = {
        "do_lower_case": True,
        **special,
        "model_max_length": 2048,
        "tokenizer_class": "ErnieTokenizer",
    } | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


needs_unicode_14 = pytest.mark.skipif(
    unicodedata.unidata_version != "14.0.0",
    reason="needs Python 3.11, whose unicodedata is the reference's Unicode 14.0.0",
)
