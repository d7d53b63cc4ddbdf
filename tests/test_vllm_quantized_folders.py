"""INT4 and INT8 folders, as our quantizer writes them, in vLLM: the ids and log probabilities of `generate`."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_glm_ernie import Glm130bForCausalLM, Glm130bTokenizer
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from tests.support import serving
from tests.support.serving import Answer, answers, engine, expected, largest_difference, random_rows, sample_rows

pytest.importorskip("vllm", reason=serving.MISSING)

from hf_glm_ernie.vllm_plugin.quantization import CPU_OPERATOR  # needs vLLM

BOUND = 2e-5  # the project's, of log probabilities in fp32. Seen: 2.4e-6
HALF_BOUND = {"float16": 1e-2, "bfloat16": 1e-1}  # from fp32. Seen: 4.1e-3 and 4.2e-2
NEW = 8
KINDS = {
    "int4": WeightOnlyConfig(bits=4),
    # as from merged ranks, of which two ranks cut the one in the middle
    "int4-5-groups": WeightOnlyConfig(bits=4, num_groups={"o_proj": 4, "down_proj": 5}),
    "int4-3-groups": WeightOnlyConfig(bits=4, num_groups={"o_proj": 4, "down_proj": 3}),
    "int8": WeightOnlyConfig(bits=8),
    "int8-groups": WeightOnlyConfig(bits=8, group_size=64),
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.converted_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    return serving.random_folder(tmp_path_factory.mktemp("random"), sample)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Path]:
    """Quantizes a folder once; gives the folder of that kind."""
    done: dict[tuple[Path, str], Path] = {}

    def folder_of(source: Path, kind: str) -> Path:
        if (source, kind) not in done:
            folder = tmp_path_factory.mktemp(kind)
            model = Glm130bForCausalLM.from_pretrained(source, dtype=torch.float32, quantization_config=KINDS[kind])
            model.save_pretrained(folder)
            Glm130bTokenizer.from_pretrained(source).save_pretrained(folder)
            done[source, kind] = folder
        return done[source, kind]

    return folder_of


@pytest.fixture(scope="module")
def wanted() -> Callable[[Path, list[list[int]]], list[Answer]]:
    """What `generate` answers with a folder's integers in fp32, computed once."""
    done: dict[tuple[Path, int], list[Answer]] = {}

    def of(folder: Path, rows: list[list[int]]) -> list[Answer]:
        if (folder, len(rows)) not in done:
            model = Glm130bForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            done[folder, len(rows)] = expected(model, rows, NEW)
        return done[folder, len(rows)]

    return of


@pytest.fixture(scope="module")
def rows(random: Path) -> list[list[int]]:
    return random_rows(Glm130bForCausalLM.config_class.from_pretrained(random), 60)


@pytest.fixture(scope="module")
def texts(sample: Path) -> list[list[int]]:
    return sample_rows(Glm130bTokenizer.from_pretrained(sample), serving.sample_texts())


def kernels_of(model: nn.Module) -> set[str]:
    """What multiplies integers in a model; `NoneType` where they were dequantized."""
    methods = [getattr(module, "quant_method", None) for module in model.modules()]
    return {type(method.kernel).__name__ for method in methods if hasattr(method, "kernel")}


def staggered(rows: list[list[int]]) -> list[int]:
    return [index // 3 for index in range(len(rows))]


def equal_rows(found: list[Answer], wanted: list[Answer]) -> int:
    return sum(a.ids == b.ids for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("kind", "ranks"), [("int4", 1), ("int8", 1), ("int4-5-groups", 2), ("int8-groups", 2)])
def test_random_rows_in_fp32(
    random: Path, rows: list[list[int]], quantized: Any, wanted: Any, kind: str, ranks: int
) -> None:
    folder, rows = quantized(random, kind), rows if ranks == 1 else rows[:24]  # a step of two ranks waits long here
    with engine(folder, tensor_parallel_size=ranks) as served:
        found = answers(served, rows, staggered(rows), max_tokens=NEW)
    assert equal_rows(found, wanted(folder, rows)) == len(rows)
    assert largest_difference(found, wanted(folder, rows)) <= BOUND


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("int4", "bfloat16"), ("int4-3-groups", "float16"), ("int4-3-groups", "bfloat16"), ("int8", "float16")],
)
def test_the_samples_texts_in_half_precision(
    sample: Path, texts: list[list[int]], quantized: Any, wanted: Any, kind: str, dtype: str
) -> None:
    """By vLLM's own INT4 kernel for CPUs with AVX-512; it has none for INT8. Elsewhere by weights of the same values.

    The sample's answers do not hang on the last bits.
    """
    folder = quantized(sample, kind)
    with engine(folder, dtype=dtype) as served:
        in_kernel = kind.startswith("int4") and hasattr(torch.ops._C, CPU_OPERATOR)
        assert served.apply_model(kernels_of) == [{"CPUWNA16LinearKernel" if in_kernel else "NoneType"}]
        found = answers(served, texts, staggered(texts), max_tokens=NEW)
    assert equal_rows(found, wanted(folder, texts)) == len(texts)
    assert largest_difference(found, wanted(folder, texts)) <= HALF_BOUND[dtype]


def test_random_rows_compiled_in_fp16(random: Path, rows: list[list[int]], quantized: Any, wanted: Any) -> None:
    folder = quantized(random, "int4-5-groups")
    with engine(folder, dtype="float16", enforce_eager=False) as served:
        found = answers(served, rows, staggered(rows), max_tokens=NEW)
    assert equal_rows(found, wanted(folder, rows)) == len(rows)
    assert largest_difference(found, wanted(folder, rows)) <= HALF_BOUND["float16"]


def changed(source: Path, folder: Path, settings: dict[str, Any], without: str = "") -> Path:
    """A copy of a folder with other settings of its quantization, or without a tensor."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    if without:
        tensors = load_file(folder / "model.safetensors")
        del tensors[without]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


NAME = "model.layers.1.mlp.up_proj.weight_scale"


@pytest.mark.parametrize(
    ("settings", "without", "message"),
    [
        ({"zero_points": True}, "", "zero_points=True, which this version does not know"),
        ({"bits": 8}, "", r"torch\.int8 of shape \(128, 160\) in the folder, .* shape \(1, 128, 320\)"),
        ({"group_size": 32}, "", r"torch\.float16 of shape \(128, 1\) in the folder, .* shape \(128, 10\)"),
        ({"modules_to_not_convert": ["q_proj"]}, "", r"keeps model\.layers\.0\.self_attn\.q_proj in full precision"),
        ({}, NAME, f"lacks 1 of the model's tensors, {re.escape(NAME)}"),
    ],
)
def test_folders_that_contradict_themselves_do_not_start(
    random: Path, quantized: Any, tmp_path: Path, settings: dict[str, Any], without: str, message: str
) -> None:
    folder = changed(quantized(random, "int4"), tmp_path / "folder", settings, without)
    with pytest.raises(Exception, match=message), engine(folder):  # pydantic wraps some
        pass


def test_a_folder_in_which_whole_layers_stay_as_they_were(
    random: Path, rows: list[list[int]], tmp_path: Path, wanted: Any
) -> None:
    """`modules_to_not_convert` as the host takes it: beginnings and ends of names."""
    config = WeightOnlyConfig(bits=4, modules_to_not_convert=["model.layers.1", "o_proj"])
    model = Glm130bForCausalLM.from_pretrained(random, dtype=torch.float32, quantization_config=config)
    model.save_pretrained(tmp_path)
    Glm130bTokenizer.from_pretrained(random).save_pretrained(tmp_path)
    with engine(tmp_path) as served:
        found = answers(served, rows[:20], staggered(rows[:20]), max_tokens=NEW)
    assert equal_rows(found, wanted(tmp_path, rows[:20])) == 20
    assert largest_difference(found, wanted(tmp_path, rows[:20])) <= BOUND
