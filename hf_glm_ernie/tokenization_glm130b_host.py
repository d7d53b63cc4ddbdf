"""Where GLM-130B's tokenizer touches what its libraries keep private, and nowhere else.

- transformers sends every call of a tokenizer through `_encode_plus`, which asks the `tokenizers` library for whole
  rows. Ours are cut at masks and put together by the original's rules, so `RowsBackend` takes that one method and
  hands its arguments on as a `Call`.
- A row is returned as the library's `Encoding`, whose constructor takes nothing: `new_encoding` goes through its
  pickled form, which is JSON.

No rules of GLM-130B here. What is private stands in `tests/support/host_private.py`, with its parameters.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding
from transformers.tokenization_utils_base import BatchEncoding, TruncationStrategy
from transformers.utils import PaddingStrategy

from .tokenization_calls import SharedBackend, check_settings, is_empty_batch

# Columns that are read off the records; ids and the attention mask are made without them.
COLUMNS_OF_RECORDS = ("token_type_ids", "special_tokens_mask", "offsets_mapping", "length")


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call of a tokenizer, as `__call__` has them, strategies as enums.

    Attributes:
        text: What was given.
        text_pair: The second sequences, or None.
        add_special_tokens: Whether the model's input is made.
        padding_strategy: How rows are padded.
        truncation_strategy: How they are cut.
        max_length: The longest row (tokens), or None.
        stride: Tokens that a row cut off shares with the one before.
        is_split_into_words: Whether sequences are lists of words.
        return_overflowing_tokens: Whether what was cut off is returned, too.
        split_special_tokens: Whether special tokens are plain text; None: the tokenizer's own setting.
        chat: What `apply_chat_template` says about the text: "own" or "other", whose template rendered it.
        options: The rest.
    """

    text: Any
    text_pair: Any
    add_special_tokens: bool
    padding_strategy: PaddingStrategy
    truncation_strategy: TruncationStrategy
    max_length: int | None
    stride: int
    is_split_into_words: bool
    return_overflowing_tokens: bool
    split_special_tokens: bool | None
    chat: str | None
    options: dict[str, Any]

    @property
    def truncates(self) -> bool:
        """Whether rows that are too long are cut."""
        return self.truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE and self.max_length is not None

    @property
    def wants_only_ids(self) -> bool:
        """Whether no column is asked for that is read off the records."""
        asked = any(self.options.get(f"return_{name}") for name in COLUMNS_OF_RECORDS)
        return not (asked or self.return_overflowing_tokens)

    def truncation(self, side: str) -> dict[str, Any]:
        """What `tokenizers.Tokenizer.enable_truncation` takes."""
        strategy = self.truncation_strategy.value
        return {"max_length": self.max_length, "stride": self.stride, "strategy": strategy, "direction": side}

    def padded_length(self, rows: Sequence[Any]) -> int | None:
        """The length (tokens) that rows are padded to, or None for no padding."""
        if self.padding_strategy == PaddingStrategy.DO_NOT_PAD:
            return None
        longest = self.padding_strategy == PaddingStrategy.LONGEST
        length = max(map(len, rows), default=0) if longest else self.max_length
        multiple = self.options.get("pad_to_multiple_of")
        return -(-length // multiple) * multiple if length is not None and multiple else length


class LazyEncodings(Sequence[Encoding]):
    """The rows' `Encoding` objects (tokens, offsets), each made when it is asked for: most callers only want ids."""

    def __init__(self, length: int, make: Callable[[int], Encoding]) -> None:
        self._made: list[Encoding | None] = [None] * length
        self._make = make

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        encoding = self._made[index]
        if encoding is None:
            encoding = self._made[index] = self._make(index % len(self))
        return encoding

    def __reduce__(self) -> tuple[type, tuple[list[Encoding]]]:
        return list, (list(self),)  # a pickled batch does not carry its tokenizer along


def new_encoding(
    ids: list[int], tokens: list[str], offsets: list[tuple[int, int]], words: list[int | None]
) -> Encoding:
    """The library's record of one sequence, every token its text's own: type 0, not special, attended to."""
    count = len(ids)
    state = {
        "ids": ids,
        "tokens": tokens,
        "offsets": offsets,
        "words": words,
        "overflowing": [],
        "sequence_ranges": {},
    }
    state |= {"type_ids": [0] * count, "special_tokens_mask": [0] * count, "attention_mask": [1] * count}
    return _from_state(state)


def with_answer_types(encoding: Encoding, sop_id: int) -> Encoding:
    """A copy of a record whose token types are 0 up to its first `<sop>` and 1 from there on."""
    state = json.loads(encoding.__getstate__())
    start = encoding.ids.index(sop_id) if sop_id in encoding.ids else len(encoding.ids)
    state["type_ids"] = [int(index >= start) for index in range(len(encoding.ids))]
    return _from_state(state)


def _from_state(state: dict[str, Any]) -> Encoding:
    encoding = Encoding()
    encoding.__setstate__(json.dumps(state).encode())
    return encoding


class RowsBackend(SharedBackend):
    """A tokenizer of the host that makes its rows itself: a subclass has `_encode_call` and `_token_id`."""

    def _encode_call(self, call: Call) -> BatchEncoding:
        """What `__call__` returns for these arguments."""
        raise NotImplementedError

    def _token_id(self, token: str | None) -> int:
        """The id of one token."""
        raise NotImplementedError

    def _encode_plus(  # type: ignore[override]  # the host's other arguments are in `options`
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        return_overflowing_tokens: bool = False,
        split_special_tokens: bool | None = None,
        chat: str | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """The host's one way to tokenization; arguments as for `Call`."""
        strategies: dict[str, Any] = {"padding_strategy": padding_strategy, "truncation_strategy": truncation_strategy}
        if options.get("sanitize_control_tokens"):  # a chat: the host calls back for each piece of it
            settings = {"add_special_tokens": add_special_tokens, "max_length": max_length} | strategies
            with self._calls:
                return self._encode(text, None, **settings, **options)
        settings = {"max_length": max_length, "stride": stride, "is_split_into_words": is_split_into_words} | options
        check_settings(settings)
        if is_empty_batch(text, text_pair, settings):
            return self._no_rows(settings)
        return self._encode_call(
            Call(
                text,
                text_pair,
                add_special_tokens,
                padding_strategy,
                truncation_strategy,
                max_length,
                stride,
                is_split_into_words,
                return_overflowing_tokens,
                split_special_tokens,
                chat,
                options,
            )
        )

    def _padded(self, rows: list[list[int]], length: int | None, options: dict[str, Any]) -> dict[str, Any]:
        """Ids and attention mask, padded to `length`."""
        left = (options.get("padding_side") or self.padding_side) == "left"
        gaps = [0 if length is None else max(0, length - len(ids)) for ids in rows]

        def padded(values: list[int], fill: int, gap: int) -> list[int]:
            if not gap:
                return values
            return [fill] * gap + values if left else values + [fill] * gap

        pad_id = 0 if length is None else self._token_id(str(self.pad_token))
        data = {"input_ids": [padded(ids, pad_id, gap) for ids, gap in zip(rows, gaps, strict=True)]}
        wanted = options.get("return_attention_mask")
        if wanted or (wanted is None and "attention_mask" in self.model_input_names):
            data["attention_mask"] = [padded([1] * len(ids), 0, gap) for ids, gap in zip(rows, gaps, strict=True)]
        return data

    def _padded_record(self, encoding: Encoding, length: int | None, options: dict[str, Any]) -> Encoding:
        """Pads one record in place, as `_padded` does."""
        if length is not None:
            side = options.get("padding_side") or self.padding_side
            encoding.pad(
                length, direction=side, pad_id=self._token_id(str(self.pad_token)), pad_token=str(self.pad_token)
            )
        return encoding

    def _columns(self, encodings: list[Encoding], options: dict[str, Any]) -> dict[str, Any]:
        """The lists that were asked for, one entry for each record."""
        names = ("token_type_ids", "attention_mask", "special_tokens_mask", "offsets_mapping", "length")
        wanted: dict[str, Any] = {f"return_{name}": options.get(f"return_{name}") for name in names}
        data: dict[str, Any] = {}
        for encoding in encodings:
            for name, values in self._convert_encoding(encoding, **wanted)[0].items():
                data.setdefault(name, []).extend(values)
        return data

    def _batch(
        self, data: dict[str, Any], encodings: Any, is_batched: bool, n_sequences: int, call: Call
    ) -> BatchEncoding:
        """Wraps up what `__call__` returns."""
        for ids in data["input_ids"]:
            self._eventual_warn_about_too_long_sequence(ids, call.max_length, call.options.get("verbose", True))
        return_tensors = call.options.get("return_tensors")
        if not is_batched and return_tensors is None:
            data = {name: values[0] for name, values in data.items()}
        return BatchEncoding(data, encodings, tensor_type=return_tensors, n_sequences=n_sequences)


__all__ = [
    "Call",
    "LazyEncodings",
    "new_encoding",
    "with_answer_types",
]  # `RowsBackend` is a base, nothing to use by itself
