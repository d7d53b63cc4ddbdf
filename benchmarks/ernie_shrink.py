"""How small and fast `python -m hf_glm_ernie shrink` makes a model of a released layout, and what it costs in score.

    python benchmarks/ernie_shrink.py --output /tmp/shrunk

No weights are needed: a model of ernie-3.0-nano's shape, its vocabulary of 39,979 tokens in 40,000 rows, is trained
from a random start on made-up orders (examples/made_up_labels.py, classes of requests), then shrunk. The table
at the end has every stage, all speeds measured in turns in one process; `shrink.json` and `shrink.png` lie in the
output. Exit status 0: the smallest file has at most 15% of the teacher's bytes, 3 times its speed on the same runtime,
and 97% of its score. A quarter of an hour on two cores.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import ErnieConfig, ErnieModel

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import finetune_ernie
import made_up_labels

from hf_glm_ernie import ErnieTokenizer
from hf_glm_ernie.ernie_shrinking import command

TOKENS, ROWS = 39979, 40000
NANO: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 312,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "intermediate_size": 1248,
    "max_position_embeddings": 2048,
    "type_vocab_size": 4,
    "task_type_vocab_size": 16,
    "use_task_id": True,
}
SIZE, SPEED, SCORE = 0.15, 3.0, 0.97
"""Of the teacher's: what the smallest file may have at most, and has to have at least."""


def main(arguments: list[str] | None = None) -> int:
    """Trains, shrinks, and says whether it is small, fast and good enough."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to be made")
    parser.add_argument("--texts", type=int, default=2000, help="made-up texts; a tenth of them is measured on")
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--student-epochs", type=int, default=2)
    parser.add_argument("--width", type=float, default=0.5, help="share of heads and neurons that stay")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True)
    data = options.output / "orders"
    made_up_labels.main([f"--output={data}", f"--texts={options.texts}"])
    make_random_nano(options.output / "random")
    finetune_ernie.main(
        [
            *("--method", "full", "--task", "classification", "--model", str(options.output / "random")),
            *("--data", str(data / "classes"), "--output_dir", str(options.output / "teacher")),
            *("--num_train_epochs", str(options.teacher_epochs), "--learning_rate", "5e-4", "--max_length", "128"),
            *("--per_device_train_batch_size", "16", "--save_strategy", "no", "--logging_steps", "25"),
        ]
    )
    status = command.main(
        [
            *("--task", "classification", "--model", str(options.output / "teacher"), "--data", str(data / "classes")),
            *("--output", str(options.output / "shrunk"), "--width", str(options.width), "--max-length", "128"),
            *("--epochs", str(options.student_epochs), "--learning-rate", "3e-4"),
        ]
    )
    return status or judge(options.output / "shrunk" / "shrink.json")


def make_random_nano(folder: Path) -> None:
    """An encoder of the released layout, with random values and a vocabulary of characters."""
    folder.mkdir()
    characters = [chr(code) for code in range(0x4E00, 0x9FA6)]
    typed = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *"，。！？：；、（）《》“”", *typed, *(f"##{one}" for one in typed)]
    tokens += characters + [f"##{one}" for one in characters]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("".join(f"{token}\n" for token in [*tokens[: TOKENS - 1], "[UNK]"]), encoding="utf-8")
    ErnieTokenizer(str(vocabulary), model_max_length=NANO["max_position_embeddings"]).save_pretrained(folder)
    torch.manual_seed(0)
    ErnieModel(ErnieConfig(**NANO)).save_pretrained(folder)


def judge(report: Path) -> int:
    """Holds the smallest file against the teacher on the same runtime. Returns the exit status."""
    stages = json.loads(report.read_text(encoding="utf-8"))["stages"]
    smallest = min(stages, key=lambda stage: stage["size"])
    teachers = {stage["runtime"]: stage for stage in stages if stage["name"] == "teacher"}
    same = teachers[smallest["runtime"]]
    size = smallest["size"] / teachers["torch"]["size"]
    speed, score = (smallest[name] / same[name] for name in ("rows_a_second", "score"))
    sys.stdout.write(
        f"{smallest['name']}: {size:.1%} of the bytes (at most {SIZE:.0%}), {speed:.2f} times the speed on "
        f"{smallest['runtime']} (at least {SPEED:g}), {score:.1%} of the score (at least {SCORE:.0%})\n"
    )
    return 0 if size <= SIZE and speed >= SPEED and score >= SCORE else 1


if __name__ == "__main__":
    sys.exit(main())
