"""A plan as text: an aligned table, what is offloaded or missing, and the arguments for `from_pretrained`."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .devices import Plan

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
COLUMNS = ("memory", "reserve", "weights", "cache", "activations", "staging", "free")


def describe(plan: "Plan") -> str:
    """Returns the text, without a newline at the end."""
    largest = max(max(device.used, device.capacity or 0) for device in plan.devices)
    unit = next((name for name, size in UNITS.items() if largest >= size), "KiB")
    parts = [f"{_headline(plan)}; sizes in {unit}", "", *_table(plan, unit), "", *_verdict(plan, unit)]
    return "\n".join(parts)


def _headline(plan: "Plan") -> str:
    config, quantization = plan.job.config, getattr(plan.job.config, "quantization_config", None)
    dtype = str(plan.job.dtype).removeprefix("torch.")
    weights = dtype if quantization is None else f"int{quantization.bits} weights, {dtype} else"
    way = f"tensor parallel, {plan.job.ranks} ranks" if plan.tensor_parallel else "layer by layer"
    return f"{config.model_type}: {weights}; context {plan.job.context}, batch {plan.job.batch}; {way}"


def _table(plan: "Plan", unit: str) -> list[str]:
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


def _verdict(plan: "Plan", unit: str) -> list[str]:
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
    folder = " with offload_folder, a folder to be filled" if any(device.name == "disk" for device in away) else ""
    return [*lines, f"pass to from_pretrained{folder}:", *_literal(plan.device_map or {})]


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


__all__ = ["describe"]
