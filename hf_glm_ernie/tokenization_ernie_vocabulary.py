"""ERNIE's vocabulary files, one token a line or `token<tab>id` as ERNIE-kit writes them, and what is made of them.

What is unusual about them: the released vocabulary holds `$` twice, at 12084 and 18005. The later line counts, so that
id 12084 belongs to no token: ids are line numbers, and 39979 tokens have ids up to 39979. The `tokenizers` library
counts tokens to find the id of a new one and would give it [UNK]'s, so the hole is filled where that matters.

Source: PaddleNLP 2.8.1, `PretrainedTokenizer.load_vocabulary`; ERNIE-kit's `vocab.txt`.
"""

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer, models

FILLER = "[no token {}]"
MAX_CHARACTERS_PER_WORD = 100  # a longer word is unknown

MAX_BYTES = 10_000_000
"""Of a vocabulary file; the released ones have up to 0.4 MB."""
MAX_IDS = 150_000
"""One above the highest id; the released vocabularies have 40,000."""
MAX_TOKEN_CHARACTERS = 512
MAX_TOKENIZER_BYTES = 50_000_000
"""Of a `tokenizer.json`, which takes some 40 bytes for each token."""


def read_vocabulary(path: str | os.PathLike[str]) -> tuple[dict[str, int], dict[int, str]]:
    """Reads a vocabulary file of either kind, with any line ends, with or without a byte order mark.

    Returns:
        The id of each token, and the tokens of the lines that a later line overrides, by id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not UTF-8, empty, lines of both kinds, an id that is no number or given twice, or a file, a token
            or an id beyond what a vocabulary may have.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no vocabulary file {str(path)!r}: give the path of ERNIE's vocab.txt, or open its folder with "
            "ErnieTokenizer.from_pretrained."
        )
    text = _read_text(path)
    lines = text.split("\n")
    longest = max(lines, key=len)
    if len(longest) > MAX_TOKEN_CHARACTERS:
        raise ValueError(
            f"{path}, line {lines.index(longest) + 1} has {len(longest):,} characters ({longest[:20]!r} ...); a token "
            f"has at most {MAX_TOKEN_CHARACTERS}."
        )
    with_ids = sum("\t" in line for line in lines)
    if with_ids and with_ids != sum(map(bool, lines)):
        number = next(number for number, line in enumerate(lines, 1) if line and "\t" not in line)
        raise ValueError(
            f"{path}, line {number}: {lines[number - 1]!r} has no id, but other lines are 'token<tab>id'. A "
            "vocabulary file has ids on all lines or on none."
        )
    pairs = _with_ids(path, lines) if with_ids else [(line, index) for index, line in enumerate(lines) if line]
    if not pairs:
        raise ValueError(f"{path} is no vocabulary file: it is empty.")
    vocabulary = dict(pairs)
    return vocabulary, {index: token for token, index in pairs if vocabulary[token] != index}


def _read_text(path: Path) -> str:
    """The text of a vocabulary file, with line feeds at the ends of lines, of which there are not too many."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} is no vocabulary file: it has {size:,} bytes, the limit is {MAX_BYTES:,}.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # line ends become \n
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no vocabulary file: it is not UTF-8 text ({error}).") from None
    if "\0" in text:
        raise ValueError(
            f"{path} is no vocabulary file: line {text[: text.index(chr(0))].count(chr(10)) + 1} holds a NUL."
        )
    if text.count("\n") > MAX_IDS:
        raise ValueError(f"{path} has {text.count(chr(10)):,} lines; a vocabulary here has at most {MAX_IDS:,}.")
    return text


def _with_ids(path: Path, lines: list[str]) -> list[tuple[str, int]]:
    pairs: list[tuple[str, int]] = []
    seen: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        token, _, index = line.rpartition("\t")
        if not (index.isascii() and index.isdigit()) or not token:
            raise ValueError(f"{path}, line {number}: {line!r} is not 'token<tab>id' with an id of 0 or more.")
        if len(index) > 9 or int(index) >= MAX_IDS:
            raise ValueError(
                f"{path}, line {number}: the id {index[:20]} is too high; a vocabulary here has ids up to "
                f"{MAX_IDS - 1:,}."
            )
        if int(index) in seen:
            raise ValueError(f"{path}, line {number}: id {index} was given in line {seen[int(index)]} already.")
        seen[int(index)] = number
        pairs.append((token, int(index)))
    return pairs


def vocabulary_lines(vocabulary: Mapping[str, int], doubled: Mapping[int, str]) -> list[str]:
    """One token a line, by id. Ids without a token hold one with a later id, which overrides the line when read.

    Args:
        vocabulary: The id of each token.
        doubled: Tokens to put on lines whose ids no token has; the token with the highest id stands on the others.
    """
    last = max(vocabulary, key=lambda token: vocabulary[token])
    lines = [doubled.get(index, last) for index in range(vocabulary[last] + 1)]
    for token, index in vocabulary.items():
        lines[index] = token
    return lines


def without_holes(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The vocabulary with a token for every id, made up for those that have none; no text holds such a token."""
    taken = set(vocabulary.values())
    holes = (index for index in range(max(taken)) if index not in taken)
    return dict(vocabulary) | {FILLER.format(index): index for index in holes}


def with_holes(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The vocabulary without the tokens that `without_holes` made up."""
    return {token: index for token, index in vocabulary.items() if token != FILLER.format(index)}


def check_special_tokens(vocabulary: Mapping[str, int], tokens: Iterable[str], where: str) -> None:
    """Makes sure that the vocabulary is one of ERNIE's.

    Raises:
        ValueError: it lacks a special token.
    """
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise ValueError(
            f"{where} has no {', '.join(missing)} among its {len(vocabulary)} tokens, so it is no WordPiece "
            "vocabulary that ErnieTokenizer can read. If the special tokens have other names, pass them as unk_token, "
            "sep_token, pad_token, cls_token and mask_token. A byte-pair vocabulary (pieces with Ġ), as "
            "ernie-3.0-tiny-mini-v2-en may have one, is read by the converter alone."
        )


def write_vocabulary(
    directory: str | os.PathLike[str], prefix: str | None, vocabulary: Mapping[str, int], doubled: Mapping[int, str]
) -> tuple[str, ...]:
    """Writes `vocab.txt`, one token a line as in [`vocabulary_lines`]; returns the path, as the host asks for it."""
    path = os.path.join(directory, (f"{prefix}-" if prefix else "") + "vocab.txt")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in vocabulary_lines(vocabulary, doubled))
    return (path,)


def word_piece(vocabulary: dict[str, int], unk_token: str) -> Tokenizer:
    """The library's tokenizer on a vocabulary."""
    return Tokenizer(
        models.WordPiece(vocabulary, unk_token=unk_token, max_input_chars_per_word=MAX_CHARACTERS_PER_WORD)
    )


def set_vocabulary(backend: Tokenizer, vocabulary: dict[str, int]) -> None:
    """Gives the library's tokenizer another vocabulary, in place."""
    model = backend.model
    if vocabulary != backend.get_vocab(with_added_tokens=False):
        backend.model = models.WordPiece(
            vocabulary,
            unk_token=model.unk_token,
            max_input_chars_per_word=model.max_input_chars_per_word,
            continuing_subword_prefix=model.continuing_subword_prefix,
        )


def open_backend(
    given: Tokenizer | None,
    tokenizer_file: str | os.PathLike[str] | None,
    name: str,
    from_vocabulary: Callable[[], Tokenizer],
) -> Tokenizer:
    """The library's tokenizer for the class `name`: a copy of the one `given`, else what a file holds.

    Raises:
        FileNotFoundError: there is no such `tokenizer_file`.
        ValueError: it is damaged or another tokenizer's; and what `from_vocabulary` raises.
    """
    if given is not None:
        return copy.deepcopy(given)
    if tokenizer_file is None:
        return from_vocabulary()
    if not os.path.isfile(tokenizer_file):
        raise FileNotFoundError(
            f"There is no tokenizer file {str(tokenizer_file)!r}: give the path of a saved tokenizer.json."
        )
    size = os.path.getsize(tokenizer_file)
    if size > MAX_TOKENIZER_BYTES:
        raise ValueError(f"{tokenizer_file} has {size:,} bytes, the limit is {MAX_TOKENIZER_BYTES:,}.")
    try:
        backend = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{tokenizer_file} is damaged: the tokenizers library cannot read it ({error}).") from error
    if not isinstance(backend.model, models.WordPiece):
        raise ValueError(
            f"{tokenizer_file} holds a {type(backend.model).__name__} model, {name} needs WordPiece: this is the file "
            "of another tokenizer."
        )
    return backend


__all__ = [
    "check_special_tokens",
    "open_backend",
    "read_vocabulary",
    "set_vocabulary",
    "vocabulary_lines",
    "with_holes",
    "without_holes",
    "word_piece",
    "write_vocabulary",
]
