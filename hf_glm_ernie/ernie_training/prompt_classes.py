"""What a prompt asks for, so that scores can be reported by label and by relation.

A label's prompt is the label. A relation's is `subject的predicate` in Chinese and `predicate of subject` in English;
its class is `X的predicate`, `predicate of X`. A prompt does not say where its subject ends: `甲的目的地` may be 目的地
of 甲. Where labels or predicates are known they decide; else the longest predicate that another prompt shares, else
what stands behind the last 的 (before the first ` of `), as in PaddleNLP's report.

The differences, each where PaddleNLP goes wrong: every row counts once (there a second row with the same prompt is
dropped, and some count twice), and a 的 inside an option is none.

Source: PaddleNLP, `model_zoo/uie/utils.py` (`unify_prompt_name`, `get_relation_type_dict`) and
`model_zoo/uie/evaluate.py`.
"""

from collections.abc import Collection, Iterable, Sequence

from hf_glm_ernie.ernie_tasks.uie_schema import LANGUAGES, OPTIONS
from hf_glm_ernie.host_arguments import one_of

from .counts import Counts, total


def sort_options(prompt: str) -> str:
    """A prompt with its options in order, each once: the same question in one spelling."""
    found = OPTIONS.search(prompt)
    if not found:
        return prompt
    options = sorted(set(found.group()[1:-1].split(",")))
    return f"{prompt[: found.start()]}[{','.join(options)}]"


def prompt_classes(
    prompts: Sequence[str],
    language: str = "zh",
    *,
    labels: Collection[str] = (),
    predicates: Collection[str] = (),
) -> list[str]:
    """Says what every prompt asks for.

    Args:
        prompts: Of all rows that are reported on: what two of them share tells a predicate from a subject.
        language: `"zh"` or `"en"`.
        labels: Prompts that are labels, whatever they look like.
        predicates: Names of relations. Options that follow one need not be given.

    Returns:
        For each prompt its label, or `X的predicate`.

    Raises:
        ValueError: an unknown language.
    """
    one_of("language", language, LANGUAGES)
    names = [sort_options(prompt) for prompt in prompts]
    known_labels = {sort_options(label) for label in labels}
    possible = {name: _possible_predicates(name, language) for name in names if name not in known_labels}
    shared: dict[str, int] = {}
    for found in possible.values():
        for predicate in found:
            shared[predicate] = shared.get(predicate, 0) + 1

    def class_of(name: str) -> str:
        found = possible.get(name, [])
        if not found:
            return name
        known = [one for one in found if one in predicates or one.split("[")[0] in predicates]
        common = [one for one in found if shared[one] > 1]
        predicate = (known or common or found[-1:])[0]
        return f"X的{predicate}" if language == "zh" else f"{predicate} of X"

    return [class_of(name) for name in names]


def _possible_predicates(name: str, language: str) -> list[str]:
    """What may be the predicate of a prompt, the longest first; nothing where it is no relation."""
    options = OPTIONS.search(name)
    asked = name[: options.start()] if options else name
    mark = "的" if language == "zh" else " of "
    places = [i for i in range(len(asked)) if asked.startswith(mark, i)]
    if language == "zh":
        return [behind for i in places if (behind := name[i + len(mark) :])]
    return [name[:i] for i in reversed(places)]


def class_counts(
    prompts: Sequence[str], counts: Iterable[Counts], language: str = "zh", **known: Collection[str]
) -> dict[str, Counts]:
    """Sums the counts of rows by what they ask for.

    Args:
        prompts: One for every row.
        counts: One for every row.
        language: `"zh"` or `"en"`.
        **known: `labels` and `predicates`, see [`prompt_classes`].

    Returns:
        Class -> its counts, in the order in which they first occur. As in PaddleNLP's report, only rows with answers
        count: an answer to a question without one is a mistake of all classes together.
    """
    rows = [(prompt, one) for prompt, one in zip(prompts, counts, strict=True) if one.gold]
    classes = prompt_classes([prompt for prompt, _ in rows], language, **known)
    grouped: dict[str, list[Counts]] = {}
    for name, (_, one) in zip(classes, rows, strict=True):
        grouped.setdefault(name, []).append(one)
    return {name: total(of_class) for name, of_class in grouped.items()}


def split_classes(names: Iterable[str], language: str = "zh") -> dict[str, list[str]]:
    """Tells labels from relations among classes: `labels` and `predicates`, as [`prompt_classes`] takes them."""
    labels, predicates = [], []
    for name in names:
        if language == "zh" and name.startswith("X的"):
            predicates.append(name.removeprefix("X的"))
        elif language == "en" and name.endswith(" of X"):
            predicates.append(name.removesuffix(" of X"))
        else:
            labels.append(name)
    return {"labels": labels, "predicates": predicates}


__all__ = ["class_counts", "prompt_classes", "sort_options", "split_classes"]
