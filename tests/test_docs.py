"""The pages of docs/ that have no test of their own run as printed; links, index, support table and API reference.

`docs/convert.md` runs first, in a folder where the shipped samples lie under the names of the released checkpoints;
what it makes is what the other pages open. Blocks of a page run in order, in one namespace; what stands in a `text`
block is what the block above it prints. Blocks that need no package run in a process that has none.
"""

import contextlib
import importlib.util
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from conversion import __main__ as command
from docs import make_api
from examples import export_ernie
from hf_glm_ernie import Ernie3Config, Ernie3ForPreTraining, Ernie3Tokenizer, fill_blanks
from hf_glm_ernie.planner import plan
from tests.support.converting_ernie3 import SIZES, layout, random_arrays, write_static
from tests.support.finetuning import cache_in
from tests.support.page_blocks import DOCS, ROOT, Ran, check_shown, run_page, text_of
from tests.support.strangers import PREAMBLE, run_python

PAGES = sorted(DOCS.glob("*.md"))
SOURCES = {
    "glm-130b-sat": "sample-glm130b",
    "ice_text.model": "sample-glm130b/ice_text.model",
    "ernie-3.0-base-zh": "sample-ernie/masked-lm",
    "uie-base": "sample-ernie/uie",
}
PART_BYTES = 300_000


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sources that docs/convert.md names, and a unified model for docs/generate.md."""
    folder = tmp_path_factory.mktemp("docs")
    for name, sample in SOURCES.items():
        (folder / name).symlink_to(ROOT / "examples" / sample)
    write_parts(folder / "glm-130b-sat", folder / "downloads")
    tokenizer = Ernie3Tokenizer.from_released_vocabulary(folder / "uie-base" / "vocab.txt", num_pieces=None)
    tokenizer.save_vocabulary(str(folder))
    sizes = replace(SIZES, vocabulary=len(tokenizer))
    settings = {name: value for name, value in sizes.settings.items() if "token_id" not in name}
    write_static(folder / "step_100000", random_arrays(layout(sizes=sizes)), settings)

    torch.manual_seed(0)
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "sentence_token_id", "soft_prompt_token_id")}
    small = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "branch_num_hidden_layers"), 2)
    small |= {"branch_num_attention_heads": 2, "hidden_size": 32, "branch_hidden_size": 16}
    small |= {"intermediate_size": 48, "branch_intermediate_size": 24, "max_position_embeddings": 256}
    config = Ernie3Config(vocab_size=len(tokenizer), num_soft_prompt_genres=11, memory_length=16, **small, **ids)
    Ernie3ForPreTraining(config).save_pretrained(folder / "ernie3")
    tokenizer.save_pretrained(folder / "ernie3")
    return folder


def write_parts(checkpoint: Path, downloads: Path) -> None:
    """The sample as the released weights come: a tar, cut in pieces."""
    downloads.mkdir()
    (downloads / "config.json").symlink_to(checkpoint / "config.json")  # the sample's sizes are not the released ones
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("10000/mp_rank_01_model_states.pt", "10000/mp_rank_00_model_states.pt", "latest"):
            archive.add(checkpoint / name, f"glm-130b-sat/{name}")
    for number, start in enumerate(range(0, content.tell(), PART_BYTES)):
        part = content.getvalue()[start : start + PART_BYTES]
        (downloads / f"glm-130b-sat.tar.part_{number:02d}").write_bytes(part)


@pytest.fixture(scope="module")
def converted(workplace: Path) -> list[Ran]:
    with contextlib.chdir(workplace):
        return run_page("convert.md")


@pytest.fixture(autouse=True)
def _in_the_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


# Pages ---------------------------------------------------------------------------------------------------------------


def test_convert_prints_what_stands_there(converted: list[Ran]) -> None:
    check_shown(converted)


def test_convert_gives_the_sources_back(converted: list[Ran], workplace: Path) -> None:
    for path in (workplace / "glm-130b-sat" / "10000").glob("*.pt"):
        found = torch.load(workplace / "glm-130b-back" / "10000" / path.name, weights_only=True)["module"]
        source = torch.load(path, weights_only=True)["module"]
        assert source.keys() == found.keys()
        assert all(torch.equal(source[name], found[name]) for name in source)
    for path in (workplace / "step_100000").iterdir():
        if "." not in path.name or path.suffix in (".w_0", ".b_0"):
            assert (workplace / "ernie3-10b-back" / path.name).read_bytes() == path.read_bytes()
    source, back = (workplace / name / "model_state.pdparams" for name in ("ernie-3.0-base-zh", "ernie-base-back"))
    assert set(open_tensors(source)) == set(open_tensors(back))


def open_tensors(file: Path) -> dict[str, Any]:
    from conversion.paddle_files import open_paddle_source

    return dict(open_paddle_source(file.parent).specs)


def test_what_an_interruption_says(converted: list[Ran], workplace: Path, monkeypatch: Any, capsys: Any) -> None:
    def interrupted(job: Any, output: Path, *others: Any, **options: Any) -> None:
        output.with_name(f"{output.name}.incomplete").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    (workplace / "elsewhere").mkdir()
    (workplace / "elsewhere" / "glm-130b-sat").symlink_to(workplace / "glm-130b-sat")
    monkeypatch.chdir(workplace / "elsewhere")
    assert command.main(["glm130b", "--source=glm-130b-sat", "--output=glm-130b"]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said in text_of("convert.md").splitlines()


REFUSED_CONVERSIONS = {
    "already exists": ["--source=glm-130b-sat", "--output=glm-130b"],
    "no `latest`, which names the iteration": ["--source=ernie-base", "--output=new"],
    "--reverse and --tensor-parallel N go together": ["--source=glm-130b", "--output=new", "--reverse"],
    "is not a size": ["--source=glm-130b-sat", "--output=new", "--max-shard-size=5XB"],
}


def test_messages_of_the_converter(converted: list[Ran], capsys: pytest.CaptureFixture[str]) -> None:
    assert messages_on("convert.md") == list(REFUSED_CONVERSIONS)
    for message, words in REFUSED_CONVERSIONS.items():
        with contextlib.suppress(SystemExit):
            assert command.main(["glm130b", *words]) == 1
        assert message in capsys.readouterr().err


def messages_on(page: str) -> list[str]:
    """First cells of the tables of error messages."""
    tables = re.findall(r"^\| message \|.*?\n\n", text_of(page) + "\n\n", flags=re.DOTALL | re.MULTILINE)
    cells = [line.split(" | ")[0].removeprefix("| ") for table in tables for line in table.strip().splitlines()[2:]]
    return [cell.strip("` ") for cell in cells if cell.startswith("`") and " in the load report" not in cell]


@pytest.mark.parametrize("page", ["load.md", "generate.md"])
def test_page_prints_what_stands_there(converted: list[Ran], page: str) -> None:
    torch.manual_seed(0)
    check_shown(run_page(page))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in export_ernie.ONNX_PACKAGES),
    reason=f"needs {', '.join(export_ernie.ONNX_PACKAGES)}: pip install 'hf-glm-ernie[onnx]'",
)
def test_labels_become_a_served_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    with cache_in(tmp_path / "datasets"):
        check_shown(run_page("label-train-deploy.md"))
    assert "谢静" in (tmp_path / "answers.html").read_text(encoding="utf-8")
    assert (tmp_path / "order-uie" / "evaluation.json").is_file()


def test_ernie3_runs(workplace: Path) -> None:
    torch.manual_seed(0)
    ran = run_page("ernie3.md")
    assert len(ran) >= 2
    assert re.fullmatch(r"torch\.Size\(\[1, ([5-9]|1[0-2])\]\)\n", ran[1].printed)  # 4 given, up to 8 written
    assert ran[2].printed == "True\n"
    assert (workplace / "ernie3-small" / "config.json").is_file()


def test_pretrain_runs(workplace: Path) -> None:
    torch.manual_seed(0)
    ran = run_page("pretrain.md")
    for task in ("knowledge_masked_lm", "document_lm"):
        assert re.search(rf"'{task}_loss': '?\d", ran[0].printed), ran[0].printed


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in export_ernie.ONNX_PACKAGES),
    reason=f"needs {', '.join(export_ernie.ONNX_PACKAGES)}: pip install 'hf-glm-ernie[onnx]'",
)
def test_ernie_runs(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ernie-3.0-base-zh", "uie-base"):
        (tmp_path / name).symlink_to(workplace / name)
    monkeypatch.chdir(tmp_path)
    check_shown(run_page("ernie.md"))
    assert (tmp_path / "ernie-base" / "config.json").is_file()
    assert (tmp_path / "uie-onnx" / "model_int8.onnx").is_file()


def test_memory_is_the_planner_s() -> None:
    rows = re.findall(r"^\| (.*), (\w+) \| ([\d.]+) \| ([\d.]+) \|$", text_of("load.md"), flags=re.MULTILINE)
    assert len(rows) == 6
    for name, format_, weights, rest in rows:
        bits = {"float16": None, "INT8": 8, "INT4": 4}[format_]
        device = plan(name.strip("`").replace("GLM-130B", "glm130b"), None, bits, cpu="600GiB").devices[0]
        assert device.weights / 2**30 == pytest.approx(float(weights), abs=0.0051)
        assert (device.cache + device.activations) / 2**30 == pytest.approx(float(rest), abs=0.0101)


# Messages that the pages quote ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(converted: list[Ran], workplace: Path) -> tuple[Any, Any]:
    folder = workplace / "glm-130b"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def quantized_otherwise(model: Any, tokenizer: Any) -> None:
    AutoModelForCausalLM.from_pretrained("glm-130b-int4", quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def mask_again(model: Any, tokenizer: Any) -> None:
    mask, end = tokenizer.mask_token_id, tokenizer.eop_token_id

    def only_masks(row: int, ids: torch.Tensor) -> list[int]:
        return [end] if ids[-1] == mask else [mask]

    fill_blanks(model, tokenizer, "The heart [MASK].", prefix_allowed_tokens_fn=only_masks)


Failing = Callable[[Any, Any], Any]
LOADING: dict[str, Failing] = {
    "Should have a `model_type` key": lambda m, t: AutoModelForCausalLM.from_pretrained("glm-130b-sat"),
    "does not support Flash Attention 2": lambda m, t: AutoModelForCausalLM.from_pretrained(
        "glm-130b", attn_implementation="flash_attention_2"
    ),
    "is outside the vocabulary": lambda m, t: m.generate(torch.tensor([[1, 999_999]])),
    "The model is quantized with": quantized_otherwise,
    "holds two kinds of mask": lambda m, t: t("one [MASK], another [gMASK]"),
    "would cut [MASK] out of its text": lambda m, t: t("a b c d e [MASK] f g", truncation=True, max_length=6),
}
GENERATING: dict[str, Failing] = {
    "no room is left": lambda m, t: m.generate(**t("a " * 300, return_tensors="pt")),
    "reads a prompt in pieces": lambda m, t: m.generate(**t("a [MASK]", return_tensors="pt"), prefill_chunk_size=2),
    "answered a blank with another blank": mask_again,
    "num_return_sequences must be 1": lambda m, t: fill_blanks(m, t, "a [MASK]", num_return_sequences=2),
}


@pytest.mark.parametrize("page", ["load.md", "generate.md"])
def test_messages_are_real(opened: tuple[Any, Any], page: str) -> None:
    messages = LOADING if page == "load.md" else GENERATING
    elsewhere = (
        ["does not recognize this architecture", "contains custom code which must be executed"]
        if page == "load.md"
        else []
    )  # needs a process: below
    assert messages_on(page) == [*elsewhere, *messages]
    for message, failing in messages.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            failing(*opened)


def test_a_new_head_is_reported_missing(converted: list[Ran]) -> None:
    load = AutoModelForSequenceClassification.from_pretrained
    _, info = load("ernie-base", num_labels=2, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert info["unexpected_keys"]


def test_without_the_import(converted: list[Ran], workplace: Path) -> None:
    without_code = workplace / "glm-130b-without-code"
    without_code.mkdir()
    config = json.loads((workplace / "glm-130b" / "config.json").read_text(encoding="utf-8"))
    del config["auto_map"]
    (without_code / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code = """
from transformers import AutoModelForCausalLM, AutoTokenizer
messages = []
opened = ((AutoModelForCausalLM, "-without-code"), (AutoModelForCausalLM, ""), (AutoTokenizer, ""))
for auto, folder in opened:
    try:
        auto.from_pretrained("glm-130b" + folder, trust_remote_code=False)
    except ValueError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""
    old, model, tokenizer = json.loads(run_python(PREAMBLE + code, workplace).stdout.splitlines()[-1])
    assert "does not recognize this architecture" in old
    assert "contains custom code which must be executed" in model
    assert "contains custom code which must be executed" in tokenizer


# The pages together --------------------------------------------------------------------------------------------------

LINKED = [*PAGES, *(ROOT / name for name in ("README.md", "conversion/README.md", "tests/README.md", "CHANGELOG.md"))]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(file: Path) -> set[str]:
    """Anchors of a file's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    result = set()
    for title in re.findall(r"^#+ (.*)$", without_code(file.read_text(encoding="utf-8")), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        result.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return result


def links(file: Path) -> Iterator[str]:
    text = re.sub(r"`[^`\n]*`", "", without_code(file.read_text(encoding="utf-8")))
    yield from re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("file", LINKED, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    for link in links(file):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{file.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{file.name}: {link}"


def test_every_page_is_in_the_index_once() -> None:
    listed = re.findall(r"^\| \[([\w.-]+)\]\(\1\) \|", text_of("README.md"), flags=re.MULTILINE)
    assert sorted(listed) == [page.name for page in PAGES if page.name != "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:tests|examples|benchmarks|docs|conversion)/[\w./-]+\.\w+)`", page.read_text("utf-8")
    ):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_support_names_tests_that_exist_and_leaves_no_cell_empty() -> None:
    page = text_of("support.md")
    for name in set(re.findall(r"`(test_\w+\.py)`", page)):
        assert (ROOT / "tests" / name).is_file(), name
    tables = re.findall(r"^\| \| GLM-130B \|.*?(?=\n\n)", page, flags=re.DOTALL | re.MULTILINE)
    assert len(tables) == 8
    for table in tables:
        head, _, *rows = [line.strip("|").split("|") for line in table.splitlines()]
        for what, *cells in rows:
            assert len(cells) == len(head) - 1, what
            assert all(cell.strip() for cell in cells), what
            for cell in cells:
                assert not cell.strip().startswith("yes:") or "`test_" in cell, f"{what}: {cell}"
                assert cell.strip() != "no", f"{what}: says no and not why"


def test_support_names_the_pinned_versions() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    row = next(line for line in text_of("support.md").splitlines() if line.startswith("| versions"))
    for package in ("transformers", "tokenizers", "sentencepiece", "peft", "accelerate", "bitsandbytes", "datasets"):
        assert pinned[package] in row, package


# The API reference ---------------------------------------------------------------------------------------------------


def test_reference_is_what_the_docstrings_say() -> None:
    assert make_api.render() == text_of("api.md"), "docs/api.md is not current: run `python docs/make_api.py`"


def test_reference_has_what_the_pages_import() -> None:
    listed = {name.rpartition(".")[2] for group in make_api.GROUPS.values() for name in group}
    for page in PAGES:
        if page.name == "api.md":
            continue
        for names in re.findall(r"from hf_glm_ernie(?:\.\w+)? import (.+)", page.read_text("utf-8")):
            for name in names.split("  #")[0].split(","):
                assert name.strip() in listed, f"{page.name}: {name}"
