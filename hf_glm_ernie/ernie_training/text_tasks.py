"""Tasks with the host's own heads: classes (or a number) of whole texts, and tags of words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

from hf_glm_ernie.host_arguments import probability_threshold

from .class_labels import MULTI, REGRESSION, SINGLE, ClassLabels, kind_of_labels, numbers_of_names
from .clue_rows import read_class_rows, read_tag_rows
from .entity_scores import entities_of, entity_counts, entity_metrics, marks_entities, named_tags, tag_counts
from .task import ErnieTask, check_texts, with_names
from .task_mistakes import choice_mistakes, tag_mistake, text_of
from .token_labels import encode_tagged_words


class Classification(ErnieTask):
    """`text`, `label`, and `text_pair` where two texts are compared; setting `problem_type`, see [`ClassLabels`]."""

    columns = ("text", "label")
    peft_type = "SEQ_CLS"
    reads = ("problem_type", "threshold")
    labels: ClassLabels

    def read(self, file: Path) -> Any:
        """Reads rows, or one of CLUE's files as it was downloaded, see [`read_class_rows`]."""
        return read_class_rows(file)

    def learn(self, train: Any) -> None:
        """Finds the classes, or that numbers are to be predicted."""
        self.labels = ClassLabels(train["label"], self.settings.get("problem_type"))
        self.best = {SINGLE: "accuracy", MULTI: "micro_f1", REGRESSION: "pearson"}[self.labels.kind]

    def learn_of_model(self, config: Any, rows: Any) -> None:
        """Takes the classes of a finished model."""
        self.labels = ClassLabels.of_model(config, self.settings.get("problem_type"))

    def labels_of(self, rows: Any) -> list[list[str]]:
        """The classes of every row; "" where none holds.

        Raises:
            ValueError: numbers are to be predicted.
        """
        if kind_of_labels(rows["label"]) == REGRESSION:
            raise ValueError("Labels are numbers, of which no few examples of each can be drawn.")
        found = (label if isinstance(label, list) else [label] for label in rows["label"])
        return [[str(name) for name in names] or [""] for names in found]

    def open_model(self, folder: str, **options: Any) -> Any:
        """Opens the encoder with an output for every class; one, without a name, for regression."""
        more = {"num_labels": 1} if self.labels.kind == REGRESSION else {}
        config = with_names(folder, self.labels.names, **more, problem_type=self.labels.kind)
        return AutoModelForSequenceClassification.from_pretrained(folder, config=config, **options)

    def encode(self, batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Encodes texts and their labels."""
        check_texts(batch["text"], "text", rows)
        texts = list(batch["text"]), batch.get("text_pair")
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        labels = [self.labels.encode(label, row) for label, row in zip(batch["label"], rows, strict=True)]
        return {**encoded, "labels": labels}

    def collator(self) -> Any:
        """Pads texts."""
        return DataCollatorWithPadding(self.tokenizer)

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See [`ClassLabels.metrics`]."""
        return self.labels.metrics(prediction, self._threshold)

    def report(self, rows: Any, encoded: Any, prediction: Any) -> dict[str, Any]:
        """Scores by class; rows whose class is wrong. Of regression the rows, the farthest from their number first."""
        if self.labels.kind == REGRESSION:
            return {"by_class": {}, "mistakes": _distances(rows, prediction)}
        counts = self.labels.class_counts(prediction, self._threshold)
        found = self._names(self.labels.holding(prediction.predictions, self._threshold))
        gold = self._names(self.labels.held(prediction.label_ids))
        mistakes = choice_mistakes(rows, found, gold, ("text", "text_pair"), self.labels.kind == SINGLE)
        return {"by_class": {str(name): one.report() for name, one in counts.items()}, "mistakes": mistakes}

    @property
    def _threshold(self) -> float:
        given = self.settings.get("threshold")
        return 0.5 if given is None else probability_threshold("threshold", given)

    def _names(self, holds: Any) -> list[list[str]]:
        return [[str(self.labels.names[i]) for i in row.nonzero()[0]] for row in holds]


def _distances(rows: Any, prediction: Any) -> list[dict[str, Any]]:
    """Rows of regression with what was predicted, the worst first."""
    found = prediction.predictions.reshape(-1).astype(float)
    far = sorted(range(len(found)), key=lambda i: -abs(found[i] - prediction.label_ids[i]))
    texts = ("text", "text_pair")
    return [
        {"row": i, "text": text_of(rows[i], texts), "gold": float(prediction.label_ids[i]), "found": float(found[i])}
        for i in far
    ]


class Tagging(ErnieTask):
    """`tokens` and `tags`, two lists of strings of the same length."""

    columns = ("tokens", "tags")
    peft_type = "TOKEN_CLS"
    reads = ()
    names: list[Any]

    def read(self, file: Path) -> Any:
        """Reads rows, or one of MSRA's files, see [`read_tag_rows`]."""
        return read_tag_rows(file)

    def learn(self, train: Any) -> None:
        """Finds the tags."""
        for row, tags in enumerate(train["tags"]):
            if not tags:
                raise ValueError(f"Row {row} of the data has no tags: found {tags!r}.")
        self.names = sorted({tag for tags in train["tags"] for tag in tags}, key=str)
        self.best = "f1" if marks_entities(self._tags) else "accuracy"

    def learn_of_model(self, config: Any, rows: Any) -> None:
        """Takes the tags of a finished model."""
        self.names = [config.id2label[i] for i in range(config.num_labels)]

    def labels_of(self, rows: Any) -> list[list[str]]:
        """The types of a row's entities, "" where it has none; the tags, where they mark no entities."""
        tags = [[str(tag) for tag in row] for row in rows["tags"]]
        if not marks_entities({tag for row in tags for tag in row}):
            return [sorted(set(row)) for row in tags]
        return [sorted({one[0] for one in entities_of(row)}) or [""] for row in tags]

    def open_model(self, folder: str, **options: Any) -> Any:
        """Opens the encoder with an output for every tag."""
        config = with_names(folder, self.names)
        return AutoModelForTokenClassification.from_pretrained(folder, config=config, **options)

    def encode(self, batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Encodes words and their tags."""
        numbers = {name: number for number, name in enumerate(self.names)} | numbers_of_names(self._tags)
        return encode_tagged_words(self.tokenizer, batch["tokens"], batch["tags"], numbers, self.max_length, rows)

    def collator(self) -> Any:
        """Pads words, labels with -100."""
        return DataCollatorForTokenClassification(self.tokenizer)

    @staticmethod
    def keep(outputs: Any, labels: Any) -> torch.Tensor:  # type: ignore[override]  # a function in place of None
        """The likeliest tag of every token."""
        return (outputs[0] if isinstance(outputs, tuple) else outputs).argmax(-1)

    @property
    def _tags(self) -> list[str]:
        return [str(name) for name in self.names]

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See [`entity_metrics`]."""
        return entity_metrics(prediction, self._tags)

    def report(self, rows: Any, encoded: Any, prediction: Any) -> dict[str, Any]:
        """Scores by type of entity where tags mark entities, else by tag; rows with a wrong tag."""
        labels, entities = prediction.label_ids, marks_entities(self._tags)
        found, gold = (named_tags(one, labels, self._tags) for one in (prediction.predictions, labels))
        counts = entity_counts(found, gold) if entities else tag_counts(found, gold)
        wrong = [row for row, pair in enumerate(zip(found, gold, strict=True)) if pair[0] != pair[1]]
        settings: dict[str, Any] = {"is_split_into_words": True, "truncation": True, "max_length": self.max_length}
        mistakes = []
        for number in wrong:
            words = list(rows[number]["tokens"])
            held = sorted({word for word in self.tokenizer(words, **settings).word_ids() if word is not None})
            mistakes.append(tag_mistake(number, words, held, found[number], gold[number], entities))
        return {"by_class": {kind: one.report() for kind, one in counts.items()}, "mistakes": mistakes}


__all__ = ["Classification", "Tagging"]
