"""GLM-130B's tokenizer for transformers: the ids of the original, from `ice_text.model`.

What is unusual about it:

- `tokenizer(text)` makes the model's input as the original's generation does: the text is cut at its masks, each piece
  is tokenized by itself, [gMASK] is put behind a text without a mask, `</s>` behind a text that does not end in one,
  and `<sop>` closes the input.
- `tokenizer(text, add_special_tokens=False)` gives the ids of the whole text and nothing else.
- Sentencepiece itself cuts the text wherever it is installed, so the ids are the original's in every case, ties and
  rounding included. The saved `tokenizer.json` is for hosts without this class; see `PLAIN_TOKENIZER_NOTE`.

Source: GLM-130B's public repository, `generate.py` (fill_blanks), and SwissArmyTransformer 0.4.12.
"""

import os
import re
from typing import Any, NoReturn

from tokenizers import Encoding
from transformers.tokenization_utils_base import BatchEncoding
from transformers.utils import logging

from .host_versions import warn_of_untested_host  # noqa: F401  # it warns when it is imported
from .tokenization_calls import library_ids
from .tokenization_glm130b_chat import (
    CHAT_TEMPLATE,
    MASK_PATTERN,
    ChatTemplateMixin,
    parts_of_layout,
    written_layout,
)
from .tokenization_glm130b_host import Call, LazyEncodings, RowsBackend, with_answer_types
from .tokenization_icetext import (
    SENTENCEPIECE_ERROR,
    SPECIAL_TOKENS,
    IceTextEncoder,
    Piece,
    check_layout,
    eos_token,
    pad_token,
    parse_ice_text,
    read_ice_text,
    unk_token,
)
from .tokenization_icetext_backend import build_backend
from .tokenization_rows import (
    Mode,
    Row,
    added_token_pattern,
    assemble,
    check_kept,
    parts_at_masks,
    read_input,
    record,
    whole_parts,
)

logger = logging.get_logger(__name__)

PLAIN_TOKENIZER_NOTE = (
    "Without the hf_glm_ernie package the saved tokenizer.json gives the same ids for add_special_tokens=False except "
    "for texts that hold `</s>`, `<pad>` or `<unk>` or are one special token and nothing else, for combining marks, "
    "conjoining jamo and halfwidth kana (the library normalizes by grapheme, sentencepiece by longest prefix), and "
    "where two ways to cut a text tie (runs of one character): 9 of 461 texts that were chosen to be hard. It adds no "
    "[gMASK] and no <sop>: write them yourself."
)

# Named tokens of this model, by the attribute that holds them; their ids are `<attribute>_id`.
NAMED_TOKENS = {
    "mask_token": "[MASK]",
    "gmask_token": "[gMASK]",
    "smask_token": "[sMASK]",
    "sop_token": "<sop>",
    "eop_token": "<eop>",
}


class Glm130bTokenizer(ChatTemplateMixin, RowsBackend):
    """Tokenizer of GLM-130B, built from the original's `ice_text.model`.

    The text of a default call is tokenized as the original's generation does it: masks are recognised, every other
    special token written in it is plain text. Only a whole row in it, `<sop>` right behind a mask, is read as one (see
    the chat file). With `add_special_tokens=False` all eight special tokens are recognised, and none with
    `split_special_tokens=True`, under which a default call, too, takes masks for plain text.

    A pair of texts is a prompt and its answer: prompt as above, up to `<sop>`, then the answer's ids and `<eop>`.
    `token_type_ids`, on request, are 0 for the context and 1 from `<sop>` on.

    Truncation cuts text only: the tokens behind it and a mask at its very end stay, and a cut that would lose a mask
    within the text raises. `truncation_side` is the host's default "right"; "left" keeps what stands before a mask at
    the end.

    Threads may share one tokenizer. An id that no token has, of the model's padded embedding or -100, is None as a
    token and nothing in a text, as in the library.

    Args:
        vocab_file: Path of `ice_text.model`.
        tokenizer_file: Path of a `tokenizer.json` saved before; made from `vocab_file` where there is none.
        num_image_tokens: How many ids come before the first text piece; 20000 in the released model.
        max_blank_length: The longest run of spaces with a token of its own.
        byte_fallback: Whether what has no piece becomes its UTF-8 bytes.
        linebreak: Whether line breaks become the token `<n>`; most sentencepiece models take them for spaces.
        whitespaces: Whether tabs and runs of spaces get tokens of their own; most models make one space of them.
        add_dummy_prefix: Whether a text is tokenized as if a space stood before it, where the model was trained so.
        **kwargs: Passed to `RowsBackend`. `padding_side` is "left" and `model_max_length` 2048 by default.

    Raises:
        FileNotFoundError: there is neither file.
        ImportError: `vocab_file` must be read and sentencepiece or protobuf is missing.
        ValueError: the files are damaged, of an unsupported kind or do not belong together, or a rule other than the
            default is asked for without `vocab_file`.

    `linebreak`, `whitespaces` and `add_dummy_prefix` act in this class; `tokenizer.json` keeps their defaults.
    """

    _auto_class = "AutoTokenizer"  # a saved folder carries the code, for `trust_remote_code=True` elsewhere
    vocab_files_names = {"vocab_file": "ice_text.model", "tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    num_image_tokens: int
    max_blank_length: int
    byte_fallback: bool
    gmask_token: str
    smask_token: str
    sop_token: str
    eop_token: str
    gmask_token_id: int
    smask_token_id: int
    sop_token_id: int
    eop_token_id: int

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        num_image_tokens: int = 20000,
        max_blank_length: int = 80,
        byte_fallback: bool = True,
        linebreak: bool = True,
        whitespaces: bool = True,
        add_dummy_prefix: bool = True,
        **kwargs: Any,
    ) -> None:
        check_layout(num_image_tokens, max_blank_length)
        layout: dict[str, Any] = {
            "num_image_tokens": num_image_tokens,
            "max_blank_length": max_blank_length,
            "byte_fallback": byte_fallback,
        }
        rules = {"linebreak": linebreak, "whitespaces": whitespaces, "add_dummy_prefix": add_dummy_prefix}
        has_backend = tokenizer_file is not None or kwargs.get("tokenizer_object") is not None
        data = None if vocab_file is None else read_ice_text(vocab_file)
        if not has_backend:
            if data is None:
                _no_files(str(kwargs.get("name_or_path", "")))
            proto = parse_ice_text(data, str(vocab_file))
            self._tokenizer = build_backend(data, **layout)
            for name, token in (("eos_token", eos_token), ("pad_token", pad_token), ("unk_token", unk_token)):
                kwargs.setdefault(name, token(proto))
        self._set_defaults(kwargs)
        self._forget_added_tokens()
        super().__init__(vocab_file=vocab_file, tokenizer_file=tokenizer_file, **layout, **rules, **kwargs)
        for name, value in (layout | rules).items():
            setattr(self, name, value)
        self._ice_text = data
        self._encoder = None
        if data is not None and SENTENCEPIECE_ERROR is None:
            self._encoder = IceTextEncoder(data, **layout, **rules)
        self._check_encoder(rules)

    def _set_defaults(self, kwargs: dict[str, Any]) -> None:
        """Passes to the host as arguments what it would not save as class attributes, for hosts without this class."""
        named = kwargs.get("model_specific_special_tokens") or {}
        for name, token in NAMED_TOKENS.items():
            if name not in named:
                kwargs.setdefault(name, token)
        others = [token for token in SPECIAL_TOKENS if token not in NAMED_TOKENS.values()]
        given = kwargs.get("extra_special_tokens") or []
        if not isinstance(given, dict):
            kwargs["extra_special_tokens"] = [*given, *(token for token in others if token not in map(str, given))]
        kwargs.setdefault("padding_side", self.padding_side)
        kwargs.setdefault("model_input_names", list(self.model_input_names))
        kwargs.setdefault("model_max_length", 2048)
        if kwargs.get("chat_template") is None:
            kwargs["chat_template"] = CHAT_TEMPLATE

    def _check_encoder(self, rules: dict[str, bool]) -> None:
        """Makes sure that sentencepiece and the backend have one vocabulary, or says what is missing."""
        if self._encoder is not None:
            expected, actual = self._encoder.size, self.vocab_size
            if expected != actual:
                raise ValueError(
                    f"ice_text.model and tokenizer.json do not belong together: with num_image_tokens="
                    f"{self.num_image_tokens}, max_blank_length={self.max_blank_length} and byte_fallback="
                    f"{self.byte_fallback} the one has {expected} tokens, the other {actual}. Give the arguments the "
                    "tokenizer was made with, or remove tokenizer.json to have it made anew."
                )
            return
        error: type[Exception] = ValueError  # the host would hide an OSError's text
        missing = f"the file {self.vocab_files_names['vocab_file']} beside it"
        if SENTENCEPIECE_ERROR is not None:
            error, missing = ImportError, f"sentencepiece and protobuf ({SENTENCEPIECE_ERROR})"
        if not all(rules.values()):
            raise error(f"linebreak, whitespaces and add_dummy_prefix other than True need {missing}.")
        logger.warning_once(
            f"Glm130bTokenizer runs on tokenizer.json alone, for want of {missing}. {PLAIN_TOKENIZER_NOTE}"
        )

    @classmethod
    def from_ice_text_model(
        cls,
        path: str | os.PathLike[str],
        num_image_tokens: int = 20000,
        max_blank_length: int = 80,
        byte_fallback: bool = True,
        **kwargs: Any,
    ) -> "Glm130bTokenizer":
        """Builds the tokenizer from the original's sentencepiece model; arguments and errors as for the class."""
        return cls(
            vocab_file=path,
            num_image_tokens=num_image_tokens,
            max_blank_length=max_blank_length,
            byte_fallback=byte_fallback,
            **kwargs,
        )

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Hands the files to `__init__` as they are (the host would rebuild the backend from its vocabulary)."""
        if kwargs.get("vocab_file") is None and kwargs.get("tokenizer_file") is None:
            _no_files(str(kwargs.get("name_or_path", "")))
        return kwargs

    def _encode_call(self, call: Call) -> BatchEncoding:
        """Makes the rows of one call; see `RowsBackend`.

        Raises:
            ValueError: the text is of no accepted type, holds two kinds of mask, or cannot be truncated as asked.
        """
        split = self.split_special_tokens if call.split_special_tokens is None else call.split_special_tokens
        tail = (self.gmask_token, self.sop_token) if call.add_special_tokens else ()
        special = not call.add_special_tokens and not split and call.chat != "own"
        at_masks = call.chat is not None or (call.add_special_tokens and not split)
        mode = Mode(special, split, tail, at_masks)
        is_batched, given = read_input(call.text, call.text_pair, call.is_split_into_words)
        rows = [self._row(item, mode, call.is_split_into_words) for item in given]
        all_ids = self._tokenize(rows, mode)
        n_sequences = 1 + any(isinstance(row, Row) and row.second is not None for row in rows)
        too_long = [call.truncates and len(ids) > (call.max_length or 0) for ids in all_ids]
        if call.wants_only_ids and not any(too_long):
            length = call.padded_length(all_ids)
            lazy = LazyEncodings(
                len(rows), lambda i: self._padded_record(self._records(rows[i], mode)[0], length, call.options)
            )
            return self._batch(self._padded(all_ids, length, call.options), lazy, is_batched, n_sequences, call)
        made = self._truncated(rows, too_long, mode, call)
        flat = [window for windows in made for window in windows]
        length = call.padded_length(flat)
        flat = [self._padded_record(window, length, call.options) for window in flat]
        data = self._columns(flat, call.options)
        if call.return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = [i for i, windows in enumerate(made) for _ in windows]
        return self._batch(data, flat, is_batched or call.return_overflowing_tokens, n_sequences, call)

    def _truncated(self, rows: list[str | Row], too_long: list[bool], mode: Mode, call: Call) -> list[list[Encoding]]:
        """The records of each row: one, and those of what was cut off where they are asked for."""
        truncation = call.truncation(self.truncation_side)
        made = [self._records(row, mode, truncation if cut else None) for row, cut in zip(rows, too_long, strict=True)]
        if not call.return_overflowing_tokens:
            made = [windows[:1] for windows in made]
        closers = (str(self.eop_token), str(self.eos_token))
        for row, windows in zip(rows, made, strict=True):
            check_kept(
                row, windows, self._token_id, closers, f"max_length={call.max_length} on the {self.truncation_side}"
            )
        return made

    def _row(self, item: Any, mode: Mode, as_words: bool) -> str | Row:
        """Cuts a row of the input into the parts that are tokenized by themselves, and chooses what follows them.

        A text in one part remains a string: a batch of many pays for each object that it makes.
        """
        if isinstance(item, str):
            if not mode.at_masks or "MASK]" not in item:
                return item
            item = [item], None
        first, second = item
        answer = None if second is None else whole_parts(second, as_words)
        closing = (self.eop_token,) if mode.tail and second is not None else ()
        layout = None
        if mode.at_masks and second is None and not as_words:
            names = str(self.sop_token), str(self.eop_token), str(self.eos_token)
            layout = written_layout(first[0], *names, strict=not mode.special)
        if layout is None and (not mode.at_masks or mode.special):
            return Row(whole_parts(first, as_words), mode.tail, answer, closing)
        if layout is None:
            parts = parts_at_masks(first, as_words, MASK_PATTERN, self._ids_of_masks())
        else:
            parts = parts_of_layout(layout, names[0], {n: self._token_id(n) for n in names}, self._ids_of_masks())
        masks = {part.text for part in parts if part.is_mask and MASK_PATTERN.fullmatch(part.text)}
        if len(masks) > 1:
            raise ValueError(
                f"The text {' '.join(first)[:60]!r} holds two kinds of mask, {' and '.join(sorted(masks))}: GLM-130B "
                "fills one kind at a time. Keep one kind in a text, or pass split_special_tokens=True if they are not "
                "meant as masks."
            )
        if layout is not None:
            return Row(parts, laid_out=True)
        if not masks or not mode.tail:
            return Row(parts, mode.tail, answer, closing)
        end = () if parts[-1].is_mask else (self.eos_token,)
        return Row(parts, (*end, self.sop_token), answer, closing)

    def _ids_of_masks(self) -> dict[str, int]:
        return {mask: self._token_id(mask) for mask in ("[MASK]", "[gMASK]", "[sMASK]")}

    def _token_id(self, token: str | None) -> int:
        """The id of one token, remembered: the host's way takes as long as tokenizing a word.

        Raises:
            ValueError: there is no such token.
        """
        known = self._known_ids  # another thread may add tokens meanwhile
        if token not in known:
            index = None if token is None else self.backend_tokenizer.token_to_id(token)
            if index is None:
                raise ValueError(
                    f"The model's input needs the token {token!r}, which is not in the vocabulary: set the named "
                    f"tokens, now {self.special_tokens_map}."
                )
            known[token] = index
        return known[token]

    def _tokenize(self, rows: list[str | Row], mode: Mode) -> list[list[int]]:
        """The ids of each row before truncation; all texts of the batch are tokenized at once."""
        texts: list[str] = []
        for row in rows:
            if isinstance(row, str):
                texts.append(row)
            else:
                texts += [part.text for part in row.texts()]
        ids_of_texts = iter(self._ids(texts, mode.special, mode.split))
        tail = [self._token_id(token) for token in mode.tail]
        all_ids = []
        for row in rows:
            if isinstance(row, str):
                ids = next(ids_of_texts)
                ids += tail
            else:
                for part in row.texts():
                    part.ids = next(ids_of_texts)
                ids = [index for part in row.first for index in part.ids]
                ids += map(self._token_id, row.tail)
                ids += [index for part in row.second or () for index in part.ids]
                ids += map(self._token_id, row.closing)
            all_ids.append(ids)
        return all_ids

    def _ids(self, texts: list[str], special: bool, split: bool) -> list[list[int]]:
        """Tokenizes texts, each by itself.

        Args:
            texts: The texts.
            special: Whether the eight special tokens are recognised in them.
            split: Whether special tokens that the user added are plain text.

        Returns:
            For each text its ids.
        """
        if self._encoder is None:
            return [[piece.id for piece in row] for row in self._backend_pieces(texts, special)]
        added = self._added_tokens(split)
        if added is None or not any(map(added.search, texts)):
            return self._encoder.ids(texts, special)
        return [[piece.id for piece in self._pieces(text, special, split)] for text in texts]

    def _pieces(self, text: str, special: bool, split: bool) -> list[Piece]:
        """As `_ids`, for one text, with names and places. Tokens that the user added cut the text."""
        if self._encoder is None:
            return self._backend_pieces([text], special)[0]
        added = self._added_tokens(split)
        matches = [] if added is None else list(added.finditer(text))
        pieces: list[Piece] = []
        done = 0
        for index, match in enumerate([*matches, None]):
            segment = text[done:] if match is None else text[done : match.start()]
            if segment:
                own = self._encoder.pieces(segment, special, after_token=index > 0, before_token=match is not None)
                pieces += [p._replace(start=p.start + done, end=p.end + done) for p in own]
            if match is not None:
                name = match[match.lastindex or 0]
                pieces.append(Piece(self._token_id(name), name, *match.span(match.lastindex or 0)))
                done = match.end()
        return pieces

    def _backend_pieces(self, texts: list[str], special: bool) -> list[list[Piece]]:
        """The library's tokenization, where sentencepiece is not to be had."""
        backend = self.backend_tokenizer
        with self._calls:
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = not special
            rows = backend.encode_batch(texts, add_special_tokens=False)
        return [
            [Piece(index, token, *span) for index, token, span in zip(e.ids, e.tokens, e.offsets, strict=True)]
            for e in rows
        ]

    def _added_tokens(self, split: bool) -> re.Pattern[str] | None:
        """The pattern of the tokens that the user added, each in a group of its own, or None without any."""
        patterns = self._added_patterns
        if split not in patterns:
            known = self._encoder.reserved if self._encoder is not None else frozenset()
            tokens = [
                token
                for token in self.added_tokens_decoder.values()
                if token.content not in known and not (split and token.special)
            ]
            tokens.sort(key=lambda token: -len(token.content))
            patterns[split] = re.compile("|".join(map(added_token_pattern, tokens))) if tokens else None
        return patterns[split]

    def _forget_added_tokens(self) -> None:
        self._added_patterns: dict[bool, re.Pattern[str] | None] = {}
        self._added_names: dict[int, str] = {}
        self._known_ids: dict[str | None, int] = {}

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        self._forget_added_tokens()
        return super()._add_tokens(new_tokens, special_tokens=special_tokens)

    def _encode_without_added_tokens(self, text: str) -> list[int]:
        return self._ids([text], special=False, split=True)[0]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens a default call adds to a text without a mask: [gMASK] and `<sop>`, and `<eop>` to a pair."""
        return 3 if pair else 2

    def _records(self, row: str | Row, mode: Mode, truncation: dict[str, Any] | None = None) -> list[Encoding]:
        """Makes the library's record of a row and, where it is truncated, of each stretch that was cut off."""
        if isinstance(row, str):
            row = Row(whole_parts([row], as_words=False), mode.tail)
        first, tail = list(row.first), list(row.tail)
        kept = bool(tail) or [part.text for part in first[-1:]] == [self.sop_token]
        while truncation is not None and kept and first and first[-1].is_mask:
            tail.insert(0, first.pop().text)  # kept by the cut; it loses its place in the text
        made = []
        for parts in (first, row.second or []):
            tokens = []
            for part in parts:
                mask = [Piece(part.ids[0], part.text, 0, len(part.text))] if part.is_mask else None
                pieces = mask or self._pieces(part.text, mode.special, mode.split)
                if part.opens and pieces:
                    pieces[0] = pieces[0]._replace(start=0, end=max(1, pieces[0].end))
                tokens += [(*piece, part) for piece in pieces]
            made.append(record(parts, tokens))
        second = None if row.second is None else made[1]
        added = {token: self._token_id(token) for token in (*tail, *row.closing)}
        windows = assemble(made[0], second, tail, row.closing, added, self.sop_token, truncation)
        return [with_answer_types(w, self._token_id(self.sop_token)) for w in windows] if row.laid_out else windows

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or of each of several; None where an id has none.

        Added tokens have the names that they were added by (the backend gives their normalized form).
        """
        if not self._added_names:
            self._added_names = {index: token.content for index, token in self.added_tokens_decoder.items()}
        names, backend, ids = self._added_names, self.backend_tokenizer, library_ids(ids)
        if isinstance(ids, int):
            return names.get(ids) or backend.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [names.get(index) or backend.id_to_token(index) for index in ids if index not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Joins tokens to a text, as `decode` does; None, the token of an id that has none, is left out."""
        if self._encoder is None:
            return super().convert_tokens_to_string(tokens)
        return self._encoder.decode(token for token in tokens if token is not None)

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        if self._encoder is None:
            return super()._decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
        ids = token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids
        names = self.convert_ids_to_tokens([ids] if isinstance(ids, int) else ids, skip_special_tokens)
        text = self.convert_tokens_to_string(names)
        clean_up = clean_up_tokenization_spaces
        if clean_up is None:
            clean_up = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up else text

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:  # type: ignore[override]
        """Writes `ice_text.model`, byte for byte, where it is at hand; returns the paths written."""
        if self._ice_text is None:
            return ()
        name = (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        path = os.path.join(save_directory, name)
        with open(path, "wb") as file:
            file.write(self._ice_text)
        return (path,)

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        return names + self.save_vocabulary(str(save_directory), filename_prefix)

    def train_new_from_iterator(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the vocabulary is a sentencepiece model's.

        Raises:
            NotImplementedError: always, with the way to a vocabulary of one's own.
        """
        raise NotImplementedError(
            "Train a sentencepiece model (pad_id=3, user_defined_symbols=['<n>']) and load it with "
            "Glm130bTokenizer.from_ice_text_model(path, num_image_tokens=0)."
        )


def _no_files(where: str) -> NoReturn:
    raise FileNotFoundError(
        f"Neither tokenizer.json nor ice_text.model was found{f' in {where!r}' if where else ''}: give a folder that "
        "holds one of them, or use Glm130bTokenizer.from_ice_text_model('.../ice_text.model')."
    )


__all__ = ["PLAIN_TOKENIZER_NOTE", "Glm130bTokenizer"]
