"""What a model computed at its conversion: kept, read back without belief, and compared by `publish`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion import publish_comparing, publish_trial, reference_outputs
from conversion.__main__ import main
from conversion.publish_check import observe
from conversion.publish_source import Source, read_source
from conversion.publish_trial import trial_request
from conversion.reference_outputs import (
    FILE,
    SAMPLE,
    TOLERANCES,
    Reference,
    ReferenceOutputsError,
    compare_with_reference,
    parse_reference,
    sample,
)
from tests.support.converting_ernie3 import SIZES, layout, random_arrays, write_static
from tests.support.publishing import ERNIE, make_source

CONVERTED = ("glm", "glm_int4", "glm_int8", "encoder", "uie", "ernie3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("converted")
    made = {name: make_source(name, work / name) for name in CONVERTED if name != "ernie3"}
    write_static(work / "static", random_arrays(layout()), SIZES.settings)
    assert main(["ernie3", f"--source={work / 'static'}", f"--output={work / 'ernie3'}"]) == 0
    return made | {"ernie3": work / "ernie3"}


def compared(source: Source, folder: Path | None = None) -> list[tuple[str, str, str]]:
    """What the check says of a folder, computed here."""
    folder = folder or source.folder
    request = trial_request(folder, source.row, source.architecture, source.config, source.has_tokenizer)
    assert source.reference is not None
    return compare_with_reference(source.reference, request, *observe(request), folder)


@pytest.mark.parametrize("name", CONVERTED)
def test_every_conversion_keeps_what_the_model_computes(folders: dict[str, Path], name: str) -> None:
    source = read_source(folders[name])
    rows = compared(source)
    assert rows
    assert all(result in ("equal", "differ by 0.0e+00") for _, _, result in rows)
    assert (folders[name] / FILE).stat().st_size < 100_000
    assert source.reference is not None
    assert source.reference.dtype == source.config["dtype"]
    assert bool(source.reference.generated) == (name.startswith("glm"))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("glm", "rope_theta", 100.0),
        ("glm", "layer_norm_eps", 0.1),
        ("encoder", "layer_norm_eps", 0.1),
        ("encoder", "hidden_act", "relu"),
        ("uie", "num_attention_heads", 1),
        ("ernie3", "layer_norm_eps", 0.1),
        ("ernie3", "branch_hidden_act", "relu"),
    ],
)
def test_a_setting_that_was_changed_is_seen(
    folders: dict[str, Path], tmp_path: Path, name: str, key: str, value: Any
) -> None:
    """The weights' bytes are the same and the code agrees with itself."""
    shutil.copytree(folders[name], tmp_path / "changed")
    config = json.loads((tmp_path / "changed" / "config.json").read_text())
    (tmp_path / "changed" / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ReferenceOutputsError, match=r"compared with what transformers .* computed when"):
        compared(read_source(tmp_path / "changed"))


def test_a_host_that_computes_otherwise_is_seen(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x, *_, **__: torch.relu(x))
    for name in ("glm", "encoder", "ernie3"):
        with pytest.raises(ReferenceOutputsError, match="differ by"):
            compared(read_source(folders[name]))


def test_a_tokenizer_of_another_version_is_seen(folders: dict[str, Path]) -> None:
    source = read_source(folders["encoder"])
    request = trial_request(source.folder, source.row, source.architecture, source.config, True, "structure")
    report, outputs = observe(request)
    report["ids"][1] = report["ids"][1][:-1]
    assert source.reference is not None
    with pytest.raises(ReferenceOutputsError, match="gives text 2 other ids"):
        compare_with_reference(source.reference, request, report, outputs, "here")


def test_publish_compares_with_the_conversion(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command, on a unified model: with a record, which it could not be published with before."""
    output = tmp_path / "out"
    assert main(["publish", str(folders["ernie3"]), "--repo=me/ernie3", f"--output={output}"]) == 0
    assert "what it computed then, with transformers" in capsys.readouterr().out
    card = (output / "README.md").read_text()
    assert "The parameters of a static graph (" in card
    assert "| the conversion, transformers " in card
    assert (output / FILE).is_file()
    assert not list(tmp_path.glob("*.incomplete"))


def test_without_what_was_computed_the_card_says_so(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_comparing, "_stranger", lambda request, _: observe(request))
    shutil.copytree(folders["encoder"], tmp_path / "copy")
    (tmp_path / "copy" / FILE).unlink()
    source = read_source(tmp_path / "copy")
    assert source.reference is None
    assert main(["publish", str(tmp_path / "copy"), "--repo=me/x", "--check=structure"]) == 0
    card = (tmp_path / "copy_hub" / "README.md").read_text()
    assert "| what the model computed at its conversion |  | not compared: it was not kept |" in card


def test_the_option_leaves_it_out_and_so_does_too_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ernie", f"--source={ERNIE / 'masked-lm'}"]
    assert main([*arguments, f"--output={tmp_path / 'a'}", "--no-reference"]) == 0
    assert not (tmp_path / "a" / FILE).exists()
    capsys.readouterr()
    monkeypatch.setattr(publish_trial, "SPARE_BYTES", 10**15)
    state = torch.random.get_rng_state()
    assert main([*arguments, f"--output={tmp_path / 'b'}"]) == 0
    assert "note: no outputs were kept for publish to compare with: computing takes about" in capsys.readouterr().err
    assert not (tmp_path / "b" / FILE).exists()
    monkeypatch.undo()
    assert main([*arguments, f"--output={tmp_path / 'c'}"]) == 0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_that_does_not_compute_is_converted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(reference_outputs, "observe", fail)
    make_source("encoder", tmp_path / "a")
    assert "the model does not compute here: RuntimeError: no such kernel" in capsys.readouterr().err
    assert not (tmp_path / "a" / FILE).exists()


def test_samples() -> None:
    small, large = torch.arange(6.0).view(2, 3), torch.randn(7, 300)
    assert sample(small).values == (0, 1, 2, 3, 4, 5)
    assert len(sample(large).values) == SAMPLE
    assert sample(large).shape == (7, 300)
    assert sample(large).largest == pytest.approx(float(large.abs().max()))
    assert sample(large).values[-1] == pytest.approx(float(large.flatten()[511 * 2100 // 512]))


def test_a_choice_that_was_nearly_a_tie_may_be_another() -> None:
    request = {"texts": [], "inputs": {"input_ids": [[1]]}}
    outputs = {"logits": torch.ones(1, 1, 2)}
    close, clear = TOLERANCES["float32"], 0.5
    for margin, same in ((close, True), (clear, False)):
        reference = Reference(
            *("1", "1", "1", "float32"),
            request["inputs"],
            {"logits": sample(outputs["logits"])},
            generated=(1, 2),
            margins=(clear, margin),
        )
        report = {"generated": [1, 3]}
        if same:
            rows = compare_with_reference(reference, request, report, outputs, "here")
            assert rows[-1][0] == "1 of 2 generated ids"
        else:
            with pytest.raises(ReferenceOutputsError, match="generated id 2 is another"):
                compare_with_reference(reference, request, report, outputs, "here")


def test_what_is_read_back_is_what_was_written(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        content = json.loads((folder / FILE).read_text())
        assert json.loads(json.dumps(parse_reference(folder, content).as_json())) == content, name
        for key in content:
            with pytest.raises(ReferenceOutputsError, match="not the outputs of a conversion"):
                parse_reference(folder, {**content, key: {"a": float("nan")} if key != "outputs" else 1})
