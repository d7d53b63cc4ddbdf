"""Small checkpoints of every kind that the converters read, as bytes: what hostile files are made of."""

import contextlib
import functools
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file

from conversion.__main__ import main
from tests.support.converting_ernie import small_arrays, small_settings, static_arrays
from tests.support.converting_ernie3 import SIZES as SIZES_3
from tests.support.converting_ernie3 import layout, random_arrays, write_combined, write_static
from tests.support.ernie_vocabulary import paddle_folder, write_vocabulary
from tests.support.paddle_writing import lod_record, program, write_pdparams, write_sharded
from tests.support.tiny import Sizes, whole_state, write_ice_text_model, write_released

from .flows import OUTPUT

GLM_SIZES = Sizes(vocabulary=400)


@dataclass(frozen=True)
class Source:
    """A checkpoint that is converted without complaint.

    Attributes:
        name: Of its kind.
        files: Path below the folder -> content.
        arguments: Of the command line.
    """

    name: str
    files: Mapping[str, bytes]
    arguments: tuple[str, ...]

    def write(self, folder: Path, changes: Mapping[str, bytes | None] | None = None) -> list[str]:
        """Fills a folder with it, some files replaced or (None) left out; returns the arguments."""
        for name, content in (dict(self.files) | dict(changes or {})).items():
            if content is not None:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return list(self.arguments)


def _glm(folder: Path) -> list[str]:
    write_released(folder / "source", whole_state(GLM_SIZES), ranks=2)
    write_ice_text_model(folder / "source" / "ice_text.model")
    (folder / "source" / "config.json").write_text(json.dumps(GLM_SIZES.settings | {"num_image_tokens": 0}))
    return ["glm130b"]


def _pdparams(folder: Path) -> list[str]:
    lines = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(chr(ord("一") + n) for n in range(90)), "[UNK]"]
    paddle_folder(folder / "source", lines, config=small_settings("masked_lm"))
    write_pdparams(folder / "source" / "model_state.pdparams", small_arrays("masked_lm"))
    return ["ernie"]


def _parts() -> list[dict[str, object]]:
    arrays = list(small_arrays("masked_lm").items())
    return [dict(arrays[::2]), dict(arrays[1::2])]


def _pdparams_sharded(folder: Path) -> list[str]:
    (folder / "source").mkdir()
    shards = {f"model_state-0000{number}-of-00002.pdparams": part for number, part in enumerate(_parts(), 1)}
    write_sharded(folder / "source", shards)  # type: ignore[arg-type]
    return _with_settings(folder)


def _safetensors(folder: Path) -> list[str]:
    (folder / "source").mkdir()
    save_file(small_arrays("masked_lm"), folder / "source" / "model.safetensors", metadata={"format": "np"})
    return _with_settings(folder)


def _safetensors_sharded(folder: Path) -> list[str]:
    (folder / "source").mkdir()
    shards = {f"model-0000{number}-of-00002.safetensors": part for number, part in enumerate(_parts(), 1)}
    write_sharded(folder / "source", shards)  # type: ignore[arg-type]
    return _with_settings(folder)


def _static(folder: Path) -> list[str]:
    (folder / "source").mkdir()
    for name, array in static_arrays(small_arrays("masked_lm")).items():
        (folder / "source" / name).write_bytes(lod_record(array))
    return [*_with_settings(folder), "--task=masked-lm"]


def _combined(folder: Path) -> list[str]:
    (folder / "source").mkdir()
    arrays = static_arrays(small_arrays("masked_lm"))
    (folder / "source" / "m.pdiparams").write_bytes(b"".join(lod_record(arrays[name]) for name in sorted(arrays)))
    (folder / "source" / "m.pdmodel").write_bytes(program({name: array.shape for name, array in arrays.items()}))
    write_pdparams(folder / "source" / "m.pdiparams.info", {})
    return [*_with_settings(folder), "--task=masked-lm"]


def _with_settings(folder: Path) -> list[str]:
    (folder / "source" / "config.json").write_text(json.dumps(small_settings("masked_lm")))
    return ["ernie"]


def _ernie3(folder: Path) -> list[str]:
    write_static(folder / "source", random_arrays(layout()), SIZES_3.settings)
    lines = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(chr(ord("一") + n) for n in range(25)), "[END]", "<S>"]
    write_vocabulary(folder / "source", [*lines, *(chr(ord("丁") + 99 + n) for n in range(18)), "[UNK]"])
    return ["ernie3"]


def _ernie3_combined(folder: Path) -> list[str]:
    write_combined(folder / "source", random_arrays(layout()), SIZES_3.settings)
    return ["ernie3"]


def _reverse(forward: Callable[[Path], list[str]], *more: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        before = folder / "before"
        before.mkdir()
        arguments = forward(before)
        command = [*arguments, f"--source={before / 'source'}", f"--output={folder / 'source'}", "--no-reference"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main([*command, "--max-shard-size=20KB"]) == 0
        return [arguments[0], "--reverse", *more]

    return make


_MAKERS: dict[str, Callable[[Path], list[str]]] = {
    "glm130b": _glm,
    "pdparams": _pdparams,
    "pdparams in shards": _pdparams_sharded,
    "safetensors": _safetensors,
    "safetensors in shards": _safetensors_sharded,
    "static folder": _static,
    "static combined": _combined,
    "ernie3 folder": _ernie3,
    "ernie3 combined": _ernie3_combined,
    "glm130b reverse": _reverse(_glm, "--tensor-parallel=2"),
    "ernie reverse": _reverse(_pdparams),
    "ernie3 reverse": _reverse(_ernie3),
}
KINDS = tuple(_MAKERS)


@functools.cache
def source(kind: str) -> Source:
    """The checkpoint of a kind, made once."""
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = Path(scratch)
        arguments = _MAKERS[kind](folder)
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted((folder / "source").rglob("*"))
            if path.is_file()
        }
    return Source(kind, files, (*arguments, "--source=source", f"--output={OUTPUT}"))


__all__ = ["KINDS", "Source", "source"]
