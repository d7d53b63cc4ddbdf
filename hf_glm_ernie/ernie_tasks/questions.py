"""Reading comprehension: questions and texts in, answers with offsets and probabilities out.

transformers had a pipeline for this and dropped it. A question is never cut; a long text is read in windows that
overlap (`qa_features.py`), and all windows of a question compete for its answer (`qa_answers.py`), as in PaddleNLP
and the SQuAD scripts. A span that two windows hold is one candidate here.

Letters in shape comments: B batch, T tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_glm_ernie.host_arguments import (
    check_model_and_tokenizer,
    checked_list,
    checked_texts,
    flags,
    short,
    whole_number,
)
from hf_glm_ernie.inference.batches import FEW_BATCHES, in_batches

from .qa_answers import QAAnswer, qa_answers
from .qa_features import QAFeature, qa_features
from .runners import longest_row, run_model

BATCHES_AHEAD = 16  # questions encoded ahead, in batches: enough to sort their windows by length, little to hold
GIVER = "an ErnieForQuestionAnswering, the OnnxEncoder of a folder exported from one, or what gives the same outputs"
RECORD_KEYS = ("question", "context", "id", "answers", "title")


def answer_questions(
    model: Any,
    tokenizer: Any,
    questions: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    contexts: str | Sequence[str] | None = None,
    *,
    n_best: int = 5,
    max_answer_length: int = 30,
    may_be_unanswerable: bool = False,
    null_threshold: float = 0.0,
    stride: int | None = None,
    batch_size: int = 16,
    max_length: int = 512,
    show_progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Finds the answers to questions in texts.

    Args:
        model: A model with the host's question answering head (`ErnieForQuestionAnswering`), the [`OnnxEncoder`] of a
            folder exported from one, or anything that is called with the same inputs (`input_ids`, `token_type_ids`,
            `attention_mask`, each (B, T) int64) and returns `start_logits` and `end_logits`, each (B, T), by name.
        tokenizer: Its tokenizer, one of the `tokenizers` library (it gives the offsets).
        questions: One question or several; a dict `{"question", "context"}` is the record of one with its text, as
            training rows are.
        contexts: A text for each question; one text for all questions; or several for one question. `None` where
            every question is a record.
        n_best: Candidates that are returned for a question. (Twenty starts and ends are looked at in any case.)
        max_answer_length: Tokens of an answer.
        may_be_unanswerable: Whether there may be no answer, for models trained with such questions (SQuAD 2).
        null_threshold: "No answer" is chosen where its score is higher by more than this.
        stride: Tokens from one window's beginning to the next; `None`: a quarter of `max_length`. (transformers'
            `stride` is what two windows share.)
        batch_size: Windows per forward.
        max_length: Tokens per window with its question, at most what the model has positions for.
        show_progress: Whether to show a progress bar; `None`: from a few batches on.

    Returns:
        For each question a dict of `text`, `start` and `end` (characters of the context, end excluded), `probability`
        (among the candidates), and `candidates`, a list of such dicts, the likeliest first. Where there is no answer,
        `text` is "" and `start` and `end` are `None`; with `may_be_unanswerable` there is `null_difference` as well,
        by how much "no answer" scores above the likeliest answer.

    Raises:
        TypeError: questions or texts that are not strings, a record with other keys, no model or no tokenizer where
            it belongs, a model without these outputs, a setting of another type.
        ValueError: another number of texts than of questions, an empty one, a question that leaves no room for the
            text, a setting out of range, a tokenizer without offsets, outputs of another shape or that are no numbers.

    ```python
    >>> from transformers import AutoModelForQuestionAnswering, AutoTokenizer
    >>> from hf_glm_ernie import answer_questions

    >>> model = AutoModelForQuestionAnswering.from_pretrained("ernie-questions")
    >>> tokenizer = AutoTokenizer.from_pretrained("ernie-questions")
    >>> answer_questions(model, tokenizer, "谁买了雨伞？", "陈明远3月5日买了雨伞，花了48元。")
    ```
    """
    check_model_and_tokenizer(model, tokenizer, any_callable=True)
    examples = question_records(questions, contexts)
    n_best, batch_size = whole_number("n_best", n_best), whole_number("batch_size", batch_size)
    max_length = longest_row(model, tokenizer, whole_number("max_length", max_length))
    stride = max(max_length // 4, 1) if stride is None else whole_number("stride", stride)
    flags(may_be_unanswerable=may_be_unanswerable)
    _check_offsets(tokenizer)
    settings: dict[str, Any] = {
        "n_best": max(n_best, 20),
        "max_answer_length": whole_number("max_answer_length", max_answer_length),
        "may_be_unanswerable": may_be_unanswerable,
        "null_threshold": float(null_threshold),
        "merge": True,
    }
    ahead = batch_size * BATCHES_AHEAD
    few = len(examples) <= FEW_BATCHES * batch_size
    hidden = few if show_progress is None else not show_progress
    found = []
    with tqdm(total=0, desc="Answering", unit="window", disable=hidden) as progress:
        for begin in range(0, len(examples), ahead):
            part = examples[begin : begin + ahead]
            numbers = range(begin, begin + len(part))
            windows = qa_features(tokenizer, part, max_length, stride, numbers)
            progress.total = (progress.total or 0) + len(windows)
            run = partial(_logits, model, tokenizer, windows)
            lengths = [len(one.input_ids) for one in windows]
            logits = in_batches(model, run, lengths, batch_size, bar=progress)
            answers = qa_answers(part, windows, [one[0] for one in logits], [one[1] for one in logits], **settings)
            found += [_result(answer, n_best) for answer in answers]
    return found


def question_records(questions: Any, contexts: Any = None) -> list[dict[str, str]]:
    """Questions with their texts.

    Args:
        questions: A string, a record `{"question", "context"}` (which may hold `id`, `title` and `answers`), or
            several of one kind in an order.
        contexts: A string or several; `None` with records.

    Returns:
        A dict of `question` and `context` for each.

    Raises:
        TypeError: anything else.
        ValueError: numbers of questions and texts that do not go together.
    """
    wanted = "a string, a dict {'question': ..., 'context': ...}, or a list of strings or of dicts"
    given = [questions] if isinstance(questions, str | Mapping) else checked_list(questions, "questions", wanted)
    if any(isinstance(one, Mapping) for one in given):
        if contexts is not None:
            raise TypeError("contexts must be None where questions are dicts: each has its own context.")
        return [_record(one, i) for i, one in enumerate(given)]
    if contexts is None:
        raise TypeError("contexts=None, but questions are strings: give the text that each is about.")
    asked, texts = checked_texts(given, "questions"), checked_texts(contexts, "contexts")
    if isinstance(contexts, str):
        texts = texts * len(asked)
    elif isinstance(questions, str):
        asked = asked * len(texts)
    if len(asked) != len(texts):
        raise ValueError(
            f"There are {len(asked)} questions and {len(texts)} contexts: give one for each, one text for all "
            "questions, or one question for all texts."
        )
    return [{"question": question, "context": text} for question, text in zip(asked, texts, strict=True)]


def _record(one: Any, place: int) -> dict[str, str]:
    if not isinstance(one, Mapping) or not {"question", "context"} <= set(one) or not set(one) <= set(RECORD_KEYS):
        what = f"a dict with {short(list(one))}" if isinstance(one, Mapping) else short(one)
        raise TypeError(
            f"questions[{place}] is {what}; beside dicts, each is a dict {{'question': ..., 'context': ...}}, which "
            f"may hold {', '.join(RECORD_KEYS[2:])} as well."
        )
    return {name: checked_texts([one[name]], f"questions[{place}][{name!r}]")[0] for name in ("question", "context")}


def _logits(
    model: Any, tokenizer: Any, windows: list[QAFeature], batch: list[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One forward: of every window (T,) logits of starts and of ends."""
    rows = [windows[i] for i in batch]
    shape = (len(rows), max(len(one.input_ids) for one in rows))
    ids, types, mask = (torch.full(shape, fill) for fill in (tokenizer.pad_token_id, 0, 0))  # (B, T) int64
    for row, one in enumerate(rows):
        length = len(one.input_ids)
        ids[row, :length] = torch.tensor(one.input_ids)
        types[row, :length] = torch.tensor(one.token_type_ids)
        mask[row, :length] = 1
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    outputs = run_model(model, inputs, {"start_logits": shape, "end_logits": shape}, GIVER)
    starts, ends = (outputs[name].detach().double().cpu().numpy() for name in ("start_logits", "end_logits"))
    for row, one in enumerate(rows):
        length = len(one.input_ids)
        pair = starts[row, :length], ends[row, :length]
        if not all(np.isfinite(logits).all() for logits in pair):
            raise ValueError("The model gives logits that are no numbers: weights, or a dtype too narrow for them.")
        yield pair


def _result(answer: QAAnswer, n_best: int) -> dict[str, Any]:
    """What is returned for a question."""
    candidates = [
        {"text": one.text, "start": one.start, "end": one.end, "probability": one.probability}
        if one.end > one.start
        else {"text": "", "start": None, "end": None, "probability": one.probability}
        for one in answer.candidates
    ]
    text = answer.text if any(one.end > one.start for one in answer.candidates) else ""  # not the placeholder's
    chosen = next(one for one in candidates if one["text"] == text)
    more = {} if answer.null_difference is None else {"null_difference": answer.null_difference}
    return chosen | more | {"candidates": candidates[:n_best]}


def _check_offsets(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets. Load the tokenizer with AutoTokenizer (one of "
            "the `tokenizers` library, as ErnieTokenizer)."
        )


__all__ = ["answer_questions", "question_records"]
