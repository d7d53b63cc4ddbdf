"""Which document goes into which file, as PaddleNLP's scripts deal them out."""

from collections.abc import Sequence
from decimal import Decimal

import numpy as np

TRAIN, DEV, TEST = "train", "dev", "test"
SPLITS = (TRAIN, DEV, TEST)


def check_splits(splits: Sequence[float]) -> tuple[float, ...]:
    """Three parts of one, or none at all: everything is for training.

    Raises:
        ValueError: another number of parts, one below 0, or a sum that is not 1.
    """
    if len(splits) == 0:
        return ()
    if len(splits) != len(SPLITS):
        raise ValueError(f"splits are {list(splits)}: three parts (train, dev, test) or none are needed")
    if any(part < 0 for part in splits) or sum(Decimal(str(part)) for part in splits) != 1:
        raise ValueError(f"splits are {list(splits)}: parts of 0 or more that sum to 1 are needed")
    return tuple(splits)


def deal(
    documents: int, splits: Sequence[float], shuffle: bool, draws: np.random.RandomState
) -> dict[str, np.ndarray]:
    """The documents of each file.

    Args:
        documents: How many there are.
        splits: As [`check_splits`] gives them. Without them all documents are for training, in their order.
        shuffle: They are permuted first.
        draws: numpy's generator, seeded as the original is.

    Returns:
        Split -> numbers of documents from 0, int64, in the order in which they are converted.
    """
    if not splits:
        return {TRAIN: np.arange(documents)}
    order = draws.permutation(documents) if shuffle else np.arange(documents)
    # As the original rounds: the second border is the sum of two parts, cut down to a whole number.
    first, second = int(documents * splits[0]), int(documents * (splits[0] + splits[1]))
    return {TRAIN: order[:first], DEV: order[first:second], TEST: order[second:]}
