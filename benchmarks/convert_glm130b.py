"""Measures the converter against `cp -r` of the same bytes: wall time and peak memory, both directions.

    python benchmarks/make_checkpoint_glm130b.py --output CHECKPOINT
    python benchmarks/convert_glm130b.py --checkpoint CHECKPOINT --work EMPTY_FOLDER

Every run is its own process and starts with the files evicted from the page cache and nothing waiting to be written.
Start-up (Python, torch, transformers, reading headers, planning), writing, and the verifying re-read (which first waits
for the disk) are reported apart; like `cp`, writing does not wait for the disk. Peak memory is the process's largest
resident set, mapped pages of the source included.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("start-up", "writing", "verifying")


def evict(folder: Path) -> None:
    """Drops the files of a folder from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def time_copy(source: Path, target: Path) -> float:
    """Seconds of `cp -r`, cold."""
    evict(source)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def time_conversion(source: Path, target: Path, reverse: int | None) -> dict[str, float]:
    """Seconds of each phase and peak memory in bytes of one conversion in a process of its own, cold."""
    evict(source)
    command = [sys.executable, __file__, "--child", str(source), str(target), str(reverse or 0), repr(time.time())]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(finished.stdout.splitlines()[-1])


def run_child(source: Path, target: Path, reverse: int, started: float) -> None:
    """One conversion; prints its measurements as JSON."""
    sys.path.insert(0, str(ROOT))
    from conversion.glm130b import ForwardOptions, plan_forward, plan_reverse
    from conversion.job import run
    from conversion.verify import expected_shapes, verify_file
    from hf_glm_ernie.modeling_glm130b import Glm130bForCausalLM

    expected = partial(expected_shapes, Glm130bForCausalLM)
    if reverse:
        job = plan_reverse(source, reverse, None, expected)
    else:
        settings = source / "config.json"
        job = plan_forward(source, ForwardOptions(settings=settings if settings.is_file() else None), expected)
    marks = [time.time()]

    def verify(*arguments: Any) -> str:
        if len(marks) == 1:
            marks.append(time.time())
        return verify_file(*arguments)

    run(job, target, verify, show_progress=False)
    marks.append(time.time())
    seconds = dict(zip(PHASES, (after - before for before, after in zip([started, *marks], marks, strict=False)), strict=True))
    print(json.dumps(seconds | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def report(name: str, runs: list[dict[str, float]], copies: list[float], nbytes: int) -> None:
    """Prints one direction: medians, and the ratio to `cp -r`."""
    median = {key: statistics.median(run[key] for run in runs) for key in (*PHASES, "peak")}
    copy = statistics.median(copies)
    print(f"{name} ({nbytes:,} bytes, median of {len(runs)})")
    print(f"  cp -r                {copy:6.2f} s   {nbytes / copy / 1e9:5.2f} GB/s")
    for phase in PHASES:
        print(f"  {phase:20} {median[phase]:6.2f} s   {nbytes / median[phase] / 1e9:5.2f} GB/s")
    print(f"  writing / cp -r      {median['writing'] / copy:6.2f}     limit 3")
    print(f"  peak memory          {median['peak'] / 1e9:6.2f} GB  limit 1.5")


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["--child"]:
        source, target, reverse, started = sys.argv[2:6]
        run_child(Path(source), Path(target), int(reverse), float(started))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="from make_checkpoint_glm130b.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for the results, which are removed again")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    nbytes = sum(path.stat().st_size for path in options.checkpoint.rglob("*.pt"))
    converted, back, copy = (options.work / name for name in ("converted", "back", "copy"))
    forward, reverse, copies, copies_back = [], [], [], []
    for _ in range(options.repeats):
        copies.append(time_copy(options.checkpoint, copy))
        forward.append(time_conversion(options.checkpoint, converted, None))
        copies_back.append(time_copy(converted, copy))
        reverse.append(time_conversion(converted, back, 8))
        shutil.rmtree(converted)
        shutil.rmtree(back)
    report("released -> transformers", forward, copies, nbytes)
    report("transformers -> released", reverse, copies_back, nbytes)


if __name__ == "__main__":
    main()
