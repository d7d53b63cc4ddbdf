"""Makes `ernie_tokenizer_small.json`: what PaddleNLP's ErnieTokenizer gives with a small vocabulary made here.

    pip install paddlenlp==2.8.1 paddlepaddle==2.6.2 huggingface-hub==0.23.5 numpy==1.26.4 datasets==2.19.2
    python tests/golden/make_ernie_tokenizer_golden.py
    python tests/golden/make_ernie_tokenizer_golden.py --check 100000 [--vocab vocab.txt]

Run it with Python 3.11, whose Unicode version is 14.0.0. With `--check` nothing is written: the slow rendering of the
rules in `tests/reference/ernie_tokenizer.py` is compared with the original on that many random texts and on every code
point, alone and within `a{c}b`, lowercased and not. Done on 2026-11-22 with the released vocabulary: 0 differences in
tokens, ids and offsets in 200,000 random texts and 4,448,256 texts of one code point.
"""

import argparse
import json
import random
import sys
import tempfile
import unicodedata
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

zlib.crc32(b"")  # used before paddle is imported: the two disagree about a symbol otherwise
from paddlenlp.transformers import ErnieTokenizer  # noqa: E402
from paddlenlp.utils.log import logger  # noqa: E402

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.reference.ernie_tokenizer import ErnieReference, random_texts  # noqa: E402

CHINESE = "今天气真好我们去公园玩吧百度飞桨是一个开源的深学习平台价格元北京市长江大桥价〇零㐀"
WORDS = (
    "the un ##aff ##able hello world stra ##ss ##e ang ##stro ##m ##ed 15 100 ##8 ram ##gb cpu gpt a ##b un ##k mask"
)
MARKS = "!\"#%&'()*+,-./:;<=>?@[]^_`{|}~，。！？《》“”、℃×→★￥€…—·²º"
TEXTS = [
    *("", " ", "\n", "今天天气真好，我们去公园玩吧。", "Hello WORLD! unaffable", "25℃ 3×4 A→B ★★★ x² 100￥ ￥100"),
    *(
        "价格是$100 [MASK]元",
        "[mask] [Mask] [ MASK ] [[MASK]]",
        "[CLS]今天[SEP][PAD][UNK]",
        "Ångstrom straße STRASSE ẞ",
    ),
    *(
        "한국어 각각",
        "Γειά σου Κόσμε ΟΔΟΣ σς",
        "ﬁne ﬂuﬀy a",
        "e\u0301\u0301 \u0301a Å İI ı",
        "\u200b今\ufeff天\x85\x00",
    ),
    *(
        "a\u2028b\u3000c\td\r\ne",
        "x" * 101 + " " + "a" * 100,
        "☃︎ 🤗🇨🇳 👩\u200d👧",
        "\u1c89 \u0378 \U0001fae8",
        "##b ##ss a##b",
    ),
    *("〇零 㐀 \U0002b820\U0002b91f 豈", "\U00011938 中", "\u302e\U00016ff0a", "[unk] ﬁ a σ [unk]", "ﬁ a [unk] σ"),
    *("１２ＡＢ ｶﾞ", "\u166d\U000111c9 \u08e2\u0890\U00013439", "https://www.a.b/c?d=1&e=f#g", "the,the;the  the"),
]


def vocabulary() -> list[str]:
    """Lines like the released ones: special tokens first, [UNK] last, `$` twice."""
    lines = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(CHINESE), *"$0123456789abcdefghijklmnopqrstuvwxyz"]
    lines += [f"##{char}" for char in "0123456789abcdefghijklmnopqrstuvwxyz"]
    lines += [
        *MARKS,
        *dict.fromkeys(WORDS.split()),
        *"σγκμεοδ",
        *(f"##{char}" for char in "ειασουμκδ"),
        "ᄀ",
        "##ᅡ",
        "##ᆨ",
    ]
    lines = list(dict.fromkeys(lines))
    return [*lines, "$", "[UNK]"]


def original(lines: list[str], **options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return ErnieTokenizer.from_pretrained(folder, **options)


def outcome(function: Any, *arguments: Any, **options: Any) -> Any:
    """What a call returns, or the name of its error."""
    try:
        return function(*arguments, **options)
    except (ValueError, IndexError) as error:
        return {"error": type(error).__name__}


def single_rows(lines: list[str]) -> Iterator[dict[str, Any]]:
    texts = TEXTS + random_texts(50, 3, lines)
    for lower in (True, False):
        tokenizer = original(lines, do_lower_case=lower)
        pairs = [None] * len(texts) + texts[3:9]
        for text, pair in zip(texts + texts[9:15], pairs, strict=True):
            row = dict(tokenizer(text, pair))
            row |= {"do_lower_case": lower, "text": text, "pair": pair, "tokens": tokenizer.tokenize(text)}
            row["offset_mapping"] = outcome(
                lambda *texts, call=tokenizer: call(*texts, return_offsets_mapping=True)["offset_mapping"], text, pair
            )
            row["decoded"] = tokenizer.decode(row["input_ids"])
            row["decoded_skip_special"] = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
            yield row


def calls(lines: list[str]) -> Iterator[dict[str, Any]]:
    rng = random.Random(5)
    texts = [text for text in TEXTS if 0 < len(text) < 60]
    for index in range(90):
        first = rng.choices(texts, k=4)
        second = rng.choices(texts, k=4) if index % 3 else None
        sides = {"padding_side": rng.choice(("left", "right")), "truncation_side": rng.choice(("left", "right"))}
        strategies = ["longest_first"] if second is None else ["longest_first", "only_first", "only_second"]
        options: dict[str, Any] = {
            "padding": rng.choice((False, True, "max_length")),
            "truncation": rng.choice([False, True, *strategies]),
            "add_special_tokens": rng.random() < 0.8,
            "return_attention_mask": True,
            "return_special_tokens_mask": True,
        }
        if options["truncation"] or options["padding"] == "max_length":
            options["max_length"] = rng.choice((1, 2, 3, 4, 7, 8, 9, 12, 16, 24))
        if not options["truncation"] and options["padding"] and rng.random() < 0.5:
            options["pad_to_multiple_of"] = 8
        options["return_offsets_mapping"] = rng.random() < 0.7
        out = outcome(original(lines, **sides), first, second, **options)
        if "error" in out and options.pop("return_offsets_mapping"):  # the search for a token failed: without it, then
            out = original(lines, **sides)(first, second, **options)
        yield {"texts": first, "pairs": second, "sides": sides, "options": options, "out": dict(out)}


def windows(lines: list[str]) -> Iterator[dict[str, Any]]:
    """A question and a long text in windows, which only `stride` above 0 gives."""
    for stride in (3, 7, 20):
        options = {"max_seq_len": 24, "stride": stride, "return_attention_mask": True}
        texts, pairs = ["价格是?", "hello"], [TEXTS[3] + TEXTS[5] + TEXTS[6], "今天"]
        yield {
            "texts": texts,
            "pairs": pairs,
            "options": options,
            "out": dict(original(lines)(texts, pairs, **options)),
        }


def check(count: int, lines: list[str]) -> None:
    points = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    for lower in (True, False):
        tokenizer, reference = original(lines, do_lower_case=lower), ErnieReference(lines, lower)
        texts = random_texts(count, 7 + lower, lines) + points + [f"a{point}b" for point in points]
        differences = 0
        for text in texts:
            tokens, expected = reference.tokenize(text), tokenizer.tokenize(text)
            same = tokens == expected and reference.ids(tokens) == tokenizer.convert_tokens_to_ids(expected)
            same = same and outcome(reference.offsets, text, tokens) == outcome(tokenizer.get_offset_mapping, text)
            differences += not same
        print(f"do_lower_case={lower}: {differences} differences in {len(texts)} texts")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", type=int, metavar="COUNT", help="compare the reference instead of writing")
    parser.add_argument("--vocab", type=Path, help="the vocabulary to compare with, instead of the small one")
    arguments = parser.parse_args()
    assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
    warnings.simplefilter("ignore")
    logger.set_level("CRITICAL")
    lines = vocabulary() if arguments.vocab is None else arguments.vocab.read_text(encoding="utf-8").split("\n")[:-1]
    if arguments.check is not None:
        check(arguments.check, lines)
        return
    data = {
        "versions": {"paddlenlp": "2.8.1", "unicode": unicodedata.unidata_version},
        "vocabulary": lines,
        "single": list(single_rows(lines)),
        "calls": list(calls(lines)),
        "windows": list(windows(lines)),
    }
    path = HERE / "ernie_tokenizer_small.json"
    path.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
