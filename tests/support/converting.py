"""The converter's command, as the tests call it."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from conversion.__main__ import main

from .tiny import Sizes, State

SIZES = Sizes()


def convert(source: Path, output: Path, *arguments: str) -> int:
    """Runs the command; returns its exit status."""
    return main(["glm130b", f"--source={source}", f"--output={output}", *arguments])


def write_settings(path: Path, **settings: Any) -> str:
    """Writes a settings file for the tiny sizes; returns the option that names it."""
    path.write_text(json.dumps(SIZES.settings | settings))
    return f"--config={path}"


def weights(folder: Path) -> State:
    """The tensors of a converted folder."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def listing(folder: Path) -> list[str]:
    """Every file and folder in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
