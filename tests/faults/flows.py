"""The commands that are put under faults: each converter in each direction, and publish."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conversion.__main__ import main
from tests.support.converting import write_settings
from tests.support.converting_ernie import small_arrays, small_settings, static_arrays
from tests.support.converting_ernie3 import SIZES as SIZES_3
from tests.support.converting_ernie3 import layout, random_arrays, write_static
from tests.support.paddle_writing import lod_record
from tests.support.tiny import Sizes, whole_state, write_ice_text_model, write_released

SAMPLE = Path(__file__).parents[2] / "examples" / "sample-ernie" / "masked-lm"
OUTPUT = "made/result"
"""Where each flow writes, below its folder; `made` is not there before."""


@dataclass(frozen=True)
class Flow:
    """A command.

    Attributes:
        name: Of the flow.
        prepare: Fills an empty folder with the source; returns the arguments.
        cost: How many runs of a converter take as long as one.
    """

    name: str
    prepare: Callable[[Path], list[str]]
    cost: int = 1


def _glm(folder: Path, *more: str) -> list[str]:
    sizes = Sizes(vocabulary=400)  # room for the tokenizer's
    write_released(folder / "source", whole_state(sizes), ranks=2)
    write_ice_text_model(folder / "source" / "ice_text.model")
    settings = write_settings(folder / "settings.json", num_image_tokens=0)
    return ["glm130b", "--source=source", f"--output={OUTPUT}", settings, "--max-shard-size=20KB", *more]


def _ernie(folder: Path, *more: str) -> list[str]:
    shutil.copytree(SAMPLE, folder / "source")
    return ["ernie", "--source=source", f"--output={OUTPUT}", *more]


def _as_bert(folder: Path) -> list[str]:
    return _ernie(folder, "--as-bert", "--task=features", "--pooling=mean", "--max-shard-size=200KB")


def _ernie_static(folder: Path) -> list[str]:
    (folder / "source").mkdir()
    (folder / "source" / "ernie_config.json").write_text(json.dumps(small_settings("masked_lm")))
    for name, array in static_arrays(small_arrays("masked_lm")).items():
        (folder / "source" / name).write_bytes(lod_record(array))
    return ["ernie", "--source=source", f"--output={OUTPUT}", "--task=masked-lm"]


def _ernie3(folder: Path) -> list[str]:
    write_static(folder / "source", random_arrays(layout()), SIZES_3.settings)
    return ["ernie3", "--source=source", f"--output={OUTPUT}", "--max-shard-size=10KB"]


def _reverse(forward: Callable[[Path], list[str]], *more: str) -> Callable[[Path], list[str]]:
    """The way back of what a flow writes."""

    def prepare(folder: Path) -> list[str]:
        return [_converted(forward, folder)[0], "--source=source", f"--output={OUTPUT}", "--reverse", *more]

    return prepare


def _published(forward: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        _converted(forward, folder)
        return ["publish", "source", "--repo=owner/name", f"--output={OUTPUT}", "--check=structure"]

    return prepare


def _converted(forward: Callable[[Path], list[str]], folder: Path) -> list[str]:
    """Replaces a flow's source by what it becomes; the flow's arguments."""
    parts = folder / "parts"
    parts.mkdir()
    arguments = [
        argument.replace("=source", f"={parts / 'source'}").replace(f"={OUTPUT}", f"={folder / 'source'}")
        for argument in forward(parts)
    ]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(arguments) == 0
    shutil.rmtree(parts)
    return arguments


FLOWS = (
    Flow("glm130b", _glm),
    Flow("glm130b-bits4", lambda folder: _glm(folder, "--bits=4")),
    Flow("glm130b-reverse", _reverse(_glm, "--tensor-parallel=2")),
    Flow("ernie", _ernie),
    Flow("ernie-static", _ernie_static),
    Flow("ernie-reverse", _reverse(_ernie)),
    Flow("ernie-as-bert", _as_bert),
    Flow("ernie-as-bert-reverse", _reverse(_as_bert, "--as-bert")),
    Flow("ernie3", _ernie3),
    Flow("ernie3-reverse", _reverse(_ernie3)),
    Flow("publish", _published(_ernie), cost=5),  # it starts a process
)

__all__ = ["FLOWS", "OUTPUT", "Flow"]
