"""A teacher's answers on texts without labels, as training rows: streamed to a file, and taken up again where stopped.

Texts are lines of a file; empty ones are none. Which of them are read is drawn at random where there are more than so
many times the labelled ones, and they are read in their order.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_glm_ernie.ernie_data.spool import encode
from hf_glm_ernie.ernie_tasks.gplinker_schema import LabelMaps
from hf_glm_ernie.ernie_training.gplinker_rows import as_row

from .marked import marked_of_answers

Answerer = Callable[[list[str]], Sequence[Mapping[str, Any]]]
"""Texts -> the answers to each, as [`uie`] gives them."""

TEXTS_AHEAD = 256
"""Texts that the teacher is given at once; so many answers are lost at most when it is stopped."""


def lines_of(file: Path) -> Iterator[str]:
    """The texts of a file, without blanks around them and without empty ones."""
    with file.open(encoding="utf-8-sig") as lines:
        yield from (text for line in lines if (text := line.strip()))


def drawn_texts(file: Path, labelled: int, synthetic_ratio: int, seed: int) -> tuple[int, Iterator[str]]:
    """The texts that a teacher is to label.

    Args:
        file: A text a line.
        labelled: How many labelled texts there are to train on.
        synthetic_ratio: Texts a labelled one; -1, or without labelled ones: all there are.
        seed: Of the draw.

    Returns:
        How many, and the texts, in the file's order.

    Raises:
        ValueError: a file without texts.
    """
    number = sum(1 for _ in lines_of(file))
    if not number:
        raise ValueError(f"{file} holds no text: it must have one a line.")
    most = synthetic_ratio * labelled
    if synthetic_ratio < 0 or not labelled or number <= most:
        return number, lines_of(file)
    chosen = set(random.Random(seed).sample(range(number), most))
    return most, (text for i, text in enumerate(lines_of(file)) if i in chosen)


def label_texts(
    answer: Answerer, texts: Iterable[str], number: int, maps: LabelMaps, output: Path, show_progress: bool = True
) -> int:
    """Writes a row for every text.

    Args:
        answer: The teacher.
        texts: In an order that stays.
        number: How many.
        maps: The schema's labels.
        output: The file of rows. Rows that are there already are those of the first texts, and stay.
        show_progress: Whether to show a bar.

    Returns:
        How many rows were there already.

    Raises:
        ValueError: a row that is there is of another text.
    """
    texts = iter(texts)
    done = _check_done(output, texts)
    with (
        output.open("ab") as file,
        tqdm(total=number, initial=done, desc="Teacher", unit="text", disable=not show_progress) as progress,
    ):
        while ahead := list(islice(texts, TEXTS_AHEAD)):
            for text, found in zip(ahead, answer(ahead), strict=True):
                row = as_row(marked_of_answers(text, found, maps), maps.opinion is not None)
                file.write(encode(row).encode() + b"\n")
            file.flush()
            progress.update(len(ahead))
    return done


def _check_done(output: Path, texts: Iterator[str]) -> int:
    """Reads as many texts as there are whole rows of them; what was written in part goes."""
    if not output.exists():
        return 0
    done, end = 0, 0
    with output.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            if json.loads(line)["text"] != next(texts, None):
                raise ValueError(
                    f"{output}, line {done + 1}, is of another text than the one that is next: it comes from other "
                    "texts or another seed. Begin anew with --overwrite, or name another folder."
                )
            done, end = done + 1, end + len(line)
        file.truncate(end)
    return done


__all__ = ["Answerer", "drawn_texts", "label_texts", "lines_of"]
