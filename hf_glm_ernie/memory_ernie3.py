"""What stands in front of a segment's tokens: the memory of the segment before, and cached tokens.

The keys of a call are, in this order, the memory's columns, the cached tokens and the call's own tokens.
[`key_columns`] counts them, [`real_tokens`] says which tokens are no padding; masks, positions and the next memory all
follow from these two. Where several documents share a row, the memory in front belongs to the first of them, and what
is remembered to the last.

A cache takes the memory's keys in with the first call. From then on they are its first columns, and the memory's
states are not needed again; only which columns are padding, and how many tokens a row had seen. The cache notes the
number of those columns, so that a call that forgets them fails instead of counting them as tokens.

Letters in shape comments: B batch, L this call's tokens, S key columns, M memory columns, W width of a stack.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Cache
from transformers.utils import ModelOutput

from .attention_ernie3 import (
    counted_positions,
    numbered_documents,
    positions_in_documents,
    remembered_columns,
)
from .configuration_ernie3 import Ernie3Config

# The attribute of a cache that says how many of its columns are memory. A plain integer: exporters take a tensor on a
# cache for one of the model's outputs.
MEMORY_OF_CACHE = "ernie3_memory_columns"


@dataclass
class Ernie3Memories(ModelOutput):
    """What the generation branch carries from one segment of a text to the next.

    Args:
        states: For each layer, universal ones first, (B, M, W) without gradient; M is at most
            `config.memory_length`. `None`: they are in the cache already.
        mask: (B, M) bool, False where there is nothing to see: a text shorter than M so far.
        tokens_seen: (B,) int64, tokens of each row so far, without padding; its next position.
    """

    states: tuple[torch.Tensor, ...] | None = None
    mask: torch.Tensor | None = None
    tokens_seen: torch.Tensor | None = None

    def reset(self, rows: torch.Tensor) -> "Ernie3Memories":
        """Memories in which some rows begin a new text.

        Args:
            rows: (B,) bool, True = begin anew.

        Returns:
            New memories; what those rows held is not visible any more.

        Raises:
            ValueError: `rows` of another shape or type.
        """
        mask, tokens_seen = _parts(self)
        if rows.shape != tokens_seen.shape or rows.dtype != torch.bool:
            raise ValueError(
                f"rows must be bool of shape {tuple(tokens_seen.shape)}, one for each row of the memories, not "
                f"{rows.dtype} of shape {tuple(rows.shape)}."
            )
        rows = rows.to(mask.device)
        return Ernie3Memories(
            states=self.states, mask=mask & ~rows[:, None], tokens_seen=tokens_seen.masked_fill(rows, 0)
        )

    def select(self, indices: torch.Tensor) -> "Ernie3Memories":
        """Memories of other rows, in the order of `indices` ((K,) int64; a row may occur several times)."""
        mask, tokens_seen = _parts(self)
        states = self.states and tuple(state.index_select(0, indices.to(state.device)) for state in self.states)
        indices = indices.to(mask.device)
        return Ernie3Memories(states=states, mask=mask[indices], tokens_seen=tokens_seen[indices])

    def with_states(self, states: tuple[torch.Tensor, ...]) -> "Ernie3Memories":
        """The same memories with every layer's states."""
        return Ernie3Memories(states=states, mask=self.mask, tokens_seen=self.tokens_seen)

    def without_states(self) -> "Ernie3Memories":
        """What later calls on a cache need that took the states in."""
        return Ernie3Memories(states=None, mask=self.mask, tokens_seen=self.tokens_seen)


def _parts(memories: Ernie3Memories) -> tuple[torch.Tensor, torch.Tensor]:
    if memories.mask is None or memories.tokens_seen is None:
        raise ValueError("These memories have no mask or no tokens_seen; both belong to every Ernie3Memories.")
    return memories.mask, memories.tokens_seen


def check_memories(
    config: Ernie3Config, memories: Ernie3Memories | None, batch_size: int, device: torch.device
) -> None:
    """Refuses memories, where there are some, that do not fit the model or a call of `batch_size` rows on `device`.

    Raises:
        ValueError: memories of another type, number of layers, width, length, batch or device, or a model without
            memory.
    """
    if memories is None:
        return
    if not isinstance(memories, ModelOutput) or not {"mask", "tokens_seen"} <= set(memories):
        raise ValueError(
            f"memories must be the Ernie3Memories that the model returned for the segment before, not "
            f"{type(memories).__name__}."
        )
    if config.memory_length == 0:
        raise ValueError("memories were passed, but config.memory_length=0: this model has none. Leave them out.")
    mask, tokens_seen = _parts(memories)
    if mask.ndim != 2 or mask.dtype != torch.bool or tokens_seen.shape != mask.shape[:1]:
        raise ValueError(
            f"memories.mask must be bool (batch, memory) and tokens_seen (batch,), not {mask.dtype} "
            f"{tuple(mask.shape)} and {tuple(tokens_seen.shape)}."
        )
    if mask.shape[0] != batch_size:
        raise ValueError(
            f"memories hold {mask.shape[0]} rows and the input has {batch_size}: each row goes on with its own. "
            "Use memories.select(indices) for a batch whose rows changed."
        )
    if mask.shape[1] > config.memory_length:
        raise ValueError(
            f"memories hold {mask.shape[1]} columns, but config.memory_length={config.memory_length} is the most a "
            "layer remembers."
        )
    if mask.device != device or tokens_seen.device != device:
        raise ValueError(f"memories lie on {mask.device} and the input on {device}: move one to the other.")
    if memories.states is not None:
        _check_states(config, memories.states, mask)


def _check_states(config: Ernie3Config, states: tuple[torch.Tensor, ...], mask: torch.Tensor) -> None:
    universal, branch = config.num_hidden_layers, config.branch_num_hidden_layers
    if len(states) != universal + branch:
        raise ValueError(
            f"memories hold states of {len(states)} layers; this model has {universal} universal and {branch} branch "
            f"layers, so {universal + branch}."
        )
    for i, state in enumerate(states):
        expected = (*mask.shape, config.hidden_size if i < universal else config.branch_hidden_size)
        if tuple(state.shape) != expected:
            raise ValueError(
                f"memories.states[{i}] has shape {tuple(state.shape)}, not {expected} (B, memory, width)."
            )
        # layers on several devices keep their memories there
        if (state.device.type == "cpu") != (mask.device.type == "cpu"):
            raise ValueError(
                f"memories.states[{i}] lies on {state.device} and its mask on {mask.device}: move one to the other."
            )


class _CacheWithMemory:
    """What the host's mask functions ask of a cache, where memory columns come in front of the new tokens."""

    def __init__(self, cache: Cache | None, memory: int):
        self.cache = cache
        self.memory = memory
        self.is_compileable = getattr(cache, "is_compileable", False)

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        return self.memory if self.cache is None else self.cache.get_query_offset(layer_idx) + self.memory

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        columns = query_length + self.memory
        return (columns, 0) if self.cache is None else self.cache.get_mask_sizes(columns, layer_idx)


@dataclass(frozen=True)
class KeyColumns:
    """How many key columns a call has, in their order, and what is new among them.

    Attributes:
        memory: M, columns of memory.
        cached: Tokens in the cache, without the memory; a tensor where a static cache knows it.
        length: L, this call's tokens.
        total: S, all key columns; with a static cache those that are not filled yet too.
        memory_is_new: Whether the memory's states come with this call.
        continues: Whether the cache is filled.
    """

    memory: int
    cached: int | torch.Tensor
    length: int
    total: int
    memory_is_new: bool
    continues: bool

    @property
    def new_memory(self) -> int:
        """Columns of memory that no cache holds yet."""
        return self.memory if self.memory_is_new else 0

    def positions(
        self,
        real: torch.Tensor | None,
        memories: Ernie3Memories | None,
        documents: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        """Absolute positions (B or 1, L) int64: counted over the `real` tokens, on from those seen before; of several
        `documents` ((B, L), counted from 0) each from its own first token, and only the first on from before.
        """
        if documents is None:
            positions = counted_positions(real, self.length, self.cached, device)
        else:
            positions = positions_in_documents(documents, None if real is None else real[:, : self.length])
        if memories is None:
            return positions
        seen = _parts(memories)[1][:, None]
        return positions + (seen if documents is None else torch.where(documents > 0, 0, seen))

    def check_reach(self, longest: int, memory_length: int) -> None:
        """Refuses a call that sees further than relative positions reach.

        Raises:
            ValueError: more than `longest` tokens, or more than `memory_length` columns in front of so many.
        """
        span = self.cached + self.memory + self.length
        if self.length > longest or (isinstance(span, int) and span > longest + memory_length):
            raise ValueError(
                f"A segment of {self.length} tokens that sees {span} columns is beyond the relative positions: a "
                f"segment has at most max_position_embeddings={longest} tokens and sees at most "
                f"memory_length={memory_length} more. Cut the text into segments and carry memories."
            )

    def distances(self, visible: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """Query position minus key position, (B or 1, L, S) int64, counted over the `visible` columns."""
        queries = counted_positions(visible, self.length, self.cached + self.memory, device)
        keys = counted_positions(visible, self.total, 0, device)
        return queries[:, :, None] - keys[:, None, :]


def key_columns(length: int, memories: Ernie3Memories | None, cache: Cache | None) -> KeyColumns:
    """Counts the key columns of a call of `length` tokens; memory and cache as in the model's forward.

    Raises:
        ValueError: a memory that does not fit the cache.
    """
    filled: int | torch.Tensor = 0 if cache is None else cache.get_seq_length()
    continues = bool(filled > 0) if not torch.compiler.is_compiling() else not isinstance(filled, int) or filled > 0
    memory_is_new = memories is not None and memories.states is not None
    memory = 0 if memories is None else _parts(memories)[0].shape[1]
    if memory_is_new and continues:
        raise ValueError(
            "memories with states came together with a filled cache. They belong in front of a text's first tokens: "
            "pass them with the first call, and memories.without_states() with the later ones."
        )
    if memory and not memory_is_new and not continues:
        raise ValueError(
            "memories without states came without the cache that took them in. Pass that cache, or the whole memories."
        )
    if continues and (noted := getattr(cache, MEMORY_OF_CACHE, 0)) != memory:
        raise ValueError(
            f"The cache begins with {noted} columns of memory, but this call's memories have {memory}. Pass "
            "memories.without_states() of the memories the cache was filled with (none, if there were none)."
        )
    sizes = cache_with_memory(cache, memory if memory_is_new else 0)
    return KeyColumns(
        memory=memory,
        cached=filled - memory if memory and not memory_is_new else filled,
        length=length,
        total=length if sizes is None else sizes.get_mask_sizes(length, 0)[0],
        memory_is_new=memory_is_new,
        continues=continues,
    )


def cache_with_memory(cache: Cache | None, new_memory: int) -> Any:
    """What the host's mask functions take for the cache: it counts memory columns that are not in it yet."""
    return _CacheWithMemory(cache, new_memory) if new_memory else cache


def note_memory(cache: Cache | None, columns: KeyColumns) -> None:
    """Writes on a cache that is about to be filled how many of its columns will be memory."""
    if cache is not None and not columns.continues and getattr(cache, MEMORY_OF_CACHE, 0) != columns.memory:
        setattr(cache, MEMORY_OF_CACHE, columns.memory)


def real_tokens(
    config: Ernie3Config,
    input_ids: torch.Tensor | None,
    attention_mask: Any,
    columns: KeyColumns,
    batch_size: int,
) -> torch.Tensor | None:
    """Which tokens are real: as `attention_mask` says, or those that are not the pad id.

    Returns:
        (B, cached + L or more), 0 = padding, without the memory; `None`: no padding known.

    Raises:
        ValueError: a mask that does not cover the tokens.
    """
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        known = 0 if isinstance(columns.cached, torch.Tensor) else columns.cached
        if attention_mask.shape[0] != batch_size or attention_mask.shape[1] < known + columns.length:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but there are {batch_size} rows of "
                f"{columns.cached} cached and {columns.length} new tokens. It covers all tokens so far, without the "
                "memory, which has a mask of its own."
            )
        return attention_mask
    if input_ids is None or config.pad_token_id is None or columns.continues:
        return None
    return input_ids != config.pad_token_id


def documents_of(
    document_ids: torch.Tensor | None, real: torch.Tensor | None, columns: KeyColumns, batch_size: int
) -> torch.Tensor | None:
    """Which document of its row each of the call's tokens belongs to, counted from 0: (B, L) int64, or `None`."""
    if document_ids is None:
        return None
    real = None if real is None else real[:, : columns.length]
    return numbered_documents(document_ids.expand(batch_size, -1), real)


def visible_columns(
    real: torch.Tensor | None, memories: Ernie3Memories | None, columns: KeyColumns
) -> torch.Tensor | None:
    """Which key columns may be seen: the memory's mask and, behind it, the real tokens.

    Returns:
        (B, S) bool, `None` where all are visible. Columns of a static cache that are not filled yet count as visible.
    """
    parts = [] if memories is None else [_parts(memories)[0]]
    parts += [] if real is None else [real.bool()]
    if not parts:
        return None
    whole = torch.cat(parts, dim=1)[:, : columns.total]
    return F.pad(whole, (0, columns.total - whole.shape[1]), value=True)


def next_memories(
    config: Ernie3Config,
    tokens: torch.Tensor,
    real: torch.Tensor | None,
    memories: Ernie3Memories | None,
    columns: KeyColumns,
    documents: torch.Tensor | None,
    return_memories: bool | None,
) -> tuple[torch.Tensor | None, Ernie3Memories | None]:
    """What the next segment is to see: of several documents in a row, the last one.

    `tokens` are ids or embeddings (B, L, ..), `documents` is (B, L), counted from 0; the rest as in the model's
    forward.

    Returns:
        Which of the M + L columns to remember, (B, K) int64, and the memories but for their states; `None` twice where
        nothing is remembered.

    Raises:
        ValueError: memories asked of a call that cannot make them.
    """
    if return_memories is None:
        return_memories = columns.memory_is_new
    if not return_memories or config.memory_length == 0:
        return None, None
    if columns.continues:
        raise ValueError(
            "return_memories=True on a filled cache: the states of the cached tokens are not known any more. Run the "
            "whole segment in one call without a cache."
        )
    if real is None:
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    real = real[:, : columns.length].bool()
    if documents is not None:
        real = real & (documents == documents[:, -1:])
    tokens_seen = real.sum(-1)
    if memories is not None:
        if documents is not None:
            memories = memories.reset(documents[:, -1] > 0)
        mask, seen_before = _parts(memories)
        real, tokens_seen = torch.cat((mask, real), dim=1), tokens_seen + seen_before
    kept, mask = remembered_columns(real, config.memory_length)
    return kept, Ernie3Memories(states=None, mask=mask, tokens_seen=tokens_seen)


__all__ = [
    "Ernie3Memories",
    "KeyColumns",
    "cache_with_memory",
    "check_memories",
    "documents_of",
    "key_columns",
    "next_memories",
    "note_memory",
    "real_tokens",
    "visible_columns",
]
