"""Single steps of training GLM-130B: checkpointed, accumulated, smoothed and sharded gradients are the plain ones."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from examples import finetune_glm130b
from hf_glm_ernie.finetuning.collator import Glm130bCollator, shifted_label_smoothing
from hf_glm_ernie.finetuning.methods import AdapterArguments, adapt
from hf_glm_ernie.finetuning.objectives import BlankInfilling, Packing
from tests.support.tiny_models import MASK, SOP, tiny_model

datasets = pytest.importorskip("datasets", reason="the training scripts need datasets")
pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")

from tests.support.finetuning import SAMPLE, converted_sample  # noqa: E402  # needs them
from tests.support.rank_processes import run_ranks  # noqa: E402

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Token type ids", "ignore:Position ids")


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted_sample(tmp_path_factory.mktemp("sample") / "glm")


def batch_of_rows() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[9, 8, MASK, 7, 6, SOP, 11, 12], [19, 18, 17, MASK, 6, SOP, 15, 16]] * 2)
    ids[2:, 0] += 30
    labels = ids.clone()
    labels[:, :6] = -100
    labels[1, 7] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_gradient_checkpointing_gives_the_same_gradients(tmp_path, method: str) -> None:
    tiny_model(hidden_dropout=0.0, attention_dropout=0.0).save_pretrained(tmp_path)
    gradients = []
    for checkpointing in (False, True):
        arguments = AdapterArguments(method=method)
        config = arguments.quantization_config(torch.float32)
        base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
        torch.manual_seed(0)
        model = adapt(base, arguments, "CAUSAL_LM").train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        training = TrainingArguments(
            str(tmp_path / "out"), gradient_checkpointing=checkpointing, use_cpu=True, report_to=["none"]
        )
        trainer = Trainer(model, training)
        if checkpointing:
            trainer.model.gradient_checkpointing_enable(training.gradient_checkpointing_kwargs)
        loss = trainer.compute_loss(trainer.model, batch_of_rows())
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(gradient is not None for gradient in gradients[0].values())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_label_smoothing_in_the_trainer_compares_with_the_next_token(tmp_path) -> None:
    model, batch = tiny_model(), batch_of_rows()
    training = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to=["none"])
    with torch.no_grad():
        outputs = model(**batch)
        right = shifted_label_smoothing(0.1)(outputs, batch["labels"])
        ours = Trainer(model, training, compute_loss_func=finetune_glm130b.smoothing_of(training))
        got = ours.compute_loss(model, dict(batch))
        host = Trainer(model, training).compute_loss(model, dict(batch))
    assert torch.equal(got, right)
    assert abs(host - right) > 0.1, "the host now shifts labels for this class: --label_smoothing_factor needs no help"


def test_accumulated_steps_weigh_tokens_alike(glm, tmp_path) -> None:
    """The model divides by the scored tokens of the whole batch, so cutting it into pieces changes nothing."""
    tokenizer = AutoTokenizer.from_pretrained(glm)
    texts = {"text": (SAMPLE / "corpus.en.txt").read_text("utf-8").splitlines()[:24]}
    columns = Packing(64)(BlankInfilling(tokenizer, 64)(texts, list(range(24))))
    rows = datasets.Dataset.from_dict({name: values[:8] for name, values in columns.items()})
    results = []
    for size in (8, 2):
        model = AutoModelForCausalLM.from_pretrained(glm, dtype=torch.float32)
        training = TrainingArguments(
            str(tmp_path / str(size)),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            report_to=["none"],
        )
        Trainer(model, training, train_dataset=rows, data_collator=Glm130bCollator(tokenizer.pad_token_id)).train()
        results.append(model.state_dict())
    assert all((results[0][name] - results[1][name]).abs().max() < 1e-5 for name in results[0])


def test_fsdp2_and_ddp_steps_in_two_processes_are_the_single_one(tmp_path) -> None:
    from peft import LoraConfig, get_peft_model

    tiny_model(hidden_dropout=0.0, attention_dropout=0.0).save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.1)
    start = {name: p.detach().clone() for name, p in trained.items()}
    batch = batch_of_rows()
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    model.train()
    model(**batch).loss.backward()
    optimizer.step()
    after = {name: p.detach().clone() for name, p in trained.items()}
    assert all((after[name] - start[name]).abs().max() > 1e-3 for name in start)
    torch.save({"batch": batch, "start": start, "after": after}, tmp_path / "expected.pt")
    run_ranks("fsdp_lora_run.py", tmp_path / "model", tmp_path / "expected.pt")
