"""A training script's second run into a folder: asked about, gone on with, or begun anew."""

import json
import sys
from pathlib import Path
from typing import Any

import distil_ernie3
import pretrain_ernie3
import pytest
from training_folder import prepare_folder
from transformers import TrainingArguments

datasets = pytest.importorskip("datasets", reason="the training scripts need datasets")
pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")

from examples import pretrain_glm130b  # noqa: E402  # needs them
from tests.support.finetuning import cache_in, converted_sample, finetune, write_facts  # noqa: E402  # likewise


def used(folder: Path) -> Path:
    """A folder as a run leaves it, with something of the user's beside it."""
    for step in (4, 12):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    for name in ("adapter_config.json", "adapter_model.safetensors", "trainer_state.json", "notes.txt"):
        (folder / name).write_text("{}")
    return folder


def settings(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(str(folder), use_cpu=True, report_to=[], **options)


def test_a_new_folder_and_one_with_other_files_are_begun(tmp_path: Path) -> None:
    assert prepare_folder(settings(tmp_path / "new"), False, False) is None
    (tmp_path / "notes.txt").write_text("mine")
    assert prepare_folder(settings(tmp_path), False, False) is None
    assert prepare_folder(settings(tmp_path), False, True) is None
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_used_folder_is_asked_about_and_left_alone(tmp_path: Path) -> None:
    folder = used(tmp_path / "run")
    before = sorted(folder.rglob("*"))
    with pytest.raises(
        ValueError, match=r"holds a run already \(adapter_config.*--resume true.*--overwrite_output_dir"
    ):
        prepare_folder(settings(folder), False, False)
    assert sorted(folder.rglob("*")) == before


def test_resuming_takes_the_last_checkpoint_or_the_one_named(tmp_path: Path) -> None:
    folder = used(tmp_path / "run")
    assert prepare_folder(settings(folder), True, False) == str(folder / "checkpoint-12")
    named = str(folder / "checkpoint-4")
    assert prepare_folder(settings(folder, resume_from_checkpoint=named), False, False) == named
    for empty in (tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match="holds no checkpoint to go on from: leave --resume out"):
            prepare_folder(settings(empty), True, False)
    with pytest.raises(ValueError, match="nowhere is no checkpoint of a Trainer"):
        prepare_folder(settings(folder, resume_from_checkpoint="nowhere"), False, False)
    with pytest.raises(ValueError, match="--resume and --overwrite_output_dir say different things"):
        prepare_folder(settings(folder), True, True)


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder = used(tmp_path / "run")
    assert prepare_folder(settings(folder), False, True) is None
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_the_scripts_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same adapter from a second run over a first one as from a run into a new folder."""
    glm, facts = converted_sample(tmp_path / "glm"), write_facts(tmp_path / "facts.jsonl")
    options = {"method": "lora", "max_steps": 2, "learning_rate": 1e-3}
    finetune(glm, facts, tmp_path / "new", **options)
    wanted = (tmp_path / "new" / "adapter_model.safetensors").read_bytes()
    full = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    finetune(glm, facts, tmp_path / "used", method="full", **full)
    with pytest.raises(ValueError, match="used holds a run already"):
        finetune(glm, facts, tmp_path / "used", **options)
    assert not (tmp_path / "used" / "adapter_model.safetensors").exists()
    finetune(glm, facts, tmp_path / "used", overwrite_output_dir=True, **options)
    assert (tmp_path / "used" / "adapter_model.safetensors").read_bytes() == wanted
    assert not (tmp_path / "used" / "model.safetensors").exists()
    assert not (tmp_path / "used" / "checkpoint-1").exists()

    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": "A boat on a river."}) + "\n" for _ in range(8)))
    command = [f"--tokenizer={glm}", f"--data={texts}", f"--output_dir={tmp_path / 'used'}", "--use_cpu=true"]
    with cache_in(tmp_path / "cache"), pytest.raises(ValueError, match="used holds a run already"):
        pretrain_glm130b.main(command)
    for script, more in ((pretrain_ernie3, []), (distil_ernie3, ["--teacher=x"])):
        monkeypatch.setattr(sys, "argv", ["script", f"--output={tmp_path / 'used'}", *more])
        with pytest.raises(SystemExit, match=r"used exists already\. .* or pass --overwrite_output_dir"):
            script.main()
