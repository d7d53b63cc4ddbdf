"""`torch.export` and ONNX export of the converted classes: files that run alone and give the model's numbers."""

import functools
import importlib.util
import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    ErnieConfig,
    ErnieForMaskedLM,
    ErnieForMultipleChoice,
    ErnieForPreTraining,
    ErnieForQuestionAnswering,
    ErnieForSequenceClassification,
    ErnieForTokenClassification,
    ErnieModel,
)

from examples import export_ernie
from hf_glm_ernie import ErnieForUIE, ErnieForUTC, ErnieUIEConfig, ErnieUTCConfig
from hf_glm_ernie.ernie_tasks import onnx_export
from tests.support.fresh import fresh_python

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 80,
    "use_task_id": True,
    "initializer_range": 0.2,
}
OUTPUTS = {
    ErnieModel: ["last_hidden_state", "pooler_output"],
    ErnieForMaskedLM: ["logits"],
    ErnieForPreTraining: ["prediction_logits", "seq_relationship_logits"],
    ErnieForSequenceClassification: ["logits"],
    ErnieForTokenClassification: ["logits"],
    ErnieForQuestionAnswering: ["start_logits", "end_logits"],
    ErnieForMultipleChoice: ["logits"],
    ErnieForUIE: ["start_prob", "end_prob", "start_logits", "end_logits"],
    ErnieForUTC: ["logits"],
}
# One text; the traced shape and others; as long as the model can read.
SHAPES = [(1, 7), (2, 16), (3, 80), (6, 21)]
# Relative to the largest value where that is above 1. Measured: 0 for torch.export, 5.5e-7 for ONNX, whose runtime
# sums in another order.
TOLERANCE = {"torch-export": 1e-6, "onnx": 1e-5}
missing = [name for name in export_ernie.ONNX_PACKAGES if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(missing), reason=f"needs {' and '.join(missing)}: pip install 'hf-glm-ernie[onnx]'"
)


def build(model_class):
    torch.manual_seed(5)
    config_class = {ErnieForUIE: ErnieUIEConfig, ErnieForUTC: ErnieUTCConfig}.get(model_class, ErnieConfig)
    return model_class(config_class(**SIZES)).eval()


@functools.cache
def traced(model_class):
    """A model and its exported program; most tests look at the same few."""
    model = build(model_class)
    return model, export_ernie.trace(model)


def assert_agrees(model, exported, tolerance):
    for shape in SHAPES:
        found = export_ernie.differences(model, exported, shape)
        assert list(found) == OUTPUTS[type(model)]
        assert max(found.values()) <= tolerance, (shape, found)


@pytest.mark.parametrize("model_class", OUTPUTS, ids=lambda model_class: model_class.__name__)
def test_torch_export_agrees(model_class, tmp_path):
    model, program = traced(model_class)
    assert_agrees(model, export_ernie.save_torch(program, tmp_path / "model.pt2"), TOLERANCE["torch-export"])


@needs_onnx
@pytest.mark.parametrize(
    "model_class",
    [ErnieModel, ErnieForMaskedLM, ErnieForUIE, ErnieForUTC],
    ids=lambda model_class: model_class.__name__,
)
def test_onnx_agrees(model_class, tmp_path):
    import onnx

    model, program = traced(model_class)
    path = tmp_path / "model.onnx"
    assert_agrees(model, export_ernie.save_onnx(program, model, path), TOLERANCE["onnx"])
    graph = onnx.load(path).graph
    assert [value.name for value in graph.output] == OUTPUTS[model_class]
    axes = {
        value.name: tuple(axis.dim_param or None for axis in value.type.tensor_type.shape.dim) for value in graph.input
    }
    assert axes == dict(onnx_export.axes_of(model))


def test_padding_reaches_the_exported_model(tmp_path):
    """A mask that tracing took for a constant would go unnoticed on inputs without padding."""
    model, program = traced(ErnieModel)
    exported = export_ernie.save_torch(program, tmp_path / "model.pt2")
    inputs = export_ernie.random_inputs(model, 3, 12)
    assert inputs["attention_mask"].sum(-1).tolist() == [12, 11, 10]
    with_padding = exported(**inputs)["last_hidden_state"]
    without = exported(**(inputs | {"attention_mask": torch.ones(3, 12, dtype=torch.int64)}))["last_hidden_state"]
    assert torch.equal(with_padding[0], without[0])
    assert (with_padding[1:] - without[1:]).abs().max() > 0.01


def test_exported_file_needs_torch_alone(tmp_path):
    model, program = traced(ErnieForUIE)
    export_ernie.save_torch(program, tmp_path / "model.pt2")
    inputs = export_ernie.random_inputs(model, 2, 10)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = (
        "import json, sys, torch\n"
        "outputs = torch.export.load('model.pt2').module()(**torch.load('inputs.pt'))\n"
        "assert not {'transformers', 'hf_glm_ernie'} & set(sys.modules)\n"
        "print(json.dumps(outputs['start_prob'].tolist()))"
    )
    done = fresh_python(["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model(**inputs).start_prob
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected, rtol=0, atol=1e-6)


def test_command(tmp_path, capsys):
    build(ErnieForUIE).save_pretrained(tmp_path / "uie")
    arguments = ["--model", str(tmp_path / "uie"), "--output", str(tmp_path / "out"), "--format", "torch-export"]
    assert export_ernie.main(arguments) == 0
    output = capsys.readouterr().out
    assert "ErnieForUIE" in output
    assert "1 x 9 tokens: largest difference from the model: start_prob" in output
    assert output.endswith("agrees with the model\n")
    assert "holds no tokenizer_config.json" in output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.pt2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "uie"]
    with pytest.raises(SystemExit, match="out exists already"):
        export_ernie.main(arguments)


def test_command_says_where_numbers_differ(tmp_path, capsys, monkeypatch):
    build(ErnieForUIE).save_pretrained(tmp_path / "uie")
    monkeypatch.setattr(export_ernie, "differences", lambda *_: {"start_prob": 2e-5, "end_prob": 0.0})
    arguments = ["--model", str(tmp_path / "uie"), "--output", str(tmp_path / "out"), "--format", "torch-export"]
    assert export_ernie.main(arguments) == 1
    assert "DIFFERS from the model by more than 1e-05" in capsys.readouterr().out


def test_encoder_alone(tmp_path):
    masked = build(ErnieForMaskedLM)
    masked.ernie = build(ErnieModel)
    masked.save_pretrained(tmp_path)
    assert type(export_ernie.open_model(tmp_path)) is ErnieForMaskedLM
    encoder = export_ernie.open_model(tmp_path, without_head=True)
    assert type(encoder) is ErnieModel
    assert torch.equal(encoder.pooler.dense.weight, masked.ernie.pooler.dense.weight)


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"holds no config.json"):
        export_ernie.open_model(tmp_path)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    BertModel(BertConfig(**{name: SIZES[name] for name in names})).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="model type 'bert', class 'BertModel'"):
        export_ernie.open_model(tmp_path)
    monkeypatch.setattr(export_ernie, "ONNX_PACKAGES", ("onnx_of_nowhere", "torch"))
    with pytest.raises(
        SystemExit, match=r"needs onnx_of_nowhere, not installed here: pip install 'hf-glm-ernie\[onnx\]'"
    ):
        export_ernie.main(["--model", str(tmp_path), "--output", str(tmp_path / "out")])


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    build(ErnieForUIE).save_pretrained(tmp_path / "uie")
    arguments = ["--model", str(tmp_path / "uie"), "--output", str(tmp_path / "out"), "--format", "torch-export"]

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_ernie, "save_torch", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_ernie.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["uie"]


def test_refused_settings(tmp_path, monkeypatch):
    build(ErnieForUIE).save_pretrained(tmp_path / "uie")
    arguments = ["--model", str(tmp_path / "uie"), "--output", str(tmp_path / "out"), "--format"]
    with pytest.raises(SystemExit, match="--int8 quantizes the ONNX file: take --format onnx or both"):
        export_ernie.main([*arguments, "torch-export", "--int8"])
    with pytest.raises(SystemExit, match="pass --int8 as well"):
        export_ernie.main([*arguments, "torch-export", "--reduce-range"])
    monkeypatch.setattr(export_ernie, "ONNX_PACKAGES", ())
    monkeypatch.setattr(export_ernie, "ONNX_BYTES", 1000)
    with pytest.raises(SystemExit, match=r"one ONNX file holds 1,000\. --format torch-export has no such limit"):
        export_ernie.main([*arguments, "onnx"])
    assert not (tmp_path / "out").exists()
