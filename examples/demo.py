"""Goes the whole way from a released checkpoint to filled blanks, with the sample in `examples/sample-glm130b`.

    python examples/demo.py

The sample is a tiny GLM-130B in the released tensor-parallel format (`train_sample_glm130b.py` made it), so nothing is
downloaded. The demo converts it, opens the result with `AutoModelForCausalLM`, fills the English and Chinese blanks of
`blanks.jsonl`, and compares with what the sample's corpus says there. Exit status 0: at least 90% of the texts are
exactly right.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_glm_ernie import FilledText, fill_blanks  # the import also registers GLM-130B with the Auto classes

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "examples" / "sample-glm130b"
REQUIRED_ACCURACY = 0.9
LANGUAGES = {"en": "English", "zh": "Chinese"}
MASK = re.compile(r"\[g?MASK\]")


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo.

    Args:
        arguments: The command line; `None` reads that of the process.

    Returns:
        The exit status: 0 where at least 90% of the texts are filled exactly right, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=REPOSITORY / "demo-output" / "sample-glm130b",
        help="folder for the converted sample, replaced if an earlier run left it (default: %(default)s)",
    )
    output = parser.parse_args(arguments).output

    convert(output)
    model, tokenizer = open_converted(output)
    blanks = read_blanks()
    started = time.perf_counter()
    texts = [blank["text"] for blank in blanks]
    answers = fill_blanks(model, tokenizer, texts, batch_size=len(texts), max_new_tokens=32)
    seconds = time.perf_counter() - started
    right = print_answers(blanks, answers)
    filled = sum(len(answer.blanks) for answer in answers)
    print(f"\n{right} of {len(blanks)} texts exactly right ({right / len(blanks):.0%})", end="; ")
    print(f"{filled} blanks filled in {seconds:.1f} s")
    return 0 if right >= REQUIRED_ACCURACY * len(blanks) else 1


def read_blanks() -> list[dict[str, Any]]:
    """Reads the texts with blanks: `language` ("en" or "zh"), `text`, and `blanks`, the answers from left to right."""
    return [json.loads(line) for line in (SAMPLE / "blanks.jsonl").read_text("utf-8").splitlines()]


def convert(output: Path) -> None:
    """Converts the sample with the command that converts the released 130B checkpoint.

    Args:
        output: Folder to write. One that an earlier conversion wrote is replaced.

    Raises:
        SystemExit: `output` holds something else, or the conversion failed.
    """
    if (output / "conversion.json").is_file():  # every converted folder has this record
        shutil.rmtree(output)
    elif output.exists():
        raise SystemExit(
            f"{output} exists and is not an earlier conversion. Pass --output with the name of a new folder."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["glm130b", "--source", str(SAMPLE), "--output", str(output.resolve())]
    print(f"$ python -m conversion {' '.join(relative(argument) for argument in arguments)}", flush=True)
    status = subprocess.run([sys.executable, "-m", "conversion", *arguments], cwd=REPOSITORY, check=False).returncode
    if status:
        raise SystemExit(status)


def relative(argument: str) -> str:
    """Shortens a path inside the repository to what one would type there."""
    return argument.removeprefix(f"{REPOSITORY}/")


def open_converted(folder: Path) -> tuple[Any, Any]:
    """Opens a converted folder as any other model of the host library.

    Returns:
        The model, in fp32, and its tokenizer.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # fp16 is slow on a CPU
    print(f"\n{type(model).__name__}: {model.config.num_hidden_layers} layers, {model.num_parameters():,} parameters")
    return model, tokenizer


def print_answers(blanks: list[dict[str, Any]], answers: list[FilledText]) -> int:
    """Prints every text with its blanks filled, and what was expected where that is not the same.

    Returns:
        The number of texts with every blank exactly right.
    """
    right = 0
    for language, name in LANGUAGES.items():
        print(f"\n{name}")
        for blank, answer in zip(blanks, answers, strict=True):
            if blank["language"] != language:
                continue
            is_right = answer.blanks == blank["blanks"]
            right += is_right
            print(f"  {'right' if is_right else 'WRONG'}  {marked(blank['text'], answer.blanks)}")
            if not is_right:
                print(f"         {marked(blank['text'], blank['blanks'])}  was expected")
    return right


def marked(text: str, blanks: list[str]) -> str:
    """Puts answers into a text, marked: underlined green on a terminal, in brackets elsewhere."""
    before, after = ("\033[4;32m", "\033[0m") if sys.stdout.isatty() else ("[", "]")
    if not MASK.search(text):
        text += " [gMASK]" if text.isascii() else "[gMASK]"  # as fill_blanks does
    parts = MASK.split(text)
    return parts[0] + "".join(f"{before}{blank}{after}{part}" for blank, part in zip(blanks, parts[1:], strict=True))


if __name__ == "__main__":
    sys.exit(main())
