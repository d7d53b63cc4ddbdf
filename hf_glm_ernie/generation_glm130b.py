"""Generation with GLM-130B: what `generate` needs to know about a prefix model, and `fill_blanks`.

The host's `generate` does the work. Two things are ours:

- `Glm130bGenerationMixin` reads the prompt's layout (context or answer, and positions) once, before generation
  starts, and extends it step by step. So beams, sampling, assisted decoding, static caches and uncached generation
  all see the same positions, and a `<sop>` or a mask that the model itself writes changes nothing behind it. Modes
  that would read the prompt in pieces or causally are refused.
- `fill_blanks` fills the blanks of a text left to right, as the original's `generate.py` does: each blank is
  generated with the text filled so far as its context.

Source: `generate.py` and `evaluation/model.py` of the GLM-130B repository [R]. Letters in shape comments: B batch, P
prompt, T all tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn, overload

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import GenerationConfig, GenerationMixin, StoppingCriteria, StoppingCriteriaList

from .host_arguments import check_model_and_tokenizer, checked_texts, short, whole_number
from .host_inputs import check_tokens
from .host_interface import (
    CACHE_NAME,
    check_arguments,
    generation_setting,
    given_cache,
    name_cache_as_host,
    named_cache,
)
from .prefix_glm130b import (
    CAUSAL_SO_FAR,
    ROWS_OF_CACHE,
    answer_positions_go_on,
    layout,
    left_padded,
    prefix_attention_mask,
)

# What `generate` carries from step to step beside the host's own.
PROMPT_LAYOUT = ("prompt_token_type_ids", "prompt_position_ids", "answer_step")


class Glm130bGenerationMixin(GenerationMixin):
    """The host's `generate`, taught where the context ends and which positions the answer takes."""

    config: Any

    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As [`~transformers.GenerationMixin.generate`]; the prompt's context is read in both directions.

        Args:
            inputs: (B, P) int64 prompt ids, each row ending in `<sop>` (the tokenizer's default call makes them).
            generation_config: As in the host.
            *args: As in the host.
            **kwargs: As in the host. `token_type_ids` (B, P; 0 = context, 1 = after) and `position_ids` (B, P)
                replace what follows from the ids; positions go on after the prompt unless `<sop>` was given a
                position not after its predecessor's, which is kept.

        Returns:
            As the host: (B, T) int64 ids, prompt included, or a `ModelOutput`.

        Raises:
            ValueError: ids outside the vocabulary; a prompt that fills the context; a mode that reads a prompt in
                pieces or causally; a cache that holds the beginning of a context as causal text; an
                `assistant_early_exit` that is not one of the layers.
        """
        name_cache_as_host(kwargs)
        self._refuse_split_prompts(generation_config, kwargs)
        self._check_early_exit(generation_config, kwargs)
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if ids is not None and kwargs.get("inputs_embeds") is not None and not ids.shape[-1]:
            ids = None  # the host's empty ids of a prompt given as embeddings
        if ids is not None:
            check_tokens(ids, None, self.config.vocab_size, self.config.hidden_size, waits=True)
            self._check_room(ids, kwargs.get("attention_mask"))
        self._add_prompt_layout(ids, kwargs)
        num_hidden_layers = self.config.num_hidden_layers
        try:
            return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]  # host: self is a model
        finally:
            # With `assistant_early_exit` the host lowers it while it drafts, and leaves it so where drafting fails.
            self.config.num_hidden_layers = num_hidden_layers

    def _check_room(self, ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        longest = ids.shape[1] if attention_mask is None else int(attention_mask.sum(-1).max())
        if longest >= self.config.max_position_embeddings:
            raise ValueError(
                f"The prompt has {longest} tokens and the model's context {self.config.max_position_embeddings}: no "
                "room is left to generate. Shorten the text (the context length is config.max_position_embeddings)."
            )

    def _refuse_split_prompts(self, generation_config: Any, kwargs: dict[str, Any]) -> None:
        for name, refused in (("prefill_chunk_size", None), ("cache_implementation", "paged")):
            value = generation_setting(name, kwargs, generation_config, self.generation_config)
            if value is not None and (refused is None or value == refused):
                raise ValueError(
                    f"{name}={value!r} reads a prompt in pieces, but the context of GLM-130B is bidirectional: its "
                    f"first token depends on its last. Leave {name} out; the prompt then goes through the model at "
                    "once."
                )

    def _check_early_exit(self, generation_config: Any, kwargs: dict[str, Any]) -> None:
        early_exit = generation_setting("assistant_early_exit", kwargs, generation_config, self.generation_config)
        if early_exit is not None and not 0 < early_exit <= self.config.num_hidden_layers:
            raise ValueError(
                f"assistant_early_exit={early_exit} is the layer whose output drafts: it must lie in 1 .. "
                f"{self.config.num_hidden_layers} (config.num_hidden_layers)."
            )

    def _refuse_causal_prefix(self, types: torch.Tensor, mask: torch.Tensor | None, cache: Any) -> None:
        """Refuses a cache that was filled with context as if it were causal, as `forward` does."""
        rows = getattr(cache, ROWS_OF_CACHE, None)
        cached = 0 if rows is None else int(cache.get_seq_length())
        if rows is None or not cached:
            return
        context = (types == 0) if mask is None else (types == 0) & (mask != 0)
        causal = torch.tensor([state == CAUSAL_SO_FAR for state in rows], device=types.device)
        causal = causal if len(rows) == len(types) else causal.any()  # its rows were repeated or selected
        if (context[:, :cached].any(-1) & causal).any():
            raise ValueError(
                f"The cache holds {cached} tokens of the prompt that were read as causal, but what stands before "
                "<sop> is bidirectional context. Leave the cache out, or fill it with context and <sop> in one "
                "forward (a prompt cannot be prefilled in pieces)."
            )

    def _add_prompt_layout(self, ids: torch.Tensor | None, kwargs: dict[str, Any]) -> None:
        """Puts the layout of the prompt into `kwargs`, in place of explicit types and positions."""
        types, positions = kwargs.pop("token_type_ids", None), kwargs.pop("position_ids", None)
        if kwargs.get("prompt_token_type_ids") is not None:
            return  # this is the assistant of another model: its prompt's layout holds for what was accepted since
        if ids is None and types is None and positions is None:
            ids = self._ids_seen_in(kwargs.get("inputs_embeds"))
            if ids is None:
                return
        if ids is None and (types is None or positions is None):
            raise ValueError(
                "With inputs_embeds pass both token_type_ids and position_ids, or neither: then <sop> and masks are "
                "recognised by their embeddings."
            )
        mask = kwargs.get("attention_mask")
        if ids is not None:
            mask = kwargs["attention_mask"] = self._infer_padding(ids) if mask is None else mask
            if mask is not None and mask.shape != ids.shape:
                # Only the new ids of a cached text: `forward` knows its rows. Or a mask that the host refuses.
                kwargs |= {"token_type_ids": types, "position_ids": positions}
                return
            types, positions = layout(self.config, ids, mask, types, positions)
        assert types is not None
        assert positions is not None
        self._refuse_causal_prefix(types, mask, kwargs.get(CACHE_NAME))
        positions = positions.expand(types.shape[0], -1)
        kwargs["prompt_token_type_ids"] = types
        kwargs["prompt_position_ids"] = positions
        # (B, 1): 1 = positions go on, 0 = they stay
        kwargs["answer_step"] = answer_positions_go_on(types, positions, mask).long()

    def _ids_seen_in(self, inputs_embeds: torch.Tensor | None) -> torch.Tensor | None:
        """The ids that lay out a prompt given as embeddings, or `None` where there is no `<sop>` in it."""
        if inputs_embeds is None or self.config.sop_token_id is None:
            return None
        ids: torch.Tensor = self.get_decoder().marked_ids(inputs_embeds)  # type: ignore[attr-defined]  # host: self is a model
        return ids if bool((ids == self.config.sop_token_id).any()) else None

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        # PEFT's prompt tuning puts a function of its own in place of `prepare_inputs_for_generation`, and the host
        # reads the names it may pass from that one's signature.
        others = {name: value for name, value in model_kwargs.items() if name not in PROMPT_LAYOUT}
        super()._validate_model_kwargs(others)  # type: ignore[misc]  # host: self is a model

    def _infer_padding(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Takes pad ids for padding as the host does, ahead of it, so that positions and mask cannot disagree."""
        pad = self.generation_config.pad_token_id
        pad = self.config.pad_token_id if pad is None else pad
        if pad is None or pad in _as_list(self.generation_config.eos_token_id) or not (ids == pad).any():
            return None
        return (ids != pad).long()

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        next_sequence_length: int | None = None,
        cache: Any = None,
        attention_mask: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        prompt_token_type_ids: torch.Tensor | None = None,
        prompt_position_ids: torch.Tensor | None = None,
        answer_step: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in the host, with types and positions of every token so far in place of the host's count."""
        kwargs.pop("tokenizer", None)  # of `stop_strings`, which have been read: the host hands it to every forward
        if prompt_token_type_ids is not None and prompt_position_ids is not None and answer_step is not None:
            counted = kwargs.get("position_ids")
            total = input_ids.shape[1] if counted is None else counted.shape[-1]
            new = total - prompt_token_type_ids.shape[1]
            if next_sequence_length == 1 and new > 0:  # every step but the first: the new token alone
                kwargs["position_ids"] = prompt_position_ids[:, -1:] + answer_step * new
                kwargs["token_type_ids"] = torch.ones_like(kwargs["position_ids"])
            else:
                steps = torch.arange(1, new + 1, device=answer_step.device)
                kwargs["token_type_ids"] = F.pad(prompt_token_type_ids, (0, new), value=1)
                kwargs["position_ids"] = torch.cat(
                    (prompt_position_ids, prompt_position_ids[:, -1:] + answer_step * steps), dim=-1
                )
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]  # host: self is a model
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **named_cache(given_cache(cache, past_key_values)),
            **kwargs,
        )
        if "prepare_inputs_for_generation" in vars(self) and CACHE_NAME in inputs:
            # PEFT's prompt learning has put a function of its own in front of this one, which (up to PEFT 0.21) looks
            # for the cache under its old name and else makes a second one
            inputs["past_key_values"] = inputs.pop(CACHE_NAME)
        return inputs

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
        """The mask of one step, made ahead of the forward where the cache is static.

        Positions do not shape it, nor whether it is the first step; what the host may pass for other models
        (`block_sequence_ids`, ..) is refused where it says something.
        """
        check_arguments("create_masks_for_generate", kwargs)
        cache = given_cache(cache, past_key_values)
        return prefix_attention_mask(config, inputs_embeds, attention_mask, cache, token_type_ids)

    def _refuse_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "Continuous batching hands every request to the model as a causal text with counted positions, which is "
            "wrong for GLM-130B's bidirectional context. Use generate() or fill_blanks() with a batch of texts."
        )

    init_continuous_batching = _refuse_continuous_batching
    continuous_batching_context_manager = _refuse_continuous_batching
    generate_batch = _refuse_continuous_batching


@dataclass(frozen=True)
class FilledText:
    """A text with its blanks filled.

    Attributes:
        text: The whole text, decoded.
        blanks: What was written into each blank, left to right, decoded.
        input_ids: The ids of the whole text, without the `</s>` that closed the context.
        blank_ids: The ids that were written into each blank, without the token that ended them.
    """

    text: str
    blanks: list[str]
    input_ids: list[int]
    blank_ids: list[list[int]] = field(default_factory=list)


class _RowLimits(StoppingCriteria):
    """Ends each row at its own length, so that a text's answer does not depend on the batch it is in."""

    def __init__(self, max_new_tokens: list[int], padded_length: int):
        self.max_new_tokens = max_new_tokens
        self.padded_length = padded_length
        self.limits: torch.Tensor | None = None  # made where the ids are: a list is copied to a device once

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        rows = input_ids.shape[0]
        if self.limits is None or self.limits.shape[0] != rows or self.limits.device != input_ids.device:
            beams = rows // len(self.max_new_tokens)  # of a row lie side by side
            limits = [limit for limit in self.max_new_tokens for _ in range(beams)]
            self.limits = torch.tensor(limits, device=input_ids.device)
        return self.limits <= input_ids.shape[1] - self.padded_length


class _Row:
    """A text on its way: the ids so far and the blanks filled."""

    def __init__(self, ids: list[int], kind: int, keeps_position: bool, text: str):
        self.ids, self.kind, self.keeps_position, self.text = ids, kind, keeps_position, text
        self.blanks: list[list[int]] = []

    @property
    def blank(self) -> int:
        """Index of the next blank."""
        return self.ids.index(self.kind)

    @property
    def is_open(self) -> bool:
        return self.kind in self.ids

    def prompt(self, sop: int) -> tuple[list[int], list[int], list[int]]:
        """Ids, types and positions, spelled out: an answer filled in earlier may hold a `<sop>` or a mask, which is
        context now.
        """
        length = len(self.ids)
        place = self.blank if self.keeps_position else length
        return [*self.ids, sop], [0] * length + [1], [*range(length), place]

    def fill(self, answer: list[int], sop: int) -> None:
        """Puts an answer in place of the next blank [R `fill_blanks`]."""
        output = [*self.ids, sop, *answer]
        # As the original: the answer begins after the *first* <sop>, also where an earlier answer contained one.
        start = output.index(sop)
        filled = output[: self.blank] + output[start + 1 :] + output[self.blank + 1 : start]
        if len(filled) <= len(self.ids) and filled.count(self.kind) >= self.ids.count(self.kind):
            raise ValueError(f"The model answered a blank with another blank, without end, in {self.text!r}.")
        self.blanks.append(output[start + 1 :])
        self.ids = filled


@overload
def fill_blanks(
    model: Any, tokenizer: Any, texts: str, *, batch_size: int = 16, **generate_kwargs: Any
) -> FilledText: ...
@overload
def fill_blanks(
    model: Any, tokenizer: Any, texts: list[str], *, batch_size: int = 16, **generate_kwargs: Any
) -> list[FilledText]: ...
def fill_blanks(
    model: Any,
    tokenizer: Any,
    texts: str | list[str],
    *,
    batch_size: int = 16,
    **generate_kwargs: Any,
) -> FilledText | list[FilledText]:
    """Fills the blanks of texts, left to right, each with the text filled so far as its context.

    A text has blanks of one kind: `[MASK]` (a few words), `[sMASK]` (a sentence) or `[gMASK]` (at the end, open
    length); without any, a `[gMASK]` is appended. Greedy answers equal those of the original's `generate.py`, batched
    or not.

    Args:
        model: A `Glm130bForCausalLM`.
        tokenizer: Its tokenizer.
        texts: One text or several.
        batch_size: Texts per `generate` call.
        **generate_kwargs: For `model.generate`, e.g. `do_sample`, `num_beams`, `max_new_tokens` (per blank), or
            `max_length` (of a whole text with its answer, in tokens, as the original's `out_seq_length`). An answer
            also ends where the model's context does.

    Returns:
        A `FilledText`, or a list of them in the order of `texts`.

    Raises:
        TypeError: no model or no tokenizer where it belongs, texts that are not strings, a count that is no number.
        ValueError: two kinds of mask in one text, half a surrogate pair, a text that leaves no room to generate,
            several candidates asked for, a count below 1.
    """
    check_model_and_tokenizer(model, tokenizer)
    batch_size = whole_number("batch_size", batch_size)
    _check_settings(generate_kwargs)
    rows = [_read_row(tokenizer, text) for text in checked_texts(texts)]
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    for batch in tqdm(batches, desc="Filling blanks", unit="batch", disable=len(batches) < 2):
        while pending := [row for row in batch if row.is_open]:
            for row, answer in zip(pending, _answers(model, tokenizer, pending, generate_kwargs), strict=True):
                row.fill(answer, tokenizer.sop_token_id)
    filled = [_finish_row(tokenizer, row) for row in rows]
    return filled[0] if isinstance(texts, str) else filled


def _check_settings(generate_kwargs: dict[str, Any]) -> None:
    """Refuses what `generate` would fail at in the middle of a text, or never."""
    if generate_kwargs.get("num_return_sequences", 1) != 1:
        raise ValueError(
            "fill_blanks goes on with the best candidate of each blank: num_return_sequences must be 1. Use "
            "model.generate."
        )
    for name in ("max_new_tokens", "max_length", "num_beams"):
        if generate_kwargs.get(name) is not None:
            whole_number(name, generate_kwargs[name])
    config = generate_kwargs.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise TypeError(f"generation_config={short(config)} is a {type(config).__name__}, not a GenerationConfig.")


def _read_row(tokenizer: Any, text: str) -> _Row:
    *ids, last = tokenizer(text)["input_ids"]  # without <sop>: it is put behind the text anew for each blank
    few_words = [tokenizer.mask_token_id, tokenizer.smask_token_id]
    kind = next((kind for kind in (*few_words, tokenizer.gmask_token_id) if kind in ids), None)
    if last != tokenizer.sop_token_id or kind is None:
        raise ValueError(
            f"The text {text[:80]!r} has an answer written out, or its masks are taken for plain text "
            "(tokenizer.split_special_tokens): fill_blanks takes a text with its blanks and nothing behind <sop>."
        )
    return _Row(ids, kind, kind in few_words, text)


def _finish_row(tokenizer: Any, row: _Row) -> FilledText:
    ids = row.ids[:-1] if row.ids[-1:] == [tokenizer.eos_token_id] else row.ids
    blanks = [str(tokenizer.decode(blank)) for blank in row.blanks]
    return FilledText(str(tokenizer.decode(ids)), blanks, ids, row.blanks)


def _answers(model: Any, tokenizer: Any, rows: list[_Row], generate_kwargs: dict[str, Any]) -> Iterator[list[int]]:
    """Generates the next blank of every row and yields the answers, without the token that ended them."""
    prompt = left_padded([row.prompt(tokenizer.sop_token_id) for row in rows], tokenizer.pad_token_id, model.device)
    limits = _answer_limits(model, rows, generate_kwargs)
    kwargs = {name: value for name, value in generate_kwargs.items() if name != "max_length"}
    width = prompt["input_ids"].shape[1]
    criteria = StoppingCriteriaList([*(kwargs.pop("stopping_criteria", None) or []), _RowLimits(limits, width)])
    output = model.generate(**prompt, **(kwargs | {"max_new_tokens": max(limits)}), stopping_criteria=criteria)
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    ends = set(_as_list(kwargs.get("eos_token_id", model.generation_config.eos_token_id)))
    for sequence, limit in zip(sequences[:, width:].tolist(), limits, strict=True):
        answer = sequence[:limit]
        end = next((i for i, token in enumerate(answer) if token in ends), len(answer))
        yield answer[:end]


def _answer_limits(model: Any, rows: list[_Row], generate_kwargs: dict[str, Any]) -> list[int]:
    """The most tokens each row may write, from `max_new_tokens`, `max_length` and the model's context."""
    config = generate_kwargs.get("generation_config") or model.generation_config
    max_length = generate_kwargs.get("max_length")
    max_new_tokens = generate_kwargs.get("max_new_tokens")
    if max_length is None and max_new_tokens is None:
        max_length, max_new_tokens = config.max_length, config.max_new_tokens
        if max_length is None and max_new_tokens is None:
            max_new_tokens = 256  # out_seq_length of the original's generate.sh
    context = model.config.max_position_embeddings
    total = context if max_length is None else min(context, max_length)
    limits = []
    for row in rows:
        length = len(row.ids) + 1
        room = total - length
        if room < 1:
            limit, way_out = f"max_length={max_length}", "Raise max_length or shorten the text"
            if total == context:
                limit, way_out = f"the model's context is {context}", "Shorten the text"
            raise ValueError(
                f"No room is left to generate: the text and its filled blanks take {length} tokens with <sop>, and at "
                f"most {total} are allowed ({limit}). {way_out}. Text: {row.text[:80]!r}"
            )
        limits.append(room if max_new_tokens is None else min(room, max_new_tokens))
    return limits


def _as_list(ids: int | list[int] | torch.Tensor | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else torch.as_tensor(ids).flatten().tolist()


__all__ = ["FilledText", "Glm130bGenerationMixin", "fill_blanks"]
