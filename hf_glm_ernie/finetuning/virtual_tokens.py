"""Prefix, prompt and p-tuning: which models and tasks have a place for virtual tokens, and how PEFT is shown it.

GLM-130B reads them as part of its context. ERNIE's encoders read a prefix as keys and values in front of every
layer's, and prompts as embeddings in front of the text. Of their tasks PEFT knows classes of texts, and tags of tokens
with a prefix; in front of tags it would score prompts as if they had tags themselves.
"""

import inspect
from typing import Any

from torch import nn

IN_FRONT = ("prefix", "prompt", "p-tuning")
TASKS = {"CAUSAL_LM": IN_FRONT, "SEQ_CLS": IN_FRONT, "TOKEN_CLS": ("prefix",)}


def check_virtual_tokens(method: str, task_type: str | None) -> None:
    """Refuses what PEFT has no place for.

    Args:
        method: One of `IN_FRONT`.
        task_type: PEFT's name of the task; `None` for those it has none for, as UIE's.

    Raises:
        ValueError: the method does not go with the task.
    """
    if method not in TASKS.get(str(task_type), ()):
        told = "; ".join(f"{task}: {', '.join(methods)}" for task, methods in TASKS.items())
        raise ValueError(
            f"method={method!r} puts tokens in front of the text, which PEFT has no place for with "
            f"task_type={task_type!r}. It has with {told}. Take lora, qlora, ia3 or full."
        )


def name_the_cache(model: nn.Module) -> None:
    """Lets PEFT hand a prefix to an encoder: it looks for `past_key_values`, which is `cache` since transformers 5.24.

    Args:
        model: The model; the forward of its encoder takes both names afterwards. Models that have the old name, or
            none, stay as they are.
    """
    encoder: Any = getattr(model, "base_model", model)
    names = inspect.signature(encoder.forward).parameters
    if "past_key_values" in names or "cache" not in names:
        return
    given = encoder.forward

    def forward(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        return given(*args, **(kwargs if past_key_values is None else kwargs | {"cache": past_key_values}))

    encoder.forward = forward


__all__ = ["IN_FRONT", "check_virtual_tokens", "name_the_cache"]
