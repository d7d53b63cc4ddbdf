"""`python -m conversion publish --space`: the folder it makes, what it refuses, and the Hub's stand-in."""

import hashlib
import importlib.metadata
import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import SpaceCard

from conversion import publish_space as spaces
from conversion.__main__ import main
from conversion.publish_config import PublishError
from conversion.publish_space import plan_space, publish_space
from hf_glm_ernie import __version__
from tests.support.hub_stand_in import Hub, serve_here

MODELS = ["--glm=me/glm-130b-int4", "--uie=me/ernie-uie"]
PAGE_FILES = {path.name for path in spaces.PAGE.iterdir() if path.suffix in (".py", ".css")}
WHEEL = f"hf_glm_ernie-{__version__}-py3-none-any.whl"
HAS_GRADIO = any(one.metadata["Name"] == "gradio" for one in importlib.metadata.distributions())


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A Hub, and this process made to talk to it."""
    with pytest.MonkeyPatch.context() as patch, serve_here(patch) as hub:
        yield hub


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as archive:
        archive.writestr("hf_glm_ernie/__init__.py", "")
    return tmp_path / WHEEL


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["publish", "--space", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def misuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit):
        main(["publish", *arguments])
    return capsys.readouterr().err


def test_the_folder_holds_the_page_and_says_what_it_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "page"
    arguments = ["--repo=me/page", *MODELS, f"--output={output}", "--check=structure"]
    assert main(["publish", "--space", *arguments]) == 0
    said = capsys.readouterr().out
    assert "note: the Space takes hf-glm-ernie" in said
    assert said.endswith(f"done: {output}\n")
    assert {path.name for path in output.iterdir()} == PAGE_FILES | {"README.md", "models.json", "requirements.txt"}
    for name in PAGE_FILES:
        assert (output / name).read_bytes() == (spaces.PAGE / name).read_bytes()
    assert json.loads((output / "models.json").read_text()) == {"glm": "me/glm-130b-int4", "uie": "me/ernie-uie"}
    requirements = (output / "requirements.txt").read_text().splitlines()
    assert requirements[-1] == f"hf-glm-ernie=={__version__}"
    card = SpaceCard.load(output / "README.md")
    assert card.data.models == ["me/ernie-uie", "me/glm-130b-int4"]
    assert (card.data.sdk, card.data.app_file) == ("gradio", "app.py")
    assert f"gradio=={card.data.sdk_version}" in requirements
    assert card.text.strip() == SpaceCard.load(spaces.PAGE / "README.md").text.strip()


def test_dry_run_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["publish", "--space", "--repo=me/page", *MODELS, "--dry-run", "--check=structure"]) == 0
    assert f"folder       {tmp_path / 'page_space'}" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_pushed_to_the_hub_as_a_space(
    hub: Hub, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "page"
    arguments = ["--repo=me/page", *MODELS, f"--output={output}", "--check=structure", f"--wheel={wheel}", "--push"]
    assert main(["publish", "--space", *arguments]) == 0
    assert f"pushed: {hub.url}/spaces/me/page/commit/" in capsys.readouterr().out
    repository = hub.repositories["spaces/me/page"]
    assert repository.sdk == "gradio"
    assert repository.files == {path.name: path.read_bytes() for path in output.iterdir()}
    assert WHEEL in repository.files
    address = f"{hub.url}/spaces/me/page/resolve/main/{WHEEL}"
    assert (output / "requirements.txt").read_text().splitlines()[-1] == f"hf-glm-ernie @ {address}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repo=page", *MODELS], "--repo 'page' is not OWNER/NAME"),
        (["--repo=me/page"], "A Space needs a model: name one or more with --glm, --uie, --classifier"),
        (["--repo=me/page", "--uie=folder"], "--uie 'folder' is not OWNER/NAME"),
        (["--repo=me/page", *MODELS, "--wheel=other.whl"], f"{WHEEL} is expected"),
        (["--repo=me/page", *MODELS, f"--wheel={WHEEL}"], "cannot be read"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_wheel_without_the_package(wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other.py", "")
    output = tmp_path / "page"
    assert "holds no hf_glm_ernie" in refusal(
        capsys, "--repo=me/page", *MODELS, f"--output={output}", f"--wheel={wheel}"
    )


def test_an_output_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    assert "exists" in refusal(capsys, "--repo=me/page", *MODELS, f"--output={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repo=me/x"], "give the FOLDER to publish, or --space"),
        (["folder", "--repo=me/x", "--uie=me/uie"], "--uie goes with --space"),
        (["folder", "--repo=me/x", "--space"], "folder is for a model's repository"),
        (["--repo=me/x", "--space", "--license-name=x", "--license-link=https://x"], "license-name is for a model's"),
        (["--repo=me/x", "--space", *MODELS, "--wheel=x.whl", "--private", "--push"], "--wheel needs a public Space"),
    ],
)
def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert said in misuse(capsys, *arguments)


def test_an_installed_package_has_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spaces, "PAGE", tmp_path / "nowhere")
    assert "comes with a checkout" in refusal(capsys, "--repo=me/page", *MODELS, f"--output={tmp_path / 'page'}")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the page, to be damaged."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (*PAGE_FILES, "README.md", "requirements.txt"):
        (copy / name).write_bytes((spaces.PAGE / name).read_bytes())
    monkeypatch.setattr(spaces, "PAGE", copy)
    return copy


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (
            "page_views.py",
            "from html import",
            "import pandas\nfrom html import",
            "page_views.py: imports pandas, which",
        ),
        ("page_views.py", "def percent(", "def percent((", "page_views.py: is no Python"),
        ("README.md", "app_file: app.py", "app_file: main.py", "should say sdk: gradio"),
        ("requirements.txt", "gradio==", "gradio>=", "should say sdk: gradio"),
        ("page_texts.py", "TITLE = ", f"KEY = 'hf_{'x' * 34}'\nTITLE = ", "access token"),
    ],
)
def test_a_damaged_page_is_not_published(page: Path, tmp_path: Path, name: str, old: str, new: str, said: str) -> None:
    content = (page / name).read_text("utf-8")
    assert old in content
    (page / name).write_text(content.replace(old, new, 1), "utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Exception, match=said):
        publish_space(plan_space("me/page", {"glm": "me/glm"}, tmp_path / "made", check="structure"))
    assert sorted(tmp_path.rglob("*")) == before


def test_the_check_says_what_it_could_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def plan(check: str) -> spaces.SpacePublication:
        return plan_space("me/page", {"glm": "me/glm"}, tmp_path / "page", check=check)

    monkeypatch.setattr(spaces.importlib.metadata, "version", lambda _: "6.0.0")
    assert (plan("auto").mode, plan("full").mode, plan("structure").mode) == ("full", "full", "structure")

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(spaces.importlib.metadata, "version", missing)
    assert plan("auto").mode == "structure"
    assert "is not installed" in plan("auto").describe()
    with pytest.raises(PublishError, match="--check full needs gradio"):
        plan("full")


@pytest.mark.skipif(not HAS_GRADIO, reason="needs gradio (the extra `page`): `make test-page`")
def test_the_page_is_laid_out_in_a_fresh_process(page: Path, tmp_path: Path) -> None:
    plan = plan_space("me/page", {"glm": "me/glm", "uie": "me/uie"}, tmp_path / "made", check="full")
    sha256 = publish_space(plan)
    assert sha256 == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in plan.output.iterdir()}
    (page / "page_layout.py").write_text("raise RuntimeError('damaged')\n")
    with pytest.raises(PublishError, match=r"(?s)cannot be laid out.*damaged"):
        publish_space(plan_space("me/page", {"glm": "me/glm"}, tmp_path / "again", check="full"))
    assert not (tmp_path / "again").exists()


def test_a_page_that_hangs_is_given_up(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(spaces, "_choose_check", lambda _: ("full", "as asked for"))
    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(PublishError, match="not laid out within"):
        publish_space(plan_space("me/page", {"glm": "me/glm"}, tmp_path / "made"))
