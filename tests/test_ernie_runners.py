"""The tasks on whatever runs the model: onnxruntime in fp32 and INT8, exported programs, functions; refusals."""

import importlib.util
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, ErnieConfig, ErnieModel

from conversion.__main__ import main as convert
from examples import ernie_tasks, export_ernie
from hf_glm_ernie import OnnxEncoder, sentence_embeddings, uie, utc
from hf_glm_ernie.ernie_tasks import onnx_export
from hf_glm_ernie.ernie_tasks.exported import CHOICE_AXES, INT8_FILE, TORCH_FILE, axes_of_class
from tests.support.ernie_task_goldens import (
    UIE,
    UIE_SETTINGS,
    UTC,
    UTC_SETTINGS,
    UTC_TEXTS,
    UTC_VOCAB,
    flat,
    tokenizer_of,
    uie_model,
    utc_model,
)

missing = [name for name in export_ernie.ONNX_PACKAGES if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(missing), reason=f"needs {' and '.join(missing)}: pip install 'hf-glm-ernie[onnx]'"
)
# Of a probability on its way to INT8, the largest and the mean: 0.016 and 0.0002 seen on these texts, 0.14 and
# 0.0004 on 600 others.
MOVES = 0.15, 0.002
# fp32 sums in another order, products of two probabilities: 2.5e-6 seen over 3,262 answers of the sample.
PROBABILITY = 1e-5
EXTRACTIONS = ernie_tasks.read_lines("extractions.jsonl")
SCHEMAS = {name: one["schema"] for name, one in json.loads((ernie_tasks.SAMPLE / "events.json").read_text()).items()}
TINY = {
    "vocab_size": len(UIE["vocab"]),
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
    "initializer_range": 0.2,
}


def exported(model, tokenizer, folder, *options):
    """The folder that the command writes of a model."""
    model.save_pretrained(folder / "model")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "model")
    arguments = ["--model", str(folder / "model"), "--output", str(folder / "exported"), "--format", "onnx", *options]
    assert export_ernie.main(arguments) == 0
    return folder / "exported"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The shipped extractor, trained: the model, its tokenizer, and the folder with every file exported from it."""
    folder = tmp_path_factory.mktemp("sample")
    source, output = str(ernie_tasks.SAMPLE / "uie"), str(folder / "uie")
    assert convert(["ernie", "--source", source, "--output", output, "--dtype", "float32"]) == 0
    model, tokenizer = AutoModel.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    kinds = ["--format", "torch-export"] if missing else ["--format", "both", "--int8"]
    assert export_ernie.main(["--model", output, "--output", str(folder / "exported"), *kinds]) == 0
    return SimpleNamespace(model=model, tokenizer=tokenizer, folder=folder / "exported")


@pytest.fixture(scope="module")
def golden_uie(tmp_path_factory):
    """The original's extraction model, its tokenizer, and the encoder exported from it."""
    folder = tmp_path_factory.mktemp("uie")
    model, tokenizer = uie_model(), tokenizer_of(UIE["vocab"], folder)
    return model, tokenizer, None if missing else OnnxEncoder(exported(model, tokenizer, folder), threads=1)


@pytest.fixture(scope="module")
def golden_utc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("utc")
    model, tokenizer = utc_model(), tokenizer_of(UTC_VOCAB, folder)
    tokenizer.add_tokens(["[O-MASK]"], special_tokens=True)
    return model, tokenizer, None if missing else OnnxEncoder(exported(model, tokenizer, folder), threads=1)


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("encoder")
    model, tokenizer = ErnieModel(ErnieConfig(**TINY)).eval(), tokenizer_of(UIE["vocab"], folder)
    return model, tokenizer, None if missing else OnnxEncoder(exported(model, tokenizer, folder), threads=1)


def extracted(model, tokenizer, **settings):
    """What is found in the held-out texts of the sample, laid flat, text by text."""
    found = []
    for language, schema in SCHEMAS.items():
        texts = [one["text"] for one in EXTRACTIONS if one["language"] == language]
        found += [flat(one) for one in uie(model, tokenizer, schema, texts, language=language, **settings)]
    return found


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert [row[:4] for row in one] == [row[:4] for row in other]
        assert all(abs(a[4] - b[4]) < PROBABILITY for a, b in zip(one, other, strict=True) if b[4] is not None)


@needs_onnx
def test_a_folder_opens(sample):
    encoder = OnnxEncoder(str(sample.folder))
    assert sorted(path.name for path in sample.folder.iterdir()) == [
        *("config.json", "model.onnx", "model.pt2", INT8_FILE),
        *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    ]
    assert encoder.file.name == "model.onnx"
    assert encoder.config.architectures == ["ErnieForUIE"]
    assert not hasattr(encoder.config, "auto_map")  # no code lies there
    assert encoder.input_names == tuple(axes_of_class("ErnieForUIE"))
    assert encoder.output_names == ("start_prob", "end_prob", "start_logits", "end_logits")
    assert encoder.tokenizer.get_vocab() == sample.tokenizer.get_vocab()
    assert repr(encoder) == f"OnnxEncoder({str(encoder.file)!r}, providers=['CPUExecutionProvider'])"


@needs_onnx
def test_extraction_is_the_models(sample):
    encoder = OnnxEncoder(sample.folder, threads=1)
    expected = extracted(sample.model, sample.tokenizer)
    assert sum(map(len, expected)) > 200
    assert_same(extracted(encoder, encoder.tokenizer), expected)
    assert_same(extracted(encoder, encoder.tokenizer, batch_size=3), expected)


@needs_onnx
def test_int8_finds_the_same_answers(sample):
    """Measured over 600 more texts: all 3,262 answers found and one more, probabilities within 0.14 (mean 0.0004)."""
    encoder = OnnxEncoder(sample.folder, INT8_FILE, threads=1)
    assert encoder.file.stat().st_size < 0.45 * (sample.folder / "model.onnx").stat().st_size
    found, expected = extracted(encoder, encoder.tokenizer), extracted(sample.model, sample.tokenizer)
    assert [[row[:4] for row in one] for one in found] == [[row[:4] for row in one] for one in expected]
    pairs = [pair for one, other in zip(found, expected, strict=True) for pair in zip(one, other, strict=True)]
    moves = [abs(ours[4] - theirs[4]) for ours, theirs in pairs]
    assert 1e-5 < max(moves) < MOVES[0]  # another model, and one that is near
    assert np.mean(moves) < MOVES[1]


@needs_onnx
@pytest.mark.parametrize("name", list(UIE["cases"]))
def test_golden_extraction_is_the_models(name, golden_uie):
    model, tokenizer, encoder = golden_uie
    case = UIE["cases"][name]
    settings = {UIE_SETTINGS[key]: value for key, value in case["settings"].items()}
    expected = [flat(one) for one in uie(model, tokenizer, case["schema"], UIE["texts"], **settings)]
    assert sum(map(len, expected)) >= 2
    assert_same([flat(one) for one in uie(encoder, tokenizer, case["schema"], UIE["texts"], **settings)], expected)


@needs_onnx
def test_windows_nested_answers_and_aspects_are_the_models(golden_uie):
    model, tokenizer, encoder = golden_uie
    texts = ["".join(UIE["texts"])[:900], *UIE["texts"][:4]]
    nested = {"schema": ["时间", "选手"], "max_length": 60, "overlap": 20, "allow_nested": True, "threshold": 0.1}
    aspects = {
        "schema": {"评价维度": ["观点词", "情感倾向[正向,负向]"]},
        "aspects": ["时间", "选手"],
        "max_length": 60,
    }
    for settings in (nested, aspects):
        expected = [flat(one) for one in uie(model, tokenizer, texts=texts, **settings)]
        assert sum(map(len, expected)) > 10
        found = [flat(one) for one in uie(encoder, tokenizer, texts=texts, **settings)]
        assert_same(found, expected)


@needs_onnx
@pytest.mark.parametrize("case", UTC["cases"], ids=lambda case: f"{len(case['choices'])}-{case['settings']}")
def test_golden_classification_is_the_models(case, golden_utc):
    model, tokenizer, encoder = golden_utc
    settings = {UTC_SETTINGS[name]: value for name, value in case["settings"].items()}
    expected = utc(model, tokenizer, case["choices"], UTC_TEXTS, **settings)
    answers = utc(encoder, tokenizer, case["choices"], UTC_TEXTS, **settings)
    for answer, other in zip(answers, expected, strict=True):
        assert [one["label"] for one in answer["predictions"]] == [one["label"] for one in other["predictions"]]
        for one, theirs in zip(answer["predictions"], other["predictions"], strict=True):
            assert abs(one["score"] - theirs["score"]) < 2e-5  # logits of size 10 in fp32


@needs_onnx
@pytest.mark.parametrize("pooling", ["mean", "max", "mean_sqrt", "cls", "pooler"])
def test_embeddings_are_the_models(pooling, tiny_encoder):
    model, tokenizer, encoder = tiny_encoder
    texts = ["明天", "".join(UIE["vocab"][10:30]), "", "上午的时间"]
    expected = sentence_embeddings(model, tokenizer, texts, pooling=pooling)
    found = sentence_embeddings(encoder, encoder.tokenizer, texts, pooling=pooling, batch_size=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # vectors of length 1; 2e-7 seen
    assert sentence_embeddings(encoder, encoder.tokenizer, []).shape == (0, 24)


@needs_onnx
def test_rows_of_choices(tmp_path):
    """Three axes: the graph adds the ids of every choice up."""
    import onnx

    ErnieConfig(**TINY, architectures=["ErnieForMultipleChoice"]).save_pretrained(tmp_path)
    value, node, integers = onnx.helper.make_tensor_value_info, onnx.helper.make_node, onnx.TensorProto.INT64
    inputs = [value(name, integers, axes) for name, axes in CHOICE_AXES.items()]
    nodes = [
        node("Mul", ["input_ids", "attention_mask"], ["kept"]),
        node("ReduceSum", ["kept", "last"], ["sums"], keepdims=0),
        node("Cast", ["sums"], ["logits"], to=onnx.TensorProto.FLOAT),
    ]
    last = onnx.helper.make_tensor("last", integers, [1], [-1])
    outputs = [value("logits", onnx.TensorProto.FLOAT, ["batch", "choices"])]
    graph = onnx.helper.make_graph(nodes, "sums", inputs, outputs, [last])
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    encoder = OnnxEncoder(tmp_path)
    ids, mask = torch.randint(1, 60, (2, 4, 11)), torch.randint(0, 2, (2, 4, 11))
    outputs = encoder(input_ids=ids, attention_mask=mask, token_type_ids=0 * mask)
    assert outputs["logits"].tolist() == (ids * mask).sum(-1).tolist()
    with pytest.raises(ValueError, match=r"shape \(4, 11\); it must be \(batch, choices, tokens\)"):
        encoder(input_ids=ids[0], attention_mask=mask[0], token_type_ids=mask[0])
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer_config\.json"):
        _ = encoder.tokenizer


@needs_onnx
def test_calls_from_several_threads(sample):
    encoder = OnnxEncoder(sample.folder, threads=1)
    texts = [one["text"] for one in EXTRACTIONS if one["language"] == "zh"]
    expected = uie(encoder, sample.tokenizer, "时间", texts)
    tokenizers = [AutoTokenizer.from_pretrained(sample.folder) for _ in range(4)]  # each thread has one of its own
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda tokenizer: uie(encoder, tokenizer, "时间", texts), tokenizers))
    assert all(one == expected for one in answers)


def as_numpy(outputs):
    return {name: value.numpy() for name, value in outputs.items()}


def test_functions_are_called_with_the_same_inputs(golden_uie, golden_utc):
    """Whatever kind of thing gives the outputs, and without a config."""
    model, tokenizer, _ = golden_uie
    schema, texts = UIE["cases"]["mixed"]["schema"], UIE["texts"][:8]
    expected = uie(model, tokenizer, schema, texts)
    assert sum(len(flat(one)) for one in expected) > 5
    seen = []

    def by_name(**inputs):
        seen.append({name: (tensor.dtype, tensor.device.type) for name, tensor in inputs.items()})
        return as_numpy(model(**inputs))

    for function in (by_name, model.forward, lambda **inputs: SimpleNamespace(**model(**inputs))):
        assert uie(function, tokenizer, schema, texts) == expected
    assert seen[0] == dict.fromkeys(("input_ids", "token_type_ids", "attention_mask"), (torch.int64, "cpu"))
    model, tokenizer, _ = golden_utc
    choices = UTC["cases"][0]["choices"]
    function = lambda **inputs: {"logits": model(**inputs).logits.numpy()}  # noqa: E731  # a function without a name
    assert utc(function, tokenizer, choices, UTC_TEXTS) == utc(model, tokenizer, choices, UTC_TEXTS)


def test_an_exported_program_is_a_runner(sample):
    """It has no modes to be put into."""
    module = torch.export.load(sample.folder / TORCH_FILE).module()
    assert module.training
    assert_same(extracted(module, sample.tokenizer), extracted(sample.model, sample.tokenizer))


def test_without_a_config_the_arguments_and_the_tokenizer_count(golden_uie, golden_utc, tmp_path):
    model, tokenizer, _ = golden_uie
    widths = []

    def watched(**inputs):
        widths.append(inputs["input_ids"].shape[1])
        return model(**inputs)

    uie(watched, tokenizer, "时间", "明" * 100, max_length=30)
    assert max(widths) == 30
    shorter = tokenizer_of(UIE["vocab"], tmp_path)
    shorter.model_max_length = 20

    def states(**inputs):
        widths.append(inputs["input_ids"].shape[1])
        return {"last_hidden_state": np.ones((*inputs["input_ids"].shape, 4))}

    assert sentence_embeddings(states, shorter, "明" * 100).tolist() == [[0.5] * 4]
    assert widths[-1] == 20
    assert sentence_embeddings(states, shorter, []).shape == (0, 0)
    model, _, _ = golden_utc
    without = tokenizer_of(UTC_VOCAB[:-1], tmp_path)
    with pytest.raises(ValueError, match=r"has no \[O-MASK\], and this model has no config that says"):
        utc(model.forward, without, ["好", "不"], "文")


def giving(**outputs):
    """A model that gives these, made of (batch, tokens)."""

    def model(input_ids, **inputs):
        return {name: make(tuple(input_ids.shape)) for name, make in outputs.items()}

    return model


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (giving(logits=torch.zeros), TypeError, "model gives 'logits', but no 'start_prob'.* Pass an ErnieForUIE"),
        (giving(), TypeError, "gives an empty dict, but no 'start_prob'"),
        (lambda **inputs: (1, 2), TypeError, "gives a tuple of 2, without names, but no 'start_prob'"),
        (lambda **inputs: None, TypeError, "gives a NoneType, but no 'start_prob'"),
        (giving(start_prob=torch.zeros), TypeError, "but no 'end_prob'"),
        (
            giving(start_prob=lambda shape: torch.zeros(shape).tolist(), end_prob=torch.zeros),
            TypeError,
            "start_prob as a list; it must be a tensor or a numpy array",
        ),
        (
            giving(start_prob=lambda shape: torch.zeros(*shape, 1), end_prob=torch.zeros),
            ValueError,
            r"start_prob of shape \(1, 6, 1\), not \(1, 6\)",
        ),
        (
            giving(start_prob=torch.zeros, end_prob=lambda shape: np.zeros((shape[0], 512))),
            ValueError,
            r"end_prob of shape \(1, 512\), not \(1, 6\)",
        ),
        (
            giving(start_prob=lambda shape: torch.full(shape, -3.0), end_prob=torch.zeros),
            ValueError,
            "start_prob from -3 to -3, which are no probabilities. Logits need a sigmoid",
        ),
        (
            giving(start_prob=torch.zeros, end_prob=lambda shape: torch.full(shape, float("nan"))),
            ValueError,
            "end_prob from nan to nan",
        ),
    ],
)
def test_what_gives_something_else(model, error, message, golden_uie):
    with pytest.raises(error, match=message):
        uie(model, golden_uie[1], "时间", "文")


def test_wrong_logits_and_states(golden_utc, tiny_encoder):
    tokenizer = golden_utc[1]
    with pytest.raises(ValueError, match=r"gives logits of shape \(2, 3\), not \(2, 2\)"):
        utc(lambda **inputs: {"logits": np.zeros((2, 3))}, tokenizer, ["好", "不"], ["文", "文"])
    with pytest.raises(ValueError, match="logits with NaN"):
        utc(lambda **inputs: {"logits": np.full((1, 2), np.nan)}, tokenizer, ["好", "不"], "文")
    with pytest.raises(TypeError, match=r"gives 'start_prob', but no 'logits'.* Pass an ErnieForUTC"):
        utc(giving(start_prob=torch.zeros), tokenizer, ["好", "不"], "文")
    with pytest.raises(ValueError, match=r"last_hidden_state of shape \(1, 3\), not \(1, 3, any\)"):
        sentence_embeddings(giving(last_hidden_state=torch.zeros), tiny_encoder[1], "文")
    with pytest.raises(TypeError, match=r"gives no hidden states.*--encoder"):
        sentence_embeddings(giving(logits=torch.zeros), tiny_encoder[1], "文")
    with pytest.raises(ValueError, match="this model has no pooler"):
        sentence_embeddings(giving(last_hidden_state=torch.zeros), tiny_encoder[1], "文", pooling="pooler")


def test_what_is_no_model(golden_uie):
    model, tokenizer, _ = golden_uie
    with pytest.raises(TypeError, match=r"model is a ErnieTokenizer; .* an OnnxEncoder, or a function that takes"):
        uie(tokenizer, tokenizer, "时间", "文")
    with pytest.raises(TypeError, match="the model comes first"):
        uie(tokenizer, model, "时间", "文")
    for wrong in (None, "uie-base", type(model), type("InferenceSession", (), {})()):
        with pytest.raises(TypeError, match="must be a loaded model"):
            uie(wrong, tokenizer, "时间", "文")
    with pytest.raises(TypeError, match="tokenizer is a NoneType"):
        uie(model.forward, None, "时间", "文")


@needs_onnx
def test_a_head_that_does_not_fit_the_task(golden_uie, golden_utc):
    with pytest.raises(TypeError, match="OnnxEncoder gives no hidden states but the answers of a head"):
        sentence_embeddings(golden_uie[2], golden_uie[1], "文")
    with pytest.raises(TypeError, match=r"The call lacks .*omask_positions.*: model\.onnx takes input_ids"):
        uie(golden_utc[2], golden_utc[1], "时间", "文")


@needs_onnx
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"token_type_ids": None}, TypeError, "The call lacks token_type_ids: model.onnx takes input_ids, attention"),
        ({"task_type_ids": torch.ones(2, 5)}, TypeError, "has task_type_ids too many"),
        ({"input_ids": [[1, 2]]}, TypeError, "input_ids is a list; it must be a tensor or a numpy array"),
        ({"input_ids": torch.ones(2, 5)}, TypeError, "input_ids is torch.float32; model.onnx takes whole numbers"),
        ({"input_ids": torch.ones(2, 6, dtype=torch.int64)}, ValueError, "must be .batch, tokens., batch = 2, tokens"),
        ({"input_ids": torch.ones(5, dtype=torch.int64)}, ValueError, r"shape \(5,\); it must be \(batch, tokens\)"),
        ({"input_ids": torch.ones(2, 0, dtype=torch.int64)}, ValueError, "none of them 0"),
        ({"input_ids": torch.full((2, 5), -1)}, ValueError, r"input_ids\[0, 0\] = -1 is outside the vocabulary"),
        ({"input_ids": torch.full((2, 5), 4000)}, ValueError, r"input_ids\[0, 0\] = 4000 is outside the vocabulary"),
        ({"token_type_ids": torch.full((2, 5), 4)}, ValueError, "token_type_ids holds 4; they go from 0 to 3"),
        ({"token_type_ids": torch.full((2, 5), -1)}, ValueError, "token_type_ids holds -1"),
        ({"attention_mask": torch.full((2, 5), 2)}, ValueError, "holds other values than 1"),
    ],
)
def test_inputs_that_a_graph_would_take_for_something_else(change, error, message, sample):
    encoder = OnnxEncoder(sample.folder, threads=1)
    ids = torch.ones(2, 5, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}
    assert encoder(**inputs, task_type_ids=None)["start_prob"].shape == (2, 5)
    with pytest.raises(error, match=message):
        encoder(**inputs | change)


@needs_onnx
def test_rows_and_places_outside(sample, golden_utc):
    ids = torch.ones(1, 129, dtype=torch.int64)
    with pytest.raises(ValueError, match="Rows of 129 tokens are longer than the model's 128 positions"):
        OnnxEncoder(sample.folder)(input_ids=ids, attention_mask=ids, token_type_ids=ids)
    model, _, encoder = golden_utc
    inputs = export_ernie.random_inputs(model, 2, 9)
    assert encoder(**inputs).logits.shape == (2, onnx_export.CHOICES)
    for name, value in (("omask_positions", 9), ("cls_positions", -1), ("position_ids", 4000)):
        with pytest.raises(ValueError, match=rf"{name} holds {value}; they go from 0 to"):
            encoder(**inputs | {name: torch.full_like(inputs[name], value)})
    with pytest.raises(TypeError, match=r"attention_mask is torch.int64; model.onnx takes floating point numbers"):
        encoder(**inputs | {"attention_mask": torch.ones(2, 9, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"it must be \(batch, 1, tokens, tokens\), batch = 2, tokens = 9"):
        encoder(**inputs | {"attention_mask": torch.zeros(2, 9)})


@needs_onnx
def test_settings_of_onnxruntime(sample):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    assert OnnxEncoder(sample.folder, session_options=options, providers=["CPUExecutionProvider"])
    for settings, error, message in (
        ({"providers": ["CUDAExecutionProvider"]}, ValueError, "this onnxruntime has .*CPUExecutionProvider.*-gpu"),
        ({"providers": []}, ValueError, "this onnxruntime has"),
        ({"providers": "CPUExecutionProvider"}, TypeError, "providers is a str"),
        ({"threads": 0}, ValueError, "threads=0 must be at least 1"),
        ({"threads": 1, "session_options": options}, ValueError, "set session_options.intra_op_num_threads"),
        ({"file": "model_int4.onnx"}, FileNotFoundError, "holds no model_int4.onnx. ONNX files there: model.onnx, m"),
        ({"file": 8}, TypeError, "file=8 is a int"),
    ):
        with pytest.raises(error, match=message):
            OnnxEncoder(sample.folder, **settings)


@needs_onnx
def test_folders_that_are_refused(sample, tmp_path):
    import onnx

    with pytest.raises(FileNotFoundError, match=r"is no folder. Give one that `python examples/export_ernie.py"):
        OnnxEncoder(tmp_path / "nowhere")
    folder = tmp_path / "folder"
    shutil.copytree(sample.folder, folder)
    (folder / "model.onnx").unlink()
    assert OnnxEncoder(folder).file.name == INT8_FILE  # the only one
    file = folder / INT8_FILE
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"onnxruntime cannot open .*Protobuf parsing failed"):
        OnnxEncoder(folder)
    graph = onnx.load(sample.folder / "model.onnx")
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, file)
    with pytest.raises(ValueError, match=r"takes input_ids of shape \[1, 'tokens'\]: 1 is fixed there"):
        OnnxEncoder(folder)
    shutil.copy(sample.folder / "model.onnx", folder)
    config = json.loads((folder / "config.json").read_text())
    for architecture, message in (
        ("ErnieForUTC", "takes input_ids, .*gives|gives start_prob, .* and not logits, as ErnieForUTC does"),
        ("ErnieForMultipleChoice", "and not logits"),
        ("ErnieModel", "and not last_hidden_state, as ErnieModel does"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
        with pytest.raises(ValueError, match=message):
            OnnxEncoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        OnnxEncoder(folder)


@needs_onnx
def test_a_graph_of_something_else(sample, tmp_path):
    import onnx

    shutil.copytree(sample.folder, tmp_path / "folder")
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["pixels"], ["start_prob"])
    ends = [value(name, onnx.TensorProto.FLOAT, ["batch", "tokens"]) for name in ("pixels", "start_prob")]
    graph = onnx.helper.make_graph([node], "other", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "folder" / "model.onnx")
    with pytest.raises(
        ValueError, match=r"takes pixels; ErnieForUIE takes input_ids, .*without attention_mask, input_"
    ):
        OnnxEncoder(tmp_path / "folder")


def test_without_onnxruntime(tmp_path, monkeypatch):
    torch.manual_seed(0)
    ErnieModel(ErnieConfig(**TINY)).save_pretrained(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs onnxruntime.* pip install 'hf-glm-ernie\[onnx\]'"):
        OnnxEncoder(tmp_path)
