"""What goes from one device to another when the next layer is computed there: arguments, and the layer's cache."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary
from transformers import Cache
from transformers.cache_utils import DynamicLayer, StaticLayer


class Crossings:
    """Moves arguments of layers, those that all layers share once.

    Mask, cos and sin are the same tensors for every layer. The first layer that needs them on another device has them
    copied; for the following ones the copy is kept as long as the original is alive and unchanged.
    """

    def __init__(self) -> None:
        self.copies: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def move(self, value: Any, device: torch.device) -> Any:
        """A value with its tensors on a device, in tuples, lists and mappings too; caches stay as they are."""
        if isinstance(value, torch.Tensor):
            return value if value.device == device else self._copy(value, device)
        if isinstance(value, Cache):
            return value
        if isinstance(value, tuple | list):
            items = [self.move(item, device) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, Mapping):
            return type(value)({name: self.move(item, device) for name, item in value.items()})  # type: ignore[call-arg]
        return self._copy(value, device) if hasattr(value, "to") else value  # flex attention's masks

    def _copy(self, value: Any, device: torch.device) -> Any:
        counted = isinstance(value, torch.Tensor) and not value.is_inference()
        state = (device, value._version if counted else 0)
        known = self.copies.get(value)
        if known is None or known[0] != state:
            known = (state, value.to(device))
            self.copies[value] = known
        return known[1]


def given_caches(arguments: Iterable[Any]) -> list[Cache]:
    """The caches among a layer's arguments."""
    return [value for value in arguments if isinstance(value, Cache)]


def move_cache_of(layers: Iterable[int], cache: Cache, device: torch.device) -> None:
    """Moves the entries of some layers of a cache, where they are not there yet.

    Args:
        layers: Indices of the layers.
        cache: A dynamic or static one.
        device: Where their keys and values are needed.

    Raises:
        ValueError: another kind of cache, which keeps keys and values elsewhere or in another form.
    """
    if cache.offloading:
        raise ValueError(
            "The cache brings its layers to an accelerator by itself (cache_implementation='offloaded'), but layers "
            "that are computed on the CPU need theirs there. Leave cache_implementation out, or take 'static'; the "
            "cache of these layers lies in main memory anyway."
        )
    for index in layers:
        if index < len(cache.layers):
            _move_entry(cache.layers[index], device)


def _move_entry(entry: Any, device: torch.device) -> None:
    if type(entry) not in (DynamicLayer, StaticLayer):
        raise ValueError(
            f"The cache has a {type(entry).__name__} for a layer that is offloaded; layers that are computed on the "
            "CPU take a DynamicCache or a StaticCache. Leave cache_implementation out, or take 'static'."
        )
    if not entry.is_initialized or entry.keys is None or entry.keys.device == device:
        return
    for name, value in vars(entry).items():
        if isinstance(value, torch.Tensor):
            setattr(entry, name, value.to(device))
    entry.device = device


__all__ = ["Crossings", "given_caches", "move_cache_of"]
