"""Random rows and shapes through what must agree.

Tokenizers and their slow references, batches and single rows, cached and whole forwards, the kernel of integer weights
and the plain product.

`run` counts what was compared and returns what differs, as sentences that name the seed's row.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from hf_glm_ernie import Ernie3ForCausalLM, ErnieTokenizer, Glm130bTokenizer
from hf_glm_ernie.host_interface import returned_cache
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear
from tests.reference.ernie3_tokenizer import Ernie3Reference, random_paragraphs
from tests.reference.ernie_tokenizer import ErnieReference, random_texts
from tests.reference.ice_tokenizer import IceTokenizer
from tests.support import tiny_ernie3, tiny_models
from tests.support.ernie3_rows import small_tokenizer
from tests.support.ernie_vocabulary import SMALL, write_vocabulary
from tests.support.ice_text import train

Check = Callable[[random.Random], str | None]
"""Compares once; returns what differs, or nothing."""

LOGITS = 2e-4  # of logits up to 40 in fp32; 3e-5 seen
PRODUCT = 1e-4  # relative to the largest product, fp32; 3e-6 seen


def run(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Compares at random.

    Args:
        count: Comparisons of each kind.
        seed: The same one compares the same.

    Returns:
        How many of each kind were made, and what is wrong.
    """
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, check in _kinds(Path(folder)):
            rng = random.Random(f"{seed} {kind}")
            for number in range(count):
                said = check(rng)
                counts[kind] += 1
                if said is not None:
                    wrong.append(f"{kind} {number} of seed {seed}: {said}")
    return counts, wrong


def _kinds(folder: Path) -> Iterator[tuple[str, Check]]:
    lines = SMALL["vocabulary"]
    ernie, slow = ErnieTokenizer(write_vocabulary(folder, lines)), ErnieReference(lines)
    yield "rows of ErnieTokenizer", lambda rng: _ernie_row(ernie, slow, lines, rng)
    ernie3 = small_tokenizer(folder)
    pieces = ernie3.convert_ids_to_tokens(list(range(len(ernie3))))
    slow3 = Ernie3Reference(pieces)
    yield "rows of Ernie3Tokenizer", lambda rng: _ernie3_row(ernie3, slow3, pieces, rng)
    model = train(folder / "ice_text.model")
    glm, ice = Glm130bTokenizer.from_ice_text_model(model, num_image_tokens=10), IceTokenizer(model, 10)
    yield "rows of Glm130bTokenizer", lambda rng: _glm_row(glm, ice, lines, rng)
    yield "GLM-130B, batch and cache", _glm_forwards(tiny_models.tiny_model())
    yield "ERNIE 3.0, batch and cache", _ernie3_forwards(tiny_ernie3.tiny_model(Ernie3ForCausalLM))
    yield "integer weights", _product


def _ernie_row(tokenizer: Any, slow: Any, lines: list[str], rng: random.Random) -> str | None:
    text, pair = random_texts(2, rng.randrange(2**30), lines)
    second = pair if rng.random() < 0.5 and pair else None
    tokens = ["[CLS]", *slow.tokenize(text), "[SEP]", *([] if second is None else [*slow.tokenize(second), "[SEP]"])]
    return None if tokenizer(text, second)["input_ids"] == slow.ids(tokens) else f"{text!r}, {second!r}"


def _ernie3_row(tokenizer: Any, slow: Any, pieces: list[str], rng: random.Random) -> str | None:
    (text,) = random_paragraphs(1, rng.randrange(2**30), pieces)
    return None if tokenizer(text)["input_ids"] == slow.encode(text) else repr(text)


def _glm_row(tokenizer: Any, slow: Any, lines: list[str], rng: random.Random) -> str | None:
    text = "".join(rng.choice([*lines[20:], " ", "  ", "\n", "\t", "é", "the work ", "。"]) for _ in range(9))
    mask = rng.choice(("[MASK]", "[gMASK]", "[sMASK]", ""))
    text = text.replace("MASK]", "") + mask + rng.choice(("", " of the"))
    ids = tokenizer(text)["input_ids"]
    if ids != slow.prompt(text):
        return repr(text)
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]  # sentencepiece leaves `</s>` out of a text
    return None if tokenizer.decode(plain) == slow.decode(plain, special_tokens=True) else f"decoded: {text!r}"


def _glm_forwards(model: Any) -> Check:
    def row(rng: random.Random) -> list[int]:
        context = [rng.randrange(5, 95) for _ in range(rng.randrange(1, 12))]
        context[rng.randrange(len(context))] = rng.choice((tiny_models.MASK, tiny_models.SMASK, tiny_models.GMASK))
        return [*context, tiny_models.SOP, *(rng.randrange(5, 95) for _ in range(rng.randrange(6)))]

    return lambda rng: _forwards(model, [row(rng) for _ in range(rng.randrange(1, 4))], tiny_models.PAD, rng, True)


def _ernie3_forwards(model: Any) -> Check:
    def row(rng: random.Random) -> list[int]:
        return [rng.randrange(tiny_ernie3.FIRST_WORD, 119) for _ in range(rng.randrange(2, 14))]

    return lambda rng: _forwards(model, [row(rng) for _ in range(rng.randrange(1, 4))], tiny_ernie3.PAD, rng, False)


@torch.no_grad()
def _forwards(model: Any, rows: list[list[int]], pad: int, rng: random.Random, whole_context: bool) -> str | None:
    """A left-padded batch, each row alone, and the batch again with its last tokens behind a cache."""
    width, alone = max(map(len, rows)), [model(torch.tensor([row])).logits[0] for row in rows]
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    together = model(ids, attention_mask=mask, use_cache=True).logits
    # a row's context goes through the model at once
    answers = [len(row) - row.index(tiny_models.SOP) - 1 if whole_context else len(row) - 1 for row in rows]
    behind = rng.randint(0, min(answers))
    pieces = []
    if behind:
        first = model(ids[:, :-behind], attention_mask=mask[:, :-behind], use_cache=True)
        cache, pieces = returned_cache(first), [first.logits]
        for step in range(width - behind, width):
            output = model(ids[:, step : step + 1], attention_mask=mask[:, : step + 1], past_key_values=cache)
            cache, pieces = returned_cache(output), [*pieces, output.logits]
    cached = torch.cat(pieces, dim=1) if pieces else together
    for i, (row, own) in enumerate(zip(rows, alone, strict=True)):
        for name, found in (("together", together), ("cached", cached)):
            difference = (found[i, width - len(row) :] - own).abs().max().item()
            if not difference < LOGITS:
                return f"row {i} of {rows}, {name} ({behind} behind a cache), differs by {difference:.1e}"
    return None


@torch.no_grad()
def _product(rng: random.Random) -> str | None:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    bits, groups = rng.choice((4, 8)), rng.choice((1, 1, 2, 4))
    columns = 2 * groups * rng.randrange(1, 40)
    rows = 2 * rng.randrange(1, 60)
    linear = torch.nn.Linear(columns, rows, bias=rng.random() < 0.5)
    linear.weight.copy_(torch.randn(rows, columns, generator=generator))
    integers = WeightOnlyLinear.from_linear(linear, bits=bits, num_groups=groups)
    x = torch.randn(rng.choice((1, 2, 3, 17)), columns, generator=generator)
    bias = None if linear.bias is None else integers.bias
    expected = F.linear(x.double(), integers.dequantized_weight().double(), None if bias is None else bias.double())
    difference = (integers(x) - expected).abs().max() / expected.abs().max().clamp_min(1e-3)
    shape = f"{bits} bits, {rows} x {columns} in {groups} groups, {len(x)} rows"
    return None if difference < PRODUCT else f"{shape}: differs by {difference:.1e}"


__all__ = ["run"]
