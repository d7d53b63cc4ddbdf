"""Negative sampling: which prompts of the corpus a text is asked besides its own, that it has no answer to.

Pure functions on prompts. The rules and ratios are PaddleNLP's, and so is the order in which random numbers are drawn
(PaddleNLP 2.8.1, `DataConverter`): with Python's generator and the seed of the original the same
rows come out, random ones too, but for those in which the original contradicts itself. It takes symmetric differences
of sets and does not look at what has an answer:

- a label of the text that is left out of the corpus's label set (观点词 of Label Studio exports) became a negative
  prompt of exactly the texts that have it; so did a subject whose own label is left out (属性值);
- the inverse of a symmetric relation, and a label that is also a predicate (地点 in 地震的地点), repeated a prompt
  that has an answer.

Such a candidate (and what else the symmetric differences bring in) is drawn as the original draws it, so that all that
follow are the same, and then gives its place to one that is right ([`Sampler.right`]): in number and kind the result
is a sample among the right candidates.
"""

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

PER_LIST = 3
"""Relation negatives come from three lists, each of which first gives a third of the ratio, rounded down."""
NONE = ""
"""Stands for a candidate of the original's that is none: a name or a label of the document itself."""
TRIES = 1000
"""Candidates that are looked at, at least, for one in the place of a wrong one."""


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
        return self._members[skipping(index, self._positions)]


class Joined:
    """Sequences one after another, not copied."""

    def __init__(self, lists: Sequence[Prompts]):
        self.lists = lists
        self.starts = [sum(map(len, lists[:place])) for place in range(len(lists))]

    def __len__(self) -> int:
        return sum(map(len, self.lists))

    def __getitem__(self, index: int, /) -> str:
        place = bisect_right(self.starts, index) - 1
        return self.lists[place][index - self.starts[place]]


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
        return {*self.labels, *self.prompts, NONE}


class Sampler:
    """Draws negatives for one document after another.

    Args:
        corpus: Of the split.
        ratio: Negatives a positive row; -1: all there are.
        language: "ch" or "en", of relations.
        generator: Draws, in the original's order.
    """

    def __init__(self, corpus: Corpus, ratio: int, language: str, generator: random.Random):
        self._corpus, self._ratio, self._language, self._generator = corpus, ratio, language, generator
        self._spare = random.Random()  # what the original does not draw, drawn elsewhere
        self._spare.setstate(generator.getstate())

    def entities(self, asked: Asked) -> list[str]:
        """Labels that a document is asked and does not have: the ratio times its entity rows.

        A document without entity rows is asked all of them, at every ratio.
        """
        candidates, rows = _symmetric(self._corpus.labels, asked.labels), len(asked.labels)
        chosen = self._share(len(candidates), rows, self._ratio) if rows else range(len(candidates))
        return self.right(candidates, chosen, asked.positive)

    def relations(self, asked: Asked) -> list[str]:
        """For training: prompts from three lists, a third of the ratio each, and the rest from what they have left.

        (1) every relation turned round; (2) names of the corpus that are no subject here, each with a random predicate
        of the document; (3) labels of the corpus that the document does not have, each asked of a random subject. A
        document without relations is asked nothing.
        """
        rows = len(asked.prompts)
        if not rows:
            return []
        candidates = Joined([asked.inverses, self._other_subjects(asked), self._other_labels(asked)])
        chosen: list[int] = []
        for first, one in zip(candidates.starts, candidates.lists, strict=True):
            chosen += [first + i for i in self._share(len(one), rows, self._ratio // PER_LIST)]
        missing, left = rows * self._ratio - len(chosen), len(candidates) - len(chosen)
        if missing > 0 and left:
            rest, taken = range(left), sorted(chosen)
            places = rest if missing > left else self._generator.sample(rest, missing)
            chosen += [skipping(place, taken) for place in places]
        return self.right(candidates, chosen, asked.positive)

    def right(self, candidates: Prompts, chosen: Sequence[int], positive: Collection[str]) -> list[str]:
        """The chosen candidates; in the place of each that has an answer another one, as long as there are any."""
        prompts: list[str | None] = [one if (one := candidates[i]) not in positive else None for i in chosen]
        wrong = [place for place, one in enumerate(prompts) if one is None]
        if wrong:
            taken, spare = set(chosen), self._spare
            # More than are chosen and wrong together: in a short list every candidate is tried, in a long one enough.
            tries = min(len(candidates), TRIES + 4 * len(chosen))
            others = (i for i in spare.sample(range(len(candidates)), tries) if i not in taken)
            right = (one for i in others if (one := candidates[i]) not in positive)
            for place, prompt in zip(wrong, right, strict=False):
                prompts[place] = prompt
        return [one for one in prompts if one is not None]

    def _share(self, candidates: int, rows: int, ratio: int) -> Sequence[int]:
        """Indices of the candidates: all, or `ratio` a row drawn."""
        if ratio == -1 or math.ceil(candidates / rows) <= ratio:
            return range(candidates)
        return self._generator.sample(range(candidates), ratio * rows)

    def _other_subjects(self, asked: Asked) -> Prompts:
        """List 2."""
        names, own = self._corpus.names, set(asked.subjects)
        if not self._corpus.one_draw_a_name:
            others = Without(names, _places(names, own))
            return RandomPredicates(others, asked.predicates, self._language, self._generator)
        every = _symmetric(names, own)
        prompts = RandomPredicates(every, asked.predicates, self._language, self._generator)
        drawn = [prompts[place] for place in range(len(every))]
        return [NONE if name in own else one for name, one in zip(every, drawn, strict=True)]

    def _other_labels(self, asked: Asked) -> list[str]:
        """List 3."""
        prompts = []
        for label in _symmetric(self._corpus.labels, asked.labels):
            subject = asked.subjects[self._generator.randrange(len(asked.subjects))]
            prompts.append(NONE if label in asked.labels else relation_prompt(subject, label, self._language))
        return prompts


def full_relation_negatives(corpus: Corpus, asked: Asked, language: str) -> list[str]:
    """For evaluation: every subject of the document with every predicate of the corpus, unless it has an answer."""
    positive = asked.positive
    prompts = (relation_prompt(one, predicate, language) for one in asked.subjects for predicate in corpus.predicates)
    return [prompt for prompt in prompts if prompt not in positive]


def skipping(index: int, positions: Sequence[int]) -> int:
    """Where the index-th member stands if those at some positions, sorted, are not counted."""
    for position in positions:
        if position > index:
            break
        index += 1
    return index


def _symmetric(members: Sequence[str], own: Collection[str]) -> list[str]:
    """Members that are not the document's, and what is the document's and no member, as the original has it."""
    places = _places(members, own)
    others = [one for part in _between(places, len(members)) for one in members[part]]
    if strangers := set(own).difference(members[place] for place in places):
        return sorted([*others, *strangers])
    return others


def _places(members: Sequence[str], own: Collection[str]) -> list[int]:
    """Positions, sorted, of the document's among sorted members."""
    places = ((bisect_left(members, one), one) for one in own)
    return sorted(place for place, one in places if place < len(members) and members[place] == one)


def _between(places: Sequence[int], end: int) -> list[slice]:
    """The stretches before, between and behind some positions."""
    return [slice(start + 1, stop) for start, stop in zip([-1, *places], [*places, end], strict=True)]
