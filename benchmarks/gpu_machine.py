"""The machine under `benchmarks/gpu.py`: its name, its bandwidth, and a clock for calls on it."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import transformers
from gpu_report import Notes

from hf_glm_ernie.weight_only_triton import device_capability, problem
from hf_glm_ernie.weight_only_triton_kernels import triton

Call = Callable[[], object]


@dataclass(frozen=True)
class Machine:
    """Where everything runs.

    Attributes:
        device: Of all tensors.
        dry: Small sizes, on the CPU.
        generator: Of all random numbers. Not the device's default one, which a capture that failed leaves unusable.
    """

    device: torch.device
    dry: bool
    generator: torch.Generator

    @classmethod
    def here(cls, dry: bool) -> "Machine":
        """The first GPU, or the CPU for the dry form.

        Raises:
            RuntimeError: no GPU that torch can use, or no Triton.
        """
        if not dry and not torch.cuda.is_available():
            raise RuntimeError("torch sees no NVIDIA GPU here; --dry runs on the CPU.")
        device = torch.device("cpu" if dry else "cuda:0")
        machine = cls(device, dry, torch.Generator(device).manual_seed(0))
        if why := problem(machine.device):
            raise RuntimeError(f"The kernels cannot run: {why}.")
        return machine

    def normal(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Random numbers of deviation 1 on the device."""
        return torch.randn(*shape, dtype=dtype, device=self.device, generator=self.generator)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, calls: Sequence[Call], budget: float = 0.2, graph: bool | None = None) -> float:
        """Median seconds of one call, the calls taken in turn, so that no cache holds what the next one reads.

        On a GPU all of them are captured into one graph, and the host's own time is left out; where a call cannot be
        captured they are launched one by one.

        Args:
            calls: Of the same kind.
            budget: Seconds for all repetitions.
            graph: `False`: launch them one by one. `True`: a capture that fails is an error.
        """
        for call in calls:
            call()
        self.wait()
        replay = self._captured(calls, graph)
        times: list[float] = []
        ends = time.monotonic() + budget
        while len(times) < 3 or (time.monotonic() < ends and len(times) < 100):
            times.append(self._timed(replay) / len(calls))
        return statistics.median(times)

    def _captured(self, calls: Sequence[Call], wanted: bool | None) -> Call:
        def every() -> None:
            for call in calls:
                call()

        if self.device.type != "cuda" or wanted is False:
            return every
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                every()
        except RuntimeError:
            if wanted:
                raise
            self.wait()
            return every
        graph.replay()
        return graph.replay

    def _timed(self, call: Call) -> float:
        if self.device.type != "cuda":
            started = time.perf_counter()
            call()
            return time.perf_counter() - started
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000

    def bandwidth(self) -> tuple[float, float]:
        """Bytes a second of reading (a sum), and of copying (reading and writing counted)."""
        size = 2**22 if self.dry else 2**31
        data = torch.zeros(size // 4, dtype=torch.int32, device=self.device)
        other = torch.empty_like(data)
        return size / self.seconds([lambda: data.sum()]), 2 * size / self.seconds([lambda: other.copy_(data)])


def machine(notes: Notes, here: Machine) -> None:
    """What the machine is."""
    said = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "processor": platform.processor() or platform.machine(),
    }
    if here.device.type == "cuda":
        properties = torch.cuda.get_device_properties(here.device)
        capability, processors = device_capability(here.device)
        said |= {
            "GPU": properties.name,
            "compute capability": str(capability / 10),
            "multiprocessors": str(processors),
            "memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "second cache": f"{properties.L2_cache_size / 2**20:.0f} MiB",
            "GPUs": str(torch.cuda.device_count()),
        } | _clocks()
    for name, value in said.items():
        notes.row(what=name, value=value)
    with notes.guarded(what="bandwidth"):
        _bandwidth(notes, here)


def _bandwidth(notes: Notes, here: Machine) -> None:
    read, copied = here.bandwidth()
    notes.row(what="reads, GB/s", value=read / 1e9)
    notes.row(what="copies, GB/s (both ways)", value=copied / 1e9)


def _clocks() -> dict[str, str]:
    fields = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "pstate", "mig.mode.current")
    try:
        query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        line = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return dict(zip(fields, (value.strip() for value in line.split(",")), strict=False))
