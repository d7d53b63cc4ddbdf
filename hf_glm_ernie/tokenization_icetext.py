"""The text half of icetk, GLM-130B's vocabulary, around an `ice_text.model` of sentencepiece.

What is unusual about it:

- ids start after the image tokens: id = number of image tokens (20000 as released) + index of the piece;
- behind the base pieces come, in this order, eight special tokens, a tab, runs of 2..80 spaces and 256 bytes;
- line breaks, tabs and runs of spaces are rewritten to `<n>`, `<|tab|>`, `<|blank_k|>` before sentencepiece sees the
  text (its normalization would drop them) and back after decoding;
- the eight special tokens are control pieces (never matched) or user-defined pieces (matched) at the caller's choice.

`IceTextEncoder` runs sentencepiece on that extended model, so its ids, its ties and its normalization are the
original's. `tokenization_icetext_backend.py` writes the same vocabulary for the
`tokenizers` library, for hosts without sentencepiece.

Source: SwissArmyTransformer 0.4.12, `sat/tokenization/icetk_glm_130B/ice_tokenizer.py`.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .tokenization_icetext_checks import check_layout, check_model, check_size

try:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2, sentencepiece_pb2

    SENTENCEPIECE_ERROR: ImportError | None = None
except ImportError as error:  # sentencepiece, or protobuf beneath its message classes
    SENTENCEPIECE_ERROR = error

SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "<eod>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
LINE_BREAK = "<n>"
TAB = "<|tab|>"
SPACE = "\u2581"

# Every piece is made when a vocabulary is opened, and a run of spaces is a step of the library's normalizer.
MAX_IMAGE_TOKENS = 200_000

# Values of sentencepiece's ModelProto.SentencePiece.Type and TrainerSpec.ModelType.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4


def blank_token(length: int) -> str:
    """The piece for a run of `length` (2 or more) spaces."""
    return f"<|blank_{length}|>"


def byte_token(value: int) -> str:
    """The piece for one byte, 0..255."""
    return f"<0x{value:02X}>"


def read_ice_text(path: str | os.PathLike[str]) -> bytes:
    """Reads a sentencepiece model file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No sentencepiece model at {str(path)!r}: give the path of GLM-130B's `ice_text.model` "
            "(icetk downloads it to ~/.icetk_models)."
        )
    return path.read_bytes()


def parse_ice_text(data: bytes, name: str = "ice_text.model") -> Any:
    """Parses a serialized sentencepiece model.

    Args:
        data: The file's bytes.
        name: What to call the model in an error.

    Returns:
        The `ModelProto`, with no change to it.

    Raises:
        ImportError: sentencepiece or protobuf is missing.
        ValueError: not a sentencepiece model, or one that icetk's scheme cannot be built on.
    """
    if SENTENCEPIECE_ERROR is not None:
        raise ImportError(
            f"Reading {name} needs sentencepiece and protobuf ({SENTENCEPIECE_ERROR}): "
            "pip install sentencepiece protobuf"
        ) from SENTENCEPIECE_ERROR
    check_size(data, name)
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # generated
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has another class in each of its implementations
        raise ValueError(f"{name} is not a sentencepiece model: {error}") from error
    if not proto.pieces:
        raise ValueError(f"{name} is not a sentencepiece model: it has no pieces ({len(data)} bytes).")
    check_model(proto, name)
    spec = proto.trainer_spec
    if spec.model_type == WORD:
        raise ValueError(
            f"{name} is a sentencepiece model of type word: a line break or a run of spaces would be glued to its "
            "neighbours and become bytes. Supported types: unigram, bpe, char."
        )
    if spec.treat_whitespace_as_suffix:
        raise ValueError(
            f"{name} was trained with treat_whitespace_as_suffix, which is not supported: train it without."
        )
    if not any(piece.type == UNKNOWN for piece in proto.pieces):
        raise ValueError(f"{name} has no piece of type UNKNOWN, which sentencepiece needs: train it anew.")
    if not any(piece.type == CONTROL and piece.piece == eos_token(proto) for piece in proto.pieces):
        raise ValueError(
            f"{name} has no end-of-sentence piece {eos_token(proto)!r}, which closes GLM-130B's input: "
            "train it with eos_id >= 0."
        )
    return proto


def eos_token(proto: Any) -> str:
    """The model's end-of-sentence piece."""
    return proto.trainer_spec.eos_piece


def pad_token(proto: Any) -> str:
    """The model's padding piece, or its end-of-sentence piece where it has none (padding is masked anyway)."""
    pad = proto.trainer_spec.pad_piece
    return pad if any(piece.piece == pad and piece.type == CONTROL for piece in proto.pieces) else eos_token(proto)


def unk_token(proto: Any) -> str:
    """The model's piece for what it does not know."""
    return next(piece.piece for piece in proto.pieces if piece.type == UNKNOWN)


def appended_pieces(max_blank_length: int, byte_fallback: bool, special: bool) -> list[tuple[str, int]]:
    """The pieces that follow the base model's, in order, each with its type.

    Args:
        max_blank_length: The longest run of spaces with a piece of its own.
        byte_fallback: Whether the 256 bytes are among them.
        special: Whether the eight special tokens are matched in a text.
    """
    pieces = [(token, USER_DEFINED if special else CONTROL) for token in SPECIAL_TOKENS]
    pieces += [(token, USER_DEFINED) for token in (TAB, *map(blank_token, range(2, max_blank_length + 1)))]
    return pieces + [(byte_token(value), BYTE) for value in range(256) if byte_fallback]


def extend_ice_text(
    data: bytes, *, num_image_tokens: int, max_blank_length: int, byte_fallback: bool, special: bool
) -> Any:
    """Puts icetk's pieces around a sentencepiece model, so that a piece's index is its id.

    Args:
        data: The bytes of `ice_text.model`.
        num_image_tokens: How many image tokens come first.
        max_blank_length: The longest run of spaces with a piece of its own.
        byte_fallback: Whether what has no piece becomes its UTF-8 bytes.
        special: Whether the eight special tokens are matched in a text.

    Returns:
        The extended `ModelProto`.

    Raises:
        ValueError: an argument is out of range, or a piece to be added is in the model already.
    """
    check_layout(num_image_tokens, max_blank_length)
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # generated
    for index in range(num_image_tokens):
        proto.pieces.add(piece=f"<image_{index}>", score=0.0, type=CONTROL)
    proto.MergeFromString(data)  # appends its pieces to those there are
    known = {piece.piece for piece in proto.pieces}
    appended = appended_pieces(max_blank_length, byte_fallback, special)
    taken = [token for token, _ in appended if token in known]
    if taken:
        way_out = " Pass byte_fallback=False to keep the model's own bytes." if byte_token(0) in taken else ""
        raise ValueError(f"Pieces that GLM-130B adds are in the sentencepiece model already: {taken[:5]}.{way_out}")
    for token, kind in appended:
        proto.pieces.add(piece=token, score=0.0, type=kind)
    if byte_fallback:
        proto.trainer_spec.byte_fallback = True
    return proto


class Piece(NamedTuple):
    """One token and the characters `start:end` of the text that it stands for (empty for a lone dummy prefix)."""

    id: int
    piece: str
    start: int
    end: int


class IceTextEncoder:
    """Sentencepiece on the extended model: text to ids and back exactly as the original does.

    Args:
        data: The bytes of `ice_text.model`.
        num_image_tokens: How many ids come before the first text piece.
        max_blank_length: The longest run of spaces with a piece of its own.
        byte_fallback: Whether what has no piece becomes its UTF-8 bytes.
        linebreak: Whether a line break becomes `<n>`.
        whitespaces: Whether tabs and runs of spaces get their own pieces.
        add_dummy_prefix: Whether a text starts as if a space stood before it, where the model was trained so.

    Raises:
        ValueError: the model and the options do not fit together.
    """

    def __init__(
        self,
        data: bytes,
        *,
        num_image_tokens: int,
        max_blank_length: int,
        byte_fallback: bool,
        linebreak: bool = True,
        whitespaces: bool = True,
        add_dummy_prefix: bool = True,
    ) -> None:
        check_layout(num_image_tokens, max_blank_length)
        proto = parse_ice_text(data)
        self._data = data
        self._layout = {
            "num_image_tokens": num_image_tokens,
            "max_blank_length": max_blank_length,
            "byte_fallback": byte_fallback,
        }
        self._processors: dict[bool, Any] = {}
        appended = [token for token, _ in appended_pieces(max_blank_length, byte_fallback, special=True)]
        self.size = num_image_tokens + len(proto.pieces) + len(appended)
        self.reserved = {piece.piece for piece in proto.pieces if piece.type != NORMAL}.union(appended)

        self.linebreak = linebreak
        self.whitespaces = whitespaces
        self.add_dummy_prefix = add_dummy_prefix
        self._blanks = [blank_token(length) for length in range(max_blank_length + 1)]
        self._blank_run = re.compile(f" {{2,{max_blank_length}}}")
        self._rewritten = re.compile(f"(\n)|(\t)|({self._blank_run.pattern})")
        matched = (NORMAL, USER_DEFINED)
        self._has_line_break = any(piece.piece == LINE_BREAK and piece.type in matched for piece in proto.pieces)
        if not add_dummy_prefix and not self._has_line_break:
            raise ValueError(
                f"add_dummy_prefix=False is done with the piece {LINE_BREAK!r}, which this sentencepiece model does "
                f"not have: train it with user_defined_symbols=[{LINE_BREAK!r}], or keep add_dummy_prefix=True."
            )

        spec = proto.normalizer_spec
        self._strip_prefix = spec.add_dummy_prefix or spec.remove_extra_whitespaces
        self._strip_all = spec.remove_extra_whitespaces
        self._unknown = unk_token(proto)
        self._unknown_surface = proto.trainer_spec.unk_surface
        has_bytes = byte_fallback or any(piece.type == BYTE for piece in proto.pieces)
        self._bytes = {byte_token(value): value for value in range(256) if has_bytes}
        self._whitespace = {LINE_BREAK: "\n", TAB: "\t"}
        self._whitespace |= {self._blanks[length]: " " * length for length in range(2, max_blank_length + 1)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_processors": {}}  # rebuilt from the bytes in less time than pickling takes

    def _processor(self, special: bool) -> Any:
        """Sentencepiece with the special tokens as pieces of the text (True) or as plain text (False)."""
        if special not in self._processors:
            proto = extend_ice_text(self._data, special=special, **self._layout)  # type: ignore[arg-type]  # mixed dict
            try:
                made = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
            except RuntimeError as error:
                raise ValueError(f"sentencepiece cannot open ice_text.model: {error}") from error
            self._processors[special] = made
        return self._processors[special]

    def ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Encodes texts, each by itself.

        Args:
            texts: The texts, as the user wrote them.
            special: Whether special tokens in a text are recognised.

        Returns:
            For each text its ids.

        Raises:
            ValueError: a text holds half a surrogate pair.
        """
        encode = self._processor(special).encode
        prepared = [self._prepare(text) for text in texts]
        try:
            # A list is encoded at twice the speed of single calls, after a start of some 40 us.
            many = len(prepared) >= 16
            rows = encode(prepared, num_threads=1) if many else [encode(text) for text in prepared]
        except (RuntimeError, TypeError, UnicodeError) as error:
            raise _not_unicode(texts) or error from error
        if self.add_dummy_prefix:
            return rows
        line_break = self._processor(special).piece_to_id(LINE_BREAK)
        return [row[row.index(line_break) + 1 :] for row in rows]

    def pieces(
        self, text: str, special: bool, *, after_token: bool = False, before_token: bool = False
    ) -> list[Piece]:
        """Encodes one text, with the pieces' names and places.

        Args:
            text: The text, as the user wrote it.
            special: Whether special tokens in the text are recognised.
            after_token: The text goes on behind another token: no dummy prefix, a leading space counts.
            before_token: Another token follows: a trailing space counts.

        Returns:
            The pieces; without `after_token` and `before_token` their ids are those of `ids`.
        """
        if not self.add_dummy_prefix:
            after_token = True
        # `<n>` is no part of a longer piece: next to it the text is not at an end, and it can be cut off again.
        left = LINE_BREAK if after_token and self._has_line_break else ""
        right = LINE_BREAK if before_token and self._has_line_break else ""
        prepared, places = self._prepare_with_places(text)
        places = [(0, 0)] * len(left) + places + [(len(text), len(text))] * len(right)
        try:
            tokens = self._places(left + prepared + right, special)
        except (RuntimeError, TypeError, UnicodeError) as error:
            raise _not_unicode([text]) or error from error
        if left:
            tokens = tokens[next(i for i, token in enumerate(tokens) if token.piece == LINE_BREAK) + 1 :]
        if right:
            tokens = tokens[:-1]
        return list(_spread(_to_text(token, places) for token in tokens))

    def _places(self, prepared: str, special: bool) -> list[Piece]:
        """Sentencepiece's pieces of a prepared text, placed in its characters."""
        message = sentencepiece_pb2.SentencePieceText()  # type: ignore[attr-defined]  # generated
        message.ParseFromString(self._processor(special).encode(prepared, out_type="serialized_proto"))
        if prepared.isascii():
            return [Piece(p.id, p.piece, p.begin, p.end) for p in message.pieces]
        character = [0] * (len(prepared.encode()) + 1)  # of the byte that starts it; pieces begin and end at starts
        byte = 0
        for index, width in enumerate(len(c.encode()) for c in prepared):
            character[byte] = index
            byte += width
        character[byte] = len(prepared)
        return [Piece(p.id, p.piece, character[p.begin], character[p.end]) for p in message.pieces]

    def _prepare(self, text: str) -> str:
        """What the original hands to sentencepiece for a text."""
        if self.linebreak and "\n" in text:
            text = text.replace("\n", LINE_BREAK)
        if self.whitespaces:
            if "\t" in text:
                text = text.replace("\t", TAB)
            if "  " in text:
                text = self._blank_run.sub(lambda run: self._blanks[run.end() - run.start()], text)
        return text if self.add_dummy_prefix else LINE_BREAK + text

    def _prepare_with_places(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """`_prepare` without its prefix, and for each character of the result the span of `text` it stands for."""
        prepared: list[str] = []
        places: list[tuple[int, int]] = []
        done = 0
        for match in self._rewritten.finditer(text):
            line, tab, run = match.groups()
            if not (self.linebreak if line else self.whitespaces):
                continue
            token = LINE_BREAK if line else TAB if tab else self._blanks[len(run)]
            start, end = match.span()
            prepared += [text[done:start], token]
            places += [(i, i + 1) for i in range(done, start)]
            places += [(start, end)] * len(token)
            done = end
        prepared.append(text[done:])
        places += [(i, i + 1) for i in range(done, len(text))]
        return "".join(prepared), places

    def decode(self, pieces: Iterable[str]) -> str:
        """Puts pieces together to a text as sentencepiece does, and gives line breaks, tabs and spaces back.

        Special tokens stand in the text under their names; bytes that are no UTF-8 become U+FFFD, one for each byte.
        """
        text: list[str] = []
        run = bytearray()
        at_start = self._strip_prefix  # only spaces that the dummy prefix made so far
        for piece in pieces:
            byte = self._bytes.get(piece)
            if byte is not None:
                run.append(byte)
                continue
            if run:
                text.append(_from_utf8(run))
                run.clear()
                at_start = False
            if piece == self._unknown:
                piece = self._unknown_surface
                at_start = False
            elif at_start:
                if piece.startswith(SPACE):
                    piece = piece[1:]
                    at_start = self._strip_all and not piece
                elif piece:
                    at_start = False
            text.append(piece.replace(SPACE, " "))
        if run:
            text.append(_from_utf8(run))
        return _WHITESPACE.sub(lambda match: self._whitespace.get(match[0], match[0]), "".join(text))


_WHITESPACE = re.compile(r"<n>|<\|tab\|>|<\|blank_[0-9]+\|>")


def _not_unicode(texts: Iterable[str]) -> ValueError | None:
    """The error for the first text that cannot be UTF-8, if there is one."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return ValueError(
                f"The text {text[:40]!r} holds half a surrogate pair ({text[error.start]!r} at character "
                f"{error.start}), which is no Unicode: clean it with text.encode('utf-8', 'replace').decode()."
            )
    return None


def _from_utf8(run: bytes | bytearray) -> str:
    """Decodes bytes as sentencepiece does: U+FFFD for each byte that starts nothing valid."""
    text = ""
    rest = bytes(run)
    while rest:
        try:
            return text + rest.decode()
        except UnicodeDecodeError as error:
            text += rest[: error.start].decode() + "\ufffd"
            rest = rest[error.start + 1 :]
    return text


def _to_text(token: Piece, places: list[tuple[int, int]]) -> Piece:
    """Moves a piece from the characters of the prepared text to those of the user's text."""
    if token.start < token.end:
        return token._replace(start=places[token.start][0], end=places[token.end - 1][1])
    place = places[token.start][0] if token.start < len(places) else places[-1][1] if places else 0
    return token._replace(start=place, end=place)


def _spread(tokens: Iterable[Piece]) -> Iterator[Piece]:
    """Gives every piece of one character (its bytes, or what it normalizes to) that character's place.

    Sentencepiece gives it to the last of them only. A lone dummy prefix stands for nothing and keeps its empty place.
    """
    waiting: list[Piece] = []
    for index, token in enumerate(tokens):
        if token.start == token.end and not (index == 0 and token.piece == SPACE):
            waiting.append(token)
            continue
        for early in waiting:
            yield early._replace(end=token.end) if early.start == token.start else early
        waiting.clear()
        yield token
    yield from waiting
