"""Prefill and decode speed of our GLM-130B beside the host library's Llama of the same dimensions, in one run.

    python benchmarks/speed_glm130b.py [--threads 2] [--repeats 5] [--attention sdpa] [--static]

Both models run fp32 on CPU through `generate()`: a prompt of 128 tokens, then 64 new ones. The runs alternate, so
that a machine whose speed drifts slows both; each figure is the median. Our prompt is what people send: a
bidirectional context with a [MASK], then <sop>. The limit printed beside it is every weight read once per decoded
token at the memory bandwidth measured in the same run.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM

PROMPT, NEW = 128, 64
SIZES: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
}
MASK, SOP = 31990, 31994


def build(attention: str) -> tuple[Any, Any]:
    """Our model and Llama, random weights; neither ends early."""
    torch.manual_seed(0)
    ids: dict[str, Any] = {
        "mask_token_id": MASK,
        "gmask_token_id": None,
        "smask_token_id": None,
        "sop_token_id": SOP,
        "eop_token_id": None,
    }
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "tie_word_embeddings": True}
    glm = Glm130bForCausalLM(Glm130bConfig(**SIZES, **ids, **ends))
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, **ends))
    for model in (glm, llama):
        model.set_attn_implementation(attention)
        model.eval()
    return glm, llama


class Clock(StoppingCriteria):
    """Notes the time at every new token; never stops anything."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Called by `generate` after every token."""
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def measure(model: Any, prompt: torch.Tensor, static: bool) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second of the 64 after it."""
    settings: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "disable_compile": True}
    if static:
        settings["cache_implementation"] = "static"
    clock = Clock()
    config = GenerationConfig(max_new_tokens=NEW + 1, min_new_tokens=NEW + 1, **settings)
    model.generate(prompt, generation_config=config, stopping_criteria=StoppingCriteriaList([clock]))
    start, first, *_, last = clock.times
    return first - start, NEW / (last - first)


def read_bandwidth() -> float:
    """GB/s of summing 512 MB."""
    data = torch.ones(128 * 2**20)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        data.sum()
        seconds.append(time.perf_counter() - start)
    return data.numel() * 4 / min(seconds) / 1e9


def main() -> None:
    """Runs the comparison and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--static", action="store_true", help="static cache in place of the growing one")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    glm, llama = build(arguments.attention)
    llama_prompt = torch.randint(10, 31000, (1, PROMPT))
    glm_prompt = llama_prompt.clone()
    glm_prompt[0, 60], glm_prompt[0, -1] = MASK, SOP
    runs: dict[str, list[tuple[float, float]]] = {"glm": [], "llama": []}
    for repeat in range(arguments.repeats + 1):
        for name, model, prompt in (("glm", glm, glm_prompt), ("llama", llama, llama_prompt)):
            result = measure(model, prompt, arguments.static)
            if repeat:  # the first round warms up
                runs[name].append(result)
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in runs.items()
    }
    weights = sum(p.numel() * 4 for p in glm.parameters()) / 1e9
    bandwidth = read_bandwidth()

    print(
        f"torch {torch.__version__}, {arguments.threads} threads, {arguments.attention}, median of "
        f"{arguments.repeats}\n"
    )
    print(f"| | prefill {PROMPT} tokens, ms | decode, tokens/s |\n|---|---|---|")
    print(f"| Glm130bForCausalLM | {medians['glm'][0] * 1e3:.0f} | {medians['glm'][1]:.1f} |")
    print(f"| LlamaForCausalLM | {medians['llama'][0] * 1e3:.0f} | {medians['llama'][1]:.1f} |")
    print(
        f"| ratio of speeds | {medians['llama'][0] / medians['glm'][0]:.2f} | "
        f"{medians['glm'][1] / medians['llama'][1]:.2f} |"
    )
    print(f"| limit ({weights:.2f} GB of weights at {bandwidth:.0f} GB/s) | | {bandwidth / weights:.0f} |")


if __name__ == "__main__":
    main()
