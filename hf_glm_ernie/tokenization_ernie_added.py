"""Where added tokens stand in a text, for the `tokenizers` library: PaddleNLP's rules, exactly.

PaddleNLP looks special tokens up in the text as it was typed, and other added tokens in the lowercased text, which
still has its accents: of "Café", "CAFÉ" and "cafe" the first two are the added token `café`. The library knows only
the typed text and the fully cleaned one, where the third is the same. So here the normalizer itself finds the tokens
while the text is lowercased and nothing more, and puts a mark behind each that no text holds any more. Cleaning lets
the mark through, and the library matches `café` + mark. Characters of a token that cleaning would change hide behind
others meanwhile.

Marks are needed only for tokens with letters that have an upper case; others are looked up as typed. The library
names a marked token with its mark (in `Encoding.tokens` and `id_to_token`); `unmarked` takes it away.

Source: PaddleNLP 2.8.1, `PretrainedTokenizer.tokenize`, `_add_tokens` and `Trie` in `transformers/tokenizer_utils.py`.
"""

import json
import unicodedata
from collections.abc import Collection

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers

from .tokenization_ernie_unicode import REMOVED, build_normalizer, inside_class, literal, lowering_steps

MARK = "\u2060"  # a word joiner: cleaning takes a text's own away, and nobody sees this one
NOTHING = "\0"  # stands for every character that cleaning drops, so that it still parts what it stands between
HIDING_PLACES = range(0xE000, 0xF900)  # private use: cleaning takes a text's own away, too


def unmarked(name: str) -> str:
    """A token's name without its mark."""
    return name.replace(MARK, "")


def has_case(token: str) -> bool:
    """Whether another text than the token itself becomes the token when it is lowercased."""
    return any(char.lower() != char or char.upper() != char or char == "\u0307" for char in token)  # from U+0130


def check_content(token: str) -> None:
    """Makes sure that a token can be looked up.

    Raises:
        ValueError: it holds half a surrogate pair, or a character that is used up here.
    """
    for char in token:
        if "\ud800" <= char <= "\udfff":
            raise ValueError(
                f"The token {token!r} holds half a surrogate pair, {char!r}: no text holds one once it is cleaned. "
                "Take a token of whole characters."
            )
        if char in (MARK, NOTHING):
            raise ValueError(
                f"The token {token!r} holds U+{ord(char):04X}, which marks added tokens and dropped characters while "
                "a text is cleaned. Take a token without it."
            )


def read_special(token: AddedToken) -> AddedToken:
    """The token as a special one, which is looked up as typed."""
    return _copy(token, str(token), normalized=False, special=True)


def read_plain(token: AddedToken, lowered: bool) -> AddedToken:
    """The token as one that is not special: lowercased where the text is, unless it was made to match as typed."""
    lowered = lowered and token.normalized
    return _copy(token, str(token).lower() if lowered else str(token), normalized=lowered, special=False)


def _copy(token: AddedToken, content: str, normalized: bool, special: bool) -> AddedToken:
    return AddedToken(
        content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=normalized,
        special=special,
    )


def looked_up_in_lowered(backend: Tokenizer, lowered: bool) -> dict[str, bool]:
    """The added tokens that PaddleNLP looks up in the lowercased text, and whether the library has them normalized.

    Args:
        backend: The library's tokenizer.
        lowered: Whether text is lowercased.
    """
    return {
        str(token): token.normalized
        for token in backend.get_added_tokens_decoder().values()
        if not token.special and (token.normalized or (lowered and not has_case(str(token))))
    }


def with_added_tokens(backend: Tokenizer, lowered: bool, new: Collection[AddedToken] = ()) -> Tokenizer:
    """Gives a tokenizer its normalizer and all added tokens the way they are looked up.

    Args:
        backend: The library's tokenizer, which is changed.
        lowered: Whether text is lowercased.
        new: Tokens to add, from `read_plain`.

    Returns:
        The tokenizer, or a new one where tokens have to be looked up in another way than before.
    """
    known = looked_up_in_lowered(backend, lowered)
    named = {str(token) for token in new if token.normalized or (lowered and not has_case(str(token)))}
    marked = lowered and any(has_case(token) for token in {*known, *named})
    backend.normalizer = build_marking_normalizer({*known, *named}) if marked else build_normalizer(lowered)
    new = [_copy(token, str(token), normalized=marked and str(token) in named, special=False) for token in new]
    pieces = decoders.WordPiece(prefix="##", cleanup=False)
    backend.decoder = decoders.Sequence([pieces, decoders.Replace(MARK, "")]) if marked else pieces
    if any(normalized != marked for normalized in known.values()):
        backend = _looked_up_alike(backend, known, marked)
    backend.add_tokens(new)
    return backend


def _looked_up_alike(backend: Tokenizer, tokens: Collection[str], normalized: bool) -> Tokenizer:
    """The tokenizer again, with other tokens normalized: the library cannot change that of a token it has."""
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        if token["content"] in tokens:
            token["normalized"] = normalized
    again = Tokenizer.from_str(json.dumps(content))
    again.encode_special_tokens = backend.encode_special_tokens
    return again


def build_marking_normalizer(tokens: Collection[str]) -> normalizers.Normalizer:
    """Cleans as `build_normalizer(True)` does, and marks tokens: the leftmost first, of those the longest.

    Args:
        tokens: What to look up in the lowercased text.

    Raises:
        ValueError: there are more characters to hide than places.
    """
    tokens = sorted({token.lower() for token in tokens}, key=lambda token: (-len(token), token))
    chars = sorted(set("".join(tokens)))
    any_token = "|".join(map(literal, tokens))
    first = "".join(sorted({literal(token[0]) for token in tokens}))
    hidden = _hiding_places(chars)
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace(_dropped("".join(map(literal, chars))), NOTHING),
        normalizers.Lowercase(),
        # From where the last token ended: what begins no token, a token, and there is the place.
        normalizers.Replace(Regex(f"(?m)\\G(?:[^{first}]|(?!{any_token}).)*+(?:{any_token})\\K"), MARK),
    ]
    for char, place in hidden.items():
        rests = {token[at + 1 :] for token in tokens for at, one in enumerate(token) if one == char}
        rest = "|".join("".join(_hidden_or_not(one, hidden) for one in rest) for rest in sorted(rests, key=len))
        steps.append(normalizers.Replace(Regex(f"{literal(char)}(?=(?:{rest}){literal(MARK)})"), place))
    kept = literal(MARK) + "".join(map(literal, hidden.values()))
    steps.append(normalizers.Replace(_dropped(kept), ""))
    steps += lowering_steps()
    steps += [normalizers.Replace(place, char) for char, place in hidden.items()]
    return normalizers.Sequence(steps)


def _hiding_places(chars: Collection[str]) -> dict[str, str]:
    """A character for each that cleaning would change or, by its combining class, move."""
    clean = build_normalizer(True).normalize_str
    changed = [char for char in chars if clean(char) != char or unicodedata.combining(char)]
    free = (chr(code) for code in HIDING_PLACES if chr(code) not in chars)
    places = dict(zip(changed, free, strict=False))
    if len(places) < len(changed):
        raise ValueError(
            f"The added tokens hold {len(changed)} different characters with accents or that cleaning drops; there is "
            f"room for {len(places)}. Add fewer such tokens, or add them as special ones."
        )
    return places


def _hidden_or_not(char: str, hidden: dict[str, str]) -> str:
    return f"[{literal(char)}{literal(hidden[char])}]" if char in hidden else literal(char)


def _dropped(but: str) -> Regex:
    """One of the characters that cleaning drops, but for some."""
    return Regex(f"[{inside_class(REMOVED)}&&[^{but}]]")


__all__ = [
    "MARK",
    "build_marking_normalizer",
    "check_content",
    "has_case",
    "looked_up_in_lowered",
    "read_plain",
    "read_special",
    "unmarked",
    "with_added_tokens",
]
