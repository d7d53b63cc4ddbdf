"""The settings beside a vocabulary, checked before transformers reads them, which believes them.

`tokenizer_config.json` and `special_tokens_map.json` become arguments of the tokenizer, whatever is in them;
`added_tokens.json` is tokens and ids.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_glm_ernie.configuration_arguments import Range

from .operations import SettingsError
from .setting_kinds import (
    OBJECT,
    TEXT,
    TEXTS,
    TRUTH,
    Kind,
    either,
    is_index,
    list_of,
    number,
    object_of,
    one_of,
    whole,
)
from .settings_files import check_kinds, read_settings_object

ADDED_TOKENS, SPECIAL_TOKENS = "added_tokens.json", "special_tokens_map.json"
TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", SPECIAL_TOKENS, ADDED_TOKENS)
"""What `from_pretrained` of a tokenizer reads, of those that are there."""

CHAT_TEMPLATE = "chat_template.jinja"
MAX_TEMPLATE_BYTES = 5_000_000
MAX_ADDED_TOKENS = 2000
MAX_TOKEN_CHARACTERS = 512
MAX_ID = 10**7

_MARKS = ("single_word", "lstrip", "rstrip", "normalized", "special")
TOKEN_TEXT = Kind(
    f"a token of at most {MAX_TOKEN_CHARACTERS} characters",
    lambda value: isinstance(value, str) and len(value) <= MAX_TOKEN_CHARACTERS,
)
TOKEN_OBJECT = Kind(
    'an object such as {"content": "[MASK]", "lstrip": false}',
    lambda value: (
        isinstance(value, dict)
        and TOKEN_TEXT.allows(value.get("content"))
        and value.get("__type", "AddedToken") == "AddedToken"
        and all(isinstance(value.get(mark, False), bool) for mark in _MARKS)
        and value.keys() <= {"content", "__type", "id", *_MARKS}
    ),
)
TOKEN = either(TOKEN_TEXT, TOKEN_OBJECT)
TOLD_BY_THE_FOLDER = Kind("left out: the folder tells which files there are", lambda value: False)
SPECIAL_KINDS: Mapping[str, Kind] = {
    **{f"{name}_token": TOKEN for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")},
    **{f"{name}_special_tokens": list_of(TOKEN, "tokens") for name in ("additional", "extra")},
}
TOKENIZER_KINDS: Mapping[str, Mapping[str, Kind]] = {
    SPECIAL_TOKENS: SPECIAL_KINDS,
    "tokenizer_config.json": {
        **SPECIAL_KINDS,
        **dict.fromkeys(("do_lower_case", "exact_offsets", "clean_up_tokenization_spaces"), TRUTH),
        **dict.fromkeys(("split_special_tokens", "strip_accents", "tokenize_chinese_chars"), TRUTH),
        **dict.fromkeys(("add_bos_token", "add_eos_token", "add_prefix_space"), TRUTH),
        **dict.fromkeys(("tokenizer_class", "processor_class", "name_or_path", "backend"), TEXT),
        **dict.fromkeys(("vocab_file", "tokenizer_file", "tokenizer_object"), TOLD_BY_THE_FOLDER),
        "model_specific_special_tokens": TOLD_BY_THE_FOLDER,
        **{f"{name}_side": one_of(("left", "right")) for name in ("padding", "truncation")},
        "model_input_names": TEXTS,
        "second_type": whole(0, 1),
        "model_max_length": number(Range(1, 1e31)),
        "added_tokens_decoder": object_of(is_index, TOKEN_OBJECT, "an object of ids and tokens"),
        "auto_map": OBJECT,
        "init_inputs": Kind("an empty list", lambda value: value == []),
        "chat_template": TEXT,
    },
    "tokenizer.json": {
        "added_tokens": list_of(TOKEN_OBJECT, "objects of tokens"),
        "model": OBJECT,
    },
}
"""File beside a vocabulary -> setting -> what it may be; what the host reads of it."""

ADDED_IDS = object_of(
    lambda token: 0 < len(token) <= MAX_TOKEN_CHARACTERS,
    whole(0, MAX_ID - 1),
    "an object of tokens and ids, which are whole numbers",
)
NEVER_NULL = (
    *("do_lower_case", "padding_side", "truncation_side", "model_input_names", "added_tokens_decoder", "init_inputs"),
    *("added_tokens", "model"),
)
"""What of that the host reads without asking whether it is there."""


def check_tokenizer_files(folder: Path) -> None:
    """Makes sure that what the host will read beside a vocabulary are settings of a tokenizer.

    Raises:
        SettingsError: a file is no JSON object, a value in it is of another kind, or there is too much of it.
    """
    read_added_tokens(folder)
    for name, kinds in TOKENIZER_KINDS.items():
        path = folder / name
        if path.is_file():
            content = read_settings_object(path, str(path))
            if name == SPECIAL_TOKENS:  # whatever else it names is a special token to the host
                kinds = dict.fromkeys(content, TOKEN) | dict(kinds)
            check_kinds(content, kinds, path)
            _check_number(content, path)
            if nulls := [key for key in NEVER_NULL if key in content and content[key] is None]:
                raise SettingsError(f"{path}: {', '.join(nulls)} is null. Correct the file, or take the key away.")
    template = folder / CHAT_TEMPLATE
    if template.is_file() and template.stat().st_size > MAX_TEMPLATE_BYTES:
        raise SettingsError(f"{template}: {template.stat().st_size:,} bytes, the limit is {MAX_TEMPLATE_BYTES:,}.")


def read_added_tokens(folder: Path) -> dict[str, int]:
    """What a folder's `added_tokens.json` says; nothing if there is none.

    Raises:
        SettingsError: it is not an object of tokens and ids, or there are too many.
    """
    path = folder / ADDED_TOKENS
    if not path.is_file():
        return {}
    added = read_settings_object(path, str(path))
    if not ADDED_IDS.allows(added):
        raise SettingsError(f"{path}: it should be {ADDED_IDS.words}. Take the file that belongs to the vocabulary.")
    _check_number({"it": added}, path)
    return added


def _check_number(content: Mapping[str, Any], path: Path) -> None:
    for name, value in content.items():
        if name != "model" and isinstance(value, list | dict) and len(value) > MAX_ADDED_TOKENS:
            raise SettingsError(f"{path}: {len(value):,} tokens in {name}; at most {MAX_ADDED_TOKENS:,} can be added.")


__all__ = ["ADDED_TOKENS", "TOKENIZER_FILES", "TOKENIZER_KINDS", "check_tokenizer_files", "read_added_tokens"]
