"""Zero-shot answers by scoring, and the credible head as a re-ranker of generations.

The papers answer without training by scoring every choice y for a text x and taking the best. Scores are named as they
are there. All are natural logarithms; the rows are `[CLS] x y`, text and choice without anything between.

- `"P(x,y)"`: log-probability of all tokens of x and y.
- `"P(y|x)"`: the mean over the tokens of y (length-normalised), x given.
- `"P(x|y)"`: log-probability of the tokens of x, y given.
- `"P(y|x)/P(y)"`: log-probability of y given x minus that of y alone, the row `[CLS] y`.
- `"P(True|x,y)"`: log-probability that the sentence-distance head calls x and y adjacent sentences, its class 0; the
  row is `[CLS] x [SEP] y`.

The first four come in two directions. `"uni"` is the generation branch, every token given those before it; there
`"P(x|y)"` reads the row `[CLS] y x`. `"bi"` is the understanding branch: a token's log-probability is that under one
`[MASK]` in its place with all other tokens in sight, and sums of these (pseudo-log-likelihoods) stand for the
log-probability of several; so a row costs a forward for every token scored.

A text may say where the choice stands, by `{}`; else it stands at the end. Choices for several blanks of one passage
can be assigned one to one, as the papers do for ChID.

Source: P10 = arXiv 2107.02137 and PT = arXiv 2112.12731 (zero-shot learning; credible generation for the re-ranking);
pseudo-log-likelihood: arXiv 1910.14659. Choices where the papers are silent: the rows, and that only P(y|x) is
normalised. Letters in shape comments: N rows, B batch, T tokens, K tokens scored in a batch, V vocabulary, C choices.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_glm_ernie.host_arguments import (
    check_model_and_tokenizer,
    checked_list,
    checked_texts,
    flags,
    one_of,
    short,
    whole_number,
)
from hf_glm_ernie.inference.batches import in_batches

DIRECTIONS = {"uni": "nlg", "bi": "nlu"}  # and the branch of each
BLANK = "{}"
ADJACENT = 0  # class of the sentence-distance head
ORIGINAL = 1  # class of the credible head


@dataclass(frozen=True)
class ZeroShotAnswer:
    """What was chosen for one text.

    Attributes:
        label: The choice, or its label where the choices were given as label -> words.
        index: Its place among the choices.
        scores: (C,) fp32, natural logarithms, in the order of the choices.
    """

    label: str
    index: int
    scores: torch.Tensor


@dataclass(frozen=True)
class RankedText:
    """One generation and how credible it is.

    Attributes:
        text: The generation.
        probability: That it is original text and not generated, by the credible head.
        index: Its place among the generations that were passed.
    """

    text: str
    probability: float
    index: int


@dataclass(frozen=True)
class _Row:
    """Ids of one row and the places of the tokens that are scored."""

    ids: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass(frozen=True)
class _Text:
    """A text cut at the place where the choice stands."""

    before: list[int]
    after: list[int]


@dataclass(frozen=True)
class _Score:
    """How a pair of a text x and a choice y is scored.

    Attributes:
        rows: (id of `[CLS]`, x, y, direction) -> the row whose scored tokens count, and behind it the one whose tokens
            are subtracted, if any; `None`: read off the sentence-distance head.
        per_token: Whether the score is divided by the number of tokens of y.
        needs_text: Whether x must have tokens.
        blind: Directions in which what stands behind the blank of x is not seen.
    """

    rows: Callable[[int, _Text, list[int], str], list[_Row]] | None
    per_token: bool = False
    needs_text: bool = False
    blind: tuple[str, ...] = ("uni",)


def _row(cls: int, text: _Text, scored: list[int]) -> _Row:
    """`[CLS] before scored after`."""
    start = 1 + len(text.before)
    return _Row((cls, *text.before, *scored, *text.after), tuple(range(start, start + len(scored))))


def _all(cls: int, x: _Text, y: list[int], direction: str) -> list[_Row]:
    ids = _row(cls, x, y).ids
    return [_Row(ids, tuple(range(1, len(ids))))]


def _choice(cls: int, x: _Text, y: list[int], direction: str) -> list[_Row]:
    return [_row(cls, x, y)]


def _text(cls: int, x: _Text, y: list[int], direction: str) -> list[_Row]:
    if direction == "uni":
        return [_row(cls, _Text(y, []), x.before)]
    row = _row(cls, x, y)
    return [_Row(row.ids, tuple(place for place in range(1, len(row.ids)) if place not in set(row.scored)))]


def _choice_over_prior(cls: int, x: _Text, y: list[int], direction: str) -> list[_Row]:
    return [_row(cls, x, y), _row(cls, _Text([], []), y)]


SCORES = {
    "P(x,y)": _Score(_all, blind=()),
    "P(y|x)": _Score(_choice, per_token=True),
    "P(x|y)": _Score(_text, needs_text=True),
    "P(y|x)/P(y)": _Score(_choice_over_prior),
    "P(True|x,y)": _Score(None, needs_text=True, blind=("uni", "bi")),
}


@dataclass(frozen=True)
class _Run:
    """How rows are run."""

    model: Any
    tokenizer: Any
    batch_size: int
    show_progress: bool | None


def zero_shot(
    model: Any,
    tokenizer: Any,
    texts: str | Sequence[str],
    choices: Sequence[str] | Mapping[str, str] | Sequence[Sequence[str]],
    *,
    score: str = "P(y|x)",
    direction: str | None = None,
    assignment: bool = False,
    batch_size: int = 16,
    max_length: int = 512,
    show_progress: bool | None = None,
) -> list[ZeroShotAnswer]:
    """Chooses for every text the choice with the highest score.

    Args:
        model: As for [`pair_scores`].
        tokenizer: Its tokenizer.
        texts: One text or several; `{}` in a text is where the choice stands, without it the end.
        choices: The choices, the same for every text: words, or label -> words. Or a list of choices for every text.
        score: One of `SCORES`.
        direction: `"uni"` or `"bi"`; `None`: `"uni"` where the model can.
        assignment: Whether every choice is taken once at most: the texts are the blanks of one passage, and the sum
            of scores is made as high as possible (Hungarian matching; needs scipy).
        batch_size: Rows per forward.
        max_length: Tokens per row. A longer text keeps what is nearest to the choice; all its choices see the same.
        show_progress: Whether to show a progress bar; `None`: from a few batches on.

    Returns:
        An answer for every text.

    Raises:
        ImportError: `assignment` without scipy.
        TypeError: texts or choices that are not strings.
        ValueError: no choices, one without tokens, fewer choices than texts or lists of their own where they are to
            be assigned, and what [`pair_scores`] raises.

    ```python
    >>> from hf_glm_ernie import Ernie3ForCausalLM, Ernie3Tokenizer, zero_shot

    >>> answers = zero_shot(model, tokenizer, ["这家店的菜很好吃。总之很"], {"good": "满意", "bad": "失望"})
    >>> answers[0].label
    'good'
    ```
    """
    check_model_and_tokenizer(model, tokenizer)
    texts = checked_texts(texts)
    flags(assignment=assignment)
    labels, words = _choices_of_texts(choices, len(texts))
    if assignment:
        _check_assignment(choices, len(texts), words)
    run = _Run(model, tokenizer, batch_size, show_progress)
    direction = _check_settings(run, score, direction, max_length)
    places = [(i, word) for i, own in enumerate(words) for word in own]
    choice_ids = _plain_ids(tokenizer, [word for _, word in places])
    longest = [0] * len(texts)
    for (i, _), ids in zip(places, choice_ids, strict=True):
        longest[i] = max(longest[i], len(ids))
    cut = _cut_texts(run, texts, [_room(run, score, max_length, length) for length in longest])
    pairs = [(cut[i], ids) for (i, _), ids in zip(places, choice_ids, strict=True)]
    scores = _score(run, pairs, score, direction).split([len(own) for own in words])
    best = _assigned(scores) if assignment else [int(one.argmax()) for one in scores]
    return [
        ZeroShotAnswer(label=own[index], index=index, scores=one)
        for own, index, one in zip(labels, best, scores, strict=True)
    ]


def pair_scores(
    model: Any,
    tokenizer: Any,
    pairs: Iterable[tuple[str, str]],
    score: str = "P(y|x)",
    *,
    direction: str | None = None,
    batch_size: int = 16,
    max_length: int = 512,
    show_progress: bool | None = None,
) -> torch.Tensor:
    """Scores pairs of a text and a choice.

    A pair's score does not depend on the others: rows of like length share a batch, padding is masked, and rows that
    occur twice are run once.

    Args:
        model: `Ernie3ForPreTraining`; `Ernie3ForCausalLM` for the direction `"uni"`, `Ernie3ForMaskedLM` for `"bi"`.
        tokenizer: Its tokenizer.
        pairs: (x, y) of texts; `{}` in x is where y stands, without it the end.
        score: One of `SCORES`.
        direction: `"uni"` or `"bi"`; `None`: `"uni"` where the model can. `"P(True|x,y)"` has but one.
        batch_size: Rows per forward.
        max_length: Tokens per row. A longer x keeps what is nearest to y; y is never cut.
        show_progress: Whether to show a progress bar; `None`: from a few batches on.

    Returns:
        fp32 (N,) on the CPU: natural logarithms.

    Raises:
        TypeError: pairs that are no pairs of strings.
        ValueError: an unknown score or direction, a model without the head for it, a y without tokens or too long, an
            x without tokens or with a blank where the score allows none, a setting out of range.
    """
    check_model_and_tokenizer(model, tokenizer)
    pairs = checked_list(pairs, "pairs", "a list of pairs of strings")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise TypeError(f"pairs[{i}] is no pair of strings: {short(pair)}.")
    run = _Run(model, tokenizer, batch_size, show_progress)
    direction = _check_settings(run, score, direction, max_length)
    choices = _plain_ids(tokenizer, [y for _, y in pairs])
    rooms = [_room(run, score, max_length, len(ids)) for ids in choices]
    texts = _cut_texts(run, [x for x, _ in pairs], rooms)
    return _score(run, list(zip(texts, choices, strict=True)), score, direction)


def rerank(
    model: Any,
    tokenizer: Any,
    generations: Sequence[str],
    *,
    batch_size: int = 16,
    max_length: int = 512,
    show_progress: bool | None = None,
) -> list[RankedText]:
    """Sorts generations by how credible they are: the credible head's probability of "original text", class 1.

    Args:
        model: An `Ernie3ForPreTraining` with a credible head (`config.num_credible_labels`).
        tokenizer: Its tokenizer.
        generations: Texts, each with the prompt it continues: the head was trained on whole paragraphs.
        batch_size: Rows per forward.
        max_length: Tokens per row; longer texts are cut at their end.
        show_progress: Whether to show a progress bar; `None`: from a few batches on.

    Returns:
        The texts, the most credible first; of equal ones the earlier.

    Raises:
        TypeError: generations that are not strings.
        ValueError: a model without a credible head, a text without tokens, a setting out of range.
    """
    check_model_and_tokenizer(model, tokenizer)
    texts = checked_texts(generations, "generations")
    run = _Run(model, tokenizer, batch_size, show_progress)
    most = _check_lengths(run, max_length)
    _check_head(model, "credible_head", "Ernie3ForPreTraining with config.num_credible_labels=2")
    encoded = _plain_ids(tokenizer, texts)
    for i, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"Generation {i} has no tokens: {texts[i]!r}. Leave it out.")
    rows = [(tokenizer.cls_token_id, *ids[: most - 1]) for ids in encoded]
    probabilities = _class_log_probabilities(run, rows, "credible_head")[:, ORIGINAL].exp()
    order = sorted(range(len(texts)), key=lambda i: -probabilities[i].item())
    return [RankedText(text=texts[i], probability=probabilities[i].item(), index=i) for i in order]


def _score(run: _Run, pairs: list[tuple[_Text, list[int]]], score: str, direction: str) -> torch.Tensor:
    """The scores of pairs that fit. Returns (N,) fp32."""
    _check_pairs(pairs, score, direction)
    kind, cls = SCORES[score], run.tokenizer.cls_token_id
    if kind.rows is None:
        adjacent = [(cls, *x.before, run.tokenizer.sep_token_id, *y) for x, y in pairs]
        return _class_log_probabilities(run, adjacent, "distance_head")[:, ADJACENT]
    made = [kind.rows(cls, x, y, direction) for x, y in pairs]
    sums = iter(_log_probabilities(run, [row for rows in made for row in rows], direction))  # all kinds share batches
    scores = [next(sums) - sum(next(sums) for _ in rows[1:]) for rows in made]
    lengths = [len(y) if kind.per_token else 1 for _, y in pairs]
    return torch.stack(scores) / torch.tensor(lengths, dtype=torch.float32) if scores else torch.zeros(0)


def _log_probabilities(run: _Run, rows: list[_Row], direction: str) -> torch.Tensor:
    """Sum of the log-probabilities of the scored tokens of every row. Returns (N,) fp32."""
    unique = {row: i for i, row in enumerate(dict.fromkeys(rows))}
    # A job is a row and the place that is masked in it, if any.
    jobs: list[tuple[_Row, int | None]] = []
    for row in unique:
        jobs += [(row, None)] if direction == "uni" else [(row, place) for place in row.scored]
    branch, mask = DIRECTIONS[direction], run.tokenizer.mask_token_id
    head = getattr(run.model, f"{branch}_lm_head")

    def score(batch: list[int]) -> list[float]:
        chosen = [jobs[i] for i in batch]
        ids = [row.ids if t is None else (*row.ids[:t], mask, *row.ids[t + 1 :]) for row, t in chosen]
        states, _ = _states(run, ids, branch)
        # The token at a place is read at the place before, or where it is masked at the place itself.
        where = [
            (i, t - 1 if place is None else t, row.ids[t])
            for i, (row, place) in enumerate(chosen)
            for t in (row.scored if place is None else (place,))
        ]
        i, read, target = torch.tensor(where, device=states.device).T  # (K,) each
        logits = head(states[i, read]).float()  # (K, V)
        of_tokens = logits.log_softmax(-1).gather(-1, target[:, None].to(logits.device))[:, 0].double()
        sums = torch.zeros(len(chosen), dtype=torch.float64, device=of_tokens.device)  # of hundreds of terms
        return sums.index_add_(0, i.to(of_tokens.device), of_tokens).tolist()

    sums = [0.0] * len(unique)
    for (row, _), value in zip(jobs, _in_batches(run, score, [len(row.ids) for row, _ in jobs]), strict=True):
        sums[unique[row]] += value
    return torch.tensor([sums[unique[row]] for row in rows], dtype=torch.float32)


def _class_log_probabilities(run: _Run, rows: list[tuple[int, ...]], head: str) -> torch.Tensor:
    """Log-probabilities of a head on the pooled first token. Returns (N, classes) fp32."""

    def classify(batch: list[int]) -> torch.Tensor:
        states, inputs = _states(run, [rows[i] for i in batch], "nlu")
        pooled = run.model.pooler(states, inputs["input_ids"], inputs["attention_mask"])
        return getattr(run.model, head)(pooled).float().log_softmax(-1).cpu()

    results = _in_batches(run, classify, list(map(len, rows)))
    return torch.stack(results) if results else torch.zeros(0, getattr(run.model, head).out_features)


def _in_batches(run: _Run, function: Callable[[list[int]], Iterable[Any]], lengths: list[int]) -> list[Any]:
    return in_batches(run.model, function, lengths, run.batch_size, what="Scoring", show_progress=run.show_progress)


def _states(run: _Run, rows: Sequence[tuple[int, ...]], branch: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The branch's last hidden states (B, T, W) of padded rows, and the inputs."""
    width, pad = max(map(len, rows)), run.tokenizer.pad_token_id
    inputs = {
        "input_ids": torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }
    inputs = {name: tensor.to(run.model.device) for name, tensor in inputs.items()}
    return run.model.base_model(**inputs, branch=branch, use_cache=False).last_hidden_state, inputs


def _cut_texts(run: _Run, texts: list[str], rooms: list[int]) -> list[_Text]:
    """Ids on both sides of each text's blank, at most so many: those nearest to it."""
    parts = []
    for i, text in enumerate(texts):
        if text.count(BLANK) > 1:
            raise ValueError(
                f"Text {i} has {text.count(BLANK)} blanks {BLANK!r}; a text has one at most. Make one text for each "
                "blank, the others left open or filled."
            )
        parts += [*text.partition(BLANK)[::2]]
    ids = _plain_ids(run.tokenizer, parts)
    cut = []
    for before, after, room in zip(ids[::2], ids[1::2], rooms, strict=True):
        right = min(len(after), max(room // 2, room - len(before)))
        left = min(len(before), room - right)
        cut.append(_Text(before[len(before) - left :], after[:right]))
    return cut


def _room(run: _Run, score: str, max_length: int, choice: int) -> int:
    """How many tokens of the text fit beside a choice of this length."""
    most = _check_lengths(run, max_length)
    special = 2 if SCORES[score].rows is None else 1
    if choice + special > most:
        raise ValueError(
            f"A choice has {choice} tokens, but a row has room for {most - special} (max_length={max_length}, at most "
            f"the model's {run.model.config.max_position_embeddings} positions). Shorten it or raise max_length."
        )
    return most - special - choice


def _assigned(scores: Sequence[torch.Tensor]) -> list[int]:
    """One choice for each text, none twice, the sum of scores the highest."""
    linear_sum_assignment = _matching()
    _, columns = linear_sum_assignment(torch.stack(list(scores)).numpy(), maximize=True)
    return [int(column) for column in columns]


def _matching() -> Any:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(
            "assignment=True needs scipy (scipy.optimize.linear_sum_assignment), which cannot be imported: "
            f"{error}. Install it: pip install scipy."
        ) from error
    return linear_sum_assignment


def _plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _choices_of_texts(choices: Any, count: int) -> tuple[list[list[str]], list[list[str]]]:
    """Labels and words of every text's choices."""
    if isinstance(choices, str) or not isinstance(choices, Mapping | Sequence):
        raise TypeError(f"choices must be a list of strings, label -> words, or a list of lists: {short(choices)}.")
    if isinstance(choices, Mapping):
        labels, words = [list(choices)] * count, [_checked_words(list(choices.values()), "choices")] * count
    elif choices and not isinstance(choices[0], str) and isinstance(choices[0], Sequence):
        if len(choices) != count:
            raise ValueError(f"There are {len(choices)} lists of choices for {count} texts; pass one for each text.")
        labels = words = [_checked_words(own, f"choices[{i}]") for i, own in enumerate(choices)]
    else:
        labels = words = [_checked_words(choices, "choices")] * count
    for i, own in enumerate(words):
        if not own:
            raise ValueError(f"There are no choices for text {i}; pass at least one.")
    return labels, words


def _check_assignment(choices: Any, count: int, words: list[list[str]]) -> None:
    _matching()
    if count and any(own != words[0] for own in words):
        raise ValueError("assignment=True shares one list of choices out among the texts; pass a single list.")
    if count and len(words[0]) < count:
        raise ValueError(
            f"assignment=True takes every choice once at most, but there are {len(words[0])} for {count} texts."
        )


def _check_pairs(pairs: list[tuple[_Text, list[int]]], score: str, direction: str) -> None:
    kind = SCORES[score]
    for i, (x, y) in enumerate(pairs):
        if not y:
            raise ValueError(f"The choice of pair {i} has no tokens; there is nothing to score.")
        if x.after and direction in kind.blind:
            raise ValueError(
                f"Pair {i} has text behind its blank, which {score} in the direction {direction!r} would not see. "
                'Take "P(x,y)", or direction="bi".'
            )
        if kind.needs_text and not x.before and not x.after:
            raise ValueError(f"The text of pair {i} has no tokens; {score} needs one.")


def _check_settings(run: _Run, score: str, direction: str | None, max_length: int) -> str:
    """Returns the direction."""
    _check_lengths(run, max_length)
    one_of("score", score, SCORES)
    if direction is not None:
        one_of("direction", direction, DIRECTIONS)
    if SCORES[score].rows is None:
        _check_head(run.model, "distance_head", "Ernie3ForPreTraining")
        return "bi"
    if direction is None:
        direction = "uni" if hasattr(run.model, "nlg_lm_head") else "bi"
    alone = {"uni": "Ernie3ForCausalLM", "bi": "Ernie3ForMaskedLM"}[direction]
    _check_head(run.model, f"{DIRECTIONS[direction]}_lm_head", f"{alone} or Ernie3ForPreTraining")
    return direction


def _check_head(model: Any, head: str, classes: str) -> None:
    if not hasattr(model, head):
        raise ValueError(f"{type(model).__name__} has no {head}, which this score is read from. Use {classes}.")


def _check_lengths(run: _Run, max_length: int) -> int:
    """Returns how many tokens a row may have."""
    whole_number("batch_size", run.batch_size)
    if whole_number("max_length", max_length) < 3:
        raise ValueError(f"max_length={max_length} leaves no room for a text; it must be at least 3.")
    return min(max_length, run.model.config.max_position_embeddings)


def _checked_words(words: Any, name: str) -> list[str]:
    if isinstance(words, str):
        raise TypeError(f"{name} must be a list of strings, not one string: {short(words)}.")
    return checked_texts(words, name)


__all__ = ["RankedText", "ZeroShotAnswer", "pair_scores", "rerank", "zero_shot"]
