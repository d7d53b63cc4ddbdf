"""How many words a sentence has.

The paper counts words of Baidu's segmenter. Here a sentence with a Chinese character is cut by jieba, or by whatever
function is given; any other is cut at white space. A piece counts if it has a letter or a digit, so punctuation never
does. "用Python写的程序" is a Chinese sentence of five words, "It's 3.5 km." has three.

Segmentation is by far the slowest rule. So sentences are cut lazily and only up to the word that decides, and those
with fewer letters than words are wanted are not cut at all.
"""

import functools
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

Segmenter: TypeAlias = Callable[[str], Iterable[str]]

CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")


def jieba_words(text: str) -> Iterator[str]:
    """The words of a text as jieba cuts it (accurate mode, with its model for unknown words).

    Raises:
        ImportError: jieba is not installed.
    """
    return _jieba().cut(text)


@functools.cache
def _jieba() -> Any:
    try:
        import jieba
    except ImportError as error:
        raise ImportError(
            "Words of Chinese text need the package jieba: pip install jieba. Or count every character as a word "
            "(segmenter=list, --segmenter characters)."
        ) from error
    logging.getLogger("jieba").setLevel(logging.WARNING)  # it tells on stderr that it has read its dictionary
    return jieba


def words_of(sentence: str, segmenter: Segmenter = jieba_words) -> Iterator[str]:
    """The words of a sentence, found one after the other as they are asked for."""
    pieces = segmenter(sentence) if CHINESE.search(sentence) else sentence.split()
    return (piece for piece in pieces if any(map(str.isalnum, piece)))


def has_words(sentence: str, count: int, segmenter: Segmenter = jieba_words) -> bool:
    """Whether a sentence has at least so many words.

    Args:
        sentence: A sentence.
        count: How many.
        segmenter: Cuts Chinese text into pieces that follow one another, such as `jieba.cut`; `list` takes every
            character for a word. One that yields lazily is asked for no more than it takes.
    """
    if sum(map(str.isalnum, sentence)) < count:
        return False  # a word has a letter or digit, so there are no more words than these
    return sum(1 for _ in itertools.islice(words_of(sentence, segmenter), count)) == count


__all__ = ["CHINESE", "Segmenter", "has_words", "jieba_words", "words_of"]
