"""Finished files are verified while the next are written; what happens to them then; kills and failures in between."""

import errno
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from conversion import output_folder, writer
from conversion.file_hooks import FileHooks
from conversion.job import Job, run
from conversion.output_folder import OutputFolder
from conversion.verify import verify_file
from conversion.writer import OutputFile, WriteError
from tests.faults.harness import snapshot
from tests.support import copying
from tests.support.copying import NAMES, STATE, damage, is_whole, lines_of, result, stopped
from tests.support.forked import die, killed_in_child
from tests.support.tiny import equal_bits

SECONDS = 20
"""How long anything is waited for."""


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in set(threading.enumerate()) - before if not isinstance(thread, threading.Timer)]
    assert [thread.name for thread in left if not thread.name.startswith("tqdm")] == []


class Noted(FileHooks):
    """Notes what it is told, and what the journal says then."""

    def __init__(self, act: Callable[[str], bool] = lambda name: False):
        self.told: list[str] = []
        self.threads: set[str] = set()
        self.act = act
        self.at_work = 0

    def verified(self, path: Path, file: OutputFile, sha256: str) -> bool:
        assert not self.at_work
        self.at_work += 1
        self.told.append(file.name)
        self.threads.add(threading.current_thread().name)
        folder = path.parents[len(Path(file.name).parents) - 1]
        assert {"file": file.name, "sha256": sha256} in lines_of(folder)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        try:
            return self.act(file.name)
        finally:
            self.at_work -= 1


def go(tmp_path: Path, hooks: FileHooks | None = None, verify: Any = verify_file, work: Job | None = None) -> None:
    run(work or copying.job(), tmp_path / "out", verify, show_progress=False, hooks=hooks)


def by_tensor() -> Job:
    work = copying.job()
    object.__setattr__(work, "by_tensor", True)
    return work


def lines_with(tmp_path: Path, key: str) -> list[str]:
    return [line["file"] for line in lines_of(tmp_path / "out.incomplete") if key in line and "file" in line]


def before_block(number: int, act: Callable[[], object]) -> Callable[..., None]:
    """A `pwrite_all` that does something before the block of that number, from 1 on."""
    real, count = writer.pwrite_all, 0

    def write(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            act()
        real(*arguments)

    return write


# Beside the writing


def test_a_file_is_verified_while_the_next_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block of the second file waits until the first is noted."""
    hooks, noted = Noted(), threading.Event()
    hooks.act = lambda name: noted.set() or False
    seen = []
    monkeypatch.setattr(writer, "pwrite_all", before_block(4, lambda: seen.append(noted.wait(SECONDS))))
    go(tmp_path, hooks)
    assert seen == [True]
    assert hooks.told == NAMES
    assert "MainThread" not in hooks.threads
    assert is_whole(tmp_path)


@pytest.mark.parametrize("at_once", [2, 3])
def test_writing_does_not_run_ahead(tmp_path: Path, at_once: int) -> None:
    """While the first file is in verification, no more files are begun than may be."""
    begun: set[str] = set()

    class Few(Noted):
        files_at_once = at_once

    def verify(folder: Path, file: OutputFile, *rest: Any) -> str:
        if file.name == NAMES[0]:
            time.sleep(0.3)
            begun.update(path.name for path in folder.rglob("*.safetensors"))
        return verify_file(folder, file, *rest)

    go(tmp_path, Few(), verify)
    assert begun == set(NAMES[:at_once])
    assert is_whole(tmp_path)


def test_files_filled_together_are_verified_together_and_told_one_by_one(tmp_path: Path) -> None:
    met = threading.Barrier(2)

    def verify(folder: Path, file: OutputFile, *rest: Any) -> str:
        if file.name in NAMES[:2]:
            met.wait(SECONDS)
        return verify_file(folder, file, *rest)

    hooks = Noted(lambda name: bool(time.sleep(0.05)))
    go(tmp_path, hooks, verify, by_tensor())
    assert sorted(hooks.told) == NAMES
    assert is_whole(tmp_path)


def test_hooks_need_verification(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hooks act on files that were verified"):
        go(tmp_path, FileHooks(), None)
    assert list(tmp_path.iterdir()) == []


def test_the_bars_tell_what_is_written_and_what_is_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(copying.job(), tmp_path / "out", verify_file)
    said = capsys.readouterr().err
    assert "writing: 100%" in said
    assert "verifying: 100%" in said
    assert "1.20k/1.20k" in said.split("verifying")[-1]


# On


def test_a_run_that_goes_on_reads_finished_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, None, interrupted_at(NAMES[2]))
    assert lines_with(tmp_path, "sha256") == NAMES[:2]
    read: list[str] = []
    monkeypatch.setattr(output_folder, "damaged_tensors", lambda path, *rest: read.append(path.name) or [])

    def verify(folder: Path, file: OutputFile, *rest: Any) -> str:
        read.append(file.name)
        return verify_file(folder, file, *rest)

    hooks = Noted()
    go(tmp_path, hooks, verify)
    assert read == NAMES
    assert hooks.told == NAMES  # those of the former run too
    assert is_whole(tmp_path)


def interrupted_at(name: str) -> Callable[..., str]:
    """A verification that is interrupted in a file, after that was written."""

    def verify(folder: Path, file: OutputFile, *rest: Any) -> str:
        if file.name == name:
            raise KeyboardInterrupt
        return verify_file(folder, file, *rest)

    return verify


@pytest.mark.parametrize("how", ["data", "header", "other digits"])
def test_a_verified_file_that_does_not_hold_is_written_again(tmp_path: Path, how: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, None, interrupted_at(NAMES[1]))
    folder = tmp_path / "out.incomplete"
    if how == "other digits":
        lines = [line | ({"sha256": "0" * 64} if "sha256" in line else {}) for line in lines_of(folder)]
        journal = folder / ".conversion" / "journal.jsonl"
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        damage(folder / NAMES[0], -1 if how == "data" else 30)
    written: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real = writer.fill_block
        patch.setattr(writer, "fill_block", lambda *arguments: written.append(arguments[1].name) or real(*arguments))
        hooks = Noted()
        go(tmp_path, hooks)
    assert sorted(hooks.told) == NAMES
    assert (written[0] == "layer.0") == (how != "data")  # of damaged data, only the tensor
    assert "layer.1" in written
    assert is_whole(tmp_path)


def test_without_verification_nothing_of_it_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, None, interrupted_at(NAMES[1]))
    before = set(threading.enumerate())
    work = copying.job(write_last=lambda folder, digests: seen.append((digests, set(threading.enumerate()) - before)))
    seen: list[tuple[Mapping[str, str], set[threading.Thread]]] = []
    go(tmp_path, None, None, work)
    assert seen == [({}, set())]


# Failures


def test_a_damaged_file_does_not_stop_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it is found before the second is begun: the next run then writes that one only."""
    found = threading.Event()

    def verify(folder: Path, file: OutputFile, *rest: Any) -> str:
        if file.name == NAMES[0]:
            damage(folder / file.name, -1)
        try:
            return verify_file(folder, file, *rest)
        finally:
            found.set()

    monkeypatch.setattr(writer, "pwrite_all", before_block(3, lambda: found.wait(SECONDS)))
    hooks = Noted()
    with pytest.raises(WriteError, match=f"{NAMES[0]}.*read back differently.*The file was removed; run the same"):
        go(tmp_path, hooks, verify)
    assert hooks.told == NAMES[1:]
    assert sorted(path.name for path in (tmp_path / "out.incomplete").glob("*.safetensors")) == NAMES[1:]
    go(tmp_path, hooks)
    assert is_whole(tmp_path)


@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_a_disk_that_fails_stops_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    number, begun, failed = getattr(errno, name), threading.Event(), threading.Event()

    def verify(folder: Path, file: OutputFile, *rest: Any) -> str:
        if file.name != NAMES[0]:
            return verify_file(folder, file, *rest)
        assert begun.wait(SECONDS)
        raise OSError(number, os.strerror(number), str(folder / file.name))

    def write_later() -> None:
        begun.set()
        assert failed.wait(SECONDS)
        time.sleep(0.1)

    real = OutputFolder.reject
    monkeypatch.setattr(OutputFolder, "reject", lambda self, name: (real(self, name), failed.set()))
    monkeypatch.setattr(writer, "pwrite_all", before_block(3, write_later))
    with pytest.raises(WriteError, match=f"{os.strerror(number)}.*{NAMES[0]}.*The file was removed"):
        go(tmp_path, None, verify)
    tensors = [line.get("tensor") for line in lines_of(tmp_path / "out.incomplete")]
    assert "layer.2" in tensors
    assert "layer.5" not in tensors
    monkeypatch.undo()
    go(tmp_path)
    assert is_whole(tmp_path)


class HookError(Exception):
    """What a hook raises."""


@pytest.mark.parametrize("nth", [0, 1, 2])
@pytest.mark.parametrize("work", [copying.job, by_tensor])
def test_a_hook_that_fails_ends_the_run_and_the_file_stays(tmp_path: Path, nth: int, work: Callable[[], Job]) -> None:
    def act(name: str) -> bool:
        if len(hooks.told) == nth + 1:
            raise HookError(name)
        return False

    hooks = Noted(act)
    with pytest.raises(HookError):
        go(tmp_path, hooks, work=work())
    assert len(hooks.told) == nth + 1  # nobody is told after that
    assert lines_with(tmp_path, "sha256") == hooks.told
    assert (tmp_path / "out.incomplete" / hooks.told[-1]).is_file()
    again = Noted()
    go(tmp_path, again, work=work())
    assert sorted(again.told) == NAMES
    assert is_whole(tmp_path)


def test_a_hook_that_takes_long_is_told_to_stop(tmp_path: Path) -> None:
    """Ctrl-C comes while the main thread waits for it."""
    stop = threading.Event()

    class Slow(Noted):
        files_at_once = 2

        def stop(self) -> None:
            stop.set()

    def act(name: str) -> bool:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert stop.wait(SECONDS)
        raise HookError

    original = signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, Slow(act))
    finally:
        signal.signal(signal.SIGINT, original)
    go(tmp_path)
    assert is_whole(tmp_path)


@pytest.mark.parametrize("nth", [0, 1, 2])
@pytest.mark.parametrize("where", ["verification", "note", "hook"])
@pytest.mark.parametrize("work", [copying.job, by_tensor])
def test_a_run_killed_around_verification_goes_on(
    tmp_path: Path, nth: int, where: str, work: Callable[[], Job]
) -> None:
    def kill_at(step: str, name: str) -> bool:
        if step == where and name == NAMES[nth]:
            die()
        return False

    def verify(folder: Path, file: OutputFile, checksums: Mapping[str, int], on_bytes: Callable[[int], object]) -> str:
        return verify_file(folder, file, checksums, lambda nbytes: kill_at("verification", file.name))

    def working() -> None:
        real = OutputFolder.verified
        OutputFolder.verified = lambda self, name, sha256: kill_at("note", name) or real(self, name, sha256)  # type: ignore[method-assign]
        go(tmp_path, Noted(lambda name: kill_at("hook", name)), verify, work())

    killed_in_child(working)
    assert not (tmp_path / "out").exists()
    hooks = Noted()
    go(tmp_path, hooks, work=work())
    assert sorted(hooks.told) == NAMES
    assert is_whole(tmp_path)


# Shipped


class Shipping(Noted):
    """Moves files elsewhere."""

    ships = True
    files_at_once = 2

    def __init__(self, elsewhere: Path, act: Callable[[str], bool] = lambda name: True):
        super().__init__(act)
        self.elsewhere = elsewhere
        self.left: list[dict[str, int]] = []
        elsewhere.mkdir(exist_ok=True)

    def verified(self, path: Path, file: OutputFile, sha256: str) -> bool:
        (self.elsewhere / file.name).write_bytes(path.read_bytes())
        return super().verified(path, file, sha256)

    def is_kept(self, file: OutputFile, sha256: str) -> bool:
        path = self.elsewhere / file.name
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256

    def disk_needed(self, left: Mapping[str, int]) -> int:
        self.left.append(dict(left))
        return max(left.values(), default=0) * self.files_at_once


def is_shipped(tmp_path: Path) -> bool:
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "digests.json"]
    digests = {name: hashlib.sha256((tmp_path / "there" / name).read_bytes()).hexdigest() for name in NAMES}
    assert json.loads((tmp_path / "out" / "digests.json").read_text()) == digests
    return equal_bits(result(tmp_path / "there"), STATE)


def test_files_are_shipped_one_by_one(tmp_path: Path) -> None:
    most = 0

    def act(name: str) -> bool:
        nonlocal most
        most = max(most, len(list((tmp_path / "out.incomplete").rglob("*.safetensors"))))
        return True

    hooks = Shipping(tmp_path / "there", act)
    go(tmp_path, hooks)
    assert hooks.told == NAMES
    assert most <= 2
    assert is_shipped(tmp_path)


@pytest.mark.parametrize("shipped", [1, 2])
def test_a_shipped_file_is_neither_missed_nor_read_nor_counted(tmp_path: Path, shipped: int) -> None:
    def act(name: str) -> bool:
        if name == NAMES[shipped]:
            raise HookError
        return True

    with pytest.raises(HookError):
        go(tmp_path, Shipping(tmp_path / "there", act))
    assert lines_with(tmp_path, "shipped") == NAMES[:shipped]
    assert not any((tmp_path / "out.incomplete" / name).exists() for name in NAMES[:shipped])
    hooks = Shipping(tmp_path / "there")
    go(tmp_path, hooks)
    assert hooks.told == NAMES[shipped:]
    assert not hooks.left[0].keys() & set(NAMES[:shipped])
    assert is_shipped(tmp_path)


@pytest.mark.parametrize("step", ["before its line", "before it is removed"])
def test_a_run_killed_while_it_ships_goes_on(tmp_path: Path, step: str) -> None:
    def working() -> None:
        real = OutputFolder.shipped

        def shipped(self: OutputFolder, name: str) -> None:
            if name == NAMES[1]:
                if step == "before it is removed":
                    Path.unlink = die  # type: ignore[method-assign]
                else:
                    die()
            real(self, name)

        OutputFolder.shipped = shipped  # type: ignore[method-assign]
        go(tmp_path, Shipping(tmp_path / "there"))

    killed_in_child(working)
    assert (tmp_path / "out.incomplete" / NAMES[1]).is_file()
    hooks = Shipping(tmp_path / "there")
    go(tmp_path, hooks)
    assert hooks.told == (NAMES[2:] if step == "before it is removed" else NAMES[1:])
    assert is_shipped(tmp_path)


def test_a_shipped_file_that_is_gone_is_written_again(tmp_path: Path) -> None:
    with pytest.raises(HookError):
        go(tmp_path, Shipping(tmp_path / "there", failing_at(NAMES[2])))
    damage(tmp_path / "there" / NAMES[0], -1)
    hooks = Shipping(tmp_path / "there")
    go(tmp_path, hooks)
    assert NAMES[0] in hooks.left[0]
    assert sorted(hooks.told) == [NAMES[0], NAMES[2]]
    assert is_shipped(tmp_path)


def failing_at(name: str) -> Callable[[str], bool]:
    def act(now: str) -> bool:
        if now == name:
            raise HookError
        return True

    return act


def test_somebodys_file_under_the_name_of_a_shipped_one_is_not_removed(tmp_path: Path) -> None:
    with pytest.raises(HookError):
        go(tmp_path, Shipping(tmp_path / "there", failing_at(NAMES[2])))
    (tmp_path / "out.incomplete" / NAMES[0]).write_text("mine")
    with pytest.raises(WriteError, match=f"{NAMES[0]} was not made by this conversion"):
        go(tmp_path, Shipping(tmp_path / "there"))
    assert (tmp_path / "out.incomplete" / NAMES[0]).read_text() == "mine"


def test_who_does_not_ship_does_not_believe_it(tmp_path: Path) -> None:
    with pytest.raises(HookError):
        go(tmp_path, Shipping(tmp_path / "there", failing_at(NAMES[2])))
    with pytest.raises(WriteError, match="no file that can have been shipped"):
        go(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        {"file": NAMES[1], "shipped": True},  # not verified
        {"file": NAMES[0], "shipped": False},
        {"file": NAMES[0], "shipped": 1},
        {"file": "../victim", "shipped": True},
        {"file": None, "shipped": True},
    ],
)
def test_a_line_of_shipping_that_no_run_wrote_is_a_message(tmp_path: Path, line: dict[str, Any]) -> None:
    with pytest.raises(HookError):
        go(tmp_path, Shipping(tmp_path / "there", failing_at(NAMES[0])))
    with (tmp_path / "out.incomplete" / ".conversion" / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps(line) + "\n")
    before = snapshot(tmp_path)
    with pytest.raises(WriteError, match=r"not a journal that this conversion wrote .*rm -r"):
        go(tmp_path, Shipping(tmp_path / "there"))
    assert snapshot(tmp_path) == before


# Disk, and what is of no use


def test_hooks_say_how_much_disk_is_needed(tmp_path: Path) -> None:
    class Huge(FileHooks):
        def disk_needed(self, left: Mapping[str, int]) -> int:
            assert list(left) == NAMES
            return 10**18

    with pytest.raises(WriteError, match=r"needs 1,000,000,000,\d{3},\d{3},\d{3} bytes of disk"):
        go(tmp_path, Huge())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("may", [True, False])
def test_hooks_say_whether_work_may_be_removed(tmp_path: Path, may: bool) -> None:
    class Keeping(FileHooks):
        def may_discard(self) -> bool:
            return may

    useless = writer.DtypeRangeError("a weight does not fit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "pwrite_all", copying.fail_after(3, useless))
        with pytest.raises(WriteError, match="does not fit"):
            go(tmp_path, Keeping())
    assert (tmp_path / "out.incomplete" / NAMES[0]).exists() != may


def test_a_run_stopped_between_files_keeps_what_was_verified(tmp_path: Path) -> None:
    assert stopped(tmp_path, 5) == tmp_path / "out.incomplete"
    hooks = Noted()
    go(tmp_path, hooks)
    assert sorted(hooks.told) == NAMES
    assert is_whole(tmp_path)
