"""The definition of ERNIE 3.0 in loops and fp64, written from the papers' formulas, independent of the package.

One row at a time, no cache, no padding, weights taken from a state dict by name. Slow on purpose: every faster path is
held against it.
"""

import math
from typing import Any

import torch

Weights = dict[str, torch.Tensor]
Settings = dict[str, Any]


class Memory:
    """What a row carries on: for each layer, universal ones first, a list of vectors; and its tokens so far."""

    def __init__(self, states: list[list[torch.Tensor]], seen: int):
        self.states = states
        self.seen = seen


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm of one vector."""
    centred = x - x.sum() / len(x)
    variance = (centred * centred).sum() / len(x)
    return centred / torch.sqrt(variance + eps) * weight + bias


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The exact one: x times the normal distribution's function."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def softmax(scores: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of a list of scalars."""
    largest = max(float(score) for score in scores)
    exponentials = [torch.exp(score - largest) for score in scores]
    total = torch.stack(exponentials).sum()
    return [value / total for value in exponentials]


class Row:
    """One row's forward through the weights of a base model (names without the `ernie3.` prefix)."""

    def __init__(self, weights: Weights, settings: Settings, branch: str):
        self.w = {name.removeprefix("ernie3."): tensor.detach().double() for name, tensor in weights.items()}
        self.s = settings
        self.branch = branch
        self.relative = settings["position_embedding_type"] == "relative"

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y = self.w[f"{name}.weight"] @ x
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return norm(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], self.s["layer_norm_eps"])

    def type_vector(self, token_type: int, task_type: int) -> torch.Tensor | None:
        vectors = []
        if self.s["type_vocab_size"]:
            vectors.append(self.w["embeddings.token_type_embeddings.weight"][token_type])
        if self.s["task_type_vocab_size"]:
            vectors.append(self.w["embeddings.task_type_embeddings.weight"][task_type])
        return None if not vectors else torch.stack(vectors).sum(0)

    def embed(
        self, ids: list[int], types: list[torch.Tensor | None], seen: int, genre: int | None
    ) -> list[torch.Tensor]:
        """Word, or a soft prompt vector, plus position plus type."""
        embedded, placeholders = [], 0
        for i, token in enumerate(ids):
            if self.s["num_soft_prompt_genres"] and token == self.s["soft_prompt_token_id"]:
                assert genre is not None
                row = genre * self.s["soft_prompt_length"] + placeholders
                x = self.w["embeddings.soft_prompt_embeddings.weight"][row]
                placeholders += 1
            else:
                x = self.w["embeddings.word_embeddings.weight"][token]
            if not self.relative:
                rows = self.s["max_position_embeddings"]
                wraps = self.s.get("position_overflow", "wrap") == "wrap"
                position = (seen + i) % rows if wraps else min(seen + i, rows - 1)
                x = x + self.w["embeddings.position_embeddings.weight"][position]
                own_type = types[i]
                x = x if own_type is None else x + own_type
            embedded.append(x)
        return embedded

    def score(
        self, layer: str, head: slice, query: torch.Tensor, key: torch.Tensor, distance: int, key_type: Any
    ) -> torch.Tensor:
        """The score of one pair in one head; `distance` = position of the query minus that of the key."""
        size = head.stop - head.start
        q, k = self.linear(query, f"{layer}.q_proj")[head], self.linear(key, f"{layer}.k_proj")[head]
        if not self.relative:
            return (q * k).sum() / math.sqrt(size)
        row = -distance if distance <= 0 else self.s["max_position_embeddings"] - 1 + distance
        position = self.norm(self.w["embeddings.position_embeddings.weight"][row], "embeddings.position_norm")
        r = self.linear(position, f"{layer}.r_proj")[head]
        total = ((q + self.w[f"{layer}.r_w_bias"][head]) * k).sum()
        total = total + ((q + self.w[f"{layer}.r_r_bias"][head]) * r).sum()
        if key_type is not None:
            t = self.linear(self.norm(key_type, "embeddings.type_norm"), f"{layer}.t_proj")[head]
            total = total + ((q + self.w[f"{layer}.r_t_bias"][head]) * t).sum()
        return total / math.sqrt(size)

    def attend(
        self, layer: str, heads: int, x: list[torch.Tensor], memory: list[torch.Tensor], types: list[Any]
    ) -> list[torch.Tensor]:
        """Attention of every token over the memory and, as the branch reads, the tokens."""
        width = len(x[0])
        keys = memory + x
        # the memory has the type of the segment's first token
        key_types = [types[0]] * len(memory) + types
        values = [self.linear(key, f"{layer}.v_proj") for key in keys]
        outputs = []
        for i, query in enumerate(x):
            parts = []
            for h in range(heads):
                head = slice(h * width // heads, (h + 1) * width // heads)
                seen = [j for j in range(len(keys)) if self.branch == "nlu" or j <= len(memory) + i]
                scores = [self.score(layer, head, query, keys[j], len(memory) + i - j, key_types[j]) for j in seen]
                weights = softmax(scores)
                parts.append(
                    torch.stack([weight * values[j][head] for weight, j in zip(weights, seen, strict=True)]).sum(0)
                )
            outputs.append(self.linear(torch.cat(parts), f"{layer}.out_proj"))
        return outputs

    def layer(
        self, name: str, heads: int, x: list[torch.Tensor], memory: list[torch.Tensor], types: list[Any]
    ) -> list[torch.Tensor]:
        """x = x + attention(norm1(x)); x = x + linear2(gelu(linear1(norm2(x))))."""
        remembered = memory
        if self.s["memory_pre_norm"]:
            remembered = [self.norm(state, f"{name}.norm1") for state in memory]
        normed = [self.norm(state, f"{name}.norm1") for state in x]
        attention = self.attend(f"{name}.self_attn", heads, normed, remembered, types)
        x = [state + output for state, output in zip(x, attention, strict=True)]
        return [
            state
            + self.linear(gelu(self.linear(self.norm(state, f"{name}.norm2"), f"{name}.linear1")), f"{name}.linear2")
            for state in x
        ]

    def __call__(
        self,
        ids: list[int],
        memory: Memory | None = None,
        token_types: list[int] | None = None,
        task_types: list[int] | None = None,
        genre: int | None = None,
    ) -> tuple[torch.Tensor, Memory]:
        """(len, branch width) behind the branch's norm, and the memory for the next segment."""
        universal, branch = self.s["num_hidden_layers"], self.s["branch_num_hidden_layers"]
        if memory is None:
            memory = Memory([[] for _ in range(universal + branch)], 0)
        zeros = [0] * len(ids)
        pairs = zip(token_types or zeros, task_types or zeros, strict=True)
        types = [self.type_vector(token, task) for token, task in pairs]
        x = self.embed(ids, types, memory.seen, genre)
        kept = []
        for i in range(universal + branch):
            if i == universal:
                x = [self.linear(self.norm(state, "encoder_norm"), "task_projection") for state in x]
            in_branch = i >= universal
            name = f"branches.{self.branch}.layers.{i - universal}" if in_branch else f"encoder.layers.{i}"
            heads = self.s["branch_num_attention_heads" if in_branch else "num_attention_heads"]
            before = x
            x = self.layer(name, heads, x, memory.states[i], types)
            states = x if self.s["recurrence"] == "same_layer" else before
            kept.append((memory.states[i] + states)[-self.s["memory_length"] :])
        x = [self.norm(state, f"branches.{self.branch}.norm") for state in x]
        return torch.stack(x), Memory(kept, memory.seen + len(ids))


def language_model_logits(weights: Weights, settings: Settings, branch: str, hidden: torch.Tensor) -> torch.Tensor:
    """(len, vocabulary): decoder(layer_norm(gelu(transform(x))))."""
    w = {name: tensor.detach().double() for name, tensor in weights.items() if name.startswith(f"{branch}_lm_head.")}
    head = f"{branch}_lm_head"
    logits = []
    for x in hidden:
        inner = gelu(w[f"{head}.transform.weight"] @ x + w[f"{head}.transform.bias"])
        inner = norm(inner, w[f"{head}.layer_norm.weight"], w[f"{head}.layer_norm.bias"], settings["layer_norm_eps"])
        logits.append(w[f"{head}.decoder.weight"] @ inner + w[f"{head}.decoder.bias"])
    return torch.stack(logits)
