"""What the Triton kernels' machine code asks of a card, beside what the card's memory allows. Needs no GPU.

    python -m benchmarks.kernel_table [--capabilities 75 80 86 89 90]

Compiles every variant ahead of time and prints two tables, as they stand in docs/gpu-kernels.md: registers, shared
memory and instructions a weight of each variant; and for each card how often over its instruction slots suffice for
the speed of its memory. Both say what the machine code can reach at most, not what it was seen to reach.
"""

import argparse
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.ahead_of_time import CAPABILITIES, Compiled, compiled_elsewhere, problem

SCHEDULERS, LANES = 4, 32  # of a multiprocessor, each issuing one instruction for 32 threads a cycle (7.0 to 9.0)
GIGA = 1e9
INTEGER = frozenset("IADD3 IMNMX ISETP LEA LOP3 PLOP3 POPC PRMT SEL SGXT SHF VIADD".split())
SINGLE = frozenset(("FADD", "FFMA", "FMUL"))
HALF = frozenset(("HADD2", "HFMA2", "HMUL2"))
UNITS = ((INTEGER, "integer"), (SINGLE, "fp32"), (HALF, "fp16"))
# Threads a cycle and multiprocessor, from the table of arithmetic throughput in the CUDA C++ Programming Guide; half
# precision there counts two results a thread.
RATES = {
    70: (64, 64, 64),
    75: (64, 64, 64),
    80: (64, 64, 128),
    86: (64, 128, 64),
    89: (64, 128, 64),
    90: (64, 128, 128),
}


@dataclass(frozen=True)
class Processor:
    """A card as the model sees it.

    Attributes:
        name: As sold.
        capability: 75 for compute capability 7.5.
        multiprocessors: That are switched on.
        clock: Hz, the maker's boost clock.
        bandwidth: Bytes a second of its memory.
        source: Of the three.
    """

    name: str
    capability: int
    multiprocessors: int
    clock: float
    bandwidth: float
    source: str


PROCESSORS = (
    Processor("V100", 70, 80, 1.530e9, 900e9, "NVIDIA V100 data sheet and Volta whitepaper"),
    Processor("RTX 2080 Ti", 75, 68, 1.545e9, 616e9, "NVIDIA Turing whitepaper, reference clock"),
    Processor("A100 80 GB", 80, 108, 1.410e9, 2039e9, "NVIDIA A100 data sheet and Ampere whitepaper"),
    Processor("RTX 3090", 86, 82, 1.695e9, 936e9, "NVIDIA GA102 whitepaper"),
    Processor("RTX 4090", 89, 128, 2.520e9, 1008e9, "NVIDIA Ada whitepaper"),
    Processor("H100 SXM", 90, 132, 1.830e9, 3350e9, "NVIDIA H100 data sheet; the clock that its 989 TFLOP/s assume"),
    Processor("H200", 90, 132, 1.830e9, 4800e9, "NVIDIA H200 data sheet; clock as of the H100"),
)


def slots_over_need(processor: Processor, cycles: float, bits: int) -> float:
    """How often over a card could issue the instructions while its memory delivers the weights.

    Args:
        processor: The card.
        cycles: Instructions a weight and lane, or cycles of a scheduler where a unit is slower than it.
        bits: Of a weight.

    Returns:
        multiprocessors * 4 schedulers * 32 lanes * clock / instructions a weight, which are weights a second, times
        bytes a weight, over the memory's bytes a second. At 1.0 instructions and memory take equally long; below, the
        memory waits.
    """
    weights = processor.multiprocessors * SCHEDULERS * LANES * processor.clock / cycles
    return weights * (bits / 8) / processor.bandwidth


def busiest(compiled: Compiled) -> tuple[float, str]:
    """Cycles a weight of what is busiest, and its name: the schedulers, or a unit that takes fewer threads a cycle."""
    share = compiled.threads / compiled.weights
    cycles = [(compiled.instructions, "issue")]
    for (opcodes, name), rate in zip(UNITS, RATES[compiled.capability], strict=True):
        used = sum(count for opcode, count in compiled.loop.items() if opcode in opcodes)
        cycles.append((used * share * SCHEDULERS * LANES / rate, name))
    return max(cycles)
