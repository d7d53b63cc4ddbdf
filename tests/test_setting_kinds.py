"""Settings of somebody else's files: each is held to a kind, claims to the tensors, numbers of a config to a range."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import AutoConfig, ErnieConfig

from conversion import ernie3_settings, ernie_settings, glm130b_settings
from conversion.__main__ import main, parse_eps, parse_size
from conversion.ernie_files import check_config
from conversion.folder_files import write_json
from conversion.operations import SettingsError, TensorSpec
from conversion.setting_kinds import HOST_KINDS, LABELS, Kind, either, list_of, one_of, whole
from conversion.settings_files import beyond_held, check_kinds, count_layers, wrong_kinds
from conversion.tokenizer_files import TOKENIZER_KINDS
from hf_glm_ernie import Ernie3Config, ErnieUIEConfig, ErnieUTCConfig, Glm130bConfig
from hf_glm_ernie.configuration_arguments import MAX_LABELS, MAX_LAYERS
from hf_glm_ernie.configuration_ernie3 import RANGES as RANGES_ERNIE3
from hf_glm_ernie.configuration_ernie_compact import RANGES as RANGES_ERNIE
from hf_glm_ernie.configuration_glm130b import RANGES as RANGES_GLM
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from tests.conftest import GOLDEN

TABLES: dict[str, Mapping[str, Kind]] = {
    "ernie": ernie_settings.KINDS,
    "ernie3": ernie3_settings.KINDS,
    "ernie3 config": ernie3_settings.CONFIG_KINDS,
    "glm130b": glm130b_settings.KINDS,
    "glm130b config": glm130b_settings.CONFIG_KINDS,
    "host": HOST_KINDS,
    **TOKENIZER_KINDS,
}
ANY = [
    *(0, 1, -1, 2.0, 1.5, 10**6, 10**9, 10**23, 10**400, 1e308, math.nan, math.inf, -math.inf, True, False, None),
    *("", "x", "2", "x" * 10**5, [], [1], ["a", {"b": [None]}], {}, {"a": 1}, {"0": "a"}, {"0": {"1": []}}),
]
NEVER = [10**400, math.nan, math.inf, -math.inf]
"""No setting is one of these."""


@pytest.mark.parametrize("table", TABLES)
def test_every_kind_judges_every_value(table: str) -> None:
    """And what it refuses is named with the file, the value and what is allowed, in a short message."""
    for name, kind in TABLES[table].items():
        verdicts = [(value, kind.allows(value)) for value in ANY]
        assert any(not verdict for _, verdict in verdicts), name
        for value, verdict in verdicts:
            assert verdict in (True, False)
            assert not (verdict and isinstance(value, (int, float)) and any(value is never for never in NEVER)), name
            if verdict or value is None:
                check_kinds({name: value}, {name: kind}, "a.json")
                continue
            with pytest.raises(SettingsError, match=rf"^a\.json: {name} is .+; it is ") as raised:
                check_kinds({name: value}, {name: kind}, "a.json")
            assert len(str(raised.value)) < 600
            assert kind.words in str(raised.value)


def test_kinds_are_strict() -> None:
    assert [value for value in ANY if whole(0, 100).allows(value)] == [0, 1]
    assert [value for value in ANY if one_of(("x", "")).allows(value)] == ["", "x"]
    assert [value for value in ANY if list_of(whole(0), "numbers").allows(value)] == [[], [1]]
    assert either(whole(0, 1), one_of(("x",))).allows("x")
    assert wrong_kinds({"a": "x", "b": "y", "c": None}, {"a": whole(1), "c": whole(1)}) == [
        "a is 'x'; it is a whole number above 0 (at most 100,000,000)"
    ]
    assert LABELS["id2label"].allows({"0": "no", "1": "yes"})
    assert LABELS["label2id"].allows({"no": 0, "yes": "1"})
    assert not LABELS["id2label"].allows({"0": "no", "x": "yes"})


def test_settings_of_released_models_are_what_they_may_be() -> None:
    released = json.loads((GOLDEN / "ernie_released_settings.json").read_text(encoding="utf-8"))
    for name, settings in released.items():
        check_kinds(settings, ernie_settings.KINDS, name)
    for config, kinds in (
        (Glm130bConfig(), glm130b_settings.CONFIG_KINDS),
        (Ernie3Config.titan(), ernie3_settings.CONFIG_KINDS),
        (ErnieUIEConfig(), ernie_settings.KINDS),
    ):
        saved = json.loads(config.to_json_string(use_diff=False))
        assert not wrong_kinds(saved, {**HOST_KINDS, **kinds})


LEFT_OUT = {"output_attentions", "problem_type", "layer_types"}
"""Fields of a configuration that the way back does not look at."""


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (ErnieConfig, ernie_settings.KINDS),
        (ErnieUTCConfig, ernie_settings.KINDS),
        (Ernie3Config, ernie3_settings.CONFIG_KINDS),
        (Glm130bConfig, glm130b_settings.CONFIG_KINDS),
    ],
)
def test_no_field_of_a_configuration_is_lost_on_the_way_back(config: Any, kinds: Mapping[str, Kind]) -> None:
    """A field without a kind would be left out of what is read."""
    known = {*HOST_KINDS, *kinds, *LEFT_OUT, "transformers_version"}
    assert {field.name for field in fields(config) if field.init} <= known


def test_claims_are_held_against_tensors() -> None:
    names = [f"model.layers.{layer}.norm.weight" for layer in (0, 1, 5, 5)] + ["model.layers.x.norm", "layers.9.a"]
    assert count_layers(names, "model.layers.") == 3
    held = {"num_hidden_layers": 3, "id2label": 2, "vocab_size": 7}
    assert beyond_held({"num_hidden_layers": 3, "id2label": {"0": "a"}, "vocab_size": None}, held) == []
    assert beyond_held({"num_hidden_layers": 4, "id2label": dict.fromkeys("abc")}, held) == [
        "num_hidden_layers is 4, the weights hold 3",
        "id2label is 3, the weights hold 2",
    ]
    for rows, held_labels in ((3, 3), (1, None)):  # one row: multiple choice, too, where labels are of no use
        specs = {"classifier.weight": TensorSpec((rows, 2), torch.float32)}
        assert ernie_settings.held_sizes(specs).get("num_labels") == held_labels


@pytest.mark.parametrize("key", ["is_decoder", "add_cross_attention"])
def test_decoders_are_not_written_as_encoders(key: str) -> None:
    raw = {"architectures": ["ErnieModel"]}
    check_config(raw | {key: False})
    with pytest.raises(ValueError, match=f"{key} is true"):
        check_config(raw | {key: True})


# Configurations

RANGES = [(Glm130bConfig, RANGES_GLM), (Ernie3Config, RANGES_ERNIE3), (ErnieUIEConfig, RANGES_ERNIE)]


@pytest.mark.parametrize(("config", "ranges"), RANGES)
def test_numbers_of_a_configuration_have_ranges(config: Any, ranges: Mapping[str, Any]) -> None:
    """By hand and from a file; whole numbers and fractions by their types."""
    for name, allowed in ranges.items():
        values = [math.nan, math.inf, 2.0 * allowed.most + 1, -1.0]
        if isinstance(getattr(config(), name), int) and name not in ("rope_theta",):
            values = [int(2 * allowed.most + 1), allowed.least - 1, 10**23]
        elif allowed.is_open:
            values.append(float(allowed.least))
        for value in values:
            with pytest.raises((ValueError, StrictDataclassError), match=name):
                config(**{name: value})
            with pytest.raises((ValueError, StrictDataclassError), match=name):
                AutoConfig.for_model(config.model_type, transformers_version="5.0.0", **{name: value})


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (Ernie3Config, {"branch_hidden_act": "twist"}),
        (ErnieUIEConfig, {"hidden_act": ""}),
        (ErnieUIEConfig, {"pad_token_id": 30522}),
        (ErnieUIEConfig, {"num_attention_heads": 5}),
    ],
)
def test_a_configuration_of_which_no_model_can_be_made(config: Any, settings: dict[str, Any]) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=next(iter(settings))):
        config(**settings)


@pytest.mark.parametrize("config", [Glm130bConfig, Ernie3Config, ErnieUTCConfig])
def test_claims_of_a_configuration_neither_hang_nor_fill_the_memory(config: Any, tmp_path: Path) -> None:
    for name, value in (("num_labels", 10**9), ("num_hidden_layers", MAX_LAYERS + 1), ("torch_dtype", "nonsense")):
        settings = json.loads(config().to_json_string()) | {name: value}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with pytest.raises((ValueError, StrictDataclassError), match=name.removeprefix("torch_")):
            AutoConfig.from_pretrained(tmp_path)
    assert config(num_labels=MAX_LABELS // 100).num_labels == MAX_LABELS // 100


@pytest.mark.parametrize(
    "settings", [{"bits": 4.0}, {"bits": True}, {"modules_to_not_convert": 5}, {"modules_to_not_convert": [1]}]
)
def test_quantization_settings_of_wrong_types(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        WeightOnlyConfig(**settings)


# The command


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e400", "1e-400", "x", "", "2"])
def test_epsilons_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("ernie", "ernie3"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--source=x", "--output=y", f"--layer-norm-eps={text}"])
        assert ended.value.code == 2
        assert "is not a number above 0" in capsys.readouterr().err


def test_numbers_on_the_command_line() -> None:
    assert parse_eps("1e-5") == 1e-5
    assert parse_size("1000000GB") == 10**15
    for text in ("1" + "0" * 23, "1000001GB", "0", "-5GB", "nanGB", "1e5GB", "9" * 400 + "GB"):
        with pytest.raises(Exception, match="is not a size"):
            parse_size(text)
    for text in ("0", "-1", "1.0", "x", "²", "9" * 30):
        with pytest.raises(SystemExit):
            main(["ernie3", "--source=x", "--output=y", f"--num-attention-heads={text}"])


def test_names_that_are_no_text_are_printed_and_not_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ernie", f"--source={tmp_path}/\udcff", f"--output={tmp_path}/out"]) == 1
    assert "\\udcff" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ernie", f"--source={tmp_path}", f"--output={tmp_path}/\udcff"])
    assert "is no text in UTF-8" in capsys.readouterr().err


def test_a_configuration_larger_than_its_weights_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"model.layers.0.norm.weight": torch.ones(2)}, folder / "model.safetensors")
    settings = json.loads(Glm130bConfig().to_json_string()) | {"num_hidden_layers": MAX_LAYERS}
    (folder / "config.json").write_text(json.dumps(settings))
    arguments = ["--reverse", "--tensor-parallel=1", f"--source={folder}", f"--output={tmp_path / 'out'}"]
    assert main(["glm130b", *arguments]) == 1
    assert f"num_hidden_layers is {MAX_LAYERS}, the weights hold 1" in capsys.readouterr().err


def test_json_is_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"字": "\ud800"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"字": "\ud800"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": math.nan})
