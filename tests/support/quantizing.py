"""Every library that quantizes, by one name each."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
)

from examples import quantize


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}, which is not installed")


NEEDS = {"bnb": needs("bitsandbytes"), "torchao": needs("torchao"), "peft": needs("peft"), "weight": ()}


METHODS = [
    pytest.param(method, marks=NEEDS[method.split("-")[0]])
    for method in ("bnb-fp4", "bnb-nf4", "bnb-int8", "torchao-int8")
]


def configuration(method: str, keep: list[str] | None, dtype: torch.dtype = torch.float32) -> Any:
    if method == "bnb-fp4":
        return BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=keep)
    return quantize.quantization_config(method, keep, dtype)


def load(folder: Path, method: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Quantized while loading, with everything outside the layers kept, as the example does it."""
    model_class, keep = quantize.model_class_and_linears_outside_layers(folder)
    return model_class.from_pretrained(folder, quantization_config=configuration(method, keep, dtype), dtype=dtype)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def quantized_names(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (type(module) is not nn.Linear or type(module.weight.data) is not torch.Tensor)
    ]


def stored_bits(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a model holds outside its adapters, quantized weights taken apart into their plain tensors."""
    parts: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if "lora_" in name or "modules_to_save" in name:
            continue
        if type(value) is not torch.Tensor and hasattr(value, "__tensor_flatten__"):
            for part in value.__tensor_flatten__()[0]:
                parts[f"{name}.{part}"] = getattr(value, part).clone()
        elif isinstance(value, torch.Tensor):
            parts[name] = value.detach().clone()
    return parts


def without_fused_kernel(model: nn.Module) -> nn.Module:
    """The remedy that the document gives at its end."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
