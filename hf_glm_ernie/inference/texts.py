"""What users pass as texts, checked; the tasks on ERNIE encoders share it."""

from typing import Any


def checked_texts(texts: Any) -> list[str]:
    """One text or several as a list.

    Args:
        texts: A string, or an iterable of strings.

    Raises:
        TypeError: one of them is no string.
    """
    if isinstance(texts, str):
        return [texts]
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] is a {type(text).__name__}, not a string: {text!r}.")
    return texts


__all__ = ["checked_texts"]
