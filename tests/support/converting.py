"""The converter's command, as the tests call it."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from conversion.__main__ import main

from .tiny import Sizes, State, whole_state, write_released

SIZES = Sizes()


def convert(source: "Path | str", output: Path, *arguments: str) -> int:
    """Runs the command, without computing with the result; returns its exit status."""
    return main(["glm130b", f"--source={source}", f"--output={output}", "--no-reference", *arguments])


def write_settings(path: Path, **settings: Any) -> str:
    """Writes a settings file for the tiny sizes; returns the option that names it."""
    path.write_text(json.dumps(SIZES.settings | settings))
    return f"--config={path}"


def released(folder: Path, ranks: int = 2) -> Path:
    """A tiny checkpoint in the released layout, its settings beside."""
    write_released(folder, whole_state(SIZES), ranks)
    write_settings(folder / "config.json")
    return folder


def weights(folder: Path) -> State:
    """The tensors of a converted folder."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def listing(folder: Path) -> list[str]:
    """Every file and folder in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def digests(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of everything in a folder."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in listing(folder)
        if (folder / name).is_file()
    }


SLOWLY = """
import sys, time
from conversion import writer
from conversion.__main__ import main
real = writer.pwrite_all
def slow(*arguments):
    time.sleep(0.05)
    real(*arguments)
writer.pwrite_all = slow
sys.exit(main(sys.argv[1:]))
"""


def kill_then_run(arguments: list[str], output: Path, appears: str) -> None:
    """Kills the command once a file has appeared in its incomplete folder, then runs it again to the end."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "glm130b", "--no-reference", *arguments], cwd=root, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    incomplete = output.with_name(output.name + ".incomplete")
    while not list(incomplete.glob(appears)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    assert main(["glm130b", "--no-reference", *arguments]) == 0
    assert not incomplete.exists()
