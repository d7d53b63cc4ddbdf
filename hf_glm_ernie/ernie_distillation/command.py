"""`python -m hf_glm_ernie distil-uie --teacher FOLDER --texts FILE --schema SCHEMA --output FOLDER`: a student."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from hf_glm_ernie.ernie_tasks.onnx_encoder import OnnxEncoder
from hf_glm_ernie.ernie_tasks.uie_schema import LANGUAGES

from .comparing import table
from .distil import DistilArguments, distil_uie

DONE, REFUSED = 0, 1  # 2 is argparse's


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 0, or 1 if it was refused (the reason is on stderr)."""
    options = vars(build_parser().parse_args(arguments))
    folder, output, encoder = options.pop("teacher"), options.pop("output"), options.pop("encoder")
    try:
        options["schema"] = read_schema_option(options["schema"])
        distilled = DistilArguments(encoder=str(encoder or folder), **options)
        teacher, tokenizer = open_teacher(folder)
        measured = distil_uie(teacher, tokenizer, output, distilled)
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    if measured:
        against = "the labels" if distilled.labelled else "the teacher's own answers"
        sys.stdout.write(f"F1 against {against} of texts that were not trained on:\n{table(measured)}\n")
    return DONE


def read_schema_option(given: str) -> Any:
    """A schema from a command line: a file of JSON, JSON itself, or names with commas between them.

    Raises:
        ValueError: JSON that is none.
    """
    text = Path(given).read_text(encoding="utf-8") if given.endswith(".json") else given
    if text.lstrip()[:1] not in ("[", "{", '"'):
        return [name.strip() for name in re.split(r",(?![^\[\]]*\])", text)]  # none between options
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--schema {given[:80]!r} is no JSON: {error}") from None


def open_teacher(folder: Path) -> tuple[Any, Any]:
    """A UIE model, on a GPU where there is one, or an exported one; and its tokenizer.

    Raises:
        ValueError: a folder of something else.
    """
    if not (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        raise ValueError(f"--teacher {folder} is not the folder of a whole UIE model (an adapter is merged first).")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if any(folder.glob("*.onnx")) and not any(folder.glob("*.safetensors")):
        return OnnxEncoder(folder), tokenizer
    model = AutoModel.from_pretrained(folder)
    if model.config.model_type != "ernie_uie":
        raise ValueError(f"--teacher {folder} holds a model of the type {model.config.model_type}, not ernie_uie.")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def build_parser() -> argparse.ArgumentParser:
    """The options; what they mean is told in full by [`DistilArguments`]."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_glm_ernie distil-uie",
        description="A student for one schema: a UIE teacher labels texts, a model of one forward learns from them.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--teacher", type=Path, required=True, metavar="FOLDER", help="a UIE model, or one exported to ONNX")
    add("--texts", type=Path, required=True, metavar="FILE", help="texts without labels, one a line")
    add("--schema", required=True, help="names with commas, JSON, or a .json file; as uie takes it")
    add("--output", type=Path, required=True, metavar="FOLDER", help="for the student")
    add("--encoder", metavar="FOLDER", help="becomes the student (default: the teacher's own encoder)")
    add("--layers", type=int, help="of the encoder that stay, spread evenly (default: all)")
    add("--labelled", type=Path, metavar="EXPORT", help="doccano's or Label Studio's, to learn from and to measure on")
    add("--sample-index", type=Path, metavar="FILE", help="its splits (sample_index.json beside it, else 8:1:1)")
    add("--synthetic-ratio", type=int, default=10, metavar="N", help="texts a labelled one; -1: all (default: 10)")
    add("--threshold", type=float, default=0.5, help="of the teacher's answers (default: 0.5)")
    add("--language", choices=LANGUAGES, default="zh", help="of the teacher's prompts (default: zh)")
    add("--max-length", type=int, default=256, metavar="TOKENS", help="of a text in training (default: 256)")
    add("--epochs", type=int, default=50, help="default: 50")
    add("--learning-rate", type=float, default=3e-5, help="falls to 0 (default: 3e-5)")
    add("--batch-size", type=int, default=16, help="default: 16")
    add("--seed", type=int, default=1000, help="default: 1000")
    add("--overwrite", action="store_true", help="replace an earlier run in the folder")
    add("--resume", action="store_true", help="go on with a run that was stopped")
    add("--no-progress", dest="progress", action="store_false", help="no bars")
    return parser
