"""Runs the authors' evaluation tasks on a converted model.

    python examples/evaluate.py --model glm-130b --tasks tasks/mmlu tasks/lambada --data-path data

`--tasks` takes YAML files in the format of GLM-130B's repository, or folders of them; the data lie below `--data-path`
as the files say. With `--output` the result is also written as JSON. See docs/evaluate.md.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from hf_glm_ernie import WeightOnlyConfig
from hf_glm_ernie.glm130b_evaluation.evaluate import evaluate_task


@dataclass
class Arguments:
    """What to run, and where."""

    model: str = field(metadata={"help": "folder or repository of a GLM-130B model"})
    tasks: list[str] = field(metadata={"help": "YAML files, or folders of them"})
    data_path: str = field(metadata={"help": "folder that holds the data of all tasks"})
    dtype: str = field(default="auto", metadata={"help": "auto (as stored), float32, bfloat16, float16"})
    bits: int | None = field(default=None, metadata={"help": "4 or 8: quantize the model while it is loaded"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, or auto to spread it over all devices"})
    adapter: str | None = field(default=None, metadata={"help": "folder of a PEFT adapter"})
    max_seq_length: int | None = field(default=None, metadata={"help": "in place of the tasks'"})
    batch_size: int | None = field(default=None, metadata={"help": "in place of the tasks' micro_batch_size"})
    output: str | None = field(default=None, metadata={"help": "JSON file for metrics and predictions"})


def main(arguments: list[str] | None = None) -> None:
    """Runs the example.

    Args:
        arguments: The command line; `None` reads that of the process.

    Raises:
        SystemExit: no task files, or a mistake in one or in its data.
    """
    parser = HfArgumentParser(Arguments)  # type: ignore[arg-type]  # the host's own annotation takes no dataclass
    (options,) = parser.parse_args_into_dataclasses(args=arguments)
    files = task_paths(options.tasks)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = WeightOnlyConfig(bits=options.bits) if options.bits else None
    model: Any = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=options.dtype, device_map=device, quantization_config=config
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if options.adapter:
        from peft import PeftModel  # optional

        model = PeftModel.from_pretrained(model, options.adapter)
    results = {}
    for file in files:
        try:
            result = evaluate_task(
                model,
                tokenizer,
                file,
                options.data_path,
                max_seq_length=options.max_seq_length,
                batch_size=options.batch_size,
            )
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(str(error)) from error
        print(result.describe())
        results[str(file)] = asdict(result) | {"groups": result.groups, "overall": result.overall}
    if options.output:
        Path(options.output).write_text(json.dumps(results, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def task_paths(given: list[str]) -> list[Path]:
    """The task files that were named, and those in the folders that were."""
    found = []
    for path in map(Path, given):
        below = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
        if not below or not below[0].is_file():
            raise SystemExit(
                f"{path} is no YAML file, nor a folder with any. Pass --tasks with task files or folders."
            )
        found += below
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
