"""ERNIE encoders as plain BERT: the original's numbers through transformers' BERT classes, and the way back."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from conversion.bert_names import BERT_TASKS, KEPT_FILE
from tests.support.converting_ernie import arrays_of, convert, small_arrays, small_settings, weights, write_checkpoint
from tests.support.ernie_goldens import (
    AUTO_CLASSES,
    OWN,
    SHARED,
    SMALL,
    Golden,
    difference,
    goldens,
    native_inputs,
    run,
)
from tests.support.strangers import stranger

# Another order of additions than Paddle's; the project's bound for parity. Seen: 1.7e-5 where a row is masked whole,
# 1.5e-5 of masked-LM logits up to 20, 3.4e-6 elsewhere.
PARITY = 2e-5
# A sum that is rounded before it is added, seen without further rounding: 5.4e-7, of logits up to 20.
SAME_MODEL = 1e-6

CONVERTED = [one for one in goldens(SMALL) if one.original_class not in OWN]
SHARED_GOLDENS = [one for one in goldens(SHARED / "models") if one.original_class not in OWN]
NO_BERT = ("optional_kv_cache", "task_types")
"""Inputs that BERT does not have: a cache outside decoders, a task type for each token."""


@pytest.fixture(scope="session")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Converts a checkpoint once, with options, and says where."""
    folders: dict[tuple[object, ...], Path] = {}

    def convert_once(source: Path, *options: str) -> Path:
        key = source, *options
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("bert") / source.name
            assert convert(source, folders[key], *options) == 0
        return folders[key]

    return convert_once


@pytest.fixture(scope="session")
def opened(folded: Callable[..., Path]) -> Callable[..., PreTrainedModel]:
    """Opens what a golden's checkpoint became, as BERT or as ERNIE."""
    models: dict[tuple[object, ...], PreTrainedModel] = {}

    def open_once(golden: Golden, *options: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        key = golden.folder, options, dtype
        if key not in models:
            auto = AUTO_CLASSES[golden.original_class]
            folder = folded(golden.folder, *options)
            models[key] = auto.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()
        return models[key]

    return open_once


def check(golden: Golden, model: PreTrainedModel) -> None:
    inputs, flags = golden.inputs, {}
    positions = inputs.pop("masked_positions", None)
    if any(name.startswith(("hidden_states", "attentions")) for name in golden.outputs):
        flags = {"output_hidden_states": True, "output_attentions": True}
    output = run(model, native_inputs(model, inputs), **flags)
    for name, expected in golden.outputs.items():
        field, _, number = name.partition(".")
        found = getattr(output, field)
        found = found[int(number)] if number else found
        if positions is not None and found.ndim == 3:
            found = found.flatten(0, 1)[positions]
        assert difference(found, expected) <= PARITY, name


@pytest.mark.parametrize("golden", [one for one in CONVERTED if one.name not in NO_BERT], ids=lambda golden: golden.id)
def test_small_goldens(opened: Callable[..., PreTrainedModel], golden: Golden) -> None:
    model = opened(golden, "--as-bert")
    assert type(model).__module__ == "transformers.models.bert.modeling_bert"
    check(golden, model)


@pytest.mark.skipif(
    not SHARED_GOLDENS,
    reason="needs the full golden sets beside the repository (../shared/goldens/ernie); those in tests/golden ran",
)
@pytest.mark.parametrize(
    "golden", [one for one in SHARED_GOLDENS if one.name not in NO_BERT], ids=lambda golden: golden.id
)
def test_every_golden(opened: Callable[..., PreTrainedModel], golden: Golden) -> None:
    check(golden, opened(golden, "--as-bert"))


@pytest.mark.parametrize("golden", [one for one in CONVERTED if one.name == "pad_mask2d"], ids=lambda one: one.id)
def test_every_head_computes_what_the_ernie_folder_does(
    opened: Callable[..., PreTrainedModel], golden: Golden
) -> None:
    """In float64, where nothing but the sum of the two rows is rounded; in float32 either rounds on its own way."""
    bert, ernie = (opened(golden, *options, dtype=torch.float64) for options in (("--as-bert",), ()))
    found, expected = (run(model, native_inputs(model, golden.inputs)) for model in (bert, ernie))
    assert found.keys() == expected.keys()
    assert all((found[name] - expected[name]).abs().max() <= SAME_MODEL for name in found)


@pytest.mark.parametrize("name", ["features", "features_task_type_2"])
@pytest.mark.parametrize("task_type", [0, 1, 2])
def test_every_task_type_as_the_original_counts_them(
    folded: Callable[..., Path], opened: Callable[..., PreTrainedModel], name: str, task_type: int
) -> None:
    """Where the default is another than 0, a converted folder has moved its rows; the option counts as before."""
    golden = Golden(SMALL / name, "pad_mask2d")
    ernie = opened(golden)
    asked = golden.inputs | {"task_type_ids": torch.full_like(golden.inputs["input_ids"], task_type)}
    expected = run(ernie, native_inputs(ernie, asked)).last_hidden_state
    for source in (golden.folder, folded(golden.folder)):
        folder = folded(source, "--as-bert", f"--task-type={task_type}")
        bert = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        found = run(bert, native_inputs(bert, golden.inputs)).last_hidden_state
        assert difference(found, expected) <= 4e-6  # two ways of rounding, seen 1.7e-6
    default = opened(golden, "--as-bert")
    if task_type != ernie.config.task_id:
        assert difference(run(default, native_inputs(default, golden.inputs)).last_hidden_state, expected) > PARITY


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", sorted({golden.folder.name for golden in CONVERTED}))
def test_both_sources_give_the_same_and_the_way_back_every_bit(
    folded: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    """PaddleNLP's file -> BERT, PaddleNLP's file -> ERNIE -> BERT; BERT -> ERNIE -> PaddleNLP's file."""
    source = SMALL / name
    ernie, bert = folded(source), folded(source, "--as-bert")
    assert convert(ernie, tmp_path / "bert", "--as-bert") == 0
    assert same(tmp_path / "bert", bert)
    assert (tmp_path / "bert" / "config.json").read_text() == (bert / "config.json").read_text()
    assert convert(bert, tmp_path / "ernie", "--as-bert", "--reverse") == 0
    assert same(tmp_path / "ernie", ernie)
    assert (tmp_path / "ernie" / "config.json").read_text() == (ernie / "config.json").read_text()
    assert convert(tmp_path / "ernie", tmp_path / "paddle", "--reverse") == 0
    assert convert(ernie, tmp_path / "paddle_of_ernie", "--reverse") == 0
    for file in ("model_state.pdparams", "config.json"):
        assert (tmp_path / "paddle" / file).read_bytes() == (tmp_path / "paddle_of_ernie" / file).read_bytes()
    arrays = arrays_of(tmp_path / "paddle" / "model_state.pdparams")
    assert all(arrays[name].tobytes() == array.tobytes() for name, array in small_arrays(source.name).items())


STRANGER = """
import json, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, AutoConfig
folder, inputs = {folder!r}, {inputs!r}
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(**{{name: torch.tensor(value) for name, value in inputs.items()}}).logits
print(json.dumps([type(model).__name__, type(AutoConfig.from_pretrained(folder)).__name__, logits.tolist()]))
"""


def test_without_this_package(folded: Callable[..., Path], tmp_path: Path) -> None:
    golden = Golden(SMALL / "sequence_classification", "basic")
    inputs = {name: value.tolist() for name, value in golden.inputs.items()}
    inputs["attention_mask"] = (golden.inputs["input_ids"] != 0).long().tolist()
    code = STRANGER.format(folder=str(folded(golden.folder, "--as-bert")), inputs=inputs)
    model, config, logits = stranger(code, tmp_path)
    assert (model, config) == ("BertForSequenceClassification", "BertConfig")
    assert difference(torch.tensor(logits), golden.outputs["logits"]) <= PARITY


def states(folder: Path, golden: Golden) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    return run(model, native_inputs(model, golden.inputs)).last_hidden_state


def test_back_after_training_computes_the_same_to_the_last_bit(
    folded: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was folded cannot be told from what was learnt: no task types any more, and no rounding."""
    golden = Golden(SMALL / "features", "pad_mask2d")
    model = AutoModel.from_pretrained(folded(golden.folder, "--as-bert"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.01
    model.save_pretrained(tmp_path / "tuned")
    assert convert(tmp_path / "tuned", tmp_path / "ernie", "--as-bert", "--reverse") == 0
    assert f"{KEPT_FILE} is not there: the ERNIE folder has no task types" in capsys.readouterr().out
    assert AutoConfig.from_pretrained(tmp_path / "ernie").use_task_id is False
    assert torch.equal(states(tmp_path / "ernie", golden), states(tmp_path / "tuned", golden))
    shutil.copytree(folded(golden.folder, "--as-bert") / "ernie", tmp_path / "tuned" / "ernie")
    assert convert(tmp_path / "tuned", tmp_path / "changed", "--as-bert", "--reverse") == 0
    assert "the position embeddings were changed since" in capsys.readouterr().out
    assert same(tmp_path / "changed", tmp_path / "ernie")


def test_back_after_training_with_frozen_embeddings_keeps_the_task_types(
    folded: Callable[..., Path], tmp_path: Path
) -> None:
    golden = Golden(SMALL / "features", "pad_mask2d")
    bert = folded(golden.folder, "--as-bert")
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=4)
    with torch.no_grad():
        for parameter in model.bert.encoder.parameters():
            parameter += torch.randn_like(parameter) * 0.01
    model.save_pretrained(tmp_path / "tuned")
    shutil.copytree(bert / "ernie", tmp_path / "tuned" / "ernie")
    assert convert(tmp_path / "tuned", tmp_path / "ernie", "--as-bert", "--reverse") == 0
    found = weights(tmp_path / "ernie")
    before = weights(folded(golden.folder))
    for name in ("position", "task_type"):
        assert torch.equal(
            found[f"ernie.embeddings.{name}_embeddings.weight"], before[f"embeddings.{name}_embeddings.weight"]
        )
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ernie").eval()
    assert back.config.num_labels == 4
    inputs = native_inputs(back, golden.inputs)
    assert difference(run(back, inputs).logits, run(model.eval(), inputs).logits) <= 4e-6  # seen 3e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(
    folded: Callable[..., Path], tmp_path: Path, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    """As stored: exact in the file. With --dtype: rounded once, by half a unit in the last place at most."""
    name = str(dtype).removeprefix("torch.")
    half = folded(SMALL / "features", f"--dtype={name}")
    assert convert(half, tmp_path / "bert", "--as-bert") == 0
    printed = capsys.readouterr().out
    assert (
        f"stay float32; loading in {name} rounds them once, each by at most {torch.finfo(dtype).eps / 2:.1e}"
        in printed
    )
    ernie, bert = weights(half), weights(tmp_path / "bert")
    table, task = (f"embeddings.{one}_embeddings.weight" for one in ("position", "task_type"))
    assert torch.equal(bert[table], ernie[table].float() + ernie[task][0].float())
    assert bert[table].dtype == torch.float32
    assert {tensor.dtype for one, tensor in bert.items() if one != table} == {dtype}
    assert "some tensors are" not in printed
    assert convert(tmp_path / "bert", tmp_path / "back", "--as-bert", "--reverse") == 0
    assert "rounded" not in capsys.readouterr().out
    assert same(tmp_path / "back", half)

    assert convert(SMALL / "features", tmp_path / "rounded", "--as-bert", f"--dtype={name}") == 0
    assert f"are rounded once, each by at most {torch.finfo(dtype).eps / 2:.1e} of itself" in capsys.readouterr().out
    exact = weights(folded(SMALL / "features", "--as-bert"))[table]
    rounded = weights(tmp_path / "rounded")[table]
    assert torch.equal(rounded, exact.to(dtype))
    assert ((rounded.float() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps / 2).all()
    assert convert(tmp_path / "rounded", tmp_path / "rounded_back", "--as-bert", "--reverse") == 0
    assert same(tmp_path / "rounded_back", half)


def test_without_task_embeddings_nothing_is_lost(
    folded: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = {name: array for name, array in small_arrays("features").items() if "task_type" not in name}
    source = write_checkpoint(tmp_path / "source", arrays, small_settings("features") | {"use_task_id": False})
    assert convert(source, tmp_path / "bert", "--as-bert") == 0
    assert "no task embeddings (use_task_id is false): nothing is lost" in capsys.readouterr().out
    assert not (tmp_path / "bert" / KEPT_FILE).exists()
    assert convert(source, tmp_path / "ernie") == 0
    assert convert(tmp_path / "bert", tmp_path / "back", "--as-bert", "--reverse") == 0
    assert same(tmp_path / "back", tmp_path / "ernie")
    golden = Golden(SMALL / "features", "pad_mask2d")
    assert torch.equal(states(tmp_path / "bert", golden), states(tmp_path / "ernie", golden))


def test_every_head_that_both_families_have_has_a_golden() -> None:
    assert {one.ernie.original for one in BERT_TASKS} == {one.original_class for one in CONVERTED}
