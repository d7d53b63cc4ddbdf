"""Rows for UIE from annotated texts, by the letter of PaddleNLP's rules: lists, and one text after another.

Written from ../../../shared/design/paddlenlp-workflows.md, sections 2 and 3, independent of the package. With
`original=True` it keeps what is wrong there (symmetric differences of sets, negative prompts that have an answer,
options looked up with `rfind`): so it is held against PaddleNLP's own rows, random ones too. Without, it draws the
same and leaves the wrong rows out; for each document it notes which right candidates are left to take their places.
"""

import math
import random
from typing import Any

UNPROMPTED, NOT_ASKED = ["属性值", "object"], ["观点词"]


class Naive:
    """A document is `(text, [(id, start, end, label)], [(from, to, type)])`."""

    def __init__(self, variant: dict[str, Any], label_studio: bool, original: bool, seed: int = 1000):
        self.variant, self.label_studio, self.original = variant, label_studio, original
        self.options = list(variant["options"])
        self.random = random.Random(seed)
        self.places: list[tuple[str, int, list[str]]] = []
        """(text, wrong rows left out, right candidates that were not drawn), a negative set of a document each."""

    def asked(self, subject: str, predicate: str) -> str:
        return f"{subject}的{predicate}" if self.variant["lang"] == "ch" else f"{predicate} of {subject}"

    def rows(self, documents: list[Any], ratio: int, is_train: bool) -> list[tuple[str, str, list[Any]]]:
        """`(text, prompt, [[text, start, end], ...])` of one split, in the original's order."""
        self.ratio, self.is_train = ratio, is_train
        classes, facts = [], []
        for text, entities, relations in documents:
            fact: dict[str, Any] = {"text": text, "entity": {}, "relation": {}, "names": [], "inverse": []}
            fact |= {"predicates": [], "subjects": []}
            for _, start, end, label in entities:
                if self.label_studio and label in UNPROMPTED:
                    continue
                name = text[start:end]
                head, *tail = label.split(self.variant["sep"])
                if tail:
                    classes.append(self.class_row(text, name, tail))
                fact["entity"].setdefault(head, []).append([name, start, end])
                fact["names"].append(name)
            spans = {one[0]: [text[one[1] : one[2]], one[1], one[2]] for one in entities}
            for source, target, predicate in relations:
                subject = spans[source][0]
                fact["relation"].setdefault(self.asked(subject, predicate), []).append(spans[target])
                fact["inverse"].append(self.asked(spans[target][0], predicate))
                fact["predicates"].append(predicate)
                fact["subjects"] += [] if subject in fact["subjects"] else [subject]
            facts.append(fact)
        return [*self.entity_rows(facts), *self.relation_rows(facts), *[one for one in classes if one]]

    def class_row(self, text: str, name: str, labels: list[str]) -> Any:
        prefix = self.variant["prefix"]
        self.random.shuffle(self.options)
        before = f"{name}的{prefix}" if self.variant["lang"] == "ch" else f"{prefix} of {name}"
        prompt = f"{before}[{','.join(self.options)}]"
        found = []
        for label in labels:
            if self.original:
                start = prompt.rfind(label)
            elif label in self.options:
                start = self.whole(prompt, before, label)
            else:
                continue
            found.append([label, start - len(prompt) - 1, start - len(prompt) - 1 + len(label)])
        return (text, prompt, found) if found else None

    def whole(self, prompt: str, before: str, label: str) -> int:
        """Where an option begins: behind `[` or `,` and before `,` or `]`."""
        for start in range(len(before), len(prompt)):
            end = start + len(label)
            if prompt[start:end] == label and prompt[start - 1] in "[," and prompt[end] in ",]":
                return start
        raise AssertionError(label)

    def labels(self, facts: list[Any]) -> set[str]:
        every = {label for fact in facts for label in fact["entity"]}
        return every - set(NOT_ASKED) if self.label_studio else every

    def chosen(self, fact: Any, candidates: list[tuple[str, bool]], indices: list[int]) -> list[str]:
        """The prompts that were drawn; a candidate is right if it is one at all and has no answer."""
        answered = {*fact["entity"], *fact["relation"]}
        right = [is_one and prompt not in answered for prompt, is_one in candidates]
        if self.original:
            return [candidates[i][0] for i in indices]
        left = [candidates[i][0] for i in range(len(candidates)) if right[i] and i not in indices]
        self.places.append((fact["text"], sum(not right[i] for i in indices), left))
        return [candidates[i][0] for i in indices if right[i]]

    def take(self, candidates: int, rows: int, ratio: int) -> list[int]:
        if ratio == -1 or math.ceil(candidates / rows) <= ratio:
            return list(range(candidates))
        return self.random.sample(range(candidates), ratio * rows)

    def entity_rows(self, facts: list[Any]) -> list[Any]:
        labels = self.labels(facts)
        if not any(fact["entity"] for fact in facts):
            return []
        rows, negatives = [], []
        for fact in facts:
            rows += [(fact["text"], prompt, found) for prompt, found in fact["entity"].items()]
            others = sorted(labels ^ set(fact["entity"]))
            rows_here, everything = len(fact["entity"]), list(range(len(others)))
            indices = self.take(len(others), rows_here, self.ratio) if rows_here else everything
            prompts = self.chosen(fact, [(one, one not in fact["entity"]) for one in others], indices)
            negatives += [(fact["text"], prompt, []) for prompt in prompts]
        return rows + negatives

    def relation_rows(self, facts: list[Any]) -> list[Any]:
        predicates = list(dict.fromkeys(one for fact in facts for one in fact["predicates"]))
        rows, negatives = [], []
        for fact in facts:
            rows += [(fact["text"], prompt, found) for prompt, found in fact["relation"].items()]
            if not self.is_train:
                pairs = [self.asked(one, predicate) for one in fact["subjects"] for predicate in predicates]
                answered = {*fact["relation"], *(() if self.original else fact["entity"])}
                rows += [(fact["text"], prompt, []) for prompt in pairs if prompt not in answered]
            elif fact["relation"]:
                negatives += [(fact["text"], prompt, []) for prompt in self.sampled(fact, facts)]
        return rows + negatives

    def sampled(self, fact: Any, facts: list[Any]) -> list[str]:
        every = {name for one in facts for name in one["names"]}
        names = sorted(every ^ set(fact["subjects"]))
        labels = sorted(self.labels(facts) ^ set(fact["entity"]))
        by_name = [(self.asked(one, self.one_of(fact["predicates"])), one not in fact["subjects"]) for one in names]
        by_label = [(self.asked(self.one_of(fact["subjects"]), one), one not in fact["entity"]) for one in labels]
        candidates: list[tuple[str, bool]] = []
        indices, rest, rows = [], [], len(fact["relation"])
        for one in ([(prompt, True) for prompt in fact["inverse"]], by_name, by_label):
            taken = self.take(len(one), rows, self.ratio // 3)
            indices += [len(candidates) + i for i in taken]
            rest += [len(candidates) + i for i in range(len(one)) if i not in taken]
            candidates += one
        missing = self.ratio * rows - len(indices)
        if missing > 0 and rest:
            indices += (
                rest if missing > len(rest) else [rest[i] for i in self.random.sample(range(len(rest)), missing)]
            )
        return self.chosen(fact, candidates, indices)

    def one_of(self, values: list[str]) -> str:
        return values[self.random.randrange(len(values))]
