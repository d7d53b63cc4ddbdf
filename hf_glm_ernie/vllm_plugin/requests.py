"""What a request to GLM-130B may hold, checked where vLLM turns it into ids, so that a bad one is answered with a 400.

A text becomes ids by the tokenizer's default call, as everywhere in this package: it gets a `[gMASK]` where it has no
mask, then `<sop>`. With `add_special_tokens=False` nothing is put behind it. A chat becomes ids in one step, as by
`apply_chat_template` in this package: the text of the template, tokenized as a whole, would be other ids.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers.hf import HfRenderer

from .checks import cut_prompt, mixed_masks, no_room, unknown_ids


class Glm130bRenderer(HfRenderer):
    """vLLM's renderer for tokenizers of transformers, with the checks of this module."""

    def _process_tokens(self, prompt: Any, **kwargs: Any) -> Any:
        self._check(prompt["prompt_token_ids"])
        return super()._process_tokens(prompt, **kwargs)

    async def _process_tokens_async(self, prompt: Any, **kwargs: Any) -> Any:
        self._check(prompt["prompt_token_ids"])
        return await super()._process_tokens_async(prompt, **kwargs)

    def _check(self, token_ids: Sequence[int]) -> None:
        """Checks the ids of a request, whether they were sent or made of a text.

        Raises:
            VLLMValidationError: an id that has no token, more than one kind of mask in the context, or a prompt
                that fills the context.
        """
        config: Any = self.model_config.hf_config
        tokens = self.model_config.get_vocab_size() if self.tokenizer is None else len(self.tokenizer)
        problem = unknown_ids(token_ids, tokens)
        problem = problem or mixed_masks(token_ids, config) or no_room(token_ids, self.model_config.max_model_len)
        if problem:
            raise VLLMValidationError(problem, parameter="prompt")

    def _tokenize_singleton_prompt(self, prompt: Any, params: Any) -> Any:
        _refuse_cut(prompt, params)
        return super()._tokenize_singleton_prompt(prompt, params)

    async def _tokenize_singleton_prompt_async(self, prompt: Any, params: Any) -> Any:
        _refuse_cut(prompt, params)
        return await super()._tokenize_singleton_prompt_async(prompt, params)

    def render_messages(self, messages: Any, params: Any) -> Any:
        """As in vLLM, with the ids that the chat template's text has here."""
        return super().render_messages(messages, _as_ids(params))

    async def render_messages_async(self, messages: Any, params: Any) -> Any:
        """Likewise."""
        return await super().render_messages_async(messages, _as_ids(params))

    def _tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        try:
            return super()._tokenize_prompt(prompt, params)
        except ValueError as error:
            raise VLLMValidationError(str(error), parameter="prompt") from error


def _refuse_cut(prompt: Any, params: Any) -> None:
    problem = cut_prompt(prompt.get("prompt_token_ids") or (), params.truncate_prompt_tokens)
    if problem:
        raise VLLMValidationError(problem, parameter="truncate_prompt_tokens")


def _as_ids(params: Any) -> Any:
    return replace(params, chat_template_kwargs=params.chat_template_kwargs | {"tokenize": True})
