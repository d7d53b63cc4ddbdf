"""One ERNIE encoder on everything that runs it on a CPU: torch, torch.compile, onnxruntime in fp32 and in INT8.

    python benchmarks/ernie_runners.py --size pico nano micro base --threads 1

Models have the shapes of the released ones (`make_checkpoint_ernie.py`) with the extraction head and random weights;
the folders are what `examples/export_ernie.py --int8` writes. What `uie` calls is timed: the same int64 tensors in,
probabilities out, no padding. In every round each runner goes once, in another order, so that a machine whose speed
drifts slows all; a ratio is the median of the rounds' ratios to torch, a time the fastest round's.

Limits are from the run itself: the operations of the matrix products at the speed of one large product, and the
weights at the speed memory reads, both the best that was seen before, between and after the sizes. For INT8 the
products of weights count at the speed of a large INT8 product, those of attention, which stay in fp32, at that of
fp32.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "examples")]

import export_ernie  # noqa: E402
from make_checkpoint_ernie import POSITIONS, SIZES, TYPES, VOCABULARY  # noqa: E402

from hf_glm_ernie import ErnieForUIE, ErnieUIEConfig, OnnxEncoder  # noqa: E402
from hf_glm_ernie.ernie_tasks.exported import INT8_FILE, ONNX_FILE  # noqa: E402

SHAPES = ((1, 128), (1, 512), (16, 128), (16, 512))
RUNNERS = ("torch", "torch.compile", "onnxruntime fp32", "onnxruntime INT8")
SQUARE = 512  # rows and columns of the products that the limits are taken from: so short that some run undisturbed
Run = Callable[..., Any]


def best(call: Callable[[], Any], repeats: int = 100) -> float:
    """Seconds of the fastest of a few calls."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def machine(threads: int) -> dict[str, float]:
    """What this machine does in a second at its best: operations of large products, and bytes read."""
    import onnx
    import onnxruntime

    a, b = torch.randn(2, SQUARE, SQUARE)
    big = torch.randn(2**24)  # 64 MiB, more than the caches hold
    names = {"activations": onnx.TensorProto.UINT8, "weights": onnx.TensorProto.INT8}
    values = [onnx.helper.make_tensor_value_info(name, kind, [SQUARE, SQUARE]) for name, kind in names.items()]
    output = onnx.helper.make_tensor_value_info("sums", onnx.TensorProto.INT32, [SQUARE, SQUARE])
    node = onnx.helper.make_node("MatMulInteger", list(names), ["sums"])
    weights = onnx.numpy_helper.from_array(np.random.default_rng(0).integers(-127, 127, (SQUARE,) * 2, np.int8))
    weights.name = "weights"
    graph = onnx.helper.make_graph([node], "product", values[:1], [output], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"activations": np.random.default_rng(1).integers(0, 255, (SQUARE,) * 2, np.uint8)}
    operations = 2 * SQUARE**3
    return {
        "fp32": operations / best(lambda: a @ b),
        "int8": operations / best(lambda: session.run(None, feed)),
        "bytes": big.numel() * 4 / best(big.sum),
    }


def limits(size: str, batch: int, length: int, speeds: dict[str, float]) -> tuple[float, float]:
    """Seconds that a forward takes at least, in fp32 and with INT8 weights."""
    layers, hidden, _, inner, _ = SIZES[size]
    weights = layers * (4 * hidden**2 + 2 * hidden * inner)
    of_weights = 2 * weights * batch * length
    of_attention = layers * 4 * batch * length**2 * hidden  # scores, and sums of values
    fp32 = (of_weights + of_attention) / speeds["fp32"]
    int8 = of_weights / speeds["int8"] + of_attention / speeds["fp32"]
    return max(fp32, 4 * weights / speeds["bytes"]), max(int8, weights / speeds["bytes"])


def build(size: str) -> ErnieForUIE:
    """A model of a released size, without its weights."""
    layers, hidden, heads, inner, task_types = SIZES[size]
    torch.manual_seed(0)
    config = ErnieUIEConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=POSITIONS,
        type_vocab_size=TYPES,
        task_type_vocab_size=task_types,
        use_task_id=True,
        architectures=["ErnieForUIE"],
    )
    return ErnieForUIE(config).eval()


def runners(model: ErnieForUIE, folder: Path, threads: int) -> dict[str, Run]:
    """Everything that runs the model; writes the exported files."""
    model.config.save_pretrained(folder)
    program = export_ernie.trace(model)
    export_ernie.save_onnx(program, model, folder / ONNX_FILE)
    export_ernie.save_int8(folder / ONNX_FILE, folder / INT8_FILE)
    fp32, int8 = (OnnxEncoder(folder, file, threads=threads) for file in (ONNX_FILE, INT8_FILE))
    return dict(zip(RUNNERS, (model, torch.compile(model, dynamic=True), fp32, int8), strict=True))


def inputs_of(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Rows without padding, a prompt of 8 tokens first."""
    random = torch.Generator().manual_seed(batch * length)
    ids = torch.randint(4, VOCABULARY - 100, (batch, length), generator=random)
    types = (torch.arange(length) >= 8).long().repeat(batch, 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}


def measure(called: dict[str, Run], inputs: dict[str, torch.Tensor], seconds: float) -> dict[str, list[float]]:
    """Seconds of every runner in every round: at least three, and as many as fit into so many seconds."""
    times: dict[str, list[float]] = {name: [] for name in called}
    for run in called.values():
        run(**inputs)
    orders = itertools.cycle(itertools.permutations(called))
    end = time.perf_counter() + seconds
    while len(times[RUNNERS[0]]) < 3 or time.perf_counter() < end:
        for name in next(orders):
            begin = time.perf_counter()
            called[name](**inputs)
            times[name].append(time.perf_counter() - begin)
    return times


def row(size: str, shape: tuple[int, int], times: dict[str, list[float]]) -> str:
    """One line of the table: the fastest ms of each runner, and its ratio of speeds to torch."""
    cells = []
    for name, own in times.items():
        ratio = statistics.median(base / one for base, one in zip(times[RUNNERS[0]], own, strict=True))
        cells.append(f"{min(own) * 1000:.3g}" + (f" ({ratio:.2f} x)" if name != RUNNERS[0] else ""))
    return f"| {size} | {shape[0]} x {shape[1]} | {' | '.join(cells)} | {len(times[RUNNERS[0]])} |"


def measure_size(size: str, threads: int, seconds: float, progress: Any) -> str:
    """Prints a line for every shape. Returns what the files take."""
    model = build(size)
    with tempfile.TemporaryDirectory() as folder:
        called = runners(model, Path(folder), threads)
        sizes = [(Path(folder) / file).stat().st_size / 1e6 for file in (ONNX_FILE, INT8_FILE)]
        for shape in SHAPES:
            inputs = inputs_of(*shape)
            outputs = [run(**inputs)["start_prob"] for run in called.values()]
            apart = max((one - outputs[0]).abs().max().item() for one in outputs[:3])
            assert apart < 1e-5, f"{size} {shape}: the runners differ by {apart:.1e}"
            progress.write(row(size, shape, measure(called, inputs, seconds)), file=sys.stdout)
            progress.update()
    torch.compiler.reset()
    return f"{size} {model.num_parameters() / 1e6:.1f}M, {sizes[0]:.0f} and {sizes[1]:.0f} MB"


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["pico", "nano", "micro", "base"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10, help="for one shape, default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    speeds, files = [machine(options.threads)], []
    print(
        f"ms, {options.threads} thread(s)\n\n| size | batch x length | {' | '.join(RUNNERS)} | rounds |\n|"
        + "---|" * 7
    )
    with tqdm(total=len(SHAPES) * len(options.size), unit="shape") as progress:
        for size in options.size:
            files.append(measure_size(size, options.threads, options.seconds, progress))
            speeds.append(machine(options.threads))
    top = {name: max(one[name] for one in speeds) for name in speeds[0]}
    print("\nparameters, model.onnx and model_int8.onnx: " + "; ".join(files))
    print(
        f"A product of {SQUARE} x {SQUARE}: fp32 {top['fp32'] / 1e9:.0f}, INT8 {top['int8'] / 1e9:.0f} GFLOP/s; "
        f"memory read at {top['bytes'] / 1e9:.1f} GB/s. At that speed a forward takes, fp32 / INT8, ms:"
    )
    for size in options.size:
        bounds = (limits(size, *shape, top) for shape in SHAPES)
        print(f"  {size}: " + ", ".join(f"{fp32 * 1000:.3g} / {int8 * 1000:.3g}" for fp32, int8 in bounds))


if __name__ == "__main__":
    main()
