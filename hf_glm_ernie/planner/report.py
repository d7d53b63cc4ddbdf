"""A plan, and how it reads: an aligned table, what is offloaded or missing, the arguments for `from_pretrained`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hf_glm_ernie.inference.offload import COMPUTE

from .offloading import most_rows
from .sizes import Job
from .speed_table import UNNAMED, Speed, describe_speed

Device = int | str
DeviceMap = dict[str, Device]

ACCELERATE = "accelerate"  # offload as Accelerate does it by itself

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
COLUMNS = ("memory", "reserve", "weights", "cache", "activations", "staging", "free")


@dataclass(frozen=True)
class DevicePlan:
    """What one device holds, in bytes.

    Args:
        name: Number of the accelerator, `"cpu"` or `"disk"`: a value of the device map.
        capacity: Its memory; `None` for the disk.
        reserve: Set aside of it, see `devices.RESERVE`.
        weights: Parameters and buffers.
        cache: Keys and values at full context; in ERNIE 3.0 with a memory before it, and that memory.
        activations: The most that is alive at one time beside these, with a prompt as long as the context.
        staging: Room for what is brought here from memory or disk while it is used: the largest weight, or with
            `set_offload` two layers (and the cache of one, where it lies in memory). On the CPU what page-locked
            memory takes above the weights' size.
        modules: What lies here, keys of the device map.
    """

    name: Device
    capacity: int | None
    reserve: int = 0
    weights: int = 0
    cache: int = 0
    activations: int = 0
    staging: int = 0
    modules: tuple[str, ...] = ()

    @property
    def used(self) -> int:
        """All of it, the reserve too."""
        return self.reserve + self.weights + self.cache + self.activations + self.staging

    @property
    def free(self) -> int | None:
        """What is left, negative where it does not fit; `None` for the disk."""
        return None if self.capacity is None else self.capacity - self.used


@dataclass(frozen=True)
class Plan:
    """Where a model goes; made by [`plan`].

    Args:
        job: What is run: config, dtype, context, batch, ranks.
        devices: The accelerators in order, then memory and disk where they are used.
        device_map: For `from_pretrained`; `None` where the model does not fit, and for tensor parallelism (there:
            `distributed_config=DistributedConfig(tp_size=..., tp_plan="auto")` under `torchrun`).
        missing: Modules without a place, with their bytes; empty where the model fits.
        offload: How layers in main memory are run; `"compute"` and `"copy"` want [`set_offload`] after loading.
        speed: How fast it can be at the most; `None` where the model does not fit, or devices are amounts of memory.
    """

    job: Job
    devices: tuple[DevicePlan, ...]
    device_map: DeviceMap | None
    missing: Mapping[str, int]
    offload: str = ACCELERATE
    speed: Speed | None = None

    @property
    def tensor_parallel(self) -> bool:
        """Whether every weight is cut among the devices."""
        return self.job.ranks > 1

    @property
    def fits(self) -> bool:
        """Whether everything has a place, offloaded modules included."""
        return not self.missing and not self.lacking

    @property
    def lacking(self) -> int:
        """Bytes too little: of what has no place, and of devices that would be overfull."""
        over = sum(-device.free for device in self.devices if device.free is not None and device.free < 0)
        return sum(self.missing.values()) + over

    @property
    def offloaded(self) -> DeviceMap:
        """The modules that lie in memory or on disk; how they are run is what `Plan.offload` says."""
        main = main_device([device.name for device in self.devices])
        return {
            module: device.name
            for device in self.devices
            if device.name != main and isinstance(device.name, str)
            for module in device.modules
        }

    def describe(self) -> str:
        """The plan as text: a table of the devices, what is offloaded, and what to pass to `from_pretrained`."""
        return describe(self)


def main_device(names: Sequence[Device]) -> Device:
    """The device that computes what is offloaded: the first accelerator, or the CPU where there is none."""
    return next((name for name in names if isinstance(name, int)), "cpu")


def describe(plan: Plan) -> str:
    """Returns the text, without a newline at the end."""
    largest = max(max(device.used, device.capacity or 0) for device in plan.devices)
    unit = next((name for name, size in UNITS.items() if largest >= size), "KiB")
    parts = [
        f"{_headline(plan)}; sizes in {unit}",
        "",
        *_table(plan, unit),
        "",
        *_speed(plan, unit),
        *_verdict(plan, unit),
    ]
    return "\n".join(parts)


def _speed(plan: Plan, unit: str) -> list[str]:
    if not plan.fits:
        return []
    return [*(describe_speed(plan.speed, unit, UNITS[unit]) if plan.speed is not None else [UNNAMED]), ""]


def _headline(plan: Plan) -> str:
    config, quantization = plan.job.config, getattr(plan.job.config, "quantization_config", None)
    dtype = str(plan.job.dtype).removeprefix("torch.")
    weights = dtype if quantization is None else f"int{quantization.bits} weights, {dtype} else"
    way = f"tensor parallel, {plan.job.ranks} ranks" if plan.tensor_parallel else "layer by layer"
    return f"{config.model_type}: {weights}; context {plan.job.context}, batch {plan.job.batch}; {way}"


def _table(plan: Plan, unit: str) -> list[str]:
    rows = [["device", *COLUMNS, "holds"]]
    for device in plan.devices:
        amounts = (
            device.capacity,
            device.reserve,
            device.weights,
            device.cache,
            device.activations,
            device.staging,
            device.free,
        )
        part = f"1/{plan.job.ranks} of the weights" if plan.tensor_parallel else _holds(device.modules)
        rows.append([str(device.name), *(_amount(amount, unit) for amount in amounts), part])
    sums = [sum(getattr(device, name) for device in plan.devices) for name in COLUMNS[1:-1]]
    rows.append(["sum", "", *(_amount(amount, unit) for amount in sums), "", ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS) + 1)]
    lines = []
    for name, *cells, part in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned, part]).rstrip())
    return lines


def _verdict(plan: Plan, unit: str) -> list[str]:
    if not plan.fits:
        lines = [f"fits: no ({_amount(plan.lacking, unit)} {unit} too little)"]
        if plan.missing:
            lines.append(f"without a place: {_holds(plan.missing)}")
        return [*lines, "ways out: fewer bits, more devices, offload (cpu, disk), a shorter context, a smaller batch"]
    if plan.tensor_parallel:
        return [
            "fits: yes",
            "offloaded: nothing",
            f"start with torchrun --nproc-per-node {plan.job.ranks}, and pass to from_pretrained:",
            f'distributed_config = DistributedConfig(tp_size={plan.job.ranks}, tp_plan="auto")',
        ]
    lines = ["fits: yes"]
    away = [device for device in plan.devices if set(device.modules) & plan.offloaded.keys()]
    for device in away:
        lines.append(f"offloaded to {device.name}: {_amount(device.weights, unit)} {unit}, {_holds(device.modules)}")
    lines += [] if away else ["offloaded: nothing"]
    # Where nothing lies on an accelerator, the host runs the whole model on the CPU.
    in_memory = any(device.name == "cpu" for device in away) and plan.devices[0].modules != ()
    if in_memory and plan.offload == ACCELERATE:
        lines.append("these layers run faster with offload compute or copy")
    if in_memory and plan.offload == COMPUTE and plan.job.batch > most_rows(plan.job):
        lines.append(f"batch {plan.job.batch}: offload copy is faster from {most_rows(plan.job) + 1} rows on")
    folder = " with offload_folder, a folder to be filled" if any(device.name == "disk" for device in away) else ""
    lines += [f"pass to from_pretrained{folder}:", *_literal(plan.device_map or {})]
    if in_memory and plan.offload != ACCELERATE:
        lines += ["and then call:", f'hf_glm_ernie.set_offload(model, "{plan.offload}")']
    return lines


def _amount(number: int | None, unit: str) -> str:
    return "-" if number is None else f"{number / UNITS[unit]:.2f}"


def _literal(device_map: dict[str, int | str]) -> list[str]:
    """The map in Python's notation, as many entries a line as fit."""
    lines, line = ["device_map = {"], "   "
    for module, device in device_map.items():
        entry = f' "{module}": ' + (f'"{device}",' if isinstance(device, str) else f"{device},")
        if len(line) + len(entry) > 110:
            lines.append(line)
            line = "   "
        line += entry
    return [*lines, line, "}"]


def _holds(modules: Iterable[str]) -> str:
    """Names of modules, consecutive layers as a range."""
    shown: list[str] = []
    first = last = -1
    stem = ""
    for module in modules:
        match = re.fullmatch(r"(.+\.)(\d+)", module)
        if match and match.group(1) == stem and int(match.group(2)) == last + 1:
            last += 1
            shown[-1] = f"{stem}{first}-{last}"
            continue
        stem, first, last = (match.group(1), int(match.group(2)), int(match.group(2))) if match else ("", -1, -1)
        shown.append(module or "the whole model")
    return ", ".join(shown) or "nothing"


__all__ = ["ACCELERATE", "Device", "DeviceMap", "DevicePlan", "Plan", "describe", "main_device"]
