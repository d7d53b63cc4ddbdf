"""The rows that one step hands to an attention kernel, so that contexts are bidirectional and answers causal.

Pure functions. vLLM hands a kernel one row for each request: its new tokens are the queries, all its tokens so far
the keys, and one switch for all says whether the queries are causal among themselves. A prompt of GLM-130B is both: a
context whose C tokens see each other, then `<sop>` and perhaps a begun answer, causal. So the step's rows are not
causal, and a prompt becomes several of them over the same blocks of the cache: its context, C queries over C keys; and
one row of a single query for each token behind, which sees what is before it and itself.

    prompt      c c c c s a          queries   keys (the first ones of the request)
    rows        [c c c c]                  4      4
                        [s]                1      5
                          [a]              1      6

Queries keep their order, so nothing else of the step changes. A step without a context is left as it is.
"""

from itertools import accumulate
from typing import NamedTuple


class Rows(NamedTuple):
    """The rows of one step.

    Attributes:
        requests: For each row the number of its request in the step.
        queries: For each row its queries.
        keys: For each row its keys.
    """

    requests: list[int]
    queries: list[int]
    keys: list[int]


def split(queries: list[int], keys: list[int], contexts: list[int]) -> Rows | None:
    """Splits the rows of a step.

    Args:
        queries: New tokens of each request; 0 in a row that only fills a graph.
        keys: Tokens of each request, the new ones included.
        contexts: Length of the context of each request that is a prompt in this step; read only there.

    Returns:
        The rows, not causal; `None` where no prompt of the step has a context, so that its rows may remain, causal.

    Raises:
        RuntimeError: a prompt with a context comes in pieces.
    """
    prompts = [index for index, count in enumerate(queries) if count > 1]
    if not any(contexts[index] > 0 for index in prompts):
        return None
    rows = Rows([], [], [])
    for index, (count, seen) in enumerate(zip(queries, keys, strict=True)):
        context = contexts[index] if count > 1 else 0
        if context > 0 and seen != count:
            raise RuntimeError(
                f"vLLM computes {count} of the {seen} tokens of a prompt in one step, but its {context} tokens of "
                "context see each other and must be computed together. Report this with your options: prompts in "
                "pieces are turned off when the engine starts."
            )
        pieces = [context] if context > 0 else []
        pieces += [1] * (count - context) or [0]  # 0: a row that only fills a graph
        rows.requests.extend([index] * len(pieces))
        rows.queries.extend(pieces)
        rows.keys.extend(seen - count + reached for reached in accumulate(pieces))
    return rows
