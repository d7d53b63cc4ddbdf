"""What the Hub imposes on code that travels with weights, seen in processes that have never heard of this package.

Each test names the fact it shows; the first half is about published repositories, the second about the host's own
rules, on toy files, so that a host that changes them is noticed here.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from conversion import publish as publishing
from conversion.publish import plan_publication, publish
from conversion.publish_classes import PUBLISHED
from tests.support.publishing import CODE, ERNIE_TOKENIZER_CODE, make_source
from tests.support.strangers import HIDDEN, MADE_BY, PYTHONS, run_python, stranger

BLANK, ANSWER = "An octopus has [MASK] and blue blood.", "three hearts"
SENTENCE = "巴黎是法国的[MASK]都。"
PYTHON_FILES = "transformers_modules."


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: make_source(name, folder / name) for name in CODE}


@pytest.fixture(scope="module")
def repositories(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Everything published. The command's own check is left out: it does the same, one process for each folder."""
    folder = tmp_path_factory.mktemp("repositories")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing.publish_comparing, "checked", lambda *_: [])
        for name, source in sources.items():
            publish(plan_publication(source, f"me/{name}", folder / name), show_progress=False)
    return {name: folder / name for name in sources}


OPEN = """
import torch, transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers import AutoModelForSequenceClassification

def look(folder, auto, trust, text, **extra):
    trust = {"trust_remote_code": True} if trust else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    model = auto.from_pretrained(folder, dtype=torch.float32, **trust).eval()
    inputs = dict(tokenizer(text, return_tensors="pt")) | {k: torch.tensor(v) for k, v in extra.items()}
    with torch.no_grad():
        outputs = model(**inputs)
    seen = {
        "class": f"{type(model).__module__}.{type(model).__name__}",
        "tokenizer": f"{type(tokenizer).__module__}.{type(tokenizer).__name__}",
        "ids": inputs["input_ids"].tolist(),
        "kinds": sorted({type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__}),
        "quantized": sum(type(m).__name__ == "WeightOnlyLinear" for m in model.modules()),
        "first": next(v for v in outputs.values() if isinstance(v, torch.Tensor)).flatten()[:2000].tolist(),
    }
    if auto is AutoModelForCausalLM:
        made = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        seen["text"] = tokenizer.decode(made[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    return seen
"""
CALLS = {
    "glm": f"AutoModelForCausalLM, 1, {BLANK!r}",
    "glm_int4": f"AutoModelForCausalLM, 1, {BLANK!r}",
    "glm_int8": f"AutoModelForCausalLM, 1, {BLANK!r}",
    "uie": f"AutoModel, 1, {SENTENCE!r}",
    "uie_int8": f"AutoModel, 1, {SENTENCE!r}",
    "gplinker": f"AutoModel, 1, {SENTENCE!r}",
    "utc": f"AutoModel, 1, {SENTENCE!r}, omask_positions=[[1, 3]], cls_positions=[0]",
    "compact": f"AutoModelForSequenceClassification, 1, {SENTENCE!r}",
    "ernie3_int4": f"AutoModelForCausalLM, 1, {SENTENCE!r}",
    "encoder": f"AutoModelForMaskedLM, 0, {SENTENCE!r}",
    "encoder_int4": f"AutoModelForMaskedLM, 1, {SENTENCE!r}",
}


WITHOUT_TRUST = """
def refused(folder, auto):
    try:
        auto.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "opened"
"""
TWICE = """
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
def linears(model):
    return sorted({type(m).__module__ for m in model.modules() if type(m).__name__ == "WeightOnlyLinear"})
"""


def script(repositories: dict[str, Path]) -> str:
    """Without trust first, then two quantized repositories, then every repository, then some saved again."""
    paths = {name: str(path) for name, path in repositories.items()}
    calls = "".join(f"seen[{name!r}] = look({paths[name]!r}, {call})\n" for name, call in CALLS.items())
    return f"""
{OPEN}{WITHOUT_TRUST}{TWICE}
seen = {{"version": transformers.__version__}}
seen["refused"] = [refused({paths["glm"]!r}, AutoModelForCausalLM)]
seen["refused"] += [refused({paths["encoder_int4"]!r}, AutoModelForMaskedLM)]
seen["executed"] = [name for name in sys.modules if name.startswith("transformers_modules")]
first = AutoModelForCausalLM.from_pretrained({paths["glm_int4"]!r}, trust_remote_code=True)
registered = AUTO_QUANTIZER_MAPPING["weight_only_int"]
second = AutoModel.from_pretrained({paths["uie_int8"]!r}, trust_remote_code=True)
seen["twice"] = [
    AUTO_QUANTIZER_MAPPING["weight_only_int"] is registered, linears(first), linears(second),
    len([name for name in sys.modules if name.endswith("weight_only_linear")]),
]
{calls}
for name, auto in (({paths["glm_int4"]!r}, AutoModelForCausalLM), ({paths["encoder_int4"]!r}, AutoModelForMaskedLM)):
    again = name.rpartition("/")[2]
    auto.from_pretrained(name, trust_remote_code=True).save_pretrained(again)
    AutoTokenizer.from_pretrained(name, trust_remote_code=True).save_pretrained(again)
    model = auto.from_pretrained(again, trust_remote_code=True)
    seen["again_" + again] = sum(type(m).__name__ == "WeightOnlyLinear" for m in model.modules())
imported = {{name.partition(".")[0] for name, module in sys.modules.items() if module is not None}}
seen["imported"] = sorted(set({HIDDEN!r}) & imported)
print(json.dumps(seen))
"""


# The run in an environment of its own opens the repositories with that one's host only.
OTHERS = [] if sys.executable in map(str, PYTHONS.values()) else list(PYTHONS)


@pytest.fixture(scope="module", params=["running", *OTHERS])
def seen(
    request: pytest.FixtureRequest, repositories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Every repository opened in one process without the package, by this transformers and by older and newer ones."""
    python = Path(sys.executable if request.param == "running" else PYTHONS[request.param])
    if not python.is_file():
        pytest.skip(f"needs {python}: {MADE_BY[request.param]}")
    scratch = tmp_path_factory.mktemp(request.param)
    return stranger(script(repositories), scratch, python=python) | {"scratch": scratch}


@pytest.fixture(scope="module")
def here(sources: dict[str, Path]) -> dict[str, Any]:
    """The same with the package, from the folders that were published."""
    scope: dict[str, Any] = {}
    exec(OPEN, scope)
    return {
        name: eval(f"look({str(sources[name])!r}, {call.replace(', 1,', ', 0,')})", scope)
        for name, call in CALLS.items()
    }


@pytest.mark.parametrize("name", CODE)
def test_exactly_the_files_that_are_needed_are_copied_flat(repositories: dict[str, Path], name: str) -> None:
    folder = repositories[name]
    assert {path.name for path in folder.rglob("*.py")} == CODE[name]
    assert not [path for path in folder.iterdir() if path.is_dir()]
    assert not list(folder.glob("*.cpp"))


def test_nothing_of_ours_was_imported(seen: dict[str, Any]) -> None:
    assert seen["imported"] == []


@pytest.mark.parametrize("name", CODE)
def test_opens_without_the_package(seen: dict[str, Any], here: dict[str, Any], name: str) -> None:
    there, ours = seen[name], here[name]
    assert there["ids"] == ours["ids"]
    assert there.get("text") == ours.get("text")
    assert there["quantized"] == ours["quantized"]
    # The same code and torch, so the same numbers: 0 was seen under 5.17, 5.20 and 5.24. Another torch may order a sum
    # otherwise.
    assert torch.allclose(torch.tensor(there["first"]), torch.tensor(ours["first"]), rtol=0, atol=1e-4)
    remote = CODE[name] != set()
    assert there["class"].startswith(PYTHON_FILES if remote else "transformers.models.ernie.")
    assert ours["class"].startswith("transformers." if "encoder" in name else "hf_glm_ernie.")
    own_tokenizer = "encoder" not in name and "ernie3" not in name  # theirs is tokenizer.json alone
    assert there["tokenizer"].startswith(PYTHON_FILES if own_tokenizer else "transformers.tokenization_utils")


@pytest.mark.parametrize("name", ["glm", "uie"])
def test_a_converted_folder_opens_without_the_package_too(
    sources: dict[str, Path], here: dict[str, Any], tmp_path: Path, name: str
) -> None:
    """As the converter left it: with the code of its model, and of a tokenizer that tokenizer.json alone is not."""
    own = CODE[name] if name == "glm" else CODE[name] - ERNIE_TOKENIZER_CODE
    assert own == {path.name for path in sources[name].glob("*.py")}
    there = stranger(f"{OPEN}print(json.dumps(look({str(sources[name])!r}, {CALLS[name]})))", tmp_path)
    assert there["class"].startswith(PYTHON_FILES)
    assert there["ids"] == here[name]["ids"]
    assert torch.equal(torch.tensor(there["first"]), torch.tensor(here[name]["first"]))


@pytest.mark.parametrize("name", ["glm", "glm_int4", "glm_int8"])
def test_glm_fills_the_blank_right(seen: dict[str, Any], name: str) -> None:
    assert seen[name]["text"].strip() == ANSWER


@pytest.mark.parametrize(
    ("name", "count"), [("glm_int4", 28), ("glm_int8", 28), ("uie_int8", 18), ("encoder_int4", 18)]
)
def test_quantized_linears_are_there_after_loading(seen: dict[str, Any], name: str, count: int) -> None:
    """Seven a layer in GLM, six in ERNIE."""
    assert seen[name]["quantized"] == count


# Two repositories in one process ------------------------------------------------------------------------------------


def test_the_quantizer_is_registered_once_and_serves_two_repositories(seen: dict[str, Any]) -> None:
    same, first, second, copies = seen["twice"]
    assert same
    assert len(first) == 1
    assert first == second  # both are built by the quantizer that came first
    assert copies == 2  # one for each repository, so nothing may ask for the class by isinstance


def test_a_repository_opens_beside_the_package(repositories: dict[str, Path], tmp_path: Path) -> None:
    """The package's model classes win whatever is trusted; its tokenizer does only where nothing is."""
    glm, encoder = str(repositories["glm_int4"]), str(repositories["encoder_int4"])
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(publishing.__file__).parents[1])!r})
import hf_glm_ernie
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
found = {{}}
for trust in (None, True, False):
    opened = {{
        "config": AutoConfig.from_pretrained({glm!r}, trust_remote_code=trust),
        "model": AutoModelForCausalLM.from_pretrained({glm!r}, trust_remote_code=trust),
        "tokenizer": AutoTokenizer.from_pretrained({glm!r}, trust_remote_code=trust),
        "encoder": AutoModelForMaskedLM.from_pretrained({encoder!r}, trust_remote_code=trust),
    }}
    found[str(trust)] = {{key: type(value).__module__.partition(".")[0] for key, value in opened.items()}}
    modules = [*opened["model"].modules(), *opened["encoder"].modules()]
    linears = [m for m in modules if type(m).__name__ == "WeightOnlyLinear"]
    found[str(trust)]["linears"] = sorted({{type(m).__module__ for m in linears}})
print(json.dumps(found))
"""
    found = json.loads(run_python(code, tmp_path).stdout.splitlines()[-1])
    local = {"config": "hf_glm_ernie", "model": "hf_glm_ernie", "tokenizer": "hf_glm_ernie", "encoder": "transformers"}
    linears = {"linears": ["hf_glm_ernie.weight_only_linear"]}
    assert found["None"] == local | linears
    assert found["False"] == local | linears
    assert found["True"] == local | linears | {"tokenizer": "transformers_modules", "encoder": "transformers_modules"}


@pytest.mark.parametrize(("name", "count"), [("glm_int4", 28), ("encoder_int4", 18)])
def test_saving_again_without_the_package_keeps_code_and_integers(
    seen: dict[str, Any], repositories: dict[str, Path], name: str, count: int
) -> None:
    again = seen["scratch"] / name
    assert seen[f"again_{name}"] == count
    assert {path.name for path in again.glob("*.py")} == CODE[name]
    saved, published = (json.loads((folder / "config.json").read_text()) for folder in (again, repositories[name]))
    assert saved["auto_map"] == published["auto_map"]


def test_without_trust_nothing_is_executed(seen: dict[str, Any]) -> None:
    glm, encoder = seen["refused"]
    assert "trust_remote_code=True" in glm
    # The host knows the class, but not the quantizer; it must not fill plain linears with integers.
    assert encoder.startswith("RuntimeError"), encoder
    assert seen["executed"] == []


# The host's rules, on toys ------------------------------------------------------------------------------------------

TOYS = {
    "other.py": "VALUE = 1\n",
    "flat.py": "from .other import VALUE\n\n\nclass Toy:\n    pass\n",
    "whole.py": "from . import other\n\n\nclass Toy:\n    pass\n",
    "parent.py": "try:\n    from ..other import VALUE\nexcept ImportError:\n    pass\n\n\nclass Toy:\n    pass\n",
    "docstring.py": '"""Text.\n\n    from .nowhere import anything\n"""\n\n\nclass Toy:\n    pass\n',
    "inside.py": "class Toy:\n    def method(self):\n        import no_such_package\n",
    "guarded.py": "try:\n    import no_such_package\nexcept ImportError:\n    pass\n\n\nclass Toy:\n    pass\n",
}


@pytest.fixture(scope="module")
def toys(repositories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the host makes of files that import in each way: what it copies, and whether the copy opens."""
    scratch = tmp_path_factory.mktemp("toys")
    stripped = scratch / "stripped"
    stripped.mkdir()
    for path in repositories["glm_int4"].iterdir():
        content = path.read_bytes()
        if path.name == "modeling_glm130b.py":
            content = b"".join(line for line in content.splitlines(True) if b"WeightOnlyQuantizer" not in line)
        (stripped / path.name).write_bytes(content)
    package = scratch / "toys"
    package.mkdir()
    for name, content in {"__init__.py": "", **TOYS}.items():
        (package / name).write_text(content)
    code = f"""
import importlib, os
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.quantizers.auto import register_quantizer
sys.path.insert(0, {str(scratch)!r})
found = {{}}
for name in {[name.removesuffix(".py") for name in TOYS if name != "other.py"]!r}:
    folder = os.path.join({str(scratch)!r}, "saved_" + name)
    os.makedirs(folder)
    try:
        custom_object_save(importlib.import_module("toys." + name).Toy, folder)
        saved = sorted(os.listdir(folder))
    except Exception as error:
        saved = type(error).__name__
    try:
        opened = get_class_from_dynamic_module(name + ".Toy", folder).__name__
    except Exception as error:
        opened = type(error).__name__
    found[name] = [saved, opened]
from transformers.quantizers.base import HfQuantizer
class One(HfQuantizer):
    pass
register_quantizer("toy")(One)
try:
    register_quantizer("toy")(One)
    found["twice"] = "accepted"
except ValueError as error:
    found["twice"] = str(error)
from transformers import AutoModelForCausalLM
try:
    model = AutoModelForCausalLM.from_pretrained({str(stripped)!r}, trust_remote_code=True)
    found["stripped"] = sorted({{type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__}})
except Exception as error:
    found["stripped"] = type(error).__name__
print(json.dumps(found))
"""
    return stranger(code, scratch)


def test_flat_imports_are_copied(toys: dict[str, Any]) -> None:
    assert toys["flat"] == [["flat.py", "other.py"], "Toy"]


def test_importing_a_module_from_the_package_itself_is_not_seen(toys: dict[str, Any]) -> None:
    assert toys["whole"] == [["whole.py"], "ImportError"]


@pytest.mark.parametrize("name", ["parent", "docstring"])
def test_other_folders_and_text_that_looks_like_an_import_cannot_be_saved(toys: dict[str, Any], name: str) -> None:
    assert toys[name][0] == "FileNotFoundError"


def test_an_import_inside_a_function_counts_as_required_and_inside_try_it_does_not(toys: dict[str, Any]) -> None:
    assert toys["inside"] == [["inside.py"], "ImportError"]
    assert toys["guarded"] == [["guarded.py"], "Toy"]


def test_registering_a_quantizer_twice_is_an_error_of_the_host(toys: dict[str, Any]) -> None:
    assert "already registered" in toys["twice"]


def test_without_the_import_of_the_quantizer_there_are_no_quantized_linears(toys: dict[str, Any]) -> None:
    """Why every modeling file imports it, though none uses it."""
    assert toys["stripped"] == "RuntimeError"


def test_save_pretrained_alone_carries_the_code_and_a_complete_auto_map(tmp_path: Path) -> None:
    """Also of a quantized model: nothing but transformers is needed to open the folder."""
    source = make_source("glm_int4", tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))
    assert config["auto_map"] == PUBLISHED["glm130b"].classes
    code = f"""
from transformers import AutoModel, AutoModelForCausalLM
seen = [
    sum(type(m).__name__ == "WeightOnlyLinear" for m in auto.from_pretrained({str(tmp_path / "saved")!r},
        trust_remote_code=True).modules())
    for auto in (AutoModel, AutoModelForCausalLM)
]
print(json.dumps(seen))
"""
    linears = sum(type(module).__name__ == "WeightOnlyLinear" for module in model.modules())
    assert stranger(code, tmp_path / "scratch") == [linears, linears]
