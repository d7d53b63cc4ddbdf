"""What a setting may be: kinds of values, and those of the settings that all families and transformers share.

No number passes that no model could have: the ranges are those of the configurations themselves.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_glm_ernie.configuration_arguments import (
    DEVIATION,
    DTYPES,
    EPSILON,
    MAX_LABELS,
    MAX_LAYERS,
    MAX_SIZE,
    PROBABILITY,
    Range,
)

SAME_ACTIVATIONS = ("gelu", "relu", "tanh", "silu", "sigmoid")
"""Activations that are the same function under the same name in Paddle and transformers."""


@dataclass(frozen=True)
class Kind:
    """What a setting may be.

    Attributes:
        words: Says it, behind "it is".
        allows: Whether a value, as JSON gives it, is that.
    """

    words: str
    allows: Callable[[Any], bool]


def whole(least: int, most: int = MAX_SIZE) -> Kind:
    """A whole number of a range; 2.0, "2" and true are none."""
    first = "a whole number above 0" if least == 1 else f"a whole number, {least} or more"
    return Kind(f"{first} (at most {most:,})", lambda value: type(value) is int and least <= value <= most)


def number(allowed: Range) -> Kind:
    """A finite number of a range."""
    return Kind(f"a number {allowed}", allowed.holds)


def one_of(choices: Iterable[str], because: str = "") -> Kind:
    """A word of a list."""
    choices = tuple(choices)
    return Kind(f"one of {', '.join(choices)}{because}", lambda value: isinstance(value, str) and value in choices)


def list_of(kind: Kind, names: str) -> Kind:
    """A list of values of one kind."""
    return Kind(f"a list of {names}", lambda value: isinstance(value, list) and all(map(kind.allows, value)))


def object_of(key: Callable[[str], bool], kind: Kind, words: str) -> Kind:
    """An object whose keys and values are each of one kind."""
    return Kind(
        words,
        lambda value: (
            isinstance(value, dict)
            and len(value) <= MAX_LABELS
            and all(key(name) and kind.allows(inner) for name, inner in value.items())
        ),
    )


def either(*kinds: Kind) -> Kind:
    """Any of some kinds."""
    return Kind(" or ".join(kind.words for kind in kinds), lambda value: any(kind.allows(value) for kind in kinds))


def is_index(text: str) -> bool:
    """Whether a key is a whole number that could count labels or tokens."""
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


TEXT = Kind("text", lambda value: isinstance(value, str))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
TEXTS = list_of(TEXT, "texts")
TEXT_OF_TEXTS = object_of(lambda name: True, TEXT, "an object of texts")
SIZE, COUNT, LAYERS = whole(1), whole(0), whole(0, MAX_LAYERS)
TOKEN_ID = whole(0, MAX_SIZE - 1)
TOKEN_IDS = either(TOKEN_ID, list_of(TOKEN_ID, "such numbers"))
ACTIVATION = one_of(SAME_ACTIVATIONS, ", which are the same in Paddle and transformers")
LABELS: Mapping[str, Kind] = {
    "num_labels": whole(0, MAX_LABELS),
    "id2label": object_of(is_index, TEXT, "an object of ids (0, 1, ...) and names of labels"),
    "label2id": object_of(
        lambda name: True,
        either(whole(0, MAX_LABELS), Kind("digits", lambda value: isinstance(value, str) and is_index(value))),
        "an object of names of labels and ids",
    ),
    "num_choices": whole(0, MAX_LABELS),
    "problem_type": one_of(("regression", "single_label_classification", "multi_label_classification")),
}
RATES: Mapping[str, Kind] = {
    "hidden_dropout_prob": number(PROBABILITY),
    "attention_probs_dropout_prob": number(PROBABILITY),
    "classifier_dropout": number(PROBABILITY),
    "initializer_range": number(DEVIATION),
    "layer_norm_eps": number(EPSILON),
}
HOST_KINDS: Mapping[str, Kind] = {
    **LABELS,
    "architectures": TEXTS,
    "model_type": TEXT,
    "dtype": one_of(DTYPES),
    "torch_dtype": one_of(DTYPES),
    "quantization_config": OBJECT,
    "output_hidden_states": TRUTH,
    "return_dict": TRUTH,
    "is_decoder": TRUTH,
    "is_encoder_decoder": TRUTH,
    "add_cross_attention": TRUTH,
    "use_cache": TRUTH,
    "tie_word_embeddings": TRUTH,
    "chunk_size_feed_forward": COUNT,
    "bos_token_id": TOKEN_ID,
    "eos_token_id": TOKEN_IDS,
    "pad_token_id": TOKEN_ID,
    "sep_token_id": TOKEN_ID,
}
"""Settings of transformers' own in a config.json, of every family; what else stands there is not handed on to it."""


__all__ = [
    "ACTIVATION",
    "COUNT",
    "HOST_KINDS",
    "LABELS",
    "LAYERS",
    "OBJECT",
    "RATES",
    "SIZE",
    "TEXT",
    "TEXTS",
    "TEXT_OF_TEXTS",
    "TOKEN_ID",
    "TOKEN_IDS",
    "TRUTH",
    "Kind",
    "either",
    "is_index",
    "list_of",
    "number",
    "object_of",
    "one_of",
    "whole",
]
