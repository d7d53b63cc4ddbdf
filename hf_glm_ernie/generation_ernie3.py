"""Generation with ERNIE 3.0: the host's `generate`, taught to go on from memories.

A text is continued from the memory of its earlier segments: `generate(input_ids, memories=memories)`. The memory's
keys are computed once, with the prompt, and become the first columns of the cache; positions go on from the tokens
seen before. Everything else is the host's: the cache has a layer for each layer of both stacks because the config
says so (`Ernie3Config.get_text_config`).

Letters in shape comments: B batch, P prompt, M memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationMixin

from .host_inputs import check_tokens
from .host_interface import (
    check_arguments,
    generation_setting,
    given_cache,
    name_cache_as_host,
    named_cache,
)
from .memory_ernie3 import MEMORY_OF_CACHE


class Ernie3GenerationMixin(GenerationMixin):
    """The host's `generate` with `memories=` and `genre_ids=`."""

    config: Any

    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As [`~transformers.GenerationMixin.generate`].

        Args:
            inputs: (B, P) int64 prompt ids, padded on the left.
            generation_config: As in the host.
            *args: As in the host.
            **kwargs: As in the host. `memories` ([`Ernie3Memories`] of the text before the prompt), `genre_ids` (B,)
                of the prompt's soft prompts; their placeholder is never written.

        Returns:
            As the host: (B, T) int64 ids, prompt included, or a `ModelOutput`. For the memories of a generated text
            run it through the model.

        Raises:
            TypeError: ids of another type.
            ValueError: ids that are no rows or outside the vocabulary; memories together with assisted decoding;
                `assistant_early_exit`; with relative positions, a text longer than they reach.
        """
        self._refuse_early_exit(generation_config, kwargs)
        name_cache_as_host(kwargs)
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if ids is not None and kwargs.get("inputs_embeds") is None:
            check_tokens(ids, None, self.config.vocab_size, self.config.hidden_size, waits=True)
        if kwargs.get("memories") is not None:
            self._refuse_candidates(generation_config, kwargs)
            kwargs["return_memories"] = False
        if self.config.num_soft_prompt_genres:
            kwargs["suppress_tokens"] = self._suppressed(generation_config, kwargs)
        return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]  # host: self is a model

    def _suppressed(self, generation_config: Any, kwargs: dict[str, Any]) -> list[int]:
        """The ids that are never written: those asked for, and the placeholder, which stands for no word."""
        settings = self.generation_config if generation_config is None else generation_config
        asked = kwargs.get("suppress_tokens", settings.suppress_tokens)
        return [*(asked or []), self.config.soft_prompt_token_id]

    def _refuse_early_exit(self, generation_config: Any, kwargs: dict[str, Any]) -> None:
        early_exit = generation_setting("assistant_early_exit", kwargs, generation_config, self.generation_config)
        if early_exit is not None:
            raise ValueError(
                f"assistant_early_exit={early_exit}: a branch reads what the whole universal stack hands it, so "
                "ERNIE 3.0 has no layer to exit at. Use assistant_model or prompt_lookup_num_tokens."
            )

    def _refuse_candidates(self, generation_config: Any, kwargs: dict[str, Any]) -> None:
        for name in ("assistant_model", "prompt_lookup_num_tokens"):
            if generation_setting(name, kwargs, generation_config, self.generation_config) is not None:
                raise ValueError(
                    f"{name} and memories do not go together: the host checks candidates against a cache that begins "
                    "with the prompt. Leave one of them out."
                )

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]) -> Any:
        """Positions of the prompt, on from the tokens that the memories have seen."""
        positions = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)  # type: ignore[misc]  # as above
        memories = model_kwargs.get("memories")
        if memories is None:
            return positions
        return positions + memories.tokens_seen[:, None].to(positions.device)

    def _expand_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """One row for each beam or candidate, of the memories too."""
        expand_size = kwargs.get("expand_size", args[0] if args else 1)
        memories = kwargs.get("memories")
        if memories is not None and expand_size > 1:
            rows = torch.arange(memories.mask.shape[0], device=memories.mask.device)
            kwargs["memories"] = memories.select(rows.repeat_interleave(expand_size))
        return super()._expand_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]  # as above

    def _prepare_static_cache(self, *args: Any, **kwargs: Any) -> Any:
        """A static cache with room for the memory in front."""
        longest = self.config.max_position_embeddings
        if self.config.position_embedding_type == "relative" and kwargs["max_cache_len"] > longest:
            raise ValueError(
                f"A static cache of {kwargs['max_cache_len']} tokens is longer than the relative positions reach "
                f"(max_position_embeddings={longest}). Lower max_new_tokens, or continue in segments with memories."
            )
        memories = kwargs["model_kwargs"].get("memories")
        if memories is not None:
            kwargs["max_cache_len"] += memories.mask.shape[1]
        return super()._prepare_static_cache(*args, **kwargs)  # type: ignore[misc]  # as above

    def _get_static_cache_init_shape(self) -> None:
        """No shape for all layers: the two stacks have different heads, and each cache layer learns its own."""
        return None

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        next_sequence_length: int | None = None,
        cache: Any = None,
        attention_mask: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        memories: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in the host; memories come whole with the first call on a cache and without states later."""
        kwargs.pop("tokenizer", None)  # of `stop_strings`, which have been read: the host hands it to every forward
        cache = given_cache(cache, past_key_values)
        filled = cache is not None and (not is_first_iteration or bool(cache.get_seq_length() > 0))
        noted = getattr(cache, MEMORY_OF_CACHE, 0)
        if memories is not None and filled and noted:
            memories = memories.without_states()
            if is_first_iteration and next_sequence_length is not None:
                next_sequence_length += noted  # the host took the memory's columns for tokens of the prompt
        if attention_mask is None and inputs_embeds is None and not filled:
            # The host dropped a mask of ones. Said again, because without one a generated pad id would be padding.
            length = input_ids.shape[1] if next_sequence_length is None else next_sequence_length
            attention_mask = torch.ones((input_ids.shape[0], length), dtype=torch.long, device=input_ids.device)
        return super().prepare_inputs_for_generation(  # type: ignore[misc]  # host: self is a model
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            memories=memories,
            **named_cache(cache),
            **kwargs,
        )

    @staticmethod
    def create_masks_for_generate(
        config: Any,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Any = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        is_first_iteration: bool | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """With a static cache: the 2-D mask at the cache's length, so that every step has one shape.

        The mask in four dimensions is made in the forward, which knows the memory and counts relative distances.
        Positions, types and whether it is the first step do not shape it; what the host may pass for other models
        (`block_sequence_ids`, ..) is refused where it says something.
        """
        check_arguments("create_masks_for_generate", kwargs)
        cache = given_cache(cache, past_key_values)
        if attention_mask is None or attention_mask.ndim != 2:
            return attention_mask
        noted = getattr(cache, MEMORY_OF_CACHE, 0)
        room = cache.get_max_length() - noted - attention_mask.shape[1]
        return F.pad(attention_mask, (0, max(room, 0)), value=1)


__all__ = ["Ernie3GenerationMixin"]
