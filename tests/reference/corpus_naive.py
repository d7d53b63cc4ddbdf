"""Slow preparation of a corpus, from the paper's words: one text and one document at a time, everything in memory."""

import hashlib
import itertools
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hf_glm_ernie.ernie3_training.splitting import split_sentences

USUAL = {"…": "……", "—": "——", ".": "...", "-": "--", "/": "//", "+": "++"}


def collapsed(text: str) -> str:
    """Runs of one character, each looked at alone."""
    result = ""
    for mark, run in itertools.groupby(text):
        count = len(list(run))
        kind = unicodedata.category(mark)
        stays = kind[0] in "LNM" or kind in ("Ps", "Pe", "Pi", "Pf") or mark in "\"'`"
        stays = stays or (kind[0] == "C" and not mark.isspace()) or 0x1F1E6 <= ord(mark) <= 0x1F1FF
        result += mark * count if stays else (mark * count)[: len(USUAL.get(mark, mark))]
    return result


def without_repeats(sentences: Sequence[Any], same: Callable[[Any], Any], longest: int = 99) -> list[Any]:
    """Sentences read one by one; the last n go when they are the n before, the smallest n first."""
    kept: list[Any] = []
    for sentence in sentences:
        kept.append(sentence)
        for count in range(1, longest + 1):
            last, before = kept[-count:], kept[-2 * count : -count]
            if len(before) == count and list(map(same, last)) == list(map(same, before)):
                del kept[-count:]
                break
    return kept


def word_count(sentence: str, segmenter: Callable[[str], Iterable[str]]) -> int:
    """All words of a sentence."""
    is_chinese = any(unicodedata.name(mark, "").startswith("CJK UNIFIED IDEOGRAPH") for mark in sentence)
    pieces = list(segmenter(sentence)) if is_chinese else sentence.split()
    return len([piece for piece in pieces if [mark for mark in piece if mark.isalnum()]])


def cleaned(text: str, segmenter: Callable[[str], Iterable[str]], words: int = 10) -> str:
    """What the rules for one text leave of it."""
    lines = [line.strip() for line in collapsed(text).splitlines() if line.strip()]
    numbered = [(number, one) for number, line in enumerate(lines) for one in split_sentences(line)]
    numbered = without_repeats(numbered, lambda pair: pair[1].strip())
    numbered = [(number, one) for number, one in numbered if word_count(one, segmenter) >= words]
    groups = itertools.groupby(numbered, key=lambda pair: pair[0])
    return "\n".join("".join(one for _, one in group).rstrip() for _, group in groups)


def signature(text: str) -> int:
    """The sum of the MD5 of the three longest sentences."""
    sentences = {one.strip() for line in text.splitlines() for one in split_sentences(line)}
    chosen = sorted(sentences, key=lambda one: (-len(one), [-ord(mark) for mark in one]))[:3]
    return sum(int(hashlib.md5(one.encode()).hexdigest(), 16) for one in chosen) % 2**128


def prepared(texts: Iterable[str], segmenter: Callable[[str], Iterable[str]], words: int = 10) -> list[str]:
    """The texts of a corpus that stay, as they stay."""
    seen: set[int] = set()
    kept = []
    for text in (cleaned(one, segmenter, words) for one in texts):
        if text and signature(text) not in seen:
            seen.add(signature(text))
            kept.append(text)
    return kept
