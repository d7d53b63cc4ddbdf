"""What the tasks ask of a model, so that anything that runs one will do.

`uie`, `utc`, `answer_questions` and `sentence_embeddings` call a model in one way only:

- It is called with tensors by name, (B, T) int64 on the CPU or on `model.device` where it has one; UTC's mask is
  (B, 1, T, T) fp32. Batch and length change from call to call.
- It returns tensors or numpy arrays by name: a dict, or an object with attributes. The task names those that it reads
  and knows their shapes; whatever does not fit is an error that says what came instead.
- What must be known beforehand stands in `model.config`: `max_position_embeddings`, `vocab_size`. Without a config
  there is only the task's own `max_length` (at most the tokenizer's), and nothing is added to the tokenizer.

So a transformers model, a compiled one, `torch.export.load(path).module()`, an [`OnnxEncoder`] and a plain function
are all called alike. A torch module is put into evaluation mode for as long as it is read; others have no modes. Task
types are the model's own: a transformers model takes those of its config, an exported file those that it was traced
with. Letters in shape comments: B batch, T tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from hf_glm_ernie.host_arguments import whole_number

logger = logging.get_logger(__name__)

USUAL_LENGTH = 512
"""Tokens of a row where the caller says nothing: what the original reads at once, and trains on."""

Shape = tuple[int | None, ...]
"""Of an output; `None` where any size will do."""

NO_LIMIT = 2**31 - 1
"""Tokens of a row where nothing says how many there may be; tokenizers that know none say 1e30."""


def call_model(model: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> Any:
    """One forward, of tensors on the CPU. Returns what the model returns."""
    device = getattr(model, "device", None) or "cpu"
    return model(**{name: tensor.to(device) for name, tensor in inputs.items()})


def run_model(
    model: Callable[..., Any], inputs: Mapping[str, torch.Tensor], wanted: Mapping[str, Shape], giver: str
) -> dict[str, torch.Tensor]:
    """One forward, and the outputs that are read.

    Args:
        model: Anything that is called as the module says.
        inputs: Tensors on the CPU, by name.
        wanted: Names of the outputs that are read, and their shapes.
        giver: What gives such outputs, for the message.

    Returns:
        The wanted outputs, wherever the model left them.

    Raises:
        TypeError: an output is missing, or no tensor or array.
        ValueError: an output of another shape.
    """
    outputs = call_model(model, inputs)
    for name in wanted:
        if output_of(outputs, name) is None:
            found = _names(outputs)
            raise TypeError(f"{name_of(model)} gives {found}, but no {name!r}, which is read here. Pass {giver}.")
    return {name: checked_output(model, outputs, name, shape) for name, shape in wanted.items()}


def output_of(outputs: Any, name: str) -> Any:
    """An output by name, or `None` where there is none."""
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def checked_output(model: Any, outputs: Any, name: str, shape: Shape) -> torch.Tensor:
    """An output that is there, as a tensor of the shape that it must have.

    Raises:
        TypeError: it is no tensor or array.
        ValueError: it has another shape.
    """
    value = output_of(outputs, name)
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{name_of(model)} gives {name} as a {type(value).__name__}; it must be a tensor or a numpy array."
        )
    found = tuple(value.shape)
    if len(found) != len(shape) or any(size not in (None, one) for size, one in zip(shape, found, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name_of(model)} gives {name} of shape {found}, not ({wanted}). Rows and tokens must keep their places, "
            "and batch and length may change from call to call."
        )
    return value


def name_of(model: Any) -> str:
    """What a message calls a model."""
    return getattr(model, "__name__", None) or type(model).__name__


def longest_row(model: Any, tokenizer: Any, max_length: int | None) -> int:
    """How many tokens a row may have: `max_length`, and what the model and the tokenizer allow.

    Args:
        model: Its config's positions count, where it has one.
        tokenizer: Its `model_max_length` counts where the model says nothing, or `max_length` is `None`.
        max_length: What the caller asked for, or `None`.
    """
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    of_tokenizer = getattr(tokenizer, "model_max_length", None)
    limits = [max_length, positions, None if max_length is not None and positions is not None else of_tokenizer]
    return min(limit for limit in (*limits, NO_LIMIT) if limit is not None)


def read_length(model: Any, tokenizer: Any, max_length: Any) -> int:
    """Tokens of a row of `uie` and `utc`.

    Args:
        model: See [`longest_row`].
        tokenizer: See [`longest_row`].
        max_length: What the caller asked for; more than a row may have is cut down to that, with a warning. `None`:
            `USUAL_LENGTH`, or what a row may have where that is less.

    Raises:
        TypeError: it is no number.
        ValueError: it is below 1.
    """
    asked = USUAL_LENGTH if max_length is None else whole_number("max_length", max_length)
    longest = longest_row(model, tokenizer, asked)
    if max_length is not None and longest < asked:
        logger.warning(
            f"max_length={asked}, but {name_of(model)} reads at most {longest} tokens at once: {longest} it is."
        )
    return longest


def _names(outputs: Any) -> str:
    """What a model gave, for a message."""
    if isinstance(outputs, Mapping):
        return f"{', '.join(map(repr, outputs)) or 'an empty dict'}"
    if isinstance(outputs, tuple | list):
        return f"a {type(outputs).__name__} of {len(outputs)}, without names"
    return f"a {type(outputs).__name__}"


__all__ = [
    "USUAL_LENGTH",
    "Shape",
    "call_model",
    "checked_output",
    "longest_row",
    "name_of",
    "output_of",
    "read_length",
    "run_model",
]
