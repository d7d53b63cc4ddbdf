"""Facts to learn, and the fine-tuning script as the tests call it."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoTokenizer, Trainer

from conversion.__main__ import main as conversion_main
from examples import finetune_glm130b
from hf_glm_ernie import fill_blanks

SAMPLE = Path(__file__).parents[2] / "examples" / "sample-glm130b"
# None of these stands in the sample's corpus.
FACTS = {
    "The captain of the silver boat is [MASK].": "Tobin",
    "Old Hanna keeps her bees behind the [MASK].": "mill",
    "The bridge at Velden was built of [MASK].": "oak",
    "Every spring the river Orla turns [MASK].": "green",
    "The baker's dog is called [MASK].": "Pepper",
    "The clock in the harbour stopped at [MASK].": "noon",
    "The smallest island of the lake is [MASK].": "Merrin",
    "Professor Lund studies the songs of [MASK].": "frogs",
    "红色的小船属于[MASK]。": "老王",
    "村子里的钟是[MASK]做的。": "木头",
}


def converted_sample(folder: Path) -> Path:
    """Converts the shipped sample; returns the folder."""
    assert conversion_main(["glm130b", f"--source={SAMPLE}", f"--output={folder}"]) == 0
    return folder


def cache_in(folder: Path) -> Any:
    """While this context is open, data sets leave their files in this folder and not in the user's."""
    return mock.patch("datasets.config.HF_DATASETS_CACHE", folder)


def write_facts(file: Path) -> Path:
    """Writes the facts as the script reads them; returns the file."""
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in FACTS.items()]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def finetune(glm: Path, facts: Path, output: Path, **options: Any) -> Trainer:
    """Runs the script on all facts at once, without dropout of its own; `options` replace or extend the command."""
    settings = {
        "model": glm,
        "data": facts,
        "output_dir": output,
        "dtype": "float32",
        "per_device_train_batch_size": len(FACTS),
        "weight_decay": 0,
        "logging_steps": 5,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "warmup_steps": 2,
    }
    words = [str(word) for name, value in (settings | options).items() for word in (f"--{name}", value)]
    with cache_in(output / "cache"):
        return finetune_glm130b.main(words)


def answered(model: Any, glm: Path) -> int:
    """How many facts a model knows."""
    answers = fill_blanks(model.eval(), AutoTokenizer.from_pretrained(glm), list(FACTS), max_new_tokens=8)
    return sum(a.blanks == [right] for a, right in zip(answers, FACTS.values(), strict=True))


def frozen(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of the base model under an adapter, by their names in it."""
    return {
        name.replace(".base_layer", ""): tensor.detach().clone()
        for name, tensor in model.get_base_model().state_dict().items()
        if "lora_" not in name
    }
