"""Rows for UIE from annotated texts, by the letter of PaddleNLP's rules: lists, and one text after another.

Written from ../../../shared/design/paddlenlp-workflows.md, sections 2 and 3, independent of the package. `original=True`
keeps what is wrong there (symmetric differences of sets, negative prompts that have an answer, options looked up with
`rfind`): it is held against PaddleNLP's own rows, random ones too, so that what it does without can be trusted.
"""

import math
import random
from typing import Any

UNPROMPTED, NOT_ASKED = ["属性值", "object"], ["观点词"]


class Naive:
    """One split. A document is `(text, [(id, start, end, label)], [(from, to, type)])`."""

    def __init__(self, variant: dict[str, Any], ratio: int, is_train: bool, label_studio: bool, original: bool):
        self.variant, self.ratio, self.is_train = variant, ratio, is_train
        self.label_studio, self.original = label_studio, original
        self.options = list(variant["options"])
        self.random = random.Random(1000)

    def asked(self, subject: str, predicate: str) -> str:
        return f"{subject}的{predicate}" if self.variant["lang"] == "ch" else f"{predicate} of {subject}"

    def rows(self, documents: list[Any]) -> list[tuple[str, str, list[Any]]]:
        """`(text, prompt, [[text, start, end], ...])` in the original's order."""
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

    def others(self, every: set[str], own: Any) -> list[str]:
        return sorted(every ^ set(own)) if self.original else sorted(every - set(own))

    def unanswered(self, fact: Any, prompts: list[str]) -> list[str]:
        """Without those that have an answer."""
        if self.original:
            return prompts
        return [one for one in prompts if one not in fact["entity"] and one not in fact["relation"]]

    def take(self, candidates: list[str], rows: int, ratio: int) -> list[int]:
        if ratio == -1 or math.ceil(len(candidates) / rows) <= ratio:
            return list(range(len(candidates)))
        return self.random.sample(range(len(candidates)), ratio * rows)

    def entity_rows(self, facts: list[Any]) -> list[Any]:
        labels = self.labels(facts)
        if not any(fact["entity"] for fact in facts):
            return []
        rows, negatives = [], []
        for fact in facts:
            rows += [(fact["text"], prompt, found) for prompt, found in fact["entity"].items()]
            others = self.unanswered(fact, self.others(labels, fact["entity"]))
            if fact["entity"]:
                others = [others[i] for i in self.take(others, len(fact["entity"]), self.ratio)]
            negatives += [(fact["text"], prompt, []) for prompt in others]
        return rows + negatives

    def relation_rows(self, facts: list[Any]) -> list[Any]:
        predicates = list(dict.fromkeys(one for fact in facts for one in fact["predicates"]))
        rows, negatives = [], []
        for fact in facts:
            rows += [(fact["text"], prompt, found) for prompt, found in fact["relation"].items()]
            if not self.is_train:
                pairs = [self.asked(one, predicate) for one in fact["subjects"] for predicate in predicates]
                kept = [one for one in self.unanswered(fact, pairs) if one not in fact["relation"]]
                rows += [(fact["text"], prompt, []) for prompt in kept]
            elif fact["relation"]:
                negatives += [(fact["text"], prompt, []) for prompt in self.sampled(fact, facts)]
        return rows + negatives

    def sampled(self, fact: Any, facts: list[Any]) -> list[str]:
        every = {name for one in facts for name in one["names"]}
        names = self.others(every, fact["subjects"])
        labels = self.others(self.labels(facts), fact["entity"])
        by_name = [self.asked(name, self.one_of(fact["predicates"])) for name in names]
        by_label = [self.asked(self.one_of(fact["subjects"]), label) for label in labels]
        added, rest, rows = [], [], len(fact["relation"])
        for candidates in (fact["inverse"], by_name, by_label):
            kept = self.unanswered(fact, candidates)
            taken = self.take(kept, rows, self.ratio // 3)
            added += [kept[i] for i in taken]
            rest += [one for i, one in enumerate(kept) if i not in taken]
        missing = self.ratio * rows - len(added)
        if missing > 0 and rest:
            added += rest if missing > len(rest) else [rest[i] for i in self.random.sample(range(len(rest)), missing)]
        return added

    def one_of(self, values: list[str]) -> str:
        return values[self.random.randrange(len(values))]
