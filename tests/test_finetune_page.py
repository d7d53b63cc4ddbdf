"""docs/finetune.md runs as printed, the shipped samples in place of the big models."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from transformers import TrainingArguments

from conversion.__main__ import main as conversion_main
from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM
from hf_glm_ernie.finetuning.methods import METHODS, AdapterArguments, adapt

pytest.importorskip("datasets", reason="the training scripts need datasets")
pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")

pytest.importorskip("trl", reason="the page shows TRL's SFTTrainer")

from examples import finetune_ernie, finetune_glm130b, pretrain_glm130b, sft_glm130b  # need them
from tests.support.finetuning import FACTS, cache_in, converted_sample, write_facts  # likewise

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
PROGRAMS = {
    "examples/finetune_glm130b.py": finetune_glm130b.main,
    "examples/sft_glm130b.py": sft_glm130b.main,
    "examples/finetune_ernie.py": finetune_ernie.main,
    "examples/pretrain_glm130b.py": pretrain_glm130b.main,
}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page names."""
    folder = tmp_path_factory.mktemp("page")
    converted_sample(folder / "glm-130b")
    source = ROOT / "examples" / "sample-ernie" / "masked-lm"
    assert conversion_main(["ernie", f"--source={source}", f"--output={folder / 'ernie-base'}"]) == 0
    write_facts(folder / "pairs.jsonl")
    chats = [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
        for prompt, answer in FACTS.items()
    ]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in chats), encoding="utf-8")
    reviews = [
        {"text": f"{thing}{end}。", "label": end} for thing in ["北京", "法国", "月亮"] for end in ("很好", "很坏")
    ]
    (folder / "reviews.jsonl").write_text("\n".join(json.dumps(row) for row in reviews * 4))
    questions = [
        {"question": "哪里？", "context": row["text"], "answers": {"text": [row["text"][:2]], "answer_start": [0]}}
        for row in reviews
    ]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in questions))
    (folder / "tnews_public").mkdir()
    for name in ("train", "dev"):
        news = [{"sentence": row["text"], "label": str(100 + i % 2)} for i, row in enumerate(reviews)]
        (folder / "tnews_public" / f"{name}.json").write_text("\n".join(json.dumps(row) for row in news))
    lines = (ROOT / "examples" / "sample-glm130b" / "corpus.en.txt").read_text("utf-8").splitlines()[:30]
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return folder


def test_the_page_runs_from_top_to_bottom(workplace, monkeypatch, capsys) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(TrainingArguments, "use_cpu", True)
    ran = []
    for kind, body in BLOCKS:
        if kind == "python":
            exec(body, {})
            continue
        program, *words = shlex.split(body)
        if program == "accelerate":
            continue  # the next test
        assert program == "python"
        with cache_in(workplace / "cache"):
            PROGRAMS[words[0]](words[1:])
        ran.append(words[0])
    assert list(dict.fromkeys(ran)) == list(PROGRAMS)
    printed = capsys.readouterr().out.splitlines()
    assert "['Tobin']" in printed
    assert any(line.startswith("  accuracy ") and line.endswith("published 58.26") for line in printed)
    assert (workplace / "tnews" / "seeds.json").is_file()
    for folder in ("glm-adapter", "glm-chat", "ernie-adapter", "ernie-merged", "glm-130b-int8-merged", "small-glm"):
        assert any((workplace / folder).glob("*.safetensors")), folder


def test_accelerate_and_the_script_take_the_launch_command() -> None:
    command = next(shlex.split(body) for kind, body in BLOCKS if body.startswith("accelerate"))
    command[command.index("--config_file") + 1] = str(ROOT / command[command.index("--config_file") + 1])
    arguments = launch_command_parser().parse_args(command[2:])
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.training_script in PROGRAMS
    names = {word.removeprefix("--") for word in arguments.training_script_args if word.startswith("--")}
    assert names <= {"model", "data", "output_dir", "method", "dtype"}


def test_the_table_of_methods() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| [^|]* \| ([^|]*) \|", PAGE, flags=re.MULTILINE))
    assert tuple(name for name in rows if name in METHODS) == METHODS
    for method in ("lora", "ia3", "prefix", "prompt", "p-tuning"):
        with torch.device("meta"):
            base = Glm130bForCausalLM(Glm130bConfig(num_hidden_layers=1))
        base.config.num_hidden_layers = 70  # what PEFT reads; the layers of one are counted below
        model: Any = adapt(base, AdapterArguments(method=method), "CAUSAL_LM")
        count = sum(p.numel() for p in model.parameters() if p.requires_grad) * (
            70 if method in ("lora", "ia3") else 1
        )
        stated = re.match(r"([\d.]+) million", rows[method])
        assert stated is not None
        assert count / 1e6 == pytest.approx(float(stated[1]), rel=0.02, abs=0.05)


def test_every_name_on_the_page_exists() -> None:
    for link in re.findall(r"\]\(([\w./-]+)\)", PAGE):
        assert (ROOT / "docs" / link).is_file(), link
    for path in re.findall(r"(?:tests|examples)/[\w./-]+\.(?:py|yaml|json)", PAGE):
        assert (ROOT / path).is_file(), path
