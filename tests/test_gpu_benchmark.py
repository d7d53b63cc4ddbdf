"""`benchmarks/gpu.py` where there is no GPU: its dry form as a whole, and what becomes of parts that fail or hang."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hf_glm_ernie.weight_only_triton_kernels import triton
from tests.support.fresh import fresh_python

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = ("machine", "kernels", "whole", "speed", "layer", "planner")

# All parts in one process, where the script takes one for each: importing everything six times takes a minute.
EVERY_PART = """
import sys
from pathlib import Path
import gpu
from gpu_report import read_part, write
folder, parts = Path(sys.argv[1]), []
for name in gpu.SHARES:
    gpu.run_part(name, folder / name, 120.0, dry=True)
    parts.append(read_part(name, folder / name))
write(folder, "dry", parts)
"""
APART = """
import json, sys
from pathlib import Path
from dataclasses import asdict
import gpu
from gpu_report import summary, write
folder, parts = Path(sys.argv[1]), []
for name, program in json.loads(sys.argv[2]).items():
    path = folder / f"{name}.jsonl"
    parts.append(gpu.run_apart(name, folder, [sys.executable, "-c", program, str(path)], path, 2.0))
    write(folder, "parts", parts)
print(json.dumps(summary(parts)))
"""
ROWS = """
import sys
line = '{"row": {"what": "a", "value": 1.5}}'
file = open(sys.argv[1], "w")
print(line, file=file, flush=True)
"""


def run(program: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{BENCHMARKS.parent}", "OMP_NUM_THREADS": "1"}
    finished = fresh_python(["-c", program, *arguments], env=environment)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if triton is None:
        pytest.skip("the dry form runs the kernels in Triton's interpreter: triton is not installed")
    folder = tmp_path_factory.mktemp("dry")
    run(EVERY_PART, str(folder))
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    found["page"] = (folder / "results.md").read_text(encoding="utf-8")
    return found


def test_every_part_runs_in_the_dry_form(dry: dict[str, Any]) -> None:
    parts = {part["name"]: part for part in dry["parts"]}
    assert tuple(parts) == PARTS
    for name, part in parts.items():
        assert part["status"] == "ok", (name, part["note"])
        assert part["rows"], name
        assert not [row for row in part["rows"] if "error" in row], name
        assert set(part) == {"name", "status", "note", "seconds", "rows", "checks"}
    missed = [
        (part["name"], asked) for part in parts.values() for asked, reached in part["checks"].items() if not reached
    ]
    assert not missed


def test_the_dry_form_measures_what_the_gpu_form_will(dry: dict[str, Any]) -> None:
    rows = {part["name"]: part["rows"] for part in dry["parts"]}
    assert {row["kernel"] for row in rows["kernels"]} >= {
        *("triton_rows", "triton_dot", "triton_dequantize", "gradient", "layer, compiled")
    }
    assert {(row["bits"], row["dtype"]) for row in rows["speed"]} == {
        (bits, dtype) for bits in (4, 8) for dtype in ("float16", "bfloat16")
    }
    assert all(row["dense, us"] > 0 and row["GB/s"] > 0 for row in rows["speed"])
    whole = {row["what"] for row in rows["whole"]}
    assert {f"decode, {number} rows, dynamic cache" for number in (1, 8, 32)} <= whole
    assert {"a step, static cache, captured", "decode, 1 rows, static cache, compiled"} <= whole
    assert any(row["step"] == "prefill" for row in rows["planner"])


def test_results_say_what_was_asked_and_found(dry: dict[str, Any]) -> None:
    summary = dry["page"].split("## summary")[1]
    assert "- PASS kernels are right on the device" in summary
    assert "- PASS no wait for the device in a decoding step" in summary
    assert "FAIL" not in summary


def test_a_part_that_fails_or_hangs_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    programs = {
        "machine": ROWS + "raise MemoryError('out of everything')",
        "kernels": ROWS + "import time; file.write('{\"row\": {'); file.flush(); time.sleep(600)",
        "whole": ROWS + "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "speed": ROWS + 'print(\'{"check": "fast", "reached": true}\', file=file, flush=True)',
    }
    lines = json.loads(run(APART, str(tmp_path), json.dumps(programs)).splitlines()[-1])
    found = {part["name"]: part for part in json.loads((tmp_path / "results.json").read_text("utf-8"))["parts"]}
    assert {name: part["status"] for name, part in found.items()} == {
        "machine": "failed",
        "kernels": "stopped",
        "whole": "failed",
        "speed": "ok",
    }
    assert all(part["rows"] == [{"what": "a", "value": 1.5}] for part in found.values())
    assert "MemoryError: out of everything" in found["machine"]["note"]
    assert 2 <= found["kernels"]["seconds"] < 20
    assert "status -11" in found["whole"]["note"]
    assert lines[-1] == "- PASS fast"
    assert {line.split()[1] for line in lines[:-1]} == {"FAILED", "STOPPED"}


def test_no_gpu_is_said_and_nothing_else_happens(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    finished = fresh_python([BENCHMARKS / "gpu.py", "--output", tmp_path, "--parts", "machine"], env=environment)
    assert finished.returncode == 1
    (part,) = json.loads((tmp_path / "results.json").read_text("utf-8"))["parts"]
    assert part["status"] == "failed"
    assert "torch sees no NVIDIA GPU here; --dry runs on the CPU." in part["note"]


def test_no_part_begins_when_the_time_is_over(tmp_path: Path) -> None:
    finished = fresh_python([BENCHMARKS / "gpu.py", "--dry", "--seconds", "0.5", "--output", tmp_path])
    parts = json.loads((tmp_path / "results.json").read_text("utf-8"))["parts"]
    assert [part["name"] for part in parts] == list(PARTS)
    assert {(part["status"], part["note"]) for part in parts} == {("skipped", "out of time")}
    assert finished.stdout.count("SKIPPED") == len(PARTS)
