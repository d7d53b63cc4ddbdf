"""The public facts of the released models, held against a folder for `from_pretrained`."""

from collections.abc import Mapping, Set
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_glm_ernie.configuration_glm130b import Glm130bConfig

from .ernie_names import find_task
from .ernie_settings import Sizes
from .folder_files import RECORD
from .glm130b_files import DEFAULT_ITERATION
from .inspect_released import in_words, pieces_of, released_ernie, released_ernie3
from .inspect_report import Check, Released
from .json_files import MAX_SETTINGS_BYTES, read_json
from .operations import TensorSpec
from .publish_config import SIZES

OF_ERNIE = {field.name for field in fields(Sizes)} - {"task_type_vocab_size", "num_labels"}


def released_folder(
    folder: Path, raw: Mapping[str, Any], architecture: str, specs: Mapping[str, TensorSpec], wanted: Set[str]
) -> Released | None:
    """What a converted folder looks like, if it looks like something released.

    Args:
        folder: The folder.
        raw: Its config.json.
        architecture: The class that its weights are of.
        specs: Its tensors.
        wanted: Names that the class saves.
    """
    model_type = raw.get("model_type")
    sizes = {name: value for name, value in raw.items() if type(value) is int}
    if model_type == "glm130b":
        return _glm130b(folder, sizes, specs, wanted)
    if model_type == "ernie3":
        of_stacks = {name: value for name, value in sizes.items() if name.endswith(("_size", "_layers"))}
        return released_ernie3(of_stacks, specs)
    task = find_task(architecture)
    if model_type not in ("ernie", "ernie_uie", "ernie_utc") or task is None or not sizes.keys() >= OF_ERNIE:
        return None
    tasks = sizes.get("task_type_vocab_size", 0) if raw.get("use_task_id") else 0
    found = Sizes(**{name: sizes[name] for name in OF_ERNIE}, task_type_vocab_size=tasks, num_labels=0)
    dtypes = {spec.dtype for spec in specs.values()}
    return released_ernie(found, task.name, raw, dtypes, pieces_of(folder / "vocab.txt"))


def _glm130b(
    folder: Path, sizes: Mapping[str, int], specs: Mapping[str, TensorSpec], wanted: Set[str]
) -> Released | None:
    config = Glm130bConfig()
    if any(sizes.get(name) != getattr(config, name) for name in ("hidden_size", "num_hidden_layers")):
        return None
    names = [*SIZES, "intermediate_size"]
    checks = [Check(in_words(name), f"{getattr(config, name):,}", f"{sizes.get(name, 0):,}") for name in names]
    checks.append(Check("tensors of the class", f"{len(wanted):,}", f"{len(wanted & specs.keys()):,}"))
    try:
        record = read_json(folder / RECORD, most=MAX_SETTINGS_BYTES)
    except (OSError, ValueError):
        record = None
    if isinstance(record, dict) and isinstance(record.get("iteration"), str):
        checks.append(Check("iteration it was converted from", DEFAULT_ITERATION, record["iteration"]))
    return Released("GLM-130B, converted", tuple(checks))


__all__ = ["released_folder"]
