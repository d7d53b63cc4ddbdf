"""How the house is kept: no import in a circle, none that is hidden, files and functions that can be read at once."""

import ast
import graphlib
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.products import PRODUCTS, covering
from tests.support.slow import SLOW
from tests.support.sources import nodes_of

ROOT = Path(__file__).parents[1]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("hf_glm_ernie", "conversion", "examples", "benchmarks", "docs", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
SHIPPED = {name: path for name, path in SOURCES.items() if name.split(".")[0] in ("hf_glm_ernie", "conversion")}

LONGEST_FILE, MEDIAN_FILE, LONGEST_FUNCTION = 550, 200, 50  # lines; of a function, lines of code

IMPORTED_BY_NAME = {
    "hf_glm_ernie": "what training and evaluation need is imported when it is first asked for (PEP 562)",
    "hf_glm_ernie.__main__": "a command's module is imported when the command is asked for",
    "hf_glm_ernie.ernie_shrinking.shrink": "asks for the packages of the export before it trains",
}
"""Module -> why it imports by name or changes how others are imported. Nobody else does."""


def imported(module: str, path: Path) -> Iterator[str]:
    """The modules of the repository that one names in its imports, wherever they stand in the file."""
    here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in SOURCES else source


def test_imports_make_no_circle() -> None:
    graph = {name: {one for one in imported(name, path) if one in SHIPPED} for name, path in SHIPPED.items()}
    assert graph["hf_glm_ernie.modeling_glm130b"] > {
        "hf_glm_ernie.prefix_glm130b",
        "hf_glm_ernie.configuration_glm130b",
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises a CycleError that names the circle


def test_folders_make_no_circle() -> None:
    """A folder of the package uses the flat files, and other folders in one direction only."""

    def folder(module: str) -> str:
        return module.split(".")[1] if module.count(".") > 1 or SHIPPED[module].name == "__init__.py" else "hub"

    graph: dict[str, set[str]] = {}
    for name, path in SHIPPED.items():
        if name.startswith("hf_glm_ernie.") and name != "hf_glm_ernie.__main__":  # the command stands above all
            used = {one for one in imported(name, path) if one in SHIPPED and one != "hf_glm_ernie"}
            graph.setdefault(folder(name), set()).update(folder(one) for one in used if folder(one) != folder(name))
    assert not graph["hub"]
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", SHIPPED)
def test_no_import_is_hidden(module: str) -> None:
    """What imports by name, or changes how others are imported, is named above with its reason."""
    hidden = set()
    for node in nodes_of(SHIPPED[module]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            hidden |= {name for name in names if name.split(".")[0] == "importlib" and name != "importlib.metadata"}
        elif isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            hidden |= {name} & {"meta_path", "path_hooks", "__import__", "import_module"}
    assert not hidden or module in IMPORTED_BY_NAME, f"{module}: {sorted(hidden)}"


def test_who_imports_by_name_is_still_there() -> None:
    for module in IMPORTED_BY_NAME:
        assert any(word in SHIPPED[module].read_text(encoding="utf-8") for word in ("importlib", "meta_path")), module


def test_what_is_marked_slow_is_still_there() -> None:
    for file, guards in SLOW.items():
        there = {node.name for node in nodes_of(ROOT / "tests" / file) if isinstance(node, ast.FunctionDef)}
        for name in (name for names in guards.values() for name in names):
            assert name.removeprefix("@").partition("[")[0] in there, (file, name)


def test_what_is_marked_a_product_is_one() -> None:
    for file, names in PRODUCTS.items():
        functions = [node for node in nodes_of(ROOT / "tests" / file) if isinstance(node, ast.FunctionDef)]
        parametrized = {
            one.name: sum("parametrize" in ast.unparse(d) for d in one.decorator_list) for one in functions
        }
        assert {name: parametrized.get(name, 0) for name in names if parametrized.get(name, 0) < 2} == {}, file


def test_chosen_combinations_have_every_value() -> None:
    combinations = [{("a", i), ("b", j), ("c", k)} for i in range(4) for j in range(3) for k in range(2)]
    chosen = covering(combinations)
    assert set().union(*(combinations[number] for number in chosen)) == set().union(*combinations)
    assert len(chosen) == 4  # as many as the longest has values
    assert covering([]) == set()


def lines_of_code(node: ast.AST, lines: list[str]) -> int:
    """Lines of a function without docstrings, comments and blank ones."""
    no_code: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner) is not None:
            text = inner.body[0]
            no_code |= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    rows = range(node.lineno, node.end_lineno + 1)  # type: ignore[attr-defined]  # a function has both
    return sum(row not in no_code and lines[row - 1].strip()[:1] not in ("", "#") for row in rows)


@pytest.mark.parametrize("module", SHIPPED)
def test_files_and_functions_can_be_read_at_once(module: str) -> None:
    lines = SHIPPED[module].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST_FILE
    functions = [node for node in nodes_of(SHIPPED[module]) if isinstance(node, ast.FunctionDef)]
    assert not {one.name: size for one in functions if (size := lines_of_code(one, lines)) > LONGEST_FUNCTION}


def test_half_of_the_files_are_short() -> None:
    sizes = [len(path.read_text(encoding="utf-8").splitlines()) for path in SHIPPED.values()]
    assert statistics.median(sizes) <= MEDIAN_FILE
