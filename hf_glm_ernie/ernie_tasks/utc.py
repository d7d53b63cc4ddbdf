"""Zero-shot text classification with UTC: texts and choices in, the choices that hold out.

A row spells the choices out: `[CLS] [O-MASK] choice [O-MASK] choice [SEP] text [SEP] second text [SEP]`. Every choice
has positions of its own from 0 and does not see the other choices; the text begins at 0 again. So the order of the
choices changes nothing.

Source: PaddleNLP 2.8.1, `paddlenlp/prompt/template.py` (`UTCTemplate`), `paddlenlp/prompt/prompt_tokenizer.py`
(`MLMPromptTokenizer`), `paddlenlp/prompt/prompt_utils.py` (`PromptDataCollatorWithPadding`) and
`paddlenlp/taskflow/zero_shot_text_classification.py`. Letters in shape comments: B batch, T tokens, O choices.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hf_glm_ernie.host_arguments import (
    check_model_and_tokenizer,
    checked_list,
    flags,
    short,
    threshold_below_one,
    whole_number,
)
from hf_glm_ernie.inference.batches import in_batches

from .runners import longest_row, run_model

OPTION_TOKEN = "[O-MASK]"
MASKED = -1e4  # added to the attention scores between choices, and of padding
GIVER = "an ErnieForUTC, the OnnxEncoder of a folder exported from one, or what gives the same outputs"


def utc(
    model: Any,
    tokenizer: Any,
    choices: list[str] | dict[str, list[str]],
    texts: str | Sequence[str | tuple[str, str]],
    *,
    threshold: float = 0.5,
    single_label: bool = False,
    batch_size: int = 16,
    max_length: int = 512,
    show_progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Says which choices hold for texts.

    Args:
        model: An [`ErnieForUTC`], the [`OnnxEncoder`] of a folder exported from one, or anything that is called with
            the same inputs (those of `utc_inputs`) and returns `logits` (B, O) by name.
        tokenizer: Its tokenizer. Where it does not know `[O-MASK]`, the token is added to it.
        choices: At least two choices, or a dict with one entry that holds them.
        texts: One text or several; a pair is a text and a second one.
        threshold: A choice holds where its probability is above this, in [0, 1) (`pred_threshold` in PaddleNLP). Not
            read where a single choice is asked for.
        single_label: Whether exactly one choice holds: the likeliest, its score from a softmax over the choices.
        batch_size: Texts per forward.
        max_length: Tokens per row, at most what the model has positions for. Longer texts are cut at their end; of
            two, the longer one first.
        show_progress: Whether to show a progress bar; `None`: from a few batches on.

    Returns:
        For each text a dict of `text_a`, `text_b` (where there is one) and `predictions`: dicts of `label` and
        `score`, in the order of the choices.

    Raises:
        TypeError: texts or choices that are not strings, no model or no tokenizer where it belongs, a model without
            this output, a setting of another type.
        ValueError: fewer than two choices, an empty one, an empty text, choices that leave no room for the text, a
            model without a row for `[O-MASK]` or whose rows are not known, a threshold outside [0, 1), a batch size
            below 1, outputs of another shape or that are no numbers.

    ```python
    >>> from transformers import AutoModel, AutoTokenizer
    >>> from hf_glm_ernie import utc

    >>> model = AutoModel.from_pretrained("utc-base-converted")
    >>> tokenizer = AutoTokenizer.from_pretrained("utc-base-converted")
    >>> utc(model, tokenizer, ["这是一条差评", "这是一条好评"], "房间干净明亮，非常不错")
    ```
    """
    check_model_and_tokenizer(model, tokenizer, any_callable=True)
    labels = _checked_choices(choices)
    pairs = _checked_texts(texts)
    threshold, batch_size = threshold_below_one("threshold", threshold), whole_number("batch_size", batch_size)
    max_length = longest_row(model, tokenizer, whole_number("max_length", max_length))
    flags(single_label=single_label)
    omask = _option_id(model, tokenizer)
    options = [[omask, *ids] for ids in _plain_ids(tokenizer, labels)]

    def classify(batch: list[int]) -> Iterator[dict[str, Any]]:
        chosen = [pairs[i] for i in batch]
        inputs = utc_inputs(tokenizer, options, chosen, max_length)
        wanted = {"logits": (len(chosen), len(labels))}
        logits = run_model(model, inputs, wanted, GIVER)["logits"].detach().float().cpu()
        if logits.isnan().any():
            raise ValueError("The model gives logits with NaN: weights, or a dtype that is too narrow for them.")
        for (first, second), row in zip(chosen, logits, strict=True):
            texts_of_row = {"text_a": first} | ({"text_b": second} if second else {})
            yield texts_of_row | {"predictions": _predictions(row, labels, threshold, single_label)}

    lengths = [len(first) + len(second) for first, second in pairs]
    return in_batches(model, classify, lengths, batch_size, what="Classifying", show_progress=show_progress)


def utc_inputs(
    tokenizer: Any, options: list[list[int]], pairs: list[tuple[str, str]], max_length: int
) -> dict[str, torch.Tensor]:
    """Builds the model's inputs.

    Args:
        tokenizer: Its `cls_token_id`, `sep_token_id`, `pad_token_id` and its encoding of plain text are used.
        options: Ids of every choice, its `[O-MASK]` first.
        pairs: (text, second text or "") of every row.
        max_length: Tokens per row.

    Returns:
        `input_ids`, `token_type_ids`, `position_ids` (B, T); `attention_mask` (B, 1, T, T) fp32, 0 or -1e4;
        `omask_positions` (B, O); `cls_positions` (B,), which is the first `[SEP]`.

    Raises:
        ValueError: choices that leave no room for the text.
    """
    option_ids = [token for option in options for token in option]
    room = max_length - len(option_ids) - 4  # [CLS] choices [SEP] text [SEP] second text [SEP]
    if room < 1:
        raise ValueError(
            f"The {len(options)} choices take {len(option_ids)} tokens and leave no room for the text in {max_length} "
            "(max_length, at most the model's positions). Use fewer or shorter choices, or raise max_length."
        )
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    rows, types, positions = [], [], []
    before = len(option_ids) + 1
    for first, second in zip(*(_plain_ids(tokenizer, [pair[i] for pair in pairs]) for i in (0, 1)), strict=True):
        kept = _kept_lengths(len(first), len(second), room)
        first, second = first[: kept[0]], second[: kept[1]]
        rows.append([cls, *option_ids, sep, *first, sep, *second, sep])
        types.append([0] + [1] * len(option_ids) + [0] * (1 + len(first)) + [1] * (1 + len(second)) + [0])
        text_positions = range(len(first) + len(second) + 2)
        positions.append([0, *(i for option in options for i in range(len(option))), *text_positions, 0])

    width = max(map(len, rows))
    mask = torch.full((len(rows), 1, width, width), MASKED)
    starts = [1]
    for option in options:
        starts.append(starts[-1] + len(option))
    seen = torch.ones(width, width)
    seen[1:before, 1:before] = torch.block_diag(*(torch.ones(len(option), len(option)) for option in options))
    for i, row in enumerate(rows):
        mask[i, 0, : len(row), : len(row)] = (seen[: len(row), : len(row)] - 1) * -MASKED
    return {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        "token_type_ids": torch.tensor([row + [0] * (width - len(row)) for row in types]),
        "position_ids": torch.tensor([row + [0] * (width - len(row)) for row in positions]),
        "attention_mask": mask,
        "omask_positions": torch.tensor([starts[:-1]] * len(rows)),
        "cls_positions": torch.tensor([before] * len(rows)),
    }


def _kept_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept: the shorter one whole, as long as it takes no more than half the room."""
    if first + second <= room:
        return first, second
    half = room // 2
    if second <= half:
        return room - second, second
    return (first, room - first) if first <= half else (half, half)


def _plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _predictions(
    logits: torch.Tensor, labels: list[str], threshold: float, single_label: bool
) -> list[dict[str, Any]]:
    if single_label:
        best = int(logits.argmax())
        return [{"label": labels[best], "score": logits.softmax(-1)[best].item()}]
    scores = logits.sigmoid().tolist()
    return [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True) if score > threshold]


def _option_id(model: Any, tokenizer: Any) -> int:
    """The id of `[O-MASK]`, which becomes a special token of the tokenizer if it is not one."""
    rows = getattr(getattr(model, "config", None), "vocab_size", None)
    if rows is None and OPTION_TOKEN not in tokenizer.get_vocab():
        raise ValueError(
            f"The tokenizer has no {OPTION_TOKEN}, and this model has no config that says if it has a row for it. "
            "Open the tokenizer of the model's folder, or give the model a config with vocab_size."
        )
    if OPTION_TOKEN not in tokenizer.all_special_tokens:
        tokenizer.add_tokens([OPTION_TOKEN], special_tokens=True)
    omask = tokenizer.convert_tokens_to_ids(OPTION_TOKEN)
    if rows is not None and omask >= rows:
        raise ValueError(
            f"[O-MASK] has the id {omask}, but the model has {rows} embedding rows. Released UTC "
            "models have a row for it; others need model.resize_token_embeddings and training."
        )
    return omask


def _checked_choices(choices: Any) -> list[str]:
    if isinstance(choices, dict) and len(choices) == 1:
        choices = next(iter(choices.values()))
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        raise ValueError(
            f"choices must be a list of at least two strings, or a dict with one such list: {short(choices)}."
        )
    for i, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise TypeError(f"choices[{i}] is a {type(choice).__name__}, not a string: {short(choice)}.")
        if not choice:
            raise ValueError(f"choices[{i}] is empty: say what may hold.")
    return list(choices)


def _checked_texts(texts: Any) -> list[tuple[str, str]]:
    pairs = []
    wanted = "a string, or a list of strings and pairs of strings"
    for i, text in enumerate([texts] if isinstance(texts, str) else checked_list(texts, "texts", wanted)):
        pair = (text, "") if isinstance(text, str) else tuple(text) if isinstance(text, list | tuple) else ()
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise TypeError(f"texts[{i}] is neither a string nor a pair of strings: {short(text)}.")
        if not any(pair):
            raise ValueError(f"texts[{i}] is empty.")
        pairs.append(pair)
    return pairs


__all__ = ["utc", "utc_inputs"]
