"""Labels, training and measuring from end to end: what the shipped sample learns of 2,000 made-up texts in minutes.

    python benchmarks/ernie_loop.py

The texts are those of `examples/made_up_labels.py`; rows for UIE and UTC are made by `label-data` of what a label tool
would export. Every task is trained by `examples/finetune_ernie.py` on the texts of `train` and measured once, on those
of `test`, which neither training nor the choice of settings saw. UIE is measured by F1 over all prompts (relations
asked about the right subject, as PaddleNLP does), UTC by the accuracy of all pairs of a text and an option, tags by
the F1 of whole entities, questions by exact match.

A text holds one order (`--two-orders 0`); with two orders in a text, which only a question's name tells apart, the
sample answers fewer than half of the questions: three layers learn kinds of answers in minutes, not whose is whose.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "examples" / "sample-ernie"


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        task: Of `finetune_ernie.py`.
        model: The sample's part that it begins with.
        rows: Folder of the training rows.
        test: File that is measured.
        metric: In `evaluation.json`.
        asked: What it has to reach.
        settings: Epochs, batch, learning rate.
    """

    task: str
    model: str
    rows: str
    test: str
    metric: str
    asked: float
    settings: tuple[int, int, float]


JOBS = (
    Job("uie", "uie", "uie-rows", "test.txt", "eval_f1", 0.95, (5, 32, 1e-3)),
    Job("utc", "masked-lm", "utc-rows", "test.txt", "eval_micro_f1", 0.95, (10, 16, 1e-3)),
    Job("tokens", "masked-lm", "made-up/tags", "test.jsonl", "eval_f1", 0.95, (10, 16, 2e-3)),
    Job("qa", "masked-lm", "made-up/questions", "test.jsonl", "eval_exact_match", 0.9, (2, 32, 3e-3)),
)


def run(*command: str | Path, folder: Path) -> None:
    """Runs a program of this repository; its last words are shown when it fails."""
    words, environment = [sys.executable, *map(str, command)], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}")


def prepare(folder: Path, texts: int, two_orders: float) -> None:
    """Exports, rows of them, and the sample converted."""
    size = ("--texts", str(texts), "--two-orders", str(two_orders))
    run(ROOT / "examples/made_up_labels.py", "--output", "made-up", *size, folder=folder)
    label_data = ("-m", "hf_glm_ernie", "label-data")
    run(*label_data, "made-up/orders.jsonl", "--output", "uie-rows", folder=folder)
    options = ("--task", "utc", "--options", "made-up/requests.txt")
    run(*label_data, "made-up/requests.json", "--output", "utc-rows", *options, folder=folder)
    for name in ("uie", "masked-lm"):
        run("-m", "conversion", "ernie", "--source", SAMPLE / name, "--output", name, folder=folder)


def train(job: Job, folder: Path) -> tuple[float, float]:
    """Seconds of the training, and the score on the held-out texts."""
    begin = time.perf_counter()
    epochs, batch, rate = job.settings
    rows, output = folder / job.rows, folder / f"{job.task}-trained"
    options = {
        "task": job.task,
        "model": folder / job.model,
        "data": next(rows.glob("train.*")),
        "eval_data": rows / job.test,
        "output_dir": output,
        "method": "full",
        "max_length": 128,
        "learning_rate": rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": 64,
        "save_strategy": "no",
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    run(ROOT / "examples/finetune_ernie.py", *words, "--use_cpu", folder=folder)
    scores = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))["scores"]
    return time.perf_counter() - begin, float(scores[job.metric])


def main() -> None:
    """Trains, and prints a table; exits with 1 where a score is not reached."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=2000, help="labelled texts; a tenth of them is measured on")
    parser.add_argument("--two-orders", type=float, default=0.0, help="share of texts with two orders")
    parser.add_argument("--tasks", nargs="+", choices=[job.task for job in JOBS], default=[job.task for job in JOBS])
    options = parser.parse_args()
    jobs = [job for job in JOBS if job.task in options.tasks]
    missed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.texts, options.two_orders)
        print("| task | rows | score on held-out texts | asked | minutes |\n|---|---|---|---|---|")
        for job in tqdm(jobs, desc="Trained", unit="task", disable=None):
            seconds, score = train(job, folder)
            with next((folder / job.rows).glob("train.*")).open(encoding="utf-8") as file:
                rows = sum(1 for _ in file)
            score /= 100 if job.task == "qa" else 1  # in percent there
            missed |= score <= job.asked
            found = f"{job.metric.removeprefix('eval_')} {score:.4f}"
            print(f"| {job.task} | {rows:,} | {found} | > {job.asked} | {seconds / 60:.1f} |", flush=True)
    sys.exit(int(missed))


if __name__ == "__main__":
    main()
