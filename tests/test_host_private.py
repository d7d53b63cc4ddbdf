"""The names of the host that we use and it does not promise. On a new version of the host this file fails first
(`conftest.py` puts it there) and says which are gone, or take other arguments.
"""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version

import hf_glm_ernie
from tests.support.host_private import HOST_PRIVATE, HostName, resolve
from tests.support.sources import nodes_of
from tests.support.vllm_private import VLLM_PRIVATE

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for folder in ("hf_glm_ernie", "conversion", "examples") for path in sorted((ROOT / folder).rglob("*.py"))
]
HOSTS = ("transformers", "peft", "accelerate", "huggingface_hub", "torch")
# Modules whose names are documented and have not moved.
PROMISED = ("transformers", "transformers.modeling_outputs", "peft", "huggingface_hub")


IN_THIS_HOST = [row for row in HOST_PRIVATE if Version(row.since) <= Version(transformers.__version__)]


@pytest.mark.parametrize("row", IN_THIS_HOST, ids=lambda row: row.place)
def test_the_host_has_it(row: HostName) -> None:
    value = resolve(row.place)
    if row.parameters:
        missing = set(row.parameters) - set(inspect.signature(value).parameters)
        assert not missing, f"{row.place} does not take {sorted(missing)}: {row.why}"


def test_every_row_has_a_place_of_its_own_and_a_reason() -> None:
    assert len({row.place for row in HOST_PRIVATE}) == len(HOST_PRIVATE)
    assert all(row.why for row in HOST_PRIVATE)


LISTED = {name for row in (*HOST_PRIVATE, *VLLM_PRIVATE) for name in row.place.partition(":")[2].split(".")}


def test_nothing_deep_in_the_host_is_imported_unlisted() -> None:
    unlisted = []
    for path in SOURCES:
        for node in nodes_of(path):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in HOSTS[:4]:
                if node.module in PROMISED:
                    continue
                promised = {"logging", "ModelOutput"} if node.module == "transformers.utils" else set()
                names = {alias.name for alias in node.names} - LISTED - promised
                unlisted += [f"{path.name}: {node.module}.{name}" for name in sorted(names)]
    assert not unlisted


def _ours() -> set[str]:
    """Every name that our own sources define or assign."""
    names = set()
    for path in SOURCES:
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def test_no_private_attribute_of_a_host_is_used_unlisted() -> None:
    ours = _ours() | {"_asdict", "_replace", "_exit"}  # of named tuples, and of os
    unlisted = set()
    for path in SOURCES:
        for node in nodes_of(path):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr[:2] != "__"
            if private and node.attr not in ours | LISTED:
                unlisted.add(f"{path.name}:{node.lineno} {node.attr}")
    assert not unlisted


def _host_bases(cls: type) -> Iterator[type]:
    return (base for base in cls.__mro__[1:] if base.__module__.split(".")[0] in HOSTS)


def _our_classes() -> list[type]:
    found: set[type] = set()
    for info in pkgutil.walk_packages(hf_glm_ernie.__path__, "hf_glm_ernie."):
        if info.name.split(".")[-1] in ("lm_eval", "__main__") or "vllm_plugin" in info.name:
            # the harness's class; a command; what only vLLM imports (tests/test_vllm_private.py)
            continue
        module = importlib.import_module(info.name)
        found |= {
            value
            for value in vars(module).values()
            if inspect.isclass(value) and value.__module__ == module.__name__ and any(_host_bases(value))
        }
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


OUR_CLASSES = _our_classes()


@pytest.mark.parametrize("cls", OUR_CLASSES, ids=lambda cls: cls.__name__)
def test_private_overrides_are_listed(cls: type) -> None:
    unlisted = [
        name
        for name in vars(cls)
        if name.startswith("_")
        and not name.startswith("__")
        and any(name in vars(base) for base in _host_bases(cls))
        and name not in LISTED
        # what abc, dynamo, autograd and the host's own decorators leave on a class
        and not name.startswith(("_abc", "_dynamo", "_backward_cls", "_can_record"))
    ]
    assert not unlisted


def _overridden(cls: type) -> Iterator[tuple[str, Any, Any]]:
    for name, ours in vars(cls).items():
        if name.startswith("__") or not (inspect.isfunction(ours) or isinstance(ours, classmethod | staticmethod)):
            continue
        for base in _host_bases(cls):
            theirs = vars(base).get(name)
            if inspect.isfunction(theirs) or isinstance(theirs, classmethod | staticmethod):
                yield name, getattr(cls, name), getattr(base, name)
                break


@pytest.mark.parametrize("cls", OUR_CLASSES, ids=lambda cls: cls.__name__)
def test_overrides_take_what_the_host_passes(cls: type) -> None:
    """Every parameter of a host's method is one of ours, or goes through `*args` and `**kwargs`."""
    for name, ours, theirs in _overridden(cls):
        if name == "forward":
            continue  # called by name by whoever calls the model
        mine = inspect.signature(ours).parameters
        kinds = {parameter.kind for parameter in mine.values()}
        if kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}:
            continue
        fixed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        needed = {
            key for key, parameter in inspect.signature(theirs).parameters.items() if parameter.kind not in fixed
        }
        assert needed <= set(mine), f"{cls.__name__}.{name} does not take {sorted(needed - set(mine))}"
