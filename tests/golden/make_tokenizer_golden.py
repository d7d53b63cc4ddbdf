"""Makes `tokenizer_*.json`: what the original tokenizer gives with small sentencepiece models trained here.

    pip download --no-deps SwissArmyTransformer==0.4.12 icetk==0.0.7   # and unzip the two wheels
    python tests/golden/make_tokenizer_golden.py --sat SwissArmyTransformer_FOLDER --icetk icetk_FOLDER

The original's own two files are run, `sat/tokenization/icetk_glm_130B/ice_tokenizer.py` and `icetk/text_tokenizer.py`;
the rest of their packages is not needed and replaced by empty modules. Each JSON file holds its sentencepiece model
(lzma, base85), the number of image tokens and, for each text, ids, pieces and decoded text in the original's five
modes.
"""

import argparse
import base64
import importlib.util
import io
import json
import lzma
import sys
import tempfile
import types
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

HERE = Path(__file__).parent
MODES = {
    "default": {},
    "special": {"special_tokens": True},
    "no_linebreak": {"linebreak": False},
    "no_whitespaces": {"whitespaces": False},
    "no_prefix": {"add_dummy_prefix": False},
}
MODELS = {  # file -> number of image tokens, options of the trainer
    "unigram": (20000, {"model_type": "unigram", "vocab_size": 800}),
    "bpe": (0, {"model_type": "bpe", "vocab_size": 800, "normalization_rule_name": "identity"}),
}
CHINESE = """千里之行，始于足下。学而不思则罔，思而不学则殆。三人行，必有我师焉。温故而知新，可以为师矣。
凯旋门位于意大利米兰市古城堡旁。1807年为纪念而建，门高25米，顶上矗立两武士青铜古兵车铸像。
冬天，中国哪座城市最适合避寒？你好世界！这里是 icetk。"""
TEXTS = [
    *("", " ", "  ", "\n", "\t", "\n\n", "   \t \n ", " leading", "trailing ", "  two leading", "two trailing  "),
    *("Hello World! I am icetk.", "你好世界！这里是 icetk。", "def f(x):\n    if x:\n\treturn  x\n        # eight\n"),
    *(f"x{' ' * length}y" for length in (79, 80, 81, 161)),
    *("[MASK]", "a [MASK] b", "a[gMASK]b", "[sMASK] [sMASK]", "<sop><eop><eod><ENC><dBLOCK>", "［ＭＡＳＫ］"),
    *("</s>", "<s>", "<unk>", "<pad>", "a</s>b", "<n>literal", "<|blank_2|>literal", "<|tab|>", "<|blank_81|>"),
    *("<image_5>", "<0x41>", "▁ block ▁▁", "caf\u00e9 cafe\u0301", "e\u0301\u0301", "a\u030a\u0327"),
    *("\u1112\u1161\u11ab", "ｶﾞﾊﾟ ＡＢＣ１２３", "① ㍿ ﬁ ½ ﷺ", "\U0001f469\u200d\U0001f467\U0001f1e8\U0001f1f3"),
    *("\x00\x01 control \x7f", "\u200b zero\u200dwidth \ufeff", "\r\n\u2028\u3000", "\U00020000\U00020bb7"),
    *("-" * 10, "=" * 31, "哈" * 13, "." * 7, "ab" * 9),
]


def original_tokenizer(sat: Path, icetk: Path) -> type:
    """The original's tokenizer class."""

    def module(name: str, path: Path | None = None, **names: object) -> types.ModuleType:
        made = types.ModuleType(name)
        if path is not None:
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            made = importlib.util.module_from_spec(spec)
        else:
            made.__path__ = []  # a package
        sys.modules[name] = made
        made.__dict__.update(names)
        if path is not None:
            spec.loader.exec_module(made)
        return made

    module("icetk", sentencepiece_model_pb2=sentencepiece_model_pb2)
    sys.modules["icetk.sentencepiece_model_pb2"] = sentencepiece_model_pb2
    module("icetk.text_tokenizer", icetk / "icetk" / "text_tokenizer.py")
    module("icetk.utils", auto_create=lambda path: None)
    module("original")
    module("original.tokenizer", AbstractTokenizer=object)
    path = sat / "sat" / "tokenization" / "icetk_glm_130B" / "ice_tokenizer.py"
    return module("original.ice_tokenizer", path).GLM130BTokenizer


def train(**options: object) -> bytes:
    """A small sentencepiece model laid out as the released one: <unk> <s> </s> <pad> <n>."""
    model = io.BytesIO()
    license_text = (HERE.parents[1] / "LICENSE").read_text(encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((license_text + CHINESE).split("\n")),
        model_writer=model,
        character_coverage=1.0,
        hard_vocab_limit=False,
        user_defined_symbols=["<n>"],
        pad_id=3,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def main() -> None:
    """Writes the files; each stays under 200 KB."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sat", type=Path, required=True, help="the unpacked wheel of SwissArmyTransformer 0.4.12")
    parser.add_argument("--icetk", type=Path, required=True, help="the unpacked wheel of icetk 0.0.7")
    arguments = parser.parse_args()
    original = original_tokenizer(arguments.sat, arguments.icetk)
    for name, (num_image_tokens, options) in MODELS.items():
        model = train(**options)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "ice_text.model").write_bytes(model)
            sized = type("Original", (original,), {"num_image_tokens": num_image_tokens})
            tokenizer = sized(path=folder)
            rows = []
            for text in TEXTS:
                row: dict[str, object] = {"text": text}
                for mode, switches in MODES.items():
                    ids = tokenizer.encode(text, **switches)
                    decoded = tokenizer.decode(ids, special_tokens=mode == "special")
                    row[mode] = {"ids": ids, "tokens": tokenizer.tokenize(text, **switches), "decoded": decoded}
                rows.append(row)
        packed = base64.b85encode(lzma.compress(model, preset=9 | lzma.PRESET_EXTREME)).decode()
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        head = f'{{"num_image_tokens": {num_image_tokens}, "model": "{packed}", "rows": [\n'
        text = head + ",\n".join(lines) + "\n]}\n"
        (HERE / f"tokenizer_{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
