"""Generation behind `transformers serve`: the host's, with the ends of the model's context known.

The host asks for 1024 new tokens where a client asks for no number, and generates greedily where the model's own
generation config does, whatever temperature the client sent. Here an answer ends where the model's context does, a
prompt that leaves no room is an error before the first byte of the answer (a stream has no status to change later),
and a temperature or `top_p` samples.
"""

from typing import Any

from transformers.cli.serving.utils import GenerateManager

CONTINUOUS_BATCHING = (
    "continuous batching hands every prompt to the model as a causal text with counted positions, in pieces; the "
    "context of GLM-130B is read in both directions. Leave it out: requests are then answered one after another. "
    "vLLM answers many at once (docs/serve.md)."
)


def settle(model: Any, prompt_length: int, generation_config: Any) -> None:
    """Fits a request's settings to the model, in place.

    Args:
        model: The model that answers.
        prompt_length: Of the request's ids, in tokens.
        generation_config: What the host made of the request.

    Raises:
        ValueError: the prompt leaves no room to answer; a model that does not generate.
    """
    if not model.can_generate():
        raise ValueError(f"The model served is a {type(model).__name__}, which does not generate.")
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None:
        room = context - prompt_length
        if room < 1:
            raise ValueError(
                f"The prompt has {prompt_length} tokens and the model's context {context}: no room is left to "
                "generate. Shorten the text."
            )
        asked = generation_config.max_new_tokens
        if asked is not None or generation_config.max_length is None:
            generation_config.max_new_tokens = room if asked is None else min(asked, room)
    sampled = [value for value in (generation_config.temperature, generation_config.top_p) if value is not None]
    if sampled and generation_config.temperature != 0:
        generation_config.do_sample = True


class CheckedGeneration(GenerateManager):
    """The host's generation of one model, one request after another, after [`settle`]."""

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, *others: Any, **named: Any
    ) -> Any:
        """As in the host.

        Args:
            model: As in the host.
            processor: As in the host.
            inputs: As in the host.
            gen_config: As in the host; changed as [`settle`] says.
            *others: As in the host.
            **named: As in the host.

        Returns:
            As in the host.

        Raises:
            ValueError: as [`settle`].
        """
        settle(model, inputs["input_ids"].shape[-1], gen_config)
        return super().generate_streaming(model, processor, inputs, gen_config, *others, **named)

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, *others: Any, **named: Any
    ) -> Any:
        """As in the host; arguments, result and errors as of the one above."""
        settle(model, inputs["input_ids"].shape[-1], gen_config)
        return await super().generate_non_streaming(model, processor, inputs, gen_config, *others, **named)


class Generations:
    """Stands in for the host's `GenerationState.get_manager`: one [`CheckedGeneration`] for each model."""

    def __init__(self) -> None:
        self._of: dict[str, CheckedGeneration] = {}

    def __call__(self, model_id: str, use_cb: bool = False) -> CheckedGeneration:
        """The generation of a model.

        Args:
            model_id: The host's name of the model.
            use_cb: Whether the host would batch continuously.

        Returns:
            Made at the first call, the same one after.

        Raises:
            ValueError: continuous batching.
        """
        if use_cb:
            raise ValueError(f"--continuous-batching: {CONTINUOUS_BATCHING}")
        return self._of.setdefault(model_id, CheckedGeneration())


__all__ = ["CONTINUOUS_BATCHING", "CheckedGeneration", "Generations", "settle"]
