"""What follows from the ids of a GLM-130B row: which tokens are context, where they stand, and who may see whom.

Pure functions on tensors. The model, `generate`, `fill_blanks` and the evaluation call the same ones (`layout` for
rows of ids, `left_padded` for rows whose layout is spelled out), so that a cached step and a whole forward agree.

A row is context, `<sop>`, answer. The context is everything before the first `<sop>` and is bidirectional; `<sop>`
and the answer are causal. A row without `<sop>` is causal throughout. Where the context holds a short blank
(`[MASK]`, else `[sMASK]`), `<sop>` and the answer all take the position of the first such mask; with `[gMASK]`
positions go on.

Source: `get_masks_and_position_ids` in `generate.py` of the GLM-130B repository [R]. Letters in shape comments: B
batch, L new tokens, S all tokens, those in the cache included.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask
from transformers import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_causal_mask

from .configuration_glm130b import Glm130bConfig
from .host_inputs import refuse_integer_pattern
from .host_interface import named_cache

MASK_ALIGNMENT = 8  # elements, of the rows of a mask that torch's attention on CUDA reads as it lies


def prefix_token_type_ids(input_ids: torch.Tensor, sop_token_id: int | None) -> torch.Tensor:
    """Marks the bidirectional context of each row: everything before the row's first `<sop>`.

    Args:
        input_ids: (B, L) int64.
        sop_token_id: Id of `<sop>`; `None` makes every row causal.

    Returns:
        (B, L) int64: 0 = context, 1 = `<sop>` and after. A row without `<sop>` is all 1.
    """
    if sop_token_id is None:
        return torch.ones_like(input_ids)
    after = (input_ids == sop_token_id).cumsum(-1) > 0  # (B, L) bool
    return (after | ~after[:, -1:]).to(input_ids.dtype)


def plain_position_ids(
    batch_size: int,
    length: int,
    attention_mask: torch.Tensor | None,
    past_length: int | torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    """Counts the real tokens from 0, so that padding anywhere does not move them.

    Args:
        batch_size: B.
        length: L, the new tokens.
        attention_mask: (B, past + L), 0 = padding, or `None`.
        past_length: Tokens already in the cache; read only without a mask.
        device: Where the result lives.

    Returns:
        (B, L) int64; 0 at padding on the left.
    """
    if attention_mask is not None:
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]
    return (torch.arange(length, device=device) + past_length).expand(batch_size, -1)


def blank_position_ids(
    input_ids: torch.Tensor,
    token_type_ids: torch.Tensor,
    positions: torch.Tensor,
    mask_token_id: int | None,
    smask_token_id: int | None,
) -> torch.Tensor:
    """Moves the answer of a short blank to its mask [R `get_masks_and_position_ids`].

    The blank of a row is the first `[MASK]` of its context, or the first `[sMASK]` where there is no `[MASK]`; a row
    with neither (`[gMASK]`, or no context) keeps its positions.

    Args:
        input_ids: (B, L) int64.
        token_type_ids: (B, L), 0 = context, 1 = `<sop>` and after.
        positions: (B, L) int64, as counted by `plain_position_ids`.
        mask_token_id: Id of `[MASK]`, or `None`.
        smask_token_id: Id of `[sMASK]`, or `None`.

    Returns:
        (B, L) int64.
    """
    context = token_type_ids == 0
    answer = ~context
    settled = torch.zeros_like(context[:, :1])  # (B, 1): rows whose blank is known
    for token_id in (mask_token_id, smask_token_id):
        if token_id is None:
            continue
        is_mask = (input_ids == token_id) & context
        has_mask = is_mask.any(-1, keepdim=True) & ~settled
        first = is_mask.to(torch.int8).argmax(-1, keepdim=True)
        positions = torch.where(has_mask & answer, positions.gather(-1, first), positions)
        settled = settled | has_mask
    return positions


class Layout(NamedTuple):
    """Who is context, and where everything stands.

    Attributes:
        token_type_ids: (B, L), 0 = context, 1 = `<sop>` and after.
        position_ids: (B, L) int64.
    """

    token_type_ids: torch.Tensor
    position_ids: torch.Tensor


def layout(
    config: Glm130bConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    past_length: int | torch.Tensor = 0,
    rows: Sequence[int] | None = None,
) -> Layout:
    """Fills in what a caller left open of the layout of rows.

    Args:
        config: Read for the ids of `<sop>`, `[MASK]` and `[sMASK]`.
        input_ids: (B, L) int64, the new tokens.
        attention_mask: (B, past + L), 0 = padding, or `None`.
        token_type_ids: (B, L) in place of those that follow from the ids, or `None`.
        position_ids: (B, L) in place of those that follow from the ids, or `None`.
        past_length: Tokens before the new ones.
        rows: `row_states` of the tokens before the new ones, or `None` where the rows begin here.

    Returns:
        The layout of the new tokens; behind cached ones it equals that of one whole forward.

    Raises:
        ValueError: `rows` of another batch; a `<sop>` whose context was read as causal.
    """
    if rows is not None and len(rows) != input_ids.shape[0]:
        raise ValueError(
            f"The cache was filled with {len(rows)} rows and is now used with {input_ids.shape[0]}. Pass "
            "position_ids and token_type_ids for a cache whose rows were repeated or selected."
        )
    if token_type_ids is None and rows is None:
        token_type_ids = prefix_token_type_ids(input_ids, config.sop_token_id)
    elif token_type_ids is None:
        assert rows is not None
        _refuse_late_sop(input_ids, rows, config.sop_token_id)
        token_type_ids = torch.ones_like(input_ids)
    if position_ids is None:
        batch_size, length = input_ids.shape
        position_ids = plain_position_ids(batch_size, length, attention_mask, past_length, input_ids.device)
        if rows is None:
            position_ids = blank_position_ids(
                input_ids, token_type_ids, position_ids, config.mask_token_id, config.smask_token_id
            )
        else:
            states = _on_device(rows, input_ids.device)
            position_ids = torch.where(states >= 0, states, position_ids)
    return Layout(token_type_ids, position_ids)


def _on_device(rows: Sequence[int], device: torch.device) -> torch.Tensor:
    """(B, 1) int64. One number for all is filled in there; different ones are copied, which waits for the device."""
    if len(set(rows)) == 1:
        return torch.full((len(rows), 1), rows[0], device=device)
    return torch.tensor(rows, device=device)[:, None]


def _refuse_late_sop(input_ids: torch.Tensor, rows: Sequence[int], sop_token_id: int | None) -> None:
    if sop_token_id is None or CAUSAL_SO_FAR not in rows or torch.compiler.is_compiling():
        return
    if ((_on_device(rows, input_ids.device) == CAUSAL_SO_FAR) & (input_ids == sop_token_id)).any():
        raise ValueError(
            "<sop> comes after tokens that were cached as causal, but what stands before <sop> is bidirectional "
            "context. Pass context and <sop> in one forward (a prompt cannot be prefilled in pieces), or "
            "token_type_ids."
        )


def left_padded(
    rows: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]], pad_token_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Pads rows whose layout is spelled out on the left, to what `generate` takes.

    Args:
        rows: (ids, types, positions) of each row, of the same length in a row.
        pad_token_id: What fills the ids; the rest is filled with 0.
        device: Where the result lives.

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids`, `position_ids`: each (B, P) int64.
    """
    width = max(len(ids) for ids, _, _ in rows)

    def padded(column: Iterable[Sequence[int]], fill: int = 0) -> torch.Tensor:
        return torch.tensor([[fill] * (width - len(row)) + list(row) for row in column], device=device)

    return {
        "input_ids": padded((ids for ids, _, _ in rows), pad_token_id),
        "attention_mask": padded([1] * len(ids) for ids, _, _ in rows),
        "token_type_ids": padded(types for _, types, _ in rows),
        "position_ids": padded(positions for _, _, positions in rows),
    }


def answer_positions_go_on(
    token_type_ids: torch.Tensor, positions: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Tells whether the positions of a row count on when tokens are added: they do not where `<sop>` stepped back
    onto a mask.

    Args:
        token_type_ids: (B, L), 0 = context, 1 = after.
        positions: (B, L) int64.
        attention_mask: (B, L), 0 = padding, or `None`.

    Returns:
        (B, 1) bool.
    """
    starts = (token_type_ids == 1).to(torch.int8).argmax(-1, keepdim=True)  # (B, 1) index of <sop>
    before = (starts - 1).clamp_min(0)
    stepped_back = (
        (starts > 0) & (token_type_ids[:, -1:] == 1) & (positions.gather(-1, starts) <= positions.gather(-1, before))
    )
    if attention_mask is not None:
        stepped_back &= attention_mask.gather(-1, before) != 0  # the token before is padding: <sop> opens the row
    return ~stepped_back


def prefix_attention_mask(
    config: Glm130bConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    token_type_ids: torch.Tensor | None,
    looks: bool = False,
) -> Any:
    """Builds the mask of the current attention implementation: causal, and bidirectional among the tokens of type 0.

    On other devices than the CPU no value is asked for, unless `looks`: that would wait for the device.

    Args:
        config: Read for the attention implementation.
        inputs_embeds: (B, L, anything): only shape, dtype and device count.
        attention_mask: `None`; (B, S) with 0 = padding; or (B, 1, L, S), bool (True = may attend) or float (added to
            the scores), which replaces the whole pattern.
        cache: The cache, if any.
        token_type_ids: (B, L), 0 = context, 1 = after; `None` = all causal.
        looks: Whether it is worth a wait to find out that no row has a context, so that attention can take its
            faster causal kernel.

    Returns:
        What the implementation takes: `None`, (B, 1, L, S) bool (sdpa) or float (eager), or a `BlockMask` (flex).

    Raises:
        ValueError: an attention implementation that would drop the prefix, or a 4-D mask of another dtype.
    """
    implementation = config._attn_implementation
    if implementation not in ALL_MASK_ATTENTION_FUNCTIONS or "flash" in implementation:
        raise ValueError(
            f"attn_implementation={implementation!r} ignores prefix masks and would answer wrongly for GLM-130B. "
            "Use 'sdpa', 'eager' or 'flex_attention' (or register a mask function for yours with "
            "AttentionMaskInterface)."
        )
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4:
        return _explicit_mask(attention_mask, inputs_embeds.dtype, implementation)

    length = inputs_embeds.shape[1]
    if length == 1 and cache is not None and implementation in ("sdpa", "eager"):
        return _mask_of_one(inputs_embeds, attention_mask, cache, implementation)
    blocks = None
    if length > 1 and token_type_ids is not None:  # one token attends to all that is cached, whatever its type
        context = token_type_ids == 0
        looks = (looks or context.device.type == "cpu") and not torch.compiler.is_compiling()
        if not looks or context.any():
            blocks = torch.where(context, 0, -1)
    if blocks is not None and cache is not None:
        # Block ids are looked up by key index, and the host pads them on the right: shift them behind what is cached
        # (prefix tuning).
        past_length = cache.get_seq_length()
        kv_length, _ = cache.get_mask_sizes(length, 0)
        columns = torch.arange(length, device=blocks.device) + past_length
        blocks = blocks.new_full((blocks.shape[0], kv_length), -1).index_copy(1, columns, blocks)
    return create_causal_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        position_ids=None,  # repeated positions would be taken for packed sequences
        block_sequence_ids=blocks,
        **named_cache(cache),
    )


def _mask_of_one(
    inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache, implementation: str
) -> torch.Tensor | None:
    """(B, 1, 1, S) for one new token: all that is cached and no padding. The host's function would ask whether there
    is padding, at every step.
    """
    kv_length, _ = cache.get_mask_sizes(1, 0)
    visible = None
    if getattr(cache, "is_compileable", False):  # a static cache, whose free places lie behind the new token
        seen = cache.get_query_offset(0)
        seen = seen.to(inputs_embeds.device) if isinstance(seen, torch.Tensor) else seen
        visible = (torch.arange(kv_length, device=inputs_embeds.device) <= seen)[None]
    if attention_mask is not None:
        real = attention_mask.to(inputs_embeds.device, torch.bool)[:, :kv_length]
        if real.shape[1] < kv_length:
            real = F.pad(real, (0, kv_length - real.shape[1]))
        visible = real if visible is None else visible & real
    if visible is None:
        return None
    mask = visible[:, None, None].expand(inputs_embeds.shape[0], 1, 1, kv_length)
    return (
        mask if implementation == "sdpa" else _added(mask, inputs_embeds.dtype, torch.finfo(inputs_embeds.dtype).min)
    )


def _added(mask: torch.Tensor, dtype: torch.dtype, hidden: float) -> torch.Tensor:
    """A mask of bools as numbers: 0 where a token is seen, else `hidden`. Its rows begin at multiples of 8 elements,
    which attention on CUDA wants, so that no layer copies it.
    """
    length = mask.shape[-1]
    room = (*mask.shape[:-1], length + -length % MASK_ALIGNMENT)
    return torch.full(room, hidden, dtype=dtype, device=mask.device)[..., :length].masked_fill_(mask, 0.0)


def mask_for_layers(mask: Any, implementation: str | None, dtype: torch.dtype) -> Any:
    """A mask as every layer is given it.

    For one new token a mask of bools is made the numbers that `sdpa` would make of it in every layer. For many they
    would take more memory than is gained.

    Args:
        mask: What [`prefix_attention_mask`] returned.
        implementation: Of the attention.
        dtype: Of the queries.

    Returns:
        The mask, or (B, 1, 1, S) of `dtype`.
    """
    if implementation == "sdpa" and isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and mask.shape[2] == 1:
        return _added(mask, dtype, -torch.inf)
    return mask


def _explicit_mask(mask: torch.Tensor, dtype: torch.dtype, implementation: str) -> Any:
    """Passes a caller's (B, 1, L, S) mask on, in the form the implementation takes."""
    if mask.dtype == torch.bool:
        if implementation == "flex_attention":
            return create_block_mask(
                lambda batch, head, query, key: mask[batch, 0, query, key],
                B=mask.shape[0],
                H=None,
                Q_LEN=mask.shape[-2],
                KV_LEN=mask.shape[-1],
                device=str(mask.device),
            )
        if implementation == "sdpa":
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    refuse_integer_pattern(mask)
    return mask.to(dtype)


# What a cache remembers of each row, besides keys and values; a value >= 0 is the position that the answer of the row
# keeps.
CAUSAL_SO_FAR, POSITIONS_GO_ON = -2, -1
# The attribute of a cache that holds the `row_states` of what it was filled with. Plain integers: exporters take a
# tensor on a cache for one of the model's outputs.
ROWS_OF_CACHE = "glm130b_rows"


def row_states(
    token_type_ids: torch.Tensor,
    positions: torch.Tensor,
    attention_mask: torch.Tensor | None,
    starts_answer: torch.Tensor,
) -> torch.Tensor:
    """Sums up the rows of a first forward, for later ones that see only the new tokens.

    Args:
        token_type_ids: (B, L), 0 = context, 1 = after.
        positions: (B, L) int64.
        attention_mask: (B, L), 0 = padding, or `None`.
        starts_answer: (B, 1) bool: the row holds a `<sop>` or a context.

    Returns:
        (B, 1) int64: `CAUSAL_SO_FAR`, `POSITIONS_GO_ON`, or the position that the answer keeps.
    """
    goes_on = answer_positions_go_on(token_type_ids, positions, attention_mask)
    state = torch.where(goes_on, POSITIONS_GO_ON, positions[:, -1:])
    return torch.where(starts_answer, state, CAUSAL_SO_FAR)


__all__ = [
    "CAUSAL_SO_FAR",
    "POSITIONS_GO_ON",
    "ROWS_OF_CACHE",
    "Layout",
    "answer_positions_go_on",
    "blank_position_ids",
    "layout",
    "left_padded",
    "mask_for_layers",
    "plain_position_ids",
    "prefix_attention_mask",
    "prefix_token_type_ids",
    "row_states",
]
