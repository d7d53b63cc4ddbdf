"""The settings of a model to be published, held against the tensors there are before anything is built from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from .operations import ConversionError
from .publish_classes import PUBLISHED, Published
from .publish_settings import config_class_of, config_schema, known_part

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
"""What every model type has, and the card tells."""

LARGEST = 2**24
"""Of a size that no tensor needs to have, such as positions that are computed."""


class PublishError(ConversionError):
    """A folder cannot be published."""


def check_config(path: Path, raw: Mapping[str, Any], tensors: int, elements: int) -> tuple[Published, str]:
    """Makes sure that a model can be built from a config.json, and is not larger than its weights.

    Args:
        path: The file, for messages.
        raw: Its content.
        tensors: How many the weight files hold.
        elements: How many numbers they hold together.

    Returns:
        What its model type needs, and the name of the class.

    Raises:
        PublishError: another model type, no class, sizes that the tensors cannot have, a value the class refuses.
    """
    model_type, names = raw.get("model_type"), raw.get("architectures") or []
    if not isinstance(model_type, str) or model_type not in PUBLISHED:
        raise PublishError(
            f"{path.parent}: model_type is {model_type!r}; the types this command publishes are "
            f"{', '.join(PUBLISHED)}. Others have their own ways to the Hub, such as push_to_hub."
        )
    row = PUBLISHED[model_type]
    if not isinstance(names, list) or len(names) != 1 or names[0] not in list(row.auto_classes):
        raise PublishError(
            f"{path.parent}: architectures in config.json is {names!r}; it should name one of "
            f"{', '.join(row.auto_classes)}. Save the model again with save_pretrained."
        )
    check_sizes(path, raw, tensors, elements)
    config_class = config_class_of(model_type)
    try:
        config = config_class.from_dict(dict(raw))
        missing = [name for name in SIZES if not isinstance(getattr(config, name), int)]
        if missing:
            raise ValueError(f"{missing[0]} is {getattr(config, missing[0])!r}, not a number")
    except (
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        ImportError,
        StrictDataclassError,
    ) as error:
        raise PublishError(
            f"{path}: {config_class.__name__} does not take it ({error}). Mend or save again."
        ) from error
    return row, names[0]


def check_sizes(path: Path, raw: Mapping[str, Any], tensors: int, elements: int) -> None:
    """Before the class sees it: some of these it would make lists or tensors of."""
    for name, value in raw.items():
        is_size = name.startswith("num_") or name.endswith(("_size", "_layers", "_heads", "_length", "_embeddings"))
        if not is_size or name.startswith("tie_") or value is None:
            continue
        most = tensors if name.endswith("_layers") else max(LARGEST, elements)
        if type(value) is not int or not 0 <= value <= most:
            raise PublishError(
                f"{path}: {name} is {value!r}; the weights are {tensors:,} tensors of {elements:,} numbers, so a "
                f"whole number from 0 to {most:,} is possible."
            )
        if name in SIZES and value == 0:
            raise PublishError(f"{path}: {name} is 0. Take the file from where the folder was written.")
    settings = raw.get("quantization_config")
    if settings is not None and not (isinstance(settings, dict) and isinstance(settings.get("quant_method"), str)):
        raise PublishError(
            f"{path}: quantization_config should be an object with quant_method, it is {settings!r}. Save the model "
            "again with save_pretrained."
        )


def publishable_config(path: Path, raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The known part of a config.json, and the names of what is left out. Raises `UnpublishableError`."""
    method = (raw.get("quantization_config") or {}).get("quant_method")
    known, left_out = known_part(raw, config_schema(config_class_of(raw["model_type"]), method), str(path))
    return known, [name for name in left_out if name != "auto_map"]  # it is written anew


__all__ = ["PublishError", "check_config", "check_sizes", "publishable_config"]
