"""`python -m hf_glm_ernie plan`: where a model fits and how fast it can be, from its config alone; with `--train` what
training takes on every card.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from hf_glm_ernie.inference.offload import WAYS

from .device_lists import read_devices
from .devices import DTYPES, RESERVE, plan
from .models import IN_SHORT
from .report import ACCELERATE, Plan
from .training import BRANCHES, plan_training
from .training_job import ADAMW, MIXED, OPTIMIZERS, PRECISIONS, SHARDINGS, WHOLE
from .training_report import TrainingPlan
from .training_speed import NETWORK

FITS, REFUSED, DOES_NOT_FIT = 0, 1, 3  # 2 is argparse's
ALL = -1  # --tensor-parallel without a number
CHECKPOINTING = {"both": None, "on": True, "off": False}
INFERENCE_ONLY = ("bits", "dtype", "cpu", "cpu_bandwidth", "offload", "disk")
TRAINING_ONLY = (
    *("precision", "optimizer", "sharding", "data_parallel", "checkpointing", "gradient_accumulation", "lora"),
    *("branch", "network"),
)


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 0 the model fits, 3 it does not, 1 refused (the reason is on
    stderr).
    """
    options = build_parser().parse_args(arguments)
    try:
        _check_purpose(options)
        planned = _training(options) if options.train else _inference(options)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    sys.stdout.write(f"{planned.describe()}\n")
    return FITS if planned.fits else DOES_NOT_FIT


def _check_purpose(options: argparse.Namespace) -> None:
    """Refuses options of training without `--train`, and those of inference with it."""
    names, word = (INFERENCE_ONLY, "inference") if options.train else (TRAINING_ONLY, "training")
    for name in names:
        if getattr(options, name) is not None:
            way = "leave it out" if options.train else "add --train, or leave it out"
            raise ValueError(f"--{name.replace('_', '-')} is about {word}: {way}.")


def _inference(options: argparse.Namespace) -> Plan:
    return plan(
        options.config or options.model,
        options.devices,
        options.bits,
        context=options.context,
        batch=options.batch,
        dtype=options.dtype,
        cpu=options.cpu,
        disk=bool(options.disk),
        tensor_parallel=_all_devices(options.tensor_parallel, options.devices),
        reserve=options.reserve,
        offload=options.offload or ACCELERATE,
        cpu_bandwidth=options.cpu_bandwidth,
    )


def _all_devices(ranks: int | None, devices: str | None) -> bool:
    """Whether weights are cut; in inference among all devices."""
    number = len(read_devices(devices))
    if ranks not in (None, ALL, number):
        raise ValueError(
            f"--tensor-parallel {ranks} on {number} devices: for inference every device holds a part of every weight. "
            "Leave the number out, or name as many devices."
        )
    return ranks is not None


def _training(options: argparse.Namespace) -> TrainingPlan:
    ranks = options.tensor_parallel
    return plan_training(
        options.config or options.model,
        options.devices or "",
        precision=options.precision or MIXED,
        optimizer=options.optimizer or ADAMW,
        sharding=options.sharding or WHOLE,
        tensor_parallel=len(read_devices(options.devices)) if ranks == ALL else 1 if ranks is None else ranks,
        data_parallel=options.data_parallel,
        checkpointing=CHECKPOINTING[options.checkpointing or "both"],
        context=options.context,
        batch=options.batch,
        accumulation=1 if options.gradient_accumulation is None else options.gradient_accumulation,
        lora=options.lora,
        branch=options.branch or "nlg",
        reserve=options.reserve,
        network=NETWORK if options.network is None else options.network,
    )


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_glm_ernie plan",
        description="Where a model fits and how fast it can be: bytes and limits per device, from the config alone.",
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help=f"{IN_SHORT}; or a folder with config.json")
    model.add_argument("--config", metavar="FILE", help="a config.json")
    parser.add_argument(
        "--devices",
        metavar="LIST",
        help="accelerators: 4xRTX3090 or 2xA100-80GB, with their speed; 4x24GiB, or 8x40GB,2x24GiB (default: the CPU)",
    )
    parser.add_argument("--bits", type=int, help="4 or 8: quantized weights (default: as the config says)")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="prompt and answer (default: 2048 at most)")
    parser.add_argument("--batch", type=int, default=1, metavar="ROWS", help="default: 1")
    parser.add_argument("--dtype", help=f"{', '.join(DTYPES)} (default: the config's, else float16)")
    parser.add_argument("--cpu", metavar="SIZE", help="memory for offloaded layers, e.g. 128GiB (default: none)")
    parser.add_argument(
        "--cpu-bandwidth", metavar="RATE", help="of main memory where the CPU computes (default: 204.8GB/s)"
    )
    parser.add_argument(
        "--offload",
        choices=[ACCELERATE, *WAYS],
        help="layers in memory beside accelerators: computed there for few rows (compute), copied ahead (copy), or as "
        "Accelerate does (default)",
    )
    parser.add_argument("--disk", action="store_true", default=None, help="offload to disk what has no other place")
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        nargs="?",
        const=ALL,
        metavar="N",
        help="cut every weight among the devices; in training among N of them",
    )
    parser.add_argument(
        "--reserve",
        default=f"{RESERVE}B",
        metavar="SIZE",
        help="set aside on each device for the CUDA context, libraries and gaps (default: 1GiB)",
    )
    _add_training(parser.add_argument_group("training", "what it takes on every card"))
    return parser


def _add_training(group: Any) -> None:
    group.add_argument("--train", action="store_true", help="plan for training; the options below are for it alone")
    group.add_argument("--precision", choices=PRECISIONS, help=f"of weights and products (default: {MIXED})")
    group.add_argument("--optimizer", choices=OPTIMIZERS, help=f"default: {ADAMW}")
    group.add_argument(
        "--sharding",
        "--zero",
        choices=SHARDINGS,
        help="what data parallelism shares out: optimizer (zero-1), gradients too (zero-2), weights too (zero-3, as "
        f"FSDP2; default: {WHOLE})",
    )
    group.add_argument("--data-parallel", type=int, metavar="M", help="groups of cards (default: all devices)")
    group.add_argument(
        "--checkpointing", choices=CHECKPOINTING, help="layers computed again in the backward (default: both rows)"
    )
    group.add_argument("--gradient-accumulation", type=int, metavar="FORWARDS", help="in a step (default: 1)")
    group.add_argument("--lora", type=int, metavar="RANK", help="train LoRA's adapters and nothing else")
    group.add_argument("--branch", choices=BRANCHES, help="whose rows of ERNIE 3.0 are counted (default: nlg)")
    group.add_argument("--network", metavar="RATE", help="of a card between machines of eight (default: 25GB/s)")
