"""The settings of a GLM-130B checkpoint: what the tensors tell, what a JSON file adds, what the tokenizer decides."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from hf_glm_ernie.configuration_arguments import MAX_POSITIONS
from hf_glm_ernie.configuration_glm130b import RANGES, Glm130bConfig
from hf_glm_ernie.tokenization_glm130b import Glm130bTokenizer
from hf_glm_ernie.tokenization_icetext import MAX_IMAGE_TOKENS

from .operations import SettingsError, TensorSpec
from .setting_kinds import LAYERS, RATES, SIZE, TEXT, TOKEN_ID, TOKEN_IDS, TRUTH, Kind, number, whole
from .settings_files import check_kinds, count_layers, longest, read_settings_object, renamed, shown

ORIGINAL_WORDS = {
    "num_layers": "num_hidden_layers",
    "inner_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "layernorm_epsilon": "layer_norm_eps",
}
"""Keys as the original program spells them -> fields of `Glm130bConfig`; the others are spelt alike."""

FREE_FIELDS = (
    "num_attention_heads",
    "max_position_embeddings",
    "layer_norm_eps",
    "hidden_dropout",
    "attention_dropout",
    "initializer_range",
    "rope_theta",
    "rotary_dtype",
    "embedding_gradient_shrink",
)
"""Fields that no tensor tells; the first two are needed, the others default to the released model's."""

ID_FIELDS = {
    "mask_token_id": ("[MASK]",),
    "gmask_token_id": ("[gMASK]",),
    "smask_token_id": ("[sMASK]",),
    "sop_token_id": ("<sop>",),
    "eop_token_id": ("<eop>",),
    "eos_token_id": ("<eop>", "</s>"),
    "pad_token_id": ("<pad>",),
}
"""Fields of `Glm130bConfig` -> the tokens whose ids they hold."""

NUM_IMAGE_TOKENS = "num_image_tokens"
"""How many ids stand before the text pieces; 20,000 in the released vocabulary."""

KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"), SIZE),
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": whole(1, MAX_POSITIONS),
    **{name: RATES[name] for name in ("layer_norm_eps", "initializer_range")},
    **{
        name: number(RANGES[name])
        for name in ("hidden_dropout", "attention_dropout", "rope_theta", "embedding_gradient_shrink")
    },
    "rotary_dtype": TEXT,
    NUM_IMAGE_TOKENS: whole(0, MAX_IMAGE_TOKENS),
}
"""Setting -> what it may be, under the names of `Glm130bConfig`; ids of tokens are held against the vocabulary."""

CONFIG_KINDS: Mapping[str, Kind] = {
    **KINDS,
    **{name: TOKEN_IDS if len(tokens) > 1 else TOKEN_ID for name, tokens in ID_FIELDS.items()},
    "allow_context_labels": TRUTH,
}
"""The same for the config.json of a converted folder."""


@dataclass(frozen=True)
class Sizes:
    """What the tensors tell, under the names of `Glm130bConfig`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int


def released_sizes() -> Sizes:
    """The released model's: the defaults of the configuration."""
    return Sizes(**{field.name: getattr(Glm130bConfig(), field.name) for field in fields(Sizes)})


@dataclass(frozen=True)
class Settings:
    """The content of a settings file, in the words of `Glm130bConfig`.

    Attributes:
        values: Field -> value, known fields only.
        num_image_tokens: Of the vocabulary, if given.
        notices: A line on the keys that are not used, if any.
    """

    values: Mapping[str, Any]
    num_image_tokens: int | None
    notices: tuple[str, ...]


def read_settings(path: Path | None) -> Settings:
    """Reads a JSON file with keys in the original's words or in those of `Glm130bConfig`.

    Raises:
        SettingsError: not a JSON object, one setting under two names, or a setting that is not what it may be.
    """
    if path is None:
        return Settings({}, None, ())
    raw = read_settings_object(path, f"--config {path}")
    where = f"--config {path}"
    known = {field.name for field in fields(Sizes)} | set(FREE_FIELDS) | set(ID_FIELDS) | {NUM_IMAGE_TOKENS}
    unused = [key for key in raw if ORIGINAL_WORDS.get(key, key) not in known]
    values = renamed({key: value for key, value in raw.items() if key not in unused}, ORIGINAL_WORDS, where)
    for name in ("num_attention_heads", "max_position_embeddings"):
        if name in values and values[name] is None:
            raise SettingsError(f"{where}: {name} is None; it is {KINDS[name].words}. Correct it.")
    check_kinds(values, KINDS, where)
    images = values.pop(NUM_IMAGE_TOKENS, None)
    return Settings(values, images, _notices_on_unused(path, unused, known))


def _notices_on_unused(path: Path, unused: list[str], known: set[str]) -> tuple[str, ...]:
    if not unused:
        return ()
    words = []
    for key in sorted(unused):
        near = difflib.get_close_matches(key, sorted(known | set(ORIGINAL_WORDS)), n=1, cutoff=0.85)
        words.append(f"{key} (did you mean {near[0]}?)" if near else key)
    return (f"keys of {path} that are not used: {', '.join(words)}",)


def build_config(
    sizes: Sizes, ranks: int, settings: Settings, tokenizer: Glm130bTokenizer | None
) -> tuple[Glm130bConfig, list[str]]:
    """Puts tensors, settings and tokenizer together.

    Args:
        sizes: What the tensors tell.
        ranks: Tensor-parallel degree of the source; heads must divide by it.
        settings: The user's file.
        tokenizer: Decides the special ids; without one the settings do, then the released ids where they fit.

    Returns:
        The configuration, and notices for the user.

    Raises:
        SettingsError: a setting the tensors contradict; heads or context length missing; heads that do not divide; ids
            outside the vocabulary.
    """
    told = asdict(sizes)
    for field, value in told.items():
        if field in settings.values and settings.values[field] != value:
            raise SettingsError(
                f"--config says {field} is {settings.values[field]!r}, the tensors say {value}. Correct the file or "
                "remove the key."
            )
    released = Glm130bConfig()
    values: dict[str, Any] = {field: settings.values[field] for field in FREE_FIELDS if field in settings.values}
    is_released_size = sizes == released_sizes()
    for field, original in (
        ("num_attention_heads", "num_attention_heads"),
        ("max_position_embeddings", "max_sequence_length"),
    ):
        if field not in values and not is_released_size:
            raise SettingsError(
                f"{field} cannot be read from the tensors, and this is not the released size "
                f"({', '.join(f'{key} {value}' for key, value in told.items())}). Pass --config FILE.json with "
                f'{{"num_attention_heads": ..., "max_sequence_length": ...}}; "{original}" is missing.'
            )
        values.setdefault(field, getattr(released, field))
    _check_heads(values["num_attention_heads"], sizes.hidden_size, ranks)
    ids, notices = _special_ids(settings, tokenizer, sizes.vocab_size, released)
    try:
        return Glm130bConfig(**told, **values, **ids), notices
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise SettingsError(f"--config: {error}") from error


def _check_heads(heads: int, hidden_size: int, ranks: int) -> None:
    if hidden_size % heads or (hidden_size // heads) % 2:
        raise SettingsError(
            f"num_attention_heads {heads} must divide the hidden size {hidden_size} into heads of even size. Correct "
            "it in --config."
        )
    if heads % ranks:
        raise SettingsError(
            f"num_attention_heads {heads} must be a multiple of the {ranks} tensor-parallel ranks, each holds whole "
            "heads. Correct it in --config."
        )


def _special_ids(
    settings: Settings, tokenizer: Glm130bTokenizer | None, vocab_size: int, released: Glm130bConfig
) -> tuple[dict[str, Any], list[str]]:
    if tokenizer is not None and len(tokenizer) > vocab_size:
        raise SettingsError(
            f"the tokenizer has ids up to {len(tokenizer) - 1}, the model's vocabulary ends at {vocab_size - 1}. "
            "Pass the model's own "
            f'ice_text.model, and in --config the right "{NUM_IMAGE_TOKENS}" (20000 in the released vocabulary).'
        )
    ids: dict[str, Any] = {}
    without = []
    for field, tokens in ID_FIELDS.items():
        given = settings.values.get(field)
        if tokenizer is not None:
            numbers = [_token_id(tokenizer, token) for token in tokens]
            ids[field] = numbers if len(tokens) > 1 else numbers[0]
            if given is not None and given != ids[field]:
                raise SettingsError(
                    f"--config says {field} is {shown(given)}, the tokenizer says {ids[field]!r}. Remove the key or "
                    "correct it."
                )
        elif field in settings.values:
            ids[field] = given
        else:
            ids[field] = getattr(released, field)
            if any(number >= vocab_size for number in _numbers(ids[field])):
                ids[field] = None
                without.append(field)
        outside = [number for number in _numbers(ids[field]) if not 0 <= number < vocab_size]
        if outside:
            raise SettingsError(
                f"{field} {shown(outside[0])} is outside the vocabulary of {vocab_size} ids (0 .. {vocab_size - 1})."
            )
    notices = []
    if tokenizer is None:
        notices.append("no ice_text.model: the folder has no tokenizer. Pass --tokenizer to add it.")
    if without:
        notices.append(
            f"the released special ids do not fit a vocabulary of {vocab_size}: {', '.join(without)} are left empty, "
            "and every row is causal. Pass --tokenizer, or the ids in --config."
        )
    return ids, notices


def _token_id(tokenizer: Glm130bTokenizer, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    if number is None or number == tokenizer.unk_token_id:
        raise SettingsError(
            f"the tokenizer has no {token}: not a GLM-130B vocabulary. Pass the model's own ice_text.model."
        )
    assert isinstance(number, int)  # of one token
    return number


def _numbers(ids: Any) -> list[int]:
    numbers = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if any(type(number) is not int for number in numbers):
        raise SettingsError(f"--config: a token id must be a whole number, found {shown(ids)}")
    return numbers


def held_sizes(specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """The most that a configuration may claim of each size beside tensors under this package's names."""
    return {
        "num_hidden_layers": count_layers(specs, "model.layers."),
        "vocab_size": longest(specs, "model.embed_tokens.weight"),
    }


__all__ = [
    "CONFIG_KINDS",
    "KINDS",
    "Settings",
    "Sizes",
    "build_config",
    "held_sizes",
    "read_settings",
    "released_sizes",
]
