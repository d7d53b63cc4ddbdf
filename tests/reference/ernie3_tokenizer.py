"""ERNIE 3.0's 10B tokenizer, slowly: sentences are cut by walking over the characters, rule after rule.

Written from the rules of the original (PaddleNLP, side branch with `transformers/ernie3/tokenizer.py`); independent of
the package. Compared once with the original's own `_tokenize` under PaddleNLP 2.8.1's basic and WordPiece tokenizers
and the released vocabulary's first 29,979 pieces, lowercased and not: 0 differences in the tokens of 150,000 random
texts.
"""

import random
import re
from collections.abc import Iterable

from .ernie_tokenizer import ErnieReference, random_texts

FINAL = "。！？?!；;"
QUOTES = "”’"
RULES = (
    ((FINAL,), FINAL + QUOTES),
    ((FINAL, FINAL + QUOTES), FINAL + QUOTES),
    (("？", "！", "”"), QUOTES),
    (("！。", "’", "”"), QUOTES),
    (("…", "…", "”"), QUOTES),
    ((".",) * 6, QUOTES),
    (("…", "…"), QUOTES),
)
"""What a sentence may end with, and what may not stand behind it. That next character is used up by the rule."""

SPECIAL_TOKENS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", "[END]", "<S>", "[gEND]", "[soft]")


def sentences(chunk: str) -> list[str]:
    """Cuts a text without white space; each rule goes over the result of the one before."""
    for ends, forbidden in RULES:
        cut, at = "", 0
        while at < len(chunk):
            found, behind = chunk[at : at + len(ends)], chunk[at + len(ends) : at + len(ends) + 1]
            fits = len(found) == len(ends) and all(char in some for char, some in zip(found, ends, strict=True))
            if fits and behind and behind not in forbidden:
                cut += found + "\n" + behind
                at += len(ends) + 1
                continue
            cut += chunk[at]
            at += 1
        chunk = cut
    return [sentence for sentence in chunk.split("\n") if sentence]


def is_chinese(char: str) -> bool:
    return 0x4E00 <= ord(char) <= 0x9FFF


class Ernie3Reference:
    """The tokenizer with every mark.

    Args:
        lines: The vocabulary, one token a line.
        do_lower_case: Whether text is lowercased and loses its accents.
    """

    def __init__(self, lines: Iterable[str], do_lower_case: bool = True) -> None:
        self.words = ErnieReference(lines, do_lower_case)
        self.vocab = self.words.vocab

    def part(self, text: str) -> list[str]:
        """The tokens of a text without special tokens."""
        tokens: list[str] = []
        chunks = text.split()
        for number, chunk in enumerate(chunks):
            for sentence in sentences(chunk):
                if self.words.do_lower_case:
                    sentence = "".join(char.lower() for char in sentence)
                tokens += [piece for word in self.words.words(sentence) for piece in self.words.pieces(word)]
                tokens.append("<S>")
            if number + 1 < len(chunks) and not (is_chinese(chunk[-1]) and is_chinese(chunks[number + 1][0])):
                tokens.pop()
        if tokens == ["<S>"]:
            return []
        if tokens and tokens[-1] == "<S>" and tokens[-2] not in [*FINAL, *QUOTES]:
            tokens.pop()
        return tokens

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text; special tokens in it are one each, and what is between is cut by itself."""
        special = "|".join(map(re.escape, SPECIAL_TOKENS))
        tokens: list[str] = []
        for index, part in enumerate(re.split(f"({special})", text)):
            tokens += [part] if index % 2 else self.part(part)
        return tokens

    def encode(self, text: str, pair: str | None = None) -> list[int]:
        """The ids of a row."""
        tokens = ["[CLS]", *self.tokenize(text), *(() if pair is None else self.tokenize(pair))]
        return self.words.ids(tokens)


ENDS = [*FINAL, *QUOTES, "…", ".", "……", "......", "……”", "？！”", "！’”", "。’”", "！", "“", '"', "\u037e"]
BLANKS = [" ", "\n", "\t", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u2028", "\u3000", "\r\n  "]
GONE = ["\u200b", "\x00", "\ufeff", "\u0301", "\ue000", "\x1b"]
WORDS = ["今天", "公园", "中", "a", "B", "25℃", "<S>", "[MASK]", "<", "S>", "㐀", "豈"]


def random_paragraphs(count: int, seed: int, lines: list[str]) -> list[str]:
    """Texts that are mostly ends of sentences, blanks, characters that vanish and a few words."""
    rng = random.Random(seed)
    kinds = (ENDS, BLANKS, GONE, WORDS)

    def piece() -> str:
        if rng.random() < 0.05:
            return random_texts(1, rng.randrange(2**30), lines)[0]
        return rng.choice(rng.choices(kinds, (5, 2, 1, 4))[0])

    return ["".join(piece() for _ in range(rng.choice((1, 2, 3, 5, 8, 13, 21)))) for _ in range(count)]
