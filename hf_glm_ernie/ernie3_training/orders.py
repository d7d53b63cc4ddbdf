"""The order in which an epoch reads rows: a permutation that is computed, not stored.

A Feistel network of four rounds permutes the numbers below a power of four; a number that lands outside the data goes
through again until it lands inside ("cycle walking"), which makes it a permutation of the data. So the n-th row of an
epoch is known without the others: an order of 10^8 rows costs no memory, and a reader goes on at any place at once.
Halves of a few bits permute badly, so orders up to `STORED` are drawn outright.

Sources: M. Luby, C. Rackoff, How to construct pseudorandom permutations, SIAM J. Comput. 17 (1988), who show that four
rounds suffice; J. Black, P. Rogaway, Ciphers with arbitrary finite domains (2002), for the cycle walking; the round
function mixes as splitmix64 does (Steele, Lea, Flood, OOPSLA 2014).
"""

import zlib

import numpy as np

ROUNDS = 4
STORED = 4096  # 16 KiB
MASK = (1 << 64) - 1


def _mixed(number: int) -> int:
    """splitmix64's finisher: every bit of 64 depends on every other."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


class Permutation:
    """The numbers 0 .. `count` - 1 in a pseudo-random order: `permutation[place]` is the number at a place.

    Args:
        count: How many numbers, at least 1 and below 2**62.
        seed: At least 0.
        name: What is ordered; other names have other orders.
        epoch: At least 0.

    Raises:
        ValueError: a count out of range or a negative seed or epoch.
    """

    def __init__(self, count: int, seed: int, name: str, epoch: int) -> None:
        if not 1 <= count < 1 << 62:
            raise ValueError(f"count={count} must be at least 1 and below 2**62.")
        for what, value in (("seed", seed), ("epoch", epoch)):
            if value < 0:
                raise ValueError(f"{what}={value} must be at least 0.")
        self._count = count
        self._half = max(((count - 1).bit_length() + 1) // 2, 1)  # bits of each half of a number
        entropy = np.random.SeedSequence([seed, zlib.crc32(name.encode()), epoch])
        self._keys = [int(key) for key in entropy.generate_state(ROUNDS, np.uint64)]
        self._stored = None
        if count <= STORED:
            self._stored = np.random.default_rng(entropy).permutation(count).astype(np.int32)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> int:
        """The number at a place.

        Raises:
            IndexError: a place outside the order.
        """
        if not 0 <= place < self._count:
            raise IndexError(f"place {place} is outside an order of {self._count}.")
        if self._stored is not None:
            return int(self._stored[place])
        half = self._half
        low = (1 << half) - 1
        number = place
        while True:
            left, right = number >> half, number & low
            for key in self._keys:
                left, right = right, left ^ (_mixed((right + key) & MASK) & low)
            number = left << half | right
            if number < self._count:
                return number


__all__ = ["Permutation"]
