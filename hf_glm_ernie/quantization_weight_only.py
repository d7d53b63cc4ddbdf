"""The host's side of weight-only integers: a quantization config and the quantizer behind `from_pretrained`.

`from_pretrained(folder, quantization_config=WeightOnlyConfig(bits=4))` quantizes while it loads, one tensor after the
other; a folder saved from such a model says so in its config.json and loads without an argument. Importing this module
registers both with the host.

Which linears are quantized: those inside a list of layers (`torch.nn.ModuleList`), except what the host keeps (output
projections and what is tied to an embedding) and what `modules_to_not_convert` names. So embeddings, poolers and
task heads keep their precision: they stand outside the layers, are few, and what they compute is seen directly.

The host checks loaded tensors against the model, but not in a quantized model in every version, and it never looks at
their values. So the quantizer does, after loading: shapes, dtypes, scales, and that nothing is missing.
"""

import difflib
import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from .weight_only import METHOD, check_bits, check_groups, check_scales, quantize, storage_shape, to_storage
from .weight_only_cpu import cpu_kernel_is_ready
from .weight_only_linear import WeightOnlyLinear

logger = logging.get_logger(__name__)

# A plan entry under which the host leaves a parameter whole on every rank; it has this name in all versions.
REPLICATED = "replicated_with_grad_allreduce"


NOT_TO_DISK = (
    "Quantizing while loading cannot offload to the disk: the host would go on reading the unquantized files. Load "
    "without 'disk', save, and load the quantized folder with it."
)


class WeightOnlyConfig(QuantizationConfigMixin):
    """How weights are stored as integers; pass it to `from_pretrained` as `quantization_config`.

    Args:
        bits: 4 or 8.
        group_size: Columns that share a scale, in every module that `num_groups` does not name. `None`: one scale a
            row, as released.
        num_groups: Name of a module, or the end of it (`"o_proj"`), to the number of groups its columns are cut into.
            Merged tensor-parallel checkpoints have as many as there were ranks in the weights that were split along
            their input.
        modules_to_not_convert: Modules to leave as they are beside those that always stay (see above); names, their
            beginnings or ends.
        quant_method: What the host writes into the saved dict, `"weight_only_int"`; no choice.

    Raises:
        TypeError: an argument that is none of these.
        ValueError: bits that the format does not have, groups that are not positive whole numbers, modules that are
            no names, or another `quant_method`.

    ```python
    >>> from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig

    >>> WeightOnlyConfig(bits=4, group_size=128).groups_of("model.layers.0.mlp.up_proj", in_features=12288)
    96
    ```
    """

    def __init__(
        self,
        bits: int = 4,
        group_size: int | None = None,
        num_groups: dict[str, int] | None = None,
        modules_to_not_convert: list[str] | None = None,
        quant_method: str = METHOD,
    ):
        if quant_method != METHOD:
            raise ValueError(f"quant_method={quant_method!r} is another format; this config is for {METHOD!r}.")
        self.quant_method = METHOD  # type: ignore[assignment]  # the host's own methods are members of an enum
        self.bits = bits
        self.group_size = group_size
        self.num_groups = num_groups
        self.modules_to_not_convert = modules_to_not_convert
        check_bits(bits)
        if group_size is not None and not _is_positive(group_size):
            raise ValueError(f"group_size={group_size!r} must be a positive whole number of columns, or None.")
        if num_groups is not None and not (
            isinstance(num_groups, dict) and all(isinstance(k, str) and _is_positive(v) for k, v in num_groups.items())
        ):
            raise ValueError(
                f"num_groups={num_groups!r} must map names of modules to positive whole numbers, such as "
                "{'o_proj': 8, 'down_proj': 8}, or be None."
            )
        if modules_to_not_convert is not None and not (
            isinstance(modules_to_not_convert, list | tuple | set)
            and all(isinstance(name, str) for name in modules_to_not_convert)
        ):
            raise ValueError(
                f"modules_to_not_convert={modules_to_not_convert!r} must be a list of names of modules, or None."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A config from the dict that one was saved as.

        Args:
            config_dict: As `to_dict` gives it, or as the host reads it from config.json. What it holds beside the
                known settings, as a later version may have written it, is kept with a warning and not used.
            return_unused_kwargs: As in the host.
            **kwargs: As in the host: replace settings; others are returned as unused.

        Raises:
            ValueError: a name that is close to a setting that is missing: a slip of the pen, no later version.
        """
        known = list(inspect.signature(cls).parameters)
        unknown = {name: value for name, value in config_dict.items() if name not in known}
        for name in unknown:
            meant = difflib.get_close_matches(name, [one for one in known if one not in config_dict])
            if meant:
                raise ValueError(
                    f"The quantization config has {name}={config_dict[name]!r} and no {meant[0]}. Its settings are "
                    f"{', '.join(known)}: write {meant[0]}."
                )
        if unknown:
            logger.warning(
                f"The quantization config has settings that this version does not know and does not use: "
                f"{', '.join(sorted(unknown))}. A later version may have written them; what it computes may differ."
            )
        config = cls(**{name: value for name, value in config_dict.items() if name in known})
        vars(config).update(unknown)
        unused = config.update(**kwargs)
        return (config, unused) if return_unused_kwargs else config

    def groups_of(self, name: str, in_features: int) -> int:
        """Number of groups of a module.

        Args:
            name: Its full name.
            in_features: Its columns.

        Returns:
            Groups.

        Raises:
            ValueError: groups that do not divide the columns.
        """
        for suffix, groups in (self.num_groups or {}).items():
            if _ends_with(name, suffix):
                check_groups(in_features, groups, self.bits, name)
                return groups
        if self.group_size is None:
            groups = 1
        elif in_features % self.group_size:
            raise ValueError(
                f"{name} has {in_features} columns, which group_size={self.group_size} does not divide. Choose a size "
                "that does, give the module its own number of groups in num_groups, or name it in "
                "modules_to_not_convert."
            )
        else:
            groups = in_features // self.group_size
        check_groups(in_features, groups, self.bits, name)
        return groups


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


class WeightOnlyQuantize(ConversionOps):
    """Turns one loaded weight into integers and scales."""

    def __init__(self, hf_quantizer: "WeightOnlyQuantizer"):
        self.hf_quantizer = hf_quantizer

    @torch.no_grad()
    def convert(  # type: ignore[override]  # of the host's arguments only these matter
        self, input_dict: dict[str, Any], full_layer_name: str, model: PreTrainedModel, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """`{name: [weight]}` to `{name: integers, name + "_scale": scales}`."""
        (value,) = input_dict.values()
        weight = value[0] if isinstance(value, list) else value
        module, _ = get_module_from_name(model, full_layer_name)
        if weight.dtype == torch.int8:
            raise TypeError(
                f"{full_layer_name} is torch.int8 in the checkpoint: it is quantized already, and its config.json "
                "does not say so. Load the folder with the config.json it was written with."
            )
        if weight.shape != (module.out_features, module.in_features):
            raise ValueError(
                f"{full_layer_name} has shape {tuple(weight.shape)} in the checkpoint and "
                f"{(module.out_features, module.in_features)} in the model."
            )
        try:
            q, scale = quantize(weight, module.bits, module.num_groups)
        except ValueError as error:
            raise ValueError(f"{full_layer_name}: {error}") from error
        return {full_layer_name: to_storage(q, module.bits), full_layer_name + "_scale": scale}


class WeightOnlyQuantizer(HfQuantizer):
    """Replaces linears by [`WeightOnlyLinear`], quantizes or fills them, checks what was loaded."""

    quantization_config: WeightOnlyConfig
    requires_calibration = False
    serialized_names = {"weight": ["weight", "weight_scale"]}

    # Before loading.

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuses what can be seen to fail before anything is read."""
        if not self.pre_quantized and isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(NOT_TO_DISK)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        config = self.quantization_config
        ranks = _tensor_parallel_ranks(model)
        if ranks > 1 and not self.pre_quantized:
            raise ValueError(
                "Quantizing while loading does not go together with tensor parallelism: each rank would quantize its "
                "own slice. Load and save once without it, then load the quantized folder with tensor parallelism."
            )
        names = self.modules_to_convert(model)
        if not names:
            logger.warning("No module was quantized: this model has no linear inside a list of layers to convert.")
        for suffix in config.num_groups or {}:
            if names and not any(_ends_with(name, suffix) for name in names):
                raise ValueError(
                    f"num_groups names {suffix!r}, but no quantized module is called so. Quantized: {_listed(names)}."
                )
        for name in names:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            new = WeightOnlyLinear(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                config.bits,
                config.groups_of(name, linear.in_features),
                device="meta",
                dtype=linear.weight.dtype,
            )
            if not self.pre_quantized:
                # An older host casts what it reads to the dtype of the parameter before it is quantized.
                new.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
            model.set_submodule(name, new)
            _plan_scales(model, name, new.num_groups, ranks)
        return model

    def modules_to_convert(self, model: PreTrainedModel) -> list[str]:
        """Names of the linears of a model that are quantized."""
        keep = self.get_modules_to_not_convert(
            model,
            self.quantization_config.modules_to_not_convert,
            list(getattr(model, "_keep_in_fp32_modules", None) or []),
            add_default_skips=True,
        )
        lists = [name + "." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        return [
            name
            for name, module in model.named_modules()
            if type(module) is nn.Linear and name.startswith(tuple(lists)) and should_convert_module(name, keep)
        ]

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether a tensor of an unquantized checkpoint becomes integers."""
        if self.pre_quantized:
            return False
        module, tensor_name = get_module_from_name(model, param_name)
        return isinstance(module, WeightOnlyLinear) and tensor_name == "weight"

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """The dtype to cast a loaded tensor to: floats are not made integers, but refused after loading."""
        if dtype == torch.int8:
            return None
        return super().get_new_dtype(converter, param, dtype)

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: torch.Tensor) -> float:
        """Bytes an element takes once it is loaded, for automatic device maps."""
        if self.param_needs_quantization(model, param_name):
            return self.quantization_config.bits / 8
        return param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        """What the host runs on a weight to quantize."""
        return WeightOnlyQuantize(self)

    # After loading.

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for name, module in model.named_modules():
            if isinstance(module, WeightOnlyLinear):
                if (
                    not self.pre_quantized
                    and module.weight.device.type == "meta"
                    and module.weight.is_floating_point()
                ):
                    raise ValueError(f"{name} is to lie on the disk. {NOT_TO_DISK}")
                _check_loaded(name, module)
                module.weight.requires_grad_(False)
                module.weight_scale.requires_grad_(False)
            elif type(module) is nn.Linear:
                _check_plain(name, module)
        map_of_devices = getattr(model, "hf_device_map", None) or {}
        on_others = set(map(str, map_of_devices.values())) - {"cpu", "disk"}  # beside which "cpu" is only a store
        if not on_others and any(
            isinstance(m, WeightOnlyLinear) and m.weight.device.type == "cpu" for m in model.modules()
        ):
            cpu_kernel_is_ready()  # now is the time to compile it, not the first product
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
        for name, module in list(model.named_modules()):
            if isinstance(module, WeightOnlyLinear):
                if module.weight.device.type == "meta":
                    raise ValueError(
                        f"{name} is offloaded, so there is nothing here to dequantize. Load without offload "
                        "(a device_map without 'disk' and 'cpu' beside a GPU), then dequantize."
                    )
                model.set_submodule(name, module.to_linear(dtype))
        return model

    # Saving.

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[None, dict[str, str]]:
        """Undoes [`repack`] in place, so that saving needs no second copy of the weights."""
        for module in model.modules():
            if isinstance(module, WeightOnlyLinear) and module.layout != "released":
                module.unpack()
        return None, {}

    def is_serializable(self, **kwargs: Any) -> bool:
        """Whether `save_pretrained` can store the quantized model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters on top can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether `torch.compile` works on the quantized model."""
        return True


def repack(model: nn.Module) -> int:
    """Brings the 4-bit weights of a model on CPU into the order that torch's bf16 operator reads.

    For many small batches in bf16, such as generation: they then cost a fraction of a bf16 model's. It takes about as
    long as reading the weights a few times, which is why loading does not do it. `save_pretrained` brings the
    released order back; call it again after that. Only where the kernel of `weight_only_cpu.py` cannot be compiled:
    beside it, which is faster and reads the released order, nothing is done.

    Args:
        model: Any module; what cannot be brought into that order stays as it is and works.

    Returns:
        How many of its linears lie that way now.
    """
    if cpu_kernel_is_ready():
        return 0
    return sum(module.repack() for module in model.modules() if isinstance(module, WeightOnlyLinear))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _tensor_parallel_ranks(model: PreTrainedModel) -> int:
    distributed = getattr(model.config, "distributed_config", None)
    if isinstance(distributed, dict):
        return int(distributed.get("tp_size") or 1)
    return int(getattr(distributed, "tp_size", None) or 1)


def _plan_scales(model: PreTrainedModel, name: str, groups: int, ranks: int) -> None:
    """Tells tensor parallelism what to do with the scales of a linear that is split along its input.

    Where groups are split with their columns the host's default is right; one scale a row holds for every rank.
    """
    generic = ".".join("*" if part.isdigit() else part for part in name.split("."))
    plan = getattr(model, "tp_plan", None)
    style = None if plan is None else plan.get(generic)
    if plan is None or style is None or not style.startswith("rowwise"):
        return
    if groups == 1:
        plan[generic + ".weight_scale"] = REPLICATED
    elif groups % ranks:
        raise ValueError(
            f"{name} has {groups} groups of columns, which {ranks} ranks cannot share evenly. Use a number of ranks "
            f"that divides {groups}, or a checkpoint with one scale a row."
        )


def _check_loaded(name: str, module: WeightOnlyLinear) -> None:
    """Raises where the tensors of a quantized linear are not what the config says."""
    weight, scale = _local(module.weight), _local(module.weight_scale)
    if weight.dtype != torch.int8:
        raise TypeError(
            f"{name}.weight is {weight.dtype} and should be torch.int8 of {module.bits} bits: the checkpoint mixes "
            "quantized and unquantized modules, or its config.json belongs to another. Name the unquantized ones in "
            "modules_to_not_convert, or convert again."
        )
    shape = storage_shape(module.out_features, module.in_features, module.bits)
    whole = tuple(module.weight.shape) == shape
    if not whole or tuple(module.weight_scale.shape) != (module.out_features, module.num_groups):
        raise ValueError(
            f"{name} has integers of shape {tuple(module.weight.shape)} and scales of shape "
            f"{tuple(module.weight_scale.shape)}; with bits={module.bits} and {module.num_groups} groups they are "
            f"{shape} and {(module.out_features, module.num_groups)}. The checkpoint and its quantization_config "
            "(bits, group_size, num_groups) do not belong together."
        )
    if scale.device.type == "meta":
        return  # offloaded: the values are on the disk
    if not hasattr(module, "_hf_hook"):
        for key in ("weight", "weight_scale"):
            if not getattr(getattr(module, key), "_is_hf_initialized", False):
                raise ValueError(
                    f"{name}.{key} is missing from the checkpoint, which says that it is quantized to {module.bits} "
                    "bits. The file is incomplete, or the module was not quantized: name it in "
                    "modules_to_not_convert."
                )
    check_scales(scale, f"{name}.weight_scale")


def _check_plain(name: str, module: nn.Linear) -> None:
    """Raises where a float linear was given integers, which an older host lets pass in a quantized model."""
    weight, shape = module.weight, (module.out_features, module.in_features)
    if not weight.is_floating_point() or tuple(weight.shape) != shape:
        raise ValueError(
            f"{name}.weight is {weight.dtype} of shape {tuple(weight.shape)}, but the module stays unquantized and "
            f"takes floats of shape {shape}. The checkpoint mixes quantized and unquantized modules in another way "
            "than its modules_to_not_convert says."
        )


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a distributed tensor, or the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


# A second import, under another name too (code that a Hub folder brings), finds the names taken.
if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(METHOD)(WeightOnlyConfig)
if METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantizer(METHOD)(WeightOnlyQuantizer)

__all__ = ["WeightOnlyConfig", "WeightOnlyQuantizer", "repack"]
