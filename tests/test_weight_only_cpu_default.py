"""What a default install does on CPU: the kernel is built when weights are loaded or used there, once."""

from pathlib import Path

import pytest
import torch

from hf_glm_ernie import quantization_weight_only, weight_only_cpu
from hf_glm_ernie.quantization_weight_only import WeightOnlyQuantizer, repack
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Builds that were tried, in an environment that says nothing about the kernel."""
    tried: list[str] = []
    monkeypatch.delenv("HF_GLM_ERNIE_CPU_KERNEL")
    monkeypatch.setattr(weight_only_cpu, "_state", {"built": False, "asked": False, "operator": None})
    monkeypatch.setattr(weight_only_cpu, "build_cpu_kernel", lambda: tried.append("build"))
    return tried


def linear() -> WeightOnlyLinear:
    return WeightOnlyLinear.from_linear(torch.nn.Linear(64, 32), 4)


def test_the_first_product_builds_it_once(calls: list[str]) -> None:
    layer = linear()
    assert not calls
    for dtype in (torch.float32, torch.bfloat16):
        layer(torch.ones(1, 64, dtype=dtype))
    assert calls == ["build"]


@pytest.mark.parametrize("value", ["0", " 0 "])
def test_the_variable_prevents_it(value: str, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_GLM_ERNIE_CPU_KERNEL", value)
    linear()(torch.ones(1, 64))
    assert not calls


def test_weights_elsewhere_build_nothing(calls: list[str]) -> None:
    linear().to("meta")(torch.ones(1, 64, device="meta"))
    assert not calls


@pytest.mark.parametrize(
    ("devices", "asked"), [({}, 1), ({"": "cpu"}, 1), ({"a": 0, "b": "cpu"}, 0), ({"a": "disk", "b": "cpu"}, 1)]
)
def test_loading_asks_for_it_where_products_run_on_the_cpu(
    devices: dict[str, int | str], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []
    monkeypatch.setattr(quantization_weight_only, "cpu_kernel_is_ready", lambda: tried.append(True))
    monkeypatch.setattr(quantization_weight_only, "_check_loaded", lambda *_: None)
    model = torch.nn.Sequential(linear())
    model.hf_device_map = devices
    quantizer = WeightOnlyQuantizer(quantization_weight_only.WeightOnlyConfig(), pre_quantized=True)
    quantizer._process_model_after_weight_loading(model)
    assert len(tried) == asked


def test_repacking_is_for_where_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(linear())
    monkeypatch.setattr(quantization_weight_only, "cpu_kernel_is_ready", lambda: True)
    assert repack(model) == 0
    assert model[0].layout == "released"


def test_a_folder_that_cannot_be_written_builds_for_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(weight_only_cpu.os, "access", lambda *_: False)
    monkeypatch.setattr(weight_only_cpu, "_open", lambda path: opened.append(path))
    monkeypatch.setattr(weight_only_cpu, "_compile", lambda folder: (folder / "weight_only_cpu.so").write_text("x"))
    weight_only_cpu._load(tmp_path / "cache")
    assert opened
    assert not opened[0].exists()


def test_a_copy_beside_no_source_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As code that a Hub repository brings: it compiles nothing."""
    monkeypatch.setattr(weight_only_cpu, "SOURCE", tmp_path / "weight_only_cpu.cpp")
    assert "hf_glm_ernie" in weight_only_cpu.missing_features()[-1]
