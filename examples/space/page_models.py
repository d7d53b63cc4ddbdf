"""Which models the page uses, and how they are opened.

A model is a folder or a Hub repository, named by an argument, an environment variable, or `models.json` beside this
file (`publish --space` writes it), in this order. In a checkout with none of these, the shipped samples are converted
and opened; nothing is downloaded.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import hf_glm_ernie  # registers GLM-130B, UIE and UTC with the Auto classes

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
MODELS_FILE = HERE / "models.json"
NONE = "none"


@dataclass(frozen=True)
class Role:
    """What a model is for.

    Attributes:
        name: Of the argument, `--name`, and of the key in `models.json`.
        model_types: What may play it.
        sample: Folder of the shipped sample, as `python -m conversion` takes it; None where there is none.
    """

    name: str
    model_types: tuple[str, ...]
    sample: tuple[str, Path] | None = None

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"PAGE_{self.name.upper()}"


GLM = Role("glm", ("glm130b",), ("glm130b", REPOSITORY / "examples" / "sample-glm130b"))
UIE = Role("uie", ("ernie_uie",), ("ernie", REPOSITORY / "examples" / "sample-ernie" / "uie"))
CLASSIFIER = Role("classifier", ("ernie_utc", "glm130b"))
ROLES = (GLM, UIE, CLASSIFIER)


@dataclass(frozen=True)
class Opened:
    """A model that is ready.

    Attributes:
        name: What the page calls it.
        folder: What was opened: a folder or a repository.
        model_type: As its config spells it.
        parameters: How many it has.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        is_sample: Whether it is a shipped sample, which knows a few hundred sentences and nothing else.
    """

    name: str
    folder: str
    model_type: str
    parameters: int
    model: Any
    tokenizer: Any
    is_sample: bool = False


def chosen_names(arguments: Mapping[str, str | None], environment: Mapping[str, str]) -> dict[str, str | None]:
    """Which folder or repository plays each role.

    Args:
        arguments: Role -> what the command line says, None where it says nothing.
        environment: Of the process.

    Returns:
        Role -> folder or repository; `"none"`: the role is not played; None: the shipped sample plays it, if there is
        one.

    Raises:
        ValueError: `models.json` is no object of names, or names a role that there is not.
    """
    saved: Any = json.loads(MODELS_FILE.read_text("utf-8")) if MODELS_FILE.is_file() else {}
    roles = [role.name for role in ROLES]
    if not isinstance(saved, dict) or not all(name in roles and isinstance(saved[name], str) for name in saved):
        raise ValueError(f"{MODELS_FILE}: should be an object of repositories, with keys among {', '.join(roles)}.")
    otherwise = {role.name: NONE if saved and role.sample else None for role in ROLES}
    return {
        name: arguments.get(name) or environment.get(role.variable) or saved.get(name, otherwise[name])
        for role in ROLES
        for name in [role.name]
    }


def open_models(names: Mapping[str, str | None], samples: Path) -> dict[str, Opened]:
    """Opens a model for each role that is played.

    Args:
        names: As `chosen_names` gives them.
        samples: Folder where converted samples are kept.

    Returns:
        Role -> its model. Without a classifier of its own the page classifies with GLM-130B.

    Raises:
        ValueError: a model of the wrong type, or none at all.
        OSError: there is no such folder or repository.
    """
    opened: dict[str, Opened] = {}
    for role in ROLES:
        name = names.get(role.name)
        if name == NONE or (name is None and role.sample is None):
            continue
        folder = name if name is not None else str(_sample(role, samples))
        print(f"{role.name}: {name or 'the shipped sample'}", flush=True)
        opened[role.name] = _open(role, folder, name is None)
    return _with_classifier(names, opened)


def unopened(names: Mapping[str, str | None]) -> dict[str, Opened]:
    """Roles as `open_models` would fill them, without their models: enough to lay the page out.

    Args:
        names: As `chosen_names` gives them.
    """
    opened = {
        role.name: Opened(str(name), str(name), role.model_types[0], 0, None, None)
        for role in ROLES
        if (name := names.get(role.name)) != NONE and (name is not None or role.sample is not None)
    }
    return _with_classifier(names, opened)


def _with_classifier(names: Mapping[str, str | None], opened: dict[str, Opened]) -> dict[str, Opened]:
    if names.get(CLASSIFIER.name) is None and GLM.name in opened:
        opened[CLASSIFIER.name] = opened[GLM.name]
    if not opened:
        options = ", ".join(f"--{role.name}" for role in ROLES)
        raise ValueError(f"There is no model to show: name one with {options}, a folder or a Hub repository.")
    return opened


def _open(role: Role, folder: str, is_sample: bool) -> Opened:
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in role.model_types:
        raise ValueError(
            f"--{role.name} {folder}: its model type is {config.model_type!r}; {' or '.join(role.model_types)} is "
            "expected here. Give a folder that a converter of hf_glm_ernie wrote, or a repository made of one."
        )
    auto_class = AutoModelForCausalLM if config.model_type == "glm130b" else AutoModel
    # fp16 is slow on a CPU.
    where: dict[str, Any] = {"device_map": "auto"} if torch.cuda.is_available() else {"dtype": torch.float32}
    model = auto_class.from_pretrained(folder, **where).eval()
    name = type(model).__name__ if is_sample else folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Opened(name, folder, config.model_type, model.num_parameters(), model, tokenizer, is_sample)


def _sample(role: Role, samples: Path) -> Path:
    """The converted sample of a role; converted by the command that converts the released weights."""
    assert role.sample is not None
    family, source = role.sample
    folder = samples / role.name
    if (folder / "conversion.json").is_file():  # every converted folder has this record
        return folder
    if not source.is_dir():
        raise ValueError(
            f"There is no {source}: the samples come with a checkout of {hf_glm_ernie.__name__}. Name a model with "
            f"--{role.name} or {role.variable}, a folder or a Hub repository ('{NONE}': leave it out)."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "conversion", family, f"--source={source}", f"--output={folder.resolve()}"]
    done = subprocess.run(
        [*command, "--dtype=float32", "--no-reference"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"The sample {source} could not be converted:\n{done.stderr.strip()}")
    return folder


__all__ = ["NONE", "ROLES", "Opened", "Role", "chosen_names", "open_models", "unopened"]
