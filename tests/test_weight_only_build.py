"""The CPU kernel's build: dead owners, broken and hanging compilers, several processes at once.

Compilers are shell scripts that stand for the real one, so that nothing is compiled; loading is replaced, too.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hf_glm_ernie import weight_only_cpu
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel is built on Linux only")
ROOT = Path(__file__).parents[1]
WRITES = 'while [ "$1" != -o ]; do shift; done; echo library > "$2"'
"""Of a shell script: what a compiler does in the end."""


def compiler(folder: Path, script: str) -> str:
    """A compiler that runs a script, as `CXX` names it."""
    path = folder / "compiler.sh"
    fresh = folder / "compiler.new"  # another process may be running the old one
    fresh.write_text(f"#!/bin/sh\necho $$ >> {folder}/started\n{script}\n")
    fresh.chmod(0o755)
    fresh.replace(path)
    return str(path)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine that has what the kernel needs, an empty cache, and a list of what was loaded from it."""
    paths: list[str] = []
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_only_cpu, "missing_features", list)
    monkeypatch.setattr(weight_only_cpu, "_state", {"built": False, "asked": False, "operator": None})
    monkeypatch.setattr(torch.ops, "weight_only_int_cpu", object(), raising=False)
    monkeypatch.setattr(weight_only_cpu, "_open", lambda path: paths.append(str(path)))
    return paths


def starts(folder: Path) -> int:
    path = folder / "started"
    return len(path.read_text().split()) if path.is_file() else 0


def test_it_is_compiled_once_and_said(loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(weight_only_cpu.logger, "warning", said.append)
    monkeypatch.setenv("CXX", compiler(tmp_path, WRITES))
    weight_only_cpu.build_cpu_kernel()
    monkeypatch.setitem(weight_only_cpu._state, "built", False)
    weight_only_cpu.build_cpu_kernel()
    assert starts(tmp_path) == 1
    assert loaded == [str(weight_only_cpu.library_folder() / "weight_only_cpu.so")] * 2
    assert len(said) == 1
    assert "Compiling the CPU kernel" in said[0]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/bin/false", "status 1: it says nothing"),
        ("/nowhere/c++", "No such file"),
        ("echo 'fatal error: omp.h' >&2; exit 2", "omp.h"),
        ("exit 0", "No such file"),
        ("sleep 60 & sleep 60", "timed out"),
    ],
    ids=["false", "missing", "without headers", "without a result", "hanging"],
)
def test_a_broken_compiler_is_one_warning(
    command: str, says: str, loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(weight_only_cpu.logger, "warning", said.append)
    monkeypatch.setattr(weight_only_cpu, "COMPILE_SECONDS", 0.5)
    monkeypatch.setenv("CXX", command if command.startswith("/") else compiler(tmp_path, command))
    monkeypatch.delenv("HF_GLM_ERNIE_CPU_KERNEL")
    linear = WeightOnlyLinear.from_linear(torch.nn.Linear(32, 16), 4)
    x = torch.randn(1, 32).bfloat16()
    assert torch.equal(linear(x), linear(x))
    assert not loaded
    assert len([line for line in said if "run on torch's operators" in line]) == 1
    assert says in said[-1]
    assert not list(weight_only_cpu.library_folder().glob("building-*"))
    with pytest.raises(RuntimeError, match="could not be compiled"):
        weight_only_cpu.build_cpu_kernel()


def test_a_folder_that_cannot_be_made_is_a_reason(
    loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RuntimeError, match="cache"):
        weight_only_cpu.build_cpu_kernel()


def test_a_damaged_library_is_compiled_again(
    loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, WRITES))
    weight_only_cpu.build_cpu_kernel()
    Path(loaded[0]).write_bytes(b"lib")  # cut short
    monkeypatch.setitem(weight_only_cpu._state, "built", False)
    weight_only_cpu.build_cpu_kernel()
    assert starts(tmp_path) == 2
    assert Path(loaded[1]).read_bytes() == b"library\n"


def test_a_library_of_another_machine_is_compiled_again(
    loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, WRITES))
    weight_only_cpu.build_cpu_kernel()
    monkeypatch.setitem(weight_only_cpu._state, "built", False)
    refusals = [OSError("GLIBC_2.99 not found")]

    def load(path: Path) -> None:
        if refusals:
            raise refusals.pop()
        loaded.append(str(path))

    monkeypatch.setattr(weight_only_cpu, "_open", load)
    weight_only_cpu.build_cpu_kernel()
    assert starts(tmp_path) == 2
    assert len(loaded) == 2


# Processes of their own import nothing but the one file, which needs torch and transformers' logger.
BUILDER = """
import importlib.util, sys, types
transformers = types.ModuleType("transformers"); utils = types.ModuleType("transformers.utils")
import logging; logging.get_logger = logging.getLogger; utils.logging = logging
sys.modules |= {"transformers": transformers, "transformers.utils": utils}
torch = types.ModuleType("torch"); torch.bfloat16, torch.float16, torch.float32 = range(3); torch.Tensor = object
torch.ops = types.SimpleNamespace(weight_only_int_cpu=object())
sys.modules["torch"] = torch
spec = importlib.util.spec_from_file_location("weight_only_cpu", sys.argv[1])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
module.missing_features = list
module._open = lambda path: print("loaded")
module.WAIT_SECONDS = float(sys.argv[2])
try:
    module.build_cpu_kernel()
except RuntimeError as error:
    print(error)
"""


def builder(tmp_path: Path, script: str, wait: float = 60) -> "subprocess.Popen[str]":
    """A process that builds the kernel with a fake compiler."""
    environment = os.environ | {
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"),
        "CXX": compiler(tmp_path, script),
    }
    source = str(ROOT / "hf_glm_ernie" / "weight_only_cpu.py")
    command = [sys.executable, "-c", BUILDER, source, str(wait)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for_starts(tmp_path: Path, number: int) -> None:
    deadline = time.monotonic() + 30
    while starts(tmp_path) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_builder_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    first = builder(tmp_path, "exec sleep 300")
    wait_for_starts(tmp_path, 1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    os.kill(int((tmp_path / "started").read_text()), signal.SIGKILL)  # its compiler, which would end by itself
    second = builder(tmp_path, WRITES)
    assert second.communicate(timeout=30)[0] == "loaded\n"
    assert not list((tmp_path / "cache").glob("hf_glm_ernie/*/building-*"))


def test_one_of_several_processes_compiles(tmp_path: Path) -> None:
    several = [builder(tmp_path, f"sleep 0.5; {WRITES}") for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in several] == ["loaded\n"] * 4
    assert starts(tmp_path) == 1


def test_the_others_do_not_repeat_a_failure(tmp_path: Path) -> None:
    first = builder(tmp_path, "sleep 2; echo no omp.h; exit 1")
    wait_for_starts(tmp_path, 1)
    others = [builder(tmp_path, "sleep 2; echo no omp.h; exit 1") for _ in range(2)]
    for process in (first, *others):
        assert "no omp.h" in process.communicate(timeout=60)[0]
    assert starts(tmp_path) == 1


def test_one_that_hangs_is_waited_for_as_long_as_is_said(tmp_path: Path) -> None:
    first = builder(tmp_path, "exec sleep 300")
    wait_for_starts(tmp_path, 1)
    second = builder(tmp_path, WRITES, wait=0.3)
    try:
        assert "has not finished within 0.3 s" in second.communicate(timeout=30)[0]
    finally:
        os.kill(int((tmp_path / "started").read_text().split()[0]), signal.SIGKILL)
        first.communicate()
