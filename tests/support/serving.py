"""vLLM engines in the test's own process, and what `generate` answers to the same rows.

vLLM is imported inside functions: the ordinary environments have none.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM
from tests.support.evaluation_sample import converted_sample

MISSING = "vLLM is not installed here: `make test-serve` has an environment with it"
CACHE_BYTES = 64 << 20
CONTEXT = 512
SAMPLE = Path(__file__).parents[2] / "examples" / "sample-glm130b"


@dataclass(frozen=True)
class Answer:
    """What was generated.

    Attributes:
        ids: The new ids, the one that ends the answer included.
        logprobs: Of each of them.
    """

    ids: list[int]
    logprobs: list[float]


@contextmanager
def engine(folder: Path, **options: Any) -> Iterator[Any]:
    """An engine on a folder, in this process (its workers too, where there is one)."""
    pytest.importorskip("vllm", reason=MISSING)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else this process keeps one core for good
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    workers = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
    settings = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": CACHE_BYTES,
        "distributed_executor_backend": "uni" if workers == 1 else "mp",
        "disable_log_stats": False,
    }
    served = LLM(str(folder), **(settings | options))
    try:
        yield served
    finally:
        served.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def answers(served: Any, rows: Sequence[list[int]], arrivals: Sequence[int], **sampling: Any) -> list[Answer]:
    """Runs rows through an engine.

    Args:
        served: From [`engine`].
        rows: Ids of each prompt.
        arrivals: Before which step of the engine each row is sent.
        **sampling: For vLLM's `SamplingParams`, e.g. `max_tokens`.
    """
    from vllm import SamplingParams

    settings = SamplingParams(**({"temperature": 0.0, "logprobs": 1} | sampling))
    waiting = sorted(range(len(rows)), key=lambda index: arrivals[index])
    finished: dict[int, Answer] = {}
    step = 0
    while len(finished) < len(rows):
        while waiting and arrivals[waiting[0]] <= step:
            index = waiting.pop(0)
            served.llm_engine.add_request(str(index), {"prompt_token_ids": rows[index]}, settings.clone())
        for output in served.llm_engine.step():
            if output.finished:
                ids = list(output.outputs[0].token_ids)
                steps = zip(ids, output.outputs[0].logprobs, strict=True)
                finished[int(output.request_id)] = Answer(ids, [found[index].logprob for index, found in steps])
        step += 1
        assert step < 100_000, f"no answer to {len(rows) - len(finished)} rows"
    return [finished[index] for index in range(len(rows))]


def expected(model: Any, rows: Sequence[list[int]], max_new_tokens: int) -> list[Answer]:
    """What the model's own `generate` answers greedily, in batches of rows of about one length."""
    context = model.config.max_position_embeddings
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found: dict[int, Answer] = {}
    while order:
        room = min(max_new_tokens, context - len(rows[order[-1]]))
        batch = [index for index in order[-16:] if min(max_new_tokens, context - len(rows[index])) == room]
        order = [index for index in order if index not in batch]
        found |= zip(batch, _generated(model, [rows[index] for index in batch], room), strict=True)
    return [found[index] for index in range(len(rows))]


@torch.no_grad()
def _generated(model: Any, rows: list[list[int]], max_new_tokens: int) -> Iterator[Answer]:
    width, ends = max(map(len, rows)), model.generation_config.eos_token_id
    pad = model.config.pad_token_id
    output = model.generate(
        torch.tensor([[pad] * (width - len(row)) + row for row in rows]),
        attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for index, sequence in enumerate(output.sequences[:, width:].tolist()):
        end = next((i + 1 for i, token in enumerate(sequence) if token in ends), len(sequence))
        steps = zip(sequence[:end], output.logits, strict=False)
        yield Answer(sequence[:end], [logits[index].log_softmax(-1)[token].item() for token, logits in steps])


def largest_difference(left: Sequence[Answer], right: Sequence[Answer]) -> float:
    """Of the log probabilities of rows whose ids are equal."""
    pairs = [pair for a, b in zip(left, right, strict=True) for pair in zip(a.logprobs, b.logprobs, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def sample_texts() -> list[str]:
    """The texts with blanks of the shipped sample, English and Chinese."""
    lines = (SAMPLE / "blanks.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def sample_rows(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts as the tokenizer's default call makes them."""
    return [tokenizer(text)["input_ids"] for text in texts]


def random_rows(config: Glm130bConfig, count: int, seed: int = 0) -> list[list[int]]:
    """Rows of every kind, of lengths 1 .. context - 1.

    One mask of each kind, two masks, an answer already begun, no mask before `<sop>`, no `<sop>` at all (causal).
    """
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    kinds = [(config.mask_token_id,), (config.smask_token_id,), (config.gmask_token_id,), (), None]
    kinds += [(config.mask_token_id,) * 2, (config.smask_token_id,) * 2]
    longest = config.max_position_embeddings - 1
    rows = []
    for index in range(count):
        length = (1, longest, longest // 2)[index] if index < 3 else number(1, longest + 1)
        row = [number(20, 1400) for _ in range(length)]  # ids of words
        masks = kinds[index % len(kinds)]
        if masks is not None and length > len(masks) + 1:
            begun = number(0, min(20, length - len(masks))) if index % 3 == 0 else 0
            end = length - 1 - begun
            row[end] = config.sop_token_id
            for mask in masks:
                row[end - 1 if mask == config.gmask_token_id else number(0, end)] = mask
        rows.append(row)
    return rows


def random_folder(folder: Path, source: Path) -> Path:
    """Writes a model of random weights with the sample's tokenizer into a new folder; returns it.

    Its branches are larger than initialisation makes them: else a token would answer with itself, whatever it sees.
    """
    config = Glm130bConfig.from_pretrained(source)
    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = Glm130bConfig(**(config.to_dict() | sizes | {"max_position_embeddings": CONTEXT, "dtype": "float32"}))
    torch.manual_seed(5)
    model = Glm130bForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                linear.weight *= 1.5
            for linear in (layer.self_attn.v_proj, layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight *= 6
            for parameter in (*layer.self_attn.parameters(), *layer.mlp.parameters()):
                if parameter.ndim == 1:
                    parameter.normal_(0, 0.1)
    model.generation_config = GenerationConfig.from_pretrained(source)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "ice_text.model", "chat_template.jinja"):
        shutil.copy(source / name, folder / name)
    return folder


__all__ = [
    "MISSING",
    "Answer",
    "answers",
    "converted_sample",
    "engine",
    "expected",
    "largest_difference",
    "random_folder",
    "random_rows",
    "sample_rows",
    "sample_texts",
]
