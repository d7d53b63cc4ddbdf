"""Runs the command line under faults: builds the shim, keeps servers, and says what an outcome is worth."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from .case import EXTRA_BYTES, SECONDS, Case
from .server import TRACEBACK

ROOT = Path(__file__).parents[2]
TIMEOUT = 120
TEMPORARY = "temporary"


@dataclass(frozen=True)
class Fault:
    """What the shim does.

    Attributes:
        folder: Calls on what lies there count.
        kinds: Letters: w write, c create, r rename, s sync, d remove, i read.
        nth: Which of the calls; 0 only counts.
        how: An errno the call fails with; a negated signal's number for a signal before the call.
        sticks: Whether all later ones fail, too.
    """

    folder: str
    kinds: str
    nth: int = 0
    how: int = 0
    sticks: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: Exit status; negative, the signal it died of.
        timed_out: Whether it was ended for taking too long.
        seconds: Of processor time.
        text: What it printed.
        calls: Calls that the shim counted; None where it cannot tell any more.
    """

    status: int
    timed_out: bool
    seconds: float
    text: str
    calls: int | None

    @property
    def error(self) -> str:
        """The line that says what is wrong, or nothing."""
        starts = ("error: ", "interrupted: ", "glm-ernie-convert")  # the last is argparse's
        return next((line for line in self.text.splitlines() if line.startswith(starts) and ": " in line), "")


def can_build() -> bool:
    """Whether faults can be injected here: Linux and a C compiler."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def build_shim(folder: Path) -> Path:
    """Compiles the shim into a folder."""
    shim = folder / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(Path(__file__).with_name("shim.c")), "-ldl"]
    subprocess.run(command, check=True)
    return shim


class Server:
    """A process with the libraries imported that runs the command line in children; a context manager.

    Args:
        scratch: Folder for its own files.
    """

    def __init__(self, scratch: Path):
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Server":
        shim = build_shim(self._scratch)
        environment = os.environ | {
            "LD_PRELOAD": str(shim),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        self._noise = (self._scratch / "server.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            text=True,
        )
        self._reply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._noise.close()

    def _reply(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended: {(self._scratch / 'server.log').read_text()[-2000:]}")
        reply: dict[str, object] = json.loads(line)
        return reply

    def run(
        self,
        arguments: Sequence[str],
        cwd: Path,
        fault: Fault | None = None,
        extra_bytes: int = 0,
        timeout: float = TIMEOUT,
    ) -> Outcome:
        """Runs `python -m conversion ARGUMENTS` in a folder, with temporary files in `temporary` there.

        Args:
            arguments: Of the command line.
            cwd: The folder.
            fault: What goes wrong.
            extra_bytes: Limit of address space beside the libraries'; 0 for none.
            timeout: Seconds after which it is killed.
        """
        (cwd / TEMPORARY).mkdir(exist_ok=True)
        log = self._scratch / "run.log"
        counted = Path(f"{log}.seen")
        counted.unlink(missing_ok=True)
        request = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "fault": None if fault is None else asdict(fault),
            "extra_bytes": extra_bytes,
            "timeout": timeout,
            "log": str(log),
        }
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        reply = self._reply()
        return Outcome(
            int(str(reply["status"])),
            bool(reply["timed_out"]),
            float(str(reply["seconds"])),
            log.read_text(encoding="utf-8", errors="replace"),
            int(counted.read_text()) if counted.is_file() else None,
        )


def faults_of(outcome: Outcome, may_pass: bool, seconds: float | None = SECONDS) -> list[str]:
    """What is wrong with how a run ended; empty if nothing.

    Args:
        outcome: The run's.
        may_pass: Whether status 0 is right, too.
        seconds: Limit of processor time, if there is one.
    """
    wrong = []
    if outcome.timed_out:
        wrong.append("hang")
    elif outcome.status < 0:
        wrong.append(f"crash (signal {-outcome.status})")
    elif outcome.status == TRACEBACK or "Traceback (most recent call last)" in outcome.text:
        wrong.append("traceback: " + (outcome.text.strip().splitlines() or [""])[-1][:200])
    elif outcome.status == 0 and not may_pass:
        wrong.append("accepted")
    elif outcome.status and not outcome.error:
        wrong.append(f"status {outcome.status} without an error")
    if seconds is not None and outcome.seconds > seconds:
        wrong.append(f"slow ({outcome.seconds:.1f} s)")
    return wrong


def run_case(server: Server, case: Case, folder: Path) -> list[str]:
    """Runs a hostile input in an empty folder; what is wrong with what came of it, empty if nothing."""
    folder.mkdir(parents=True)
    arguments = case.make(folder)
    (folder / TEMPORARY).mkdir()
    before = snapshot(folder)
    outcome = server.run(arguments, folder, extra_bytes=EXTRA_BYTES, timeout=20)
    wrong = faults_of(outcome, case.may_pass)
    if outcome.status:
        after = snapshot(folder)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if changed:
            wrong.append(f"left behind: {', '.join(changed[:5])}")
    shutil.rmtree(folder)
    return wrong


def snapshot(folder: Path) -> dict[str, str]:
    """Everything in a folder: path -> SHA-256 of a file, or what else it is. Links are not followed."""
    content = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                content[key] = f"-> {os.readlink(path)}"
            elif path.is_file():
                content[key] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                content[key] = "folder" if path.is_dir() else "neither file nor folder"
    return content


__all__ = ["Fault", "Outcome", "Server", "build_shim", "can_build", "faults_of", "run_case", "snapshot"]
