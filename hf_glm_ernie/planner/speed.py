"""How long a step takes at the least: arithmetic on what it has to read, to compute and to send.

A step is the decoding of one token of every row, the reading of a prompt, or the forward of an encoder. On one device
memory and arithmetic overlap, so the slower of the two counts; exchanges between ranks, and devices that work one
after the other, add up. These are limits: no program is faster on such a machine, and none has to come near.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .cards import Card
from .work import Work

# What a step waits for.
MEMORY, ARITHMETIC, LINK, COPIES, DISK = "memory", "arithmetic", "link", "PCIe copies", "disk"
CPU_MEMORY, CPU_ARITHMETIC = "CPU memory", "CPU arithmetic"
# Seconds of the host for each kernel that Python launches through torch: 2,500 of them took 10 ms and more.
LAUNCH = 4e-6
DISK_BANDWIDTH = 7.88e9  # bytes/s: four lanes of PCIe 4.0, nominal


@dataclass(frozen=True)
class Shape:
    """The rows of a step.

    Args:
        rows: How many.
        tokens: New tokens of each.
        keys: Tokens that each new one attends to.
        filled: Part of the planned cache that is read or written, 0 to 1.
    """

    rows: int
    tokens: int
    keys: float
    filled: float = 1.0


@dataclass(frozen=True)
class Stage:
    """What one device does while the others of a row's way wait.

    Args:
        work: All of it.
        card: The device.
        brought: Bytes of weights that lie elsewhere and come here first.
        rate: Bytes/s at which they come.
        over: `COPIES` or `DISK`, by which way.
        ahead: Whether they come while what came before is computed.
    """

    work: Work
    card: Card
    brought: int = 0
    rate: float = float("inf")
    over: str = COPIES
    ahead: bool = False


class Waiting:
    """A time that cannot be shorter, made of what is waited for.

    Attributes:
        parts: Seconds by what they are waited for; they add up.
    """

    parts: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """At the least."""
        return sum(self.parts.values())

    @property
    def limit(self) -> str:
        """What most of the time is waited for."""
        return max(self.parts, key=lambda name: self.parts[name])


@dataclass(frozen=True)
class Step(Waiting):
    """A predicted step; a limit, for a step that is compiled into one graph, where the host does not hold the devices
    up. `seconds` and `limit`: those of [`Waiting`].

    Args:
        kind: `"decode"`, one token of every row; `"prefill"`, prompts as long as the context; `"forward"`, texts of
            this length through a model that does not generate.
        rows: Rows, all at once.
        tokens: Tokens that are computed of each.
        parts: Seconds by what they are waited for.
        read: Bytes that all devices read together, caches included.
        launching: Seconds that the host takes to launch the kernels one by one; 0 on a CPU.
        lacking: Bytes too little on a device for the cache of so many rows.
    """

    kind: str
    rows: int
    tokens: int
    parts: Mapping[str, float]
    read: int
    launching: float = 0.0
    lacking: int = 0

    @property
    def tokens_per_second(self) -> float:
        """At the most, of all rows together."""
        return self.rows * self.tokens / self.seconds

    @property
    def uncompiled_tokens_per_second(self) -> float:
        """At the most, where every kernel is launched from Python."""
        return self.rows * self.tokens / max(self.seconds, self.launching)


def bytes_read(work: Work, shape: Shape) -> float:
    """Bytes between memory and processor: weights once, embeddings and the cache for every row."""
    return work.weights + shape.rows * (shape.tokens * work.token_bytes + shape.filled * work.cache)


def flops(work: Work, shape: Shape) -> float:
    """FLOP of the matrix products; attention sees all pairs, as it does with any mask that is not causal."""
    return shape.rows * (
        shape.tokens * work.token_flops + work.row_flops + shape.tokens * shape.keys * work.pair_flops
    )


def on_device(work: Work, shape: Shape, card: Card, dtype: torch.dtype, share: float = 1.0) -> tuple[str, float]:
    """What a device waits for, and the seconds.

    Args:
        work: What it does.
        shape: Rows and tokens.
        card: Its limits.
        dtype: Of the activations.
        share: Part of the card's FLOP/s that products reach; 1 for a limit.
    """
    memory = bytes_read(work, shape) / card.bandwidth
    arithmetic = flops(work, shape) / (share * card.rate(dtype))
    names = (CPU_MEMORY, CPU_ARITHMETIC) if card.capability is None else (MEMORY, ARITHMETIC)
    return max((memory, names[0]), (arithmetic, names[1]))[::-1]


def between_ranks(work: Work, shape: Shape, ranks: int, card: Card) -> float:
    """Seconds of a rank's exchanges: the latency of each, and a ring's (ranks - 1) / ranks of the bytes."""
    traffic = shape.rows * (shape.tokens * work.token_traffic + work.row_traffic)
    return work.exchanges * card.link.latency + traffic * (ranks - 1) / ranks / card.link.all_reduce


def in_parallel(
    work: Work, cards: Sequence[Card], shape: Shape, dtype: torch.dtype, share: float = 1.0
) -> dict[str, float]:
    """Seconds by limit in tensor parallelism: the ranks, each with `work`, at once, and then their exchanges."""
    name, slowest = max((on_device(work, shape, card, dtype, share) for card in cards), key=lambda found: found[1])
    return {name: slowest, LINK: max(between_ranks(work, shape, len(cards), card) for card in cards)}


def one_after_the_other(
    stages: Sequence[Stage], shape: Shape, dtype: torch.dtype, share: float = 1.0
) -> dict[str, float]:
    """Seconds by limit where a row passes through the stages in turn."""
    parts: dict[str, float] = {}
    for stage in stages:
        waits = [on_device(stage.work, shape, stage.card, dtype, share), (stage.over, stage.brought / stage.rate)]
        if stage.ahead:
            waits = [max(waits, key=lambda wait: wait[1])]
        for name, seconds in waits:
            if seconds:
                parts[name] = parts.get(name, 0.0) + seconds
    return parts


def handed_over(shape: Shape, width_bytes: int, cards: Sequence[Card]) -> float:
    """Seconds in which hidden states go from device to device; to the first they come from the host."""
    size = shape.rows * shape.tokens * width_bytes
    return sum(card.link.latency + size / card.link.host for card in cards[1:])


__all__ = [
    "ARITHMETIC",
    "COPIES",
    "CPU_ARITHMETIC",
    "CPU_MEMORY",
    "DISK",
    "DISK_BANDWIDTH",
    "LAUNCH",
    "LINK",
    "MEMORY",
    "Shape",
    "Stage",
    "Step",
    "Waiting",
    "between_ranks",
    "bytes_read",
    "flops",
    "handed_over",
    "in_parallel",
    "on_device",
    "one_after_the_other",
]
