"""From a plan and the cards it is for: how fast it can be at the most, and what was published of the same machine."""

from collections.abc import Mapping

from hf_glm_ernie.inference.offload import COMPUTE

from .cards import Card
from .offloading import most_rows
from .released import Released, released_for
from .report import ACCELERATE, Device, DevicePlan, Plan, main_device
from .speed import (
    DISK,
    DISK_BANDWIDTH,
    LAUNCH,
    LINK,
    Shape,
    Stage,
    Step,
    bytes_read,
    handed_over,
    in_parallel,
    one_after_the_other,
)
from .speed_table import Compared, Speed
from .work import Work, at_full_depth, measure

ROWS = (1, 8, 32)


def predict(plan: Plan, cards: Mapping[Device, Card], share: float = 1.0) -> Speed:
    """Predicts the steps of a plan that fits.

    Args:
        plan: Where everything lies.
        cards: The card of every accelerator, and of `"cpu"` where the CPU computes.
        share: Part of the cards' FLOP/s that products reach; 1 for a limit.

    Returns:
        Decoding with 1, 8 and 32 rows (and the plan's) at the full context, and the prefill of the plan's rows; for a
        model that keeps no cache its forwards.
    """
    return _Prediction(plan, cards, share).speed()


class _Prediction:
    def __init__(self, plan: Plan, cards: Mapping[Device, Card], share: float) -> None:
        self.plan = plan
        self.job = plan.job
        self.cards = cards
        self.share = share
        # Where nothing lies on an accelerator, the host runs the whole model on the CPU.
        self.main = main_device([device.name for device in plan.devices if device.modules])
        self.works = self._by_device(at_full_depth(measure(plan.job), plan.job.config))
        self.total = sum(self.works.values(), Work())

    def speed(self) -> Speed:
        """All steps."""
        rows = sorted({*ROWS, self.job.batch})
        context = self.job.context
        used = [device.name for device in self.plan.devices if device.modules and self._computes(device.name)]
        if self.total.cache:
            steps = [self.step("decode", Shape(number, 1, context)) for number in rows]
            steps.append(self.step("prefill", Shape(self.job.batch, context, context)))
        else:
            steps = [self.step("forward", Shape(number, context, context)) for number in rows]
        cards = tuple(self.cards[name] for name in used)
        bits = getattr(getattr(self.job.config, "quantization_config", None), "bits", None)
        released = released_for(self.job.config, [card.name for card in cards], bits)
        return Speed(tuple(steps), cards, context, tuple(self._compare(one) for one in released))

    def step(self, kind: str, shape: Shape) -> Step:
        """One step's limit."""
        accelerated = self.main != "cpu"
        return Step(
            kind,
            shape.rows,
            shape.tokens,
            self._parts(shape),
            int(bytes_read(self.total, shape)) * (self.job.ranks if self.plan.tensor_parallel else 1),
            (self.total.launches + self.total.exchanges) * LAUNCH if accelerated else 0.0,
            self._lacking(shape.rows),
        )

    def _by_device(self, works: dict[str, Work]) -> dict[Device, Work]:
        """The sum of what lies on each device; in tensor parallelism of one rank."""
        places = {module: device.name for device in self.plan.devices for module in device.modules}
        sums: dict[Device, Work] = {}
        for name, work in works.items():
            ends = [len(name), *(i for i, letter in enumerate(name) if letter == "."), 0]
            within = next((name[:end] for end in sorted(ends, reverse=True) if name[:end] in places), None)
            place = self.main if within is None or self.plan.tensor_parallel else places[within]
            sums[place] = sums.get(place, Work()) + work
        return sums

    def _parts(self, shape: Shape) -> dict[str, float]:
        dtype = self.job.dtype
        if self.plan.tensor_parallel:
            cards = [self.cards[device.name] for device in self.plan.devices]
            return in_parallel(self.total, cards, shape, dtype, self.share)
        stages = [self._stage(device, shape) for device in self.plan.devices if device.name in self.works]
        parts = one_after_the_other(stages, shape, dtype, self.share)
        passed = [self.cards[name] for name in self.works if isinstance(name, int)]
        if len(passed) > 1:
            parts[LINK] = handed_over(shape, self.job.config.hidden_size * dtype.itemsize, passed)
        return parts

    def _computes(self, name: Device) -> bool:
        return isinstance(name, int) or name == self.main or (name == "cpu" and self.plan.offload == COMPUTE)

    def _stage(self, device: DevicePlan, shape: Shape) -> Stage:
        """How what lies on a device is computed."""
        work, card = self.works[device.name], self.cards[self.main]
        if device.name == self.main or isinstance(device.name, int):
            return Stage(work, self.cards[device.name])
        if device.name == "disk":
            return Stage(work, card, device.weights, min(DISK_BANDWIDTH, card.link.host), DISK)
        if self._computes(device.name) and shape.rows * shape.tokens <= most_rows(self.job):
            return Stage(work, self.cards[device.name])
        return Stage(work, card, device.weights, card.link.host, ahead=self.plan.offload != ACCELERATE)

    def _lacking(self, rows: int) -> int:
        """Bytes too little for more rows than planned: for their caches, or for their activations where none is."""
        lacking = 0
        for device in self.plan.devices:
            if device.free is not None:
                more = (rows - self.job.batch) * (device.cache or device.activations) // self.job.batch
                lacking = max(lacking, more - device.free)
        return lacking

    def _compare(self, released: Released) -> Compared:
        """How much of the limit a published figure is: with half of the text in the cache, which is the mean."""
        if not self.plan.tensor_parallel:
            return Compared(released)
        half = released.tokens / 2
        decode = self.step("decode", Shape(1, 1, half, half / self.job.context))
        prefill = self.step("prefill", Shape(1, released.tokens, released.tokens, released.tokens / self.job.context))
        return Compared(
            released,
            released.decode and decode.seconds * released.tokens / released.decode,
            released.prefill and prefill.seconds / released.prefill,
        )


__all__ = ["predict"]
