"""Makes a Hub Space of the page in `examples/space`: a folder that the Hub builds and runs.

The page's own files go as they are. Three are written: `models.json` says which repositories the page opens, the
card's header names them too, and `requirements.txt` asks for the version of this package that made the Space. A
package index need not have that version: with a wheel the Space carries the package itself, and installs it from its
own address.

In order, as for a model: look and plan, build, check, and only where asked for, push. The check compiles every file
and looks whether everything that is imported comes along or is required; where Gradio is installed, a fresh process
lays the page out as well. It opens no model, for the repositories may not be there yet.
"""

import ast
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import SpaceCard, constants

import hf_glm_ernie

from .folder_files import write_json
from .interruption import interruptible
from .output_path import flush, incomplete_of
from .publish import explained
from .publish_card import PACKAGE
from .publish_check import FULL, STRUCTURE
from .publish_config import PublishError
from .publish_folder import CARD, Building, is_left_behind, refuse_published
from .publish_hub import check_repo_name
from .publish_settings import refuse_secrets
from .regular_files import read_regular

PAGE = Path(__file__).resolve().parent.parent / "examples" / "space"
SDK = "gradio"
ROLES = ("glm", "uie", "classifier")
MODELS, REQUIREMENTS, APP = "models.json", "requirements.txt", "app.py"
BROUGHT = frozenset((SDK, "hf_glm_ernie", "torch", "transformers", *sys.stdlib_module_names))
"""What a file of the page may import beside the others: what the requirements bring."""
CHECK_SECONDS = 300


@dataclass(frozen=True)
class SpacePublication:
    """A Space that is fully planned.

    Attributes:
        repo: `OWNER/NAME` of the Space.
        output: Folder to be made; absolute.
        models: Role -> repository of the model that plays it.
        copied: Files of the page that go as they are.
        requirements: Lines of requirements.txt.
        wheel: The package, if the Space carries it.
        mode: Kind of check, `FULL` or `STRUCTURE`.
        why: What decided on it.
        notices: What the user should know, one line each.
    """

    repo: str
    output: Path
    models: Mapping[str, str]
    copied: Mapping[str, bytes]
    requirements: tuple[str, ...]
    wheel: Path | None
    mode: str
    why: str
    notices: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Every file of the Space."""
        carried = [] if self.wheel is None else [self.wheel.name]
        return sorted([*self.copied, MODELS, REQUIREMENTS, CARD, *carried])

    def describe(self) -> str:
        """The plan in a few lines."""
        lines = [
            f"the page -> Space {self.repo}",
            f"  folder       {self.output}",
            *(f"  {role:<12} {repo}" for role, repo in self.models.items()),
            f"  requires     {', '.join(self.requirements)}",
            f"  check        {self.mode}: {self.why}",
        ]
        return "\n".join([*lines, *(f"  note: {notice}" for notice in self.notices)])


def plan_space(
    repo: str, models: Mapping[str, str | None], output: Path, wheel: Path | None = None, check: str = "auto"
) -> SpacePublication:
    """Looks at everything that can be seen to fail before anything is made.

    Args:
        repo: `OWNER/NAME` of the Space.
        models: Role (`glm`, `uie`, `classifier`) -> repository on the Hub, or None.
        output: Folder to be made.
        wheel: This version of the package, to be carried.
        check: `"auto"`, `FULL` or `STRUCTURE`.

    Raises:
        PublishError: a name or the wheel will not do, there is no model, no checkout, or no Gradio for a full check.
        WriteError: the output exists.
    """
    check_repo_name(repo)
    chosen = {role: name for role in ROLES if (name := models.get(role)) is not None}
    if not chosen:
        options = ", ".join(f"--{role}" for role in ROLES)
        raise PublishError(f"A Space needs a model: name one or more with {options}, as OWNER/NAME on the Hub.")
    for role, name in chosen.items():
        _check_model_name(role, name)
    if not (PAGE / APP).is_file():
        raise PublishError(
            f"{PAGE}: the page is not there. It comes with a checkout of {PACKAGE}; run `python -m conversion publish "
            "--space` in one."
        )
    output = output.absolute()
    refuse_published(output)
    building = incomplete_of(output)
    notices = [f"{building}, left by a run that was killed, is cleared"] if is_left_behind(building) else []
    copied = {path.name: read_regular(path) for path in sorted(PAGE.iterdir()) if path.suffix in (".py", ".css")}
    for name, content in copied.items():
        refuse_secrets(content.decode("utf-8"), str(PAGE / name))
    if wheel is None:
        notices.append(
            f"the Space takes {PACKAGE} {hf_glm_ernie.__version__} from the package index; where it is not there, "
            "--wheel FILE.whl sends it along"
        )
    else:
        _check_wheel(wheel)
    mode, why = _choose_check(check)
    requirements = _requirements(repo, wheel)
    return SpacePublication(repo, output, chosen, copied, requirements, wheel, mode, why, tuple(notices))


def default_space_output(repo: str) -> Path:
    """Where the Space's folder goes unless told otherwise: here, under its name."""
    return Path(f"{repo.rpartition('/')[2]}_space").absolute()


def _check_model_name(role: str, name: str) -> None:
    try:
        check_repo_name(name)
    except PublishError as error:
        raise PublishError(str(error).replace("--repo", f"--{role}", 1)) from error


def _check_wheel(wheel: Path) -> None:
    expected = f"{PACKAGE.replace('-', '_')}-{hf_glm_ernie.__version__}-py3-none-any.whl"
    if wheel.name != expected:
        raise PublishError(f"--wheel {wheel}: {expected} is expected. `pip wheel --no-deps .` in a checkout makes it.")
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise PublishError(f"--wheel {wheel}: cannot be read ({error}). `pip wheel --no-deps .` makes it.") from error
    if "hf_glm_ernie/__init__.py" not in names:
        raise PublishError(f"--wheel {wheel}: holds no hf_glm_ernie. `pip wheel --no-deps .` in a checkout makes it.")


def _choose_check(check: str) -> tuple[str, str]:
    try:
        there = importlib.metadata.version(SDK)
    except importlib.metadata.PackageNotFoundError:
        there = None
    if check == STRUCTURE:
        return STRUCTURE, "as asked for"
    if there is not None:
        return FULL, f"laid out in a fresh process, with {SDK} {there}"
    if check == FULL:
        raise PublishError(f"--check full needs {SDK}: pip install '{PACKAGE}[page]', or take --check structure.")
    return STRUCTURE, f"every file compiled and its imports looked at; {SDK}, to lay the page out, is not installed"


def _requirements(repo: str, wheel: Path | None) -> tuple[str, ...]:
    """The page's requirements, with this version of the package."""
    lines = [line.strip() for line in (PAGE / REQUIREMENTS).read_text("utf-8").splitlines()]
    others = [line for line in lines if line and not line.startswith("#") and re.split(r"[=<>@ ]", line)[0] != PACKAGE]
    ours = f"{PACKAGE}=={hf_glm_ernie.__version__}"
    if wheel is not None:  # the Hub installs before it has the Space's files in place, but it serves them
        ours = f"{PACKAGE} @ {constants.ENDPOINT}/spaces/{repo}/resolve/main/{wheel.name}"
    return (*others, ours)


def publish_space(plan: SpacePublication) -> dict[str, str]:
    """Makes the Space's folder; either it is complete and checked, or it is not there.

    Args:
        plan: The plan.

    Returns:
        File -> SHA-256, of every file of the folder.

    Raises:
        PublishError: the check fails, or the disk is full.
    """
    about = {"repo": plan.repo, "source": str(PAGE)}
    with interruptible(), explained(plan.output), Building(plan.output, plan.names, about) as building:
        folder = building.path
        for name, content in plan.copied.items():
            (folder / name).write_bytes(content)
        write_json(folder / MODELS, plan.models)
        (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in plan.requirements), encoding="utf-8")
        if plan.wheel is not None:
            (folder / plan.wheel.name).write_bytes(read_regular(plan.wheel))
        _card(plan).save(folder / CARD)
        _check_imports(folder)
        if plan.mode == FULL:
            _lay_out(folder)
        for name in plan.names:
            flush(folder / name)
        sha256 = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in plan.names}
        building.publish(sha256)
    return sha256


def _card(plan: SpacePublication) -> SpaceCard:
    """The page's own card; its header names the models, so that the Hub links them."""
    card = SpaceCard.load(PAGE / CARD)
    card.data.models = sorted(set(plan.models.values()))
    pinned = [line for line in plan.requirements if line == f"{SDK}=={card.data.sdk_version}"]
    if card.data.sdk != SDK or not pinned or card.data.app_file != APP:
        raise PublishError(
            f"{PAGE / CARD}: its header should say sdk: {SDK}, app_file: {APP}, and the sdk_version that "
            f"{REQUIREMENTS} pins. Restore the file."
        )
    return card


def _check_imports(folder: Path) -> None:
    """Every file compiles, and imports nothing but its neighbours and what the requirements bring."""
    files = sorted(folder.glob("*.py"))
    known = BROUGHT | {path.stem for path in files}
    for path in files:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=path.name)
        except SyntaxError as error:
            raise PublishError(f"{PAGE / path.name}: is no Python: {error}. Restore the file.") from error
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            if foreign := [name for name in names if name.partition(".")[0] not in known]:
                raise PublishError(
                    f"{PAGE / path.name}: imports {foreign[0]}, which neither is in the Space nor comes with "
                    f"{REQUIREMENTS}."
                )


def _lay_out(folder: Path) -> None:
    """Lays the page out in a fresh process, which finds this package and no folder of a user's."""
    variables = os.environ | {
        "PYTHONPATH": str(Path(hf_glm_ernie.__file__).resolve().parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    variables = {name: value for name, value in variables.items() if not name.startswith("PAGE_")}
    command = [sys.executable, APP, "--check"]
    try:
        done = subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, timeout=CHECK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PublishError(f"The page was not laid out within {CHECK_SECONDS} seconds. Run again.") from error
    if done.returncode:
        raise PublishError(f"The page cannot be laid out:\n{done.stderr.strip()[-2000:]}")


__all__ = ["ROLES", "SDK", "SpacePublication", "default_space_output", "plan_space", "publish_space"]
