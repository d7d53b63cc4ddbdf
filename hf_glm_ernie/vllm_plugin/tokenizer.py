"""The tokenizer of a server: it decodes every id that the model has, also one that the tokenizer has no token for.

The embedding of GLM-130B is padded (150,528 rows for 150,344 tokens). A server must outlive the request that asks for
the most probable tokens of each place, where such an id may be among them: it has no text.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from vllm.tokenizers.hf import get_cached_tokenizer

from hf_glm_ernie.tokenization_glm130b import Glm130bTokenizer


class ServingTokenizer(Glm130bTokenizer):
    """`Glm130bTokenizer`, in which an id without a token is the empty token."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the name that vLLM's registry has for the first argument
        cls, path_or_repo_id: str | Path, *args: Any, **kwargs: Any
    ) -> Any:
        """What vLLM's registry calls; the arguments are vLLM's.

        Raises:
            ValueError: the folder's tokenizer is not GLM-130B's.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in ("download_dir", "mistral_format")}
        tokenizer = AutoTokenizer.from_pretrained(path_or_repo_id, *args, **kwargs)
        if not isinstance(tokenizer, Glm130bTokenizer):
            raise ValueError(
                f"The tokenizer of {path_or_repo_id} is a {type(tokenizer).__name__}, not a Glm130bTokenizer. "
                "Serve a converted folder."
            )
        tokenizer.__class__ = cls
        return get_cached_tokenizer(tokenizer)

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or of each of several; `""` where an id has none."""
        tokens = super().convert_ids_to_tokens(ids, skip_special_tokens)
        return [token or "" for token in tokens] if isinstance(tokens, list) else tokens or ""
