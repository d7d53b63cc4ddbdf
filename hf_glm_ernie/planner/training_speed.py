"""How long a step of training takes at the least: arithmetic, exchanges and the optimizer's reading and writing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .cards import Card
from .sizes import Job
from .speed import ARITHMETIC, LINK, MEMORY, Waiting
from .training_job import SINGLE, WHOLE, ZERO_1, ZERO_3, TrainingJob
from .training_state import State, Weight
from .work import Work, at_full_depth, measure

MACHINE = 8  # cards that reach one another over their link
NETWORK = 25e9  # bytes/s a card between machines: one adapter of 200 Gb/s for each, as in a DGX A100


@dataclass(frozen=True)
class TrainingSpeed(Waiting):
    """A step of the optimizer; a limit. `seconds` and `limit`: those of [`Waiting`].

    Args:
        parts: Seconds by what they are waited for.
        tokens: Of all cards.
        flops: Of all cards.
    """

    parts: Mapping[str, float]
    tokens: int
    flops: int

    @property
    def tokens_per_second(self) -> float:
        """At the most, of all cards."""
        return self.tokens / self.seconds

    def steps(self, seconds: float) -> int:
        """Whole steps within a time."""
        return int(seconds / self.seconds)


def training_speed(
    job: TrainingJob,
    card: Card,
    flops: int,
    state: State,
    weights: Sequence[Weight],
    forwards: int,
    network: float,
) -> TrainingSpeed:
    """Predicts a step.

    Args:
        job: The step.
        card: Every card's.
        flops: Of a card, forward and backward of its rows.
        state: What a card holds.
        weights: Of a card, before data parallelism shares them out.
        forwards: Passes that exchange between tensor parallel cards: forward and backward, and a third where layers
            are computed again.
        network: Bytes/s of a card between machines.
    """
    dtype = torch.float32 if job.precision == SINGLE else torch.bfloat16
    arithmetic = job.accumulation * flops / card.rate(dtype)
    cut = _cut_weights(job, dtype, card, forwards, network)
    shared = _traffic(job, weights) * (job.data_parallel - 1) / job.data_parallel
    shared /= _rate(card, job.cards, network)
    parts = {
        ARITHMETIC: arithmetic,
        # gradients and gathered layers travel while others are computed
        LINK: cut + max(0.0, shared - arithmetic - cut),
        MEMORY: state.updated / card.bandwidth,
    }
    rows = job.batch * job.data_parallel * job.accumulation
    return TrainingSpeed(parts, rows * job.context, flops * job.accumulation * job.cards)


def _rate(card: Card, cards: int, network: float) -> float:
    return card.link.all_reduce if cards <= MACHINE else min(card.link.all_reduce, network)


def _cut_weights(job: TrainingJob, dtype: torch.dtype, card: Card, forwards: int, network: float) -> float:
    """Seconds of the exchanges between cards that hold parts of one weight; the backward's are the forward's."""
    ranks = job.tensor_parallel
    if ranks == 1:
        return 0.0
    works = measure(Job(job.config, dtype, job.context, 1, ranks))
    work = sum(at_full_depth(works, job.config).values(), Work())
    traffic = job.batch * job.context * (work.token_traffic + work.row_traffic) * (ranks - 1) / ranks
    once = work.exchanges * card.link.latency + traffic / _rate(card, ranks, network)
    return job.accumulation * forwards * once


def _traffic(job: TrainingJob, weights: Sequence[Weight]) -> int:
    """Bytes that a card sends in a step's exchanges of data parallelism, (cards - 1) / cards left out."""
    trained = sum(weight.numbers for weight in weights if weight.trained)
    gradients = trained * job.formats.gradients.itemsize
    if job.sharding == WHOLE:
        return 2 * gradients
    if job.sharding == ZERO_3:  # gathered for the forward and for the backward, gradients in their dtype
        computed = sum(weight.numbers * weight.computed for weight in weights)
        reduced = sum(weight.numbers * weight.computed for weight in weights if weight.trained)
        return job.accumulation * (2 * computed + reduced)
    again = trained * job.formats.stored.itemsize  # the new weights
    return again + gradients * (1 if job.sharding == ZERO_1 else job.accumulation)


__all__ = ["MACHINE", "NETWORK", "TrainingSpeed", "training_speed"]
