"""LoRA folders of PaddleNLP's: said what they are, and merged into the checkpoint they were trained on."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from tests.reference.ernie_naive import encode, linear, pooled
from tests.support.converting_ernie import convert, small_arrays, small_settings, weights, write_checkpoint
from tests.support.ernie_goldens import SMALL
from tests.support.paddle_writing import write_pdparams, write_sharded

Arrays = dict[str, np.ndarray]

RANK = 3
LINEARS = [f"ernie.encoder.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn.q_proj", "self_attn.v_proj")]
LINEARS += ["ernie.encoder.layers.1.linear1", "ernie.pooler.dense"]
# Of the largest weight: float32 rounds three products, their sum and what is added. Seen: 1.3e-7.
CLOSE = 5e-7
HEAD = "sequence_classification"


def adapter_arrays(base: Arrays, linears: list[str] = LINEARS) -> Arrays:
    random = np.random.default_rng(3)
    arrays: Arrays = {}
    for name in linears:
        rows, columns = base[f"{name}.weight"].shape
        arrays[f"{name}.lora_A"] = random.standard_normal((rows, RANK)).astype("f4")
        arrays[f"{name}.lora_B"] = random.standard_normal((RANK, columns)).astype("f4")
    return arrays


def write_adapter(folder: Path, arrays: Arrays, **settings: Any) -> Path:
    """As LoRAModel.save_pretrained writes it."""
    folder.mkdir()
    write_pdparams(folder / "lora_model_state.pdparams", arrays)
    said = {"r": RANK, "lora_alpha": 8, "rslora": False, "pissa": False, "tensor_parallel_degree": -1, **settings}
    (folder / "lora_config.json").write_text(json.dumps(said))
    return folder


def merged(base: Arrays, adapter: Arrays, scaling: float) -> Arrays:
    """The slow way: every element on its own, in float64."""
    result = {name: array.astype("f8") for name, array in base.items()}
    for name, first in adapter.items():
        if not name.endswith("lora_A"):
            continue
        second = adapter[name.replace("lora_A", "lora_B")]
        weight = result[name.replace("lora_A", "weight")]
        for row in range(weight.shape[0]):
            for column in range(weight.shape[1]):
                products = (float(first[row, k]) * float(second[k, column]) for k in range(RANK))
                weight[row, column] += math.fsum(products) * scaling
    return result


def merged_file(folder: Path, arrays: Arrays, name: str) -> dict[str, torch.Tensor]:
    """What the converter makes of a merged checkpoint in one file."""
    single = {key: array.astype("f4") for key, array in arrays.items()}
    source = write_checkpoint(folder / "merged", single, small_settings(name))
    assert convert(source, folder / "expected") == 0
    return weights(folder / "expected")


def refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    output = tmp_path / "out" / "model"
    assert convert(source, output, *arguments) == 1
    assert not output.parent.exists() or not any(output.parent.iterdir())
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [({}, 8 / RANK), ({"lora_alpha": 3}, 1.0), ({"rslora": True, "lora_alpha": 16}, 16 / math.sqrt(RANK))],
)
def test_merged_as_paddlenlp_computes(
    settings: dict[str, Any], scaling: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = small_arrays(HEAD)
    adapter = adapter_arrays(base)
    source = write_adapter(tmp_path / "lora", adapter, **settings)
    assert convert(source, tmp_path / "model", f"--base={SMALL / HEAD}") == 0
    said = capsys.readouterr().out
    assert f"merged: LoRA of rank 3 (scaling {scaling:g}) on 6 linears" in said
    expected = merged_file(tmp_path, merged(base, adapter, scaling), HEAD)
    found = weights(tmp_path / "model")
    assert found.keys() == expected.keys()
    changed = {f"ernie.encoder.layer.{n}.attention.self.{part}.weight" for n in (0, 1) for part in ("query", "value")}
    changed |= {"ernie.encoder.layer.1.intermediate.dense.weight", "ernie.pooler.dense.weight"}
    for name, tensor in found.items():
        if name in changed:
            assert (tensor - expected[name]).abs().max() <= CLOSE * max(1.0, float(expected[name].abs().max()))
        else:
            assert torch.equal(tensor, expected[name])


def test_merged_model_computes_what_base_and_adapter_do(tmp_path: Path) -> None:
    """x W + (x A B) s, layer by layer, against the opened folder."""
    base = small_arrays(HEAD)
    adapter = adapter_arrays(base)
    source = write_adapter(tmp_path / "lora", adapter)
    assert convert(source, tmp_path / "model", f"--base={SMALL / HEAD}") == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    ids, settings = [1, 9, 14, 2], small_settings(HEAD)
    whole = merged(base, adapter, 8 / RANK)
    hidden = encode(whole, ids, [0] * 4, settings["num_attention_heads"], "gelu", 1e-12, "ernie.")
    logits = linear(whole, "classifier", pooled(whole, hidden, "ernie."))
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert np.abs(found - logits).max() <= 2e-6  # float32 against float64; seen 1.6e-7 on logits of 0.13


def test_base_is_bare_and_the_head_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter holds what was trained beside its matrices as it is, and the settings of its head."""
    arrays = small_arrays(HEAD)
    bare = {key.removeprefix("ernie."): array for key, array in arrays.items() if key.startswith("ernie.")}
    settings = {key: value for key, value in small_settings(HEAD).items() if "label" not in key}
    base = write_checkpoint(tmp_path / "base", bare, settings | {"architectures": ["ErnieModel"]})
    adapter = adapter_arrays(arrays, LINEARS[:2]) | {
        "classifier.weight": arrays["classifier.weight"] * 2,
        "classifier.bias": arrays["classifier.bias"] + 1,
        "ernie.encoder.layers.0.self_attn.q_proj.bias": arrays["ernie.encoder.layers.0.self_attn.q_proj.bias"] + 1,
    }
    source = write_adapter(tmp_path / "lora", adapter, trainable_bias="lora")
    (source / "config.json").write_text(json.dumps(small_settings(HEAD)))
    assert convert(source, tmp_path / "model", f"--base={base}") == 0
    assert "on 2 linears, 3 tensors whole" in capsys.readouterr().out
    found, there = weights(tmp_path / "model"), merged_file(tmp_path, arrays, HEAD)
    assert torch.equal(found["classifier.weight"], there["classifier.weight"] * 2)
    assert torch.equal(found["classifier.bias"], there["classifier.bias"] + 1)
    name = "ernie.encoder.layer.0.attention.self.query.bias"
    assert torch.equal(found[name], there[name] + 1)
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["kind"] == "pdparams, LoRA of rank 3 (scaling 2.66667) on 2 linears, 3 tensors whole"


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    base = {key: array.astype("f2") for key, array in small_arrays("features").items()}
    arrays = {f"ernie.{key}": array for key, array in base.items()}
    adapter = {key: array.astype("f2") for key, array in adapter_arrays(arrays, LINEARS[:1]).items()}
    source = write_adapter(tmp_path / "lora", {key.removeprefix("ernie."): one for key, one in adapter.items()})
    base_folder = write_checkpoint(tmp_path / "base", base, small_settings("features"))
    assert convert(source, tmp_path / "model", f"--base={base_folder}") == 0
    exact = merged(arrays, adapter, 8 / RANK)[f"{LINEARS[0]}.weight"].T
    found = weights(tmp_path / "model")["encoder.layer.0.attention.self.query.weight"]
    assert found.dtype is torch.float16
    # Half a unit in the last place of float16, and what float32 before it was off by.
    assert np.all(np.abs(found.numpy() - exact) <= np.spacing(np.abs(exact).astype("f2")) * 0.51)


@pytest.mark.parametrize("sharded", [False, True])
def test_unified_checkpoints_hold_adapters_as_safetensors(sharded: bool, tmp_path: Path) -> None:
    base = small_arrays(HEAD)
    adapter = adapter_arrays(base, LINEARS[:2])
    source = write_adapter(tmp_path / "lora", adapter)
    assert convert(source, tmp_path / "first", f"--base={SMALL / HEAD}") == 0
    (source / "lora_model_state.pdparams").unlink()
    if sharded:
        index = write_sharded(source, {"peft_model-00001-of-00001.safetensors": adapter})
        index.rename(source / "peft_model.safetensors.index.json")
    else:
        save_file(adapter, source / "peft_model.safetensors", metadata={"format": "np"})
    assert convert(source, tmp_path / "second", f"--base={SMALL / HEAD}") == 0
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_features_of_a_merged_folder_open(tmp_path: Path) -> None:
    base = small_arrays(HEAD)
    source = write_adapter(tmp_path / "lora", adapter_arrays(base, LINEARS[:2]))
    assert convert(source, tmp_path / "model", f"--base={SMALL / HEAD}", "--task=features") == 0
    assert AutoModel.from_pretrained(tmp_path / "model").config.architectures == ["ErnieModel"]


def test_an_adapter_alone_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_adapter(tmp_path / "lora", adapter_arrays(small_arrays(HEAD)))
    for path in (source, source / "lora_model_state.pdparams"):
        message = refused(path, tmp_path, capsys)
        assert "a LoRA adapter, trained beside a model's weights, not the model. Pass --base" in message


@pytest.mark.parametrize(
    ("kind", "what"), [("prefix", "prefix tuning"), ("vera", "VeRA"), ("lokr", "LoKr"), ("reft", "ReFT")]
)
def test_other_adapters_are_said_to_be_ones(
    kind: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "adapter"
    source.mkdir()
    write_pdparams(source / f"{kind}_model_state.pdparams", {"prefix_encoder.0.weight": np.ones((2, 8), "f4")})
    (source / f"{kind}_config.json").write_text("{}")
    for path in (source, source / f"{kind}_model_state.pdparams"):
        assert f"an adapter of the kind {what}" in refused(path, tmp_path, capsys)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pissa": ({"pissa": True}, "pissa is True: the training first took its matrices out of the base"),
    "merged linears": ({"enable_lora_list": [True, False, True]}, "enable_lora_list is [True, False, True]"),
    "qat": ({"do_qat": True}, "do_qat is True"),
    "ranks": ({"tensor_parallel_degree": 2}, "tensor_parallel_degree is 2: every rank saved a part"),
    "another rank": ({"r": 4}, "says r 4. Take the settings that were saved with the weights"),
    "a rank that is none": ({"r": 0}, "r is 0; it is a whole number above 0"),
    "an alpha that is none": ({"lora_alpha": "8"}, "lora_alpha is '8'; it is a number above 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_cannot_be_merged(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, wanted = REFUSED[case]
    source = write_adapter(tmp_path / "lora", adapter_arrays(small_arrays(HEAD)), **settings)
    assert wanted in refused(source, tmp_path, capsys, f"--base={SMALL / HEAD}")


def without(arrays: Arrays, name: str) -> Arrays:
    return {key: array for key, array in arrays.items() if key != name}


def wrong_tensors() -> dict[str, tuple[Arrays, str]]:
    base = small_arrays(HEAD)
    good = adapter_arrays(base, LINEARS[:1])
    a, b = (f"{LINEARS[0]}.{part}" for part in ("lora_A", "lora_B"))
    words = "ernie.embeddings.word_embeddings"
    of_words = {f"{words}.lora_A": np.ones((96, RANK), "f4"), f"{words}.lora_B": np.ones((RANK, 24), "f4")}
    return {
        "half a pair": (without(good, b), "stands alone; lora_A and lora_B go together"),
        "another model's": (
            good | {"llama.layers.0.q.lora_A": good[a]},
            "llama.layers.0.q.lora_A is no matrix of LoRA",
        ),
        "no matrices": ({"classifier.weight": base["classifier.weight"]}, "no lora_A and lora_B among 1 tensors"),
        "another size": ({a: good[a][:20], b: good[b]}, "make [20, 24], but ernie.encoder.layers.0.self_attn.q_proj"),
        "not in the base": (
            {key.replace("layers.0", "layers.7"): array for key, array in good.items()},
            "belongs to ernie.encoder.layers.7.self_attn.q_proj.weight, which --base",
        ),
        "embeddings": (good | of_words, "is on ernie.embeddings.word_embeddings.weight, which is no linear"),
    }


@pytest.mark.parametrize("case", wrong_tensors())
def test_tensors_that_do_not_fit(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays, wanted = wrong_tensors()[case]
    source = write_adapter(tmp_path / "lora", arrays)
    assert wanted in refused(source, tmp_path, capsys, f"--base={SMALL / HEAD}")


def test_base_and_adapter_are_what_they_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_adapter(tmp_path / "lora", adapter_arrays(small_arrays(HEAD)))
    assert "is no LoRA adapter, so there is nothing to merge" in refused(
        SMALL / HEAD, tmp_path, capsys, f"--base={SMALL / HEAD}"
    )
    assert "an adapter itself" in refused(source, tmp_path, capsys, f"--base={source}")
    base = write_checkpoint(tmp_path / "base", small_arrays(HEAD), small_settings(HEAD))
    assert convert(source, base / "model", f"--base={base}") == 1  # it would lie in what is read
    assert sorted(path.name for path in base.iterdir()) == ["config.json", "model_state.pdparams"]
    message = refused(source, tmp_path, capsys, f"--base={SMALL / HEAD}", "--as-bert")
    assert "a LoRA adapter is merged first" in message
    (source / "lora_config.json").unlink()
    assert "It tells lora_alpha" in refused(source, tmp_path, capsys, f"--base={SMALL / HEAD}")
    (source / "lora_config.json").write_text("{}")
    (source / "lora_model_state.pdparams").unlink()
    assert "but neither lora_model_state.pdparams nor" in refused(source, tmp_path, capsys, f"--base={SMALL / HEAD}")


def test_a_merged_folder_goes_back_to_one_file(tmp_path: Path) -> None:
    """What PaddleNLP then reads without an adapter."""
    base = small_arrays(HEAD)
    adapter = adapter_arrays(base)
    source = write_adapter(tmp_path / "lora", adapter)
    assert convert(source, tmp_path / "model", f"--base={SMALL / HEAD}") == 0
    assert convert(tmp_path / "model", tmp_path / "back", "--reverse") == 0
    assert convert(tmp_path / "back", tmp_path / "again") == 0
    first, again = weights(tmp_path / "model"), weights(tmp_path / "again")
    assert all(torch.equal(first[name], again[name]) for name in first)
