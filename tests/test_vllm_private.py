"""The names of vLLM that the plugin uses: all listed, and there in the vLLM that is installed."""

import ast
import inspect
from pathlib import Path

import pytest

from tests.support import serving
from tests.support.host_private import HostName, resolve
from tests.support.vllm_private import VLLM_PRIVATE

PLUGIN = Path(__file__).parents[1] / "hf_glm_ernie" / "vllm_plugin"


def test_every_import_of_vllm_is_listed() -> None:
    listed = {(row.place.partition(":")[0], row.place.partition(":")[2].split(".")[0]) for row in VLLM_PRIVATE}
    used = {
        (node.module, alias.name)
        for path in sorted(PLUGIN.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm"
        for alias in node.names
    }
    assert used - listed == set()
    assert len({row.place for row in VLLM_PRIVATE}) == len(VLLM_PRIVATE)


@pytest.mark.parametrize("row", VLLM_PRIVATE, ids=lambda row: row.place)
def test_this_vllm_has_it(row: HostName) -> None:
    pytest.importorskip("vllm", reason=serving.MISSING)
    value = resolve(row.place)
    missing = set(row.parameters) - set(inspect.signature(value).parameters) if row.parameters else set()
    assert not missing, f"{row.place} does not take {sorted(missing)}: {row.why}"
