"""Our INT4 and INT8 folders in vLLM: the quantization method `weight_only_int`.

A folder says in its config.json which linears are integers and in how many groups; the host's own class reads it
(`WeightOnlyConfig`), so both sides ask the same rules. vLLM fuses q, k and v, and the two halves of the GeGLU; the
parts come one by one under their own names, and their groups are made one number by repeating scales.

The parameters are in the stored form while they are loaded, so that vLLM cuts bytes and scales for tensor parallelism
as it cuts any weight. Where a rank's columns begin within a group the scale is repeated first: the same values. After
loading, integers are packed again (`repacking.py`) for the kernel that vLLM chooses (Marlin or Machete on NVIDIA
GPUs, `CPUWNA16` on CPUs with AVX-512). What no kernel takes (fp32, INT8 on CPUs, groups that are no multiple of 32)
becomes an ordinary weight with the same values, and the log says why.

Kernels multiply integer and scale in the compute dtype. In fp16 that is the value we define; in bf16 the scale is
rounded to bf16 first (2 ** -9 of it), where our own kernels round the product.

vLLM does not notice what a quantized checkpoint leaves out, and casts whatever it is given, so loading checks dtypes,
shapes, scales, and that every part came.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.kernels.linear import (
    CPUWNA16LinearKernel,
    MPLinearKernel,
    MPLinearLayerConfig,
    choose_mp_linear_kernel,
)
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.parameter import GroupQuantScaleParameter, ModelWeightParameter, PackedvLLMParameter
from vllm.scalar_type import scalar_types

from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from hf_glm_ernie.weight_only import METHOD, check_scales, dequantize, from_storage, storage_shape

from .repacking import fills_words, group_sizes, packed_words, repeated_scales, shared_groups

logger = init_logger("vllm.hf_glm_ernie")  # below vLLM's own logger, whose settings it takes

KERNEL_DTYPES = (torch.float16, torch.bfloat16)  # the CPU kernel takes others without a word
VLLM_TYPES = {4: scalar_types.uint4b8, 8: scalar_types.uint8b128}
CPU_OPERATOR = "cpu_gemm_wna16"  # what `CPUWNA16LinearKernel` calls
# Earlier versions than 0.31 ask whether columns were reordered.
IN_ORDER = {field.name: False for field in fields(MPLinearLayerConfig) if field.name == "has_g_idx"}
INSIDE_LAYERS = re.compile(r"\.\d+\.")  # of a name: the quantizer takes linears inside a list of layers only


class WeightOnlyIntConfig(QuantizationConfig):
    """What a folder's `quantization_config` says, as vLLM asks for it.

    Args:
        settings: The same as the host reads it.
    """

    def __init__(self, settings: WeightOnlyConfig):
        super().__init__()
        self.settings = settings

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WeightOnlyIntConfig":
        """From the dict in config.json.

        Raises:
            ValueError: settings that this version does not know, or values that they cannot have.
        """
        known = list(inspect.signature(WeightOnlyConfig).parameters)
        unknown = sorted(set(config) - set(known))
        if unknown:
            raise ValueError(
                f"The folder's quantization_config has {', '.join(f'{name}={config[name]!r}' for name in unknown)}, "
                f"which this version does not know; it knows {', '.join(known)}. Correct config.json, or install the "
                "version of hf_glm_ernie that wrote it."
            )
        return cls(WeightOnlyConfig.from_dict(config))

    def get_name(self) -> Any:
        """The name in `quant_method`."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Compute dtypes; fp32 with weights dequantized."""
        return [*KERNEL_DTYPES, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Any GPU: kernels say themselves what they need, and weights are dequantized elsewhere."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: config.json holds everything."""
        return []

    def get_quant_method(self, layer: nn.Module, prefix: str) -> LinearMethodBase | None:
        """How a layer is computed.

        Args:
            layer: Any of vLLM's layers.
            prefix: Its full name.

        Returns:
            The method of integers or, for linears that keep their precision, vLLM's own; `None` for layers that are
            no linears.

        Raises:
            ValueError: a fused layer of which some parts are integers and others are not.
        """
        if not isinstance(layer, LinearBase):
            return None
        parts = self.parts_of(prefix)
        converted = [name for name in parts if self._is_converted(name)]
        if not converted:
            return UnquantizedLinearMethod()
        if converted != parts:
            kept = ", ".join(name for name in parts if name not in converted)
            raise ValueError(
                f"modules_to_not_convert keeps {kept} in full precision and quantizes {', '.join(converted)}. vLLM "
                f"computes them as one layer, {prefix}, so all of them are quantized or none: quantize the model "
                "again with all of them named, or none."
            )
        return WeightOnlyLinearMethod(self.settings, parts)

    def parts_of(self, prefix: str) -> list[str]:
        """The names that a layer's weights have in the folder: several for a fused one."""
        above, _, last = prefix.rpartition(".")
        return [f"{above}.{part}" for part in self.packed_modules_mapping.get(last, [last])]

    def _is_converted(self, name: str) -> bool:
        return bool(INSIDE_LAYERS.search(name)) and should_convert_module(name, self.settings.modules_to_not_convert)


@register_weight_loader_v2_supported_method  # else vLLM hands the parameters to its loaders of the first kind
class WeightOnlyLinearMethod(LinearMethodBase):
    """One linear of integers, fused or not, whole or a rank's part.

    Args:
        settings: Bits and groups.
        parts: Names in the folder of the weights that lie one below the other in this layer.
    """

    def __init__(self, settings: WeightOnlyConfig, parts: list[str]):
        self.settings, self.parts = settings, parts
        self.loaded: set[tuple[str, Any]] = set()  # (parameter, part) as they come
        self.kernel: MPLinearKernel | None = None
        self.plain: UnquantizedLinearMethod | None = None

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Puts the parameters `weight` (stored integers, int8) and `weight_scale` ((rows, groups) fp16) into a layer.

        Args:
            layer: One of vLLM's linears.
            input_size_per_partition: Columns of this rank.
            output_partition_sizes: Rows of this rank, for each part.
            input_size: Columns of the whole.
            output_size: Rows of the whole.
            params_dtype: Compute dtype.
            **extra_weight_attrs: `weight_loader`, which cuts and places what is read.

        Raises:
            ValueError: groups that do not divide the columns, or ranks that cut a byte of two 4-bit columns.
        """
        bits, ranks = self.settings.bits, input_size // input_size_per_partition
        groups = [self.settings.groups_of(name, input_size) for name in self.parts]
        if bits == 4 and input_size_per_partition % 2:
            raise ValueError(
                f"{self.parts[0]} has {input_size} columns, {input_size_per_partition} for each of {ranks} ranks: an "
                "odd number, and two columns share a byte at 4 bits. Use a tensor-parallel size that leaves an even "
                "number of columns."
            )
        rows, shared = sum(output_partition_sizes), shared_groups(groups, ranks)
        shape = storage_shape(rows, input_size_per_partition, bits)
        load = extra_weight_attrs["weight_loader"]
        sizes = [size * output_size // rows for size in output_partition_sizes]  # of the whole
        layer.weight = ModelWeightParameter(
            data=torch.empty(shape, dtype=torch.int8),
            output_dim=len(shape) - 2,
            input_dim=len(shape) - 1,
            weight_loader=self._checking("weight", load, [storage_shape(size, input_size, bits) for size in sizes]),
        )
        layer.weight_scale = GroupQuantScaleParameter(
            data=torch.empty(rows, shared // ranks, dtype=torch.float16),
            output_dim=0,
            input_dim=1,
            weight_loader=self._checking("weight_scale", load, list(zip(sizes, groups, strict=True)), shared),
        )
        self.shape = (input_size_per_partition, rows)
        self.whole_shape = (input_size, output_size)
        self.dtype = params_dtype
        self.is_dummy = get_current_vllm_config().load_config.load_format == "dummy"

    def _checking(
        self, name: str, load: Callable[..., None], shapes: list[tuple[int, ...]], groups: int = 0
    ) -> Callable[..., None]:
        """The layer's loader of a parameter behind the checks of what it is given: it would cast and cut anything."""
        dtype = torch.float16 if groups else torch.int8

        def checked(parameter: nn.Parameter, given: torch.Tensor, shard: str | int | None = None) -> None:
            index = "qkv".index(shard) if isinstance(shard, str) else shard or 0
            part = f"{self.parts[index]}.{name}"
            if given.dtype != dtype or tuple(given.shape) != tuple(shapes[index]):
                raise ValueError(
                    f"{part} is {given.dtype} of shape {tuple(given.shape)} in the folder, where its "
                    f"quantization_config means {dtype} of shape {tuple(shapes[index])}. The weights and config.json "
                    "do not belong together: take those that were written together, or convert again."
                )
            if groups:
                check_scales(given, part)
                given = repeated_scales(given, groups)
            load(parameter, given) if shard is None else load(parameter, given, shard)
            self.loaded.add((name, index))

        return checked

    def process_weights_after_loading(self, layer: Any) -> None:
        """Packs the integers for the kernel that takes them, or makes an ordinary weight of them.

        Raises:
            ValueError: parts that the folder does not have.
        """
        wanted = {(name, index) for name in ("weight", "weight_scale") for index in range(len(self.parts))}
        missing = [] if self.is_dummy else sorted(wanted - self.loaded)
        if missing:
            raise ValueError(
                f"The folder has no {', '.join(f'{self.parts[index]}.{name}' for name, index in missing)}, and its "
                "quantization_config says that these are quantized. The files are incomplete, or the modules were not "
                "quantized and belong into modules_to_not_convert."
            )
        found = self._choose(layer.weight_scale.shape[1])
        if isinstance(found, str):
            self._dequantize(layer, found)
        else:
            self._pack(layer, *found)

    def _choose(self, groups: int) -> tuple[type[MPLinearKernel], MPLinearLayerConfig] | str:
        """The kernel of vLLM for this layer and what it is to know, or why there is none."""
        columns, bits = self.shape[0], self.settings.bits
        if self.dtype not in KERNEL_DTYPES:
            return f"integer kernels compute in float16 or bfloat16, and {self.dtype} was asked for"
        sizes = group_sizes(columns, groups) if fills_words(columns, bits) else []
        refusals = f"kernels take groups of 32, 64, 128 or all columns, and these are of {columns // groups}"
        for size in sizes:
            config = MPLinearLayerConfig(
                full_weight_shape=self.whole_shape,
                partition_weight_shape=self.shape,
                weight_type=VLLM_TYPES[bits],
                act_type=self.dtype,
                group_size=size,
                zero_points=False,
                **IN_ORDER,
            )
            try:
                kernel = choose_mp_linear_kernel(config)
            except ValueError as error:
                refusals = " ".join(str(error).split())
                continue
            return _why_not_here(kernel) or (kernel, config)
        return refusals

    def _pack(self, layer: Any, kernel: type[MPLinearKernel], config: MPLinearLayerConfig) -> None:
        stored, scale, bits = layer.weight.data, layer.weight_scale.data, self.settings.bits
        groups = 1 if config.group_size < 0 else self.shape[0] // config.group_size
        del layer.weight, layer.weight_scale  # a kernel replaces parameters by name; no loader comes back to these
        layer.weight = PackedvLLMParameter(
            data=packed_words(stored, bits),
            output_dim=0,
            input_dim=1,
            packed_dim=1,
            packed_factor=32 // bits,
            weight_loader=_refuse_to_load,
        )
        layer.weight_scale = GroupQuantScaleParameter(
            data=repeated_scales(scale, groups).to(self.dtype),
            output_dim=0,
            input_dim=1,
            weight_loader=_refuse_to_load,
        )
        self.kernel = kernel(config, "weight", "weight_scale", "weight_zero_point")
        self.kernel.process_weights_after_loading(layer)
        if getattr(layer, "use_w4a8", False):
            logger.warning_once(
                "vLLM's INT4 kernel for CPUs with AMX rounds activations to INT8 in bf16, which changes results. Set "
                "VLLM_CPU_INT4_W4A8=0 to keep them in bf16."
            )

    def _dequantize(self, layer: Any, reason: str) -> None:
        bits = self.settings.bits
        times = self.dtype.itemsize * 8 // bits
        logger.warning_once(
            f"INT{bits} weights are dequantized to {self.dtype} and take {times} times their memory: {reason}."
        )
        values = dequantize(from_storage(layer.weight.data, bits), layer.weight_scale.data, self.dtype)
        del layer.weight, layer.weight_scale
        layer.weight = nn.Parameter(values, requires_grad=False)
        self.plain = UnquantizedLinearMethod()
        self.plain.process_weights_after_loading(layer)

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        if self.kernel is not None:
            return self.kernel.apply_weights(layer, x, bias)
        assert self.plain is not None
        return self.plain.apply(layer, x, bias)


def _why_not_here(kernel: type[MPLinearKernel]) -> str | None:
    """Why a kernel that takes a layer cannot run: `CPUWNA16` takes it on any CPU, and its operator may be missing."""
    if not issubclass(kernel, CPUWNA16LinearKernel) or hasattr(torch.ops._C, CPU_OPERATOR):
        return None
    return (
        f"this CPU's library of vLLM has no {CPU_OPERATOR}, the kernel of 4-bit integers (the one for x86 without "
        "AVX-512 has none)"
    )


def _refuse_to_load(*_: Any) -> None:
    raise ValueError("Weights of a quantized model are packed once they are loaded; start the engine anew.")


def register_quantization() -> None:
    """Makes `weight_only_int` known to vLLM; once in each process, calling again is harmless."""
    if METHOD not in QUANTIZATION_METHODS:
        register_quantization_config(METHOD)(WeightOnlyIntConfig)


__all__ = ["WeightOnlyIntConfig", "WeightOnlyLinearMethod", "register_quantization"]
