"""The settings of ERNIE 3.0's unified model: what its JSON says, what the tensors tell, what both must agree on.

The original's file counts all layers a text passes: `num_hidden_layers` 60 are the universal stack's 48
(`num_sharing_layers`) and a branch's 12. This package's `num_hidden_layers` are the 48.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from hf_glm_ernie.configuration_arguments import MAX_LAYERS
from hf_glm_ernie.configuration_ernie3 import (
    POSITION_EMBEDDING_TYPES,
    POSITION_OVERFLOWS,
    RECURRENCES,
    Ernie3Config,
)
from hf_glm_ernie.tokenization_ernie3 import Ernie3Tokenizer

from .ernie3_names import BRANCHES, POSITIONS, PROJECTION, TASK_HEADS, TASK_TYPES, TYPES, WORDS
from .ernie_settings import Settings
from .lazy_files import CheckpointError, matrix_shape_of
from .operations import SettingsError, TensorSpec
from .setting_kinds import ACTIVATION, COUNT, LAYERS, RATES, SIZE, TOKEN_ID, TRUTH, Kind, list_of, one_of, whole
from .setting_kinds import TOKEN_IDS as SOME_TOKEN_IDS
from .settings_files import check_told, count_layers, longest

HEAD_SIZE = 64
"""Of every published size, in the universal stack and in the branches."""

LAYER_NORM_EPS = 1e-12
"""What the original's code gives to every LayerNorm; its settings file has no word for it."""

ORIGINAL_WORDS = {"end_token_id": "eos_token_id", "mem_len": "memory_length"}
KNOWN = (
    "num_attention_heads",
    "branch_num_attention_heads",
    "hidden_act",
    "branch_hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "branch_hidden_dropout_prob",
    "branch_attention_probs_dropout_prob",
    "initializer_range",
    "memory_length",
    "recurrence",
    "memory_pre_norm",
)
TOKEN_IDS = ("pad", "bos", "sep", "mask", "eos", "sentence", "soft_prompt")
CARRIED = (*KNOWN, *(f"{name}_token_id" for name in TOKEN_IDS))
"""Settings that have the same meaning on both sides."""

KINDS: dict[str, Kind] = {
    **RATES,
    **{f"branch_{name}": kind for name, kind in RATES.items() if "dropout_prob" in name},
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), SIZE),
    **{
        f"{stack}{name}": SIZE
        for stack in ("", "branch_")
        for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    },
    "num_hidden_layers": whole(0, 2 * MAX_LAYERS),
    **dict.fromkeys(("num_sharing_layers", "branch_num_hidden_layers"), LAYERS),
    **dict.fromkeys(("hidden_act", "branch_hidden_act"), ACTIVATION),
    **dict.fromkeys(("memory_length", "type_vocab_size", "task_type_vocab_size"), COUNT),
    **{f"num_{name}": COUNT for name in ("reorder_labels", "distance_labels", "credible_labels")},
    **{f"{name}_token_id": TOKEN_ID for name in TOKEN_IDS},
    "recurrence": one_of(RECURRENCES),
    "memory_pre_norm": TRUTH,
}
KINDS |= {word: KINDS[name] for word, name in ORIGINAL_WORDS.items()}
"""Setting -> what it may be, in the original's words and those of `Ernie3Config`."""

CONFIG_KINDS: Mapping[str, Kind] = KINDS | {
    "num_hidden_layers": LAYERS,
    "eos_token_id": SOME_TOKEN_IDS,
    "branches": list_of(one_of(BRANCHES), f"{' and '.join(BRANCHES)}"),
    "position_embedding_type": one_of(POSITION_EMBEDDING_TYPES),
    "position_overflow": one_of(POSITION_OVERFLOWS),
    **dict.fromkeys(("num_soft_prompt_genres", "soft_prompt_length"), COUNT),
    "tie_word_embeddings": TRUTH,
}
"""The same for the config.json of a converted folder."""


@dataclass(frozen=True)
class Sizes:
    """What the tensors tell; the fields of the configuration with the same names, 0 for what is not there."""

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    type_vocab_size: int
    task_type_vocab_size: int
    num_hidden_layers: int
    intermediate_size: int
    branch_hidden_size: int
    branch_num_hidden_layers: int
    branch_intermediate_size: int
    num_reorder_labels: int
    num_distance_labels: int
    num_credible_labels: int


@dataclass(frozen=True)
class Choices:
    """What the user says beside the settings file; None where that or the default counts."""

    num_attention_heads: int | None = None
    branch_num_attention_heads: int | None = None
    layer_norm_eps: float | None = None


def read_sizes(specs: Mapping[str, TensorSpec], universal: int, branches: Mapping[str, int], where: object) -> Sizes:
    """Reads the sizes the tensors tell.

    Args:
        specs: Canonical name -> shape and dtype.
        universal: Layers of the universal stack.
        branches: Branch -> number of its layers.
        where: The checkpoint, for messages.

    Raises:
        CheckpointError: a tensor is missing or not a matrix, or the branches differ in length.
    """
    matrix = partial(matrix_shape_of, specs, where=where)
    if len(set(branches.values())) > 1:
        counted = ", ".join(f"{name} {layers}" for name, layers in branches.items())
        raise CheckpointError(f"{where}: the branches should have equally many layers: {counted}")
    words, inner = matrix(WORDS), f"{next(iter(branches))}_encoder_layer_0_ffn_fc_0.w_0"
    labels = {
        f"num_{head}_labels": matrix(f"{static}.w_0")[1] if f"{static}.w_0" in specs else 0
        for head, static in TASK_HEADS.items()
    }
    return Sizes(
        vocab_size=words[0],
        hidden_size=words[1],
        max_position_embeddings=matrix(POSITIONS)[0],
        type_vocab_size=matrix(TYPES)[0] if TYPES in specs else 0,
        task_type_vocab_size=matrix(TASK_TYPES)[0] if TASK_TYPES in specs else 0,
        num_hidden_layers=universal,
        intermediate_size=matrix("encoder_layer_0_ffn_fc_0.w_0")[1],
        branch_hidden_size=matrix(PROJECTION)[1],
        branch_num_hidden_layers=next(iter(branches.values())),
        branch_intermediate_size=matrix(inner)[1],
        **labels,
    )


def build_config(
    settings: Settings, sizes: Sizes, branches: Mapping[str, int], choices: Choices, tokenizer: Ernie3Tokenizer | None
) -> tuple[Ernie3Config, list[str]]:
    """Puts settings, tensors and vocabulary together.

    Args:
        settings: The checkpoint's or the user's.
        sizes: What the tensors tell.
        branches: Branch -> number of its layers.
        choices: What the user says.
        tokenizer: The model's, if there is one: it tells the ids of special tokens.

    Returns:
        The configuration, and notices for the user.

    Raises:
        SettingsError: they disagree, or the model cannot compute what they ask for.
    """
    where = settings.path or "the tensors"
    given = {ORIGINAL_WORDS.get(key, key): value for key, value in settings.values.items() if value is not None}
    _check_sizes(given, sizes, where)
    values: dict[str, Any] = {key: given[key] for key in CARRIED if key in given}
    notices = _fill_heads(values, sizes, choices)
    notices += _fill_token_ids(values, sizes, tokenizer, where)
    eps = choices.layer_norm_eps or given.get("layer_norm_eps", LAYER_NORM_EPS)
    values |= asdict(sizes) | {
        "branches": [name for name in BRANCHES if name in branches],
        "layer_norm_eps": eps,
        "num_soft_prompt_genres": 0,
    }
    try:
        config = Ernie3Config(**values)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise SettingsError(f"{where}: {error}") from error
    return config, notices


def held_sizes(specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """The most that a configuration may claim of each size beside tensors under this package's names."""
    layers = (count_layers(specs, f"ernie3.branches.{branch}.layers.") for branch in BRANCHES)
    return {
        "num_hidden_layers": count_layers(specs, "ernie3.encoder.layers."),
        "branch_num_hidden_layers": max(layers),
        "vocab_size": longest(specs, "embeddings.word_embeddings.weight"),
    }


def _check_sizes(given: Mapping[str, Any], sizes: Sizes, where: object) -> None:
    universal, branch = sizes.num_hidden_layers, sizes.branch_num_hidden_layers
    told = asdict(sizes) | {"num_sharing_layers": universal}
    told = {key: value for key, value in told.items() if value}  # a settings file may name what the model lacks
    counts = {universal + branch} if "num_sharing_layers" in given else {universal, universal + branch}
    said = given.get("num_hidden_layers")
    if said is not None and said not in counts:
        raise SettingsError(
            f"{where}: num_hidden_layers is {said!r}, the weights have {universal} universal layers and {branch} in "
            "each branch. Take the settings that belong to the weights, or correct the file."
        )
    told.pop("num_hidden_layers", None)
    check_told(given, told, where)


def _fill_heads(values: dict[str, Any], sizes: Sizes, choices: Choices) -> list[str]:
    """Numbers of heads: the user's, the settings', or as many as have the published size."""
    notices = []
    for prefix, option in (("", "--num-attention-heads"), ("branch_", "--branch-num-attention-heads")):
        key, width = f"{prefix}num_attention_heads", getattr(sizes, f"{prefix}hidden_size")
        chosen = getattr(choices, key)
        if chosen is not None:
            values[key] = chosen
        if key not in values:
            if width % HEAD_SIZE:
                raise SettingsError(
                    f"the settings do not say {key}, tensors cannot tell it, and {prefix}hidden_size {width} is not "
                    f"divisible by {HEAD_SIZE}, the head size of the published models. Pass {option} N."
                )
            values[key] = width // HEAD_SIZE
            notices.append(
                f"{key} is taken to be {values[key]}, of size {HEAD_SIZE} as in the published models: tensors cannot "
                f"tell it. If it is not, pass {option} N."
            )
        if width % values[key]:
            raise SettingsError(
                f"{key} is {values[key]!r}; it must divide {prefix}hidden_size {width}. Pass {option} N."
            )
    return notices


def _fill_token_ids(
    values: dict[str, Any], sizes: Sizes, tokenizer: Ernie3Tokenizer | None, where: object
) -> list[str]:
    """Ids of special tokens: the vocabulary's, which the settings may not contradict; the 10B's without one."""
    defaults, notices = Ernie3Config(), []
    for name in TOKEN_IDS:
        key = f"{name}_token_id"
        in_vocabulary = getattr(tokenizer, key, None)
        if tokenizer is not None and values.get(key, in_vocabulary) != in_vocabulary:
            raise SettingsError(
                f"{where}: {key} is {values[key]!r}, the vocabulary says {in_vocabulary}. They belong to different "
                "models."
            )
        values.setdefault(key, in_vocabulary if tokenizer is not None else getattr(defaults, key))
        if values[key] is not None and not 0 <= values[key] < sizes.vocab_size:
            notices.append(f"{key} {values[key]} is not among the {sizes.vocab_size} words, so it is left open")
            values[key] = None
    return notices


__all__ = [
    "CARRIED",
    "CONFIG_KINDS",
    "HEAD_SIZE",
    "KINDS",
    "LAYER_NORM_EPS",
    "Choices",
    "Sizes",
    "build_config",
    "held_sizes",
    "read_sizes",
]
