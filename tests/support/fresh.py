"""Fresh Pythons that need not import torch first: `fresh_python` stands for `subprocess.run([sys.executable, ...])`.

A process of our commands takes eight seconds to start on one core, six of them for libraries that read nothing of the
environment. A server (`fresh_server.py`), one for each process of pytest, has these and forks.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = Path(__file__).with_name("fresh_server.py")


def fresh_python(
    words: Sequence[str | Path],
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
    timeout: float = 240,
) -> subprocess.CompletedProcess[str]:
    """Runs Python on a program and gives back what it printed.

    Nothing of transformers, huggingface_hub, accelerate, peft, datasets or this project is imported in it; torch is,
    with one thread, whatever `OMP_NUM_THREADS` says. Options of Python other than those named are not known.

    Args:
        words: What stands behind `python`: `-c CODE ...`, `-m MODULE ...` or a file and its arguments, and `-P` in
            front of them.
        cwd: Where it runs; here, by default.
        env: Its environment; this process's, by default.
        check: Whether a status other than 0 is an error.
        timeout: Seconds after which it is killed.

    Raises:
        subprocess.CalledProcessError: It failed, and `check` was asked for.
        subprocess.TimeoutExpired: It was killed.
        RuntimeError: The server ended.
    """
    command = [sys.executable, *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        out.touch()
        err.touch()
        request = {
            "words": command[1:],
            "cwd": str(Path(cwd or ".").resolve()),
            "env": dict(os.environ if env is None else env),
            "stdout": str(out),
            "stderr": str(err),
            "timeout": timeout,
        }
        reply = _asked(request)
        printed = [path.read_text("utf-8", errors="replace") for path in (out, err)]
    if reply["timed_out"]:
        raise subprocess.TimeoutExpired(command, timeout, *printed)
    if check and reply["status"]:
        raise subprocess.CalledProcessError(reply["status"], command, *printed)
    return subprocess.CompletedProcess(command, reply["status"], *printed)


def _asked(request: dict[str, object]) -> dict[str, int]:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        print(json.dumps(request), file=server.stdin, flush=True)
        line = server.stdout.readline()
        if not line:
            raise RuntimeError(f"{SERVER} ended with status {server.wait()}")
    except BaseException:  # whoever asks next would read this reply, or find no server
        server.kill()
        _server.cache_clear()
        raise
    return json.loads(line)


@functools.cache
def _server() -> subprocess.Popen[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(SERVER)]
    server = subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.kill)
    return server
