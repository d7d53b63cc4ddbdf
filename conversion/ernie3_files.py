"""What is ERNIE 3.0's own among the small files of a converted folder (tokenizer, card), and a static folder's."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.tokenization_ernie3 import Ernie3Tokenizer
from hf_glm_ernie.tokenization_ernie_vocabulary import read_vocabulary

from .converted_folder import Record, origin_of_paddle
from .ernie3_names import BRANCHES
from .ernie3_settings import CARRIED
from .folder_files import dtype_name, write_json
from .lazy_files import CheckpointError
from .operations import SettingsError

STATIC_SETTINGS = "ernie_config.json"
VOCABULARY = "vocab.txt"
MAX_UNUSED_IDS = 100
"""Rows of the embeddings without a token, in a model that is not larger than its vocabulary by a hundredth."""


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


def check_supported(config: Ernie3Config, folder: Path) -> None:
    """Makes sure that the static layout has names for all that a model has.

    Raises:
        CheckpointError: it has not.
    """
    for unknown, what in (
        (config.position_embedding_type != "absolute", "relative positions"),
        (config.num_soft_prompt_genres > 0, "soft prompts"),
        (config.tie_word_embeddings, "a head tied to the word embeddings"),
    ):
        if unknown:
            raise CheckpointError(
                f"{folder / 'config.json'}: a model with {what}; nothing public tells how the static graph names or "
                "stores that, so it cannot be written."
            )


def static_settings(config: Ernie3Config, record: Record | None) -> dict[str, Any]:
    """The `ernie_config.json` of a static folder, in the original's words.

    Args:
        config: The model's configuration.
        record: The folder's, if it has one: settings this package does not know are taken from it.
    """
    values: dict[str, Any] = dict(record.source["settings"]) if record is not None else {}
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


def model_card(config: Ernie3Config, has_tokenizer: bool, record: Record) -> str:
    """The README.md of a converted folder."""
    source = f"The static graph's parameters ({record.source['kind']})"
    return CARD.format(
        branches=" and ".join(name for name in BRANCHES if name in config.branches),
        config=config,
        dtype=dtype_name(config.dtype),
        example=GENERATION if "nlg" in config.branches else UNDERSTANDING,
        tokenizer="" if has_tokenizer else NO_TOKENIZER,
        origin=origin_of_paddle(record, source, config.layer_norm_eps, "ernie3", "the static files"),
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

A universal stack of {config.num_hidden_layers} layers, hidden size {config.hidden_size}, {config.num_attention_heads}
heads; branches {branches} of {config.branch_num_hidden_layers} layers, hidden size {config.branch_hidden_size},
{config.branch_num_attention_heads} heads; vocabulary {config.vocab_size}, {dtype}.

```python
import hf_glm_ernie  # `pip install .` in a checkout of it; registers the classes
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
{example}
```
{tokenizer}
{origin}"""


__all__ = [
    "check_supported",
    "check_vocabulary",
    "load_tokenizer",
    "model_card",
    "static_settings",
    "write_static_files",
]
