"""Rows that UIE is trained and measured on, from annotated documents: positives, negatives, classes.

A row is one prompt asked of one text. Entities ask their label, relations (and arguments of events, and opinions on
aspects) `subject的predicate`, classes of entities (`评价维度##正向`) `name的情感倾向[正向,负向]`. A document has one
row a prompt, its results in annotation order. (PaddleNLP 2.8.1, `DataConverter`.)

[`extraction_parts`] is a stream: it runs over the documents up to three times and holds none of them, only what the
corpus has together (labels, names of entities, predicates). The original's order of rows is by part, and its random
numbers are drawn pass by pass; who writes a file puts each part into a place of its own, [`extraction_rows`] puts them
into one list.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from .documents import AnnotationError, ClassifiedText, Document, Entity, shown
from .negatives import (
    Asked,
    Corpus,
    Sampler,
    full_relation_negatives,
    relation_prompt,
)
from .options import Row, ShuffledOptions, known_labels

DRAWS = 20_000_000
"""Random predicates that a corpus may cost (names times documents; about ten seconds). The original draws one for
every name of the corpus and every document with relations, however few are used; above this bound they are drawn for
the prompts that are used: the same distribution, another sequence."""

LANGUAGES = ("ch", "en")


class Part(IntEnum):
    """Parts of a set of rows, in the original's order."""

    ENTITIES = 0
    ENTITY_NEGATIVES = 1
    RELATIONS = 2
    RELATION_NEGATIVES = 3
    CLASSES = 4


@dataclass(frozen=True)
class Rules:
    """How annotations become rows. The defaults are PaddleNLP's.

    Attributes:
        negative_ratio: Negative rows a positive one; -1: all there are.
        prompt_prefix: Of class prompts.
        options: Of class prompts.
        separator: Between an entity's label and its classes. A label without it is a label.
        schema_lang: "ch" or "en": how prompts of relations are put.
        unknown_options: "error", or "drop": classes that are no option are left out.
        unprompted: Labels whose entities get no row of their own; relations may name them.
        never_negative: Labels that other texts are not asked.
    """

    negative_ratio: int = 5
    prompt_prefix: str = "情感倾向"
    options: Sequence[str] = ("正向", "负向")
    separator: str = "##"
    schema_lang: str = "ch"
    unknown_options: str = "error"
    unprompted: frozenset[str] = frozenset()
    never_negative: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if isinstance(self.negative_ratio, bool) or not isinstance(self.negative_ratio, int):
            raise TypeError(f"negative_ratio is {self.negative_ratio!r}: an integer is needed")
        if self.negative_ratio < -1:
            raise ValueError(f"negative_ratio is {self.negative_ratio}: 0 or more, or -1 for all, is needed")
        if not self.separator:
            raise ValueError("separator is empty: give one or more characters; what no label has turns it off")
        if self.schema_lang not in LANGUAGES:
            raise ValueError(f"schema_lang is {self.schema_lang!r}: one of {list(LANGUAGES)} is needed")
        if self.unknown_options not in ("error", "drop"):
            raise ValueError(f"unknown_options is {self.unknown_options!r}: 'error' or 'drop' is needed")


LABEL_STUDIO_RULES: dict[str, Any] = {
    "unprompted": frozenset({"属性值", "object"}),
    "never_negative": frozenset({"观点词"}),
}
"""What PaddleNLP's converter of Label Studio exports does besides (its doccano script does not)."""


def split_label(entity: Entity, rules: Rules, what: str = "the entity") -> tuple[str, list[str] | None]:
    """The label of an entity and its classes; `None`: it has none.

    Args:
        entity: Of any document.
        rules: With the separator and the options.
        what: The entity, for messages.

    Raises:
        AnnotationError: nothing before the separator; a class that is no option, if that is an error.
    """
    label, *classes = entity.label.split(rules.separator)
    if not classes:
        return label, None
    what = f"{what} (id {shown(entity.id)}, label {shown(entity.label)})"
    if not label:
        raise AnnotationError(f"{what} has nothing before {rules.separator!r}")
    return label, known_labels(classes, rules.options, what, rules.unknown_options)


def check_document(document: Document, rules: Rules) -> bool:
    """Whether an entity has a class that is no option, and will be left out.

    Raises:
        AnnotationError: what making rows would raise.
    """
    left_out = False
    for number, entity in enumerate(document.entities, 1):
        if rules.separator in entity.label and entity.label not in rules.unprompted:
            classes = split_label(entity, rules, f"entity {number}")[1] or []
            left_out |= len(classes) < entity.label.count(rules.separator)
    return left_out


def entity_rows(document: Document, rules: Rules) -> dict[str, Row]:
    """Prompt -> row, in the order in which labels appear."""
    rows: dict[str, Row] = {}
    for entity in document.entities:
        if entity.label not in rules.unprompted:
            _add(rows, split_label(entity, rules)[0], document.text, entity)
    return rows


def relation_rows(document: Document, rules: Rules) -> tuple[dict[str, Row], Asked]:
    """Prompt -> row, in the order in which prompts appear; and what negatives are made from, without the labels."""
    entities = {entity.id: entity for entity in document.entities}
    rows: dict[str, Row] = {}
    asked = Asked(prompts=rows.keys())
    for relation in document.relations:
        ends = entities[relation.subject], entities[relation.object]
        subject, other = (document.text[one.start : one.end] for one in ends)
        _add(rows, relation_prompt(subject, relation.predicate, rules.schema_lang), document.text, ends[1])
        asked.inverses.append(relation_prompt(other, relation.predicate, rules.schema_lang))
        asked.predicates.append(relation.predicate)
        if subject not in asked.subjects:
            asked.subjects.append(subject)
    return rows, asked


def extraction_parts(
    documents: Iterable[Document],
    rules: Rules,
    generator: random.Random,
    options: ShuffledOptions,
    is_train: bool = True,
) -> Iterator[tuple[Part, Row]]:
    """Streams the rows of one split, each with its part.

    Args:
        documents: Of the split; run over three times, so no iterator.
        rules: How they become rows.
        generator: Draws, in the original's order.
        options: Makes the class rows; its order of options is carried on from split to split.
        is_train: Relation negatives are sampled; otherwise all are made, and stand behind the document's positives.
    """
    corpus = Corpus()
    labels, names, predicates = set(), set(), {}
    related = 0
    for document in documents:
        for entity in document.entities:
            if entity.label in rules.unprompted:
                continue
            name = document.text[entity.start : entity.end]
            label, classes = split_label(entity, rules)
            if classes is not None:
                row = options.row(document.text, classes, _prefix(name, rules))
                if classes:
                    yield Part.CLASSES, row
            corpus.has_entities = True
            labels.add(label)
            names.add(name)
        predicates.update(dict.fromkeys(relation.predicate for relation in document.relations))
        related += bool(document.relations)
    corpus.labels = sorted(labels - rules.never_negative)
    corpus.names, corpus.predicates = sorted(names), list(predicates)
    corpus.one_draw_a_name = related * len(names) <= DRAWS
    sampler = Sampler(corpus, rules.negative_ratio, rules.schema_lang, generator)
    if corpus.has_entities:
        yield from _entity_parts(documents, rules, sampler)
    if predicates:
        yield from _relation_parts(documents, rules, corpus, sampler if is_train else None)


def extraction_rows(
    documents: Sequence[Document],
    rules: Rules | None = None,
    seed: int = 1000,
    is_train: bool = True,
) -> list[Row]:
    """Rows of a list of documents, in the original's order.

    Args:
        documents: Annotated texts.
        rules: How they become rows (default: PaddleNLP's for doccano; for Label Studio `LABEL_STUDIO_RULES` besides).
        seed: Of the options' order and the negatives.
        is_train: Relation negatives are sampled; otherwise all there are.

    Raises:
        AnnotationError: a class that is no option.
    """
    rules = rules or Rules()
    generator = random.Random(seed)
    parts: list[list[Row]] = [[] for _ in Part]
    for part, row in extraction_parts(
        documents, rules, generator, ShuffledOptions(rules.options, generator), is_train
    ):
        parts[part].append(row)
    return [row for rows in parts for row in rows]


def class_rows(texts: Iterable[ClassifiedText], rules: Rules, options: ShuffledOptions) -> Iterator[Row]:
    """Rows of whole texts with classes.

    Raises:
        AnnotationError: a class that is no option.
    """
    for text in texts:
        labels = known_labels(text.labels, rules.options, "the text", rules.unknown_options)
        row = options.row(text.text, labels, rules.prompt_prefix)
        if labels or not text.labels:
            yield row


def _entity_parts(documents: Iterable[Document], rules: Rules, sampler: Sampler) -> Iterator[tuple[Part, Row]]:
    for document in documents:
        rows = entity_rows(document, rules)
        asked = relation_rows(document, rules)[1]
        asked.labels = rows.keys()
        yield from ((Part.ENTITIES, row) for row in rows.values())
        for prompt in sampler.entities(asked):
            yield Part.ENTITY_NEGATIVES, _negative(document.text, prompt)


def _relation_parts(
    documents: Iterable[Document], rules: Rules, corpus: Corpus, sampler: Sampler | None
) -> Iterator[tuple[Part, Row]]:
    for document in documents:
        rows, asked = relation_rows(document, rules)
        asked.labels = entity_rows(document, rules).keys()
        yield from ((Part.RELATIONS, row) for row in rows.values())
        if sampler:
            part, prompts = Part.RELATION_NEGATIVES, sampler.relations(asked)
        else:
            part, prompts = Part.RELATIONS, full_relation_negatives(corpus, asked, rules.schema_lang)
        yield from ((part, _negative(document.text, prompt)) for prompt in prompts)


def _add(rows: dict[str, Row], prompt: str, text: str, entity: Entity) -> None:
    row = rows.setdefault(prompt, {"content": text, "result_list": [], "prompt": prompt})
    name = text[entity.start : entity.end]
    row["result_list"].append({"text": name, "start": entity.start, "end": entity.end})


def _negative(text: str, prompt: str) -> Row:
    return {"content": text, "result_list": [], "prompt": prompt}


def _prefix(name: str, rules: Rules) -> str:
    return f"{name}的{rules.prompt_prefix}" if rules.schema_lang == "ch" else f"{rules.prompt_prefix} of {name}"
