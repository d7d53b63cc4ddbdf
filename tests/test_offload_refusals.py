"""Layers in main memory: what `set_offload` refuses, and models that it leaves to Accelerate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from hf_glm_ernie import set_offload
from hf_glm_ernie.host_interface import named_cache
from hf_glm_ernie.inference import offload
from hf_glm_ernie.inference.staged_copies import HostBlock
from tests.support.offloading import LAYER_NAMES, in_memory, logits, warnings_of
from tests.support.tiny_models import LAYERS, tiny_model


def test_adapters_that_got_no_values_are_refused() -> None:
    """PEFT puts new adapters where the weights are, which is nowhere while Accelerate has them."""
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(in_memory(tiny_model(), *LAYER_NAMES), config)
    with pytest.raises(ValueError, match=r"layers\.0 holds adapters without values.*set_offload first"):
        set_offload(model, "compute")


def test_caches_that_keep_their_layers_elsewhere_are_refused() -> None:
    model = in_memory(tiny_model(), *LAYER_NAMES)
    set_offload(model, "compute")
    cache = DynamicCache(config=model.config)
    cache.offloading = True
    with pytest.raises(ValueError, match=r"brings its layers to an accelerator by itself.*take 'static'"):
        logits(model, use_cache=True, **named_cache(cache))
    cache = DynamicCache(config=model.config)
    cache.layers = [DynamicSlidingWindowLayer(4) for _ in range(LAYERS)]
    with pytest.raises(ValueError, match=r"DynamicSlidingWindowLayer.*DynamicCache or a StaticCache"):
        logits(model, use_cache=True, **named_cache(cache))


BAD: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    (("both",), ValueError, "way='both' is not one of 'compute', 'copy'"),
    (("compute", 0), ValueError, "rows=0: .* at least 1"),
    (("compute", True), ValueError, "rows=True"),
    (("compute", 1.5), ValueError, r"rows=1\.5"),
    (("copy", 8), ValueError, "rows=8: with way='compute'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        set_offload(tiny_model(), *arguments)


def test_what_is_no_model_or_has_nothing_in_memory(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model is a str"):
        set_offload("glm-130b", "compute")  # type: ignore[arg-type]
    tiny_model().save_pretrained(tmp_path / "model")
    device_map: dict[str, Any] = dict.fromkeys(
        ("model.embed_tokens", "lm_head", "model.norm", "model.rotary_emb"), "cpu"
    )
    device_map |= {name: "disk" if name.endswith("1") else "cpu" for name in LAYER_NAMES}
    on_disk = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    for model in (tiny_model(), on_disk):
        with warnings_of(offload.logger) as seen:
            assert set_offload(model, "compute").layers == ()
        assert "no module of this model is offloaded to main memory" in seen[0]
        assert torch.equal(logits(model), logits(tiny_model()))


def test_a_layer_in_two_places_stays_with_accelerate() -> None:
    model = in_memory(tiny_model(), "model.layers.0", "model.layers.1.mlp", elsewhere=("model.layers.1.self_attn",))
    with warnings_of(offload.logger) as seen:
        assert set_offload(model, "compute").layers == ("model.layers.0",)
    assert "model.layers.1 lie partly" in seen[0]
    assert torch.equal(logits(model), logits(tiny_model()))


def test_weights_of_bitsandbytes_are_refused() -> None:
    model = in_memory(tiny_model(), "model.layers.0", "model.layers.1")
    linear = model.model.layers[1].mlp.up_proj
    linear.weight = type("Int8Params", (nn.Parameter,), {"__module__": "bitsandbytes.nn"})(linear.weight.data)
    with pytest.raises(ValueError, match=r"model\.layers\.1 holds weights that bitsandbytes"):
        set_offload(model, "compute")
    assert model.model.layers[0].mlp.up_proj.weight.is_meta  # nothing was taken over before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is page-locked memory where there is a GPU")
def test_no_page_locked_memory() -> None:
    layer = tiny_model().model.layers[0]
    with pytest.raises(RuntimeError, match=r"no 0 MiB of page-locked memory.*pin=False"):
        HostBlock(layer, pinned=True)
