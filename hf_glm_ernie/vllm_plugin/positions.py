"""Where the tokens of a request stand, as vLLM's three position channels carry it.

Pure functions. vLLM counts a request's positions itself, unless its config says that the model brings positions (the
interface for multimodal rotary positions): then the model gives (3, L) positions of the prompt and one number
`delta`, and a decoding step gets `tokens before it + delta` in every channel. The layout of GLM-130B in it:

- Channel 0 of a prompt: the position.
- Channels 1 and 2 of a prompt: the length of the request's bidirectional context (0 in a causal text).
- `delta`: 0 where the answer counts on; where it keeps the position k of its mask, `(k + 1) * KEPT`. A code of
  `KEPT` or more is therefore a kept position and a token's number added up.

Positions follow from all tokens of a request, so a request that was preempted gets the same ones again.
"""

import torch

from hf_glm_ernie.configuration_glm130b import Glm130bConfig
from hf_glm_ernie.prefix_glm130b import layout, row_states

CHANNELS = 3
KEPT = 1 << 16
LONGEST_CONTEXT = (1 << 15) - 2
"""Tokens: `delta` has to fit in 32 bits, as one of vLLM's two model runners holds it."""


def request_positions(config: Glm130bConfig, input_ids: list[int]) -> tuple[torch.Tensor, int]:
    """Lays a request out as the model's own `forward` would.

    Args:
        config: Read for the ids of `<sop>`, `[MASK]` and `[sMASK]`.
        input_ids: The prompt; behind a preemption perhaps with what was generated.

    Returns:
        (3, L) int64 and `delta`, see the module.
    """
    ids = torch.tensor([input_ids])
    types, positions = layout(config, ids)
    state = row_states(types, positions, None, (types == 0).any(-1, keepdim=True)).item()
    context = torch.full_like(positions, int((types == 0).sum()))
    return torch.cat((positions, context, context)), (int(state) + 1) * KEPT if state >= 0 else 0


def decoded(codes: torch.Tensor) -> torch.Tensor:
    """(L,) positions of channel 0, whatever of the two they are coded as. Only arithmetic: it is compiled."""
    return torch.where(codes >= KEPT, codes // KEPT - 1, codes)
