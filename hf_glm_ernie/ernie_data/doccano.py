"""One line of a doccano export (JSONL), in every form PaddleNLP's script takes.

    {"text": ..., "entities": [{"id", "label", "start_offset", "end_offset"}],
     "relations": [{"from_id", "to_id", "type"}]}
    {"text": ..., "label": [[start, end, label], ...]}                     doccano 1.7 and later
    {"data": ..., "label": [[start, end, label], ...]}                     before
    {"data": ..., "label": {"entities": [...], "relations": [...]}}        before, with relations
    {"text" or "data": ..., "label": ["positive", ...]}                    classification

The form is told by the keys: `data` makes it an old one, else `label` makes it triples, else it is the first
(PaddleNLP 2.8.1, `doccano.py`). Entities of triples get the ids 0, 1, ... of their line.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .documents import (
    AnnotationError,
    ClassifiedText,
    Document,
    Entity,
    Relation,
    checked_document,
    id_of,
    label_of,
    mapping,
    member,
    sequence,
    shown,
    span_of,
    text_of,
)

LABEL_STUDIO = "this looks like a Label Studio task: give the whole export, one JSON list, or --format label-studio"


def read_document(record: Any) -> Document:
    """The spans and relations of a line.

    Raises:
        AnnotationError: anything that is not as the module's docstring has it: which annotation, and what is needed.
    """
    record = mapping(record, "the line")
    text = _text(record)
    if "data" not in record and "label" not in record:
        if "entities" not in record:
            raise AnnotationError(_unknown_form(record, "'entities' or 'label'"))
        return _with_relations(text, record)
    label = member(record, "label", "the line")
    if isinstance(label, dict):
        return _with_relations(text, label)
    triples = sequence(label, "'label'")
    return checked_document(text, [_triple(text, number, one) for number, one in enumerate(triples)], [])


def read_classified(record: Any) -> ClassifiedText:
    """The classes of a line.

    Raises:
        AnnotationError: as for [`read_document`].
    """
    record = mapping(record, "the line")
    text = _text(record)
    if "label" not in record:
        raise AnnotationError(_unknown_form(record, "'label'"))
    labels = sequence(record["label"], "'label'")
    return ClassifiedText(text, tuple(label_of(one, f"label {number}") for number, one in enumerate(labels, 1)))


def _text(record: Mapping[str, Any]) -> str:
    key = "data" if "data" in record else "text"
    if key not in record:
        raise AnnotationError(_unknown_form(record, "'text' or 'data'"))
    if "annotations" in record and isinstance(record[key], dict):
        raise AnnotationError(LABEL_STUDIO)
    return text_of(record[key], f"{key!r}")


def _unknown_form(record: Mapping[str, Any], needed: str) -> str:
    hint = f"; {LABEL_STUDIO}" if "annotations" in record else ""
    return f"the line has no {needed}; its keys are {sorted(record)}{hint}"


def _triple(text: str, number: int, triple: Any) -> Entity:
    what = f"label {number + 1}"
    if len(sequence(triple, what)) != 3:
        raise AnnotationError(f"{what} is {shown(triple)}: [start, end, label] is needed")
    what = f"{what} ({shown(triple)})"
    return Entity(number, *span_of(text, triple[0], triple[1], what), label_of(triple[2], f"{what}: its label"))


def _with_relations(text: str, record: Mapping[str, Any]) -> Document:
    entities: Sequence[Any] = sequence(member(record, "entities", "the line"), "'entities'")
    relations: Sequence[Any] = sequence(record.get("relations", []), "'relations'")
    return checked_document(
        text,
        [_entity(text, number, one) for number, one in enumerate(entities, 1)],
        [_relation(number, one) for number, one in enumerate(relations, 1)],
    )


def _entity(text: str, number: int, entity: Any) -> Entity:
    what = f"entity {number}"
    entity = mapping(entity, what)
    what = f"{what} (id {shown(entity.get('id'))}, label {shown(entity.get('label'))})"
    return Entity(
        id_of(member(entity, "id", what), f"{what}: its id"),
        *span_of(text, member(entity, "start_offset", what), member(entity, "end_offset", what), what),
        label_of(member(entity, "label", what), f"{what}: its label"),
    )


def _relation(number: int, relation: Any) -> Relation:
    what = f"relation {number}"
    relation = mapping(relation, what)
    return Relation(
        id_of(member(relation, "from_id", what), f"{what}: its from_id"),
        id_of(member(relation, "to_id", what), f"{what}: its to_id"),
        label_of(member(relation, "type", what), f"{what}: its type"),
    )
