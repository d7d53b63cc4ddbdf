"""Scoring with GLM-130B as its authors do: choices packed into one row, windows over long texts.

The rows first, as pure functions on ids (`choice_row`, `window_rows`, `prompt_row`), then what runs them
(`span_scores`), then `cond_log_probs` and `lm_loss`, which take texts.

- A choice is scored after the context and a mask: `[MASK]` where it stands in the text, or one behind it; `[gMASK]`
  with `use_task_mask`. Choices of one token each share one `<sop>`. Longer ones lie side by side in one row, each
  behind a `<sop>` of its own, each seeing the context and itself and nothing of the others: one forward scores all.
- A long text is scored in windows of `max_seq_length` tokens: the last `generation_length` tokens of a window, behind
  `[gMASK] <sop>`, given those before them, which are read in both directions.

Where the authors' code differs from what it seems to say, the code was followed: the positions of a window count on
whatever its mask, and unidirectional windows overlap and are scored whole.

Source: `evaluation/dataset.py` and `evaluation/model.py` of the GLM-130B repository [R]. Letters in shape comments: B
batch, L length of a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.utils import logging

from hf_glm_ernie.host_arguments import check_model_and_tokenizer, checked_list, whole_number
from hf_glm_ernie.host_interface import named_cache
from hf_glm_ernie.inference.batches import in_batches

from .texts import Text, token_ids

logger = logging.get_logger(__name__)

# Projected to the vocabulary at once: 0.3 GiB of fp32 for the released 150,528 ids.
POSITIONS_AT_ONCE = 512


@dataclass(frozen=True)
class ScoredRow:
    """One row of a forward, and the spans to be scored in it.

    Attributes:
        ids: L ids.
        positions: L positions, from 0.
        visible: (L, L) bool: `visible[query, key]` is whether the query sees the key.
        targets: The ids of each span.
        places: For each span, where in the row each of its ids is predicted.
    """

    ids: list[int]
    positions: list[int]
    visible: torch.Tensor
    targets: list[list[int]]
    places: list[list[int]]


@dataclass(frozen=True)
class PromptRow:
    """A prompt to be answered.

    Attributes:
        ids: P ids; the last is `<sop>`, except where the text is unidirectional.
        positions: P positions, from 0.
        token_types: P values, 0 = context, 1 = after.
    """

    ids: list[int]
    positions: list[int]
    token_types: list[int]


@dataclass(frozen=True)
class SpanScore:
    """The score of one span.

    Attributes:
        log_prob: Sum of the log-probabilities of its ids, in nats.
        greedy: Whether each id is the most probable one at its place.
    """

    log_prob: float
    greedy: bool


@dataclass(frozen=True)
class TextLoss:
    """The language-model loss of one text.

    Attributes:
        windows: Loss of each window, summed over its scored tokens, in nats.
        num_tokens: Tokens scored.
        num_words: Pieces between single spaces of the stripped text, the authors' "original tokens"; `None` for ids.
        num_bytes: Length of the text in UTF-8; `None` for ids.
    """

    windows: list[float]
    num_tokens: int
    num_words: int | None
    num_bytes: int | None

    @property
    def loss(self) -> float:
        """Loss of the whole text, in nats."""
        return sum(self.windows)


def choice_row(
    text: Sequence[int],
    choices: Sequence[Sequence[int]],
    mask_id: int,
    sop_id: int,
    *,
    use_task_mask: bool = False,
    unified_multitask_encoding: bool = False,
    one_sop: bool = False,
) -> ScoredRow:
    """Packs a context and the choices to be scored after it [R `build_multiple_choice_sample`].

    Args:
        text: Ids of the context, with its mask or without.
        choices: Ids of each choice.
        mask_id: Id of the mask in question: of `[gMASK]` with `use_task_mask`, else of `[MASK]`.
        sop_id: Id of `<sop>`.
        use_task_mask: Positions of a choice go on behind the context, instead of staying at the mask's.
        unified_multitask_encoding: Without `use_task_mask`, and where the mask is not in the text: positions of a
            choice go on from the mask's.
        one_sop: Every choice is one token; all are read off the same `<sop>`.

    Returns:
        The row; its spans are the choices.
    """
    ids, positions = list(text), list(range(len(text)))
    in_text = mask_id in ids
    mask_position = ids.index(mask_id) if in_text else len(ids)
    if not in_text:
        ids.append(mask_id)
        positions.append(mask_position)
    division = len(ids)
    counts_from = division if use_task_mask else mask_position
    counts = use_task_mask or (unified_multitask_encoding and not in_text)
    spans, places = [], []
    for choice in choices[:1] if one_sop else choices:
        length = len(choice)
        spans.append((len(ids), length))
        places.append(list(range(len(ids), len(ids) + length)))
        ids += [sop_id, *choice[:-1]]
        positions += range(counts_from, counts_from + length) if counts else [mask_position] * length
    visible = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    visible[:, :division] = True
    for start, length in spans:
        visible[start : start + length, start : start + length] = torch.ones(length, length, dtype=torch.bool).tril()
    return ScoredRow(ids, positions, visible, [list(c) for c in choices], places * len(choices) if one_sop else places)


def fit_text(text: Sequence[int], room: int, mask_id: int, what: str) -> list[int]:
    """Cuts a context on the left, as the authors do; says so where its mask is lost [R `process_single_item`].

    Args:
        text: Ids.
        room: How many of them fit.
        mask_id: Id of the mask that the text may hold.
        what: How to call the text in an error.

    Returns:
        The last `room` ids.

    Raises:
        ValueError: nothing of the text would remain.
    """
    if len(text) <= room:
        return list(text)
    if room < 1:
        raise ValueError(
            f"No room is left for {what}: what is to be scored or generated takes all of max_seq_length. Raise "
            "max_seq_length, or shorten the choices or max_gen_length."
        )
    cut = list(text[len(text) - room :])
    if mask_id in text and mask_id not in cut:
        logger.warning(
            f"{what} has {len(text)} tokens, of which the last {room} fit: its mask is cut off, and one behind the "
            "text takes its place."
        )
    return cut


def window_rows(
    ids: Sequence[int],
    mask_id: int,
    sop_id: int,
    *,
    max_seq_length: int,
    generation_length: int,
    unidirectional: bool = False,
) -> list[ScoredRow]:
    """Cuts a text into windows; every token is scored once, unless `unidirectional` [R `LanguageModelTaskDataset`].

    Args:
        ids: Ids of the text.
        mask_id: Id of the mask before `<sop>`, as a rule `[gMASK]`.
        sop_id: Id of `<sop>`.
        max_seq_length: Tokens of a window, `<sop>` included.
        generation_length: Tokens that a window moves on; from the second window on, tokens that it scores.
        unidirectional: No window has a prompt: each is scored whole, and tokens in two windows twice.

    Returns:
        The windows; each has one span.

    Raises:
        ValueError: an empty text, or a `generation_length` that is not in 1..max_seq_length - 1.
    """
    if not ids:
        raise ValueError("The text is empty: there is nothing to score.")
    if not 1 <= generation_length < max_seq_length:
        raise ValueError(
            f"generation_length={generation_length} must be in 1..{max_seq_length - 1}, below max_seq_length="
            f"{max_seq_length}: a window holds its mask and the text."
        )
    size = max_seq_length - 1
    count = math.ceil(max(len(ids) - size, 0) / generation_length) + 1
    rows = []
    for index in range(count):
        tokens = list(ids[index * generation_length : index * generation_length + size])
        split = 0 if index == 0 or unidirectional else size - generation_length
        prompt, text = tokens[:split], tokens[split:]
        row = [*prompt, mask_id, sop_id, *text[:-1]]
        visible = torch.ones(len(row), len(row), dtype=torch.bool).tril()
        visible[: split + 1, : split + 1] = True
        rows.append(ScoredRow(row, list(range(len(row))), visible, [text], [list(range(split + 1, len(row)))]))
    return rows


def prompt_row(
    text: Sequence[int], mask_id: int, sop_id: int, *, use_task_mask: bool = False, unidirectional: bool = False
) -> PromptRow:
    """Makes the prompt of a generation task [R `build_generation_sample`].

    Args:
        text: Ids of the context, with its mask or without.
        mask_id: Id of the mask in question: of `[gMASK]` with `use_task_mask`, else of `[MASK]`.
        sop_id: Id of `<sop>`.
        use_task_mask: Positions go on behind the context, instead of staying at the mask's.
        unidirectional: The row is `[gMASK] <sop> text` and causal.

    Returns:
        The prompt. Its answer's positions count on with `use_task_mask`, and stay without.

    Raises:
        ValueError: a mask in the text of a task that puts its own; a unidirectional `[MASK]`.
    """
    ids = list(text)
    if unidirectional and not use_task_mask:
        raise ValueError("unidirectional=True needs use_task_mask=True: [MASK] is filled from both sides.")
    if mask_id in ids and use_task_mask:
        raise ValueError(
            "The text holds [gMASK], which use_task_mask=True puts behind it: leave it out of the text, or write "
            "[MASK] and pass use_task_mask=False."
        )
    mask_position = ids.index(mask_id) if mask_id in ids else len(ids)
    if unidirectional:
        ids = [mask_id, sop_id, *ids]
        return PromptRow(ids, list(range(len(ids))), [1] * len(ids))
    ids = [*ids, *([] if mask_id in ids else [mask_id]), sop_id]
    last = len(ids) - 1
    return PromptRow(ids, [*range(last), last if use_task_mask else mask_position], [0] * last + [1])


def span_scores(
    model: Any, rows: Sequence[ScoredRow], *, batch_size: int = 8, progress: bool = True, what: str = "Scoring"
) -> list[list[SpanScore]]:
    """Runs rows through a model and scores their spans; log-probabilities are fp32, sums fp64.

    Args:
        model: A `Glm130bForCausalLM`, or one with a PEFT adapter: LoRA, or prefix tuning (P-tuning v2).
        rows: The rows, of any lengths; they are batched by length and padded on the right.
        batch_size: Rows per forward.
        progress: Whether to show a bar where there is more than one batch.
        what: What the bar says.

    Returns:
        For each row the scores of its spans.

    Raises:
        ValueError: an adapter that puts embeddings before the row, a row longer than the model's context, an id that
            the model does not have, a batch size below 1.
    """
    batch_size = whole_number("batch_size", batch_size)
    core, make_prefix = _without_adapter_wrapper(model)
    vocabulary = core.config.vocab_size
    for number, row in enumerate(rows):
        if wrong := [i for i in (*row.ids, *(i for ids in row.targets for i in ids)) if not 0 <= i < vocabulary]:
            raise ValueError(f"Row {number} holds the id {wrong[0]}; the model has ids 0 .. {vocabulary - 1}.")
    longest = max((len(row.ids) for row in rows), default=0)
    if longest > core.config.max_position_embeddings:
        raise ValueError(
            f"A row has {longest} tokens and the model's context {core.config.max_position_embeddings}: lower "
            "max_seq_length."
        )
    return in_batches(
        model,
        lambda batch: _batch_scores(core, make_prefix, [rows[i] for i in batch]),
        [len(row.ids) for row in rows],
        batch_size,
        what=what,
        show_progress=progress and len(rows) > batch_size,
    )


def _without_adapter_wrapper(model: Any) -> tuple[Any, Any]:
    """The model itself, and what makes the cache that a prefix adapter puts before a batch, or `None`.

    LoRA lives inside the layers and is not lost.
    """
    if not hasattr(model, "get_base_model"):
        return model, None
    kind = model.active_peft_config
    if not kind.is_prompt_learning:
        return model.get_base_model(), None
    if kind.peft_type.value != "PREFIX_TUNING":
        raise ValueError(
            f"A {kind.peft_type.value} adapter puts embeddings before every row, which packed rows do not allow for. "
            "Rows can be scored with LoRA and prefix tuning."
        )
    return model.get_base_model(), model.get_prompt


def _batch_scores(model: Any, make_prefix: Any, rows: list[ScoredRow]) -> list[list[SpanScore]]:
    """One forward; only the scored positions are projected to the vocabulary."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    # Padding sees itself: a query that sees nothing would be NaN.
    visible = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1, 1)  # (B, 1, L, L)
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids[i, :length] = torch.tensor(row.ids)
        positions[i, :length] = torch.tensor(row.positions)
        visible[i, 0, :length, :length] = row.visible
    device = model.device
    prefix = None if make_prefix is None else make_prefix(len(rows))
    if prefix is not None:  # all see it, and positions count it
        positions += prefix.get_seq_length()
        visible = F.pad(visible, (prefix.get_seq_length(), 0), value=True)
    hidden = model.base_model(
        input_ids=ids.to(device),
        position_ids=positions.to(device),
        token_type_ids=torch.ones_like(ids).to(device),
        attention_mask=visible.to(device),
        use_cache=prefix is not None,
        **named_cache(prefix),
    ).last_hidden_state
    wanted = [
        (i, place, target)
        for i, row in enumerate(rows)
        for places, targets in zip(row.places, row.targets, strict=True)
        for place, target in zip(places, targets, strict=True)
    ]
    index = torch.tensor(wanted, device=hidden.device)  # (scored tokens, 3)
    log_probs, best = [], []
    for part in index.split(POSITIONS_AT_ONCE):
        logits = model.get_output_embeddings()(hidden[part[:, 0], part[:, 1]]).float()  # (tokens, vocabulary) fp32
        targets = part[:, 2].to(logits.device)
        log_probs += logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].double().tolist()
        best += (logits.argmax(-1) == targets).tolist()
    scores: list[list[SpanScore]] = []
    start = 0
    for row in rows:
        scores.append([])
        for span in row.targets:
            end = start + len(span)
            scores[-1].append(SpanScore(sum(log_probs[start:end]), all(best[start:end])))
            start = end
    return scores


def cond_log_probs(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[Text],
    choices: Sequence[Sequence[Text]],
    *,
    use_task_mask: bool = False,
    unified_multitask_encoding: bool = False,
    max_seq_length: int | None = None,
    packed: bool = True,
    masks_in_text: bool = True,
    batch_size: int = 8,
    progress: bool = True,
) -> list[list[float]]:
    """Log-probability of each choice after its context, as the authors' `cond_log_prob`.

    Args:
        model: A `Glm130bForCausalLM`.
        tokenizer: Its tokenizer.
        contexts: Texts, or their ids. A `[MASK]` in one is what its choices fill; otherwise one is put behind it.
        choices: For each context its choices: texts, or ids.
        use_task_mask: `[gMASK]` in place of `[MASK]`.
        unified_multitask_encoding: Positions of a choice go on from the mask's; see `choice_row`.
        max_seq_length: Tokens of a row; what is too long loses the left of its context. Default: the model's context.
        packed: All choices of a context in one row. `False` gives each a row of its own: slower, and equal to 1e-5,
            except that a long context is cut less.
        masks_in_text: See `token_ids` in `texts`.
        batch_size: Rows per forward.
        progress: Whether to show a bar.

    Returns:
        For each context the log-probability of each choice, summed over its tokens, in nats.

    Raises:
        TypeError: no model or no tokenizer where it belongs, no list of contexts or of choices, what is neither a text
            nor ids, a count that is no number.
        ValueError: lists of different lengths, a context without choices, an empty choice, choices that leave no room.
    """
    check_model_and_tokenizer(model, tokenizer)
    contexts = checked_list(contexts, "contexts", "a list of texts, or of lists of ids")
    choices = checked_list(choices, "choices", "a list with a list of choices for each context")
    if len(contexts) != len(choices):
        raise ValueError(f"{len(contexts)} contexts and {len(choices)} lists of choices: give one list per context.")
    size = _row_length(model, max_seq_length)
    mask_id = tokenizer.gmask_token_id if use_task_mask else tokenizer.mask_token_id
    kind = {"use_task_mask": use_task_mask, "unified_multitask_encoding": unified_multitask_encoding}
    rows: list[ScoredRow] = []
    counts = []
    context_ids = token_ids(tokenizer, contexts, masks_in_text=masks_in_text, name="contexts")
    for index, (context, texts) in enumerate(zip(context_ids, choices, strict=True)):
        where = f"contexts[{index}]"
        candidates = token_ids(tokenizer, texts, masks_in_text=False, name=f"choices[{index}]")
        _check_choices(candidates, where)
        if unified_multitask_encoding and mask_id in context:
            raise ValueError(f"{where} holds a mask, which unified_multitask_encoding=True does not support.")
        groups = [candidates] if packed else [[candidate] for candidate in candidates]
        for group in groups:
            one_sop = all(len(candidate) == 1 for candidate in group)
            text = fit_text(context, size - 2 - (1 if one_sop else sum(map(len, group))), mask_id, where)
            rows.append(choice_row(text, group, mask_id, tokenizer.sop_token_id, one_sop=one_sop, **kind))
        counts.append(len(groups))
    scores = iter(span_scores(model, rows, batch_size=batch_size, progress=progress, what="Scoring choices"))
    return [[score.log_prob for _ in range(count) for score in next(scores)] for count in counts]


def _row_length(model: Any, max_seq_length: int | None) -> int:
    """The most tokens of a row: what is asked for, else the model's context."""
    if max_seq_length is None:
        return int(model.config.max_position_embeddings)
    return whole_number("max_seq_length", max_seq_length, least=2)


def _check_choices(candidates: list[list[int]], where: str) -> None:
    if not candidates:
        raise ValueError(f"{where} has no choices: give at least one.")
    for number, candidate in enumerate(candidates):
        if not candidate:
            raise ValueError(f"Choice {number} of {where} is empty: a choice needs at least one token.")


def lm_loss(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Text],
    *,
    max_seq_length: int | None = None,
    generation_length: int | None = None,
    use_task_mask: bool = True,
    unidirectional: bool = False,
    batch_size: int = 8,
    progress: bool = True,
) -> list[TextLoss]:
    """Language-model loss of texts in the authors' windows.

    Args:
        model: A `Glm130bForCausalLM`.
        tokenizer: Its tokenizer.
        texts: Texts, or their ids. Masks written in them are plain text.
        max_seq_length: Tokens of a window. Default: the model's context.
        generation_length: Tokens that a window scores, and moves on. Default: 256 as in the authors' tasks, or half a
            window where that is less.
        use_task_mask: `[gMASK]` before `<sop>`, as in the authors' tasks; otherwise `[MASK]`.
        unidirectional: Windows without a prompt; see `window_rows`.
        batch_size: Windows per forward.
        progress: Whether to show a bar.

    Returns:
        The loss of each text.

    Raises:
        TypeError: as for `cond_log_probs`.
        ValueError: an empty text, or lengths that do not go together.
    """
    check_model_and_tokenizer(model, tokenizer)
    texts = checked_list(texts, "texts", "a list of texts, or of lists of ids")
    size = _row_length(model, max_seq_length)
    if generation_length is not None:
        whole_number("generation_length", generation_length)
    mask_id = tokenizer.gmask_token_id if use_task_mask else tokenizer.mask_token_id
    windows = [
        window_rows(
            ids,
            mask_id,
            tokenizer.sop_token_id,
            max_seq_length=size,
            generation_length=min(256, size // 2) if generation_length is None else generation_length,
            unidirectional=unidirectional,
        )
        for ids in token_ids(tokenizer, texts, masks_in_text=False)
    ]
    rows = [row for part in windows for row in part]
    scores = iter(span_scores(model, rows, batch_size=batch_size, progress=progress, what="Scoring windows"))
    losses = []
    for text, part in zip(texts, windows, strict=True):
        is_text = isinstance(text, str)
        losses.append(
            TextLoss(
                windows=[-next(scores)[0].log_prob for _ in part],
                num_tokens=sum(len(row.targets[0]) for row in part),
                num_words=len(text.strip().split(" ")) if is_text else None,  # type: ignore[union-attr]  # a str
                num_bytes=len(text.encode()) if is_text else None,  # type: ignore[union-attr]  # is_text says so
            )
        )
    return losses


__all__ = [
    "PromptRow",
    "ScoredRow",
    "SpanScore",
    "TextLoss",
    "choice_row",
    "cond_log_probs",
    "fit_text",
    "lm_loss",
    "prompt_row",
    "span_scores",
    "window_rows",
]
