"""The planner on ERNIE 3.0's unified models: bytes of both stacks and their memories against real ones."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_glm_ernie import (
    Ernie3ForCausalLM,
    Ernie3ForMaskedLM,
    Ernie3ForMultipleChoice,
    Ernie3ForPreTraining,
    Ernie3ForQuestionAnswering,
    Ernie3ForSequenceClassification,
    Ernie3ForTokenClassification,
    Ernie3Model,
)
from hf_glm_ernie.__main__ import main
from hf_glm_ernie.planner.devices import PRESETS, plan
from hf_glm_ernie.planner.sizes import model_on_meta, module_bytes
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from tests.support import tiny_ernie3
from tests.support.devices import bytes_held, measured_peak, saved

UNIFIED: tuple[Any, ...] = (
    Ernie3ForCausalLM,
    Ernie3ForMaskedLM,
    Ernie3ForMultipleChoice,
    Ernie3ForPreTraining,
    Ernie3ForQuestionAnswering,
    Ernie3ForSequenceClassification,
    Ernie3ForTokenClassification,
    Ernie3Model,
)
UNIFIED_WIDE = {"hidden_size": 256, "intermediate_size": 704, "branch_hidden_size": 96, "max_position_embeddings": 300}
TEXTS: dict[str, dict[str, Any]] = {
    "absolute": {},
    "relative": {"position_embedding_type": "relative"},
    "types": {"position_embedding_type": "relative", "type_vocab_size": 2},
}


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("model_class", UNIFIED)
def test_weights_of_the_unified_models(model_class: Any, bits: int | None, tmp_path: Path) -> None:
    folder = saved(tiny_ernie3.tiny_model(model_class, num_soft_prompt_genres=2), tmp_path)
    quantized = {} if bits is None else {"quantization_config": WeightOnlyConfig(bits=bits)}
    model = model_class.from_pretrained(folder, device_map="cpu", **quantized)
    planned = plan(folder, cpu="4GiB", reserve=0, bits=bits, dtype="float32").devices[0]
    assert planned.weights == bytes_held(model)
    assert planned.activations > 0
    assert bool(planned.cache) == ("nlg" in model.base_model.branches)


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_cache_of_both_stacks_and_the_memories(texts: dict[str, Any], batch: int) -> None:
    model = tiny_ernie3.tiny_model(Ernie3ForCausalLM, **texts)
    ids = tiny_ernie3.random_ids(batch, 20)
    memories = model(ids, return_memories=True).memories
    out = model.generate(
        ids, memories=memories, min_new_tokens=12, max_new_tokens=12, do_sample=False, return_dict_in_generate=True
    )
    held = [tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)]
    assert held[0].shape[-2] == tiny_ernie3.MEMORY + 31  # the last token is not read again
    held += memories.states
    planned = plan(model.config, cpu="4GiB", context=31, batch=batch, dtype="float32").devices[0]
    assert planned.cache == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize(
    ("texts", "bits"),
    [(TEXTS["absolute"], bits) for bits in (None, 8, 4)] + [(TEXTS["relative"], None), (TEXTS["types"], 4)],
)
@pytest.mark.parametrize(("batch", "context"), [(1, 256), (4, 128)])
def test_activations_of_a_text_behind_its_memories(
    texts: dict[str, Any], bits: int | None, batch: int, context: int, tmp_path: Path
) -> None:
    """Three layers of 256 and two of 96 in fp32, `sdpa`, on CPU."""
    folder = saved(tiny_ernie3.tiny_model(Ernie3ForCausalLM, **UNIFIED_WIDE, **texts), tmp_path)
    quantized = {} if bits is None else {"quantization_config": WeightOnlyConfig(bits=bits)}
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **quantized)
    ids = tiny_ernie3.random_ids(batch, context)
    with torch.no_grad():
        memories = model(ids, return_memories=True).memories
    options = {"use_cache": True, "logits_to_keep": 1, "return_memories": False}
    peak, output = measured_peak(model, {"input_ids": ids, "memories": memories, **options})
    cached = [tensor for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values)]
    states = sum(state.nbytes for state in memories.states)  # these were there before
    planned = plan(model.config, cpu="4GiB", context=context, batch=batch, dtype="float32").devices[0]
    assert planned.cache == sum(tensor.nbytes for tensor in cached) + states
    # The peak lies in the universal stack, before the branch has filled its part of the cache.
    later = sum(tensor.nbytes for tensor in cached[-2 * tiny_ernie3.BRANCH_LAYERS :])
    # Relative distances are each row's own, since padding may make them differ; the plan has one row's. 5% seen.
    tolerance = 0.06 if texts else 0.01
    assert planned.activations + planned.cache - states - later == pytest.approx(peak, rel=tolerance)


def test_released_sizes_of_the_unified_models() -> None:
    """The counts of section 3 of both papers with one branch."""
    for name, billions in (("ernie3-10b", 9.914), ("ernie3-titan", 261.5)):
        whole = plan(name, "1x1000GiB", dtype="float16").devices[0]
        assert whole.weights / 2e9 == pytest.approx(billions, rel=1e-3)
        config = PRESETS[name]
        widths = 48 * config.hidden_size + 12 * 768
        assert whole.cache == 2 * (2 * (2048 + 128) + 128) * widths  # fp16: keys, values, and the states remembered


@pytest.mark.parametrize(
    ("model", "devices", "bits", "fits"),
    [
        ("ernie3-10b", "4x24GiB", 4, True),
        ("ernie3-10b", "2x12GiB", None, True),
        ("ernie3-titan", "4x24GiB", 4, False),
        ("ernie3-titan", "8x80GiB", None, True),
    ],
)
def test_layers_of_both_stacks_are_placed_whole(model: str, devices: str, bits: int | None, fits: bool) -> None:
    planned = plan(model, devices, bits)
    assert planned.fits == fits
    assert ("without a place: ernie3.encoder.layers" in planned.describe()) != fits
    held = sum(device.weights for device in planned.devices) + sum(planned.missing.values())
    assert held == module_bytes(model_on_meta(planned.job))[0][""]
    placed = [module for device in planned.devices for module in device.modules] + [*planned.missing]
    assert not [module for module in placed if re.search(r"layers\.\d+\.", module)]
    if bits:
        billions = {"ernie3-10b": 9.914, "ernie3-titan": 261.5}[model]
        assert held / 2e9 == pytest.approx(billions * bits / 16, rel=0.06)  # the embedding stays in fp16
    if fits:
        assert planned.device_map is not None
        assert set(planned.device_map) == set(placed)


def test_tensor_parallel_of_the_unified_models() -> None:
    """Both stacks' heads have to be shared: 64 (192 in Titan) and 12."""
    planned = plan("ernie3-titan", "4x80GiB", 8, tensor_parallel=True)
    assert planned.fits
    assert len({(device.weights, device.cache) for device in planned.devices}) == 1
    # INT8; embeddings are on every rank
    assert planned.devices[0].weights == pytest.approx(261.5e9 / 4, rel=0.02)
    with pytest.raises(ValueError, match=r"64 and 12 attention heads .* 8 devices.*: 2, 4"):
        plan("ernie3-10b", "8x24GiB", tensor_parallel=True)


def test_command_knows_the_unified_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "ernie3-10b", "--bits", "4", "--devices", "4x24GiB"]) == 0
    text = capsys.readouterr().out
    assert ast.literal_eval(text.partition("device_map = ")[2]) == plan("ernie3-10b", "4x24GiB", 4).device_map
