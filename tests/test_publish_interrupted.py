"""`publish` killed, interrupted, run twice or run where something is: what is left, and what the next run says."""

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conversion import publish as publishing
from conversion import publish_comparing, publish_folder
from conversion.__main__ import main
from conversion.output_path import incomplete_of
from conversion.publish import plan_publication, publish
from conversion.publish_folder import Building
from conversion.publish_source import PublishError
from conversion.writer import WriteError
from tests.faults.publish_cases import fill
from tests.support.forked import die, killed_in_child


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the fresh process out, which takes seconds and is tried elsewhere."""
    monkeypatch.setattr(publish_comparing, "checked", lambda *_: [])


@contextmanager
def killed(model: Path, output: Path, where: str) -> Iterator[None]:
    """Runs a publication in a child that is killed when it first calls a function of `publish` or `publish_folder`."""

    def working() -> None:
        for module in (publishing, publish_folder):
            if hasattr(module, where):
                setattr(module, where, die)
        publish(plan_publication(model, "me/x", output), show_progress=False)

    killed_in_child(working)
    yield


@pytest.mark.parametrize("where", ["_lock", "_names_left", "_write_settings", "_checksums", "model_card", "flush"])
def test_a_killed_run_is_cleared_by_the_next(tmp_path: Path, where: str) -> None:
    model, output = fill(tmp_path), tmp_path / "out"
    with killed(model, output, where):
        assert incomplete_of(output).exists() or where == "_lock"
        plan = plan_publication(model, "me/x", output)
        assert ("left by a run that was killed, is cleared" in plan.describe()) == incomplete_of(output).exists()
        publish(plan, show_progress=False)
    assert not incomplete_of(output).exists()
    assert not list(output.glob(".publication*"))


def test_a_whole_folder_without_its_name_is_cleared(tmp_path: Path) -> None:
    """Killed between the removal of the note and the change of the name."""
    model, output = fill(tmp_path), tmp_path / "out"
    publish(plan_publication(model, "me/x", output), show_progress=False)
    whole = {path.name: path.read_bytes() for path in output.iterdir()}
    output.rename(incomplete_of(output))
    (incomplete_of(output) / ".publication").mkdir()
    publish(plan_publication(model, "me/x", output), show_progress=False)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == whole


@pytest.mark.parametrize("name", [".env", "config.json", "README.md", "sub/x", ".conversion/journal.jsonl"])
def test_a_folder_of_others_is_neither_taken_nor_removed(tmp_path: Path, name: str) -> None:
    model, output = fill(tmp_path), tmp_path / "out"
    foreign = incomplete_of(output) / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text("someone's")
    with pytest.raises(PublishError, match="which no run of this command left there"):
        plan_publication(model, "me/x", output)
    with pytest.raises(PublishError, match="which no run of this command left there"), Building(output, [], {}):
        pass
    assert foreign.read_text() == "someone's"


def test_what_others_put_into_the_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, output = fill(tmp_path), tmp_path / "out"

    def add(*_: object) -> list[tuple[str, str, str]]:
        (incomplete_of(output) / ".env").write_text("someone's")
        return []

    monkeypatch.setattr(publish_comparing, "checked", add)
    with pytest.raises(PublishError, match=r"\.env came or went"):
        publish(plan_publication(model, "me/x", output), show_progress=False)
    assert [path.name for path in incomplete_of(output).iterdir()] == [".env"]
    assert not output.exists()


def test_two_runs_at_once(tmp_path: Path) -> None:
    model, output = fill(tmp_path), tmp_path / "out"
    plan = plan_publication(model, "me/x", output)
    with Building(output, [], {"repo": "me/first"}):
        with pytest.raises(PublishError, match=rf"at work here \(process {os.getpid()}, for me/first\)"):
            publish(plan, show_progress=False)
        with pytest.raises(PublishError, match="at work here"):
            plan_publication(model, "me/x", output)
        assert (incomplete_of(output) / ".publication" / "note.json").is_file()


def test_a_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    publish(plan_publication(fill(tmp_path), "me/x", tmp_path / "out"), show_progress=False)


def test_the_second_publication_says_what_is_there(tmp_path: Path) -> None:
    model, output = fill(tmp_path), tmp_path / "out"
    publish(plan_publication(model, "me/x", output), show_progress=False)
    with pytest.raises(PublishError, match=r"already exists, the repository me/x, made 2.*hf upload me/x"):
        plan_publication(model, "me/x", output)
    (output / "README.md").unlink()
    with pytest.raises(WriteError, match="already exists"):
        plan_publication(model, "me/x", output)


def test_sigterm_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(publish_comparing, "checked", lambda *_: signal.raise_signal(signal.SIGTERM))
    model = fill(tmp_path)
    assert main(["publish", str(model), "--repo=me/x", f"--output={tmp_path / 'new' / 'out'}"]) == 143
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(publishing, "_place_weights", fail)
    assert main(["publish", str(fill(tmp_path)), "--repo=me/x", f"--output={tmp_path / 'out'}"]) == 1
    assert "the disk is full (somewhere). Nothing was published or left behind" in capsys.readouterr().err
    assert not list(tmp_path.glob("out")) + list(tmp_path.glob("out.incomplete"))


@pytest.mark.parametrize("name", ["out", "./a b/out", "größe-模型", "x" * 240])
def test_outputs_are_relative_to_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["publish", "model/", "--repo=me/x", f"--output={name}"]) == 0
    assert json.loads((tmp_path / name / "config.json").read_text())["model_type"] == "glm130b"


def test_names_that_are_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(fill(tmp_path)), "--repo=me/x", f"--output={tmp_path / ('x' * 250)}"]) == 1
    assert "File name too long" in capsys.readouterr().err
