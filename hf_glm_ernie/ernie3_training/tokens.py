"""Texts to tokens, many in a call, and what the `tokenizers` library knows of each token.

A property of an `Encoding` makes a new list of all tokens whenever it is read: here each is read once.
"""

import dataclasses
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import Any, TypeAlias


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a text alone, without special tokens around it.

    Attributes:
        ids: (T) ids.
        encoding: What the `tokenizers` library says; `None` of a tokenizer that is not made of it.
        maker: The tokenizer's class, for messages.
    """

    ids: list[int]
    encoding: Any | None
    maker: str

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """(start, end) of each token in characters of the text. Raises as `words`."""
        return list(self._known.offsets)

    @cached_property
    def words(self) -> list[int | None]:
        """(T) the number of each token's word.

        Raises:
            ValueError: the tokenizer does not say which token stands where.
        """
        return list(self._known.word_ids)

    @property
    def _known(self) -> Any:
        if self.encoding is None:
            raise ValueError(
                f"{self.maker} does not say which tokens are one word; masking whole words needs a "
                "tokenizer on the tokenizers library (tokenizer.is_fast)."
            )
        return self.encoding


Asking: TypeAlias = Generator[list[str], list[Tokens], dict[str, Any]]
"""A row that is being built: it yields texts, is sent their tokens, and returns the row."""


def tokens_of(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """The tokens of texts, each as if it were alone.

    Args:
        tokenizer: A tokenizer of transformers.
        texts: Any texts; one that comes several times has the same tokens each time, so nobody may change them.
    """
    if not texts:
        return []
    different = list(dict.fromkeys(texts))
    columns = {"return_attention_mask": False, "return_token_type_ids": False}  # lists that nobody reads
    encoded = tokenizer(different, add_special_tokens=False, verbose=False, **columns)
    encodings = getattr(encoded, "encodings", None) or [None] * len(different)
    maker = type(tokenizer).__name__
    tokens = {
        text: Tokens(list(ids), known, maker)
        for text, ids, known in zip(different, encoded["input_ids"], encodings, strict=True)
    }
    return [tokens[text] for text in texts]


__all__ = ["Asking", "Tokens", "tokens_of"]
