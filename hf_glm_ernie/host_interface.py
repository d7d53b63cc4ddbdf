"""What differs between the versions of transformers that this package runs on.

- transformers 5.24 renamed `past_key_values` to `cache`, in `generate`, in every forward and in every output; engines
  that people serve with pin older versions. Our forwards take both names ([`given_cache`]), and pass on and return the
  host's own (`CACHE_NAME`).
- A forward of the host ends in `**kwargs`, and what it does not know is dropped without a word: a mask, a cache or
  positions under another name then change nothing but the numbers. Ours refuse it ([`check_arguments`]).
- Accelerate's hooks move what a layer is given to the layer's device. Ours get there first ([`GivenToLayers`]).

Which versions were tested, and the warning about others: `host_versions.py`, which needs no torch.
"""

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from transformers import Cache
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.modeling_outputs import BaseModelOutputWithPast

from .host_versions import warn_of_untested_host  # noqa: F401  # it warns when it is imported

# The host's own name of the cache, as an argument and in outputs.
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
# Both names, for the host's lists of what it leaves where it is.
CACHE_NAMES = ["cache", "past_key_values"]

# What the host passes to every forward and means for itself: flags of the outputs, and the count for a mean loss.
HOST_ARGUMENTS = frozenset({"output_hidden_states", "output_attentions", "return_dict", "num_items_in_batch"})
# Attention implementations that drop arguments they do not know. One of the user's own may take more.
HOST_ATTENTION = frozenset({"eager", "sdpa", "flex_attention"})


def given_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache a caller passed under either of its names.

    Args:
        cache: The argument's name from transformers 5.24 on.
        past_key_values: Its name before.

    Returns:
        The one that was given, or `None`.

    Raises:
        TypeError: something else, such as the tuples of old versions.
        ValueError: two different ones.
    """
    if cache is None or past_key_values is None or cache is past_key_values:
        given = past_key_values if cache is None else cache
        if given is not None and not hasattr(given, "get_seq_length"):
            raise TypeError(f"{CACHE_NAME} is a {type(given).__name__}; it must be a Cache, such as DynamicCache().")
        return given
    raise ValueError(
        "cache and past_key_values are two names of one argument, but two different caches were passed. Pass one of "
        f"them (this version of transformers, {transformers.__version__}, calls it {CACHE_NAME})."
    )


def named_cache(cache: Cache | None) -> dict[str, Any]:
    """The cache as a keyword argument of the host: `host_function(**named_cache(cache))`."""
    return {CACHE_NAME: cache}


def returned_cache(output: Any) -> Cache | None:
    """The cache in a `ModelOutput` of this host, or `None`."""
    return getattr(output, CACHE_NAME, None)


def name_cache_as_host(kwargs: dict[str, Any]) -> None:
    """Puts the cache among the arguments of `generate` under the host's own name, in place.

    Raises:
        ValueError: two different ones, under both names.
    """
    cache = given_cache(kwargs.pop("cache", None), kwargs.pop("past_key_values", None))
    if cache is not None:
        kwargs[CACHE_NAME] = cache


class GivenToLayers:
    """What every layer is given, brought once to each device that layers lie on.

    Where a model is spread over devices, the host's hooks copy the arguments of a layer to its device: the same
    tensors for every layer, 160 small copies for a token of GLM-130B on four devices. What lies there already they
    leave alone.

    Args:
        values: Tensors, tuples of them, or others that have a `to`; `None` is passed on.
        finish: What is done to the values on each device, or `None`.
    """

    def __init__(self, values: tuple[Any, ...], finish: Callable[..., tuple[Any, ...]] | None = None):
        self._values, self._finish = values, finish
        self._ready: dict[Any, tuple[Any, ...]] = {}

    def of(self, layer: torch.nn.Module) -> tuple[Any, ...]:
        """The values for this layer: on the device that the host's hook names, or as they are where there is none."""
        hook = getattr(layer, "_hf_hook", None)
        hooks = (hook, *getattr(hook, "hooks", ()))  # several are chained in one
        device = next((one.execution_device for one in hooks if hasattr(one, "execution_device")), None)
        if device not in self._ready:
            values = self._values if device is None else _on(device, self._values)
            self._ready[device] = values if self._finish is None else self._finish(*values)
        return self._ready[device]


def _on(device: Any, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_on(device, part) for part in value)
    return value.to(device) if hasattr(value, "to") else value


def generation_setting(name: str, kwargs: Mapping[str, Any], given: Any, own: Any) -> Any:
    """What `generate` will take for a setting, in the host's order.

    Args:
        name: Of the setting.
        kwargs: Arguments of the call.
        given: The `GenerationConfig` of the call, or `None`.
        own: The model's, which fills in what the other two leave open.

    Returns:
        The first that says something, or `None`.
    """
    values = (kwargs.get(name), getattr(given, name, None), getattr(own, name, None))
    return next((value for value in values if value is not None), None)


class CarriesItsCode:
    """A model, in front of the host's class, whose saved folder opens with `trust_remote_code=True` alone."""

    hub_classes: ClassVar[dict[str, str]]
    """Auto class -> `file.Class` that opens the folder: what it says about its code."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in the host. The folder carries its code."""
        config = self.config  # type: ignore[attr-defined]  # the host's class behind has it
        config.auto_map = {**(getattr(config, "auto_map", None) or {}), **self.hub_classes}
        super().save_pretrained(*args, **kwargs)  # type: ignore[misc]  # likewise


def copy_code(folder: Path, hub_classes: Mapping[str, str]) -> None:
    """Puts the files of all `hub_classes` into a folder: the host saves only those that one class imports.

    A folder opened with `trust_remote_code=True` may have brought fewer of them; what there is goes on.

    Args:
        folder: Where a model was saved.
        hub_classes: As in [`CarriesItsCode`].
    """
    for name in sorted({place.partition(".")[0] for place in hub_classes.values()}):
        source = Path(__file__).with_name(f"{name}.py")
        for file in [source, *map(Path, get_relative_import_files(source))] if source.is_file() else ():
            shutil.copyfile(file, folder / file.name)


def check_arguments(
    where: str, kwargs: Mapping[str, Any], implementation: str | None = None, known: Collection[str] = ()
) -> None:
    """Refuses what a forward would drop without a word.

    Args:
        where: The forward's class, for the message.
        kwargs: What no parameter took. `None` says nothing and is let through.
        implementation: The attention implementation that gets them; a user's own may take anything.
        known: What the caller takes beside `HOST_ARGUMENTS`.

    Raises:
        TypeError: an argument that nothing reads.
    """
    if implementation is not None and implementation not in HOST_ATTENTION:
        return
    for name, value in kwargs.items():
        if value is not None and name not in HOST_ARGUMENTS and name not in known:
            raise TypeError(
                f"{where} got an unexpected argument {name!r}: nothing reads it, so it would change nothing. Masks "
                "are attention_mask, positions position_ids, a cache cache (or past_key_values)."
            )


__all__ = [
    "CACHE_NAME",
    "CACHE_NAMES",
    "CarriesItsCode",
    "GivenToLayers",
    "check_arguments",
    "copy_code",
    "generation_setting",
    "given_cache",
    "name_cache_as_host",
    "named_cache",
    "returned_cache",
]
