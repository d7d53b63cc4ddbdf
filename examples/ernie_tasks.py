"""A tour of what ERNIE encoders are used for, with the sample in `examples/sample-ernie`: nothing is downloaded.

    python examples/ernie_tasks.py

The sample is a small encoder and a UIE model in PaddleNLP's format (`train_sample_ernie.py` made them). The tour
converts both, opens the results with transformers, fills blanks, compares sentences and extracts information. Every
blank and every name it shows was held out from training. Exit status 0: enough of all that was held out is right.
"""

import argparse
import json
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, pipeline

from hf_glm_ernie import sentence_embeddings, uie  # the import also registers UIE with the Auto classes

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "examples" / "sample-ernie"
LANGUAGES = {"zh": "Chinese", "en": "English"}
SHOWN = 5  # blanks, and texts with answers, of each language
REQUIRED_BLANKS = 0.9
REQUIRED_TEXTS = 0.85
SENTENCES = (
    "法国的首都是巴黎。",
    "巴黎是法国的首都。",
    "大熊猫最爱吃的食物是竹子。",
    "我们给熊猫带来了竹子。",
    "The capital of France is Paris.",
    "We flew to Paris, the capital of France.",
    "A baker works in a bakery.",
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the tour.

    Args:
        arguments: The command line; `None` reads that of the process.

    Returns:
        The exit status: 0 where at least 90% of the held-out blanks and 85% of the held-out texts are right, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=REPOSITORY / "demo-output" / "sample-ernie",
        help="folder for the converted samples, which an earlier run may have left (default: %(default)s)",
    )
    output = parser.parse_args(arguments).output
    for name in ("masked-lm", "uie"):
        convert(SAMPLE / name, output / name)
    enough = fill_masks(output / "masked-lm")
    compare_sentences(output / "masked-lm")
    return 0 if extract(output / "uie") and enough else 1


def convert(source: Path, output: Path) -> None:
    """Converts a checkpoint with the command that converts the released ones.

    Args:
        source: Folder in PaddleNLP's format.
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
    # The files are fp16, which is slow on a CPU.
    arguments = ["ernie", "--source", str(source), "--output", str(output.resolve()), "--dtype", "float32"]
    shown = " ".join(argument.removeprefix(f"{REPOSITORY}/") for argument in arguments)
    print(f"$ python -m conversion {shown}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "conversion", *arguments], cwd=REPOSITORY, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    print(done.stdout.splitlines()[-1])


def read_lines(name: str) -> list[dict[str, Any]]:
    """Reads one of the sample's lists of what was held out."""
    return [json.loads(line) for line in (SAMPLE / name).read_text("utf-8").splitlines()]


def fill_masks(folder: Path) -> bool:
    """Fills the blanks through the host's pipeline, and shows some.

    Returns:
        Whether enough of them are right.
    """
    heading("Blanks: transformers.pipeline('fill-mask')")
    fill = pipeline("fill-mask", model=str(folder), top_k=3)
    blanks = read_lines("blanks.jsonl")
    right = 0
    for language, name in LANGUAGES.items():
        print(f"\n{name}")
        asked = [blank for blank in blanks if blank["language"] == language]
        width = max(columns(blank["text"]) for blank in asked)
        every = len(asked) // SHOWN
        for index, (blank, answers) in enumerate(zip(asked, fill([blank["text"] for blank in asked]), strict=True)):
            masks = answers if isinstance(answers[0], list) else [answers]  # one [MASK] comes without its list
            is_right = [best["token_str"] for best, *_ in masks] == blank["answer"]
            right += is_right
            if index % every == 0 and index // every < SHOWN:
                found = " | ".join(
                    " ".join(f"{one['token_str']} {one['score']:.0%}" for one in mask) for mask in masks
                )
                print(f"  {'right' if is_right else 'WRONG'}  {padded(blank['text'], width)}  {found}")
    print(f"\n{right} of {len(blanks)} held-out blanks right ({right / len(blanks):.0%})")
    return right >= REQUIRED_BLANKS * len(blanks)


def compare_sentences(folder: Path) -> None:
    """Shows how like the vectors of some sentences are."""
    heading("Sentences: sentence_embeddings(model, tokenizer, texts)")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    vectors = sentence_embeddings(model, tokenizer, list(SENTENCES))  # (7, 96) fp32, of length 1
    width = max(map(columns, SENTENCES))
    print(f"\n  {'cosine':{width + 3}}" + "".join(f"{number:7}" for number in range(1, len(SENTENCES) + 1)))
    for number, (text, row) in enumerate(zip(SENTENCES, vectors @ vectors.T, strict=True), 1):
        print(f"  {number}  {padded(text, width)}" + "".join(f"{value:7.2f}" for value in row.tolist()))


def extract(folder: Path) -> bool:
    """Extracts what a nested schema names, and shows some texts with their answers.

    Returns:
        Whether enough texts have exactly the expected answers.
    """
    heading("Information extraction: uie(model, tokenizer, schema, texts)")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    schemas = {
        language: events["schema"] for language, events in json.loads((SAMPLE / "events.json").read_text()).items()
    }
    expected = read_lines("extractions.jsonl")
    right = 0
    for language, name in LANGUAGES.items():
        asked = [one for one in expected if one["language"] == language]
        texts = [one["text"] for one in asked]
        found = uie(model, tokenizer, schemas[language], texts, language=language, show_progress=False)
        print(f"\n{name}, schema {json.dumps(schemas[language], ensure_ascii=False)}")
        for index, (one, answers) in enumerate(zip(asked, found, strict=True)):
            is_right = set(paths(answers)) == set(paths(one["answers"]))
            right += is_right
            if index < SHOWN:
                print(f"\n  {'right' if is_right else 'WRONG'}  {one['text']}")
                print_answers(answers, "         ")
    print(f"\n{right} of {len(expected)} held-out texts exactly right ({right / len(expected):.0%})")
    return right >= REQUIRED_TEXTS * len(expected)


def paths(answers: dict[str, list[dict[str, Any]]], above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every answer as the names and places that lead to it: comparable, whatever the order and the probabilities."""
    for name, found in answers.items():
        for answer in found:
            path = (*above, name, answer["start"], answer["end"])
            yield path
            yield from paths(answer.get("relations", {}), path)


def print_answers(answers: dict[str, list[dict[str, Any]]], indent: str) -> None:
    """Prints answers as a tree, with their places in the text and probabilities."""
    width = max(map(columns, answers), default=0)
    for name, found in answers.items():
        for answer in found:
            place = f"{answer['start']}-{answer['end']}"
            print(f"{indent}{padded(name, width)}  {answer['text']}  ({place}, {answer['probability']:.0%})")
            print_answers(answer.get("relations", {}), indent + " " * (width + 2))


def heading(text: str) -> None:
    """Prints a heading."""
    print(f"\n\n{text}\n{'-' * len(text)}", flush=True)


def columns(text: str) -> int:
    """Columns of a terminal that a text takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def padded(text: str, width: int) -> str:
    """The text, filled up with spaces to a number of columns."""
    return text + " " * (width - columns(text))


if __name__ == "__main__":
    sys.exit(main())
