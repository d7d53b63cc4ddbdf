"""Fine-tunes GLM-130B with TRL's SFTTrainer, on chats or on pairs of prompts and completions.

    python examples/sft_glm130b.py --model glm-130b --data chats.jsonl --output_dir out \
        --method lora --learning_rate 1e-4 --num_train_epochs 3

The data is a .jsonl, .json, .csv or .parquet file with the columns `messages`, or `prompt` and `completion` (texts or
messages). Every assistant turn of a chat is trained, each with what stands before it as context. Every other option is
one of TRL's `SFTConfig`. finetune_glm130b.py does the same with transformers' own Trainer, packs rows and trains on
texts without an answer.
"""

from dataclasses import dataclass, field
from typing import Any

from finetune_glm130b import FORMATS, load_model
from transformers import AutoTokenizer, HfArgumentParser

import hf_glm_ernie  # noqa: F401  # registers GLM-130B with the Auto classes
from hf_glm_ernie.finetuning.methods import AdapterArguments, adapt
from hf_glm_ernie.finetuning.objectives import InstructionPairs
from hf_glm_ernie.tokenization_glm130b_chat import one_chat_an_answer


@dataclass
class DataArguments:
    """What is trained on."""

    model: str = field(metadata={"help": "folder of a converted GLM-130B, quantized or not"})
    data: str = field(metadata={"help": f"training file: {', '.join(FORMATS)}"})
    dtype: str = field(default="auto", metadata={"help": "of the weights: auto (as stored), float32, bfloat16"})


def main(arguments: list[str] | None = None) -> Any:
    """Trains and saves.

    Args:
        arguments: The command line; `None` reads that of the process.

    Returns:
        The trainer, for those who call this from Python.

    Raises:
        ValueError: data of another kind.
        ImportError: no `trl`.
    """
    try:
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise ImportError("This script needs TRL: pip install trl") from error
    parser = HfArgumentParser(
        (DataArguments, AdapterArguments, SFTConfig),  # type: ignore[arg-type]  # the host takes dataclasses
        description=__doc__.split("\n")[0],
    )
    parser.set_defaults(learning_rate=1e-4, report_to=["none"], max_length=2048)
    data, adapter, training = parser.parse_args_into_dataclasses(arguments)
    tokenizer = AutoTokenizer.from_pretrained(data.model)
    rows = rows_of(data.data, tokenizer, training.max_length)
    training.assistant_only_loss = "messages" in rows.column_names
    model: Any = adapt(load_model(data, adapter), adapter, "CAUSAL_LM")
    trainer = SFTTrainer(
        model=model,
        args=training,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return trainer


def rows_of(file: str, tokenizer: Any, max_length: int) -> Any:
    """Reads a file and makes of it what SFTTrainer trains right: a `datasets.Dataset`.

    Raises:
        ValueError: a file of an unknown kind, or without the columns.
    """
    from datasets import load_dataset

    kind = FORMATS.get(file[file.rfind(".") :])
    if kind is None:
        raise ValueError(f"{file} is none of {', '.join(FORMATS)}.")
    dataset = load_dataset(kind, data_files=file, split="train")
    names = set(dataset.column_names)
    if "messages" in names:
        return dataset.map(one_chat_an_answer, batched=True, remove_columns=dataset.column_names)
    if not names >= {"prompt", "completion"}:
        raise ValueError(
            f"{file} has the columns {sorted(names)}: name the one with chats `messages`, or those with pairs "
            "`prompt` and `completion`."
        )
    if not isinstance(dataset[0]["prompt"], str):
        return dataset.select_columns(["prompt", "completion"])
    # A pair of texts would become one text, in which nobody finds the answer: its rows are made here.
    objective = InstructionPairs(tokenizer, "{prompt}", "{completion}", max_length)
    return dataset.map(objective, batched=True, with_indices=True, remove_columns=dataset.column_names)


if __name__ == "__main__":
    main()
