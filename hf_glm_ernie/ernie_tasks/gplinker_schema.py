"""What a schema asks of an [`ErnieForGPLinker`]: labels of its outputs; and its answers in the schema's form.

- Names alone, `["时间", "地点"]`: an entity type each.
- Names with names below, `{"公司": ["创始人", {"子公司": ["成立时间"]}]}` (events likewise): an entity type for every
  name at the top and every name that has others below; a relation for every name below another; and the type `object`
  for what is found as nothing but the object of a relation.
- Opinions, `["观点词", {"评价维度": ["观点词", "情感倾向[正向,负向]"]}]`: the aspect's and the opinion's type;
  a relation from aspect to opinion for every option. An aspect has the sentiment of its likeliest opinion; without an
  opinion it has none.

Options anywhere else ask about whole texts, which pairs of tokens cannot answer.

One difference from PaddleNLP: there a name at the top that has none below it is no type where others have some, so
that a schema `["时间", {"公司": [...]}]` never finds a 时间.

Source: PaddleNLP, `applications/information_extraction/text/data_distill/utils.py` (`schema2label_maps`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_glm_ernie.host_arguments import short

from .uie_schema import HALF_WIDTH, OPTIONS, SchemaNode, read_schema

OBJECT = "object"
ENTITIES, RELATIONS, SENTIMENTS = "entity2id", "relation2id", "sentiment2id"

Place = tuple[int, int]
"""Characters of a text, the end excluded."""
Entities = Mapping[tuple[str, Place], float]
"""(type, place) -> probability."""
Relations = Mapping[tuple[str, Place, Place], float]
"""(relation, subject, object) -> probability."""


@dataclass(frozen=True)
class LabelMaps:
    """The labels of a model's outputs, by number, and the schema that they come from.

    Attributes:
        entities: Types of entities.
        relations: Predicates; of opinions the options.
        schema: As it was given.
        nodes: The same, read.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    schema: Any
    nodes: tuple[SchemaNode, ...]

    @property
    def opinion(self) -> tuple[str, str] | None:
        """Names of aspect and opinion where the relations are options, else `None`."""
        for node in self.nodes:
            if any(child.offers_options for child in node.children):
                return node.name, next(child.name for child in node.children if not child.offers_options)
        return None

    def as_dict(self) -> dict[str, Any]:
        """PaddleNLP's `label_maps.json`."""
        maps: dict[str, Any] = {ENTITIES: {name: number for number, name in enumerate(self.entities)}}
        if self.relations:
            key = RELATIONS if self.opinion is None else SENTIMENTS
            maps[key] = {name: number for number, name in enumerate(self.relations)}
        return maps | {"schema": self.schema}

    def type_of(self, name: str) -> str | None:
        """The type that an annotated label counts as: itself, [`OBJECT`], or `None` where it does not count."""
        return name if name in self.entities else OBJECT if OBJECT in self.entities else None


def label_maps_of(schema: Any) -> LabelMaps:
    """Reads the labels off a schema.

    Args:
        schema: As [`uie`] takes it.

    Raises:
        TypeError: something else than names, dicts and lists.
        ValueError: an empty schema or name; options that are not those of one aspect's opinion.
    """
    nodes = tuple(read_schema(schema))
    aspects = [node for node in _all(nodes) if any(child.offers_options for child in node.children)]
    if any(node.offers_options for node in nodes) or len(aspects) > 1 or (aspects and not _is_opinion(nodes)):
        raise ValueError(
            f"The schema {short(schema)} has options that ask about whole texts, or about more than one kind of "
            "aspect. A model for one schema finds pairs of tokens: options may only stand beside one name, as in "
            "{'评价维度': ['观点词', '情感倾向[正向,负向]']}. For classes of whole texts train a classifier."
        )
    if aspects:
        asked, opinion = sorted(aspects[0].children, key=lambda child: not child.offers_options)
        names = dict.fromkeys([aspects[0].name, opinion.name, *(node.name for node in nodes)])
        return LabelMaps(tuple(names), options_of(asked.name), schema, nodes)
    entities = dict.fromkeys([node.name for node in nodes] + [node.name for node in _all(nodes) if node.children])
    relations = dict.fromkeys(child.name for node in _all(nodes) for child in node.children)
    if relations:
        entities[OBJECT] = None
    return LabelMaps(tuple(entities), tuple(relations), schema, nodes)


def _is_opinion(nodes: Sequence[SchemaNode]) -> bool:
    """Whether one name at the top has an option and one other name below it, and nothing else is below any."""
    with_names = [node for node in nodes if node.children]
    leaves = [child.offers_options for child in with_names[0].children if not child.children]
    return len(with_names) == 1 and sorted(leaves) == [False, True] == sorted(
        child.offers_options for child in with_names[0].children
    )


def _all(nodes: Sequence[SchemaNode]) -> Iterator[SchemaNode]:
    """A schema's names level by level."""
    level = list(nodes)
    while level:
        yield from level
        level = [child for node in level for child in node.children]


def options_of(name: str) -> tuple[str, ...]:
    """The options that a name ends in.

    Raises:
        ValueError: one is empty or stands twice, or something stands behind them.
    """
    plain = name.translate(HALF_WIDTH)
    found = OPTIONS.search(plain)
    options = tuple(found.group()[1:-1].split(",")) if found else ()
    if not all(options) or len(set(options)) < len(options) or not options:
        raise ValueError(f"The schema's name {name!r} must end in options, each once, as in '情感倾向[正向,负向]'.")
    return options


def read_label_maps(maps: Any, where: str) -> LabelMaps:
    """Reads PaddleNLP's `label_maps.json`.

    Args:
        maps: What the file holds: `entity2id`, `relation2id` or `sentiment2id` where there are relations, `schema`.
        where: Its name, for the message.

    Raises:
        ValueError: no such maps, numbers other than 0, 1, 2..., or a schema that asks for what is no label.
    """
    if not isinstance(maps, Mapping) or ENTITIES not in maps:
        raise ValueError(f"{where} holds no label maps: {ENTITIES!r} is missing; found {short(maps)}.")
    entities = _numbered(maps[ENTITIES], f"{where}: {ENTITIES}")
    key = SENTIMENTS if SENTIMENTS in maps else RELATIONS
    relations = _numbered(maps.get(key, {}), f"{where}: {key}")
    return with_labels(entities, relations, maps.get("schema"), where)


def with_labels(entities: Sequence[str], relations: Sequence[str], schema: Any, where: str) -> LabelMaps:
    """Labels in the order of a model's outputs.

    Args:
        entities: Types of entities.
        relations: Predicates or options.
        schema: Theirs; `None`: every type but [`OBJECT`] by itself.
        where: What has them, for the message.

    Raises:
        ValueError: the schema asks for a relation that is no label.
    """
    named = label_maps_of([name for name in entities if name != OBJECT] or [OBJECT] if schema is None else schema)
    missing = sorted(set(named.relations) - set(relations))
    if missing or not set(named.entities) & set(entities):
        raise ValueError(
            f"{where}: the schema {short(schema)} asks for {', '.join(missing) or 'other entities'}, and the labels "
            f"are {short(list(entities))} and {short(list(relations))}."
        )
    return LabelMaps(tuple(entities), tuple(relations), named.schema, named.nodes)


def _numbered(numbers: Any, where: str) -> list[str]:
    if not isinstance(numbers, Mapping) or sorted(numbers.values(), key=str) != sorted(range(len(numbers)), key=str):
        raise ValueError(f"{where} must give every label a number, 0, 1, 2 and so on: found {short(numbers)}.")
    return sorted(numbers, key=lambda name: numbers[name])


def answers_of(
    maps: LabelMaps, text: str, entities: Entities, relations: Relations
) -> dict[str, list[dict[str, Any]]]:
    """What was found, in the form of [`uie`]'s answers: under the schema's names, in the order of the text.

    Args:
        maps: The labels.
        text: The text.
        entities: Found in it.
        relations: Found between places of it. Of those between an aspect and an opinion only the likeliest counts.

    Returns:
        A dict from the schema's names to answers, names without an answer left out.
    """
    found = _Found(maps, text, entities, relations)
    answers = {}
    for node in maps.nodes:
        places = {place: probability for (name, place), probability in entities.items() if name == node.name}
        if places:
            answers[node.name] = found.answers(node, places)
    return answers


@dataclass(frozen=True)
class _Found:
    """What was found in a text."""

    maps: LabelMaps
    text: str
    entities: Entities
    relations: Relations

    def answers(self, node: SchemaNode, places: Mapping[Place, float]) -> list[dict[str, Any]]:
        """Answers at these places, and what is below each."""
        answers = []
        for (start, end), probability in sorted(places.items()):
            answer: dict[str, Any] = {"text": self.text[start:end], "start": start, "end": end}
            answer["probability"] = probability
            below = self._opinions(node, (start, end)) if self.maps.opinion else self._objects(node, (start, end))
            answers.append(answer | ({"relations": below} if below else {}))
        return answers

    def _objects(self, node: SchemaNode, subject: Place) -> dict[str, list[dict[str, Any]]]:
        below = {}
        for child in node.children:
            objects = {o: p for (name, s, o), p in self.relations.items() if (name, s) == (child.name, subject)}
            if objects:
                below[child.name] = self.answers(child, objects)
        return below

    def _opinions(self, node: SchemaNode, aspect: Place) -> dict[str, list[dict[str, Any]]]:
        """The opinions of an aspect, and the option that the likeliest of them gives it."""
        _, opinion = self.maps.opinion or ("", "")
        own = [
            (probability, option, place)
            for (option, one, place), probability in self.relations.items()
            if one == aspect and (opinion, place) in self.entities
        ]
        if not own or not node.children:
            return {}
        probability, option, _ = max(own)
        places = {place: p for p, _, place in sorted(own)}
        return {
            child.name: [{"text": option, "probability": probability}]
            if child.offers_options
            else self.answers(child, places)
            for child in node.children
        }


__all__ = [
    "OBJECT",
    "Entities",
    "LabelMaps",
    "Place",
    "Relations",
    "answers_of",
    "label_maps_of",
    "read_label_maps",
    "with_labels",
]
