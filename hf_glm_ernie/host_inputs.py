"""What a forward is given, checked before it runs: ids, embeddings, positions, types, masks, labels.

Much of what is wrong gives numbers all the same: a mask of three dimensions is left unread, one of 2 counts twice,
labels of another shape broadcast; and what torch refuses it refuses far inside. Types and shapes cost nothing to look
at. Values are looked at on the CPU only: on other devices a look waits for the device, at every step of a generation.
While a graph is traced nothing is checked: it would hold for the example's sizes alone.
"""

from typing import Any

import torch

IGNORED = -100  # a label that is not scored


def traced() -> bool:
    """Whether a graph is being made of the calls."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def check_tokens(
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    vocab_size: int,
    width: int,
    waits: bool = False,
) -> None:
    """Refuses ids and embeddings that are no rows of tokens.

    Args:
        input_ids: Must be (B, L) int64 or int32, each at least 1; or `None`.
        inputs_embeds: Must be (B, L, width), floating point; or `None`.
        vocab_size: Rows of the embedding.
        width: Its width.
        waits: Whether values are looked at on other devices, too: once before a generation.

    Raises:
        TypeError: no tensor, or one of another dtype.
        ValueError: another shape, no rows, no tokens, an id outside the vocabulary.
    """
    if traced():
        return
    if input_ids is not None:
        check_ids(input_ids, vocab_size, waits)
        _check_shape("input_ids", input_ids, "(batch, tokens)", input_ids.ndim == 2)
    if inputs_embeds is not None:
        _check_tensor("inputs_embeds", inputs_embeds)
        if not inputs_embeds.is_floating_point():
            raise TypeError(f"inputs_embeds are {inputs_embeds.dtype}; they must be floating point.")
        fits = inputs_embeds.ndim == 3 and inputs_embeds.shape[-1] == width
        _check_shape("inputs_embeds", inputs_embeds, f"(batch, tokens, {width})", fits)


def check_ids(input_ids: torch.Tensor, vocab_size: int, waits: bool = False) -> None:
    """Refuses ids the embedding has no row for.

    Args:
        input_ids: Of any shape.
        vocab_size: Rows of the embedding.
        waits: Whether values are looked at on other devices than the CPU, too.

    Raises:
        TypeError: no tensor, or neither int64 nor int32.
        ValueError: an id below 0 or not below `vocab_size`; the message names the first one and its index.
    """
    _check_tensor("input_ids", input_ids)
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids are {input_ids.dtype}; ids are torch.int64 (or int32): input_ids.long().")
    if (waits or input_ids.device.type == "cpu") and (found := _first_outside(input_ids, 0, vocab_size - 1)):
        raise ValueError(
            f"input_ids{found} is outside the vocabulary: ids go from 0 to {vocab_size - 1}. Is this the tokenizer "
            "the model was converted with? (-100 belongs into labels only.)"
        )


def check_columns(name: str, values: Any, tokens: torch.Tensor, last: int | None = None, why: str = "") -> None:
    """Refuses positions or types that are not one whole number for each token.

    Args:
        name: Of the argument.
        values: Must be (B or 1, L) integers, or `None`.
        tokens: (B, L) ids or (B, L, width) embeddings.
        last: The highest value, or `None`.
        why: What sets it, for the message.

    Raises:
        TypeError: no tensor of integers.
        ValueError: another shape, a value below 0 or above `last`.
    """
    if values is None or traced():
        return
    _check_tensor(name, values)
    if values.is_floating_point() or values.is_complex():
        raise TypeError(f"{name} are {values.dtype}; they must be whole numbers, torch.int64.")
    rows, length = tokens.shape[:2]
    if values.ndim != 2 or values.shape[1] != length or values.shape[0] not in (1, rows):
        raise ValueError(f"{name} has shape {tuple(values.shape)}; the tokens need ({rows}, {length}).")
    if values.device.type == "cpu" and (found := _first_outside(values, 0, last)):
        upper = "" if last is None else f" to {last}{why}"
        raise ValueError(f"{name}{found} is out of range: they go from 0{upper or ' on'}.")


def check_mask(
    attention_mask: Any, tokens: torch.Tensor, past_length: Any = 0, patterns: tuple[int, ...] = (4,)
) -> None:
    """Refuses a mask that would be left unread, or read as another.

    Args:
        attention_mask: Must be (B, S) of 0 and 1; or of as many dimensions as `patterns` say; or `None`. A
            `BlockMask` or another object of the attention's own is let through.
        tokens: (B, L) ids or (B, L, width) embeddings.
        past_length: Cached tokens; a tensor is not looked at.
        patterns: Dimensions of masks that replace the pattern.

    Raises:
        ValueError: another number of dimensions, fewer columns than tokens, other values than 0 and 1.
    """
    if attention_mask is None or traced():
        return
    if isinstance(attention_mask, list | tuple):
        _check_tensor("attention_mask", attention_mask)
    if not isinstance(attention_mask, torch.Tensor):
        return
    rows, length = tokens.shape[:2]
    shape, columns = tuple(attention_mask.shape), length + (past_length if isinstance(past_length, int) else 0)
    if attention_mask.ndim in patterns:
        if shape[0] not in (1, rows) or shape[-2] not in (1, length) or shape[-1] < columns:
            raise ValueError(
                f"attention_mask has shape {shape}, but there are {rows} rows of {length} tokens that see {columns}."
            )
        return
    if attention_mask.ndim != 2:
        allowed = " or ".join(str(number) for number in (2, *patterns))
        raise ValueError(
            f"attention_mask has the shape {shape}; it must be (batch, tokens), 1 = attend and 0 = padding, or a "
            f"pattern: {allowed} dimensions."
        )
    if shape[0] not in (1, rows) or shape[1] < columns:
        raise ValueError(
            f"attention_mask has shape {shape}, but there are {rows} rows of {columns} tokens, {columns - length} of "
            "them cached: it has a column for each."
        )
    if attention_mask.device.type == "cpu" and not ((attention_mask == 0) | (attention_mask == 1)).all():
        raise ValueError(
            "attention_mask (batch, tokens) holds other values than 1 (attend) and 0 (padding). What is to be added "
            "to the scores has four dimensions and is floating point."
        )


def refuse_integer_pattern(attention_mask: torch.Tensor) -> None:
    """Refuses a mask of four dimensions that neither says what may be seen nor is added to the scores.

    Raises:
        ValueError: it is neither bool nor floating point.
    """
    if attention_mask.dtype != torch.bool and not attention_mask.is_floating_point():
        raise ValueError(
            "A 4-D attention_mask must be bool (True = may attend) or floating point (added to the scores), got "
            f"{attention_mask.dtype}. For a mask of ones and zeros pass `mask.bool()`."
        )


def shape_scored(labels: Any, shape: tuple[int, ...], logits_to_keep: int | torch.Tensor) -> tuple[int, ...]:
    """The shape that labels of a language model must have: of all tokens, or of those whose logits are kept.

    Args:
        labels: Labels, or `None`.
        shape: (B, L) of the tokens.
        logits_to_keep: As in a forward.

    Returns:
        (B, kept) where the labels have that width, else (B, L).
    """
    if not isinstance(labels, torch.Tensor) or labels.ndim != 2:
        return tuple(shape)
    rows, length = shape
    kept = len(logits_to_keep) if isinstance(logits_to_keep, torch.Tensor) else min(logits_to_keep or length, length)
    return (rows, kept if labels.shape[1] == kept else length)


def check_labels_of(name: str, labels: Any, shape: tuple[int, ...], classes: int, ignored: int = IGNORED) -> None:
    """Refuses labels of another shape, which would broadcast, and classes that are not there.

    Args:
        name: Of the argument.
        labels: Must be `shape`; or `None`.
        shape: What they must be.
        classes: How many classes there are.
        ignored: The label that is not scored.

    Raises:
        ValueError: another shape, or a label that is neither a class nor `ignored`.
    """
    if labels is None or traced():
        return
    _check_tensor(name, labels)
    if labels.dtype not in (torch.int64, torch.int32, torch.uint8, torch.bool) and classes != 2:
        raise TypeError(f"{name} are {labels.dtype}; classes are whole numbers, torch.int64.")
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(labels.shape)}, not {tuple(shape)}.")
    if labels.device.type == "cpu":
        scored = labels.masked_fill(labels == ignored, 0)
        if found := _first_outside(scored, 0, classes - 1):
            raise ValueError(f"{name}{found} is no class: they go from 0 to {classes - 1}; {ignored} is not scored.")


def check_probabilities(name: str, values: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Refuses the targets of a binary loss that are of another shape, or not from 0 to 1.

    Raises:
        ValueError: one of the two.
    """
    if traced():
        return
    _check_tensor(name, values)
    if tuple(values.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, not {shape}.")
    if values.device.type == "cpu" and not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{name} holds values that are not from 0 (no) to 1 (yes).")


def kept_positions(logits_to_keep: int | torch.Tensor) -> slice | torch.Tensor:
    """Which positions are projected to the vocabulary: so many last ones (0 = all), or those that a tensor names.

    Raises:
        ValueError: a negative number.
    """
    if not isinstance(logits_to_keep, int):
        return logits_to_keep
    if logits_to_keep < 0:
        raise ValueError(f"logits_to_keep={logits_to_keep} must be 0 (all positions) or the number of last ones.")
    return slice(-logits_to_keep, None)


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a tensor.")


def _check_shape(name: str, value: torch.Tensor, wanted: str, fits: bool) -> None:
    if not fits or not value.shape[0] or not value.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; it must be {wanted}, with at least one row and one token."
        )


def _first_outside(values: torch.Tensor, least: int, most: int | None) -> str:
    """`[row, column] = value` of the first value out of range, or nothing."""
    if not values.numel() or values.is_meta or values.dtype == torch.bool:
        return ""
    low, high = torch.aminmax(values)
    if low >= least and (most is None or high <= most):
        return ""
    outside = (values < least) if most is None else (values < least) | (values > most)
    index = tuple(outside.nonzero()[0].tolist())
    return f"[{', '.join(map(str, index))}] = {values[index].item()}"


__all__ = [
    "IGNORED",
    "check_columns",
    "check_ids",
    "check_labels_of",
    "check_mask",
    "check_probabilities",
    "check_tokens",
    "kept_positions",
    "refuse_integer_pattern",
    "shape_scored",
    "traced",
]
