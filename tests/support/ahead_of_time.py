"""Compiles Triton kernels for cards that are not there, and reads from the machine code what can be read.

Triton's wheel brings `ptxas`, `cuobjdump` and `nvdisasm`; none of them asks for a card. What is read: registers,
stack (anything above zero is a spill), shared memory, and the instructions of the loop over the columns. What cannot
be read: speed, races, and how the card rounds.

Run as a program, it compiles variants of `hf_glm_ernie.weight_only_triton` and writes a JSON list. The tests start it
so (`compiled_elsewhere`): a process whose kernels were imported under Triton's interpreter can compile none, and what
is compiled goes into a cache of its own.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import triton
except ImportError:
    triton = None

ROOT = Path(__file__).parents[2]
CAPABILITIES = (70, 75, 80, 86, 89, 90)  # V100; 2080 Ti; A100; 3090; 4090; H100 and H200
LISTED = 75  # the oldest that `nvdisasm` lists since CUDA 13
WARP = 32  # threads that share an instruction
LABEL = re.compile(r"^\s*(\.L_x_\d+):")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);")
JUMP = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")
PREDICATE = re.compile(r"^@!?U?P\w+\s+")


@dataclass(frozen=True)
class Compiled:
    """What the machine code of one variant shows.

    Attributes:
        name: Of the variant.
        capability: 75 for compute capability 7.5.
        registers: Of a thread.
        stack: Bytes of a thread in local memory; 0 where nothing was spilled.
        shared: Bytes of a block.
        threads: Of a block.
        loop: Opcodes of the innermost loop, with how often each stands in it; empty where there is no loop, and for
            compute capability 7.0, which today's `nvdisasm` does not list.
        loaded: Bytes a thread reads from global memory in one turn of the loop, where no load is masked.
        weights: Weights a block takes in one turn of the loop, as the variant says.
    """

    name: str
    capability: int
    registers: int
    stack: int
    shared: int
    threads: int
    loop: dict[str, int]
    loaded: int
    weights: int

    @property
    def instructions(self) -> float:
        """Instructions that a thread's lane spends on one weight: of the loop, over the weights of a thread."""
        return sum(self.loop.values()) * self.threads / self.weights

    @property
    def tile_rows(self) -> int:
        """Rows of activations that a block takes, from the name."""
        found = re.search(r" (\d+) rows,", self.name)
        return int(found[1]) if found else 0


def problem() -> str:
    """Why nothing can be compiled here, or an empty string."""
    if triton is None:
        return "Triton is not installed (pip install triton)"
    missing = [name for name in ("ptxas", "cuobjdump", "nvdisasm") if not _tool(name).is_file()]
    return f"this platform's Triton has no {', '.join(missing)}" if missing else ""


def _tool(name: str) -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def compile_variant(variant: Any, capability: int) -> Compiled:
    """Compiles one variant for one capability and looks at the result."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    places = {name: place for place, name in enumerate(variant.kernel.arg_names)}
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.signature.get(name, "constexpr") for name in places},
        constexprs={(places[name],): value for name, value in variant.constexprs.items()},
        attrs={(places[name],): [["tt.divisibility", 16]] for name in variant.divisible},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, WARP), options=options)
    registers, stack, listing = disassembled(kernel.asm["cubin"], capability)
    loop = inner_loop(listing)
    return Compiled(
        name=variant.name,
        capability=capability,
        registers=registers,
        stack=stack,
        shared=kernel.metadata.shared,
        threads=WARP * variant.num_warps,
        loop=dict(Counter(map(opcode, loop)).most_common()),
        loaded=sum(map(loaded_bytes, loop)),
        weights=variant.weights,
    )


def disassembled(cubin: bytes, capability: int) -> tuple[int, int, str]:
    """Registers and stack bytes of a thread, and the listing of the instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        listing = "" if capability < LISTED else _output("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return int(found[1]), int(found[2]), listing


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([_tool(tool), *arguments], capture_output=True, text=True, check=True, timeout=60).stdout


def inner_loop(listing: str) -> list[str]:
    """The instructions of the longest loop that has no other inside, without NOPs; empty where there is none.

    A loop is what lies between a label and a jump back to it. An endless jump to itself, which pads every kernel, is
    none.
    """
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in listing.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := INSTRUCTION.match(line):
            jump = JUMP.search(found[1])
            first = labels.get(jump[1]) if jump else None
            if first is not None and first < len(instructions):
                loops.append((first, len(instructions) + 1))
            instructions.append(found[1].strip())
    inmost = [one for one in loops if not any(_within(other, one) for other in loops)]
    first, last = max(inmost, key=lambda one: one[1] - one[0], default=(0, 0))
    return [line for line in instructions[first:last] if opcode(line) != "NOP"]


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]


def opcode(instruction: str) -> str:
    """`LOP3` of `@!P0 LOP3.LUT R1, ...`."""
    return PREDICATE.sub("", instruction).split()[0].split(".")[0]


def loaded_bytes(instruction: str) -> int:
    """Bytes that a thread reads from global memory with this instruction."""
    name = PREDICATE.sub("", instruction).split()[0].split(".")
    if name[0] not in ("LDG", "LDGSTS"):
        return 0
    widths = {"128": 16, "64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
    return next((widths[part] for part in reversed(name) if part in widths), 4)


def compiled_elsewhere(cache: Path, wanted: Mapping[int, str]) -> list[Compiled]:
    """Variants, compiled in a fresh process with a Triton cache of its own.

    The fusing of multiplications and additions is set, for Triton's default changes in 3.10.

    Args:
        cache: Folder of the cache.
        wanted: Capability -> regular expression that the name of a variant matches from its beginning.
    """
    variables = os.environ | {"TRITON_CACHE_DIR": str(cache), "TRITON_DEFAULT_FP_FUSION": "1", "OMP_NUM_THREADS": "1"}
    variables.pop("TRITON_INTERPRET", None)
    result = cache / "compiled.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.ahead_of_time", str(result), json.dumps(wanted)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [Compiled(**row) for row in json.loads(result.read_text(encoding="utf-8"))]


def main(result: str, wanted: str) -> None:
    from hf_glm_ernie.weight_only_triton import variants

    compiled = [
        asdict(compile_variant(one, int(capability)))
        for capability, pattern in json.loads(wanted).items()
        for one in variants(int(capability))
        if re.match(pattern, one.name)
    ]
    Path(result).write_text(json.dumps(compiled), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
