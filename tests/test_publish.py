"""`python -m conversion publish`: the folder it makes, the card, what it refuses, and the Hub's stand-in."""

import errno
import hashlib
import importlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load_file, save_file
from transformers import ErnieConfig, PreTrainedConfig, PreTrainedModel

import hf_glm_ernie
from conversion import publish as publishing
from conversion import publish_check, publish_comparing, publish_source, publish_trial
from conversion.__main__ import main
from conversion.publish import plan_publication, publish
from conversion.publish_classes import PUBLISHED, remote_classes
from conversion.publish_hub import push
from hf_glm_ernie import ErnieCompactConfig, ErnieGPLinkerConfig, ErnieUIEConfig, ErnieUTCConfig
from tests.support.hub_stand_in import TOKEN, Hub, serve_here
from tests.support.publishing import CODE, make_source
from tests.support.strangers import stranger
from tests.support.tiny_ernie3 import tiny_model as tiny_ernie3
from tests.support.tiny_models import tiny_model

CARD_CODE = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source("glm_int4", tmp_path_factory.mktemp("glm") / "glm-int4")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source("encoder", tmp_path_factory.mktemp("encoder") / "ernie-3.0")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A Hub, and this process made to talk to it."""
    with pytest.MonkeyPatch.context() as patch, serve_here(patch) as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(glm: Path, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The INT4 sample, published and pushed by the command; returns the folder that was made."""
    work = tmp_path_factory.mktemp("options")
    (work / "about.md").write_text("Made for a test.\n")
    (work / "parity.json").write_text(json.dumps([{"what": "a", "with": "b", "result": "1e-3 | c"}]))
    options = [f"--about={work / 'about.md'}", f"--parity={work / 'parity.json'}", "--base-model=me/glm", "--push"]
    assert main(["publish", str(glm), "--repo=me/glm-int4", *options]) == 0
    return glm.with_name("glm-int4_hub")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the fresh process out, which takes seconds and is tried elsewhere."""
    monkeypatch.setattr(publish_comparing, "checked", lambda *_: [])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["publish", *map(str, arguments)]) == 1
    return capsys.readouterr().err


# The folder ---------------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_a_repository_needs(pushed: Path, glm: Path) -> None:
    others = {".gitattributes", "README.md", "config.json", "conversion.json", "generation_config.json"}
    others |= {"chat_template.jinja", "ice_text.model", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    others |= {"reference_outputs.json"}
    assert {path.name for path in pushed.iterdir()} == CODE["glm_int4"] | others
    config = json.loads((pushed / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_glm130b.Glm130bConfig",
        "AutoModel": "modeling_glm130b.Glm130bModel",
        "AutoModelForCausalLM": "modeling_glm130b.Glm130bForCausalLM",
        "AutoTokenizer": ["tokenization_glm130b.Glm130bTokenizer", None],
    }
    before = json.loads((glm / "config.json").read_text())
    assert {key: value for key, value in config.items() if key != "auto_map"} == {
        key: value for key, value in before.items() if key != "auto_map"
    }
    assert json.loads((pushed / "tokenizer_config.json").read_text())["auto_map"]["AutoTokenizer"][0].endswith("nizer")
    for name in CODE["glm_int4"]:
        assert (pushed / name).read_bytes() == Path(hf_glm_ernie.__file__).with_name(name).read_bytes()


def test_weights_are_linked_not_copied(pushed: Path, glm: Path) -> None:
    assert (pushed / "model.safetensors").samefile(glm / "model.safetensors")
    assert not (pushed / "tokenizer.json").samefile(glm / "tokenizer.json")


def test_native_encoders_carry_no_code(encoder: Path, unchecked: None, tmp_path: Path) -> None:
    publish(plan_publication(encoder, "me/ernie", tmp_path / "ernie"), show_progress=False)
    assert not list((tmp_path / "ernie").glob("*.py"))
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "ernie" / name).read_text())
    card = ModelCard.load(tmp_path / "ernie" / "README.md")
    assert card.data.license == "apache-2.0"
    assert "trust_remote_code" not in card.text
    assert "custom_code" not in card.data.tags


def test_what_save_pretrained_wrote_is_published_in_its_shards(unchecked: None, tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    (tmp_path / "saved" / "optimizer.pt").write_bytes(b"left behind")
    (tmp_path / "saved" / "modeling_glm130b.py").write_text("raise RuntimeError('of another version')\n")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    old = {"AutoModel": "them/old--modeling_glm130b.Glm130bModel"}
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config | {"auto_map": old}))
    plan = plan_publication(tmp_path / "saved", "me/tiny", tmp_path / "tiny")
    assert "left out     optimizer.pt" in plan.describe()
    publish(plan, show_progress=False)
    shards = sorted(path.name for path in (tmp_path / "saved").glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(path.name for path in (tmp_path / "tiny").glob("*.safetensors")) == shards
    assert (tmp_path / "tiny" / "model.safetensors.index.json").is_file()
    assert not (tmp_path / "tiny" / "optimizer.pt").exists()
    assert "of another version" not in (tmp_path / "tiny" / "modeling_glm130b.py").read_text()
    auto_map = json.loads((tmp_path / "tiny" / "config.json").read_text())["auto_map"]
    assert list(auto_map) == ["AutoConfig", "AutoModel", "AutoModelForCausalLM"]
    assert not [reference for reference in auto_map.values() if "--" in reference]
    generation = json.loads((tmp_path / "tiny" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [105, 2]
    assert "_from_model_config" not in generation
    assert "no record of a conversion" in (tmp_path / "tiny" / "README.md").read_text()
    assert "This repository has no tokenizer" in (tmp_path / "tiny" / "README.md").read_text()


def on_another_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights seem to lie elsewhere."""
    identify = publish_source.identify
    monkeypatch.setattr(publish_source, "identify", lambda path: replace(identify(path), device=-1))
    monkeypatch.setattr(publishing, "_check_same", lambda *_: None)


@pytest.mark.parametrize("foreseen", [True, False])
def test_where_links_are_impossible_weights_are_copied(
    encoder: Path, unchecked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreseen: bool
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if foreseen:
        on_another_file_system(monkeypatch)
    else:
        monkeypatch.setattr(os, "link", refuse)
    plan = plan_publication(encoder, "me/ernie", tmp_path / "ernie")
    size = (encoder / "model.safetensors").stat().st_size
    assert (f"{size:,} bytes, COPIED" in plan.describe()) == foreseen
    publish(plan, show_progress=False)
    copied, source = tmp_path / "ernie" / "model.safetensors", encoder / "model.safetensors"
    assert not copied.samefile(source)
    assert copied.read_bytes() == source.read_bytes()


def test_a_copy_that_does_not_fit_is_refused_before_anything_is_made(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_another_file_system(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda *_: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    said = refusal(capsys, encoder, "--repo=me/ernie", f"--output={tmp_path / 'ernie'}")
    assert "to be copied and 1 are free" in said
    assert not list(tmp_path.iterdir())


def test_large_text_files_become_lfs(encoder: Path, unchecked: None, tmp_path: Path) -> None:
    large = tmp_path / "large"
    shutil.copytree(encoder, large)
    content = (large / "tokenizer.json").read_text()
    (large / "tokenizer.json").write_text(content + " " * 10**7)
    publish(plan_publication(large, "me/ernie", tmp_path / "ernie"), show_progress=False)
    assert "\ntokenizer.json filter=lfs" in (tmp_path / "ernie" / ".gitattributes").read_text()
    assert "config.json" not in (tmp_path / "ernie" / ".gitattributes").read_text()


def test_dry_run_writes_nothing(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(encoder.parent.rglob("*"))
    assert main(["publish", str(encoder), "--repo=me/ernie", "--dry-run"]) == 0
    assert "linked, no further disk" in capsys.readouterr().out
    assert sorted(encoder.parent.rglob("*")) == before


def test_an_interruption_leaves_nothing(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publish_comparing, "checked", interrupt)
    assert main(["publish", str(encoder), "--repo=me/ernie", f"--output={tmp_path / 'ernie'}"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# The card -----------------------------------------------------------------------------------------------------------


def test_card_s_metadata(pushed: Path) -> None:
    data = ModelCard.load(pushed / "README.md").data.to_dict()
    assert data == {
        "language": ["en", "zh"],
        "license": "other",
        "license_name": "as-the-source-checkpoint",  # the sample is not the released 130B
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["glm", "glm130b", "prefix-lm", "custom_code", "int4"],
        "base_model": "me/glm",
        "base_model_relation": "quantized",
    }


def test_card_tells_origin_version_checks_and_what_the_publisher_adds(pushed: Path) -> None:
    text = (pushed / "README.md").read_text()
    assert "Iteration 10000 of a 2-way tensor-parallel checkpoint" in text
    assert "`--bits 4`" in text
    assert f"hf-glm-ernie {hf_glm_ernie.__version__}" in text
    assert "Made for a test." in text
    assert "| a | b | 1e-3 \\| c |" in text
    assert "| 8 generated ids | this package | equal |" in text
    assert "| logits on 8 tokens | this package on the source folder | differ by 0.0e+00 |" in text


def test_card_s_checksums_are_the_files(pushed: Path) -> None:
    listed = dict(reversed(line) for line in re.findall(r"^([0-9a-f]{64})  (\S+)$", _card(pushed), flags=re.MULTILINE))
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in pushed.iterdir()}
    del expected["README.md"]
    assert listed == expected


def _card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_cards_name_no_index_that_does_not_have_this_package(glm: Path, pushed: Path) -> None:
    """The package is installed from a checkout; what else a card says to install comes from an index."""
    conversion = Path(publishing.__file__).parent
    texts = [file.read_text(encoding="utf-8") for file in conversion.glob("*.py")] + [_card(glm), _card(pushed)]
    commands = [command for text in texts for command in re.findall(r"pip install ([^`]+)`", text)]
    for command in commands:
        for wanted in re.findall(r"[.{}\w-]+", re.sub(r"[<>=!~]=?[\d.,]+", "", command)):
            assert wanted in (".", "{needed}", "transformers", "torch"), command
    assert "." in commands
    assert "`pip install .` in a checkout of it" in _card(glm)
    assert not any("pip install hf" in text for text in texts)


def test_released_sizes_get_the_model_licence() -> None:
    row = PUBLISHED["glm130b"]
    released = hf_glm_ernie.Glm130bConfig().to_dict()
    assert publishing.license_of(row, released) == row.license
    assert row.license[1] == "glm-130b-model-license"


def test_licences_of_the_publisher(encoder: Path, unchecked: None, tmp_path: Path) -> None:
    for number, options in enumerate((["--license=mit"], ["--license-name=own", "--license-link=https://own"])):
        folder = tmp_path / f"ernie{number}"
        assert main(["publish", str(encoder), "--repo=me/e", f"--output={folder}", *options]) == 0
    mit, own = (ModelCard.load(tmp_path / f"ernie{number}" / "README.md") for number in range(2))
    assert (mit.data.license, mit.data.license_name) == ("mit", None)
    assert (own.data.license, own.data.license_name, own.data.license_link) == ("other", "own", "https://own")
    assert "[own](https://own)" in own.text


# The table ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_every_class_of_the_table_exists(model_type: str) -> None:
    row = PUBLISHED[model_type]
    references = {**remote_classes(row, "weight_only_int"), "AutoTokenizer": row.tokenizer}
    for auto, reference in references.items():
        if reference is not None:
            module, name = reference.split(".")
            made = getattr(importlib.import_module(f"hf_glm_ernie.{module}"), name)
            assert hasattr(importlib.import_module("transformers"), auto)
            assert auto != "AutoConfig" or made.model_type == model_type
    assert row.auto_classes.keys() == row.pipelines.keys()
    assert set(row.auto_classes.values()) == set(row.models)


def tiny_of(architecture: str) -> PreTrainedModel:
    if architecture.startswith("Glm130b"):
        model = tiny_model()
        return model if architecture == "Glm130bForCausalLM" else model.model
    if architecture.startswith("Ernie3"):
        return tiny_ernie3(getattr(hf_glm_ernie, architecture))
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tasks = {"ErnieForUIE": ErnieUIEConfig, "ErnieForUTC": ErnieUTCConfig, "ErnieForGPLinker": ErnieGPLinkerConfig}
    config = ErnieCompactConfig if "Compact" in architecture else tasks.get(architecture, ErnieConfig)
    made = getattr(hf_glm_ernie if config is not ErnieConfig else transformers, architecture)
    return made(config(intermediate_size=16, max_position_embeddings=16, **sizes))


@pytest.mark.parametrize("architecture", [name for row in PUBLISHED.values() for name in row.auto_classes])
def test_every_architecture_of_the_table_can_be_tried(architecture: str, tmp_path: Path) -> None:
    """What the fresh process is asked to compute is something the class computes."""
    tiny_of(architecture).save_pretrained(tmp_path / "saved")
    plan = plan_publication(tmp_path / "saved", "me/tiny", tmp_path / "tiny")
    request = publish_trial.trial_request(tmp_path / "saved", plan.source.row, architecture, plan.source.config, False)
    report, outputs = publish_check.observe(request)
    assert report["class"].rpartition(".")[2] == architecture
    assert outputs


def test_every_registered_model_type_has_a_row() -> None:
    classes = [value for value in vars(hf_glm_ernie).values() if isinstance(value, type)]
    registered = {value.model_type for value in classes if issubclass(value, PreTrainedConfig)}
    assert len(registered - {""}) >= 3
    assert registered - {""} <= PUBLISHED.keys(), "conversion/publish_classes.py: add a row for the new model type"


# The check ----------------------------------------------------------------------------------------------------------


def test_a_repository_that_computes_otherwise_is_refused(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = publishing._write_settings

    def spoil(publication: Any, folder: Path) -> None:
        write(publication, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))

    monkeypatch.setattr(publishing, "_write_settings", spoil)
    said = refusal(capsys, encoder, "--repo=me/ernie", f"--output={tmp_path / 'ernie'}")
    assert "outputs differ from this package's by" in said
    assert not list(tmp_path.iterdir())


def test_a_repository_that_does_not_open_is_refused(
    glm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = publishing.write_code

    def forget(folder: Path, classes: Any) -> None:
        write(folder, classes)
        (folder / "weight_only_kernels.py").unlink()

    monkeypatch.setattr(publishing, "write_code", forget)
    said = refusal(capsys, glm, "--repo=me/glm", f"--output={tmp_path / 'glm'}")
    assert "does not open in a process without this package" in said
    assert "weight_only_kernels" in said
    assert not list(tmp_path.iterdir())


def test_structure_check_compares_headers_in_a_fresh_process(glm: Path, tmp_path: Path) -> None:
    publish(plan_publication(glm, "me/glm", tmp_path / "glm", check="structure"), show_progress=False)
    card = _card(tmp_path / "glm")
    assert "| ids of 3 texts | this package | equal |" in card
    assert "| names, shapes, kinds of number | the classes | equal, 104 tensors |" in card


def test_large_models_get_the_structure_check(glm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_publication(glm, "me/glm", tmp_path / "glm").mode == "full"
    monkeypatch.setattr(publish_trial, "SPARE_BYTES", 10**15)
    plan = plan_publication(glm, "me/glm", tmp_path / "glm")
    assert plan.mode == "structure"
    assert "computing takes about" in plan.describe()


def spoil_shape(state: dict[str, torch.Tensor]) -> None:
    state["model.norm.bias"] = state["model.norm.bias"][:-1].clone()


def spoil_kind(state: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    state[name] = state[name].float()


def spoil_name(state: dict[str, torch.Tensor]) -> None:
    state["model.layers.0.mlp.other"] = state.pop("model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_shape, r"model\.norm\.bias is"),
        (spoil_kind, r"up_proj\.weight is .*False.* in the files"),
        (spoil_name, r"the model has model\.layers\.0\.mlp\.up_proj\.weight, which no file holds"),
    ],
)
def test_structure_check_sees(glm: Path, tmp_path: Path, spoil: Any, said: str) -> None:
    folder = tmp_path / "spoiled"
    shutil.copytree(glm, folder)
    state = load_file(folder / "model.safetensors")
    spoil(state)
    (folder / "model.safetensors").unlink()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    request = {"folder": str(folder), "auto_class": "AutoModelForCausalLM", "trust_remote_code": False}
    with pytest.raises(ValueError, match=said):
        publish_check.observe(request | {"mode": "structure", "texts": []})


def test_full_check_refuses_weights_that_are_missing(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.norm.bias"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    request = {"folder": str(tmp_path), "auto_class": "AutoModelForCausalLM", "trust_remote_code": False}
    with pytest.raises(ValueError, match=r"the files lack model\.norm\.bias"):
        publish_check.observe(request | {"mode": "full", "texts": []})


def test_hidden_packages_are_as_if_not_installed(tmp_path: Path) -> None:
    code = """
import importlib.util
found = importlib.util.find_spec("hf_glm_ernie")
try:
    import hf_glm_ernie.weight_only
except ModuleNotFoundError as error:
    found = [found, str(error)]
print(json.dumps(found))
"""
    assert stranger(code, tmp_path) == [
        None,
        "No module named 'hf_glm_ernie.weight_only'; 'hf_glm_ernie' is not a package",
    ]


# The Hub ------------------------------------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, str]:
    """What `publish` returned for a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_hub_has_the_folder_s_files(pushed: Path, hub: Hub) -> None:
    repository = hub.repositories["me/glm-int4"]
    assert repository.files == {path.name: path.read_bytes() for path in pushed.iterdir()}
    assert repository.lfs == {"ice_text.model", "model.safetensors"}
    assert not repository.private


def test_opens_by_name_from_the_hub_without_the_package(pushed: Path, hub: Hub, tmp_path: Path) -> None:
    """The card's own example, in a process that knows the Hub's address and nothing else."""
    example = CARD_CODE.search(_card(pushed))
    assert example is not None
    code = example[1].replace("Ng is an adjunct professor at [MASK].", "An octopus has [MASK] and blue blood.")
    code += """
print(json.dumps([
    type(model).__module__, sum(type(m).__name__ == "WeightOnlyLinear" for m in model.modules()),
    tokenizer.decode(outputs[0], skip_special_tokens=True),
]))
"""
    online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    module, quantized, text = stranger(code, tmp_path, online)
    revision = hub.repositories["me/glm-int4"].revision
    assert module == f"transformers_modules.me.glm_hyphen_int4.{revision}.modeling_glm130b"
    assert quantized == 28
    assert text.endswith("three hearts")


def test_pushing_again_replaces_stale_shards_and_code(pushed: Path, hub: Hub) -> None:
    repository = hub.repositories["me/glm-int4"]
    repository.files |= {"model-00001-of-00009.safetensors": b"old", "old.py": b"old", "notes.txt": b"someone's"}
    assert push(pushed, "me/glm-int4", False, digests(pushed)).startswith(f"{hub.url}/me/glm-int4/commit/")
    assert "notes.txt" in repository.files
    del repository.files["notes.txt"]
    assert repository.files == {path.name: path.read_bytes() for path in pushed.iterdir()}


def test_private_repositories(pushed: Path, hub: Hub) -> None:
    push(pushed, "me/hidden", True, digests(pushed))
    assert hub.repositories["me/hidden"].private


def test_nothing_is_sent_without_push(encoder: Path, hub: Hub, unchecked: None, tmp_path: Path) -> None:
    before = len(hub.requests)
    assert main(["publish", str(encoder), "--repo=me/ernie", f"--output={tmp_path / 'ernie'}"]) == 0
    assert len(hub.requests) == before


@pytest.mark.parametrize(("repo", "token", "said"), [("me/x", "hf_wrong", "401"), ("you/x", TOKEN, "rights")])
def test_what_the_hub_refuses(
    pushed: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, repo: str, token: str, said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(publishing.PublishError, match=rf"(?s)/{repo}: .*{said}.*hf upload {repo}"):
        push(pushed, repo, False, digests(pushed))


def test_a_hub_that_is_not_there(pushed: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(publishing.PublishError, match="is complete; run `hf upload me/x"):
        push(pushed, "me/x", False, digests(pushed))


def test_a_file_that_arrives_otherwise_is_noticed(pushed: Path, hub: Hub) -> None:
    hub.damaged.add("model.safetensors")
    try:
        with pytest.raises(publishing.PublishError, match=r"model\.safetensors arrived with another SHA-256"):
            push(pushed, "me/damaged", False, digests(pushed))
    finally:
        hub.damaged.clear()


def test_an_interrupted_push_says_how_to_go_on(pushed: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "create_commit", interrupt)
    with pytest.raises(publishing.PublishError, match="is complete; `hf upload me/glm-int4"):
        push(pushed, "me/glm-int4", False, digests(pushed))
