"""An annotated text as the label tools give it, checked: what every converter here starts from.

Offsets are Python string indices (code points) of the text, the end not included. A problem is raised as an
[`AnnotationError`], which says what of a document is wrong; where the document stands in which file is added by
whoever read it (`reading.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Id = str | int


class AnnotationError(ValueError):
    """An annotation that cannot be used: which one of its document, its value, and what is taken."""


@dataclass(frozen=True)
class Entity:
    """A labelled span of a text: `text[start:end]`."""

    id: Id
    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Relation:
    """`subject` and `object` are ids of entities of the same document."""

    subject: Id
    object: Id
    predicate: str


@dataclass(frozen=True)
class Document:
    """A text with its spans and what holds between them, in annotation order."""

    text: str
    entities: Sequence[Entity] = ()
    relations: Sequence[Relation] = ()
    notes: Sequence[str] = field(default=(), compare=False)
    """Kinds of annotation that were there and are not used, to be counted and told."""


@dataclass(frozen=True)
class ClassifiedText:
    """A text with the classes it was given."""

    text: str
    labels: Sequence[str] = ()
    notes: Sequence[str] = field(default=(), compare=False)


def shown(value: Any, most: int = 60) -> str:
    """A value of somebody else's file, short enough for a message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """A JSON object, or an [`AnnotationError`] that says what should have been one."""
    if not isinstance(value, dict):
        raise AnnotationError(f"{what} is {shown(value)}: a JSON object is needed")
    return value


def sequence(value: Any, what: str) -> Sequence[Any]:
    """A JSON list, or an [`AnnotationError`] that says what should have been one."""
    if not isinstance(value, list):
        raise AnnotationError(f"{what} is {shown(value)}: a list is needed")
    return value


def member(record: Mapping[str, Any], key: str, what: str) -> Any:
    """What stands under a key, or an [`AnnotationError`] with the keys that are there."""
    if key not in record:
        raise AnnotationError(f"{what} has no {key!r}; its keys are {sorted(record)}")
    return record[key]


def text_of(value: Any, what: str) -> str:
    """A string that can be written as UTF-8, or an [`AnnotationError`]."""
    if not isinstance(value, str):
        raise AnnotationError(f"{what} is {shown(value)}: a string is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise AnnotationError(
            f"{what} has half of a surrogate pair at character {error.start}: {shown(value)}; such text cannot be "
            "written as UTF-8, export it again"
        ) from None
    return value


def label_of(value: Any, what: str) -> str:
    """A string of at least one character, or an [`AnnotationError`]."""
    if not text_of(value, what):
        raise AnnotationError(f"{what} is empty: it is the prompt of a row and needs at least one character")
    return value


def id_of(value: Any, what: str) -> Id:
    """A string or an integer, or an [`AnnotationError`]."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise AnnotationError(f"{what} is {shown(value)}: a string or an integer is needed")
    return value


def span_of(text: str, start: Any, end: Any, what: str) -> tuple[int, int]:
    """Offsets of at least one character inside a text, or an [`AnnotationError`]."""
    for name, value in (("start", start), ("end", end)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise AnnotationError(f"{what}: its {name} is {shown(value)}: an integer is needed")
    if start < 0 or end > len(text):
        raise AnnotationError(f"{what}: [{start}, {end}) is outside the text, which has {len(text)} characters")
    if start >= end:
        raise AnnotationError(f"{what}: [{start}, {end}) is empty: the end, not included, must be behind the start")
    return start, end


def checked_document(
    text: str, entities: Sequence[Entity], relations: Sequence[Relation], notes: Sequence[str] = ()
) -> Document:
    """A document whose ids are each there once, and whose relations lead from one of them to another.

    Raises:
        AnnotationError: two entities of one id (the original keeps the last of them, silently); a relation from or to
            an id that no entity has.
    """
    names: dict[Id, int] = {}
    for number, entity in enumerate(entities, 1):
        if entity.id in names:
            raise AnnotationError(
                f"entities {names[entity.id]} and {number} have the same id {entity.id!r}: relations could mean either"
            )
        names[entity.id] = number
    for number, relation in enumerate(relations, 1):
        for side, one in (("from", relation.subject), ("to", relation.object)):
            if one not in names:
                raise AnnotationError(
                    f"relation {number} ({relation.predicate!r}) goes {side} id {one!r}, which no entity has; ids are "
                    f"{shown(list(names))}"
                )
    return Document(text, tuple(entities), tuple(relations), tuple(notes))
