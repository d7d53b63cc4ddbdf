"""Measures the conversion of an ERNIE checkpoint: wall time and peak memory of the command, both directions.

    python benchmarks/make_checkpoint_ernie.py --size base --output CHECKPOINT
    python benchmarks/convert_ernie.py --checkpoint CHECKPOINT --work EMPTY_FOLDER

Each run is the command itself in a process of its own: Python, torch and transformers started, files read, written
and verified. Peak memory is the process's largest resident set; its limit is the size of the checkpoint and 300 MB.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALLOWANCE = 300_000_000


def run(*arguments: str) -> tuple[float, int]:
    """Seconds and peak bytes of one command."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "conversion", "ernie", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"conversion ernie {' '.join(arguments)} failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="from make_checkpoint_ernie.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for the results, which are removed again")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    size = sum(path.stat().st_size for path in options.checkpoint.glob("*.pdparams"))
    there, back = options.work / "there", options.work / "back"
    runs: dict[str, list[tuple[float, int]]] = {"PaddleNLP -> transformers": [], "transformers -> PaddleNLP": []}
    options.work.mkdir(parents=True, exist_ok=True)
    for _ in range(options.repeats):
        forward, reverse = runs.values()
        forward.append(run(f"--source={options.checkpoint}", f"--output={there}"))
        reverse.append(run(f"--source={there}", f"--output={back}", "--reverse"))
        shutil.rmtree(there)
        shutil.rmtree(back)
    print(f"checkpoint of {size:,} bytes, median of {options.repeats}")
    for name, figures in runs.items():
        seconds = statistics.median(figure[0] for figure in figures)
        peak = max(figure[1] for figure in figures)
        print(f"  {name:26} {seconds:6.2f} s   peak {peak:,} bytes, limit {size + ALLOWANCE:,}")


if __name__ == "__main__":
    main()
