"""Measures conversions by two checkouts of this repository in turn: seconds of each phase, and peak memory.

    git worktree add ../before some-commit
    python benchmarks/convert_compared.py --before ../before --work EMPTY_FOLDER glm130b --source CHECKPOINT
    python benchmarks/convert_compared.py --before ../before --work EMPTY_FOLDER ernie3 --source FOLDER --reverse

The arguments behind the command are the command's own. Every run is a process of its own; the two checkouts alternate,
and which of them goes first does, too: only ratios within one run mean anything on a machine that others use. `--cold`
evicts the source from the page cache before each run. Processor time is of the phase of writing: of the thread that
reads and rearranges alone, and together with the one that computes checksums and writes.
"""

import argparse
import itertools
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

FIGURES = (
    "planning, s",
    "writing, s",
    "verifying, s",
    "processor: reading, s",
    "processor: both threads, s",
    "peak memory, MB",
)


def evict(folder: Path) -> None:
    """Drops the files of a folder from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def run_child(tree: str, arguments: list[str]) -> None:
    """Runs a command of the checkout `tree` and prints what it took as JSON."""
    sys.path.insert(0, tree)
    from conversion import __main__ as command
    from conversion.verify import verify_file

    assert command.__file__.startswith(tree)
    marks: list[tuple[float, float, float]] = []
    real = command.run

    def mark() -> None:
        marks.append((time.perf_counter(), time.thread_time(), time.process_time()))

    def verify(*verified: Any) -> str:
        if len(marks) == 2:
            mark()
        return verify_file(*verified)

    def run(job: Any, output: Path, *rest: Any, **options: Any) -> None:  # without reference outputs
        mark()
        real(job, output, verify, show_progress=False)
        mark()

    command.run = run  # type: ignore[assignment]
    mark()
    status = command.main(arguments)
    seconds = [after[0] - before[0] for before, after in itertools.pairwise(marks)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    processor = [marks[2][clock] - marks[1][clock] for clock in (1, 2)]
    print(json.dumps([*seconds, *processor, peak]))
    sys.exit(status)


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--work", type=Path, required=True, help="folder for the results, which are removed again")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="evict the source from the page cache before each run")
    options, command = parser.parse_known_args()
    source = Path(command[command.index("--source") + 1])
    trees = {"before": options.before.resolve(), "now": Path(__file__).resolve().parents[1]}
    runs: dict[str, list[list[float]]] = {name: [] for name in trees}
    options.work.mkdir(parents=True, exist_ok=True)
    for repeat in range(options.repeats):
        for name in list(trees)[:: -1 if repeat % 2 else 1]:
            output = options.work / name
            if options.cold:
                evict(source)
            finished = subprocess.run(
                [sys.executable, __file__, "--child", str(trees[name]), *command, "--output", str(output)],
                check=True,
                capture_output=True,
                text=True,
                cwd=trees[name],
            )
            runs[name].append(json.loads(finished.stdout.splitlines()[-1]))
            shutil.rmtree(output)
    print(f"{' '.join(command)}: median of {options.repeats}{', cold' if options.cold else ''}")
    for number, figure in enumerate(FIGURES):
        before, now = ([run[number] for run in runs[name]] for name in trees)
        ratios = sorted(after / max(earlier, 1e-9) for earlier, after in zip(before, now, strict=True))
        print(
            f"  {figure:26} before {statistics.median(before):8.2f}   now {statistics.median(now):8.2f}   ratio "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
