"""ERNIE checkpoints in every format and under every name become the same tensors; and back, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from tests.support.converting_ernie import (
    arrays_of,
    convert,
    small_arrays,
    small_settings,
    static_arrays,
    weights,
    write_checkpoint,
)
from tests.support.ernie_goldens import SHARED, SMALL
from tests.support.paddle_writing import lod_record, program, write_pdparams, write_sharded

SMALL_NAMES = sorted(path.parent.name for path in SMALL.glob("*/case.json"))
SHARED_FOLDERS = sorted(path.parent for path in SHARED.glob("models/*/model_state.pdparams"))


def expected_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What comes back: PaddleNLP's 2.5 names, whatever the names were."""
    back = {name: array for name, array in arrays.items() if "decoder_weight" not in name}
    if any("cls.predictions" in name for name in arrays):
        back["cls.predictions.decoder.weight"] = arrays["ernie.embeddings.word_embeddings.weight"]
        back["cls.predictions.decoder.bias"] = arrays["cls.predictions.decoder_bias"]
    if "encoder.embeddings.word_embeddings.weight" in arrays:
        parts = ("encoder.embeddings.", "encoder.encoder.", "encoder.pooler.")
        back = {
            "ernie." + name.removeprefix("encoder.") if name.startswith(parts) else name: array
            for name, array in back.items()
        }
    return back


def same_arrays(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype
        and found[name].shape == expected[name].shape
        and found[name].tobytes() == expected[name].tobytes()
        for name in expected
    )


def check_round_trip(source: Path, tmp_path: Path) -> None:
    assert convert(source, tmp_path / "there") == 0
    assert convert(tmp_path / "there", tmp_path / "back", "--reverse") == 0
    found = arrays_of(tmp_path / "back" / "model_state.pdparams")
    assert same_arrays(found, expected_arrays(arrays_of(source / "model_state.pdparams")))


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_reverse_gives_back_every_bit(name: str, tmp_path: Path) -> None:
    check_round_trip(SMALL / name, tmp_path)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    differing = {key for key, value in small_settings(name).items() if config.get(key, "absent") != value}
    assert differing <= {"num_classes"}


@pytest.mark.skipif(not SHARED_FOLDERS, reason="needs the full golden sets in ../shared/goldens/ernie")
@pytest.mark.parametrize("source", SHARED_FOLDERS, ids=lambda path: path.name)
def test_reverse_gives_back_every_bit_of_the_goldens(source: Path, tmp_path: Path) -> None:
    check_round_trip(source, tmp_path)


def reference(tmp_path: Path, name: str = "masked_lm") -> dict[str, torch.Tensor]:
    """The tensors of a small golden, converted from its own file."""
    assert convert(SMALL / name, tmp_path / "reference") == 0
    return weights(tmp_path / "reference")


def same_tensors(folder: Path, expected: dict[str, torch.Tensor]) -> bool:
    found = weights(folder)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    source = write_checkpoint(tmp_path / "source", small_arrays("masked_lm"), small_settings("masked_lm"), protocol)
    assert convert(source, tmp_path / "model") == 0
    assert same_tensors(tmp_path / "model", reference(tmp_path))


def test_names_of_earlier_versions(tmp_path: Path) -> None:
    arrays = small_arrays("masked_lm")
    arrays["cls.predictions.layer_norm.scale"] = arrays.pop("cls.predictions.layer_norm.weight")
    arrays["cls.predictions.decoder_weight"] = arrays.pop("cls.predictions.decoder.weight")
    del arrays["cls.predictions.decoder.bias"]
    source = write_checkpoint(tmp_path / "source", arrays, small_settings("masked_lm"))
    assert convert(source, tmp_path / "model") == 0
    assert same_tensors(tmp_path / "model", reference(tmp_path))


def test_values_stored_as_pairs_of_name_and_array(tmp_path: Path) -> None:
    pairs = {name: (f"static_{name}", array) for name, array in small_arrays("masked_lm").items()}
    source = write_checkpoint(tmp_path / "source", pairs, small_settings("masked_lm"))
    assert convert(source, tmp_path / "model") == 0
    assert same_tensors(tmp_path / "model", reference(tmp_path))


def test_slices_of_a_big_parameter(tmp_path: Path) -> None:
    arrays = small_arrays("masked_lm")
    name = "ernie.embeddings.word_embeddings.weight"
    whole = arrays.pop(name)
    flat = whole.reshape(-1)
    content = arrays | {
        f"{name}@@.0": flat[:1000],
        f"{name}@@.1": flat[1000:],
        "UnpackBigParamInfor@@": {name: {"OriginShape": whole.shape, "slices": [f"{name}@@.0", f"{name}@@.1"]}},
    }
    source = write_checkpoint(tmp_path / "source", content, small_settings("masked_lm"), protocol=2)
    assert convert(source, tmp_path / "model") == 0
    assert same_tensors(tmp_path / "model", reference(tmp_path))


def write_kit_settings(folder: Path) -> None:
    """As ERNIE-kit spells them."""
    settings = small_settings("masked_lm")
    settings["sent_type_vocab_size"] = settings.pop("type_vocab_size")
    kept = ("sent_type_vocab_size", "task_type_vocab_size", "use_task_id", "hidden_act", "num_attention_heads")
    (folder / "ernie_config.json").write_text(json.dumps({key: settings[key] for key in kept}))


def test_params_file_of_ernie_kit(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_pdparams(source / "params", static_arrays(small_arrays("masked_lm")))
    write_kit_settings(source)
    assert convert(source, tmp_path / "model") == 0
    assert same_tensors(tmp_path / "model", reference(tmp_path))


@pytest.mark.parametrize("combined", [False, True], ids=["folder", "combined"])
def test_static_graph(tmp_path: Path, combined: bool) -> None:
    """With what a training run leaves in such a folder."""
    source = tmp_path / "source"
    source.mkdir()
    arrays = static_arrays(small_arrays("masked_lm"))
    arrays |= {"word_embedding_moment1_0": arrays["word_embedding"], "learning_rate_0": np.zeros(1, "f4")}
    if combined:
        (source / "model.pdiparams").write_bytes(b"".join(lod_record(arrays[name]) for name in sorted(arrays)))
        (source / "model.pdmodel").write_bytes(program({name: array.shape for name, array in arrays.items()}))
    else:
        for name, array in arrays.items():
            (source / name).write_bytes(lod_record(array))
    write_kit_settings(source)
    assert convert(source, tmp_path / "model") == 0
    assert same_tensors(tmp_path / "model", reference(tmp_path))


@pytest.mark.parametrize("ending", ["pdparams", "safetensors"])
def test_shards(tmp_path: Path, ending: str) -> None:
    arrays = small_arrays("masked_lm")
    names = sorted(arrays)
    stem = "model" if ending == "safetensors" else "model_state"
    source = tmp_path / "source"
    source.mkdir()
    write_sharded(
        source,
        {
            f"{stem}-0000{number}-of-00002.{ending}": {name: arrays[name] for name in names[number - 1 :: 2]}
            for number in (1, 2)
        },
    )
    (source / "config.json").write_text(json.dumps(small_settings("masked_lm")))
    assert convert(source, tmp_path / "model") == 0
    assert same_tensors(tmp_path / "model", reference(tmp_path))


def test_safetensors_in_paddles_layout(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_file(small_arrays("masked_lm"), source / "model.safetensors", metadata={"format": "np"})
    (source / "config.json").write_text(json.dumps(small_settings("masked_lm")))
    assert convert(source, tmp_path / "model") == 0
    assert same_tensors(tmp_path / "model", reference(tmp_path))


def test_half_precision_stays_and_comes_back(tmp_path: Path) -> None:
    arrays = {name: array.astype("f2") for name, array in small_arrays("uie_task_type_1").items()}
    source = write_checkpoint(tmp_path / "source", arrays, small_settings("uie_task_type_1"))
    check_round_trip(source, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path / "there").dtype is torch.float16
    assert {tensor.dtype for tensor in weights(tmp_path / "there").values()} == {torch.float16}


def test_dtype_option(tmp_path: Path) -> None:
    assert convert(SMALL / "features", tmp_path / "model", "--dtype=bfloat16") == 0
    expected = {name: tensor.bfloat16() for name, tensor in reference(tmp_path, "features").items()}
    assert same_tensors(tmp_path / "model", expected)
    assert AutoModel.from_pretrained(tmp_path / "model").dtype is torch.bfloat16


def test_extra_layer_of_the_distillation_is_left_out_with_a_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = small_arrays("masked_lm")
    arrays |= {name.replace("layers.1", "layers.2"): array for name, array in arrays.items() if "layers.1." in name}
    source = write_checkpoint(tmp_path / "source", arrays, small_settings("masked_lm"))
    assert convert(source, tmp_path / "model") == 0
    printed = capsys.readouterr().out
    assert "layer 2 was left out: it was stacked on for distillation" in printed
    assert "left out: 16 tensors" in printed
    assert same_tensors(tmp_path / "model", reference(tmp_path))
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["dropped"]["ernie.encoder.layers.2.norm1.weight"] == "the extra layer of the distillation"


def test_settings_of_2_4_nested_and_flat(tmp_path: Path) -> None:
    head, bare = small_settings("sequence_classification"), small_settings("features")
    keep = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    keep += ("type_vocab_size", "task_type_vocab_size", "use_task_id", "hidden_act", "intermediate_size")
    nested = {"init_args": [{key: head[key] for key in keep} | {"init_class": "ErnieModel"}], "num_classes": 3}
    nested["init_class"] = "ErnieForSequenceClassification"
    for name, settings in (
        ("sequence_classification", nested),
        ("features", {key: bare[key] for key in keep} | {"init_class": "ErnieModel"}),
    ):
        source = write_checkpoint(tmp_path / name, small_arrays(name), None)
        (source / "model_config.json").write_text(json.dumps(settings))
        assert convert(source, tmp_path / f"{name}_model") == 0
        assert convert(SMALL / name, tmp_path / f"{name}_reference") == 0
        assert same_tensors(tmp_path / f"{name}_model", weights(tmp_path / f"{name}_reference"))
    config = AutoConfig.from_pretrained(tmp_path / "sequence_classification_model")
    assert config.num_labels == 3
    assert config.layer_norm_eps == 1e-12
    assert config.pad_token_id == 0


def test_bare_file_of_a_released_size_needs_no_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the download addresses have it: one .pdparams, nothing beside it; pico, the smallest."""
    sizes = {"vocab": 40000, "hidden": 128, "inner": 512, "positions": 2048, "layers": 3}
    source = tmp_path / "ernie_3.0_tiny_pico_v2.pdparams"
    arrays = random_arrays(**sizes)
    write_pdparams(source, arrays)
    assert convert(source, tmp_path / "model") == 0
    assert "taken for a released encoder of 3 layers, hidden size 128, 2 heads" in capsys.readouterr().out
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert model.config.num_attention_heads == 2
    assert model.num_parameters() == sum(array.size for array in arrays.values())  # 5.99 million


def random_arrays(vocab: int, hidden: int, inner: int, positions: int, layers: int) -> dict[str, np.ndarray]:
    """A bare ErnieModel's arrays, without task embeddings."""
    random = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype="f4") * np.float32(0.02)

    arrays = {
        "embeddings.word_embeddings.weight": array(vocab, hidden),
        "embeddings.position_embeddings.weight": array(positions, hidden),
        "embeddings.token_type_embeddings.weight": array(4, hidden),
        "embeddings.layer_norm.weight": array(hidden),
        "embeddings.layer_norm.bias": array(hidden),
        "pooler.dense.weight": array(hidden, hidden),
        "pooler.dense.bias": array(hidden),
    }
    for layer in range(layers):
        start = f"encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            arrays[f"{start}self_attn.{part}.weight"] = array(hidden, hidden)
            arrays[f"{start}self_attn.{part}.bias"] = array(hidden)
        arrays |= {f"{start}linear1.weight": array(hidden, inner), f"{start}linear1.bias": array(inner)}
        arrays |= {f"{start}linear2.weight": array(inner, hidden), f"{start}linear2.bias": array(hidden)}
        for norm in ("norm1", "norm2"):
            arrays |= {f"{start}{norm}.weight": array(hidden), f"{start}{norm}.bias": array(hidden)}
    return arrays


def test_a_richer_head_than_the_settings_name_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = small_settings("masked_lm") | {"architectures": ["ErnieModel"]}
    source = write_checkpoint(tmp_path / "source", small_arrays("masked_lm"), settings)
    assert convert(source, tmp_path / "model") == 0
    assert "the file also has the head of ErnieForMaskedLM: it is kept" in capsys.readouterr().out
    assert same_tensors(tmp_path / "model", reference(tmp_path))


def test_task_option_leaves_the_head_out_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(SMALL / "masked_lm", tmp_path / "model", "--task=features") == 0
    assert "not part of ErnieModel, which --task chose" in capsys.readouterr().out
    tensors = weights(tmp_path / "model")
    assert not any(name.startswith("cls.") for name in tensors)
    assert AutoModel.from_pretrained(tmp_path / "model").config.architectures == ["ErnieModel"]


def test_pooler_is_kept_for_classes_without_one(tmp_path: Path) -> None:
    """A sentence model made from a masked-LM folder starts from the pooler of the pre-training."""
    tensors = reference(tmp_path)
    model = AutoModel.from_pretrained(tmp_path / "reference")
    assert torch.equal(model.pooler.dense.weight, tensors["ernie.pooler.dense.weight"])
    masked_lm = AutoModelForMaskedLM.from_pretrained(tmp_path / "reference")
    assert convert_saved(masked_lm, tmp_path) == 0


def convert_saved(model, tmp_path: Path) -> int:
    """What transformers saved, written in PaddleNLP's format."""
    model.save_pretrained(tmp_path / "saved")
    return convert(tmp_path / "saved", tmp_path / "saved_back", "--reverse")


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(SMALL / "utc", tmp_path / "model", "--dry-run") == 0
    assert "dry run: nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_memory_of_a_base_size_checkpoint(tmp_path: Path) -> None:
    """118 million parameters: both directions stay below the file's size and 300 MB (0.47 GB seen, of 0.9)."""
    root = Path(__file__).parents[1]
    checkpoint = tmp_path / "checkpoint"
    script = root / "benchmarks" / "make_checkpoint_ernie.py"
    subprocess.run([sys.executable, script, "--size=base", f"--output={checkpoint}"], check=True, capture_output=True)
    limit = (checkpoint / "model_state.pdparams").stat().st_size + 300_000_000
    for arguments in (
        [f"--source={checkpoint}", f"--output={tmp_path / 'there'}"],
        [f"--source={tmp_path / 'there'}", f"--output={tmp_path / 'back'}", "--reverse"],
    ):
        command = [sys.executable, "-m", "conversion", "ernie"]
        process = subprocess.Popen([*command, *arguments], cwd=root)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        assert usage.ru_maxrss * 1024 < limit


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real vocabulary in ../shared/goldens/ernie/vocab")
def test_vocabulary_comes_along_both_ways(tmp_path: Path) -> None:
    source = SHARED / "e2e" / "mlm_real_vocab"
    assert convert(source, tmp_path / "there") == 0
    assert convert(tmp_path / "there", tmp_path / "back", "--reverse") == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "there")
    assert tokenizer("巴黎是[MASK]国的首都。")["input_ids"] == [1, 822, 1756, 10, 3, 20, 5, 504, 165, 12043, 2]
    assert (tmp_path / "back" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    settings = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "ErnieTokenizer"
    assert settings["do_lower_case"] is True
