"""Fine-tunes an ERNIE encoder: classes, tags, answers to questions, multiple choice, UIE's extraction, UTC's choices.

    python examples/finetune_ernie.py --task classification --model ernie-base --data reviews.jsonl --output_dir out \
        --method lora --learning_rate 1e-4 --num_train_epochs 3

The data is a .jsonl, .json, .txt (JSON lines, as PaddleNLP names them), .csv or .parquet file, or a folder with such
files named `train` and `dev`, by task:

- `classification`: `text`, `label` (a string or a whole number; a list of them where several hold; a number with a
  fraction for regression), and `text_pair` where two texts are compared;
- `tokens`: `tokens` and `tags`, two lists of strings of the same length;
- `qa`: `context`, `question` and `answers` (`text` and `answer_start`), flat as in `datasets`, or nested as SQuAD and
  CMRC 2018 are. `--version_2_with_negative true` where questions may have no answer;
- `choice`: `context`, `question`, `choices` and `label` (the number of the right one); C3's and CHID's files as well;
- `uie`: `content`, `prompt` and `result_list`, whose entries have `start` and `end` in characters of the content, as
  PaddleNLP's own converter of annotations writes them. Long contents are cut as PaddleNLP's reader cuts them;
- `utc`: `text_a`, `choices` and `labels` (numbers of the choices that hold), and `text_b`, as PaddleNLP's converter
  writes them. `--model` is a UTC model or, like for `uie`, an encoder, which gets a new head.

CLUE's files are read as they were downloaded, and `--recipe clue/TASK/MODEL` sets what PaddleNLP published for that
task and model (`clue/TASK`: for any model); options that are given beside it count. At the end the score stands beside
the published one. `--seeds 1 2 3` trains once a seed, in a folder each, and writes means and spread to `seeds.json`;
`--grid true` trains at every point of the grid whose best run was published.

With data to evaluate on, scores are logged (`--eval_strategy steps --metric_for_best_model eval_f1
--load_best_model_at_end true`), and at the end `evaluation.json` in the output folder holds the scores by class, label
and relation, or option, and the rows with mistakes.

`--method` is `full`, `lora`, `qlora` or `ia3`; for classes `prefix`, `prompt` and `p-tuning`, too, and for tags
`prefix`. Every other option is one of transformers' `TrainingArguments`; `accelerate launch` runs it on several
devices. A run that was stopped goes on with `--resume`; a folder that holds one is refused without it, or
`--overwrite_output_dir`.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from loss_plot import plot_losses
from training_folder import prepare_folder
from transformers import AutoConfig, AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments, set_seed

import hf_glm_ernie  # noqa: F401  # registers UIE and UTC with the Auto classes
from hf_glm_ernie.ernie_training.class_labels import KINDS
from hf_glm_ernie.ernie_training.data_files import FORMATS, find_files
from hf_glm_ernie.ernie_training.few_shot import draw_shots
from hf_glm_ernie.ernie_training.recipes import Recipe, find_recipe, published_grid
from hf_glm_ernie.ernie_training.seeds import grid_report, grid_table, seeds_report, seeds_table
from hf_glm_ernie.ernie_training.task import ErnieTask
from hf_glm_ernie.ernie_training.tasks import TASKS
from hf_glm_ernie.ernie_training.uie_rows import CUTS
from hf_glm_ernie.finetuning.methods import IN_FRONT, AdapterArguments, adapt

TIMES = ("_runtime", "_per_second", "_time")  # what of a run's metrics is no score
BATCH_OPTION = "--per_device_train_batch_size"


@dataclass
class DataArguments:
    """What is trained on."""

    model: str = field(metadata={"help": "folder of an ERNIE encoder, or of a UIE or UTC model"})
    data: str = field(metadata={"help": f"training file: {', '.join(FORMATS)}; or a folder with train and dev"})
    task: str | None = field(default=None, metadata={"help": f"one of {', '.join(TASKS)}; a recipe says which"})
    recipe: str | None = field(default=None, metadata={"help": "PaddleNLP's settings: clue/TASK or clue/TASK/MODEL"})
    seeds: list[int] | None = field(default=None, metadata={"help": "train once with each of these seeds"})
    grid: bool = field(default=False, metadata={"help": "train at every point of the recipe's published grid"})
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
    doc_stride: int | None = field(
        default=None, metadata={"help": "of qa: tokens from one window to the next; default: a quarter of max_length"}
    )
    n_best: int = field(default=20, metadata={"help": "of qa: starts and ends that are looked at in a window"})
    max_answer_length: int = field(default=30, metadata={"help": "of qa: tokens of an answer"})
    version_2_with_negative: bool = field(default=False, metadata={"help": "of qa: some questions have no answer"})
    null_score_diff_threshold: float = field(
        default=0.0, metadata={"help": "of qa: no answer is chosen where it scores higher by more than this"}
    )
    dropout: float | None = field(default=None, metadata={"help": "of all layers; default: the model's"})
    dtype: str = field(default="float32", metadata={"help": "of the weights: auto (as stored), float32, bfloat16"})
    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint in the output folder"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "begin anew in a folder that holds a run"})

    def __post_init__(self) -> None:
        allowed = {"task": TASKS, "cut": CUTS, "language": ("zh", "en"), "problem_type": (None, *KINDS)}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                names = ", ".join(value for value in values if value)
                hint = " Or give a --recipe." if name == "task" else ""
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {names}.{hint}")
        for name in ("doc_stride", "n_best", "max_answer_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1.")
        if self.grid and (self.recipe is None or self.seeds is not None):
            raise ValueError("--grid runs the published grid of a --recipe, once a point: without --seeds.")
        if self.seeds is not None and len(set(self.seeds)) < max(len(self.seeds), 1):
            raise ValueError(f"seeds={self.seeds} names a seed twice, or none.")


def main(arguments: list[str] | None = None) -> Trainer:
    """Trains, saves, plots and evaluates.

    Args:
        arguments: The command line; `None` reads that of the process.

    Returns:
        The trainer, for those who call this from Python; of several runs that of the last.

    Raises:
        ValueError: options that do not go together, or rows that are not what they should be.
    """
    given = sys.argv[1:] if arguments is None else arguments
    data, adapter, training = read_arguments(given)
    recipe = None if data.recipe is None else find_recipe(data.recipe)
    if recipe is not None and find_files(data.data, data.eval_data)[1] is None:
        raise ValueError(
            f"--recipe {data.recipe} was published with scores: give --eval_data, or a folder with dev data."
        )
    several = data.seeds is not None or data.grid
    trainer = run_several(given, data, training) if several else run(data, adapter, training)
    if recipe is not None and training.process_index == 0:
        searched = ("learning_rate", "dropout") if data.grid else ()
        used = {**vars(training), **vars(adapter), **vars(data)}
        changed = recipe.changed({name: value for name, value in used.items() if name not in searched})
        rows, published = rows_a_step(training), recipe.settings["per_device_train_batch_size"]
        changed += [f"rows a step={rows} ({published})"] if rows != published and not data.grid else []
        print(recipe.beside(scores_in(Path(str(training.output_dir))), changed))
    return trainer


def run_several(given: list[str], data: DataArguments, training: TrainingArguments) -> Any:
    """Trains once a seed, or once for every point of the published grid, in a folder each.

    Written are `seeds.json`, and the means as `evaluation.json`; or `grid.json`, and the best run's scores. With
    `--resume`, runs that are done stay, one that was stopped goes on, and the others begin.

    Returns:
        The trainer of the last run; `None` where all were done.

    Raises:
        ValueError: nothing to evaluate on; a folder that holds such a run.
    """
    folder = Path(str(training.output_dir))
    option, file = ("--grid", folder / "grid.json") if data.grid else ("--seeds", folder / "seeds.json")
    if find_files(data.data, data.eval_data)[1] is None:
        raise ValueError(f"{option} compares scores: give --eval_data, or a folder with dev data.")
    if training.resume_from_checkpoint:
        raise ValueError("--resume_from_checkpoint names the checkpoint of one run: go on with --resume true.")
    if file.exists() and not (data.resume or data.overwrite_output_dir):
        raise ValueError(
            f"{folder} holds a run already ({file.name}). Go on with it: --resume true. Begin anew there: "
            "--overwrite_output_dir true. Or name another --output_dir."
        )
    scores: dict[Any, dict[str, float]] = {}
    trainer = None
    for name, (place, words) in runs_of(data, training).items():
        of_run = folder / place
        if not (data.resume and (of_run / "evaluation.json").is_file()):
            begun = data.resume and any(of_run.glob("checkpoint-*"))
            more = [*words, "--output_dir", str(of_run), "--resume", str(begun)]
            trainer = run(*read_arguments([*given, *more]))
        if training.process_index == 0:
            scores[name] = scores_in(of_run)
    if training.process_index == 0:
        metric = str(training.metric_for_best_model)
        report = grid_report(scores, metric) if data.grid else seeds_report(scores)
        write_json(file, report)
        means = {} if data.grid else {name: one["mean"] for name, one in report["summary"].items()}
        write_json(folder / "evaluation.json", {"scores": scores[report["best"]] if data.grid else means})
        print(grid_table(scores, metric) if data.grid else seeds_table(scores, TIMES))
    return trainer


def runs_of(data: DataArguments, training: TrainingArguments) -> dict[Any, tuple[str, list[str]]]:
    """The runs that are asked for: name -> its folder, and its options."""
    if not data.grid:
        return {seed: (f"seed-{seed}", ["--seed", str(seed)]) for seed in data.seeds or ()}
    runs: dict[Any, tuple[str, list[str]]] = {}
    for point in published_grid(str(data.recipe)):
        rate, rows = point["learning_rate"], point["per_device_train_batch_size"]
        name = f"lr-{rate:.0e}-batch-{rows}" + ("-no-dropout" if "dropout" in point else "")
        dropout = str(point["dropout"]) if "dropout" in point else None
        words = ["--learning_rate", str(rate), BATCH_OPTION, str(share_of_rows(rows, training, data))]
        runs[name] = name, words + (["--dropout", dropout] if dropout else [])
    return runs


def share_of_rows(rows: int, training: TrainingArguments, data: DataArguments) -> int:
    """Rows of a step on each device; raises ValueError where devices cannot share them."""
    devices = training.world_size * max(training.n_gpu, 1)
    if rows % devices:
        raise ValueError(
            f"--recipe {data.recipe} has {rows} rows a step, which {devices} devices cannot share: "
            f"give {BATCH_OPTION}."
        )
    return rows // devices


def run(data: DataArguments, adapter: AdapterArguments, training: TrainingArguments) -> Trainer:
    """Trains, saves, plots and evaluates once; raises as [`main`] does."""
    checkpoint = prepare_folder(training, data.resume, data.overwrite_output_dir)
    if training.process_index == 0:  # an earlier run's would say that this one is done
        Path(str(training.output_dir), "evaluation.json").unlink(missing_ok=True)
    set_seed(training.seed)
    tokenizer = AutoTokenizer.from_pretrained(data.model)
    task = TASKS[str(data.task)](tokenizer, longest_row(data, adapter), {**vars(data), "method": adapter.method})
    training.label_names = list(task.label_names)
    with training.main_process_first():
        files: list[Any] = [
            None if file is None else task.read(file) for file in find_files(data.data, data.eval_data)
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
        compute_loss_func=task.loss,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if adapter.method != "full" and trainer.is_world_process_zero():  # PEFT keeps no names of classes
        config: Any = getattr(trainer.model, "config")  # noqa: B009  # typed as one of torch's attributes
        config.save_pretrained(str(training.output_dir))
    trainer.save_state()
    if trainer.is_world_process_zero():
        plot_losses(trainer.state.log_history, Path(str(training.output_dir)) / "loss.png")
    if evaluation is not None:
        evaluate(trainer, task, files[1], evaluation)
    return trainer


def read_arguments(given: list[str]) -> tuple[DataArguments, AdapterArguments, TrainingArguments]:
    """Reads the command line; raises ValueError where options do not go together."""
    parser = HfArgumentParser(
        (DataArguments, AdapterArguments, TrainingArguments),  # type: ignore[arg-type]  # the host takes dataclasses
        description=__doc__.split("\n")[0],
    )
    parser.set_defaults(weight_decay=0.01, warmup_steps=0.1, report_to=["none"])
    recipe = recipe_in(given)
    if recipe is not None:
        parser.set_defaults(**recipe.settings)
    data, adapter, training = parser.parse_args_into_dataclasses(given)
    if (data.resume or training.resume_from_checkpoint) and adapter.method == "p-tuning":
        raise ValueError("--resume cannot go on with p-tuning: PEFT saves what its encoder made, not the encoder.")
    if data.task in ("uie", "utc", "qa", "choice") and training.label_smoothing_factor:
        raise ValueError(f"The loss of {data.task} has no labels to smooth: leave --label_smoothing_factor out.")
    if recipe is not None and not any(word.replace("-", "_").startswith(f"__{BATCH_OPTION[2:]}") for word in given):
        rows = training.per_device_train_batch_size
        training.per_device_train_batch_size = share_of_rows(rows, training, data)
    return data, adapter, training


def rows_a_step(training: TrainingArguments) -> int:
    """Rows that one step of the optimizer sees, over all devices."""
    devices = training.world_size * max(training.n_gpu, 1)
    return training.per_device_train_batch_size * devices * training.gradient_accumulation_steps


def recipe_in(given: list[str]) -> Recipe | None:
    """The recipe that a command line names; its settings are the defaults of the other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    name = parser.parse_known_args(given)[0].recipe
    return None if name is None else find_recipe(name)


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
    model = task.open_model(data.model, dtype=dtype, quantization_config=quantization)
    if data.dropout is not None:
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = data.dropout
        for layer in model.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = data.dropout
    return model


def encoded(task: ErnieTask, rows: Any) -> Any:
    """The rows as the model's inputs and labels."""
    return rows.map(task.encode, batched=True, with_indices=True, remove_columns=rows.column_names)


def evaluate(trainer: Trainer, task: ErnieTask, rows: Any, evaluation: Any) -> None:
    """Writes `evaluation.json`: the scores of the model as it is saved, by class, and where its mistakes are."""
    prediction = trainer.predict(evaluation, metric_key_prefix="eval")
    if trainer.is_world_process_zero():
        report = {"scores": prediction.metrics, **task.report(rows, evaluation, prediction)}
        write_json(Path(str(trainer.args.output_dir), "evaluation.json"), report)


def scores_in(folder: Path) -> dict[str, float]:
    """The scores that `evaluation.json` of a folder holds."""
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["scores"]


def write_json(file: Path, content: Any) -> None:
    """Writes a file of JSON for people to read."""
    file.write_text(f"{json.dumps(content, ensure_ascii=False, indent=1)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
