"""Rows that UTC is trained and measured on: a text or a pair, every option, and which of them hold.

    {"text_a": str, "text_b": str, "question": "", "choices": [str, ...], "labels": [int, ...]}

One text is cut at the separator: a single piece leaves `text_b` empty; of more than two the last is `text_b` and the
others are joined without the separator, as the original does. (PaddleNLP 2.8.1, UTC's `label_studio.py`.)
"""

from collections.abc import Iterable, Iterator, Sequence

from .documents import ClassifiedText
from .options import Row, known_labels


def check_choices(options: Sequence[str]) -> list[str]:
    """Options of which each is there once; unlike UIE's they may hold anything.

    Raises:
        TypeError: one is no string.
        ValueError: there are none; one is empty or there twice (the original would never label the second).
    """
    if isinstance(options, str) or not all(isinstance(one, str) for one in options):
        raise TypeError(f"options is {options!r}: a list of strings is needed")
    if not options:
        raise ValueError("options is empty: UTC needs the classes, as a list or a file with one a line")
    if not all(one.strip() for one in options):
        raise ValueError(f"options {list(options)} has an empty one; a file of options has no blank line")
    if twice := sorted({one for one in options if list(options).count(one) > 1}):
        raise ValueError(f"options {twice} are given more than once")
    return list(options)


def utc_rows(
    texts: Iterable[ClassifiedText], options: Sequence[str], text_separator: str = "\t", unknown_options: str = "error"
) -> Iterator[Row]:
    """Rows in the order of the texts.

    Args:
        texts: With their classes.
        options: All classes; every row offers all of them.
        text_separator: Between the two texts of a pair.
        unknown_options: "error", or "drop": classes that are no option are left out.

    Raises:
        AnnotationError: a class that is no option.
        ValueError: options or a separator that cannot be used.
    """
    choices = check_choices(options)
    if not text_separator:
        raise ValueError("text_separator is empty: at least one character is needed")
    places = {option: place for place, option in enumerate(choices)}
    for text in texts:
        labels = known_labels(text.labels, choices, "the text", unknown_options)
        if text.labels and not labels:
            continue
        *front, last = text.text.split(text_separator)
        first, second = ("".join(front), last) if front else (last, "")
        held = [places[one] for one in labels]
        yield {"text_a": first, "text_b": second, "question": "", "choices": choices, "labels": held}
