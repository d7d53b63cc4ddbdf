"""The README's commands and code run as printed, on the samples in place of the released checkpoints."""

import contextlib
import re
import shlex
from pathlib import Path

import pytest

from conversion.__main__ import main
from tests.support.fresh import fresh_python

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs the README's conversion in a folder where the sample lies under the names the README uses."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "glm-130b-sat").symlink_to(ROOT / "examples" / "sample-glm130b")
    (folder / "ice_text.model").symlink_to(ROOT / "examples" / "sample-glm130b" / "ice_text.model")
    (folder / "conversion").symlink_to(ROOT / "conversion")
    (folder / "ernie-3.0-base-zh").symlink_to(ROOT / "examples" / "sample-ernie" / "masked-lm")
    (folder / "uie-base").symlink_to(ROOT / "examples" / "sample-ernie" / "uie")
    commands = [body for kind, body in BLOCKS if kind == "bash" and "python -m conversion" in body]
    with contextlib.chdir(folder):
        for command in "".join(commands).splitlines():
            python, option, module, *arguments = shlex.split(command)
            assert (python, option, module) == ("python", "-m", "conversion")
            assert main(arguments) == 0  # in this process: test_convert_glm130b.py starts the command itself
    return folder


PYTHON_BLOCKS = [index for index, (kind, _) in enumerate(BLOCKS) if kind == "python"]


@pytest.mark.parametrize("index", PYTHON_BLOCKS)
def test_python_block_prints_what_stands_below_it(converted: Path, index: int) -> None:
    code, (kind, expected) = BLOCKS[index][1], BLOCKS[index + 1]
    assert kind == "text"
    done = fresh_python(["-c", code], converted, check=True)
    assert done.stdout == expected


def test_demo_lines_are_the_demo_s() -> None:
    shown = next(body for kind, body in BLOCKS if kind == "text")
    blanks = (ROOT / "examples" / "sample-glm130b" / "blanks.jsonl").read_text(encoding="utf-8")
    for line in shown.splitlines():
        if line.startswith("  right  "):
            text = re.sub(r"\[.*?\]", "[MASK]", line.removeprefix("  right  "))
            assert text in blanks or text.removesuffix("[MASK]").strip() in blanks, line


def test_make_targets_exist_and_files_are_where_the_map_says() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    files = next(body for kind, body in BLOCKS if kind == "text" and "hf_glm_ernie/ " in body)
    found: set[Path] = set()
    folder = ""
    for line in files.splitlines():
        names = line.strip().split("  ")[0]
        folder = folder if line.startswith("  ") else ""
        for name in names.split(", "):
            named = set(ROOT.glob(folder + name))
            assert named, f"{folder}{name}"
            found |= named
        folder = folder or names
    package = {path for path in (ROOT / "hf_glm_ernie").iterdir() if path.suffix == ".py" or path.is_dir()}
    left_out = {path.name for path in package - found}
    assert left_out == {"__init__.py", "__main__.py", "__pycache__"} & left_out
