"""Models spread over devices by the host: the numbers of one device, offloaded or not, and no layer in two places."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, ErnieConfig, ErnieForMaskedLM, ErnieModel
from transformers.integrations.accelerate import compute_module_sizes, infer_auto_device_map

from hf_glm_ernie import ErnieUIEConfig, ErnieUTCConfig
from hf_glm_ernie.planner import plan
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from tests.support.devices import check_layers_whole
from tests.support.tiny_models import GMASK, MASK, PAD, SOP, tiny_model

ERNIE: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "type_vocab_size": 4,
    "task_type_vocab_size": 3,
    "use_task_id": True,
}
GLM_INPUTS = {
    "input_ids": torch.tensor([[9, 8, MASK, 7, 6, SOP], [PAD, PAD, 9, 8, GMASK, SOP]]),
    "attention_mask": torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]),
}
ERNIE_INPUTS = {
    "input_ids": torch.tensor([[1, 9, 8, 7, 2], [1, 5, 2, 0, 0]]),
    "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]),
}
UTC_INPUTS = ERNIE_INPUTS | {"omask_positions": torch.tensor([[1, 3], [1, 0]]), "cls_positions": torch.tensor([0, 0])}

# name, the class to load with, the model, its inputs, the output that is compared
MODELS: list[tuple[str, Any, Any, dict[str, torch.Tensor], str]] = [
    ("glm130b", AutoModelForCausalLM, tiny_model, GLM_INPUTS, "logits"),
    ("ernie", ErnieModel, lambda: ErnieModel(ErnieConfig(**ERNIE)), ERNIE_INPUTS, "last_hidden_state"),
    ("ernie_mlm", ErnieForMaskedLM, lambda: ErnieForMaskedLM(ErnieConfig(**ERNIE)), ERNIE_INPUTS, "logits"),
    ("ernie_uie", AutoModel, lambda: AutoModel.from_config(ErnieUIEConfig(**ERNIE)), ERNIE_INPUTS, "start_logits"),
    ("ernie_utc", AutoModel, lambda: AutoModel.from_config(ErnieUTCConfig(**ERNIE)), UTC_INPUTS, "logits"),
]


def values(model: nn.Module, inputs: dict[str, torch.Tensor], output: str) -> torch.Tensor:
    with torch.no_grad():
        return getattr(model(**inputs), output)


@pytest.mark.parametrize("share", [0.45, 0.7])
@pytest.mark.parametrize("family", MODELS, ids=[name for name, *_ in MODELS])
def test_offloaded_to_disk_gives_the_same_numbers(family: Any, share: float, tmp_path: Path) -> None:
    _, loader, make, inputs, output = family
    model = make().eval()
    expected = values(model, inputs, output)
    model.save_pretrained(tmp_path / "model")
    room = int(compute_module_sizes(model)[0][""] * share)
    spread = loader.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": room},
        offload_folder=tmp_path / "offload",
    )
    assert "disk" in spread.hf_device_map.values()
    # The same weights through the same kernels, but at other addresses: 1e-8 seen.
    torch.testing.assert_close(values(spread, inputs, output), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_generation_with_offload_gives_the_same_ids(bits: int | None, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "float")
    quantized = {} if bits is None else {"quantization_config": WeightOnlyConfig(bits=bits)}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float", **quantized)
    model.save_pretrained(tmp_path / "model")
    room = int(compute_module_sizes(model)[0][""] * 0.8) + 60_000
    planned = plan(tmp_path / "model", cpu=f"{room}B", disk=True, reserve=0, context=16)
    assert planned.fits
    assert planned.offloaded
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=planned.device_map, offload_folder=tmp_path / "offload"
    )
    assert spread.hf_device_map == planned.device_map
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": PAD}
    assert torch.equal(spread.generate(**GLM_INPUTS, **options), model.generate(**GLM_INPUTS, **options))
    torch.testing.assert_close(
        values(spread, GLM_INPUTS, "logits"), values(model, GLM_INPUTS, "logits"), rtol=0, atol=1e-6
    )


# Left to itself, the host fails on the masked language model where its head does not fit whole (a tied bias beside
# the linear); the planner does not split that head.
SPLIT_BY_HOST = [family for family in MODELS if family[0] != "ernie_mlm"]


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("family", SPLIT_BY_HOST, ids=[name for name, *_ in SPLIT_BY_HOST])
def test_the_host_splits_no_layer(family: Any, devices: int, share: float) -> None:
    """On the meta device, where devices that are not here can be planned for."""
    config = family[2]().config
    with torch.device("meta"):
        model = (AutoModelForCausalLM if family[0] == "glm130b" else AutoModel).from_config(config)
    total = compute_module_sizes(model)[0][""]
    memory = dict.fromkeys(range(devices), int(total * share)) | {"cpu": total // 3}
    device_map = infer_auto_device_map(model, memory, set(model._no_split_modules))
    check_layers_whole(model, device_map)
    assert len(set(device_map.values())) > 1 or share == 0.8


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("family", MODELS, ids=[name for name, *_ in MODELS])
def test_the_planner_splits_no_layer(family: Any, share: float) -> None:
    model = family[2]()
    room = int(compute_module_sizes(model)[0][""] * share) + 100_000
    model.config.architectures = [type(model).__name__]
    planned = plan(model.config, [f"{room}B"] * 3, cpu="1GiB", reserve=0, context=16)
    assert planned.fits
    assert planned.device_map is not None
    check_layers_whole(model, planned.device_map)


def test_a_device_map_by_hand(tmp_path: Path) -> None:
    model = tiny_model()
    expected = values(model, GLM_INPUTS, "logits")
    model.save_pretrained(tmp_path / "model")
    device_map = {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    device_map |= {f"model.layers.{i}": "disk" if i == 1 else "cpu" for i in range(3)}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    torch.testing.assert_close(values(spread, GLM_INPUTS, "logits"), expected, rtol=0, atol=1e-6)
    assert spread.model.layers[1].mlp.up_proj.weight.device.type == "meta"
