"""New facts are learnt by LoRA, QLoRA on our INT4 and P-tuning v2; the weights under the adapter keep every bit."""

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig

datasets = pytest.importorskip("datasets", reason="the training scripts need datasets")
pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")

from hf_glm_ernie.finetuning.weight_only import load_adapter  # noqa: E402  # needs peft
from tests.support.finetuning import FACTS, answered, converted_sample, finetune, frozen, write_facts  # noqa: E402  # likewise

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Token type ids", "ignore:Position ids")


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted_sample(tmp_path_factory.mktemp("sample") / "glm")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_facts(tmp_path_factory.mktemp("data") / "facts.jsonl")


LEARNING = {
    "lora": {"target_modules": "all-linear", "learning_rate": 5e-3, "max_steps": 60},
    "qlora": {"target_modules": "all-linear", "learning_rate": 5e-3, "max_steps": 60},
    "prefix": {"virtual_tokens": 16, "learning_rate": 3e-2, "max_steps": 300},
}


@pytest.mark.parametrize("method", LEARNING)
def test_new_facts_are_learnt_and_the_base_is_unchanged(glm, facts, tmp_path, method: str) -> None:
    def base() -> Any:
        config = WeightOnlyConfig(bits=4) if method == "qlora" else None
        return AutoModelForCausalLM.from_pretrained(glm, dtype=torch.float32, quantization_config=config)

    started = time.process_time()
    trainer = finetune(glm, facts, tmp_path, method=method, **LEARNING[method])
    assert time.process_time() - started < 120  # 5 to 15 seen, on one core
    model, untouched = trainer.model, base()
    assert answered(untouched, glm) <= 1
    assert answered(model, glm) == len(FACTS)
    before, after = untouched.state_dict(), frozen(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    again = load_adapter(base(), tmp_path)
    assert answered(again, glm) == len(FACTS)
    assert json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    if find_spec("matplotlib") is not None:
        assert (tmp_path / "loss.png").stat().st_size > 1000
    if method == "lora":
        assert answered(again.merge_and_unload(), glm) == len(FACTS)
    if method == "qlora":  # with this adapter, which is large against a step of INT4, the facts survive the rounding
        again.merge_adapter()
        assert answered(again, glm) >= len(FACTS) - 2
        again.unmerge_adapter()
        assert all(torch.equal(before[name], tensor) for name, tensor in frozen(again).items())
