"""Everything there is to know of a GPU in one call of ten minutes: are the kernels right, and how fast is GLM-130B?

    python benchmarks/gpu.py [--seconds 540] [--output gpu-results] [--parts machine kernels ..] [--dry]

Parts, in the order of their worth:

- `machine`: what it is, and the bandwidth of reading and copying measured on it;
- `kernels`: every kernel against fp64, the fp16 values bit for bit, results that repeat, `torch.compile`, graphs;
- `whole`: the 130B in INT4 with random weights (67 GB; as many layers as fit on a smaller GPU): tokens/s against the
  memory's limit with a static, compiled cache and without, prefill, batches, launches, waits;
- `speed`: GLM-130B's linears at 1 to 512 rows beside cuBLAS, torch's kernels and bitsandbytes';
- `layer`: one layer of full width;
- `planner`: what the planner says of this card.

Each part runs in a process of its own: one that fails, or hangs, or breaks the device's context, is reported in its
place and the others go on. Rows are written as they come; `results.json` and `results.md` are whole after each part.
`--dry` runs the same code on the CPU at small sizes, the kernels in Triton's interpreter.
"""

import argparse
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_report import Notes, Part, read_part, summary, write  # noqa: E402

SHARES = {"machine": 0.04, "kernels": 0.24, "whole": 0.44, "speed": 0.18, "layer": 0.06, "planner": 0.04}
"""Part -> its share of the time; what a part leaves goes to those behind it."""

START_SECONDS = 30
"""Beside its share, for a process to import everything and to open the device."""


def run_part(name: str, path: Path, seconds: float, dry: bool) -> None:
    """Runs one part in this process."""
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    import gpu_kernels
    import gpu_machine
    import gpu_model

    runners = {
        "machine": gpu_machine.machine,
        "kernels": gpu_kernels.kernels,
        "speed": gpu_kernels.speed,
        "layer": gpu_model.layer,
        "whole": gpu_model.whole,
        "planner": gpu_model.planner,
    }
    notes = Notes(path, time.monotonic() + seconds)
    runners[name](notes, gpu_machine.Machine.here(dry))


def child(name: str, path: Path, seconds: float, dry: bool) -> list[str]:
    """The command that runs one part and writes its rows to a file."""
    command = [sys.executable, __file__, "--only", name, "--seconds", str(seconds), "--output", str(path)]
    return command + ["--dry"] * dry


def run_apart(name: str, folder: Path, command: list[str], path: Path, seconds: float) -> Part:
    """Runs one part in a process of its own, and ends it when it does not end by itself in so many seconds."""
    said = folder / f"{name}.log"
    started, status, note = time.monotonic(), "ok", ""
    path.unlink(missing_ok=True)
    with said.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status, note = "stopped", f"ended after {seconds:.0f} s"
        else:
            if code:
                lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it says nothing"]
                status, note = "failed", f"status {code}: {lines[-1][:300]} ({said})"
    part = read_part(name, path)
    path.unlink(missing_ok=True)
    part.seconds = time.monotonic() - started
    if status == "ok" and part.note:
        status = "stopped" if part.rows else "skipped"
    part.status, part.note = status, "; ".join(filter(None, (note, part.note)))
    return part


def title() -> str:
    """The machine in one line, without opening the device."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        return found.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "no NVIDIA GPU"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything")
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), help="folder for the results")
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--dry", action="store_true", help="small sizes on the CPU, to see that it runs")
    parser.add_argument("--only", choices=SHARES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        try:
            run_part(options.only, options.output, options.seconds, options.dry)
        except Exception as error:  # noqa: BLE001  # the last line is what the parent reports
            traceback.print_exc()
            print(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            return 1
        return 0
    name = title() + (", dry form on the CPU" if options.dry else "")
    options.output.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + options.seconds
    parts: list[Part] = []
    for number, part in enumerate(options.parts):
        left = ends - time.monotonic()
        if left < 1:
            parts.append(Part(part, "skipped", "out of time"))
        else:
            share = SHARES[part] / sum(SHARES[one] for one in options.parts[number:])
            print(f"{part}: up to {left * share:.0f} s ..", flush=True)
            rows = (options.output / f".{part}.jsonl").resolve()
            command = child(part, rows, left * share, options.dry)
            parts.append(run_apart(part, options.output, command, rows, left * share + START_SECONDS))
            print(f"{part}: {parts[-1].status}, {len(parts[-1].rows)} rows, {parts[-1].seconds:.0f} s", flush=True)
        write(options.output, name, parts)
    print((options.output / "results.md").read_text(encoding="utf-8"))
    return 0 if not any(line.startswith(("- FAIL", "- FAILED")) for line in summary(parts)) else 1


if __name__ == "__main__":
    sys.exit(main())
