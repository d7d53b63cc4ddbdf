"""Questions about a text as the model's inputs: windows over the text, and the tokens of the answer.

`[CLS] question [SEP] piece of the context [SEP]`. The question is never cut; the windows are as wide as it leaves room
for and begin `stride` tokens apart: PaddleNLP's `doc_stride` is this STEP, while transformers' `stride` is how much
two windows share. An answer that is not wholly inside a window has the place of `[CLS]`, 0, there.

Where an answer begins or ends with blanks its tokens count; tokens stand where they really stand (PaddleNLP searches
for them, and guesses for unknown words).

Source: PaddleNLP, `model_zoo/ernie-3.0/utils.py` (`prepare_train_features`, `prepare_validation_features`); 2.8.1,
`paddlenlp/transformers/tokenizer_utils_base.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SPECIAL_TOKENS = 3  # [CLS] question [SEP] context [SEP]


@dataclass(frozen=True)
class QAFeature:
    """A window of T tokens.

    Attributes:
        example: Index of the example it belongs to.
        input_ids: T ids.
        token_type_ids: T types: question 0, context 1.
        offsets: Characters of the context for each token, end excluded; `None` outside the context.
        start_position: First token of the answer, 0 where it is not inside.
        end_position: Its last token.
    """

    example: int
    input_ids: list[int]
    token_type_ids: list[int]
    offsets: list[tuple[int, int] | None]
    start_position: int
    end_position: int


def qa_features(
    tokenizer: Any,
    examples: Sequence[Mapping[str, Any]],
    max_length: int = 512,
    stride: int = 128,
    numbers: Sequence[int] | None = None,
) -> list[QAFeature]:
    """Cuts and encodes examples.

    Args:
        tokenizer: One of the `tokenizers` library.
        examples: `question`, `context`, and for training `answers`, `{"text": [...], "answer_start": [...]}`, of which
            the first counts.
        max_length: Tokens of a window.
        stride: Tokens from one window's beginning to the next, at most the window's.
        numbers: Of the examples in their data, for messages; `None`: their places here.

    Returns:
        The windows, those of one example in order; at least one for each.

    Raises:
        ValueError: no question, no context, an answer that does not stand where it is said to, a question that leaves
            no room for the context, a stride below 1.
    """
    numbers = range(len(examples)) if numbers is None else numbers
    for number, example in zip(numbers, examples, strict=True):
        _check_example(example, number)
    if not examples:
        return []
    settings: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    questions = tokenizer([example["question"] for example in examples], **settings)["input_ids"]
    contexts = tokenizer([example["context"] for example in examples], **settings).encodings
    features = []
    for i, (example, question, context) in enumerate(zip(examples, questions, contexts, strict=True)):
        width = max_length - len(question) - SPECIAL_TOKENS
        if width < 1 or not stride >= 1:
            raise ValueError(
                f"Example {numbers[i]} has a question of {len(question)} tokens, which leaves {width} for the context "
                f"in max_length={max_length}; stride={stride} must be at least 1."
            )
        span = _answer_tokens(context.offsets, example)
        for begin in window_starts(len(context.ids), width, min(stride, width)):
            piece = slice(begin, begin + width)
            ids = [tokenizer.cls_token_id, *question, tokenizer.sep_token_id, *context.ids[piece]]
            before = len(question) + 2
            start = end = 0
            if span is not None and begin <= span[0] and span[1] < begin + width:
                start, end = (token - begin + before for token in span)
            features.append(
                QAFeature(
                    example=i,
                    input_ids=[*ids, tokenizer.sep_token_id],
                    token_type_ids=[0] * before + [1] * (len(ids) - before + 1),
                    offsets=[*[None] * before, *context.offsets[piece], None],
                    start_position=start,
                    end_position=end,
                )
            )
    return features


def window_starts(length: int, width: int, stride: int) -> list[int]:
    """Where windows of `width` tokens begin so that the last one reaches the end."""
    starts = [0]
    while starts[-1] + width < length:
        starts.append(starts[-1] + stride)
    return starts


def _answer_tokens(offsets: Sequence[tuple[int, int]], example: Mapping[str, Any]) -> tuple[int, int] | None:
    """First and last token of the first answer, or `None` without one."""
    answers = example.get("answers") or {}
    if not answers.get("answer_start"):
        return None
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    held = [i for i, place in enumerate(offsets) if place[0] < end and start < place[1]]
    return (held[0], held[-1]) if held else None


def _check_example(example: Mapping[str, Any], number: int) -> None:
    for column in ("question", "context"):
        if not isinstance(example.get(column), str) or not example[column].strip():
            raise ValueError(f"Example {number} has no text in {column!r}: found {example.get(column)!r}.")
    answers = example.get("answers") or {}
    texts, starts = (answers.get(name) or () for name in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise ValueError(f"Example {number} has {len(texts)} answers and {len(starts)} places of answers.")
    for text, start in zip(texts, starts, strict=True):
        if start < 0 or example["context"][start : start + len(text)] != text:
            raise ValueError(
                f"Example {number} has the answer {text!r} at {start}, where its context has "
                f"{example['context'][max(start, 0) : max(start, 0) + len(text)]!r}."
            )


__all__ = ["QAFeature", "qa_features", "window_starts"]
