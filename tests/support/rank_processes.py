"""Processes that compute one model together (gloo on the CPU), and what each of them said when one fails."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).parent
SHOWN = 2500  # characters of each rank's errors


def run_ranks(script: str, *arguments: str | Path, seconds: int = 240, ranks: int = 2) -> None:
    """Runs a script of this folder on two ranks or more, by torchrun.

    Raises:
        AssertionError: a rank failed; with the end of what each of them wrote, for the one that fails first may be
            the one that says least.
    """
    # The loopback interface: gloo would look the machine's name up otherwise.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as logs:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["--log-dir", logs, "--redirects", "3", str(SUPPORT / script), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode:
            said = [f"{done.returncode}: {done.stderr[-SHOWN:]}"]
            for file in sorted(Path(logs).rglob("std*.log")):
                text = file.read_text(encoding="utf-8", errors="replace")
                said.append(f"--- rank {file.parent.name}, {file.name}:\n{text[-SHOWN:]}")
            raise AssertionError("\n".join(said))


def end() -> None:
    """The end of a rank: none closes its sockets while the other one still reads from them."""
    dist.barrier()
    dist.destroy_process_group()
