"""GLM-130B's vocabulary as a `tokenizers` backend: what `tokenizer.json` holds, for hosts without sentencepiece."""

import re
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from .tokenization_icetext import (
    BPE,
    LINE_BREAK,
    NORMAL,
    SPACE,
    SPECIAL_TOKENS,
    TAB,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    blank_token,
    eos_token,
    extend_ice_text,
    pad_token,
    unk_token,
)


def build_backend(
    data: bytes,
    *,
    num_image_tokens: int,
    max_blank_length: int,
    byte_fallback: bool,
) -> Tokenizer:
    """Writes the vocabulary for the `tokenizers` library, special tokens recognised, with default options.

    The library's ids differ from sentencepiece's where it normalizes by grapheme and not by longest prefix (combining
    marks, conjoining jamo), where the best cuts tie (runs of one character; it adds scores in double precision), for
    `</s>`, `<pad>` and `<unk>` in a text, for a text that is one special token and nothing else (no dummy prefix
    there), and for characters that only longer pieces hold (the never-matching scores make unknown ones cost more).

    Args:
        data: The bytes of `ice_text.model`.
        num_image_tokens: How many image tokens come first.
        max_blank_length: The longest run of spaces with a piece of its own.
        byte_fallback: Whether what has no piece becomes its UTF-8 bytes.

    Returns:
        A tokenizer whose ids are the pieces' indices in the extended model.
    """
    proto = extend_ice_text(
        data,
        num_image_tokens=num_image_tokens,
        max_blank_length=max_blank_length,
        byte_fallback=byte_fallback,
        special=True,
    )
    tokenizer = Tokenizer(_backend_model(proto))
    matched = [
        piece.piece for piece in proto.pieces if piece.type == USER_DEFINED and piece.piece not in SPECIAL_TOKENS
    ]
    # The host can only name tokens that the library searches for. In the original these three are always plain text;
    # here they are found where they stand as words of their own.
    control = list(dict.fromkeys((unk_token(proto), eos_token(proto), pad_token(proto))))
    tokenizer.normalizer = _backend_normalizer(proto, max_blank_length, [*matched, *SPECIAL_TOKENS, *control])
    tokenizer.decoder = _backend_decoder(proto, max_blank_length)
    # Normalized, that is searched for after normalization: a token cut out before it would start the text anew.
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in matched])
    tokenizer.add_special_tokens([AddedToken(token, normalized=True) for token in SPECIAL_TOKENS])
    tokenizer.add_special_tokens([AddedToken(token, normalized=True, single_word=True) for token in control])
    return tokenizer


def _backend_model(proto: Any) -> models.Model:
    """The library's model for the pieces of an extended sentencepiece model."""
    has_bytes = proto.trainer_spec.byte_fallback
    if proto.trainer_spec.model_type == UNIGRAM:
        # Pieces that a text must not match are given a score below that of any other way to cut their characters.
        scores = [piece.score for piece in proto.pieces if piece.type == NORMAL]
        never = -64.0 * (abs(min(scores)) + 10.0)
        vocab = [(piece.piece, piece.score if piece.type == NORMAL else never) for piece in proto.pieces]
        unknown = next(index for index, piece in enumerate(proto.pieces) if piece.type == UNKNOWN)
        return models.Unigram(vocab, unk_id=unknown, byte_fallback=has_bytes)
    merges: list[tuple[str, str]] = []
    if proto.trainer_spec.model_type == BPE:
        normal = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
        for piece in sorted(normal, key=normal.__getitem__, reverse=True):
            cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
            merges += [(left, right) for left, right in cuts if left in normal and right in normal]
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    return models.BPE(ids, merges, unk_token=unk_token(proto), fuse_unk=True, byte_fallback=has_bytes)


def _backend_normalizer(proto: Any, max_blank_length: int, tokens: list[str]) -> normalizers.Normalizer:
    """The library's counterpart of `IceTextEncoder._prepare` and sentencepiece's normalization."""
    spec = proto.normalizer_spec
    space = SPACE if spec.escape_whitespaces else " "
    start = r"\A"
    steps: list[normalizers.Normalizer] = []
    if spec.add_dummy_prefix:
        start = rf"\A{SPACE}"
        steps.append(normalizers.Prepend(SPACE))
        # The library normalizes a token's own name, too, and searches for the result: names get no prefix.
        names = "|".join(map(re.escape, tokens))
        steps.append(normalizers.Replace(Regex(rf"\A{SPACE}(?=(?:{names})\z)"), ""))
    steps += [normalizers.Replace("\n", LINE_BREAK), normalizers.Replace("\t", TAB)]
    steps += [normalizers.Replace(" " * k, blank_token(k)) for k in range(max_blank_length, 1, -1)]
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"(?<={start}) +"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
        steps.append(normalizers.Replace(Regex(rf"[ {SPACE}]+\z"), ""))
    if space == SPACE:
        steps.append(normalizers.Replace(" ", SPACE))
    elif spec.add_dummy_prefix:
        steps.append(normalizers.Replace(Regex(rf"\A{SPACE}"), " "))
    return normalizers.Sequence(steps)


def _backend_decoder(proto: Any, max_blank_length: int) -> decoders.Decoder:
    """The library's counterpart of `IceTextEncoder.decode`."""
    spec = proto.normalizer_spec
    unknown = Regex(rf"\A{re.escape(unk_token(proto))}\z")
    steps: list[decoders.Decoder] = [decoders.Replace(unknown, proto.trainer_spec.unk_surface)]
    if proto.trainer_spec.byte_fallback:
        steps.append(decoders.ByteFallback())
    # The pieces become one string before its first space goes: otherwise every piece would lose one.
    steps += [decoders.Replace(SPACE, " "), decoders.Fuse()]
    if spec.add_dummy_prefix or spec.remove_extra_whitespaces:
        steps.append(decoders.Strip(" ", 1, 0))
    steps += [decoders.Replace(LINE_BREAK, "\n"), decoders.Replace(TAB, "\t")]
    steps += [decoders.Replace(blank_token(k), " " * k) for k in range(2, max_blank_length + 1)]
    return decoders.Sequence(steps)


__all__ = ["build_backend"]
