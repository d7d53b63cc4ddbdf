"""A Python that has imported what takes long, and becomes any program when it is told to: `fresh.py` starts it.

A request in JSON a line on stdin, the status of what was run a line on stdout. Each program runs in a process forked
from this one, as the last thing that the process does, so that it ends as Python ends. Nothing of transformers,
huggingface_hub, datasets or this project is imported before: these read the environment when they are imported, and
tests ask what is imported and what is not.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import signal
import sys
import tempfile
import time
import types
from typing import Any

POLL_SECONDS = 0.005
SLOW_TO_IMPORT = (
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.checkpoint.state_dict",
    "torch.ao.quantization",
    "torch.utils.data",
    "numpy.random",
    "scipy.optimize",
    "sklearn.metrics",
    "pandas",
    "pyarrow.dataset",
    "safetensors.torch",
    "tokenizers",
    "jinja2.sandbox",
    "PIL.Image",
    "httpx",
    "httpx2",
    "filelock",
    "packaging.version",
    "torch._inductor.decomposition",
    "torch.ao.quantization.quantize_fx",
    "google.protobuf.descriptor_pb2",
    "rich.console",
    "tqdm.auto",
    "yaml",
    "regex",
)


def main() -> None:
    """Serves until stdin ends; in a child, runs what was asked for."""
    gc.disable()
    for name in SLOW_TO_IMPORT:
        with contextlib.suppress(ImportError):  # extras that are not installed
            importlib.import_module(name)
    gc.enable()
    gc.freeze()
    request = _served()
    if request is not None:
        _become(request)


def _served() -> dict[str, Any] | None:
    """What a child is to run; None in the server, when there is nothing more."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in requests:
        request = json.loads(line)
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            return request
        print(json.dumps(_outcome(child, request["timeout"])), file=replies, flush=True)
    return None


def _outcome(child: int, seconds: float) -> dict[str, Any]:
    """How a child ended, which is killed after so long."""
    latest = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > latest:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "timed_out": True}
        time.sleep(POLL_SECONDS)
    return {"status": os.waitstatus_to_exitcode(ended[1]), "timed_out": False}


def _become(request: dict[str, Any]) -> None:
    """Makes this process what `python *words` would be, and runs it."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for number, (path, flags) in enumerate(
        ((os.devnull, os.O_RDONLY), (request["stdout"], os.O_WRONLY), (request["stderr"], os.O_WRONLY))
    ):
        os.dup2(os.open(path, flags), number)
    tempfile.tempdir = None  # found anew, by the new environment
    random.seed()
    words = list(request["words"])
    safe = words[0] == "-P"
    kind, *arguments = words[1:] if safe else words
    sys.path[:0] = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    if kind == "-c":
        _look_first_in("", safe)
        sys.argv = ["-c", *arguments[1:]]
        sys.modules["__main__"] = program = types.ModuleType("__main__")
        exec(compile(arguments[0], "<string>", "exec"), vars(program))  # what python -c does
    elif kind == "-m":
        _look_first_in(os.getcwd(), safe)
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        _look_first_in(os.path.dirname(os.path.abspath(kind)), safe)
        sys.argv = [kind, *arguments]
        runpy.run_path(kind, run_name="__main__")


def _look_first_in(folder: str, safe: bool) -> None:
    if not safe:
        sys.path.insert(0, folder)


if __name__ == "__main__":
    main()
