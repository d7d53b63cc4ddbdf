"""What `python -m conversion publish` refuses, and that nothing is left behind then."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from conversion import publish_comparing
from conversion.__main__ import main
from tests.support.publishing import make_source

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source("encoder", tmp_path_factory.mktemp("encoder") / "ernie-3.0")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the fresh process out, which takes seconds and is tried elsewhere."""
    monkeypatch.setattr(publish_comparing, "checked", lambda *_: [])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["publish", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def change_config(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def write_index(folder: Path, file: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))


def make_adapter(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / "adapter_config.json").write_text("{}")


def lose_a_shard(folder: Path) -> None:
    write_index(folder, "model-00001-of-00002.safetensors")
    (folder / SINGLE).unlink()


def take_another_index(folder: Path) -> None:
    write_index(folder, "one.safetensors")
    (folder / SINGLE).rename(folder / "one.safetensors")


def change_weights(folder: Path) -> None:
    state = {name: tensor + 1 for name, tensor in load_file(folder / SINGLE).items()}
    save_file(state, folder / SINGLE, metadata={"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "not a model folder, it has no config.json"),
    "adapter": (make_adapter, "an adapter, not a model. Push it with PEFT's own"),
    "unfinished": (lambda f: (f / ".conversion").mkdir(), "an unfinished conversion. Run the command that made it"),
    "unknown type": (
        lambda f: change_config(f, model_type="bert"),
        "model_type is 'bert'; the types this command publishes are glm130b",
    ),
    "no architecture": (
        lambda f: change_config(f, architectures=None),
        "architectures in config.json is []; it should name one of ErnieModel",
    ),
    "bad json": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "holds a list, not an object"),
    "no weights": (lambda f: (f / SINGLE).unlink(), f"neither {SINGLE} nor {INDEX}. Save the model"),
    "bin weights": (
        lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"),
        "only pytorch_model.bin. Open it with from_pretrained",
    ),
    "cut header": (
        lambda f: (f / SINGLE).write_bytes((f / SINGLE).read_bytes()[:100]),
        "cut short or not a safetensors file",
    ),
    "cut data": (lambda f: (f / SINGLE).write_bytes((f / SINGLE).read_bytes()[:-100]), SINGLE),
    "missing shard": (lose_a_shard, "missing model-00001-of-00002.safetensors, which the index names"),
    "index of another": (take_another_index, f"one.safetensors does not hold what {INDEX} says"),
    "two models": (lambda f: (f / INDEX).write_text("{}"), "two models lie in one folder"),
    "changed since": (change_weights, f"{SINGLE} is not the file the converter wrote"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_will_not_do(
    encoder: Path, tmp_path: Path, what: str, unchecked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(encoder, folder)
    spoil, said = BROKEN[what]
    spoil(folder)
    assert said in refusal(capsys, folder, "--repo=me/ernie")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in refusal(capsys, tmp_path / "nothing", "--repo=me/ernie")


@pytest.mark.parametrize("name", ["ernie", "a/b/c", "me/er nie", "me/-ernie", "me/x..y", ""])
def test_repository_names(encoder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not OWNER/NAME" in refusal(capsys, encoder, f"--repo={name}")


def test_outputs_that_exist_or_lie_inside(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    assert "already exists" in refusal(capsys, encoder, "--repo=me/e", f"--output={tmp_path / 'there'}")
    assert "lies inside" in refusal(capsys, encoder, "--repo=me/e", f"--output={encoder / 'hub'}")
    (tmp_path / "new.incomplete").mkdir()
    (tmp_path / "new.incomplete" / ".env").write_text("TOKEN=x")
    said = refusal(capsys, encoder, "--repo=me/e", f"--output={tmp_path / 'new'}")
    assert "new.incomplete: holds .env, which no run of this command left there" in said
    assert (tmp_path / "new.incomplete" / ".env").read_text() == "TOKEN=x"


def test_parity_of_another_form(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "parity.json").write_text('[{"what": 1}]')
    said = refusal(capsys, encoder, "--repo=me/e", f"--parity={tmp_path / 'parity.json'}")
    assert "should be a JSON list" in said


def test_a_missing_token_is_noticed_before_anything_is_made(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    said = refusal(capsys, encoder, "--repo=me/ernie", "--push", f"--output={tmp_path / 'ernie'}")
    assert "hf auth login" in said
    assert "Nothing was sent" in said
    assert not list(tmp_path.iterdir())


def test_offline(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refusal(capsys, encoder, "--repo=me/ernie", "--push", f"--output={tmp_path / 'ernie'}")
    assert "HF_HUB_OFFLINE is set" in said
    assert not list(tmp_path.iterdir())


def test_command_line_mistakes(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--private"], ["--license-name=x"], ["--license=mit", "--license-name=x", "--license-link=y"]):
        with pytest.raises(SystemExit):
            main(["publish", str(encoder), "--repo=me/e", *options])
    assert "--base-model" in refusal(capsys, encoder, "--repo=me/e", "--base-model-relation=merge")
