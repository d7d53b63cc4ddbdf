"""`--consume`: the source goes as the output is verified, nothing else does, and what is gone is never read."""

import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion import consume, consume_command, publication
from conversion.__main__ import main
from conversion.consume_file import ChangedPartError, ConsumableFile, ConsumableFiles, ConsumedError
from conversion.consume_open import open_to_consume
from conversion.consume_state import MARK
from conversion.journal import STATE
from conversion.operations import CheckpointError
from tests.support.consuming import (
    SHARD,
    SIZES,
    Original,
    consume_small_weights,
    count_calls,
    counted,
    original,
    refusing,
    stop_after,
    without_sync,
)
from tests.support.converting import convert
from tests.support.forked import die, in_child
from tests.support.tiny import rank_path, whole_state, write_released


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    consume_small_weights(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # when it comes is looked at below


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """An archive in five parts, converted to nine files."""
    with pytest.MonkeyPatch.context() as patch:
        consume_small_weights(patch)
        return original(tmp_path_factory.mktemp("parts"), True, SHARD)


# What it makes


@pytest.mark.parametrize(
    ("in_parts", "part_bytes", "options"),
    [
        (True, 20_011, (SHARD,)),
        (True, 10**9, (SHARD,)),
        (False, 0, (SHARD, "--dtype=float32")),
        (True, 300_000, (SHARD, "--dtype=bfloat16", "--bits=8")),
    ],
    ids=["many parts", "joined", "unpacked", "quantized"],
)
def test_the_same_bytes_and_nothing_left(
    tmp_path: Path, in_parts: bool, part_bytes: int, options: tuple[str, ...]
) -> None:
    made = original(tmp_path / "original", in_parts, *options, part_bytes=part_bytes)
    source, output = made.write(tmp_path / "source"), tmp_path / "made" / "out"
    assert made.run(source, output) == 0
    assert made.is_done(source, output)


def test_without_holes_parts_go_whole(
    parts: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    assert parts.run(source, output, "--dry-run") == 0
    with_holes = needed(capsys.readouterr().out)
    monkeypatch.setattr(consume, "can_punch", lambda folder: False)
    assert parts.run(source, output) == 0
    said = capsys.readouterr().out
    assert "this file system has no holes, so files go whole, and late" in said
    assert needed(said) > with_holes
    assert parts.is_done(source, output)


def needed(said: str) -> int:
    """Bytes that the plan says are needed."""
    (line,) = [line for line in said.splitlines() if "with --consume, beside" in line]
    return int(line.split()[2].replace(",", ""))


def test_the_plan_is_printed_and_nothing_is_done(
    parts: Original, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = parts.write(tmp_path / "source")
    assert parts.run(source, tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"deletes 5 files in {source}: glm-130b-sat.tar.part_00, " in said
    assert 0 < needed(said) < sum(map(len, parts.contents.values()))
    assert sorted(os.listdir(tmp_path)) == ["source"]
    assert {path.name: path.read_bytes() for path in source.iterdir()} == parts.contents | parts.rest


# Going on


def test_another_run_cannot_use_what_is_left(
    parts: Original, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    output.parent.mkdir()
    stop_after(parts, source, output, 3)
    assert (source / MARK).is_file()
    for command in (
        lambda: convert(source, output, parts.settings, SHARD),
        lambda: convert(source, tmp_path / "other", parts.settings, SHARD),
        lambda: parts.run(source, tmp_path / "other"),
        lambda: parts.run(source / "glm-130b-sat.tar.part_04", tmp_path / "other"),
    ):
        assert command() == 1
        said = capsys.readouterr().err
        again = (
            f"{output}.incomplete: begun with --consume" in said and "Run the same command again, with --con" in said
        )
        assert again or f"with --consume, and --output {output}." in said
    assert parts.run(source, output, "--dtype=float32") == 1
    said = capsys.readouterr().err
    assert "begun from another source, with other options" in said
    assert "holds the only copy" in said
    assert parts.run(source / "glm-130b-sat.tar.part_00", output) == 0  # named otherwise, and moved elsewhere below
    assert parts.is_done(source, output)
    assert parts.run(source, output) == 1
    assert f"{output}: already exists" in capsys.readouterr().err


def test_a_source_that_was_moved(parts: Original, tmp_path: Path) -> None:
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    output.parent.mkdir()
    stop_after(parts, source, output, 4)
    moved = source.rename(tmp_path / "elsewhere")
    assert parts.run(moved, output) == 0
    assert parts.is_done(moved, output)


def test_a_run_begun_without_it_goes_on_with_it(parts: Original, tmp_path: Path) -> None:
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    output.parent.mkdir()

    def working() -> int:
        return convert(source, output, parts.settings, SHARD)

    calls = count_calls(without_sync(lambda: convert(source, tmp_path / "whole", parts.settings, SHARD)))
    assert refusing(without_sync(working), calls // 2) == 1
    assert list((output.parent / "out.incomplete").glob("*.safetensors"))
    assert parts.run(source, output) == 0
    assert parts.is_done(source, output)


def test_killed_just_before_it_has_its_name(
    parts: Original, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is there but the name, and nothing is left of the source or the state to plan it from."""
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    output.parent.mkdir()

    def working() -> int:
        real = publication.rename_new

        def rename_new(before: Path, after: Path) -> None:
            if after == output:
                die()
            real(before, after)

        publication.rename_new = rename_new
        return parts.run(source, output)

    assert in_child(working) is None
    (finished,) = output.parent.iterdir()
    assert not (finished / STATE).exists()
    assert convert(source, output, parts.settings, SHARD) == 1
    assert parts.run(tmp_path / "another", output, "--dry-run") == 1
    capsys.readouterr()
    assert parts.run(source, output) == 0
    assert capsys.readouterr().out == f"done: {output}\n"
    assert parts.is_done(source, output)


def test_a_verified_file_that_is_damaged_later(
    parts: Original, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tensors and the parts are named; those parts, there again, are enough."""
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    output.parent.mkdir()
    stop_after(parts, source, output, 5)
    made = output.with_name("out.incomplete")
    damaged = made / "model-00002-of-00009.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1  # in a weight; what is small was kept
    damaged.write_bytes(content)
    assert parts.run(source, output) == 1
    said = capsys.readouterr().err
    assert "1 tensors are not there, or were damaged after they had been verified, and their source is gone:" in said
    wanted = [name for name in parts.contents if f" {name}" in said.rpartition("into")[2]]
    assert 0 < len(wanted) < len(parts.contents)
    for name in wanted:
        (source / name).write_bytes(parts.contents[name])
    assert parts.run(source, output) == 0
    assert parts.is_done(source, output)


def test_a_part_that_is_missing_before_its_turn(
    parts: Original, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    output.parent.mkdir()
    stop_after(parts, source, output, 2)
    away = (source / "glm-130b-sat.tar.part_02").rename(tmp_path / "away")
    assert parts.run(source, output) == 1
    assert f"into {source}: glm-130b-sat.tar.part_02. Then run" in capsys.readouterr().err
    shutil.copyfile(away, source / "glm-130b-sat.tar.part_02")  # holes are zeros now
    assert parts.run(source, output) == 1
    assert "glm-130b-sat.tar.part_02: changed while it was consumed: its content is another" in capsys.readouterr().err
    (source / "glm-130b-sat.tar.part_02").write_bytes(parts.contents["glm-130b-sat.tar.part_02"])
    assert parts.run(source, output) == 0
    assert parts.is_done(source, output)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path, content: path.write_bytes(content[:-1]), "bytes and has"),
        (lambda path, content: path.write_bytes(content[:48_100] + b"\1" + content[48_101:]), "its bytes at 47,"),
    ],
    ids=["shorter", "another header"],
)
def test_a_part_that_is_another(
    parts: Original, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object, said: str
) -> None:
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    output.parent.mkdir()
    stop_after(parts, source, output, 2)
    name = "glm-130b-sat.tar.part_03"  # nothing of it is released
    change(source / name, parts.contents[name])  # type: ignore[operator]  # a function
    assert parts.run(source, output) == 1
    assert f"{name}: changed while it was consumed: " in (err := capsys.readouterr().err)
    assert said in err
    (source / name).write_bytes(parts.contents[name])
    assert parts.run(source, output) == 0
    assert f"note: {source / name} was written to or replaced; its headers" in capsys.readouterr().out
    assert parts.is_done(source, output)


def test_what_was_kept_is_damaged(parts: Original, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    output.parent.mkdir()
    stop_after(parts, source, output, 2)
    skeleton = output.with_name("out.incomplete") / STATE / "consumed" / "skeleton"
    content = bytearray(skeleton.read_bytes())
    content[len(content) // 2] ^= 1
    skeleton.write_bytes(content)
    assert parts.run(source, output) == 1
    assert "skeleton: damaged (its checksum is another)" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(3))
def test_power_is_lost(parts: Original, tmp_path: Path, seed: int) -> None:
    """Lines that were not yet said to be on the disk are lost, or half of one, or there is something else instead."""
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    output.parent.mkdir()
    stop_after(parts, source, output, 3 + seed)
    choice = random.Random(seed)
    state = output.with_name("out.incomplete") / STATE
    for path, durable in (
        (state / "journal.jsonl", '"sha256"'),
        (state / "consumed" / "released.jsonl", '"verified"'),
    ):
        lines = path.read_text().splitlines(keepends=True)
        last = max(number for number, line in enumerate(lines) if durable in line)
        behind = "".join(lines[last + 1 :])
        path.write_text("".join(lines[: last + 1]) + behind[: choice.randrange(len(behind) + 1)] + '{"half')
    assert not parts.lost(source, output)
    assert parts.run(source, output) == 0
    assert parts.is_done(source, output)


@pytest.mark.parametrize("seed", range(3))
def test_the_disk_is_full(parts: Original, tmp_path: Path, seed: int) -> None:
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    output.parent.mkdir()
    first = parts.write(tmp_path / "first")
    calls = count_calls(without_sync(lambda: parts.run(first, tmp_path / "whole")))
    call = random.Random(seed).randrange(calls // 4, calls - 20)
    assert refusing(without_sync(lambda: parts.run(source, output)), call) == 1
    assert not parts.lost(source, output)
    assert parts.run(source, output) == 0
    assert parts.is_done(source, output)


def test_a_part_is_written_to_meanwhile(
    parts: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    output.parent.mkdir()
    real, name = consume.Consumption.verified, "glm-130b-sat.tar.part_00"

    def verified(self: consume.Consumption, path: Path, *more: object) -> bool:
        if path.name.startswith("model-00004"):
            os.utime(source / name)
        return real(self, path, *more)  # type: ignore[arg-type]  # as they came

    with monkeypatch.context() as patch:
        patch.setattr(consume.Consumption, "verified", verified)
        assert parts.run(source, output) == 1
    assert f"{name}: changed while it was consumed: it was written to. What was verified is kept" in (
        capsys.readouterr().err
    )
    assert (output.with_name("out.incomplete") / "model-00001-of-00009.safetensors").is_file()
    assert not parts.lost(source, output)
    assert parts.run(source, output) == 0  # its headers and samples are the same
    assert parts.is_done(source, output)


def test_two_runs_do_not_share_a_source(
    parts: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = parts.write(tmp_path / "source")
    real, told = consume.Consumption.before_writing, []

    def second(self: consume.Consumption, left: list[object]) -> None:
        monkeypatch.setattr(consume.Consumption, "before_writing", real)
        told.append(parts.run(source, tmp_path / "second"))
        real(self, left)  # type: ignore[arg-type]  # as it came

    monkeypatch.setattr(consume.Consumption, "before_writing", second)
    assert parts.run(source, tmp_path / "made") == 0
    assert told == [1]
    assert f"{source}: another conversion consumes the files in there" in capsys.readouterr().err


# What it asks, and what it refuses


@pytest.mark.parametrize(("answer", "status"), [("yes", 0), ("y", 1), ("", 1), (None, 1)])
def test_it_asks(
    parts: Original,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str | None,
    status: int,
) -> None:
    source, output = parts.write(tmp_path / "source"), tmp_path / "out"
    asked = []

    def ask(question: str) -> str:
        asked.append(question)
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(consume_command.sys, "stdin", open_terminal())
    assert convert(source, output, parts.settings, SHARD, "--consume") == status
    assert f"--consume deletes 5 files in {source}: glm-130b-sat.tar.part_00" in asked[0]
    assert output.exists() == (status == 0)
    if status:
        assert "nothing was deleted" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in source.iterdir()} == parts.contents | parts.rest


def open_terminal() -> object:
    """Something that says it is a terminal."""

    class Terminal:
        def isatty(self) -> bool:
            return True

    return Terminal()


def test_without_a_terminal_it_must_be_said(
    parts: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = parts.write(tmp_path / "source")
    monkeypatch.setattr(consume_command.sys, "stdin", io.StringIO("yes\n"))
    assert convert(source, tmp_path / "out", parts.settings, SHARD, "--consume") == 1
    assert "There is no terminal to ask on: add --yes" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["source"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["glm130b", "--consume", "--no-verify"], "deletes what was verified, so it does not go with --no-verify"),
        (["glm130b", "--consume", "--reverse", "--tensor-parallel=2"], "--reverse writes all ranks together"),
        (["glm130b", "--yes"], "--yes goes with --consume"),
        (["ernie", "--consume"], "--consume is for glm130b, whose source takes 257 GB"),
        (["ernie3", "--consume"], "--consume is for glm130b, whose source takes 257 GB"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, f"--source={tmp_path}", f"--output={tmp_path / 'out'}"])
    assert said in capsys.readouterr().err


def test_a_source_that_is_not_local(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--consume deletes files of this machine"):
        open_to_consume(ConsumableFiles({}).at(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("kind", ["symbolic link", "hard links"])
def test_links(parts: Original, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    source = parts.write(tmp_path / "source")
    path = source / "glm-130b-sat.tar.part_02"
    path.rename(tmp_path / "elsewhere")
    (path.symlink_to if kind == "symbolic link" else path.hardlink_to)(tmp_path / "elsewhere")
    assert parts.run(source, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "part_02: " in said
    assert kind in said
    assert (tmp_path / "elsewhere").read_bytes() == parts.contents[path.name]


def test_what_may_not_be_written_to(
    parts: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = parts.write(tmp_path / "source")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "source" and real(path, mode))
    assert parts.run(source, tmp_path / "out") == 1
    assert f"{source}: --consume deletes the source, and this may not be written to" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "option"), [(1e5, "--dtype=float16"), (float("nan"), "--bits=4")])
def test_numbers_that_would_end_it_half_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, option: str
) -> None:
    """In the last tensor that is made, of a source of which most would be gone by then."""
    whole = whole_state(SIZES, dtype=torch.float32)
    whole["transformer.layers.1.mlp.dense_h_to_4h.weight"][-1, -1] = value
    source = write_released(tmp_path / "source", whole, 2)
    before = rank_path(source, 1).read_bytes()
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(SIZES.settings))
    arguments = (f"--config={settings}", SHARD, option, "--consume", "--yes")
    assert convert(source, tmp_path / "out", *arguments) == 1
    assert "Nothing was deleted" in capsys.readouterr().err
    assert rank_path(source, 1).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["settings.json", "source"]


def test_what_is_gone_is_never_read(tmp_path: Path) -> None:
    """Where it was released the file reads as zeros."""
    content = random.Random(0).randbytes(5 * 4096)
    path = tmp_path / "part"
    path.write_bytes(content)
    file = ConsumableFile.of(path)
    file.release([(4000, 12_400)])
    assert path.read_bytes() == content[:4096] + bytes(8192) + content[12_288:]
    assert file.look() == file.state
    assert file.read_bytes(0, 4000) + file.read_bytes(12_400, 8080) == content[:4000] + content[12_400:]
    assert [file.available(offset, 100) for offset in (3950, 4000, 12_399, 12_400)] == [50, 0, 0, 100]
    for offset, nbytes in ((0, 4001), (8000, 1), (12_399, 500)):
        with pytest.raises(ConsumedError, match="part: bytes of it are needed that --consume has deleted"):
            file.read_bytes(offset, nbytes)
    with file.open() as opened:  # what is read ahead stops before it
        assert opened.read(3000) == content[:3000]
    os.utime(path, ns=(5, 5))
    with pytest.raises(ChangedPartError, match="it was written to"):
        file.release([(12_400, 20_000)])
    with pytest.raises(ChangedPartError, match="it was written to"):
        file.delete()
    assert path.read_bytes()[12_288:] == content[12_288:]


# In which order


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux, which tells the path of a descriptor")
def test_everything_is_on_the_disk_before_anything_goes(parts: Original, tmp_path: Path) -> None:
    """Whenever something goes: the verified files and their names, the journal's and the log's lines, what is kept."""
    source, output = parts.write(tmp_path / "source"), tmp_path / "made" / "out"
    made = Path(f"{output}.incomplete")
    journal, log = made / STATE / "journal.jsonl", made / STATE / "consumed" / "released.jsonl"
    written: dict[str, bytes] = {str(journal): b"", str(log): b""}
    durable = dict(written)
    dirty: set[str] = set()  # files and folders with something that may not be on the disk
    flushed: set[str] = set()
    gone: list[str] = []

    def check() -> None:
        lines = [json.loads(line) for line in written[str(log)].splitlines()]
        noted = [json.loads(line) for line in durable[str(journal)].splitlines()]
        verified = {line["verified"] for line in lines if "verified" in line}
        assert verified
        assert verified <= {json.loads(line).get("verified") for line in durable[str(log)].splitlines()}
        assert verified <= {line["file"] for line in noted if "sha256" in line}
        assert not [name for name in verified if str(made / name) in dirty]
        assert not {str(log.with_name("skeleton")), str(log.parent)} & dirty
        assert not [name for name in verified if (str(made), name) in names]

    names: set[tuple[str, str]] = set()  # (folder, name) that may not be on the disk

    def at(number: int, name: str, does: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        path = name_of(arguments[0]) if arguments else ""
        if name == "punch" or (name == "unlink" and path.startswith(str(source / "glm"))):
            gone.append(path)
            check()
        result = does()
        if name == "fsync":
            flushed.add(path)
            dirty.discard(path)
            names.difference_update({one for one in names if one[0] == path})
            durable[path] = written.get(path, b"")
        elif name in ("write", "pwrite"):
            dirty.add(path)
            if path in written:
                written[path] += bytes(arguments[1])
        elif name in ("rename", "replace", "renameat2"):
            before, after = map(name_of, arguments[:2])
            assert not before.endswith("skeleton.new") or before in flushed
            dirty.update({after} if before in dirty else set())
            dirty.discard(before)
            names.add((os.path.dirname(after), os.path.basename(after)))
        return result

    with counted(at):
        assert parts.run(source, output) == 0
    assert set(gone) == {str(source / name) for name in parts.contents}


def name_of(argument: Any) -> str:
    """The path of an argument, which may be a descriptor."""
    if isinstance(argument, int):
        return os.readlink(f"/proc/self/fd/{argument}")
    return os.fsdecode(argument)
