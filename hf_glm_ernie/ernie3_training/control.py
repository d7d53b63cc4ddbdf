"""Controllable language modelling: half of the rows are plain texts, half follow a prompt that describes them.

With u uniform from 0 to 1, u <= 0.5 gives `[CLS] text [END]`; else a prompt of [`build_control_prompt`] stands before
the text, each of whose attributes that the data have (genre, topic, keywords, sentiment, length) is left out with
probability 0.5, independently. The genre, where it stays, has N soft prompts, N uniform in 0..63. The length is the
text's number of tokens. The prompt's own tokens are not to be predicted: the paper's loss is conditional on them.

Source: PT = arXiv 2112.12731, section 3.2.2.
"""

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from hf_glm_ernie.configuration_ernie3 import CONTROLLABLE_LM
from hf_glm_ernie.ernie_tasks.prompts import (
    ATTRIBUTES,
    GENRES,
    MAX_SOFT_PROMPTS,
    SENTIMENTS,
    control_prompt_parts,
    length_parts,
    place_of,
)
from hf_glm_ernie.inference.token_ids import special_id

from .builders import IGNORED, RowBuilder, checked_text, fitted
from .tokens import Asking, Tokens

PLAIN_SHARE = 0.5
DROP_PROBABILITY = 0.5
COLUMNS = {"text", *ATTRIBUTES} - {"length"}  # the length is counted, not given


@dataclasses.dataclass(frozen=True)
class ControllableLM(RowBuilder):
    """Rows of controllable language modelling: `[CLS] prompt text [END]`.

    Columns read: `text`, and those of `genre`, `topic`, `keywords` (a list), `sentiment` that there are; `None` or
    nothing in one says that the text has no such attribute. Columns made: `input_ids`, `labels` (for the model to
    shift: -100 for `[CLS]` and the prompt), `genre_ids`. With `truncation=True` a long text loses its end and its
    `[END]`; the length in the prompt is then that of what is left, and a prompt that leaves no room for
    a text is left out.
    Arguments: those of [`RowBuilder`], and:

    Args:
        soft_prompt_token_id: The placeholder's id, `config.soft_prompt_token_id`; `None`: the token `[soft]`.
    """

    soft_prompt_token_id: int | None = dataclasses.field(default=None, kw_only=True)

    task = CONTROLLABLE_LM

    def build(self, row: Mapping[str, Any], generator: np.random.Generator, max_length: int) -> Asking:
        """A plain or a prompted text."""
        unknown = set(row) - COLUMNS
        if unknown:
            raise ValueError(
                f"unknown attribute {sorted(unknown)}; the columns are {sorted(COLUMNS)}. Drop the others."
            )
        for name, choices in (("genre", GENRES), ("sentiment", SENTIMENTS)):
            if row.get(name):
                place_of(row[name], choices, name)
        text = checked_text(row, "text")
        settings: dict[str, Any] = {}
        counted = False
        if generator.random() > PLAIN_SHARE:
            kept = dict(zip(ATTRIBUTES, generator.random(len(ATTRIBUTES)) >= DROP_PROBABILITY, strict=True))
            counted = bool(kept.pop("length"))
            settings = {name: row[name] for name, keep in kept.items() if keep and row.get(name)}
            if "genre" in settings:
                settings["num_soft_prompts"] = int(generator.integers(MAX_SOFT_PROMPTS))
        soft = self.soft_prompt_token_id
        parts, genre_id = control_prompt_parts(self.tokenizer, soft_prompt_token_id=soft, **settings)
        tokens, *known = yield [text, *_texts(parts)]
        prompt = described = _joined(parts, known)
        if counted:
            prompt = described + (yield from self._length(len(tokens.ids)))
        room = max_length - len(prompt)
        if len(tokens.ids) + 1 > room and self.truncation and counted:
            for _ in range(2):  # the number itself may become a token shorter, which leaves room for one more
                prompt = described + (yield from self._length(max(room, 1)))
                room = max_length - len(prompt)
        if room < 1 and self.truncation:
            prompt, genre_id = [special_id(self.tokenizer, "cls")], 0
            room = max_length - len(prompt)
        ids = fitted([*tokens.ids, special_id(self.tokenizer, "eos")], room, self.truncation, "the text")
        return {
            "input_ids": [*prompt, *ids],
            "labels": [IGNORED] * len(prompt) + ids,
            "genre_ids": genre_id,
        }

    def _length(self, length: int) -> Generator[list[str], list[Tokens], list[int]]:
        """The prompt's end, which says how long the text is."""
        parts = length_parts(self.tokenizer, length)
        return _joined(parts, (yield _texts(parts)))

    def filler(self) -> dict[str, Any]:
        """As in [`RowBuilder`], of the first genre."""
        return super().filler() | {"genre_ids": 0}


def _texts(parts: Sequence[str | list[int]]) -> list[str]:
    """The parts of a prompt that are to be tokenized."""
    return [part for part in parts if isinstance(part, str)]


def _joined(parts: Sequence[str | list[int]], tokens: Sequence[Tokens]) -> list[int]:
    """A prompt's ids: of its parts, and of the tokens of those that are texts, in order."""
    known = iter(tokens)
    return [index for part in parts for index in (next(known).ids if isinstance(part, str) else part)]


__all__ = ["ControllableLM"]
