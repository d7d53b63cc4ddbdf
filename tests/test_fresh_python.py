"""`fresh_python` against what `python` itself does with the same words."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fresh import fresh_python

SHOW = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), sys.path[0], os.environ.get("SAID"), __name__, sys.stdin.read()]))
print("said", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("way", "safe"), [("code", []), ("module", []), ("file", []), ("code", ["-P"]), ("file", ["-P"])]
)
def test_a_program_sees_what_it_would(tmp_path: Path, way: str, safe: list[str]) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "it.py").write_text(SHOW, "utf-8")
    words = {"code": ["-c", SHOW], "module": ["-m", "shown.it"], "file": ["shown/it.py"]}[way]
    environment = os.environ | {"SAID": "so"}
    found = fresh_python([*safe, *words, "--to", "x y"], tmp_path, environment)
    expected = subprocess.run(
        [sys.executable, *safe, *words, "--to", "x y"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    shown, right = json.loads(found.stdout), json.loads(expected.stdout)
    if safe:
        shown[2] = right[2] = None  # whatever comes first on an empty path
    assert shown == right
    assert (found.returncode, found.stderr) == (0, expected.stderr)


@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(3)", 3), ("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL), ("", 0)],
)
def test_how_it_ended(code: str, status: int) -> None:
    assert fresh_python(["-c", code]).returncode == status
    if status:
        with pytest.raises(subprocess.CalledProcessError):
            fresh_python(["-c", code], check=True)


def test_what_is_registered_for_the_end_is_done_and_nothing_is_handed_on() -> None:
    code = "import atexit, sys; sys.handed_on = True; atexit.register(print, 'the end')"
    assert fresh_python(["-c", code]).stdout == "the end\n"
    assert fresh_python(["-c", "import sys; print(hasattr(sys, 'handed_on'))"]).stdout == "False\n"


def test_one_that_hangs_is_killed_and_the_next_one_runs() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        fresh_python(["-c", "import time; print('began', flush=True); time.sleep(600)"], timeout=1)
    assert raised.value.stdout == "began\n"
    assert fresh_python(["-c", "print(1)"]).stdout == "1\n"


def test_nothing_that_reads_the_environment_is_there() -> None:
    names = ["transformers", "huggingface_hub", "accelerate", "peft", "datasets", "hf_glm_ernie", "conversion"]
    code = f"import sys; print([name for name in {names} if name in sys.modules], 'torch' in sys.modules)"
    assert fresh_python(["-c", code]).stdout == "[] True\n"
