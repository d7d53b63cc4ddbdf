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

from .class_labels import MULTI, REGRESSION, SINGLE, ClassLabels
from .clue_rows import read_class_rows, read_tag_rows
from .entity_scores import entity_counts, entity_metrics, marks_entities, named_tags
from .task import ErnieTask, check_texts, with_names
from .token_labels import encode_tagged_words


class Classification(ErnieTask):
    """`text`, `label`, and `text_pair` where two texts are compared; setting `problem_type`, see [`ClassLabels`]."""

    columns = ("text", "label")
    peft_type = "SEQ_CLS"
    labels: ClassLabels

    def read(self, file: Path) -> Any:
        """Reads rows, or one of CLUE's files as it was downloaded, see [`read_class_rows`]."""
        return read_class_rows(file)

    def learn(self, train: Any) -> None:
        """Finds the classes, or that numbers are to be predicted."""
        self.labels = ClassLabels(train["label"], self.settings.get("problem_type"))
        self.best = {SINGLE: "accuracy", MULTI: "micro_f1", REGRESSION: "pearson"}[self.labels.kind]

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
        return self.labels.metrics(prediction)

    def report(self, rows: Any, encoded: Any, prediction: Any) -> dict[str, Any]:
        """Scores by class; rows whose class is wrong."""
        by_class = {str(name): one.report() for name, one in self.labels.class_counts(prediction).items()}
        if self.labels.kind == REGRESSION:
            return {}
        logits, labels = prediction.predictions, prediction.label_ids
        single = self.labels.kind == SINGLE
        wrong = logits.argmax(-1) != labels if single else ((logits > 0) != (labels == 1)).any(-1)
        return {"by_class": by_class, "rows_with_mistakes": wrong.nonzero()[0].tolist()}


class Tagging(ErnieTask):
    """`tokens` and `tags`, two lists of strings of the same length."""

    columns = ("tokens", "tags")
    peft_type = "TOKEN_CLS"
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

    def open_model(self, folder: str, **options: Any) -> Any:
        """Opens the encoder with an output for every tag."""
        config = with_names(folder, self.names)
        return AutoModelForTokenClassification.from_pretrained(folder, config=config, **options)

    def encode(self, batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Encodes words and their tags."""
        numbers = {name: number for number, name in enumerate(self.names)}
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
        """Scores by type of entity where tags mark entities; rows with a wrong tag."""
        labels = prediction.label_ids
        found, gold = (named_tags(one, labels, self._tags) for one in (prediction.predictions, labels))
        wrong = [row for row, pair in enumerate(zip(found, gold, strict=True)) if pair[0] != pair[1]]
        counts = entity_counts(found, gold) if marks_entities(self._tags) else {}
        return {"by_class": {kind: one.report() for kind, one in counts.items()}, "rows_with_mistakes": wrong}


__all__ = ["Classification", "Tagging"]
