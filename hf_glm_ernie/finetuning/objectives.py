"""GLM-130B's training objective: texts and pairs become rows that the model's own `forward` scores.

A row is `input_ids`, `token_type_ids` (0 = context, 1 = `<sop>` and after), `position_ids` and `labels`. The classes
here make such rows and are what `datasets.map(..., batched=True)` takes; `finetuning/collator.py` pads them.

Autoregressive blank infilling [P], of 30% of the rows with `[MASK]`, of 70% with `[gMASK]`:

- `[MASK]`: spans with lengths from a Poisson distribution (mean 3, never 0) are cut out until 15% of the tokens are
  gone, each replaced by one `[MASK]`; two spans never touch. `[sMASK]`, off by default: whole sentences instead.
- `[gMASK]`: a cut anywhere, each place as likely; what stands before it is context, the rest is the blank.

How several blanks of one row meet a model with one suffix: behind the context come the blanks in random order, each as
`<sop>` and its tokens. Everything from the first `<sop>` on is the suffix: causal, so a blank sees the context and the
blanks before it in the row [GLM]. A blank's tokens and its `<sop>` all have the position of its own mask; the
model, left alone, would give all of them the first mask's, so `position_ids` are part of the row. The token after a
blank's last one is `<eop>`: where another blank follows, the row holds that one's `<sop>` in its place and only the
label says `<eop>`, as in GLM; the last blank's `<eop>` stands in the row.

`labels` follow the model, which predicts `labels[i]` at `i - 1`: -100 on context, the ids of the blanks, `<eop>` at
their ends. A context is what `tokenizer(text)` makes: `</s>` follows one that does not end in a mask. A text longer
than a row is cut into several; a `[gMASK]` blank that ends at such a cut, not at the text's end, has no `<eop>`.

Randomness is a function of the seed and the row's index in the data set, so results do not depend on batches or
worker processes; another epoch takes another seed.

Sources: arXiv 2210.02414 [P]; the order of blanks, `<eop>` and gaps between spans: arXiv 2103.10360 [GLM].
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

IGNORED = -100  # a label that is not scored
COLUMNS = ("input_ids", "token_type_ids", "position_ids", "labels")
LONGEST_SPAN = 40  # the distribution is cut there: one span in 10^29 would be longer
SENTENCE_ENDS = (".", "!", "?", ";", "。", "！", "？", "；", "…", "<n>")

Row = dict[str, list[int]]
Span = tuple[int, int]


def poisson_lengths(mean: float) -> list[float]:
    """Cumulative probabilities of the lengths 1, 2, ... of a Poisson distribution without 0."""
    weights = [math.exp(length * math.log(mean) - math.lgamma(length + 1)) for length in range(1, LONGEST_SPAN)]
    return list(itertools.accumulate(weight / sum(weights) for weight in weights))


def span_lengths(budget: int, cumulative: Sequence[float], rng: random.Random) -> list[int]:
    """Draws lengths until they add up to `budget`; the last one is shortened to fit.

    Args:
        budget: Tokens to cut out.
        cumulative: From [`poisson_lengths`].
        rng: Source of randomness.

    Returns:
        Lengths of at least 1, in tokens.
    """
    lengths: list[int] = []
    while budget > 0:
        (length,) = rng.choices(range(1, len(cumulative) + 1), cum_weights=cumulative)
        lengths.append(min(length, budget))
        budget -= lengths[-1]
    return lengths


def place_spans(lengths: Sequence[int], total: int, rng: random.Random) -> list[Span]:
    """Places spans in a text, at least one token apart, every arrangement as likely.

    Args:
        lengths: Of the spans, from left to right.
        total: Tokens of the text.
        rng: Source of randomness.

    Returns:
        Start and end of each, ascending.

    Raises:
        ValueError: no room to keep them apart.
    """
    slots = total - sum(lengths) + 1  # a span stands before one of the tokens that stay, or behind the last
    if slots < len(lengths):
        raise ValueError(
            f"{len(lengths)} spans of {sum(lengths)} tokens cannot stand apart in a text of {total}: lower mask_ratio."
        )
    spans, before = [], 0
    for slot, length in zip(sorted(rng.sample(range(slots), len(lengths))), lengths, strict=True):
        spans.append((slot + before, slot + before + length))
        before += length
    return spans


def sentence_spans(ends: Sequence[int], total: int, ratio: float, rng: random.Random) -> list[Span]:
    """Chooses whole sentences, in random order, until `ratio` of the tokens are reached; no two are neighbours.

    Args:
        ends: Where sentences end (one past the last token), ascending.
        total: Tokens of the text.
        ratio: Share of tokens to cut out; the last sentence chosen may exceed it.
        rng: Source of randomness.

    Returns:
        Start and end of each, ascending; empty where the text is one sentence.
    """
    sentences = [span for span in itertools.pairwise((0, *(e for e in ends if e < total), total)) if span[0] < span[1]]
    if len(sentences) < 2:
        return []
    chosen: set[int] = set()
    for index in rng.sample(range(len(sentences)), len(sentences)):
        if sum(sentences[i][1] - sentences[i][0] for i in chosen) >= ratio * total:
            break
        if not chosen & {index - 1, index + 1}:
            chosen.add(index)
    return [sentences[index] for index in sorted(chosen)]


def write_row(
    context: Sequence[int], blanks: Sequence[tuple[int | None, Sequence[int]]], sop: int, eop: int, ended: bool = True
) -> Row:
    """Writes context and blanks as the model reads and scores them; see the top of the file.

    Args:
        context: Ids with a mask for each blank.
        blanks: In the order of the row: position of the mask (`None`: positions go on) and ids.
        sop: Id of `<sop>`.
        eop: Id of `<eop>`.
        ended: Whether the last blank ends in `<eop>`.

    Returns:
        A row.
    """
    ids, labels, positions = list(context), [IGNORED] * len(context), list(range(len(context)))
    for number, (place, blank) in enumerate(blanks):
        piece = [sop, *blank, *([eop] if ended and number == len(blanks) - 1 else [])]
        ids += piece
        labels += [eop if number else IGNORED, *piece[1:]]
        positions += range(len(positions), len(positions) + len(piece)) if place is None else [place] * len(piece)
    types = [0] * len(context) + [1] * (len(ids) - len(context))
    return {"input_ids": ids, "token_type_ids": types, "position_ids": positions, "labels": labels}


def write_blanks(
    ids: Sequence[int], spans: Sequence[Span], mask: int, end: int | None, sop: int, eop: int, order: Sequence[int]
) -> Row:
    """Cuts spans out of a text and writes the row that asks for them.

    Args:
        ids: The text.
        spans: Start and end of each blank, ascending.
        mask: Id of `[MASK]` or `[sMASK]`.
        end: Id of `</s>`, put behind a context that does not end in a mask, or `None`.
        sop: Id of `<sop>`.
        eop: Id of `<eop>`.
        order: Indices of the spans in the order of the row.

    Returns:
        A row.
    """
    context: list[int] = []
    places, done = [], 0
    for start, stop in spans:
        context += ids[done:start]
        places.append(len(context))
        context.append(mask)
        done = stop
    context += ids[done:]
    if end is not None and context[-1] != mask:
        context.append(end)
    return write_row(context, [(places[i], ids[slice(*spans[i])]) for i in order], sop, eop)


def texts_of(batch: Mapping[str, Sequence[Any]], column: str, first: int | Sequence[int]) -> list[str]:
    """A column's texts, checked.

    Args:
        batch: Columns, as `datasets.map(batched=True)` gives them.
        column: The one to read.
        first: Index of the batch's first row in the data set, or all indices; for messages.

    Raises:
        ValueError: there is no such column, or a row without text.
    """
    if column not in batch:
        raise ValueError(f"The data set has no column {column!r}; it has {sorted(batch)}. Name the one with the text.")
    values = list(batch[column])
    for number, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            row = first + number if isinstance(first, int) else first[number]
            raise ValueError(
                f"Row {row} of the data set has no text in column {column!r}: found {value!r}. Leave such rows out, "
                f"for example with dataset.filter(lambda row: bool((row[{column!r}] or '').strip()))."
            )
    return values


@dataclass(frozen=True)
class BlankInfilling:
    """Texts to rows of blanks; give it to `dataset.map(..., batched=True, with_indices=True)`.

    The old columns do not fit the new rows: also pass `remove_columns=dataset.column_names`.

    Args:
        tokenizer: A `Glm130bTokenizer`.
        max_length: Tokens of the longest row.
        mask_share: Share of rows with `[MASK]` [P: 30%].
        sentence_share: Share of rows with `[sMASK]` (the released model's training: none). What remains is `[gMASK]`.
            A text of one sentence takes `[gMASK]` instead.
        mask_ratio: Share of a row's tokens that `[MASK]` and `[sMASK]` cut out [P: 15%].
        mean_span: Mean of the Poisson distribution [P: 3].
        seed: Another one gives other blanks: take one for each epoch.
        text_column: Column of the texts.

    Raises:
        ValueError: shares outside 0..1, or a `max_length` below 8.

    ```python
    >>> from datasets import Dataset
    >>> from transformers import AutoTokenizer
    >>> from hf_glm_ernie.finetuning.objectives import BlankInfilling

    >>> texts = Dataset.from_dict({"text": ["An octopus has three hearts and blue blood."]})
    >>> objective = BlankInfilling(AutoTokenizer.from_pretrained("glm-130b"))
    >>> rows = texts.map(objective, batched=True, with_indices=True, remove_columns=["text"])
    ```
    """

    tokenizer: Any
    max_length: int = 2048
    mask_share: float = 0.3
    sentence_share: float = 0.0
    mask_ratio: float = 0.15
    mean_span: float = 3.0
    seed: int = 0
    text_column: str = "text"

    def __post_init__(self) -> None:
        shares = (self.mask_share, self.sentence_share, self.mask_share + self.sentence_share)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                f"mask_share={self.mask_share} and sentence_share={self.sentence_share} must be shares of all rows: "
                "between 0 and 1, together too."
            )
        if not 0 < self.mask_ratio <= 0.5 or self.mean_span <= 0 or self.max_length < 8:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} must be above 0 and at most 0.5, mean_span={self.mean_span} above 0 "
                f"and max_length={self.max_length} at least 8 tokens."
            )

    def __call__(self, batch: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> dict[str, list[list[int]]]:
        """Makes the rows of a batch.

        Args:
            batch: Columns, `text_column` among them.
            indices: Of the rows in the data set.

        Returns:
            The columns of the rows; more rows than texts where texts were cut.

        Raises:
            ValueError: a row without text, or no such column.
        """
        texts = texts_of(batch, self.text_column, indices)
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        rows: list[Row] = []
        for ids, index in zip(encoded, indices, strict=True):
            rows += self.rows_of(ids, random.Random(f"{self.seed} {index}"))
        return {name: [row[name] for row in rows] for name in COLUMNS}

    def rows_of(self, ids: Sequence[int], rng: random.Random) -> Iterator[Row]:
        """Cuts the ids of a text into rows of at most `max_length` tokens, each with blanks of its own kind."""
        while ids:
            kind = rng.random()
            row = None
            if kind < self.mask_share:
                row, used = self._short(ids, rng)
            elif kind < self.mask_share + self.sentence_share:
                row, used = self._sentences(ids, rng)
            if row is None:
                row, used = self._open(ids, rng)
            yield row
            ids = ids[used:]

    def _open(self, ids: Sequence[int], rng: random.Random) -> tuple[Row, int]:
        token = self.tokenizer
        used = min(len(ids), self.max_length - 3)  # [gMASK] <sop> <eop>
        cut = rng.randrange(used)
        context = [*ids[:cut], token.gmask_token_id]
        blank = [(None, ids[cut:used])]
        return write_row(context, blank, token.sop_token_id, token.eop_token_id, ended=used == len(ids)), used

    def _short(self, ids: Sequence[int], rng: random.Random) -> tuple[Row, int]:
        most = min(len(ids), self.max_length - 4)  # [MASK] <sop> </s> <eop>
        lengths = span_lengths(self._budget(most, rng), poisson_lengths(self.mean_span), rng)
        used = min(most, self.max_length - 2 - 2 * len(lengths))  # a blank takes two tokens more than its text
        budget = sum(lengths) if used == most else self._budget(used, rng)
        while (excess := sum(lengths) - budget) > 0:
            lengths[-1:] = [lengths[-1] - excess] if lengths[-1] > excess else []
        return self._write(ids[:used], place_spans(lengths, used, rng), self.tokenizer.mask_token_id, rng), used

    def _sentences(self, ids: Sequence[int], rng: random.Random) -> tuple[Row | None, int]:
        names = self.tokenizer.convert_ids_to_tokens(list(ids))
        ends = [index + 1 for index, name in enumerate(names) if name.endswith(SENTENCE_ENDS)]
        used = len(ids)
        if used + 2 * len(ends) + 4 > self.max_length:  # as above
            room = self.max_length - 2 - 2 * sum(end <= self.max_length for end in ends) - 2
            used = max((end for end in ends if end <= room), default=0)
        spans = sentence_spans([end for end in ends if end <= used], used, self.mask_ratio, rng)
        if not spans:
            return None, 0
        return self._write(ids[:used], spans, self.tokenizer.smask_token_id, rng), used

    def _budget(self, tokens: int, rng: random.Random) -> int:
        """`mask_ratio` of the tokens; the fraction of a token is one or none by chance, so that the mean is exact."""
        exact = self.mask_ratio * tokens
        return max(1, math.floor(exact) + (rng.random() < exact % 1))

    def _write(self, ids: Sequence[int], spans: Sequence[Span], mask: int, rng: random.Random) -> Row:
        token = self.tokenizer
        order = rng.sample(range(len(spans)), len(spans))
        return write_blanks(ids, spans, mask, token.eos_token_id, token.sop_token_id, token.eop_token_id, order)


@dataclass(frozen=True)
class InstructionPairs:
    """Prompts and answers to rows: the prompt is read in both directions, the answer is scored.

    A row is what `tokenizer(prompt, answer)` makes, so generation asks what training taught. A prompt may hold a
    `[MASK]` or `[sMASK]` that the answer fills, and the answer then has its position; else it follows a `[gMASK]` at
    the end.

    Args:
        tokenizer: A `Glm130bTokenizer`.
        template: The prompt, with columns in braces: `"Question: {question} Answer: [MASK]"`.
        answer: The answer, likewise.
        max_length: Tokens of the longest row.
        too_long: What to do with a longer one: `"raise"`, or `"cut"` the prompt, on the tokenizer's
            `truncation_side`.

    Raises:
        ValueError: an unknown `too_long`, or a template without columns.
    """

    tokenizer: Any
    template: str = "{prompt}"
    answer: str = "{answer}"
    max_length: int = 2048
    too_long: str = "raise"

    def __post_init__(self) -> None:
        if self.too_long not in ("raise", "cut"):
            raise ValueError(f"too_long={self.too_long!r} is not one of 'raise' and 'cut'.")
        for name in ("template", "answer"):
            if not _columns_of(getattr(self, name)):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} names no column: write it in braces, as '{{prompt}}'."
                )

    def __call__(
        self, batch: Mapping[str, Sequence[Any]], indices: Sequence[int] | None = None
    ) -> dict[str, list[list[int]]]:
        """Makes the rows of a batch.

        Args:
            batch: Columns, those of the templates among them.
            indices: Of the rows in the data set, for messages.

        Returns:
            The columns of the rows.

        Raises:
            ValueError: a row without text, no such column, a prompt with masks of two kinds, or a row that is too
                long.
        """
        names = sorted({*_columns_of(self.template), *_columns_of(self.answer)})
        columns = [texts_of(batch, name, 0 if indices is None else indices) for name in names]
        records = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        prompts = [self.template.format_map(record) for record in records]
        answers = [self.answer.format_map(record) for record in records]
        truncation: dict[str, Any] = {}
        if self.too_long == "cut":
            truncation = {"truncation": "only_first", "max_length": self.max_length}
        encoded = self.tokenizer(prompts, answers, verbose=False, **truncation)["input_ids"]
        rows = []
        for number, ids in enumerate(encoded):
            if len(ids) > self.max_length:
                index = number if indices is None else indices[number]
                raise ValueError(
                    f"Row {index} of the data set has {len(ids)} tokens, more than max_length={self.max_length}. "
                    f"Raise max_length, shorten the row, or pass too_long='cut'. It begins {prompts[number][:60]!r}."
                )
            rows.append(self._row(ids))
        return {name: [row[name] for row in rows] for name in COLUMNS}

    def _row(self, ids: Sequence[int]) -> Row:
        token = self.tokenizer
        start = ids.index(token.sop_token_id)
        context = ids[:start]
        short = (token.mask_token_id, token.smask_token_id)
        place = next((context.index(mask) for mask in short if mask in context), None)
        return write_row(context, [(place, ids[start + 1 : -1])], token.sop_token_id, token.eop_token_id)


def _columns_of(template: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(template) if name]


@dataclass(frozen=True)
class Packing:
    """Puts several rows into one, so that little of a batch is padding; give it to `dataset.map(..., batched=True)`.

    The rows of a packed row do not see each other: their positions begin anew, and the collator makes the mask. It
    tells them apart by their `token_type_ids`, since every row begins with context.

    Args:
        max_length: Tokens of the longest packed row.

    A larger `batch_size` of `map` packs tighter.
    """

    max_length: int = 2048

    def __call__(self, batch: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, list[list[int]]]:
        """Packs the rows of a batch, each into the first packed row that has room.

        Args:
            batch: The columns of rows.

        Returns:
            The columns of the packed rows.

        Raises:
            ValueError: a row that is too long, or without context or answer.
        """
        packed: list[Row] = []
        full = 0  # packed rows before this one have no room for anything
        for number, types in enumerate(batch["token_type_ids"]):
            if not types or types[0] != 0 or types[-1] != 1:
                raise ValueError(f"Row {number} of the batch has no context or no answer: it cannot be packed.")
            if len(types) > self.max_length:
                raise ValueError(
                    f"Row {number} of the batch has {len(types)} tokens and max_length is {self.max_length}: make the "
                    "rows with the same max_length."
                )
            room = (r for r in packed[full:] if len(r["labels"]) + len(types) <= self.max_length)
            target = next(room, None)
            if target is None:
                target = {name: [] for name in COLUMNS}
                packed.append(target)
            for name in COLUMNS:
                target[name] += batch[name][number]
            while full < len(packed) and len(packed[full]["labels"]) > self.max_length - 3:
                full += 1
        return {name: [row[name] for row in packed] for name in COLUMNS}


def mix_instructions(texts: Any, instructions: Any, share: float = 0.05, seed: int = 0) -> Any:
    """Mixes instruction rows into rows of blanks so that they are a share of the *tokens* [P: 5%].

    Args:
        texts: `datasets.Dataset` of rows.
        instructions: The same, from [`InstructionPairs`].
        share: Of all tokens.
        seed: Of the order.

    Returns:
        A `datasets.Dataset`: goes on until the texts are used up, with instructions repeated where there are few.

    Raises:
        ValueError: a share outside 0..1, or an empty data set.
        ImportError: no `datasets`.
    """
    try:
        from datasets import concatenate_datasets
    except ImportError as error:
        raise ImportError("Mixing data sets needs the package datasets: pip install datasets") from error
    if not 0 <= share < 1 or not len(texts) or not len(instructions):
        raise ValueError(
            f"share={share} must be at least 0 and below 1, and both data sets need rows: there are {len(texts)} and "
            f"{len(instructions)}."
        )
    lengths = [len(ids) for ids in instructions["input_ids"]]
    wanted = share / (1 - share) * sum(len(ids) for ids in texts["input_ids"])
    rng = random.Random(seed)
    chosen: list[int] = []
    while wanted > 0:  # every row once before any is repeated
        for index in rng.sample(range(len(lengths)), len(lengths)):
            # The last row is in or out by chance, so that the mean share is exact.
            if wanted <= 0 or (wanted < lengths[index] and rng.random() >= wanted / lengths[index]):
                wanted = 0
                break
            chosen.append(index)
            wanted -= lengths[index]
    return concatenate_datasets([texts, instructions.select(chosen)]).shuffle(seed=seed)


def published_arguments(**changes: Any) -> dict[str, Any]:
    """The published recipe as arguments of the host's `TrainingArguments` [P].

    AdamW with betas 0.9 and 0.95, weight decay 0.1 (the host leaves biases and norms out), gradients clipped to a
    norm of 1, learning rate to 8e-5 in the first half percent of the steps and along a cosine to a tenth of that.
    DeepNorm's initialisation and the shrunk embedding gradient are the model's own.

    Args:
        **changes: In place of or beside these.

    Returns:
        Keyword arguments.
    """
    recipe: dict[str, Any] = {
        "optim": "adamw_torch",
        "learning_rate": 8e-5,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 0.005,
    }
    return recipe | changes


__all__ = [
    "BlankInfilling",
    "InstructionPairs",
    "Packing",
    "mix_instructions",
    "published_arguments",
]
