"""GLM-130B's objective: rates, rows put together again by brute force, and the model's loss against a slow reference.

The reference takes a row apart, and for every scored token runs the slow model on what that token may see and nothing
else: no packing, no padding, no labels.
"""

import itertools
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_glm_ernie import Glm130bForCausalLM, Glm130bTokenizer
from hf_glm_ernie.finetuning.collator import (
    Glm130bCollator,
    packed_attention_mask,
    packed_segments,
    shifted_label_smoothing,
)
from hf_glm_ernie.finetuning.objectives import (
    COLUMNS,
    BlankInfilling,
    InstructionPairs,
    Packing,
    mix_instructions,
    place_spans,
    poisson_lengths,
    published_arguments,
    sentence_spans,
    span_lengths,
    write_row,
)
from tests.support.tiny_models import HEADS, LAYERS, tiny_model

from .reference.glm130b_naive import forward as naive_forward

datasets = pytest.importorskip("datasets", reason="the data side of the objective needs datasets")

SAMPLE = Path(__file__).parents[1] / "examples" / "sample-glm130b"
TEXTS = (SAMPLE / "corpus.en.txt").read_text("utf-8").splitlines()
LONG = " ".join(TEXTS)

Row = dict[str, list[int]]


@pytest.fixture(scope="module")
def tokenizer() -> Glm130bTokenizer:
    return Glm130bTokenizer.from_ice_text_model(SAMPLE / "ice_text.model", num_image_tokens=0)


@pytest.fixture(scope="module")
def model(tokenizer: Glm130bTokenizer) -> Glm130bForCausalLM:
    names = ("mask", "gmask", "smask", "sop", "eop", "pad")
    ids: dict[str, Any] = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    return tiny_model(vocab_size=2048, eos_token_id=[tokenizer.eop_token_id], **ids)


def rows_of(objective: Any, texts: list[str], first: int = 0) -> list[Row]:
    columns = objective({"text": texts}, list(range(first, first + len(texts))))
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def packed(rows: list[Row], length: int) -> list[Row]:
    columns = Packing(length)({name: [row[name] for row in rows] for name in COLUMNS})
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def take_apart(row: Row, tokenizer: Glm130bTokenizer) -> tuple[list[int], list[list[int]], bool]:
    """Context, blanks in the order of the row, and whether the last one is ended; from the ids alone."""
    ids = row["input_ids"]
    start = ids.index(tokenizer.sop_token_id)
    pieces: list[list[int]] = []
    for token in ids[start:]:
        if token == tokenizer.sop_token_id:
            pieces.append([])
        else:
            pieces[-1].append(token)
    ended = pieces[-1][-1:] == [tokenizer.eop_token_id]
    if ended:
        pieces[-1].pop()
    return ids[:start], pieces, ended


def mask_places(row: Row, context: list[int], tokenizer: Glm130bTokenizer) -> list[int | None]:
    """The index of each blank's mask, by the position that its `<sop>` carries; None for [gMASK]."""
    if tokenizer.gmask_token_id in context:
        return [None]
    starts = [i for i, token in enumerate(row["input_ids"]) if token == tokenizer.sop_token_id]
    return [row["position_ids"][start] for start in starts]


def put_together(row: Row, tokenizer: Glm130bTokenizer) -> list[int]:
    """The text that a row was made of."""
    context, blanks, _ = take_apart(row, tokenizer)
    places = mask_places(row, context, tokenizer)
    if places == [None]:
        assert context[-1] == tokenizer.gmask_token_id
        return context[:-1] + blanks[0]
    masks = [i for i, token in enumerate(context) if token in (tokenizer.mask_token_id, tokenizer.smask_token_id)]
    assert sorted(places) == masks
    if context[-1] == tokenizer.eos_token_id:
        context = context[:-1]
    else:
        assert context[-1] in (tokenizer.mask_token_id, tokenizer.smask_token_id)
    answers = dict(zip(places, blanks, strict=True))
    return [token for i, given in enumerate(context) for token in answers.get(i, [given])]


def slow_losses(row: Row, model: Glm130bForCausalLM, tokenizer: Glm130bTokenizer) -> list[float]:
    """Minus the log-probability of every scored token, each from a forward of its own over what it may see."""
    context, blanks, ended = take_apart(row, tokenizer)
    places = mask_places(row, context, tokenizer)
    weights = model.state_dict()
    seen, positions = list(context), list(range(len(context)))
    losses = []
    for number, (blank, place) in enumerate(zip(blanks, places, strict=True)):
        targets = [*blank, *([tokenizer.eop_token_id] if ended or number < len(blanks) - 1 else [])]
        for given, target in zip([tokenizer.sop_token_id, *blank], targets, strict=False):
            seen.append(given)
            positions.append(len(seen) - 1 if place is None else place)
            visible = torch.ones(len(seen), len(seen)).tril().bool()
            visible[: len(context), : len(context)] = True
            logits = naive_forward(weights, seen, positions, visible, LAYERS, HEADS)[-1]
            losses.append(-logits.log_softmax(-1)[target].item())
        if len(targets) == len(blank):  # the last token of a blank without an end predicts nothing
            assert number == len(blanks) - 1
    return losses


def within(value: float, expected: float, sigma: float) -> bool:
    return abs(value - expected) <= 3 * sigma


# Spans.


def test_lengths_are_poisson_without_zero() -> None:
    lengths = span_lengths(60_000, poisson_lengths(3.0), random.Random(1))
    assert sum(lengths) == 60_000
    counts, total = Counter(lengths), len(lengths)
    for length in range(1, 9):
        p = math.exp(-3) * 3**length / math.factorial(length) / (1 - math.exp(-3))
        assert within(counts[length] / total, p, math.sqrt(p * (1 - p) / total)), length


@pytest.mark.parametrize("lengths", [[1, 2], [2, 1, 1], [3]])
def test_every_arrangement_is_as_likely(lengths: list[int]) -> None:
    total, draws, rng = 8, 6000, random.Random(2)
    possible = [
        tuple((start, start + length) for start, length in zip(starts, lengths, strict=True))
        for starts in itertools.product(range(total), repeat=len(lengths))
        if starts[-1] + lengths[-1] <= total
        and all(starts[i] + lengths[i] < starts[i + 1] for i in range(len(lengths) - 1))
    ]
    counts = Counter(tuple(place_spans(lengths, total, rng)) for _ in range(draws))
    assert set(counts) == set(possible)
    p = 1 / len(possible)
    assert all(within(counts[spans] / draws, p, math.sqrt(p * (1 - p) / draws)) for spans in possible)


def test_spans_without_room_are_refused() -> None:
    with pytest.raises(ValueError, match="3 spans of 3 tokens cannot stand apart in a text of 4: lower mask_ratio"):
        place_spans([1, 1, 1], 4, random.Random(0))


def test_sentences_are_whole_and_apart() -> None:
    ends = [4, 9, 15, 20, 26, 31, 40]
    edges = [0, *ends]
    for seed in range(200):
        spans = sentence_spans(ends, 40, 0.15, random.Random(seed))
        assert all(start in edges and end == edges[edges.index(start) + 1] for start, end in spans)
        assert all(left[1] < right[0] for left, right in itertools.pairwise(spans))
        cut = sum(end - start for start, end in spans)
        assert cut >= 6  # 15% of 40 are reached
        assert cut - max(end - start for start, end in spans) < 6  # and one sentence less would not do
    assert sentence_spans([5], 5, 0.15, random.Random(0)) == []


# Rows.

KINDS = {
    "[MASK]": {"mask_share": 1.0},
    "[gMASK]": {"mask_share": 0.0},
    "[sMASK]": {"mask_share": 0.0, "sentence_share": 1.0},
    "published": {},
    "with sentences": {"sentence_share": 0.3},
}


@pytest.mark.parametrize("max_length", [16, 37, 128])
@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_rows_hold_the_whole_text(tokenizer, settings: dict[str, float], max_length: int) -> None:
    texts = [LONG, *TEXTS[:40], "a", "一"]
    objective = BlankInfilling(tokenizer, max_length, **settings)
    for index, text in enumerate(texts):
        rows = rows_of(objective, [text], index)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert [token for row in rows for token in put_together(row, tokenizer)] == ids
        for number, row in enumerate(rows):
            context, blanks, ended = take_apart(row, tokenizer)
            assert len(row["input_ids"]) <= max_length
            assert len({len(row[name]) for name in COLUMNS}) == 1
            assert row["token_type_ids"] == [0] * len(context) + [1] * (len(row["labels"]) - len(context))
            assert row["position_ids"][: len(context)] == list(range(len(context)))
            assert ended == (number == len(rows) - 1 or tokenizer.gmask_token_id not in context)
            assert all(blanks)


def test_rates_are_the_published_ones(tokenizer) -> None:
    rows = rows_of(BlankInfilling(tokenizer, 2048), [*TEXTS, *TEXTS] * 8)
    contexts = [take_apart(row, tokenizer)[0] for row in rows]
    short = [tokenizer.mask_token_id in context for context in contexts]
    assert within(sum(short) / len(rows), 0.3, math.sqrt(0.3 * 0.7 / len(rows)))
    texts = [put_together(row, tokenizer) for row in rows]
    cut = [sum(map(len, take_apart(row, tokenizer)[1])) for row in rows]
    # Each row cuts 15% of its tokens, rounded up or down by chance: a standard deviation of at most half a token.
    expected = sum(max(1, 0.15 * len(text)) for text, s in zip(texts, short, strict=True) if s)
    assert within(sum(c for c, s in zip(cut, short, strict=True) if s), expected, 0.5 * math.sqrt(sum(short)))
    # A cut as likely at each of n places: on average (n - 1) / 2 of n tokens stay, variance (n^2 - 1) / 12.
    kept = sum(len(t) - c for t, c, s in zip(texts, cut, short, strict=True) if not s)
    mean = sum((len(t) - 1) / 2 for t, s in zip(texts, short, strict=True) if not s)
    variance = sum((len(t) ** 2 - 1) / 12 for t, s in zip(texts, short, strict=True) if not s)
    assert within(kept, mean, math.sqrt(variance))
    assert not any(tokenizer.smask_token_id in context for context in contexts)


def test_long_rows_are_full_and_keep_the_rate(tokenizer) -> None:
    rows = rows_of(BlankInfilling(tokenizer, 256, mask_share=1.0), [LONG] * 3)
    blanks = [take_apart(row, tokenizer)[1] for row in rows]
    tokens = sum(len(put_together(row, tokenizer)) for row in rows)
    assert within(sum(len(b) for bs in blanks for b in bs), 0.15 * tokens, 0.5 * math.sqrt(len(rows)))
    lengths = [len(row["input_ids"]) for row in rows]
    # Only the last row of a text is short; a row loses what its blanks would have taken had they been shorter.
    assert sum(length > 256 - 24 for length in lengths) >= len(rows) - 3
    order = [mask_places(row, take_apart(row, tokenizer)[0], tokenizer) for row in rows]
    assert sum(places == sorted(places) for places in order) <= 3  # shuffled


def test_a_blank_of_the_example_row(tokenizer) -> None:
    """The layout, spelled out."""
    row = write_row([7, 100, 8, 100, 2], [(3, [21, 22]), (1, [23])], sop=104, eop=105)
    assert row == {
        "input_ids": [7, 100, 8, 100, 2, 104, 21, 22, 104, 23, 105],
        "token_type_ids": [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
        "position_ids": [0, 1, 2, 3, 4, 3, 3, 3, 1, 1, 1],
        "labels": [-100, -100, -100, -100, -100, -100, 21, 22, 105, 23, 105],
    }


# What the model makes of them.


def loss_of(model: Glm130bForCausalLM, rows: list[Row], tokenizer: Any, **settings: Any) -> float:
    with torch.no_grad():
        return model(**Glm130bCollator(tokenizer.pad_token_id, **settings)(rows)).loss.item()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_the_model_s_loss_is_the_slow_reference_s(model, tokenizer, settings, implementation: str) -> None:
    model.set_attn_implementation(implementation)
    rows = rows_of(BlankInfilling(tokenizer, 64, seed=3, **settings), [" ".join(TEXTS[:4]), TEXTS[7]])
    losses = [slow_losses(row, model, tokenizer) for row in rows]
    if settings == KINDS["[MASK]"]:
        assert max(len(take_apart(row, tokenizer)[1]) for row in rows) > 1
    mean = sum(map(sum, losses)) / sum(map(len, losses))
    # Sums of fp32 in another order: 1e-6 seen.
    assert loss_of(model, rows, tokenizer) == pytest.approx(mean, abs=1e-5)
    for row, expected in zip(rows, losses, strict=True):
        assert loss_of(model, [row], tokenizer) == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    together = packed(rows, 150)
    assert len(together) < len(rows)
    assert loss_of(model, together, tokenizer) == pytest.approx(mean, abs=1e-5)
    model.set_attn_implementation("sdpa")


def pair_rows(tokenizer: Any) -> list[Row]:
    pairs = {
        "question": ["An octopus has [MASK] and blue blood.", "Thunder is the sound", "Who lights the oven? [sMASK]"],
        "reply": ["three hearts", "that follows a flash", "Mara the baker"],
    }
    columns = InstructionPairs(tokenizer, "{question}", "{reply}")(pairs)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_pairs_are_what_the_tokenizer_and_the_model_make_of_them(model, tokenizer) -> None:
    rows = pair_rows(tokenizer)
    for row, prompt, answer in zip(
        rows,
        ["An octopus has [MASK] and blue blood.", "Thunder is the sound", "Who lights the oven? [sMASK]"],
        ["three hearts", "that follows a flash", "Mara the baker"],
        strict=True,
    ):
        assert row["input_ids"] == tokenizer(prompt, answer)["input_ids"]
        assert [label for label in row["labels"] if label >= 0] == [
            *tokenizer(answer, add_special_tokens=False)["input_ids"],
            tokenizer.eop_token_id,
        ]
    losses = [slow_losses(row, model, tokenizer) for row in rows]
    mean = sum(map(sum, losses)) / sum(map(len, losses))
    assert loss_of(model, rows, tokenizer) == pytest.approx(mean, abs=1e-5)
    # The model lays such rows out by itself the same way, bit for bit.
    assert loss_of(model, rows, tokenizer, layout=False) == loss_of(model, rows, tokenizer)
    assert loss_of(model, packed(rows, 128), tokenizer) == pytest.approx(mean, abs=1e-5)


def test_a_template_writes_the_prompt(tokenizer) -> None:
    template = "Question: {q} Answer: [MASK]"
    columns = InstructionPairs(tokenizer, template, "{a}")({"q": ["Who?"], "a": ["Tobin"]})
    assert columns["input_ids"] == [tokenizer("Question: Who? Answer: [MASK]", "Tobin")["input_ids"]]


def test_nothing_leaks_between_packed_rows(model, tokenizer) -> None:
    rows = rows_of(BlankInfilling(tokenizer, 64, seed=5, mask_share=0.5), TEXTS[:6])
    together = packed(rows, 4096)
    batch = Glm130bCollator(tokenizer.pad_token_id, pad_to_multiple_of=8)(together)
    assert batch["attention_mask"].dtype == torch.bool
    segments = packed_segments(batch["token_type_ids"], torch.ones_like(batch["labels"]))[0]
    assert segments.max() == len(rows)
    with torch.no_grad():
        before = model(**batch).logits[0]
        for number in range(1, len(rows) + 1):
            inside = segments == number
            changed = batch | {"input_ids": torch.where(inside, batch["input_ids"] % 50 + 60, batch["input_ids"])}
            after = model(**changed).logits[0]
            real = torch.arange(len(segments)) < len(together[0]["labels"])
            assert torch.equal(after[~inside & real], before[~inside & real])
            assert not torch.equal(after[inside & real], before[inside & real])


def test_a_blank_sees_context_and_earlier_blanks_only(model, tokenizer) -> None:
    rows = rows_of(BlankInfilling(tokenizer, 128, seed=5, mask_share=1.0), [" ".join(TEXTS[:5])])
    row = max(rows, key=lambda row: len(take_apart(row, tokenizer)[1]))
    batch = Glm130bCollator(tokenizer.pad_token_id)([row])
    starts = (batch["input_ids"][0] == tokenizer.sop_token_id).nonzero()[:, 0].tolist()
    assert len(starts) >= 3
    with torch.no_grad():
        before = model(**batch).logits[0]
        ids = batch["input_ids"].clone()
        ids[0, starts[1] + 1] = 77  # in the second blank
        after = model(**(batch | {"input_ids": ids})).logits[0]
    assert torch.equal(after[: starts[1] + 1], before[: starts[1] + 1])
    assert (after[starts[1] + 1 :] != before[starts[1] + 1 :]).any(-1).all()


def test_the_packed_mask_is_the_spelled_out_one() -> None:
    types = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1], [0, 1, 0, 0, 0, 1, 1, 1]])
    real = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])
    owner = [[1, 1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 2, 2, 0, 0]]
    mask = packed_attention_mask(types, real)
    for b, q, k in itertools.product(range(2), range(8), range(8)):
        same = owner[b][q] == owner[b][k] != 0
        both_context = types[b, q] == 0 and types[b, k] == 0
        assert mask[b, 0, q, k] == (q == k or (same and (k <= q or bool(both_context))))


# Data sets.


def as_dataset(texts: list[str]) -> Any:
    return datasets.Dataset.from_dict({"text": texts})


def test_workers_and_batches_change_nothing_and_seeds_do(tokenizer) -> None:
    data = as_dataset(TEXTS[:40])

    def rows(seed: int = 0, **options: Any) -> list[Row]:
        objective = BlankInfilling(tokenizer, 64, seed=seed)
        made = data.map(objective, batched=True, with_indices=True, remove_columns=["text"], **options)
        return made.to_list()

    first = rows()
    assert len(first) >= 40
    assert rows(batch_size=7) == first
    assert rows(num_proc=2) == first
    assert rows(seed=1) != first


def test_packed_rows_are_full(tokenizer) -> None:
    rows = rows_of(BlankInfilling(tokenizer, 128), TEXTS)
    together = packed(rows, 128)
    used = sum(len(row["labels"]) for row in together)
    assert used == sum(len(row["labels"]) for row in rows)
    assert used / (128 * len(together)) > 0.93


def test_instructions_are_a_share_of_the_tokens(tokenizer) -> None:
    texts = datasets.Dataset.from_list(rows_of(BlankInfilling(tokenizer, 256), TEXTS * 4))
    pairs = datasets.Dataset.from_list(pair_rows(tokenizer))
    mixed = mix_instructions(texts, pairs, 0.05, seed=1)
    known = {tuple(ids) for ids in pairs["input_ids"]}
    lengths = [(len(ids), tuple(ids) in known) for ids in mixed["input_ids"]]
    share = sum(n for n, pair in lengths if pair) / sum(n for n, _ in lengths)
    # It ends with one pair more or less.
    assert abs(share - 0.05) * sum(n for n, _ in lengths) < max(map(len, known))
    assert len(mix_instructions(texts, pairs, 0.0)) == len(texts)
    assert [pair for _, pair in lengths] != sorted(pair for _, pair in lengths)  # shuffled
    with pytest.raises(ValueError, match="both data sets need rows: there are 0 and 3"):
        mix_instructions(texts.select([]), pairs)


# The recipe.


def test_the_published_recipe(model, tokenizer, tmp_path: Path) -> None:
    arguments = TrainingArguments(
        str(tmp_path), **published_arguments(max_steps=200, use_cpu=True, report_to=["none"])
    )
    trainer = Trainer(model, arguments)
    trainer.create_optimizer_and_scheduler(200)
    optimizer = trainer.optimizer
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == (0.9, 0.95)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith(".weight") and p.ndim == 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    rates = []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        trainer.lr_scheduler.step()
    assert max(rates) == pytest.approx(8e-5)
    assert rates.index(max(rates)) == 1  # 0.5% of 200
    assert optimizer.param_groups[0]["lr"] == pytest.approx(8e-6)
    assert arguments.max_grad_norm == 1.0


@pytest.mark.parametrize("num_items", [None, 7])
def test_smoothed_labels_are_the_next_tokens(model, tokenizer, num_items: int | None) -> None:
    batch = Glm130bCollator(tokenizer.pad_token_id)(pair_rows(tokenizer))
    with torch.no_grad():
        outputs = model(**batch)
    total, count = 0.0, 0
    for row, labels in enumerate(batch["labels"].tolist()):
        for index, label in enumerate(labels):
            if label >= 0:
                log_probabilities = outputs.logits[row, index - 1].log_softmax(-1)
                total -= 0.9 * log_probabilities[label].item() + 0.1 * log_probabilities.mean().item()
                count += 1
    loss = shifted_label_smoothing(0.1)(outputs, batch["labels"], num_items_in_batch=num_items)
    assert loss.item() == pytest.approx(total / (num_items or count), rel=1e-5)
    with pytest.raises(ValueError, match=r"epsilon=1\.5"):
        shifted_label_smoothing(1.5)


# Bad input.


@pytest.mark.parametrize("value", [None, "", "  \n", 7])
def test_rows_without_text_are_named(tokenizer, value: Any) -> None:
    with pytest.raises(ValueError, match=r"Row 12 of the data set has no text in column 'text'.*dataset\.filter"):
        BlankInfilling(tokenizer)({"text": ["fine", value]}, [11, 12])
    with pytest.raises(ValueError, match=r"Row 1 of the data set has no text in column 'answer'"):
        InstructionPairs(tokenizer)({"prompt": ["a", "b"], "answer": ["c", value]})


def test_columns_that_are_not_there(tokenizer) -> None:
    with pytest.raises(ValueError, match=r"no column 'text'; it has \['content'\]"):
        BlankInfilling(tokenizer)({"content": ["a"]}, [0])
    with pytest.raises(ValueError, match="template='no column' names no column"):
        InstructionPairs(tokenizer, template="no column")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask_share": 1.2}, r"mask_share=1\.2"),
        ({"mask_share": 0.7, "sentence_share": 0.4}, "together too"),
        ({"mask_ratio": 0.8}, r"mask_ratio=0\.8"),
        ({"max_length": 4}, "max_length=4"),
    ],
)
def test_settings_that_make_no_sense(tokenizer, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BlankInfilling(tokenizer, **settings)


def test_pairs_that_are_too_long(tokenizer) -> None:
    batch = {"prompt": [LONG[:400]], "answer": ["Tobin"]}
    with pytest.raises(ValueError, match=r"Row 5 of the data set has \d+ tokens, more than max_length=32"):
        InstructionPairs(tokenizer, max_length=32)(batch, [5])
    cut = InstructionPairs(tokenizer, max_length=32, too_long="cut")(batch)
    (ids,) = cut["input_ids"]
    assert len(ids) == 32
    answer = tokenizer("Tobin", add_special_tokens=False)["input_ids"]
    assert ids[-len(answer) - 1 :] == [*answer, tokenizer.eop_token_id]
    with pytest.raises(ValueError, match="too_long='drop'"):
        InstructionPairs(tokenizer, too_long="drop")
    with pytest.raises(ValueError, match="two kinds of mask"):
        InstructionPairs(tokenizer)({"prompt": ["[MASK] and [gMASK]"], "answer": ["x"]})


def test_rows_that_do_not_fit_the_collator(tokenizer) -> None:
    collate = Glm130bCollator(3)
    row = write_row([7, 100, 2], [(1, [21, 22])], sop=104, eop=105)
    with pytest.raises(ValueError, match=r"Row 1 of the batch has no token_type_ids, position_ids"):
        collate([row, {"input_ids": [1], "labels": [1]}])
    with pytest.raises(ValueError, match="differ in length"):
        collate([row | {"labels": row["labels"][:-1]}])
    with pytest.raises(ValueError, match=r"labels\[1\] = 9 of row 0 of the batch lies outside the blanks"):
        collate([row | {"labels": [-100, 9, *row["labels"][2:]]}])
    several = write_row([7, 100, 8, 100, 2], [(3, [21, 22]), (1, [23])], sop=104, eop=105)
    with pytest.raises(ValueError, match="holds several blanks"):
        Glm130bCollator(3, layout=False)([several])
    two = {name: row[name] + row[name] for name in row}
    with pytest.raises(ValueError, match="is packed"):
        Glm130bCollator(3, layout=False)([two])


def test_rows_that_cannot_be_packed() -> None:
    row = write_row([7, 100, 2], [(1, [21, 22])], sop=104, eop=105)
    with pytest.raises(ValueError, match=r"has 7 tokens and max_length is 6"):
        Packing(6)({name: [values] for name, values in row.items()})
    causal = write_row([], [(None, [21, 22])], sop=104, eop=105)
    with pytest.raises(ValueError, match="no context"):
        Packing(64)({name: [values] for name, values in causal.items()})
