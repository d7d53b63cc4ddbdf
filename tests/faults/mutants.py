"""Damaged files: bytes of every kind of file that the converters read changed at random, by a seed."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .case import Case
from .sources import KINDS, source

NUMBERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
"""What a length may be made to say."""

HEADER_BYTES = 2048
"""Most changes strike a file's ends, where formats keep what they claim."""


def mutants(seed: int, count: int) -> Iterator[Case]:
    """Sources with one file damaged, kind after kind; each may be accepted, as a flipped bit of a weight is."""
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        yield Case(f"mutant {seed}:{number} of {kind}", partial(_make, kind, f"{seed}:{number}"), may_pass=True)


def _make(kind: str, seed: str, folder: Path) -> list[str]:
    dice = random.Random(seed)
    made = source(kind)
    # Half of the changes strike a file of another kind than the many that hold one variable each.
    names = sorted(made.files)
    suffixes = sorted({Path(name).suffix for name in names})
    name = dice.choice(names)
    if dice.random() < 0.5:
        suffix = dice.choice(suffixes)
        name = dice.choice([one for one in names if Path(one).suffix == suffix])
    content = made.files[name]
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        content = dice.choice(CHANGES)(content, dice, made.files[dice.choice(names)])
    return made.write(folder, {name: content})


def _place(content: bytes, dice: random.Random) -> int:
    if len(content) < 2 * HEADER_BYTES or dice.random() < 0.3:
        return dice.randrange(len(content) + 1)
    at = int(dice.expovariate(8 / HEADER_BYTES)) % HEADER_BYTES
    return at if dice.random() < 0.6 else len(content) - at


def _flip(content: bytes, dice: random.Random, other: bytes) -> bytes:
    if not content:
        return content
    at = min(_place(content, dice), len(content) - 1)
    return content[:at] + bytes([content[at] ^ (1 << dice.randrange(8))]) + content[at + 1 :]


def _other_byte(content: bytes, dice: random.Random, other: bytes) -> bytes:
    at = _place(content, dice)
    return content[:at] + dice.randbytes(1) + content[at + 1 :]


def _number(content: bytes, dice: random.Random, other: bytes) -> bytes:
    at, width = _place(content, dice), dice.choice((1, 2, 4, 8))
    number = dice.choice(NUMBERS) % 256**width
    return content[:at] + number.to_bytes(width, dice.choice(("little", "big"))) + content[at + width :]


def _digits(content: bytes, dice: random.Random, other: bytes) -> bytes:
    """Another number where one is written in digits."""
    starts = [at for at in range(min(len(content), 4 * HEADER_BYTES)) if content[at : at + 1].isdigit()]
    if not starts:
        return _number(content, dice, other)
    at = dice.choice(starts)
    number = dice.choice((b"-1", b"0", b"1e3", b"1.5", b"9" * 5000, *(str(number).encode() for number in NUMBERS)))
    return content[:at] + number + content[at + 1 :]


def _insert(content: bytes, dice: random.Random, other: bytes) -> bytes:
    at = _place(content, dice)
    return content[:at] + dice.randbytes(dice.choice((1, 2, 8, 100))) + content[at:]


def _delete(content: bytes, dice: random.Random, other: bytes) -> bytes:
    at = _place(content, dice)
    return content[:at] + content[at + dice.choice((1, 2, 8, 100, 5000)) :]


def _repeat(content: bytes, dice: random.Random, other: bytes) -> bytes:
    at, length = _place(content, dice), dice.choice((1, 8, 64, 512))
    return content[: at + length] + content[at : at + length] * dice.choice((1, 2, 100)) + content[at + length :]


def _truncate(content: bytes, dice: random.Random, other: bytes) -> bytes:
    return content[: _place(content, dice)]


def _splice(content: bytes, dice: random.Random, other: bytes) -> bytes:
    return content[: _place(content, dice)] + other[_place(other, dice) :]


def _fill(content: bytes, dice: random.Random, other: bytes) -> bytes:
    at, length = _place(content, dice), dice.choice((4, 16, 256))
    return content[:at] + dice.choice((b"\0", b"\xff", b"9", b"[")) * length + content[at + length :]


CHANGES: tuple[Callable[[bytes, random.Random, bytes], bytes], ...] = (
    *(_flip, _other_byte, _number, _digits, _insert, _delete, _repeat, _truncate, _splice, _fill),
)

__all__ = ["mutants"]
