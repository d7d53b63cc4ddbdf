"""Zero-shot text classification with UTC: texts and choices in, the choices that hold out.

A row spells the choices out (`utc_template.py`). Choices do not see each other, so their order changes nothing; texts
with different choices share a batch.

Source: PaddleNLP 2.8.1, `paddlenlp/prompt/template.py` (`UTCTemplate`), `paddlenlp/prompt/prompt_tokenizer.py`
(`MLMPromptTokenizer`), `paddlenlp/prompt/prompt_utils.py` (`PromptDataCollatorWithPadding`) and
`paddlenlp/taskflow/zero_shot_text_classification.py`. Letters in shape comments: B batch, T tokens, O choices.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hf_glm_ernie.host_arguments import (
    check_model_and_tokenizer,
    flags,
    probability_threshold,
    whole_number,
)
from hf_glm_ernie.inference.batches import in_batches

from .records import choice_records, distinct
from .runners import read_length, run_model
from .utc_template import OPTION_TOKEN, template_batch, template_row

GIVER = "an ErnieForUTC, the OnnxEncoder of a folder exported from one, or what gives the same outputs"


def utc(
    model: Any,
    tokenizer: Any,
    choices: list[str] | dict[str, list[str]] | None,
    texts: str | dict[str, Any] | Sequence[str | tuple[str, str] | dict[str, Any]],
    *,
    threshold: float = 0.5,
    single_label: bool = False,
    batch_size: int = 16,
    max_length: int | None = None,
    show_progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Says which choices hold for texts.

    Args:
        model: An [`ErnieForUTC`], the [`OnnxEncoder`] of a folder exported from one, or anything that is called with
            the same inputs (those of `utc_inputs`) and returns `logits` (B, O) by name.
        tokenizer: Its tokenizer. Where it does not know `[O-MASK]`, the token is added to it.
        choices: At least two choices, or a dict with one entry that holds them; `None` where every text has its own.
        texts: One text or several; a pair is a text and a second one, a dict a record of PaddleNLP's form,
            `{"text_a", "text_b", "question", "choices"}`, of which only `text_a` must be there. Its own choices take
            the place of `choices`; nothing reads the question.
        threshold: A choice holds where its probability is above this, in [0, 1] (`pred_threshold` in PaddleNLP): at 0
            every choice with a probability at all does, at 1 what is certain. Not read where one choice is asked for.
        single_label: Whether exactly one choice holds: the likeliest, its score from a softmax over the choices.
        batch_size: Texts per forward.
        max_length: Tokens per row; `None`: 512, or as many as the model has positions for. More than that is cut down
            to it, with a warning. Longer texts are cut at their end; of two, the longer one first.
        show_progress: Whether to show a progress bar; `None`: from a few batches on.

    Returns:
        For each text a dict of `text_a`, `text_b` (where there is one) and `predictions`: dicts of `label` and
        `score`, in the order of the choices.

    Raises:
        TypeError: texts or choices that are not strings, a dict with other keys, no model or no tokenizer where it
            belongs, a model without this output, a setting of another type.
        ValueError: fewer than two choices, an empty one, an empty text, a text without choices, choices that leave no
            room for the text, a model without a row for `[O-MASK]` or whose rows are not known, a threshold outside
            [0, 1], a batch size below 1, outputs of another shape or that are no numbers.

    ```python
    >>> from transformers import AutoModel, AutoTokenizer
    >>> from hf_glm_ernie import utc

    >>> model = AutoModel.from_pretrained("utc-base-converted")
    >>> tokenizer = AutoTokenizer.from_pretrained("utc-base-converted")
    >>> utc(model, tokenizer, ["这是一条差评", "这是一条好评"], "房间干净明亮，非常不错")
    ```
    """
    check_model_and_tokenizer(model, tokenizer, any_callable=True)
    records = choice_records(texts, choices)
    threshold, batch_size = probability_threshold("threshold", threshold), whole_number("batch_size", batch_size)
    max_length = read_length(model, tokenizer, max_length)
    flags(single_label=single_label)
    omask = _option_id(model, tokenizer)
    names = distinct([choice for record in records for choice in record.choices])
    option_ids = {name: [omask, *ids] for name, ids in zip(names, _plain_ids(tokenizer, names), strict=True)}

    def classify(batch: list[int]) -> Iterator[dict[str, Any]]:
        chosen = [records[i] for i in batch]
        options = [[option_ids[choice] for choice in record.choices] for record in chosen]
        inputs = utc_inputs(tokenizer, options, [record[:2] for record in chosen], max_length)
        wanted = {"logits": (len(chosen), max(map(len, options)))}
        logits = run_model(model, inputs, wanted, GIVER)["logits"].detach().float().cpu()
        if logits.isnan().any():
            raise ValueError("The model gives logits with NaN: weights, or a dtype that is too narrow for them.")
        for (first, second, labels), row in zip(chosen, logits, strict=True):
            texts_of_row = {"text_a": first} | ({"text_b": second} if second else {})
            yield texts_of_row | {"predictions": _predictions(row[: len(labels)], labels, threshold, single_label)}

    lengths = [sum(map(len, (first, second, *labels))) for first, second, labels in records]
    return in_batches(model, classify, lengths, batch_size, what="Classifying", show_progress=show_progress)


def utc_inputs(
    tokenizer: Any, options: Sequence[Sequence[Sequence[int]]], pairs: Sequence[tuple[str, str]], max_length: int
) -> dict[str, torch.Tensor]:
    """Builds the model's inputs.

    Args:
        tokenizer: Its `cls_token_id`, `sep_token_id`, `pad_token_id` and its encoding of plain text are used.
        options: Of every row the ids of its choices, each with its `[O-MASK]` first.
        pairs: (text, second text or "") of every row.
        max_length: Tokens per row.

    Returns:
        See [`template_batch`].

    Raises:
        ValueError: choices that leave no room for the text.
    """
    firsts, seconds = (_plain_ids(tokenizer, [pair[i] for pair in pairs]) for i in (0, 1))
    rows = [
        template_row(tokenizer, of_row, first, second, max_length)
        for of_row, first, second in zip(options, firsts, seconds, strict=True)
    ]
    return template_batch(rows, tokenizer.pad_token_id)


def _plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _predictions(
    logits: torch.Tensor, labels: Sequence[str], threshold: float, single_label: bool
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


__all__ = ["utc", "utc_inputs"]
