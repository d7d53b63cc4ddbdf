"""The optional kernel for CPUs, compiled on the user's machine (`weight_only_cpu.cpp`).

Nothing needs it. It is built only when asked for, by calling [`build_cpu_kernel`] or by setting the environment
variable `HF_GLM_ERNIE_CPU_KERNEL=1` before the first product; torch keeps the result, so that only the first build
takes its half minute. It needs Linux on a processor with AVX-512 BF16, a C++ compiler and ninja.
"""

import os
import platform
import re
import threading
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
        RuntimeError: the machine lacks something; the message says what. Everything works without the kernel.

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
        from torch.utils.cpp_extension import load

        name = "weight_only_cpu_" + re.sub(r"\W", "_", torch.__version__)
        try:
            load(name, [str(SOURCE)], extra_cflags=["-O3", "-fopenmp", *FEATURES.values()], is_python_module=False)
        except (RuntimeError, OSError, ImportError) as error:
            raise RuntimeError(
                "The CPU kernel for integer weights could not be compiled. It needs a C++ compiler and ninja "
                f"(`pip install ninja`). What went wrong: {error}"
            ) from error
        _state["built"] = True


def cpu_kernel_is_ready() -> bool:
    """Whether the kernel is built; where the environment asks for it, the first call builds it, or says why not."""
    if not _state["built"] and not _state["asked"]:
        _state["asked"] = True
        if os.environ.get(VARIABLE, "") not in ("", "0"):
            try:
                build_cpu_kernel()
            except RuntimeError as error:
                logger.warning(f"{VARIABLE} is set, but: {error} Going on without it.")
    return _state["built"]


__all__ = ["build_cpu_kernel", "cpu_kernel_is_ready"]
