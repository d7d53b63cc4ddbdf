"""docs/devices.md runs as printed, a tiny model in place of the 130B; the training configs are what loaders take."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers.distributed import DistributedConfig

from hf_glm_ernie.__main__ import main
from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.planner import plan
from tests.support.fresh import fresh_python
from tests.support.tiny_models import tiny_model

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "examples" / "configs"
PAGE = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's names lie: a model `glm-130b`, `generate.py`, and room for what is offloaded."""
    folder = tmp_path_factory.mktemp("devices")
    tiny_model(max_position_embeddings=128).save_pretrained(folder / "glm-130b")
    scripts = [body for kind, body in BLOCKS if kind == "python" and body.startswith("# generate.py")]
    (folder / "generate.py").write_text(scripts[0])
    return folder


def run(words: list[str], folder: Path) -> str:
    done = fresh_python(words, folder, ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_kind_of_block_is_run() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python", "text"}
    programs = {shlex.split(body)[0] for kind, body in BLOCKS if kind == "bash"}
    assert programs == {"python", "torchrun", "accelerate"}


def test_python_blocks_run_in_order(folder: Path) -> None:
    bodies = [body for kind, body in BLOCKS if kind == "python" and not body.startswith("# generate.py")]
    out = run(["-c", "\n".join(bodies)], folder)
    assert out.splitlines() == ["True {}", "()"]


def test_plan_commands_print_what_stands_below_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first in a process of its own; starting one takes most of the time, so the others are called."""
    commands = [shlex.split(body)[1:] for kind, body in BLOCKS if kind == "bash" and body.startswith("python")]
    monkeypatch.chdir(folder)

    def called(command: list[str]) -> str:
        assert command[:2] == ["-m", "hf_glm_ernie"]
        assert main(command[2:]) == 0
        return capsys.readouterr().out

    printed_ones = [run(commands[0], folder), *map(called, commands[1:])]
    *shown_ones, tiny = (printed.splitlines() for printed in printed_ones)
    for printed, body in zip(shown_ones, [body for kind, body in BLOCKS if kind == "text"], strict=True):
        lines = iter(printed)
        for line in body.splitlines():
            assert line == "..." or line in lines, line  # in order: `in` moves the iterator on
    assert 'distributed_config = DistributedConfig(tp_size=2, tp_plan="auto")' in tiny


def test_tensor_parallel_script_runs(folder: Path) -> None:
    command = next(shlex.split(body) for kind, body in BLOCKS if kind == "bash" and body.startswith("torchrun"))
    script = ["-m", "torch.distributed.run", "--standalone", *command[1:]]
    assert "torch.Size([1, 7])" in run(script, folder)


def test_the_table_is_the_planner_s() -> None:
    rows = re.findall(r"^\| (\d+) x .*? (\d+) GiB \| (\w+) \| .*? \| (.*?) \| .*\|$", PAGE, flags=re.MULTILINE)
    assert len(rows) == 6
    for count, size, weights, verdict in rows:
        bits = {"fp16": None, "INT8": 8, "INT4": 4}[weights]
        planned = plan("glm130b", f"{count}x{size}GiB", bits, tensor_parallel=True)
        free = planned.devices[0].free
        assert free is not None
        amount = re.search(r"\d+\.\d", verdict)
        assert amount is not None
        assert planned.fits == verdict.startswith("fits")
        assert abs(free) / 2**30 == pytest.approx(float(amount.group()), abs=0.051)


# Training configs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fsdp2_lora.yaml", "fsdp2_full.yaml"])
def test_accelerate_takes_the_fsdp_configs(name: str) -> None:
    file = CONFIGS / name
    loaded = load_config_from_file(str(file))  # fails on keys it does not know
    assert loaded.distributed_type == "FSDP"
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(loaded.fsdp_config) <= known
    if name == "fsdp2_lora.yaml":
        command = next(shlex.split(body) for kind, body in BLOCKS if kind == "bash" and body.startswith("accelerate"))
        assert ROOT / command[command.index("--config_file") + 1] == file
    with mock.patch.dict(os.environ):
        arguments = launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
        arguments, _, _ = _validate_launch_command(arguments)
        os.environ.update(prepare_multi_gpu_env(arguments))
        plugin = FullyShardedDataParallelPlugin()
        model = tiny_model()
        plugin.set_auto_wrap_policy(model)  # fails on a layer class the model does not have
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.activation_checkpointing
    assert plugin.auto_wrap_policy(model.model.layers[0], recurse=False, nonwrapped_numel=0)
    assert not plugin.auto_wrap_policy(model.model.layers[0].mlp, recurse=False, nonwrapped_numel=0)


def test_the_full_config_differs_in_size_only() -> None:
    lora, full = (yaml.safe_load((CONFIGS / f"fsdp2_{name}.yaml").read_text()) for name in ("lora", "full"))
    assert {key for key in lora if lora[key] != full[key]} == {"num_machines", "num_processes"}


def test_the_configs_of_the_unified_models() -> None:
    file = CONFIGS / "fsdp2_ernie3_10b.yaml"
    assert load_config_from_file(str(file)).distributed_type == "FSDP"
    unified, full = (yaml.safe_load(one.read_text()) for one in (file, CONFIGS / "fsdp2_full.yaml"))
    assert "fsdp_transformer_layer_cls_to_wrap" not in unified["fsdp_config"], "the model's own classes"
    del full["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
    assert unified["fsdp_config"] == full["fsdp_config"]
    mesh = DistributedConfig(**json.loads((CONFIGS / "mesh_ernie3_titan.json").read_text()))
    titan = Ernie3Config.titan()
    for heads in (titan.num_attention_heads, titan.branch_num_attention_heads):
        assert heads % mesh.tp_size == 0
    assert mesh.tp_size * mesh.fsdp_size == 16 * 8  # nodes and processes of docs/pretrain.md


# DeepSpeed's documented keys ("DeepSpeed Configuration JSON") that the file uses; DeepSpeed itself is not needed here.
DEEPSPEED: dict[str, Any] = {
    "bf16": {"enabled"},
    "gradient_accumulation_steps": None,
    "gradient_clipping": None,
    "train_batch_size": None,
    "train_micro_batch_size_per_gpu": None,
    "wall_clock_breakdown": None,
    "zero_optimization": {
        "contiguous_gradients",
        "overlap_comm",
        "reduce_bucket_size",
        "stage",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_param_persistence_threshold",
        "stage3_prefetch_bucket_size",
    },
}
# What the host's Trainer fills in where a DeepSpeed config says "auto" (transformers, `HfTrainerDeepSpeedConfig`).
FILLED_IN = {
    "bf16.enabled",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_prefetch_bucket_size",
}


def test_deepspeed_config_has_known_keys_and_is_stage_three() -> None:
    settings = json.loads((CONFIGS / "deepspeed_zero3.json").read_text())
    assert settings.keys() == DEEPSPEED.keys()
    for key, inner in DEEPSPEED.items():
        assert inner is None or settings[key].keys() == inner
    automatic = {key for key, value in settings.items() if value == "auto"}
    automatic |= {
        f"{key}.{name}"
        for key, value in settings.items()
        if isinstance(value, dict)
        for name in value
        if value[name] == "auto"
    }
    assert automatic == FILLED_IN
    assert HfDeepSpeedConfig(settings).is_zero3()
