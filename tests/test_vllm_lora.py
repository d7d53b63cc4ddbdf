"""Adapters of our fine-tuning in vLLM: several at once, over floats and over integers, as PEFT computes them."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_glm_ernie import Glm130bForCausalLM, Glm130bTokenizer
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from tests.support import serving
from tests.support.serving import Answer, engine, expected, largest_difference, random_rows

pytest.importorskip("vllm", reason=serving.MISSING)
peft = pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")

from hf_glm_ernie.finetuning.methods import AdapterArguments, adapt  # noqa: E402  # needs peft

BOUND = {"float32": 2e-5, "float16": 1e-2}  # of log probabilities. Seen: 2.4e-6 and 3.7e-3
NEW = 6
NUMBERS = itertools.count(1)  # vLLM wants another for each adapter
EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {"default": {}, "everywhere": {"target_modules": EVERYWHERE, "rank": 4, "lora_alpha": 12}}
WEIGHTS = {
    "floats": None,
    "int4": WeightOnlyConfig(bits=4, num_groups={"o_proj": 4}),
    "int8": WeightOnlyConfig(bits=8),
}


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sample = serving.converted_sample(tmp_path_factory.mktemp("sample"))
    return serving.random_folder(tmp_path_factory.mktemp("random"), sample)


def base(folder: Path, random: Path, weights: str) -> Path:
    """A folder of floats, or of integers."""
    if WEIGHTS[weights] is None:
        return random
    model = Glm130bForCausalLM.from_pretrained(random, dtype=torch.float32, quantization_config=WEIGHTS[weights])
    model.save_pretrained(folder)
    Glm130bTokenizer.from_pretrained(random).save_pretrained(folder)
    return folder


def opened(folder: Path) -> Any:
    return Glm130bForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def written(base: Path, name: str, output: Path) -> Any:
    """Writes an adapter as if it had been trained; returns the model with it."""
    model = adapt(opened(base), AdapterArguments(**ADAPTERS[name]), "CAUSAL_LM").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_(0, 0.1)
    model.save_pretrained(output)
    return model


def answers(served: Any, rows: list[list[int]], adapters: list[Any]) -> list[Answer]:
    from vllm import SamplingParams

    settings = SamplingParams(temperature=0, max_tokens=NEW, logprobs=0)
    prompts = [{"prompt_token_ids": row} for row in rows]
    found = []
    for request in served.generate(prompts, settings, lora_request=adapters, use_tqdm=False):
        output = request.outputs[0]
        steps = zip(output.token_ids, output.logprobs, strict=True)
        found.append(Answer(list(output.token_ids), [step[index].logprob for index, step in steps]))
    return found


@pytest.mark.parametrize(
    ("weights", "dtype", "ranks"),
    [("floats", "float32", 1), ("int4", "float32", 2), ("int4", "float16", 1), ("int8", "float32", 1)],
)
def test_rows_with_different_adapters_in_one_batch(
    random: Path, tmp_path: Path, weights: str, dtype: str, ranks: int
) -> None:
    from vllm.lora.request import LoRARequest

    folder = base(tmp_path / "base", random, weights)
    rows = random_rows(opened(folder).config, 20, seed=3)
    wanted = {None: expected(opened(folder), rows, NEW)}
    requests: dict[str | None, Any] = {None: None}
    for number, name in enumerate(ADAPTERS, 1):
        wanted[name] = expected(written(folder, name, tmp_path / name), rows, NEW)
        requests[name] = LoRARequest(name, number, str(tmp_path / name))
    names = [[None, *ADAPTERS][index % 3] for index in range(len(rows))]
    right = [wanted[name][index] for index, name in enumerate(names)]
    changed = sum(wanted[None][i].ids != wanted[name][i].ids for i, name in enumerate(names))
    assert changed >= 6, "adapters that change nothing would show nothing"
    options = {"dtype": dtype, "tensor_parallel_size": ranks, "max_loras": 2, "max_lora_rank": 8}
    with engine(folder, enable_lora=True, **options) as served:
        found = answers(served, rows, [requests[name] for name in names])
    assert [one.ids for one in found] == [one.ids for one in right]
    assert largest_difference(found, right) <= BOUND[dtype]


@pytest.fixture(scope="module")
def served(random: Path) -> Iterator[Any]:
    with engine(random, enable_lora=True, max_lora_rank=8) as served:
        yield served


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: peft.LoraConfig(r=16, task_type="CAUSAL_LM"), "16 is greater than max_lora_rank 8"),
        (lambda: peft.LoraConfig(use_dora=True, task_type="CAUSAL_LM"), "does not yet support DoRA"),
        (lambda: peft.LoraConfig(modules_to_save=["norm"], task_type="CAUSAL_LM"), "modules_to_save"),
        (lambda: peft.LoraConfig(target_modules=["embed_tokens"], task_type="CAUSAL_LM"), "embed_tokens"),
        (lambda: peft.LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"), "lm_head"),
        (lambda: peft.LoraConfig(bias="all", task_type="CAUSAL_LM"), "bias"),
        (lambda: peft.IA3Config(task_type="CAUSAL_LM"), "Missing required"),
        (
            lambda: peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
            "Missing required",
        ),
    ],
    ids=["rank", "dora", "modules_to_save", "embedding", "lm_head", "bias", "ia3", "prompt"],
)
def test_adapters_of_other_kinds_are_refused_and_the_engine_goes_on(
    random: Path, tmp_path: Path, served: Any, config: Any, message: str
) -> None:
    from vllm.lora.request import LoRARequest

    peft.get_peft_model(opened(random), config()).save_pretrained(tmp_path)
    rows = random_rows(opened(random).config, 3, seed=3)
    with pytest.raises(Exception, match=message):  # vLLM's classes differ by version
        served.llm_engine.add_lora(LoRARequest("other", next(NUMBERS), str(tmp_path)))  # as its server does at start
    assert answers(served, rows, [None] * 3)[0].ids
