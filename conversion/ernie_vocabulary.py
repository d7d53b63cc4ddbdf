"""The vocabulary of an ERNIE checkpoint: its tokenizer, held against the embeddings, and where added tokens' rows go.

PaddleNLP counts tokens to find the id of an added one. In the released vocabulary an id has no token, so that the
first added token gets `[UNK]`'s, 39979, and both are looked up in one row. The converted tokenizer gives each an id of
its own, so that row is repeated and the rows behind move by one, in the embeddings and in the bias of the words'
logits.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import ErnieConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_glm_ernie.tokenization_ernie import ErnieTokenizer

from .ernie_settings import SETTINGS_FILES, Settings
from .operations import RepeatedRows, SettingsError
from .settings_files import read_settings_object
from .source_file import SideFiles
from .tokenizer_files import ADDED_TOKENS, TOKENIZER_FILES, check_tokenizer_files, read_added_tokens

HOST_ERRORS = (ValueError, OSError, RuntimeError, LookupError, TypeError, AttributeError)
"""What the host's reading of a tokenizer's settings ends in: it takes them as they are."""
MAX_UNUSED_IDS = 0.01
"""Ids without a token, as a part of the vocabulary; 20 of 40,000 in the released models."""


def files_beside(folder: Path, *given: Path | None) -> SideFiles:
    """The settings and the tokenizer's files in a checkpoint's folder, and those given beside, as they are now."""
    return SideFiles.of(*(folder / name for name in (*SETTINGS_FILES, *TOKENIZER_FILES)), *given)


def load_tokenizer(
    folder: Path, given: Path | None, options: Mapping[str, Any] | None = None
) -> ErnieTokenizer | PreTrainedTokenizerFast | None:
    """The tokenizer of a folder, or of the file given with `--vocab`; None if there is neither.

    Args:
        folder: The checkpoint's, or a converted one.
        given: `--vocab`.
        options: Arguments of the tokenizer that the files do not tell.

    Raises:
        SettingsError: a file is missing or damaged, or the one given would leave the folder's added tokens out.
    """
    if given is not None and not given.is_file():
        raise SettingsError(f"--vocab {given}: no such file. It is the model's vocab.txt.")
    if given is not None and given.resolve() == (folder / "vocab.txt").resolve():
        given = None
    if given is None and not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        return None
    if given is not None and (folder / ADDED_TOKENS).is_file():
        raise SettingsError(
            f"{folder / ADDED_TOKENS} adds tokens to a vocabulary that is not beside it, and --vocab {given} has only "
            "its own. Copy vocab.txt, tokenizer_config.json and special_tokens_map.json into that folder and leave "
            f"--vocab out, or take {ADDED_TOKENS} away if the model does not use its tokens."
        )
    if given is None:
        check_tokenizer_files(folder)
    options = options or {}
    try:
        if given is not None:
            return ErnieTokenizer(vocab_file=str(given), **options)
        if _has_byte_pairs(folder / "tokenizer.json"):
            return PreTrainedTokenizerFast.from_pretrained(folder)
        return ErnieTokenizer.from_pretrained(folder, **options)
    except HOST_ERRORS as error:
        raise SettingsError(f"{given or folder / 'vocab.txt'}: {error or type(error).__name__}") from error


def _has_byte_pairs(path: Path) -> bool:
    """Whether a `tokenizer.json` is one of those that `ernie_bpe` makes."""
    if not path.is_file():
        return False
    model = read_settings_object(path, str(path)).get("model")
    return isinstance(model, dict) and model.get("type") == "BPE"


def check_vocabulary(tokenizer: PreTrainedTokenizerBase | None, config: ErnieConfig) -> list[str]:
    """Holds a tokenizer against the converted model; returns notices.

    Raises:
        SettingsError: they are not of one model.
    """
    if tokenizer is None:
        return ["no vocab.txt: the folder has no tokenizer. Pass --vocab to add it."]
    highest = check_highest_id(tokenizer, config)
    unused = config.vocab_size - 1 - highest
    if unused > max(100, MAX_UNUSED_IDS * config.vocab_size):
        raise SettingsError(
            f"the vocabulary ends at id {highest}, the model has embeddings up to {config.vocab_size - 1}: "
            f"{unused} without a token, so it is another model's. Pass the model's own vocab.txt with --vocab."
        )
    pad = tokenizer.pad_token_id
    if pad != config.pad_token_id:
        raise SettingsError(
            f"{tokenizer.pad_token} is id {pad} of the vocabulary, the settings say pad_token_id "
            f"{config.pad_token_id}. They belong to different models."
        )
    return []


def with_padding(settings: Settings, tokenizer: PreTrainedTokenizerBase | None) -> tuple[Settings, list[str]]:
    """Settings that say nothing of the pad id, with the vocabulary's; notices."""
    pad = None if tokenizer is None else tokenizer.pad_token_id
    if tokenizer is None or not pad or settings.values.get("pad_token_id") is not None or settings.path is None:
        return settings, []
    return replace(settings, values={**settings.values, "pad_token_id": pad}), [
        f"pad_token_id is {pad}, the id of {tokenizer.pad_token} in the vocabulary; the settings say nothing, and "
        "PaddleNLP would take 0"
    ]


def check_highest_id(tokenizer: PreTrainedTokenizerBase, config: ErnieConfig) -> int:
    """The highest id of a tokenizer, which must have a row in the embeddings.

    Raises:
        SettingsError: it has none.
    """
    highest = max(tokenizer.get_vocab().values())
    if highest >= config.vocab_size:
        raise SettingsError(
            f"the vocabulary has ids up to {highest}, the model's embeddings end at {config.vocab_size - 1}. Pass the "
            "model's own vocab.txt with --vocab; if tokens were added to it, resize the model's embeddings."
        )
    return highest


def repeated_rows(tokenizer: PreTrainedTokenizerBase | None, stated: Mapping[str, int]) -> RepeatedRows | None:
    """What becomes of the rows of tokens, from PaddleNLP to transformers; None where ids stay.

    Args:
        tokenizer: The tokenizer.
        stated: The ids that the source's `added_tokens.json` states; PaddleNLP counts where it states none.

    Raises:
        SettingsError: some added tokens have their own ids on both sides and others have not.
    """
    if not isinstance(tokenizer, ErnieTokenizer) or not (counted := tokenizer.paddlenlp_ids()):
        return None
    ids = {tokenizer.convert_tokens_to_ids(token): index for token, index in (counted | dict(stated)).items()}
    shifts = {index - original for index, original in ids.items()}
    if shifts == {0}:
        return None
    count = max(index - counted[token] for token, index in tokenizer.get_added_vocab().items() if token in counted)
    if shifts != {count}:
        listed = ", ".join(f"{tokenizer.convert_ids_to_tokens(index)!r} {ids[index]}" for index in sorted(ids))
        raise SettingsError(
            f"the added tokens have the ids {listed}; PaddleNLP gives them by counting, from {min(counted.values())} "
            f"on. Correct {ADDED_TOKENS}: which rows of the embeddings are theirs is not clear."
        )
    return RepeatedRows(min(counted.values()), count)


def stated_ids(folder: Path) -> dict[str, int]:
    """What a folder's `added_tokens.json` says; nothing if there is none.

    Raises:
        SettingsError: it cannot be read.
    """
    return read_added_tokens(folder)


def shared_rows(tokenizer: PreTrainedTokenizerBase, rows: RepeatedRows) -> str:
    """Which tokens PaddleNLP looks up in one row, in words."""
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    pairs = ((names[index], names[index + rows.count]) for index in range(rows.start, rows.start + rows.count))
    return "; ".join(f"{first!r} and {second!r}" for first, second in pairs)


__all__ = [
    "check_highest_id",
    "check_vocabulary",
    "files_beside",
    "load_tokenizer",
    "repeated_rows",
    "shared_rows",
    "stated_ids",
    "with_padding",
]
