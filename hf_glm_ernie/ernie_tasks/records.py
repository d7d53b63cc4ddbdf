"""Texts as people hold them: strings, pairs, and the dicts of PaddleNLP's tasks and training files.

A dict is the record of one text, never a collection of texts: its keys are not read as if they were some.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hf_glm_ernie.host_arguments import checked_list, checked_texts, short

TEXT_KEYS = ("text", "content")
CHOICE_KEYS = ("text_a", "text_b", "question", "choices", "labels")


class ChoiceRecord(NamedTuple):
    """A text, a second one or "", and the choices to choose from."""

    text_a: str
    text_b: str
    choices: tuple[str, ...]


def text_records(texts: Any) -> list[str]:
    """One text or several, each a string or a record of one.

    Args:
        texts: A string, `{"text": ...}` or `{"content": ...}`, or several of them in an order.

    Raises:
        TypeError: anything else.
    """
    if isinstance(texts, str):
        return [texts]
    wanted = "a string, a dict {'text': ...}, or a list of them"
    found = [texts] if isinstance(texts, Mapping) else checked_list(texts, "texts", wanted)
    return checked_texts([_text_of(one, i) if isinstance(one, Mapping) else one for i, one in enumerate(found)])


def _text_of(record: Mapping[str, Any], place: int) -> Any:
    if len(record) != 1 or next(iter(record)) not in TEXT_KEYS:
        raise TypeError(
            f"texts[{place}] is a dict with {short(list(record))}; a dict holds one text, {{'text': ...}} or "
            "{'content': ...}, and nothing else."
        )
    return next(iter(record.values()))


def choice_records(texts: Any, choices: Any) -> list[ChoiceRecord]:
    """One text or several with their choices.

    Args:
        texts: A string, a pair of strings or a record `{"text_a", "text_b", "question", "choices"}`, or several of
            them in an order. A record's `text_b` and `choices` may be left out; its `question` and, of training rows,
            its `labels` are not read.
        choices: For all texts without choices of their own; `None` where every one has its own.

    Raises:
        TypeError: texts or choices that are not strings, a record with other keys.
        ValueError: fewer than two choices, an empty one, an empty text, a text without choices.
    """
    shared = None if choices is None else checked_choices(choices)
    wanted = "a string, a dict {'text_a': ..., 'choices': [...]}, or a list of strings, pairs of strings and dicts"
    alone = isinstance(texts, str | Mapping)
    return [
        _choice_record(one, i, shared)
        for i, one in enumerate([texts] if alone else checked_list(texts, "texts", wanted))
    ]


def _choice_record(text: Any, place: int, shared: tuple[str, ...] | None) -> ChoiceRecord:
    own = shared
    if isinstance(text, Mapping):
        if "text_a" not in text or not set(text) <= set(CHOICE_KEYS):
            raise TypeError(
                f"texts[{place}] is a dict with {short(list(text))}; a dict holds text_a and, where there are, "
                f"{', '.join(CHOICE_KEYS[1:])}, and nothing else."
            )
        if text.get("choices") is not None:  # `datasets` fills columns that a row lacks with None
            own = checked_choices(text["choices"], f"texts[{place}]['choices']")
        text = (text["text_a"], text.get("text_b") or "")
    pair = (text, "") if isinstance(text, str) else tuple(text) if isinstance(text, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise TypeError(
            f"texts[{place}] is neither a string nor a pair of strings, nor a dict {{'text_a': ...}}: {short(text)}."
        )
    if not any(pair):
        raise ValueError(f"texts[{place}] is empty.")
    if own is None:
        raise ValueError(f"choices=None, but texts[{place}] has no choices of its own.")
    return ChoiceRecord(*pair, own)


def checked_choices(choices: Any, name: str = "choices") -> tuple[str, ...]:
    """Choices, at least two.

    Args:
        choices: A list of strings, or a dict with one such list.
        name: Of the argument, for the message.

    Raises:
        TypeError: one of them is no string.
        ValueError: no list, fewer than two, an empty one.
    """
    if isinstance(choices, dict) and len(choices) == 1:
        choices = next(iter(choices.values()))
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        raise ValueError(
            f"{name} must be a list of at least two strings, or a dict with one such list: {short(choices)}."
        )
    for i, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise TypeError(f"{name}[{i}] is a {type(choice).__name__}, not a string: {short(choice)}.")
        if not choice:
            raise ValueError(f"{name}[{i}] is empty: say what may hold.")
    return tuple(choices)


def distinct(texts: Sequence[str]) -> list[str]:
    """Texts without repetitions, in the order in which they first occur."""
    return list(dict.fromkeys(texts))


__all__ = ["ChoiceRecord", "checked_choices", "choice_records", "distinct", "text_records"]
