"""`inspect` on files of every form that were changed at random: findings, never an exception; nothing runs, nothing is
written.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conversion.inspect_command import inspect
from conversion.inspect_look import Question
from conversion.inspect_paste import as_paste
from conversion.inspect_text import as_json, as_text
from tests.support.archives import released_members, write_archive
from tests.support.converting import SIZES, write_settings
from tests.support.original_forms import ORIGINALS
from tests.support.tiny import rank_path, whole_state, write_released

CASES = 12
"""Of each form; 500 of each were run when this was written."""


ADAPTER = "adapter_model.safetensors"


def adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    save_file({"x.lora_A.weight": torch.zeros(2, 8), "x.lora_B.weight": torch.zeros(8, 2)}, folder / ADAPTER)
    return folder


def archive(folder: Path) -> Path:
    source = write_released(folder.parent / "unpacked", whole_state(SIZES), 2)
    members = released_members([(rank, rank_path(source, rank)) for rank in (1, 0)])
    write_archive(folder, members, part_bytes=7000)
    write_settings(folder / "config.json")
    return folder


def unfinished(folder: Path) -> Path:
    folder = folder.with_name("out.incomplete")
    (folder / ".conversion").mkdir(parents=True)
    save_file({"model.norm.weight": torch.zeros(8)}, folder / "model-00001-of-00002.safetensors")
    lines = (
        {"fingerprint": "f"},
        {"file": "model-00001-of-00002.safetensors", "tensor": "model.norm.weight", "crc32": 1},
    )
    (folder / ".conversion" / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"model_type": "glm130b"}))
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    **{form: made[0] for form, made in ORIGINALS.items()},
    "adapter": adapter,
    "archive": archive,
    "unfinished": unfinished,
}


def changed(folder: Path, chance: random.Random) -> None:
    """Changes one to three files: gone, cut, empty, noise, flipped, longer, another's content, another name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    contents = [path.read_bytes() for path in files]
    for path in chance.sample(files, min(len(files), chance.randint(1, 3))):
        content = path.read_bytes()
        at, noise = chance.randrange(len(content) + 1), chance.randbytes(chance.randrange(1, 200))
        way = chance.randrange(8)
        if way == 0:
            path.unlink()
        elif way == 1:
            path.rename(path.with_name(chance.choice(["x", f"{path.name}.part", "mp_rank_99_model_states.pt"])))
        else:
            flipped = content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)] if content[at:] else b"")
            other = (content[:at], b"", noise, flipped + content[at + 1 :], content[:at] + noise + content[at:])
            path.write_bytes(chance.choice(contents) if way == 7 else other[way - 2])


@pytest.mark.parametrize("form", MAKERS)
def test_files_changed_at_random(form: str, tmp_path: Path) -> None:
    whole = MAKERS[form](tmp_path / "whole")
    chance = random.Random(form)
    for number in range(CASES):
        folder = tmp_path / f"changed{whole.suffix}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        changed(folder, chance)
        before = sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))
        report = inspect(Question(folder), deep=number % 2 == 0)
        assert as_text(report)
        assert json.loads(as_json(report))["status"] == report.status
        assert str(tmp_path) not in as_paste(report)
        assert report.exit_status in (0, 1)
        assert sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
