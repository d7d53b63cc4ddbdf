"""Tiny source checkpoints in the released layout, built without the code they test.

The whole tensors of a model are made in the original's own words; a rank's part is cut by chunking, and what the
converter should make of it is stated by reshaping the whole. Nothing here knows the converter's table.
"""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ITERATION = "49300"


@dataclass(frozen=True)
class Sizes:
    """A model small enough for many tests, with heads enough for eight ranks; no two lengths are alike."""

    layers: int = 2
    hidden: int = 32
    heads: int = 8
    inner: int = 40
    vocabulary: int = 72
    context: int = 64

    @property
    def settings(self) -> dict[str, int]:
        """What the tensors cannot tell, in the original's words."""
        return {"num_attention_heads": self.heads, "max_sequence_length": self.context}


State = dict[str, torch.Tensor]


def whole_state(sizes: Sizes, seed: int = 0, dtype: torch.dtype = torch.float16) -> State:
    """The tensors of a one-rank checkpoint: every element another number."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = sizes.hidden, sizes.inner
    shapes = {"transformer.word_embeddings.weight": (sizes.vocabulary, hidden)}
    for i in range(sizes.layers):
        layer = f"transformer.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.input_layernorm.bias": (hidden,),
            f"{layer}.attention.query_key_value.weight": (3 * hidden, hidden),
            f"{layer}.attention.query_key_value.bias": (3 * hidden,),
            f"{layer}.attention.dense.weight": (hidden, hidden),
            f"{layer}.attention.dense.bias": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.bias": (hidden,),
            f"{layer}.mlp.dense_4h_to_h.weight": (hidden, inner),
            f"{layer}.mlp.dense_4h_to_h.bias": (hidden,),
            f"{layer}.mlp.dense_h_to_4h.weight": (2 * inner, hidden),
            f"{layer}.mlp.dense_h_to_4h.bias": (2 * inner,),
        }
    shapes |= {"transformer.final_layernorm.weight": (hidden,), "transformer.final_layernorm.bias": (hidden,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def rank_state(whole: State, rank: int, ranks: int) -> State:
    """One rank's part of a whole state."""
    part = {}
    for name, tensor in whole.items():
        if "dense_h_to_4h" in name:
            first, second = tensor.chunk(2)
            part[name] = torch.cat([first.chunk(ranks)[rank], second.chunk(ranks)[rank]])
        elif "word_embeddings" in name or "query_key_value" in name:  # heads are whole, so rows are cut between them
            part[name] = tensor.chunk(ranks)[rank].clone()
        elif name.endswith(("attention.dense.weight", "mlp.dense_4h_to_h.weight")):
            part[name] = tensor.chunk(ranks, dim=1)[rank].clone()
        else:
            part[name] = tensor.clone()
    return part


def expected_state(whole: State, sizes: Sizes) -> State:
    """What the converted folder should hold."""
    result = {}
    for name, tensor in whole.items():
        kind = name.rpartition(".")[2]
        prefix = name.replace("transformer.", "model.", 1).rpartition(".")[0]
        if "query_key_value" in name:
            heads = tensor.view(sizes.heads, 3, sizes.hidden // sizes.heads, *tensor.shape[1:])
            for index, letter in enumerate("qkv"):
                target = prefix.replace("attention.query_key_value", f"self_attn.{letter}_proj")
                result[f"{target}.{kind}"] = heads[:, index].reshape(sizes.hidden, *tensor.shape[1:])
        elif "dense_h_to_4h" in name:
            up, gate = tensor.split(sizes.inner)  # the original computes up * gelu(gate)
            result[f"{prefix.replace('dense_h_to_4h', 'up_proj')}.{kind}"] = up
            result[f"{prefix.replace('dense_h_to_4h', 'gate_proj')}.{kind}"] = gate
        else:
            for old, new in (
                ("word_embeddings", "embed_tokens"),
                (".attention.dense", ".self_attn.o_proj"),
                ("dense_4h_to_h", "down_proj"),
                ("final_layernorm", "norm"),
            ):
                prefix = prefix.replace(old, new)
            result[f"{prefix}.{kind}"] = tensor
    return result


def write_released(
    folder: Path,
    whole: State,
    ranks: int,
    iteration: str = ITERATION,
    latest: bool = True,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Writes a whole state in the released layout.

    Args:
        folder: Where; made if needed.
        whole: The tensors of a one-rank checkpoint.
        ranks: Tensor-parallel degree.
        iteration: Name of the inner folder.
        latest: Whether to write `latest`.
        extra: Further entries beside "module" in each file.

    Returns:
        The folder.
    """
    (folder / iteration).mkdir(parents=True)
    if latest:
        (folder / "latest").write_text(iteration)
    for rank in range(ranks):
        torch.save({"module": rank_state(whole, rank, ranks)} | (extra or {}), rank_path(folder, rank, iteration))
    return folder


def rank_path(folder: Path, rank: int, iteration: str = ITERATION) -> Path:
    """Path of one rank's file."""
    return folder / iteration / f"mp_rank_{rank:02d}_model_states.pt"


def load_rank(folder: Path, rank: int, iteration: str = ITERATION, mmap: bool = False) -> State:
    """The tensors of one rank, as torch itself reads them."""
    return torch.load(rank_path(folder, rank, iteration), weights_only=True, mmap=mmap)["module"]


def change_rank(folder: Path, rank: int, changes: dict[str, torch.Tensor | None]) -> None:
    """Replaces, adds or (with None) removes tensors of one rank."""
    state: dict[str, Any] = load_rank(folder, rank) | changes
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    torch.save({"module": state}, rank_path(folder, rank))


def equal_bits(first: State, second: State) -> bool:
    """Same names, shapes, dtypes and bits."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and torch.equal(first[name].contiguous().view(torch.uint8), second[name].contiguous().view(torch.uint8))
        for name in first
    )


class Hostile:
    """Creates a file when it is unpickled by a program that executes what it reads."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def write_ice_text_model(path: Path, pieces: int = 60) -> Path:
    """Trains a little sentencepiece model with the released layout: <unk> <s> </s> <pad> <n> first."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog", "填空 模型 语言"] * 20),
        model_writer=model,
        vocab_size=pieces,
        hard_vocab_limit=False,
        pad_id=3,
        user_defined_symbols=["<n>"],
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path
