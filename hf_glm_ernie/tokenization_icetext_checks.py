"""What an `ice_text.model` may hold, checked before sentencepiece and the `tokenizers` library see it.

Both are compiled and believe what they are given: a trie whose offsets lead outside of it is read outside of it, and
a piece of a megabyte takes gigabytes.

Source: sentencepiece 0.2 `normalizer.cc` (`DecodePrecompiledCharsMap`, `NormalizePrefix`), `model_interface.cc`
(`InitializePieces`), darts-clone (`DoubleArrayUnit`).
"""

import math
import struct
from collections import Counter
from typing import Any

MAX_MODEL_BYTES = 8_000_000
"""Of the file; the released one has 2.4 MB."""
MAX_PIECES = 250_000
"""With image tokens and all that is put behind; the released vocabulary has 150,344."""
MAX_PIECE_BYTES = 256
"""Of one piece; sentencepiece's own limit is 16 characters."""
MAX_PIECES_BYTES = 2_000_000
"""Of all pieces together; 1.0 MB as released. The library takes 300 bytes of memory for each."""
MAX_BLANK_LENGTH = 1000
MAX_SCORE = 1e30

NORMAL, UNKNOWN = 1, 2
NAMED = ("unk_piece", "eos_piece", "pad_piece", "unk_surface")
"""Fields of the trainer's settings that are texts."""

IS_VALUE, HAS_LEAF, IS_WIDE = 1 << 31, 1 << 8, 1 << 9
"""Bits of a unit of a trie."""


def check_layout(num_image_tokens: Any, max_blank_length: Any) -> None:
    """Makes sure that the numbers of pieces to be put around a model are such numbers.

    Raises:
        ValueError: they are not; the message says what they may be.
    """
    numbers = type(num_image_tokens) is int and type(max_blank_length) is int
    if not (numbers and 0 <= num_image_tokens <= MAX_PIECES and 2 <= max_blank_length <= MAX_BLANK_LENGTH):
        raise ValueError(
            f"num_image_tokens={num_image_tokens!r} must be a whole number from 0 to {MAX_PIECES} (20000 as released) "
            f"and max_blank_length={max_blank_length!r} one from 2 to {MAX_BLANK_LENGTH} (80 as released)."
        )


def check_size(data: bytes, name: str) -> None:
    """Makes sure that a file is not larger than any such model.

    Raises:
        ValueError: it is.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise ValueError(f"{name} has {len(data):,} bytes; a model here has at most {MAX_MODEL_BYTES:,}.")


def check_model(proto: Any, name: str) -> None:
    """Makes sure that a model can be handed to sentencepiece and to `tokenizers`.

    Args:
        proto: The `ModelProto`.
        name: What to call it in an error.

    Raises:
        ValueError: pieces too many, too long, empty, twice or without a score; no piece for what is unknown, or
            several; a damaged table of normalization.
    """
    if len(proto.pieces) > MAX_PIECES:
        raise ValueError(f"{name} has {len(proto.pieces):,} pieces; a model here has at most {MAX_PIECES:,}.")
    try:
        texts = [piece.piece for piece in proto.pieces]
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} has a piece that is not UTF-8 text ({error}).") from None
    named = [getattr(proto.trainer_spec, field) for field in NAMED]
    if odd := [text for text in (*texts, *named) if not isinstance(text, str)]:  # bytes, where protobuf does not raise
        raise ValueError(f"{name} has a piece that is not UTF-8 text ({str(odd[0])[:40]}).")
    scores = [piece.score for piece in proto.pieces]
    kinds = [piece.type for piece in proto.pieces]
    if not math.isfinite(sum(scores)) or max(map(abs, (min(scores), max(scores)))) > MAX_SCORE:
        raise ValueError(f"{name} has a piece whose score is not finite: train it anew.")
    if "" in texts:
        raise ValueError(f"{name} has an empty piece, number {texts.index('')}: train it anew.")
    if len(set(texts)) < len(texts):
        twice, _ = Counter(texts).most_common(1)[0]
        raise ValueError(f"{name} has the piece {twice[:40]!r} twice: train it anew.")
    longest = max(texts, key=len)
    if len(longest.encode()) > MAX_PIECE_BYTES or len("".join(texts).encode()) > MAX_PIECES_BYTES:
        raise ValueError(
            f"{name} has pieces of up to {len(longest.encode()):,} bytes ({longest[:20]!r}), "
            f"{len(''.join(texts).encode()):,} together; a model here has at most {MAX_PIECE_BYTES} and "
            f"{MAX_PIECES_BYTES:,}."
        )
    if kinds.count(UNKNOWN) > 1:
        raise ValueError(f"{name} has {kinds.count(UNKNOWN)} pieces of type UNKNOWN, sentencepiece needs one.")
    if NORMAL not in kinds:
        raise ValueError(f"{name} has no piece that a text could be cut into: train it anew.")
    for spec in (proto.normalizer_spec, proto.denormalizer_spec):
        check_normalization(spec.precompiled_charsmap, name)


def check_normalization(table: bytes, name: str) -> None:
    """Makes sure that no text leads outside of a compiled table of normalization.

    The table is the length of a trie in bytes (u32), the trie, and the texts that it points into, each with a zero
    behind it. A unit of the trie is a u32, little-endian; where a unit may be followed by a byte, all 256 places must
    be there.

    Args:
        table: `precompiled_charsmap`; may be empty.
        name: What to call the model in an error.

    Raises:
        ValueError: one does.
    """
    if not table:
        return
    damaged = f"{name} has a damaged table of normalization (precompiled_charsmap): "
    length = int.from_bytes(table[:4], "little")
    if len(table) < 4 or not 0 < length <= len(table) - 4 or length % 1024:
        raise ValueError(f"{damaged}a trie of {length:,} bytes among {len(table):,}.")
    units, texts = struct.unpack(f"<{length // 4}I", table[4 : 4 + length]), table[4 + length :]
    try:
        texts.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{damaged}its texts are not UTF-8.") from None
    if texts[-1:] != b"\0":
        raise ValueError(f"{damaged}its texts do not end.")
    for place, unit in enumerate(units):
        if unit & IS_VALUE and place:
            continue  # no byte leads on from a value
        following = place ^ ((unit >> 10) << (8 if unit & IS_WIDE else 0))
        if following >= len(units):
            raise ValueError(f"{damaged}unit {place} leads outside of the trie.")
        value = units[following] & ~IS_VALUE
        if unit & HAS_LEAF and (value >= len(texts) or texts[value] & 0xC0 == 0x80):
            raise ValueError(f"{damaged}unit {place} points outside of the texts.")


__all__ = ["check_layout", "check_model", "check_normalization", "check_size"]
