"""A training step of ERNIE 3.0 beside the host library's BERT and GPT-2 of the same size, on the same rows, on CPU.

    python benchmarks/step_ernie3.py [--sizes 4x256 6x384 12x768] [--lengths 128 512] [--repeats 7]

A step is forward, loss, backward and a fused AdamW. The understanding branch with a masked language model's labels
stands beside `BertForMaskedLM`, the generation branch beside `GPT2LMHeadModel`: the same number of layers (two thirds
of ours are universal, one third is the branch, both of one width), width, heads, inner width, vocabulary and
activation (the exact gelu, also in GPT-2, whose own is slower), tied embeddings, sdpa, language-model heads on all
positions. What is left of differences is in the table as parameters and floating-point operations: ERNIE 3.0 has a
projection between its stacks and one norm more behind each; its generation head has a transform that GPT-2's has not.

With memory, every layer of the generation branch reads M more key columns, as large a context as GPT-2 has only where
it reads M more tokens: that is the row beside it, and tokens are those that are predicted, L a row, for both.

The models take turns, step by step, in one process with one thread. Times are CPU seconds of the process: on a shared
machine the seconds on the wall count other programs. Ratios are medians over the turns of the two times of a turn;
beside them stands the ratio of the best times, which what else runs disturbs least.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from hf_glm_ernie import Ernie3Config, Ernie3ForCausalLM, Ernie3ForMaskedLM, Ernie3ForPreTraining

MEMORY = 128
MASKED = 0.15  # of the tokens have a label where words are masked
SPECIAL = 8  # the first ids are special tokens
HEAD = 64  # width of an attention head


@dataclass(frozen=True)
class Case:
    """What all models of a table share."""

    layers: int
    width: int
    length: int
    batch: int
    vocabulary: int
    dropout: float
    bfloat16: bool
    padded: bool

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return self.width // HEAD


@dataclass
class Trained:
    """A model and a step of it.

    Attributes:
        name: As the table calls it.
        model: In training.
        inputs: Makes the arguments of a forward: anew for each step where the step before changes them.
        tokens: How many tokens a step reads that are no padding, those that only serve as context left out.
        beside: The names of the models it is compared with, their times and tokens added; none for one of the host's.
    """

    name: str
    model: Any
    inputs: Callable[[], dict[str, Any]]
    tokens: int
    beside: tuple[str, ...] = ()
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def step(self, bfloat16: bool) -> float:
        """Trains once; CPU seconds."""
        inputs = self.inputs()
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            loss = self.model(**inputs).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - start

    def flops(self, bfloat16: bool) -> int:
        """Floating-point operations of forward and backward, as PyTorch counts matrix products and attention."""
        with FlopCounterMode(display=False) as counter:
            self.step(bfloat16)
        return counter.get_total_flops()


def ernie3_config(case: Case, **settings: Any) -> Ernie3Config:
    """Both stacks of one width; settings replace single ones."""
    sizes = {"hidden_size": case.width, "num_attention_heads": case.heads, "intermediate_size": 4 * case.width}
    dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), case.dropout)
    branch_layers = case.layers // 3
    named: dict[str, Any] = {**sizes, **dropouts, "num_hidden_layers": case.layers - branch_layers}
    named |= {f"branch_{name}": value for name, value in named.items()} | {"branch_num_hidden_layers": branch_layers}
    named |= {"vocab_size": case.vocabulary, "max_position_embeddings": case.length + MEMORY, "memory_length": MEMORY}
    named |= {"tie_word_embeddings": True, "use_cache": False, "eos_token_id": 4, "sentence_token_id": 5}
    return Ernie3Config(**(named | settings))


def bert(case: Case) -> Any:
    """The host's encoder."""
    config = BertConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.width,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        intermediate_size=4 * case.width,
        hidden_dropout_prob=case.dropout,
        attention_probs_dropout_prob=case.dropout,
        max_position_embeddings=case.length + MEMORY,
    )
    return BertForMaskedLM(config)


def gpt2(case: Case) -> Any:
    """The host's decoder."""
    config = GPT2Config(
        vocab_size=case.vocabulary,
        n_positions=case.length + MEMORY,
        n_embd=case.width,
        n_layer=case.layers,
        n_head=case.heads,
        activation_function="gelu",
        resid_pdrop=case.dropout,
        embd_pdrop=case.dropout,
        attn_pdrop=case.dropout,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=4,
    )
    return GPT2LMHeadModel(config)


def rows(case: Case, length: int, masked: bool) -> dict[str, torch.Tensor]:
    """Ids, mask and labels of a batch: the same for every model."""
    generator = torch.Generator().manual_seed(length)
    shape = (case.batch, length)
    ids = torch.randint(SPECIAL, case.vocabulary, shape, generator=generator)
    lengths = torch.linspace(length / 2, length, case.batch).long() if case.padded else torch.tensor([length])
    real = (torch.arange(length) < lengths[:, None]).expand(shape)
    labels = ids
    if masked:
        chosen = torch.rand(shape, generator=generator) < MASKED
        labels, ids = ids.masked_fill(~chosen, -100), ids.masked_fill(chosen, 3)
    return {
        "input_ids": ids.masked_fill(~real, 0),
        "attention_mask": real.long(),
        "labels": labels.masked_fill(~real, -100),
    }


class WithMemory:
    """Rows of the generation branch with the memories of a segment before, as in the middle of a document."""

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor]) -> None:
        self.inputs = inputs
        with torch.no_grad():
            self.memories = model(**inputs, return_memories=True).memories

    def __call__(self) -> dict[str, Any]:
        """The arguments of a forward."""
        return {**self.inputs, "memories": self.memories, "return_memories": True}


def contestants(case: Case) -> list[Trained]:
    """All models of a table."""
    masked, causal = rows(case, case.length, True), rows(case, case.length, False)
    longer = rows(case, case.length + MEMORY, False)
    tokens = int(masked["attention_mask"].sum())
    writing = Ernie3ForCausalLM(ernie3_config(case))
    both = Ernie3ForPreTraining(ernie3_config(case))
    half = case.batch // 2 or 1
    mixed: dict[str, dict[str, Any]] = {
        "knowledge_masked_lm": {"branch": "nlu", **{name: one[:half] for name, one in masked.items()}},
        "document_lm": {"branch": "nlg", **{name: one[:half] for name, one in causal.items()}},
    }
    mixed_tokens = int(sum(batch["attention_mask"].sum() for batch in mixed.values()))
    return [
        Trained("BERT", bert(case), lambda: masked, tokens),
        Trained("ERNIE 3.0, understanding", Ernie3ForMaskedLM(ernie3_config(case)), lambda: masked, tokens, ("BERT",)),
        Trained("GPT-2", gpt2(case), lambda: causal, tokens),
        Trained("ERNIE 3.0, generation", writing, lambda: causal, tokens, ("GPT-2",)),
        Trained(f"GPT-2, {MEMORY} tokens more", gpt2(case), lambda: longer, tokens),
        Trained(
            f"ERNIE 3.0, generation, {MEMORY} of memory",
            Ernie3ForCausalLM(ernie3_config(case)),
            WithMemory(writing, causal),
            tokens,
            (f"GPT-2, {MEMORY} tokens more",),
        ),
        Trained("ERNIE 3.0, both in one step", both, lambda: {"batches": mixed}, mixed_tokens, ("BERT", "GPT-2")),
    ]


def measure(case: Case, repeats: int) -> None:
    """Prints the rows of a case."""
    models = contestants(case)
    flops = {one.name: one.flops(case.bfloat16) for one in models}
    for _ in range(repeats):
        for one in models:
            one.seconds.append(one.step(case.bfloat16))
    named = {one.name: one for one in models}
    what = f"{case.layers} x {case.width} | {case.batch} x {case.length}{' padded' if case.padded else ''}"
    what += f" | {'bf16' if case.bfloat16 else 'fp32'} | {case.dropout}"
    for one in models:
        ratio = " | "
        if one.beside:
            theirs = [sum(turn) for turn in zip(*(named[name].seconds for name in one.beside), strict=True)]
            read = sum(named[name].tokens for name in one.beside)
            each = [one.tokens / ours / (read / other) for ours, other in zip(one.seconds, theirs, strict=True)]
            best = one.tokens / min(one.seconds) / (read / sum(min(named[name].seconds) for name in one.beside))
            ratio = f"{statistics.median(each):.2f} | {best:.2f}"
        speed = one.tokens / statistics.median(one.seconds)
        size = one.model.num_parameters() / 1e6
        per_token = flops[one.name] / one.tokens / 1e6
        print(f"| {what} | {one.name} | {size:.1f} | {per_token:.1f} | {speed:,.0f} | {ratio} |", flush=True)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sizes", nargs="+", default=["4x256", "6x384", "12x768"], help="layers x width")
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--tokens", type=int, default=2048, help="of a batch")
    parser.add_argument("--vocabulary", type=int, default=16000)
    parser.add_argument("--dropouts", nargs="+", type=float, default=[0.0, 0.1])
    parser.add_argument("--types", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--padded", action="store_true", help="rows of half the length up to the whole")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    print(
        "| layers x width | rows | type | dropout | model | parameters, M | MFLOP a token | tokens/s | ratio | best |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size in arguments.sizes:
        layers, width = map(int, size.split("x"))
        for length in arguments.lengths:
            for kind in arguments.types:
                for dropout in arguments.dropouts:
                    batch = max(arguments.tokens // length, 1)
                    settings = (arguments.vocabulary, dropout, kind == "bf16", arguments.padded)
                    measure(Case(layers, width, length, batch, *settings), arguments.repeats)


if __name__ == "__main__":
    main()
