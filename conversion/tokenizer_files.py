"""The settings beside a vocabulary, checked before transformers reads them, which believes them.

`tokenizer_config.json` and `special_tokens_map.json` become arguments of the tokenizer, whatever is in them;
`added_tokens.json` is tokens and ids.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .json_files import parse_json
from .operations import SettingsError

TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
MAX_BYTES = 5_000_000
MAX_TOKENIZER_BYTES = 50_000_000
"""Of a `tokenizer.json`, which takes some 40 bytes for each token."""
MAX_ADDED_TOKENS = 2000
MAX_TOKEN_CHARACTERS = 512
MAX_ID = 10**7

OWN_ARGUMENTS = ("tokenizer_object", "tokenizer_file", "vocab_file", "model_specific_special_tokens")
"""Arguments of the tokenizer that a file may not give: the host does."""
TRUTH_VALUES = (
    *("do_lower_case", "exact_offsets", "clean_up_tokenization_spaces", "split_special_tokens"),
    *("add_bos_token", "add_eos_token", "add_prefix_space", "strip_accents", "tokenize_chinese_chars"),
)
TEXTS = ("tokenizer_class", "processor_class", "name_or_path", "backend", "chat_template")


def check_tokenizer_files(folder: Path) -> None:
    """Makes sure that what the host will read beside a vocabulary are settings of a tokenizer.

    Raises:
        SettingsError: a file is no JSON object, or a value in it is of another type.
    """
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        path = folder / name
        for key, value in _read_object(path).items():
            wanted = _wanted(key)
            if wanted is None and name == SPECIAL_TOKENS:
                wanted = lambda value: isinstance(value, str), "a token"
            if wanted is not None and value is not None and not wanted[0](value):
                raise SettingsError(f"{path}: {key} is {value!r}; it should be {wanted[1]}. Correct the file.")
    read_added_tokens(folder)
    _read_object(folder / TOKENIZER, MAX_TOKENIZER_BYTES)
    template = folder / CHAT_TEMPLATE
    if template.is_file() and template.stat().st_size > MAX_BYTES:
        raise SettingsError(f"{template}: {template.stat().st_size:,} bytes, the limit is {MAX_BYTES:,}.")


def read_added_tokens(folder: Path) -> dict[str, int]:
    """What a folder's `added_tokens.json` says; nothing if there is none.

    Raises:
        SettingsError: it is not an object of tokens and ids.
    """
    path = folder / ADDED_TOKENS
    added = _read_object(path)
    if len(added) > MAX_ADDED_TOKENS:
        raise SettingsError(f"{path}: {len(added):,} tokens; at most {MAX_ADDED_TOKENS:,} can be added.")
    for token, index in added.items():
        if not _is_token(token) or type(index) is not int or not 0 <= index < MAX_ID:
            raise SettingsError(
                f"{path}: not an object of tokens and ids ({token!r}: {index!r}); an id is a whole number from 0 on."
            )
    return added


def _read_object(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """The content of a JSON file; nothing if there is none."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > most:
            raise ValueError(f"{path.stat().st_size:,} bytes, the limit is {most:,}")
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: not an object of settings but a {type(content).__name__}")
    return content


def _wanted(key: str) -> tuple[Callable[[Any], bool], str] | None:
    """How the value of a key is checked, and what it is, in words; None for a key of no interest."""
    if key in OWN_ARGUMENTS:
        return lambda value: False, "left out: where the files lie is told by the folder"
    if key in TRUTH_VALUES:
        return lambda value: isinstance(value, bool), "true or false"
    if key in TEXTS:
        return lambda value: isinstance(value, str), "a text"
    if key.endswith("_side"):
        return lambda value: value in ("left", "right"), "left or right"
    if key.endswith("_token_id") or key in ("model_max_length", "max_len"):
        return lambda value: isinstance(value, int | float) and not isinstance(value, bool), "a number"
    if key.endswith("_token"):
        return _is_special, "a token"
    if key in ("additional_special_tokens", "extra_special_tokens"):
        return lambda value: _are_special(list(value.values()) if isinstance(value, dict) else value), "tokens"
    if key == "added_tokens_decoder":
        return _is_decoder, "an object of ids and tokens"
    if key == "model_input_names":
        return lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value), "a list of texts"
    return None


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TOKEN_CHARACTERS


def _is_special(value: Any) -> bool:
    """Whether it is a token, or one with its options as transformers writes them."""
    if not isinstance(value, Mapping):
        return _is_token(value)
    options = {key: option for key, option in value.items() if key not in ("content", "__type")}
    return _is_token(value.get("content")) and all(isinstance(option, bool) for option in options.values())


def _are_special(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= MAX_ADDED_TOKENS and all(map(_is_special, values))


def _is_decoder(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and _are_special(list(value.values()))
        and all(key.isascii() and key.isdigit() and len(key) < 10 for key in value)
    )


__all__ = ["ADDED_TOKENS", "check_tokenizer_files", "read_added_tokens"]
