"""What a card holds between steps: weights, gradients and the optimizer's state, whole or in shards.

Shards as torch's FSDP2 cuts them: each parameter along its first dimension, every rank as many rows as the first one,
which has the most. ZeRO's stages 1 and 2 cut the parameters laid end to end instead.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from .training_job import ADAFACTOR, ADAMW, ADAMW_8BIT, WHOLE, ZERO_1, ZERO_2, ZERO_3, TrainingJob
from .work import LAYER

FP32_BYTES = 4
STEP_BYTES = 4  # torch's optimizers count the steps of each parameter in a tensor of one fp32 number
# bitsandbytes 0.50: blocks of 256 numbers share a scale; small parameters and embeddings stay in fp32.
BLOCK, SMALLEST_IN_8_BITS = 256, 4096


@dataclass(frozen=True)
class Weight:
    """A parameter of one card's part of the model.

    Args:
        shape: Of the parameter.
        computed: Bytes of a number in forward and backward.
        trained: Whether it has a gradient.
        embedding: Whether it is a table.
        unit: The layer that is gathered with it, "" for all outside of layers.
    """

    shape: tuple[int, ...]
    computed: int
    trained: bool
    embedding: bool
    unit: str

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return math.prod(self.shape)

    def shard(self, ranks: int) -> int:
        """Numbers of the first of so many ranks, padding of the others left aside."""
        return -(-self.shape[0] // ranks) * math.prod(self.shape[1:]) if self.shape else 1


@dataclass(frozen=True)
class State:
    """Bytes on a card.

    Args:
        weights: Parameters and buffers between steps.
        gradients: As the optimizer reads them, whole before its step.
        optimizer: Its state, with fp32 weights where it holds some.
        communication: Room for exchanges in the backward: gathered layers, buckets of gradients.
        updated: What the optimizer's step reads and writes.
    """

    weights: int
    gradients: int
    optimizer: int
    communication: int
    updated: int


def weights_of(model: nn.Module, base: PreTrainedModel) -> tuple[list[Weight], int]:
    """The parameters of a model, tied ones once, and the bytes of its buffers.

    Args:
        model: The model that is trained.
        base: The host's model in it.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    whole = set(base._no_split_modules or ())
    layers = {name for name, module in model.named_modules() if type(module).__name__ in whole and LAYER.search(name)}
    weights = []
    for name, parameter in model.named_parameters():
        ends = [i for i, letter in enumerate(name) if letter == "."]
        unit = next((name[:end] for end in ends if name[:end] in layers), "")
        weights.append(
            Weight(tuple(parameter.shape), parameter.itemsize, parameter.requires_grad, id(parameter) in tables, unit)
        )
    return weights, sum(buffer.nbytes for buffer in model.buffers())


def state_of(job: TrainingJob, weights: Sequence[Weight], buffers: int, ranks: int | None = None) -> State:
    """Bytes of a card.

    Args:
        job: The step.
        weights: As [`weights_of`] gives them.
        buffers: Likewise.
        ranks: Cards of data parallelism, in place of the job's.
    """
    ranks = job.data_parallel if ranks is None else ranks
    formats = job.formats
    trained = [weight for weight in weights if weight.trained]
    frozen = [weight for weight in weights if not weight.trained]

    def in_shards(stages: Iterable[str], some: Sequence[Weight]) -> int:
        """Numbers of a card, where these stages cut what is asked about."""
        if job.sharding not in stages:
            return sum(weight.numbers for weight in some)
        if job.sharding == ZERO_3:
            return sum(weight.shard(ranks) for weight in some)
        return -(-sum(weight.numbers for weight in some) // ranks)

    learning = in_shards([ZERO_3], trained) * formats.stored.itemsize
    held = learning + in_shards([ZERO_3], frozen) * formats.frozen.itemsize
    numbers = in_shards([ZERO_1, ZERO_2, ZERO_3], trained)
    gradients = in_shards([ZERO_2, ZERO_3], trained) * formats.gradients.itemsize
    optimizer = OPTIMIZER_BYTES[job.optimizer](trained, numbers, formats.states.itemsize)
    if job.sharding == ZERO_3 and job.optimizer == ADAFACTOR:
        cut = [Weight((-(-w.shape[0] // ranks), *w.shape[1:]), w.computed, True, w.embedding, w.unit) for w in trained]
        optimizer = _adafactor(cut, numbers, 0)
    if formats.master:
        optimizer += numbers * FP32_BYTES
    updated = gradients + 2 * (learning + optimizer)
    return State(held + buffers, gradients, optimizer, _communication(job, weights, ranks), updated)


def _adamw(trained: Sequence[Weight], numbers: int, width: int) -> int:
    return 2 * width * numbers + STEP_BYTES * len(trained)


def _adamw_8bit(trained: Sequence[Weight], numbers: int, width: int) -> int:
    """Two moments of a byte, two scales a block."""
    small = sum(w.numbers for w in trained if w.embedding or w.numbers < SMALLEST_IN_8_BITS)
    scales = sum(-(-w.numbers // BLOCK) for w in trained if not w.embedding and w.numbers >= SMALLEST_IN_8_BITS)
    return 2 * (numbers - small) + 2 * FP32_BYTES * (scales + small)


def _adafactor(trained: Sequence[Weight], numbers: int, width: int) -> int:
    """Of a matrix the means of rows and of columns, in fp32 (transformers' `Adafactor`, no first moment)."""
    factored = sum(w.numbers // w.shape[-1] + w.numbers // w.shape[-2] for w in trained if len(w.shape) > 1)
    vectors = sum(w.numbers for w in trained if len(w.shape) < 2)
    return FP32_BYTES * (factored + vectors + len(trained))  # and of each the root of its mean square


def _sgd(trained: Sequence[Weight], numbers: int, width: int) -> int:
    return 0


OPTIMIZER_BYTES: dict[str, Callable[[Sequence[Weight], int, int], int]] = {
    ADAMW: _adamw,
    ADAMW_8BIT: _adamw_8bit,
    ADAFACTOR: _adafactor,
    "sgd": _sgd,
}


def _communication(job: TrainingJob, weights: Sequence[Weight], ranks: int) -> int:
    """Beside whole or sharded tensors, while layers are gathered and gradients reduced."""
    if ranks == 1:
        return 0
    if job.sharding == WHOLE:  # DistributedDataParallel's buckets: all gradients once more
        return sum(weight.numbers for weight in weights if weight.trained) * job.formats.gradients.itemsize
    if job.sharding in (ZERO_1, ZERO_2):
        # `overlap_comm`: two buckets of hidden size squared, as the host fills in DeepSpeed's "auto"
        trained = sum(weight.numbers for weight in weights if weight.trained)
        return 2 * min(job.config.hidden_size**2, trained) * job.formats.gradients.itemsize
    units: dict[str, list[Weight]] = {}
    for weight in weights:
        units.setdefault(weight.unit, []).append(weight)
    root = units.pop("", [])
    gathered = [_gathered(unit, ranks) for unit in units.values()] or [0]
    reduced = [_gathered([weight for weight in unit if weight.trained], ranks) for unit in units.values()] or [0]
    of_root = _gathered(root, ranks) + _gathered([weight for weight in root if weight.trained], ranks)
    # The layer that computes and the one that is fetched ahead; gradients of one, and those of the last on their way.
    return of_root + 2 * max(gathered) + 2 * max(reduced)


def _gathered(weights: Sequence[Weight], ranks: int) -> int:
    """Bytes of whole weights in the dtype of their products, with the padding of all ranks."""
    return sum(ranks * weight.shard(ranks) * weight.computed for weight in weights)


__all__ = ["OPTIMIZER_BYTES", "State", "Weight", "state_of", "weights_of"]
