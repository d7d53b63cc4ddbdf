"""ERNIE checkpoints that cannot be converted: a message that says what and where, and nothing left behind."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.converting_ernie import convert, small_arrays, small_settings, static_arrays, write_checkpoint
from tests.support.ernie_goldens import SMALL
from tests.support.paddle_writing import write_pdparams

Arrays = dict[str, np.ndarray]
Settings = dict[str, Any]


def refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a refused conversion, after making sure that nothing is left."""
    output = tmp_path / "out" / "model"
    assert convert(source, output, *arguments) == 1
    assert not output.parent.exists() or not any(output.parent.iterdir())
    return capsys.readouterr().err


def edited(name: str, change: Callable[[Arrays, Settings], Any], folder: Path) -> Path:
    """A small golden with something changed."""
    arrays, settings = small_arrays(name), small_settings(name)
    change(arrays, settings)
    return write_checkpoint(folder, arrays, settings)


def rename(arrays: Arrays, old: str, new: str) -> None:
    arrays[new] = arrays.pop(old)


WORDS = "ernie.embeddings.word_embeddings.weight"
CHANGES: dict[str, tuple[str, Callable[[Arrays, Settings], Any], list[str]]] = {
    "missing tensors are listed": (
        "masked_lm",
        lambda arrays, settings: [arrays.pop(f"ernie.encoder.layers.1.norm1.{part}") for part in ("weight", "bias")],
        [
            "target names nothing is made for (2)",
            "ernie.encoder.layer.1.attention.output.LayerNorm.bias (from ernie.encoder.layers.1.norm1.bias)",
            "ernie.encoder.layer.1.attention.output.LayerNorm.weight",
        ],
    ),
    "a head the settings name and the file lacks": (
        "features",
        lambda arrays, settings: settings.update(architectures=["ErnieForMaskedLM"]),
        ["target names nothing is made for", "cls.predictions.bias (from cls.predictions.decoder_bias)"],
    ),
    "unknown tensors are listed": (
        "features",
        lambda arrays, settings: arrays.update({"encoder.layers.0.adapter.weight": np.ones((2, 2), "f4")}),
        ["source names the table does not know (1)", "encoder.layers.0.adapter.weight"],
    ),
    "a classifier nobody asked for": (
        "question_answering",
        lambda arrays, settings: settings.update(architectures=["ErnieModel"]),
        ["source names the table does not know (2)", "classifier.weight"],
    ),
    "unknown head": (
        "features",
        lambda arrays, settings: settings.update(architectures=["ErnieForGeneration"]),
        ["the class ErnieForGeneration is not known", "known are ErnieModel, ErnieForMaskedLM", "--task"],
    ),
    "no class and a classifier": (
        "token_classification_pad_1",
        lambda arrays, settings: settings.pop("architectures"),
        ["there is a `classifier`, and no settings say whose", "--task", "token-classification"],
    ),
    "vocabulary size": (
        "features",
        lambda arrays, settings: settings.update(vocab_size=40000),
        ["vocab_size is 40000, the weights say 96"],
    ),
    "hidden size": (
        "features",
        lambda arrays, settings: settings.update(hidden_size=48),
        ["hidden_size is 48, the weights say 24"],
    ),
    "heads": (
        "features",
        lambda arrays, settings: settings.update(num_attention_heads=5),
        ["num_attention_heads is 5", "must divide the hidden size 24"],
    ),
    "labels": (
        "sequence_classification",
        lambda arrays, settings: settings.update(id2label={"0": "no", "1": "yes"}),
        ["num_labels is 2, the weights say 3"],
    ),
    "fewer layers than the settings say": (
        "features",
        lambda arrays, settings: settings.update(num_hidden_layers=3),
        ["num_hidden_layers is 3, the weights have 2 layers"],
    ),
    "two layers more than the settings say": (
        "features",
        lambda arrays, settings: settings.update(num_hidden_layers=0),
        ["num_hidden_layers is 0, the weights have 2 layers"],
    ),
    "a gap in the layers": (
        "features",
        lambda arrays, settings: [
            rename(arrays, name, name.replace("layers.1.", "layers.2."))
            for name in list(arrays)
            if "layers.1." in name
        ],
        ["the layers encoder.layers.* should be 0, 1 ...", "found 0, 2, missing 1"],
    ),
    "task embeddings the settings deny": (
        "features",
        lambda arrays, settings: settings.update(use_task_id=False),
        ["use_task_id is False, but the weights have task embeddings", '"use_task_id": true'],
    ),
    "a task id outside the table": (
        "features",
        lambda arrays, settings: settings.update(task_id=7),
        ["task_id is 7", "rows 0 to 2"],
    ),
    "a shape of its own": (
        "features",
        lambda arrays, settings: arrays.update({"encoder.layers.1.linear1.bias": np.ones(7, "f4")}),
        ["shapes that do not fit", "encoder.layer.1.intermediate.dense.bias", "[7], the model has [40]"],
    ),
    "a vector where a matrix is meant": (
        "features",
        lambda arrays, settings: arrays.update({"encoder.layers.1.linear1.weight": np.ones(7, "f4")}),
        ["encoder.layers.1.linear1.weight", "only a matrix can be transposed"],
    ),
    "an untied decoder": (
        "masked_lm",
        lambda arrays, settings: arrays.update({"cls.predictions.decoder.weight": arrays[WORDS] + 1}),
        ["cls.predictions.decoder.weight is not the same tensor as ernie.embeddings.word_embeddings.weight"],
    ),
    "one tensor under two names": (
        "masked_lm",
        lambda arrays, settings: arrays.update(
            {"cls.predictions.layer_norm.scale": arrays["cls.predictions.layer_norm.weight"]}
        ),
        ["are two names of one tensor, cls.predictions.layer_norm.weight"],
    ),
    "another activation": (
        "features",
        lambda arrays, settings: settings.update(hidden_act="gelu_new"),
        ["hidden_act is 'gelu_new'", "gelu, relu"],
    ),
    "another pooler": (
        "features",
        lambda arrays, settings: settings.update(pool_act="relu"),
        ["pool_act is 'relu'", "always takes tanh"],
    ),
    "no token types": (
        "features",
        lambda arrays, settings: (
            settings.update(type_vocab_size=0),
            arrays.pop("embeddings.token_type_embeddings.weight"),
        ),
        ["no token type embeddings (type_vocab_size 0)", "transformers"],
    ),
    "not an encoder": (
        "features",
        lambda arrays, settings: rename(arrays, "embeddings.word_embeddings.weight", "embed.weight"),
        ["no word embeddings", "Names found"],
    ),
    "a number that is not one": (
        "features",
        lambda arrays, settings: settings.update(hidden_dropout_prob="a lot"),
        ["hidden_dropout_prob"],
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_does_not_fit_is_named(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, change, wanted = CHANGES[case]
    message = refused(edited(name, change, tmp_path / "source"), tmp_path, capsys)
    assert all(text in message for text in wanted), message


def test_malicious_pickle_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    source = tmp_path / "source"
    source.mkdir()
    (source / "model_state.pdparams").write_bytes(pickle.dumps({"embeddings.word_embeddings.weight": Trap()}))
    message = refused(source, tmp_path, capsys)
    assert "Nothing in it was executed" in message
    assert not canary.exists()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_truncated_file(part: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (SMALL / "features" / "model_state.pdparams").read_bytes()
    source = tmp_path / "model_state.pdparams"
    source.write_bytes(content[: int(part * len(content))])
    assert str(source) in refused(source, tmp_path, capsys)


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html><html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"PK\x03\x04"],
)
def test_file_that_is_no_checkpoint(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model_state.pdparams"
    source.write_bytes(content)
    assert str(source) in refused(source, tmp_path, capsys)


def test_no_such_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "absent" in refused(tmp_path / "absent", tmp_path, capsys)


def test_size_that_was_not_released_needs_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model.pdparams"
    write_pdparams(source, small_arrays("features"))
    message = refused(source, tmp_path, capsys)
    assert "are not a released ERNIE encoder" in message
    assert "--config FILE.json" in message


def test_static_names_nobody_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = static_arrays(small_arrays("masked_lm")) | {"encoder_layer_0_gate.w_0": np.ones((2, 2), "f4")}
    source = tmp_path / "params"
    write_pdparams(source, arrays)
    config = SMALL / "masked_lm" / "config.json"
    assert "encoder_layer_0_gate.w_0" in refused(source, tmp_path, capsys, f"--config={config}")


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"init_args": [], "init_class": "UIE"}'])
def test_settings_that_are_none(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    assert str(path) in refused(SMALL / "uie_task_type_1", tmp_path, capsys, f"--config={path}")


def write_vocabulary(path: Path, count: int) -> Path:
    """[PAD] [CLS] [SEP] [MASK] [UNK] and words."""
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *(f"w{number}" for number in range(count - 5))]
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(97, "ids up to 96, the model's embeddings end at 95"), (0, "--vocab")],
    ids=["large", "none"],
)
def test_vocabulary_of_another_model(
    count: int, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocab = write_vocabulary(tmp_path / "vocab.txt", count) if count else tmp_path / "absent.txt"
    assert wanted in refused(SMALL / "features", tmp_path, capsys, f"--vocab={vocab}")


def test_vocabulary_much_smaller_than_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def grow(arrays: Arrays, settings: Settings) -> None:
        arrays["embeddings.word_embeddings.weight"] = np.zeros((1000, 24), "f4")
        settings["vocab_size"] = 1000

    source = edited("features", grow, tmp_path / "source")
    vocab = write_vocabulary(tmp_path / "vocab.txt", 700)
    message = refused(source, tmp_path, capsys, f"--vocab={vocab}")
    assert "the vocabulary ends at id 699, the model has embeddings up to 999" in message


def test_padding_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocab = write_vocabulary(tmp_path / "vocab.txt", 96)
    message = refused(SMALL / "token_classification_pad_1", tmp_path, capsys, f"--vocab={vocab}")
    assert "[PAD] is id 0 of the vocabulary, the settings say pad_token_id 1" in message


def test_vocabulary_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("<s>\n<pad>\n</s>\n<unk>\n" + "\n".join(f"w{n}" for n in range(92)), encoding="utf-8")
    message = refused(SMALL / "features", tmp_path, capsys, f"--vocab={vocab}")
    assert "[CLS]" in message
    assert "ernie-3.0-tiny-mini-v2-en" in message


def test_reverse_of_what_is_no_converted_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(SMALL / "features", tmp_path / "model") == 0
    config = tmp_path / "model" / "config.json"
    good = json.loads(config.read_text())
    for change, wanted in (
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"architectures": ["ErnieForCausalLM"]}, "which PaddleNLP does not have"),
        ({"architectures": None}, "architectures should name one class"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false"),
        ({"vocab_size": 95}, "shapes that do not fit"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
    ):
        config.write_text(json.dumps(good | change))
        assert wanted in refused(tmp_path / "model", tmp_path, capsys, "--reverse")


@pytest.mark.parametrize(
    "option", ["--vocab=v.txt", "--config=c.json", "--task=uie", "--layer-norm-eps=1e-5", "--prefix=plm.", "--base=b"]
)
def test_options_of_the_other_direction(option: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        convert(SMALL / "features", tmp_path / "model", "--reverse", option)


def test_output_that_exists_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("kept")
    assert convert(SMALL / "features", tmp_path / "model") == 1
    assert "exists" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]
