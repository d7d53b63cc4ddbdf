"""What the Triton kernels' machine code asks of a card, beside what the card's memory allows. Needs no GPU.

    python -m benchmarks.kernel_table [--capabilities 75 80 86 89 90]

Compiles the variants ahead of time and prints two tables, as they stand in docs/gpu-kernels.md: registers, shared
memory and instructions a weight of each variant; and for each card how often over its instruction slots suffice for
the speed of its memory. Both say what the machine code can reach at most, not what it was seen to reach.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hf_glm_ernie.planner.cards import find_card
from hf_glm_ernie.weight_only_tiles import rows_limit
from tests.support.ahead_of_time import CAPABILITIES, LISTED, Compiled, compiled_elsewhere, problem

SCHEDULERS, LANES = 4, 32  # of a multiprocessor, each issuing one instruction for 32 threads a cycle (7.0 to 9.0)
INTEGER = frozenset(
    ("IADD3", "IMNMX", "ISETP", "LEA", "LOP3", "PLOP3", "POPC", "PRMT", "SEL", "SGXT", "SHF", "VIADD")
)  # fmt: skip
SINGLE = frozenset(("FADD", "FFMA", "FMUL"))
HALF = frozenset(("HADD2", "HFMA2", "HMUL2"))
UNITS = ((INTEGER, "integer"), (SINGLE, "fp32"), (HALF, "fp16"))
# Threads a cycle and multiprocessor, from the table of arithmetic throughput in the CUDA C++ Programming Guide, which
# counts two results of half precision a thread.
RATES = {
    75: (64, 64, 64),
    80: (64, 64, 128),
    86: (64, 128, 64),
    89: (64, 128, 64),
    90: (64, 128, 128),
}


@dataclass(frozen=True)
class Processor:
    """What issues instructions on a card. Bandwidth and capability are in the planner's table of cards.

    Attributes:
        card: Its name there.
        multiprocessors: That are switched on.
        clock: Hz, the maker's boost clock.
        source: Of both.
    """

    card: str
    multiprocessors: int
    clock: float
    source: str

    @property
    def capability(self) -> int:
        """86 for compute capability 8.6."""
        major, minor = find_card(self.card).capability or (0, 0)
        return 10 * major + minor

    @property
    def compiled_for(self) -> int:
        """The capability whose machine code is counted; that of 7.0 cannot be listed any more, 7.5 is closest."""
        return max(self.capability, LISTED)


PROCESSORS = (
    Processor("V100-32GB", 80, 1.530e9, "NVIDIA Volta whitepaper, SXM2"),
    Processor("RTX 2080 Ti", 68, 1.545e9, "NVIDIA Turing whitepaper, reference clock"),
    Processor("A100-80GB", 108, 1.410e9, "NVIDIA A100 whitepaper"),
    Processor("RTX 3090", 82, 1.695e9, "NVIDIA GA102 whitepaper"),
    Processor("RTX 4090", 128, 2.520e9, "NVIDIA Ada whitepaper"),
    Processor("H100", 132, 1.830e9, "NVIDIA H100 whitepaper, SXM5; the clock that 989 TFLOP/s assume"),
    Processor("H200", 132, 1.830e9, "as of the H100"),
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
    return weights * (bits / 8) / find_card(processor.card).bandwidth


def busiest(compiled: Compiled) -> tuple[float, str]:
    """Cycles a weight of what is busiest, and its name: the schedulers, or a unit that takes fewer threads a cycle."""
    share = compiled.threads / compiled.weights
    cycles = [(compiled.instructions, "issue")]
    for (opcodes, name), rate in zip(UNITS, RATES[compiled.capability], strict=True):
        used = sum(count for opcode, count in compiled.loop.items() if opcode in opcodes)
        cycles.append((used * share * SCHEDULERS * LANES / rate, name))
    return max(cycles)


def for_rows(compiled: Iterable[Compiled], capability: int, bits: int, dtype: str, rows: int) -> Compiled:
    """What a layer with one scale a row takes for a number of rows: the kernel that `choose_kernel` names."""
    kernel = "rows" if rows <= rows_limit(capability) else "dot"
    fitting = [
        (one.tile_rows, one)
        for one in compiled
        if one.name.startswith(f"INT{bits} {kernel} {dtype} ")
        and one.capability == max(capability, LISTED)
        and ", 1 groups, split" in one.name
        and one.tile_rows >= rows
    ]
    return min(fitting, key=lambda pair: pair[0])[1]


def kernel_rows(compiled: Iterable[Compiled]) -> list[str]:
    """The table of kernels in Markdown: registers, KB of shared memory, instructions a weight, by capability."""
    by_name: dict[str, dict[int, Compiled]] = {}
    for one in compiled:
        by_name.setdefault(one.name, {})[one.capability] = one
    shown = [number for number in CAPABILITIES if any(number in row for row in by_name.values())]
    lines = [f"| registers; shared KB; instructions a weight | {' | '.join(f'{n / 10:.1f}' for n in shown)} |"]
    lines.append("|---" * (1 + len(shown)) + "|")
    for name, row in by_name.items():
        lines.append(f"| {name} | {' | '.join(_cell(row.get(number)) for number in shown)} |")
    return lines


def _cell(one: Compiled | None) -> str:
    if one is None:
        return "-"
    counted = f"{one.instructions:.2f}" if one.loop else "-"
    return f"{one.registers}; {one.shared / 1024:.0f}; {counted}"


CASES = (("INT4 fp16", 4, "fp16"), ("INT4 bf16", 4, "bf16"), ("INT8 fp16", 8, "fp16"), ("INT8 bf16", 8, "bf16"))


def card_rows(compiled: list[Compiled], rows: int = 1) -> list[str]:
    """The table of cards in Markdown: issue slots over memory's need, and in brackets the same of the busiest unit."""
    lines = [f"| card | {' | '.join(name for name, _, _ in CASES)} |", "|---" * (1 + len(CASES)) + "|"]
    for processor in PROCESSORS:
        cells = []
        for _, bits, dtype in CASES:
            one = for_rows(compiled, processor.capability, bits, dtype, rows)
            cycles, unit = busiest(one)
            slots = slots_over_need(processor, one.instructions, bits)
            slower = "" if unit == "issue" else f" ({unit} {slots_over_need(processor, cycles, bits):.2f})"
            cells.append(f"{slots:.2f}{slower}")
        lines.append(f"| {processor.card} | {' | '.join(cells)} |")
    return lines


ONE_SCALE = r"INT\d (rows|dot) \w+ \d+ rows, 1 groups, split|INT\d dequantize|sum"


def main() -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description="Tables of the compiled GPU kernels.")
    parser.add_argument("--capabilities", type=int, nargs="+", default=list(CAPABILITIES), choices=CAPABILITIES)
    parser.add_argument("--only", default=ONE_SCALE, help="regular expression of variants' names")
    arguments = parser.parse_args()
    if problem():
        print(problem(), file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as cache:
        compiled = compiled_elsewhere(Path(cache), dict.fromkeys(arguments.capabilities, arguments.only))
    print("\n".join(kernel_rows(compiled)))
    if set(arguments.capabilities) >= {processor.compiled_for for processor in PROCESSORS}:
        for rows in (1, 8):
            print(f"\nrows of activations: {rows}\n")
            print("\n".join(card_rows(compiled, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
