"""Annotated documents and a teacher's answers as what a student for one schema learns.

Types that are none of the schema's become `object` where relations are asked for, and are left out where not.
Relations that are none of the schema's are left out. (PaddleNLP keeps them, and its training stops at them.)

Source: PaddleNLP, `applications/information_extraction/text/data_distill/utils.py` (`doccano2distill`,
`label_studio2distill`, `synthetic2distill`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_glm_ernie.ernie_data.documents import Document
from hf_glm_ernie.ernie_tasks.gplinker_schema import OBJECT, LabelMaps, Place
from hf_glm_ernie.ernie_tasks.uie_schema import SchemaNode
from hf_glm_ernie.ernie_training.gplinker_rows import Entity, MarkedText, Triple

SEPARATOR = "##"
"""Between the label of an aspect and its sentiment."""


def marked_of_document(document: Document, maps: LabelMaps, separator: str = SEPARATOR) -> MarkedText:
    """What an annotated document holds of a schema.

    Args:
        document: Its aspects of opinions are labelled `aspect##sentiment`.
        maps: The schema's labels.
        separator: Between an aspect and its sentiment.
    """
    entities: set[Entity] = set()
    relations: set[Triple] = set()
    places: dict[Any, tuple[Place, str]] = {}
    for one in document.entities:
        kind, _, sentiment = one.label.partition(separator) if maps.opinion else (one.label, "", "")
        places[one.id] = (one.start, one.end), sentiment
        if (counted := maps.type_of(kind)) is not None:
            entities.add((counted, (one.start, one.end)))
    for relation in document.relations:
        subject, sentiment = places[relation.subject]
        name = sentiment if maps.opinion else relation.predicate
        if name in maps.relations:
            relations.add((name, subject, places[relation.object][0]))
    return MarkedText(document.text, frozenset(entities), frozenset(relations))


def marked_of_answers(text: str, answers: Mapping[str, Sequence[Mapping[str, Any]]], maps: LabelMaps) -> MarkedText:
    """What [`uie`] or [`extract`] found in a text.

    An object that is no entity of the schema is one of the type `object`. An aspect whose opinions or whose sentiment
    were not found makes no triple.
    """
    entities: set[Entity] = set()
    relations: set[Triple] = set()
    objects: set[Place] = set()

    def read(node: SchemaNode, found: Sequence[Mapping[str, Any]]) -> None:
        for answer in found:
            place = answer["start"], answer["end"]
            if node.name in maps.entities:
                entities.add((node.name, place))
            below = answer.get("relations", {})
            asked = (child for child in node.children if child.offers_options)
            sentiment = [one["text"] for child in asked for one in below.get(child.name, ())]
            for child in node.children:
                if child.offers_options:
                    continue
                of_child = below.get(child.name, ())
                for name in sentiment[:1] if maps.opinion else [child.name]:
                    relations.update((name, place, (one["start"], one["end"])) for one in of_child)
                objects.update((one["start"], one["end"]) for one in of_child)
                read(child, of_child)

    for node in maps.nodes:
        read(node, answers.get(node.name, ()))
    if OBJECT in maps.entities:
        entities |= {(OBJECT, place) for place in objects - {place for _, place in entities}}
    return MarkedText(text, frozenset(entities), frozenset(relations))


__all__ = ["SEPARATOR", "marked_of_answers", "marked_of_document"]
