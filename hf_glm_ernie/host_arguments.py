"""What users pass to a function, checked before anything runs.

A wrong value often gives no error but an answer: a batch size of -1 makes no batches, the text "False" is true, the
keys of a dict pass for texts. So every public function asks here, in the same words, and says which argument is wrong,
what it holds and what it may hold. No torch here: the tokenizers ask as well.
"""

import math
import operator
from collections.abc import Collection, Iterable, Mapping, Set
from numbers import Real
from typing import Any


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A count that an argument holds, as Python's own number.

    Args:
        name: Of the argument, for the message.
        value: An integer of any kind (numpy's as well), but no truth value.
        least: The smallest that is allowed.
        most: The largest that is allowed, or `None`.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.
    """
    allowed = f"at least {least}" if most is None else f"from {least} to {most}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}={short(value)} is a {type(value).__name__}; it must be a whole number, {allowed}.")
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name}={number} must be {allowed}.")
    return number


def check_model_and_tokenizer(model: Any, tokenizer: Any, *, any_callable: bool = False) -> None:
    """Makes sure that a model and a tokenizer stand where they belong.

    Args:
        model: Anything that is called and has a `config`.
        tokenizer: Anything that is called and has none.
        any_callable: Whether the model needs no `config`: anything will do that is called and is neither a tokenizer
            (which has a pad token) nor a class.

    Raises:
        TypeError: one of them is missing or something else, or they are swapped.
    """
    is_model, is_tokenizer = (callable(one) and hasattr(one, "config") for one in (model, tokenizer))
    if any_callable and not is_tokenizer and not isinstance(model, type) and not hasattr(model, "pad_token_id"):
        is_model = callable(model)
    if is_tokenizer and not is_model:
        raise TypeError(
            f"model is a {type(model).__name__} and tokenizer a {type(tokenizer).__name__}, which is a model: the "
            "model comes first, then its tokenizer."
        )
    if not is_model:
        others = ", an OnnxEncoder, or a function that takes the same inputs" if any_callable else ""
        raise TypeError(f"model is {_named(model)}; it must be a loaded model, as from_pretrained gives it{others}.")
    if is_tokenizer or not callable(tokenizer):
        raise TypeError(
            f"tokenizer is {_named(tokenizer)}; it must be a loaded tokenizer, as AutoTokenizer.from_pretrained gives "
            "it."
        )


def checked_texts(texts: Any, name: str = "texts") -> list[str]:
    """One text or several as a list.

    Args:
        texts: A string, or strings in an order: a list, an array, an iterator.
        name: Of the argument, for the message.

    Raises:
        TypeError: anything else, or one of them is no string.
    """
    if isinstance(texts, str):
        return [texts]
    found = checked_list(texts, name, "a string or a list of strings")
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] is a {type(text).__name__}, not a string: {short(text)}.")
    return found


def checked_list(values: Any, name: str, wanted: str) -> list[Any]:
    """Several values as a list.

    Args:
        values: A list, a tuple, an array, an iterator.
        name: Of the argument, for the message.
        wanted: What it must be, for the message.

    Raises:
        TypeError: nothing of the kind, or without an order (a set, a dict).
    """
    if isinstance(values, str | bytes | bytearray | Mapping | Set) or not isinstance(values, Iterable):
        raise TypeError(f"{name} is a {type(values).__name__} ({short(values)}); it must be {wanted}.")
    return list(values)


def one_of(name: str, value: Any, choices: Collection[str]) -> None:
    """Makes sure that an argument holds one of a few names.

    Raises:
        ValueError: it holds something else.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={short(value)} is not one of {tuple(choices)}.")


def flags(**values: Any) -> None:
    """Makes sure that arguments hold True or False: a text "False" would count as true.

    Raises:
        TypeError: one of them holds something else.
    """
    for name, value in values.items():
        if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):  # numpy's
            raise TypeError(f"{name}={short(value)} is a {type(value).__name__}; it must be True or False.")


def probability_threshold(name: str, value: Any) -> float:
    """What a probability must exceed to count.

    No probability exceeds 1, so a threshold of 1 stands for the number below it: what is certain counts, and nothing
    else. One of 0 leaves out only what has no probability at all.

    Raises:
        ValueError: it is no number in [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name}={short(value)} is no probability: give a number in [0, 1].")
    return min(float(value), math.nextafter(1.0, 0.0))


def _named(value: Any) -> str:
    kind = type(value).__name__
    return f"a {kind} ({short(value)})" if isinstance(value, str | bytes | int | float | list | tuple) else f"a {kind}"


def short(value: Any) -> str:
    """How a message shows a value: the beginning of what it prints as."""
    try:
        shown = repr(value if not isinstance(value, str | bytes | list | tuple) else value[:80])
    except Exception:  # noqa: BLE001  # a stranger's object, whose type is named anyway
        return "..."
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


__all__ = [
    "check_model_and_tokenizer",
    "checked_list",
    "checked_texts",
    "flags",
    "one_of",
    "probability_threshold",
    "short",
    "whole_number",
]
