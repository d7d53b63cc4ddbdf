"""The definition of GLM-130B in loops and fp32, written from the paper and the released code, independent of the
package.

One row at a time, no cache, no padding, weights taken from a state dict by name. Slow on purpose: every faster path
is held against it.
"""

import math

import torch
import torch.nn.functional as F


def rotary_tables(
    positions: list[int], head_dim: int, theta: float = 10000.0, fp16: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, (len, head_dim) fp32; every intermediate rounded to fp16 as in the released tables."""
    inv_freq = torch.tensor([1.0 / theta ** (i / head_dim) for i in range(0, head_dim, 2)])
    position = torch.tensor(positions, dtype=torch.float32)
    if fp16:
        angles = (position.half().float()[:, None] * inv_freq.half().float()).half().float()
        cos, sin = angles.cos().half().float(), angles.sin().half().float()
    else:
        angles = position[:, None] * inv_freq
        cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)


def layout(ids: list[int], sop: int, mask: int, smask: int) -> tuple[list[int], torch.Tensor]:
    """Positions and (len, len) bool visibility of a row, spelled out."""
    length = len(ids)
    start = ids.index(sop) if sop in ids else 0
    kind = next((kind for kind in (mask, smask) if kind in ids[:start]), None)
    positions = [i if i < start or kind is None else ids.index(kind) for i in range(length)]
    visible = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            visible[query, key] = key <= query or (query < start and key < start)
    return positions, visible


def forward(
    weights: dict[str, torch.Tensor],
    ids: list[int],
    positions: list[int],
    visible: torch.Tensor,
    num_layers: int,
    num_heads: int,
    eps: float = 1e-5,
    fp16_tables: bool = True,
    projection: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits (len, vocabulary) fp32 of one row; `projection` (vocabulary, hidden) in place of the word embedding."""
    w = {name: tensor.float() for name, tensor in weights.items()}
    x = w["model.embed_tokens.weight"][torch.tensor(ids)]
    hidden = x.shape[-1]
    head_dim = hidden // num_heads
    cos, sin = rotary_tables(positions, head_dim, fp16=fp16_tables)
    alpha = math.sqrt(2 * num_layers)

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, value: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(value, (hidden,), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        y = norm(f"{prefix}.input_layernorm", x)
        heads = []
        q, k, v = (linear(f"{prefix}.self_attn.{name}_proj", y) for name in "qkv")
        for head in range(num_heads):
            cut = slice(head * head_dim, (head + 1) * head_dim)
            rotated = []
            for value in (q[:, cut], k[:, cut]):
                turned = torch.cat([-value[:, head_dim // 2 :], value[:, : head_dim // 2]], -1)
                rotated.append(value * cos + turned * sin)
            scores = rotated[0] @ rotated[1].T / math.sqrt(head_dim)
            scores = scores.masked_fill(~visible, -10000.0)
            heads.append(torch.softmax(scores, -1) @ v[:, cut])
        h = y * alpha + linear(f"{prefix}.self_attn.o_proj", torch.cat(heads, -1))
        z = norm(f"{prefix}.post_attention_layernorm", h)
        gate = linear(f"{prefix}.mlp.gate_proj", z)
        gelu = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))
        x = z * alpha + linear(f"{prefix}.mlp.down_proj", linear(f"{prefix}.mlp.up_proj", z) * gelu)
    return norm("model.norm", x) @ (w["model.embed_tokens.weight"] if projection is None else projection.float()).T
