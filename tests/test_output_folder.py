"""The output folder is ours or it is refused: what others put there is neither published nor removed; journals are
claims; one of several runs goes on; what the system refuses is said.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion import folder_claim, job
from conversion.verify import verify_file
from conversion.writer import SafetensorsShard, TorchArchive, WriteError
from tests.faults.harness import snapshot
from tests.support import copying
from tests.support.copying import NAMES, STATE, copied, damage, go, is_whole, lines_of, stopped
from tests.support.tiny import equal_bits

# What was there


def a_private_file(path: Path) -> None:
    path.mkdir()
    (path / ".env").write_text("TOKEN=secret")


def a_state_without_a_journal(path: Path) -> None:
    (path / ".conversion" / "partial").mkdir(parents=True)
    (path / "model.safetensors").write_text("weights of my own")


def a_state_that_is_a_link(path: Path) -> None:
    path.mkdir()
    (path.parent / "elsewhere").mkdir()
    (path.parent / "elsewhere" / "journal.jsonl").write_text('{"fingerprint": "x"}\n')
    (path / ".conversion").symlink_to(path.parent / "elsewhere")


def a_link_to_a_folder(path: Path) -> None:
    (path.parent / "mine").mkdir()
    path.symlink_to(path.parent / "mine")


def a_folder_of_another_program(path: Path) -> None:
    (path / ".conversion").mkdir(parents=True)
    (path / ".conversion" / "journal.json").write_text("[]")


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "an empty folder": Path.mkdir,
    "a file": Path.touch,
    "a private file": a_private_file,
    "a link to a folder": a_link_to_a_folder,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a fifo": os.mkfifo,
    "a state without a journal": a_state_without_a_journal,
    "a state that is a link": a_state_that_is_a_link,
    "a folder of another program": a_folder_of_another_program,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_was_not_begun_by_a_conversion_is_not_touched(tmp_path: Path, kind: str) -> None:
    FOREIGN[kind](tmp_path / "out.incomplete")
    before = snapshot(tmp_path)
    with pytest.raises(WriteError, match=r"out.incomplete: is there already and holds no journal of a conversion"):
        go(copying.job(), tmp_path / "out")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("state", ["nothing", "state", "lock", "half a journal"])
def test_a_run_killed_before_its_journal_goes_on(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "out.incomplete"
    folder.mkdir(mode=folder_claim.BEGUN)
    if state != "nothing":
        (folder / ".conversion").mkdir()
    if state in ("lock", "half a journal"):
        (folder / ".conversion" / "lock").touch()
    if state == "half a journal":
        (folder / ".conversion" / "journal.new").write_text('{"finger')
    go(copying.job(), tmp_path / "out")
    assert is_whole(tmp_path)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


# What others put in


def other_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"mine": true}')


def hard_linked_partial(folder: Path) -> None:
    os.link(folder / ".conversion" / "partial" / NAMES[1], folder.parent / "second name")


def linked_partial(folder: Path) -> None:
    (folder / ".conversion" / "partial" / NAMES[1]).unlink()
    (folder / ".conversion" / "partial" / NAMES[1]).symlink_to("/etc/hostname")


def moved_and_linked(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / "moved")
        (folder / name).symlink_to(folder.parent / "moved")

    return change


STRANGERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file": (lambda folder: (folder / ".env").write_text("TOKEN"), r"\.env"),
    "a folder": (lambda folder: (folder / "notes").mkdir(), "notes"),
    "a link": (lambda folder: (folder / "vocab.txt").symlink_to("/etc/hostname"), "vocab.txt"),
    "a fifo": (lambda folder: os.mkfifo(folder / "pipe"), "pipe"),
    "a weight file of its own": (lambda folder: (folder / NAMES[2]).write_text("mine"), NAMES[2]),
    "a small file changed": (other_config, "config.json"),
    "a small file by a link": (moved_and_linked("config.json"), "config.json"),
    "a weight file by a link": (moved_and_linked(NAMES[0]), NAMES[0]),
    "in the state": (lambda folder: (folder / ".conversion" / "mine").touch(), ".conversion/mine"),
    "among the partial": (lambda folder: (folder / ".conversion/partial/mine").touch(), ".conversion/partial/mine"),
    "a partial file by a link": (linked_partial, ".conversion/partial/model-00002"),
    "a partial file's second name": (hard_linked_partial, ".conversion/partial/model-00002"),
    "the partial files by a link": (moved_and_linked(".conversion/partial"), ".conversion/partial"),
    "a lock by a link": (moved_and_linked(".conversion/lock"), ".conversion/lock"),
    "a journal by a link": (moved_and_linked(".conversion/journal.jsonl"), "journal.jsonl: not a journal"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_what_others_put_in_is_named_and_not_touched(tmp_path: Path, kind: str) -> None:
    folder = stopped(tmp_path)
    change, named = STRANGERS[kind]
    change(folder)
    before = snapshot(tmp_path)
    with pytest.raises(WriteError, match=named):
        go(copying.job(), tmp_path / "out")
    assert snapshot(tmp_path) == before


def test_after_it_is_moved_away_the_work_goes_on(tmp_path: Path) -> None:
    folder = stopped(tmp_path)
    (folder / ".env").write_text("TOKEN")
    with pytest.raises(WriteError, match=r"\.env was not made by this conversion.*move it out"):
        go(copying.job(), tmp_path / "out")
    (folder / ".env").unlink()
    go(copying.job(), tmp_path / "out")
    assert is_whole(tmp_path)


@pytest.mark.parametrize("name", [".env", "config.json", ".conversion/mine", "deep/er"])
def test_what_is_put_in_during_the_run_is_not_published(tmp_path: Path, name: str) -> None:
    def put(folder: Path, digests: Any) -> None:
        path = tmp_path / "out.incomplete" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")

    with pytest.raises(WriteError, match=f"{name.partition('/er')[0]}.*was not made by this conversion"):
        go(copying.job(write_last=put), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.incomplete" / name).read_text() == "mine"


def test_a_failure_removes_what_was_made_and_nothing_else(tmp_path: Path) -> None:
    """A weight that does not fit: nothing made is of use, but the folder holds somebody's file."""
    tensor = torch.tensor([1.0, -1e6])

    def write_first(folder: Path) -> None:
        copying.write_config(folder)
        (tmp_path / "out.incomplete" / ".env").write_text("TOKEN")

    shard = SafetensorsShard("model.safetensors", [copied("a", tensor, torch.float16)], {})
    work = copying.job({"a": tensor}, [shard])
    object.__setattr__(work, "write_first", write_first)
    with pytest.raises(WriteError, match="does not fit"):
        go(work, tmp_path / "out")
    left = [name for name in snapshot(tmp_path / "out.incomplete") if not name.startswith(".conversion")]
    assert left == [".env"]


def test_a_file_of_the_weights_own_name_is_not_replaced(tmp_path: Path) -> None:
    def write_first(folder: Path) -> None:
        copying.write_config(folder)
        (tmp_path / "out.incomplete" / NAMES[0]).write_text("mine")

    work = copying.job()
    object.__setattr__(work, "write_first", write_first)
    with pytest.raises(WriteError, match=f"{NAMES[0]}.* was not made by this conversion"):
        go(work, tmp_path / "out")
    assert (tmp_path / "out.incomplete" / NAMES[0]).read_text() == "mine"


# Journals


def line(**changes: Any) -> Callable[[list[dict[str, Any]]], bytes]:
    """A journal with one line more."""

    def make(lines: list[dict[str, Any]]) -> bytes:
        added = {"file": NAMES[1], "tensor": "layer.3", "crc32": 1} | changes
        return as_journal([*lines, {key: value for key, value in added.items() if value is not None}])

    return make


def as_journal(lines: list[Any]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


TAMPERED: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "nothing": lambda lines: b"",
    "no fingerprint": lambda lines: as_journal(lines[1:]),
    "a list": lambda lines: b"[]\n",
    "binary": lambda lines: bytes(range(256)) * 50 + b"\n",
    "no UTF-8": lambda lines: as_journal(lines) + b'{"file": "\xff"}\n',
    "UTF-16": lambda lines: as_journal(lines).decode().encode("utf-16"),
    "nested": lambda lines: as_journal(lines) + b"[" * 100_000 + b"\n",
    "half a line in the middle": lambda lines: as_journal(lines[:2]) + b'{"file": "mo\n' + as_journal(lines[2:]),
    "huge": lambda lines: as_journal(lines) + b" " * 10**8,
    "endless lines": lambda lines: as_journal(lines) + b"\n" * 10**6,
    "twice the same": lambda lines: as_journal([*lines, lines[-1]]),
    "an unknown file": line(file="other.safetensors"),
    "a file elsewhere": line(file="../../victim"),
    "an unknown tensor": line(tensor="other"),
    "a tensor of another file": line(tensor="layer.0"),
    "no tensor": line(tensor=None),
    "a list for a name": line(file=[NAMES[1]]),
    "a number for a name": line(tensor=3),
    "a checksum in words": line(crc32="123"),
    "a checksum of 64 bits": line(crc32=2**40),
    "a checksum below zero": line(crc32=-1),
    "a checksum with a fraction": line(crc32=1.5),
    "a checksum that is true": line(crc32=True),
    "no checksum": line(crc32=None),
    "one key more": line(more=1),
    "a small file elsewhere": lambda lines: as_journal([*lines, {"small": "../victim", "crc32": 1}]),
    "a small file of an absolute path": lambda lines: as_journal([*lines, {"small": "/etc/passwd", "crc32": 1}]),
    "a small file in the state": lambda lines: as_journal([*lines, {"small": ".conversion/lock", "crc32": 1}]),
    "a small file that is a weight file": lambda lines: as_journal([*lines, {"small": NAMES[0], "crc32": 1}]),
    "a small file without a name": lambda lines: as_journal([*lines, {"small": "", "crc32": 1}]),
    "a small file of several names": lambda lines: as_journal([*lines, {"small": ["a"], "crc32": 1}]),
    "a small file with a NUL": lambda lines: as_journal([*lines, {"small": "a\0b", "crc32": 1}]),
}


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was left after three tensors; to be copied."""
    return stopped(tmp_path_factory.mktemp("incomplete"))


@pytest.fixture
def left(incomplete: Path, tmp_path: Path) -> Path:
    """A copy of it beside which `out` is to be made."""
    return Path(shutil.copytree(incomplete, tmp_path / "out.incomplete"))


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_journal_that_no_run_wrote_is_a_message(left: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "victim").write_text("mine")
    (left / ".conversion" / "journal.jsonl").write_bytes(TAMPERED[kind](lines_of(left)))
    before = snapshot(tmp_path)
    with pytest.raises(WriteError, match=r"not a journal that this conversion wrote \(line \d+: .*rm -r"):
        go(copying.job(), tmp_path / "out")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_a_journal_that_is_no_file_is_a_message(left: Path, tmp_path: Path, kind: str) -> None:
    path = left / ".conversion" / "journal.jsonl"
    path.unlink()
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(WriteError, match="no plain file"):
        go(copying.job(), tmp_path / "out")


@pytest.mark.parametrize("verify", [True, False])
def test_tensors_that_were_never_written_are_not_believed(left: Path, tmp_path: Path, verify: bool) -> None:
    """A journal that says more than is on the disk, as after a loss of power."""
    claimed = [
        {"file": NAMES[1], "tensor": "layer.3", "crc32": 7},
        {"file": NAMES[2], "tensor": "layer.4", "crc32": 0},
    ]
    (left / ".conversion" / "journal.jsonl").write_bytes(as_journal([*lines_of(left), *claimed]))
    go(copying.job(), tmp_path / "out", verify)
    assert is_whole(tmp_path)


@pytest.mark.parametrize("where", [NAMES[0], f".conversion/partial/{NAMES[1]}"])
@pytest.mark.parametrize("how", ["data", "header", "short", "empty"])
def test_what_was_damaged_since_is_written_again(left: Path, tmp_path: Path, where: str, how: str) -> None:
    path = left / where
    if how in ("data", "header"):
        with path.open("rb") as file:
            data = 8 + int.from_bytes(file.read(8), "little")
        damage(path, data + 3 if how == "data" else 40)
    else:
        os.truncate(path, 0 if how == "empty" else path.stat().st_size - 1)
    go(copying.job(), tmp_path / "out", verify=False)
    assert is_whole(tmp_path)


def test_all_that_was_damaged_since_is_named(left: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (NAMES[0], f".conversion/partial/{NAMES[1]}"):
        damage(left / name, 40)
    job.run(copying.job(), tmp_path / "out", verify_file)
    assert f"out.incomplete: damaged since they were written, so they are written again: {NAMES[0]}, {NAMES[1]}\n" in (
        capsys.readouterr().err
    )
    assert is_whole(tmp_path)


def test_a_finished_file_that_the_journal_lost_is_known_by_its_header(left: Path, tmp_path: Path) -> None:
    journal = left / ".conversion" / "journal.jsonl"
    kept = [line for line in lines_of(left) if line.get("tensor") != "layer.1" and "sha256" not in line]
    journal.write_bytes(as_journal(kept))
    go(copying.job(), tmp_path / "out")
    assert is_whole(tmp_path)


@pytest.mark.parametrize("damaged", ["data", "pickle", "directory"])
def test_archives_are_read_again_too(tmp_path: Path, damaged: str) -> None:
    def work() -> job.Job:
        tensors = [copied(name, tensor) for name, tensor in STATE.items()]
        return copying.job(
            files=[TorchArchive("a.pt", tensors[:3], "module"), TorchArchive("b.pt", tensors[3:], "module")]
        )

    folder = stopped(tmp_path, 4, work=work())
    path = folder / "a.pt"
    content = path.read_bytes()
    places = {"data": -1, "pickle": content.index(b"collections"), "directory": content.rindex(b"PK\1\2")}
    at = places[damaged] if damaged != "data" else content.index(STATE["layer.1"].numpy().tobytes())
    damage(path, at)
    go(work(), tmp_path / "out", verify=False)
    written = [torch.load(tmp_path / "out" / name, weights_only=True)["module"] for name in ("a.pt", "b.pt")]
    assert equal_bits(written[0] | written[1], STATE)
