"""What every call of a tokenizer goes through: one at a time, with settings that hold, and ids of any kind back.

- The `tokenizers` library keeps padding and truncation on its tokenizer. The host sets them before each call and
  encodes behind that, so that two threads with different settings get each other's: rows cut or padded wrongly, and
  no error. Here a call holds a lock from its settings to its rows. The library still uses all cores for one batch.
- What is wrong with a call is named: the library says what it would take, not which text it was given.
- A batch of no texts is a batch of no rows; the host fails at it.
- Ids come from models, whose embedding may have more rows than there are tokens, and from labels, which hold -100. The
  library leaves out of a text what no token has, but raises at a negative id and at one beyond 32 bits. Here these are
  left out, too.
"""

import os
import threading
from typing import Any

import numpy as np
from transformers import TokenizersBackend
from transformers.tokenization_utils_base import BatchEncoding

from .host_arguments import one_of, short, whole_number

NO_TOKEN = 2**32 - 1  # the library's highest id: no vocabulary has it

# Columns of a batch, and the argument that asks for each.
COLUMNS = {
    "token_type_ids": "return_token_type_ids",
    "attention_mask": "return_attention_mask",
    "special_tokens_mask": "return_special_tokens_mask",
    "offset_mapping": "return_offsets_mapping",
    "length": "return_length",
}


class CallLock:
    """A lock that a thread may take again, and a copy or a child process does not inherit."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():  # forked, maybe while another thread held it
            self._renew()
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return CallLock, ()


class SharedBackend(TokenizersBackend):
    """A tokenizer of the host that threads may share; a subclass makes its rows in `_encode`."""

    _calls: CallLock

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Made here, for the host's `__init__` and unpickling both use it."""
        self = super().__new__(cls)
        self.__dict__["_calls"] = CallLock()
        return self

    def _encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:  # type: ignore[override]
        check_settings(options)
        if is_empty_batch(text, text_pair, options):
            return self._no_rows(options)
        with self._calls:
            try:
                return self._encode(text, text_pair, **options)
            except (TypeError, ValueError) as error:
                said = what_is_wrong(text, text_pair, bool(options.get("is_split_into_words")))
                if said is None:
                    raise
                raise (TypeError if isinstance(error, TypeError) else ValueError)(said) from error

    def _encode(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """What a call returns, while no other thread is in one."""
        return super()._encode_plus(text, text_pair, **options)

    def _no_rows(self, options: dict[str, Any]) -> BatchEncoding:
        """The batch of no texts; as tensors, its columns are (0, 0)."""
        names = ["input_ids"]
        for name, argument in COLUMNS.items():
            asked = options.get(argument)
            names += [name] if asked or (asked is None and name in self.model_input_names) else []
        tensors = options.get("return_tensors")
        data: dict[str, Any] = {name: [] if tensors is None else np.zeros((0, 0), np.int64) for name in names}
        return BatchEncoding(data, [], tensor_type=tensors)

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or of each of several (a list, an array, a tensor); None where an id has none."""
        return super().convert_ids_to_tokens(library_ids(ids), skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Joins tokens to a text; None, the token of an id that has none, is left out."""
        return super().convert_tokens_to_string([token for token in tokens if token is not None])

    def _decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> str:
        try:
            return super()._decode(token_ids, *args, **kwargs)
        except (OverflowError, TypeError):
            ids = library_ids(token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids)
            return super()._decode([ids] if isinstance(ids, int) else ids, *args, **kwargs)


def library_ids(ids: Any) -> Any:
    """Ids as the library takes them, `NO_TOKEN` where it would raise.

    Args:
        ids: One, or a list, an array or a tensor of them.

    Returns:
        An int, or a list of them.

    Raises:
        TypeError: something else.
    """
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(ids, int):
        return ids if 0 <= ids < NO_TOKEN else NO_TOKEN
    if type(ids) is list and set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < NO_TOKEN:
        return ids  # nearly always, so quickly
    try:
        return [index if 0 <= index < NO_TOKEN else NO_TOKEN for index in map(_as_int, ids)]
    except TypeError as error:
        raise TypeError(f"Ids are whole numbers or a list of them, not {short(ids)}.") from error


def _as_int(index: Any) -> int:
    return index if type(index) is int else index.__index__() if hasattr(index, "__index__") else _no_int(index)


def _no_int(index: Any) -> int:
    raise TypeError(f"{short(index)} is no id.")


def check_settings(options: dict[str, Any]) -> None:
    """Refuses lengths and sides that the library takes for others, or overflows at.

    Raises:
        TypeError: a length that is no whole number.
        ValueError: a negative length, an unknown side.
    """
    for name in ("max_length", "stride", "pad_to_multiple_of"):
        if options.get(name) is not None:
            whole_number(name, options[name], least=0)
    if options.get("padding_side") is not None:
        one_of("padding_side", options["padding_side"], ("left", "right"))


def is_empty_batch(text: Any, text_pair: Any, options: dict[str, Any]) -> bool:
    """Whether a call is given a list of no texts (a list of no words is one text)."""
    if options.get("is_split_into_words"):
        return False
    return all(isinstance(one, list | tuple) and not one for one in (text, text if text_pair is None else text_pair))


def what_is_wrong(text: Any, text_pair: Any, as_words: bool) -> str | None:
    """Names the first thing in a call that is no text.

    Args:
        text: As the call has it.
        text_pair: Likewise.
        as_words: Whether texts are lists of words.

    Returns:
        A sentence, or `None` where all are texts.
    """
    wanted = "a list of words" if as_words else "a string"
    for name, given in (("text", text), ("text_pair", text_pair)):
        if given is None and name == "text_pair":
            continue
        if not isinstance(given, str | list | tuple):
            return f"{name} is a {type(given).__name__}, not {wanted} or a list of texts: {short(given)}."
        for i, one in enumerate(given if not isinstance(given, str) else ()):
            if not isinstance(one, str | list | tuple):
                return f"{name}[{i}] is a {type(one).__name__}, not a string: {short(one)}."
            inner = () if isinstance(one, str) else one
            if not isinstance(one, str) and not as_words and (len(one) != 2 or not _all_texts(one)):
                return f"{name}[{i}] is a list that is no pair of strings: {short(one)}."
            for j, word in enumerate(inner):
                if not isinstance(word, str) and not (isinstance(word, list | tuple) and _all_texts(word)):
                    return f"{name}[{i}][{j}] is a {type(word).__name__}, not a string: {short(word)}."
    if text_pair is not None and not as_words and isinstance(text, str) != isinstance(text_pair, str):
        return (
            f"text is a {type(text).__name__} and text_pair a {type(text_pair).__name__}: both are one text, or both "
            "a list of as many."
        )
    return None


def _all_texts(parts: Any) -> bool:
    return all(isinstance(part, str) for part in parts)


# `SharedBackend` is a base, nothing to use by itself.
__all__ = ["CallLock", "check_settings", "is_empty_batch", "library_ids", "what_is_wrong"]
