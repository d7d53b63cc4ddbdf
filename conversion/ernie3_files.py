"""The small files of a converted ERNIE 3.0 folder (config, tokenizer, record, model card), and of a static one."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

import hf_glm_ernie
from hf_glm_ernie.configuration_ernie3 import HUB_CLASSES, Ernie3Config
from hf_glm_ernie.tokenization_ernie3 import Ernie3Tokenizer
from hf_glm_ernie.tokenization_ernie_vocabulary import read_vocabulary

from .ernie3_names import BRANCHES
from .ernie3_settings import CARRIED
from .folder_files import RECORD, checksum_table, dtype_name, write_code, write_index, write_json
from .operations import SettingsError
from .readers import CheckpointError
from .writer import OutputFile

STATIC_SETTINGS = "ernie_config.json"
VOCABULARY = "vocab.txt"
MAX_UNUSED_IDS = 100
"""Rows of the embeddings without a token, in a model that is not larger than its vocabulary by a hundredth."""


@dataclass(frozen=True)
class Origin:
    """Where a converted folder comes from; kept in it as `conversion.json`, read back by `--reverse`.

    Attributes:
        kind: The source's file format.
        settings: The source's settings.
        first_layers: Branch -> number of its first layer in the source's names.
        dropped: Source name -> why it was left out.
        sha256: Weight file -> SHA-256; empty if the result was not verified.
        converter: Version of this package.
        torch: Version of torch.
    """

    kind: str
    settings: Mapping[str, Any]
    first_layers: Mapping[str, int]
    dropped: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    converter: str = hf_glm_ernie.__version__
    torch: str = torch.__version__


def read_origin(folder: Path) -> Origin | None:
    """The record of a converted folder; None if it has none or it is not one."""
    try:
        raw = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        first = {str(branch): int(layer) for branch, layer in raw["first_layers"].items()}
        return Origin(str(raw["kind"]), dict(raw["settings"]), first)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def load_tokenizer(folder: Path, given: Path | None) -> Ernie3Tokenizer | None:
    """The tokenizer of a `vocab.txt`: the model's own, or the released encoders', which lacks the model's tokens.

    Args:
        folder: The checkpoint's.
        given: `--vocab`.

    Raises:
        SettingsError: the file is missing or no such vocabulary.
    """
    path = given or folder / VOCABULARY
    if not path.is_file():
        if given is None:
            return None
        raise SettingsError(f"--vocab {given}: no such file. It is the model's or the released encoders' vocab.txt.")
    try:
        if "[END]" in read_vocabulary(path)[0]:
            return Ernie3Tokenizer(vocab_file=str(path))
        return Ernie3Tokenizer.from_released_vocabulary(path)
    except (ValueError, OSError) as error:
        raise SettingsError(f"{path}: {error}") from error


def check_vocabulary(tokenizer: Ernie3Tokenizer | None, vocab_size: int) -> list[str]:
    """Makes sure that the vocabulary is of the size of the embeddings; returns notices.

    Raises:
        SettingsError: it is not.
    """
    if tokenizer is None:
        return [f"no {VOCABULARY}: the folder has no tokenizer. Pass --vocab to add it."]
    highest = max(tokenizer.get_vocab().values())
    unused = vocab_size - 1 - highest
    if not 0 <= unused <= max(MAX_UNUSED_IDS, vocab_size // 100):
        raise SettingsError(
            f"the vocabulary has ids up to {highest}, the model has embeddings up to {vocab_size - 1}. Pass the "
            f"model's own {VOCABULARY} with --vocab, with [END] and <S> among its lines; the released encoders' one "
            "makes the 10B's 30000 ids."
        )
    return []


def write_first(folder: Path, config: Ernie3Config, dtype: torch.dtype, tokenizer: Ernie3Tokenizer | None) -> None:
    """Writes config.json, the tokenizer's files and the model's code (the tokenizer needs none)."""
    config.dtype = dtype
    config.auto_map = dict(HUB_CLASSES)
    config.save_pretrained(folder)
    write_code(folder, HUB_CLASSES.values())
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def write_last(
    folder: Path, config: Ernie3Config, files: Sequence[OutputFile], origin: Origin, has_tokenizer: bool
) -> None:
    """Writes the index (where there are several shards), the record and the model card."""
    write_index(folder, files)
    write_json(folder / RECORD, asdict(origin))
    (folder / "README.md").write_text(model_card(config, origin, has_tokenizer), encoding="utf-8")


def read_config(folder: Path) -> tuple[Ernie3Config, str]:
    """The configuration of a folder to be written as a static graph's, and the class it is of.

    Raises:
        CheckpointError: not the configuration of an ERNIE 3.0 model, or one the static layout has no names for.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("model_type") != Ernie3Config.model_type:
            raise ValueError(f"model_type is {raw.get('model_type')!r}, expected {Ernie3Config.model_type!r}")
        if raw.get("quantization_config"):
            raise ValueError("the weights are quantized; only floating-point weights can be written")
        if len(raw.get("architectures") or []) != 1:
            raise ValueError(f"architectures should name one class, it is {raw.get('architectures')!r}")
        config = Ernie3Config.from_dict(raw)
    except (OSError, ValueError, AttributeError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(f"{path}: not the configuration of an ERNIE 3.0 model ({error})") from error
    for unknown, what in (
        (config.position_embedding_type != "absolute", "relative positions"),
        (config.num_soft_prompt_genres > 0, "soft prompts"),
        (config.tie_word_embeddings, "a head tied to the word embeddings"),
    ):
        if unknown:
            raise CheckpointError(
                f"{path}: a model with {what}; nothing public tells how the static graph names or stores that, so it "
                "cannot be written."
            )
    return config, raw["architectures"][0]


def static_settings(config: Ernie3Config, origin: Origin | None) -> dict[str, Any]:
    """The `ernie_config.json` of a static folder, in the original's words.

    Args:
        config: The model's configuration.
        origin: The record, if the folder has one: settings this package does not know are taken from it.
    """
    values: dict[str, Any] = dict(origin.settings) if origin is not None else {}
    values |= {key: value for key in CARRIED if (value := getattr(config, key)) is not None}
    values["end_token_id"] = values.pop("eos_token_id", None)
    same = ("vocab_size", "hidden_size", "intermediate_size", "branch_hidden_size", "branch_intermediate_size")
    for key in (*same, "max_position_embeddings", "task_type_vocab_size", "layer_norm_eps"):
        values[key] = getattr(config, key)
    values |= {
        "num_hidden_layers": config.num_hidden_layers + config.branch_num_hidden_layers,
        "num_sharing_layers": config.num_hidden_layers,
        "sent_type_vocab_size": config.type_vocab_size,
    }
    for key in ("type_vocab_size", "branch_num_hidden_layers", "branches"):
        values.pop(key, None)
    return dict(sorted((key, value) for key, value in values.items() if value is not None))


def write_static_files(folder: Path, settings: Mapping[str, Any], source: Path) -> None:
    """Writes the settings and, where the source folder has one, the vocabulary."""
    write_json(folder / STATIC_SETTINGS, settings)
    if (source / VOCABULARY).is_file():
        shutil.copyfile(source / VOCABULARY, folder / VOCABULARY)


def model_card(config: Ernie3Config, origin: Origin, has_tokenizer: bool) -> str:
    """The README.md of a converted folder."""
    left_out = "\n".join(f"- `{name}`: {reason}" for name, reason in origin.dropped.items()) or "- nothing"
    return CARD.format(
        branches=" and ".join(name for name in BRANCHES if name in config.branches),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        branch_layers=config.branch_num_hidden_layers,
        branch_hidden=config.branch_hidden_size,
        branch_heads=config.branch_num_attention_heads,
        vocabulary=config.vocab_size,
        dtype=dtype_name(config.dtype),
        example=GENERATION if "nlg" in config.branches else UNDERSTANDING,
        tokenizer="" if has_tokenizer else NO_TOKENIZER,
        kind=origin.kind,
        eps=f"{config.layer_norm_eps:g}",
        converter=origin.converter,
        torch=origin.torch,
        transformers=transformers.__version__,
        left_out=left_out,
        checksums=checksum_table(origin.sha256),
    )


NO_TOKENIZER = "\nThis folder has no tokenizer: convert again with `--vocab vocab.txt` to add it.\n"
GENERATION = """model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("中国的首都是哪里", return_tensors="pt")
outputs = model.generate(**inputs, do_sample=True, top_k=4, temperature=0.9, repetition_penalty=1.1)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))"""
UNDERSTANDING = """model = AutoModelForMaskedLM.from_pretrained(folder)
outputs = model(**tokenizer("中国的首都是[MASK]京", return_tensors="pt"))"""
CARD = """---
language:
- zh
library_name: transformers
tags:
- ernie
- ernie3
license: other
license_name: as-the-source-checkpoint
---

# ERNIE 3.0 (unified model) for transformers

A universal stack of {layers} layers, hidden size {hidden}, {heads} heads; branches {branches} of {branch_layers}
layers, hidden size {branch_hidden}, {branch_heads} heads; vocabulary {vocabulary}, {dtype}.

```python
import hf_glm_ernie  # `pip install .` in a checkout of it; registers the classes
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
{example}
```
{tokenizer}
## Origin

The static graph's parameters ({kind}), converted with hf-glm-ernie {converter} (torch {torch}, transformers
{transformers}). Every LayerNorm has eps {eps}. Weights are renamed and transposed, not changed, unless `--dtype` asked
for another type; `glm-ernie-convert ernie3 --reverse` writes the static files back. Left out:

{left_out}

{checksums}

## Licence

Whoever published the source checkpoint sets the licence of these weights.
"""


__all__ = [
    "Origin",
    "check_vocabulary",
    "load_tokenizer",
    "model_card",
    "read_config",
    "read_origin",
    "static_settings",
    "write_first",
    "write_last",
    "write_static_files",
]
