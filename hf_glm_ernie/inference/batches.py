"""One loop over batches for everything that only reads a model: in evaluation mode, without gradients, longest first.

Rows of like length share a batch, so little is padded, and the longest come first, so that what does not fit in memory
fails at once. Results come back in the order of the rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from hf_glm_ernie.host_arguments import whole_number

FEW_BATCHES = 4
"""A progress bar from so many batches on, unless told otherwise."""

Result = TypeVar("Result")


@contextmanager
def reading(model: Any) -> Iterator[None]:
    """Inside, a model has no dropout and makes no gradients; behind, it is in the mode that it was in.

    What is no torch module has no modes, and neither has an exported program: it stays in the one it was traced in.
    """
    was_training = getattr(model, "training", None)
    if was_training is not None:
        try:
            model.eval()
        except NotImplementedError:  # `torch.export`'s module
            was_training = None
    try:
        with torch.no_grad():  # not inference_mode: a layer may prepare its weights at its first call, and train later
            yield
    finally:
        if was_training is not None:
            model.train(was_training)


def in_batches(
    model: Any,
    run: Callable[[list[int]], Iterable[Result]],
    lengths: Sequence[int],
    batch_size: int,
    *,
    what: str = "Running",
    show_progress: bool | None = None,
    bar: Any = None,
) -> list[Result]:
    """Runs rows batch by batch.

    Args:
        model: Whose mode is set and restored, where it has one.
        run: Given the indices of a batch's rows, longest first, the result of each.
        lengths: Length of every row (tokens).
        batch_size: Rows at a time.
        what: What the progress bar says.
        show_progress: Whether to show one; `None`: from a few batches on.
        bar: A bar of the caller's, which counts rows, in place of one that counts batches.

    Returns:
        The results, in the order of the rows.

    Raises:
        TypeError: a `batch_size` that is no number.
        ValueError: one below 1.
    """
    batch_size = whole_number("batch_size", batch_size)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    hidden = len(batches) <= FEW_BATCHES if show_progress is None else not show_progress
    results: dict[int, Result] = {}
    with reading(model):
        for batch in tqdm(batches, desc=what, unit="batch", disable=hidden or bar is not None):
            results |= zip(batch, run(batch), strict=True)
            if bar is not None:
                bar.update(len(batch))
    return [results[i] for i in range(len(lengths))]


__all__ = ["FEW_BATCHES", "in_batches", "reading"]
