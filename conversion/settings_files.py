"""What the settings files of all families share: how they are read, and held against what the tensors tell."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .json_files import read_json
from .operations import SettingsError

SAME_ACTIVATIONS = ("gelu", "relu", "tanh", "silu", "sigmoid")
"""Activations that are the same function under the same name in Paddle and transformers."""


def read_settings_object(path: Path, where: str) -> dict[str, Any]:
    """The content of a JSON file of settings.

    Args:
        path: The file.
        where: What messages call it.

    Raises:
        SettingsError: it is no JSON object.
    """
    try:
        raw = read_json(path)
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
            raise SettingsError(f"{where}: {name} is given twice, as {named[name]!r} and as {value!r}. Keep one.")
        named[name] = value
    return named


def check_told(given: Mapping[str, Any], told: Mapping[str, Any], where: object) -> None:
    """Raises `SettingsError` where settings contradict the tensors."""
    for key, value in told.items():
        if given.get(key) is not None and given[key] != value:
            raise SettingsError(
                f"{where}: {key} is {given[key]!r}, the weights say {value}. Take the settings that belong to the "
                "weights, or correct the file."
            )


def check_activations(values: Mapping[str, Any], keys: Sequence[str], where: object) -> None:
    """Raises `SettingsError` for an activation that transformers may compute otherwise than Paddle."""
    for key in keys:
        if values.get(key, "gelu") not in SAME_ACTIVATIONS:
            raise SettingsError(
                f"{where}: {key} is {values[key]!r}; known to be the same in Paddle and transformers: "
                f"{', '.join(SAME_ACTIVATIONS)}"
            )


__all__ = ["check_activations", "check_told", "read_settings_object", "renamed"]
