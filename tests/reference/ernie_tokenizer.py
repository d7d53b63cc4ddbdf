"""PaddleNLP's ERNIE tokenizer, slowly: one character after the other, with Python's own Unicode tables.

Written from the rules of PaddleNLP 2.8.1 (`transformers/ernie/tokenizer.py`, `transformers/bert/tokenizer.py`,
`transformers/tokenizer_utils.py`, `transformers/tokenizer_utils_base.py`); independent of the package. Compared once
with the original under Python 3.11 (Unicode 14.0.0): see `tests/golden/make_ernie_tokenizer_golden.py`.
"""

import random
import re
import unicodedata
from collections.abc import Iterable

SPECIAL_TOKENS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
HAN = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F))
HAN += ((0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
MORE_SYMBOLS = "\u00ad\u00b2\u00ba\u3007\u00b5\u00d8\u014b\u01b1"

Spans = list[tuple[int, int]]


def removed(char: str) -> bool:
    """Whether cleaning drops the character: null, U+FFFD, and the categories C* but for tab and line ends."""
    return char in "\0\ufffd" or (unicodedata.category(char).startswith("C") and char not in "\t\n\r")


def alone(char: str) -> bool:
    """Whether the character is a word of its own inside a word: punctuation or symbol."""
    ascii_mark = "!" <= char <= "/" or ":" <= char <= "@" or "[" <= char <= "`" or "{" <= char <= "~"
    return ascii_mark or unicodedata.category(char)[0] in "PS" or char in MORE_SYMBOLS


def without_accents(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn")


class ErnieReference:
    """The tokenizer as `from_pretrained` leaves it: the five special tokens are never split.

    Args:
        lines: The vocabulary, one token a line; of two equal lines the later one counts.
        do_lower_case: Whether text is lowercased and loses its accents.
    """

    def __init__(self, lines: Iterable[str], do_lower_case: bool = True) -> None:
        self.vocab = {token: index for index, token in enumerate(lines)}
        self.do_lower_case = do_lower_case

    def words(self, text: str) -> list[str]:
        """Cleans, cuts at blanks, Han characters and marks; lowercases and strips accents word by word."""
        spaced = ""
        for char in text:
            if removed(char):
                continue
            is_blank = char in " \t\n\r" or unicodedata.category(char) == "Zs"
            is_han = any(first <= ord(char) <= last for first, last in HAN)
            spaced += " " if is_blank else f" {char} " if is_han else char
        words = []
        for word in spaced.split():
            if self.do_lower_case:
                word = without_accents(word.lower())
            start_new_word = True
            for char in word:
                if alone(char):
                    words.append(char)
                    start_new_word = True
                elif start_new_word:
                    words.append(char)
                    start_new_word = False
                else:
                    words[-1] += char
        return " ".join(words).split()

    def pieces(self, word: str) -> list[str]:
        """The longest pieces from the left, or [UNK] where one is missing or the word is over 100 characters."""
        found: list[str] = []
        start = 0
        while start < len(word) <= 100:
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self.vocab:
                    found.append(piece)
                    start = end
                    break
            else:
                return ["[UNK]"]
        return found if len(word) <= 100 else ["[UNK]"]

    def tokenize(self, text: str) -> list[str]:
        special = "|".join(map(re.escape, SPECIAL_TOKENS))
        tokens = []
        for index, part in enumerate(re.split(f"({special})", text)):
            if index % 2:
                tokens.append(part)
                continue
            if self.do_lower_case:  # character by character: no sigma is final here
                part = "".join(char.lower() for char in part)
            tokens += [piece for word in self.words(part) for piece in self.pieces(word)]
        return tokens

    def ids(self, tokens: Iterable[str]) -> list[int]:
        return [self.vocab.get(token, self.vocab["[UNK]"]) for token in tokens]

    def encode(self, text: str, pair: str | None = None) -> dict[str, list]:
        """What a call returns: ids, token types, tokens and offsets with the special tokens around them.

        Raises:
            ValueError: as in `offsets`.
            IndexError: as in `offsets`.
        """
        rows: dict[str, list] = {"tokens": ["[CLS]"], "token_type_ids": [0], "offset_mapping": [(0, 0)]}
        for kind, part in enumerate((text,) if pair is None else (text, pair)):
            tokens = self.tokenize(part)
            rows["tokens"] += [*tokens, "[SEP]"]
            rows["token_type_ids"] += [kind] * (len(tokens) + 1)
            rows["offset_mapping"] += [*self.offsets(part, tokens), (0, 0)]
        return {"input_ids": self.ids(rows["tokens"])} | rows

    def offsets(self, text: str, tokens: list[str]) -> Spans:
        """The original's guess: each token is searched in the cleaned text behind the one before it.

        An unknown word is not found; its place is what lies between its neighbours' places, or one character where
        the next token is a special one. Spans are characters of `text`.

        Raises:
            ValueError: a token with a sigma is not found; the original raises it, too.
            IndexError: a guessed place lies behind the text; the original raises it, too.
        """
        flat, source = "", []
        for index, char in enumerate(text):
            if self.do_lower_case:
                char = without_accents(char.lower())
            kept = "".join(part for part in char if not removed(part))
            flat += kept
            source += [index] * len(kept)
        places: list[list[int]] = []
        offset = 0
        for index, token in enumerate(tokens):
            name = token.removeprefix("##")
            if name in SPECIAL_TOKENS and self.do_lower_case:
                name = name.lower()
            rest = flat[offset:]
            if "σ" in name or "ς" in name:
                start = rest.replace("ς", "σ").index(name.replace("ς", "σ")) + offset
            elif name in rest:
                start = rest.index(name) + offset
            elif index + 1 < len(tokens) and tokens[index + 1] in SPECIAL_TOKENS:
                start, name = offset, " "
            else:
                start = -1
            places.append([start, start + len(name)])
            if start != -1:
                offset = start + len(name)
        spans = []
        for index, (start, end) in enumerate(places):
            if start == -1:
                start = places[index - 1][1] if index else 0
                end = places[index + 1][0] if index + 1 < len(places) else len(source)
            spans.append((source[start], source[end - 1] + 1))
        return spans


def truncated_lengths(first: int, second: int | None, excess: int, strategy: str) -> tuple[int, int | None]:
    """How many tokens each text keeps: the original takes them one by one, and gives up where a text is too short."""
    if excess <= 0:
        return first, second
    if strategy == "only_first" or (strategy == "longest_first" and second is None):
        return (first - excess if first > excess else first), second
    if strategy == "longest_first" and second is not None:
        for _ in range(excess):
            if first > second:
                first -= 1
            else:
                second = max(0, second - 1)
    elif strategy == "only_second" and second is not None and second > excess:
        second -= excess
    return first, second


BLOCKS = ((0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0xEFF))
BLOCKS += ((0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x20A0, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF))
BLOCKS += ((0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE00, 0xFFFF), (0x10000, 0x1FFFF), (0x2F800, 0x2FA1F))
TRAPS = [
    *SPECIAL_TOKENS,
    *(
        "[unk]",
        "[mask]",
        "[Mask]",
        "[",
        "]",
        "##",
        "$",
        "Σ",
        "ΟΔΟΣ",
        "σς",
        "İ",
        "ı",
        "ß",
        "ẞ",
        "ﬁ",
        "e\u0301",
        "\u0301",
    ),
    *("각", "Å", "\r\n", "\u2028", "\x85", "\x1f", "\u200b", "\u3000", "\ufffd", "\0", "x" * 101, "a" * 100, "１２Ａ"),
    *("\U00011938", "\u302e\U00016ff0", "\U0001171e", "\u166d", "\U000111c9", "\U0002b820", "\U0002b91f", "\u08e2"),
]


def random_texts(count: int, seed: int, lines: list[str]) -> list[str]:
    """Texts of tokens, traps, blanks and characters from all of Unicode and from its busier blocks."""
    rng = random.Random(seed)

    def piece() -> str:
        kind = rng.random()
        if kind < 0.25:
            return chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))))
        if kind < 0.5:
            return chr(rng.randint(*rng.choice(BLOCKS)))
        if kind < 0.8:
            word = rng.choice(lines).removeprefix("##")
            return word.upper() if rng.random() < 0.2 else word
        return rng.choice(TRAPS if kind < 0.9 else "  \t\n, ")

    return ["".join(piece() for _ in range(rng.choice((1, 2, 3, 5, 8, 13, 21)))) for _ in range(count)]
