"""What PEFT's layers may do with a linear of integers: LoRA merges by requantizing, nothing is silently wrong.

PEFT takes a `WeightOnlyLinear` for the `torch.nn.Linear` it is to those who ask. Left alone, some of its layers would
then add to the integers as to floats: `merge_and_unload(safe_merge=True)` truncates what it adds to whole numbers, and
so drops the adapter; others compute with the integers in the forward. So every layer that takes such a linear as its
`base_layer` is looked at when it does, through torch's own hook on the registration of submodules:

- PEFT's LoRA on a linear becomes one that merges as `weight_only_lora.py` says;
- a layer whose forward only calls the linear (`ONLY_CALLS`) is left to train, and refuses to merge; one that changes
  the bias alone (`ONLY_BIAS`) merges as ever;
- any other layer of PEFT's reads the weight, or may, and is refused at once.

Layers that merge with code of their own, from outside PEFT, are left alone.
"""

from functools import partial
from typing import Any, NoReturn

from torch import nn

from .weight_only import WAY_OUT, holds_integers

LORA = "peft.tuners.lora.layer.Linear"
# Of PEFT's layers on linears those whose outputs are the same on integers as on the same values in floating point
# (tests/test_adapters_weight_only.py compares them all).
ONLY_CALLS = (
    *("adalora", "boft", "c3a", "fourierft", "gralora", "ia3", "lily", "oft", "pvera", "randlora", "road", "vblora"),
    *("vera", "waveft"),
)
ONLY_BIAS = ("beft",)  # and merges into the bias alone


def _refuse_to_merge(layer: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise ValueError(
        f"{layer} cannot merge into a weight that is stored as integers: it would add to the integers as to floats. "
        f"{WAY_OUT}"
    )


def _is_pefts(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("peft.")


def look_at_base_layer(layer: nn.Module, name: str, module: nn.Module | None) -> None:
    """Sees to it that a layer of PEFT's does right by integers; for torch to call when a module gets a submodule.

    Args:
        layer: The module.
        name: Of the submodule.
        module: The submodule.

    Raises:
        ValueError: a layer of PEFT's that computes with the weight takes integers.
    """
    kind = type(layer)
    if name == "original_module" and module is not None and _is_pefts(kind):
        if any(map(holds_integers, module.modules())):
            raise ValueError(
                "modules_to_save names a module with weights that are stored as integers, which cannot be trained: "
                "take it out of there, or dequantize the model first (model.dequantize())."
            )
        return
    if name != "base_layer" or module is None:
        return
    if isinstance(vars(layer).get("merge"), partial):  # what was put there below, for a linear that is here no more
        del layer.merge
    if not holds_integers(module) or not _is_pefts(getattr(kind, "merge", None)):
        return
    where = f"{kind.__module__}.{kind.__name__}"
    tuner = kind.__module__.split(".")[2] if _is_pefts(kind) else None
    if where == LORA:
        from .weight_only_lora import WeightOnlyLoraLinear

        layer.__class__ = WeightOnlyLoraLinear
    elif tuner is None or tuner in ONLY_CALLS:
        layer.merge = partial(_refuse_to_merge, where)  # type: ignore[assignment]  # in place of the method
    elif tuner not in ONLY_BIAS:
        raise ValueError(
            f"{where} computes with the weight of the linear it adapts, and this one holds integers. {WAY_OUT}"
        )


__all__ = ["ONLY_BIAS", "ONLY_CALLS", "look_at_base_layer"]
