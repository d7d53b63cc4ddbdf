"""What a model is tried with: a row of ids, some texts, a few tokens to generate, and whether that fits in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from hf_glm_ernie.weight_only import METHOD

from .publish_check import FULL, STRUCTURE
from .publish_classes import Published

TRIAL_TOKENS = 6
GENERATED_TOKENS = 8
SPARE_BYTES = 2**30
"""Beside the weights and their working memory."""


def trial_request(
    folder: Path, row: Published, architecture: str, config: Mapping[str, Any], has_tokenizer: bool, mode: str = FULL
) -> dict[str, Any]:
    """What `publish_check.observe` is asked for, where the package is there.

    Args:
        folder: To be opened.
        row: Of its model type.
        architecture: Its class.
        config: Its config.json.
        has_tokenizer: Whether there is one to be tried.
        mode: `FULL` or `STRUCTURE`.
    """
    auto_class = row.auto_classes[architecture]
    inputs = trial_inputs(row, architecture, config)
    room = config["max_position_embeddings"] - trial_length(inputs) if "max_position_embeddings" in config else 0
    generates = auto_class == "AutoModelForCausalLM"
    method = (config.get("quantization_config") or {}).get("quant_method")
    return {
        "folder": str(folder),
        "auto_class": auto_class,
        "trust_remote_code": False,
        "mode": mode,
        "sizes_first": method in (None, METHOD),
        "inputs": inputs,
        "texts": list(row.texts) if has_tokenizer else [],
        "generate": max(0, min(GENERATED_TOKENS, room)) if generates else 0,
    }


def trial_inputs(row: Published, architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A row for `forward`: some ids of the vocabulary, and what else the model type asks for."""
    words = config["vocab_size"]
    ids = [min(1 + 17 * i % max(1, words // 2), words - 1) for i in range(TRIAL_TOKENS)]
    marks = [config.get(name) for name in ("mask_token_id", "sop_token_id") if row.model_type == "glm130b"]
    ids += [mark for mark in marks if type(mark) is int and 0 <= mark < words]
    ids = ids[-config["max_position_embeddings"] :]
    batch: list[Any] = [[ids, ids[::-1]]] if architecture.endswith("ForMultipleChoice") else [ids]
    return {"input_ids": batch} | dict(row.extra_inputs)


def trial_length(inputs: Mapping[str, Any]) -> int:
    """How many tokens a row has."""
    first = inputs["input_ids"][0]
    return len(first[0]) if isinstance(first[0], list) else len(first)


def trial_memory(nbytes: int) -> tuple[int, int]:
    """Bytes of memory that computing with a model takes, and those that are free.

    Args:
        nbytes: Of its weights.
    """
    return nbytes * 5 // 4 + SPARE_BYTES, psutil.virtual_memory().available


__all__ = ["FULL", "STRUCTURE", "trial_inputs", "trial_length", "trial_memory", "trial_request"]
