"""Rows of PaddleNLP's closed-domain training (`data_distill`): checked, and written.

    {"text": "...", "entity_list": [{"text", "type", "start_index"}],
     "spo_list": [{"subject", "predicate", "object", "subject_start_index", "object_start_index"}]}

Of opinions `aso_list` stands in place of `spo_list`: `{"aspect", "sentiment", "opinion", "aspect_start_index",
"opinion_start_index"}`. Offsets are code points; where a span ends is told by its text.

Source: PaddleNLP, `applications/information_extraction/text/data_distill/utils.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_glm_ernie.ernie_tasks.gplinker_schema import OBJECT, LabelMaps, Place
from hf_glm_ernie.host_arguments import short

TRIPLES, OPINIONS = "spo_list", "aso_list"
KEYS = {TRIPLES: ("subject", "predicate", "object"), OPINIONS: ("aspect", "sentiment", "opinion")}

Entity = tuple[str, Place]
"""A type and a place."""
Triple = tuple[str, Place, Place]
"""A relation, the place of its subject and of its object."""


@dataclass(frozen=True)
class MarkedText:
    """A text and what is in it.

    Attributes:
        text: The text.
        entities: Without repetitions.
        relations: Without repetitions.
    """

    text: str
    entities: frozenset[Entity] = frozenset()
    relations: frozenset[Triple] = frozenset()


def read_marked(row: Mapping[str, Any], number: int, maps: LabelMaps | None = None) -> MarkedText:
    """Checks a row.

    Args:
        row: In PaddleNLP's form.
        number: Of the row in its data, for the message.
        maps: Types and relations that there are; `None`: any.

    Raises:
        ValueError: no text, a span that does not stand where it is said to, an unknown type or relation.
    """
    where = f"Row {number} of the data"
    text = row.get("text")
    if not isinstance(text, str):
        raise ValueError(f"{where} has no text in column 'text': found {text!r}.")
    entities = set()
    for one in _list(row, "entity_list", where):
        kind = one.get("type")
        entities.add((kind, _place(text, one, "text", "start_index", where)))
        if not isinstance(kind, str) or (maps and kind not in maps.entities):
            raise ValueError(
                f"{where} has an entity of type {kind!r}; there are {_known(maps.entities if maps else None)}."
            )
    relations = set()
    for key, (subject, relation, obj) in KEYS.items():
        for one in _list(row, key, where):
            name = one.get(relation)
            places = (_place(text, one, end, f"{end}_start_index", where) for end in (subject, obj))
            relations.add((name, *places))
            if not isinstance(name, str) or (maps and name not in maps.relations):
                raise ValueError(
                    f"{where} has the {relation} {name!r}; there are {_known(maps.relations if maps else None)}."
                )
    return MarkedText(text, frozenset(entities), frozenset(relations))  # type: ignore[arg-type]  # two places each


def _known(names: Iterable[str] | None) -> str:
    return "names only" if names is None else short(list(names))


def _list(row: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    found = row.get(key)
    if found is None:
        return []
    if not isinstance(found, list | tuple) or not all(isinstance(one, Mapping) for one in found):
        raise ValueError(f"{where} has no list of dicts in column {key!r}: found {short(found)}.")
    return list(found)


def _place(text: str, one: Mapping[str, Any], key: str, start_key: str, where: str) -> Place:
    span, start = one.get(key), one.get(start_key)
    if not isinstance(span, str) or not span or not isinstance(start, int) or isinstance(start, bool):
        raise ValueError(f"{where} has {short(dict(one))}: {key!r} must be a text and {start_key!r} a whole number.")
    if start < 0 or text[start : start + len(span)] != span:
        raise ValueError(
            f"{where} has {span!r} at {start}, where the text has {text[max(start, 0) : start + len(span)]!r}: "
            "offsets are characters of the text as it stands in the row."
        )
    return start, start + len(span)


def as_row(marked: MarkedText, is_opinion: bool = False) -> dict[str, Any]:
    """A row in PaddleNLP's form, in the order of the text."""
    text = marked.text
    entities = sorted(marked.entities, key=lambda one: (one[1], one[0]))
    key = OPINIONS if is_opinion else TRIPLES
    subject, relation, obj = KEYS[key]
    return {
        "text": text,
        "entity_list": [
            {"text": text[slice(*place)], "type": kind, "start_index": place[0]} for kind, place in entities
        ],
        key: [
            {
                subject: text[slice(*first)],
                relation: name,
                obj: text[slice(*second)],
                f"{subject}_start_index": first[0],
                f"{obj}_start_index": second[0],
            }
            for name, first, second in sorted(marked.relations, key=lambda one: (one[1:], one[0]))
        ],
    }


def labels_in(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str], Any]:
    """Reads types, relations and a schema off rows that came without label maps.

    Returns:
        Types, relations, and the schema that asks for them: what is between an aspect and an opinion is an option.

    Raises:
        ValueError: rows that are not what they should be, or without an entity.
    """
    kinds: dict[str, dict[str, None]] = {}
    sentiments: dict[str, None] = {}
    ends: set[tuple[str, str]] = set()
    predicates: dict[str, None] = {}
    for number, row in enumerate(rows):
        marked = read_marked(row, number)
        of_place: dict[Place, set[str]] = {}
        for kind, place in marked.entities:
            kinds.setdefault(kind, {})
            of_place.setdefault(place, set()).add(kind)
        is_opinion = bool(row.get(OPINIONS))
        for name, subject, obj in marked.relations:
            subjects = of_place.get(subject, set()) - {OBJECT}
            if not subjects:
                raise ValueError(f"Row {number} of the data has {name!r} of a place that is no entity of the row.")
            if is_opinion:
                sentiments[name] = None
                ends |= {(one, other) for one in subjects for other in of_place.get(obj, set())}
                continue
            predicates[name] = None
            for kind in subjects:
                kinds[kind][name] = None
    if not kinds:
        raise ValueError("No row of the data has an entity: entity_list is empty everywhere.")
    if sentiments:
        if len(ends) != 1 or predicates:
            raise ValueError(f"Opinions of the data lead from and to more than one type: {sorted(ends)}.")
        ((aspect, opinion),) = ends
        options = sorted(sentiments)
        return [aspect, opinion], options, [opinion, {aspect: [opinion, f"情感倾向[{','.join(options)}]"]}]
    names = sorted(set(kinds) - {OBJECT})
    schema = [{name: sorted(kinds[name])} if kinds[name] else name for name in names]
    return names + [OBJECT] * bool(predicates or OBJECT in kinds), sorted(predicates), schema


__all__ = ["OPINIONS", "TRIPLES", "Entity", "MarkedText", "Triple", "as_row", "labels_in", "read_marked"]
