"""What a row of ids is to the universal stack: words and soft prompts, positions, types.

A placeholder id stands for one learned soft prompt vector of the row's genre [PT, 2.2]. Source: PT = ERNIE 3.0 Titan,
arXiv 2112.12731. Letters in shape comments: B batch, L tokens, N distances.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.utils import logging

from .attention_ernie3 import relative_rows
from .configuration_ernie3 import Ernie3Config
from .host_inputs import check_columns, check_mask, refuse_integer_pattern, traced

logger = logging.get_logger(__name__)


def check_inputs(
    config: Ernie3Config,
    tokens: torch.Tensor,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    token_type_ids: torch.Tensor | None,
    task_type_ids: torch.Tensor | None,
) -> None:
    """Refuses what does not fit the tokens, (B, L) ids or (B, L, hidden) embeddings; as in the model's forward.

    Raises:
        TypeError: positions or types that are no whole numbers.
        ValueError: another shape, positions or types out of range, a mask that would be left unread.
    """
    check_mask(attention_mask, tokens)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4:
        refuse_integer_pattern(attention_mask)
    check_columns("position_ids", position_ids, tokens)
    for name, types, size in (
        ("token_type_ids", token_type_ids, config.type_vocab_size),
        ("task_type_ids", task_type_ids, config.task_type_vocab_size),
    ):
        check_columns(name, types, tokens, size - 1 if size else None, f" (the embedding has {size} rows)")


def check_documents(
    document_ids: torch.Tensor | None, tokens: torch.Tensor, attention_mask: Any, cache: Any, genre_ids: Any
) -> None:
    """Refuses documents that do not fit the tokens, and what cannot be told apart by document.

    Args:
        document_ids: Must be (B or 1, L) integers from 0 on; or `None`.
        tokens: (B, L) ids or (B, L, width) embeddings.
        attention_mask: As in the model's forward; must not be a pattern.
        cache: Must be `None`.
        genre_ids: Must be `None`.

    Raises:
        TypeError: no tensor of integers.
        ValueError: another shape, a negative number, or one of the three together with documents.
    """
    if document_ids is None:
        return
    check_columns("document_ids", document_ids, tokens)
    pattern = attention_mask if len(getattr(attention_mask, "shape", ())) == 4 else None
    for name, given, why in (
        (
            "a cache",
            cache,
            "its tokens are not numbered, so later ones would see every document. Leave one of them out",
        ),
        ("an attention_mask of four dimensions", pattern, "it is the whole pattern. Keep the documents apart in it"),
        ("genre_ids", genre_ids, "a genre is a whole row's. Give such texts a row each, without document_ids"),
    ):
        if given is not None:
            raise ValueError(f"document_ids came together with {name}: {why}.")


def soft_prompt_rows(
    config: Ernie3Config, input_ids: torch.Tensor, genre_ids: torch.Tensor | None
) -> torch.Tensor | None:
    """Which soft prompt vector stands in place of each token.

    Args:
        config: The settings.
        input_ids: (B, L) int64.
        genre_ids: (B,) int64, or `None`.

    Returns:
        (B, L) int64 rows of the table, genre * length + k for a row's k-th placeholder, -1 at other tokens; `None`
        without genres.

    Raises:
        ValueError: genres for a model without soft prompts, of another shape or out of range; placeholders without
            genres, or more than a genre has vectors.
    """
    if not config.num_soft_prompt_genres:
        if genre_ids is not None:
            raise ValueError("genre_ids were passed, but config.num_soft_prompt_genres=0: this model has no genres.")
        return None
    placeholders = torch.eq(input_ids, config.soft_prompt_token_id)  # type: ignore[arg-type]  # checked by the config
    number = placeholders.long().cumsum(-1)  # 1 at a row's first placeholder
    compiling = torch.compiler.is_compiling()
    if genre_ids is None:
        if not compiling and placeholders.any():
            raise ValueError(
                f"input_ids hold soft prompt placeholders (id {config.soft_prompt_token_id}), but no genre_ids say "
                "whose vectors they stand for. Pass genre_ids of shape (batch,)."
            )
        return None
    if genre_ids.shape != input_ids.shape[:1]:
        raise ValueError(f"genre_ids must have shape ({input_ids.shape[0]},), not {tuple(genre_ids.shape)}.")
    if not compiling:
        if ((genre_ids < 0) | (genre_ids >= config.num_soft_prompt_genres)).any():
            raise ValueError(
                f"genre_ids={genre_ids.tolist()} must lie in 0 .. {config.num_soft_prompt_genres - 1} "
                "(config.num_soft_prompt_genres)."
            )
        if number.numel() and (most := int(number.max())) > config.soft_prompt_length:
            raise ValueError(
                f"A row has {most} soft prompt placeholders, but a genre has {config.soft_prompt_length} vectors "
                "(config.soft_prompt_length)."
            )
    rows = genre_ids[:, None] * config.soft_prompt_length + number - 1
    return rows.masked_fill(~placeholders, -1)


def rows_of_positions(config: Ernie3Config, position_ids: torch.Tensor) -> torch.Tensor:
    """The rows of the table of absolute positions, by `config.position_overflow`.

    Whether any position lies behind the table is looked at on the CPU, and elsewhere for more than one token only: a
    look waits for the device, and would at every step of a generation.

    Args:
        config: The settings.
        position_ids: (B or 1, L) int64, at least 0.

    Returns:
        The rows, of the same shape.

    Raises:
        ValueError: a position behind the table, with `"refuse"`.
    """
    rows, overflow = config.max_position_embeddings, config.position_overflow
    if overflow == "last":
        return position_ids.clamp_max(rows - 1)
    looks = (position_ids.shape[-1] > 1 and not position_ids.is_meta) or position_ids.device.type == "cpu"
    if looks and not traced() and bool((position_ids >= rows).any()):
        if overflow == "refuse":
            raise ValueError(
                f"Position {int(position_ids.max())} is behind the table of max_position_embeddings={rows} rows, and "
                "position_overflow='refuse'. End the document earlier (reset its memories), or set "
                "config.position_overflow to 'wrap'."
            )
        logger.warning_once(
            f"A document is longer than max_position_embeddings={rows} tokens: its positions are counted on from 0 "
            "again (config.position_overflow='wrap'). 'refuse' makes this an error; "
            "position_embedding_type='relative' has no such end."
        )
    return position_ids % rows


class Embedded(NamedTuple):
    """What [`Ernie3Embeddings`] returns.

    Attributes:
        hidden_states: (B, L, hidden), the input of the universal stack.
        relative_states: (N, hidden), a row for each distance; `None` where positions are absolute.
        type_states: (B, M + L, hidden), the types of the keys; `None` where there are none or positions are absolute.
    """

    hidden_states: torch.Tensor
    relative_states: torch.Tensor | None = None
    type_states: torch.Tensor | None = None


class Ernie3Embeddings(nn.Module):
    """Word and absolute position, summed: no norm and no dropout. Types are added where the config has them.

    The tables may lie on several devices, and FSDP may share each of them out for itself. What they give is added
    where the words are.

    With relative positions the sum is of words alone; positions and types go through a norm of their own into every
    layer's scores, as in ERNIE-Doc.
    """

    def __init__(self, config: Ernie3Config):
        super().__init__()
        self.config = config
        self.relative = config.position_embedding_type == "relative"
        rows = config.max_position_embeddings
        if self.relative:
            rows = 2 * rows + config.memory_length
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(rows, config.hidden_size)
        self.has_types = bool(config.type_vocab_size or config.task_type_vocab_size)
        if config.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        if config.task_type_vocab_size:
            self.task_type_embeddings = nn.Embedding(config.task_type_vocab_size, config.hidden_size)
        if config.num_soft_prompt_genres:
            vectors = config.num_soft_prompt_genres * config.soft_prompt_length
            self.soft_prompt_embeddings = nn.Embedding(vectors, config.hidden_size)
        if self.relative:
            self.position_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            if self.has_types:
                self.type_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        genre_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        task_type_ids: torch.Tensor | None,
        continues: bool,
        distances: torch.Tensor | None,
        new_memory: int,
    ) -> Embedded:
        """Reads every table that a call needs: outside of this method FSDP and ZeRO keep the tables in parts.

        Args:
            input_ids: (B, L) int64, or `None` with embeddings.
            inputs_embeds: (B, L, hidden) or `None`.
            genre_ids: (B,) int64 or `None`.
            position_ids: (B or 1, L) int64; for one behind the table see [`rows_of_positions`]. Not read where
                positions are relative.
            token_type_ids: (B, L) int64; `None`: type 0.
            task_type_ids: Likewise.
            continues: Whether a filled cache precedes: placeholders are words then.
            distances: (N,) int64, query position minus key position, where positions are relative; else `None`.
            new_memory: M, columns of memory in front of the tokens that no cache holds yet.
        """
        words = self._words(input_ids, inputs_embeds, genre_ids, continues)
        types = self._types(token_type_ids, task_type_ids, words)
        table = self.position_embeddings
        if distances is None:
            assert position_ids is not None
            words = words + table(rows_of_positions(self.config, position_ids)).to(words.device)
            return Embedded(words if types is None else words + types)
        rows = relative_rows(distances, self.config.max_position_embeddings, table.num_embeddings)
        if types is not None:
            # as ERNIE-Doc: the memory has the type of the segment's first token
            types = torch.cat((types[:, :1].expand(-1, new_memory, -1), types), dim=1)
            types = self.type_norm(types)
        return Embedded(words, self.position_norm(table(rows)), types)

    def _words(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        genre_ids: torch.Tensor | None,
        continues: bool,
    ) -> torch.Tensor:
        """(B, L) ids -> (B, L, hidden), soft prompt vectors in place of their placeholders; embeddings as they are."""
        if input_ids is None:
            assert inputs_embeds is not None
            if genre_ids is not None:
                raise ValueError("genre_ids name soft prompts of placeholders in input_ids; inputs_embeds have none.")
            return inputs_embeds
        words = self.word_embeddings(input_ids)
        rows = None if continues else soft_prompt_rows(self.config, input_ids, genre_ids)
        if rows is None:
            return words
        prompts = self.soft_prompt_embeddings(rows.clamp_min(0)).to(words.device)
        return torch.where((rows >= 0)[..., None].to(words.device), prompts, words)

    def _types(
        self, token_type_ids: torch.Tensor | None, task_type_ids: torch.Tensor | None, words: torch.Tensor
    ) -> torch.Tensor | None:
        """The sum of both type embeddings, (B, L, hidden), type 0 where none is given; `None` without embeddings."""
        if not self.has_types:
            return None
        zeros = torch.zeros(words.shape[:2], dtype=torch.long, device=words.device)
        types = torch.zeros_like(words)
        if self.config.type_vocab_size:
            of_tokens = self.token_type_embeddings(zeros if token_type_ids is None else token_type_ids)
            types = types + of_tokens.to(types.device)
        if self.config.task_type_vocab_size:
            of_tasks = self.task_type_embeddings(zeros if task_type_ids is None else task_type_ids)
            types = types + of_tasks.to(types.device)
        return types


__all__ = [
    "Embedded",
    "Ernie3Embeddings",
    "check_documents",
    "check_inputs",
    "rows_of_positions",
    "soft_prompt_rows",
]
