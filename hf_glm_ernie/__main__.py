"""Command line of the package.

    python -m hf_glm_ernie plan --model glm130b --bits 4 --devices 4x24GiB
    python -m hf_glm_ernie lm-eval --model glm130b --model_args pretrained=FOLDER --tasks NAME
    python -m hf_glm_ernie serve FOLDER --port 8000
    python -m hf_glm_ernie label-data EXPORT --output FOLDER
    python -m hf_glm_ernie distil-uie --teacher FOLDER --texts FILE --schema SCHEMA --output FOLDER

The second is lm-evaluation-harness's own command with this package's model class registered, the third `transformers
serve`, which then opens this package's folders. The last makes rows for UIE and UTC of what label tools export.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from .ernie_data import command as label_data
from .ernie_distillation import command as distil_uie
from .inference.offload import WAYS
from .planner.devices import DTYPES, RESERVE, plan
from .planner.models import IN_SHORT
from .planner.report import ACCELERATE

FITS, REFUSED, DOES_NOT_FIT = 0, 1, 3  # 2 is argparse's


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0 the model fits, 3 it does not, 1 refused (the reason is on
    stderr).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["lm-eval"]:
        return run_lm_eval(arguments[1:])
    if arguments[:1] == ["serve"]:
        return run_serve(arguments[1:])
    if arguments[:1] == ["label-data"]:
        return label_data.main(arguments[1:])
    if arguments[:1] == ["distil-uie"]:
        return distil_uie.main(arguments[1:])
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


def run_lm_eval(arguments: list[str]) -> int:
    """Hands the rest of the command line to lm-evaluation-harness."""
    try:
        command = importlib.import_module(".glm130b_evaluation.lm_eval", __package__)
    except ImportError as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    sys.argv = ["lm-eval", *arguments]
    command.main()
    return 0


def run_serve(arguments: list[str]) -> int:
    """Hands the rest of the command line to `transformers serve`."""
    try:
        importlib.import_module(".serving.command", __package__).serve(arguments)
    except (ImportError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m hf_glm_ernie", description="GLM-130B and ERNIE 3.0.")
    commands = parser.add_subparsers(dest="command", required=True)
    planner = commands.add_parser(
        "plan", help="where a model fits and how fast it can be: bytes and limits per device, from the config alone"
    )
    commands.add_parser("lm-eval", help="lm-evaluation-harness with the model class glm130b; all options are its own")
    commands.add_parser("serve", help="an OpenAI-compatible server: `transformers serve`; all options are its own")
    commands.add_parser("distil-uie", help="a student of one forward for one schema, from a UIE teacher and texts")
    commands.add_parser("label-data", help="exports of doccano and Label Studio as rows for UIE and UTC")
    model = planner.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help=f"{IN_SHORT}; or a folder with config.json")
    model.add_argument("--config", metavar="FILE", help="a config.json")
    planner.add_argument(
        "--devices",
        metavar="LIST",
        help="accelerators: 4xRTX3090 or 2xA100-80GB, with their speed; 4x24GiB, or 8x40GB,2x24GiB (default: the CPU)",
    )
    planner.add_argument("--bits", type=int, help="4 or 8: quantized weights (default: as the config says)")
    planner.add_argument("--context", type=int, metavar="TOKENS", help="prompt and answer (default: 2048 at most)")
    planner.add_argument("--batch", type=int, default=1, metavar="ROWS", help="default: 1")
    planner.add_argument("--dtype", help=f"{', '.join(DTYPES)} (default: the config's, else float16)")
    planner.add_argument("--cpu", metavar="SIZE", help="memory for offloaded layers, e.g. 128GiB (default: none)")
    planner.add_argument(
        "--cpu-bandwidth", metavar="RATE", help="of main memory where the CPU computes (default: 204.8GB/s)"
    )
    planner.add_argument(
        "--offload",
        choices=[ACCELERATE, *WAYS],
        default=ACCELERATE,
        help="layers in memory beside accelerators: computed there for few rows (compute), copied ahead (copy), or as "
        "Accelerate does (default)",
    )
    planner.add_argument("--disk", action="store_true", help="offload to disk what has no other place")
    planner.add_argument("--tensor-parallel", action="store_true", help="cut every weight among the devices")
    planner.add_argument(
        "--reserve",
        default=f"{RESERVE}B",
        metavar="SIZE",
        help="set aside on each device for the CUDA context, libraries and gaps (default: 1GiB)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
