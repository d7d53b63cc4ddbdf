"""How fast ERNIE 3.0's pre-training rows are built: rows a second of every task, beside the bare tokenizer.

`python benchmarks/rows_ernie3.py [--vocab .../vocab.txt] [--rows 200]`

Made-up Chinese texts of about 512 tokens, one process, one thread: what a worker of a data loader has. For every task
the bare tokenizer encodes the texts that the task's rows are made of, in the same run and in turn, so the ratio says
what share of the time is the tokenizer's own. Figures are medians of `--repeats` rounds, and the ratio of the best
rounds stands beside: on a busy machine few rows and many rounds find what it is (`--rows 28 --repeats 60`).
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tokenizer_ernie import CHINESE, RELEASED, sentence

from hf_glm_ernie import (
    ControllableLM,
    CredibleRows,
    DistantSupervision,
    Ernie3PretrainingMixture,
    Ernie3Tokenizer,
    KnowledgeMasking,
    KnowledgeTextPrediction,
    Lexicon,
    SentenceDistance,
    SentenceReordering,
)
from hf_glm_ernie.ernie3_training.builders import row_generator

TOKENS = 512


def make_texts(tokenizer: Any, count: int) -> list[list[str]]:
    """Texts as lists of sentences, of `TOKENS` tokens at most and nearly as many."""
    rng = random.Random(0)
    texts = []
    for _ in range(count):
        sentences: list[str] = []
        tokens = 0
        while True:
            one = sentence(rng, "Chinese")
            tokens += len(tokenizer(one, add_special_tokens=False)["input_ids"])
            if tokens > TOKENS - 2:
                break
            sentences.append(one)
        texts.append(sentences)
    return texts


def make_tasks(tokenizer: Any, texts: list[list[str]]) -> dict[str, tuple[list[dict[str, Any]], Any]]:
    """Task -> its rows of data, and what builds rows of them."""
    options: Any = {"truncation": True, "max_length": TOKENS}
    lexicon = Lexicon({word: "entity" for word in CHINESE.split() if len(word) > 1})
    joined = ["".join(one) for one in texts]
    triples = [
        {"head": "模型", "relation": "首都", "tail": "语言", "sentence": f"模型和语言：{text}"} for text in joined
    ]
    marked = {"genre": "Novel", "topic": "大海", "keywords": ["模型", "语言"], "sentiment": "positive"}
    return {
        "masking": ([{"text": text} for text in joined], KnowledgeMasking(tokenizer, **options)),
        "masking, lexicon": (
            [{"text": text} for text in joined],
            KnowledgeMasking(tokenizer, lexicon=lexicon, **options),
        ),
        "reordering": ([{"sentences": one} for one in texts], SentenceReordering(tokenizer, **options)),
        "distance": ([{"sentences": one} for one in texts], SentenceDistance(tokenizer, documents=texts, **options)),
        "knowledge": (triples, KnowledgeTextPrediction(tokenizer, **options)),
        "control": ([{"text": text, **marked} for text in joined], ControllableLM(tokenizer, **options)),
        "credible": ([{"text": text, "credible_labels": 1} for text in joined], CredibleRows(tokenizer, **options)),
    }


def rate(work: Callable[[], object], rows: int) -> float:
    """Rows a second."""
    start = time.perf_counter()
    work()
    return rows / (time.perf_counter() - start)


def built(builder: Any, rows: list[dict[str, Any]]) -> Callable[[], object]:
    """Builds all rows as `datasets.map` does it."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return lambda: builder(columns, range(len(rows)))


def main() -> None:
    """Prints one line for each task, and one for the mixture of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--vocab", default=str(RELEASED))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread: what a data loader's worker has
    tokenizer: Any = Ernie3Tokenizer.from_released_vocabulary(arguments.vocab, num_pieces=None)
    texts = make_texts(tokenizer, arguments.rows)
    joined = ["".join(one) for one in texts]
    works: dict[str, Callable[[], object]] = {
        "tokenizer, a call for all": lambda: tokenizer(joined, add_special_tokens=False),
        "tokenizer, a call a row": lambda: [tokenizer(text, add_special_tokens=False) for text in joined],
    }
    tasks = make_tasks(tokenizer, texts)
    for name, (rows, builder) in tasks.items():
        works[name] = built(builder, rows)
        works[bare_of(name)] = partial(tokenizer, asked(builder, rows), add_special_tokens=False)
    triples = [{"head": "模型", "relation": "首都", "tail": word} for word in CHINESE.split()[-8:]]
    pages: dict[str, list[Any]] = {"text": joined, "triples": [triples] * len(joined)}
    works["distant supervision, 8 triples a page"] = lambda: DistantSupervision()(pages)
    mixed = [pair for name, pair in tasks.items() if name != "masking, lexicon"]
    documents = [{"text": text} for text in joined]
    works["mixture of seven"] = lambda: drawn(tokenizer, mixed, documents, arguments.rows)
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(arguments.repeats):
        for name, work in works.items():
            rates[name].append(rate(work, arguments.rows))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    bests = {name: max(found) for name, found in rates.items()}
    print("| task | rows/s | bare tokenizer on the task's texts | ratio | of the best rounds |\n|---|---|---|---|---|")
    for name in works:
        if not name.endswith("tokenized"):
            bare = bare_of(name) if bare_of(name) in works else "tokenizer, a call for all"
            ratios = [f"{rate[name] / rate[bare]:.2f}" for rate in (medians, bests)]
            print(f"| {name} | {medians[name]:,.0f} | {medians[bare]:,.0f} | {' | '.join(ratios)} |")


def bare_of(name: str) -> str:
    """What the bare tokenizer's work on a task's texts is called."""
    return f"{name}: its texts tokenized"


def asked(builder: Any, rows: list[dict[str, Any]]) -> list[str]:
    """The texts that a task has tokenized for its rows."""
    building = (builder.build(row, row_generator(0, builder.task, 0, at), TOKENS) for at, row in enumerate(rows))
    return [text for one in building for text in next(one)]


def drawn(tokenizer: Any, tasks: list[Any], documents: list[dict[str, str]], rows: int) -> None:
    """Batches of the mixture with as many rows together."""
    batch = 14
    stream = iter(Ernie3PretrainingMixture(tokenizer, tasks, documents, batch_size=batch, length=TOKENS))
    for _ in range(-(-rows // batch)):
        next(stream)


if __name__ == "__main__":
    main()
