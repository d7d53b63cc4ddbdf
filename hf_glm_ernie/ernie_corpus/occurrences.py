"""Which of many keys came before: in memory, or sorted on disk for more keys than memory holds.

A document is a duplicate if one of its keys is a key of an earlier document, whether that one is kept or not. So each
key can be looked at alone, the answer does not depend on who asks first, and any number of processes come to the same:
the first document in the order of the corpus stays.

**What it takes.** A Python set of 10^9 signatures would hold 33 + 16 bytes an object and 32 to 64 bytes a table entry,
about 100 GB, and only one process could ask it. A Bloom filter takes 1.8 GB at a false-positive rate of 1/1000, but
drops a million documents wrongly, and which ones depends on the order. Sorting is exact: every unit of work leaves its
keys sorted on disk with their rows ([`write_keys`], 20 bytes a document). The keys are then gone through by
partitions of their range ([`later_occurrences`]), of each file one contiguous slice. A partition takes
`BYTES_A_KEY` of memory a key, so the number of partitions is what fits the memory of a process, and each is work for
whoever is free. 10^9 documents take 20 GB of disk, and at 1 GiB a process 60 partitions.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .finished_files import writing

BYTES_A_KEY = 64
"""Of memory at the peak of a partition; measured in `tests/test_corpus_duplicates.py`."""

ROW_BITS = 32  # of a place: the unit's number stands above


def came_before(keys: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
    """Which keys stand at an earlier place, too.

    Args:
        keys: (K) of a type that numpy sorts, such as "S16".
        places: (K) where each stands, ascending; default: each at its own. Keys of one place do not count as earlier
            than one another.

    Returns:
        (K) bool.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.ones(len(keys), dtype=bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    del ordered
    starts, later = np.flatnonzero(begins), np.flatnonzero(~begins)
    first, later = order[starts[np.searchsorted(starts, later, side="right") - 1]], order[later]
    before = np.zeros(len(keys), dtype=bool)
    before[later] = True if places is None else places[first] != places[later]
    return before


def key_files(folder: Path, kind: str, unit: int) -> tuple[Path, Path]:
    """Where a unit's keys of a kind lie, and where their rows."""
    return folder / f"{unit:05d}.{kind}.keys.npy", folder / f"{unit:05d}.{kind}.rows.npy"


def write_keys(folder: Path, kind: str, unit: int, keys: np.ndarray) -> None:
    """Writes the keys of a unit, sorted.

    Args:
        folder: Where to.
        kind: What the keys are called.
        unit: The unit's number.
        keys: (rows, keys of a row).

    Raises:
        ValueError: more rows than a place has numbers.
    """
    if len(keys) >= 2**ROW_BITS:
        raise ValueError(
            f"unit {unit} has {len(keys)} documents: fewer than 2^{ROW_BITS} are allowed; split the file."
        )
    flat = keys.reshape(-1)
    order = np.argsort(flat, kind="stable")
    for path, values in zip(
        key_files(folder, kind, unit),
        (flat[order], (order // max(keys.shape[1], 1)).astype(np.uint32)),
        strict=True,
    ):
        with writing(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)


def count_partitions(keys: int, memory: int) -> int:
    """Into how many partitions so many keys are cut for so many bytes of memory."""
    return max(1, math.ceil(keys * BYTES_A_KEY / memory))


def later_occurrences(folder: Path, kind: str, units: int, partition: int, partitions: int) -> np.ndarray:
    """The places whose keys stand at an earlier place, for one part of the range of all keys.

    Args:
        folder: Where [`write_keys`] wrote.
        kind: Of which keys.
        units: How many units there are.
        partition: Which part of the range, from 0.
        partitions: How many parts there are.

    Returns:
        Places, ascending, each once: uint64, `unit << 32 | row`.
    """
    slices = []
    for unit in range(units):
        keys, rows = (np.load(path, mmap_mode="r") for path in key_files(folder, kind, unit))
        start, end = np.searchsorted(keys, _bounds(keys.dtype, partition, partitions))
        end = len(keys) if partition == partitions - 1 else end
        slices.append((np.array(keys[start:end]), rows[start:end].astype(np.uint64) | np.uint64(unit << ROW_BITS)))
    if not slices:
        return np.empty(0, dtype=np.uint64)
    keys, places = (np.concatenate(parts) for parts in zip(*slices, strict=True))
    del slices
    return np.unique(places[came_before(keys, places)])


def _bounds(dtype: np.dtype, partition: int, partitions: int) -> np.ndarray:
    """Where a part of the range of all keys begins and ends; the last one's end is not used."""
    edges = [min((number << 64) // partitions, 2**64 - 1).to_bytes(8) for number in (partition, partition + 1)]
    return np.array(edges, dtype=dtype)


def rows_of_unit(files: Sequence[Path], unit: int) -> np.ndarray:
    """The rows of one unit among places.

    Args:
        files: Written with `np.save`, each with ascending places.
        unit: The unit.

    Returns:
        Rows, ascending, each once.
    """
    found = [np.empty(0, dtype=np.uint64)]
    for path in files:
        places = np.load(path, mmap_mode="r")
        edges = np.array([unit << ROW_BITS, (unit + 1) << ROW_BITS], dtype=np.uint64)
        start, end = np.searchsorted(places, edges)
        found.append(np.array(places[start:end]))
    return np.unique(np.concatenate(found) & np.uint64(2**ROW_BITS - 1)).astype(np.int64)


__all__ = [
    "BYTES_A_KEY",
    "came_before",
    "count_partitions",
    "key_files",
    "later_occurrences",
    "rows_of_unit",
    "write_keys",
]
