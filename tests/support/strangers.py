"""Fresh processes that cannot see this package, and what they print as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conversion import publish_check
from tests.support.fresh import fresh_python

ROOT = Path(__file__).parents[2]
HIDDEN = ["hf_glm_ernie", "conversion", "tests", "accelerate", "sentencepiece", "peft", "bitsandbytes", "torchao"]
# Environments with other versions of transformers, and what makes them.
PYTHONS = {
    "oldest": ROOT / ".venv-oldest" / "bin" / "python",
    "between": ROOT / ".venv-between" / "bin" / "python",
    "newest": ROOT / ".venv-newest" / "bin" / "python",
}
MADE_BY = {"oldest": "make environments", "between": "make environments", "newest": "make test-newest"}
PREAMBLE = f"""
import json, sys
sys.path.insert(0, {str(Path(publish_check.__file__).parent)!r})
import publish_check
sys.path.pop(0)
publish_check.hide({HIDDEN!r})
"""


def run_python(
    code: str,
    scratch: Path,
    environment: dict[str, str] | None = None,
    python: Path | str = sys.executable,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh process with caches of its own; the network is off unless the environment turns it on."""
    (scratch / "home").mkdir(parents=True, exist_ok=True)
    variables = os.environ | {
        "HF_HOME": str(scratch / "home"),
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    variables.pop("PYTHONPATH", None)
    variables |= environment or {}
    words = ["-P", "-c", code]
    if str(python) == sys.executable:
        done = fresh_python(words, scratch, variables)
    else:
        command = [str(python), *words]
        done = subprocess.run(
            command, cwd=scratch, env=variables, capture_output=True, text=True, timeout=240, check=False
        )
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


def stranger(
    code: str, scratch: Path, environment: dict[str, str] | None = None, python: Path | str = sys.executable
) -> Any:
    """What code prints as its last line, in a process without this package."""
    done = run_python(PREAMBLE + code, scratch, environment, python)
    return json.loads(done.stdout.splitlines()[-1])
