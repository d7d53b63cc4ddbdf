"""Measures the converter against `cp -r` of the same bytes: wall time and peak memory, both directions.

    python benchmarks/make_checkpoint_glm130b.py --output CHECKPOINT
    python benchmarks/convert_glm130b.py --checkpoint CHECKPOINT --work EMPTY_FOLDER

Every run is its own process and starts with the files evicted from the page cache and nothing waiting to be written.
Start-up (Python, torch, transformers, reading headers, planning), writing, and what is left of the verifying re-read
after the last byte was written (finished files are verified beside the writing, and waited for on the disk) are
reported apart, and writing and verifying together as the total. Peak memory is the process's largest resident set.
Shards are as many as of the released model (`--max-shard-size` changes that), because one alone overlaps with nothing.

`cp` is started from a process that has gone through the same start-up. On a virtual machine it would win otherwise:
memory that has lain free for some seconds goes back to the host, and the first to use it again pays for that, several
times what the copy itself costs.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("start-up", "writing", "verifying", "total")
RELEASED_SHARDS = 57


def evict(folder: Path) -> None:
    """Drops the files of a folder from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(what: str, source: Path, target: Path, ranks: int, shard: int) -> dict[str, float]:
    """Seconds of each phase, and peak memory in bytes, of one cold run of `what` in a process of its own."""
    evict(source)
    arguments = [what, str(source), str(target), str(ranks), str(shard), repr(time.time())]
    command = [sys.executable, __file__, "--child", *arguments]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(finished.stdout.splitlines()[-1])


def run_child(what: str, source: Path, target: Path, ranks: int, shard: int, started: float) -> None:
    """Plans a conversion, then runs it or `cp -r`; prints the measurements as JSON."""
    sys.path.insert(0, str(ROOT))
    from conversion import output_folder
    from conversion.classes import expected_shapes
    from conversion.glm130b import ForwardOptions, plan_forward, plan_reverse
    from conversion.job import run
    from conversion.verify import verify_file

    if (source / "model.safetensors.index.json").exists() or (source / "model.safetensors").exists():
        job = plan_reverse(source, ranks, None, expected_shapes)
    else:
        choices = ForwardOptions(settings=source / "config.json", max_shard_bytes=shard)
        job = plan_forward(source, choices, expected_shapes)
    evict(source)
    marks = [time.time()]

    stream = output_folder.stream

    def timed_stream(*arguments: Any, **options: Any) -> None:
        stream(*arguments, **options)
        marks.append(time.time())

    if what == "copy":
        subprocess.run(["cp", "-r", str(source), str(target)], check=True)
        marks.append(time.time())
    else:
        output_folder.stream = timed_stream
        run(job, target, verify_file, show_progress=False)
    marks.append(time.time())
    seconds = {"start-up": marks[0] - started, "writing": marks[1] - marks[0], "verifying": marks[2] - marks[1]}
    seconds["total"] = marks[2] - marks[0]
    print(json.dumps(seconds | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def report(name: str, runs: list[dict[str, float]], copies: list[dict[str, float]], nbytes: int) -> None:
    """Prints one direction: medians, and the ratio to `cp -r`."""
    median = {key: statistics.median(run[key] for run in runs) for key in (*PHASES, "peak")}
    copy = statistics.median(run["writing"] for run in copies)
    ratios = [run["writing"] / other["writing"] for run, other in zip(runs, copies, strict=True)]
    print(f"{name} ({nbytes:,} bytes, median of {len(runs)})")
    print(f"  cp -r                {copy:6.2f} s   {nbytes / copy / 1e9:5.2f} GB/s")
    for phase in PHASES:
        print(f"  {phase:20} {median[phase]:6.2f} s   {nbytes / median[phase] / 1e9:5.2f} GB/s")
    spread = f"from {min(ratios):.2f} to {max(ratios):.2f}"
    print(f"  writing / cp -r      {statistics.median(ratios):6.2f}     limit 3, {spread}")
    print(f"  peak memory          {median['peak'] / 1e9:6.2f} GB  limit 1.5")


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["--child"]:
        what, source, target, ranks, shard, started = sys.argv[2:8]
        run_child(what, Path(source), Path(target), int(ranks), int(shard), float(started))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="from make_checkpoint_glm130b.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for the results, which are removed again")
    parser.add_argument("--ranks", type=int, default=8, help="degree to convert back to")
    parser.add_argument("--max-shard-size", type=int, help="bytes; default: as many shards as of the released model")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    nbytes = sum(path.stat().st_size for path in options.checkpoint.rglob("*.pt"))
    shard = options.max_shard_size or nbytes // RELEASED_SHARDS
    runs: dict[str, list[dict[str, float]]] = {"forward": [], "copy": [], "reverse": [], "copy back": []}
    for _ in range(options.repeats):
        converted = options.work / "converted"
        for name, what, source in (
            ("copy", "copy", options.checkpoint),
            ("forward", "convert", options.checkpoint),
            ("copy back", "copy", converted),
            ("reverse", "convert", converted),
        ):
            target = converted if name == "forward" else options.work / "other"
            runs[name].append(measure(what, source, target, options.ranks, shard))
            if target != converted:
                shutil.rmtree(target)
        shutil.rmtree(converted)
    report("released -> transformers", runs["forward"], runs["copy"], nbytes)
    report("transformers -> released", runs["reverse"], runs["copy back"], nbytes)


if __name__ == "__main__":
    main()
