"""Every encoder that PaddleNLP has a name for: its layout, scaled down, opens and is held against a slow reference."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from conversion.ernie_names import find_task
from conversion.ernie_released import RELEASED, Released, find_released
from conversion.ernie_settings import Settings, Sizes, build_config, is_gram, layer_norm_eps_of
from tests.conftest import GOLDEN
from tests.reference.ernie_naive import encode, pooled, word_logits
from tests.support.converting_ernie import arrays_of, convert, write_checkpoint

HEAD_SIZE, INNER, WORDS, POSITIONS = 2, 6, 23, 9
IDS, TYPES = [1, 7, 11, 2, 5, 2], [0, 0, 0, 0, 1, 1]
# float32 against float64, of the largest number or of 1; seen on all: 2.1e-7 hidden states, 9.8e-7 pooled, 5.5e-8
# logits. A wrong epsilon (the embeddings are small, see `scaled`) is off by 0.09 or more, an activation by 0.026.
CLOSE = 4e-6

KINDS: dict[Released, list[str]] = {}
for name, one in RELEASED.items():
    KINDS.setdefault(one, []).append(name)


def scaled(one: Released, prefix: str, with_head: bool) -> dict[str, np.ndarray]:
    """Arrays of a released layout: its names, heads, token types, task types; few words, one layer, small numbers."""
    random = np.random.default_rng(5)
    hidden = one.stack.heads * HEAD_SIZE

    def array(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype="f4")

    arrays = {
        # So small that the epsilon of the first LayerNorm is seen: variances of about 3e-6.
        f"{prefix}embeddings.word_embeddings.weight": array(WORDS, hidden) * np.float32(1e-3),
        f"{prefix}embeddings.position_embeddings.weight": array(POSITIONS, hidden) * np.float32(1e-3),
        f"{prefix}embeddings.token_type_embeddings.weight": array(one.types, hidden) * np.float32(1e-3),
        f"{prefix}embeddings.layer_norm.weight": array(hidden),
        f"{prefix}embeddings.layer_norm.bias": array(hidden),
        f"{prefix}pooler.dense.weight": array(hidden, hidden),
        f"{prefix}pooler.dense.bias": array(hidden),
    }
    if one.tasks:
        arrays[f"{prefix}embeddings.task_type_embeddings.weight"] = array(one.tasks, hidden) * np.float32(1e-3)
    shapes = {f"self_attn.{part}_proj": (hidden, hidden) for part in ("q", "k", "v", "out")}
    shapes |= {"linear1": (hidden, INNER), "linear2": (INNER, hidden), "norm1": (hidden,), "norm2": (hidden,)}
    for part, shape in shapes.items():
        scale = np.float32(shape[0] ** -0.5 if len(shape) == 2 else 1.0)
        arrays[f"{prefix}encoder.layers.0.{part}.weight"] = array(*shape) * scale
        arrays[f"{prefix}encoder.layers.0.{part}.bias"] = array(shape[-1])
    if with_head:
        arrays |= {"cls.predictions.transform.weight": array(hidden, hidden) * np.float32(hidden**-0.5)}
        arrays |= {f"cls.predictions.{part}": array(hidden) for part in ("transform.bias", "layer_norm.weight")}
        arrays |= {"cls.predictions.layer_norm.bias": array(hidden), "cls.predictions.decoder_bias": array(WORDS)}
    return arrays


def settings_of(one: Released, original: str) -> dict[str, object]:
    """As PaddleNLP writes them, without the sizes that the weights tell."""
    return {
        "architectures": [original],
        "num_attention_heads": one.stack.heads,
        "num_hidden_layers": 1,
        "hidden_act": one.activation,
        "type_vocab_size": one.types,
        "use_task_id": one.tasks > 0,
        "model_type": "ernie_gram" if one.is_gram else "ernie",
        "layer_norm_eps": 1e-12,
    }


@pytest.mark.parametrize("one", KINDS, ids=lambda one: KINDS[one][0])
def test_layout_of_every_name_opens_and_computes(one: Released, tmp_path: Path) -> None:
    prefix = "ernie_gram." if one.is_gram else "ernie."
    arrays = scaled(one, prefix, not one.is_gram)
    original = "ErnieGramModel" if one.is_gram else "ErnieForMaskedLM"
    if one.is_gram:  # PaddleNLP's bare models have no prefix
        arrays, prefix = {name.removeprefix(prefix): array for name, array in arrays.items()}, ""
    source = write_checkpoint(tmp_path / "source", arrays, settings_of(one, original))
    assert convert(source, tmp_path / "model", "--no-verify") == 0
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert (config.hidden_act, config.num_attention_heads) == (one.activation, one.stack.heads)
    assert (config.type_vocab_size, config.use_task_id) == (one.types, one.tasks > 0)
    types = [kind % one.types for kind in TYPES]
    inputs = {"input_ids": torch.tensor([IDS]), "token_type_ids": torch.tensor([types])}
    eps = layer_norm_eps_of(one.is_gram)
    hidden = encode(arrays, IDS, types, one.stack.heads, one.activation, eps, prefix)
    with torch.no_grad():
        output = AutoModel.from_pretrained(tmp_path / "model")(**inputs)
        assert np.abs(output.last_hidden_state[0].numpy() - hidden).max() <= CLOSE * max(1, np.abs(hidden).max())
        assert np.abs(output.pooler_output[0].numpy() - pooled(arrays, hidden, prefix)).max() <= CLOSE
        if not one.is_gram:
            logits = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")(**inputs).logits[0].numpy()
            expected = word_logits(arrays, hidden, one.activation, eps, prefix)
            assert np.abs(logits - expected).max() <= CLOSE * max(1, np.abs(expected).max())
    wrong = encode(arrays, IDS, types, one.stack.heads, one.activation, 1e-5 if eps == 1e-12 else 1e-12, prefix)
    assert np.abs(wrong - hidden).max() > 1e-2  # the test sees the epsilon


def test_table_is_what_paddlenlp_says() -> None:
    """Of the names whose settings were written down by the original program."""
    golden = json.loads((GOLDEN / "ernie_released_settings.json").read_text(encoding="utf-8"))
    assert len(golden) > 20
    for name, said in golden.items():
        one = RELEASED[name]
        sizes = (one.stack.layers, one.stack.hidden, one.stack.heads, one.stack.inner)
        assert sizes == (
            said["num_hidden_layers"],
            said["hidden_size"],
            said["num_attention_heads"],
            said["intermediate_size"],
        )
        assert (one.words, one.positions, one.types, one.activation) == (
            said["vocab_size"],
            said["max_position_embeddings"],
            said["type_vocab_size"],
            said["hidden_act"],
        )
        assert one.tasks == (said["task_type_vocab_size"] if said["use_task_id"] else 0)


def sizes_of(one: Released, more_layers: int = 0) -> Sizes:
    stack = one.stack
    layers = stack.layers + more_layers
    return Sizes(one.words, stack.hidden, one.positions, one.types, one.tasks, layers, stack.inner, 0)


@pytest.mark.parametrize("name", RELEASED)
def test_sizes_alone_tell_heads_activation_and_epsilon(name: str) -> None:
    """A file of the download addresses comes without settings; with a layer of the distillation or without."""
    one = RELEASED[name]
    task = find_task("features")
    assert task is not None
    for more in (0, 1):
        sizes = sizes_of(one, more)
        gram = is_gram(Settings(None), sizes, "")
        config, notices = build_config(Settings(None), sizes, task, layer_norm_eps_of(gram))
        assert (config.num_attention_heads, config.hidden_act) == (one.stack.heads, one.activation)
        assert config.num_hidden_layers == one.stack.layers
        assert config.layer_norm_eps == (1e-5 if name.startswith("ernie-gram") else 1e-12)
        assert any("taken for a released encoder" in notice for notice in notices)


def test_no_two_released_encoders_have_the_same_sizes_and_another_network() -> None:
    for one in RELEASED.values():
        stack = one.stack
        found = find_released(stack.layers, stack.hidden, stack.inner, one.words, one.positions, one.types)
        assert found is not None
        assert (found.stack, found.activation, found.is_gram) == (stack, one.activation, one.is_gram)
    assert find_released(7, 768, 3072, 40000, 2048, 4) == RELEASED["ernie-3.0-medium-zh"]  # and a layer more
    assert find_released(8, 768, 3072, 40000, 2048, 4) is None


def test_every_released_name_is_in_the_docs_with_how_it_converts() -> None:
    page = (Path(__file__).parents[1] / "docs" / "convert.md").read_text(encoding="utf-8")
    missing = [name for name in RELEASED if f"`{name}`" not in page]
    assert not missing


def test_gram_comes_back_as_gram(tmp_path: Path) -> None:
    one = RELEASED["ernie-gram-zh"]
    arrays = scaled(one, "ernie_gram.", with_head=False)
    hidden = one.stack.heads * HEAD_SIZE
    arrays |= {"classifier.weight": np.ones((hidden, 3), "f4"), "classifier.bias": np.zeros(3, "f4")}
    settings = settings_of(one, "ErnieGramForSequenceClassification")
    source = write_checkpoint(tmp_path / "source", arrays, settings)
    assert convert(source, tmp_path / "model") == 0
    assert AutoConfig.from_pretrained(tmp_path / "model").layer_norm_eps == 1e-5
    assert convert(tmp_path / "model", tmp_path / "back", "--reverse") == 0
    found = arrays_of(tmp_path / "back" / "model_state.pdparams")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["ErnieGramForSequenceClassification"], "ernie_gram")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"rel_pos_size": 33}, "rel_pos_size is 33: ERNIE-Gram's English models add a score"),
        ({"embedding_size": 7}, "embedding_size is 7, the hidden size 24"),
        ({"architectures": ["ErnieGramForMaskedLM"]}, "the class ErnieGramForMaskedLM is not known"),
        ({"architectures": ["ErnieMForTokenClassification"]}, "ERNIE-M has no token types and a sentencepiece"),
        ({"architectures": ["UIEX"]}, "UIE-X reads with ERNIE-Layout"),
    ],
)
def test_other_networks_are_refused(
    change: dict[str, object], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = RELEASED["ernie-gram-zh"]
    arrays = scaled(one, "", with_head=False)
    source = write_checkpoint(tmp_path / "source", arrays, settings_of(one, "ErnieGramModel") | change)
    assert convert(source, tmp_path / "model") == 1
    assert wanted in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_gram_has_no_other_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = RELEASED["ernie-gram-zh"]
    source = write_checkpoint(
        tmp_path / "source", scaled(one, "", with_head=False), settings_of(one, "ErnieGramModel")
    )
    assert convert(source, tmp_path / "model", "--task=uie") == 1
    assert "an ERNIE-Gram, which PaddleNLP has features" in capsys.readouterr().err
