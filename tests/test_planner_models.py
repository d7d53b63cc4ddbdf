"""Released models by name: the names and settings are PaddleNLP's, and the command line knows them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import ErnieConfig

from hf_glm_ernie.__main__ import main
from hf_glm_ernie.planner.devices import plan, read_config
from hf_glm_ernie.planner.models import PRESETS, preset_of
from hf_glm_ernie.planner.sizes import model_class

SETTINGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "golden" / "ernie_released_settings.json").read_text(encoding="utf-8")
)


def test_every_released_name_has_paddlenlps_settings() -> None:
    assert set(SETTINGS) == {name for name, config in PRESETS.items() if isinstance(config, ErnieConfig)}
    assert len(SETTINGS) == 63
    for name, expected in SETTINGS.items():
        config = read_config(name)
        # The task types of models that do not read them are nowhere.
        compared = set(expected) - (set() if expected["use_task_id"] else {"task_type_vocab_size"})
        assert {key: getattr(config, key) for key in compared} == {key: expected[key] for key in compared}, name


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("ernie-3.0-xbase-zh", 296.05),
        ("ernie-3.0-base-zh", 117.94),
        ("ernie-3.0-medium-zh", 75.43),
        ("ernie-3.0-mini-zh", 26.95),
        ("ernie-3.0-micro-zh", 23.40),
        ("ernie-3.0-nano-zh", 17.91),
        ("ernie-3.0-tiny-nano-v1-zh", 17.91),
        ("ernie-3.0-tiny-base-v2-zh", 117.94),
        ("ernie-3.0-tiny-medium-v2-zh", 75.42),
        ("ernie-3.0-tiny-pico-v2-zh", 5.99),
        ("ernie-3.0-tiny-mini-v2-en", 30.29),
        ("rocketqa-zh-base-query-encoder", 117.94),
    ],
)
def test_parameters_are_those_published(name: str, millions: float) -> None:
    """The counts of PaddleNLP's own lists, in millions; beside them transformers holds two rows of positions."""
    planned = plan(name, "1x10GiB", dtype="float32")
    assert planned.fits
    buffers = 2 * 8 * planned.job.config.max_position_embeddings
    assert (planned.devices[0].weights - buffers) / 4e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("uie-nano", "ErnieForUIE"),
        ("utc-xbase", "ErnieForUTC"),
        ("utc-large", "ErnieForUTC"),
        ("rocketqa-base-cross-encoder", "ErnieForSequenceClassification"),
        ("rocketqav2-en-marco-para-encoder", "ErnieModel"),
        ("ernie-3.0-mini-zh", "ErnieModel"),
    ],
)
def test_the_class_is_that_of_the_converted_model(name: str, kind: str) -> None:
    assert model_class(read_config(name)).__name__ == kind
    assert plan(name, cpu="8GiB", context=64).fits


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("GLM-130B", "glm130b"),
        ("glm-130b", "glm130b"),
        ("THUDM/GLM-130B", "glm130b"),
        ("nghuyong/ernie-3.0-base-zh", "ernie-3.0-base-zh"),
        ("UIE-base", "uie-base"),
        ("glm-131b", None),
    ],
)
def test_names_as_people_write_them(written: str, name: str | None) -> None:
    assert preset_of(written) == name
    if name is not None:
        assert read_config(written).to_dict() == PRESETS[name].to_dict()


def test_a_folder_goes_before_a_name_that_is_like_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config("glm130b")
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path / "glm-130b")
    monkeypatch.chdir(tmp_path)
    assert read_config("glm-130b").num_hidden_layers == 3
    assert read_config("GLM-130B").num_hidden_layers == 70


def test_an_unknown_name_is_told_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "ernie-3.0-bas-zh", "--cpu", "4GiB"]) == 1
    said = capsys.readouterr().err
    assert "Did you mean ernie-3.0-base-zh" in said
    assert "uie-*, utc-*, rocketqa-*" in said


def test_the_command_knows_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "GLM-130B", "--bits", "4", "--devices", "4x24GiB"]) == 0
    assert "glm130b: int4 weights" in capsys.readouterr().out
    assert main(["plan", "--model", "uie-base", "--cpu", "4GiB"]) == 0
    assert "ernie_uie: float16" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--cpu", "10"], ["--devices", "4x24"], ["--cpu", "64GiB", "--reserve", "1"]])
def test_the_command_refuses_numbers_without_a_unit(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "uie-base", *options]) == 1
    assert "GiB" in capsys.readouterr().err
