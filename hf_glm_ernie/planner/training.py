"""What training takes on every card: weights, gradients, optimizer, activations; and how fast it can be.

Every card does the same: its part of the model (tensor parallelism), on rows of its own (data parallelism), with what
data parallelism shares out (ZeRO, FSDP2). So a plan has one row for all cards, and two of these, without and with
gradient checkpointing.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig

from .activations import StepTrace, trace_step
from .cards import Card
from .device_lists import parse_bandwidth, parse_size, read_devices
from .devices import RESERVE, allowed_context, positive, read_config
from .training_job import (
    ADAFACTOR,
    ADAMW,
    ADAMW_8BIT,
    MIXED,
    OPTIMIZERS,
    PRECISIONS,
    SHARDINGS,
    WHOLE,
    ZERO_1,
    ZERO_2,
    TrainingJob,
    model_to_train,
    trained_config,
)
from .training_report import TrainingPlan, TrainingRow
from .training_speed import NETWORK, TrainingSpeed, training_speed
from .training_state import State, state_of, weights_of

MOST_CARDS = 2**14  # where the search for enough cards ends: behind it the padding of shards grows
BRANCHES = ("nlu", "nlg")


def plan_training(
    config: PreTrainedConfig | str | Path,
    devices: str | Sequence[int | str],
    *,
    precision: str = MIXED,
    optimizer: str = ADAMW,
    sharding: str = WHOLE,
    tensor_parallel: int = 1,
    data_parallel: int | None = None,
    checkpointing: bool | None = None,
    context: int | None = None,
    batch: int = 1,
    accumulation: int = 1,
    lora: int | None = None,
    branch: str = "nlg",
    reserve: int | str = RESERVE,
    network: float | str = NETWORK,
) -> TrainingPlan:
    """Computes what training a model takes on every card, without allocating anything.

    Args:
        config: As in [`plan`]. A model type without a named class is trained as `Ernie3ForPreTraining`, an encoder as
            `ErnieForSequenceClassification`.
        devices: The cards, all of one kind: `"64xH100"`, `"8x80GiB"`, or a sequence.
        precision: `"bf16-mixed"`: products in bf16, the optimizer's weights in fp32; `"bf16"`: all in bf16; `"fp32"`.
        optimizer: `"adamw"`, `"adamw-8bit"` (bitsandbytes), `"sgd"` (no momentum) or `"adafactor"`.
        sharding: What data parallelism shares out: `"none"`, the optimizer's state (`"zero-1"`), gradients too
            (`"zero-2"`), weights too (`"zero-3"`, counted as FSDP2 does it).
        tensor_parallel: Cards among which each weight is cut.
        data_parallel: Groups of so many cards; `None`: all devices.
        checkpointing: Whether layers are computed again in the backward; `None`: both ways.
        context: Tokens of a row; at most, and by default, what the positions allow, but 2048 by default.
        batch: Rows of a card in one forward.
        accumulation: Forwards before the optimizer steps.
        lora: Rank of LoRA's adapters on PEFT's default modules, which are trained then, and nothing else.
        branch: Whose rows of ERNIE 3.0's pre-training are counted: `"nlg"`, documents with memories, or `"nlu"`.
        reserve: Set aside on every card, as in [`plan`].
        network: Of a card between machines of eight, as `"50GB/s"`; default 25 GB/s.

    Returns:
        The plan. What does not fit is no error.

    Raises:
        ValueError: a choice that is not offered, devices of different kinds, a mesh that is not all devices, shards
            among one card, an optimizer that takes no shards, a quantized config, and what [`plan`] refuses.

    ```python
    >>> from hf_glm_ernie.planner import plan_training

    >>> plan_training("ernie-3.0-base-zh", "1x24GiB", batch=8, context=512).fits
    True
    ```
    """
    _check_choices(precision=precision, optimizer=optimizer, sharding=sharding, branch=branch)
    config = trained_config(read_config(config))
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            "The config's weights are quantized, and integers are not trained. Plan for the unquantized model; "
            "adapters on integers take its LoRA row less the bytes saved in weights."
        )
    capacity, card, number = _one_kind(devices)
    tensor, data = _mesh(number, positive("tensor_parallel", tensor_parallel), data_parallel)
    _check_shards(sharding, optimizer, data)
    job = TrainingJob(
        config,
        allowed_context(config, context),
        positive("batch", batch),
        precision,
        optimizer,
        sharding,
        tensor,
        data,
        positive("accumulation", accumulation),
        lora if lora is None else positive("lora", lora),
        branch,
    )
    counting = _Counting(job, capacity, card, parse_size(reserve, "reserve"), parse_bandwidth(network, "network"))
    ways = (False, True) if checkpointing is None else (checkpointing,)
    return TrainingPlan(job, card, tuple(counting.row(way) for way in ways))


def _check_choices(**choices: str) -> None:
    offered = {"precision": PRECISIONS, "optimizer": OPTIMIZERS, "sharding": SHARDINGS, "branch": BRANCHES}
    for name, value in choices.items():
        if value not in offered[name]:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(offered[name])}.")


def _one_kind(devices: str | Sequence[int | str]) -> tuple[int, Card | None, int]:
    """Bytes and card of every device, and how many there are."""
    read = read_devices(devices or None)
    if not read:
        raise ValueError("There is no device to plan for: pass devices='8xH100' or the like.")
    if len(set(read)) > 1:
        raise ValueError(
            f"devices={devices!r} are of different kinds. In training every card does the same, so the smallest sets "
            "what fits: name cards of one kind."
        )
    return *read[0], len(read)


def _mesh(devices: int, tensor: int, data: int | None) -> tuple[int, int]:
    if data is None and devices % tensor == 0:
        return tensor, devices // tensor
    if data is None or tensor * positive("data_parallel", data) != devices:
        told = "" if data is None else f" data_parallel={data}"
        raise ValueError(
            f"tensor_parallel={tensor}{told} is no mesh of {devices} devices: their product is the number of devices. "
            "Change one of them, or leave data_parallel out."
        )
    return tensor, data


def _check_shards(sharding: str, optimizer: str, data: int) -> None:
    if sharding != WHOLE and data == 1:
        raise ValueError(
            f"sharding={sharding!r} shares out among the cards of data parallelism, and there is one. Take more "
            "devices, less tensor_parallel, or sharding='none'."
        )
    if optimizer == ADAMW_8BIT and sharding != WHOLE:
        raise ValueError(
            f"optimizer={optimizer!r} with sharding={sharding!r}: bitsandbytes' optimizer takes whole parameters. "
            "Take adamw, or sharding='none'."
        )
    if optimizer == ADAFACTOR and sharding in (ZERO_1, ZERO_2):
        raise ValueError(
            f"optimizer={optimizer!r} with sharding={sharding!r}: laid end to end no parameter has the rows and "
            "columns that Adafactor keeps means of. Take zero-3 or adamw."
        )


class _Counting:
    """Counts a job's rows, with and without checkpointing."""

    def __init__(
        self, job: TrainingJob, capacity: int, card: Card | None, reserve: int, network: float | None
    ) -> None:
        self.job, self.capacity, self.card, self.reserve = job, capacity, card, reserve
        self.network = network or NETWORK
        self.weights, self.buffers = weights_of(*model_to_train(job))
        self.state = self._state()

    def row(self, checkpointing: bool) -> TrainingRow:
        """What a card holds, and what follows from it."""
        job, batch = self.job, self.job.batch
        trace = trace_step(job, checkpointing)
        # Bytes are a number for the weights and a number for each row.
        a_row = -(-(trace_step(replace(job, batch=2 * batch), checkpointing).peak - trace.peak) // batch)
        without_rows = self._used(self.state) + trace.peak - batch * a_row
        return TrainingRow(
            checkpointing=checkpointing,
            capacity=self.capacity,
            reserve=self.reserve,
            state=self.state,
            activations=trace.saved,
            working=trace.peak - trace.saved,
            flops=trace.flops,
            largest_batch=max(0, (self.capacity - without_rows) // a_row),
            least_cards=self._least_cards(trace),
            speed=self._speed(trace, checkpointing),
        )

    def _state(self, ranks: int | None = None) -> State:
        return state_of(self.job, self.weights, self.buffers, ranks)

    def _used(self, state: State) -> int:
        return self.reserve + state.weights + state.gradients + state.optimizer + state.communication

    def _fits(self, data_parallel: int, trace: StepTrace) -> bool:
        return self._used(self._state(data_parallel)) + trace.peak <= self.capacity

    def _least_cards(self, trace: StepTrace) -> int | None:
        """The fewest cards with the same rows each, with the same tensor parallelism."""
        if self._fits(1, trace):
            return self.job.tensor_parallel
        if self.job.sharding == WHOLE:
            return None
        high = 2
        while not self._fits(high, trace):
            high *= 2
            if high > MOST_CARDS:
                return None
        low = high // 2  # too few, and `high` enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(middle, trace) else (middle, high)
        return high * self.job.tensor_parallel

    def _speed(self, trace: StepTrace, checkpointing: bool) -> TrainingSpeed | None:
        if self.card is None:
            return None
        passes = 3 if checkpointing else 2
        return training_speed(self.job, self.card, trace.flops, self.state, self.weights, passes, self.network)


__all__ = ["BRANCHES", "plan_training"]
