"""A trained encoder made smaller, step by step, each step measured: what `python -m hf_glm_ernie shrink` does.

The order is that of PaddleNLP's published example (ernie-3.0-tiny, 69 MB to 5.4): heads and neurons first, trained
again on the teacher; then what needs no training: the vocabulary, embeddings of integers, products of integers in the
file that onnxruntime runs. The output is written beside its place and renamed at the end:

- `model/`: the student with its tokenizer, which `from_pretrained` opens;
- `onnx/`: the same exported, with INT8 files, which [`OnnxEncoder`] opens;
- `shrink.json`, `shrink.png`: size, speed and score of every stage.
"""

import importlib.util
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainingArguments, set_seed

from hf_glm_ernie.compact_ernie import quantize_embeddings
from hf_glm_ernie.ernie_tasks.exported import INT8_FILE, ONNX_FILE, STATIC_FILE, axes_of_class
from hf_glm_ernie.ernie_tasks.onnx_encoder import OnnxEncoder
from hf_glm_ernie.ernie_tasks.onnx_export import (
    graph_to_quantize,
    save_int8,
    save_onnx,
    trace,
    write_config,
    write_graph,
)

from .arguments import DYNAMIC, EMBEDDINGS, STATIC, ShrinkArguments
from .distillation import DistillationTrainer
from .importance import measure_importance
from .measuring import AsModule, Stage, measure_speeds, plot_stages, score_of, size_of
from .pruning import compact_copy, prune
from .static_int8 import save_static_int8
from .task_rows import TaskRows
from .vocabulary import keep_positions, keep_rows, needed_tokens, reduce_tokenizer, texts_in

TORCH, ORT = "torch", "onnxruntime"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MODEL, EXPORTED, REPORT, PICTURE = "model", "onnx", "shrink.json", "shrink.png"


def shrink(arguments: ShrinkArguments, show_progress: bool = True) -> list[Stage]:
    """Makes a folder with a smaller encoder in it.

    Args:
        arguments: What to do.
        show_progress: Whether to draw progress bars and name the stages.

    Returns:
        The stages in order, the teacher first, and on onnxruntime once more where the student is exported.

    Raises:
        FileExistsError: the output is there already.
        ImportError: a step that needs onnxruntime, onnx and onnxscript, and one of them is missing.
        ValueError: a model or rows that do not fit the task.
    """
    output = Path(arguments.output)
    if output.exists():
        raise FileExistsError(f"output={str(output)!r} exists already: name a new folder, or remove that one.")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing and {DYNAMIC, STATIC} & set(arguments.int8):
        raise ImportError(
            f"int8={' '.join(arguments.int8)} writes files for onnxruntime and needs {', '.join(missing)}: "
            f"pip install 'hf-glm-ernie[onnx]', or leave {DYNAMIC} and {STATIC} out."
        )
    set_seed(arguments.seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Nothing half-written stays where the folder is to be.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as unfinished:
        folder = Path(unfinished) / "folder"
        folder.mkdir()
        run = _Run(arguments, folder, Path(unfinished), show_progress)
        run.make()
        run.report()
        folder.rename(output)
    return run.stages


class _Run:
    """One run: the rows, the student as far as it is, and the stages so far."""

    def __init__(self, arguments: ShrinkArguments, folder: Path, scratch: Path, show_progress: bool):
        self.arguments, self.folder, self.scratch, self.shown = arguments, folder, scratch, show_progress
        self.rows = TaskRows(arguments)
        self.stages: list[Stage] = []
        self.runs: list[tuple[Callable[..., Any], Any]] = []  # what a stage does with a batch, and its batches
        self.beside: dict[str, Any] = {}

    def make(self) -> None:
        """All steps that were asked for."""
        arguments, rows = self.arguments, self.rows
        teacher = rows.open_teacher()
        rows.encode(teacher)
        self.measure("teacher", teacher)
        student = teacher
        if arguments.width < 1:
            batches = tqdm(rows.batches(), desc="importance", unit="batch", disable=not self.shown)
            student = prune(teacher, measure_importance(teacher, batches), arguments.width)
            self.measure(f"pruned to {arguments.width:g}", student)
            if arguments.epochs:
                self.distil(teacher, student)
                self.measure("distilled", student)
        exported = {DYNAMIC, STATIC} & set(arguments.int8)
        if exported:
            self.export("teacher", teacher, self.scratch / "teacher", (None,))
        if arguments.reduces_vocabulary:
            student = compact_copy(student)
            self.reduce_vocabulary(student)
            self.measure("vocabulary", student)
        if EMBEDDINGS in arguments.int8:
            student = compact_copy(student)
            quantize_embeddings(student.base_model)
            student.config.embedding_bits = 8
            self.measure("INT8 embeddings", student)
        student.save_pretrained(self.folder / MODEL)
        rows.tokenizer.save_pretrained(self.folder / MODEL)
        self.stages[-1].path = MODEL
        if exported:
            self.export("student", student, self.folder / EXPORTED, (None, *arguments.int8))

    def measure(self, name: str, model: PreTrainedModel, path: str | None = None) -> None:
        """Adds a stage of torch."""
        size = sum(one.numel() * one.element_size() for one in model.state_dict().values())
        model.eval()

        def run(batch: dict[str, torch.Tensor]) -> None:
            with torch.inference_mode():
                model(**batch)

        self.add(name, TORCH, path, size, model, run)

    def add(self, name: str, runtime: str, path: str | None, size: int, model: Any, run: Callable[..., Any]) -> None:
        """Adds a stage with its score; speeds are measured at the end, in turns."""
        rows = self.rows
        if self.shown:
            tqdm.write(f"{name} ({runtime}): scoring")
        scores = score_of(model, rows.task, rows.evaluation, self.arguments.batch_size, self.scratch)
        best = rows.task.best if rows.task.best in scores else list(scores)[-1]
        self.beside["metric"] = best
        self.stages.append(Stage(name, runtime, path, size, scores[best], scores=scores))
        self.runs.append((run, list(rows.batches(self.arguments.speed_rows, labels=False))))
        if self.shown:
            tqdm.write(f"{name} ({runtime}): {size / 2**20:.2f} MiB, {best} {scores[best]:.4f}")

    def distil(self, teacher: PreTrainedModel, student: PreTrainedModel) -> None:
        """Trains the student on the teacher's answers; the epoch with the best score stays."""
        arguments, rows = self.arguments, self.rows
        metric = self.beside["metric"]
        training = TrainingArguments(
            output_dir=str(self.scratch / "distilled"),
            num_train_epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            warmup_steps=0.1,
            weight_decay=0.01,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=arguments.batch_size,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            save_only_model=True,
            load_best_model_at_end=True,
            metric_for_best_model=f"eval_{metric}",
            greater_is_better=metric != "mse",
            label_names=list(rows.task.label_names),
            report_to=[],
            logging_strategy="epoch",
            disable_tqdm=not self.shown,
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=arguments.seed,
        )
        trainer = DistillationTrainer(
            model=student,
            teacher=teacher,
            args=training,
            train_dataset=rows.train,
            eval_dataset=rows.evaluation,
            data_collator=rows.task.collator(),
            compute_metrics=rows.task.metrics,
            preprocess_logits_for_metrics=rows.task.keep,
        )
        trainer.train()
        self.beside["losses"] = [
            entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry
        ]
        whole: Any
        for whole in (teacher, student):
            whole.to("cpu").eval()

    def reduce_vocabulary(self, student: Any) -> None:
        """Leaves the corpus's tokens and the positions of a row, in place, and encodes the rows again."""
        rows, arguments = self.rows, self.arguments
        texts = [text for one in rows.files for row in one for text in texts_in(row)]
        for file in arguments.corpus_files:
            texts += [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        ids = {index for one in (rows.train, rows.evaluation) for row in one["input_ids"] for index in row}
        tokens = needed_tokens(rows.tokenizer, texts, ids, arguments.characters)
        tokenizer, old_ids = reduce_tokenizer(rows.tokenizer, tokens)
        before = student.config.vocab_size, student.config.max_position_embeddings
        keep_rows(student, old_ids, tokenizer.pad_token_id)
        keep_positions(student, rows.max_length)
        tokenizer.model_max_length = rows.max_length
        after = student.config.vocab_size, student.config.max_position_embeddings
        self.beside["vocabulary"], self.beside["positions"] = ([*pair] for pair in zip(before, after, strict=True))
        rows.with_tokenizer(tokenizer)
        rows.encode(student)

    def export(self, name: str, model: Any, folder: Path, steps: Sequence[str | None]) -> None:
        """Exports a model and quantizes the file; a stage for each file."""
        folder.mkdir()
        write_config(model, folder)
        self.rows.tokenizer.save_pretrained(folder)
        for step in steps:
            if step == EMBEDDINGS:
                continue
            file = {None: ONNX_FILE, DYNAMIC: INT8_FILE, STATIC: STATIC_FILE}[step]
            if step is None:
                save_onnx(trace(model), model, folder / file)
                write_graph(graph_to_quantize(folder / file), folder / file)
            elif step == DYNAMIC:
                save_int8(folder / ONNX_FILE, folder / file)
            else:
                batches = self.rows.batches(self.arguments.calibration_rows, labels=False)
                save_static_int8(folder / ONNX_FILE, folder / file, batches, self.arguments.calibration)
            encoder = OnnxEncoder(folder, file, threads=torch.get_num_threads())
            names = [one for one in axes_of_class(type(model).__name__) if one in encoder.input_names]
            title = name if step is None else f"{step} INT8"
            path = f"{EXPORTED}/{file}" if folder.parent == self.folder else None
            run = AsModule(encoder, names)
            self.add(title, ORT, path, size_of(folder / file), run, lambda batch, run=run: run(**batch))

    def report(self) -> None:
        """Measures speeds, and writes the table and the plot."""
        numbers = {str(number): run for number, (run, _) in enumerate(self.runs)}
        batches = {str(number): own for number, (_, own) in enumerate(self.runs)}
        found = measure_speeds(numbers, batches, show_progress=self.shown)
        for number, stage in enumerate(self.stages):
            stage.rows_a_second = found[str(number)]
        report = {
            "arguments": {name: _plain(value) for name, value in vars(self.arguments).items()},
            **self.beside,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "stages": [stage.row() for stage in self.stages],
        }
        text = json.dumps(report, ensure_ascii=False, indent=1)
        (self.folder / REPORT).write_text(f"{text}\n", encoding="utf-8")
        plot_stages(self.stages, self.beside["metric"], self.folder / PICTURE)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


__all__ = ["ShrinkArguments", "shrink"]
