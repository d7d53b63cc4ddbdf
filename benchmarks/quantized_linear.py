"""One quantized linear beside bf16, bitsandbytes, torchao and the memory's limit, in one run.

    python benchmarks/quantized_linear.py [--width 12288] [--threads 2] [--seconds 1.5] [--compiled]
        [--rows 1 2 4 8] [--processor-time]
    python benchmarks/quantized_linear.py --bound 1.3 [--width 12288] [--height 32768]

Every layer multiplies the same bf16 activations; for each number of rows the layers take turns, so that a machine
whose speed drifts slows all. Each figure is the median, each ratio the median of the ratios turn by turn. The first
call of every layer, in which some repack their weight, is left out. The limit is the bytes of the INT4 weight over the
bandwidth with which a plain sum reads memory, measured in the same run. With `--compiled` ours is the C++ kernel, else
what torch has. bitsandbytes' LLM.int8 also quantizes the activations. Libraries that are not installed are left out by
name. Where other programs share the processor, `--threads 1 --processor-time` counts only the time that was ours.

With `--bound` only ours runs, as installed, beside `F.linear` in bf16 and, for fp16 and fp32 activations, in fp32,
torch's fastest product of their precision: INT4 and INT8, one scale a row, 8 groups, groups of 128 columns. Rows above
the bound (to bf16 for bf16 activations, to fp32 for others) are marked; the exit status is 1 if there are any.
"""

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from hf_glm_ernie.weight_only_cpu import VARIABLE, build_cpu_kernel
from hf_glm_ernie.weight_only_linear import WeightOnlyLinear

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
Layer = Callable[[torch.Tensor], torch.Tensor]


def bandwidth(clock: Callable[[], float]) -> float:
    """Bytes a second with which a sum reads 512 MB, the best of ten."""
    data = torch.ones(2**27)
    best = float("inf")
    for _ in range(10):
        started = clock()
        data.sum()
        best = min(best, clock() - started)
    return data.numel() * data.itemsize / best


def ours(weight: torch.Tensor, bits: int, compiled: bool) -> Layer:
    """Our layer; without the compiled kernel, repacked for torch's operator."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    quantized = WeightOnlyLinear.from_linear(linear, bits)
    if not compiled:
        quantized.repack()
    return quantized


def nf4(weight: torch.Tensor) -> Layer:
    """bitsandbytes, 4 bits."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(
        weight.shape[1], weight.shape[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta"
    )
    layer.weight = Params4bit(weight.clone(), requires_grad=False, quant_type="nf4", module=layer)
    return layer.to("cpu").eval()


def llm_int8(weight: torch.Tensor) -> Layer:
    """bitsandbytes, 8 bits; it quantizes the activations, too."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a cast at every call

    layer = Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False, device="meta")
    layer.weight = Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu").eval()


def torchao_int8(weight: torch.Tensor) -> Layer:
    """torchao, 8 bits, weights only."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    holder = nn.Sequential(linear)
    quantize_(holder, Int8WeightOnlyConfig())
    return holder


def build(width: int, compiled: bool) -> dict[str, Layer]:
    """All layers of one weight, (width, width) bf16."""
    weight = torch.randn(width, width, dtype=torch.bfloat16) * 0.02
    makers: dict[str, Callable[[torch.Tensor], Layer]] = {
        "bf16": lambda w: lambda x: F.linear(x, w),
        "INT4": lambda w: ours(w, 4, compiled),
        "INT8": lambda w: ours(w, 8, compiled),
        "bnb NF4": nf4,
        "LLM.int8": llm_int8,
        "torchao 8": torchao_int8,
    }
    layers: dict[str, Layer] = {}
    for name, make in makers.items():
        try:
            layers[name] = make(weight)
        except ImportError as error:
            print(f"left out: {name} ({error})")
    return layers


def measure(
    layers: dict[str, Layer], x: torch.Tensor, seconds: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds of each layer for activations, turn by turn."""
    taken: dict[str, list[float]] = {name: [] for name in layers}
    for layer in layers.values():
        layer(x)
    until = time.perf_counter() + seconds * len(layers)
    while time.perf_counter() < until or min(map(len, taken.values())) < 3:
        for name, layer in layers.items():
            started = clock()
            layer(x)
            taken[name].append((clock() - started) * 1e3)
    return taken


def ratio(taken: dict[str, list[float]], first: str, second: str) -> str:
    """Median of the ratios of two layers turn by turn, for the table."""
    if second not in taken:
        return f"{'-':>11}"
    return f"{statistics.median(a / b for a, b in zip(taken[first], taken[second], strict=True)):11.2f}"


SWEEP = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 72, 96, 128, 192, 256, 512, 1024, 2048)


def sweep(options: argparse.Namespace, clock: Callable[[], float]) -> int:
    """Prints ratios of the default install for every number of rows.

    Returns:
        How many are above the bound.
    """
    width, height, over = options.width, options.height or options.width, 0
    weight = torch.randn(height, width, dtype=torch.bfloat16) * 0.02
    wide = weight.float()
    layers: dict[str, Layer] = {"bf16": lambda x: F.linear(x.bfloat16(), weight)}
    print("bits groups dtype rows ours/bf16 ours/fp32 kernel")
    for bits, groups in ((bits, groups) for bits in (4, 8) for groups in (1, 8, width // 128)):
        linear = WeightOnlyLinear(width, height, False, bits, groups)
        linear.weight.random_(-100, 100)
        linear.weight_scale.fill_(0.01)
        layers["ours"] = linear
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            layers.pop("fp32", None)
            if dtype != torch.bfloat16:
                layers["fp32"] = lambda x: F.linear(x.float(), wide)
            for rows in options.rows or SWEEP:
                x = torch.randn(rows, width).to(dtype)
                taken = measure(layers, x, options.seconds, clock)
                ratios = [ratio(taken, "ours", name) for name in ("bf16", "fp32")]
                bad = float(ratios[dtype != torch.bfloat16]) > options.bound
                over += bad
                name = linear.kernel_for(x).name + " OVER" * bad
                print(f"{bits:4}{groups:7} {str(dtype)[6:]:>8}{rows:5}{ratios[0]}{ratios[1]} {name}", flush=True)
    return over


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=12288)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each layer and number of rows")
    parser.add_argument("--compiled", action="store_true", help="with the C++ kernel, built first")
    parser.add_argument("--rows", type=int, nargs="+", help="rows of activations")
    parser.add_argument("--bound", type=float, help="check the default install, every number of rows")
    parser.add_argument("--height", type=int, help="rows of the weight with --bound; default: the width")
    parser.add_argument("--processor-time", action="store_true", help="of this process, for one thread")
    options = parser.parse_args()
    if options.processor_time and options.threads != 1:
        parser.error("--processor-time adds up the threads: give --threads 1 with it")
    clock = time.process_time if options.processor_time else time.perf_counter
    if not options.compiled and options.bound is None:
        os.environ[VARIABLE] = "0"  # read at the first product; without it the kernel is the default
    if options.compiled:
        build_cpu_kernel()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    width = options.width
    if options.bound:
        with torch.inference_mode():
            raise SystemExit(bool(sweep(options, clock)))
    options.rows = options.rows or ROWS
    limit = width * width / 2 / bandwidth(clock) * 1e3
    print(f"{width} x {width}, {options.threads} threads, bf16 activations; milliseconds, medians")
    print(f"limit of INT4: {limit:.1f} ms ({width * width / 2 / limit / 1e6:.1f} GB/s read)")
    with torch.inference_mode():
        layers = build(width, options.compiled)
        for name in ("INT4", "INT8"):
            layer = layers[name]
            assert isinstance(layer, WeightOnlyLinear)
            kernels = {
                rows: layer.kernel_for(torch.empty(rows, width, dtype=torch.bfloat16)).name for rows in options.rows
            }
            print(f"{name}: {', '.join(f'{rows}: {kernel}' for rows, kernel in kernels.items())}")
        pairs = (("INT4", "bf16"), ("INT4", "bnb NF4"), ("INT8", "bf16"))
        heads = [*layers, *(f"{first}/{second.split()[-1]}" for first, second in pairs)]
        print(f"{'rows':>5}" + "".join(f"{head:>11}" for head in heads))
        for rows in options.rows:
            x = torch.randn(rows, width, dtype=torch.bfloat16)
            taken = measure(layers, x, options.seconds, clock)
            shown = "".join(f"{statistics.median(times):11.2f}" for times in taken.values())
            print(f"{rows:5}{shown}" + "".join(ratio(taken, *pair) for pair in pairs), flush=True)


if __name__ == "__main__":
    main()
