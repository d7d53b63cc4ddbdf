"""Who may import whom: one direction inside the repository, and only what the Hub copies in files that travel to
it.
"""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from tests.support.fresh import fresh_python
from tests.support.sources import nodes_of

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_glm_ernie"
HUB_FILES = sorted(path for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__"))
"""Flat means that it travels to the Hub; what is in a folder never does."""
HUB_IMPORTS = {
    "torch",
    "transformers",
    "huggingface_hub",
    "tokenizers",
    "tqdm",
    "numpy",
    "packaging",
    *sys.stdlib_module_names,
}
# What each role may import from beside it, lowest first.
BELOW: dict[str, set[str]] = {
    "host": {"host"},
    "configuration": {"configuration"},
    "inputs": {"host", "configuration", "prefix", "attention", "compact"},
    "compact": {"weight"},
    "prefix": {"host", "configuration"},
    "rotary": {"host", "configuration"},
    "attention": {"configuration"},
    "memory": {"configuration", "attention"},
    "generation": {"host", "configuration", "prefix", "memory"},
    "modeling": {
        *("host", "configuration", "inputs", "prefix", "rotary", "attention", "memory", "generation", "modeling"),
        *("compact", "quantization"),
    },
    "tokenization": {"host", "tokenization"},
    "weight": {"weight"},
    "quantization": {"weight"},
}


def imports(path: Path) -> list[tuple[int, str, bool]]:
    """(level, module, inside a try) of every import of a file."""
    guarded = {id(node) for block in nodes_of(path) if isinstance(block, ast.Try) for node in ast.walk(block)}
    found = []
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, id(node) in guarded) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", id(node) in guarded))
    return found


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.stem)
def test_hub_files_import_only_what_the_hub_has(path: Path) -> None:
    role = path.stem.split("_")[0]
    for level, module, guarded in imports(path):
        if level:
            assert level == 1, f"{path.name}: the Hub copies only files of the same folder, not {'.' * level}{module}"
            assert module.split("_")[0] in BELOW[role], f"{path.name} must not import {module}"
        else:
            assert guarded or module.split(".")[0] in HUB_IMPORTS, f"{path.name}: the Hub brings no {module}"


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.stem)
def test_no_text_looks_like_an_import(path: Path) -> None:
    """The Hub finds imports by a regular expression, in docstrings too."""
    by_regex = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    by_regex |= set(re.findall(r"^\s*import\s+\.(\S+)\s*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert by_regex == {module for level, module, _ in imports(path) if level}


FAMILIES = ("glm130b", "icetext", "rows"), ("ernie",)


def test_the_two_families_do_not_know_each_other() -> None:
    for mine, others in (FAMILIES, FAMILIES[::-1]):
        for path in PACKAGE.glob("*.py"):
            if any(name in path.stem for name in mine):
                beside = {module for level, module, _ in imports(path) if level}
                assert not [module for module in beside if any(name in module for name in others)], path.name


def test_arrows_point_one_way() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not {m.split(".")[0] for level, m, _ in imports(path) if not level} & {
            "conversion",
            "examples",
            "tests",
            "benchmarks",
        }
    for path in (ROOT / "examples").rglob("*.py"):
        assert not {m.split(".")[0] for level, m, _ in imports(path) if not level} & {
            "conversion",
            "tests",
            "benchmarks",
        }
    for path in (ROOT / "conversion").glob("*.py"):
        assert not {m.split(".")[0] for level, m, _ in imports(path) if not level} & {
            "conversion",
            "examples",
            "tests",
            "benchmarks",
        }


def test_a_test_file_never_imports_from_another() -> None:
    """What several need is in `support/`."""
    for path in (ROOT / "tests").glob("test_*.py"):
        beside = [module for _, module, _ in imports(path) if "test_" in module]
        assert not beside, f"{path.name} imports from {', '.join(beside)}"


def test_the_table_knows_no_files_and_the_readers_no_models() -> None:
    state_map = {module.split(".")[0] for _, module, _ in imports(ROOT / "conversion" / "state_map.py")}
    assert not state_map & {"hf_glm_ernie", "transformers", "safetensors", "pathlib", "os", "io"}
    for name in ("lazy_files.py", "torch_files.py", "safetensors_files.py", "writer.py"):
        assert "hf_glm_ernie" not in {module.split(".")[0] for _, module, _ in imports(ROOT / "conversion" / name)}


def test_importing_the_package_registers_and_does_nothing_else() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):  # PEP 562: what is imported when it is first asked for
            assert node.name in ("__getattr__", "__dir__")
            continue
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) == "TYPE_CHECKING"
            continue
        calls = [ast.unparse(child.func) for child in ast.walk(node) if isinstance(child, ast.Call)]
        assert all(call.startswith("Auto") and call.endswith(".register") for call in calls)
        assert isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr)


IMPORTED = """
import json, sys
for name in {before!r}:
    __import__(name)
import torch, transformers
from torch.nn.modules import module
try:
    import six  # leaves a finder of its own, wherever the host comes to it
except ImportError:
    pass

def state():
    kinds = lambda hooks: [f"{{type(h).__module__}}.{{type(h).__name__}}" for h in hooks]
    hooks = [getattr(module, name) for name in sorted(vars(module)) if name.startswith("_global_")]
    named = [f"{{h.__module__}}.{{h.__qualname__}}" for one in hooks if isinstance(one, dict) for h in one.values()]
    return {{"finders": kinds(sys.meta_path), "path hooks": len(sys.path_hooks), "torch": named,
            "others": [sys.excepthook is sys.__excepthook__, str(sys.path), sys.gettrace() is None]}}

before = state()
import hf_glm_ernie
after = state()
for name in {behind!r}:
    __import__(name)
print(json.dumps([before, after, state()]))
"""
LOOK = "hf_glm_ernie.weight_only_adapters.look_at_base_layer"
WAIT = "hf_glm_ernie.finetuning.targets.register_default_targets.<locals>.add_when_adapted"


@pytest.mark.parametrize("peft", ["later", "before", "never"])
def test_the_hooks_that_importing_leaves_are_the_two_there_are(peft: str) -> None:
    """Both torch's, on new submodules: a look at what adapters are put on, and a wait for PEFT's first model."""
    if peft != "never" and importlib.util.find_spec("peft") is None:
        pytest.skip("needs peft (the extra `peft`)")
    code = IMPORTED.format(before=["peft"] if peft == "before" else [], behind=["peft"] if peft == "later" else [])
    done = fresh_python(["-c", code], ROOT, check=True)
    before, after, behind = json.loads(done.stdout.splitlines()[-1])
    ours = [LOOK] if peft == "before" else [LOOK, WAIT]
    assert sorted(after["torch"]) == sorted([*before["torch"], *ours])
    assert before | {"torch": None} == after | {"torch": None} == behind | {"torch": None}
