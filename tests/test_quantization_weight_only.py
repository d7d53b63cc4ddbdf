"""Weight-only integers through the host: quantize while loading, save, reload, offload, adapters, bad folders."""

import importlib.machinery
import importlib.util
import json
import os
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    ErnieConfig,
    ErnieForMaskedLM,
    ErnieForSequenceClassification,
    ErnieModel,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.trainer_utils import validate_quantization_for_training

from hf_glm_ernie import ErnieForUIE, ErnieUIEConfig, quantization_weight_only
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig, repack
from hf_glm_ernie.weight_only import dequantize, from_storage, quantize
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear
from tests.support.fresh import fresh_python
from tests.support.rank_processes import run_ranks
from tests.support.tiny_models import EOP, GMASK, LAYERS, MASK, PAD, SOP, tiny_model

ROOT = Path(__file__).parents[1]
IDS = torch.tensor([[9, 8, MASK, 7, 6, SOP, 11, 12]])
LABELS = torch.tensor([[-100] * 6 + [11, 12]])
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "glm"
    tiny_model().save_pretrained(folder)
    return folder


def load(folder: Path, **arguments: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **arguments).eval()


def quantized_folder(folder: Path, plain_folder: Path, **settings: Any) -> Path:
    load(plain_folder, quantization_config=WeightOnlyConfig(**settings)).save_pretrained(folder)
    return folder


def quantized_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, WeightOnlyLinear)]


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def change_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    state = load_file(folder / "model.safetensors") | changes
    save_file(
        {k: v for k, v in state.items() if v is not None}, folder / "model.safetensors", metadata={"format": "pt"}
    )


def tiny_ernie_config() -> ErnieConfig:
    return ErnieConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )


# Quantize while loading, save, reload.


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 4},
        {"bits": 8},
        {"bits": 4, "group_size": 16},
        {"bits": 8, "group_size": 32, "num_groups": {"o_proj": 8, "mlp.down_proj": 3}},
        {"bits": 4, "modules_to_not_convert": ["down_proj", "model.layers.1"]},
    ],
    ids=str,
)
def test_quantize_save_and_reload(plain_folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    plain = load(plain_folder)
    model = load(plain_folder, quantization_config=WeightOnlyConfig(**settings))
    names = quantized_names(model)
    kept = settings.get("modules_to_not_convert", [])
    assert len(names) == (6 * (LAYERS - 1) if kept else 7 * LAYERS)
    for name in names:
        module = model.get_submodule(name)
        special = [v for k, v in settings.get("num_groups", {}).items() if name.endswith(k)]
        groups = special[0] if special else module.in_features // settings.get("group_size", module.in_features)
        q, scale = quantize(plain.get_submodule(name).weight, settings["bits"], groups)
        assert torch.equal(from_storage(module.weight, settings["bits"]), q)
        assert torch.equal(module.weight_scale, scale)
        assert not module.weight.requires_grad
        assert not module.weight_scale.requires_grad
    assert model.model.embed_tokens.weight is model.lm_head.weight

    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    everything = {"bits": 4, "group_size": None, "num_groups": None, "modules_to_not_convert": None}
    assert saved == everything | {"quant_method": "weight_only_int"} | settings
    again = load(tmp_path)
    assert quantized_names(again) == names
    first, second = model.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(logits(again), logits(model))


def test_logits_are_those_of_the_dequantized_weights(plain_folder: Path) -> None:
    model = load(plain_folder, quantization_config=WeightOnlyConfig(bits=4, group_size=16))
    plain = load(plain_folder)
    for name in quantized_names(model):
        module, linear = model.get_submodule(name), plain.get_submodule(name)
        values = dequantize(from_storage(module.weight, 4), module.weight_scale)
        assert not torch.equal(values, linear.weight)
        linear.weight.data = values
    assert (logits(model) - logits(plain)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("bits", "bound"),
    [(8, 0.02), (4, 0.3)],  # of logits of size 1; half a step of 127 or 7 in each weight: 0.007 and 0.13 seen
)
def test_distance_from_full_precision(plain_folder: Path, bits: int, bound: float) -> None:
    model = load(plain_folder, quantization_config=WeightOnlyConfig(bits=bits))
    difference = (logits(model) - logits(load(plain_folder))).abs().max()
    assert 1e-4 < difference < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reload_in_half_precision(plain_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = quantized_folder(tmp_path, plain_folder, bits=4)
    exact, model = load(folder), load(folder, dtype=dtype)
    for name in quantized_names(model):
        assert torch.equal(model.get_submodule(name).weight, exact.get_submodule(name).weight)
        assert torch.equal(model.get_submodule(name).weight_scale, exact.get_submodule(name).weight_scale)
        assert model.get_submodule(name).bias.dtype == dtype
    assert (logits(model).float() - logits(exact)).abs().max() < (0.05 if dtype == torch.bfloat16 else 0.006)


def test_repacked_weights_are_saved_as_released(plain_folder: Path, tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path / "first", plain_folder, bits=4)
    model = load(folder, dtype=torch.bfloat16)
    before = logits(model)
    assert repack(model) == 7 * LAYERS
    assert model.model.layers[0].mlp.up_proj.kernel_for(torch.ones(1, 64).bfloat16()).name == "torch_int4"
    # Another order of the sums of 64 products, in a model of 3 layers in bf16: 0.02 seen.
    assert (logits(model) - before).abs().max() < 0.06
    model.save_pretrained(tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first if name.endswith(("_proj.weight", "_scale")))


def test_one_full_precision_tensor_at_a_time(plain_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref] = []
    alive: list[int] = []
    original = quantization_weight_only.quantize

    def watch(weight: torch.Tensor, *arguments: Any) -> Any:
        alive.append(sum(reference() is not None for reference in seen))
        seen.append(weakref.ref(weight))
        return original(weight, *arguments)

    monkeypatch.setattr(quantization_weight_only, "quantize", watch)
    load(plain_folder, quantization_config=WeightOnlyConfig())
    assert len(seen) == 7 * LAYERS
    assert not any(alive)


def test_generation_from_a_quantized_folder(plain_folder: Path, tmp_path: Path) -> None:
    model = load(quantized_folder(tmp_path, plain_folder, bits=8))
    plain = load(plain_folder)
    prompt = torch.tensor([[9, 8, GMASK, SOP]])
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD, "eos_token_id": EOP}
    assert torch.equal(model.generate(prompt, **arguments), plain.generate(prompt, **arguments))


# ERNIE: the encoder's layers, and nothing else.


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("cls", [ErnieModel, ErnieForMaskedLM, ErnieForSequenceClassification, ErnieForUIE])
def test_ernie(tmp_path: Path, cls: Any, bits: int) -> None:
    config = tiny_ernie_config()
    model = cls(ErnieUIEConfig(**config.to_dict()) if cls is ErnieForUIE else config).eval()
    model.save_pretrained(tmp_path / "plain")
    quantized = cls.from_pretrained(tmp_path / "plain", quantization_config=WeightOnlyConfig(bits=bits)).eval()
    names = quantized_names(quantized)
    assert len(names) == 6 * config.num_hidden_layers
    assert all("encoder.layer." in name for name in names)
    quantized.save_pretrained(tmp_path / "quantized")
    again = cls.from_pretrained(tmp_path / "quantized").eval()
    ids = torch.arange(1, 13).view(2, 6)
    with torch.no_grad():
        first, second, exact = quantized(ids)[0], again(ids)[0], model(ids)[0]
    assert torch.equal(first, second)
    assert (first - exact).abs().max() < (0.05 if bits == 8 else 0.6) * exact.abs().max()


PLAIN_PROGRAM = """
import sys
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1])
assert "hf_glm_ernie" not in sys.modules
print("LOADED", model.ernie.encoder.layer[0].attention.self.query.weight.flatten()[:4].tolist())
"""


@pytest.mark.parametrize("bits", [4, 8])
def test_without_this_package_a_quantized_folder_does_not_load(tmp_path: Path, bits: int) -> None:
    """The host knows `ernie` and not the method: it warns and goes on, so the tensors themselves must not fit."""
    ErnieForMaskedLM(tiny_ernie_config()).save_pretrained(tmp_path / "plain")
    config = WeightOnlyConfig(bits=bits)
    folder = tmp_path / "quantized"
    AutoModelForMaskedLM.from_pretrained(tmp_path / "plain", quantization_config=config).save_pretrained(folder)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = fresh_python(["-c", PLAIN_PROGRAM, folder], tmp_path, environment)
    assert done.returncode != 0
    assert "LOADED" not in done.stdout
    assert "weight_only_int" in done.stderr  # the host's warning names the method
    assert "ignore_mismatched_sizes" in done.stderr  # and this is what stops it


def test_registering_again_is_harmless() -> None:
    """A Hub folder brings the same files under another name."""
    before = AUTO_QUANTIZATION_CONFIG_MAPPING["weight_only_int"]
    package = "second_copy_of_it"
    folder = ROOT / "hf_glm_ernie"
    spec = importlib.machinery.ModuleSpec(package, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        second = importlib.import_module(f"{package}.quantization_weight_only")
        assert second.WeightOnlyConfig is not WeightOnlyConfig
        assert AUTO_QUANTIZATION_CONFIG_MAPPING["weight_only_int"] is before
        linear = WeightOnlyLinear.from_linear(nn.Linear(16, 8))
        x = torch.randn(2, 16, requires_grad=True)
        linear(x).sum().backward()  # through the operator, which the second copy must not define again
        assert x.grad is not None
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]


REMOTE_PROGRAM = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert "hf_glm_ernie" not in sys.modules
saved = torch.load(sys.argv[2], weights_only=True)
assert torch.equal(model(saved["input_ids"]).logits, saved["logits"])
model.save_pretrained(sys.argv[3])
"""


def test_a_folder_that_brings_its_code(plain_folder: Path, tmp_path: Path) -> None:
    """As on the Hub: flat files beside the weights, loaded by a program that does not have this package."""
    folder = quantized_folder(tmp_path / "remote", plain_folder, bits=8)
    for file in (ROOT / "hf_glm_ernie").glob("*.py"):
        if "glm130b" in file.stem or "weight_only" in file.stem:
            shutil.copy(file, folder)
    modeling = folder / "modeling_glm130b.py"
    code = modeling.read_text(encoding="utf-8")
    if "quantization_weight_only" not in code:
        line = "from .prefix_glm130b import ("
        assert line in code
        code = code.replace(line, f"from .quantization_weight_only import WeightOnlyConfig\n{line}")
        modeling.write_text(code, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_glm130b.Glm130bConfig",
        "AutoModelForCausalLM": "modeling_glm130b.Glm130bForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"input_ids": IDS, "logits": logits(load(folder))}, tmp_path / "expected.pt")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "cache")}
    arguments = [folder, tmp_path / "expected.pt", tmp_path / "again"]
    done = fresh_python(["-c", REMOTE_PROGRAM, *arguments], tmp_path, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "again" / "weight_only_linear.py").is_file()  # it goes on with the model


# Devices.


def test_offload_to_the_disk(plain_folder: Path, tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path / "quantized", plain_folder, bits=4)
    expected = logits(load(folder))
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    device_map |= {"model.layers.2": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places: dict[str, Any] = {"device_map": device_map, "offload_folder": tmp_path / "offload"}
    model = load(folder, **places)
    assert model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert torch.equal(logits(model), expected)
    assert repack(model.model.layers[1]) == 0
    assert torch.equal(logits(model), expected)
    with pytest.raises(ValueError, match="offloaded"):
        model.dequantize()
    with pytest.raises(ValueError, match="cannot offload to the disk"):
        load(plain_folder, quantization_config=WeightOnlyConfig(bits=4), **places)


def test_two_ranks_give_the_numbers_of_one(plain_folder: Path, tmp_path: Path) -> None:
    """Tensor parallelism in two processes (gloo on CPU), for one scale a row and for groups along the split."""
    cases = []
    for index, settings in enumerate(
        [{"bits": 4}, {"bits": 8, "num_groups": {"o_proj": 4, "down_proj": 2}}, {"bits": 4, "group_size": 16}]
    ):
        folder = quantized_folder(tmp_path / str(index), plain_folder, **settings)
        model = load(folder)
        model(IDS, labels=LABELS).loss.backward()
        expected = {"input_ids": IDS, "labels": LABELS, "logits": logits(model)}
        for name in ("layers.0.input_layernorm", "layers.1.post_attention_layernorm"):
            expected[name] = model.model.get_submodule(name).weight.grad
        torch.save(expected, tmp_path / f"{index}.pt")
        cases += [str(folder), str(tmp_path / f"{index}.pt")]
    odd = quantized_folder(tmp_path / "odd", plain_folder, bits=8, num_groups={"down_proj": 3})
    run_ranks("tensor_parallel_quantized_run.py", plain_folder, odd, *cases)
    for folder in cases[::2]:
        first, second = (load_file(Path(name) / "model.safetensors") for name in (folder, folder + "-saved"))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_device_map_auto_counts_packed_bytes(plain_folder: Path, tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path, plain_folder, bits=4)
    expected = logits(load(folder))
    assert torch.equal(logits(load(folder, device_map="auto")), expected)
    config = WeightOnlyConfig(bits=4)
    model = load(plain_folder, device_map="auto", quantization_config=config)
    assert torch.equal(logits(model), expected)
    quantizer = model.hf_quantizer
    name, weight = "model.layers.0.mlp.up_proj.weight", torch.empty(1)
    assert quantizer.pre_quantized is False
    assert quantizer.param_element_size(model, name, weight) == 0.5
    assert quantizer.param_element_size(model, "model.norm.weight", weight) == 4


# Training and compilation.


def adapted(model: Any) -> Any:
    peft = pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("bits", [4, 8])
def test_one_step_of_lora(plain_folder: Path, bits: int) -> None:
    model = load(plain_folder, quantization_config=WeightOnlyConfig(bits=bits))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits(model)
    with pytest.raises(ValueError, match="adapters"):
        validate_quantization_for_training(model)
    model = adapted(model)
    validate_quantization_for_training(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(IDS, labels=LABELS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    after = {k.replace("base_model.model.", "").replace(".base_layer", ""): v for k, v in model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)


def test_dequantized_weights_take_an_adapter_without_loss(plain_folder: Path) -> None:
    model = adapted(load(plain_folder, quantization_config=WeightOnlyConfig(bits=8)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    expected = logits(model)
    model.base_model.model.dequantize()
    merged = model.merge_and_unload()
    assert type(merged.model.layers[0].self_attn.q_proj) is nn.Linear
    assert (logits(merged) - expected).abs().max() < 2e-5


def test_gradient_checkpointing_changes_no_gradient(plain_folder: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load(plain_folder, quantization_config=WeightOnlyConfig(bits=4)).train()
        model.config.hidden_dropout = model.config.attention_dropout = 0.0
        for module in model.modules():
            if hasattr(module, "dropout"):
                module.dropout = 0.0
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(IDS, labels=LABELS).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert "model.layers.0.input_layernorm.weight" in gradients[0]
    assert not any(name.endswith(("_proj.weight", "_scale")) for name in gradients[0])
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_the_whole_model_compiles(plain_folder: Path) -> None:
    model = load(plain_folder, quantization_config=WeightOnlyConfig(bits=4))
    expected = logits(model)
    assert model.hf_quantizer.is_compileable
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert (compiled(IDS, use_cache=False).logits - expected).abs().max() < 1e-5


def test_dequantize_gives_a_plain_model(plain_folder: Path, tmp_path: Path) -> None:
    model = load(plain_folder, quantization_config=WeightOnlyConfig(bits=4, group_size=32))
    expected = logits(model)
    model.dequantize()
    assert not quantized_names(model)
    assert (logits(model) - expected).abs().max() < 1e-5
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(load(tmp_path)), logits(model))


# Bad input.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"group_size": 48}, r"model\.layers\.0\.self_attn\.q_proj has 64 columns, which group_size=48"),
        ({"num_groups": {"down_proj": 5}}, r"model\.layers\.0\.mlp\.down_proj has 96 columns.*5 groups"),
        ({"bits": 4, "num_groups": {"down_proj": 32}}, "3 columns a group"),
        ({"num_groups": {"dense": 2}}, "num_groups names 'dense'"),
    ],
)
def test_groups_that_do_not_fit_the_model(plain_folder: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(plain_folder, quantization_config=WeightOnlyConfig(**settings))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_damaged_scales_in_a_folder(plain_folder: Path, tmp_path: Path, value: float) -> None:
    folder = quantized_folder(tmp_path, plain_folder, bits=4)
    name = "model.layers.1.mlp.down_proj.weight_scale"
    scale = load_file(folder / "model.safetensors")[name]
    scale[5] = value
    change_tensors(folder, {name: scale})
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.down_proj\.weight_scale.*row 5, group 0"):
        load(folder)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "change",
    [
        lambda q, s: {"": torch.randn(64, 96), "_scale": None},  # not quantized at all
        lambda q, s: {"": q, "_scale": None},
        lambda q, s: {"": None, "_scale": s},
        lambda q, s: {"": q, "_scale": s.repeat(1, 2)},  # another number of groups
        lambda q, s: {"": q[..., :-1, :].contiguous(), "_scale": s},
        lambda q, s: {"": q.view(-1, *q.shape[-2:])[0] if q.ndim == 3 else q[None], "_scale": s},
    ],
)
def test_tensors_that_are_not_what_the_config_says(plain_folder: Path, tmp_path: Path, bits: int, change: Any) -> None:
    folder = quantized_folder(tmp_path, plain_folder, bits=bits)
    name = "model.layers.0.mlp.down_proj.weight"
    state = load_file(folder / "model.safetensors")
    changes = change(state[name], state[name + "_scale"])
    change_tensors(folder, {name + suffix: tensor for suffix, tensor in changes.items()})
    # The newer host refuses shapes itself ("ignore_mismatched_sizes"), the older one leaves them to the quantizer.
    with pytest.raises(
        (ValueError, TypeError, RuntimeError), match=r"layers\.0\.mlp\.down_proj|ignore_mismatched_sizes"
    ):
        load(folder)


def test_integers_stored_as_floats(plain_folder: Path, tmp_path: Path) -> None:
    """The newer host asks the quantizer, which refuses; the older one casts them, and then they must be the same."""
    folder = quantized_folder(tmp_path, plain_folder, bits=4)
    name = "model.layers.0.mlp.down_proj.weight"
    integers = load_file(folder / "model.safetensors")[name]
    change_tensors(folder, {name: integers.float()})
    if hasattr(HfQuantizer, "get_new_dtype"):
        with pytest.raises(TypeError, match=r"layers\.0\.mlp\.down_proj\.weight is torch\.float32"):
            load(folder)
    else:
        assert torch.equal(load(folder).model.layers[0].mlp.down_proj.weight, integers)


def test_integers_where_the_config_wants_floats(plain_folder: Path, tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path, plain_folder, bits=8)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["down_proj"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, RuntimeError), match=r"layers\.0\.mlp\.down_proj|ignore_mismatched_sizes"):
        load(folder)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_folder_whose_config_forgot_that_it_is_quantized(plain_folder: Path, tmp_path: Path, bits: int) -> None:
    folder = quantized_folder(tmp_path, plain_folder, bits=bits)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(folder)
    with pytest.raises(RuntimeError):
        load(folder, quantization_config=WeightOnlyConfig(bits=bits))


def test_weights_that_cannot_be_quantized(plain_folder: Path, tmp_path: Path) -> None:
    model = load(plain_folder)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("inf")
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError):
        load(tmp_path, quantization_config=WeightOnlyConfig(bits=4))


def test_another_method_for_a_quantized_folder(plain_folder: Path, tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path, plain_folder, bits=4)
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model = load(folder, quantization_config=WeightOnlyConfig(bits=8))
    assert model.config.quantization_config.bits == 4
