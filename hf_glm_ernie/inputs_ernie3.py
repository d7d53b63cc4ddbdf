"""Where the soft prompts of ERNIE 3.0 Titan stand in a row of ids: a function on tensors.

A placeholder id stands for one learned vector of the row's genre [PT, 2.2]. Source: PT = ERNIE 3.0 Titan, arXiv
2112.12731. Letters in shape comments: B batch, L tokens.
"""

import torch

from .configuration_ernie3 import Ernie3Config


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


__all__ = ["soft_prompt_rows"]
