"""Universal knowledge-text prediction: a triple of a knowledge graph and a sentence that states it.

The row is `[CLS] head relation tail [SEP] sentence [SEP]`. In half of the rows the relation is masked whole (every
token `[MASK]`, so that nothing of it shows); in the others words of the sentence are masked as in knowledge masked
language modelling, and the mentions of head and tail count as entities. The paper names both cases without their
shares; one half each is a choice.

Sentences come by distant supervision: one that mentions head and tail is taken to state their relation.

Source: P10, section 3.2.4.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_glm_ernie.configuration_ernie3 import KNOWLEDGE_TEXT_PREDICTION
from hf_glm_ernie.inference.token_ids import special_id

from .builders import IGNORED, checked_text, fitted
from .masking import MaskingBuilder, Span, find_mentions
from .splitting import split_sentences
from .tokens import Asking

PARTS = ("head", "relation", "tail")


def checked_triple(triple: Any) -> tuple[str, str, str]:
    """Head, relation and tail.

    Args:
        triple: A mapping with these names, or three strings.

    Raises:
        ValueError: a part is missing, no string or empty, or there are not three.
    """
    if isinstance(triple, Mapping):
        missing = [part for part in PARTS if part not in triple]
        parts = tuple(triple.get(part) for part in PARTS)
    else:
        missing = []
        parts = tuple(triple) if isinstance(triple, list | tuple) else ()
    if missing or len(parts) != 3:
        raise ValueError(f"malformed triple {triple!r}: it must have head, relation and tail.")
    for name, part in zip(PARTS, parts, strict=True):
        if not isinstance(part, str) or not part.strip():
            raise ValueError(f"malformed triple {triple!r}: its {name} is {part!r}, not a text.")
    return parts  # type: ignore[return-value]  # three, see above


def sentences_with(document: str, head: str, tail: str) -> list[str]:
    """The sentences of a document that mention both head and tail.

    Args:
        document: A text, such as the page about the head.
        head: As it is written there.
        tail: As it is written there.

    Returns:
        Sentences in order, without white space around them.
    """
    return Page(document).sentences_with(head, tail)


class Page:
    """A document whose sentences are looked through for many mentions, and split once.

    Args:
        document: A text.
    """

    def __init__(self, document: str) -> None:
        self.sentences = [sentence.strip() for sentence in split_sentences(document)]
        self._mentioning: dict[str, list[int]] = {}

    def mentioning(self, mention: str) -> list[int]:
        """The numbers of the sentences that mention something, in order."""
        if mention not in self._mentioning:
            self._mentioning[mention] = [at for at, one in enumerate(self.sentences) if find_mentions(one, mention)]
        return self._mentioning[mention]

    def sentences_with(self, head: str, tail: str) -> list[str]:
        """The sentences that mention both."""
        with_tail = set(self.mentioning(tail))
        return [self.sentences[at] for at in self.mentioning(head) if at in with_tail]


class DistantSupervision:
    """A map function for `datasets`, `batched=True`: pages and their triples to rows of one triple and one sentence.

    Columns read: `text` and `triples`, a list of {"head", "relation", "tail"} per page. Columns made: `head`,
    `relation`, `tail`, `sentence`; a row for every sentence that mentions head and tail, none where no sentence does.
    The number of rows changes, so pass `remove_columns=dataset.column_names` to `map`.
    """

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[str]]:
        """Columns in, columns out.

        Raises:
            ValueError: an empty text or a malformed triple; the message says where.
        """
        made: dict[str, list[str]] = {"head": [], "relation": [], "tail": [], "sentence": []}
        for place, (text, triples) in enumerate(zip(rows["text"], rows["triples"], strict=True)):
            try:
                checked_text({"text": text}, "text")
                parts = [checked_triple(triple) for triple in triples]
            except ValueError as error:
                raise ValueError(f"{KNOWLEDGE_TEXT_PREDICTION}, page {place} of the batch: {error}") from error
            page = Page(text)
            for head, relation, tail in parts:
                for sentence in page.sentences_with(head, tail):
                    for name, value in zip(made, (head, relation, tail, sentence), strict=True):
                        made[name].append(value)
        return made


@dataclasses.dataclass(frozen=True)
class KnowledgeTextPrediction(MaskingBuilder):
    """Rows of universal knowledge-text prediction: `[CLS] head relation tail [SEP] sentence [SEP]`.

    Columns read: `head`, `relation`, `tail`, `sentence`, and if present `spans` of the sentence. Columns made:
    `input_ids`, `labels`. With `truncation=True` a long sentence loses its end. Arguments: those of [`RowBuilder`]
    and [`MaskingBuilder`], and:

    Args:
        relation_share: Share of the rows whose relation is masked; in the others words of the sentence are.
    """

    relation_share: float = dataclasses.field(default=0.5, kw_only=True)

    task = KNOWLEDGE_TEXT_PREDICTION

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.relation_share <= 1:
            raise ValueError(f"relation_share={self.relation_share} must be from 0 to 1.")

    def build(self, row: Mapping[str, Any], generator: np.random.Generator, max_length: int) -> Asking:
        """The triple and the sentence, one of them with something to find."""
        head, relation, tail = checked_triple({part: row.get(part) for part in PARTS})
        sentence = checked_text(row, "sentence")
        mentions = []
        for name, part in (("head", head), ("tail", tail)):
            places = find_mentions(sentence, part)
            if not places:
                raise ValueError(
                    f"the {name} {part!r} does not stand in the sentence {sentence!r}; sentences_with() finds those "
                    "that serve."
                )
            mentions += [Span(start, end, "entity") for start, end in places]
        cls = special_id(self.tokenizer, "cls")
        sep = special_id(self.tokenizer, "sep")
        *parts, tokens = yield [head, relation, tail, sentence]
        head_ids, relation_ids, tail_ids = (part.ids for part in parts)
        fixed = 3 + len(head_ids) + len(relation_ids) + len(tail_ids)
        ids = fitted(tokens.ids, max_length - fixed, self.truncation, "the sentence")
        labels = [IGNORED] * len(ids)
        relation_labels = [IGNORED] * len(relation_ids)
        if generator.random() < self.relation_share:
            mask = special_id(self.tokenizer, "mask")
            relation_ids, relation_labels = [mask] * len(relation_ids), relation_ids
        else:
            ids, labels = self.masked(tokens, ids, mentions + self.spans(sentence, row.get("spans")), generator)
        before, after = [IGNORED] * (1 + len(head_ids)), [IGNORED] * (len(tail_ids) + 1)
        return {
            "input_ids": [cls, *head_ids, *relation_ids, *tail_ids, sep, *ids, sep],
            "labels": [*before, *relation_labels, *after, *labels, IGNORED],
        }


__all__ = ["DistantSupervision", "KnowledgeTextPrediction", "checked_triple", "sentences_with"]
