"""How fast a corpus is prepared: MB/s of one process, rule by rule, beside what it cannot do without.

`python benchmarks/prepare_corpus.py --work FOLDER [--megabytes 20]`

Made-up documents with the duplicates of a crawl: a fifth are copies, a tenth near-copies, some paragraphs stand twice,
some marks in rows, some sentences are short. Written as JSON lines; bytes are those of the files. In turn, and medians
of `--repeats`: `datasets` reading the files as a stream and doing nothing, our reader, the rules with and without
jieba, keys of near-duplicates, and whole runs of `prepare_corpus` with one process. Seconds are of the processor, not
of the clock, so other programs matter less.
"""

import argparse
import json
import random
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import disable_progress_bars, load_dataset

from hf_glm_ernie.ernie_corpus import CleanDocuments, CorpusArguments, NearDuplicateKeys, prepare_corpus, read_corpus
from hf_glm_ernie.ernie_corpus.occurrences import later_occurrences, write_keys

CHINESE = re.findall(
    r"\S+",
    "这座 城市 的 图书馆 藏有 许多 古老 手稿 研究 人员 每年 都 会 来 这里 查阅 资料 希望 能够 找到 新 线索 "
    "他们 认为 语言 模型 可以 帮助 整理 历史 数据 并且 发现 其中 重要 联系 天气 大海 故事 老师 学生 今天 科学 技术",
)
ENGLISH = re.findall(
    r"\S+", "the old library of this city keeps letters that people come to read every year in autumn"
)


def sentence(rng: random.Random, language: str) -> str:
    """A sentence of 4 to 40 words, with commas."""
    count = rng.choice((4, 8, 15, 20, 25, 30, 40))
    if language == "English":
        return " ".join(rng.choices(ENGLISH, k=count)).capitalize() + rng.choice((". ", ". ", "! ", "!!! "))
    words = [word + ("，" if rng.random() < 0.12 else "") for word in rng.choices(CHINESE, k=count)]
    return "".join(words) + rng.choice(("。", "。", "。", "？", "！！！"))


def documents(megabytes: float, seed: int = 0) -> Iterator[str]:
    """Documents of 1 to 10 kB, three of four in Chinese."""
    rng = random.Random(seed)
    made: list[str] = []
    size = 0
    while size < megabytes * 1e6:
        draw = rng.random()
        if made and draw < 0.2:
            text = rng.choice(made)
        elif made and draw < 0.3:
            text = f"{rng.choice(made)}\n{sentence(rng, 'Chinese') * 2}"
        else:
            language = rng.choice(("Chinese", "Chinese", "Chinese", "English"))
            lines = [
                "".join(sentence(rng, language) for _ in range(rng.randint(1, 8))) for _ in range(rng.randint(3, 9))
            ]
            lines += lines[-1:] * (rng.random() < 0.1)
            text = "\n".join(lines)
            made.append(text)
        size += len(text.encode())
        yield text


def works(folder: Path, inputs: list[str], texts: list[str]) -> dict[str, Callable[[], object]]:
    """What is measured."""

    def stream(dataset: Any) -> int:
        return sum(len(rows["text"]) for rows in dataset.iter(batch_size=1000))

    def batches(function: Callable[..., Any]) -> None:
        for start in range(0, len(texts), 1000):
            function({"text": texts[start : start + 1000]})

    def prepared(**options: Any) -> None:
        for output in ("out", "out.incomplete"):  # the second of a benchmark that was stopped
            shutil.rmtree(folder / output, ignore_errors=True)
        prepare_corpus(inputs, folder / "out", CorpusArguments(progress=False, **options))

    return {
        "datasets reads, nothing else": lambda: stream(
            load_dataset("json", data_files=inputs, split="train", streaming=True)
        ),
        "read_corpus, nothing else": lambda: stream(read_corpus(inputs)),
        "rules, a character is a word": lambda: batches(CleanDocuments(list)),
        "rules, words by jieba": lambda: batches(CleanDocuments()),
        "keys of near-duplicates": lambda: batches(NearDuplicateKeys(0.8)),
        "prepare_corpus, a character is a word": lambda: prepared(segmenter="characters"),
        "prepare_corpus, words by jieba": lambda: prepared(),
        "prepare_corpus, jieba, near-duplicates": lambda: prepared(near_duplicates=0.8),
    }


def sort_rate(folder: Path, keys: int) -> tuple[float, float]:
    """Seconds of the processor a million keys: to write them sorted, and to find those that came before."""
    drawn = np.random.default_rng(0).integers(0, 2**63, size=(keys, 2), dtype=np.uint64).view("S16")
    shutil.rmtree(folder / "keys", ignore_errors=True)
    (folder / "keys").mkdir(parents=True)
    begin = time.process_time()
    for unit in range(4):
        write_keys(folder / "keys", "some", unit, drawn[unit::4])
    written = time.process_time()
    later_occurrences(folder / "keys", "some", 4, 0, 1)
    return (written - begin) / keys * 1e6, (time.process_time() - written) / keys * 1e6


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keys", type=int, default=4_000_000)
    arguments = parser.parse_args()
    disable_progress_bars()
    arguments.work.mkdir(parents=True, exist_ok=True)
    texts = list(documents(arguments.megabytes))
    inputs = []
    for number in range(4):
        path = arguments.work / f"in-{number}.jsonl"
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[number::4])
        path.write_text("".join(lines), encoding="utf-8")
        inputs.append(str(path))
    size = sum(Path(path).stat().st_size for path in inputs)
    measured = works(arguments.work, inputs, texts)
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(arguments.repeats):
        for name, work in measured.items():
            begin = time.process_time()
            work()
            seconds[name].append(time.process_time() - begin)
    print(f"{len(texts):,} documents, {size / 1e6:.1f} MB\n\n| | MB/s of one core |\n|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {size / statistics.median(taken) / 1e6:.2f} |", flush=True)
    written, found = sort_rate(arguments.work, arguments.keys)
    print(f"\n{written:.2f} s a million keys to sort and write, {found:.2f} s to find those that came before")


if __name__ == "__main__":
    main()
