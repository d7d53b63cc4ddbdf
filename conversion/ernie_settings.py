"""The settings of an ERNIE encoder: what PaddleNLP's or ERNIE-kit's JSON says, what the tensors tell, what both must
agree on, and the transformers configuration made of them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import BertConfig, ErnieConfig

from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.configuration_ernie_utc import ErnieUTCConfig

from .ernie_names import GRAM, GRAM_CLASS, LABELLED_TASKS, Task
from .ernie_released import GRAM_LAYER_NORM_EPS, LAYER_NORM_EPS, Released, find_released
from .operations import SettingsError, TensorSpec
from .setting_kinds import (
    ACTIVATION,
    COUNT,
    LABELS,
    LAYERS,
    RATES,
    SIZE,
    TEXT,
    TEXTS,
    TOKEN_ID,
    TRUTH,
    Kind,
)
from .settings_files import check_kinds, check_told, count_layers, longest, read_settings_object, renamed, shown

SETTINGS_FILES = ("config.json", "model_config.json", "ernie_config.json")
"""PaddleNLP's since 2.5, PaddleNLP's before, ERNIE-kit's; the first there is read."""

CONFIG_CLASSES: Mapping[str, type[ErnieConfig]] = {"uie": ErnieUIEConfig, "utc": ErnieUTCConfig}
"""Task -> configuration class, where it is not transformers' own."""

ORIGINAL_WORDS = {
    "num_classes": "num_labels",
    "dropout": "classifier_dropout",
    "sent_type_vocab_size": "type_vocab_size",
}

DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "task_id": 0,
    "use_task_id": False,
    "pool_act": "tanh",
}
"""What PaddleNLP takes where its configuration is silent (`ErnieConfig`); sizes are told by the tensors."""

KINDS: Mapping[str, Kind] = {
    **LABELS,
    **RATES,
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "max_position_embeddings": SIZE,
    "intermediate_size": SIZE,
    "num_attention_heads": SIZE,
    "num_hidden_layers": LAYERS,
    "type_vocab_size": COUNT,
    "task_type_vocab_size": COUNT,
    "hidden_act": ACTIVATION,
    "pool_act": TEXT,
    "pad_token_id": TOKEN_ID,
    "task_id": COUNT,
    "use_task_id": TRUTH,
    "embedding_size": SIZE,
    "kept_attention_heads": SIZE,
    "embedding_bits": SIZE,
}
"""Setting -> what it may be, under the names of `ErnieConfig`, which are PaddleNLP's since 2.5."""

OUTER_KINDS: Mapping[str, Kind] = {"architectures": TEXTS, "init_class": TEXT}
"""What says of which class a file is."""

CARRIED = ("classifier_dropout", "id2label", "label2id", "num_choices", "problem_type")
CARRIED_BESIDE = ("pool_act", "num_choices")
"""What transformers' configuration does not read, and is kept for the way back."""


@dataclass(frozen=True)
class Sizes:
    """What the tensors tell, under the names of `ErnieConfig`; 0 for what is not there.

    `num_hidden_layers` are those in the file, and `num_labels` the outputs of the classifier.
    """

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    type_vocab_size: int
    task_type_vocab_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_labels: int


@dataclass(frozen=True)
class Settings:
    """The content of a settings file, flat.

    Attributes:
        path: The file; None if there is none.
        values: Key -> value, under the names PaddleNLP 2.5 and later use.
        original_class: PaddleNLP's class, if the file names one.
    """

    path: Path | None
    values: Mapping[str, Any] = field(default_factory=dict)
    original_class: str | None = None


def read_settings(folder: Path, given: Path | None, kinds: Mapping[str, Kind] = KINDS) -> Settings:
    """Reads `--config`, or the settings file in the checkpoint's folder.

    Args:
        folder: The checkpoint's.
        given: `--config`.
        kinds: The family's: setting -> what it may be.

    Raises:
        SettingsError: the file is not a JSON object, its nesting is not PaddleNLP's, or a setting is not what it may
            be.
    """
    path = given or next((folder / name for name in SETTINGS_FILES if (folder / name).is_file()), None)
    if path is None:
        return Settings(None)
    values, original = _flatten(read_settings_object(path, str(path)), path)
    values = renamed(values, ORIGINAL_WORDS, str(path))
    check_kinds(values, kinds, path)
    return Settings(path, values, original)


def _flatten(raw: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], str | None]:
    """Before 2.5 a head's file holds the backbone's settings in `init_args[0]`, the number of labels outside."""
    check_kinds(raw, OUTER_KINDS, path)
    outer = {key: value for key, value in raw.items() if key not in ("init_args", "init_class")}
    architectures = outer.pop("architectures", None) or [None]
    original = raw.get("init_class") or architectures[0]
    if "init_args" not in raw:
        return outer, original
    arguments = raw["init_args"] if isinstance(raw["init_args"], list) else []
    inner = [entry for entry in arguments if isinstance(entry, dict)]
    if len(inner) != 1:
        raise SettingsError(
            f"{path}: `init_args` should hold one object, the encoder's settings, as PaddleNLP 2.3 and 2.4 write it; "
            f"found {shown(raw['init_args'])}"
        )
    return {key: value for key, value in inner[0].items() if key != "init_class"} | outer, original


def build_config(
    settings: Settings, sizes: Sizes, task: Task, layer_norm_eps: float, more_rows: int = 0
) -> tuple[ErnieConfig, list[str]]:
    """Puts settings and tensors together.

    Args:
        settings: The checkpoint's or the user's.
        sizes: What the tensors tell.
        task: The head.
        layer_norm_eps: For every LayerNorm.
        more_rows: By how many rows the word embeddings grow.

    Returns:
        The configuration, and notices for the user. Its `num_hidden_layers` may be one less than the file has.

    Raises:
        SettingsError: settings and tensors disagree, or transformers cannot compute what they ask for.
    """
    _refuse_what_is_not_supported(settings, sizes)
    released = _released_as(sizes) if settings.path is None else None
    values, notices = (
        (DEFAULTS | _known(settings.values), []) if released is None else _settings_of_released(released, sizes)
    )
    layers = _count_layers(settings, sizes) if released is None else released.stack.layers
    if layers < sizes.num_hidden_layers:
        notices.append(
            f"layer {layers} was left out: it was stacked on for distillation only and is in the file beside the "
            f"{layers} layers of the model"
        )
    if values["use_task_id"] and not sizes.task_type_vocab_size:
        values["use_task_id"] = False
        notices.append(
            f"use_task_id is false, for the weights have no task embeddings; {settings.path} says true (as the "
            "released uie-base-en's does), and PaddleNLP would add random ones to every token"
        )
    told = asdict(sizes) | {"num_hidden_layers": layers}
    _check_against_tensors(settings, told, values, task)
    if settings.values.get("layer_norm_eps") not in (None, layer_norm_eps):
        notices.append(
            f"layer_norm_eps is {layer_norm_eps:g}, as PaddleNLP computes; {settings.path} says "
            f"{settings.values['layer_norm_eps']:g}, which it does not read. --layer-norm-eps changes it."
        )
    if not told["task_type_vocab_size"]:
        said = settings.values.get("task_type_vocab_size")
        told["task_type_vocab_size"] = 3 if said is None else said  # not used, PaddleNLP's default
    if task.is_native and values["use_task_id"] and values["task_id"]:
        told["task_type_vocab_size"] += 1
        notices.append(
            f"the default task type is {values['task_id']}, transformers' is always 0: row 0 of the task embeddings "
            f"became row {values['task_id']}'s copy, and task type 0 moved to {sizes.task_type_vocab_size}"
        )
    told["vocab_size"] += more_rows
    num_labels = told.pop("num_labels")
    if num_labels and task.name in LABELLED_TASKS and "id2label" not in values:
        values["num_labels"] = num_labels
    beside = {key: values.pop(key) for key in CARRIED_BESIDE if key in values}
    try:
        config = CONFIG_CLASSES.get(task.name, ErnieConfig)(**(values | told), layer_norm_eps=layer_norm_eps)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise SettingsError(f"{settings.path or 'the tensors'}: {error}") from error
    check_buildable(config, settings.path or "the tensors")
    for key, value in beside.items():
        setattr(config, key, value)
    config.architectures = [task.architecture]
    return config, notices


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: values[key] for key in (*DEFAULTS, *CARRIED) if values.get(key) is not None}
    if "id2label" in known:  # JSON's keys are text
        known["id2label"] = {int(key): label for key, label in known["id2label"].items()}
    return known


def _refuse_what_is_not_supported(settings: Settings, sizes: Sizes) -> None:
    where = settings.path or "the tensors"
    if sizes.type_vocab_size == 0:
        raise SettingsError(
            f"{where}: no token type embeddings (type_vocab_size 0). PaddleNLP allows that, transformers' ERNIE "
            "classes always have them, so this checkpoint cannot be opened there."
        )
    if settings.values.get("pool_act", "tanh") != "tanh":
        raise SettingsError(
            f"{where}: pool_act is {settings.values['pool_act']!r}; transformers' ERNIE pooler always takes tanh"
        )
    if settings.values.get("embedding_size") not in (None, sizes.hidden_size):
        raise SettingsError(
            f"{where}: embedding_size is {settings.values['embedding_size']}, the hidden size {sizes.hidden_size}; "
            "transformers' ERNIE has embeddings of the hidden size only"
        )
    if settings.values.get("rel_pos_size"):
        raise SettingsError(
            f"{where}: rel_pos_size is {shown(settings.values['rel_pos_size'])}: ERNIE-Gram's English models add a "
            "score for the distance of two tokens, which neither PaddleNLP's ErnieGramModel nor transformers' ERNIE "
            "computes. Only the Chinese ones, without it, are the same network."
        )


def is_gram(settings: Settings, sizes: Sizes, encoder: str) -> bool:
    """Whether a checkpoint is an ERNIE-Gram: by its class, by what it calls its encoder, or by its sizes.

    Args:
        settings: The checkpoint's.
        sizes: What the tensors tell.
        encoder: What its file calls the encoder.
    """
    if GRAM in (encoder, settings.values.get("model_type")):
        return True
    if settings.path is not None:
        return (settings.original_class or "").startswith(GRAM_CLASS)
    released = _find_released(sizes)
    return released is not None and released.is_gram


def layer_norm_eps_of(gram: bool) -> float:
    """The epsilon that PaddleNLP gives to every LayerNorm, whatever the settings say."""
    return GRAM_LAYER_NORM_EPS if gram else LAYER_NORM_EPS


def _find_released(sizes: Sizes) -> Released | None:
    return find_released(
        sizes.num_hidden_layers,
        sizes.hidden_size,
        sizes.intermediate_size,
        sizes.vocab_size,
        sizes.max_position_embeddings,
        sizes.type_vocab_size,
    )


def _released_as(sizes: Sizes) -> Released:
    """The released encoder that a file without settings is; those of the download addresses come so.

    Raises:
        SettingsError: none has these sizes.
    """
    released = _find_released(sizes)
    if released is None:
        raise SettingsError(
            f"no settings ({', '.join(SETTINGS_FILES)}) beside the weights, and {sizes.num_hidden_layers} layers of "
            f"size {sizes.hidden_size} with {sizes.vocab_size} words and {sizes.max_position_embeddings} positions "
            "are not a released ERNIE encoder, so the number of heads is not known. Pass --config FILE.json with "
            '{"num_attention_heads": ..., "use_task_id": ...}.'
        )
    return released


def _settings_of_released(released: Released, sizes: Sizes) -> tuple[dict[str, Any], list[str]]:
    """What the tensors of a released encoder cannot tell."""
    stack = released.stack
    told = {
        "num_attention_heads": stack.heads,
        "hidden_act": released.activation,
        "use_task_id": sizes.task_type_vocab_size > 0,
    }
    return DEFAULTS | told, [
        f"no settings file: taken for a released encoder of {stack.layers} layers, hidden size {stack.hidden}, "
        f"{stack.heads} heads, {released.activation}. If it is not, pass --config FILE.json."
    ]


def _count_layers(settings: Settings, sizes: Sizes) -> int:
    """Layers of the model: those of the file, or one less where it holds the extra one of distillation."""
    said = settings.values.get("num_hidden_layers")
    if said is None:
        return sizes.num_hidden_layers
    if said not in (sizes.num_hidden_layers, sizes.num_hidden_layers - 1):
        raise SettingsError(
            f"{settings.path}: num_hidden_layers is {said!r}, the weights have {sizes.num_hidden_layers} layers (one "
            "more than the settings is allowed: micro and nano were released with a layer of their distillation). "
            "Take the settings that belong to the weights."
        )
    return int(said)


def held_sizes(specs: Mapping[str, TensorSpec], prefix: str = "ernie.") -> dict[str, int]:
    """The most that a configuration may claim of each size beside tensors under transformers' names.

    Args:
        specs: The tensors.
        prefix: Of the backbone's names in a class with a head.
    """
    prefixes = ("", prefix)
    held = {
        "num_hidden_layers": max(count_layers(specs, f"{prefix}encoder.layer.") for prefix in prefixes),
        "vocab_size": longest(specs, "embeddings.word_embeddings.weight"),
        "max_position_embeddings": longest(specs, "embeddings.position_embeddings.weight"),
        "type_vocab_size": longest(specs, "embeddings.token_type_embeddings.weight"),
    }
    labels = longest(specs, "classifier.weight")
    if labels > 1:  # one row is that of multiple choice, too, where labels are of no use
        held |= dict.fromkeys(("num_labels", "id2label"), labels)
    return held


def check_buildable(config: ErnieConfig | BertConfig, where: object) -> None:
    """Makes sure that transformers can make a model of a configuration.

    Raises:
        SettingsError: it cannot.
    """
    if config.hidden_size % config.num_attention_heads:
        raise SettingsError(
            f"{where}: num_attention_heads is {config.num_attention_heads}; it must divide the hidden size "
            f"{config.hidden_size}"
        )
    if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
        raise SettingsError(
            f"{where}: pad_token_id is {config.pad_token_id}; the word embeddings have rows 0 to "
            f"{config.vocab_size - 1}"
        )


def task_rows(config: ErnieConfig, is_native: bool) -> tuple[int, ...]:
    """The row of each of the original's task types in the task embeddings; none where there are none.

    Args:
        config: ERNIE's.
        is_native: Whether the class is transformers' own, for which the default task type's row was put first.
    """
    if not config.use_task_id:
        return ()
    rows = tuple(range(config.task_type_vocab_size))
    default = getattr(config, "task_id", 0)
    if not is_native or not default:
        return rows
    types = list(rows[:-1])
    if default not in types:
        raise SettingsError(f"task_id is {default}; the task types are 0 to {len(types) - 1}")
    types[0], types[default] = rows[-1], 0
    return tuple(types)


def _check_against_tensors(settings: Settings, told: Mapping[str, Any], values: Mapping[str, Any], task: Task) -> None:
    where = settings.path or "the tensors"
    given = dict(settings.values)
    if task.name not in LABELLED_TASKS:
        given.pop("num_labels", None)
    elif "num_labels" not in given and given.get("id2label"):
        given["num_labels"] = len(given["id2label"])
    if not told["task_type_vocab_size"]:
        given.pop("task_type_vocab_size", None)
    check_told(given, told, where)
    if bool(values["use_task_id"]) != (told["task_type_vocab_size"] > 0):
        raise SettingsError(
            f"{where}: use_task_id is {values['use_task_id']!r}, but the weights have task embeddings. Set "
            '"use_task_id": true in the file given to --config.'
        )
    rows = told["task_type_vocab_size"]
    if rows and not 0 <= values["task_id"] < rows:
        raise SettingsError(
            f"{where}: task_id is {values['task_id']!r}; the task embeddings have rows 0 to {rows - 1}"
        )


__all__ = [
    "KINDS",
    "SETTINGS_FILES",
    "Settings",
    "Sizes",
    "build_config",
    "check_buildable",
    "held_sizes",
    "is_gram",
    "layer_norm_eps_of",
    "read_settings",
    "task_rows",
]
