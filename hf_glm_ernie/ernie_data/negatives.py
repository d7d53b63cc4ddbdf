"""Negative sampling: which prompts of the corpus a text is asked besides its own, that it has no answer to.

Pure functions on prompts. The rules and ratios are PaddleNLP's, and so is the order in which random numbers are drawn
(../shared/design/paddlenlp-workflows.md, section 3): with Python's generator and the seed of the original the same
rows come out, wherever no candidate is dropped. Candidates are dropped where the original contradicts itself, because
it takes symmetric differences of sets and does not look at what is positive:

- a label of the text that is left out of the corpus's label set (观点词 of Label Studio exports) became a negative
  prompt of exactly the texts that have it; so did a subject whose own label is left out (属性值);
- the inverse of a symmetric relation, and a label that is also a predicate (地点 in 地震的地点), repeated a prompt
  that has an answer.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

PER_LIST = 3
"""Relation negatives come from three lists, each of which first gives a third of the ratio, rounded down."""


def relation_prompt(subject: str, predicate: str, language: str) -> str:
    """`subject的predicate` (ch) or `predicate of subject` (en)."""
    return f"{subject}的{predicate}" if language == "ch" else f"{predicate} of {subject}"


class Prompts(Protocol):
    """What can be counted and indexed: a list, or what makes its members when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> str: ...


class Without:
    """A sequence without the members at some positions, not copied.

    Args:
        members: All of them.
        positions: What is left out, sorted.
    """

    def __init__(self, members: Prompts, positions: Sequence[int]):
        self._members, self._positions = members, positions

    def __len__(self) -> int:
        return len(self._members) - len(self._positions)

    def __getitem__(self, index: int, /) -> str:
        for position in self._positions:
            if position > index:
                break
            index += 1
        return self._members[index]


class RandomPredicates:
    """Prompts of names, each with a predicate drawn when the prompt is asked for.

    Args:
        names: The subjects.
        predicates: What is drawn from.
        language: "ch" or "en".
        generator: Draws.
    """

    def __init__(self, names: Prompts, predicates: Sequence[str], language: str, generator: random.Random):
        self._names, self._predicates = names, predicates
        self._language, self._generator = language, generator

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int, /) -> str:
        predicate = self._predicates[self._generator.randrange(len(self._predicates))]
        return relation_prompt(self._names[index], predicate, self._language)


@dataclass
class Corpus:
    """What all documents of one split have together."""

    labels: Sequence[str] = ()
    """Entity labels that may be asked of other texts, sorted."""
    names: Sequence[str] = ()
    """Texts of entities, sorted."""
    predicates: Sequence[str] = ()
    """In the order in which they were first seen."""
    has_entities: bool = False
    """Whether any document has an entity row; without one there are no entity negatives either."""
    one_draw_a_name: bool = True
    """Predicates of list 2 are drawn for every name, as the original does, or only for the names that are taken."""


@dataclass
class Asked:
    """The prompts of one document that have answers."""

    labels: Collection[str] = ()
    """Of its entity rows, in their order."""
    prompts: Collection[str] = ()
    """Of its relation rows, in their order."""
    subjects: list[str] = field(default_factory=list)
    """Each name once."""
    predicates: list[str] = field(default_factory=list)
    """One a relation, repeats kept."""
    inverses: list[str] = field(default_factory=list)
    """`object的predicate`, one a relation, repeats kept."""

    @property
    def positive(self) -> set[str]:
        """Every prompt that must not become a negative one."""
        return {*self.labels, *self.prompts}


def entity_negatives(corpus: Corpus, asked: Asked, ratio: int, generator: random.Random) -> list[str]:
    """Labels that a document is asked and does not have.

    Args:
        corpus: Of the split.
        asked: Of the document.
        ratio: Negatives a positive row; -1 takes all labels. A document without entity rows takes all at every ratio.
        generator: Draws, where there are more labels than wanted.
    """
    positive = asked.positive
    others = [label for label in corpus.labels if label not in positive]
    rows = len(asked.labels)
    return [others[i] for i in _taken(len(others), rows, ratio, generator)] if rows else others


def full_relation_negatives(corpus: Corpus, asked: Asked, language: str) -> list[str]:
    """For evaluation: every subject of the document with every predicate of the corpus, unless it has an answer."""
    positive = asked.positive
    prompts = (relation_prompt(one, predicate, language) for one in asked.subjects for predicate in corpus.predicates)
    return [prompt for prompt in prompts if prompt not in positive]


def relation_negatives(corpus: Corpus, asked: Asked, ratio: int, language: str, generator: random.Random) -> list[str]:
    """For training: prompts from three lists, a third of the ratio each, and the rest from what they have left.

    (1) every relation turned round; (2) names of the corpus that are no subject here, each with a random predicate of
    the document; (3) labels of the corpus that the document does not have, each asked of a random subject. A document
    without relations gets none.

    Args:
        corpus: Of the split.
        asked: Of the document.
        ratio: Negatives a relation row in all; -1 takes everything.
        language: "ch" or "en".
        generator: Draws, in the original's order.
    """
    rows, positive = len(asked.prompts), asked.positive
    if not rows:
        return []
    lists: list[Prompts] = [[one for one in asked.inverses if one not in positive]]
    lists.append(_other_subjects(corpus, asked, language, generator))
    own = set(asked.labels)
    drawn = [
        relation_prompt(asked.subjects[generator.randrange(len(asked.subjects))], label, language)
        for label in corpus.labels
        if label not in own
    ]
    lists.append([one for one in drawn if one not in positive])
    taken = [_taken(len(one), rows, ratio // PER_LIST, generator) for one in lists]
    chosen = [one[i] for one, indices in zip(lists, taken, strict=True) for i in indices]
    rest = [Without(one, sorted(indices)) for one, indices in zip(lists, taken, strict=True)]
    missing, left = rows * ratio - len(chosen), sum(map(len, rest))
    if missing > 0 and left:
        indices = range(left) if missing > left else generator.sample(range(left), missing)
        chosen += [_nth(rest, i) for i in indices]
    return [one for one in chosen if one not in positive]  # a predicate drawn late may still make one


def _other_subjects(corpus: Corpus, asked: Asked, language: str, generator: random.Random) -> Prompts:
    """List 2: prompts of the names that are no subject of the document."""
    places = (bisect_left(corpus.names, one) for one in asked.subjects)
    own = sorted(
        place
        for place, one in zip(places, asked.subjects, strict=True)
        if place < len(corpus.names) and corpus.names[place] == one
    )
    prompts = RandomPredicates(Without(corpus.names, own), asked.predicates, language, generator)
    if not corpus.one_draw_a_name:
        return prompts
    positive = asked.positive
    return [one for i in range(len(prompts)) if (one := prompts[i]) not in positive]


def _taken(candidates: int, rows: int, ratio: int, generator: random.Random) -> Sequence[int]:
    """Indices of the candidates: all, or `ratio` a row drawn."""
    if ratio == -1 or math.ceil(candidates / rows) <= ratio:
        return range(candidates)
    return generator.sample(range(candidates), ratio * rows)


def _nth(lists: Sequence[Prompts], index: int) -> str:
    """Of the lists one after another."""
    for one in lists:
        if index < len(one):
            return one[index]
        index -= len(one)
    raise IndexError(index)
