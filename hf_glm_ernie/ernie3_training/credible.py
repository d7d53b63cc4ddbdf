"""Credible generation (self-supervised adversarial loss): natural paragraphs against ones that a model wrote.

Two steps, because the first needs a large model and the second runs in every epoch:

1. [`AdversarialTexts`] turns paragraphs into pairs: the paragraph itself (label 1), and its first one to three
   sentences continued by a generator (label 0). Either is at most 512 tokens long; what overflows is cut and loses its
   last, incomplete sentence. Natural paragraphs are cut in the same way, so that a cut does not give the class away.
2. [`CredibleRows`] turns the texts into rows `[CLS] text`.

Source: PT = arXiv 2112.12731, section 3.2.1.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from hf_glm_ernie.configuration_ernie3 import CREDIBLE
from hf_glm_ernie.inference.token_ids import special_id, text_ids

from .builders import RowBuilder, checked_text, fitted, row_generator
from .splitting import complete_sentences, split_sentences
from .tokens import Asking, tokens_of

logger = logging.get_logger(__name__)

GENERATED, ORIGINAL = 0, 1
MOST_PROMPT_SENTENCES = 3
# Settings of the 10B's own program.
SAMPLING = {"do_sample": True, "top_k": 4, "temperature": 0.9, "repetition_penalty": 1.1}
BLANKS_BESIDE_CHINESE = re.compile(r"(?<=[^\x00-\x7f])\s+|\s+(?=[^\x00-\x7f])")


def within(tokenizer: Any, text: str, most: int) -> str:
    """A text of at most so many tokens: a longer one is cut, and then loses its last, incomplete sentence.

    Args:
        tokenizer: A tokenizer on the `tokenizers` library, which knows where a token ends.
        text: Any text.
        most: Tokens, without special ones around the text.

    Returns:
        The text, or its first whole sentences; nothing where not even one fits.
    """
    (tokens,) = tokens_of(tokenizer, [text])
    if len(tokens.ids) <= most:
        return text
    text = complete_sentences(text[: max((end for _, end in tokens.offsets[:most]), default=0)])
    while text and len(text_ids(tokenizer, text)) > most:  # the mark behind its last sentence is one token more
        text = "".join(split_sentences(text)[:-1])
    return text


class AdversarialTexts:
    """A map function for `datasets`, `batched=True, with_indices=True`: paragraphs to original and generated texts.

    Columns read: `text`. Columns made: `text`, `credible_labels` (1 original, 0 generated), two rows for every
    paragraph; so pass `remove_columns=dataset.column_names`. A paragraph of which nothing is left within `max_length`,
    or whose continuation has no whole sentence there, gives no rows; a warning counts them.

    Args:
        generate: Continues texts: a list of prompts to a list of continuations, without the prompts
            ([`ModelContinuations`] makes one of a model).
        tokenizer: Counts tokens.
        max_length: Tokens of a text at most, `[CLS]` included.
        seed: Decides how many sentences each prompt has, with the paragraph's index.
    """

    def __init__(
        self, generate: Callable[[list[str]], list[str]], tokenizer: Any, *, max_length: int = 512, seed: int = 0
    ) -> None:
        self.generate, self.tokenizer = generate, tokenizer
        self.max_length, self.seed = max_length, seed

    def __call__(self, rows: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        """Columns in, columns out.

        Raises:
            ValueError: an empty text, or a generator that returns another number of texts.
        """
        prompts = [self.prompt(text, index) for text, index in zip(rows["text"], indices, strict=True)]
        continuations = self.generate(prompts)
        if len(continuations) != len(prompts):
            raise ValueError(
                f"{CREDIBLE}: the generator returned {len(continuations)} texts for {len(prompts)} prompts."
            )
        made: dict[str, list[Any]] = {"text": [], "credible_labels": []}
        for text, prompt, continuation in zip(rows["text"], prompts, continuations, strict=True):
            original, generated = self._short(text), self._short(prompt + continuation)
            if original and len(generated.rstrip()) > len(prompt.rstrip()):
                made["text"] += [original, generated]
                made["credible_labels"] += [ORIGINAL, GENERATED]
        missing = len(prompts) - len(made["text"]) // 2
        if missing:
            logger.warning(
                f"{missing} of {len(prompts)} paragraphs gave no rows: of the paragraph or of what the generator "
                f"wrote no whole sentence fits into max_length={self.max_length} tokens."
            )
        return made

    def prompt(self, text: str, index: int) -> str:
        """The first one to three sentences of a paragraph, uniform among what leaves something to continue.

        Args:
            text: The paragraph.
            index: Its place in the data.

        Raises:
            ValueError: an empty text.
        """
        try:
            sentences = split_sentences(checked_text({"text": text}, "text"))
        except ValueError as error:
            raise ValueError(f"{CREDIBLE}, row {index}: {error}") from error
        most = max(min(MOST_PROMPT_SENTENCES, len(sentences) - 1), 1)
        count = int(row_generator(self.seed, CREDIBLE, 0, index).integers(1, most + 1))
        return "".join(sentences[:count])

    def _short(self, text: str) -> str:
        return within(self.tokenizer, text, self.max_length - 1)


class ModelContinuations:
    """Continues texts with a causal language model: the generator that [`AdversarialTexts`] takes.

    Any model of `AutoModelForCausalLM` with its own tokenizer, larger or smaller than the one to be trained:

    ```python
    >>> name = "Qwen/Qwen3-4B-Base"
    >>> model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    >>> texts = AdversarialTexts(ModelContinuations(model, tokenizer), tokenizer_of_the_model_to_train)
    >>> pairs = paragraphs.map(texts, batched=True, with_indices=True, remove_columns=paragraphs.column_names)
    ```

    Sampling draws from PyTorch's global generator: `torch.manual_seed` or `transformers.set_seed` makes it repeat.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        max_length: Tokens of a prompt and its continuation at most, special ones included.
        batch_size: Prompts per call of `generate`.
        **settings: For `generate`, over the 10B's own (top 4, temperature 0.9, repetition penalty 1.1).

    Raises:
        ValueError: neither the model nor the tokenizer says which token ends a text.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, max_length: int = 512, batch_size: int = 8, **settings: Any
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.batch_size = max_length, batch_size
        ends = model.generation_config.eos_token_id
        ends = special_id(tokenizer, "eos") if ends is None else ends
        self.ends: list[int] = ends if isinstance(ends, list) else [ends]
        self.pad = self.ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.settings = {"eos_token_id": self.ends, "pad_token_id": self.pad} | SAMPLING | settings
        # WordPiece writes blanks between Chinese characters, which no natural text has.
        self.writes_blanks = " " in tokenizer.decode(text_ids(tokenizer, "中文")).strip()

    def __call__(self, prompts: list[str]) -> list[str]:
        """The continuation of each prompt; without its last, incomplete sentence where the length ended it.

        Raises:
            ValueError: a prompt that leaves no room, or has no tokens.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            texts = []
            for start in range(0, len(prompts), self.batch_size):
                texts += self._continue(prompts[start : start + self.batch_size])
            return texts
        finally:
            self.model.train(was_training)

    @torch.no_grad()
    def _continue(self, prompts: list[str]) -> list[str]:
        rows = [fitted(self._beginning(one), self.max_length - 1, False, "a prompt") for one in prompts]
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        settings = {"max_new_tokens": self.max_length - width} | self.settings
        written = self.model.generate(ids, attention_mask=mask, **settings)[:, width:]
        return [self._text(prompt, row.tolist()) for prompt, row in zip(prompts, written, strict=True)]

    def _beginning(self, prompt: str) -> list[int]:
        """The prompt's ids as texts of this tokenizer begin, but not as they end.

        White space at the end is no token of its own where the next word brings it along, so it is left out.
        """
        ids = list(self.tokenizer(prompt.rstrip(), verbose=False)["input_ids"])
        while ids and ids[-1] in (self.tokenizer.sep_token_id, *self.ends):
            ids.pop()
        if not ids:
            raise ValueError(f"The prompt {prompt!r} has no tokens; leave it out.")
        return ids

    def _text(self, prompt: str, ids: list[int]) -> str:
        """What was written behind a prompt, so that the two together read as one text."""
        length = next((place for place, token in enumerate(ids) if token in self.ends), None)
        text = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
        if self.writes_blanks:
            text = BLANKS_BESIDE_CHINESE.sub("", f"{prompt[-1:]} {text}")[len(prompt[-1:]) :]
        text = text.lstrip() if prompt[-1:].isspace() else text
        return complete_sentences(text) if length is None else text


@dataclasses.dataclass(frozen=True)
class CredibleRows(RowBuilder):
    """Rows of the credible task: `[CLS] text`, natural or not.

    Columns read: `text`, `credible_labels` (1 original, 0 generated). Columns made: `input_ids`, `credible_labels`.
    Arguments: those of [`RowBuilder`].
    """

    task = CREDIBLE
    label_column = "credible_labels"

    def build(self, row: Mapping[str, Any], generator: np.random.Generator, max_length: int) -> Asking:
        """`[CLS] text` and its label."""
        (text,) = yield [checked_text(row, "text")]
        label = row.get("credible_labels")
        if label not in (GENERATED, ORIGINAL):
            raise ValueError(f"credible_labels={label!r} must be {ORIGINAL} (original) or {GENERATED} (generated).")
        cls = special_id(self.tokenizer, "cls")
        return {
            "input_ids": [cls, *fitted(text.ids, max_length - 1, self.truncation, "the text")],
            "credible_labels": int(label),
        }


__all__ = ["AdversarialTexts", "CredibleRows", "ModelContinuations", "within"]
