"""Layers of GLM-130B's full width in INT4 or INT8: loading throughput, peak memory, decoding speed, in one run.

    python benchmarks/quantized_glm130b.py --work EMPTY_FOLDER [--bits 4] [--layers 4] [--device cpu] [--repeats 3]

Writes a checkpoint of random integers with the released dimensions (hidden 12288, inner 32768, 96 heads; one layer is
0.9 GB in INT4) and a small vocabulary, then in a process of its own loads it with `from_pretrained` and decodes. The
files are loaded with the page cache evicted and warm, up to the last page (the host itself only maps them), in turn
with plainly reading the same files in the same state, several times. Reading, too, is done by a new process that has
imported the same: a virtual machine may have given freed memory back meanwhile, and getting it again takes time.
Decoding is held against the time the weights take at the bandwidth of a plain sum. `--layers 70 --device cuda` is the
whole model.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
PROMPT, NEW = 32, 16
VOCABULARY = 1024
HIDDEN, INNER = 12288, 32768
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def write_checkpoint(folder: Path, bits: int, layers: int) -> None:
    """A quantized folder with one shard a layer, as the converter writes it."""
    from hf_glm_ernie import Glm130bConfig
    from hf_glm_ernie.weight_only import storage_shape

    folder.mkdir(parents=True)
    config = Glm130bConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        mask_token_id=1000,
        gmask_token_id=1001,
        smask_token_id=1002,
        sop_token_id=1003,
        eop_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    config.architectures, config.dtype = ["Glm130bForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "weight_only_int", "bits": bits, "group_size": None}
    (folder / "config.json").write_text(json.dumps(raw, indent=2))
    ones, zeros = torch.ones(HIDDEN, dtype=torch.bfloat16), torch.zeros(HIDDEN, dtype=torch.bfloat16)
    shards: dict[str, dict[str, torch.Tensor]] = {
        "model-embeddings.safetensors": {
            "model.embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN).bfloat16(),
            "model.norm.weight": ones,
            "model.norm.bias": zeros,
        }
    }
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    save_file(shards["model-embeddings.safetensors"], folder / "model-embeddings.safetensors", {"format": "pt"})
    for layer in range(layers):
        tensors: dict[str, torch.Tensor] = {}
        for name, (rows, columns) in SHAPES.items():
            full = f"model.layers.{layer}.{name}"
            tensors[f"{full}.weight"] = torch.randint(
                -128, 128, storage_shape(rows, columns, bits), dtype=torch.int8
            ).clamp_(-127 if bits == 8 else -128)
            tensors[f"{full}.weight_scale"] = torch.full((rows, 1), 0.02 / columns**0.5, dtype=torch.float16)
            tensors[f"{full}.bias"] = torch.zeros(rows, dtype=torch.bfloat16)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = ones.clone()
            tensors[f"model.layers.{layer}.{norm}.bias"] = zeros.clone()
        shard = f"model-layer-{layer:02d}.safetensors"
        save_file(tensors, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def evict(folder: Path) -> None:
    """Drops the files from the page cache."""
    os.sync()
    for path in folder.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_speed(folder: Path) -> float:
    """Bytes a second of plainly reading the files."""
    total, started = 0, time.perf_counter()
    buffer = bytearray(2**24)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / (time.perf_counter() - started)


def peak_memory() -> int:
    """Largest resident bytes of this process so far; `getrusage` would count what the parent had when it forked."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def load_and_decode(folder: Path, device: str, threads: int, task: str) -> dict[str, Any]:
    """Reads, loads, or loads and decodes; in a process of its own."""
    sys.path.insert(0, str(ROOT))
    from transformers import AutoModelForCausalLM

    import hf_glm_ernie  # noqa: F401  # registers the classes and the quantizer
    from hf_glm_ernie.host_interface import returned_cache
    from hf_glm_ernie.quantization_weight_only import repack

    torch.set_num_threads(threads)
    if task == "read":
        return {"speed": read_speed(folder)}
    before = peak_memory()
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=device).eval()
    for parameter in model.parameters():
        parameter.detach().reshape(-1).view(torch.uint8)[::4096].sum().item()  # the host maps files and reads nothing
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {
        "seconds": seconds,
        "peak": peak_memory() - before,
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
    }
    if task == "load":
        return result
    repack(model)
    ids = torch.randint(4, 900, (1, PROMPT), device=model.device)
    ids[0, -1] = 1003
    times: list[float] = []
    with torch.inference_mode():
        output = model(ids, use_cache=True)
        for _ in range(NEW):
            started = time.perf_counter()
            output = model(torch.full_like(ids[:, :1], 7), cache=returned_cache(output), use_cache=True)
            output.logits[0, -1].argmax().item()  # waits for the device
            times.append(time.perf_counter() - started)
        if device == "cpu":
            data = torch.ones(2**27)
            sums = []
            for _ in range(10):
                started = time.perf_counter()
                data.sum()
                sums.append(time.perf_counter() - started)
            result["bandwidth"] = data.numel() * 4 / min(sums)
    return result | {"step": statistics.median(times)}


def child(folder: Path, options: argparse.Namespace, task: str) -> dict[str, Any]:
    """`load_and_decode` in a new process."""
    command = [sys.executable, __file__, "--work", str(folder), "--device", options.device]
    command += ["--threads", str(options.threads), "--child", task]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(finished.stdout.splitlines()[-1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint, which is removed again")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of reading and loading in turn, in each state")
    parser.add_argument("--child", choices=("read", "load", "decode"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(load_and_decode(options.work, options.device, options.threads, options.child)))
        return
    sys.path.insert(0, str(ROOT))
    folder = options.work / f"int{options.bits}"
    write_checkpoint(folder, options.bits, options.layers)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    largest = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"{options.layers} layers in INT{options.bits}, {size:,} bytes, {options.threads} threads, {options.device}")
    for state in ("cold", "warm"):
        ratios = []
        for _ in range(options.repeats):
            if state == "cold":
                evict(folder)
            plain = child(folder, options, "read")["speed"]
            if state == "cold":
                evict(folder)
            loaded = child(folder, options, "load")
            speed = size / loaded["seconds"]
            ratios.append(speed / plain)
            print(
                f"  {state}: loading {loaded['seconds']:.2f} s, {speed / 1e9:.2f} GB/s; plain reading "
                f"{plain / 1e9:.2f} GB/s; ratio {speed / plain:.2f}; peak {loaded['peak'] / 1e9:.2f} GB above start, "
                f"model + shard {(loaded['weights'] + largest) / 1e9:.2f} GB",
                flush=True,
            )
        print(f"  {state}: median ratio {statistics.median(ratios):.2f}")
    decoded = child(folder, options, "decode")
    line = f"  decoding: {decoded['step'] * 1e3:.0f} ms a token for {options.layers} layers"
    if "bandwidth" in decoded:
        limit = decoded["weights"] / decoded["bandwidth"]
        line += f"; limit {limit * 1e3:.0f} ms at {decoded['bandwidth'] / 1e9:.1f} GB/s, {limit / decoded['step']:.0%}"
    print(line)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
