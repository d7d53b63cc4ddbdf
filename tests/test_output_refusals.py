"""Runs at once on one output, names an output may not have, refusals of the system, signals."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion import __main__ as command
from conversion import job, output_folder, output_path, publication, writer
from conversion.interruption import interruptible
from conversion.output_path import check_output, rename_new
from conversion.verify import verify_file
from conversion.writer import SafetensorsShard, TorchArchive, WriteError
from tests.faults.harness import snapshot
from tests.support import copying
from tests.support.copying import NAMES, STATE, copied, damage, fail_after, go, is_whole, lines_of, result, stopped
from tests.support.fresh import fresh_python
from tests.support.tiny import equal_bits

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

    real = publication.rename_new

    def rename(source: Path, target: Path) -> None:
        if source.name == "out.incomplete" or target.name == "out":
            if step == "unlinked":
                come()
            real(source, target)
            if step == "renamed":
                come()
        else:
            real(source, target)

    monkeypatch.setattr(publication, "rename_new", rename)
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
        real = publication.rename_new
        ended = RuntimeError("ended here")

        def rename(source: Path, target: Path) -> None:
            if target.name == "out":
                raise ended
            real(source, target)

        patch.setattr(publication, "rename_new", rename)
        patch.setattr(publication.Publication, "_take_back", lambda self, progress: None)
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
    real = publication.rename_new

    def rename(source: Path, target: Path) -> None:
        if target.name == "out":
            target.mkdir()
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(publication, "rename_new", rename)
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
        patch.setattr(output_folder, "stream", partial(writer.stream, block_bytes=1600))
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
    done = fresh_python(["-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
