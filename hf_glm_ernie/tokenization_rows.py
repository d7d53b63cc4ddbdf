"""Rows of a batch between the user's texts and ids: what was passed in, cut into parts, and put together again.

No vocabulary here: the tokenizer fills in the ids.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenizers import AddedToken, Encoding, Tokenizer, models, processors

from .tokenization_glm130b_host import new_encoding


@dataclass(slots=True)
class Part:
    """A stretch of one sequence: a text to be tokenized by itself, or a mask or another token that is written in it.

    Attributes:
        text: The characters it stands for.
        start: Where they begin in the sequence (in the word, for sequences given as words).
        word: Index of the word, or None in a sequence given as one string (words are what stands between spaces).
        ids: Its ids; a mask's are known from the start.
        is_mask: Whether it is a mask, or another token.
        opens: Whether its first token stands for its first character, too, where that is lost in tokenization: a
            chat's mask for the loss is made from places.
    """

    text: str
    start: int
    word: int | None
    ids: list[int]
    is_mask: bool = False
    opens: bool = False


@dataclass(slots=True)
class Row:
    """One row of the batch before truncation and padding.

    Attributes:
        first: The prompt, or the whole text.
        tail: Tokens put behind it: [gMASK], `</s>`, `<sop>`.
        second: The answer, where there is one.
        closing: Tokens put behind the answer.
        laid_out: Whether the text itself has the layout written out, and all of it is in `first`.
    """

    first: list[Part]
    tail: tuple[str, ...] = ()
    second: list[Part] | None = None
    closing: tuple[str, ...] = ()
    laid_out: bool = False

    def texts(self) -> list[Part]:
        """The parts that are to be tokenized."""
        return [part for part in (*self.first, *(self.second or ())) if not part.is_mask]


class Mode(NamedTuple):
    """How the texts of one call are tokenized.

    Attributes:
        special: Whether the model's special tokens are recognised in a text.
        split: Whether special tokens that the user added are plain text.
        tail: Tokens put behind a text without a mask.
        at_masks: Whether a text is cut at its masks and where a layout is written in it.
    """

    special: bool
    split: bool
    tail: tuple[str, ...]
    at_masks: bool


def read_input(text: Any, text_pair: Any, as_words: bool) -> tuple[bool, list[Any]]:
    """Sorts out the kinds of input that `__call__` accepts.

    Args:
        text: A string, a list of strings, or a list of pairs of strings; with `as_words`, a list of words for each.
        text_pair: Nothing, or as many second sequences in the same form.
        as_words: Whether sequences are lists of words (`is_split_into_words`).

    Returns:
        Whether it is a batch, and its rows: a string, or two sequences as words (one word for a string), the second
        of which may be None.

    Raises:
        ValueError: anything else.
    """

    def words(value: Any) -> list[str]:
        if not as_words and isinstance(value, str):
            return [value]
        if as_words and isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
            return list(value)
        wanted = "a list of strings (is_split_into_words=True)" if as_words else "a string"
        raise ValueError(f"A text must be {wanted}, or a pair of these; found {type(value).__name__} {value!r:.60}")

    def row(item: Any) -> Any:
        if isinstance(item, str) and not as_words:
            return item
        is_pair = isinstance(item, list | tuple) and len(item) == 2
        if is_pair and (not as_words or not isinstance(item[0], str)):
            return words(item[0]), words(item[1])
        return words(item), None

    is_list = isinstance(text, list | tuple)
    is_batched = is_list and (not as_words or bool(text and isinstance(text[0], list | tuple)))
    if not is_batched:
        sequence = text if isinstance(text, str) and not as_words else (words(text), None)
        return False, [sequence if text_pair is None else (words(text), words(text_pair))]
    if text_pair is None:
        return True, [row(item) for item in text]
    if isinstance(text_pair, str) or len(text_pair) != len(text):
        raise ValueError(f"A batch of {len(text)} texts needs a list of as many second texts in `text_pair`.")
    return True, [(words(a), words(b)) for a, b in zip(text, text_pair, strict=True)]


def whole_parts(words: list[str], as_words: bool) -> list[Part]:
    """One part for each word, or for the one string where the sequence was not given as words."""
    return [Part(text, 0, word if as_words else None, []) for word, text in enumerate(words)]


def parts_at_masks(
    words: list[str], as_words: bool, mask_pattern: re.Pattern[str], mask_ids: Mapping[str, int]
) -> list[Part]:
    """As `whole_parts`, cut at the masks; empty stretches between them are left out."""
    parts: list[Part] = []
    for index, text in enumerate(words):
        word = index if as_words else None
        done = 0
        for match in mask_pattern.finditer(text):
            if done < match.start():
                parts.append(Part(text[done : match.start()], done, word, []))
            parts.append(Part(match[0], match.start(), word, [mask_ids[match[0]]], is_mask=True))
            done = match.end()
        if done < len(text):
            parts.append(Part(text[done:], done, word, []))
    return parts


def added_token_pattern(token: AddedToken) -> str:
    """The pattern of a token that the user added, its name in a group of its own."""
    pattern = f"({re.escape(token.content)})"
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return (r"\s*" if token.lstrip else "") + pattern + (r"\s*" if token.rstrip else "")


def record(parts: list[Part], tokens: list[tuple[int, str, int, int, Part]]) -> Encoding:
    """Makes the library's record of one sequence.

    Args:
        parts: The sequence's parts.
        tokens: For each token its id, its name, where it begins and ends in its part, and the part.
    """
    spaced = _words(parts)
    offsets = [(part.start + start, part.start + end) for _, _, start, end, part in tokens]
    words = [
        spaced[max(start, end - 1)] if part.word is None and spaced else part.word
        for (start, end), (*_, part) in zip(offsets, tokens, strict=True)
    ]
    return new_encoding([token[0] for token in tokens], [token[1] for token in tokens], offsets, words)


def check_kept(
    row: Any, windows: list[Encoding], id_of: Callable[[str], int], closers: Sequence[str], truncation: str
) -> None:
    """Raises where truncation lost a token of the layout that was written in a text.

    Args:
        row: A string, or a `Row`.
        windows: What truncation made of it.
        id_of: The id of a token.
        closers: Tokens that may be cut off: those behind an answer.
        truncation: How it was truncated, for the message.

    Raises:
        ValueError: a mask or `<sop>` is missing from a window.
    """
    written = [] if isinstance(row, str) else [part.text for part in row.first if part.is_mask]
    for token in dict.fromkeys(written):
        if token not in closers and any(w.ids.count(id_of(token)) < written.count(token) for w in windows):
            raise ValueError(
                f"Truncation to {truncation} would cut {token} out of its text: shorten the text, raise max_length or "
                "set tokenizer.truncation_side to the side away from it."
            )


def _words(parts: list[Part]) -> list[int | None]:
    """For each character of a sequence given as one string the index of its word; the last entry is for its end."""
    text = "".join(part.text for part in parts if part.word is None)
    words: list[int | None] = [None] * (len(text) + 1)
    for index, match in enumerate(re.finditer(r"\S+", text)):
        words[slice(*match.span())] = [index] * (match.end() - match.start())
    return words


def assemble(
    first: Encoding,
    second: Encoding | None,
    tail: Sequence[str],
    closing: Sequence[str],
    ids: Mapping[str, int],
    sop: str,
    truncation: dict[str, Any] | None,
) -> list[Encoding]:
    """Truncates two sequences and puts the tokens behind them.

    Args:
        first: The prompt, or the whole text.
        second: The answer, or None.
        tail: Tokens behind the prompt, never cut.
        closing: Tokens behind the answer, never cut.
        ids: The ids of these tokens.
        sop: The token from which on the token types are 1.
        truncation: What `tokenizers.Tokenizer.enable_truncation` takes, or None.

    Returns:
        The row's record and, where it was truncated, one for each stretch that was cut off.

    Raises:
        ValueError: there is no room for text; the sequence that is to be cut is not there, or too short for it.
    """
    if truncation is not None:
        _check_truncation(truncation, len(first), None if second is None else len(second), [*tail, *closing])
    single = " ".join(["$A:0", *(f"{token}:{int(token == sop)}" for token in tail)])
    backend = Tokenizer(models.BPE())  # has no vocabulary: only its truncation and its template are used
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=" ".join([single, "$B:1", *(f"{token}:1" for token in closing)]),
        special_tokens=[(token, ids[token]) for token in dict.fromkeys((*tail, *closing))],
    )
    if truncation is not None:
        backend.enable_truncation(**truncation)
    made = backend.post_process(first, second)
    return [made, *made.overflowing]


def _check_truncation(truncation: Mapping[str, Any], first: int, second: int | None, added: Sequence[str]) -> None:
    """Raises where the library could not truncate sequences of these lengths (tokens); its own error is bare."""
    length, strategy = truncation["max_length"], truncation["strategy"]
    if length - len(added) <= truncation["stride"]:
        raise ValueError(
            f"max_length={length} with stride={truncation['stride']} leaves no room for text beside {added}: raise "
            "max_length."
        )
    if strategy == "longest_first":
        return
    if strategy == "only_second" and second is None:
        raise ValueError(
            f"truncation='only_second' cuts the second text of a pair, and a single text was given, of {first} tokens "
            f"with max_length={length}: pass truncation=True or 'only_first', or the answer as the second text."
        )
    cut, other = (first, second or 0) if strategy == "only_first" else (second or 0, first)
    if other + len(added) >= length:
        raise ValueError(
            f"truncation={strategy!r} with max_length={length} leaves nothing of the text that it cuts: the other one "
            f"has {other} tokens, and {len(added)} are added behind them ({', '.join(added)}). It has {cut} itself. "
            "Raise max_length, or pass truncation=True, which cuts the longer one."
        )
