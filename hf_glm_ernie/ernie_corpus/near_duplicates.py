"""Keys that documents share when most of their text is the same: MinHash and bands, as datasketch makes them.

A text is the set of its shingles, `shingle_size` characters that follow one another, white space left out: Chinese
has no word limits to rely on. datasketch's `MinHash` keeps the minima of `num_perm` permutations of their hashes; two
texts of Jaccard similarity s agree in each with probability s. datasketch's `MinHashLSH` says how many of them make a
band and how many bands there are for a threshold. Here each band becomes a key of 8 bytes, so that the documents that
share one are found by sorting (`occurrences.py`) and not by a dictionary in memory: 10^9 documents at 9 bands are
108 GB on disk, and `MinHashLSH` of as many would take terabytes of memory.

Which pairs are found is a matter of chance with a known law: 1 - (1 - s^r)^b for b bands of r. At threshold 0.8 and
128 permutations (9 bands of 13) that is 8% of the pairs at s = 0.7, 40% at 0.8, 93% at 0.9, 99.99% at 0.97.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

NUM_PERM = 128
SHINGLE_SIZE = 5
KEY_BYTES = 8
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, of mixed bits: 2^64 over the golden ratio


def shingle_hashes(text: str, size: int = SHINGLE_SIZE) -> np.ndarray:
    """Hashes of all runs of `size` characters of a text without its white space.

    Args:
        text: A text.
        size: Characters of a shingle; a shorter text is one shingle.

    Returns:
        (S) uint32: a polynomial in the characters modulo 2^64, of which the upper half.
    """
    characters = np.frombuffer("".join(text.split()).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    count = max(len(characters) - size + 1, 1)
    total = np.zeros(count, dtype=np.uint64)
    for place in range(min(size, len(characters))):
        total = total * _FACTOR + characters[place : place + count]
    return (total * _FACTOR >> np.uint64(32)).astype(np.uint32)


class BandKeys:
    """Texts to the keys of their bands.

    Args:
        threshold: The Jaccard similarity that is aimed at, between 0 and 1.
        num_perm: Permutations: more tell similarities near the threshold apart better, and take longer.
        shingle_size: Characters of a shingle.

    Raises:
        ImportError: datasketch is not installed.
        ValueError: a threshold that is not between 0 and 1, or a size below 1.
    """

    def __init__(self, threshold: float, *, num_perm: int = NUM_PERM, shingle_size: int = SHINGLE_SIZE) -> None:
        if not 0 < threshold < 1:
            raise ValueError(
                f"near_duplicates={threshold} must be between 0 and 1: a Jaccard similarity, such as 0.8."
            )
        if shingle_size < 1:
            raise ValueError(f"shingle_size={shingle_size} must be at least 1.")
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise ImportError("Near-duplicates need the package datasketch: pip install 'datasketch>=2'") from error
        self.threshold, self.num_perm, self.shingle_size = threshold, num_perm, shingle_size
        self.ranges: list[tuple[int, int]] = MinHashLSH(threshold=threshold, num_perm=num_perm).hashranges
        self._minhash = MinHash

    def minhashes(self, texts: Sequence[str]) -> list[Any]:
        """The `MinHash` of each text."""
        shingles = (shingle_hashes(text, self.shingle_size).tolist() for text in texts)
        return self._minhash.bulk(shingles, num_perm=self.num_perm, hashfunc=int)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, bands) keys of 8 bytes; no two bands have keys in common."""
        keys = [
            _key(number, minhash.hashvalues[start:end])
            for minhash in self.minhashes(texts)
            for number, (start, end) in enumerate(self.ranges)
        ]
        return np.array(keys, dtype=f"S{KEY_BYTES}").reshape(len(texts), len(self.ranges))


def _key(band: int, values: np.ndarray) -> bytes:
    return hashlib.blake2b(values.tobytes(), digest_size=KEY_BYTES, salt=band.to_bytes(8)).digest()


__all__ = ["KEY_BYTES", "NUM_PERM", "SHINGLE_SIZE", "BandKeys", "shingle_hashes"]
