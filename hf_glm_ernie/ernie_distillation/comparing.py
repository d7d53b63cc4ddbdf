"""Teacher and student beside each other: F1 against the rows of a file, texts a second, size.

Both answer the same texts, in turns, and the faster of the rounds of each counts. Their answers become rows the same
way, and entities of the schema's types and triples are compared as sets; the auxiliary type `object` does not count.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_glm_ernie.ernie_tasks.gplinker_schema import OBJECT, LabelMaps
from hf_glm_ernie.ernie_training.gplinker_rows import MarkedText, read_marked
from hf_glm_ernie.ernie_training.gplinker_scores import set_counts

from .labelling import Answerer
from .marked import marked_of_answers

ROUNDS = 3


@dataclass
class Measured:
    """A model on a corpus.

    Attributes:
        name: What it is called.
        entity_f1: Of entities.
        triple_f1: Of triples; `None` where the schema has no relations.
        texts_a_second: Of the fastest round.
        parameters: How many.
        bytes: Of its weights.
    """

    name: str
    entity_f1: float
    triple_f1: float | None
    texts_a_second: float
    parameters: int
    bytes: int


def compare(
    models: Mapping[str, tuple[Any, Answerer]],
    gold: Sequence[MarkedText],
    maps: LabelMaps,
    rounds: int = ROUNDS,
    show_progress: bool = True,
) -> list[Measured]:
    """Measures models on the same texts, in turns.

    Args:
        models: Name -> the model and what answers with it.
        gold: The texts and what is in them.
        maps: The schema's labels.
        rounds: How often every model answers.
        show_progress: Whether to show a bar.

    Raises:
        ValueError: no texts.
    """
    if not gold:
        raise ValueError("There is no text to compare on.")
    texts = [one.text for one in gold]
    seconds: dict[str, float] = {}
    answers: dict[str, Sequence[Mapping[str, Any]]] = {}
    for _ in tqdm(range(rounds), desc="Comparing", unit="round", disable=not show_progress):
        for name, (_, answer) in models.items():
            begin = time.perf_counter()
            answers[name] = answer(texts)
            seconds[name] = min(time.perf_counter() - begin, seconds.get(name, float("inf")))
    measured = []
    for name, (model, _) in models.items():
        found = [marked_of_answers(text, one, maps) for text, one in zip(texts, answers[name], strict=True)]
        entities = set_counts(map(_typed, found), map(_typed, gold)).f1
        triples = set_counts([set(one.relations) for one in found], [set(one.relations) for one in gold]).f1
        weights = list(model.parameters()) if hasattr(model, "parameters") else []
        size = sum(one.numel() * one.element_size() for one in weights)
        count = sum(one.numel() for one in weights)
        speed = len(texts) / seconds[name]
        measured.append(Measured(name, entities, triples if maps.relations else None, speed, count, size))
    return measured


def _typed(marked: MarkedText) -> set[Any]:
    return {one for one in marked.entities if one[0] != OBJECT}


def table(measured: Sequence[Measured]) -> str:
    """The models as lines; speeds and sizes also as multiples of the first one's."""
    first = measured[0]
    lines = [f"{'':10} {'entity F1':>9} {'triple F1':>9} {'texts/s':>9} {'':>6} {'parameters':>12} {'MiB':>8} {'':>6}"]
    for one in measured:
        triple = "-" if one.triple_f1 is None else f"{one.triple_f1:.4f}"
        faster, smaller = one.texts_a_second / first.texts_a_second, one.bytes / max(first.bytes, 1)
        lines.append(
            f"{one.name:10} {one.entity_f1:9.4f} {triple:>9} {one.texts_a_second:9.1f} {faster:5.1f}x "
            f"{one.parameters:12,} {one.bytes / 2**20:8.1f} {smaller:6.0%}"
        )
    return "\n".join(lines)


def read_rows(file: Path, maps: LabelMaps) -> list[MarkedText]:
    """The rows of a file, checked."""
    with file.open(encoding="utf-8") as lines:
        return [read_marked(json.loads(line), number, maps) for number, line in enumerate(lines)]


def as_json(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """What was measured, to be written."""
    return [asdict(one) for one in measured]


__all__ = ["Measured", "as_json", "compare", "read_rows", "table"]
