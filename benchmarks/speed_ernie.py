"""Forward speed of a converted ERNIE encoder beside the original program's, on CPU, in one run.

    python benchmarks/make_checkpoint_ernie.py --size base --output CHECKPOINT
    python -m conversion ernie --source CHECKPOINT --output CONVERTED
    python benchmarks/speed_ernie.py --checkpoint CHECKPOINT --converted CONVERTED --paddle-python ORIGINAL/bin/python

ORIGINAL is an environment of its own with paddlenlp 2.8.1, paddlepaddle 2.6.2, huggingface-hub 0.23.5, numpy 1.26.4,
datasets 2.19.2, aistudio-sdk 0.2.6, pyarrow 17.0.0. Each program runs in its own process and keeps its model; the runs
alternate, so that a machine whose speed drifts slows both, and each figure is the median. The first values of the
outputs are compared, so that both have computed the same.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES = ((1, 32), (1, 128), (1, 512), (8, 128), (32, 128))
ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 40000


def ids(batch: int, length: int) -> Any:
    """The same inputs for both programs, no padding."""
    import numpy as np

    return np.random.default_rng(batch * length).integers(4, VOCABULARY - 100, (batch, length))


def open_torch(folder: str, threads: int) -> Callable[[Any], Any]:
    """The converted model, as the README opens it."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(folder).eval()

    def forward(values: Any) -> Any:
        with torch.inference_mode():
            inputs = torch.from_numpy(values)
            return model(inputs, attention_mask=torch.ones_like(inputs)).last_hidden_state.numpy()

    return forward


def open_paddle(folder: str, threads: int) -> Callable[[Any], Any]:
    """The original."""
    import zlib

    zlib.crc32(b"")  # before paddle brings its own
    import paddle
    from paddlenlp.transformers import ErnieForMaskedLM

    paddle.set_device("cpu")
    model = ErnieForMaskedLM.from_pretrained(folder).ernie
    model.eval()

    def forward(values: Any) -> Any:
        with paddle.no_grad():
            return model(paddle.to_tensor(values))[0].numpy()

    return forward


def serve(program: str, folder: str, threads: int) -> None:
    """Runs a forward pass for every line `batch length` of the input; answers with seconds and first values."""
    forward = {"torch": open_torch, "paddle": open_paddle}[program](folder, threads)
    print("ready", flush=True)
    for line in sys.stdin:
        batch, length = map(int, line.split())
        values = ids(batch, length)
        started = time.perf_counter()
        hidden = forward(values)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "first": hidden[0, 0, :8].tolist()}), flush=True)


class Program:
    """One of the two, in a process of its own."""

    def __init__(self, python: str, name: str, folder: Path, threads: int):
        self.name = name
        command = [python, __file__, "--serve", name, str(folder), str(threads)]
        environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            ["env", *(f"{key}={value}" for key, value in environment.items()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        while (line := self._read()).strip() != "ready":
            if not line:
                raise SystemExit(f"{' '.join(command)} ended before it was ready")

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def run(self, batch: int, length: int) -> dict[str, Any]:
        """One forward pass."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{batch} {length}\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.wait()


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="from make_checkpoint_ernie.py")
    parser.add_argument("--converted", type=Path, required=True, help="the same, converted")
    parser.add_argument("--paddle-python", required=True, help="interpreter of the environment with PaddleNLP")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    programs = [
        Program(options.paddle_python, "paddle", options.checkpoint.resolve(), options.threads),
        Program(sys.executable, "torch", options.converted.resolve(), options.threads),
    ]
    print(f"{options.threads} threads, fp32, median of {options.repeats} alternating runs; ms a forward pass")
    print(f"{'batch x length':>16} {'PaddleNLP':>10} {'converted':>10} {'speed-up':>9} {'difference':>11}")
    for batch, length in SHAPES:
        answers: dict[str, list[dict[str, Any]]] = {program.name: [] for program in programs}
        for program in programs:
            program.run(batch, length)  # the first run of a shape allocates
        for _ in range(options.repeats):
            for program in programs:
                answers[program.name].append(program.run(batch, length))
        paddle, ours = (statistics.median(a["seconds"] for a in answers[name]) for name in ("paddle", "torch"))
        apart = max(
            abs(a - b) for a, b in zip(answers["paddle"][0]["first"], answers["torch"][0]["first"], strict=True)
        )
        shape = f"{batch} x {length}"
        print(f"{shape:>16} {paddle * 1e3:10.1f} {ours * 1e3:10.1f} {paddle / ours:9.2f} {apart:11.1e}")
    for program in programs:
        program.close()


if __name__ == "__main__":
    main()
