"""The arithmetic of ERNIE 3.0's attention: relative positions, and memory carried from segment to segment.

Functions on tensors only, so that the same lines serve the model and the tests that hold them against ERNIE-Doc, the
only public code of this recurrence.

Relative positions [DOC, `MultiHeadAttention`]: the score of query i and key j is

    ((q_i + r_w_bias) k_j + (q_i + r_r_bias) r_d + (q_i + r_t_bias) t_j) * scaling

with r_d the projected row of a learned table for the distance d = position of i - position of j, and t_j the
projected type of key j. The original shifts a matrix of all distances; here each pair picks its distance, because
padding makes the distances of two rows differ.

Memory: a segment's states are kept for the next segment. What is kept are the last *real* tokens, moved to the right
end, so that padding neither takes a place in the memory nor becomes visible.

Several documents may share a row. They are counted from 0 at every border; who belongs together, positions and what is
remembered all follow from those numbers.

Sources: P10 = ERNIE 3.0, arXiv 2107.02137; DOC = ERNIE-Doc, arXiv 2012.15688, as in PaddleNLP 2.8.1,
`paddlenlp/transformers/ernie_doc/modeling.py`. Letters in shape comments: B batch, H heads, L queries, S keys, D head
size, M memory, W width of a stack, N distances.
"""

from typing import Any

import torch
import torch.nn.functional as F


def eager_attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention spelled out, with the softmax in fp32.

    Args:
        module: The attention layer; only `training` is read.
        query: (B, H, L, D).
        key: (B, H, S, D).
        value: (B, H, S, D); its last size may differ from the key's.
        attention_mask: Broadcasts to (B, H, L, S) and is added to the scores, or `None`.
        scaling: Factor of the product of query and key.
        dropout: Probability of dropping an attention weight.
        position_bias: (B, H, L, S), added to the scores as it stands, or `None`.
        **kwargs: Not used; other implementations take more.

    Returns:
        (B, L, H, D) in the dtype of the query, and the weights (B, H, L, S).
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling  # (B, H, L, S)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def counted_positions(
    mask: torch.Tensor | None,
    length: int,
    offset: int | torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    """Positions of `length` columns that start at column `offset`, counted over real tokens.

    Args:
        mask: (B, S) with 0 = padding, all columns from the first on; `None`: no padding.
        length: How many columns, L.
        offset: The first of them; a tensor where a static cache knows it.
        device: Where the positions lie.

    Returns:
        (B, L), or (1, L) without a mask, int64. Padding before the first token has position 0.
    """
    columns = torch.arange(length, device=device) + offset  # (L,)
    if mask is None:
        return columns[None]
    return (mask.long().cumsum(-1) - 1).clamp_min(0)[:, columns]


def numbered_documents(document_ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Which document of its row each column belongs to, counted from 0 at every border.

    A number that comes again behind another one is another document. Padding belongs to the document in front of it,
    at a row's beginning to the first one, whatever `document_ids` says there.

    Args:
        document_ids: (B, L) int64, another number at each border.
        mask: (B, L) with 0 = padding; `None`: no padding.

    Returns:
        (B, L) int64.
    """
    if mask is not None:
        real = mask.bool()
        columns = torch.arange(real.shape[1], device=real.device).expand_as(real)
        nearest = columns.masked_fill(~real, 0).cummax(-1).values  # the last real column so far
        first = real.to(torch.uint8).argmax(-1, keepdim=True)
        document_ids = document_ids.gather(1, torch.maximum(nearest, first))
    return _borders(document_ids).long().cumsum(-1)


def _borders(documents: torch.Tensor) -> torch.Tensor:
    """(B, L) bool: which columns begin another document than the row's first one."""
    return F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))


def positions_in_documents(documents: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The position of each column in its own document, counted over real tokens.

    Args:
        documents: (B, L) int64 of [`numbered_documents`].
        mask: (B, L) with 0 = padding; `None`: no padding.

    Returns:
        (B, L) int64, 0 at each document's first token.
    """
    real = torch.ones_like(documents) if mask is None else mask.long()
    counted = real.cumsum(-1)
    in_front = (counted - real).masked_fill(~_borders(documents), 0).cummax(-1).values  # tokens of other documents
    return (counted - 1 - in_front).clamp_min(0)


def document_borders(document_ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Which tokens begin another document than the row's first one: none of them is predicted from the one before.

    Args:
        document_ids: (B, L) int64.
        mask: (B, L) with 0 = padding; `None`: no padding.

    Returns:
        (B, L) bool.
    """
    return _borders(numbered_documents(document_ids, mask))


def relative_rows(distances: torch.Tensor, segment_length: int, table_rows: int) -> torch.Tensor:
    """The rows of the table of relative positions [DOC, closed form of `__rel_shift`].

    Args:
        distances: Query position minus key position, int64, any shape.
        segment_length: T, the longest segment: the table has a row for each of 0, -1, .., -(T - 1), then for 1, 2, ..
        table_rows: Rows of the table, 2T + M; a distance behind the last row takes the last row.

    Returns:
        Row numbers in the shape of `distances`: -d where d <= 0, T - 1 + d where d > 0.
    """
    rows = torch.where(distances > 0, distances + (segment_length - 1), -distances)
    return rows.clamp(0, table_rows - 1)


def relative_scores(query: torch.Tensor, positions: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The position term of the scores, before scaling.

    Args:
        query: (B, H, L, D), with r_r_bias added.
        positions: (N, H, D), a projected row of the table for each distance that occurs.
        index: (B or 1, L, S) int64 into the N distances.

    Returns:
        (B, H, L, S).
    """
    scores = torch.einsum("bhld,nhd->bhln", query, positions)
    index = index[:, None].expand(*scores.shape[:3], index.shape[-1])
    return scores.gather(-1, index)


def add_types_to_keys(
    query: torch.Tensor,
    key: torch.Tensor,
    types: torch.Tensor,
    r_w_bias: torch.Tensor,
    r_t_bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Folds the type term of the scores into the keys.

    (q + r_w) k + (q + r_t) t = (q + r_w) (k + t) + (r_t - r_w) t: the last term belongs to the key alone and becomes
    one more dimension, which meets a 1 in the query. So a cached key knows its type.

    Args:
        query: (B, H, L, D), with r_w_bias added.
        key: (B, H, S, D).
        types: (B, H, S, D), the projected types of the keys.
        r_w_bias: (H, D).
        r_t_bias: (H, D).

    Returns:
        Query (B, H, L, D + 1) and key (B, H, S, D + 1), whose product is the sum of both terms.
    """
    own = ((r_t_bias - r_w_bias)[:, None] * types).sum(-1, keepdim=True)  # (B, H, S, 1)
    return torch.cat((query, torch.ones_like(query[..., :1])), dim=-1), torch.cat((key + types, own), dim=-1)


def remembered_columns(mask: torch.Tensor, memory_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which columns of [memory; segment] are remembered: the last real ones, in their order, at the right end.

    Args:
        mask: (B, M + L), True = a token that may be seen.
        memory_length: How many columns to keep at most.

    Returns:
        Their numbers (B, K) int64, K = min(memory_length, M + L), and their mask (B, K): False only at the left end,
        where a row has fewer than K tokens.
    """
    mask = mask.bool()
    columns = torch.argsort(mask.to(torch.uint8), dim=-1, stable=True)[:, -memory_length:]
    return columns, mask.gather(-1, columns)


def remember(memory: torch.Tensor | None, states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The new memory of a layer, without gradient [DOC `_cache_mem`].

    Args:
        memory: (B, M, W), its memory so far, or `None`.
        states: (B, L, W), its states of this segment.
        columns: (B, K) int64 into the M + L columns of both.

    Returns:
        (B, K, W), detached.
    """
    states = states.detach()
    if memory is not None:
        states = torch.cat((memory.detach().to(states), states), dim=1)
    return states.gather(1, columns[..., None].expand(-1, -1, states.shape[-1]))


__all__ = [
    "add_types_to_keys",
    "counted_positions",
    "document_borders",
    "eager_attention_forward",
    "numbered_documents",
    "positions_in_documents",
    "relative_rows",
    "relative_scores",
    "remember",
    "remembered_columns",
]
