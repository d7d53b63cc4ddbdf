"""`--threads`: weights that are quantized by several threads are those of one, bit for bit, whatever the blocks.

What is read stays in one thread and in order; so does what is written. The memory is what the plan says.
"""

import ctypes
import os
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.make_checkpoint_glm130b import RELEASED, rank_shapes
from conversion import glm130b_quantized, output_folder, thread_option, writer
from conversion.blocks import BLOCK_BYTES, blocks_under_way, copy_peak_bytes, row_blocks
from conversion.classes import expected_shapes
from conversion.glm130b import TABLE
from conversion.glm130b_quantized import plan_merging, quantized_plan
from conversion.operations import Split
from conversion.state_map import Computation, Plan, PlannedTensor, TensorSpec
from conversion.thread_option import USEFUL_THREADS, default_threads
from conversion.writer import SafetensorsShard, Task
from hf_glm_ernie import Glm130bConfig
from hf_glm_ernie.weight_only import quantize, to_storage
from tests.support.converting import convert, listing, weights, write_settings
from tests.support.copying import Memory, copied
from tests.support.quantized_tiny import WIDE
from tests.support.tiny import change_rank, equal_bits, load_rank, whole_state, write_released

SMALL_BLOCKS = 16 * 32 * 5
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture
def in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_folder, "stream", partial(writer.stream, block_bytes=SMALL_BLOCKS))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_released(tmp_path / "source", whole_state(WIDE), 4)


@pytest.fixture
def settings(tmp_path: Path) -> str:
    return write_settings(tmp_path / "config.json")


@pytest.mark.usefixtures("in_small_blocks")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_writes_the_same_bytes(
    tmp_path: Path, settings: str, bits: int, dtype: torch.dtype
) -> None:
    source = write_released(tmp_path / "source", whole_state(WIDE, dtype=dtype), 4)
    for threads in (1, 2, 7):
        output = tmp_path / f"{threads}"
        arguments = (settings, f"--bits={bits}", f"--threads={threads}", "--max-shard-size=4KB")
        assert convert(source, output, *arguments) == 0
        assert listing(output) == listing(tmp_path / "1")
        for name in listing(output):
            assert (output / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def planned(name: str, weight: torch.Tensor, bits: int = 4) -> list[PlannedTensor]:
    """The integers and the scales of a weight in a source of that name."""
    plan = quantized_plan(Plan((copied(name, weight),), {}), {name: tuple(weight.shape)}, bits)
    return list(plan.tensors)


def stream(
    path: Path, tensors: list[PlannedTensor], state: dict[str, torch.Tensor], on_bytes: Any = id, **options: Any
) -> list[str]:
    """Writes tensors into one file; the order in which they were finished."""
    shard = SafetensorsShard(path.name, tensors, {})
    shard.create(path)
    descriptor = os.open(path, os.O_WRONLY)
    finished: list[str] = []
    try:
        writer.stream(
            [Task(tensor, path.name, descriptor, shard.offsets(path)[tensor.name]) for tensor in tensors],
            Counter(used for tensor in tensors for used in writer.sources_of(tensor)),
            Memory(state),  # type: ignore[arg-type]
            on_bytes,
            lambda task, checksum: finished.append(task.tensor.name),
            **options,
        )
    finally:
        os.close(descriptor)
    return finished


def computed(state: dict[str, torch.Tensor], compute: Callable[[torch.Tensor], torch.Tensor]) -> list[PlannedTensor]:
    """Tensors of a state that are computed from themselves."""
    return [
        PlannedTensor(
            0, name, plan.spec, plan.pieces, Computation(plan.spec, lambda start, gather: partial(compute, gather()))
        )
        for name, plan in ((name, copied(name, tensor)) for name, tensor in state.items())
    ]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_so_many_blocks_are_computed_at_a_time_each_by_a_single_thread(tmp_path: Path, threads: int) -> None:
    """All meet at a barrier, so fewer would wait for ever."""
    state = {"a": torch.randn(threads * 4, 8)}
    before = torch.get_num_threads()
    barrier, seen = threading.Barrier(threads, timeout=60), []

    def compute(rows: torch.Tensor) -> torch.Tensor:
        barrier.wait()
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return rows

    tensors = computed(state, compute)
    assert len(list(row_blocks(tensors[0], 16 * 8))) == threads * 4
    assert stream(tmp_path / "a.safetensors", tensors, state, block_bytes=16 * 8, threads=threads) == ["a"]
    assert equal_bits(weights(tmp_path), state)
    assert {number for _, number in seen} == {1}
    assert len({name for name, _ in seen}) == threads
    assert torch.get_num_threads() == before


def test_reading_waits_for_writing_and_both_keep_their_order(tmp_path: Path) -> None:
    """The first block takes until no further one is read: all others wait, and are written behind it."""
    threads, state = 3, {name: torch.randn(20, 8) for name in "abc"}
    read, written, first_block = Counter[str](), [], threading.Event()
    most = blocks_under_way(threads)

    class Watched(Memory):
        def rectangles(self, *arguments: Any) -> Any:
            assert threading.current_thread() is threading.main_thread()
            assert read["blocks"] - len(written) < most
            read["blocks"] += 1
            if read["blocks"] == most:
                first_block.set()
            return super().rectangles(*arguments)

    def compute(rows: torch.Tensor) -> torch.Tensor:
        if torch.equal(rows, state["a"][:1]):
            assert first_block.wait(60)
        return rows

    tensors = [*computed({"a": state["a"]}, compute), copied("b", state["b"]), *computed({"c": state["c"]}, compute)]
    shard = SafetensorsShard("a.safetensors", tensors, {})
    shard.create(tmp_path / shard.name)
    descriptor = os.open(tmp_path / shard.name, os.O_WRONLY)
    offsets, finished = shard.offsets(tmp_path / shard.name), []
    source = Watched(state)
    writer.stream(
        [Task(tensor, "", descriptor, offsets[tensor.name]) for tensor in tensors],
        Counter(used for tensor in tensors for used in writer.sources_of(tensor)),
        source,  # type: ignore[arg-type]
        written.append,
        lambda task, checksum: finished.append(task.tensor.name),
        16 * 8,
        threads,
    )
    os.close(descriptor)
    assert finished == ["a", "b", "c"]
    assert source.forgotten == [(0, "a"), (0, "b"), (0, "c")]
    assert equal_bits(weights(tmp_path), state)


@pytest.mark.usefixtures("in_small_blocks")
def test_an_error_of_a_thread_is_the_message_and_leaves_nothing(
    tmp_path: Path, source: Path, settings: str, capsys: Any
) -> None:
    """In the middle of a weight, while other threads compute what is behind it."""
    name = "transformer.layers.1.mlp.dense_4h_to_h.weight"
    weight = load_rank(source, 2)[name]
    weight[9, 3] = float("nan")
    change_rank(source, 2, {name: weight})
    assert convert(source, tmp_path / "out", settings, "--bits=4", "--threads=5") == 1
    error = capsys.readouterr().err
    assert "error: --bits 4: model.layers.1.mlp.down_proj.weight: weight holds values that are not finite" in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("out*"))


@pytest.mark.usefixtures("in_small_blocks")
@pytest.mark.parametrize("block", [1, 20, 57])
def test_an_interruption_while_threads_compute_keeps_what_is_done(
    tmp_path: Path, source: Path, settings: str, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    arguments = (settings, "--bits=4", "--threads=4", "--max-shard-size=4KB")
    assert convert(source, tmp_path / "whole", *arguments) == 0
    real, calls = writer.computed_block, Counter[str]()

    def interrupt(*of: Any) -> Any:
        calls["blocks"] += 1
        if calls["blocks"] == block:
            raise KeyboardInterrupt
        return real(*of)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "computed_block", interrupt)
        assert convert(source, tmp_path / "out", *arguments) == 130
    assert (tmp_path / "out.incomplete").is_dir()
    assert convert(source, tmp_path / "out", *arguments) == 0
    for name in listing(tmp_path / "whole"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.usefixtures("in_small_blocks")
def test_a_source_that_changes_while_threads_compute_is_found_out(
    tmp_path: Path, source: Path, settings: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = source / "49300" / "mp_rank_03_model_states.pt"

    def change(rows: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        os.utime(path, ns=(0, 0))
        return quantize(rows, bits)

    monkeypatch.setattr(glm130b_quantized, "quantize", change)
    assert convert(source, tmp_path / "out", settings, "--bits=8", "--threads=4") == 1
    assert f"{path}: changed while it was converted" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_memory_is_what_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """The resident set while eight threads, all at a time, quantize a weight of 50 million numbers."""
    system = ctypes.CDLL(None)
    if not Path("/proc/self/statm").exists() or not hasattr(system, "malloc_trim"):
        pytest.skip("needs Linux's /proc and glibc's malloc_trim to tell new memory from memory that is used again")
    weight = torch.full((1, 4096), 0.5, dtype=dtype).expand(12288, 4096)
    tensors, barrier = planned("a", weight), threading.Barrier(8, timeout=60)
    monkeypatch.setattr(glm130b_quantized, "quantize", lambda *of: (barrier.wait(), quantize(*of))[1])
    system.malloc_trim(0)
    before, peak = resident_bytes(), [0]

    def watch(nbytes: int) -> None:
        peak[0] = max(peak[0], resident_bytes() - before)

    stream(tmp_path / "a.safetensors", tensors, {"a": weight}, watch, threads=8)
    input_of_all = 8 * 2**21 * dtype.itemsize
    assert input_of_all < peak[0] < copy_peak_bytes(tensors, threads=8) < 11 * BLOCK_BYTES
    q, scale = quantize(weight, 4)
    assert equal_bits(weights(tmp_path), {"a": to_storage(q, 4), "a_scale": scale})


def test_the_released_size_fits_with_eight_threads() -> None:
    """INT4 of 130B on paper: 1.5 GB with the 0.5 GB of Python and its libraries."""
    expected = expected_shapes("Glm130bForCausalLM", Glm130bConfig())
    parts = {name: TensorSpec(shape, torch.float16) for name, shape, _ in rank_shapes(RELEASED, 8)}
    plan, _ = plan_merging(TABLE, parts, Split(8, 96), expected, None, 4, Path("released"))
    copying, _ = plan_merging(TABLE, parts, Split(8, 96), expected, None, None, Path("released"))
    assert copy_peak_bytes(copying.tensors, threads=8) == 3 * BLOCK_BYTES
    one, eight = (copy_peak_bytes(plan.tensors, threads=threads) for threads in (1, 8))
    assert one <= 4 * BLOCK_BYTES
    assert eight <= 11 * BLOCK_BYTES < 10**9
    assert eight - 3 * BLOCK_BYTES == 8 * (one - 3 * BLOCK_BYTES)


def test_the_dry_run_says_it(tmp_path: Path, source: Path, settings: str, capsys: Any) -> None:
    def peak(*arguments: str) -> int:
        assert convert(source, tmp_path / "out", settings, "--dry-run", *arguments) == 0
        line = next(one for one in capsys.readouterr().out.splitlines() if "peak memory" in one)
        return int(line.split()[2].replace(",", ""))

    assert peak("--bits=4", "--threads=2") - peak("--bits=4", "--threads=1") == (
        peak("--bits=4", "--threads=8") - peak("--bits=4", "--threads=7")
    )
    assert peak("--bits=4", "--threads=2") > peak("--bits=4", "--threads=1")
    assert peak("--threads=1") == peak("--threads=64")  # nothing is computed
    assert peak("--bits=4") == peak("--bits=4", f"--threads={default_threads()}")


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (3, 3), (200, USEFUL_THREADS)])
def test_by_default_there_are_as_many_as_cpus_may_be_used(
    monkeypatch: pytest.MonkeyPatch, cpus: int, threads: int
) -> None:
    monkeypatch.setattr(thread_option.os, "sched_getaffinity", lambda process: set(range(cpus)), raising=False)
    assert default_threads() == threads
    monkeypatch.delattr(thread_option.os, "sched_getaffinity")
    monkeypatch.setattr(thread_option.os, "cpu_count", lambda: cpus)
    assert default_threads() == threads
    monkeypatch.setattr(thread_option.os, "cpu_count", lambda: None)
    assert default_threads() == 1


@pytest.mark.parametrize("text", ["0", "-1", "65", "100", "two", "1.5", "", "1 "])
def test_what_is_no_number_of_threads_is_refused(tmp_path: Path, capsys: Any, text: str) -> None:
    with pytest.raises(SystemExit) as caught:
        convert(tmp_path, tmp_path / "out", f"--threads={text}")
    assert caught.value.code == 2
    assert f"argument --threads: {text!r} is not a number of threads, 1 to 64" in capsys.readouterr().err
