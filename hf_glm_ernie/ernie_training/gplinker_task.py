"""The task of extraction for one schema: PaddleNLP's closed-domain rows into an [`ErnieForGPLinker`].

What PaddleNLP trains its students with: learning rate 3e-5, batch 16, 50 to 100 epochs, length 256, no weight decay
and no warmup.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from hf_glm_ernie.configuration_ernie_gplinker import ErnieGPLinkerConfig
from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.ernie_tasks.gplinker_schema import LabelMaps, read_label_maps, with_labels
from hf_glm_ernie.modeling_ernie_gplinker import ErnieForGPLinker

from .gplinker_labels import LABELS, GPLinkerCollator, encode_marked
from .gplinker_rows import labels_in, read_marked
from .gplinker_scores import by_label, keep_found, linking_scores, set_counts, sets_of
from .mistakes import Mark, compare
from .task import ErnieTask, own_config, rows_in

LABEL_MAPS = "label_maps.json"
OVERLAP = 64
"""Tokens that the windows of a long text share, as in [`extract`]."""


class Linking(ErnieTask):
    """`text` and `entity_list`, and `spo_list` or `aso_list` where there are relations.

    The labels are those of the model where it has some, else those of `label_maps.json` beside the data (settings
    `model` and `data`), else those that the training rows have.
    """

    columns = ("text", "entity_list")
    heads = ("dense1", "dense2")
    label_names = tuple(LABELS)
    best = "f1"
    keep = staticmethod(keep_found)
    maps: LabelMaps

    def learn(self, train: Any) -> None:
        """Finds the labels."""
        folder, data = self.settings.get("model"), self.settings.get("data")
        config = None if folder is None else AutoConfig.from_pretrained(folder)
        if isinstance(config, ErnieGPLinkerConfig):
            self.maps = with_labels(config.entity_labels, config.relation_labels, config.schema, str(folder))
            return
        file = None if data is None else _beside(Path(data))
        if file is not None and file.is_file():
            self.maps = read_label_maps(json.loads(file.read_text(encoding="utf-8")), str(file))
            return
        self.maps = with_labels(*labels_in(train), "The training rows")

    def open_model(self, folder: str, **options: Any) -> Any:
        """Opens such a model; or an encoder, also that of a UIE model, with new heads for the labels."""
        config = own_config(folder, ErnieGPLinkerConfig, and_from=(ErnieUIEConfig.model_type,))
        config.entity_labels, config.relation_labels = list(self.maps.entities), list(self.maps.relations)
        config.schema = self.maps.schema
        return ErnieForGPLinker.from_pretrained(folder, config=config, **options)

    def encode(self, batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Encodes rows; long ones become several windows."""
        marked = [read_marked(row, number, self.maps) for row, number in zip(rows_in(batch), rows, strict=True)]
        return encode_marked(self.tokenizer, marked, rows, self.maps, self.max_length, OVERLAP)

    def collator(self) -> Any:
        """Pads windows, labels with -100."""
        return GPLinkerCollator(self.tokenizer)

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See [`linking_scores`]. Windows of a long text count each for itself; `report` puts them together."""
        found, gold = ([sets_of(one) for one in ends] for ends in (prediction.predictions, prediction.label_ids))
        entities, triples = (set_counts(*pair) for pair in zip(found, gold, strict=True))
        return linking_scores(entities, triples, bool(self.maps.relations))

    def report(self, rows: Any, encoded: Any, prediction: Any) -> dict[str, Any]:
        """Scores of whole texts by type and by relation; the rows with a wrong or a missing one."""
        marked = [read_marked(row, number, self.maps) for number, row in enumerate(rows)]
        found: list[tuple[set[Any], set[Any]]] = [(set(), set()) for _ in marked]
        places = zip(encoded["row"], encoded["starts"], encoded["ends"], strict=True)
        windows = zip(*(sets_of(one) for one in prediction.predictions), strict=True)
        for (row, starts, ends), (entities, relations) in zip(places, windows, strict=True):
            found[row][0].update((self.maps.entities[kind], (starts[m], ends[n])) for kind, m, n in entities)
            found[row][1].update(
                (self.maps.relations[kind], (starts[m], ends[n]), (starts[first], ends[last]))
                for kind, m, n, first, last in relations
            )
        gold = [(set(one.entities), set(one.relations)) for one in marked]
        mistakes = []
        for row, (answers, right) in enumerate(zip(found, gold, strict=True)):
            if answers != right:
                text = marked[row].text
                told = compare(marks_of(text, *answers), marks_of(text, *right))
                mistakes.append({"row": row, "text": text, **told})
        by_class = {
            name: one.report()
            for kind in (0, 1)
            for name, one in by_label([one[kind] for one in found], [one[kind] for one in gold]).items()
        }
        entity, triple = (set_counts([one[kind] for one in found], [one[kind] for one in gold]) for kind in (0, 1))
        scores = linking_scores(entity, triple, bool(self.maps.relations))
        return {"by_class": by_class, "of_texts": scores, "mistakes": mistakes}


def marks_of(text: str, entities: set[Any], relations: set[Any]) -> list[Mark]:
    """Entities and relations of a text as marks, in order; a relation has no place of its own."""
    marks = [
        Mark(text[begin:end], begin, end, kind) for kind, (begin, end) in sorted(entities, key=lambda one: one[1])
    ]
    for kind, about, other in sorted(relations):
        marks.append(Mark(f"{text[slice(*about)]} -> {text[slice(*other)]}", label=kind))
    return marks


def _beside(data: Path) -> Path:
    return (data if data.is_dir() else data.parent) / LABEL_MAPS


__all__ = ["LABEL_MAPS", "OVERLAP", "Linking"]
