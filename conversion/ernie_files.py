"""What is ERNIE's own among the small files of a converted folder (its code, the model card), and PaddleNLP's."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import ErnieConfig, PreTrainedTokenizerBase

from hf_glm_ernie import modeling_ernie_uie, modeling_ernie_utc
from hf_glm_ernie.tokenization_ernie import ErnieTokenizer

from .converted_folder import Record, check_plain, origin_of_paddle
from .ernie_bpe import write_byte_pairs
from .ernie_names import GRAM, LABELLED_TASKS, Task
from .ernie_settings import CARRIED
from .folder_files import PIPELINES, dtype_name, write_json

OWN_CLASSES: Mapping[str, Mapping[str, str]] = {
    "ernie_uie": modeling_ernie_uie.HUB_CLASSES,
    "ernie_utc": modeling_ernie_utc.HUB_CLASSES,
}
"""Model type -> `auto_map` of config.json, where transformers has no class."""

PADDLE_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "use_task_id",
    "initializer_range",
    "pad_token_id",
    "layer_norm_eps",
)
"""Settings that have the same name and meaning in both programs."""


def hub_classes(config: ErnieConfig) -> Mapping[str, str]:
    """`auto_map` of config.json, where transformers has no class."""
    return OWN_CLASSES.get(config.model_type, {})


def check_config(raw: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a config.json that PaddleNLP cannot express."""
    if not raw.get("tie_word_embeddings", True):
        raise ValueError("tie_word_embeddings is false, and PaddleNLP's heads are always tied")
    for key in ("is_decoder", "add_cross_attention"):
        if raw.get(key):
            raise ValueError(f"{key} is true, and PaddleNLP's encoder attends in both directions, to itself alone")
    for key in ("kept_attention_heads", "embedding_bits"):
        if raw.get(key) is not None:
            raise ValueError(
                f"{key} is {raw[key]!r}: the encoder was made smaller in a way that PaddleNLP cannot read"
            )
    check_plain(raw)


def original_config(
    config: ErnieConfig, task: Task, dtype: torch.dtype, record: Record | None, is_gram: bool = False
) -> dict[str, Any]:
    """The `config.json` PaddleNLP 2.5 and later reads.

    Args:
        config: transformers' configuration.
        task: The head.
        dtype: Of the weights.
        record: The folder's, if it has one: settings transformers does not know are taken from it.
        is_gram: Whether it is for ERNIE-Gram's class.
    """
    values: dict[str, Any] = dict(record.source["settings"]) if record is not None else {}
    values |= {key: getattr(config, key) for key in PADDLE_KEYS}
    carried = CARRIED if task.name in LABELLED_TASKS else tuple(key for key in CARRIED if "label" not in key)
    values |= {key: value for key in carried if (value := getattr(config, key, None)) is not None}
    values["task_id"] = getattr(config, "task_id", 0)
    # A default task type other than 0 has one more row on transformers' side.
    added_row = task.is_native and config.use_task_id and values["task_id"] != 0
    values["task_type_vocab_size"] = config.task_type_vocab_size - int(added_row)
    model_type = GRAM if is_gram else "ernie"
    values |= {"architectures": [task.original_of(is_gram)], "model_type": model_type, "dtype": dtype_name(dtype)}
    values.setdefault("pool_act", "tanh")
    values.setdefault("fuse", False)
    for key in ("num_labels", "init_class"):
        values.pop(key, None)
    return dict(sorted(values.items()))


def write_original_files(
    folder: Path, config: Mapping[str, Any], source: Path, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Writes PaddleNLP's config.json and its tokenizer's files, with the ids that it gives to added tokens."""
    write_json(folder / "config.json", config)
    if tokenizer is None:
        return
    if not isinstance(tokenizer, ErnieTokenizer):
        write_byte_pairs(folder, tokenizer)
    elif (source / "vocab.txt").is_file():
        shutil.copyfile(source / "vocab.txt", folder / "vocab.txt")
    else:
        tokenizer.save_vocabulary(str(folder))
    if isinstance(tokenizer, ErnieTokenizer) and (added := tokenizer.paddlenlp_ids()):
        write_json(folder / "added_tokens.json", added)
    special: dict[str, Any] = {name: str(getattr(tokenizer, name)) for name in tokenizer.special_tokens_map}
    if tokenizer.extra_special_tokens:
        special["additional_special_tokens"] = [str(token) for token in tokenizer.extra_special_tokens]
    write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "ErnieTokenizer", "do_lower_case": _lowercases(tokenizer)} | special
    write_json(folder / "tokenizer_config.json", settings | {"model_max_length": config["max_position_embeddings"]})


def _lowercases(tokenizer: PreTrainedTokenizerBase) -> bool:
    if isinstance(tokenizer, ErnieTokenizer):
        return tokenizer.do_lower_case
    return bool(tokenizer.init_kwargs.get("do_lower_case"))


def model_card(config: ErnieConfig, task: Task, has_tokenizer: bool, record: Record) -> str:
    """The README.md of a converted folder.

    Args:
        config: The model's configuration.
        task: The head.
        has_tokenizer: Whether the folder holds a tokenizer.
        record: Where it comes from.
    """
    tokenizer = (
        "The tokenizer gives PaddleNLP's ids and needs nothing but transformers."
        if has_tokenizer
        else "This folder has no tokenizer: convert again with `--vocab vocab.txt` to add it."
    )
    source = f"PaddleNLP's {record.source['original_class']}, {record.source['kind']}"
    pooler = "" if task.has_pooler else POOLER_NOTE.format(architecture=task.architecture)
    return CARD.format(
        plugin="" if task.is_native else PLUGIN,
        pipeline=task.pipeline or PIPELINES[task.auto_class],
        auto=task.auto_class,
        config=config,
        dtype=dtype_name(config.dtype),
        tokenizer=tokenizer,
        pad="PaddleNLP's behaviour on padding is built in." if not task.is_native else PAD_NOTE,
        pooler=pooler,
        origin=origin_of_paddle(record, source, config.layer_norm_eps, "ernie", "PaddleNLP's format"),
    )


PAD_NOTE = (
    "Always pass the tokenizer's `attention_mask`: without it transformers attends to padding, PaddleNLP does not. "
    "Hidden states at padded positions differ from PaddleNLP's, whose padding embedding is zero; others do not."
)
PLUGIN = "import hf_glm_ernie  # `pip install .` in a checkout of it; registers the class\n"

POOLER_NOTE = """
The file also holds the pooler, which PaddleNLP keeps in every checkpoint and {architecture} does not have: loading
reports `pooler.dense` as unexpected, and `AutoModel` or `AutoModelForSequenceClassification` use it.
"""
CARD = """---
language:
- zh
- en
library_name: transformers
pipeline_tag: {pipeline}
tags:
- ernie
license: other
license_name: as-the-source-checkpoint
---

# An ERNIE encoder for transformers

{config.num_hidden_layers} layers, hidden size {config.hidden_size}, {config.num_attention_heads} heads, vocabulary
{config.vocab_size}, {dtype}.

```python
{plugin}from transformers import {auto}, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder)
outputs = model(**tokenizer("巴黎是法国的首都。", return_tensors="pt"))
```

{tokenizer}
{pad}
{pooler}
{origin}"""


__all__ = ["check_config", "hub_classes", "model_card", "original_config", "write_original_files"]
