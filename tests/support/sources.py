"""The syntax of source files, read once for a test file (`conftest.py`): several of its tests walk through all."""

import ast
import functools
from pathlib import Path


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a file, its module first."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
