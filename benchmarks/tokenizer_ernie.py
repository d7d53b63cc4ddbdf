"""Throughput of `ErnieTokenizer` beside the host's own `BertTokenizer` on the same vocabulary, in one run.

`python benchmarks/tokenizer_ernie.py [--vocab .../vocab.txt] [--megabytes 2]`

The texts are Chinese sentences, English ones, and both in one text, made here from word lists. Every column encodes
the same texts in this process, in turn; figures are medians of `--repeats` runs, in megabytes of UTF-8 a second and as
a ratio to `BertTokenizer`. `tokenizer(texts)` includes token types, attention masks and `BatchEncoding`.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
from transformers import BertTokenizer

from hf_glm_ernie.tokenization_ernie import ErnieTokenizer

RELEASED = Path(__file__).parents[2] / "shared" / "goldens" / "ernie" / "vocab" / "ernie-3.0-zh-vocab.txt"

ENGLISH = """
the of and to in is that for it as was with be by on not he this are or his from at which but have an had they you were
language training attention layer position blank token context sentence answer question paper result number method
network parameter data people time year world city river history science between because through under against during
"""
CHINESE = """
的 一 是 在 不 了 有 和 人 这 中 大 为 上 个 国 我 以 要 他 时 来 用 们 生 到 作 地 于 出 就 分 对 成 会 可 主 发 年 动
模型 语言 训练 注意力 位置 填空 句子 回答 问题 论文 结果 数字 方法 网络 参数 数据 人们 时间 世界 城市 河流 历史 科学
因为 之间 通过 没有 但是 北京 上海 大学 研究 发展 经济 文化 社会 技术 价格 公园 天气 平台 学习 深度 开源 生命 起源
"""
MARKS = ("，", "、", "：", "《", "》", "25℃", "100￥", "2023", "3.5%", "（", "）", "AAPL")


def sentence(rng: random.Random, kind: str) -> str:
    """One sentence in the kind's language."""
    if kind == "mixed":
        kind = rng.choice(("Chinese", "English"))
    if kind == "English":
        return " ".join(rng.choices(ENGLISH.split(), k=rng.randint(6, 24))).capitalize() + ". "
    words = [rng.choice(CHINESE.split()) if rng.random() < 0.88 else rng.choice(MARKS) for _ in range(24)]
    return "".join(words[: rng.randint(6, 24)]) + "。"


def make_texts(kind: str, megabytes: float) -> list[str]:
    """Texts of one to ten sentences, of the given size (10**6 bytes of UTF-8) in all."""
    rng = random.Random(0)
    texts: list[str] = []
    size = 0
    while size < megabytes * 1e6:
        texts.append("".join(sentence(rng, kind) for _ in range(rng.choice((1, 1, 2, 4, 10)))))
        size += len(texts[-1].encode())
    return texts


def main() -> None:
    """Prints one table for each kind of text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--vocab", type=Path, default=RELEASED, help="the vocab.txt to use")
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread: what a data loader's worker has
    ernie = ErnieTokenizer(arguments.vocab)
    bert = BertTokenizer(ernie.get_vocab())
    columns: dict[str, Callable[[list[str]], object]] = {
        "BertTokenizer(texts)": bert,
        "ErnieTokenizer(texts)": ernie,
        "ErnieTokenizer(texts), truncated and padded": lambda texts: ernie(
            texts, truncation=True, max_length=128, padding=True
        ),
        "BertTokenizer(texts), with offsets": lambda texts: bert(texts, return_offsets_mapping=True),
        "ErnieTokenizer(texts), with offsets": lambda texts: ernie(texts, return_offsets_mapping=True),
    }
    print(f"tokenizers {tokenizers.__version__}, one thread, medians of {arguments.repeats}")
    for kind in ("Chinese", "English", "mixed"):
        texts = make_texts(kind, arguments.megabytes)
        size = sum(len(text.encode()) for text in texts) / 1e6
        seconds: dict[str, list[float]] = {name: [] for name in columns}
        for _ in range(arguments.repeats):
            for name, run in columns.items():
                start = time.perf_counter()
                run(texts)
                seconds[name].append(time.perf_counter() - start)
        print(f"\n{kind}: {len(texts)} texts, {size:.1f} MB")
        reference = statistics.median(seconds["BertTokenizer(texts)"])
        for name, runs in seconds.items():
            median = statistics.median(runs)
            print(f"{name:45s} {size / median:7.2f} MB/s {reference / median:6.2f} x BertTokenizer(texts)")


if __name__ == "__main__":
    main()
