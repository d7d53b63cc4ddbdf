"""Writes `ernie_added_tokens.json` and `ernie_added_tokens/`: what PaddleNLP makes of added tokens.

Runs with the original, not with this package, in an environment of its own: Python 3.11, paddlenlp 2.8.1, paddlepaddle
2.6.2, huggingface-hub 0.23.5, numpy 1.26.4, datasets 2.19.2, aistudio-sdk 0.2.6, pyarrow 17.0.0. The vocabulary is
that of `ernie_tokenizer_small.json`. The JSON holds tokenizers with tokens added, and their tokens of random texts;
the folder two tiny checkpoints as PaddleNLP saves them, model and tokenizer, and their outputs: one whose embeddings
were resized to `len(tokenizer)`, one that has rows to spare.
"""

import zlib

zlib.crc32(b"")  # before paddle brings its own

import json  # noqa: E402
import random  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from paddlenlp.transformers import ErnieConfig, ErnieForMaskedLM, ErnieModel, ErnieTokenizer  # noqa: E402
from paddlenlp.utils.log import logger  # noqa: E402

HERE = Path(__file__).parent
LINES = json.loads((HERE / "ernie_tokenizer_small.json").read_text(encoding="utf-8"))["vocabulary"]
ALPHABET = "abéÉcāÅ 今天ßİıΣσ\u0301e\u200b[]ñ\n1가"
SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "type_vocab_size": 4,
    "task_type_vocab_size": 3,
    "use_task_id": True,
    "initializer_range": 0.4,
}
TEXTS = ["the [E1]今天[/E1] 각각", "[E2] [e1] unaffable", "天[E1]", "각 [/E1]Café"]


def original(folder: Path, **options: Any) -> ErnieTokenizer:
    """The tokenizer as `from_pretrained` makes it of a vocabulary in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    return ErnieTokenizer.from_pretrained(str(folder), **options)


def word(rng: random.Random) -> str:
    """A short word of troublesome letters. PaddleNLP loses tokens that begin or end with a blank beside others."""
    return "".join(rng.choice(ALPHABET) for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))).strip()


def text(rng: random.Random, tokens: list[str]) -> str:
    """A text of added tokens in any case, words, pieces and blanks."""
    pieces = []
    for _ in range(rng.choice((1, 3, 6, 9))):
        token, kind = rng.choice(tokens), rng.random()
        if kind < 0.6:
            pieces.append(token if kind < 0.35 else token.upper() if kind < 0.5 else token.lower())
        elif kind < 0.8:
            pieces.append(word(rng))
        else:
            pieces.append(rng.choice(LINES).removeprefix("##") if kind < 0.9 else rng.choice((" ", "[MASK]", "x")))
    return "".join(pieces)


def tokenizers(folder: Path) -> list[dict[str, Any]]:
    """Tokenizers with random tokens added, special ones before or behind the others."""
    rng = random.Random(11)
    cases = []
    for index in range(60):
        tokenizer = original(folder, do_lower_case=index % 4 > 0)
        added = [one for one in (word(rng) for _ in range(rng.choice((1, 2, 3, 6)))) if one] or ["Café"]
        special = [f"[{rng.choice('EFG')}{number}]" for number in range(rng.choice((0, 0, 1, 2)))]
        steps = [("added", added), ("special", special)][:: rng.choice((1, -1))]
        for kind, tokens in steps:
            if kind == "special" and tokens:
                tokenizer.add_special_tokens({"additional_special_tokens": tokens})
            elif kind == "added":
                tokenizer.add_tokens(list(tokens))
        texts = [text(rng, added + special) for _ in range(12)]
        rows = [tokenizer.tokenize(one) for one in texts]
        cases.append(
            {
                "do_lower_case": index % 4 > 0,
                "steps": steps,
                "ids": tokenizer.added_tokens_encoder,
                "texts": texts,
                "tokens": rows,
                "offsets": [offsets(tokenizer, one) for one in texts],
                "decoded": [tokenizer.decode(tokenizer.convert_tokens_to_ids(row)) for row in rows],
            }
        )
    return cases


def offsets(tokenizer: ErnieTokenizer, one: str) -> Any:
    """PaddleNLP's places, or None where it stops with an error."""
    try:
        return tokenizer.get_offset_mapping(one)
    except (ValueError, IndexError):
        return None


def write_model(name: str, model_class: Any, spare: int) -> None:
    """A checkpoint with two special tokens and one other added, and its outputs for some texts."""
    paddle.seed(5)
    folder = HERE / "ernie_added_tokens" / name
    tokenizer = original(folder)
    model = model_class(ErnieConfig(vocab_size=len(LINES) + spare, **SIZES))
    model.eval()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]", "[/E1]"]})
    tokenizer.add_tokens(["[E2]", "Café"])
    if not spare:
        model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    rows = []
    for one in TEXTS:
        encoded = tokenizer(one)
        inputs = {key: paddle.to_tensor([values]) for key, values in encoded.items()}
        with paddle.no_grad():
            output = model(**inputs)
            hidden = output[0] if isinstance(output, tuple) else output
        rows.append(
            {"text": one, "input_ids": encoded["input_ids"], "output": np.round(hidden[0].numpy(), 6).tolist()}
        )
    (folder / "outputs.json").write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Writes both."""
    logger.set_level("CRITICAL")
    with tempfile.TemporaryDirectory() as folder:
        data = json.dumps(tokenizers(Path(folder)), ensure_ascii=False, separators=(",", ":"))
    (HERE / "ernie_added_tokens.json").write_text(data + "\n", encoding="utf-8")
    shutil.rmtree(HERE / "ernie_added_tokens", ignore_errors=True)
    write_model("features_resized", ErnieModel, 0)
    write_model("masked_lm_spare", ErnieForMaskedLM, 12)


if __name__ == "__main__":
    main()
