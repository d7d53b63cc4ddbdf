"""ERNIE 3.0's 10B tokenizer for transformers, on the `tokenizers` library: the released encoders' pieces, other rows.

What is unusual about it:

- A row is `[CLS] X`, a pair `[CLS] A B`: nothing ends or separates texts.
- A sentence mark `<S>` follows each sentence, by the original's rules (`tokenization_ernie3_sentences`).
- The vocabulary is the first 29,979 pieces of the released encoders' and 21 tokens of the 10B's own.

Known from the original's code: the row, the marks, the pieces' rules, `[END]` 29979, 30,000 ids. The vocabulary file
was never published; the rest is decided here. The pieces are those before the released vocabulary's English extension,
which begins exactly at 29979. `<S>` is 29980 and `[gEND]` 29983, as in the original's successor. `[soft]`, 29984, is
a placeholder for one soft prompt vector. `[UNK]` is the last id, as in the released vocabulary, where it stands behind
the pieces taken. Ids between are reserved, and so is 12084, where the released vocabulary has a second `$`. Special
tokens written in a text are one token each, and the text between them is cut into sentences by itself, as PaddleNLP's
later releases do it; the 10B's program split them into pieces.

Sources: PaddleNLP, side branch with `transformers/ernie3/tokenizer.py`, and its pull request 1978 (`ernie3_prompt`).
"""

import os
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, processors
from transformers.tokenization_utils_base import BatchEncoding

from .host_versions import warn_of_untested_host  # noqa: F401  # it warns when it is imported
from .tokenization_calls import SharedBackend
from .tokenization_ernie3_sentences import CLOSING, FINAL, build_normalizer, build_pre_tokenizer
from .tokenization_ernie_added import check_content, read_plain, read_special
from .tokenization_ernie_unicode import without_half_pairs
from .tokenization_ernie_vocabulary import (
    open_backend,
    read_vocabulary,
    without_holes,
    word_piece,
    write_vocabulary,
)

NUM_PIECES = 29979
RESERVED = "[unused{}]"

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "bos_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "eos_token": "[END]",
    "sentence_token": "<S>",
    "gend_token": "[gEND]",
    "soft_prompt_token": "[soft]",
    "unk_token": "[UNK]",
}
"""Attribute -> token; each has an id, `<attribute>_id`."""

OPTIONAL_TOKENS = ("gend_token", "soft_prompt_token")
"""Those that a vocabulary may lack; the tokenizer does not have the attribute then."""

REPLACEABLE_TOKENS = ("bos_token", "eos_token")
"""Those that may be None or a token that the vocabulary lacks, which gets a new id, as in the host."""

# Where the tokens of the 10B's own stand behind the pieces; the others there are reserved.
OWN_TOKENS = {"[END]": 0, "<S>": 1, "[gEND]": 4, "[soft]": 5, "[UNK]": 20}
NUM_OWN_IDS = 21


class Ernie3Tokenizer(SharedBackend):
    """Tokenizer of ERNIE 3.0's unified models, 10B and Titan.

    Opens a folder it saved, or that the converter wrote; [`Ernie3Tokenizer.from_released_vocabulary`] makes one from
    the released encoders' `vocab.txt`.

    Rows have no token types, since the 10B model has none; `return_token_type_ids=True` gives 0 for `[CLS]` and the
    first text and 1 for the second. No `[END]` is added either: it is what the model writes last. Padding is on the
    left, as `generate()` needs it; the model counts positions from the first token and pools that.

    Added tokens match as they are typed; a token of the vocabulary, added again, changes nothing. Half a surrogate
    pair in a text is dropped. Threads may share one tokenizer: a lock lets in one call at a time, since padding and
    truncation are the library's state. An id that no token has is None as a token and nothing in a text.

    `offset_mapping` holds true places. A sentence mark has the place of the character it stands behind, or of the last
    blank between two Chinese sentences. `decode` leaves marks out with `skip_special_tokens=True`.

    A saved folder opens without this package, too: `AutoTokenizer` takes `tokenizer.json` and gives the same ids,
    marks and places. Only options cannot be changed there: sentence marks and lowercase stay as saved; and half
    a surrogate pair is an error.

    Args:
        vocab_file: Path of `vocab.txt` with all tokens of this model, one a line or `token<tab>id`.
        do_lower_case: Whether text is lowercased and loses its accents.
        sentence_marks: Whether sentences are marked. Without marks the other tokens are the same.
        tokenizer_file: Path of a `tokenizer.json` saved before; it is preferred to `vocab_file`.
        **kwargs: Passed to `TokenizersBackend`; other names of special tokens among them.
            `clean_up_tokenization_spaces` is True by default.

    Raises:
        FileNotFoundError: `vocab_file` or `tokenizer_file` does not exist.
        ValueError: there is neither file, a file is damaged or of another kind, or a special token is missing in it.
    """

    vocab_files_names = {"vocab_file": "vocab.txt", "tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    sentence_token: str
    sentence_token_id: int
    gend_token: str
    gend_token_id: int
    soft_prompt_token: str
    soft_prompt_token_id: int

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        do_lower_case: bool = True,
        sentence_marks: bool = True,
        tokenizer_file: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        backend = kwargs.pop("tokenizer_object", None)
        if backend is not None:
            kwargs.pop("added_tokens_decoder", None)  # of the tokenizer it was trained from; it has its own
        special_tokens, kwargs = _special_tokens(kwargs)
        backend = open_backend(
            backend,
            tokenizer_file,
            "Ernie3Tokenizer",
            lambda: _backend_from_file(vocab_file, str(special_tokens["unk_token"] or SPECIAL_TOKENS["unk_token"])),
        )
        vocabulary = set(backend.get_vocab(with_added_tokens=False))
        special_tokens = {
            name: token or SPECIAL_TOKENS[name]
            for name, token in special_tokens.items()
            if token or name not in OPTIONAL_TOKENS or SPECIAL_TOKENS[name] in vocabulary
        }
        contents = {name: str(token) for name, token in special_tokens.items()}
        _check_special_tokens(vocabulary, contents, str(tokenizer_file or vocab_file or "the vocabulary"))
        mark = contents["sentence_token"] if sentence_marks else None
        closing = "".join(char for char in FINAL + CLOSING if backend.model.token_to_id(char) is not None)
        backend.normalizer = build_normalizer(do_lower_case, mark, closing)
        backend.pre_tokenizer = build_pre_tokenizer(mark)
        backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in contents.values()])
        backend.post_processor = _template(backend, contents["cls_token"])
        self._tokenizer = backend
        kwargs.setdefault("clean_up_tokenization_spaces", True)
        kwargs.setdefault("model_input_names", list(self.model_input_names))
        kwargs.setdefault("padding_side", self.padding_side)
        super().__init__(
            vocab_file=vocab_file,
            do_lower_case=do_lower_case,
            sentence_marks=sentence_marks,
            **special_tokens,
            **kwargs,
        )
        self.do_lower_case = do_lower_case
        self.sentence_marks = sentence_marks

    @classmethod
    def from_released_vocabulary(
        cls, path: str | os.PathLike[str], num_pieces: int | None = NUM_PIECES, **kwargs: Any
    ) -> "Ernie3Tokenizer":
        """Makes the tokenizer from the released encoders' vocabulary.

        Args:
            path: Their `vocab.txt`, one token a line or `token<tab>id`.
            num_pieces: How many ids to take from its start; the 21 of this model follow. None takes all but `[UNK]`,
                for smaller vocabularies.
            **kwargs: As for the class.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, too short, or no vocabulary of ERNIE's.
        """
        released, overridden = read_vocabulary(path)
        size = max(released.values()) + 1
        if num_pieces is None:
            num_pieces = max(released[token] for token in released if token != SPECIAL_TOKENS["unk_token"]) + 1
        if not 0 < num_pieces <= size:
            raise ValueError(
                f"{path} has ids 0 to {size - 1}, num_pieces={num_pieces} asks for as many from its start. Take the "
                "released encoders' vocabulary, of 39980 ids, or num_pieces=None for all of a smaller one."
            )
        lines = {index: token for token, index in released.items()} | overridden
        vocabulary = {lines[index]: index for index in sorted(lines) if index < num_pieces}
        for index in range(num_pieces, num_pieces + NUM_OWN_IDS):
            vocabulary[RESERVED.format(index)] = index
        for token, place in OWN_TOKENS.items():
            del vocabulary[RESERVED.format(num_pieces + place)]
            vocabulary[token] = num_pieces + place
        _check_special_tokens(set(vocabulary), SPECIAL_TOKENS, str(path))
        return cls(tokenizer_object=_word_piece(vocabulary, SPECIAL_TOKENS["unk_token"]), **kwargs)

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Hands the files to `__init__` as they are (the host would rebuild the backend from its vocabulary)."""
        return kwargs

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        known = self.get_vocab()
        tokens: list[str | AddedToken] = []
        for given in new_tokens:
            check_content(str(given))
            token = given if isinstance(given, AddedToken) else AddedToken(given, special=special_tokens)
            if special_tokens or token.special:
                tokens.append(read_special(token))
            elif str(given) not in known:  # a piece of the vocabulary would be cut out of longer words
                tokens.append(read_plain(token, lowered=False))
        return super()._add_tokens(tokens)

    def _encode(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        return super()._encode(without_half_pairs(text), without_half_pairs(text_pair), **options)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:  # type: ignore[override]
        """Writes `vocab.txt`, one token a line, without added tokens; returns the path."""
        vocabulary = self.backend_tokenizer.get_vocab(with_added_tokens=False)
        return write_vocabulary(save_directory, filename_prefix, vocabulary, {})

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        return names + self.save_vocabulary(str(save_directory), filename_prefix)


def _special_tokens(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The special tokens among the arguments, `None` where one is not named, and the other arguments.

    A token that was asked away, by `None` for one of `REPLACEABLE_TOKENS`, is not among them.
    """
    named = arguments.get("model_specific_special_tokens") or {}
    asked_away = {name for name in REPLACEABLE_TOKENS if arguments.get(name, "") is None}
    tokens = {name: arguments.get(name) or named.get(name) for name in SPECIAL_TOKENS if name not in asked_away}
    others = {name: value for name, value in arguments.items() if name not in SPECIAL_TOKENS}
    others["model_specific_special_tokens"] = {
        name: token for name, token in named.items() if name not in SPECIAL_TOKENS or arguments.get(name)
    }
    return tokens, others


def _word_piece(vocabulary: dict[str, int], unk_token: str) -> Tokenizer:
    """A backend in which every id has a token, so that the first added one gets an id of its own."""
    return word_piece(without_holes(vocabulary), unk_token)


def _backend_from_file(path: str | os.PathLike[str] | None, unk_token: str) -> Tokenizer:
    if path is None:
        raise ValueError(
            "Ernie3Tokenizer found neither vocab.txt nor tokenizer.json: give vocab_file, a folder that holds one of "
            "them to Ernie3Tokenizer.from_pretrained, or the released encoders' vocab.txt to "
            "Ernie3Tokenizer.from_released_vocabulary."
        )
    return _word_piece(read_vocabulary(path)[0], unk_token)


def _check_special_tokens(vocabulary: set[str], contents: dict[str, str], where: str) -> None:
    special_tokens = {
        name: token
        for name, token in contents.items()
        if name not in REPLACEABLE_TOKENS or token == SPECIAL_TOKENS[name]
    }
    missing = [token for token in dict.fromkeys(special_tokens.values()) if token not in vocabulary]
    if missing:
        raise ValueError(
            f"{where} has no {', '.join(missing)} among its {len(vocabulary)} tokens, so it is not ERNIE 3.0's. "
            "Ernie3Tokenizer.from_released_vocabulary makes the tokenizer from the released encoders' vocab.txt. If "
            f"the special tokens have other names, pass them as {', '.join(special_tokens)}."
        )
    mark = special_tokens["sentence_token"]
    if len(mark) < 2 or mark[0].isalnum() or mark[0].isspace():
        raise ValueError(f"sentence_token={mark!r} must begin with a mark such as '<' or '[' and be longer than that.")


def _template(backend: Tokenizer, cls_token: str) -> processors.TemplateProcessing:
    """`[CLS] A` of type 0 and, behind it, `B` of type 1."""
    return processors.TemplateProcessing(
        single=f"{cls_token}:0 $A:0",
        pair=f"{cls_token}:0 $A:0 $B:1",
        special_tokens=[(cls_token, backend.token_to_id(cls_token))],
    )


__all__ = ["Ernie3Tokenizer"]
