"""Packing documents into rows, and heads that run at labelled tokens only: shares, tokens a second, steps a second.

`python benchmarks/packing_ernie3.py [--repeats 5] [--threads 1]`

On made-up ids and models with a vocabulary of 30,000. First which share of the columns of batches of 8 rows is real
tokens, with and without packing, and how many real tokens a second a training step (forward and backward, memories
carried) reads. Then a step whose head runs at all tokens, and at labelled ones. The two sides of a line take turns.
Times are the process's own CPU time, because other programs run beside, of `--repeats` rounds the median.
"""

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hf_glm_ernie import DocumentStreams, Ernie3Config, Ernie3ForPreTraining
from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM, KNOWLEDGE_MASKED_LM
from hf_glm_ernie.ernie3_training.collator import collate_rows
from hf_glm_ernie.ernie3_training.memories import MemoryBank
from hf_glm_ernie.ernie3_training.packing import pack_rows

VOCABULARY, LENGTH, ROWS = 30_000, 512, 8
COUNTED = 50  # batches whose columns are counted
TIMED = 2  # rows of the second of them that are trained on
SIZES = [(50, 300), (20, 120)]


class Pad:
    """What a stream asks of a tokenizer whose documents are ids already."""

    pad_token_id = 0


def build_model(width: int, layers: int, branch_width: int) -> Ernie3ForPreTraining:
    """A universal stack and branches of one layer, without dropout."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "branch_hidden_size": branch_width,
        "branch_num_hidden_layers": 1,
        "branch_num_attention_heads": branch_width // 64,
        "branch_intermediate_size": 4 * branch_width,
        "tie_word_embeddings": width == branch_width,
        "memory_length": 128,
        "eos_token_id": 3,
    }
    dropouts = [
        name + kind for name in ("", "branch_") for kind in ("hidden_dropout_prob", "attention_probs_dropout_prob")
    ]
    config |= dict.fromkeys(dropouts, 0.0)
    return Ernie3ForPreTraining(Ernie3Config(vocab_size=VOCABULARY, **config))


def some_ids(rng: random.Random, sizes: tuple[int, int]) -> list[int]:
    """A text of so many tokens."""
    return [rng.randint(4, VOCABULARY - 1) for _ in range(rng.randint(*sizes))]


def document_batches(sizes: tuple[int, int], packing: bool) -> list[dict[str, Any]]:
    """Batches of a stream."""
    rng = random.Random(0)
    documents = [{"input_ids": some_ids(rng, sizes)} for _ in range(1000)]
    return list(DocumentStreams(documents, Pad(), rows=ROWS, length=LENGTH, packing=packing, num_batches=COUNTED))


def masked_rows(sizes: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Texts in which 15% of the tokens are asked for."""
    rng = random.Random(0)
    while True:
        ids = some_ids(rng, sizes)
        yield {"input_ids": ids, "labels": [token if rng.random() < 0.15 else -100 for token in ids]}


def masked_batches(sizes: tuple[int, int], packing: bool) -> list[dict[str, Any]]:
    """Batches of `ROWS` rows."""
    texts, batches, waiting = masked_rows(sizes), [], list[dict[str, Any]]()
    for _ in range(COUNTED):
        rows = list(itertools.islice(texts, 0 if packing else ROWS))
        if packing:
            rows, waiting = pack_rows(lambda n: list(itertools.islice(texts, n)), ROWS, LENGTH, waiting)
        batches.append(collate_rows(rows, Pad.pad_token_id))
    return batches


def share(batches: list[dict[str, Any]]) -> float:
    """Of all columns, those that hold a real token."""
    return sum(int(b["attention_mask"].sum()) for b in batches) / sum(b["input_ids"].numel() for b in batches)


def step(model: Ernie3ForPreTraining, task: str, batches: list[dict[str, Any]], whole: bool = False) -> Any:
    """Forward and backward of a stream's second batch, on the memories of its first; `whole`: logits of all tokens."""
    first, inputs = ({name: value[:TIMED] for name, value in batch.items()} for batch in batches[:2])
    inputs = {"branch": "nlu", "return_logits": whole, **inputs}
    if task == DOCUMENT_LM:
        bank, stream_ids = MemoryBank(), first.pop("stream_ids")
        del first["memory_reset"]
        with torch.no_grad():
            output = model(**first, branch="nlg", return_memories=True, return_logits=False)
        bank.put(stream_ids, output.memories)
        memories = bank.take(inputs.pop("stream_ids"), inputs.pop("memory_reset"))
        inputs |= {"branch": "nlg", "memories": memories, "return_memories": True}

    def run() -> None:
        model(batches={task: inputs}).loss.backward()
        model.zero_grad()

    return run


def seconds(works: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The median of each, all of them in turn; the first round does not count."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(found[1:]) for name, found in taken.items()}


def compare_packing(model: Ernie3ForPreTraining, repeats: int) -> None:
    """Prints shares and tokens a second of both tasks that are packed."""
    print("| task, tokens a text | real tokens, alone | packed | tokens/s, alone | packed | ratio |")
    print("|---|---|---|---|---|---|")
    kinds: list[tuple[str, Callable[..., list[dict[str, Any]]], list[tuple[int, int]]]] = [
        (DOCUMENT_LM, document_batches, SIZES),
        (KNOWLEDGE_MASKED_LM, masked_batches, SIZES),
    ]
    for task, make, every in kinds:
        for sizes in every:
            batches = {name: make(sizes, name == "packed") for name in ("alone", "packed")}
            columns = {name: TIMED * found[1]["input_ids"].shape[1] for name, found in batches.items()}
            taken = seconds({name: step(model, task, found) for name, found in batches.items()}, repeats)
            rates = {name: columns[name] * share(found) / taken[name] for name, found in batches.items()}
            shares = " | ".join(f"{share(found):.1%}" for found in batches.values())
            figures = f"{rates['alone']:,.0f} | {rates['packed']:,.0f} | {rates['packed'] / rates['alone']:.2f}"
            print(f"| {task}, {sizes[0]} .. {sizes[1]} | {shares} | {figures} |", flush=True)


def compare_heads(model: Ernie3ForPreTraining, name: str, repeats: int) -> None:
    """Prints a step's time with the head at all tokens and at labelled ones."""
    rows = {KNOWLEDGE_MASKED_LM: masked_batches(SIZES[0], True), DOCUMENT_LM: document_batches(SIZES[0], False)}
    for task, batches in rows.items():
        taken = seconds({side: step(model, task, batches, side == "all") for side in ("all", "labelled")}, repeats)
        figures = f"{1000 * taken['all']:,.0f} | {1000 * taken['labelled']:,.0f}"
        print(f"| {task}, {name} | {figures} | {taken['all'] / taken['labelled']:.2f} |", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = {
        f"{layers} layers of {width}, branch of {branch}": build_model(width, layers, branch)
        for width, layers, branch in ((256, 6, 64), (256, 2, 256))
    }
    compare_packing(next(iter(models.values())), arguments.repeats)
    print("\n| step of one task | head at all tokens, ms | at labelled tokens, ms | ratio |\n|---|---|---|---|")
    for name, model in models.items():
        compare_heads(model, name, arguments.repeats)


if __name__ == "__main__":
    main()
