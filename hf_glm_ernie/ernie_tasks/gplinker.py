"""Extraction for one schema: texts in, answers of the same form as [`uie`]'s out, one forward a text.

The schema belongs to the model (`config.schema`), as in PaddleNLP's `Taskflow(model="uie-data-distill-gp")`, so none
is given. An answer's probability is the sigmoid of its score; that of what stands below another is the product of both
links, of the first and of the last tokens.

Source: PaddleNLP 2.8.1, `paddlenlp/taskflow/information_extraction.py` (`GPTask`).
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_glm_ernie.host_arguments import check_model_and_tokenizer, probability_threshold, whole_number
from hf_glm_ernie.inference.batches import FEW_BATCHES, in_batches

from .gplinker_decoding import (
    FoundEntity,
    FoundRelation,
    decode_entities,
    decode_relations,
    probability_of,
    score_of,
)
from .gplinker_schema import LabelMaps, Place, answers_of, with_labels
from .gplinker_windows import TextWindow, is_settled_elsewhere, text_windows
from .records import text_records
from .runners import longest_row, run_model

BATCHES_AHEAD = 64
GIVER = "an ErnieForGPLinker, or the OnnxEncoder of a folder exported from one"


def labels_of_model(model: Any) -> LabelMaps:
    """The labels in a model's config.

    Raises:
        TypeError: a model of another kind.
        ValueError: a schema that asks for what is no label.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "ernie_gplinker":
        raise TypeError(
            f"model is a {type(model).__name__}, which has no schema of its own; extract takes {GIVER}. An "
            "ErnieForUIE is asked with uie(model, tokenizer, schema, texts)."
        )
    return with_labels(config.entity_labels, config.relation_labels, config.schema, "The model's config")


def extract(
    model: Any,
    tokenizer: Any,
    texts: str | dict[str, str] | list[str | dict[str, str]],
    *,
    threshold: float = 0.5,
    batch_size: int = 16,
    max_length: int = 512,
    overlap: int = 64,
    show_progress: bool | None = None,
) -> list[dict[str, list[dict[str, Any]]]]:
    """Extracts what a model's own schema names from texts.

    Args:
        model: An [`ErnieForGPLinker`], or the [`OnnxEncoder`] of a folder exported from one.
        tokenizer: Its tokenizer, one of the `tokenizers` library (it gives the offsets).
        texts: One text or several; a dict `{"text": ...}` is the record of one.
        threshold: What is found has a probability above this, a relation at both of its links.
        batch_size: Windows per forward.
        max_length: Tokens per window, at most what the model has positions for.
        overlap: Tokens that neighbouring windows of a long text share; at most half a window.
        show_progress: Whether to show a progress bar; `None`: from a few batches on.

    Returns:
        For each text a dict from the schema's names to answers, as [`uie`] gives it.

    Raises:
        TypeError: texts that are not strings, a model of another kind, no tokenizer, a setting of another type.
        ValueError: a setting out of range, a tokenizer without offsets.

    ```python
    >>> from transformers import AutoModel, AutoTokenizer
    >>> from hf_glm_ernie import extract

    >>> model, tokenizer = AutoModel.from_pretrained("student"), AutoTokenizer.from_pretrained("student")
    >>> extract(model, tokenizer, "谢秀兰是白鹿医药公司的创始人。")
    ```
    """
    check_model_and_tokenizer(model, tokenizer)
    maps, plain = labels_of_model(model), text_records(texts)
    threshold, batch_size = probability_threshold("threshold", threshold), whole_number("batch_size", batch_size)
    max_length = longest_row(model, tokenizer, whole_number("max_length", max_length, least=4))
    overlap = min(whole_number("overlap", overlap, least=0), max_length // 2)
    reader = _Reader(model, tokenizer, score_of(threshold), batch_size, max_length, overlap)
    few = len(plain) <= FEW_BATCHES * batch_size
    hidden = few if show_progress is None else not show_progress
    answers: list[dict[str, list[dict[str, Any]]]] = []
    with tqdm(total=len(plain), desc="Extracting", unit="text", disable=hidden) as progress:
        for begin in range(0, len(plain), batch_size * BATCHES_AHEAD):
            ahead = plain[begin : begin + batch_size * BATCHES_AHEAD]
            for text, found in zip(ahead, reader.read(ahead), strict=True):
                answers.append(answers_of(maps, text, *_named(maps, found)))
            progress.update(len(ahead))
    return answers


Found = tuple[dict[tuple[int, Place], float], dict[tuple[int, Place, Place], float]]
"""Of one text: the probability of every entity (type and place), and of every relation (its number and two places)."""


def _named(maps: LabelMaps, found: Found) -> tuple[Any, Any]:
    entities = {(maps.entities[label], place): p for (label, place), p in found[0].items()}
    relations = {(maps.relations[label], *places): p for (label, *places), p in found[1].items()}
    return entities, relations


class _Reader:
    """Puts texts to the model."""

    def __init__(self, model: Any, tokenizer: Any, above: float, batch_size: int, max_length: int, overlap: int):
        self.model, self.tokenizer, self.above = model, tokenizer, above
        self.batch_size, self.max_length, self.overlap = batch_size, max_length, overlap

    def read(self, texts: Sequence[str]) -> list[Found]:
        """Returns what is in each text."""
        windows = text_windows(self.tokenizer, texts, self.max_length, self.overlap)
        lengths = [len(one.input_ids) for one in windows]
        read = in_batches(self.model, partial(self._run, windows), lengths, self.batch_size, show_progress=False)
        results: list[Found] = [({}, {}) for _ in texts]
        for index, (entities, relations) in enumerate(read):
            merge(results[windows[index].text], windows, index, entities, relations)
        return [between_entities(one) for one in results]

    def _run(
        self, windows: Sequence[TextWindow], indices: Sequence[int]
    ) -> Iterator[tuple[list[FoundEntity], list[FoundRelation]]]:
        """One forward, and what is in every window of it."""
        batch = [windows[i] for i in indices]
        width = max(len(one.input_ids) for one in batch)
        ids = torch.full((len(batch), width), self.tokenizer.pad_token_id)
        mask, is_text = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, one in enumerate(batch):
            length = len(one.input_ids)
            ids[row, :length], mask[row, :length] = torch.tensor(one.input_ids), 1
            is_text[row, :length] = torch.from_numpy(one.is_text)
        config = self.model.config
        shapes: dict[str, Any] = {"entity_logits": (len(batch), len(config.entity_labels), width, width)}
        if config.relation_labels:
            linked = (len(batch), len(config.relation_labels), width, width)
            shapes |= {"head_logits": linked, "tail_logits": linked}
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        outputs = list(run_model(self.model, inputs, shapes, GIVER).values())
        if outputs[0].isnan().any():
            raise ValueError("The model gives NaN: its weights hold some, or its dtype is too narrow for them.")
        entities = decode_entities(outputs[0], is_text.to(outputs[0].device), self.above)
        nothing: list[list[FoundRelation]] = [[] for _ in batch]
        relations = (
            decode_relations(entities, outputs[1], outputs[2], self.above) if config.relation_labels else nothing
        )
        yield from zip(entities, relations, strict=True)


def merge(
    into: Found,
    windows: Sequence[TextWindow],
    index: int,
    entities: Iterable[FoundEntity],
    relations: Iterable[FoundRelation],
) -> None:
    """Adds what a window found to what is known of its text; the same answer twice keeps its higher probability."""
    window = windows[index]
    for entity in entities:
        place = window.place(entity.first, entity.last)
        if not is_settled_elsewhere(windows, index, place):
            key = entity.label, place
            into[0][key] = max(probability_of(entity.score), into[0].get(key, 0.0))
    for relation in relations:
        linked = relation.label, window.place(*relation.subject), window.place(*relation.object)
        probability = probability_of(relation.head_score) * probability_of(relation.tail_score)
        into[1][linked] = max(probability, into[1].get(linked, 0.0))


def between_entities(found: Found) -> Found:
    """What was found, without relations of a place that is no entity (any more)."""
    places = {place for _, place in found[0]}
    return found[0], {linked: p for linked, p in found[1].items() if places.issuperset(linked[1:])}


__all__ = ["Found", "between_entities", "extract", "labels_of_model", "merge"]
