"""Our integers in vLLM's linears: whole, fused and cut for tensor parallelism, against the values that they mean."""

import logging
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from tests.support import serving

vllm = pytest.importorskip("vllm", reason=serving.MISSING)

from vllm.config import LoadConfig, VllmConfig, set_current_vllm_config  # noqa: E402  # needs vLLM, as all below
from vllm.distributed import init_distributed_environment, initialize_model_parallel  # noqa: E402
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory  # noqa: E402
from vllm.model_executor.layers import linear as linears  # noqa: E402
from vllm.model_executor.layers.quantization import get_quantization_config  # noqa: E402
from vllm.model_executor.layers.quantization.utils.quant_utils import (  # noqa: E402
    pack_quantized_values_into_int32,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead  # noqa: E402

from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig  # noqa: E402
from hf_glm_ernie.vllm_plugin import quantization as plugin  # noqa: E402
from hf_glm_ernie.vllm_plugin.quantization import (  # noqa: E402
    VLLM_TYPES,
    WeightOnlyIntConfig,
    WeightOnlyLinearMethod,
)
from hf_glm_ernie.vllm_plugin.register import register  # noqa: E402
from hf_glm_ernie.vllm_plugin.repacking import packed_words  # noqa: E402
from hf_glm_ernie.weight_only import dequantize, quantize, to_storage  # noqa: E402

HIDDEN, WIDE, HEADS = 128, 192, 4
LAYER = "model.layers.3"
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
SHARDS = {"q_proj": ("q",), "k_proj": ("k",), "v_proj": ("v",), "gate_proj": (0,), "up_proj": (1,)}
# Largest error of one product, relative to the largest output, from the exact product of the values. Seen: 4.2e-7,
# 4.2e-4 and 4.6e-3: the rounding of the output to the dtype.
BOUND = {torch.float32: 8e-7, torch.float16: 8e-4, torch.bfloat16: 8e-3}


@pytest.fixture(scope="module", autouse=True)
def _one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of one process, which vLLM's layers ask for their rank."""
    with set_current_vllm_config(VllmConfig()):
        file = tmp_path_factory.mktemp("store") / "file"
        init_distributed_environment(1, 0, f"file://{file}", 0, "gloo")
        initialize_model_parallel(1, 1)
        yield
    cleanup_dist_env_and_memory()


@pytest.fixture(autouse=True)
def _config() -> Iterator[None]:
    with set_current_vllm_config(VllmConfig()):
        yield


def quantization(**settings: Any) -> WeightOnlyIntConfig:
    config = WeightOnlyIntConfig.from_config(WeightOnlyConfig(**settings).to_dict())
    config.packed_modules_mapping = FUSED
    return config


def stored(name: str, bits: int, groups: int = 1, bias: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a linear as a folder holds them; each linear has its own."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    rows, columns = (WIDE if name in ("gate_proj", "up_proj") else HIDDEN), (WIDE if name == "down_proj" else HIDDEN)
    q, scale = quantize(torch.randn(rows, columns, generator=generator) / columns**0.5, bits, groups)
    tensors = {"weight": to_storage(q, bits), "weight_scale": scale}
    return tensors | ({"bias": torch.randn(rows, generator=generator)} if bias else {})


def values(tensors: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    q = tensors["weight"][0] if bits == 8 else to_columns(tensors["weight"])
    return dequantize(q, tensors["weight_scale"], torch.float64)


def to_columns(packed: torch.Tensor) -> torch.Tensor:
    """Nibbles one after the other, by arithmetic: high, low, high, ..."""
    numbers = packed.to(torch.int16) & 255
    columns = torch.stack((numbers // 16, numbers % 16), dim=-1).flatten(1)
    return torch.where(columns > 7, columns - 16, columns).to(torch.int8)


def build(name: str, config: WeightOnlyIntConfig, dtype: torch.dtype, rank: int = 0, ranks: int = 1) -> Any:
    """A linear of vLLM as the model builds it, as one of several ranks."""
    whole = {"bias": ranks == 1, "params_dtype": dtype, "quant_config": config}
    with mock.patch.multiple(
        linears, get_tensor_model_parallel_rank=lambda: rank, get_tensor_model_parallel_world_size=lambda: ranks
    ):
        if name == "qkv_proj":
            prefix = f"{LAYER}.self_attn.qkv_proj"
            return linears.QKVParallelLinear(HIDDEN, HIDDEN // HEADS, HEADS, prefix=prefix, **whole)
        if name == "gate_up_proj":
            return linears.MergedColumnParallelLinear(HIDDEN, [WIDE] * 2, prefix=f"{LAYER}.mlp.gate_up_proj", **whole)
        block, columns = ("mlp", WIDE) if name == "down_proj" else ("self_attn", HIDDEN)
        return linears.RowParallelLinear(
            columns, HIDDEN, prefix=f"{LAYER}.{block}.{name}", reduce_results=ranks == 1, **whole
        )


def load(layer: Any, name: str, parts: dict[str, dict[str, torch.Tensor]]) -> Any:
    """Loads what the folder holds, as the model's loader does."""
    parameters = dict(layer.named_parameters())
    for part, tensors in parts.items():
        for key, tensor in tensors.items():
            if key in parameters:
                parameters[key].weight_loader(parameters[key], tensor, *(SHARDS[part] if name in FUSED else ()))
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def expected(x: torch.Tensor, parts: dict[str, dict[str, torch.Tensor]], bits: int) -> torch.Tensor:
    """fp64, parts side by side."""
    return torch.cat(
        [
            x.double() @ values(one, bits).T + (one["bias"].to(x.dtype).double() if "bias" in one else 0)
            for one in parts.values()
        ],
        dim=-1,
    )


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    return ((result.double() - exact).abs().max() / exact.abs().max()).item()


def parts_of(name: str, bits: int, groups: dict[str, int], **more: Any) -> dict[str, dict[str, torch.Tensor]]:
    return {part: stored(part, bits, groups.get(part, 1), **more) for part in FUSED.get(name, [name])}


LAYERS = [
    ("qkv_proj", {}),
    ("qkv_proj", {"q_proj": 4, "v_proj": 2}),  # parts of other groups lie in one layer
    ("gate_up_proj", {"gate_proj": 2, "up_proj": 2}),
    ("o_proj", {}),
    ("o_proj", {"o_proj": 4}),
    ("down_proj", {"down_proj": 2}),  # 96 columns: groups of 32
    ("down_proj", {"down_proj": 16}),  # 12 columns: no kernel takes them
]


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("name", "groups"), LAYERS)
def test_a_linear_computes_what_its_integers_mean(
    name: str, groups: dict[str, int], bits: int, dtype: torch.dtype
) -> None:
    layer = build(name, quantization(bits=bits, num_groups=groups or None), dtype)
    parts = parts_of(name, bits, groups)
    load(layer, name, parts)
    x = torch.randn(7, layer.input_size).to(dtype)
    assert error(layer(x)[0], expected(x, parts, bits)) <= BOUND[dtype]
    in_kernel = bits == 4 and dtype != torch.float32 and groups.get("down_proj") != 16  # on a CPU
    in_kernel &= hasattr(torch.ops._C, plugin.CPU_OPERATOR)  # with AVX-512; elsewhere the values are held the same
    if vllm.platforms.current_platform.is_cpu():
        assert (layer.quant_method.kernel is not None) == in_kernel
        assert (layer.weight.dtype == torch.int32) == in_kernel


@pytest.mark.parametrize("bits", [4, 8])
def test_fp16_gives_the_very_values(bits: int) -> None:
    """A row of ones and zeros picks one column: the integers' products with fp16 scales, rounded once, and no sum."""
    layer = build("o_proj", quantization(bits=bits, num_groups={"o_proj": 4}), torch.float16)
    parts = parts_of("o_proj", bits, {"o_proj": 4}, bias=False)
    load(layer, "o_proj", parts)
    layer.bias.data.zero_()
    columns = layer(torch.eye(HIDDEN, dtype=torch.float16))[0].T
    assert torch.equal(columns.double(), values(parts["o_proj"], bits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("name", "groups"), LAYERS)
def test_ranks_together_compute_what_one_does(
    name: str, groups: dict[str, int], bits: int, ranks: int, dtype: torch.dtype
) -> None:
    config, parts = quantization(bits=bits, num_groups=groups or None), parts_of(name, bits, groups, bias=False)
    layers = [load(build(name, config, dtype, rank, ranks), name, parts) for rank in range(ranks)]
    x = torch.randn(7, layers[0].input_size).to(dtype)
    if name in FUSED:  # each rank has a piece of every part
        pieces = [layer(x)[0].chunk(len(parts), dim=-1) for layer in layers]
        result = torch.cat([torch.cat(pieces_of_a_part, dim=-1) for pieces_of_a_part in zip(*pieces, strict=True)], -1)
    else:
        columns = x.chunk(ranks, dim=-1)
        result = sum(layer(part.contiguous())[0].double() for layer, part in zip(layers, columns, strict=True))
    assert error(result, expected(x, parts, bits)) <= BOUND[dtype]


def test_ranks_that_cut_a_byte_are_refused() -> None:
    with pytest.raises(ValueError, match=r"192 columns, 3 for each of 64 ranks: an odd number, and two columns share"):
        build("down_proj", quantization(bits=4), torch.float32, ranks=64)
    build("down_proj", quantization(bits=8), torch.float32, ranks=64)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="o_proj has 128 columns, which group_size=96 does not divide"):
        build("o_proj", quantization(bits=4, group_size=96), torch.float32)


class Records(logging.Handler):
    """Messages that vLLM's loggers were given; they do not reach the root logger."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def records() -> Iterator[list[str]]:
    handler, logger = Records(), logging.getLogger("vllm.hf_glm_ernie")
    logger.addHandler(handler)
    yield handler.messages
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("bits", "dtype", "groups", "reason"),
    [
        (4, torch.float32, 1, "INT4 weights are dequantized to torch.float32 and take 8 times .* float16 or bfloat16"),
        (8, torch.float16, 1, "INT8 weights are dequantized to torch.float16 and take 2 times .* uint8b128"),
        (4, torch.float16, 16, "INT4 .*: kernels take groups of 32, 64, 128 or all columns, and these are of 8"),
    ],
)
def test_why_weights_are_dequantized_is_said_once(
    records: list[str], bits: int, dtype: torch.dtype, groups: int, reason: str
) -> None:
    vllm.logger._print_warning_once.cache_clear()
    for _ in range(3):
        layer = build("o_proj", quantization(bits=bits, num_groups={"o_proj": groups}), dtype)
        load(layer, "o_proj", parts_of("o_proj", bits, {"o_proj": groups}))
    (message,) = records
    assert re.search(reason, message)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_cpu_without_the_operator_computes_the_same(
    records: list[str], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """vLLM's kernel says yes on every CPU; its library for x86 without AVX-512 lacks what the kernel calls."""
    if not vllm.platforms.current_platform.is_cpu():
        pytest.skip("vLLM's platform here is no CPU, and only there is an operator missing")
    monkeypatch.setattr(plugin, "CPU_OPERATOR", "cpu_gemm_that_no_library_has")
    vllm.logger._print_warning_once.cache_clear()
    layer, parts = build("qkv_proj", quantization(bits=4), dtype), parts_of("qkv_proj", 4, {})
    load(layer, "qkv_proj", parts)
    x = torch.randn(7, layer.input_size).to(dtype)
    assert layer.weight.dtype == dtype
    assert error(layer(x)[0], expected(x, parts, 4)) <= BOUND[dtype]
    (message,) = records
    assert re.search("INT4 weights are dequantized .* 4 times their memory: this CPU's library .* AVX-512", message)


def test_which_layers_are_integers() -> None:
    config = quantization(bits=4, modules_to_not_convert=["layers.1.self_attn.o_proj", "down_proj"])
    plain = linears.UnquantizedLinearMethod
    layer = build("o_proj", quantization(bits=4), torch.float32)
    for name, kind in (
        ("model.layers.0.self_attn.o_proj", WeightOnlyLinearMethod),
        ("model.layers.0.self_attn.qkv_proj", WeightOnlyLinearMethod),
        ("model.layers.1.self_attn.o_proj", plain),
        ("model.layers.10.mlp.down_proj", plain),
        ("score", plain),  # outside the layers
    ):
        assert type(config.get_quant_method(layer, name)) is kind, name
    with mock.patch.multiple(ParallelLMHead, __init__=lambda self: torch.nn.Module.__init__(self)):
        assert config.get_quant_method(ParallelLMHead(), "lm_head") is None


def test_half_a_fused_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keeps model\.layers\.3\.self_attn\.q_proj in full precision and quantizes"):
        build("qkv_proj", quantization(bits=4, modules_to_not_convert=["q_proj"]), torch.float32)


def test_settings_that_are_not_known_are_refused() -> None:
    known = WeightOnlyConfig(bits=4).to_dict()
    with pytest.raises(ValueError, match="has zero_points=True, which this version does not know; it knows bits"):
        WeightOnlyIntConfig.from_config(known | {"zero_points": True})
    with pytest.raises(ValueError, match="bits=3"):
        WeightOnlyIntConfig.from_config(known | {"bits": 3})
    with pytest.raises(ValueError, match="another format"):
        WeightOnlyIntConfig.from_config(known | {"quant_method": "gptq"})


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("weight", lambda one: one.float(), r"v_proj\.weight is torch\.float32 of shape \(128, 64\)"),
        ("weight", lambda one: one[:64], r"v_proj\.weight is torch\.int8 of shape \(64, 64\) .* \(128, 64\)"),
        ("weight", lambda one: torch.zeros(128, 128, dtype=torch.int8), r"shape \(128, 128\)"),
        ("weight_scale", lambda one: one.float(), r"v_proj\.weight_scale is torch\.float32"),
        ("weight_scale", lambda one: one.repeat(1, 2), r"weight_scale .* \(128, 2\) .* \(128, 1\)"),
        ("weight_scale", lambda one: one * 0, r"v_proj\.weight_scale holds 0\.0"),
        ("weight_scale", lambda one: one * float("nan"), r"v_proj\.weight_scale holds nan"),
    ],
)
def test_what_the_folder_should_not_hold_is_refused(key: str, change: Any, message: str) -> None:
    layer, parts = build("qkv_proj", quantization(bits=4), torch.float32), parts_of("qkv_proj", 4, {})
    parts["v_proj"][key] = change(parts["v_proj"][key])
    with pytest.raises(ValueError, match=message):
        load(layer, "qkv_proj", parts)


@pytest.mark.parametrize("key", ["weight", "weight_scale"])
def test_what_the_folder_lacks_is_named(key: str) -> None:
    layer, parts = build("qkv_proj", quantization(bits=4), torch.float32), parts_of("qkv_proj", 4, {})
    del parts["k_proj"][key]
    with pytest.raises(ValueError, match=rf"The folder has no model\.layers\.3\.self_attn\.k_proj\.{key}, and its"):
        load(layer, "qkv_proj", parts)


def test_made_up_weights_need_no_folder() -> None:
    """`--load-format dummy`, by which memory and speed are tried before the weights are there."""
    with set_current_vllm_config(VllmConfig(load_config=LoadConfig(load_format="dummy"))):
        layer = build("qkv_proj", quantization(bits=4), torch.float32)
    load(layer, "qkv_proj", {})
    assert layer(torch.ones(2, HIDDEN))[0].shape == (2, 3 * HIDDEN)


@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_those_of_vllms_own_packer(bits: int) -> None:
    """Which is what its loaders of other formats hand to Marlin and Machete, the kernels that no test here can run."""
    half = 2 ** (bits - 1)
    q = torch.randint(-half, half, (24, 96), dtype=torch.int8)
    packed = pack_quantized_values_into_int32(q.int() + half, VLLM_TYPES[bits], 1)
    assert torch.equal(packed_words(to_storage(q, bits), bits), packed)


def test_vllm_finds_the_method() -> None:
    register()
    register()
    assert get_quantization_config("weight_only_int") is WeightOnlyIntConfig
