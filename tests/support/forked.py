"""Work in a process forked from this one, which may be killed, and ends for certain."""

import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, Any, NoReturn

import torch
from tqdm import tqdm

STUCK_SECONDS = 100
"""A child takes some tenths of a second."""


def in_child(work: Callable[[], int], seconds: float | None = None) -> int | None:
    """The exit status of some work in a process forked from this one; None if it was killed (SIGKILL).

    Args:
        work: Returns the status. What it prints goes nowhere.
        seconds: Kill it after that time.

    Raises:
        AssertionError: It had not ended after `STUCK_SECONDS`; says where each of its threads stood.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as stack:
        child = os.fork()
        if not child:
            _be_the_child(work, stack)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        stack.seek(0)
        where = stack.read().decode()
    assert not where, f"a forked process had not ended after {STUCK_SECONDS} s:\n{where}"
    return None if status == signal.SIGKILL else os.waitstatus_to_exitcode(status)


def killed_in_child(work: Callable[[], Any]) -> None:
    """Some work in a process forked from this one that must end by being killed."""

    def working() -> int:
        work()
        return 0

    assert in_child(working) is None


def die(*_: Any, **__: Any) -> NoReturn:
    """Kills the process that calls this, in the place of any function."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed, and went on")


def _be_the_child(work: Callable[[], int], stack: IO[bytes]) -> NoReturn:
    status = 99
    try:
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True, file=stack.fileno())
        # What would hang, if something that ran before in this process used it: the other threads of OpenMP, which a
        # fork has not, and the lock that all forks share for their progress bars, which a killed one may hold.
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        status = work()
    finally:
        os._exit(status)
