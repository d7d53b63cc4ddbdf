"""Runs the host library's own test suites on our classes: `python tests/conformance/run.py [pytest arguments]`.

The suites are not part of the `transformers` wheel and none of their files is kept here. They come from a checkout
named by `TRANSFORMERS_SRC`, else from the source distribution of the installed version, which is downloaded once.
Either is copied under `.conformance/`, our test files go beside the host's (into `tests/models/`, where the host keeps
a model's tests), and pytest runs there. Modules that a source distribution leaves out get an empty stand-in; what is
therefore not tested is said before and after the run.
"""
# ruff: noqa: T201  (a command: what it prints is its answer)

import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = Path(__file__).resolve().parent
WORK = REPOSITORY / ".conformance"
OUR_TESTS = (
    "modeling_glm130b.py",
    "modeling_ernie3.py",
    "tokenization_glm130b.py",
    "tokenization_ernie.py",
    "tokenization_ernie3.py",
)

# Path in the host's tree -> the text that stands in for it where it is absent.
STAND_INS = {
    "tests/__init__.py": "",
    "tests/models/__init__.py": "",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    # What the configuration suite sets on every config. The values are ours: any that are not the defaults will do.
    "tests/utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        "    'return_dict': False,\n"
        "    'output_hidden_states': True,\n"
        "    'dtype': 'float16',\n"
        "    'architectures': ['SomeModel'],\n"
        "    'problem_type': 'regression',\n"
        "}\n"
    ),
    "tests/fixtures/sample_text.txt": "A text.\n\n千里之行，始于足下。\n",
}
# Of these, the ones that are a suite and not a helper.
SUITES = {
    "tests/generation/test_utils.py": "generation (GenerationTesterMixin)",
    "tests/exporters/test_export.py": "torch.export and ONNX (ExportTesterMixin)",
}

PYTEST_INI = """[pytest]
timeout = 300
filterwarnings =
    ignore::pytest.PytestUnknownMarkWarning
    ignore::DeprecationWarning
    ignore::FutureWarning
"""


def main(pytest_arguments: list[str]) -> int:
    """Builds the tree, runs pytest in it and returns pytest's exit code."""
    installed = version("transformers")
    checkout = os.environ.get("TRANSFORMERS_SRC")
    tree = WORK / f"tree-{installed}"
    shutil.rmtree(tree, ignore_errors=True)
    if checkout:
        copy_checkout(Path(checkout).expanduser().resolve(), installed, tree)
    else:
        unpack_sdist(installed, tree)
    absent = fill_gaps(tree)
    add_our_files(tree)
    notice = describe(installed, checkout, absent)
    print(notice, flush=True)
    code = run_pytest(tree, pytest_arguments)
    print(notice)
    return code


def describe(installed: str, checkout: str | None, absent: list[str]) -> str:
    """Says where the suites come from and which ones are missing."""
    origin = f"the checkout {checkout}" if checkout else "its source distribution"
    notice = f"transformers {installed}, test suites from {origin}."
    if absent:
        notice += f" NOT in there and not run: {'; '.join(absent)}."
    if absent and not checkout:
        notice += f" Set TRANSFORMERS_SRC to a checkout of the tag v{installed} to run them too."
    return notice


def copy_checkout(checkout: Path, installed: str, tree: Path) -> None:
    """Copies the tests of a checkout, except those of the host's own models.

    Raises:
        SystemExit: not a checkout of transformers, or of another version than the installed one.
    """
    init = checkout / "src" / "transformers" / "__init__.py"
    for needed in (init, checkout / "tests" / "test_modeling_common.py"):
        if not needed.is_file():
            sys.exit(f"TRANSFORMERS_SRC={checkout} is no checkout of transformers: it has no {needed}.")
    found = re.search(r'^__version__ = "(.+)"', init.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None or found[1] != installed:
        sys.exit(
            f"TRANSFORMERS_SRC={checkout} is version {found[1] if found else 'unknown'}, but transformers {installed} "
            f"is installed. Check out the tag v{installed} there, or install the other version here."
        )
    for folder in ("tests", "utils"):  # the host's tests import helpers from utils/
        if (checkout / folder).is_dir():
            shutil.copytree(checkout / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "models"))


def unpack_sdist(installed: str, tree: Path) -> None:
    """Unpacks the tests of the installed version's source distribution, downloaded unless it is there.

    Raises:
        SystemExit: the download failed.
    """
    archive = WORK / f"transformers-{installed}.tar.gz"
    if not archive.is_file():
        WORK.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        command += ["--dest", str(WORK), f"transformers=={installed}"]
        if subprocess.run(command, check=False).returncode or not archive.is_file():
            sys.exit(
                f"{archive.name} could not be downloaded ({' '.join(command)}). Put the file into {WORK}, or set "
                f"TRANSFORMERS_SRC to a checkout of the tag v{installed}."
            )
    prefix = f"transformers-{installed}/"
    with tarfile.open(archive) as sdist:
        members = [member for member in sdist.getmembers() if member.name.startswith(f"{prefix}tests/")]
        for member in members:
            member.name = member.name.removeprefix(prefix)
        sdist.extractall(tree, members=members, filter="data")


def fill_gaps(tree: Path) -> list[str]:
    """Writes stand-ins for what is absent; returns the suites among it."""
    absent = [path for path in STAND_INS if not (tree / path).exists()]
    for path in absent:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(STAND_INS[path], encoding="utf-8")
    return [SUITES[path] for path in absent if path in SUITES]


def add_our_files(tree: Path) -> None:
    """Puts our tests and settings into the tree."""
    folder = tree / "tests" / "models" / "glm130b"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name in OUR_TESTS:
        shutil.copy(OURS / name, folder / f"test_{name}")
    shutil.copy(OURS / "cache_names.py", folder)
    shutil.copy(OURS / "skip_report.py", tree / "conftest.py")
    (tree / "pytest.ini").write_text(PYTEST_INI, encoding="utf-8")


def run_pytest(tree: Path, arguments: list[str]) -> int:
    """Runs pytest in the tree; this repository comes behind it on the path, for both have a package called `tests`."""
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment.setdefault("OMP_NUM_THREADS", "1")  # the models are too small to share among threads
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=short", "--show-capture=no"]
    command += ["-rfE", "tests/models/glm130b", *arguments]
    return subprocess.run(command, cwd=tree, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
