"""Sentence embeddings: one vector for each text, from any encoder of the host library.

What PaddleNLP takes as a text's vector depends on the program, so the pooling is an argument. Its RocketQA dual
encoders (`ErnieDualEncoder`, also behind `Taskflow("feature_extraction")`) take `"cls"` and compare by plain dot
product, its semantic search with in-batch negatives takes `"pooler"` and scales to length 1. `"mean"`, `"max"` and
`"mean_sqrt"` are sentence-transformers' as well (`mean`, `max`, `mean_sqrt_len_tokens` of its `Pooling`).

Source: PaddleNLP 2.8.1, `paddlenlp/transformers/semantic_search/modeling.py` (`get_pooled_embedding`),
`paddlenlp/taskflow/text_feature_extraction.py` (`mean_tokens`, `cls_token`); of the PaddleNLP repository,
`applications/neural_search/recall/in_batch_negative/base_model.py` (`get_pooled_embedding`). Letters in shape
comments: N texts, B batch, T tokens, H hidden size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hf_glm_ernie.host_arguments import check_model_and_tokenizer, checked_list, flags, one_of, short, whole_number
from hf_glm_ernie.inference.batches import in_batches

from .records import text_records
from .runners import call_model, checked_output, longest_row, name_of, output_of

POOLINGS = ("mean", "max", "mean_sqrt", "cls", "pooler")


def sentence_embeddings(
    model: Any,
    tokenizer: Any,
    texts: str | dict[str, str] | Sequence[str | dict[str, str] | Sequence[str]],
    *,
    pooling: str = "mean",
    normalize: bool = True,
    batch_size: int = 32,
    max_length: int | None = None,
    show_progress: bool | None = None,
) -> torch.Tensor:
    """Turns texts into vectors.

    A text's vector does not depend on the others: texts of like length share a batch, padding is masked.

    Args:
        model: An encoder, as `AutoModel.from_pretrained` gives it. The folder of a converted masked language model
            serves as well: it keeps the pooler. Or the [`OnnxEncoder`] of a folder exported from one, or anything
            that is called with what the tokenizer gives and returns `last_hidden_state` (B, T, H) or `pooler_output`
            (B, H) by name.
        tokenizer: Its tokenizer.
        texts: One text or several; a dict `{"text": ...}` is the record of one. In a list, a pair of strings is a
            title (it may be empty) and a text, `[CLS] title [SEP] text [SEP]` with token types 0 and 1, as RocketQA's
            encoders of passages are trained on them.
        pooling: `"mean"`: mean of the last hidden states of all tokens, `[CLS]` and `[SEP]` among them; `"max"`: the
            largest value among them of every component; `"mean_sqrt"`: their sum divided by the square root of how
            many there are; `"cls"`: the state of `[CLS]`, as PaddleNLP's RocketQA dual encoders take it (with
            `normalize=False`); `"pooler"`: that of `[CLS]` after the pooler (a linear layer and tanh), as PaddleNLP's
            in-batch-negatives semantic search takes it.
        normalize: Whether vectors are scaled to length 1, so that their dot product is the cosine.
        batch_size: Texts per forward.
        max_length: Tokens per text, at most what the model has positions for; longer texts are cut at their end.
            `None`: as many as the model and the tokenizer allow.
        show_progress: Whether to show a progress bar; `None`: from a few batches on.

    Returns:
        (N, H) fp32 on the CPU, in the order of the texts; (0, H) without texts, where a model without a config counts
        as H = 0.

    Raises:
        TypeError: texts that are not strings, a model that gives no hidden states (one with a head), no model or no
            tokenizer where it belongs, a setting of another type.
        ValueError: an unknown pooling, a pooler asked of a model without one, a setting out of range.

    ```python
    >>> from transformers import AutoModel, AutoTokenizer
    >>> from hf_glm_ernie import sentence_embeddings

    >>> model = AutoModel.from_pretrained("ernie-3.0-base-converted")
    >>> tokenizer = AutoTokenizer.from_pretrained("ernie-3.0-base-converted")
    >>> first, second = sentence_embeddings(model, tokenizer, ["今天天气很好。", "天气真不错。"])
    >>> similarity = first @ second
    ```
    """
    check_model_and_tokenizer(model, tokenizer, any_callable=True)
    rows = _rows_of(texts)
    one_of("pooling", pooling, POOLINGS)
    batch_size = whole_number("batch_size", batch_size)
    flags(normalize=normalize)
    _check_length(tokenizer, max_length, any(len(row) == 2 for row in rows))
    longest = longest_row(model, tokenizer, None)
    encoded = _encode(tokenizer, rows, min(max_length or longest, longest))

    def embed(batch: list[int]) -> torch.Tensor:
        # On the right, whatever the tokenizer prefers: [CLS] stays in front.
        inputs = tokenizer.pad([encoded[i] for i in batch], padding_side="right", return_tensors="pt")
        return _pool(model, inputs, pooling).detach().cpu()

    lengths = [len(row["input_ids"]) for row in encoded]
    settings: dict[str, Any] = {"what": "Embedding", "show_progress": show_progress}
    vectors = in_batches(model, embed, lengths, batch_size, **settings)
    width = getattr(getattr(model, "config", None), "hidden_size", 0)
    embeddings = torch.stack(vectors) if vectors else torch.zeros(0, width)  # (N, H)
    return F.normalize(embeddings, dim=-1) if normalize else embeddings


def mean_of_tokens(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens that are no padding.

    Args:
        states: (B, T, H), of any floating point dtype.
        attention_mask: (B, T), 1 = token, 0 = padding; at least one token a row.

    Returns:
        (B, H) fp32.
    """
    return _sum_of_tokens(states, attention_mask) / attention_mask.sum(1, keepdim=True)


def mean_sqrt_of_tokens(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The sum over the tokens that are no padding, by the square root of their number. Shapes: `mean_of_tokens`."""
    return _sum_of_tokens(states, attention_mask) / attention_mask.sum(1, keepdim=True).sqrt()


def max_of_tokens(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The largest value of every component over the tokens that are no padding. Shapes: `mean_of_tokens`."""
    return states.float().masked_fill(attention_mask[..., None] == 0, -torch.inf).amax(1)


def _sum_of_tokens(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    # Padded states are left out, not multiplied by 0: they may be anything, NaN as well.
    return states.float().masked_fill(attention_mask[..., None] == 0, 0.0).sum(1)


OVER_TOKENS = {"mean": mean_of_tokens, "max": max_of_tokens, "mean_sqrt": mean_sqrt_of_tokens}


def _pool(model: Any, inputs: Mapping[str, torch.Tensor], pooling: str) -> torch.Tensor:
    """One forward and the pooling. Returns (B, H) fp32."""
    outputs, (rows, tokens) = call_model(model, inputs), inputs["input_ids"].shape
    if pooling == "pooler":
        if output_of(outputs, "pooler_output") is None:
            raise ValueError(
                f"pooling='pooler', but this {name_of(model)} has no pooler. Open it with "
                "AutoModel.from_pretrained(folder, add_pooling_layer=True) where the folder holds one, or take "
                "another pooling."
            )
        return checked_output(model, outputs, "pooler_output", (rows, None)).float()
    if output_of(outputs, "last_hidden_state") is None:
        raise TypeError(
            f"{name_of(model)} gives no hidden states but the answers of a head. Pass the encoder: model.base_model, "
            "or what AutoModel.from_pretrained opens; examples/export_ernie.py exports it with --encoder."
        )
    states = checked_output(model, outputs, "last_hidden_state", (rows, tokens, None))
    if pooling in OVER_TOKENS:
        return OVER_TOKENS[pooling](states, inputs["attention_mask"].to(states.device))
    return states[:, 0].float()


def _rows_of(texts: Any) -> list[tuple[str, ...]]:
    """Every text alone in a tuple, or behind its title."""
    pairs: dict[int, tuple[str, ...]] = {}
    if not isinstance(texts, str | Mapping):
        texts = checked_list(texts, "texts", "a string, a dict {'text': ...}, or a list of them and of pairs")
        pairs = {place: tuple(one) for place, one in enumerate(texts) if isinstance(one, list | tuple)}
        texts = ["" if place in pairs else one for place, one in enumerate(texts)]
    for place, pair in pairs.items():
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise TypeError(f"texts[{place}] is neither a string nor a pair of them, title and text: {short(pair)}.")
    return [pairs.get(place, (text,)) for place, text in enumerate(text_records(texts))]


def _encode(tokenizer: Any, rows: Sequence[tuple[str, ...]], max_length: int) -> list[dict[str, list[int]]]:
    """The model's inputs for every text, without padding."""
    encoded: list[dict[str, list[int]]] = [{} for _ in rows]
    options = {"truncation": True, "max_length": max_length, "return_attention_mask": True, "verbose": False}
    for size in {len(row) for row in rows}:
        places = [place for place, row in enumerate(rows) if len(row) == size]
        columns = tokenizer(*([rows[place][k] for place in places] for k in range(size)), **options)
        for place, values in zip(places, zip(*columns.values(), strict=True), strict=True):
            encoded[place] = dict(zip(columns, values, strict=True))
    return encoded


def _check_length(tokenizer: Any, max_length: int | None, pairs: bool) -> None:
    if max_length is None:
        return
    max_length = whole_number("max_length", max_length)
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    if max_length <= special:
        raise ValueError(
            f"max_length={max_length} leaves no room for text beside the {special} special tokens; it must be at "
            f"least {special + 1}."
        )


__all__ = ["max_of_tokens", "mean_of_tokens", "mean_sqrt_of_tokens", "sentence_embeddings"]
