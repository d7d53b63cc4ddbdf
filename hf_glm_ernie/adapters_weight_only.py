"""LoRA on weights that are stored as integers: merging, unmerging, and opening adapters with checks. Needs PEFT.

Without this module PEFT trains adapters on a `WeightOnlyLinear` and refuses to merge them: integers cannot take the
sum. What merging means here:

    merged = quantize(dequantize(integers, scales) + delta)

with the format's own rule: scales anew from the largest entry of each row and group, rounded to fp16, then the
integers. So a merged weight moves once more by up to half a step of its new scale, as when it was first quantized, and
an adapter whose entries are small against that step survives only in part: INT8 keeps nearly all of it, INT4 may not.
Keep the adapter beside the base where that matters, or merge into dequantized weights (`model.dequantize()`).

The integers of before are kept while an adapter is merged, and unmerging puts them back bit for bit. Several adapters
are always merged together, from the kept integers: their order does not matter and rounding does not add up.

A model from the Hub may bring its own copy of `WeightOnlyLinear`, so the class is known by its name and used through
its public attributes.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .weight_only import dequantize, from_storage, quantize, to_storage

try:
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.lora import LoraConfig
    from peft.tuners.tuners_utils import check_adapters_to_merge
    from safetensors import safe_open
except ImportError as error:
    raise ImportError(f"Adapters need PEFT: pip install 'hf-glm-ernie[peft]' ({error})") from error


# What the settings of virtual tokens, which fit any model of the same width, say of the model they were made for.
SIZES_IN_FRONT = {
    "num_layers": "num_hidden_layers",
    "token_dim": "hidden_size",
    "num_attention_heads": "num_attention_heads",
}


@dataclass(frozen=True)
class _Before:
    """What a layer held before an adapter was merged."""

    weight: torch.Tensor  # stored integers in the released order
    scale: torch.Tensor
    bias: torch.Tensor | None
    bits: int
    repacked: bool

    def values(self) -> torch.Tensor:
        """(N, K) fp32."""
        return dequantize(from_storage(self.weight, self.bits), self.scale.half())


def _keep(base: Any) -> _Before:
    repacked = base.layout != "released"
    if repacked:
        base.unpack()
    bias = None if base.bias is None else base.bias.detach().clone()
    before = _Before(base.weight.detach().clone(), base.weight_scale.detach().clone(), bias, base.bits, repacked)
    if repacked:  # should merging fail, nothing has changed
        base.repack()
    return before


def _put(base: Any, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, repack: bool) -> None:
    if base.layout != "released":
        base.unpack()
    device = base.weight.device
    # Copies: a second merge starts from the kept tensors again.
    base.weight.data, base.weight_scale.data = weight.to(device).clone(), scale.to(device).clone()
    if bias is not None:
        base.bias.data = bias.to(device).clone()
    if repack:
        base.repack()


class WeightOnlyLoraLinear(LoraLinear):
    """A LoRA adapter on a `WeightOnlyLinear`; see the top of the file for what merging does.

    Raises:
        ValueError: a variant of LoRA that needs the weight in floating point (DoRA and others).
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any):
        super().__init__(base_layer, adapter_name, config=config, **kwargs)
        self._before: _Before | None = None  # no buffer: it is no part of what is saved

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        """Adds an adapter, as in PEFT."""
        variant, start = self.resolve_lora_variant(config=config), config.init_lora_weights
        if variant is not None or start not in (True, False, "gaussian", "orthogonal"):
            what = f"init_lora_weights={start!r}" if variant is None else type(variant).__name__
            raise ValueError(
                f"The adapter {adapter_name!r} uses {what}, which reads the weight, and this layer holds integers. "
                "Take plain LoRA (init_lora_weights=True), or dequantize the model first (model.dequantize())."
            )
        super().update_layer(adapter_name, r, lora_alpha, config=config, **kwargs)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merges adapters into the integers.

        Args:
            safe_merge: As in PEFT. Merging is always safe here: what is not finite is refused before anything changes.
            adapter_names: Those to merge; `None`: the active ones.

        Raises:
            ValueError: the sum holds values that are not finite or too large for fp16; or the weight is offloaded or
                split over ranks.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.lora_A]
        if not names:
            return
        base: Any = self.get_base_layer()
        if type(base.weight.data) is not torch.Tensor or base.weight.device.type == "meta":
            raise ValueError(
                "The integers of this layer are offloaded or split over several ranks: merge in one process that "
                "holds the whole model, then save."
            )
        before = self._before or _keep(base)
        weight, bias = before.values(), before.bias
        for name in [*self.merged_adapters, *names]:
            weight += self.get_delta_weight(name).to(weight)
            if self.lora_bias[name]:
                if bias is None:
                    raise ValueError(f"The adapter {name!r} has a bias and the layer has none: it cannot be merged.")
                bias = bias + (self.lora_B[name].bias * self.scaling[name]).to(bias)
        integers, scale = quantize(weight, base.bits, base.num_groups)
        self._before = before
        _put(base, to_storage(integers, base.bits), scale, bias, before.repacked)
        self.merged_adapters += names

    @torch.no_grad()
    def unmerge(self) -> None:
        """Puts the integers of before back, bit for bit."""
        if self._before is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        before, self._before = self._before, None
        _put(self.get_base_layer(), before.weight, before.scale, before.bias, before.repacked)
        self.merged_adapters.clear()


def merging_into_integers(config: LoraConfig, model: nn.Module) -> LoraConfig:
    """Tells a LoRA config how to merge into the integers of a model; to be called before `get_peft_model`.

    Args:
        config: Changed in place. What it is told is not saved: an adapter that is opened needs it again
            ([`load_adapter`] does it).
        model: With or without quantized layers.

    Returns:
        The config.

    ```python
    >>> from peft import LoraConfig, get_peft_model

    >>> config = merging_into_integers(LoraConfig(task_type="CAUSAL_LM"), model)
    >>> adapted = get_peft_model(model, config)
    ```
    """
    classes = {type(module) for module in model.modules() if type(module).__name__ == "WeightOnlyLinear"}
    if classes:
        config._register_custom_module(dict.fromkeys(classes, WeightOnlyLoraLinear))
    return config


def load_adapter(model: nn.Module, folder: str | Path, trainable: bool = False) -> PeftModel:
    """Opens a saved adapter on a model, and makes sure that it belongs to it.

    PEFT refuses tensors of other shapes, but only warns where an adapter has too few of them or too many, as one for a
    model with another number of layers has.

    Args:
        model: The model it was made for; changed in place.
        folder: What `save_pretrained` of the adapted model wrote.
        trainable: Whether training goes on.

    Returns:
        The adapted model, which can merge where the model's weights are integers.

    Raises:
        FileNotFoundError: there is no adapter in the folder.
        ValueError: it was made for another model, or virtual tokens are to be trained on.
    """
    folder = Path(folder)
    files = [folder / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"There is no adapter in {folder}: {' and '.join(missing)} missing.")
    config = PeftConfig.from_pretrained(str(folder))
    if trainable and config.is_prompt_learning:
        raise ValueError(
            f"The adapter in {folder} is made of virtual tokens, which PEFT opens for use only. To go on training, "
            "resume from a checkpoint of the Trainer."
        )
    if isinstance(config, LoraConfig):
        merging_into_integers(config, model)
    for of_adapter, of_model in SIZES_IN_FRONT.items() if config.is_prompt_learning else ():
        sizes = getattr(config, of_adapter), getattr(model.config, of_model)  # type: ignore[union-attr]  # a model
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{_another_model(folder, config, model)} Its {of_adapter} is {sizes[0]} and the model's {of_model} "
                f"{sizes[1]}."
            )
    with safe_open(files[1], framework="pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, config=config)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{_another_model(folder, config, model)} {str(error)[:300]}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    if expected != saved:
        odd = sorted(expected.items() ^ saved.items())
        raise ValueError(
            f"{_another_model(folder, config, model)} The adapter has {len(saved)} tensors and the model takes "
            f"{len(expected)}; the first that differs is {odd[0][0]} {odd[0][1]}."
        )
    return adapted


def _another_model(folder: Path, config: PeftConfig, model: nn.Module) -> str:
    base = config.base_model_name_or_path or "a model without a name"
    return f"The adapter in {folder} was made for {base} and does not fit this {type(model).__name__}."


__all__ = ["WeightOnlyLoraLinear", "load_adapter", "merging_into_integers"]
