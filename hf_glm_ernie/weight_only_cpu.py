"""The optional kernel for CPUs, compiled on the user's machine (`weight_only_cpu.cpp`).

Nothing needs it. It is built only when asked for, by calling [`build_cpu_kernel`] or by setting the environment
variable `HF_GLM_ERNIE_CPU_KERNEL=1` before weights are loaded. It needs Linux on a processor with AVX-512 BF16 and a
C++ compiler (`c++`, or what the variable `CXX` names).

The library is kept in `$TORCH_EXTENSIONS_DIR/hf_glm_ernie` (default: `~/.cache/torch_extensions/hf_glm_ernie`), in a
folder named after source, flags and torch, so that only the first build takes its half minute. It is compiled in a
private folder and gets its name when it is whole; its checksum is looked at before it is loaded. One process compiles
and the others wait, held apart by a lock that the system takes back when its owner dies. (`torch.utils.cpp_extension`
keeps a lock file instead: after a `kill -9` every later use waits for ever.)
"""

import contextlib
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

VARIABLE = "HF_GLM_ERNIE_CPU_KERNEL"
SOURCE = Path(__file__).with_name("weight_only_cpu.cpp")
# What the source uses, as Linux calls it and as the compiler does.
FEATURES = {
    "avx512f": "-mavx512f",
    "avx512bw": "-mavx512bw",
    "avx512vl": "-mavx512vl",
    "avx512dq": "-mavx512dq",
    "avx512_bf16": "-mavx512bf16",
    "fma": "-mfma",
}

COMPILE_SECONDS = 300.0
"""After which a compiler is given up; it takes about thirty."""

WAIT_SECONDS = 320.0
"""After which another process that compiles is not waited for any more."""

POLL_SECONDS = 0.2
LIBRARY, CHECKSUM, FAILED = "weight_only_cpu.so", "weight_only_cpu.sha256", "failed.txt"
PRIVATE = "building-"

_lock = threading.Lock()
_state = {"built": False, "asked": False}


def missing_features() -> list[str]:
    """What this machine lacks for the kernel; empty where it can be built, if there is a compiler."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return [f"Linux on x86-64 (this is {platform.system()} on {platform.machine()})"]
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")))
    missing = [f"the processor feature {name}" for name in FEATURES if name not in flags]
    return missing if SOURCE.is_file() else [*missing, f"the file {SOURCE.name} beside {Path(__file__).name}"]


def build_cpu_kernel() -> None:
    """Compiles the kernel, or takes the one that was compiled before; every product after that may use it.

    Raises:
        RuntimeError: the machine lacks something, the compiler fails or takes too long, or the folder for the result
            cannot be written; the message says what. Everything works without the kernel.

    ```python
    >>> from hf_glm_ernie.weight_only_cpu import build_cpu_kernel

    >>> build_cpu_kernel()  # doctest: +SKIP
    ```
    """
    with _lock:
        if _state["built"]:
            return
        missing = missing_features()
        if missing:
            raise RuntimeError(f"The CPU kernel for integer weights needs {', '.join(missing)}.")
        if not hasattr(torch.ops.weight_only_int_cpu, "linear"):  # else a second copy of this file loaded it
            try:
                _load(library_folder())
            except (OSError, subprocess.SubprocessError) as error:
                raise RuntimeError(f"The CPU kernel for integer weights could not be compiled: {error}") from error
        _state["built"] = True


def cpu_kernel_is_ready() -> bool:
    """Whether the kernel is built; where the environment asks for it, the first call builds it, or says why not."""
    if not _state["built"] and not _state["asked"]:
        _state["asked"] = True
        if os.environ.get(VARIABLE, "") not in ("", "0"):
            try:
                build_cpu_kernel()
            except RuntimeError as error:
                logger.warning(f"{VARIABLE} is set, but: {error} Going on without it; unset the variable to be quiet.")
    return _state["built"]


def library_folder() -> Path:
    """Where the library of this source, for this torch, is kept."""
    told = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = (
        Path(told) if told else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torch_extensions"
    )
    made_of = [SOURCE.read_text(encoding="utf-8"), *_flags(), torch.__version__]
    return root / "hf_glm_ernie" / hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]


def _load(folder: Path) -> None:
    """Loads the library of a folder into torch, compiled first where it is not there, or another machine's."""
    library = folder / LIBRARY
    if _is_whole(folder):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:  # such as one compiled beside a newer libc, in a home that machines share
            library.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    came = time.time()
    with _one_builder(folder):
        if not _is_whole(folder):  # as it is where another process was first
            _refuse_failed(folder / FAILED, came)
            _compile(folder)
    torch.ops.load_library(str(library))


def _is_whole(folder: Path) -> bool:
    """Whether the library is there as it was compiled: loading half a file can end the process."""
    try:
        stored = (folder / CHECKSUM).read_text(encoding="ascii").strip()
        return hashlib.sha256((folder / LIBRARY).read_bytes()).hexdigest() == stored
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _one_builder(folder: Path) -> Iterator[None]:
    """Waits for another process that compiles here; it is not waited for when it died, nor for ever.

    Raises:
        OSError: it takes too long.
    """
    import fcntl  # not on Windows, where the kernel is not built

    with (folder / "lock").open("a+") as lock:
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() - began > WAIT_SECONDS:
                    raise OSError(
                        f"another process holds {lock.name} and has not finished within {WAIT_SECONDS:g} s."
                    ) from error
                time.sleep(POLL_SECONDS)
            except OSError:  # a file system without locks: then each compiles for itself
                break
        yield


def _compile(folder: Path) -> None:
    """Compiles into a private folder, then gives the library its name.

    Raises:
        OSError: no compiler, an error of it, or a folder that cannot be written.
        subprocess.SubprocessError: the compiler takes too long.
    """
    for left in folder.glob(f"{PRIVATE}*"):  # by a process that was killed: nobody else is at work
        shutil.rmtree(left, ignore_errors=True)
    logger.warning(f"Compiling the CPU kernel for integer weights into {folder}: half a minute, once.")
    with tempfile.TemporaryDirectory(prefix=PRIVATE, dir=folder) as private:
        library, checksum = Path(private, LIBRARY), Path(private, CHECKSUM)
        command = [*shlex.split(os.environ.get("CXX") or "c++"), *_flags(), str(SOURCE), *_links(), "-o", str(library)]
        try:
            _run_compiler(command)
            checksum.write_text(hashlib.sha256(library.read_bytes()).hexdigest(), encoding="ascii")
        except (OSError, subprocess.SubprocessError) as error:
            (folder / FAILED).write_text(str(error), encoding="utf-8")
            raise
        library.replace(folder / LIBRARY)
        checksum.replace(folder / CHECKSUM)


def _refuse_failed(note: Path, came: float) -> None:
    """Whoever waited for a process that failed does not try what it tried: eight ranks would take eight times as long.

    Raises:
        OSError: another process failed since `came`.
    """
    if note.is_file() and note.stat().st_mtime >= came:
        raise OSError(note.read_text(encoding="utf-8", errors="replace"))


def _flags() -> list[str]:
    headers = Path(torch.__file__).parent / "include"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    includes = [f"-isystem{headers}", f"-isystem{headers / 'torch' / 'csrc' / 'api' / 'include'}"]
    return ["-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", abi, *FEATURES.values(), *includes]


def _links() -> list[str]:
    return [f"-L{Path(torch.__file__).parent / 'lib'}", "-lc10", "-ltorch", "-ltorch_cpu"]


def _run_compiler(command: list[str]) -> None:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=COMPILE_SECONDS)
    except BaseException:  # it, and what it started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        last = " / ".join(lines[-3:])[-500:] or "it says nothing"
        raise OSError(f"{command[0]} ended with status {process.returncode}: {last}.")


def _free_lock_in_child() -> None:
    """A child forked while another thread compiles would find the lock taken for ever."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_free_lock_in_child)


__all__ = ["build_cpu_kernel", "cpu_kernel_is_ready"]
