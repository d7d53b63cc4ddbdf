"""What an evaluation is given, texts or ids, as ids."""

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any

from hf_glm_ernie.host_arguments import checked_list, short

Text = str | Sequence[int]

MASKS = re.compile(r"(\[[sg]?MASK\])")


def token_ids(
    tokenizer: Any, texts: Iterable[Text], *, masks_in_text: bool = True, name: str = "texts"
) -> list[list[int]]:
    """Ids of texts as the evaluation reads them: nothing is added.

    Args:
        tokenizer: A `Glm130bTokenizer`.
        texts: Texts; ids are passed on as they are.
        masks_in_text: A mask written in a text is that token, and cuts the text, as in generation; otherwise, as with
            the authors' evaluation, whose masks come in tokenized data only, it is plain text.
        name: What a message calls the texts.

    Returns:
        The ids of each text.

    Raises:
        TypeError: no list of texts (one text alone is none), or one that is neither a text nor whole numbers.
    """
    return [
        _text_ids(tokenizer, text, masks_in_text) if isinstance(text, str) else _given_ids(text, f"{name}[{i}]")
        for i, text in enumerate(checked_list(texts, name, "a list of texts, or of lists of ids"))
    ]


def _text_ids(tokenizer: Any, text: str, masks_in_text: bool) -> list[int]:
    ids: list[int] = []
    for piece in MASKS.split(text) if masks_in_text else [text]:
        if masks_in_text and MASKS.fullmatch(piece):
            ids.append(tokenizer.convert_tokens_to_ids(piece))
        elif piece:
            ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def _given_ids(ids: Any, where: str) -> list[int]:
    found = checked_list(ids, where, "a text or a list of ids")
    for i, index in enumerate(found):
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise TypeError(f"{where}[{i}] is a {type(index).__name__}, not an id: {short(index)}.")
    return list(map(operator.index, found))


__all__ = ["MASKS", "Text", "token_ids"]
