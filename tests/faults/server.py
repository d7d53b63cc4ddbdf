"""Runs the command line in fresh children of a process that has the libraries imported: a run costs no start.

`python -m tests.faults.server`, with the shim preloaded: a request in JSON a line on stdin, an outcome a line on
stdout. `harness.Server` is the other end.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

TRACEBACK = 70
"""Exit status of a run that ended in an exception."""

POLL_SECONDS = 0.002


def main() -> None:
    """Serves until stdin ends."""
    import hf_glm_ernie
    from conversion import __main__ as command

    for name in hf_glm_ernie.__all__:  # what is imported when it is first asked for
        getattr(hf_glm_ernie, name)
    shim = ctypes.CDLL(None)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints goes elsewhere
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line), command.main, shim)), file=replies, flush=True)


def _run(request: dict[str, Any], command: Any, shim: ctypes.CDLL) -> dict[str, Any]:
    started = time.monotonic()
    child = os.fork()
    if not child:
        _be_the_child(request, command, shim)
    timed_out = False
    while True:
        reaped, status, usage = os.wait4(child, os.WNOHANG)
        if reaped:
            break
        if time.monotonic() - started > request["timeout"]:
            timed_out = True
            os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(POLL_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it started
    return {
        "status": os.waitstatus_to_exitcode(status),
        "timed_out": timed_out,
        "seconds": usage.ru_utime + usage.ru_stime,
        "bytes": usage.ru_maxrss * 1024,
    }


def _be_the_child(request: dict[str, Any], command: Any, shim: ctypes.CDLL) -> None:
    """Runs the command and ends the process."""
    status = TRACEBACK
    try:
        os.setpgid(0, 0)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(request["cwd"])
        os.environ["TMPDIR"] = tempfile.tempdir = str(Path(request["cwd"], "temporary"))
        if request["extra_bytes"]:
            most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (most + request["extra_bytes"],) * 2)
        fault = request["fault"]
        if fault is not None:
            shim.fault_arm(
                os.fsencode(fault["folder"]), fault["kinds"].encode(), fault["nth"], fault["how"], fault["sticks"]
            )
        try:
            status = command(request["arguments"])
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else TRACEBACK
        except BaseException:  # noqa: BLE001  # whatever it is, that is what is looked for
            traceback.print_exc()
        if fault is not None:
            Path(request["log"] + ".seen").write_text(str(ctypes.c_long.in_dll(shim, "fault_total").value))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
