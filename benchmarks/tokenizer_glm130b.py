"""Throughput of `Glm130bTokenizer` beside the original's tokenizer and bare sentencepiece, in one run.

`python benchmarks/tokenizer_glm130b.py [--model .../ice_text.model] [--texts FILE.jsonl] [--megabytes 4]`

The texts are sentences and short documents in English and Chinese with some code, made here from word lists, or the
`text` fields of a JSON-lines file. Every column encodes the same texts in this process; the figure is the median of
`--repeats` runs, in megabytes of UTF-8 a second. `tokenizer(texts)` includes the attention masks and `BatchEncoding`.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from hf_glm_ernie import Glm130bTokenizer

STAND_IN = Path(__file__).parents[2] / "shared" / "goldens" / "glm" / "icetk" / "unigram" / "ice_text.model"

ENGLISH = """
the of and to in is that for it as was with be by on not he this are or his from at which but have an had they you were
their one all we can her has there been if more when will would who so no model language training attention layer
position blank token context sentence answer question paper result number method network parameter data people time
year world city river history science between because through under against during without however
"""
CHINESE = """
的 一 是 在 不 了 有 和 人 这 中 大 为 上 个 国 我 以 要 他 时 来 用 们 生 到 作 地 于 出 就 分 对 成 会 可 主 发 年 动
模型 语言 训练 注意力 位置 填空 句子 回答 问题 论文 结果 数字 方法 网络 参数 数据 人们 时间 世界 城市 河流 历史 科学
因为 之间 通过 没有 但是 北京 上海 大学 研究 发展 经济 文化 社会 技术
"""
CODE = (
    "def f(x):\n    return x + 1\n",
    "for i in range(10):\n\tprint(i)\n",
    "if a == b:\n        c = [0] * 12  # twelve\n",
)


def make_texts(megabytes: float) -> list[str]:
    """Bilingual texts of one to thirty sentences, of the given size (10**6 bytes of UTF-8) in all."""
    rng = random.Random(0)
    english, chinese = ENGLISH.split(), CHINESE.split()
    texts: list[str] = []
    size = 0
    while size < megabytes * 1e6:
        text = ""
        for _ in range(rng.choice((1, 1, 2, 4, 8, 30))):
            kind = rng.random()
            if kind < 0.45:
                text += " ".join(rng.choices(english, k=rng.randint(6, 24))).capitalize() + ". "
            elif kind < 0.9:
                text += "".join(rng.choices(chinese, k=rng.randint(6, 24))) + "。"
            else:
                text += "\n" + rng.choice(CODE)
        texts.append(text)
        size += len(text.encode())
    return texts


def original_encoder(path: Path) -> Callable[[str], list[int]]:
    """The original's encode, special tokens as plain text (SwissArmyTransformer 0.4.12, ice_tokenizer.py)."""
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(path.read_bytes())
    for token in ("[MASK]", "[gMASK]", "[sMASK]", "<eod>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"):
        proto.pieces.add(piece=token, score=0.0, type=3)
    for token in ("<|tab|>", *(f"<|blank_{length}|>" for length in range(2, 81))):
        proto.pieces.add(piece=token, score=0.0, type=4)
    proto.trainer_spec.byte_fallback = True
    for value in range(256):
        proto.pieces.add(piece=f"<0x{value:02X}>", score=0.0, type=6)
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def encode(text: str) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        for length in range(80, 1, -1):
            text = text.replace(" " * length, f"<|blank_{length}|>")
        return [index + 20000 for index in processor.EncodeAsIds(text)]

    return encode


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, default=STAND_IN, help="the ice_text.model to use")
    parser.add_argument("--texts", type=Path, help="JSON lines with a `text` field, instead of made-up texts")
    parser.add_argument("--megabytes", type=float, default=4.0, help="size of the made-up texts")
    parser.add_argument("--repeats", type=int, default=5, help="runs, of which the median counts")
    arguments = parser.parse_args()
    if not arguments.model.is_file():
        parser.error(f"{arguments.model} is not there: give an ice_text.model with --model.")
    if arguments.texts:
        lines = arguments.texts.read_text(encoding="utf-8").split("\n")
        texts = [json.loads(line)["text"] for line in lines if line]
        # A default call refuses two kinds of mask in one text.
        texts = [text for text in texts if sum(mask in text for mask in ("[MASK]", "[gMASK]", "[sMASK]")) < 2]
    else:
        texts = make_texts(arguments.megabytes)
    tokenizer = Glm130bTokenizer.from_ice_text_model(arguments.model)
    tokenizer.model_max_length = 10**9
    original = original_encoder(arguments.model)
    bare = sentencepiece.SentencePieceProcessor(model_file=str(arguments.model))
    expected = [original(text) for text in texts]
    if tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] != expected:
        raise SystemExit("The ids differ from the original's: the figures would mean nothing.")
    columns: dict[str, Callable[[], object]] = {
        "original encode, text by text": lambda: [original(text) for text in texts],
        "bare sentencepiece, text by text": lambda: [bare.encode(text) for text in texts],
        "bare sentencepiece, one list": lambda: bare.encode(texts, num_threads=1),
        "tokenizer(texts)": lambda: tokenizer(texts),
        "tokenizer(texts, add_special_tokens=False)": lambda: tokenizer(texts, add_special_tokens=False),
        "tokenizer(text), text by text": lambda: [tokenizer(text) for text in texts],
        "backend (tokenizer.json) encode_batch": lambda: tokenizer.backend_tokenizer.encode_batch(texts),
    }
    size = sum(len(text.encode()) for text in texts) / 1e6
    seconds: dict[str, list[float]] = {name: [] for name in columns}
    for _ in range(arguments.repeats):
        for name, run in columns.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    print(
        f"{len(texts)} texts, {size:.1f} MB, median of {arguments.repeats}, sentencepiece {sentencepiece.__version__}"
    )
    reference = statistics.median(seconds["original encode, text by text"])
    for name, runs in seconds.items():
        median = statistics.median(runs)
        print(f"{name:45s} {size / median:8.1f} MB/s {reference / median:6.2f} x the original")


if __name__ == "__main__":
    main()
