"""Labels that controllable language modelling puts in front of its texts: topic, keywords, sentiment.

The paper labels its corpora by programs of its own, which were not published: a topic and a sentiment by classifiers,
keywords by extraction. Here each is a function from texts to labels that anybody may replace; those given are jieba's
keywords by TF-IDF and the answers of a classifier of transformers.

Source: PT = arXiv 2112.12731, section 3.2.2.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_glm_ernie.configuration_ernie3 import CONTROLLABLE_LM
from hf_glm_ernie.ernie_tasks.prompts import SENTIMENTS, place_of

from .builders import checked_text

NUM_KEYWORDS = 3


class ControlLabels:
    """A map function for `datasets`, `batched=True`: texts to texts with what [`ControllableLM`] reads beside them.

    Columns read: `text`. Columns made: one for each labeller that is given. `None` says that a text has no such
    label. Columns that are there already, such as `genre`, stay.

    Args:
        topic: Texts to topics, in a few words each.
        keywords: Texts to lists of keywords, such as [`JiebaKeywords`].
        sentiment: Texts to "positive", "negative" or "neutral", such as [`ClassifierLabels`].

    Raises:
        ValueError: no labeller.

    ```python
    >>> from hf_glm_ernie.ernie3_training.labels import ControlLabels

    >>> labels = ControlLabels(keywords=lambda texts: [[text[:2]] for text in texts])
    >>> labels({"text": ["大海很蓝。"]})
    {'keywords': [['大海']]}
    ```
    """

    def __init__(
        self,
        *,
        topic: Callable[[list[str]], Sequence[str | None]] | None = None,
        keywords: Callable[[list[str]], Sequence[Sequence[str] | None]] | None = None,
        sentiment: Callable[[list[str]], Sequence[str | None]] | None = None,
    ) -> None:
        given = {"topic": topic, "keywords": keywords, "sentiment": sentiment}
        self.labellers = {name: labeller for name, labeller in given.items() if labeller is not None}
        if not self.labellers:
            raise ValueError("ControlLabels needs a labeller: topic, keywords or sentiment.")

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Columns in, columns out.

        Raises:
            ValueError: an empty text; a labeller that returns another number of labels, or a sentiment that is none.
        """
        texts = [self._text(text, place) for place, text in enumerate(rows["text"])]
        made = {}
        for name, labeller in self.labellers.items():
            labels = [list(label) if name == "keywords" and label else label or None for label in labeller(texts)]
            if len(labels) != len(texts):
                raise ValueError(f"{CONTROLLABLE_LM}: {name} returned {len(labels)} labels for {len(texts)} texts.")
            if name == "sentiment":
                for label in filter(None, labels):
                    place_of(str(label), SENTIMENTS, name)
            made[name] = labels
        return made

    def _text(self, text: Any, place: int) -> str:
        try:
            return checked_text({"text": text}, "text")
        except ValueError as error:
            raise ValueError(f"{CONTROLLABLE_LM}, text {place} of the batch: {error}") from error


class JiebaKeywords:
    """Keywords by TF-IDF, with jieba's segmentation and its table of document frequencies (package `jieba`).

    Args:
        count: Keywords per text at most.

    Raises:
        ImportError: jieba is not installed.
        ValueError: a count below 1.
    """

    def __init__(self, count: int = NUM_KEYWORDS) -> None:
        if count < 1:
            raise ValueError(f"count={count} must be at least 1.")
        try:
            from jieba.analyse import extract_tags
        except ImportError as error:
            raise ImportError("JiebaKeywords needs the package jieba: pip install jieba") from error
        self.count, self._extract = count, extract_tags

    def __call__(self, texts: list[str]) -> list[list[str] | None]:
        """The keywords of each text, the weightiest first; `None` of one that has none."""
        return [self._extract(text, topK=self.count) or None for text in texts]


class ClassifierLabels:
    """The answers of a classifier, in the words that the prompt takes.

    Args:
        classifier: A list of texts to a list of {"label", "score"}: a `pipeline("text-classification", ...)` of
            transformers.
        names: Label -> what the prompt calls it, e.g. {"LABEL_0": "negative"}; labels that are not in it give `None`.
            Default: labels as they are.
        threshold: Answers below this score give `None`.
        **options: For the classifier, such as `batch_size` and `truncation`.

    Raises:
        ValueError: a threshold outside 0 to 1.
    """

    def __init__(
        self,
        classifier: Callable[..., Sequence[Mapping[str, Any]]],
        names: Mapping[str, str] | None = None,
        *,
        threshold: float = 0.5,
        **options: Any,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} must be from 0 to 1.")
        self.classifier, self.names, self.threshold, self.options = classifier, names, threshold, options

    def __call__(self, texts: list[str]) -> list[str | None]:
        """The label of each text."""
        return [self._name(answer) for answer in self.classifier(texts, **self.options)]

    def _name(self, answer: Mapping[str, Any]) -> str | None:
        if answer["score"] < self.threshold:
            return None
        return str(answer["label"]) if self.names is None else self.names.get(str(answer["label"]))


__all__ = ["ClassifierLabels", "ControlLabels", "JiebaKeywords"]
