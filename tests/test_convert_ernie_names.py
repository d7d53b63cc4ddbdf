"""ERNIE checkpoints as people have them: behind a prefix, exported, in a Trainer's folder, with settings that lie."""

import json
import pickle
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModel

from tests.support.converting_ernie import convert, small_arrays, small_settings, weights, write_checkpoint
from tests.support.ernie_goldens import SMALL
from tests.support.paddle_writing import lod_record, program, write_pdparams, write_sharded

Arrays = dict[str, np.ndarray]


def behind(prefix: str, arrays: Arrays) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


@cache
def golden_weights(name: str) -> dict[str, torch.Tensor]:
    """What a small golden's own file becomes."""
    with tempfile.TemporaryDirectory() as folder:
        assert convert(SMALL / name, Path(folder, "model")) == 0
        return weights(Path(folder, "model"))


def same_as_golden(folder: Path, name: str, without: tuple[str, ...] = ()) -> bool:
    """Whether a folder holds what the small golden's own file gives, but for names that end as `without` says."""
    expected = {key: tensor for key, tensor in golden_weights(name).items() if not key.endswith(without)}
    found = weights(folder)
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a refused conversion, after making sure that nothing is left."""
    output = tmp_path / "out" / "model"
    assert convert(source, output, *arguments) == 1
    assert not output.parent.exists() or not any(output.parent.iterdir())
    return capsys.readouterr().err


# --- prefixes


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("plm.", "masked_lm"),
        ("_layers.", "masked_lm"),
        ("model.", "features"),
        ("ptm.", "features"),
        ("query_ernie.", "features"),
        ("my.own.wrapper.", "masked_lm"),
    ],
)
def test_a_prefix_is_taken_off(prefix: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_checkpoint(tmp_path / "source", behind(prefix, small_arrays(name)), small_settings(name))
    assert convert(source, tmp_path / "model") == 0
    assert f"the names stand behind '{prefix}', which was taken off" in capsys.readouterr().out
    assert same_as_golden(tmp_path / "model", name)


def test_cross_encoder_holds_its_model_in_one_more(tmp_path: Path) -> None:
    """PaddleNLP's ErnieCrossEncoder: `ernie.ernie.embeddings...`, `ernie.classifier.weight`."""
    settings = small_settings("sequence_classification") | {"architectures": ["ErnieCrossEncoder"]}
    arrays = behind("ernie.", small_arrays("sequence_classification"))
    assert convert(write_checkpoint(tmp_path / "source", arrays, settings), tmp_path / "model") == 0
    assert same_as_golden(tmp_path / "model", "sequence_classification")


def test_uie_of_2_4_behind_a_wrapper(tmp_path: Path) -> None:
    name = "uie_task_type_1"
    arrays = {
        "_layers." + (f"encoder.{key.removeprefix('ernie.')}" if key.startswith("ernie.") else key): array
        for key, array in small_arrays(name).items()
    }
    assert convert(write_checkpoint(tmp_path / "source", arrays, small_settings(name)), tmp_path / "model") == 0
    assert same_as_golden(tmp_path / "model", name)


def test_names_outside_a_prefix_are_listed_and_left_out_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = behind("ptm.", small_arrays("features")) | {"emb_reduce_linear.weight": np.ones((24, 8), "f4")}
    source = write_checkpoint(tmp_path / "source", arrays, small_settings("features"))
    message = refused(source, tmp_path, capsys)
    assert "stand behind 'ptm.', but emb_reduce_linear.weight do not" in message
    assert "--prefix ptm. takes what stands behind it" in message
    assert convert(source, tmp_path / "model", "--prefix=ptm") == 0  # with a dot or without
    assert "left out: 1 tensor, e.g. emb_reduce_linear.weight (not behind --prefix ptm.)" in capsys.readouterr().out
    assert same_as_golden(tmp_path / "model", "features")


def test_one_of_two_encoders_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PaddleNLP's ErnieDualEncoder holds both halves."""
    arrays = behind("ernie.", small_arrays("features"))
    other = {name: array + 1 for name, array in arrays.items()}
    both = behind("query_ernie.", arrays) | behind("title_ernie.", other)
    source = write_checkpoint(tmp_path / "source", both, small_settings("features"))
    message = refused(source, tmp_path, capsys)
    assert "several encoders, behind 'query_ernie.ernie.', 'title_ernie.ernie.'" in message
    assert convert(source, tmp_path / "model", "--prefix=query_ernie.") == 0
    assert same_as_golden(tmp_path / "model", "features")
    assert convert(source, tmp_path / "title", "--prefix=title_ernie.ernie.") == 0
    name = "encoder.layer.0.output.dense.bias"
    assert torch.equal(weights(tmp_path / "title")[name], weights(tmp_path / "model")[name] + 1)


@pytest.mark.parametrize("prefix", ["bert.", "ernie_m.", "plm.roberta."])
def test_another_network_of_the_same_names_is_refused(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_checkpoint(
        tmp_path / "source", behind(prefix, small_arrays("features")), small_settings("features")
    )
    assert "That is another network" in refused(source, tmp_path, capsys)


def test_prefix_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(SMALL / "features", tmp_path, capsys, "--prefix=plm.")
    assert "--prefix plm.:" in message
    assert "has no word embeddings behind it" in message


# --- exports


def write_export(folder: Path, arrays: Arrays, tied: dict[str, str], with_info: bool = True) -> Path:
    """As `paddle.jit.save` writes it: made-up names, and true ones in `.info`, one for each parameter.

    Args:
        arrays: By PaddleNLP's names, without second copies.
        tied: Name -> the name that a later attribute gave to the same parameter.
    """
    folder.mkdir()
    made_up = {f"linear_{number}.w_0": name for number, name in enumerate(arrays)}
    named = {static: arrays[name] for static, name in made_up.items()}
    (folder / "inference.pdiparams").write_bytes(b"".join(lod_record(named[name]) for name in sorted(named)))
    (folder / "inference.pdmodel").write_bytes(program({name: array.shape for name, array in named.items()}))
    if with_info:
        info = {
            static: {"structured_name": tied.get(name, name), "stop_gradient": False, "trainable": True}
            for static, name in made_up.items()
        }
        (folder / "inference.pdiparams.info").write_bytes(pickle.dumps(info, protocol=2))
    return folder


COPIES = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
TIED = {
    "ernie.embeddings.word_embeddings.weight": "cls.predictions.decoder.weight",
    "cls.predictions.decoder_bias": "cls.predictions.decoder.bias",
}


def exported(name: str) -> Arrays:
    """What a program keeps: no second copies, and nothing that its outputs do not need."""
    return {key: array for key, array in small_arrays(name).items() if key not in COPIES and "pooler" not in key}


def test_export_without_pooler_and_with_the_tied_copy_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_export(tmp_path / "source", exported("masked_lm"), TIED)
    (source / "config.json").write_text(json.dumps(small_settings("masked_lm")))
    assert convert(source, tmp_path / "model") == 0
    said = capsys.readouterr().out
    assert "word_embeddings.weight is in the file as cls.predictions.decoder.weight, to which it is tied" in said
    assert same_as_golden(tmp_path / "model", "masked_lm", ("pooler.dense.weight", "pooler.dense.bias"))


@pytest.mark.parametrize("name", ["uie_task_type_1", "features"])
def test_export_of_a_head_that_reads_no_pooler(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_export(tmp_path / "source", exported(name), {})
    (source / "config.json").write_text(json.dumps(small_settings(name)))
    assert convert(source, tmp_path / "model") == 0
    assert "the file has no pooler, which this head does not read" in capsys.readouterr().out
    assert same_as_golden(tmp_path / "model", name, ("pooler.dense.weight", "pooler.dense.bias"))
    assert convert(SMALL / name, tmp_path / "golden") == 0
    inputs = {"input_ids": torch.tensor([[1, 5, 6, 2]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    field = "last_hidden_state" if name == "features" else "start_prob"
    with torch.no_grad():
        found, expected = (
            getattr(AutoModel.from_pretrained(tmp_path / folder).eval()(**inputs), field)
            for folder in ("model", "golden")
        )
    assert torch.equal(found, expected)


def test_export_of_a_head_that_reads_the_pooler_needs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_export(tmp_path / "source", exported("sequence_classification"), {})
    (source / "config.json").write_text(json.dumps(small_settings("sequence_classification")))
    message = refused(source, tmp_path, capsys)
    assert "ernie.pooler.dense.weight (from ernie.pooler.dense.weight)" in message


def test_export_without_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_export(tmp_path / "source", exported("features"), {}, with_info=False)
    (source / "config.json").write_text(json.dumps(small_settings("features")))
    assert "keeps the true ones in the .pdiparams.info" in refused(source, tmp_path, capsys)


# --- folders of a training run


class Executes:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


STATES = ("optimizer.pdopt", "scheduler.pdparams", "scaler.pdparams", "rng_state.pth", "training_args.bin")


def write_states(folder: Path, canary: Path) -> None:
    for name in STATES:
        (folder / name).write_bytes(pickle.dumps({"state": Executes(canary)}))
    save_file({"linear1.weight_moment1_0": np.ones(3, "f4")}, folder / "optimizer-00001-of-00001.safetensors")
    (folder / "trainer_state.json").write_text("{}")


@pytest.mark.parametrize("kind", ["shards", "safetensors", "pdparams"])
def test_states_beside_the_weights_are_passed_over(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, source = small_arrays("masked_lm"), tmp_path / "source"
    source.mkdir()
    if kind == "shards":
        names = sorted(arrays)
        parts = {f"model-0000{n}-of-00002.safetensors": {k: arrays[k] for k in names[n - 1 :: 2]} for n in (1, 2)}
        write_sharded(source, parts)
    elif kind == "safetensors":
        save_file(arrays, source / "model.safetensors", metadata={"format": "np"})
    else:
        write_pdparams(source / "ernie_mine.pdparams", arrays)
    (source / "config.json").write_text(json.dumps(small_settings("masked_lm")))
    write_states(source, tmp_path / "canary")
    assert convert(source, tmp_path / "model") == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if "passed over, the state of a training run" in line)
    assert all(name in line for name in (*STATES, "optimizer-00001-of-00001.safetensors"))
    assert same_as_golden(tmp_path / "model", "masked_lm")
    assert not (tmp_path / "canary").exists()


def test_states_alone_are_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_states(source, tmp_path / "canary")
    assert "the state of a training run, without the model's weights" in refused(source, tmp_path, capsys)
    for name in ("scheduler.pdparams", "optimizer.pdopt"):
        message = refused(source / name, tmp_path, capsys)
        assert "the state of a training run, not the model's weights" in message
    assert not (tmp_path / "canary").exists()


# --- settings


def test_task_embeddings_that_only_the_settings_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The released uie-base-en says use_task_id true."""
    arrays = {key: array for key, array in small_arrays("uie_task_type_1").items() if "task_type" not in key}
    settings = small_settings("uie_task_type_1") | {"use_task_id": True}
    source = write_checkpoint(tmp_path / "source", arrays, settings)
    assert convert(source, tmp_path / "model") == 0
    assert "use_task_id is false, for the weights have no task embeddings" in capsys.readouterr().out
    assert json.loads((tmp_path / "model" / "config.json").read_text())["use_task_id"] is False
    assert convert(tmp_path / "model", tmp_path / "back", "--reverse") == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text())["use_task_id"] is False


def test_another_epsilon_is_said_on_the_way_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(SMALL / "features", tmp_path / "model", "--layer-norm-eps=1e-5") == 0
    capsys.readouterr()
    assert convert(tmp_path / "model", tmp_path / "back", "--reverse") == 0
    assert "PaddleNLP's ErnieModel computes with 1e-12" in capsys.readouterr().out
