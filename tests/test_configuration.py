"""Configs take the arguments that they and the host know, and read every dict that came from a file."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from hf_glm_ernie import Ernie3Config, ErnieUIEConfig, ErnieUTCConfig, Glm130bConfig

ALL = [Glm130bConfig, Ernie3Config, ErnieUIEConfig, ErnieUTCConfig]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(("name", "meant"), [("num_layers", "num_hidden_layers"), ("hiden_size", "hidden_size")])
def test_an_argument_that_is_no_setting_raises(kind: Any, name: str, meant: str) -> None:
    for make in (kind, lambda **given: AutoConfig.for_model(kind.model_type, **given)):
        with pytest.raises(ValueError, match=f"{kind.__name__} has no setting {name}. Did you mean .*{meant}"):
            make(**{name: 4})
    with pytest.raises(ValueError, match=r"has no setting entirely_made_up\. What else"):
        kind(entirely_made_up=4)


@pytest.mark.parametrize("preset", [Ernie3Config.ernie3_10b, Ernie3Config.titan])
def test_overrides_of_presets_are_settings(preset: Any) -> None:
    assert preset(num_hidden_layers=3).num_hidden_layers == 3
    with pytest.raises(ValueError, match="has no setting num_layers"):
        preset(num_layers=3)


@pytest.mark.parametrize("kind", ALL)
def test_what_the_host_knows_is_taken(kind: Any) -> None:
    config = kind(num_labels=3, torch_dtype="float16", architectures=["A"], output_attentions=True, max_length=30)
    assert (config.num_labels, config.dtype, config.architectures) == (3, torch.float16, ["A"])
    assert config.output_attentions
    assert kind(attn_implementation="eager")._attn_implementation == "eager"


@pytest.mark.parametrize("kind", ALL)
def test_files_of_other_versions_are_read_and_kept(kind: Any, tmp_path: Any) -> None:
    config = kind()
    config.of_my_own = 7
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is kind
    assert again.of_my_own == 7
    assert kind(**again.to_dict()).of_my_own == 7
    assert kind.from_dict({"model_type": kind.model_type, "of_a_later_version": 1}).of_a_later_version == 1
