"""Static folders of ERNIE 3.0 that cannot be converted: a message says what and where, and nothing is left behind."""

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conversion.lazy_files import CheckpointError
from conversion.operations import TensorSpec
from conversion.paddle_lod import LodFile
from conversion.state_map import PlannedTensor
from conversion.verify import VerifyError, verify_file
from tests.support.converting_ernie import small_arrays, static_arrays
from tests.support.converting_ernie3 import SIZES, Arrays, convert, layout, random_arrays, write_static
from tests.support.ernie_vocabulary import SMALL, write_vocabulary

Settings = dict[str, Any]


def refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a refused conversion, after making sure that nothing is left."""
    output = tmp_path / "out" / "model"
    assert convert(source, output, *arguments) == 1
    assert not output.parent.exists() or not any(output.parent.iterdir())
    return capsys.readouterr().err


def rename_layers(arrays: Arrays, prefix: str, old: int, new: int) -> None:
    for name in [name for name in arrays if name.startswith(f"{prefix}_{old}_")]:
        arrays[name.replace(f"{prefix}_{old}_", f"{prefix}_{new}_")] = arrays.pop(name)


def remove(arrays: Arrays, prefix: str) -> None:
    for name in [name for name in arrays if name.startswith(prefix)]:
        del arrays[name]


NORM = "encoder_layer_1_pre_att_layer_norm_scale"
CHANGES: dict[str, tuple[Callable[[Arrays, Settings], Any], list[str]]] = {
    "a missing tensor": (
        lambda arrays, settings: arrays.pop(NORM),
        ["target names nothing is made for (1)", f"ernie3.encoder.layers.1.norm1.weight (from {NORM})"],
    ),
    "a missing tensor of a branch": (
        lambda arrays, settings: arrays.pop("nlg_encoder_layer_3_ffn_fc_1.w_0"),
        ["ernie3.branches.nlg.layers.1.linear2.weight (from nlg_encoder_layer_1_ffn_fc_1.w_0)"],
    ),
    "no pooler": (
        lambda arrays, settings: remove(arrays, "nlu_pooled_fc"),
        ["pooler.dense.weight (from nlu_pooled_fc.w_0)"],
    ),
    "an unknown tensor": (
        lambda arrays, settings: arrays.update({"encoder_layer_0_gate_fc.w_0": np.ones((2, 2), "f4")}),
        ["source names the table does not know (1)", "encoder_layer_0_gate_fc.w_0"],
    ),
    "the released encoders' pooler": (
        lambda arrays, settings: arrays.update({"pooled_fc.w_0": np.ones((8, 8), "f4")}),
        ["source names the table does not know (1)", "pooled_fc.w_0"],
    ),
    "a shape of its own": (
        lambda arrays, settings: arrays.update({"encoder_layer_1_ffn_fc_0.b_0": np.ones(7, "f4")}),
        ["shapes that do not fit", "ernie3.encoder.layers.1.linear1.bias", "[7], the model has [20]"],
    ),
    "a matrix the other way round": (
        lambda arrays, settings: arrays.update({"sharing_to_task_fc.w_0": np.ones((8, 12), "f4")}),
        ["hidden_size", "12"],
    ),
    "a vector where a matrix is meant": (
        lambda arrays, settings: arrays.update({"nlg_mask_lm_out_fc.w_0": np.ones(7, "f4")}),
        ["nlg_mask_lm_out_fc.w_0", "only a matrix can be transposed"],
    ),
    "embeddings that are a vector": (
        lambda arrays, settings: arrays.update({"word_embedding": np.ones(7, "f4")}),
        ["word_embedding should be a matrix, it is of shape [7]"],
    ),
    "integers": (
        lambda arrays, settings: arrays.update({"word_embedding": np.ones((50, 12), "i4")}),
        ["word_embeddings.weight is torch.int32; weights are one of"],
    ),
    "branches of two sizes": (
        lambda arrays, settings: arrays.update({"nlu_encoder_layer_2_ffn_fc_0.b_0": np.ones(9, "f4")}),
        ["ernie3.branches.nlu.layers.0.linear1.bias", "[9], the model has [14]"],
    ),
    "a gap in the universal layers": (
        lambda arrays, settings: rename_layers(arrays, "encoder_layer", 0, 5),
        ["the layers encoder_layer_* should be 0, 1 ... without gaps; found 1, 5, missing 0, 2, 3, 4"],
    ),
    "the last universal layer missing": (
        lambda arrays, settings: remove(arrays, "encoder_layer_1_"),
        ["nlg_encoder_layer_* should be 1, 2 ...", "counted on from the universal stack's 1; found 2, 3, missing 1"],
    ),
    "a gap in a branch": (
        lambda arrays, settings: rename_layers(arrays, "nlg_encoder_layer", 3, 4),
        ["nlg_encoder_layer_* should be 2, 3 ... without gaps", "found 2, 4, missing 3"],
    ),
    "a branch that counts on from the other": (
        lambda arrays, settings: [rename_layers(arrays, "nlg_encoder_layer", old, old + 2) for old in (3, 2)],
        ["nlg_encoder_layer_* should be 2, 3 ...", "found 4, 5, missing 2, 3"],
    ),
    "branches that count differently": (
        lambda arrays, settings: [rename_layers(arrays, "nlu_encoder_layer", old, old - 2) for old in (2, 3)],
        ["count from 0, those of the other from 2: nlg_encoder_layer_2, nlu_encoder_layer_0"],
    ),
    "a branch that counts both ways": (
        lambda arrays, settings: rename_layers(arrays, "nlg_encoder_layer", 3, 0),
        ["nlg_encoder_layer_* counts both from 0 and from 2"],
    ),
    "branches of different lengths": (
        lambda arrays, settings: remove(arrays, "nlg_encoder_layer_3_"),
        ["the branches should have equally many layers: nlg 1, nlu 2"],
    ),
    "no branch": (
        lambda arrays, settings: [remove(arrays, prefix) for prefix in ("nlu_", "nlg_", "multi_", "sentence_")],
        ["no branch: neither nlu_encoder_layer_* nor nlg_encoder_layer_*"],
    ),
    "no universal stack": (
        lambda arrays, settings: remove(arrays, "encoder_layer"),
        ["the layers encoder_layer_* should be 0, 1 ... without gaps; found none"],
    ),
    "a factorised embedding": (
        lambda arrays, settings: arrays.update({"emb_hidden_mapping": np.ones((6, 12), "f4")}),
        ["a factorised embedding, which only sibling models have: emb_hidden_mapping", "compute something else"],
    ),
    "a LayerNorm of the embeddings": (
        lambda arrays, settings: arrays.update(
            {f"pre_encoder_layer_norm_{part}": np.ones(12, "f4") for part in ("scale", "bias")}
        ),
        ["a LayerNorm of the embeddings", "pre_encoder_layer_norm_bias, pre_encoder_layer_norm_scale"],
    ),
    "relative positions": (
        lambda arrays, settings: arrays.update({"encoder_layer_0_pos_fc.w_0": np.ones((12, 12), "f4")}),
        ["relative positions, whose static names nothing public tells: encoder_layer_0_pos_fc.w_0"],
    ),
    "norms behind the halves": (
        lambda arrays, settings: arrays.update({"encoder_layer_0_post_att_layer_norm_scale": np.ones(12, "f4")}),
        ["LayerNorms behind a layer's halves, not before: encoder_layer_0_post_att_layer_norm_scale"],
    ),
    "settings of another vocabulary": (
        lambda arrays, settings: settings.update(vocab_size=30000),
        ["ernie_config.json: vocab_size is 30000, the weights say 50"],
    ),
    "settings of more layers": (
        lambda arrays, settings: settings.update(num_hidden_layers=60, num_sharing_layers=48),
        ["num_hidden_layers is 60, the weights have 2 universal layers and 2 in each branch"],
    ),
    "settings that share fewer layers": (
        lambda arrays, settings: settings.update(num_sharing_layers=1),
        ["num_sharing_layers is 1, the weights say 2"],
    ),
    "heads that do not divide": (
        lambda arrays, settings: settings.update(num_attention_heads=5),
        ["num_attention_heads is 5; it must divide hidden_size 12. Pass --num-attention-heads N"],
    ),
    "heads nobody tells": (
        lambda arrays, settings: settings.pop("branch_num_attention_heads"),
        ["the settings do not say branch_num_attention_heads", "branch_hidden_size 8 is not divisible by 64"],
    ),
    "another activation": (
        lambda arrays, settings: settings.update(branch_hidden_act="gelu_new"),
        ["branch_hidden_act is 'gelu_new'", "gelu, relu"],
    ),
    "a number that is not one": (
        lambda arrays, settings: settings.update(hidden_dropout_prob="a lot"),
        ["hidden_dropout_prob"],
    ),
    "a number that fp16 cannot hold": (
        lambda arrays, settings: arrays["nlg_mask_lm_out_fc.b_0"].__setitem__(3, 1e6),
        ["nlg_lm_head.decoder.bias: a weight of magnitude 1e+06 does not fit torch.float16"],
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_does_not_fit_is_named(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, wanted = CHANGES[case]
    arrays, settings = random_arrays(layout()), SIZES.settings
    change(arrays, settings)
    source = write_static(tmp_path / "source", arrays, settings)
    arguments = ["--dtype=float16"] if "fp16" in case else []
    message = refused(source, tmp_path, capsys, *arguments)
    assert all(text in message for text in wanted), message


def test_a_released_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_static(tmp_path / "source", static_arrays(small_arrays("masked_lm")))
    message = refused(source, tmp_path, capsys)
    assert "LayerNorms behind a layer's halves" in message or "no sharing_to_task_fc.w_0" in message
    assert "the command `ernie`" in message


@pytest.mark.parametrize("cut", [0.0, 0.02, 0.5, 0.999])
def test_a_file_cut_short(cut: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_static(tmp_path / "source", random_arrays(layout()), SIZES.settings)
    path = source / "nlg_mask_lm_out_fc.w_0"
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    message = refused(source, tmp_path, capsys)
    assert str(path) in message
    assert "opy" in message  # copy it again


def test_a_file_with_more_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_static(tmp_path / "source", random_arrays(layout()), SIZES.settings)
    path = source / "pos_embedding"
    path.write_bytes(path.read_bytes() + b"more")
    assert f"{path}: 4 bytes behind the tensor" in refused(source, tmp_path, capsys)


def test_other_files_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_static(tmp_path / "source", random_arrays(layout()), SIZES.settings)
    (source / "notes").write_text("a file without a suffix that is known")
    assert f"{source / 'notes'}: a text file, not weights" in refused(source, tmp_path, capsys)


def test_wrong_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "absent" in refused(tmp_path / "absent", tmp_path, capsys)
    (tmp_path / "empty").mkdir()
    assert "no Paddle weights" in refused(tmp_path / "empty", tmp_path, capsys)
    source = write_static(tmp_path / "source", random_arrays(layout()), SIZES.settings)
    assert "Pass the folder it lies in" in refused(source / "word_embedding", tmp_path, capsys)
    (source / "ernie_config.json").write_text("[1, 2]")
    assert "ernie_config.json: expected an object" in refused(source, tmp_path, capsys)


def test_output_that_exists_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_static(tmp_path / "source", random_arrays(layout()), SIZES.settings)
    assert convert(source, tmp_path / "model") == 0
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "model").iterdir())
    for arguments in ((source,), (tmp_path / "model", "--reverse")):
        assert convert(arguments[0], tmp_path / "model", *arguments[1:]) == 1
        assert "already exists" in capsys.readouterr().err
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "model").iterdir()) == before


def test_vocabularies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_static(tmp_path / "source", random_arrays(layout()), SIZES.settings)
    assert "--vocab" in refused(source, tmp_path, capsys, f"--vocab={tmp_path / 'absent.txt'}")
    released = write_vocabulary(tmp_path, SMALL["vocabulary"])
    message = refused(source, tmp_path, capsys, f"--vocab={released}")
    assert "num_pieces=29979 asks for as many" in message
    own = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "[END]", "<S>", "[UNK]"]
    large = write_vocabulary(tmp_path, [*own[:4], *(f"w{number}" for number in range(42)), *own[6:], "c", "d"])
    message = refused(source, tmp_path, capsys, f"--vocab={large}")
    assert "the vocabulary has ids up to 50, the model has embeddings up to 49" in message
    other = write_vocabulary(tmp_path, own)
    message = refused(source, tmp_path, capsys, f"--vocab={other}")
    assert "eos_token_id is 29, the vocabulary says 6" in message
    wide = replace(SIZES, vocabulary=500)
    wide_source = write_static(tmp_path / "wide", random_arrays(layout(sizes=wide)), wide.settings)
    message = refused(wide_source, tmp_path, capsys, f"--vocab={other}")
    assert "the vocabulary has ids up to 8, the model has embeddings up to 499" in message
    broken = write_vocabulary(tmp_path, [*own[:6], "[END]"])
    assert "has no <S>, [UNK] among" in refused(source, tmp_path, capsys, f"--vocab={broken}")


def test_reverse_of_what_has_no_static_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_static(tmp_path / "source", random_arrays(layout()), SIZES.settings)
    assert convert(source, tmp_path / "model") == 0
    config = tmp_path / "model" / "config.json"
    good = json.loads(config.read_text())
    for change, wanted in (
        ({"model_type": "ernie"}, "model_type is 'ernie', expected 'ernie3'"),
        ({"architectures": ["Ernie3ForSequenceClassification"]}, "Save the model as one of these"),
        ({"architectures": None}, "architectures should name one class"),
        ({"position_embedding_type": "relative"}, "a model with relative positions"),
        ({"num_soft_prompt_genres": 2, "soft_prompt_token_id": 9}, "a model with soft prompts"),
        ({"branches": ["nlg"]}, "names the model does not have"),
        ({"vocab_size": 49}, "shapes that do not fit"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
    ):
        config.write_text(json.dumps(good | change))
        assert wanted in refused(tmp_path / "model", tmp_path, capsys, "--reverse"), change
    config.write_text(json.dumps(good))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"short")
    assert "model.safetensors" in refused(tmp_path / "model", tmp_path, capsys, "--reverse")


@pytest.mark.parametrize(
    "option", ["--vocab=v.txt", "--config=c.json", "--num-attention-heads=2", "--layer-norm-eps=1e-5"]
)
def test_options_of_the_other_direction(option: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        convert(tmp_path, tmp_path / "model", "--reverse", option)


def test_a_number_that_fp16_cannot_hold_backwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = random_arrays(layout())
    arrays["word_embedding"][1, 1] = 1e6
    assert convert(write_static(tmp_path / "source", arrays, SIZES.settings), tmp_path / "model") == 0
    message = refused(tmp_path / "model", tmp_path, capsys, "--reverse", "--dtype=float16")
    assert "word_embedding: a weight of magnitude 1e+06 does not fit" in message


def test_damage_that_verification_finds(tmp_path: Path) -> None:
    """In a written variable: other numbers than were written, another shape than was planned, a short file."""
    tensor = PlannedTensor(0, "pos_embedding", TensorSpec((4, 3), torch.float32), ())
    file = LodFile(tensor)
    path = tmp_path / file.name
    file.create(path)
    with pytest.raises(VerifyError, match="1 tensors read back differently than written"):
        verify_file(tmp_path, file, {"pos_embedding": 1}, lambda nbytes: None)
    other = LodFile(PlannedTensor(0, "pos_embedding", TensorSpec((3, 4), torch.float32), ()))
    with pytest.raises(VerifyError, match="1 tensors are not as planned"):
        verify_file(tmp_path, other, {"pos_embedding": 1}, lambda nbytes: None)
    assert len(verify_file(tmp_path, file, {"pos_embedding": zlib.crc32(bytes(48))}, lambda nbytes: None)) == 64
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        verify_file(tmp_path, file, {"pos_embedding": 1}, lambda nbytes: None)
