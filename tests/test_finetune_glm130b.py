"""The training scripts for GLM-130B: every method, resumed runs, pre-training, what is refused."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from examples import pretrain_glm130b
from hf_glm_ernie import fill_blanks

datasets = pytest.importorskip("datasets", reason="the training scripts need datasets")
pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")

from tests.support.finetuning import FACTS, SAMPLE, cache_in, converted_sample, finetune, write_facts  # noqa: E402  # needs them

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Token type ids", "ignore:Position ids")


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted_sample(tmp_path_factory.mktemp("sample") / "glm")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_facts(tmp_path_factory.mktemp("data") / "facts.jsonl")


@pytest.mark.parametrize("weights", ["nf4", "bnb-int8"])
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes, which is not installed")
def test_qlora_on_bitsandbytes(glm, facts, tmp_path, weights: str) -> None:
    options = {"target_modules": "all-linear", "learning_rate": 5e-3, "weights": weights, "max_steps": 15}
    trainer = finetune(glm, facts, tmp_path, method="qlora", **options)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full", "learning_rate": 1e-3},
        {"method": "ia3", "learning_rate": 3e-2},
        {"method": "prompt", "learning_rate": 3e-2},
        {"method": "p-tuning", "learning_rate": 1e-2},
        {"method": "lora", "packing": "true", "max_length": 64, "learning_rate": 5e-3},
        {"method": "lora", "label_smoothing_factor": 0.1, "learning_rate": 5e-3},
        {"method": "lora", "gradient_checkpointing": "true", "learning_rate": 5e-3},
        {"method": "prefix", "weights": "int8", "learning_rate": 3e-2},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_every_other_way_lowers_the_loss(glm, facts, tmp_path, options: dict[str, Any]) -> None:
    trainer = finetune(glm, facts, tmp_path, max_steps=15, **options)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]


def test_texts_are_trained_on_with_blanks(glm, tmp_path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": prompt.replace("[MASK]", a)}) for prompt, a in FACTS.items()))
    options = {"text_column": "text", "packing": "true", "max_length": 64, "eval_data": file, "eval_strategy": "steps"}
    trainer = finetune(glm, file, tmp_path / "out", max_steps=10, learning_rate=5e-3, eval_steps=10, **options)
    assert "eval_loss" in trainer.state.log_history[-2] or "eval_loss" in trainer.state.log_history[-1]


# Resuming.


@pytest.mark.parametrize("method", ["lora", "full", "prefix"])
def test_a_resumed_run_is_the_uninterrupted_one(glm, facts, tmp_path, method: str) -> None:
    options: dict[str, Any] = {
        "method": method,
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 4,
        "per_device_train_batch_size": 4,
        "max_steps": 8,
    }
    if method == "lora":
        options["lora_dropout"] = 0.1  # the state of the random numbers is restored too
    whole = finetune(glm, facts, tmp_path / "whole", **options)
    resumed = tmp_path / "resumed"
    (resumed).mkdir()
    (tmp_path / "whole" / "checkpoint-4").rename(resumed / "checkpoint-4")
    again = finetune(glm, facts, resumed, resume="true", **options)
    assert again.state.global_step == whole.state.global_step == 8
    first, second = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    base = AutoModelForCausalLM.from_pretrained(glm, dtype=torch.float32).state_dict()
    assert method != "full" or not torch.equal(first["model.norm.weight"], base["model.norm.weight"])


# Pre-training.


def test_pretraining_learns_resumes_and_mixes_instructions(glm, facts, tmp_path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join((SAMPLE / "corpus.en.txt").read_text("utf-8").splitlines()[:60]), encoding="utf-8")
    settings = {
        "tokenizer": glm,
        "data": corpus,
        "instructions": facts,
        "passes": 4,
        "context": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "layers": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "embedding_gradient_shrink": 1,
        "num_train_epochs": 3,
        "logging_steps": 5,
        "save_steps": 20,
        "disable_tqdm": True,
        "use_cpu": True,
    }

    def run(output: Path, **options: Any) -> Trainer:
        words = [str(w) for k, v in (settings | options | {"output_dir": output}).items() for w in (f"--{k}", v)]
        with cache_in(tmp_path / "cache"):
            return pretrain_glm130b.main(words)

    trainer = run(tmp_path / "whole")
    assert trainer.state.global_step > 20
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert trainer.train_dataset[0]["input_ids"]
    again = tmp_path / "again"
    again.mkdir()
    (tmp_path / "whole" / "checkpoint-20").rename(again / "checkpoint-20")
    resumed = run(again, resume="true")
    first, second = trainer.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # The folder opens and answers as any other.
    model, tokenizer = AutoModelForCausalLM.from_pretrained(again), AutoTokenizer.from_pretrained(again)
    assert isinstance(fill_blanks(model, tokenizer, "The sun [MASK].", max_new_tokens=4).text, str)


# Bad input.


def test_what_the_scripts_refuse(glm, facts, tmp_path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": null}\n')
    for options, words in (
        ({"data": bad}, r"Row 1 of the data set has no text in column 'answer'"),
        ({"data": tmp_path / "x.xlsx"}, r"x\.xlsx is none of"),
        ({"template": "{question}"}, r"no column 'question'; it has \['answer', 'prompt'\]"),
        ({"method": "prefix", "packing": "true"}, "--packing needs positions of its own"),
        ({"method": "p-tuning", "resume": "true"}, "--resume cannot go on with p-tuning"),
        ({"max_length": 8}, r"more than max_length=8"),
    ):
        with pytest.raises(ValueError, match=words):
            finetune(glm, facts, tmp_path / "out", max_steps=1, **options)
