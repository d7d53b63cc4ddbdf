"""The small files of a converted ERNIE folder (config, tokenizer, record, model card), and PaddleNLP's own."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import ErnieConfig

import hf_glm_ernie
from hf_glm_ernie import modeling_ernie_uie, modeling_ernie_utc
from hf_glm_ernie.tokenization_ernie import ErnieTokenizer

from .ernie_names import LABELLED_TASKS, Task
from .ernie_settings import CARRIED, CONFIG_CLASSES
from .folder_files import RECORD, checksum_table, dtype_name, write_code, write_index, write_json
from .readers import CheckpointError
from .writer import OutputFile

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


@dataclass(frozen=True)
class Origin:
    """Where a converted folder comes from; kept in it as `conversion.json`, read back by `--reverse`.

    Attributes:
        kind: The source's file format.
        original_class: PaddleNLP's class.
        settings: The source's settings.
        dropped: Source name -> why it was left out.
        sha256: Weight file -> SHA-256; empty if the result was not verified.
        converter: Version of this package.
        torch: Version of torch.
    """

    kind: str
    original_class: str
    settings: Mapping[str, Any]
    dropped: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    converter: str = hf_glm_ernie.__version__
    torch: str = torch.__version__


def read_origin(folder: Path) -> Origin | None:
    """The record of a converted folder; None if it has none or it is not one."""
    try:
        raw = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Origin(str(raw["kind"]), str(raw["original_class"]), dict(raw["settings"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_first(folder: Path, config: ErnieConfig, dtype: torch.dtype, tokenizer: ErnieTokenizer | None) -> None:
    """Writes config.json, the tokenizer's files, and the code of a class that transformers does not have."""
    config.dtype = dtype
    if config.model_type in OWN_CLASSES:
        config.auto_map = dict(OWN_CLASSES[config.model_type])
        write_code(folder, config.auto_map.values())
    config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        tokenizer.save_vocabulary(str(folder))


def write_last(
    folder: Path, config: ErnieConfig, files: Sequence[OutputFile], origin: Origin, task: Task, has_tokenizer: bool
) -> None:
    """Writes the index (where there are several shards), the record and the model card."""
    write_index(folder, files)
    write_json(folder / RECORD, asdict(origin))
    (folder / "README.md").write_text(model_card(config, origin, task, has_tokenizer), encoding="utf-8")


def read_config(folder: Path) -> tuple[ErnieConfig, str]:
    """The configuration of a folder to be written in PaddleNLP's format, and the class it is of.

    Raises:
        CheckpointError: not the configuration of an ERNIE encoder, or one PaddleNLP cannot express.
    """
    path = folder / "config.json"
    known: list[type[ErnieConfig]] = [ErnieConfig, *CONFIG_CLASSES.values()]
    classes = {config_class.model_type: config_class for config_class in known}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("model_type") not in classes:
            raise ValueError(f"model_type is {raw.get('model_type')!r}, expected one of {', '.join(classes)}")
        if raw.get("quantization_config"):
            raise ValueError("the weights are quantized; only floating-point weights can be written")
        if not raw.get("tie_word_embeddings", True):
            raise ValueError("tie_word_embeddings is false, and PaddleNLP's heads are always tied")
        if len(raw.get("architectures") or []) != 1:
            raise ValueError(f"architectures should name one class, it is {raw.get('architectures')!r}")
        return classes[raw["model_type"]].from_dict(raw), raw["architectures"][0]
    except (OSError, ValueError, AttributeError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(f"{path}: not the configuration of an ERNIE encoder ({error})") from error


def original_config(config: ErnieConfig, task: Task, dtype: torch.dtype, origin: Origin | None) -> dict[str, Any]:
    """The `config.json` PaddleNLP 2.5 and later reads.

    Args:
        config: transformers' configuration.
        task: The head.
        dtype: Of the weights.
        origin: The record, if the folder has one: settings transformers does not know are taken from it.
    """
    values: dict[str, Any] = dict(origin.settings) if origin is not None else {}
    values |= {key: getattr(config, key) for key in PADDLE_KEYS}
    carried = CARRIED if task.name in LABELLED_TASKS else tuple(key for key in CARRIED if "label" not in key)
    values |= {key: value for key in carried if (value := getattr(config, key, None)) is not None}
    values["task_id"] = getattr(config, "task_id", 0)
    # A default task type other than 0 has one more row on transformers' side.
    added_row = task.is_native and config.use_task_id and values["task_id"] != 0
    values["task_type_vocab_size"] = config.task_type_vocab_size - int(added_row)
    values |= {"architectures": [task.original], "model_type": "ernie", "dtype": dtype_name(dtype)}
    values.setdefault("pool_act", "tanh")
    values.setdefault("fuse", False)
    for key in ("num_labels", "init_class"):
        values.pop(key, None)
    return dict(sorted(values.items()))


def write_original_files(
    folder: Path, config: Mapping[str, Any], source: Path, tokenizer: ErnieTokenizer | None
) -> None:
    """Writes PaddleNLP's config.json and its tokenizer's files, with the ids that it gives to added tokens."""
    write_json(folder / "config.json", config)
    if tokenizer is None:
        return
    if (source / "vocab.txt").is_file():
        shutil.copyfile(source / "vocab.txt", folder / "vocab.txt")
    else:
        tokenizer.save_vocabulary(str(folder))
    if added := tokenizer.paddlenlp_ids():
        write_json(folder / "added_tokens.json", added)
    special: dict[str, Any] = {name: str(getattr(tokenizer, name)) for name in tokenizer.special_tokens_map}
    if tokenizer.extra_special_tokens:
        special["additional_special_tokens"] = [str(token) for token in tokenizer.extra_special_tokens]
    write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "ErnieTokenizer", "do_lower_case": tokenizer.do_lower_case} | special
    write_json(folder / "tokenizer_config.json", settings | {"model_max_length": config["max_position_embeddings"]})


def model_card(config: ErnieConfig, origin: Origin, task: Task, has_tokenizer: bool) -> str:
    """The README.md of a converted folder.

    Args:
        config: The model's configuration.
        origin: Where it comes from.
        task: The head.
        has_tokenizer: Whether the folder holds a tokenizer.
    """
    tokenizer = (
        "The tokenizer gives PaddleNLP's ids and needs nothing but transformers."
        if has_tokenizer
        else "This folder has no tokenizer: convert again with `--vocab vocab.txt` to add it."
    )
    left_out = "\n".join(f"- `{name}`: {reason}" for name, reason in origin.dropped.items()) or "- nothing"
    pooler = "" if task.architecture in WITH_POOLER else POOLER_NOTE.format(architecture=task.architecture)
    return CARD.format(
        plugin="" if task.is_native else PLUGIN,
        pipeline=PIPELINES[task.name],
        auto=AUTO_CLASSES[task.name],
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        dtype=dtype_name(config.dtype),
        tokenizer=tokenizer,
        pad="PaddleNLP's behaviour on padding is built in." if not task.is_native else PAD_NOTE,
        pooler=pooler,
        eps=f"{config.layer_norm_eps:g}",
        kind=origin.kind,
        original=origin.original_class,
        converter=origin.converter,
        torch=origin.torch,
        transformers=transformers.__version__,
        left_out=left_out,
        checksums=checksum_table(origin.sha256),
    )


WITH_POOLER = (
    "ErnieModel",
    "ErnieForPreTraining",
    "ErnieForSequenceClassification",
    "ErnieForMultipleChoice",
    "ErnieForUIE",
    "ErnieForUTC",
)
PIPELINES = {
    "features": "feature-extraction",
    "masked-lm": "fill-mask",
    "pretraining": "fill-mask",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "multiple-choice": "multiple-choice",
    "uie": "token-classification",
    "utc": "zero-shot-classification",
}
AUTO_CLASSES = {
    "features": "AutoModel",
    "masked-lm": "AutoModelForMaskedLM",
    "pretraining": "AutoModelForPreTraining",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "uie": "AutoModel",
    "utc": "AutoModel",
}
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

{layers} layers, hidden size {hidden}, {heads} heads, vocabulary {vocabulary}, {dtype}.

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
## Origin

PaddleNLP's {original}, {kind}, converted with hf-glm-ernie {converter} (torch {torch}, transformers {transformers}).
Every LayerNorm has eps {eps}. Weights are renamed and transposed, not changed, unless `--dtype` asked for another
type; `glm-ernie-convert ernie --reverse` writes PaddleNLP's format back. Left out:

{left_out}

{checksums}

## Licence

Whoever published the source checkpoint sets the licence of these weights.
"""


__all__ = [
    "Origin",
    "model_card",
    "original_config",
    "read_config",
    "read_origin",
    "write_first",
    "write_last",
    "write_original_files",
]
