"""Finds and opens the weights in a file or folder that Paddle, PaddleNLP or ERNIE-kit wrote, as one lazy source.

The layouts, in the order they are looked for: `model_state.pdparams.index.json` with its shards,
`model_state.pdparams`, a single other `.pdparams`, `model.safetensors` (with or without index) in Paddle's layout,
ERNIE-kit's `params`, a combined static file with its program, and a folder of one static file for each variable.
What a training run leaves beside its model (optimizer, schedule, master weights, ...) is never read as the model: it
is passed over by name.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .lazy_files import CheckpointError, LazyFile, NamedFiles
from .paddle_adapters import SAFETENSORS_WEIGHTS, refuse_adapter
from .paddle_lod import PROGRAM_NAMES, looks_like_lod, open_lod_combined, open_lod_folder
from .paddle_pickle import SAFETENSORS_CONTENT, foreign_kind, open_pdparams
from .safetensors_files import SAFETENSORS_DTYPES, read_safetensors_header, read_weight_map
from .tensor_names import entries

PDPARAMS = "model_state.pdparams"
SAFETENSORS = "model.safetensors"
KIT_FILE = "params"
COMBINED_NAMES = ("__params__", KIT_FILE)  # as `params_filename` of the 1.x releases is usually chosen

TRAINING_FILES = re.compile(
    r"(optimizer|scheduler|scaler|master_weights|rng_state(_[0-9]+)?|training_args)"
    r"(-[0-9]+-of-[0-9]+)?(\.[a-z0-9_]+)?\.(pdopt|pdparams|safetensors|pth|bin)"
)
"""What PaddleNLP's Trainer puts beside the weights of a checkpoint (`trainer_utils`, `utils/env.py`), its shards and
those of its ranks among it."""

PADDLE_DTYPES = {**SAFETENSORS_DTYPES, "U16": torch.bfloat16}
"""PaddleNLP saves through numpy, which has no bfloat16: its bits go as uint16."""

PADDLE_FORMATS = ("np", "pd", None)  # None: a file without metadata


class PaddleFiles(NamedFiles):
    """A Paddle checkpoint: tensors by name, whichever file they lie in.

    Args:
        files: The open files.
        kind: "pdparams", "safetensors", "static folder" or "static combined".
        folder: Where configuration and vocabulary lie.
        static_names: Name -> name of the same tensor in a static graph, where the files tell.
        extras: What the files hold beside tensors: value, or a few words.

    Attributes:
        passed_over: Names of the files of a training run beside them, which were not read.

    Raises:
        CheckpointError: a name that stands in two files.
    """

    def __init__(
        self,
        files: Sequence[LazyFile],
        kind: str,
        folder: Path,
        static_names: Mapping[str, str] | None = None,
        extras: Mapping[str, Any] | None = None,
    ):
        super().__init__(files, folder)
        self.kind = kind
        self.folder = folder
        self.static_names = dict(static_names or {})
        self.extras = dict(extras or {})
        self.passed_over: tuple[str, ...] = ()


def open_paddle_source(path: Path) -> PaddleFiles:
    """Opens a checkpoint as Paddle, PaddleNLP or ERNIE-kit wrote it, without Paddle and without running anything.

    Args:
        path: The folder, or the weights file in it.

    Raises:
        CheckpointError: no weights (with what was looked for and what is there), weights of another program, several
            that could be meant, a damaged or incomplete checkpoint; a training run's state alone, an adapter.
    """
    refuse_adapter(path)
    if path.is_dir():
        opened = _open_folder(path)
        opened.passed_over = tuple(name for name in entries(path) if TRAINING_FILES.fullmatch(name))
        return opened
    return open_weights(path)


def open_weights(path: Path) -> PaddleFiles:
    """Opens a file of weights, an index with its shards, or a combined static file; an adapter's weights, too.

    Raises:
        CheckpointError: as `open_paddle_source`.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder. --source is a Paddle checkpoint.")
    name = path.name
    if TRAINING_FILES.fullmatch(name):
        raise CheckpointError(
            f"{path}: the state of a training run, not the model's weights. Pass the folder it lies in, or "
            f"{PDPARAMS} or {SAFETENSORS} there."
        )
    if name.endswith(".index.json"):
        return _open_sharded(path)
    if path.suffix == ".safetensors":
        return _from_safetensors([path])
    if path.suffix == ".pdmodel" or name in PROGRAM_NAMES:
        raise CheckpointError(
            f"{path}: a program, without weights. Pass the folder, or the file of parameters beside it."
        )
    if path.suffix == ".pdiparams" or (name in COMBINED_NAMES and looks_like_lod(path)):
        return _from_combined(path)
    if looks_like_lod(path):
        raise CheckpointError(f"{path}: a file of static variables. Pass the folder it lies in.")
    return _from_pdparams([path])


def _open_folder(folder: Path) -> PaddleFiles:
    present = [name + "/" * (folder / name).is_dir() for name in entries(folder)]
    others = [path for path in sorted(folder.glob("*.pdparams")) if not TRAINING_FILES.fullmatch(path.name)]
    pdparams = [folder / PDPARAMS] if (folder / PDPARAMS).is_file() else others
    combined = sorted(folder.glob("*.pdiparams")) + [folder / name for name in COMBINED_NAMES]
    combined = [path for path in combined if path.is_file()]
    if (folder / f"{PDPARAMS}.index.json").is_file():
        return _open_sharded(folder / f"{PDPARAMS}.index.json")
    if pdparams:
        return _from_pdparams([_only(pdparams, "Pass the file meant, or restore its .index.json if these are shards")])
    if (folder / f"{SAFETENSORS}.index.json").is_file():
        return _open_sharded(folder / f"{SAFETENSORS}.index.json")
    if (folder / SAFETENSORS).is_file():
        return _from_safetensors([folder / SAFETENSORS])
    if combined:
        return open_paddle_source(_only(combined, "Pass the file meant"))
    for static in (folder, folder / "params"):
        if static.is_dir() and any(
            (static / name).is_file() and looks_like_lod(static / name) for name in entries(static)
        ):
            files = open_lod_folder(static)
            return PaddleFiles(files, "static folder", folder)
    if any(TRAINING_FILES.fullmatch(name) for name in entries(folder)):
        raise CheckpointError(
            f"{folder}: the state of a training run, without the model's weights. There is: "
            f"{', '.join(present[:12])}. Pass the folder that holds {PDPARAMS} or {SAFETENSORS}."
        )
    shown = ", ".join(present[:12]) + (f", ... and {len(present) - 12} more" if len(present) > 12 else "")
    raise CheckpointError(
        f"{folder}: no Paddle weights. Looked for {PDPARAMS} (or its .index.json), *.pdparams, {SAFETENSORS} (or its "
        f".index.json), {KIT_FILE}, *.pdiparams or __params__ with their program, and files of single variables here "
        f"and in params/. There is: {shown or 'nothing'}. Pass the folder that holds the weights, or the file."
    )


def _only(paths: Sequence[Path], advice: str) -> Path:
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise CheckpointError(f"{paths[0].parent}: several weights files, {names}. {advice}.")
    return paths[0]


def _open_sharded(index: Path) -> PaddleFiles:
    """Opens the shards an index names, and checks that they are all there are and hold what it says."""
    single = index.name.removesuffix(".index.json")
    if single not in (PDPARAMS, SAFETENSORS, SAFETENSORS_WEIGHTS):
        raise CheckpointError(
            f"{index}: not the index of a Paddle checkpoint. Pass the folder that holds the weights."
        )
    weight_map = read_weight_map(index)
    folder, (stem, suffix) = index.parent, single.rsplit(".", 1)
    listed = sorted(set(weight_map.values()))
    extra = sorted({path.name for path in folder.glob(f"{stem}-*-of-*.{suffix}")} - set(listed))
    if extra:
        raise CheckpointError(
            f"{folder}: {', '.join(extra)} are not in {index.name}. Remove them, or copy their index."
        )
    open_files = _from_pdparams if single == PDPARAMS else _from_safetensors
    opened = open_files([folder / name for name in listed])
    opened.check_index(index, weight_map)
    return opened


def _from_pdparams(paths: Sequence[Path]) -> PaddleFiles:
    files = [open_pdparams(path) for path in paths]
    static_names = {name: static for file in files for name, static in file.static_names.items()}
    extras = {name: value for file in files for name, value in file.extras.items()}
    return PaddleFiles(files, "pdparams", paths[0].parent, static_names, extras)


def _from_safetensors(paths: Sequence[Path]) -> PaddleFiles:
    return PaddleFiles([_open_safetensors(path) for path in paths], "safetensors", paths[0].parent)


def _from_combined(path: Path) -> PaddleFiles:
    program = path.with_suffix(".pdmodel") if path.suffix == ".pdiparams" else path.with_name(PROGRAM_NAMES[0])
    if not program.is_file():
        newer = path.with_suffix(".json")
        hint = f" {newer.name} is the program in Paddle 3's format, which cannot be read." if newer.is_file() else ""
        raise CheckpointError(
            f"{path}: holds parameters without their names; {program.name}, which has them, is not beside it.{hint} "
            "Copy it, too, or save the parameters with paddle.save."
        )
    file = open_lod_combined(path, program)
    return PaddleFiles([file], "static combined", path.parent, file.static_names)


def _open_safetensors(path: Path) -> LazyFile:
    """Opens a safetensors file in Paddle's layout."""
    try:
        tensors, metadata, source = read_safetensors_header(path, PADDLE_DTYPES)
    except CheckpointError as error:
        other = foreign_kind(path)
        if other is None or SAFETENSORS_CONTENT in other:
            raise
        raise CheckpointError(f"{path}: {other}") from error
    written_by = metadata.get("format")
    if written_by == "pt":
        raise CheckpointError(
            f"{path}: already a torch file (metadata format 'pt'), not one of PaddleNLP's. Open it with transformers."
        )
    if written_by not in PADDLE_FORMATS:
        raise CheckpointError(
            f"{path}: metadata format {written_by!r}; PaddleNLP's files have 'np' or 'pd'. Pass PaddleNLP's own file."
        )
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors. Copy the file again.")
    return LazyFile(source, tensors)


__all__ = [
    "COMBINED_NAMES",
    "PDPARAMS",
    "SAFETENSORS",
    "TRAINING_FILES",
    "PaddleFiles",
    "open_paddle_source",
    "open_weights",
]
