"""What a request to GLM-130B may hold, checked where vLLM turns it into ids, so that a bad one is answered with a 400.

A text becomes ids by the tokenizer's default call, as everywhere in this package: a mask in it brings `[CLS]`-like
closing tokens and `<sop>`, a text without a mask is causal. `add_special_tokens=False` leaves them out, and `<sop>`
and the like may be written into the text instead.
"""

from collections.abc import Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers.hf import HfRenderer

MASKS = ("mask_token_id", "gmask_token_id", "smask_token_id")


class Glm130bRenderer(HfRenderer):
    """vLLM's renderer for tokenizers of transformers, with the checks of this module."""

    def validate_token_ids(self, token_ids: Sequence[int], *, parameter: str | None = None) -> None:
        """Checks the ids of a request, whether they were sent or made of a text.

        Raises:
            VLLMValidationError: an id that has no token, or more than one kind of mask in the context.
        """
        super().validate_token_ids(token_ids, parameter=parameter)
        config: Any = self.model_config.hf_config
        problem = unknown_ids(token_ids, None if self.tokenizer is None else len(self.tokenizer))
        problem = problem or mixed_masks(token_ids, config)
        if problem:
            raise VLLMValidationError(problem, parameter=parameter or "prompt")

    def _tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        try:
            return super()._tokenize_prompt(prompt, params)
        except ValueError as error:
            raise VLLMValidationError(str(error), parameter="prompt") from error

    async def _tokenize_prompt_async(self, prompt: Any, params: Any) -> Any:
        try:
            return await super()._tokenize_prompt_async(prompt, params)
        except ValueError as error:
            raise VLLMValidationError(str(error), parameter="prompt") from error


def unknown_ids(token_ids: Sequence[int], tokens: int | None) -> str:
    """What is wrong with ids that have no token; empty where every one has."""
    wrong = sorted({index for index in token_ids if tokens is not None and not 0 <= index < tokens})
    if not wrong:
        return ""
    return f"The ids {wrong[:5]} have no token: the tokenizer knows the ids 0 .. {(tokens or 0) - 1}."


def mixed_masks(token_ids: Sequence[int], config: Any) -> str:
    """What is wrong with the masks before the first `<sop>`; empty where they are of one kind."""
    ids = list(token_ids)
    if config.sop_token_id not in ids:
        return ""
    context = set(ids[: ids.index(config.sop_token_id)])
    kinds = [name for name in MASKS if getattr(config, name) in context]
    if len(kinds) < 2:
        return ""
    named = " and ".join(f"{getattr(config, name)} ({name})" for name in kinds)
    return f"The context holds two kinds of mask, {named}: GLM-130B fills one kind at a time. Keep one kind."
