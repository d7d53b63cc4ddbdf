"""ERNIE 3.0's static folders become models that hold every number, and compute with it; and back, bit for bit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.modeling_ernie3 import Ernie3Model
from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM, Ernie3ForMaskedLM
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from hf_glm_ernie.tokenization_ernie3 import Ernie3Tokenizer
from tests.support.converting import listing, weights
from tests.support.converting_ernie3 import (
    SIZES,
    Arrays,
    convert,
    expected,
    layout,
    random_arrays,
    write_combined,
    write_static,
)
from tests.support.ernie_vocabulary import SMALL, write_vocabulary

from .reference.ernie3_naive import Row, language_model_logits

AutoConfig.register(Ernie3Config.model_type, Ernie3Config, exist_ok=True)  # as the package does
AutoModel.register(Ernie3Config, Ernie3Model, exist_ok=True)
AutoTokenizer.register(Ernie3Config, tokenizer_class=Ernie3Tokenizer, exist_ok=True)


def same_tensors(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """The variables' files."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix not in (".json", ".txt")}


@pytest.mark.parametrize(
    ("kind", "branches", "first"),
    [
        ("float32", ("nlu", "nlg"), None),
        ("float32", ("nlu", "nlg"), 0),
        ("float16", ("nlu", "nlg"), None),
        ("bfloat16", ("nlu", "nlg"), 0),
        ("float32", ("nlg",), None),
        ("bfloat16", ("nlg",), 0),
        ("float16", ("nlu",), None),
        ("float32", ("nlu",), 0),
    ],
)
def test_there_and_back(kind: str, branches: tuple[str, ...], first: int | None, tmp_path: Path) -> None:
    """Every tensor has the original's numbers, and every byte of the original's files comes back."""
    names = layout(branches, first)
    arrays = random_arrays(names, kind)
    source = write_static(tmp_path / "source", arrays, SIZES.settings)
    assert convert(source, tmp_path / "there") == 0
    assert same_tensors(weights(tmp_path / "there"), expected(names, arrays))
    assert convert(tmp_path / "there", tmp_path / "back", "--reverse") == 0
    assert files_of(tmp_path / "back") == files_of(source)
    settings = json.loads((tmp_path / "back" / "ernie_config.json").read_text())
    assert SIZES.settings.items() <= settings.items()
    if kind == "float32":
        assert convert(tmp_path / "back", tmp_path / "again") == 0
        assert same_tensors(weights(tmp_path / "again"), expected(names, arrays))
        assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "there" / "config.json").read_bytes()


def test_combined_file(tmp_path: Path) -> None:
    names = layout()
    arrays = random_arrays(names)
    assert convert(write_combined(tmp_path / "source", arrays, SIZES.settings), tmp_path / "there") == 0
    assert same_tensors(weights(tmp_path / "there"), expected(names, arrays))
    assert convert(tmp_path / "there", tmp_path / "back", "--reverse") == 0
    assert files_of(tmp_path / "back") == files_of(write_static(tmp_path / "single", arrays))


CLASSES: list[tuple[tuple[str, ...], type[Any]]] = [
    (("nlu", "nlg"), Ernie3ForPreTraining),
    (("nlg",), Ernie3ForCausalLM),
    (("nlu",), Ernie3ForPreTraining),
]


@pytest.mark.parametrize(("branches", "model_class"), CLASSES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_classes_open_it_whole(branches: tuple[str, ...], model_class: type[Any], tmp_path: Path) -> None:
    """No weight missing, none left over, every number there; the other classes take what is theirs."""
    names = layout(branches, types=2)
    arrays = random_arrays(names)
    assert convert(write_static(tmp_path / "source", arrays, SIZES.settings), tmp_path / "model") == 0
    wanted = expected(names, arrays)
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.architectures == [model_class.__name__]
    assert config.branches == list(branches)
    assert (config.num_hidden_layers, config.branch_num_hidden_layers, config.eos_token_id) == (2, 2, 29)
    assert (config.num_attention_heads, config.branch_num_attention_heads) == (3, 2)
    assert (config.type_vocab_size, config.num_credible_labels, config.layer_norm_eps) == (2, 0, 1e-12)
    model, report = model_class.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not {name for kind in ("missing", "unexpected", "mismatched") for name in report[f"{kind}_keys"]}
    assert same_tensors(dict(model.state_dict()), wanted)
    base = AutoModel.from_pretrained(tmp_path / "model")
    assert type(base) is Ernie3Model
    own = {name.removeprefix("ernie3."): tensor for name, tensor in wanted.items() if name.startswith("ernie3.")}
    assert same_tensors(dict(base.state_dict()), own)
    head = Ernie3ForCausalLM if "nlg" in branches else Ernie3ForMaskedLM
    assert same_tensors(
        dict(head.from_pretrained(tmp_path / "model").state_dict()),
        {name: wanted[name] for name in head(config).state_dict()},
    )


@pytest.mark.parametrize("branch", ["nlu", "nlg"])
def test_logits_of_a_slow_forward(branch: str, tmp_path: Path) -> None:
    """The opened model computes what the definition gives with the arrays of the folder."""
    names = layout()
    arrays = random_arrays(names)
    assert convert(write_static(tmp_path / "source", arrays, SIZES.settings), tmp_path / "model") == 0
    model = Ernie3ForPreTraining.from_pretrained(tmp_path / "model").eval()
    ids = [1, 7, 30, 12, 5, 49]
    with torch.no_grad():
        found = model(torch.tensor([ids]), branch=branch).logits[0]
    tensors = expected(names, arrays)  # not the model's
    settings = SIZES.settings | {
        "num_hidden_layers": SIZES.layers,
        "branch_num_hidden_layers": SIZES.branch_layers,
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 0,
        "task_type_vocab_size": 0,
        "num_soft_prompt_genres": 0,
        "position_embedding_type": "absolute",
        "recurrence": "same_layer",
        "memory_length": 128,
        "memory_pre_norm": True,
    }
    hidden, _ = Row(tensors, settings, branch)(ids)
    wanted = language_model_logits(tensors, settings, branch, hidden)
    # fp32 against fp64; seen: 2e-6 on values up to 3.
    assert (found.double() - wanted).abs().max() < 1e-5


def test_without_pooler_or_heads(tmp_path: Path) -> None:
    """An NLU branch with a language-model head alone; both branches need the pooler."""
    names = {
        name: value
        for name, value in layout(("nlu",)).items()
        if not name.startswith(("nlu_pooled", "multi_sent", "sentence_dist"))
    }
    arrays = random_arrays(names)
    source = write_static(tmp_path / "source", arrays, SIZES.settings)
    assert convert(source, tmp_path / "model") == 0
    model = Ernie3ForMaskedLM.from_pretrained(tmp_path / "model")
    assert same_tensors(dict(model.state_dict()), expected(names, arrays))
    assert model.config.num_reorder_labels == model.config.num_distance_labels == 0
    assert convert(tmp_path / "model", tmp_path / "back", "--reverse") == 0
    assert files_of(tmp_path / "back") == files_of(source)


def test_what_else_lies_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Heads of other tasks and a training's state are left out by name; settings and texts are no variables."""
    names = layout()
    arrays = random_arrays(names)
    others = {
        "xnli_fc.w_0": np.ones((8, 3), "f4"),
        "xnli_fc.b_0": np.ones(3, "f4"),
        "word_embedding_moment1_0": arrays["word_embedding"],
        "learning_rate_0": np.zeros(1, "f4"),
    }
    source = write_static(tmp_path / "source", arrays | others, SIZES.settings)
    (source / "README.md").write_text("a note")
    assert convert(source, tmp_path / "model") == 0
    printed = capsys.readouterr().out
    assert "xnli_fc.b_0, xnli_fc.w_0 (the head of a task this package's model does not have)" in printed
    assert "learning_rate_0, word_embedding_moment1_0 (state of the training)" in printed
    assert same_tensors(weights(tmp_path / "model"), expected(names, arrays))
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["dropped"].keys() == others.keys()
    assert record["first_layers"] == {"nlg": 2, "nlu": 2}
    assert "`xnli_fc.w_0`" in (tmp_path / "model" / "README.md").read_text()


def big_heads(**changes: int) -> tuple[dict[str, Any], Arrays]:
    """A model whose widths are multiples of the published head size, without its settings."""
    sizes = replace(SIZES, hidden=128, branch_hidden=64, **changes)
    names = layout(("nlg",), sizes=sizes)
    return names, random_arrays(names)


def test_settings_from_the_tensors_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, arrays = big_heads()
    source = write_static(tmp_path / "source", arrays)
    assert convert(source, tmp_path / "model") == 0
    printed = capsys.readouterr().out
    assert "num_attention_heads is taken to be 2, of size 64 as in the published models" in printed
    assert "branch_num_attention_heads is taken to be 1" in printed
    assert "eos_token_id 29979 is not among the 50 words, so it is left open" in printed
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert (config.num_attention_heads, config.branch_num_attention_heads) == (2, 1)
    assert (config.intermediate_size, config.branch_intermediate_size) == (20, 14)
    arguments = ("--num-attention-heads=8", "--branch-num-attention-heads=4", "--layer-norm-eps=1e-5")
    assert convert(source, tmp_path / "chosen", *arguments) == 0
    config = AutoConfig.from_pretrained(tmp_path / "chosen")
    assert (config.num_attention_heads, config.branch_num_attention_heads, config.layer_norm_eps) == (8, 4, 1e-5)
    assert convert(tmp_path / "chosen", tmp_path / "back", "--reverse") == 0
    assert convert(tmp_path / "back", tmp_path / "again") == 0
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "chosen" / "config.json").read_bytes()


def test_settings_in_other_words(tmp_path: Path) -> None:
    """All layers a text passes, or the universal stack's; PaddleNLP's nested file; the option."""
    arrays = random_arrays(layout())
    alone = {key: value for key, value in SIZES.settings.items() if key != "num_sharing_layers"}
    nested = {"init_args": [SIZES.settings], "init_class": "Ernie3Model"}
    for number, settings in enumerate((alone | {"num_hidden_layers": 2}, alone | {"mem_len": 7}, nested)):
        source = write_static(tmp_path / f"source{number}", arrays)
        path = source / "model_config.json" if number == 2 else tmp_path / "settings.json"
        path.write_text(json.dumps(settings))
        options = () if number == 2 else (f"--config={path}",)
        assert convert(source, tmp_path / f"model{number}", *options) == 0
        config = AutoConfig.from_pretrained(tmp_path / f"model{number}")
        assert (config.num_hidden_layers, config.num_attention_heads) == (2, 3)
        assert config.memory_length == (7 if number == 1 else 128)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_option_and_shards(dtype: str, tmp_path: Path) -> None:
    names = layout()
    arrays = random_arrays(names)
    source = write_static(tmp_path / "source", arrays, SIZES.settings)
    assert convert(source, tmp_path / "model", f"--dtype={dtype}", "--max-shard-size=4KB") == 0
    wanted = {name: tensor.to(getattr(torch, dtype)) for name, tensor in expected(names, arrays).items()}
    assert same_tensors(weights(tmp_path / "model"), wanted)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == wanted.keys()
    assert len(set(index["weight_map"].values())) > 3
    assert str(AutoModel.from_pretrained(tmp_path / "model").dtype) == f"torch.{dtype}"
    assert convert(tmp_path / "model", tmp_path / "back", "--reverse", "--dtype=float32") == 0
    written = np.frombuffer(files_of(tmp_path / "back")["word_embedding"][-50 * 12 * 4 :], "f4")
    assert torch.equal(torch.from_numpy(written.copy()).view(50, 12), wanted[names["word_embedding"][0]].float())


def test_vocabulary_comes_along(tmp_path: Path) -> None:
    """The model's own file beside the weights; both ways. The released encoders' by option, for 30,000 words."""
    path = write_vocabulary(tmp_path, SMALL["vocabulary"])
    tokenizer = Ernie3Tokenizer.from_released_vocabulary(path, num_pieces=None)
    sizes = replace(SIZES, vocabulary=len(tokenizer) + 5)
    arrays = random_arrays(layout(("nlg",), sizes=sizes))
    settings = {key: value for key, value in sizes.settings.items() if "token_id" not in key}
    source = write_static(tmp_path / "source", arrays, settings)
    tokenizer.save_vocabulary(str(source))
    assert convert(source, tmp_path / "there") == 0
    opened = AutoTokenizer.from_pretrained(tmp_path / "there")
    assert type(opened) is Ernie3Tokenizer
    assert opened.encode("今天。我们！") == tokenizer.encode("今天。我们！")
    config = AutoConfig.from_pretrained(tmp_path / "there")
    for name in ("pad", "bos", "sep", "mask", "eos", "sentence", "soft_prompt"):
        assert getattr(config, f"{name}_token_id") == getattr(tokenizer, f"{name}_token_id"), name
    assert convert(tmp_path / "there", tmp_path / "back", "--reverse") == 0
    assert (tmp_path / "back" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()


def test_released_vocabulary_of_the_encoders(tmp_path: Path) -> None:
    """39,980 lines give the 10B's 30,000 ids."""
    lines = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(39975)), "[UNK]"]
    vocab = write_vocabulary(tmp_path, lines)
    sizes = replace(SIZES, vocabulary=30000, layers=1, branch_layers=1)
    settings = sizes.settings | {"end_token_id": 29979}
    source = write_static(tmp_path / "source", random_arrays(layout(("nlg",), sizes=sizes)), settings)
    assert convert(source, tmp_path / "model", f"--vocab={vocab}") == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.sentence_token_id) == (30000, 29979, 29980)


def test_reverse_of_a_saved_model(tmp_path: Path) -> None:
    """What transformers saved, without the converter's record: layers are counted on, as the original does."""
    names = layout()
    arrays = random_arrays(names)
    source = write_static(tmp_path / "source", arrays, SIZES.settings)
    assert (
        convert(write_static(tmp_path / "zero", random_arrays(layout(first=0)), SIZES.settings), tmp_path / "m") == 0
    )
    Ernie3ForPreTraining.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "saved")
    assert convert(tmp_path / "saved", tmp_path / "back", "--reverse") == 0
    assert files_of(tmp_path / "back") == files_of(source)  # the same random numbers, in the same order


def test_dry_run_and_no_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_static(tmp_path / "source", random_arrays(layout()), SIZES.settings)
    assert convert(source, tmp_path / "model", "--dry-run") == 0
    assert "dry run: nothing was written" in capsys.readouterr().out
    assert listing(tmp_path) == sorted(["source", *(f"source/{name}" for name in os.listdir(source))])
    assert convert(source, tmp_path / "model", "--no-verify") == 0
    assert "Not computed" in (tmp_path / "model" / "README.md").read_text()


def peak_bytes(*arguments: str) -> int:
    """The largest resident set of a Python process, mapped pages of files included."""
    root = Path(__file__).parents[1]
    null = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, *arguments], cwd=root, stdout=null, stderr=null)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss * 1024


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    """A folder of 422 MB: beside the libraries (0.41 GB) both directions take three blocks of 32 MiB (97 MB seen)."""
    source, there, back = tmp_path / "source", tmp_path / "there", tmp_path / "back"
    peak_bytes("benchmarks/make_checkpoint_ernie3.py", f"--output={source}")
    libraries = peak_bytes("-c", "import conversion.__main__")
    command = ("-m", "conversion", "ernie3")
    assert peak_bytes(*command, f"--source={source}", f"--output={there}") < libraries + 150_000_000
    assert peak_bytes(*command, f"--source={there}", f"--output={back}", "--reverse") < libraries + 150_000_000
    assert files_of(back) == files_of(source)
