"""Models with layers in main memory, as `dispatch_model` leaves them beside an accelerator; here that is the CPU."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from accelerate.utils import OffloadedWeightsLoader

from tests.support.tiny_models import GMASK, LAYERS, MASK, PAD, SOP

INPUTS = {
    "input_ids": torch.tensor([[9, 8, MASK, 7, 6, SOP], [PAD, PAD, 9, 8, GMASK, SOP]]),
    "attention_mask": torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]),
}
LAYER_NAMES = [f"model.layers.{i}" for i in range(LAYERS)]


def in_memory(model: Any, *names: str, elsewhere: tuple[str, ...] = ()) -> Any:
    """Puts modules into main memory, hooked as `dispatch_model` does; `elsewhere` stays on the device."""
    table = OffloadedWeightsLoader(state_dict=dict(model.state_dict()))
    attach_align_device_hook_on_blocks(
        model,
        execution_device={"": "cpu"} | dict.fromkeys((*names, *elsewhere), "cpu"),
        offload=dict.fromkeys(names, True) | dict.fromkeys(elsewhere, False),
        weights_map=table,
        skip_keys=model._skip_keys_device_placement,
    )
    model.hf_device_map = dict.fromkeys(names, "cpu")
    return model


def logits(model: Any, **changes: Any) -> torch.Tensor:
    """Those of two padded texts."""
    with torch.no_grad():
        return model(**(INPUTS | changes)).logits


def generated(model: Any, **options: Any) -> torch.Tensor:
    """The ids of both texts with five tokens more."""
    return model.generate(**INPUTS, max_new_tokens=5, do_sample=False, pad_token_id=PAD, **options)


@contextmanager
def warnings_of(logger: Any) -> Iterator[list[str]]:
    """What a logger says meanwhile."""
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    yield seen
    logger.removeHandler(handler)
