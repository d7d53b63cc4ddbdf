"""Devices and sizes as people write them: `4x24GiB`, `8xRTX3090`, `2xA100-80GB,1x24GiB`, `64GiB`, `90GB/s`."""

import re
from collections.abc import Sequence

from accelerate.utils import convert_file_size_to_int

from .cards import GIGA, Card, find_card, is_card

SIZE = r"(\d+(?:\.\d+)?)\s*(GB|GiB|MB|MiB|KB|KiB|B)"
LEAST_BYTES = 2**20  # below this a bare number has lost its unit


def read_devices(devices: str | Sequence[int | str] | None) -> list[tuple[int, Card | None]]:
    """Bytes of every accelerator, and its card where one is named, from `"8x40GB,2xRTX3090"`, a sequence of sizes and
    names, or `None`.

    Raises:
        ValueError: what cannot be read; the message quotes it.
    """
    if devices is None:
        return []
    if not isinstance(devices, str):
        return [_device(size, f"devices[{i}]") for i, size in enumerate(devices)]
    found: list[tuple[int, Card | None]] = []
    for part in devices.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)\s*[xX*]\s*)?(\S.*?)\s*", part)
        if match is None or match.group(1) == "0":
            raise _unreadable(devices, part)
        try:
            found += [_device(match.group(2), "devices")] * int(match.group(1) or 1)
        except ValueError as error:
            raise _unreadable(devices, part, str(error)) from None
    return found


def parse_devices(devices: str | Sequence[int | str] | None) -> list[int]:
    """Bytes of every accelerator, as [`read_devices`]."""
    return [memory for memory, _ in read_devices(devices)]


def _device(device: int | str, name: str) -> tuple[int, Card | None]:
    is_size = not isinstance(device, str) or re.fullmatch(rf"\s*(?:{SIZE}|[\d.]*)\s*", device)
    if is_size and not is_card(str(device)):  # a 3090 is one
        return parse_size(device, name), None
    card = find_card(str(device))
    return card.memory, card


def _unreadable(devices: str, part: str, more: str = "") -> ValueError:
    return ValueError(
        f"devices={devices!r}: {part.strip()!r} cannot be read. Write number x memory or number x card, parts "
        "separated by commas: 4x24GiB, 4xRTX3090, or 8x40GB,2x24GiB (GB = 10^9 bytes, GiB = 2^30)."
        + (f" {more}" if more else "")
    )


def parse_size(size: int | str, name: str) -> int:
    """Bytes from `"24GiB"`, `"40GB"`, or an `int` of bytes.

    Args:
        size: What was given.
        name: What a message calls it.

    Raises:
        ValueError: neither; a number without a unit, as text or as an `int` too small to be meant in bytes; or not
            above 0 (a reserve may be 0).
    """
    text = str(size).strip()
    least = int(name != "reserve")
    match = re.fullmatch(SIZE, text) if isinstance(size, str) else None
    if text == "0" and not least:
        return 0
    if match is not None:
        size = int(float(match[1])) if match[2] == "B" else convert_file_size_to_int(text.replace(" ", ""))
        if size >= least:
            return size
    elif not isinstance(size, bool) and isinstance(size, int) and size >= LEAST_BYTES:
        return size
    what = "has no unit" if re.fullmatch(r"\d+(\.\d+)?", text) else "is not an amount of memory"
    raise ValueError(
        f"{name}={text!r} {what}. Write 24GiB (2^30 bytes each), 40GB (10^9 each), MiB or MB, or B for single bytes."
    )


def parse_bandwidth(bandwidth: float | str | None, name: str) -> float | None:
    """Bytes/s from `"90GB/s"`, `"90GB"`, or a number of bytes/s; `None` stays.

    Raises:
        ValueError: anything else.
    """
    if bandwidth is None:
        return None
    if isinstance(bandwidth, int | float) and not isinstance(bandwidth, bool) and bandwidth >= LEAST_BYTES:
        return float(bandwidth)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*GB(?:/s)?\s*", str(bandwidth))
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"{name}={bandwidth!r} is not an amount of bytes a second. Write 90GB/s (10^9 bytes each).")
    return float(match[1]) * GIGA


__all__ = ["parse_bandwidth", "parse_devices", "parse_size", "read_devices"]
