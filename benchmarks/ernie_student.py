"""A student for a schema of five labels beside its UIE teacher: F1, texts a second, size. No downloads.

    python benchmarks/ernie_student.py --output FOLDER

The teacher is the shipped UIE sample (3 layers), fine-tuned on made-up orders whose answers are known; the student
keeps one of its layers (PaddleNLP takes mini for base, an eighth of the work in its layers) and learns from the
labelled texts and from the teacher's answers on as many without labels. Both then answer the texts of
test in turns, and the best of three rounds of each counts. The teacher reads every text five times, each time behind
a prompt. With a sample this small, tokenization and Python take more of the student's time than of the teacher's.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "顾客,商品,城市,时间,价格"


def commands(output: Path, texts: int, teacher_epochs: int, epochs: int, layers: int) -> list[list[str]]:
    """What is run, in order, each behind `python`."""
    orders, rows, teacher = output / "orders", output / "rows", output / "teacher"
    tuned = [
        *("examples/finetune_ernie.py", "--task", "uie", "--method", "full", "--model", str(output / "uie")),
        *("--data", str(rows), "--output_dir", str(teacher), "--max_length", "128", "--learning_rate", "1e-3"),
        *("--num_train_epochs", str(teacher_epochs), "--per_device_train_batch_size", "32"),
        *("--save_strategy", "no", "--logging_steps", "100"),
    ]
    return [
        ["examples/made_up_labels.py", "--output", str(orders), "--texts", str(texts)],
        [
            *("-m", "conversion", "ernie", "--source", "examples/sample-ernie/uie"),
            *("--output", str(output / "uie"), "--dtype", "float32"),
        ],
        [
            *("-m", "hf_glm_ernie", "label-data", str(orders / "orders.jsonl"), "--output", str(rows)),
            *("--negative-ratio", "1", "--eval-negative-ratio", "1"),
        ],
        tuned,
        [
            *("-m", "hf_glm_ernie", "distil-uie", "--teacher", str(teacher), "--schema", SCHEMA),
            *("--texts", str(orders / "unlabelled.txt"), "--labelled", str(orders / "orders.jsonl")),
            *("--sample-index", str(rows / "sample_index.json"), "--output", str(output / "student")),
            *("--layers", str(layers), "--epochs", str(epochs), "--learning-rate", "1e-3"),
        ],
    ]


def main(arguments: list[str] | None = None) -> None:
    """Runs everything; the last command prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--texts", type=int, default=1500, help="labelled texts, and as many without (default: 1500)")
    parser.add_argument("--teacher-epochs", type=int, default=4, help="default: 4")
    parser.add_argument("--epochs", type=int, default=15, help="of the student (default: 15)")
    parser.add_argument("--layers", type=int, default=1, help="of the student, of 3 (default: 1)")
    options = parser.parse_args(arguments)
    if options.output.exists():
        parser.error(f"--output {options.output} exists already; name a new folder")
    output = options.output.resolve()
    for command in commands(output, options.texts, options.teacher_epochs, options.epochs, options.layers):
        print(f"$ python {' '.join(command)}", flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
