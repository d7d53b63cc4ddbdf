"""What a request to GLM-130B may hold, checked where vLLM turns it into ids, so that a bad one is answered with a 400.

A text becomes ids by the tokenizer's default call, as everywhere in this package: it gets a `[gMASK]` where it has no
mask, then `<sop>`. With `add_special_tokens=False` nothing is put behind it.
"""

from collections.abc import Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers.hf import HfRenderer

from .checks import mixed_masks, unknown_ids


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
