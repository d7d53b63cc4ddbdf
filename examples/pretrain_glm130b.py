"""Pre-trains a small GLM-130B from nothing with the published recipe.

    python examples/pretrain_glm130b.py --tokenizer glm-130b --data corpus.jsonl --instructions pairs.jsonl \
        --output_dir small-glm --per_device_train_batch_size 8

What is published and kept: blank infilling, 30% of the rows with [MASK] and 70% with [gMASK]; instruction pairs for 5%
of the tokens; DeepNorm's initialisation; the embedding gradient shrunk to a tenth; AdamW (0.9, 0.95), weight decay 0.1
on matrices, gradients clipped to 1, learning rate up to 8e-5 and along a cosine down to a tenth; dropout 0.1; rows
packed to the full context. A model of some million weights learns faster with `--learning_rate 1e-3` and
`--embedding_gradient_shrink 1`.

The data is a .jsonl, .csv or .parquet file with the column `text`, or a .txt file with a text on each line.
Instructions: columns `prompt` and `answer`. Every other option is one of transformers' `TrainingArguments`;
`accelerate launch` with a file of `examples/configs` runs it on several devices. A run that was stopped goes on with
`--resume`; a folder that holds one is refused without it, or `--overwrite_output_dir`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loss_plot import plot_losses
from training_folder import prepare_folder
from transformers import AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments, set_seed

from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM
from hf_glm_ernie.finetuning.collator import Glm130bCollator
from hf_glm_ernie.finetuning.objectives import (
    BlankInfilling,
    InstructionPairs,
    Packing,
    mix_instructions,
    published_arguments,
)

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
# The embedding is padded to a multiple of this, as the released one is (150344 ids, 150528 rows).
VOCABULARY_MULTIPLE = 128


@dataclass
class PretrainingArguments:
    """The model and what it is trained on."""

    tokenizer: str = field(metadata={"help": "folder with GLM-130B's tokenizer, or one of its kind"})
    data: str = field(metadata={"help": f"texts: {', '.join(FORMATS)}"})
    instructions: str | None = field(default=None, metadata={"help": "pairs of prompt and answer"})
    instruction_share: float = field(default=0.05, metadata={"help": "of all tokens"})
    mask_share: float = field(default=0.3, metadata={"help": "share of rows with [MASK]"})
    sentence_share: float = field(default=0.0, metadata={"help": "share of rows with [sMASK]; the rest is [gMASK]"})
    passes: int = field(default=1, metadata={"help": "over the texts, each with blanks of its own"})
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    context: int = field(default=256, metadata={"help": "tokens of a row"})
    dropout: float = 0.1
    embedding_gradient_shrink: float = 0.1
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
        ValueError: rows that are not what they should be.
    """
    parser = HfArgumentParser(
        (PretrainingArguments, TrainingArguments),  # type: ignore[arg-type]  # the host takes dataclasses
        description=__doc__.split("\n")[0],
    )
    parser.set_defaults(**published_arguments(report_to=["none"], num_train_epochs=1))
    options, training = parser.parse_args_into_dataclasses(arguments)
    checkpoint = prepare_folder(training, options.resume, options.overwrite_output_dir)
    set_seed(training.seed)  # the initialisation is drawn too
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    model = build_model(tokenizer, options)
    with training.main_process_first():
        rows = make_rows(tokenizer, options, training.seed)
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=Glm130bCollator(tokenizer.pad_token_id),
    )
    if trainer.is_world_process_zero():
        tokens = sum(len(ids) for ids in rows["input_ids"])
        print(f"{model.num_parameters():,} parameters, {len(rows):,} rows of {tokens / len(rows):.0f} tokens")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        plot_losses(trainer.state.log_history, Path(training.output_dir) / "loss.png", "loss, nats per scored token")
    return trainer


def build_model(tokenizer: Any, options: PretrainingArguments) -> Glm130bForCausalLM:
    """Builds the untrained model with the ids of the tokenizer."""
    config = Glm130bConfig(
        vocab_size=-(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        max_position_embeddings=options.context,
        hidden_dropout=options.dropout,
        attention_dropout=options.dropout,
        embedding_gradient_shrink=options.embedding_gradient_shrink,
        mask_token_id=tokenizer.mask_token_id,
        gmask_token_id=tokenizer.gmask_token_id,
        smask_token_id=tokenizer.smask_token_id,
        sop_token_id=tokenizer.sop_token_id,
        eop_token_id=tokenizer.eop_token_id,
        eos_token_id=[tokenizer.eop_token_id, tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return Glm130bForCausalLM(config)


def make_rows(tokenizer: Any, options: PretrainingArguments, seed: int) -> Any:
    """Reads the files and makes packed rows: a `datasets.Dataset`.

    Raises:
        ValueError: a file of an unknown kind.
        ImportError: no `datasets`.
    """
    try:
        from datasets import concatenate_datasets, load_dataset
    except ImportError as error:
        raise ImportError("Reading data needs the package datasets: pip install datasets") from error

    def read(file: str) -> Any:
        if Path(file).suffix not in FORMATS:
            raise ValueError(f"{file} is none of {', '.join(FORMATS)}.")
        return load_dataset(FORMATS[Path(file).suffix], data_files=file, split="train")

    def apply(function: Any, dataset: Any) -> Any:
        return dataset.map(
            function, batched=True, with_indices=True, remove_columns=dataset.column_names, num_proc=options.workers
        )

    texts = read(options.data)
    shares: dict[str, Any] = {"mask_share": options.mask_share, "sentence_share": options.sentence_share}
    rows = concatenate_datasets(
        [
            apply(BlankInfilling(tokenizer, options.context, seed=seed * options.passes + number, **shares), texts)
            for number in range(options.passes)
        ]
    )
    if options.instructions:
        pairs = apply(InstructionPairs(tokenizer, max_length=options.context), read(options.instructions))
        rows = mix_instructions(rows, pairs, options.instruction_share, seed)
    return rows.map(Packing(options.context), batched=True, num_proc=options.workers)


if __name__ == "__main__":
    main()
