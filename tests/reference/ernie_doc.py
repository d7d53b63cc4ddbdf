"""ERNIE-Doc around this package's attention and memory: what the original wraps them in, written from its source.

The attention is `Ernie3Attention` itself, the memory `remember` and `remembered_columns`; embeddings, norms,
feed-forward, mask and heads are ERNIE-Doc's. So the original's outputs hold the shared code to its formulas.

Source: PaddleNLP 2.8.1, `paddlenlp/transformers/ernie_doc/modeling.py`. Letters in shape comments: B batch, T segment,
M memory, H hidden, N layers.
"""

from typing import Any

import torch
import torch.nn.functional as F

from hf_glm_ernie.attention_ernie3 import relative_rows, remember, remembered_columns
from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.modeling_ernie3 import Ernie3Attention

State = dict[str, torch.Tensor]
ACTIVATIONS: dict[str, Any] = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}


class ErnieDoc:
    """One checkpoint; `settings` are the original's config fields, `weights` its parameters ([in, out] matrices)."""

    def __init__(self, settings: dict[str, Any], weights: State, implementation: str):
        self.settings = settings
        self.weights = weights
        self.prefix = "ernie_doc." if any(name.startswith("ernie_doc.") for name in weights) else ""
        config = Ernie3Config(
            hidden_size=settings["hidden_size"],
            num_attention_heads=settings["num_attention_heads"],
            position_embedding_type="relative",
            task_type_vocab_size=settings["task_type_vocab_size"],
        )
        config._attn_implementation = implementation
        self.attention = [self._load_attention(config, i) for i in range(settings["num_hidden_layers"])]

    def _weight(self, name: str) -> torch.Tensor:
        return self.weights[self.prefix + name]

    def _load_attention(self, config: Ernie3Config, layer: int) -> Ernie3Attention:
        """The package's module with the original's parameters; a shared bias may stand with another layer."""
        attention = Ernie3Attention(config, layer, config.universal_sizes).eval()
        own = f"encoder.layers.{layer}.attn."
        state = {}
        for name in attention.state_dict():
            found = self.prefix + own + name
            if found not in self.weights and name.startswith("r_") and name.endswith("_bias"):
                # rel_pos_params_sharing: one parameter, saved once, under its first or a global name
                found = next(key for key in self.weights if key.endswith(name))
            value = self.weights[found]
            state[name] = value.T if value.ndim == 2 else value
        attention.load_state_dict(state)
        return attention

    def _norm(self, states: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        return F.layer_norm(
            states, states.shape[-1:], self._weight(f"{name}.weight"), self._weight(f"{name}.bias"), eps
        )

    def _linear(self, states: torch.Tensor, name: str, prefix: bool = True) -> torch.Tensor:
        find = self._weight if prefix else self.weights.__getitem__
        return states @ find(f"{name}.weight") + find(f"{name}.bias")

    def _embed(self, ids: torch.Tensor, types: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Stream (B, T, H), a state for each distance (T - 1 .. M + T - 1 both ways), types of all keys (B, M + T, H).

        These three norms have Paddle's own epsilon.
        """
        memory, length = self.settings["memory_len"], ids.shape[1]
        distances = torch.arange(1 - length, memory + length)
        table = self._weight("embeddings.pos_emb.weight")
        rows = table[relative_rows(distances, length, 2 * length + memory)]
        of_memory = types[0, 0].expand(len(types), memory)  # the original takes the first row's type for all
        type_states = self._weight("embeddings.token_type_emb.weight")[torch.cat((of_memory, types), dim=1)]
        stream = self._weight("embeddings.word_emb.weight")[ids]
        norms = [self._norm(x, f"embeddings.norms.{i}", 1e-5) for i, x in enumerate((stream, rows, type_states))]
        return norms[0], norms[1], norms[2]

    def __call__(
        self, ids: torch.Tensor, types: torch.Tensor, mask: torch.Tensor, memories: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One segment.

        Args:
            ids: (B, T) int64.
            types: (B, T) int64.
            mask: (B, T) float, 0 = padding.
            memories: (N, B, M, H).

        Returns:
            (B, T, H) and the new memories (N, B, M, H).
        """
        memory, length = self.settings["memory_len"], ids.shape[1]
        hidden, distance_states, type_states = self._embed(ids, types)
        keys = F.pad(mask, (memory, 0), value=1.0)
        scores_mask = ((mask[:, :, None] @ keys[:, None] - 1) * 1e8)[:, None]  # (B, 1, T, M + T)
        distance = torch.arange(length)[:, None] - (torch.arange(memory + length) - memory)[None]
        index = (distance + length - 1)[None]
        everything = torch.ones(len(ids), memory + length, dtype=torch.bool)
        columns, _ = remembered_columns(everything, memory)
        new_memories = []
        for i, attention in enumerate(self.attention):
            memory_of_layer = memories[i]
            hidden = self._layer(
                i, attention, hidden, memory_of_layer, scores_mask, distance_states, index, type_states
            )
            new_memories.append(remember(memory_of_layer, hidden, columns))
        return hidden, torch.stack(new_memories)

    def _layer(
        self, i: int, attention: Any, x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor, *relative: Any
    ) -> torch.Tensor:
        eps, before = self.settings.get("epsilon", 1e-5), self.settings.get("normalize_before", False)
        name = f"encoder.layers.{i}"
        states, index, types = relative
        source = self._norm(x, f"{name}.norm1", eps) if before else x
        output, _ = attention(
            source,
            attention_mask=mask,
            memory=memory,
            relative_states=states,
            relative_index=index,
            type_states=types,
        )
        x = x + output
        x = x if before else self._norm(x, f"{name}.norm1", eps)
        source = self._norm(x, f"{name}.norm2", eps) if before else x
        inner = ACTIVATIONS[self.settings["hidden_act"]](self._linear(source, f"{name}.ffn.linear1"))
        x = x + self._linear(inner, f"{name}.ffn.linear2")
        return x if before else self._norm(x, f"{name}.norm2", eps)

    def pool(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (B, H): the class token is the last one unless the settings say otherwise."""
        return torch.tanh(self._linear(hidden[:, self.settings.get("cls_token_idx", -1)], "pooler.dense"))

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """The task's linear, which stands outside the backbone."""
        name = next(
            key.removesuffix(".weight") for key in self.weights if key in ("linear.weight", "classifier.weight")
        )
        return self._linear(states, name, prefix=False)
