"""Classes as UIE sees them: options in the prompt, `情感倾向[正向,负向]`, and answers as offsets into it.

The offsets are negative: they count from character 0 of the content back over one place for the `[SEP]` behind the
prompt, so that its last character, `]`, is -2 and a last option of two characters is [-4, -2). The options are
shuffled before every prompt, from the order of the prompt before it, as the original does.

Where PaddleNLP is wrong and this is not: it looks an option up with `rfind`, which finds 科技 inside 体育科技 (here
whole options are matched), and a class that is not among the options gets an offset in front of the prompt (here an
error).
(PaddleNLP 2.8.1, `DataConverter`.)
"""

import random
from collections.abc import Sequence
from typing import Any

from .documents import AnnotationError, shown

Row = dict[str, Any]
"""`{"content": str, "result_list": [{"text", "start", "end"}], "prompt": str}`, or a UTC row (`utc_rows.py`)."""


def check_options(options: Sequence[str]) -> list[str]:
    """Options that can stand in one prompt and be read back from it.

    Raises:
        TypeError: one is no string.
        ValueError: there are none; one is empty, there twice, or holds a comma, which is what parts them.
    """
    if isinstance(options, str) or not all(isinstance(one, str) for one in options):
        raise TypeError(f"options is {options!r}: a list of strings is needed")
    if not options:
        raise ValueError("options is empty: at least one class is needed")
    if bad := [one for one in options if not one.strip() or "," in one]:
        raise ValueError(f"options {bad} cannot stand in a prompt: an option is not empty and has no ',' in it")
    if twice := sorted({one for one in options if list(options).count(one) > 1}):
        raise ValueError(f"options {twice} are given more than once")
    return list(options)


def known_labels(labels: Sequence[str], options: Sequence[str], what: str, unknown: str = "error") -> list[str]:
    """The labels that are among the options.

    Args:
        labels: Of one annotation, in its order.
        options: What is allowed.
        what: The annotation, for the message.
        unknown: "error", or "drop": labels that are no option are left out.

    Raises:
        AnnotationError: a label is no option, and `unknown` is "error".
    """
    kept = [label for label in labels if label in options]
    if unknown == "error" and len(kept) < len(labels):
        bad = next(label for label in labels if label not in options)
        raise AnnotationError(
            f"{what}: class {shown(bad)} is not among the options {list(options)}; give it (--options), correct it, "
            "or leave such classes out (--unknown-options drop)"
        )
    return kept


class ShuffledOptions:
    """Class rows with the options in a new order each; the order is carried on from row to row.

    Args:
        options: The classes.
        generator: Draws one shuffle a row, as Python's `random.shuffle`.
    """

    def __init__(self, options: Sequence[str], generator: random.Random):
        self.options = check_options(options)
        self._generator = generator

    def row(self, text: str, labels: Sequence[str], prefix: str) -> Row:
        """One row.

        Args:
            text: The content.
            labels: The classes that hold, each one of the options; in the order of the results.
            prefix: What stands before the bracket of the prompt.
        """
        self._generator.shuffle(self.options)
        prompt = f"{prefix}[{','.join(self.options)}]"
        starts = {}
        at = -len(prompt) - 1 + len(prefix) + 1
        for option in self.options:
            starts[option] = at
            at += len(option) + 1
        results = [{"text": one, "start": starts[one], "end": starts[one] + len(one)} for one in labels]
        return {"content": text, "result_list": results, "prompt": prompt}
