"""Fine-tunes an ERNIE encoder: texts into classes, tokens into tags, UIE's extraction, UTC's choices.

    python examples/finetune_ernie.py --task classification --model ernie-base --data reviews.jsonl --output_dir out \
        --method lora --learning_rate 1e-4 --num_train_epochs 3

The data is a .jsonl, .json, .txt (JSON lines, as PaddleNLP names them), .csv or .parquet file, or a folder with such
files named `train` and `dev`, by task:

- `classification`: `text`, `label` (a string or a whole number; a list of them where several hold; a number with a
  fraction for regression), and `text_pair` where two texts are compared;
- `tokens`: `tokens` and `tags`, two lists of strings of the same length;
- `uie`: `content`, `prompt` and `result_list`, whose entries have `start` and `end` in characters of the content, as
  PaddleNLP's own converter of annotations writes them. Long contents are cut as PaddleNLP's reader cuts them;
- `utc`: `text_a`, `choices` and `labels` (numbers of the choices that hold), and `text_b`, as PaddleNLP's converter
  writes them. `--model` is a UTC model or, like for `uie`, an encoder, which gets a new head.

With data to evaluate on, scores are logged (`--eval_strategy steps --metric_for_best_model eval_f1
--load_best_model_at_end true`), and at the end `evaluation.json` in the output folder holds the scores by class, label
and relation, or option, and the rows with mistakes.

`--method` is `full`, `lora`, `qlora` or `ia3`; for classes `prefix`, `prompt` and `p-tuning`, too, and for tags
`prefix`. Every other option is one of transformers' `TrainingArguments`; `accelerate launch` runs it on several
devices. A run that was stopped goes on with `--resume`; a folder that holds one is refused without it, or
`--overwrite_output_dir`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from loss_plot import plot_losses
from training_folder import prepare_folder
from transformers import AutoConfig, AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments, set_seed

import hf_glm_ernie  # noqa: F401  # registers UIE and UTC with the Auto classes
from hf_glm_ernie.ernie_training.class_labels import KINDS
from hf_glm_ernie.ernie_training.data_files import FORMATS, find_files, read_data
from hf_glm_ernie.ernie_training.few_shot import draw_shots
from hf_glm_ernie.ernie_training.task import ErnieTask
from hf_glm_ernie.ernie_training.tasks import TASKS
from hf_glm_ernie.ernie_training.uie_rows import CUTS
from hf_glm_ernie.finetuning.methods import IN_FRONT, AdapterArguments, adapt


@dataclass
class DataArguments:
    """What is trained on."""

    task: str = field(metadata={"help": f"one of {', '.join(TASKS)}"})
    model: str = field(metadata={"help": "folder of an ERNIE encoder, or of a UIE or UTC model"})
    data: str = field(metadata={"help": f"training file: {', '.join(FORMATS)}; or a folder with train and dev"})
    eval_data: str | None = field(default=None, metadata={"help": "file to evaluate on"})
    shots: int | None = field(default=None, metadata={"help": "train on so many texts of every label, drawn by seed"})
    max_length: int = field(
        default=512, metadata={"help": "tokens of the longest row, at most the model's positions; longer are cut"}
    )
    problem_type: str | None = field(
        default=None, metadata={"help": f"of classification: {', '.join(KINDS)}; default: as the labels say"}
    )
    cut: str = field(default="windows", metadata={"help": f"where long contents of uie are cut: {', '.join(CUTS)}"})
    language: str = field(default="zh", metadata={"help": "of relation prompts, for uie's scores: zh, en"})
    dtype: str = field(default="float32", metadata={"help": "of the weights: auto (as stored), float32, bfloat16"})
    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint in the output folder"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "begin anew in a folder that holds a run"})

    def __post_init__(self) -> None:
        allowed = {"task": TASKS, "cut": CUTS, "language": ("zh", "en"), "problem_type": (None, *KINDS)}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                names = ", ".join(value for value in values if value)
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {names}.")


def main(arguments: list[str] | None = None) -> Trainer:
    """Trains, saves, plots and evaluates.

    Args:
        arguments: The command line; `None` reads that of the process.

    Returns:
        The trainer, for those who call this from Python.

    Raises:
        ValueError: options that do not go together, or rows that are not what they should be.
    """
    data, adapter, training = read_arguments(arguments)
    checkpoint = prepare_folder(training, data.resume, data.overwrite_output_dir)
    set_seed(training.seed)
    tokenizer = AutoTokenizer.from_pretrained(data.model)
    task = TASKS[data.task](tokenizer, longest_row(data, adapter), {**vars(data), "method": adapter.method})
    training.label_names = list(task.label_names)
    with training.main_process_first():
        files = [
            None if file is None else read_data(file, task.columns) for file in find_files(data.data, data.eval_data)
        ]
        if data.shots is not None:
            texts = files[0][task.columns[0]] if data.task == "uie" else range(len(files[0]))
            files[0] = files[0].select(draw_shots(texts, task.labels_of(files[0]), data.shots, training.seed))
        task.learn(files[0])
        train, evaluation = (None if rows is None else encoded(task, rows) for rows in files)
    if evaluation is not None:
        task.measure_on(files[1], evaluation)
    trainer = Trainer(
        model=adapt(load_model(data, adapter, task), adapter, task.peft_type, heads_of(task, adapter)),
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        data_collator=task.collator(),
        compute_metrics=task.metrics,
        preprocess_logits_for_metrics=task.keep,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        plot_losses(trainer.state.log_history, Path(str(training.output_dir)) / "loss.png")
    if evaluation is not None:
        evaluate(trainer, task, files[1], evaluation)
    return trainer


def read_arguments(arguments: list[str] | None) -> tuple[DataArguments, AdapterArguments, TrainingArguments]:
    """Reads the command line; raises ValueError where options do not go together."""
    parser = HfArgumentParser(
        (DataArguments, AdapterArguments, TrainingArguments),  # type: ignore[arg-type]  # the host takes dataclasses
        description=__doc__.split("\n")[0],
    )
    parser.set_defaults(weight_decay=0.01, warmup_steps=0.1, report_to=["none"])
    data, adapter, training = parser.parse_args_into_dataclasses(arguments)
    if (data.resume or training.resume_from_checkpoint) and adapter.method == "p-tuning":
        raise ValueError("--resume cannot go on with p-tuning: PEFT saves what its encoder made, not the encoder.")
    if data.task in ("uie", "utc") and training.label_smoothing_factor:
        raise ValueError(f"The loss of {data.task} has no labels to smooth: leave --label_smoothing_factor out.")
    return data, adapter, training


def heads_of(task: ErnieTask, adapter: AdapterArguments) -> list[str] | None:
    """The head is trained whole beside an adapter."""
    return None if adapter.method == "full" else list(task.heads)


def longest_row(data: DataArguments, adapter: AdapterArguments) -> int:
    """Tokens of the longest row: as asked for, but no more than there are positions for behind virtual tokens."""
    positions = AutoConfig.from_pretrained(data.model).max_position_embeddings
    return min(data.max_length, positions - adapter.virtual_tokens * (adapter.method in IN_FRONT))


def load_model(data: DataArguments, adapter: AdapterArguments, task: ErnieTask) -> Any:
    """Opens the model, its weights as the method wants them, with a head for this task."""
    dtype: Any = data.dtype if data.dtype == "auto" else getattr(torch, data.dtype)
    stored = AutoConfig.from_pretrained(data.model).dtype
    compute = (stored or torch.float32) if dtype == "auto" else dtype
    quantization = adapter.quantization_config(compute, ["pooler.dense", *task.heads])
    return task.open_model(data.model, dtype=dtype, quantization_config=quantization)


def encoded(task: ErnieTask, rows: Any) -> Any:
    """The rows as the model's inputs and labels."""
    return rows.map(task.encode, batched=True, with_indices=True, remove_columns=rows.column_names)


def evaluate(trainer: Trainer, task: ErnieTask, rows: Any, evaluation: Any) -> None:
    """Writes `evaluation.json`: the scores of the model as it is saved, by class, and where its mistakes are."""
    prediction = trainer.predict(evaluation, metric_key_prefix="eval")
    if trainer.is_world_process_zero():
        report = {"scores": prediction.metrics, **task.report(rows, evaluation, prediction)}
        text = json.dumps(report, ensure_ascii=False, indent=1)
        Path(str(trainer.args.output_dir), "evaluation.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
