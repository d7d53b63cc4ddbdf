"""Tiny checkpoints of every form that is released or trained, each made by a writer that is not the converter's."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file as save_arrays

from . import converting_ernie3 as unified
from .converting import released
from .converting_ernie import small_arrays, small_settings, static_arrays, write_checkpoint
from .paddle_writing import lod_record, program, write_pdparams, write_sharded
from .quantized_tiny import WIDE, whole_quantized, write_quantized

HEAD = "sequence_classification"


def ernie(folder: Path, name: str = HEAD) -> Path:
    return write_checkpoint(folder, small_arrays(name), small_settings(name))


def sharded(folder: Path) -> Path:
    arrays = small_arrays(HEAD)
    names = sorted(arrays)
    halves = {"model_state-00001-of-00002.pdparams": names[::2], "model_state-00002-of-00002.pdparams": names[1::2]}
    folder.mkdir()
    write_sharded(folder, {file: {name: arrays[name] for name in half} for file, half in halves.items()})
    (folder / "config.json").write_text(json.dumps(small_settings(HEAD)))
    return folder


def paddles_safetensors(folder: Path) -> Path:
    folder.mkdir()
    arrays = {name: np.ascontiguousarray(array) for name, array in small_arrays(HEAD).items()}
    save_arrays(arrays, folder / "model.safetensors", metadata={"format": "np"})
    (folder / "config.json").write_text(json.dumps(small_settings(HEAD) | {"model_type": "ernie"}))
    return folder


def static_folder(folder: Path) -> Path:
    folder.mkdir()
    for name, array in static_arrays(small_arrays("masked_lm")).items():
        (folder / name).write_bytes(lod_record(array))
    (folder / "ernie_config.json").write_text(json.dumps(small_settings("masked_lm")))
    return folder


def static_combined(folder: Path) -> Path:
    folder.mkdir()
    arrays = static_arrays(small_arrays("masked_lm"))
    (folder / "model.pdiparams").write_bytes(b"".join(lod_record(arrays[name]) for name in sorted(arrays)))
    (folder / "model.pdmodel").write_bytes(program({name: array.shape for name, array in arrays.items()}))
    (folder / "config.json").write_text(json.dumps(small_settings("masked_lm")))
    return folder


def kit(folder: Path) -> Path:
    folder.mkdir()
    write_pdparams(folder / "params", static_arrays(small_arrays("masked_lm")))
    (folder / "ernie_config.json").write_text(json.dumps(small_settings("masked_lm")))
    return folder


def trained(folder: Path) -> Path:
    """What PaddleNLP's Trainer leaves."""
    ernie(folder)
    for name in ("optimizer.pdopt", "scheduler.pdparams", "training_args.bin"):
        (folder / name).write_bytes(b"state")
    return folder


def ten_billion(folder: Path) -> Path:
    arrays = unified.random_arrays(unified.layout())
    return unified.write_static(folder, arrays, unified.SIZES.settings)


def quantized(folder: Path) -> Path:
    write_quantized(folder, whole_quantized(4, 2), 2)
    (folder / "config.json").write_text(json.dumps(WIDE.settings))
    return folder


ORIGINALS: dict[str, tuple[Callable[[Path], Path], str, str, str]] = {
    "ranks": (released, "GLM-130B", "released rank files", "glm130b"),
    "int4 ranks": (quantized, "GLM-130B", "released rank files", "glm130b"),
    "pdparams": (ernie, "ERNIE", "pickle of Paddle's", "ernie"),
    "shards": (sharded, "ERNIE", "pickle of Paddle's, shards", "ernie"),
    "safetensors": (paddles_safetensors, "ERNIE", "safetensors in Paddle's layout", "ernie"),
    "static": (static_folder, "ERNIE", "static graph, one file for each variable", "ernie"),
    "combined": (static_combined, "ERNIE", "static graph, one file for all variables", "ernie"),
    "kit": (kit, "ERNIE", "ERNIE-kit's params", "ernie"),
    "trainer": (trained, "ERNIE", "pickle of Paddle's", "ernie"),
    "10B": (ten_billion, "ERNIE 3.0 10B", "static graph, one file for each variable", "ernie3"),
}
"""Form -> how it is made, family, form in words, the command that converts it."""
