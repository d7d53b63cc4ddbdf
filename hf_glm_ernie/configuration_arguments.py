"""Which arguments a config takes when it is made by hand, and which numbers make sense in any config.

The host keeps whatever a config is given as an attribute, so that files of other versions load. In a call that means
that `Glm130bConfig(num_layers=4)` describes a model of 70 layers without a word. A dict that came from a file says so:
it has the model's type, or the version of the host that wrote it.

A number may come from anybody's config.json, and what a model allocates follows from it before a weight is read. So
every number has a range, wide enough for any model there is, in which opening a folder neither hangs nor fills the
memory for the layers, positions and labels that a few letters claim.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN

FROM_A_FILE = ("model_type", "transformers_version")
# What the host takes beside fields, in the versions that are supported.
TAKEN_BY_THE_HOST = {
    *("torch_dtype", "num_labels", "name_or_path", "rope_scaling", "output_attentions", "attn_implementation"),
    *("experts_implementation", "per_layer_config", "return_unused_kwargs"),
}

MAX_LAYERS = 500
"""Of one stack; the deepest published models have some 130. A model of so many is built in about two seconds."""

MAX_SIZE = 10**8
"""Of a vocabulary, a width, a number of heads; the largest published vocabularies have a million words."""

MAX_POSITIONS = 2**20
"""Positions for which a table is computed when a model is built."""

MAX_LABELS = 200_000
"""The host makes a name for each of them, in about a second."""

DTYPES = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
"""What the weights of a model may be, as the host spells it."""


class Range(NamedTuple):
    """The numbers that a setting may be.

    Attributes:
        least: The lowest, or the one that all are above.
        most: The highest.
        is_open: Whether `least` itself is none of them.
    """

    least: float
    most: float
    is_open: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value is a number of the range; NaN, Infinity and bool are not."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        above = value > self.least if self.is_open else value >= self.least
        return above and value <= self.most

    def __str__(self) -> str:
        first = f"above {self.least:,} and at most" if self.is_open else f"from {self.least:,} to"
        return f"{first} {self.most:,}"


LAYERS, SIZE = Range(1, MAX_LAYERS), Range(1, MAX_SIZE)
"""For whole numbers; whether a value is one is checked by its type."""

PROBABILITY = Range(0, 1)
EPSILON = Range(0, 1, is_open=True)
DEVIATION = Range(0, 100)


def check_ranges(config: PreTrainedConfig, ranges: Mapping[str, Range]) -> None:
    """Makes sure that the numbers of a config lie in their ranges; what is None does not matter.

    Args:
        config: Made, so that the types are right.
        ranges: Name of a setting -> its range.

    Raises:
        ValueError: one does not.
    """
    for name, allowed in ranges.items():
        value = getattr(config, name)
        if value is not None and not allowed.holds(value):
            raise ValueError(f"{name}={value!r} is not a number {allowed}.")


def check_activations(config: PreTrainedConfig, names: Sequence[str]) -> None:
    """Makes sure that the host has the activations that a config names.

    Raises:
        ValueError: it has not.
    """
    for name in names:
        if getattr(config, name) not in ACT2FN:
            raise ValueError(
                f"{name}={getattr(config, name)!r} is no activation of transformers'; it has {', '.join(ACT2FN)}."
            )


def check_arguments(config: PreTrainedConfig, given: Mapping[str, Any]) -> None:
    """Refuses arguments that are no settings of a config.

    Args:
        config: Being made.
        given: What is no field of it, as the host hands it to `__post_init__`.

    Raises:
        ValueError: a name that neither the config nor the host knows, unless all came from a file; more labels than a
            model can have; a `dtype` that is none.
    """
    labels = given.get("num_labels")
    if labels is not None and (type(labels) is not int or not Range(0, MAX_LABELS).holds(labels)):
        raise ValueError(f"num_labels={labels!r} is not a whole number from 0 to {MAX_LABELS:,}.")
    for dtype in (config.dtype, given.get("torch_dtype")):
        if isinstance(dtype, str) and dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}.")
    if any(name in given for name in FROM_A_FILE):
        return
    unknown = [
        name
        for name in given
        if not name.startswith("_")
        and name not in TAKEN_BY_THE_HOST
        and not hasattr(type(config), name)
        and not hasattr(GenerationConfig(), name)
    ]
    if not unknown:
        return
    fields = sorted(type(config).__dataclass_fields__)
    near = [match for name in unknown for match in difflib.get_close_matches(name, fields, n=2)]
    hint = f" Did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
    raise ValueError(
        f"{type(config).__name__} has no setting {', '.join(unknown)}.{hint} What else a config is to carry can be "
        "set as an attribute later."
    )


__all__ = [
    "DEVIATION",
    "DTYPES",
    "EPSILON",
    "LAYERS",
    "MAX_LABELS",
    "MAX_LAYERS",
    "MAX_POSITIONS",
    "MAX_SIZE",
    "PROBABILITY",
    "SIZE",
    "Range",
    "check_activations",
    "check_arguments",
    "check_ranges",
]
