"""The output folder is ours or it is refused: what others put there is neither published nor removed; journals are
claims; one of several runs goes on; what the system refuses is said.
"""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion import __main__ as command
from conversion import folder_claim, job, output_folder, output_path, writer
from conversion.interruption import interruptible
from conversion.output_path import check_output, rename_new
from conversion.verify import verify_file
from conversion.writer import SafetensorsShard, TorchArchive, WriteError
from tests.support import copying
from tests.support.copying import STATE, copied, fail_after, go, result
from tests.support.tiny import equal_bits

NAMES = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Everything there: path -> content, or what it is."""
    content: dict[str, bytes | str] = {}
    for parent, folders, files in os.walk(folder):
        for path in [Path(parent, name) for name in folders + files]:
            key = str(path.relative_to(folder))
            if path.is_symlink():
                content[key] = f"-> {os.readlink(path)}"
            else:
                content[key] = path.read_bytes() if path.is_file() else "folder" if path.is_dir() else "special"
    return content


def stopped(tmp_path: Path, blocks: int = 3, error: BaseException | None = None, work: Any = None) -> Path:
    """An incomplete folder with so many tensors; the first file of two is complete after three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "pwrite_all", fail_after(blocks, error or KeyboardInterrupt()))
        with pytest.raises((KeyboardInterrupt, WriteError)):
            go(work or copying.job(), tmp_path / "out")
    return tmp_path / "out.incomplete"


def is_whole(tmp_path: Path) -> bool:
    """Whether the output is complete, and nothing is beside it."""
    small = ["config.json", "digests.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*small, *NAMES]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    return equal_bits(result(tmp_path / "out"), STATE)


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


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ".conversion" / "journal.jsonl").read_text().splitlines()]


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


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


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
    journal.write_bytes(as_journal([line for line in lines_of(left) if line.get("tensor") != "layer.1"]))
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


# Several runs


def run_and_tell(output: Path, slow: bool, queue: Any) -> None:
    if slow:
        real = writer.pwrite_all
        writer.pwrite_all = lambda *arguments: (time.sleep(0.05), real(*arguments))[1]
    try:
        go(copying.job(), output)
        queue.put("done")
    except WriteError as error:
        queue.put(str(error))


def test_of_many_runs_at_once_one_goes_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    runs = [context.Process(target=run_and_tell, args=(tmp_path / "a" / "out", True, queue)) for _ in range(6)]
    for process in runs:
        process.start()
    said = [queue.get(timeout=60) for _ in runs]
    for process in runs:
        process.join()
    assert sorted(said)[-1] == "done"
    assert said.count("done") == 1
    assert all(
        "another conversion is writing here" in text or "already exists" in text for text in set(said) - {"done"}
    )
    assert is_whole(tmp_path / "a")


@pytest.mark.parametrize("step", ["unlinked", "renamed"])
def test_the_lock_holds_until_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Another run that comes between the last steps is told so, and changes nothing."""
    said = []

    def come() -> None:
        with pytest.raises(WriteError) as caught:
            go(copying.job(), tmp_path / "out")
        said.append(str(caught.value))

    real = output_folder.rename_new

    def rename(source: Path, target: Path) -> None:
        if source.name == "out.incomplete" or target.name == "out":
            if step == "unlinked":
                come()
            real(source, target)
            if step == "renamed":
                come()
        else:
            real(source, target)

    monkeypatch.setattr(output_folder, "rename_new", rename)
    go(copying.job(), tmp_path / "out")
    assert len(said) == 2
    assert "another conversion is writing here" in said[0]
    assert is_whole(tmp_path)


def test_another_job_cannot_take_over_a_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_before_the_name(tmp_path, monkeypatch)
    with pytest.raises(WriteError, match="a finished conversion of another source or with other options"):
        go(copying.job(options={"dtype": "float32"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def killed_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after kill -9 just before the last rename, when the journal is gone."""
    with monkeypatch.context() as patch:
        patch.setattr(output_folder, "flush", lambda path: None)
        real = output_folder.rename_new
        ended = RuntimeError("ended here")

        def rename(source: Path, target: Path) -> None:
            if target.name == "out":
                raise ended
            real(source, target)

        patch.setattr(output_folder, "rename_new", rename)
        patch.setattr(output_folder.OutputFolder, "_take_back", lambda self: None)
        patch.setattr(output_folder.OutputFolder, "_clean_up", lambda self, everything: None)
        with pytest.raises(RuntimeError, match="ended here"):
            go(copying.job(), tmp_path / "out")


def test_a_run_killed_just_before_the_name_needs_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_before_the_name(tmp_path, monkeypatch)
    (finished,) = tmp_path.iterdir()
    kept = (finished / NAMES[0]).stat()
    assert not (finished / ".conversion").exists()
    go(copying.job(), tmp_path / "out")
    assert (tmp_path / "out" / NAMES[0]).stat().st_mtime_ns == kept.st_mtime_ns
    assert is_whole(tmp_path)


def test_a_finished_folder_that_was_damaged_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_before_the_name(tmp_path, monkeypatch)
    (finished,) = tmp_path.iterdir()
    (finished / NAMES[1]).unlink()
    with pytest.raises(WriteError, match=f"{NAMES[1]} in it is missing or damaged"):
        go(copying.job(), tmp_path / "out")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    go(copying.job(), tmp_path / "out")
    assert is_whole(tmp_path)


# Names


@pytest.mark.parametrize("native", [True, False])
def test_a_name_that_is_taken_is_not_renamed_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    if not native:
        monkeypatch.setattr(output_path, "_rename_by_the_system", lambda source, target: errno.ENOSYS)
    (tmp_path / "a").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for taken in ("empty", "dangling"):
        with pytest.raises(FileExistsError):
            rename_new(tmp_path / "a", tmp_path / taken)
    with pytest.raises(FileNotFoundError):
        rename_new(tmp_path / "missing", tmp_path / "b")
    rename_new(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "dangling", "empty"]


def test_an_empty_folder_that_appears_last_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = output_folder.rename_new

    def rename(source: Path, target: Path) -> None:
        if target.name == "out":
            target.mkdir()
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(output_folder, "rename_new", rename)
        with pytest.raises(WriteError, match="already exists"):
            go(copying.job(), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.incomplete"]
    (tmp_path / "out").rmdir()
    go(copying.job(), tmp_path / "out")
    assert is_whole(tmp_path)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "already exists"),
        (".", "already exists"),
        ("there/", "already exists"),
        ("missing/..", "no name for an output"),
        ("new.incomplete", "no name for an output"),
        ("a\0b", "no name for an output"),
        ("file/new", "is no folder"),
        ("file/deep/new", "is no folder"),
        ("dangling", "already exists"),
        ("dangling/new", "is no folder"),
        ("loop/new", "is no folder|symbolic links"),
        ("n" * 250, "too long"),
        ("n" * 300, "too long"),
        ("source/new", "inside the source"),
        ("linked/deep/new", "inside the source"),
        ("source/../source/new", "inside the source"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("there", "source"):
        Path(folder).mkdir()
    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    Path("linked").symlink_to("source")
    before = snapshot(tmp_path)
    with pytest.raises(WriteError, match=message) as caught:
        check_output(Path(output), Path("source"))
    assert "Choose another --output" in str(caught.value) or "beside it" in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("output", ["new", "new/", "deep/er/new", "./new", "link/new", "source_hub", "新"])
def test_outputs_that_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("there", "source"):
        Path(folder).mkdir()
    Path("link").symlink_to("there")
    check_output(Path(output), Path("source"))
    go(copying.job(), Path(output))
    assert equal_bits(result(Path(output)), STATE)


# What the system refuses


ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EFBIG", "ENAMETOOLONG")


@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("name", ERRORS)
def test_what_the_system_refuses_is_said_and_the_work_goes_on(tmp_path: Path, name: str, blocks: int) -> None:
    number = getattr(errno, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "pwrite_all", fail_after(blocks, OSError(number, os.strerror(number))))
        with pytest.raises(WriteError, match=os.strerror(number)) as caught:
            go(copying.job(), tmp_path / "deep" / "out")
    assert "run the same command again" in str(caught.value)
    kept = {0: "nothing was left behind", 1: "what was written is kept", 3: "1 of 3 files are complete"}[blocks]
    assert kept in str(caught.value)
    assert list(tmp_path.iterdir()) == ([tmp_path / "deep"] if blocks else [])
    written: list[str] = []
    real = writer.fill_block

    def watch(buffer: torch.Tensor, tensor: Any, *rest: Any) -> None:
        written.append(tensor.name)
        real(buffer, tensor, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "fill_block", watch)
        go(copying.job(), tmp_path / "deep" / "out")
    assert written == list(STATE)[blocks:]
    assert is_whole(tmp_path / "deep")


def test_files_filled_together_keep_what_is_done_on_a_full_disk(tmp_path: Path) -> None:
    """As the ranks of --reverse are: none is complete before all are."""

    def work() -> job.Job:
        made = copying.job()
        object.__setattr__(made, "by_tensor", True)
        return made

    stopped(tmp_path, 4, OSError(errno.ENOSPC, "No space left on device"), work())
    tensors = [line["tensor"] for line in lines_of(tmp_path / "out.incomplete") if "tensor" in line]
    assert tensors == ["layer.0", "layer.2", "layer.4", "layer.1"]
    go(work(), tmp_path / "out")
    assert is_whole(tmp_path)


def test_a_block_behind_one_that_failed_does_not_complete_its_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for one block only, the next is waiting already."""
    real, calls = writer.pwrite_all, []

    def write(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    tensor = torch.randn(100, 8)
    shard = SafetensorsShard("model.safetensors", [copied("first", tensor[:1]), copied("a", tensor)], {})
    work = copying.job({"first": tensor[:1], "a": tensor}, [shard])
    with monkeypatch.context() as patch:
        patch.setattr(writer, "pwrite_all", write)
        patch.setattr(output_folder, "stream", lambda *arguments: writer.stream(*arguments, block_bytes=1600))
        with pytest.raises(WriteError, match="the disk is full"):
            go(work, tmp_path / "out")
    assert [line["tensor"] for line in lines_of(tmp_path / "out.incomplete") if "tensor" in line] == ["first"]


class TokenizersError(Exception):
    """tokenizers raises a plain `Exception`."""


@pytest.mark.parametrize("step", ["write_first", "write_last"])
def test_errors_of_libraries_are_told_by_their_number(tmp_path: Path, step: str) -> None:
    def write(folder: Path, *rest: Any) -> None:
        raise TokenizersError("No space left on device (os error 28)")

    work = copying.job()
    object.__setattr__(work, step, write)
    with pytest.raises(WriteError, match=r"the disk is full \(No space left on device\)"):
        go(work, tmp_path / "out")


def test_other_errors_of_libraries_are_not_hidden(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise TokenizersError("a bug")

    work = copying.job()
    object.__setattr__(work, "write_first", write)
    with pytest.raises(TokenizersError, match="a bug"):
        go(work, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_torch_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*arguments: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22\nframe #0: ...")

    monkeypatch.setattr(torch, "save", save)
    tensors = [copied(name, tensor) for name, tensor in STATE.items()]
    with pytest.raises(
        WriteError, match=r"torch cannot write it .*unexpected pos 128 vs 22\).*nothing was left"
    ) as error:
        go(copying.job(files=[TorchArchive("a.pt", tensors, "module")]), tmp_path / "out")
    assert "frame" not in str(error.value)


def test_a_flush_that_fails_has_the_file_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync the system may forget what it could not write."""
    real = output_folder.flush

    def flush(path: Path) -> None:
        if path.name == NAMES[1]:
            raise OSError(errno.EIO, "Input/output error", str(path))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(output_folder, "flush", flush)
        with pytest.raises(WriteError, match=f"Input/output error at .*{NAMES[1]}.*2 of 3 files are complete"):
            go(copying.job(), tmp_path / "out", verify=False)
    go(copying.job(), tmp_path / "out")
    assert is_whole(tmp_path)


def test_disks_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(WriteError, match=r"Input/output error at .*nothing was left behind"):
        go(copying.job(), tmp_path / "out")


def test_several_damaged_files_are_named_at_once(tmp_path: Path) -> None:
    def verify(folder: Path, file: Any, *rest: Any) -> str:
        if file.name == NAMES[0]:
            damage(folder / file.name, -1)
        if file.name == NAMES[2]:
            raise OSError(errno.EIO, "Input/output error", str(folder / file.name))
        return verify_file(folder, file, *rest)

    with pytest.raises(WriteError, match=f"2 files are damaged: {NAMES[0]}, {NAMES[2]}. They were removed") as caught:
        job.run(copying.job(), tmp_path / "out", verify, show_progress=False)
    assert "read back differently than written, e.g. layer.1" in str(caught.value)
    assert [path.name for path in (tmp_path / "out.incomplete").glob("*.safetensors")] == [NAMES[1]]
    go(copying.job(), tmp_path / "out")
    assert is_whole(tmp_path)


# Signals


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_are_interruptions_with_their_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, status: int
) -> None:
    number = getattr(signal, name)
    original = signal.signal(number, signal.default_int_handler)  # a program in the background may ignore it
    before = signal.getsignal(number)
    monkeypatch.chdir(tmp_path)

    def interrupted(work: Any, output: Path, *rest: Any, **options: Any) -> None:
        stopped(tmp_path)
        signal.raise_signal(number)

    monkeypatch.setattr(command, "run", interrupted)
    monkeypatch.setattr(command.ernie3, "plan_forward", lambda *arguments: copying.job())
    assert command.main(["ernie3", "--source=source", "--output=out"]) == status
    assert capsys.readouterr().err.endswith(
        "interrupted: out.incomplete is kept; the same command goes on from here\n"
    )
    assert signal.getsignal(number) is before
    signal.signal(number, original)


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_ends_the_program() -> None:
    code = """
import os, signal
from conversion.interruption import interruptible
signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background may ignore it
try:
    with interruptible():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            print("still here")
except KeyboardInterrupt:
    print("not ended")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
