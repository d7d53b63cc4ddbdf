"""ERNIE 3.0's tokenizer for transformers: PaddleNLP's `ErnieTokenizer`, token for token, on the `tokenizers` library.

What is unusual about it:

- Symbols are words of their own ("25℃" is 25 and ℃), unlike in BERT; unassigned characters vanish.
- `[UNK]` is the last token of the vocabulary, 39979; `$` has two lines and the id of the later one, 18005, so that id
  12084 has no token.
- `offset_mapping` holds true places; PaddleNLP guesses those of unknown words, and `exact_offsets=False` gives its
  guesses.

Source: PaddleNLP 2.8.1, `transformers/ernie/tokenizer.py` and the base classes of its tokenizers.
"""

import os
from itertools import groupby
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer, processors
from transformers.tokenization_utils_base import BatchEncoding, TruncationStrategy
from transformers.utils import PaddingStrategy, logging

from .host_versions import warn_of_untested_host  # noqa: F401  # it warns when it is imported
from .tokenization_calls import SharedBackend
from .tokenization_ernie_added import (
    check_content,
    read_plain,
    read_special,
    unmarked,
    with_added_tokens,
)
from .tokenization_ernie_offsets import Spans, index_of, kept_lengths, search_offsets, token_marks
from .tokenization_ernie_unicode import build_normalizer, build_pre_tokenizer, without_half_pairs
from .tokenization_ernie_vocabulary import (
    check_special_tokens,
    open_backend,
    read_vocabulary,
    set_vocabulary,
    with_holes,
    without_holes,
    word_piece,
    write_vocabulary,
)

logger = logging.get_logger(__name__)


class ErnieTokenizer(SharedBackend):
    """Tokenizer of the released ERNIE 3.0 encoders and of UIE and UTC, built from their `vocab.txt`.

    Equal to PaddleNLP's tokenizer as `from_pretrained` makes it: `[MASK]` and the other special tokens written in a
    text are one token each. Where PaddleNLP differs:

    - it returns no `attention_mask` by default, and on request `position_ids` and `seq_len`, which transformers does
      not know;
    - its first added token gets the id 39979, which is `[UNK]`'s; here added tokens start at 39980. An
      `added_tokens.json` with such ids is read, with a warning that names the ids;
    - what is in the vocabulary is no added token, whatever its case; there `[MASK]`, added again, is a new `[mask]`;
    - a special token is found as typed only; there one in small letters, `<e1>`, is found in `<E1>`, too;
    - an `AddedToken` with `normalized=False` keeps its capital letters and matches as typed; there it does not;
    - an added token that begins or ends with a blank is found beside another one, too;
    - ids without a token raise an error there. `convert_ids_to_tokens` gives None for them (negative ones as well),
      `decode` leaves them out.

    `len(tokenizer)` and `vocab_size` count tokens, 39979, as PaddleNLP's do; the highest id is 39979, so a model needs
    39980 rows (the released ones have 40000). The first added token fills id 12084 with a token that no text holds:
    from then on `len(tokenizer)` is the highest id + 1, and right for `resize_token_embeddings`.

    Special tokens match as they are typed. Other added tokens match in the lowercased text with its accents, and are
    named in small letters: `add_tokens("Café")` makes `café` of "CAFÉ", not of "cafe". With `do_lower_case=False`
    they, too, match as typed. `additional_special_tokens` of PaddleNLP's files are special, in `added_tokens.json` or
    not.

    Half a surrogate pair in a text is dropped. Threads may share one tokenizer: a lock lets in one call at a time,
    since padding and truncation are the library's state.

    Truncation is PaddleNLP's: of a pair of equally long texts the second loses the odd token, and a text that would
    lose all its tokens stays as it is, longer than `max_length`, with an error in the log.

    A saved folder opens without this package, too: `AutoTokenizer` takes `tokenizer.json` then and gives the same ids
    and places. Only there pairs are truncated in the library's way, token types of pairs without special tokens are 0
    and 1, a second text that is empty counts only in a batch, id 12084 is filled, half a surrogate pair is an error,
    `convert_ids_to_tokens` names added tokens with capital letters with a word joiner, U+2060, behind, and offsets are
    always the exact ones. `vocab.txt` is saved beside it for PaddleNLP.

    Args:
        vocab_file: Path of `vocab.txt`, one token a line or `token<tab>id`.
        do_lower_case: Whether text is lowercased and loses its accents.
        unk_token: Stands for unknown words.
        sep_token: Ends each text.
        pad_token: Fills rows up.
        cls_token: Starts each row.
        mask_token: Stands for what a masked language model is to find.
        exact_offsets: Whether `offset_mapping` holds the true places of unknown words. With False it holds PaddleNLP's
            guesses, which may cover half the text, and move the known words behind an unknown one.
        second_type: The token type of a second text: 1, or 0 for a model of one token type
            (`ernie-3.0-tiny-mini-v2-en`), in whose table 1 is no row.
        tokenizer_file: Path of a `tokenizer.json` saved before; it is preferred to `vocab_file`.
        **kwargs: Passed to the host's `TokenizersBackend`. `clean_up_tokenization_spaces` is True by default.

    Raises:
        FileNotFoundError: `vocab_file` or `tokenizer_file` does not exist.
        ValueError: there is neither file, a file is damaged or of another kind, a special token is missing in it, or
            `second_type` is neither 0 nor 1.
    """

    vocab_files_names = {"vocab_file": "vocab.txt", "tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    padding_side = "right"

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        do_lower_case: bool = True,
        unk_token: str | AddedToken = "[UNK]",
        sep_token: str | AddedToken = "[SEP]",
        pad_token: str | AddedToken = "[PAD]",
        cls_token: str | AddedToken = "[CLS]",
        mask_token: str | AddedToken = "[MASK]",
        exact_offsets: bool = True,
        second_type: int = 1,
        tokenizer_file: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        special_tokens: dict[str, str | AddedToken] = {
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
            "mask_token": mask_token,
        }
        contents = {name: str(token) for name, token in special_tokens.items()}
        given = kwargs.pop("tokenizer_object", None)
        if given is not None:
            kwargs.pop("added_tokens_decoder", None)  # of the tokenizer it was trained from; it has its own
        opened = open_backend(
            given, tokenizer_file, "ErnieTokenizer", lambda: _backend_from_vocabulary(vocab_file, contents)
        )
        backend = _prepared(with_added_tokens(opened, do_lower_case), contents, second_type)
        vocabulary = with_holes(backend.get_vocab(with_added_tokens=False))
        if set(backend.get_added_tokens_decoder()) <= set(vocabulary.values()):
            set_vocabulary(backend, vocabulary)
        self._tokenizer = backend
        self._cleaner = build_normalizer(do_lower_case)
        self._cleaned: dict[str, str] = {}
        self.do_lower_case = do_lower_case
        kwargs.setdefault("clean_up_tokenization_spaces", True)
        kwargs.setdefault("model_input_names", list(self.model_input_names))
        super().__init__(
            vocab_file=vocab_file,
            do_lower_case=do_lower_case,
            exact_offsets=exact_offsets,
            second_type=second_type,
            **special_tokens,
            **kwargs,
        )
        self.exact_offsets = exact_offsets
        self.second_type = second_type
        self._check_added_ids(kwargs.get("added_tokens_decoder") or {})

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Hands the files to `__init__` as they are (the host would rebuild the backend from its vocabulary).

        But `additional_special_tokens`, which PaddleNLP's files have, are special in `added_tokens.json`, too.
        """
        further = kwargs.pop("additional_special_tokens", None) or []
        special = [*(kwargs.get("extra_special_tokens") or []), *further]
        special = [AddedToken(**one, special=True) if isinstance(one, dict) else one for one in special]
        if special:
            kwargs["extra_special_tokens"] = list({str(token): token for token in special}.values())
        names = {str(token) for token in special}
        added = kwargs.get("added_tokens_decoder") or {}
        kwargs["added_tokens_decoder"] = {
            index: read_special(token) if str(token) in names else token for index, token in added.items()
        }
        return kwargs

    def _check_added_ids(self, added_tokens: dict[int, AddedToken]) -> None:
        """Compares the ids that the files give to added tokens with the ids that they got."""
        moved = {}
        for index, token in added_tokens.items():
            now = self.backend_tokenizer.token_to_id(self._added_name(str(token)))
            if now != int(index):
                moved[str(token)] = (int(index), now)
        if not moved:
            return
        listed = ", ".join(f"{token!r} {index} -> {now}" for token, (index, now) in moved.items())
        holes = self._holes()
        if any(now != index + holes for index, now in moved.values()):
            raise ValueError(
                f"The files of {self.name_or_path!r} give ids to added tokens that cannot be kept: {listed}. Added "
                "tokens must follow the vocabulary's highest id without gaps; correct added_tokens.json."
            )
        logger.warning_once(
            f"PaddleNLP gave added tokens ids that other tokens have; they are moved by {holes}: {listed}. In a model "
            "that was trained with them, the embedding rows must move along: the converter moves them; by hand, copy "
            "the rows from the old ids to the new ones, highest first."
        )

    def _vocabulary(self) -> dict[str, int]:
        """The ids of the vocabulary file, without added tokens."""
        return with_holes(self.backend_tokenizer.get_vocab(with_added_tokens=False))

    def _holes(self) -> int:
        """How many ids below the vocabulary's highest have no token."""
        vocabulary = self._vocabulary()
        return max(vocabulary.values()) + 1 - len(vocabulary)

    def paddlenlp_ids(self) -> dict[str, int]:
        """The ids that PaddleNLP gives to the added tokens: it counts tokens, and takes the highest id for the last.

        The first is 39979, as `[UNK]`, with the released vocabulary. Tokens of the vocabulary are not among them.
        """
        vocabulary, holes = self._vocabulary(), self._holes()
        return {token: index - holes for token, index in self.get_added_vocab().items() if token not in vocabulary}

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        known = self.get_vocab()
        tokens: list[AddedToken] = []
        for given in filter(str, new_tokens):
            check_content(str(given))
            token = given if isinstance(given, AddedToken) else AddedToken(given, normalized=not special_tokens)
            if special_tokens or token.special:
                tokens.append(read_special(token))
            elif str(given) not in known and str(token := read_plain(token, self.do_lower_case)) not in known:
                tokens.append(token)
        if any(str(token) not in known for token in tokens):
            set_vocabulary(self.backend_tokenizer, without_holes(self._vocabulary()))
        before = len(self.get_vocab())
        for special, group in groupby(tokens, key=lambda token: token.special):  # ids follow the order given
            if special:
                super()._add_tokens(list(group), special_tokens=True)
            else:
                self._tokenizer = with_added_tokens(self.backend_tokenizer, self.do_lower_case, list(group))
        return len(self.get_vocab()) - before

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or of each of several; of an added one also by the name that it was added by."""
        if isinstance(tokens, str):
            return super().convert_tokens_to_ids(self._added_name(tokens))
        return super().convert_tokens_to_ids(tokens and [self._added_name(one) for one in tokens])

    def _added_name(self, token: str) -> str:
        """The name of a token; an added one has small letters where text is lowercased."""
        backend = self.backend_tokenizer
        if not self.do_lower_case or backend.token_to_id(token) is not None:
            return token
        index = backend.token_to_id(token.lower())
        return token.lower() if index in backend.get_added_tokens_decoder() else token

    def train_new_from_iterator(self, *args: Any, **kwargs: Any) -> "ErnieTokenizer":
        """The host's, on text without the marks of this tokenizer's added tokens, which the new one does not have."""
        backend = self.backend_tokenizer
        marking = backend.normalizer
        backend.normalizer = self._cleaner
        try:
            return super().train_new_from_iterator(*args, **kwargs)
        finally:
            backend.normalizer = marking

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or of each of several; None where an id has none."""
        names = super().convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens)
        return [_named(one) for one in names] if isinstance(names, list) else _named(names)

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """The tokens of a text, or of two, without special tokens around them unless asked for."""
        return [unmarked(name) for name in super().tokenize(text, pair, add_special_tokens, **kwargs)]

    def _encode(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        text, text_pair = without_half_pairs(text), without_half_pairs(text_pair)
        split = options.get("is_split_into_words", False)
        if text_pair is None and not split and _are_pairs(text):
            text, text_pair = (list(side) for side in zip(*text, strict=True))
        if self._host_agrees(text_pair, options):
            return super()._encode(text, text_pair, **options)
        is_batched = isinstance(text[0] if split and text else text, list | tuple)
        texts = text if is_batched else [text]
        pairs = text_pair if is_batched or text_pair is None else [text_pair]
        whole = super()._encode(
            texts,
            pairs,
            add_special_tokens=options.get("add_special_tokens", True),
            is_split_into_words=split,
            split_special_tokens=options.get("split_special_tokens"),
            verbose=False,
        )
        inputs = [(one, None) for one in texts] if pairs is None else list(zip(texts, pairs, strict=True))
        return self._finished(whole.encodings or [], inputs, is_batched, options)

    def _host_agrees(self, text_pair: Any, options: dict[str, Any]) -> bool:
        """Whether the library itself does all that a call asks for as PaddleNLP does."""
        if options.get("return_offsets_mapping") and not self.exact_offsets and not options.get("is_split_into_words"):
            return False
        special = options.get("add_special_tokens", True)
        limit = _limit(options)
        if text_pair is None:
            return limit is None or limit > (self.num_special_tokens_to_add() if special else 0)
        return special and limit is None and text_pair != ""

    def _finished(
        self, encodings: list[Encoding], inputs: list[tuple[Any, Any]], is_batched: bool, options: dict[str, Any]
    ) -> BatchEncoding:
        """Truncates, places and pads whole rows as PaddleNLP does.

        Args:
            encodings: The library's record of each row, neither truncated nor padded.
            inputs: The text and the second text, or None, of each row.
            is_batched: Whether the caller gave a list of them.
            options: The arguments of the call, as the host names them.
        """
        data: dict[str, list[Any]] = {}
        rows: list[Encoding] = []
        samples: list[int] = []
        all_rows = options.get("return_overflowing_tokens", False)
        known = self.exact_offsets or options.get("is_split_into_words", False)
        special = options.get("add_special_tokens", True)
        for index, whole in enumerate(encodings):
            encoding = self._truncated(whole, inputs[index], options)
            new = [encoding, *(encoding.overflowing if all_rows else ())]
            if options.get("return_offsets_mapping"):
                spans = (
                    [row.offsets for row in new]
                    if known
                    else self._searched(encoding, new, encoding is whole, inputs[index], special)
                )
                data.setdefault("offset_mapping", []).extend(spans)
            rows += new
            samples += [index] * len(new)
        self._pad_rows(rows, data.get("offset_mapping"), options)
        wanted = ("return_token_type_ids", "return_attention_mask", "return_special_tokens_mask", "return_length")
        for row in rows:
            columns, _ = self._convert_encoding(row, **{name: options[name] for name in wanted if name in options})
            for name, values in columns.items():
                data.setdefault(name, []).extend(values)
            self._eventual_warn_about_too_long_sequence(
                row.ids, options.get("max_length"), options.get("verbose", True)
            )
        if not special and "token_type_ids" in data:
            data["token_type_ids"] = [[0] * len(row) for row in data["token_type_ids"]]
        if all_rows:
            data["overflow_to_sample_mapping"] = samples
        tensors = options.get("return_tensors")
        if not is_batched and tensors is None and not all_rows:
            data = {name: values[0] for name, values in data.items()}
        return BatchEncoding(data, rows, tensor_type=tensors)

    def _truncated(self, whole: Encoding, inputs: tuple[Any, Any], options: dict[str, Any]) -> Encoding:
        """A row of at most `max_length` tokens; the row itself where it is one, or where PaddleNLP gives up.

        Raises:
            ValueError: `stride` is not smaller than what is kept of a text.
        """
        limit = _limit(options)
        if not limit or len(whole) <= limit:
            return whole
        split, strategy = options.get("is_split_into_words", False), options["truncation_strategy"].value
        encode = self.backend_tokenizer.encode
        parts = [encode(inputs[0], is_pretokenized=split, add_special_tokens=False)]
        if inputs[1] is not None:  # behind a first text of nothing, so that all its windows have type 1
            parts.append(encode([] if split else "", inputs[1], is_pretokenized=split, add_special_tokens=False))
        lengths = [len(part) for part in parts]
        kept = kept_lengths(lengths[0], lengths[1] if len(parts) > 1 else None, len(whole) - limit, strategy)
        if sum(length or 0 for length in kept) == sum(lengths):
            logger.error(
                f"Truncation {strategy!r} would leave nothing of texts of {lengths} tokens within max_length={limit}: "
                "the row stays longer, as PaddleNLP leaves it. Choose another strategy or a higher max_length."
            )
            return whole
        stride = options.get("stride", 0)
        for part, length in zip(parts, kept, strict=False):
            if length is None or length == len(part):
                continue
            if stride and stride >= length:
                raise ValueError(
                    f"stride={stride} must be smaller than the {length} tokens that max_length={limit} leaves of a "
                    f"text of {len(part)} tokens with truncation={strategy!r}."
                )
            part.truncate(length, stride=stride, direction=self.truncation_side)
        second = parts[1] if len(parts) > 1 else None
        special = options.get("add_special_tokens", True)
        return self.backend_tokenizer.post_process(parts[0], second, add_special_tokens=special)

    def _pad_rows(self, rows: list[Encoding], offsets: list[Spans] | None, options: dict[str, Any]) -> None:
        """Fills rows, and their offsets with (0, 0), up to the length that the call asks for."""
        strategy = options.get("padding_strategy", PaddingStrategy.DO_NOT_PAD)
        if strategy == PaddingStrategy.DO_NOT_PAD or not rows:
            return
        side = options.get("padding_side") or self.padding_side
        length = max(map(len, rows)) if strategy == PaddingStrategy.LONGEST else options["max_length"]
        multiple = options.get("pad_to_multiple_of") or 1
        length = -(-length // multiple) * multiple
        for index, row in enumerate(rows):
            if offsets is not None:
                fill: Spans = [(0, 0)] * (length - len(row))
                offsets[index] = fill + offsets[index] if side == "left" else offsets[index] + fill
            row.pad(
                length,
                direction=side,
                pad_id=self.pad_token_id,
                pad_type_id=self.pad_token_type_id,
                pad_token=self.pad_token,
            )

    def _searched(
        self, encoding: Encoding, rows: list[Encoding], complete: bool, inputs: tuple[Any, Any], special: bool
    ) -> list[Spans]:
        """PaddleNLP's offsets of the rows of one input.

        Args:
            encoding: The input's first row, with the others as its `overflowing`.
            rows: The rows to place.
            complete: Whether nothing of the input was cut off.
            inputs: The text and the second text, or None.
            special: Whether special tokens stand around the texts.
        """
        offsets: list[Spans] = [list(row.offsets) for row in rows]
        certain = {self.cls_token_id, self.sep_token_id, self.pad_token_id, self.mask_token_id}
        guessed = set(self.added_tokens_decoder) - certain
        if all(guessed.isdisjoint(row.ids) for row in (encoding, *encoding.overflowing)):
            return offsets  # the search would find every token where it is
        # The library loses a row's sequence ids when it joins truncated texts without special tokens.
        kinds = [row.sequence_ids if special else row.type_ids for row in rows]
        for kind, text in enumerate(inputs):
            if text is None:
                continue
            places = [[at for at, one in enumerate(row) if one == kind] for row in kinds]
            whole, at = encoding, places[0]
            if not complete:
                whole = self.backend_tokenizer.encode(text, add_special_tokens=False)
                at = list(range(len(whole)))
            names, marks = whole.tokens, token_marks(whole, at)
            tokens = [unmarked(names[one]) for one in at]
            spans = search_offsets(text, tokens, self.all_special_tokens, self.do_lower_case, self._clean)
            if spans is None:
                continue
            for row, own, place in zip(rows, offsets, places, strict=True):
                first = index_of(token_marks(row, place), marks)
                for one in place:
                    own[one] = spans[first + one - place[0]]
        return offsets

    def _clean(self, char: str) -> str:
        """What becomes of one character of a text before it is cut into words."""
        if char not in self._cleaned:
            self._cleaned[char] = self._cleaner.normalize_str(char)
        return self._cleaned[char]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:  # type: ignore[override]
        """Writes `vocab.txt`, of which PaddleNLP reads the same ids; returns the path.

        A line whose id has no token holds what it held in the file the tokenizer was made from, or else the last
        token: PaddleNLP lets a later line override it. Added tokens are not in the file.
        """
        vocabulary = self._vocabulary()
        doubled: dict[int, str] = {}
        source = getattr(self, "vocab_file", None)
        if source is not None and os.path.isfile(source):
            read, doubled = read_vocabulary(source)
            doubled = doubled if read == vocabulary else {}
        return write_vocabulary(save_directory, filename_prefix, vocabulary, doubled)

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        backend = self.backend_tokenizer
        vocabulary = backend.get_vocab(with_added_tokens=False)
        # tokens may be added to the file by hosts without this class
        set_vocabulary(backend, without_holes(vocabulary))
        try:
            names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        finally:
            set_vocabulary(backend, vocabulary)
        return names + self.save_vocabulary(str(save_directory), filename_prefix)


def _named(name: str | None) -> str | None:
    return None if name is None else unmarked(name)


def _are_pairs(text: Any) -> bool:
    """Whether a batch is given as pairs of texts in one list."""
    return isinstance(text, list | tuple) and bool(text) and all(isinstance(one, list | tuple) for one in text)


def _limit(options: dict[str, Any]) -> int | None:
    """The highest number of tokens a call allows a row to have, or None."""
    strategy = options.get("truncation_strategy", TruncationStrategy.DO_NOT_TRUNCATE)
    return None if strategy == TruncationStrategy.DO_NOT_TRUNCATE else options.get("max_length")


def _backend_from_vocabulary(path: str | os.PathLike[str] | None, special_tokens: dict[str, str]) -> Tokenizer:
    if path is None:
        raise ValueError(
            "ErnieTokenizer found neither vocab.txt nor tokenizer.json: give vocab_file, or a folder that holds one "
            "of them to ErnieTokenizer.from_pretrained."
        )
    vocabulary, _ = read_vocabulary(path)
    check_special_tokens(vocabulary, special_tokens.values(), str(path))
    return word_piece(vocabulary, special_tokens["unk_token"])


def _prepared(backend: Tokenizer, special_tokens: dict[str, str], second_type: int) -> Tokenizer:
    """The library's tokenizer with ERNIE's words, its special tokens and what stands around texts."""
    if second_type not in (0, 1):
        raise ValueError(f"second_type is {second_type!r}; the token type of a second text is 0 or 1.")
    tokens = [AddedToken(token, special=True, normalized=False) for token in special_tokens.values()]
    backend.pre_tokenizer = build_pre_tokenizer()
    backend.add_special_tokens(tokens)
    backend.post_processor = _template(backend, special_tokens["cls_token"], special_tokens["sep_token"], second_type)
    return backend


def _template(backend: Tokenizer, cls_token: str, sep_token: str, second_type: int) -> processors.TemplateProcessing:
    """`[CLS] A [SEP]` of type 0 and, behind it, `B [SEP]` of the second type."""
    return processors.TemplateProcessing(
        single=f"{cls_token}:0 $A:0 {sep_token}:0",
        pair=f"{cls_token}:0 $A:0 {sep_token}:0 $B:{second_type} {sep_token}:{second_type}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls_token, sep_token)],
    )


__all__ = ["ErnieTokenizer"]
