"""The names people import, and that importing registers them; a change here is a change for users (CHANGELOG)."""

import ast
import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
from transformers.utils import ModelOutput

import hf_glm_ernie
from tests.support.fresh import fresh_python

ROOT = Path(__file__).parents[1]
# The host's encoders once more, for folders of integer weights on the Hub: here people take the host's own.
HUB_ONLY = "modeling_ernie_quantized"


def names_imported(source: str) -> set[str]:
    """Names that Python text imports from the package itself."""
    return {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == "hf_glm_ernie" and not node.level
        for alias in node.names
    }


def test_every_public_name_is_there_once_and_is_what_it_says() -> None:
    names = hf_glm_ernie.__all__
    assert len(set(names)) == len(names) > 80
    for name in names:
        found = getattr(hf_glm_ernie, name)
        assert name in dir(hf_glm_ernie)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert found.__name__ == name
            assert found.__module__.startswith("hf_glm_ernie.")
        else:
            assert isinstance(found, Mapping | Sequence), f"{name} is {found!r}: neither code nor a table"


@pytest.mark.parametrize("name", hf_glm_ernie.__all__)
def test_every_public_name_is_explained_and_in_the_reference(name: str) -> None:
    found = getattr(hf_glm_ernie, name)
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", reference, flags=re.DOTALL | re.MULTILINE)
    assert section is not None, f"docs/api.md has no section {name}: list it in docs/make_api.py"
    assert f"`from hf_glm_ernie import {name}`" in section[1]
    if not inspect.isclass(found) and not inspect.isfunction(found):
        return
    text = vars(found).get("__doc__") if inspect.isclass(found) else found.__doc__  # a class's own, not its parent's
    assert text, f"{name} has no docstring"
    first = text.strip().splitlines()[0]
    assert first.endswith((".", ":")), f"{name}: the first line is no sentence: {first!r}"


def test_nothing_public_is_left_out() -> None:
    """What the package imports, what a file offers as a model, config or tokenizer, what pages and examples import."""
    listed = set(hf_glm_ernie.__all__)
    tree = ast.parse(Path(hf_glm_ernie.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert imported == listed
    for file in Path(hf_glm_ernie.__file__).parent.glob("*.py"):
        role = file.stem.partition("_")[0]
        if role not in ("configuration", "modeling", "tokenization") or file.stem == HUB_ONLY:
            continue
        module = importlib.import_module(f"hf_glm_ernie.{file.stem}")
        kinds = (PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ModelOutput)
        for name in getattr(module, "__all__", vars(module)):
            offered = getattr(module, name)
            if inspect.isclass(offered) and issubclass(offered, kinds) and offered.__module__ == module.__name__:
                assert name in listed, f"{file.name} offers {name}"
    pages = {*(ROOT / "docs").glob("*.md"), ROOT / "README.md"} - {ROOT / "docs" / "api.md"}  # signatures, not code
    for page in pages:
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE):
            assert names_imported(block) <= listed, page.name
    for script in (ROOT / "examples").rglob("*.py"):
        assert names_imported(script.read_text(encoding="utf-8")) <= listed, script.name


def test_registered_with_the_auto_classes() -> None:
    config = transformers.AutoConfig.for_model("glm130b")
    assert type(config) is hf_glm_ernie.Glm130bConfig
    assert transformers.AutoModel._model_mapping[type(config)] is hf_glm_ernie.Glm130bModel
    assert transformers.AutoModelForCausalLM._model_mapping[type(config)] is hf_glm_ernie.Glm130bForCausalLM
    assert TOKENIZER_MAPPING[type(config)] is hf_glm_ernie.Glm130bTokenizer


def test_ernie_heads_are_registered_and_the_hosts_own_choices_stay() -> None:
    heads = {
        "gplinker": hf_glm_ernie.ErnieForGPLinker,
        "uie": hf_glm_ernie.ErnieForUIE,
        "utc": hf_glm_ernie.ErnieForUTC,
    }
    for name, model in heads.items():
        model_type = f"ernie_{name}"
        config = transformers.AutoConfig.for_model(model_type)
        assert transformers.AutoModel._model_mapping[type(config)] is model
        assert TOKENIZER_MAPPING[type(config)] is hf_glm_ernie.ErnieTokenizer
    assert transformers.AutoModel._model_mapping[transformers.ErnieConfig] is transformers.ErnieModel
    assert TOKENIZER_MAPPING[transformers.ErnieConfig].__name__.startswith("BertTokenizer")


def test_the_unified_framework_is_registered_with_every_head() -> None:
    config = transformers.AutoConfig.for_model("ernie3")
    assert type(config) is hf_glm_ernie.Ernie3Config
    assert transformers.AutoModel._model_mapping[type(config)] is hf_glm_ernie.Ernie3Model
    for task in (
        *("PreTraining", "CausalLM", "MaskedLM", "SequenceClassification", "TokenClassification"),
        *("QuestionAnswering", "MultipleChoice"),
    ):
        auto = getattr(transformers, f"AutoModelFor{task}")
        assert auto._model_mapping[type(config)] is getattr(hf_glm_ernie, f"Ernie3For{task}")
    assert TOKENIZER_MAPPING[type(config)] is hf_glm_ernie.Ernie3Tokenizer


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        hf_glm_ernie.nothing  # noqa: B018


def test_importing_twice_is_harmless_and_leaves_converters_out() -> None:
    code = (
        "import sys, importlib, hf_glm_ernie; importlib.reload(hf_glm_ernie); "
        "print([m for m in sys.modules if m.startswith(('hf_glm_ernie.conversion', 'peft', 'datasets'))])"
    )
    done = fresh_python(["-c", code], check=True)
    assert done.stdout.strip() == "[]"
