"""Controllable language modelling: half of the rows are plain texts, half follow a prompt that describes them.

With u uniform from 0 to 1, u <= 0.5 gives `[CLS] text [END]`; else a prompt of [`build_control_prompt`] stands before
the text, each of whose attributes that the data have (genre, topic, keywords, sentiment, length) is left out with
probability 0.5, independently. The genre, where it stays, has N soft prompts, N uniform in 0..63. The length is the
text's number of tokens. The prompt's own tokens are not to be predicted: the paper's loss is conditional on them.

Source: PT = arXiv 2112.12731, section 3.2.2.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_glm_ernie.configuration_ernie3 import CONTROLLABLE_LM
from hf_glm_ernie.ernie_tasks.prompts import (
    ATTRIBUTES,
    GENRES,
    MAX_SOFT_PROMPTS,
    SENTIMENTS,
    ControlPrompt,
    build_control_prompt,
    place_of,
)
from hf_glm_ernie.inference.token_ids import special_id

from .builders import IGNORED, RowBuilder, checked_text, fitted
from .tokens import Asking

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
        (tokens,) = yield [checked_text(row, "text")]
        text = tokens.ids
        end = special_id(self.tokenizer, "eos")
        settings: dict[str, Any] = {}
        if generator.random() > PLAIN_SHARE:
            given = {name: row.get(name) for name in ATTRIBUTES if row.get(name)} | {"length": len(text)}
            kept = generator.random(len(ATTRIBUTES)) >= DROP_PROBABILITY
            settings = {
                name: given[name] for name, keep in zip(ATTRIBUTES, kept, strict=True) if keep and name in given
            }
            if "genre" in settings:
                settings["num_soft_prompts"] = int(generator.integers(MAX_SOFT_PROMPTS))
        prompt = self._prompt(settings)
        room = max_length - len(prompt.input_ids)
        if len(text) + 1 > room and self.truncation and "length" in settings:
            for _ in range(2):  # the number itself may become a token shorter, which leaves room for one more
                prompt = self._prompt(settings | {"length": max(room, 1)})
                room = max_length - len(prompt.input_ids)
        if room < 1 and self.truncation:
            prompt = self._prompt({})
            room = max_length - len(prompt.input_ids)
        ids = fitted([*text, end], room, self.truncation, "the text")
        return {
            "input_ids": [*prompt.input_ids, *ids],
            "labels": [IGNORED] * len(prompt.input_ids) + ids,
            "genre_ids": prompt.genre_id,
        }

    def filler(self) -> dict[str, Any]:
        """As in [`RowBuilder`], of the first genre."""
        return super().filler() | {"genre_ids": 0}

    def _prompt(self, settings: dict[str, Any]) -> ControlPrompt:
        return build_control_prompt(self.tokenizer, soft_prompt_token_id=self.soft_prompt_token_id, **settings)


__all__ = ["ControllableLM"]
