"""What the data path of ERNIE 3.0's pre-training costs at any size: resuming, a worker's memory, the rows ranks read.

    python benchmarks/streams_ernie3.py [--vocab .../vocab.txt] [--step 10000]

- *Resuming*: the mixture of all seven tasks is taken to `--step` steps of 14 rows (rows are drawn from the data, and
  not built), its state goes through JSON, and another mixture gives its first batch from it. Beside it what it would
  take to build all batches again, as a resumed run did before; from the time of 20. The batch is held against that
  of the mixture that went on.
- *Memory*: how much more a process holds when it has opened data of 10^4 .. 10^8 rows and read a batch of each task.
  The rows are made when they are asked for, so nothing but their order needs memory. Beside it the permutation that
  was kept before, for one task.
- *Rows*: what all ranks together read in the first step of the published schedule, and fillers.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import torch
from rows_ernie3 import TOKENS, make_tasks, make_texts
from tokenizer_ernie import RELEASED

from hf_glm_ernie import Ernie3PretrainingMixture, Ernie3Tokenizer, ProgressiveSchedule
from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM
from hf_glm_ernie.ernie3_training.streams import Shard

TEXTS, BATCH = 40, 14
SHARD = Shard(0, 1, 0, 1)


class Repeated(Sequence):
    """`count` rows that are made when they are asked for.

    Args:
        rows: What they are made of.
        count: How many there seem to be.
    """

    def __init__(self, rows: list[dict[str, Any]], count: int) -> None:
        self.rows, self.size = rows, count

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index % len(self.rows)]


def make_mixture(vocabulary: str, count: int, **options: Any) -> Ernie3PretrainingMixture:
    """All seven tasks on `count` rows each; documents of two to three segments."""
    tokenizer: Any = Ernie3Tokenizer.from_released_vocabulary(vocabulary, num_pieces=None)
    texts = make_texts(tokenizer, TEXTS)
    tasks = {builder.task: (Repeated(rows, count), builder) for rows, builder in make_tasks(tokenizer, texts).values()}
    joined = ["".join(one) for one in texts]
    documents = [{"text": joined[at] + joined[(at + 1) % TEXTS]} for at in range(TEXTS)]
    settings = options or {"batch_size": BATCH, "length": TOKENS}
    return Ernie3PretrainingMixture(tokenizer, list(tasks.values()), Repeated(documents, count), **settings)


def resume(vocabulary: str, step: int) -> None:
    """Prints how long a run takes to go on at a step."""
    mixture = make_mixture(vocabulary, 10**6)
    first = mixture.reader(SHARD)
    segments = first.segments
    assert segments is not None
    start = time.perf_counter()
    for number in range(20):
        first.read(number)
    a_batch = (time.perf_counter() - start) / 20
    for number in range(20, step):
        for task, count in mixture.rows_at(number).items():
            if task == DOCUMENT_LM:
                segments.read(count, TOKENS)
            else:
                for _ in range(count):
                    next(first.sources[task])
    text = json.dumps({"shard": 0, "shards": 1, "batch": step, "reader": first.state_dict()})
    other = make_mixture(vocabulary, 10**6)
    start = time.perf_counter()
    other.load_state_dict(json.loads(text))
    batch = next(iter(other))
    seconds = time.perf_counter() - start
    expected = first.read(step)
    for task, inputs in expected["batches"].items():
        for name, value in inputs.items():
            found = batch["batches"][task][name]
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, (task, name)
    print(f"Going on at step {step:,}: {seconds:.2f} s to the first batch, which is the same.")
    print(f"The state has {len(text):,} characters. Building every batch again: {step * a_batch:,.0f} s.\n")


def held(vocabulary: str, count: int, answers: Any) -> None:
    """A worker: how many bytes more it holds when it has read a batch."""
    process = psutil.Process()
    mixture = make_mixture(vocabulary, count)
    make_mixture(vocabulary, 1000).reader(SHARD).read(0)  # the libraries' own memory
    before = process.memory_info().rss
    start = time.perf_counter()
    reader = mixture.reader(SHARD)
    reader.read(0)
    seconds = time.perf_counter() - start
    after = process.memory_info().rss
    start = time.perf_counter()
    order = np.random.default_rng(0).permutation(count)
    answers.put((after - before, seconds, process.memory_info().rss - after, time.perf_counter() - start, order[0]))


def memory(vocabulary: str) -> None:
    """Prints what a worker needs for data of any size."""
    print("| rows of each task | a worker holds more | opened and a batch read | permutation of one task | made in |")
    print("|---|---|---|---|---|")
    for power in range(4, 9):
        answers: Any = multiprocessing.Queue()
        worker = multiprocessing.Process(target=held, args=(vocabulary, 10**power, answers))
        worker.start()
        grown, seconds, order, made, _ = answers.get()
        worker.join()
        print(
            f"| 10^{power} | {grown / 2**20:.1f} MiB | {seconds:.2f} s | {order / 2**20:.1f} MiB | {made:.2f} s |",
            flush=True,
        )
    print()


def rows(vocabulary: str) -> None:
    """Prints what ranks read of the first step's batch."""
    print("| ranks | rows read | fillers | a row of each task and rank at least, as before |\n|---|---|---|---|")
    schedule = ProgressiveSchedule.base()
    for ranks in (1, 2, 4, 8, 16, 64):
        parts = [
            make_small(vocabulary, schedule=schedule, rank=rank, world_size=ranks).rows_at(0) for rank in range(ranks)
        ]
        read = sum(sum(part.values()) for part in parts)
        fillers = sum(not count for part in parts for count in part.values())
        print(f"| {ranks} | {read} | {fillers} | {max(schedule.at(0).batch_size // ranks, len(parts[0])) * ranks} |")


def make_small(vocabulary: str, **options: Any) -> Ernie3PretrainingMixture:
    """The seven tasks without data: nothing is read of them."""
    tokenizer: Any = Ernie3Tokenizer.from_released_vocabulary(vocabulary, num_pieces=None)
    tasks: dict[str, Any] = {
        builder.task: ([], builder) for _, builder in make_tasks(tokenizer, [["一。", "二。"]]).values()
    }
    return Ernie3PretrainingMixture(tokenizer, list(tasks.values()), [], **options)


def main() -> None:
    """Prints all three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--vocab", default=str(RELEASED))
    parser.add_argument("--step", type=int, default=10_000)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    multiprocessing.set_start_method("spawn")
    resume(arguments.vocab, arguments.step)
    memory(arguments.vocab)
    rows(arguments.vocab)


if __name__ == "__main__":
    main()
