"""What the settings files of all families share: how they are read, and held against what the tensors tell.

A settings file is somebody's claim. Each family has one table, setting -> `Kind` of value; it is read for the
original's file, for the config.json of a folder on the way back, and for what its record says of the original's
settings. What a configuration claims to have many of is held against the tensors before anything is made of it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .json_files import MAX_SETTINGS_BYTES, read_json
from .operations import SettingsError, TensorSpec
from .places import Place
from .setting_kinds import Kind

LONGEST_VALUE = 200
"""Characters of a value in a message."""


def read_settings_object(path: Place, where: str) -> dict[str, Any]:
    """The content of a JSON file of settings.

    Args:
        path: The file.
        where: What messages call it.

    Raises:
        SettingsError: it is no JSON object.
    """
    try:
        raw = read_json(path, most=MAX_SETTINGS_BYTES)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{where}: cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise SettingsError(f"{where}: expected an object of settings, found {type(raw).__name__}")
    return raw


def renamed(values: Mapping[str, Any], words: Mapping[str, str], where: str) -> dict[str, Any]:
    """Settings under the names used here.

    Args:
        values: Key in the file -> value.
        words: Key in the file -> name here, where they differ.
        where: The file, for messages.

    Raises:
        SettingsError: one setting stands there under two names, with two values.
    """
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = words.get(key, key)
        if name in named and named[name] != value:
            raise SettingsError(
                f"{where}: {name} is given twice, as {shown(named[name])} and as {shown(value)}. Keep one."
            )
        named[name] = value
    return named


def wrong_kinds(values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> list[str]:
    """Which settings are not what they may be, in words; null counts as not given.

    Args:
        values: Settings, as JSON gives them.
        kinds: Setting -> what it may be; others are not looked at.
    """
    return [
        f"{name} is {shown(value)}; it is {kinds[name].words}"
        for name, value in values.items()
        if name in kinds and value is not None and not kinds[name].allows(value)
    ]


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, Kind], where: object) -> None:
    """Raises `SettingsError` where `wrong_kinds` finds any in a file."""
    if wrong := wrong_kinds(values, kinds):
        raise SettingsError(f"{where}: {'. '.join(wrong)}. Correct the file.")


def check_told(given: Mapping[str, Any], told: Mapping[str, Any], where: object) -> None:
    """Raises `SettingsError` where settings contradict the tensors."""
    for key, value in told.items():
        if given.get(key) is not None and given[key] != value:
            raise SettingsError(
                f"{where}: {key} is {shown(given[key])}, the weights say {value}. Take the settings that belong to "
                "the weights, or correct the file."
            )


def beyond_held(claimed: Mapping[str, Any], held: Mapping[str, int]) -> list[str]:
    """What a configuration claims to have more of than the tensors beside it can hold, in words.

    Args:
        claimed: Setting -> number; an object of labels counts by how many there are.
        held: Setting -> the most of it that the tensors have.
    """
    counted = {name: len(value) if isinstance(value, dict) else value for name, value in claimed.items()}
    return [
        f"{name} is {shown(counted[name])}, the weights hold {most}"
        for name, most in held.items()
        if counted.get(name) is not None and counted[name] > most
    ]


def count_layers(names: Iterable[str], prefix: str) -> int:
    """How many layers there are among names that begin with a prefix and the layer's number."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,9})\.")
    return len({found.group(1) for name in names if (found := pattern.match(name))})


def longest(specs: Mapping[str, TensorSpec], suffix: str) -> int:
    """The most rows of the tensors whose names end so; 0 where there is none."""
    return max((spec.shape[0] for name, spec in specs.items() if name.endswith(suffix) and spec.shape), default=0)


def shown(value: Any) -> str:
    """A value for a message: what it is, not all of it."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a number of {len(str(abs(value)))} digits"
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


__all__ = [
    "beyond_held",
    "check_kinds",
    "check_told",
    "count_layers",
    "longest",
    "read_settings_object",
    "renamed",
    "shown",
    "wrong_kinds",
]
