"""UIE measured from end to end: a schema is asked as a user asks it, relations of the subjects that were *found*.

PaddleNLP's evaluation asks every row by itself, with the right subject in the prompt; a wrong subject costs nothing
there. Here the texts of the rows are asked the whole schema, and an answer is right where its whole path is: the names
asked, the answers on the way, and its own place.

The right answers are read off the rows: a row's prompt is the question, so what is asked of an answer is found by the
prompt that the schema makes of it. A text without a row for a question has no answer to it: converters write every
positive row, and leave out only rows without answers.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_glm_ernie.ernie_tasks.uie import uie
from hf_glm_ernie.ernie_tasks.uie_schema import HALF_WIDTH, OPTIONS, SchemaNode, read_schema

from .counts import Counts, matches, total
from .mistakes import Mark, compare
from .prompt_classes import sort_options
from .uie_rows import read_row

Answer = tuple[tuple[str, ...], Mark]
"""Texts of the answers on the way down, and the answer."""


def score_schema(
    model: Any,
    tokenizer: Any,
    schema: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    language: str = "zh",
    **options: Any,
) -> dict[str, Any]:
    """Asks the texts of rows a schema and counts what is right.

    Args:
        model: As for [`uie`].
        tokenizer: Its tokenizer.
        schema: As for [`uie`].
        rows: `content`, `prompt` and `result_list`.
        language: Of the prompts.
        **options: Of [`uie`].

    Returns:
        `scores` over all answers; `by_class`: the label, or `A -> B` along the schema -> its scores; `mistakes`: the
        texts with any; `rows_not_asked`: rows with answers that nothing in the schema asks for.

    Raises:
        ValueError: a row that is not what it should be; no row with answers is asked for by the schema.
    """
    nodes = read_schema(schema)
    gold: dict[str, dict[str, list[Mark]]] = {}
    numbers: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        checked = read_row(row, number)
        answers = [Mark(a.text, *_place(a.start, a.end)) for a in checked.answers]
        gold.setdefault(checked.content, {}).setdefault(_question(checked.prompt), []).extend(answers)
        numbers.setdefault(checked.content, []).append(number)
    texts: list[Any] = list(gold)
    counts: dict[str, list[Counts]] = {}
    mistakes = []
    used = 0
    for text, answered in zip(texts, uie(model, tokenizer, schema, texts, language=language, **options), strict=True):
        right, asked = _gold_answers(nodes, gold[text], language)
        used += len(asked)
        given = _found_answers(nodes, answered)
        marks: list[list[Mark]] = [[], []]
        for name in dict.fromkeys([*right, *given]):
            both = given.get(name, []), right.get(name, [])
            counts.setdefault(name, []).append(matches(set(both[0]), set(both[1])))
            for side, answers_of in zip(marks, both, strict=True):
                side += [_told(name, about, mark) for about, mark in answers_of]
        told = compare(marks[0], marks[1])
        if told["missing"] or told["wrong"] or told["spurious"]:
            mistakes.append({"row": numbers[text][0], "text": text, **told})
    positive = sum(1 for of_text in gold.values() for answers in of_text.values() if answers)
    if positive and not used:
        raise ValueError(f"The schema {schema!r} asks for nothing that the {positive} rows with answers hold.")
    by_class = {name: total(of_name) for name, of_name in counts.items()}
    return {
        "scores": total(by_class.values()).scores(),
        "by_class": {name: one.report() for name, one in by_class.items()},
        "mistakes": mistakes,
        "rows_not_asked": positive - used,
    }


def _question(prompt: str) -> str:
    """A prompt in one spelling, whatever the order of its options and the blanks before them."""
    plain = prompt.translate(HALF_WIDTH).strip()
    options = OPTIONS.search(plain)
    return sort_options(plain[: options.start()].strip() + options.group()) if options else plain


def _place(start: int, end: int) -> tuple[int | None, int | None]:
    """Of an answer in the text; options have none."""
    return (start, end) if start >= 0 else (None, None)


def _gold_answers(
    nodes: Sequence[SchemaNode], rows: Mapping[str, list[Mark]], language: str
) -> tuple[dict[str, list[Answer]], set[str]]:
    """The right answers of a text, by their path in the schema; and the questions of the rows that hold them."""
    right: dict[str, list[Answer]] = {}
    asked: set[str] = set()
    level: list[tuple[SchemaNode, str, tuple[str, ...], str]] = [
        (node, node.name, (), _question(node.prompt())) for node in nodes
    ]
    while level:
        below = []
        for node, path, about, question in level:
            for mark in rows.get(question, []):
                asked.add(question)
                right.setdefault(path, []).append((about, mark))
                below += [
                    (
                        child,
                        f"{path} -> {child.name}",
                        (*about, mark.text),
                        _question(child.prompt(mark.text, language)),
                    )
                    for child in node.children
                ]
        level = list({(one[1], one[2]): one for one in below}.values())
    return right, asked


def _found_answers(nodes: Sequence[SchemaNode], answered: Mapping[str, Any]) -> dict[str, list[Answer]]:
    """The model's answers to a text, likewise."""
    found: dict[str, list[Answer]] = {}

    def add(nodes: Sequence[SchemaNode], answers: Mapping[str, Any], path: str, about: tuple[str, ...]) -> None:
        for node in nodes:
            name = f"{path} -> {node.name}" if path else node.name
            for answer in answers.get(node.name, []):
                found.setdefault(name, []).append(
                    (about, Mark(answer["text"], answer.get("start"), answer.get("end")))
                )
                add(node.children, answer.get("relations", {}), name, (*about, answer["text"]))

    add(nodes, answered, "", ())
    return found


def _told(name: str, about: Sequence[str], mark: Mark) -> Mark:
    """An answer as a listing shows it: its path and what it is about stand in the label."""
    return mark._replace(label=f"{name} ({', '.join(about)})" if about else name)


__all__ = ["score_schema"]
