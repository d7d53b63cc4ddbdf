"""Ids that prompts and rows are put together from: of special tokens, of any token, of a text alone."""

from typing import Any

# The tokenizer's attribute, without `_token_id` -> what the token is called where the attribute says nothing.
SPECIAL_TOKENS = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "eos": "[END]", "pad": "[PAD]"}


def special_id(tokenizer: Any, name: str) -> int:
    """The id of one of `SPECIAL_TOKENS`: the tokenizer's attribute, else the token of that name in its vocabulary.

    Raises:
        ValueError: the tokenizer has neither.
    """
    attribute, token = f"{name}_token_id", SPECIAL_TOKENS[name]
    index = getattr(tokenizer, attribute, None)
    if index is None:
        index = token_id(tokenizer, token)
    if index is None:
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) has no {attribute} and no token {token!r}. Give it one: "
            f"tokenizer.add_special_tokens({{'{name}_token': '{token}'}}), or use Ernie3Tokenizer."
        )
    return index


def token_id(tokenizer: Any, token: str) -> int | None:
    """The id of a token as the vocabulary has it, or `None`: never that of the unknown token."""
    index = tokenizer.convert_tokens_to_ids(token)
    return None if index is None or (index == tokenizer.unk_token_id and token != tokenizer.unk_token) else index


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text alone, without special tokens around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


__all__ = ["special_id", "text_ids", "token_id"]
