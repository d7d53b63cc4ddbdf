"""What stands in front of a segment's tokens: the memory of the segment before, and cached tokens.

The keys of a call are, in this order, the memory's columns, the cached tokens and the call's own tokens.
[`key_columns`] works out which of them exist and which are padding; masks, positions and the next memory all follow
from that one account.

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

from .attention_ernie3 import counted_positions, remembered_columns
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

    def without_states(self) -> "Ernie3Memories":
        """What later calls on a cache need that took the states in."""
        return Ernie3Memories(states=None, mask=self.mask, tokens_seen=self.tokens_seen)


def _parts(memories: Ernie3Memories) -> tuple[torch.Tensor, torch.Tensor]:
    if memories.mask is None or memories.tokens_seen is None:
        raise ValueError("These memories have no mask or no tokens_seen; both belong to every Ernie3Memories.")
    return memories.mask, memories.tokens_seen


def check_memories(config: Ernie3Config, memories: Ernie3Memories, batch_size: int, device: torch.device) -> None:
    """Refuses memories that do not fit the model or the call.

    Args:
        config: The model's settings.
        memories: What the caller passed.
        batch_size: Rows of the call.
        device: Where the call's tokens lie.

    Raises:
        ValueError: memories of another type, number of layers, width, length, batch or device, or a model without
            memory.
    """
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


class _SizesWithMemory:
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
    """The key columns of one call.

    Attributes:
        length: L, this call's tokens.
        total: S, all key columns; with a static cache those that are not filled yet too.
        memory: M, columns of memory among them.
        memory_is_new: Whether the memory's states come with this call.
        cached: Tokens in the cache, without the memory; a tensor where a static cache knows it.
        continues: Whether there are cached tokens.
        token_mask: (B, cached + L or more), 0 = padding, without the memory; `None`: no padding known.
        mask: For the host's mask functions: `token_mask` behind the memory's mask (B, S), or what the caller passed
            in four dimensions.
        sizes: For the host's mask functions, in place of the cache.
        tokens_seen: (B,) tokens before this text, or `None`.
        to_remember: (B, M + L) bool, which columns the next segment may see; `None`: nothing is remembered.
        memory_length: How many are remembered at most.
        device: Where the tokens lie.
    """

    length: int
    total: int
    memory: int
    memory_is_new: bool
    cached: int | torch.Tensor
    continues: bool
    token_mask: torch.Tensor | None
    mask: Any
    sizes: Any
    tokens_seen: torch.Tensor | None
    to_remember: torch.Tensor | None
    memory_length: int
    device: torch.device

    def positions(self) -> torch.Tensor:
        """Absolute positions (B or 1, L) int64: counted over real tokens, on from those seen before."""
        positions = counted_positions(self.token_mask, self.length, self.cached, self.device)
        return positions if self.tokens_seen is None else positions + self.tokens_seen[:, None]

    def distances(self) -> torch.Tensor:
        """Query position minus key position, (B or 1, L, S) int64, counted over real tokens."""
        mask = self.mask if isinstance(self.mask, torch.Tensor) and self.mask.ndim == 2 else None
        queries = counted_positions(mask, self.length, self.cached + self.memory, self.device)
        keys = counted_positions(mask, self.total, 0, self.device)
        return queries[:, :, None] - keys[:, None, :]

    def remembered(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The columns to remember, (B, K) int64, and their mask (B, K)."""
        if self.to_remember is None:
            return None, None
        return remembered_columns(self.to_remember, self.memory_length)

    def tokens_seen_after(self) -> torch.Tensor | None:
        """(B,) tokens of each row, this segment's included."""
        if self.to_remember is None:
            return None
        seen = self.to_remember[:, -self.length :].sum(-1)
        return seen if self.tokens_seen is None else seen + self.tokens_seen


def key_columns(
    config: Ernie3Config,
    input_ids: torch.Tensor | None,
    tokens: torch.Tensor,
    attention_mask: Any,
    memories: Ernie3Memories | None,
    cache: Cache | None,
    return_memories: bool | None,
) -> KeyColumns:
    """Accounts for the key columns of a call.

    Args:
        config: The model's settings.
        input_ids: (B, L), or `None` where embeddings were given.
        tokens: Ids or embeddings, (B, L, ..).
        attention_mask: As in the model's forward.
        memories: As in the model's forward, checked.
        cache: The cache, or `None`.
        return_memories: As in the model's forward.

    Returns:
        The account.

    Raises:
        ValueError: a memory or a mask that does not fit the cache, or memories asked of a call that cannot make them.
    """
    batch_size, length = tokens.shape[:2]
    filled: int | torch.Tensor = 0 if cache is None else cache.get_seq_length()
    continues = bool(filled > 0) if not torch.compiler.is_compiling() else not isinstance(filled, int) or filled > 0
    memory_is_new = memories is not None and memories.states is not None
    memory = 0 if memories is None else _parts(memories)[0].shape[1]
    _check_cache(cache, memory, memory_is_new, continues)

    cached = filled - memory if memory and not memory_is_new else filled
    new_memory = memory if memory_is_new else 0
    sizes: Any = _SizesWithMemory(cache, new_memory) if new_memory else cache
    total = length if sizes is None else sizes.get_mask_sizes(length, 0)[0]
    tokens_mask = _token_mask(config, input_ids, attention_mask, continues)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        _check_mask(attention_mask, batch_size, length, cached)
    four_dimensional = attention_mask is not None and len(attention_mask.shape) == 4
    token_mask = None if four_dimensional else tokens_mask
    return KeyColumns(
        length=length,
        total=total,
        memory=memory,
        memory_is_new=memory_is_new,
        cached=cached,
        continues=continues,
        token_mask=token_mask,
        mask=attention_mask if four_dimensional else _key_mask(token_mask, memories, total),
        sizes=sizes,
        tokens_seen=None if memories is None else memories.tokens_seen,
        to_remember=_to_remember(config, tokens, tokens_mask, memories, continues, return_memories),
        memory_length=config.memory_length,
        device=tokens.device,
    )


def _check_cache(cache: Cache | None, memory: int, memory_is_new: bool, continues: bool) -> None:
    """Holds the memory of this call against what the cache was filled with, and notes a new one."""
    if memory_is_new and continues:
        raise ValueError(
            "memories with states came together with a filled cache. They belong in front of a text's first tokens: "
            "pass them with the first call, and memories.without_states() with the later ones."
        )
    if memory and not memory_is_new and not continues:
        raise ValueError(
            "memories without states came without the cache that took them in. Pass that cache, or the whole memories."
        )
    if cache is None:
        return
    noted = getattr(cache, MEMORY_OF_CACHE, 0)
    if not continues:
        if noted != memory:
            setattr(cache, MEMORY_OF_CACHE, memory)
    elif noted != memory:
        raise ValueError(
            f"The cache begins with {noted} columns of memory, but this call's memories have {memory}. Pass "
            "memories.without_states() of the memories the cache was filled with (none, if there were none)."
        )


def _check_mask(mask: torch.Tensor, batch_size: int, length: int, cached: int | torch.Tensor) -> None:
    enough = mask.shape[1] >= length if isinstance(cached, torch.Tensor) else mask.shape[1] >= cached + length
    if mask.shape[0] != batch_size or not enough:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, but there are {batch_size} rows of {cached} cached and "
            f"{length} new tokens. It covers all tokens so far, without the memory, which has a mask of its own."
        )


def _token_mask(
    config: Ernie3Config, input_ids: torch.Tensor | None, attention_mask: Any, continues: bool
) -> torch.Tensor | None:
    """Which tokens are real: as given, or those that are not the pad id."""
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return attention_mask
    if input_ids is None or config.pad_token_id is None or continues:
        return None
    return input_ids != config.pad_token_id


def _key_mask(token_mask: torch.Tensor | None, memories: Ernie3Memories | None, total: int) -> torch.Tensor | None:
    """(B, S) with the memory's mask in front; columns of a static cache not filled yet count as visible."""
    if token_mask is None and memories is None:
        return None
    parts = [] if memories is None else [_parts(memories)[0]]
    parts += [] if token_mask is None else [token_mask.bool()]
    whole = torch.cat(parts, dim=1)[:, :total]
    return F.pad(whole, (0, total - whole.shape[1]), value=True)


def _to_remember(
    config: Ernie3Config,
    tokens: torch.Tensor,
    token_mask: torch.Tensor | None,
    memories: Ernie3Memories | None,
    continues: bool,
    return_memories: bool | None,
) -> torch.Tensor | None:
    if return_memories is None:
        return_memories = memories is not None and memories.states is not None
    if not return_memories or config.memory_length == 0:
        return None
    if continues:
        raise ValueError(
            "return_memories=True on a filled cache: the states of the cached tokens are not known any more. Run the "
            "whole segment in one call without a cache."
        )
    batch_size, length = tokens.shape[:2]
    mask = torch.ones((batch_size, length), dtype=torch.bool, device=tokens.device)
    if token_mask is not None:
        mask = token_mask[:, :length].bool()
    return mask if memories is None else torch.cat((_parts(memories)[0], mask), dim=1)


__all__ = ["Ernie3Memories", "KeyColumns", "check_memories", "key_columns"]
