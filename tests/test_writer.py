"""Streaming into files, and the life of an output folder: resume, lock, full disk, damage."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from conversion import writer
from conversion.job import Job, run
from conversion.output_folder import OutputFolder
from conversion.state_map import Piece, PlannedTensor, TensorSpec
from conversion.verify import VerifyError, verify_file
from conversion.writer import (
    DtypeRangeError,
    OutputFile,
    SafetensorsShard,
    TorchArchive,
    WriteError,
    copy_peak_bytes,
    plan_shards,
)
from tests.support.copying import STATE, Memory, copied, fail_after, go, job, lines_of, result
from tests.support.tiny import equal_bits

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


# Blocks


@pytest.mark.parametrize("block_bytes", [1, 7, 64, 1000, 10**6])
def test_blocks_of_any_size_give_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Pieces across block borders, columns beside columns, vectors, other strides."""
    left, right = torch.randn(9, 4).half(), torch.randn(3, 9).half().T
    top, vector = torch.randn(5, 7).half(), torch.randn(11).half()
    pieces = (Piece(0, "left", (0, 0), (0, 0), (9, 4)), Piece(1, "right", (0, 0), (0, 4), (9, 3)))
    rows = (Piece(0, "top", (2, 1), (0, 0), (3, 4)), Piece(0, "left", (0, 0), (3, 0), (9, 4)))
    tensors = [
        PlannedTensor(0, "columns", TensorSpec((9, 7), FP16), pieces),
        PlannedTensor(0, "rows", TensorSpec((12, 4), FP16), rows),
        copied("vector", vector),
    ]
    shard = SafetensorsShard("model.safetensors", tensors, {"format": "pt"})
    path = tmp_path / "model.safetensors"
    shard.create(path)
    checksums = {}
    descriptor = os.open(path, os.O_WRONLY)
    tasks = [writer.Task(tensor, "", descriptor, shard.offsets(path)[tensor.name]) for tensor in shard.tensors]
    done: list[int] = []
    source = Memory({"left": left, "top": top, "vector": vector}, {"right": right})
    writer.stream(
        tasks,
        Counter(used for tensor in tensors for used in writer.sources_of(tensor)),
        source,
        done.append,
        lambda task, checksum: checksums.update({task.tensor.name: checksum}),
        block_bytes,
    )
    os.close(descriptor)
    expected = {"columns": torch.cat([left, right], 1), "rows": torch.cat([top[2:, 1:5], left]), "vector": vector}
    assert equal_bits(load_file(path), expected)
    assert sum(done) == sum(tensor.nbytes for tensor in expected.values())
    assert sorted(source.forgotten) == [(0, "left"), (0, "top"), (0, "vector"), (1, "right")]
    assert len(verify_file(tmp_path, shard, checksums, lambda nbytes: None)) == 64


@pytest.mark.parametrize("source", [FP16, BF16, FP32])
@pytest.mark.parametrize("target", [FP16, BF16, FP32])
def test_dtypes_are_converted_as_torch_does(tmp_path: Path, source: torch.dtype, target: torch.dtype) -> None:
    tensor = torch.cat([torch.randn(60) * 100, torch.tensor([0.0, -0.0, 6e-8, float("inf"), float("nan")])]).to(source)
    planned = [copied("a", tensor, target)]
    work = job({"a": tensor}, [SafetensorsShard("model.safetensors", planned, {})])
    go(work, tmp_path / "out")
    assert equal_bits(load_file(tmp_path / "out" / "model.safetensors"), {"a": tensor.to(target)})


@pytest.mark.parametrize("source", [BF16, FP32])
def test_a_weight_that_would_become_infinite_is_refused(tmp_path: Path, source: torch.dtype) -> None:
    tensor = torch.tensor([1.0, -1e6, float("inf")]).to(source)
    work = job({"a": tensor}, [SafetensorsShard("model.safetensors", [copied("a", tensor, FP16)], {})])
    with pytest.raises(DtypeRangeError, match=r"a: a weight of magnitude .* does not fit torch.float16 .*bfloat16"):
        go(work, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_copy_hands_pages_back_and_holds_two_blocks(tmp_path: Path) -> None:
    """The process grows by far less than the file it copies: mapped pages count as its memory."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc to measure resident memory")
    from conversion.lazy_files import TensorFiles
    from conversion.torch_files import open_torch_file

    tensor = torch.zeros(64 * 2**20, dtype=torch.uint8).view(FP16).view(2**15, -1)
    torch.save({"module": {"a": tensor}}, tmp_path / "a.pt")
    spec = copied("a", tensor)
    del tensor
    source = TensorFiles([open_torch_file(tmp_path / "a.pt", "module")[0]])
    shard = SafetensorsShard("b", [spec], {})
    shard.create(tmp_path / "b")
    descriptor = os.open(tmp_path / "b", os.O_WRONLY)
    task = writer.Task(spec, "", descriptor, shard.offsets(tmp_path / "b")["a"])
    before, peak = resident_bytes(), [0]

    def watch(nbytes: int) -> None:
        peak[0] = max(peak[0], resident_bytes() - before)

    writer.stream([task], Counter([(0, "a")]), source, watch, lambda task, checksum: None, block_bytes=2**20)
    os.close(descriptor)
    # Two buffers of 1 MiB, 1 MiB mapped, and what the system maps around it; without release() it is 64 MiB.
    assert peak[0] < 12 * 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_peak_is_bounded_by_blocks_and_by_small_models() -> None:
    small = [copied("a", torch.zeros(10, 8))]
    assert copy_peak_bytes(small) == 3 * 320
    big = [PlannedTensor(0, "a", TensorSpec((10**6, 1000), FP16), (Piece(0, "a", (0, 0), (0, 0), (10**6, 1000)),))]
    assert copy_peak_bytes(big, 10**6) == 3 * 10**6
    assert copy_peak_bytes(big, 100) == 3 * 4000  # one row


# Files


def test_shards_are_cut_by_size_and_named_as_the_host_expects() -> None:
    tensors = [copied(name, torch.zeros(rows, 1)) for name, rows in (("a", 2), ("b", 3), ("c", 9), ("d", 1))]
    shards = plan_shards(tensors, 20, {"format": "pt"})
    assert [(shard.name, [tensor.name for tensor in shard.tensors]) for shard in shards] == [
        ("model-00001-of-00003.safetensors", ["a", "b"]),
        ("model-00002-of-00003.safetensors", ["c"]),  # larger than a shard: one of its own
        ("model-00003-of-00003.safetensors", ["d"]),
    ]
    assert [shard.name for shard in plan_shards(tensors, 60, {})] == ["model.safetensors"]


def test_a_shard_is_what_the_library_reads(tmp_path: Path) -> None:
    state = {"odd": torch.randn(3).half(), "wide": torch.randn(2, 3), "b": torch.randn(5).bfloat16()}
    go(
        job(
            state, [SafetensorsShard("model.safetensors", [copied(n, t) for n, t in state.items()], {"format": "pt"})]
        ),
        tmp_path / "o",
    )
    path = tmp_path / "o" / "model.safetensors"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert equal_bits(load_file(path), state)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    entries = json.loads(path.read_bytes()[8 : 8 + header])
    assert all((8 + header + entries[n]["data_offsets"][0]) % t.itemsize == 0 for n, t in state.items())


def test_dtypes_weights_cannot_have_are_refused() -> None:
    with pytest.raises(WriteError, match=r"a is torch.int8; weights are one of float32, float16, bfloat16"):
        plan_shards([copied("a", torch.zeros(3, dtype=torch.int8))], 100, {})


@pytest.mark.parametrize("mmap", [True, False])
def test_an_archive_is_what_torch_and_zip_tools_read(tmp_path: Path, mmap: bool) -> None:
    state = {"a": torch.randn(300, 7).half(), "b": torch.randn(5), "c": torch.randn(1, 1).bfloat16()}
    planned = [copied(name, tensor) for name, tensor in state.items()]
    go(job(state, [TorchArchive("7/mp_rank_00_model_states.pt", planned, "module")]), tmp_path / "out")
    path = tmp_path / "out" / "7" / "mp_rank_00_model_states.pt"
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert list(loaded) == ["module"]
    assert list(loaded["module"]) == list(state)
    assert equal_bits(loaded["module"], state)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # the checksums are right
        assert archive.namelist()[0] == "mp_rank_00_model_states/data.pkl"
    torch.save({"module": state}, tmp_path / "plain.pt")
    assert abs(path.stat().st_size - (tmp_path / "plain.pt").stat().st_size) < 1024
    assert path.stat().st_size <= TorchArchive("x", planned, "module").size


# The folder


def test_a_folder_appears_complete_and_nothing_else_stays(tmp_path: Path) -> None:
    go(job(), tmp_path / "new" / "parents" / "out")
    assert sorted(path.name for path in (tmp_path / "new" / "parents").iterdir()) == ["out"]
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    out = tmp_path / "new" / "parents" / "out"
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "digests.json", *names]
    assert equal_bits(result(out), STATE)
    digests = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}
    assert json.loads((out / "digests.json").read_text()) == digests


def test_without_verification_there_are_no_digests(tmp_path: Path) -> None:
    go(job(), tmp_path / "out", verify=False)
    assert json.loads((tmp_path / "out" / "digests.json").read_text()) == {}
    assert equal_bits(result(tmp_path / "out"), STATE)


@pytest.mark.parametrize("existing", ["folder", "file", "dangling link"])
def test_an_existing_output_is_refused(tmp_path: Path, existing: str) -> None:
    output = tmp_path / "out"
    {"folder": output.mkdir, "file": output.touch, "dangling link": lambda: output.symlink_to("nowhere")}[existing]()
    with pytest.raises(WriteError, match=r"already exists\. Choose another --output"):
        go(job(), output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_little_disk_is_found_out_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(WriteError, match=r"needs [\d,]+ bytes of disk, 1,000 are free"):
        go(job(), tmp_path / "a" / "out")
    assert list(tmp_path.iterdir()) == []


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_at_the_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "pwrite_all", fail_after(0, FULL))
    with pytest.raises(WriteError, match=r"the disk is full .*nothing was left behind. Free some space"):
        go(job(), tmp_path / "parent" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_later_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writer, "pwrite_all", fail_after(3, FULL))
        with pytest.raises(
            WriteError, match=r"after [\d,]+ bytes of tensors; 1 of 3 files are complete and kept in .*out.incomplete"
        ):
            go(job(), tmp_path / "out")
    left = [path for path in (tmp_path / "out.incomplete").rglob("*") if path.is_file()]
    assert sorted(path.name for path in left) == [
        "config.json",
        "journal.jsonl",
        "lock",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",  # of which one tensor is written
    ]
    kept = (tmp_path / "out.incomplete" / "model-00001-of-00003.safetensors").stat()
    go(job(), tmp_path / "out")
    assert equal_bits(result(tmp_path / "out"), STATE)
    again = (tmp_path / "out" / "model-00001-of-00003.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)  # not written again


def test_a_real_full_disk(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        writer.pwrite_all(descriptor, memoryview(b"abc"), 0)
    os.close(descriptor)


@pytest.mark.parametrize("blocks", range(7))
def test_an_interrupted_run_goes_on_behind_the_last_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writer, "pwrite_all", fail_after(blocks, KeyboardInterrupt()))
        if blocks < 6:
            with pytest.raises(KeyboardInterrupt):
                go(job(), tmp_path / "out")
            assert not (tmp_path / "out").exists()
        else:
            go(job(), tmp_path / "out")
    if blocks < 6:
        written: list[str] = []
        real = writer.fill_block

        def watch(buffer: torch.Tensor, tensor: PlannedTensor, *rest: Any) -> None:
            written.append(tensor.name)
            real(buffer, tensor, *rest)

        monkeypatch.setattr(writer, "fill_block", watch)
        go(job(), tmp_path / "out")
        assert written == list(STATE)[blocks:]
    assert equal_bits(result(tmp_path / "out"), STATE)
    assert not (tmp_path / "out.incomplete").exists()


def slow_run(output: Path) -> None:
    """Runs a job so slowly that it can be killed in the middle."""
    real = writer.pwrite_all

    def write(*arguments: Any) -> None:
        time.sleep(0.3)
        real(*arguments)

    writer.pwrite_all = write
    torch.manual_seed(0)
    go(job(), output)


def start_slow_run(output: Path) -> Any:
    """A process in the middle of a slow run, which has finished its first file."""
    process = multiprocessing.get_context("fork").Process(target=slow_run, args=(output,))
    process.start()
    deadline = time.monotonic() + 30
    while not list(output.with_name(output.name + ".incomplete").glob("*.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    process = start_slow_run(tmp_path / "out")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = (tmp_path / "out.incomplete" / "model-00001-of-00003.safetensors").stat()
    go(job(), tmp_path / "out")
    assert (tmp_path / "out" / "model-00001-of-00003.safetensors").stat().st_ino == kept.st_ino
    go(job(), tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_two_runs_at_once_on_one_output(tmp_path: Path) -> None:
    process = start_slow_run(tmp_path / "out")
    with pytest.raises(WriteError, match="another conversion is writing here"):
        go(job(), tmp_path / "out")
    process.join()
    assert process.exitcode == 0  # the first was not disturbed
    assert equal_bits(result(tmp_path / "out"), STATE)


def interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, work: Job) -> Path:
    with monkeypatch.context() as patch:
        patch.setattr(writer, "pwrite_all", fail_after(blocks, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            go(work, tmp_path / "out")
    return tmp_path / "out.incomplete"


def test_work_of_another_source_or_options_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupt(tmp_path, monkeypatch, 3, job())
    before = sorted(path for path in folder.rglob("*"))
    with pytest.raises(WriteError, match=r"another source or with other options.*rm -r .*out.incomplete"):
        go(job(options={"dtype": "float32"}), tmp_path / "out")
    assert sorted(path for path in folder.rglob("*")) == before


def test_a_torn_journal_line_costs_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = interrupt(tmp_path, monkeypatch, 4, job()) / ".conversion" / "journal.jsonl"
    text = journal.read_text()
    journal.write_text(text[:-15])
    go(job(), tmp_path / "out")
    assert equal_bits(result(tmp_path / "out"), STATE)


def test_files_lost_since_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupt(tmp_path, monkeypatch, 5, job())
    shutil.rmtree(folder / ".conversion" / "partial")
    (folder / "model-00001-of-00003.safetensors").unlink()
    go(job(), tmp_path / "out")
    assert equal_bits(result(tmp_path / "out"), STATE)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_run_stopped_while_verifying_goes_on(tmp_path: Path, number: int) -> None:
    def stop(folder: Path, file: OutputFile, *rest: Any) -> str:
        if file.name.startswith(f"model-0000{number}"):
            raise KeyboardInterrupt
        return verify_file(folder, file, *rest)

    with pytest.raises(KeyboardInterrupt):
        run(job(), tmp_path / "out", stop, show_progress=False)
    verified = [line["file"][:11] for line in lines_of(tmp_path / "out.incomplete") if "sha256" in line]
    assert verified == [f"model-0000{before}" for before in range(1, number)]
    assert len(list((tmp_path / "out.incomplete").glob("*.safetensors"))) >= number
    go(job(), tmp_path / "out")
    assert equal_bits(result(tmp_path / "out"), STATE)


def test_a_run_stopped_before_a_file_moved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors written and noted, the file still among the partial ones."""
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "_finish", lambda self, name: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            go(job(), tmp_path / "out")
    go(job(), tmp_path / "out")
    assert equal_bits(result(tmp_path / "out"), STATE)


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "other names"])
def test_a_file_that_reads_back_differently_is_found_removed_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    def spoil(folder: Path, digests: Any) -> None:
        path = folder / "model-00002-of-00003.safetensors"
        data = bytearray(path.read_bytes())
        if damage == "flipped bit":
            data[-3] ^= 1
        elif damage == "cut short":
            del data[-3:]
        else:
            data = data.replace(b"layer.2", b"layer.9")
        path.write_bytes(data)

    real = verify_file

    def verify(folder: Path, file: OutputFile, *rest: Any) -> str:
        if file.name.startswith("model-00002"):
            spoil(folder, None)
        return real(folder, file, *rest)

    message = "model-00002-of-00003.*The file was removed; run the same command again"
    with pytest.raises(WriteError, match=message) as caught:
        run(job(), tmp_path / "out", verify, show_progress=False)
    if damage == "flipped bit":
        assert isinstance(caught.value.__cause__, VerifyError)
        assert "1 tensors read back differently than written, e.g. layer.3" in str(caught.value)
    left = sorted(path.name for path in (tmp_path / "out.incomplete").glob("*.safetensors"))
    assert left == ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"]
    go(job(), tmp_path / "out")
    assert equal_bits(result(tmp_path / "out"), STATE)


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    appear = tmp_path / "out"
    with pytest.raises(WriteError, match="already exists"):
        go(job(write_last=lambda folder, digests: appear.mkdir()), appear)
    assert list(appear.iterdir()) == []


def test_the_description_names_tensors_files_disk_and_memory() -> None:
    text = job().describe()
    assert "6, 1,200 bytes; the largest 240 bytes" in text
    assert "3: model-00001-of-00003.safetensors, model-00002-of-00003.safetensors ..." in text
    assert "peak memory  960 bytes" in text  # two of the largest, and its source, which may be fp32
