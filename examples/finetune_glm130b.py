"""Fine-tunes GLM-130B on pairs of prompts and answers, or on texts, in any of the ways of docs/finetune.md.

    python examples/finetune_glm130b.py --model glm-130b --data pairs.jsonl --output_dir out \
        --method lora --learning_rate 1e-4 --num_train_epochs 3

The data is a .jsonl, .json, .csv or .parquet file. Pairs: the columns that `--template` and `--answer` name, by
default `prompt` and `answer`; the answer follows the prompt, or fills the `[MASK]` in it. Texts: `--text_column text`,
and the model learns to fill blanks in them as in its pre-training. Every other option is one of transformers'
`TrainingArguments`, with the published optimizer settings as defaults; `accelerate launch` with a file of
`examples/configs` runs it on several devices. A run that was stopped goes on with `--resume`; a folder that
holds one is refused without it, or `--overwrite_output_dir`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from loss_plot import plot_losses
from training_folder import prepare_folder
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_glm_ernie  # noqa: F401  # registers GLM-130B with the Auto classes
from hf_glm_ernie.finetuning.collator import Glm130bCollator, shifted_label_smoothing
from hf_glm_ernie.finetuning.methods import IN_FRONT, AdapterArguments, adapt
from hf_glm_ernie.finetuning.objectives import BlankInfilling, InstructionPairs, Packing, published_arguments

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass
class DataArguments:
    """What is trained on."""

    model: str = field(metadata={"help": "folder of a converted GLM-130B, quantized or not"})
    data: str = field(metadata={"help": f"training file: {', '.join(FORMATS)}"})
    eval_data: str | None = field(default=None, metadata={"help": "file to evaluate on, with --eval_strategy"})
    template: str = field(default="{prompt}", metadata={"help": "the prompt, with columns in braces"})
    answer: str = field(default="{answer}", metadata={"help": "the answer, with columns in braces"})
    text_column: str | None = field(default=None, metadata={"help": "train on blanks of this column's texts instead"})
    max_length: int = field(default=2048, metadata={"help": "tokens of the longest row"})
    packing: bool = field(default=False, metadata={"help": "put several rows into one of max_length tokens"})
    dtype: str = field(default="auto", metadata={"help": "of the weights: auto (as stored), float32, bfloat16"})
    workers: int | None = field(default=None, metadata={"help": "processes that prepare the data"})
    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint in the output folder"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "begin anew in a folder that holds a run"})


def main(arguments: list[str] | None = None) -> Trainer:
    """Trains, saves and plots.

    Args:
        arguments: The command line; `None` reads that of the process.

    Returns:
        The trainer, for those who call this from Python.

    Raises:
        ValueError: options that do not go together, or rows that are not what they should be.
    """
    parser = HfArgumentParser(
        (DataArguments, AdapterArguments, TrainingArguments),  # type: ignore[arg-type]  # the host takes dataclasses
        description=__doc__.split("\n")[0],
    )
    defaults = published_arguments(learning_rate=1e-4, warmup_steps=0.03, report_to=["none"])
    parser.set_defaults(**defaults, prediction_loss_only=True)  # logits over 150,528 ids are not to be collected
    data, adapter, training = parser.parse_args_into_dataclasses(arguments)
    if (data.resume or training.resume_from_checkpoint) and adapter.method == "p-tuning":
        raise ValueError("--resume cannot go on with p-tuning: PEFT saves what its encoder made, not the encoder.")
    checkpoint = prepare_folder(training, data.resume, data.overwrite_output_dir)
    if data.packing and adapter.method in IN_FRONT:
        raise ValueError(f"--packing needs positions of its own, which PEFT drops with --method {adapter.method}.")
    set_seed(training.seed)

    tokenizer = AutoTokenizer.from_pretrained(data.model)
    model = load_model(data, adapter)
    with training.main_process_first():
        train = rows_of(data.data, data, tokenizer, training.seed)
        evaluation = rows_of(data.eval_data, data, tokenizer, training.seed) if data.eval_data else None
    trainer = Trainer(
        model=adapt(model, adapter, "CAUSAL_LM"),
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        data_collator=Glm130bCollator(tokenizer.pad_token_id, layout=adapter.method not in IN_FRONT),
        compute_loss_func=smoothing_of(training),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        plot_losses(trainer.state.log_history, Path(training.output_dir) / "loss.png", "loss, nats per scored token")
    return trainer


def load_model(data: DataArguments, adapter: AdapterArguments) -> Any:
    """Opens the model, its weights as the method wants them."""
    dtype: Any = data.dtype if data.dtype == "auto" else getattr(torch, data.dtype)
    stored = getattr(AutoConfig.from_pretrained(data.model), "dtype", None) or torch.float32
    compute = stored if dtype == "auto" else dtype
    return AutoModelForCausalLM.from_pretrained(
        data.model, dtype=dtype, quantization_config=adapter.quantization_config(compute)
    )


def rows_of(file: str, data: DataArguments, tokenizer: Any, seed: int) -> Any:
    """Reads a file and makes it rows of the objective: a `datasets.Dataset`.

    Raises:
        ValueError: a file of an unknown kind.
        ImportError: no `datasets`.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("Reading data needs the package datasets: pip install datasets") from error
    if Path(file).suffix not in FORMATS:
        raise ValueError(f"{file} is none of {', '.join(FORMATS)}.")
    dataset = load_dataset(FORMATS[Path(file).suffix], data_files=file, split="train")
    objective: Any = InstructionPairs(tokenizer, data.template, data.answer, data.max_length)
    if data.text_column:
        objective = BlankInfilling(tokenizer, data.max_length, text_column=data.text_column, seed=seed)
    options = {"batched": True, "num_proc": data.workers}
    rows = dataset.map(
        objective, with_indices=True, remove_columns=dataset.column_names, desc="Making rows", **options
    )
    return rows.map(Packing(data.max_length), desc="Packing", **options) if data.packing else rows


def smoothing_of(training: TrainingArguments) -> Any:
    """The loss for `--label_smoothing_factor`; the `Trainer`'s own would compare with the wrong tokens."""
    return shifted_label_smoothing(training.label_smoothing_factor) if training.label_smoothing_factor else None


if __name__ == "__main__":
    main()
