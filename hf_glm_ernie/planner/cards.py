"""Accelerators by name: memory, bandwidth, arithmetic and links, each with its source.

Bandwidth and FLOP/s are the maker's peak figures, so what is computed from them is a limit. What an all-reduce takes
is in no data sheet: the figures of `Link` are what NCCL was seen to reach, or an assumption that says so.
"""

import difflib
import re
from dataclasses import dataclass

import torch

GIB = 2**30
GIGA, TERA = 1e9, 1e12
MICROSECOND = 1e-6


@dataclass(frozen=True)
class Link:
    """How cards of a kind reach one another and the main memory.

    Args:
        name: What it is called.
        host: Bytes/s between a card and main memory, one direction: the bus's nominal rate.
        all_reduce: Bytes/s of NCCL's "bus bandwidth" in an all-reduce of many MB.
        latency: Seconds of an all-reduce of a few KB.
        source: Of `all_reduce` and `latency`.
    """

    name: str
    host: float
    all_reduce: float
    latency: float
    source: str


# Nominal rates of PCIe x16: 8, 16 or 32 GT/s on 16 lanes, 128 of 130 bits.
PCIE3 = Link(
    "PCIe 3.0", 15.75 * GIGA, 6 * GIGA, 40 * MICROSECOND,
    "assumed: half of PCIe 4.0 without peer-to-peer, through main memory",
)  # fmt: skip
PCIE4 = Link(
    "PCIe 4.0", 31.5 * GIGA, 12 * GIGA, 30 * MICROSECOND,
    "assumed: without peer-to-peer, through main memory; 8 RTX 4090 took 40 us (github.com/NVIDIA/nccl/issues/1530)",
)  # fmt: skip
PCIE5 = Link(
    "PCIe 5.0", 63 * GIGA, 35 * GIGA, 30 * MICROSECOND,
    "35 GB/s on 4 RTX 5090, 28 on 8 (github.com/NVIDIA/nccl/issues/1639); latency assumed as of PCIe 4.0",
)  # fmt: skip
NVLINK2 = Link(
    "NVLink 2", PCIE3.host, 130 * GIGA, 12 * MICROSECOND, "assumed: 130 of the 150 GB/s of six links, one direction"
)
NVLINK3 = Link(
    "NVLink 3", PCIE4.host, 200 * GIGA, 12 * MICROSECOND,
    "200 and 208 GB/s (github.com/NVIDIA/nccl-tests/issues/149 and 178); latency assumed",
)  # fmt: skip
NVLINK4 = Link(
    "NVLink 4", PCIE5.host, 370 * GIGA, 12 * MICROSECOND,
    "370 GB/s in a ring, by NCCL's maintainer (github.com/NVIDIA/nccl-tests/issues/212); latency assumed",
)  # fmt: skip
MAIN_MEMORY = Link("main memory", float("inf"), float("inf"), 0.0, "one device")


@dataclass(frozen=True)
class Card:
    """One device's limits.

    Args:
        name: As this package writes it.
        memory: Bytes.
        bandwidth: Bytes/s of its memory.
        half: FLOP/s of fp16 products with fp32 sums, dense (a multiplication and an addition are two).
        single: FLOP/s in fp32 outside the tensor cores.
        capability: CUDA's compute capability; `None` for a CPU.
        link: To other cards and to main memory.
        source: Of bandwidth and FLOP/s.
        aliases: Other names, among them that of `nvidia-smi`.
    """

    name: str
    memory: int
    bandwidth: float
    half: float
    single: float
    capability: tuple[int, int] | None
    link: Link
    source: str
    aliases: tuple[str, ...] = ()

    def rate(self, dtype: torch.dtype) -> float:
        """FLOP/s of matrix products in a dtype. Before compute capability 8.0 no tensor core takes bf16."""
        tensor_cores = dtype == torch.float16 or self.capability is None or self.capability >= (8, 0)
        return self.half if tensor_cores and dtype != torch.float32 else self.single


def _card(
    name: str,
    gib: int,
    bandwidth: float,
    half: float,
    single: float,
    capability: tuple[int, int],
    link: Link,
    source: str,
    *aliases: str,
) -> Card:
    """GiB, GB/s and TFLOP/s, as data sheets have them."""
    return Card(name, gib * GIB, bandwidth * GIGA, half * TERA, single * TERA, capability, link, source, aliases)


VOLTA = "NVIDIA V100 data sheet"
TURING = "NVIDIA Turing architecture whitepaper, reference clocks"
GA102 = "NVIDIA Ampere GA102 architecture whitepaper"
ADA = "NVIDIA Ada architecture whitepaper"
A100 = "NVIDIA A100 data sheet"
H100 = "NVIDIA H100 architecture whitepaper, without sparsity"
CARDS: tuple[Card, ...] = (
    _card("V100-16GB", 16, 900, 125, 15.7, (7, 0), NVLINK2, VOLTA, "V100-SXM2-16GB"),
    _card("V100-32GB", 32, 900, 125, 15.7, (7, 0), NVLINK2, VOLTA, "V100-SXM2-32GB"),
    _card("T4", 15, 320, 65, 8.1, (7, 5), PCIE3, "NVIDIA T4 data sheet"),
    _card("RTX 2080 Ti", 11, 616, 53.8, 13.4, (7, 5), PCIE3, TURING, "2080 Ti"),
    _card("RTX 3090", 24, 936, 71, 35.6, (8, 6), PCIE4, GA102, "3090"),
    _card("RTX 3090 Ti", 24, 1008, 80, 40, (8, 6), PCIE4, ADA, "3090 Ti"),
    _card("RTX A6000", 48, 768, 154.8, 38.7, (8, 6), PCIE4, GA102, "A6000"),
    _card("A10", 24, 600, 125, 31.2, (8, 6), PCIE4, "NVIDIA A10 data sheet"),
    _card("A40", 48, 696, 149.7, 37.4, (8, 6), PCIE4, "NVIDIA A40 data sheet"),
    _card("RTX 4090", 24, 1008, 165.2, 82.6, (8, 9), PCIE4, ADA, "4090"),
    _card("L4", 24, 300, 121, 30.3, (8, 9), PCIE4, "NVIDIA L4 data sheet, without sparsity"),
    _card("L40S", 48, 864, 362, 91.6, (8, 9), PCIE4, "NVIDIA L40S data sheet, without sparsity"),
    _card("RTX 5090", 32, 1792, 209.5, 104.8, (12, 0), PCIE5, "NVIDIA RTX Blackwell architecture whitepaper", "5090"),
    _card("A100-40GB", 40, 1555, 312, 19.5, (8, 0), NVLINK3, A100, "A100-SXM4-40GB"),
    _card("A100-80GB", 80, 2039, 312, 19.5, (8, 0), NVLINK3, A100, "A100-SXM4-80GB"),
    _card("A100-PCIe-40GB", 40, 1555, 312, 19.5, (8, 0), PCIE4, A100),
    _card("A100-PCIe-80GB", 80, 1935, 312, 19.5, (8, 0), PCIE4, A100, "A100 80GB PCIe"),
    _card("H100", 80, 3350, 989.4, 66.9, (9, 0), NVLINK4, H100, "H100 80GB HBM3", "H100-SXM", "H100-80GB"),
    _card("H100-PCIe", 80, 2000, 756, 51.2, (9, 0), PCIE5, H100),
    _card("H200", 140, 4800, 989.4, 66.9, (9, 0), NVLINK4, "NVIDIA H200 data sheet, without sparsity", "H200-SXM"),
)  # fmt: skip

# A server with room for 130 billion parameters: eight channels of DDR4-3200 (25.6 GB/s each), and 32 cores at 2 GHz
# that finish 32 FLOP a cycle (two AVX2 multiply-adds).
CPU_BANDWIDTH = 8 * 25.6 * GIGA
CPU_RATE = 32 * 2e9 * 32


def cpu_card(bandwidth: float | None = None) -> Card:
    """A CPU as a device that computes.

    Args:
        bandwidth: Bytes/s of main memory; `None`: `CPU_BANDWIDTH`.
    """
    given = "as given" if bandwidth else "assumed: eight channels of DDR4-3200"
    return Card("CPU", 0, bandwidth or CPU_BANDWIDTH, CPU_RATE, CPU_RATE, None, MAIN_MEMORY, given)


def is_card(name: str) -> bool:
    """Whether [`find_card`] finds it."""
    return _plain(name) in NAMES


def find_card(name: str) -> Card:
    """The card of a name: this table's, `nvidia-smi`'s, in any case, with or without the maker's words.

    Raises:
        ValueError: no such card; the message says which there are, and which is closest.
    """
    plain = _plain(name)
    found = NAMES.get(plain)
    if found is not None:
        return found
    begun = list(dict.fromkeys(card.name for key, card in NAMES.items() if plain and key.startswith(plain)))
    near = begun or [NAMES[key].name for key in difflib.get_close_matches(plain, NAMES, n=1)]
    if len(begun) > 1:
        hint = f"There is more than one {name.strip()}: write {' or '.join(begun)}. "
    else:
        hint = f"Did you mean {near[0]}? " if near else ""
    raise ValueError(f"{hint}Known cards: {', '.join(card.name for card in CARDS)}.")


def _plain(name: str) -> str:
    plain = re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())
    return re.sub(r"(\d)gib$", r"\1gb", plain)


NAMES: dict[str, Card] = {_plain(name): card for card in CARDS for name in (card.name, *card.aliases)}


__all__ = ["CARDS", "CPU_BANDWIDTH", "Card", "Link", "cpu_card", "find_card", "is_card"]
