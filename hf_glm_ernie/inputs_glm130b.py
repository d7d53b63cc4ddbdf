"""What GLM-130B refuses in a training batch, before it costs a model.

The context of a row is read in both directions: a token there sees the one that comes after it. A label on context
therefore asks the model for what it is looking at, its loss falls to nothing in a few steps, and what it could do is
gone. Rows that stand one behind the other without a layout of their own are as bad: only the first one's context is
taken for context.

Collators of causal language models label every token and join rows, so both are checked here. Letters in shape
comments: B batch, L tokens.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch

from .host_inputs import IGNORED, check_labels_of, shape_scored
from .prefix_glm130b import prefix_token_type_ids

# Keyword arguments of collators that join rows into one (`padding_free`, packing); only flash attention reads them.
JOINED_ROWS = ("cu_seq_lens_q", "cu_seq_lens_k")

# Printed by a compiled graph, on CUDA devices by the kernel, which takes 256 characters.
SAID_BY_A_GRAPH = (
    "GLM-130B: labels on bidirectional context (before <sop>), or rows joined into one without token_type_ids. Run a "
    "step without torch.compile to see which."
)


def joined_rows(input_ids: torch.Tensor, sop_token_id: int | None, position_ids: torch.Tensor | None) -> torch.Tensor:
    """Finds where another row begins, or another answer.

    Args:
        input_ids: (B, L) int64.
        sop_token_id: Id of `<sop>`, or `None`.
        position_ids: (B, L) or (1, L) int64 of a batch without padding, or `None`.

    Returns:
        (B, L) bool: every `<sop>` of a row but the first, and where positions begin anew and count on.
    """
    joined = torch.zeros_like(input_ids, dtype=torch.bool)
    if sop_token_id is not None:
        is_sop = input_ids == sop_token_id
        joined = is_sop & (is_sop.cumsum(-1) > 1)
    if position_ids is not None and position_ids.ndim == 2 and position_ids.shape[1] == input_ids.shape[1]:
        # The answer of a row that begins with its mask has position 0 as well, but does not count on.
        anew = (position_ids[:, 1:-1] == 0) & (position_ids[:, 2:] == 1)
        joined = joined | torch.nn.functional.pad(anew, (1, 1))
    return joined


def check_labels(labels: torch.Tensor, token_type_ids: torch.Tensor, joined: torch.Tensor | None = None) -> None:
    """Refuses labels on context, and rows joined without a layout.

    Args:
        labels: (B, L) int64, -100 where nothing is scored.
        token_type_ids: (B, L), 0 = context, 1 = `<sop>` and after.
        joined: (B, L) bool from [`joined_rows`]; `None` where the caller gave the types and so the layout.

    Raises:
        ValueError: a label on context, or joined rows. Where torch traces, the graph checks the same and stops with a
            RuntimeError (on CUDA devices with an assertion of the device).
    """
    if labels.shape != token_type_ids.shape:
        return  # `check_training_batch` says so, and the loss
    seen = (labels != IGNORED) & (token_type_ids == 0)  # (B, L) bool
    joined = torch.zeros_like(seen) if joined is None else joined
    if torch.compiler.is_compiling():
        if labels.device.type in ("cpu", "cuda"):  # the devices that have it
            torch._assert_async(~(seen | joined).any(), SAID_BY_A_GRAPH)
        return
    # One wait for the device; building the mask of a row with context waits as well.
    any_seen, any_joined = torch.stack((seen.any(), joined.any())).tolist()
    if any_seen:
        row, index = seen.nonzero()[0].tolist()
        raise ValueError(
            f"labels[{row}, {index}] = {labels[row, index].item()} stands on context: what comes before <sop> is read "
            "in both directions, so the model sees there what it is asked for and would unlearn everything else. Only "
            "what follows <sop> is scored; context carries -100. InstructionPairs and BlankInfilling with "
            "Glm130bCollator make such rows. With TRL's SFTTrainer pass `messages` and assistant_only_loss=True, or a "
            "`prompt` and a `completion` that are messages, or rows of InstructionPairs. For causal training of plain "
            "text tokenize with add_special_tokens=False, which writes no <sop>. Whoever wants labels on context sets "
            "config.allow_context_labels=True."
        )
    if any_joined:
        row, index = joined.nonzero()[0].tolist()
        raise ValueError(
            f"At [{row}, {index}] of the batch another row begins, or another answer, without token_type_ids: the "
            "model would read it as part of the first one. Rows that stand one behind the other (packing, "
            "padding_free, flattening) and several blanks in a row need token_type_ids and position_ids, and packed "
            "rows a mask: Packing and Glm130bCollator make them. With TRL's SFTTrainer leave packing and padding_free "
            "off."
        )


def check_training_batch(
    model: Any,
    labels: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    shift_labels: torch.Tensor | None = None,
    logits_to_keep: int | torch.Tensor = 0,
    **others: Any,
) -> None:
    """As [`check_labels`], for the arguments of a model's `forward`.

    Args:
        model: A `Glm130bForCausalLM`; `config.allow_context_labels` switches the check off.
        labels: As in `forward`; nothing is checked without them.
        input_ids: As in `forward`.
        attention_mask: As in `forward`.
        position_ids: As in `forward`.
        token_type_ids: As in `forward`.
        inputs_embeds: As in `forward`.
        shift_labels: As in `forward`; they are scored in place of `labels`.
        logits_to_keep: As in `forward`.
        **others: Not read: what else `forward` takes.

    Raises:
        ValueError: as [`check_labels`].
    """
    if shift_labels is not None:
        labels = torch.nn.functional.pad(shift_labels, (1, 0), value=IGNORED)[..., :-1]
    tokens = inputs_embeds if input_ids is None else input_ids
    if labels is None or tokens is None or (input_ids is not None and inputs_embeds is not None):
        return
    name = "labels" if shift_labels is None else "shift_labels"
    check_labels_of(name, labels, shape_scored(labels, tokens.shape[:2], logits_to_keep), model.config.vocab_size)
    if model.config.allow_context_labels:
        return
    joined = None
    if token_type_ids is None:
        ids = model.model.marked_ids(inputs_embeds) if input_ids is None else input_ids
        token_type_ids = prefix_token_type_ids(ids, model.config.sop_token_id)
        joined = joined_rows(ids, model.config.sop_token_id, position_ids if attention_mask is None else None)
    check_labels(labels, token_type_ids, joined)


def refuse_joined_rows(arguments: Mapping[str, Any]) -> None:
    """Raises where a collator has joined rows and says where they begin to flash attention only.

    Args:
        arguments: What `forward` was given beside its own arguments.

    Raises:
        ValueError: one of `cu_seq_lens_q` and `cu_seq_lens_k`.
    """
    if given := [name for name in JOINED_ROWS if arguments.get(name) is not None]:
        raise ValueError(
            f"{' and '.join(given)} say where joined rows begin, which GLM-130B cannot follow: its prefix mask needs "
            "one row a line. Leave packing and padding_free off, or pack with hf_glm_ernie's Packing and "
            "Glm130bCollator, which make the mask."
        )


def labels_seen_first(model: Any, forward: Any, own: Callable[..., Any]) -> Any:
    """Puts the check in front of a `forward` that another library has set on a model.

    TRL's `SFTTrainer` replaces `forward` by one that scores the tokens itself, so the model would never see labels.

    Args:
        model: Whose `forward` is replaced.
        forward: What is to take its place.
        own: The class's `forward`.

    Returns:
        `forward`, or a method that checks and calls it where it has a parameter `labels` of its own: one without
        passes them on to ours.
    """
    function = getattr(forward, "__func__", forward)
    if function in (own, inspect.unwrap(own)) or "labels" not in _own_parameters(function):
        return forward
    names = list(inspect.signature(own).parameters)[1:]  # without self

    @functools.wraps(function)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_training_batch(self, **dict(zip(names, args, strict=False)), **kwargs)
        return function(self, *args, **kwargs) if function is not forward else forward(*args, **kwargs)

    return MethodType(checked, model)


def _own_parameters(function: Any) -> Mapping[str, Any]:
    try:
        return inspect.signature(function, follow_wrapped=False).parameters
    except (TypeError, ValueError):  # a callable that tells nothing about itself
        return {}


__all__ = [
    "IGNORED",
    "JOINED_ROWS",
    "check_labels",
    "check_training_batch",
    "joined_rows",
    "labels_seen_first",
    "refuse_joined_rows",
]
