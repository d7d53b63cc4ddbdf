"""TRL's SFTTrainer trains the rows of `InstructionPairs`, id for id and label for label, or stops with an error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_glm_ernie import InstructionPairs

datasets = pytest.importorskip("datasets", reason="the training scripts need datasets")
peft = pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")
trl = pytest.importorskip("trl", reason="SFTTrainer is TRL's: pip install trl")

from tests.support.finetuning import FACTS, answered, cache_in, converted_sample  # noqa: E402  # needs datasets

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:Token type ids")

SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": 60,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "per_device_train_batch_size": len(FACTS),
    "logging_steps": 20,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted_sample(tmp_path_factory.mktemp("sample") / "glm")


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def messages(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [turn("user", prompt), turn("assistant", answer)]}


def chat_pairs(prompt: str, answer: str) -> dict[str, Any]:
    return {"prompt": [turn("user", prompt)], "completion": [turn("assistant", answer)]}


def text_pairs(prompt: str, answer: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer}


def trainer_of(glm: Path, output: Path, rows: list[dict[str, Any]], lora: bool = True, **settings: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(glm, dtype=torch.float32)
    adapter = peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    with cache_in(output / "cache"):
        return trl.SFTTrainer(
            model,
            args=trl.SFTConfig(str(output), **(SETTINGS | settings)),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(glm),
            peft_config=adapter,
        )


def expected(glm: Path) -> list[tuple[list[int], list[int]]]:
    pairs = {"prompt": list(FACTS), "answer": list(FACTS.values())}
    rows = InstructionPairs(AutoTokenizer.from_pretrained(glm))(pairs)
    return list(zip(rows["input_ids"], rows["labels"], strict=True))


def made(trainer: Any) -> list[tuple[list[int], list[int]]]:
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def ready_rows(glm: Path) -> list[dict[str, Any]]:
    """What docs/finetune.md does with pairs of plain texts."""
    objective = InstructionPairs(AutoTokenizer.from_pretrained(glm), "{prompt}", "{completion}")
    pairs = [text_pairs(*fact) for fact in FACTS.items()]
    columns = {name: [pair[name] for pair in pairs] for name in pairs[0]}
    rows = objective(columns)
    return [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]


WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "messages": (messages, {"assistant_only_loss": True}),
    "prompt and completion": (chat_pairs, {}),
    "rows of InstructionPairs": (None, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_rows_are_those_of_instruction_pairs_and_facts_are_learnt(glm, tmp_path, way: str) -> None:
    make, settings = WAYS[way]
    rows = [make(*fact) for fact in FACTS.items()] if make else ready_rows(glm)
    trainer = trainer_of(glm, tmp_path, rows, **settings)
    assert made(trainer) == expected(glm)
    assert answered(trainer.model, glm) <= 1
    trainer.train()
    assert answered(trainer.model, glm) == len(FACTS)
    trainer.save_model()
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.chat_template == AutoTokenizer.from_pretrained(glm).chat_template
    base = AutoModelForCausalLM.from_pretrained(glm, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
    for prompt, answer in FACTS.items():  # asked as a chat
        asked = saved.apply_chat_template(
            [turn("user", prompt)], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**asked, max_new_tokens=8, do_sample=False)[0, asked["input_ids"].shape[1] :]
        assert saved.decode(output, skip_special_tokens=True) == answer
        assert output[-1] == saved.eop_token_id  # and it stops


def test_a_prompt_of_text_that_is_laid_out(glm, tmp_path) -> None:
    """The `</s>` that TRL appends to a text is one token, and stops the answer as `<eop>` does."""
    tokenizer = AutoTokenizer.from_pretrained(glm)
    rows = [
        {
            "prompt": tokenizer.apply_chat_template([turn("user", p)], tokenize=False, add_generation_prompt=True),
            "completion": answer,
        }
        for p, answer in FACTS.items()
    ]
    trainer = trainer_of(glm, tmp_path, rows)
    eos = tokenizer.eos_token_id
    assert made(trainer) == [([*ids[:-1], eos], [*labels[:-1], eos]) for ids, labels in expected(glm)]
    trainer.train()
    assert answered(trainer.model, glm) == len(FACTS)


def plain_text(prompt: str, answer: str) -> dict[str, Any]:
    return {"text": f"{prompt} {answer}"}


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "messages, everything scored": (messages, {}, r"stands on context.*assistant_only_loss=True"),
    "pairs of plain text": (text_pairs, {}, r"stands on context.*rows of InstructionPairs"),
    "plain text": (plain_text, {}, "stands on context"),
    "packed": (chat_pairs, {"packing": True, "max_length": 128}, "another row begins.*leave packing"),
    "packed and cut": (
        chat_pairs,
        {"packing": True, "packing_strategy": "wrapped", "max_length": 128},
        "another row begins|another answer",
    ),
    "without padding": (chat_pairs, {"padding_free": True, "max_length": None}, "another row begins"),
}


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("way", WRONG)
def test_what_would_ruin_the_model_is_an_error(glm, tmp_path, way: str, lora: bool) -> None:
    make, settings, said = WRONG[way]
    trainer = trainer_of(glm, tmp_path, [make(*fact) for fact in FACTS.items()], lora, **settings)
    with pytest.raises(ValueError, match=said):
        trainer.train()


def test_evaluation_is_that_of_the_model(glm, tmp_path) -> None:
    """The loss that TRL computes itself is the one `forward` returns."""
    trainer = trainer_of(glm, tmp_path, [chat_pairs(*fact) for fact in FACTS.items()], lora=False, eval_strategy="no")
    loss = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    ids, labels = zip(*expected(glm), strict=True)
    model = AutoModelForCausalLM.from_pretrained(glm, dtype=torch.float32)
    scored, total = 0, 0.0
    for row, label in zip(ids, labels, strict=True):
        count = sum(value != -100 for value in label)
        total += count * model(torch.tensor([row]), labels=torch.tensor([label])).loss.item()
        scored += count
    assert loss == pytest.approx(total / scored, rel=1e-3)


def test_messages_of_several_answers(glm, tmp_path) -> None:
    from hf_glm_ernie.tokenization_glm130b_chat import one_chat_an_answer

    first, second = list(FACTS.items())[:2]
    chat = [*messages(*first)["messages"], *messages(*second)["messages"]]
    data = one_chat_an_answer({"messages": [chat]})["messages"]
    trainer = trainer_of(glm, tmp_path, [{"messages": rows} for rows in data], assistant_only_loss=True)
    tokenizer = AutoTokenizer.from_pretrained(glm)
    context = f"{first[0].replace('[MASK]', first[1])}\n{second[0]}"
    assert [ids for ids, _ in made(trainer)] == [
        tokenizer(*first)["input_ids"],
        tokenizer(context, second[1])["input_ids"],
    ]


def test_what_trl_asks_of_a_template(glm) -> None:
    """Else it warns that the model may not learn to stop, or puts a template of its own in place of ours."""
    from trl.chat_template_utils import get_training_chat_template, is_chat_template_stop_token_trained

    tokenizer = AutoTokenizer.from_pretrained(glm)
    assert is_chat_template_stop_token_trained(tokenizer)
    assert get_training_chat_template(tokenizer) is None


# The script ------------------------------------------------------------------------------------------------------


def chats_of_two_facts() -> list[dict[str, Any]]:
    """Every fact is the first turn of one chat and stands alone too, so that it is asked as `answered` asks."""
    facts = list(FACTS.items())
    chats = [messages(*fact) for fact in facts]
    return [*chats[:-2], {"messages": chats[-2]["messages"] + chats[-1]["messages"]}, chats[-1]]


SCRIPT_DATA = {
    "messages": chats_of_two_facts,
    "prompt and completion": lambda: [chat_pairs(*fact) for fact in FACTS.items()],
    "pairs of texts": lambda: [text_pairs(*fact) for fact in FACTS.items()],
}


@pytest.mark.parametrize("kind", SCRIPT_DATA)
def test_the_script_teaches_facts(glm, tmp_path, kind: str) -> None:
    from examples import sft_glm130b

    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in SCRIPT_DATA[kind]()), encoding="utf-8")
    settings = SETTINGS | {"model": glm, "data": file, "output_dir": tmp_path / "out", "dtype": "float32"}
    settings |= {"method": "lora", "target_modules": "all-linear", "report_to": "none"}
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    with cache_in(tmp_path / "cache"):
        trainer = sft_glm130b.main(words)
    assert answered(trainer.model, glm) == len(FACTS)
    assert any((tmp_path / "out").glob("adapter_model.safetensors"))


def test_the_script_refuses_other_columns(glm, tmp_path) -> None:
    from examples import sft_glm130b

    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"question": "a", "answer": "b"}), encoding="utf-8")
    with cache_in(tmp_path / "cache"), pytest.raises(ValueError, match=r"\['answer', 'question'\].*`prompt`"):
        sft_glm130b.rows_of(str(file), None, 8)
    with pytest.raises(ValueError, match=r"none of \.jsonl"):
        sft_glm130b.rows_of("data.txt", None, 8)
