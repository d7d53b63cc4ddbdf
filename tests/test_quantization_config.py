"""`WeightOnlyConfig`: what it takes, what it refuses, and dicts of other versions."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AutoQuantizationConfig

from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from tests.support.tiny_models import tiny_model


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 3}, "bits=3"),
        ({"bits": "4"}, "bits='4'"),
        ({"group_size": 0}, "group_size=0"),
        ({"group_size": 2.5}, r"group_size=2\.5"),
        ({"num_groups": {"o_proj": 0}}, "num_groups"),
        ({"num_groups": [8]}, "num_groups"),
    ],
)
def test_configs_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WeightOnlyConfig(**settings)


@pytest.mark.parametrize("name", ["bit", "bitss", "groupsize", "anything"])
def test_an_argument_that_there_is_not_raises(name: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        WeightOnlyConfig(**{name: 8})


@pytest.mark.parametrize(
    ("name", "meant"), [("bit", "bits"), ("group_sizes", "group_size"), ("num_group", "num_groups")]
)
def test_a_dict_with_a_setting_misspelt_raises(name: str, meant: str) -> None:
    given = {"quant_method": "weight_only_int", name: 8}
    with pytest.raises(ValueError, match=f"has {name}=8 and no {meant}"):
        AutoQuantizationConfig.from_dict(given)


def test_dicts_of_other_versions_and_of_the_host_are_read(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first version wrote, what the converter writes, and what a later version may write."""
    first = {"quant_method": "weight_only_int", "bits": 8, "group_size": None, "num_groups": {"o_proj": 8}}
    first |= {"modules_to_not_convert": None}
    assert AutoQuantizationConfig.from_dict(first).to_dict() == first
    assert AutoQuantizationConfig.from_dict({"quant_method": "weight_only_int", "bits": 8}).bits == 8
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    later, unused = WeightOnlyConfig.from_dict(
        first | {"zero_points": True}, return_unused_kwargs=True, bits=4, device_map="auto"
    )
    assert later.to_dict() == first | {"zero_points": True, "bits": 4}
    assert unused == {"device_map": "auto"}
    assert "does not know and does not use: zero_points" in caplog.text


def test_a_folder_of_a_later_version_opens_and_keeps_what_it_says(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "plain")
    config = WeightOnlyConfig(bits=8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config)
    model.save_pretrained(tmp_path / "later")
    file = tmp_path / "later" / "config.json"
    settings = json.loads(file.read_text())
    settings["quantization_config"]["zero_points"] = True
    file.write_text(json.dumps(settings))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "later")
    assert type(again.model.layers[0].mlp.up_proj).__name__ == "WeightOnlyLinear"
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())
    again.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["quantization_config"]["zero_points"] is True


def test_another_method_is_refused() -> None:
    with pytest.raises(ValueError, match="quant_method='gptq' is another format"):
        WeightOnlyConfig(quant_method="gptq")
