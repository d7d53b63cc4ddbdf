"""Where ERNIE 3.0's 10B model puts sentence marks, for the `tokenizers` library: the original's rules, exactly.

The original splits a text at white space and cuts each chunk behind 。！？?!；; (a closing ” or ’ there belongs to the
sentence), behind six dots, …… and some closing quotes. Every sentence gets a mark. A chunk's last mark stays only
between two Chinese characters; a text's last one only where its last token ends a sentence or a quote.

Here a normalizer does all of it: it puts a character that no text holds any more where a mark goes, between cleaning
steps that let it through, and the pre-tokenizer cuts the mark out. So the library itself makes the marks, in any host,
and knows their places. Their place is that of the character they stand behind, or the white space they replace.

The original cuts with one `re.sub` after the other, and each consumes the character behind the cut: the next match of
the same expression may not begin there, so that four … are cut once. Backslash G, where the library began to search,
tells that place.

Source: PaddleNLP, side branch with `transformers/ernie3/tokenizer.py` (`cut_sent`, `_tokenize`).
"""

from tokenizers import Regex, normalizers, pre_tokenizers

from .tokenization_ernie_unicode import (
    HAN,
    MARKS,
    REMOVED,
    character_class,
    inside_class,
    literal,
    lowering_steps,
)

FINAL = "。！？?!；;"
CLOSING = "”’"

MARK = "\x1c"  # a separator for Python, so that a text's own become blanks before marks are put
SEPARATORS = r"[\x{1C}-\x{1F}]"  # white space for Python, but not for the library
BLANKS = r"\x{9}-\x{D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
CHINESE = r"[\x{4E00}-\x{9FFF}]"

# Cleaning keeps white space, on which chunks depend, and the mark.
KEPT = ("B-C E-1F 7F-9F", "E-1B 1D-1F 7F-84 86-9F")


def _once(text: str) -> str:
    """An expression for `text`, but not where the last match, of `text` too, left off."""
    return f"(?!(?<={text})\\G){text}"


_MORE = f"(?=[^{CLOSING}{MARK}{BLANKS}])"
CUTS = (
    f"(?:[{FINAL}][{CLOSING}]?(?=[^{FINAL}{CLOSING}{BLANKS}])|(?:{_once('？！”')}|{_once('[！。]’”')}){_MORE})\\K",
    f"(?:{_once('……”')}|{_once('[.]{6}')})\\K{_MORE}",
    f"{_once('……')}\\K{_MORE}",
)
"""Behind what a sentence ends within a chunk; each matches the empty text at the cut."""

BETWEEN_CHINESE = f"[{BLANKS}](?<={CHINESE}[{BLANKS}])[{BLANKS}]*+(?={CHINESE})"


def build_normalizer(do_lower_case: bool, sentence_token: str | None, closing: str) -> normalizers.Normalizer:
    """Puts the marks in and cleans as `ErnieTokenizer` does, but for white space that it drops.

    Args:
        do_lower_case: Whether text is lowercased and loses its accents.
        sentence_token: What marks a sentence's end; None for no marks.
        closing: Which characters may end a text with a mark.
    """
    cleaned = " ".join(REMOVED.split())
    if KEPT[0] not in cleaned:
        raise ValueError(f"The ranges that cleaning drops do not hold {KEPT[0]!r}: the table of them has changed.")
    steps: list[normalizers.Normalizer] = [normalizers.Replace(Regex(SEPARATORS), " ")]
    if sentence_token is not None:
        steps += [normalizers.Replace(Regex(cut), MARK) for cut in CUTS]
        steps.append(normalizers.Replace(Regex(BETWEEN_CHINESE), MARK))
    steps.append(normalizers.Replace(character_class(cleaned.replace(*KEPT)), ""))
    if do_lower_case:
        steps += lowering_steps()
    if sentence_token is not None:
        if closing:
            steps.append(normalizers.Replace(Regex(f"[{closing}]\\K(?=[{BLANKS}]*\\z)"), MARK))
        # Words end at marks like "<", so that a blank behind one changes no word, but keeps the text's own from
        # looking like a sentence mark.
        first, rest = map(literal, (sentence_token[0], sentence_token[1:]))
        steps.append(normalizers.Replace(Regex(f"{first}\\K(?={rest})"), " "))
        steps.append(normalizers.Replace(MARK, sentence_token))
    return normalizers.Sequence(steps)


def build_pre_tokenizer(sentence_token: str | None) -> pre_tokenizers.PreTokenizer:
    """Cuts out sentence marks, Han characters, punctuation and symbols one by one, and the rest at white space."""
    if sentence_token is None:
        alone = character_class(MARKS, HAN)
    else:
        alone = Regex(f"{literal(sentence_token)}|[{inside_class(MARKS, HAN)}]")
    return pre_tokenizers.Sequence([pre_tokenizers.Split(alone, "isolated"), pre_tokenizers.WhitespaceSplit()])


__all__ = ["CLOSING", "FINAL", "build_normalizer", "build_pre_tokenizer"]
