"""The kernel for CPUs, compiled on the user's machine (`weight_only_cpu.cpp`).

It is built once, when quantized weights are loaded for the CPU or at the first product there, on Linux on a processor
with AVX-512 BF16 that has a C++ compiler (`c++`, or what the variable `CXX` names). Where it cannot be built, one
warning says why, and torch's operators do the work, more slowly. `HF_GLM_ERNIE_CPU_KERNEL=0` in the environment builds
and says nothing. Loading waits for it: were it built behind the running program, the last bits of results would change
in the middle. Nothing is compiled for weights on other devices, nor by code that a Hub repository brings: the source
stays in the installed package.

The library is kept in `$TORCH_EXTENSIONS_DIR/hf_glm_ernie` (default: `~/.cache/torch_extensions/hf_glm_ernie`), in a
folder named after source and flags, so that only the first build takes its ten seconds; where that cannot be written,
it is built in a temporary folder, for one process. It is compiled in a private folder and gets its name when it is
whole; its checksum is looked at before it is loaded. One process compiles and the others wait, held apart by a lock
that the system takes back when its owner dies. (`torch.utils.cpp_extension` keeps a lock file instead: after a
`kill -9` every later use waits for ever.) Nothing of torch is compiled in, so any torch takes it.
"""

import contextlib
import ctypes
import errno
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
from typing import Any

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
    "f16c": "-mf16c",
}
TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
"""What the library takes for the dtype of the activations."""

COMPILE_SECONDS = 300.0
"""After which a compiler is given up; it takes about ten."""

WAIT_SECONDS = 320.0
"""After which another process that compiles is not waited for any more."""

POLL_SECONDS = 0.2
LIBRARY, CHECKSUM, FAILED = "weight_only_cpu.so", "weight_only_cpu.sha256", "failed.txt"
PRIVATE = "building-"

_lock = threading.Lock()
_state: dict[str, Any] = {"built": False, "asked": False, "operator": None}


def missing_features() -> list[str]:
    """What this machine lacks for the kernel; empty where it can be built, if there is a compiler."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return [f"Linux on x86-64 (this is {platform.system()} on {platform.machine()})"]
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")))
    missing = [f"the processor feature {name}" for name in FEATURES if name not in flags]
    if not SOURCE.is_file():  # a copy of this file that came with a repository
        missing.append("the package hf_glm_ernie itself (install it and import it before the model is loaded)")
    return missing


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
    """Whether the kernel is built. The first call builds it, or says once why not, unless the environment forbids."""
    if not _state["built"] and not _state["asked"]:
        _state["asked"] = True
        if os.environ.get(VARIABLE, "").strip() != "0":
            try:
                build_cpu_kernel()
            except RuntimeError as error:
                logger.warning(
                    f"{error} Products with integer weights on this CPU run on torch's operators, which are slower: "
                    f"see docs/quantization.md for what to install, and set {VARIABLE}=0 to try no more and be quiet."
                )
    return bool(_state["built"])


def library_folder() -> Path:
    """Where the library of this source is kept."""
    told = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = (
        Path(told) if told else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torch_extensions"
    )
    made_of = [SOURCE.read_text(encoding="utf-8"), *_flags()]
    return root / "hf_glm_ernie" / hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]


def _load(folder: Path) -> None:
    """Loads the library of a folder, compiled first where it is not there, or another machine's."""
    library = folder / LIBRARY
    try:
        if _is_whole(folder):
            try:
                return _open(library)
            except OSError:  # such as one compiled beside a newer libc, in a home that machines share
                library.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except PermissionError:
        writable = False
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        writable = False
    if not writable:
        with tempfile.TemporaryDirectory(prefix="hf_glm_ernie-") as own:  # what is loaded stays when its name is gone
            _compile(Path(own))
            _open(Path(own, LIBRARY))
        return None
    came = time.time()
    with _one_builder(folder):
        if not _is_whole(folder):  # as it is where another process was first
            _refuse_failed(folder / FAILED, came)
            _compile(folder)
    return _open(library)


def _open(library: Path) -> None:
    """Takes the library into this process, as the operator `weight_only_int_cpu::linear`.

    Raises:
        OSError: it does not fit this machine.
    """
    function = ctypes.CDLL(str(library)).weight_only_linear
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 7
    function.restype = ctypes.c_int

    def linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
        _check(x, weight, scale, bits)
        (batch, columns), (rows, groups) = x.shape, scale.shape
        if x.numel() == 0 or rows == 0:
            return x.new_zeros(batch, rows)
        x, weight, scale = x.contiguous(), weight.contiguous(), scale.contiguous()
        y = torch.empty(batch, rows, dtype=x.dtype)
        memory = (tensor.data_ptr() for tensor in (x, weight, scale, y))
        if function(*memory, batch, columns, rows, groups, bits, TYPES[x.dtype], torch.get_num_threads()):
            raise MemoryError(f"No memory for a copy of the {batch} x {columns} activations.")
        return y

    operator = torch.library.Library("weight_only_int_cpu", "FRAGMENT")
    operator.define("linear(Tensor x, Tensor weight, Tensor scale, int bits) -> Tensor")
    operator.impl("linear", linear, "CPU")
    _state["operator"] = operator  # defined as long as it lives


def _check(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bits: int) -> None:
    """Raises where the library would read what is not there."""
    if x.dtype not in TYPES or weight.dtype != torch.int8 or scale.dtype != torch.float16:
        raise TypeError(
            f"x is {x.dtype}, the weight {weight.dtype}, the scale {scale.dtype}; they must be bf16 or fp16 or fp32, "
            "int8, and fp16."
        )
    columns, (rows, groups) = x.shape[1], scale.shape
    fits = bits in (4, 8) and groups > 0 and columns % groups == 0 and (bits == 8 or columns // groups % 2 == 0)
    if not fits or weight.numel() != rows * columns * bits // 8:
        raise ValueError(
            f"x of shape {tuple(x.shape)}, a weight of {weight.numel()} bytes, scales of shape {tuple(scale.shape)} "
            f"and {bits} bits do not belong together."
        )


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
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)  # a process that was forked meanwhile has the file open too


def _compile(folder: Path) -> None:
    """Compiles into a private folder, then gives the library its name.

    Raises:
        OSError: no compiler, an error of it, or a folder that cannot be written.
        subprocess.SubprocessError: the compiler takes too long.
    """
    for left in folder.glob(f"{PRIVATE}*"):  # by a process that was killed: nobody else is at work
        shutil.rmtree(left, ignore_errors=True)
    logger.warning(
        f"Compiling the CPU kernel for integer weights into {folder}: ten seconds, once. {VARIABLE}=0 prevents it."
    )
    with tempfile.TemporaryDirectory(prefix=PRIVATE, dir=folder) as private:
        library, checksum = Path(private, LIBRARY), Path(private, CHECKSUM)
        command = [*shlex.split(os.environ.get("CXX") or "c++"), *_flags(), str(SOURCE), "-o", str(library)]
        try:
            _run_compiler(command, private)
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
    return ["-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", *FEATURES.values()]


def _run_compiler(command: list[str], temporary: str) -> None:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ | {"TMPDIR": temporary},  # there may be no /tmp
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
