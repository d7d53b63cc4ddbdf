"""What of a folder's settings is published: the keys that are known, and no other.

A settings file may hold where its author works, an access token, a cache's folder, or anything else that some program
put there. So a key is taken over where a class or a file's format knows it; what is left out is named, its value is
not. A value that looks like an access token or a path of a machine is refused even where the key is known.
"""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any, Final

from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from hf_glm_ernie.tokenization_ernie3 import Ernie3Tokenizer
from hf_glm_ernie.tokenization_glm130b import Glm130bTokenizer

from . import ernie3_settings, ernie_settings
from .operations import ConversionError

Schema = Mapping[str, Any] | None
"""Key -> what its value may hold: None for a scalar or lists of them, a schema for an object. `*` is any key."""

ANYTHING: Final[dict[str, Any]] = {}
"""As a schema, by identity: whatever is there."""


class UnpublishableError(ConversionError):
    """A value that must not leave the machine."""


def _keys(*names: str) -> dict[str, Schema]:
    return dict.fromkeys(names)


TOKEN = _keys("content", "lstrip", "rstrip", "single_word", "normalized", "special", "__type", "id")
_SPECIAL = {
    f"{name}_token": TOKEN
    for name in (
        *("bos", "eos", "unk", "sep", "pad", "cls", "mask"),
        *("eop", "gmask", "smask", "sop", "gend", "sentence", "soft_prompt"),
    )
} | {name: {"*": TOKEN, **TOKEN} for name in ("extra_special_tokens", "additional_special_tokens")}
_OURS = {
    name: None
    for tokenizer in (ErnieTokenizer, Ernie3Tokenizer, Glm130bTokenizer)
    for name in inspect.signature(tokenizer.__init__).parameters
    if name not in ("self", "kwargs", "vocab_file", "tokenizer_file") and not name.endswith("_token")
}
TOKENIZER_CONFIG: Schema = {
    **_keys(
        *("tokenizer_class", "backend", "model_max_length", "padding_side", "truncation_side", "model_input_names"),
        *("clean_up_tokenization_spaces", "split_special_tokens", "add_prefix_space", "add_bos_token"),
        *("add_eos_token", "add_special_tokens", "do_basic_tokenize", "never_split", "tokenize_chinese_chars"),
        *("strip_accents", "max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id"),
    ),
    "chat_template": _keys("name", "template"),
    "added_tokens_decoder": {"*": TOKEN},
    "model_specific_special_tokens": {"*": TOKEN},
    **_SPECIAL,
    **_OURS,
}

_PART: dict[str, Any] = _keys(
    *("type", "behavior", "invert", "add_prefix_space", "trim_offsets", "use_regex", "prepend_scheme", "split"),
    *("replacement", "clean_text", "handle_chinese_chars", "strip_accents", "lowercase", "precompiled_charsmap"),
    *("strip_left", "strip_right", "left", "right", "prepend", "individual_digits", "sep", "cls", "prefix", "suffix"),
    *(
        "cleanup",
        "pad_token",
        "word_delimiter_token",
        "start",
        "stop",
        "content",
        "direction",
        "max_length",
        "str_rep",
    ),
    *("strategy", "stride", "pad_to_multiple_of", "pad_id", "pad_type_id", "unk_token", "unk_id", "merges"),
    *("continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "dropout"),
    "max_input_chars_per_word",
)
_PART |= {"pattern": _keys("String", "Regex"), "vocab": {"*": None}}
_PART |= {
    "single": {"*": _keys("id", "type_id")},
    "pair": {"*": _keys("id", "type_id")},
    "special_tokens": {"*": _keys("id", "ids", "tokens")},
    "Fixed": None,
}
_PART |= dict.fromkeys(("normalizers", "pretokenizers", "processors", "decoders", "strategy"), _PART)
TOKENIZER: Schema = {
    "version": None,
    "added_tokens": TOKEN,
    **dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"), _PART
    ),
}

GENERATION: Schema = _keys(*(name for name in vars(GenerationConfig()) if not name.startswith("_")))

_PADDLE_SETTINGS = _keys(
    *ernie_settings.DEFAULTS,
    *ernie_settings.CARRIED,
    *ernie_settings.ORIGINAL_WORDS,
    *ernie_settings.ORIGINAL_WORDS.values(),
    *(field.name for field in dataclasses.fields(ernie_settings.Sizes)),
    *ernie3_settings.CARRIED,
    *ernie3_settings.ORIGINAL_WORDS,
    *(field.name for field in dataclasses.fields(ernie3_settings.Sizes)),
    *("dtype", "fuse", "layer_norm_eps", "model_type", "num_sharing_layers", "sent_type_vocab_size", "return_dict"),
)
_PADDLE_SETTINGS |= {"id2label": {"*": None}, "label2id": {"*": None}}
RECORD: Schema = {
    **_keys("iteration", "tensor_parallel", "bits", "kind", "original_class", "converter", "torch"),
    "settings": _PADDLE_SETTINGS,
    "first_layers": _keys("nlu", "nlg"),
    "dropped": {"*": None},
    "sha256": {"*": None},
}
INDEX: Schema = {"metadata": _keys("total_size", "total_parameters"), "weight_map": {"*": None}}

SCHEMAS: Mapping[str, Schema] = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": TOKENIZER_CONFIG,
    "special_tokens_map.json": _SPECIAL,
    "added_tokens.json": {"*": None},
    "generation_config.json": GENERATION,
    "conversion.json": RECORD,
    "model.safetensors.index.json": INDEX,
}
"""File -> what it may hold; config.json's is `config_schema`."""

_NEVER = ("name_or_path", "commit_hash", "auto_map")  # the last is written anew
_EVERY_MODEL = (
    *("model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "tie_word_embeddings"),
    *("is_decoder", "cross_attention_hidden_size", "add_cross_attention", "output_attentions", "num_labels"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "problem_type"),
)
_FREE_TEXT = ("vocab", "merges", "precompiled_charsmap", "chat_template", "weight_map", "dropped")

SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{30,}|sk-[\w-]{32,}|AKIA[0-9A-Z]{16})\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
MACHINE_PATH = re.compile(
    r"(file:/*)?(/(home|root|Users|tmp|var|etc|mnt|media|data|opt|usr|srv|work|workspace|content|scratch|nfs|proc|run)"
    r"/|~/|[A-Za-z]:[\\/]|\\\\\w)"
)


def config_schema(config_class: type[PreTrainedConfig], quant_method: object) -> Schema:
    """What config.json may hold.

    Args:
        config_class: Of the model type.
        quant_method: Of the weights; None where they are not quantized.
    """
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]  # the host makes it one
    names += [*_EVERY_MODEL, *ernie_settings.CARRIED_BESIDE, "task_id", *getattr(config_class, "attribute_map", {})]
    schema = _keys(*(name for name in names if name.lstrip("_") not in _NEVER))
    return schema | {
        "id2label": {"*": None},
        "label2id": {"*": None},
        "rope_parameters": _keys("rope_type", "rope_theta", "factor"),
        "quantization_config": _quantization_schema(quant_method),
    }


def _quantization_schema(method: object) -> Schema:
    config_class = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method) if isinstance(method, str) else None
    if config_class is None:
        return None
    known = _keys("quant_method", *inspect.signature(config_class).parameters)
    # bitsandbytes writes its own two names; torchao describes itself in an object.
    known |= _keys("_load_in_4bit", "_load_in_8bit") | {"quant_type": ANYTHING}
    return {key: schema for key, schema in known.items() if key not in ("self", "kwargs")}


def config_class_of(model_type: str) -> type[PreTrainedConfig]:
    """The configuration of a model type."""
    found: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    return found


def known_part(content: Mapping[str, Any], schema: Schema, where: str) -> tuple[dict[str, Any], list[str]]:
    """What of a file's content is published.

    Args:
        content: An object of JSON.
        schema: What is known.
        where: The file, for messages.

    Returns:
        The known part, and the names of what is left out, dotted.

    Raises:
        UnpublishableError: a known key holds a path of a machine or an access token.
    """
    left_out: list[str] = []
    known: dict[str, Any] = _known(content, schema, "", left_out)
    _refuse_private(known, where, "")
    return known, left_out


def _known(value: Any, schema: Schema, name: str, left_out: list[str]) -> Any:
    if schema is ANYTHING:
        return value
    if isinstance(value, list):
        there = [inner for inner in value if schema is not None or not _lost(inner, name, left_out)]
        return [_known(inner, schema, name, left_out) for inner in there]
    if not isinstance(value, dict):
        return value
    assert schema is not None
    known = {}
    for key, inner in value.items():
        dotted = f"{name}.{key}" if name else key
        if key not in schema and "*" not in schema:
            left_out.append(dotted)
            continue
        below = schema[key] if key in schema else schema["*"]
        if below is None and _lost(inner, dotted, left_out):
            continue
        known[key] = _known(inner, below, dotted, left_out)
    return known


def _lost(value: Any, name: str, left_out: list[str]) -> bool:
    """Whether an object stands where a scalar is known; then it is left out."""
    if isinstance(value, dict):
        left_out.append(name)
    return isinstance(value, dict)


def _refuse_private(value: Any, where: str, name: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _FREE_TEXT:
                _refuse_private(inner, where, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for inner in value:
            _refuse_private(inner, where, name)
    elif isinstance(value, str) and MACHINE_PATH.match(value):
        raise UnpublishableError(
            f"{where}: {name} is a path of a machine, which others should not see and cannot use. Change it there."
        )


def refuse_secrets(text: str, where: str) -> None:
    """Raises `UnpublishableError` for a text with an access token or private key in it, without printing it."""
    found = SECRET.search(text)
    if found is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise UnpublishableError(
            f"{where}: line {line} holds what looks like an access token or private key. Remove it there, and revoke "
            "it if it was ever shared."
        )


__all__ = [
    "SCHEMAS",
    "UnpublishableError",
    "config_class_of",
    "config_schema",
    "known_part",
    "refuse_secrets",
]
