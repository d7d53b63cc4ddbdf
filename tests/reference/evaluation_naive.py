"""The authors' evaluation formulas, one forward for each choice or window, independent of the package.

Nothing is packed, padded or batched. `forward` is the slow model: ids, positions and visibility of one row in, logits
(len, vocabulary) fp32 out.
"""

from collections.abc import Callable

import torch

Forward = Callable[[list[int], list[int], torch.Tensor], torch.Tensor]


def sees(length: int, context: int) -> torch.Tensor:
    """(len, len) bool: the first `context` tokens see each other, the others what is before them."""
    visible = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            visible[query, key] = key <= query or (query < context and key < context)
    return visible


def span_log_prob(forward: Forward, ids: list[int], positions: list[int], context: int, answer: list[int]) -> float:
    """Log-probability of an answer whose first token is predicted at the row's token number `context`."""
    log_probs = torch.log_softmax(forward(ids, positions, sees(len(ids), context)).double(), -1)
    return sum(log_probs[context + i, token].item() for i, token in enumerate(answer))


def choice_log_prob(
    forward: Forward,
    text: list[int],
    choice: list[int],
    mask: int,
    sop: int,
    task_mask: bool = False,
    unified: bool = False,
) -> float:
    """One choice in a row of its own."""
    written = mask in text
    context = text if written else [*text, mask]
    blank = context.index(mask)
    ids = [*context, sop, *choice[:-1]]
    if task_mask:
        places = [len(context) + i for i in range(len(choice))]
    elif unified and not written:
        places = [blank + i for i in range(len(choice))]
    else:
        places = [blank for _ in choice]
    return span_log_prob(forward, ids, [*range(len(context)), *places], len(context), choice)


def window_losses(
    forward: Forward, text: list[int], mask: int, sop: int, size: int, step: int, unidirectional: bool = False
) -> list[float]:
    """Loss of each window, in nats; windows are cut by walking through the text."""
    losses = []
    start, scored = 0, 0
    while scored < len(text):
        window = text[start : start + size - 1]
        known = 0 if start == 0 or unidirectional else size - 1 - step
        prompt, answer = window[:known], window[known:]
        ids = [*prompt, mask, sop, *answer[:-1]]
        losses.append(-span_log_prob(forward, ids, list(range(len(ids))), len(prompt) + 1, answer))
        scored = start + len(window)
        start += step
    return losses


def greedy_answer(
    forward: Forward,
    text: list[int],
    mask: int,
    sop: int,
    ends: list[int],
    most: int,
    task_mask: bool = False,
    unidirectional: bool = False,
) -> list[int]:
    """The most probable token again and again, each time from a whole forward."""
    if unidirectional:
        prompt, context = [mask, sop, *text], 0
        blank = None
    else:
        written = text if mask in text else [*text, mask]
        prompt, context = [*written, sop], len(written)
        blank = None if task_mask else written.index(mask)
    answer: list[int] = []
    while len(answer) < most:
        ids = [*prompt, *answer]
        positions = [i if blank is None or i < context else blank for i in range(len(ids))]
        token = int(forward(ids, positions, sees(len(ids), context))[-1].argmax())
        if token in ends:
            break
        answer.append(token)
    return answer
