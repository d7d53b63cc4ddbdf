"""Blocks of one section of a page in docs/."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def shown(page: str, section: str) -> tuple[str, str, str]:
    """Commands, Python and what it prints: the section's only blocks of the kinds bash, python and text."""
    rest = (DOCS / page).read_text("utf-8").partition(f"\n## {section}\n")[2]
    text = rest.partition("\n## ")[0]
    kinds = ("bash", "python", "text")
    found = [re.findall(rf"^```{kind}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE) for kind in kinds]
    assert all(len(blocks) <= 1 for blocks in found)
    commands, python, printed = ((blocks or [""])[0] for blocks in found)
    return commands, python, printed
