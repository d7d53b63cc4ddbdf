"""Nothing leaves that should not: `publish` on folders with links, planted keys and texts that are Markdown."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard

from conversion import publish_comparing
from conversion.__main__ import main
from conversion.markdown import code, plain, table
from conversion.publish import plan_publication, publish
from conversion.publish_hub import push
from conversion.publish_source import PublishError
from conversion.regular_files import NotRegularError, identify, read_regular
from tests.faults.publish_cases import ARGUMENTS, CANARY, HOSTILE, SINGLE, fill, leaks, plant
from tests.support.hub_stand_in import serve_here


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the fresh process out, which takes seconds and is tried elsewhere."""
    monkeypatch.setattr(publish_comparing, "checked", lambda *_: [])


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_folders_are_refused(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    HOSTILE[what](fill(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(ARGUMENTS) == 1
    said = capsys.readouterr()
    assert "error: " in said.err
    assert CANARY not in said.out + said.err.replace(f"/home/{CANARY}", "")
    assert not list(tmp_path.glob("*_hub*"))


def test_only_known_keys_and_files_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(fill(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main([*ARGUMENTS, "--output=out"]) == 0
    assert not leaks(tmp_path / "out")
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err
    for named in (
        "config.json: ",
        "rope_parameters.token",
        "model.cache_dir",
        "settings.hf_token",
        ".env",
    ):
        assert named in said.out


def test_a_snapshot_of_the_hubs_cache_is_published(tmp_path: Path) -> None:
    """It consists of links into `blobs`, which are followed there and nowhere else."""
    model = fill(tmp_path)
    snapshot = tmp_path / "models--me--x" / "snapshots" / "abc"
    (tmp_path / "models--me--x" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(model.iterdir())):
        path.rename(tmp_path / "models--me--x" / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    publish(plan_publication(snapshot, "me/x", tmp_path / "out"), show_progress=False)
    assert not leaks(tmp_path / "out")
    assert (tmp_path / "out" / SINGLE).samefile(snapshot / SINGLE)
    (tmp_path / "models--me--x" / "blobs" / "link").symlink_to(tmp_path / "outside.txt")
    (snapshot / "vocab.txt").symlink_to("../../blobs/link")
    with pytest.raises(NotRegularError, match="a symbolic link, not a file"):
        plan_publication(snapshot, "me/x", tmp_path / "out2")


def test_regular_files_alone_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "file") == b"content"
    assert identify(tmp_path / "file").size == 7
    with pytest.raises(NotRegularError, match="cp --remove-destination"):
        read_regular(tmp_path / "link")
    with pytest.raises(NotRegularError, match="a folder, not a file"):
        identify(tmp_path)


def test_weights_that_change_after_the_plan_are_refused(tmp_path: Path) -> None:
    model = fill(tmp_path)
    plan = plan_publication(model, "me/x", tmp_path / "out")
    (model / SINGLE).unlink()
    (model / SINGLE).symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(NotRegularError):
        publish(plan, show_progress=False)
    (model / SINGLE).unlink()
    shutil.copyfile(tmp_path / "outside.safetensors", model / SINGLE)
    with pytest.raises(PublishError, match="changed while it was published"):
        publish(plan, show_progress=False)
    assert not list(tmp_path.glob("out*.incomplete"))


def test_what_comes_after_the_check_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = publish(plan_publication(fill(tmp_path), "me/x", tmp_path / "out"), show_progress=False)
    assert sha256.keys() == {path.name for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / ".env").write_text(CANARY)
    (tmp_path / "out" / "late.safetensors").write_text(CANARY)
    with serve_here(monkeypatch) as hub:
        push(tmp_path / "out", "me/x", False, sha256)
        assert hub.repositories["me/x"].files.keys() == sha256.keys()
        (tmp_path / "out" / "config.json").write_text(CANARY)
        monkeypatch.setattr(HfApi, "create_commit", lambda *_, **__: pytest.fail("sent"))
        with pytest.raises(PublishError, match=r"config\.json: not the file that was checked"):
            push(tmp_path / "out", "me/x", False, sha256)


# Text in the card ---------------------------------------------------------------------------------------------------

EVIL = (
    "a | b",
    "[x](http://evil)",
    "![x](http://evil)",
    "<script>alert(1)</script>",
    "`rm -rf`",
    "a\n\n# b\n---\n",
    "https://evil.example www.evil.example a@evil.example",
    "\x1b[31m\u202e",
)


@pytest.mark.parametrize("text", EVIL)
def test_texts_stay_text(text: str) -> None:
    shown = plain(text)
    assert "\n" not in shown
    for special in "|<>[]`*":
        assert f"\\{special}" in shown or special not in shown
    assert "://" not in shown.replace("\\://", "")
    assert "www." not in shown
    assert all(letter.isprintable() for letter in shown)
    assert table(("a",), [(text,)]).count("\n") == 2
    assert "\n" not in code(text)


def test_a_card_of_a_hostile_record_and_parity(tmp_path: Path) -> None:
    model = fill(tmp_path)
    record = {"kind": EVIL[1], "original_class": EVIL[3] + EVIL[5], "converter": EVIL[0], "torch": EVIL[4]}
    (model / "conversion.json").write_text(json.dumps(record))
    rows = [{"what": text, "with": text, "result": text} for text in EVIL]
    (tmp_path / "parity.json").write_text(json.dumps(rows))
    arguments = [f"--output={tmp_path / 'out'}", f"--parity={tmp_path / 'parity.json'}"]
    assert main(["publish", str(model), "--repo=me/x", *arguments]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert ModelCard(text).data.to_dict()["library_name"] == "transformers"
    assert text.count("\n# ") == 1
    assert not re.search(r"(?<!\\)(\]\(|<script)|\x1b", text)
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 2 + len(EVIL)


@pytest.mark.parametrize(
    "options",
    [
        ["--license=a\nb: c"],
        ["--license-name=a]", "--license-link=https://x"],
        ["--license-name=a", "--license-link=javascript:x"],
    ],
)
def test_licences_that_are_none(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(fill(tmp_path)), "--repo=me/x", *options]) == 1
    assert "error: --license" in capsys.readouterr().err
