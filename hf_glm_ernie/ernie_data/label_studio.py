"""One task of a Label Studio export (JSON), as PaddleNLP reads it: the first annotation and nothing else.

    {"data": {"text": ...}, "annotations": [{"result": [...]}]}

A result of type `labels` is an entity (of several labels the first), one of type `relation` a relation. Classification
takes the choices of the first result. Annotations behind the first and cancelled ones are treated as the original
does: not read, and read. Both are noted, so that the command can tell how many there were.
(PaddleNLP 2.8.1, `label_studio.py`.)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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

SECOND_ANNOTATION = "with more than one annotation, of which the first is taken"
CANCELLED = "cancelled by the annotator, and taken all the same"
SECOND_LABEL = "with a span of several labels, of which the first is taken"
SECOND_RESULT = "with more than one result, of which the first is taken"


def read_document(task: Any, default_relation: str | None = None) -> Document:
    """The spans and relations of a task.

    Args:
        task: A member of the export's list.
        default_relation: The type of relations without a label (the original's `labelstudio2doccano.py` says
            "relation"). Without it they are errors.

    Raises:
        AnnotationError: an annotation that is not as the module's docstring has it; a result of another type; a
            span whose own text is another one.
    """
    text, annotation, notes = _annotation(task)
    entities, relations = [], []
    for number, result in enumerate(sequence(member(annotation, "result", "annotation 1"), "its 'result'"), 1):
        result = mapping(result, f"result {number}")
        kind = member(result, "type", f"result {number}")
        what = f"result {number} (id {shown(result.get('id'))})"
        if kind == "labels":
            entity, several = _entity(text, result, what)
            entities.append(entity)
            if several and SECOND_LABEL not in notes:
                notes.append(SECOND_LABEL)
        elif kind == "relation":
            relations.append(_relation(result, f"result {number} (a relation)", default_relation))
        else:
            raise AnnotationError(f"{what} is of type {shown(kind)}: extraction takes 'labels' and 'relation'")
    return checked_document(text, entities, relations, notes)


def read_classified(task: Any) -> ClassifiedText:
    """The choices of a task.

    Raises:
        AnnotationError: no choices (an empty result is an IndexError in the original), or not as documented above.
    """
    text, annotation, notes = _annotation(task)
    results = sequence(member(annotation, "result", "annotation 1"), "its 'result'")
    if not results:
        raise AnnotationError("annotation 1 has an empty 'result': no choice was made; label the task or leave it out")
    if len(results) > 1:
        notes.append(SECOND_RESULT)
    value = mapping(member(mapping(results[0], "result 1"), "value", "result 1"), "the value of result 1")
    choices = sequence(member(value, "choices", "the value of result 1"), "its 'choices'")
    return ClassifiedText(
        text, tuple(label_of(one, f"choice {number}") for number, one in enumerate(choices, 1)), tuple(notes)
    )


def is_labelled(task: Any) -> bool:
    """Whether a task has an annotation that was not cancelled and holds at least one result."""
    try:
        annotation = task["annotations"][0]
        return bool(annotation["result"]) and not annotation.get("was_cancelled")
    except (KeyError, IndexError, TypeError, AttributeError):
        return False


def to_doccano(documents: Iterable[Document | ClassifiedText]) -> Iterator[dict[str, Any]]:
    """Lines in doccano's form, as `labelstudio2doccano.py` writes them: all ids are counted from 1 over the file."""
    entity_id = relation_id = 0
    for number, document in enumerate(documents, 1):
        if isinstance(document, ClassifiedText):
            yield {"id": number, "text": document.text, "label": list(document.labels)}
            continue
        ids = {}
        entities, relations = [], []
        for entity in document.entities:
            entity_id += 1
            ids[entity.id] = entity_id
            offsets = {"start_offset": entity.start, "end_offset": entity.end}
            entities.append({"id": entity_id, "label": entity.label, **offsets})
        for relation in document.relations:
            relation_id += 1
            ends = {"from_id": ids[relation.subject], "to_id": ids[relation.object]}
            relations.append({"id": relation_id, **ends, "type": relation.predicate})
        yield {"id": number, "text": document.text, "entities": entities, "relations": relations}


def _annotation(task: Any) -> tuple[str, Mapping[str, Any], list[str]]:
    task = mapping(task, "the task")
    data = mapping(member(task, "data", "the task"), "'data'")
    if "text" not in data and "image" in data:
        raise AnnotationError("this is a task on an image; only texts ('data.text') are taken")
    text = text_of(member(data, "text", "'data'"), "'data.text'")
    annotations: Sequence[Any] = sequence(member(task, "annotations", "the task"), "'annotations'")
    if not annotations:
        raise AnnotationError("it has no annotation: label the task or leave it out")
    first = mapping(annotations[0], "annotation 1")
    notes = [SECOND_ANNOTATION] if len(annotations) > 1 else []
    return text, first, [*notes, *([CANCELLED] if first.get("was_cancelled") else [])]


def _entity(text: str, result: Mapping[str, Any], what: str) -> tuple[Entity, bool]:
    value = mapping(member(result, "value", what), f"{what}: its value")
    labels = sequence(member(value, "labels", f"{what}: its value"), f"{what}: its labels")
    if not labels:
        raise AnnotationError(f"{what} has no label")
    what = f"{what[:-1]}, label {shown(labels[0])})"
    start, end = span_of(text, member(value, "start", what), member(value, "end", what), what)
    own = value.get("text")
    if isinstance(own, str) and _squeezed(own) != _squeezed(text[start:end]):
        raise AnnotationError(
            f"{what}: its text is {shown(own)}, but [{start}, {end}) is {_instead(text, own, value)}"
        )
    return Entity(id_of(member(result, "id", what), f"{what}: its id"), start, end, label_of(labels[0], what)), (
        len(labels) > 1
    )


def _squeezed(text: str) -> str:
    """Without blanks and line ends, which Label Studio writes in several ways."""
    return "".join(text.replace("\\n", " ").split())


def _instead(text: str, own: str, value: Mapping[str, Any]) -> str:
    """What stands there, and whether the offsets count as JavaScript does."""
    found = shown(text[value["start"] : value["end"]])
    units = text.encode("utf-16-le")[2 * value["start"] : 2 * value["end"]].decode("utf-16-le", "replace")
    if _squeezed(units) == _squeezed(own):
        found += "; the offsets count UTF-16 units (JavaScript's characters), code points are needed"
    return found


def _relation(result: Mapping[str, Any], what: str, default: str | None) -> Relation:
    labels = sequence(result.get("labels") or [], f"{what}: its labels")
    if not labels and default is None:
        raise AnnotationError(f"{what} has no label: name it, or say what such relations are (default_relation)")
    return Relation(
        id_of(member(result, "from_id", what), f"{what}: its from_id"),
        id_of(member(result, "to_id", what), f"{what}: its to_id"),
        label_of(labels[0] if labels else default, f"{what}: its label"),
    )
