"""A handful of labelled texts for every label, drawn from many: the same seed draws the same, and more hold fewer.

Texts are gone through in a random order, and one is taken while any of its labels still has too few. So every label
has as many texts as asked for, or all there are; labels that stand in texts together may have more; and what is drawn
for fewer shots is part of what is drawn for more. All rows of a text go together: who labels a text for UIE labels it
for every prompt, those without an answer too.
"""

import random
from collections import Counter
from collections.abc import Hashable, Sequence

from hf_glm_ernie.host_arguments import whole_number


def draw_shots(texts: Sequence[Hashable], labels: Sequence[Sequence[str]], shots: int, seed: int = 0) -> list[int]:
    """Draws rows.

    Args:
        texts: Of every row, what tells its text from others.
        labels: What every row is an example of; nothing for a row that only goes with its text.
        shots: Texts for every label.
        seed: Of the order.

    Returns:
        Numbers of the rows, ascending.

    Raises:
        TypeError: shots that are no whole number.
        ValueError: shots below 1.
    """
    shots = whole_number("shots", shots)
    rows: dict[Hashable, list[int]] = {}
    for number, text in enumerate(texts):
        rows.setdefault(text, []).append(number)
    order = list(rows.values())
    random.Random(seed).shuffle(order)
    have: Counter[str] = Counter()
    drawn: list[int] = []
    for own in order:
        held = {label for number in own for label in labels[number]}
        if any(have[label] < shots for label in held):
            have.update(held)
            drawn += own
    return sorted(drawn)


__all__ = ["draw_shots"]
