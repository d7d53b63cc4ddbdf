"""What is wrong with the ids of a request, in words. Pure functions: what they return goes into the answer."""

from collections.abc import Sequence
from typing import Any

MASKS = ("mask_token_id", "gmask_token_id", "smask_token_id")


def unknown_ids(token_ids: Sequence[int], tokens: int) -> str:
    """What is wrong with ids that have no token; empty where every one has."""
    wrong = sorted({index for index in token_ids if not 0 <= index < tokens})
    if not wrong:
        return ""
    return f"The ids {wrong[:5]} have no token: there are the ids 0 .. {tokens - 1}."


def mixed_masks(token_ids: Sequence[int], config: Any) -> str:
    """What is wrong with the masks before the first `<sop>`; empty where they are of one kind."""
    ids = list(token_ids)
    if config.sop_token_id not in ids:
        return ""
    context = set(ids[: ids.index(config.sop_token_id)])
    kinds = [name for name in MASKS if getattr(config, name) in context]
    if len(kinds) < 2:
        return ""
    named = " and ".join(f"{getattr(config, name)} ({name})" for name in kinds)
    return f"The context holds two kinds of mask, {named}: GLM-130B fills one kind at a time. Keep one kind."


def cut_prompt(token_ids: Sequence[int], longest: int | None) -> str:
    """What is wrong with cutting ids to `truncate_prompt_tokens`; empty where nothing is cut."""
    if longest is None or longest < 0 or len(token_ids) <= longest:
        return ""
    return (
        f"truncate_prompt_tokens={longest} would cut a chat or a prompt of {len(token_ids)} ids wherever the limit "
        "falls, its mask or <sop> too. Send a shorter one, or a text: a text is cut where its mask stays."
    )


def no_room(token_ids: Sequence[int], context: int) -> str:
    """What is wrong with the length of a prompt that is to be answered; empty where a token has room."""
    if len(token_ids) < context:
        return ""
    return (
        f"The prompt has {len(token_ids)} tokens and the context of the model {context}: no room is left to "
        "generate. Shorten the prompt."
    )
