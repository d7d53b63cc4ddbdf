"""LoRA on a weight that is stored as integers. Needs PEFT, and is imported once PEFT meets such a weight.

What merging means here:

    merged = quantize(dequantize(integers, scales) + delta)

with the format's own rule: scales anew from the largest entry of each row and group, rounded to fp16, then the
integers. So a merged weight moves once more by up to half a step of its new scale, as when it was first quantized, and
an adapter whose entries are small against that step survives only in part: INT8 keeps nearly all of it, INT4 may not.
Keep the adapter beside the base where that matters, or merge into dequantized weights (`model.dequantize()`).

The integers of before are kept while an adapter is merged, and unmerging puts them back bit for bit. Several adapters
are always merged together, from the kept integers: their order does not matter and rounding does not add up.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from .weight_only import WAY_OUT, dequantize, from_storage, holds_integers, quantize, to_storage

try:
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.lora import LoraConfig
    from peft.tuners.tuners_utils import check_adapters_to_merge
except ImportError as error:
    raise ImportError(f"Adapters need PEFT: pip install peft ({error})") from error

# Ways to begin that do not read the weight, and variants whose forward does not.
STARTS = (True, False, "gaussian", "orthogonal", "eva")
VARIANTS = ("ALoraLinearVariant", "MontecloraLinearVariant", "VeloraLinearVariant")


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

    PEFT's own layer becomes one when it takes a linear of integers. Where the linear is dequantized later, this is
    PEFT's own layer again.

    Raises:
        ValueError: a variant of LoRA that needs the weight in floating point (DoRA and others).
    """

    _before: _Before | None = None  # no buffer: it is no part of what is saved

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        """Adds an adapter, as in PEFT."""
        variant, start = self.resolve_lora_variant(config=config), config.init_lora_weights
        reads = variant is not None and type(variant).__name__ not in VARIANTS
        if holds_integers(self.get_base_layer()) and (reads or start not in STARTS):
            what = type(variant).__name__ if reads else f"init_lora_weights={start!r}"
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
            ValueError: the sum holds values that are not finite or too large for fp16; the adapter is of a variant
                whose sum is another; or the weight is offloaded or split over ranks.
        """
        base: Any = self.get_base_layer()
        if not holds_integers(base):
            super().merge(safe_merge, adapter_names)
            return
        names = [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.lora_A]
        if not names:
            return
        self._check_merging(names)
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

    def _check_merging(self, names: list[str]) -> None:
        weight = self.get_base_layer().weight
        if type(weight.data) is not torch.Tensor or weight.device.type == "meta":
            raise ValueError(
                "The integers of this layer are offloaded or split over several ranks: merge in one process that "
                "holds the whole model, then save."
            )
        for name in names:
            if name in self.lora_variant:
                raise ValueError(
                    f"The adapter {name!r} is a {type(self.lora_variant[name]).__name__}, which cannot merge into "
                    f"integers. {WAY_OUT}"
                )

    @torch.no_grad()
    def unmerge(self) -> None:
        """Puts the integers of before back, bit for bit."""
        base: Any = self.get_base_layer()
        if self._before is None:
            if self.merged and not holds_integers(base):
                super().unmerge()
            else:
                warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        before, self._before = self._before, None
        if holds_integers(base):
            _put(base, before.weight, before.scale, before.bias, before.repacked)
        else:  # dequantized while the adapter was merged
            base.weight.data = before.values().to(base.weight)
            if before.bias is not None:
                base.bias.data = before.bias.to(base.bias)
        self.merged_adapters.clear()


__all__ = ["WeightOnlyLoraLinear"]
