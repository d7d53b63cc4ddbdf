"""PaddleNLP's places of tokens in a text, and how many tokens it keeps when it truncates.

PaddleNLP does not know where a token came from: it searches each one in the cleaned text behind the one before. That
finds every token but unknown words, whose places it guesses from their neighbours; a guess may cover half the text,
and the search for the next token may hit inside the unknown word. Its spans were decoded with these places.

Source: PaddleNLP 2.8.1, `PretrainedTokenizer._get_bert_like_offset_mapping` and
`PretrainedTokenizerBase.truncate_sequences`.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from tokenizers import Encoding

Spans = list[tuple[int, int]]


def search_offsets(
    text: str, tokens: Sequence[str], special_tokens: Collection[str], lowered: bool, clean: Callable[[str], str]
) -> Spans | None:
    """Searches the tokens of a text in it, as PaddleNLP does.

    Args:
        text: The text as it was given.
        tokens: All its tokens, without the special tokens around them.
        special_tokens: The tokenizer's special tokens; an unknown word is one of them, too.
        lowered: Whether the tokenizer lowercases.
        clean: What becomes of one character of the text: zero or more characters.

    Returns:
        Start and end of each token in characters of `text`, or None where PaddleNLP stops with an error.
    """
    parts = [clean(char) for char in text]
    flat = "".join(parts)
    source = [index for index, part in enumerate(parts) for _ in part]
    with_one_sigma = flat.replace("ς", "σ")
    places: Spans = []
    absent: set[str] = set()  # from some place on, so from every later one: most often the unknown word's own name
    offset = 0
    for index, token in enumerate(tokens):
        name = token.removeprefix("##")
        if lowered and name in special_tokens:
            name = name.lower()
        if "σ" in name or "ς" in name:
            start = with_one_sigma.find(name.replace("ς", "σ"), offset)
            if start < 0:
                return None
        else:
            start = -1 if name in absent else flat.find(name, offset)
            if start < 0:
                absent.add(name)
            if start < 0 and index + 1 < len(tokens) and tokens[index + 1] in special_tokens:
                start, name = offset, " "
        places.append((start, start + len(name)))
        if start >= 0:
            offset = start + len(name)
    try:
        return [_in_source(places, index, source) for index in range(len(places))]
    except IndexError:
        return None


def _in_source(places: Spans, index: int, source: list[int]) -> tuple[int, int]:
    """The place of one token in the text; one that was not found takes all between its neighbours.

    A neighbour that was not found either starts at -1: PaddleNLP counts that from the end of the text, and so do we.
    """
    start, end = places[index]
    if start < 0:
        start = places[index - 1][1] if index else 0
        end = places[index + 1][0] if index + 1 < len(places) else len(source)
    return source[start], source[end - 1] + 1


def kept_lengths(first: int, second: int | None, excess: int, strategy: str) -> tuple[int, int | None]:
    """How many tokens of each text PaddleNLP keeps.

    "longest_first" takes tokens one by one from the longer text, from the second where both are equally long. With the
    other strategies, and for a text without a pair, nothing is taken where no token would be left.

    Args:
        first: Number of tokens of the text.
        second: Number of tokens of the second text, or None where there is none.
        excess: How many tokens to take.
        strategy: "longest_first", "only_first" or "only_second".
    """
    if strategy == "only_second":
        return first, second - excess if second is not None and second > excess else second
    if strategy == "only_first" or second is None:
        return first - excess if first > excess else first, second
    longer_by = first - second
    level = min(excess, abs(longer_by))
    first, second = (first - level, second) if longer_by > 0 else (first, second - level)
    rest = excess - level
    return max(0, first - rest // 2), max(0, second - (rest + 1) // 2)


def token_marks(encoding: Encoding, places: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    """What tells the tokens of a row apart: the id and the place of those at `places`."""
    ids, offsets = encoding.ids, encoding.offsets
    return [(ids[at], offsets[at]) for at in places]


def index_of(part: list[Any], whole: list[Any]) -> int:
    """Where a stretch of tokens stands in all of them."""
    length = len(part)
    return next(at for at in range(len(whole) + 1) if part == whole[at : at + length])


__all__ = ["index_of", "kept_lengths", "search_offsets", "token_marks"]
