"""Measures ways to convert one GLM-130B checkpoint in turn: by one thread and by all, from a folder and from parts.

    python benchmarks/make_checkpoint_glm130b.py --output CHECKPOINT --archive PARTS --part-bytes 300000000
    python benchmarks/convert_glm130b_ways.py --checkpoint CHECKPOINT --work EMPTY_FOLDER --bits 4 --before ../before
    python benchmarks/convert_glm130b_ways.py --checkpoint CHECKPOINT --work EMPTY_FOLDER --parts PARTS

Every run is a process of its own, without verification, and starts with the files evicted from the page cache (in
/dev/shm they stay). The ways alternate, and which of them goes first does, too: only ratios within one run mean
anything on a machine that others use. Seconds are of the phase of writing; so is processor time, of all threads
together and of the one that reads.

Beside `--bits` stands what bounds it, measured in the same minutes by one thread each: reading the source's bytes,
quantizing its weights in blocks as the converter's, checksums and writing of the result. No order of the work takes
less than the slowest of these, nor than their sum over the processors.
"""

import argparse
import inspect
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LINEARS = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


def evict(folder: Path) -> None:
    """Drops the files of a folder from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def run_child(tree: str, source: Path, target: Path, settings: Path, bits: int | None, threads: int) -> None:
    """Converts with the checkout `tree`; prints seconds, processor seconds of all threads and of the one that reads,
    peak bytes and bytes written as JSON.
    """
    sys.path.insert(0, tree)
    from conversion import job as jobs
    from conversion import output_folder
    from conversion.classes import expected_shapes
    from conversion.glm130b import ForwardOptions, plan_forward

    assert jobs.__file__.startswith(tree)
    real = output_folder.stream
    measured: list[float] = []

    def stream(*arguments: Any, **options: Any) -> None:
        clocks = (time.perf_counter, time.process_time, time.thread_time)
        started = [clock() for clock in clocks]
        real(*arguments, **options)
        measured.extend(clock() - before for clock, before in zip(clocks, started, strict=True))

    output_folder.stream = stream  # type: ignore[assignment]
    job = plan_forward(source, ForwardOptions(settings=settings, bits=bits), expected_shapes)
    run = jobs.run
    if "threads" in inspect.signature(run).parameters:  # a checkout from before may know none
        run = partial(run, threads=threads)
    evict(source)
    run(job, target, None, show_progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([*measured, peak, job.nbytes]))


def run_limits(source: Path, work: Path, bits: int) -> None:
    """Prints seconds of one thread each for reading, quantizing, checksums and writing, then processor seconds of the
    same, then the number of weights, as JSON.
    """
    sys.path.insert(0, str(ROOT))
    import torch

    from conversion.blocks import BLOCK_BYTES, COMPUTING_COPIES
    from conversion.torch_files import open_torch_file
    from hf_glm_ernie.weight_only import quantize, to_storage

    torch.set_num_threads(1)
    paths = sorted(source.rglob("*.pt"))
    weights, others = 0, 0
    for path in paths:
        for name, stored in open_torch_file(path, "module")[0].tensors.items():
            elements = stored.spec.nbytes // stored.spec.dtype.itemsize
            weights += elements if name.endswith(LINEARS) else 0
            others += 0 if name.endswith(LINEARS) else stored.spec.nbytes
    evict(source)
    buffer = bytearray(BLOCK_BYTES)
    marks = [(time.perf_counter(), time.process_time())]
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    marks.append((time.perf_counter(), time.process_time()))
    block = torch.randn(BLOCK_BYTES // (COMPUTING_COPIES * 4 * 2048), 2048).mul_(0.02).half()
    for _ in range(weights // block.numel()):
        to_storage(quantize(block, bits)[0], bits)
    marks.append((time.perf_counter(), time.process_time()))
    nbytes = others + weights * bits // 8
    with (work / "written").open("wb", buffering=0) as file:
        for start in range(0, nbytes, BLOCK_BYTES):
            view = memoryview(buffer)[: nbytes - start]
            zlib.crc32(view)
            file.write(view)
    marks.append((time.perf_counter(), time.process_time()))
    (work / "written").unlink()
    took = [after[clock] - before[clock] for clock in (0, 1) for before, after in itertools.pairwise(marks)]
    print(json.dumps([*took, weights]))


def child(*arguments: object) -> list[float]:
    """What a child of this program prints at its end."""
    command = [sys.executable, __file__, *map(str, arguments)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(finished.stdout.splitlines()[-1])


def ways_of(options: argparse.Namespace) -> dict[str, tuple[Path, Path, int]]:
    """Name -> checkout, source and threads; the first is what the others are held against."""
    if options.parts:
        return {"extracted": (ROOT, options.checkpoint, CPUS), "parts": (ROOT, options.parts, CPUS)}
    ways = {"one thread": (ROOT, options.checkpoint, 1), f"{CPUS} threads": (ROOT, options.checkpoint, CPUS)}
    return ({"before": (options.before.resolve(), options.checkpoint, 1)} if options.before else {}) | ways


def report(runs: dict[str, list[list[float]]], limits: list[list[float]], nbytes: int) -> None:
    """Prints medians, ratios and what bounds them."""
    first = next(iter(runs))
    for name, measured in runs.items():
        seconds, processor, reading, peak, written = (
            statistics.median(column) for column in zip(*measured, strict=True)
        )
        ratios = sorted(one[0] / other[0] for one, other in zip(runs[first], measured, strict=True))
        line = f"  {name:12} {seconds:6.2f} s  {nbytes / seconds / 1e9:5.2f} GB/s  processor {processor:5.2f} s, of "
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
        line += f"the reading thread {reading:.2f} s  "
        print(f"{line}peak {peak / 1e9:.2f} GB  {written / 1e9:.2f} GB written  speed / {first} {spread}")
    if limits:
        *took, weights = (statistics.median(column) for column in zip(*limits, strict=True))
        for what, (reading, quantizing, writing) in (("seconds", took[:3]), ("processor", took[3:])):
            least = max(reading, writing, quantizing / CPUS, (reading + quantizing + writing) / CPUS)
            rate = f"{weights / quantizing / 1e6:.0f} million weights/s"
            print(
                f"  limit, {what}: reading {reading:.2f}, quantizing {quantizing:.2f} ({rate}), writing {writing:.2f}"
            )
            print(f"    so on {CPUS} processors at least {least:.2f}")


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["--convert"]:
        source, target, settings = map(Path, sys.argv[3:6])
        run_child(sys.argv[2], source, target, settings, int(sys.argv[6]) or None, int(sys.argv[7]))
        return
    if sys.argv[1:2] == ["--limits"]:
        run_limits(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="from make_checkpoint_glm130b.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for the results, which are removed again")
    parser.add_argument("--parts", type=Path, help="the same as an archive in parts: measure it beside the folder")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantize; without --parts: by one thread and by all")
    parser.add_argument("--before", type=Path, help="another checkout, measured too; not with --parts")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    ways = ways_of(options)
    runs: dict[str, list[list[float]]] = {name: [] for name in ways}
    limits: list[list[float]] = []
    target = options.work / "converted"
    for repeat in range(options.repeats):
        for name in list(ways)[:: -1 if repeat % 2 else 1]:
            tree, place, threads = ways[name]
            told = options.checkpoint / "config.json"
            runs[name].append(child("--convert", tree, place, target, told, options.bits or 0, threads))
            shutil.rmtree(target)
        if options.bits and not options.parts:
            limits.append(child("--limits", options.checkpoint, options.work, options.bits))
    nbytes = sum(path.stat().st_size for path in options.checkpoint.rglob("*.pt"))
    kind = f"--bits {options.bits}" if options.bits else "copied"
    print(f"{kind}, {nbytes:,} bytes, median of {options.repeats}")
    report(runs, limits, nbytes)


if __name__ == "__main__":
    main()
