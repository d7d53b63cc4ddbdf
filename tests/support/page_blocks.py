"""Runs the blocks of a page of docs/ as they are printed there."""

import contextlib
import io
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversion import __main__ as command
from examples import export_ernie, made_up_labels
from hf_glm_ernie import __main__ as package_main
from tests.support.strangers import PREAMBLE, run_python

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
SHOWN = re.compile(r"\n\n```text\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def finetune_ernie(words: list[str]) -> int:
    """The script, on the CPU; it needs packages that not every page needs."""
    from examples import finetune_ernie as script

    return int(script.main([*words, "--use_cpu"]) is None)


def train_retrieval(words: list[str]) -> int:
    """The same for retrieval."""
    from examples import train_retrieval as script

    return int(script.main([*words, "--use_cpu"]) is None)


PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "python -m conversion": command.main,
    "python examples/export_ernie.py": export_ernie.main,
    "python examples/finetune_ernie.py": finetune_ernie,
    "python examples/train_retrieval.py": train_retrieval,
    "python examples/made_up_labels.py": lambda words: made_up_labels.main(words) or 0,
    "python -m hf_glm_ernie": package_main.main,
}
"""What the `bash` blocks of the pages run."""


@dataclass(frozen=True)
class Ran:
    """A block that ran: its text, what it printed, and what the page shows below it (`None`: nothing)."""

    body: str
    printed: str
    shown: str | None


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def run_page(page: str) -> list[Ran]:
    """Runs the blocks of a page in the current folder."""
    text = text_of(page)
    names: dict[str, Any] = {}
    ran = []
    for block in BLOCK.finditer(text):
        kind, body = block.groups()
        if kind == "text":
            continue
        assert kind in ("python", "bash"), f"{page}: nobody runs {kind}"
        below = SHOWN.match(text, block.end())
        with contextlib.redirect_stdout(io.StringIO()) as out:
            if kind == "bash":
                for line in body.replace("\\\n", " ").splitlines():
                    names_program = next((start for start in PROGRAMS if line.startswith(f"{start} ")), None)
                    assert names_program, f"{page}: nobody runs {line}"
                    assert PROGRAMS[names_program](shlex.split(line.removeprefix(names_program))) == 0, line
            elif "trust_remote_code" in body:
                out.write(run_python(PREAMBLE + body, Path.cwd()).stdout)
            else:
                exec(compile(body, page, "exec"), names)
        ran.append(Ran(body, out.getvalue(), below and below[1]))
    return ran


def check_shown(ran: list[Ran]) -> None:
    assert any(block.shown for block in ran)
    for block in ran:
        assert block.shown is None or block.printed == block.shown, block.body
