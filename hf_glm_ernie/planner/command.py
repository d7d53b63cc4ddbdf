"""`python -m hf_glm_ernie plan`: where a model fits and how fast it can be, from its config alone."""

import argparse
import sys
from collections.abc import Sequence

from hf_glm_ernie.inference.offload import WAYS

from .devices import DTYPES, RESERVE, plan
from .models import IN_SHORT
from .report import ACCELERATE

FITS, REFUSED, DOES_NOT_FIT = 0, 1, 3  # 2 is argparse's


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns the exit status: 0 the model fits, 3 it does not, 1 refused (the reason is on
    stderr).
    """
    options = build_parser().parse_args(arguments)
    try:
        planned = plan(
            options.config or options.model,
            options.devices,
            options.bits,
            context=options.context,
            batch=options.batch,
            dtype=options.dtype,
            cpu=options.cpu,
            disk=options.disk,
            tensor_parallel=options.tensor_parallel,
            reserve=options.reserve,
            offload=options.offload,
            cpu_bandwidth=options.cpu_bandwidth,
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    sys.stdout.write(f"{planned.describe()}\n")
    return FITS if planned.fits else DOES_NOT_FIT


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
        default=ACCELERATE,
        help="layers in memory beside accelerators: computed there for few rows (compute), copied ahead (copy), or as "
        "Accelerate does (default)",
    )
    parser.add_argument("--disk", action="store_true", help="offload to disk what has no other place")
    parser.add_argument("--tensor-parallel", action="store_true", help="cut every weight among the devices")
    parser.add_argument(
        "--reserve",
        default=f"{RESERVE}B",
        metavar="SIZE",
        help="set aside on each device for the CUDA context, libraries and gaps (default: 1GiB)",
    )
    return parser
