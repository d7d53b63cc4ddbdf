"""A pre-training run on the corpus of `corpus_ernie3.py`, streamed: seven tasks, killed and resumed on the way.

    python benchmarks/train_ernie3.py --corpus CORPUS --output RUN --steps 700 [--width 128] [--workers 1]
    kill -9 ..., and the same command again: it goes on from the last checkpoint
    python benchmarks/train_ernie3.py --corpus CORPUS --output RUN --report [--plot docs/images/...png]

Every task reads its own stream of JSON lines; paragraphs, sentences and keywords are made while it is read. The report
holds every loss over the first and the last tenth of the steps, how fast the step was, how fast the data path alone
builds the same batches, and the memory of the reading process over the run.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import IterableDataset, load_dataset
from transformers import AutoTokenizer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
from loss_plot import figure_for  # noqa: E402  # the examples are no package

from hf_glm_ernie import (  # noqa: E402
    ControllableLM,
    CredibleRows,
    Ernie3Config,
    Ernie3ForPreTraining,
    Ernie3PretrainingMixture,
    Ernie3PretrainingTrainer,
    KnowledgeMasking,
    KnowledgeTextPrediction,
    ProgressiveSchedule,
    SentenceDistance,
    SentenceReordering,
)
from hf_glm_ernie.ernie3_training.labels import ControlLabels, JiebaKeywords  # noqa: E402
from hf_glm_ernie.ernie3_training.splitting import split_sentences  # noqa: E402

PARAGRAPH = 480  # characters, until a sentence ends
OTHERS = 2000  # paragraphs in memory, of which sentence distance takes the other document
LENGTHS, BATCHES = (96, 128), (24, 32)  # tokens of a row and rows of a step, at the start and later
PAIR = 64  # tokens of two sentences
RATIOS = {  # pairs of sentences are short, and what they teach takes longest
    "knowledge_masked_lm": 2,
    "knowledge_text_prediction": 3,
    "sentence_reordering": 3,
    "sentence_distance": 14,
    "credible": 6,
    "controllable_lm": 2,
    "document_lm": 2,
}
WEIGHTS = {"sentence_distance": 5.0, "credible": 3.0}  # of the losses that are not 1


def paragraphs(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """A map function for `datasets`: documents to paragraphs of three sentences at least, and these sentences."""
    made: dict[str, list[Any]] = {"text": [], "sentences": [], "genre": [], "topic": []}
    for text, genre, topic in zip(rows["text"], rows["genre"], rows["topic"], strict=True):
        some: list[str] = []
        for sentence in split_sentences(text):
            if sentence.strip():
                some.append(sentence)
            if sum(map(len, some)) > PARAGRAPH and len(some) > 2:
                for name, value in {"text": "".join(some), "sentences": some, "genre": genre, "topic": topic}.items():
                    made[name].append(value)
                some = []
    return made


def stream(corpus: Path, part: str) -> IterableDataset:
    """The JSON lines of a part of the corpus."""
    files = sorted(map(str, (corpus / part).glob("*.jsonl")))
    return load_dataset("json", data_files=files, split="train", streaming=True)


def build_mixture(corpus: Path, tokenizer: Any, schedule: ProgressiveSchedule, seed: int) -> Ernie3PretrainingMixture:
    """All seven tasks on streams."""
    texts = stream(corpus, "texts")
    whole = texts.map(paragraphs, batched=True, batch_size=16, remove_columns=texts.column_names)
    described = whole.select_columns(["text", "genre", "topic"]).map(
        ControlLabels(keywords=JiebaKeywords()), batched=True, batch_size=16
    )
    others = [row["sentences"] for row in islice(whole, OTHERS)]
    sentences = whole.select_columns(["sentences"])
    settings: dict[str, Any] = {"max_length": LENGTHS[1], "truncation": True, "seed": seed}
    tasks: list[tuple[Any, Any]] = [
        (whole.select_columns(["text"]), KnowledgeMasking(tokenizer, **settings)),
        (stream(corpus, "triples"), KnowledgeTextPrediction(tokenizer, **settings)),
        (sentences, SentenceReordering(tokenizer, **settings)),
        (sentences, SentenceDistance(tokenizer, documents=others, **settings | {"max_length": PAIR})),
        (stream(corpus, "pairs"), CredibleRows(tokenizer, **settings)),
        (described, ControllableLM(tokenizer, **settings)),
    ]
    documents = texts.select_columns(["text"])
    return Ernie3PretrainingMixture(
        tokenizer, tasks, documents, ratios=RATIOS, schedule=schedule, seed=seed, shuffle_buffer_size=256
    )


def build_model(tokenizer: Any, width: int) -> Ernie3ForPreTraining:
    """Four universal layers and two of each branch."""
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_attention_heads": max(width // 64, 2),
        "intermediate_size": 4 * width,
    }
    branch: dict[str, Any] = {f"branch_{name}": size for name, size in sizes.items()}
    config = Ernie3Config(
        vocab_size=len(tokenizer),
        num_hidden_layers=4,
        branch_num_hidden_layers=2,
        **sizes,
        **branch,
        max_position_embeddings=1024,
        memory_length=64,
        num_credible_labels=2,
        num_soft_prompt_genres=11,
        soft_prompt_token_id=tokenizer.soft_prompt_token_id,
        sentence_token_id=tokenizer.sentence_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Ernie3ForPreTraining(config)


class Watch(TrainerCallback):
    """Writes down, at every log, the time and the memory of the processes, resumed runs behind each other."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, time.time()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the Trainer."""
        own = psutil.Process()
        workers = [child.memory_info() for child in own.children(recursive=True)]
        row = {
            "step": state.global_step,
            "seconds": round(time.time() - self.start, 1),
            "cpu_seconds": round(sum(own.cpu_times()[:2]), 1),
            "memory": own.memory_info().rss >> 20,
            "workers_memory": sum(one.rss - one.shared for one in workers) >> 20,
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row | (logs or {})) + "\n")


def train(arguments: argparse.Namespace, tokenizer: Any, schedule: ProgressiveSchedule) -> None:
    """Trains, from the last checkpoint where there is one."""
    set_seed(arguments.seed)
    mixture = build_mixture(arguments.corpus, tokenizer, schedule, arguments.seed)
    model = build_model(tokenizer, arguments.width)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens", flush=True)
    settings = TrainingArguments(
        str(arguments.output),
        max_steps=arguments.steps,
        learning_rate=schedule.learning_rate[1],
        weight_decay=0.01,
        adam_beta2=0.95,
        logging_steps=5,
        save_steps=25,
        save_total_limit=2,
        dataloader_num_workers=arguments.workers,
        disable_tqdm=True,
        report_to=[],
        use_cpu=True,
        seed=arguments.seed,
    )
    last = get_last_checkpoint(str(arguments.output)) if arguments.output.is_dir() else None
    arguments.output.mkdir(parents=True, exist_ok=True)
    watch = Watch(arguments.output / "log.jsonl")
    trainer = Ernie3PretrainingTrainer(
        model, settings, train_dataset=mixture, schedule=schedule, task_weights=WEIGHTS, callbacks=[watch]
    )
    with open(arguments.output / "starts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.time(), "from": last}) + "\n")
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(str(arguments.output / "model"))
    trainer.state.save_to_json(str(arguments.output / "trainer_state.json"))


def data_rates(mixture: Ernie3PretrainingMixture, batches: int) -> tuple[float, float]:
    """Rows and tokens per CPU second of one process that only builds batches, without those that fill its buffers."""
    mixture.schedule, mixture.batch_size, mixture.length = None, BATCHES[1], LENGTHS[1]
    reading = iter(mixture)
    next(reading)
    rows = tokens = 0
    start = time.process_time()
    for batch in islice(reading, batches):
        for part in batch["batches"].values():
            rows += len(part["input_ids"])
            tokens += int(part["attention_mask"].sum())
    seconds = time.process_time() - start
    return rows / seconds, tokens / seconds


def report(arguments: argparse.Namespace, tokenizer: Any, schedule: ProgressiveSchedule) -> None:
    """Prints the tables, writes the losses and draws them."""
    lines = (arguments.output / "log.jsonl").read_text("utf-8").splitlines()
    by_step = {
        row["step"]: row for row in map(json.loads, lines) if "loss" in row
    }  # the last of a step that ran twice
    log = [by_step[step] for step in sorted(by_step)]
    tenth = max(len(log) // 10, 1)
    names = sorted(name for name in log[0] if name.endswith("_loss"))
    print("| loss | first tenth | last tenth | ratio |\n|---|---|---|---|")
    for name in names:
        first, last = (sum(row[name] for row in some) / tenth for some in (log[:tenth], log[-tenth:]))
        print(f"| {name.removesuffix('_loss').replace('_', ' ')} | {first:.3f} | {last:.3f} | {last / first:.2f} |")
    memories = [row["workers_memory"] for row in log]
    print(f"\nworkers' own memory, MiB: {memories[:: max(len(log) // 10, 1)]}")
    mixture = build_mixture(arguments.corpus, tokenizer, schedule, arguments.seed)
    rows, tokens = data_rates(mixture, 30)
    print(f"data path alone: {rows:,.0f} rows/s, {tokens:,.0f} tokens/s of a CPU second")
    with open(arguments.output / "losses.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(log[-1]), extrasaction="ignore")
        table.writeheader()
        table.writerows(log)
    figure = figure_for(arguments.plot, "losses.csv", (8, 4.5)) if arguments.plot else None
    if figure is not None:
        axes = figure.subplots()
        for name in names:
            losses = smooth([row[name] for row in log])
            label = name.removesuffix("_loss").replace("_", " ")
            axes.plot([row["step"] for row in log], [loss / losses[0] for loss in losses], label=label)
        axes.set(xlabel="step", ylabel="loss / first loss")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(arguments.plot, dpi=100)


def smooth(values: list[float], reach: int = 4) -> list[float]:
    """Each value's mean with those before and behind it."""
    windows = (values[max(at - reach, 0) : at + reach + 1] for at in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def main() -> None:
    """Trains or reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--report", action="store_true", help="tables of a run that was made, instead of one")
    parser.add_argument("--plot", type=Path, help="with --report: the picture")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.corpus / "tokenizer")
    peak = arguments.learning_rate
    total = arguments.steps + 1
    schedule = ProgressiveSchedule(arguments.steps // 5, LENGTHS, BATCHES, (peak / 10, peak), total_steps=total)
    (report if arguments.report else train)(arguments, tokenizer, schedule)


if __name__ == "__main__":
    main()
