"""ERNIE 3.0's unified model (10B): the names of its static graph, and the one table onto this package's names.

Known from the original's code: everything but the NLU branch's head and the task heads. Their names are chosen by
analogy: `nlu_` for `nlg_`, `nlu_pooled_fc` (all of Baidu's models have a `pooled_fc`), and `<task>_fc`, with the task
name of ERNIE-Doc for sentence reordering.

The layers of a branch are counted on from the universal stack's, `nlg_encoder_layer_48` being the first of the 10B's.
Folders that count them from 0 are read, too. `canonical_names` counts from 0 for the table; `static_name` goes back.

A Linear of Paddle is [in, out] and is transposed; embeddings are not.

Sources: PaddleNLP, side branch with `transformers/ernie3/match_static_to_dygraph.py`; ERNIE-kit
`erniekit/modules/ernie_lr.py`; ERNIE-Doc `configs/base/zh/task.json`.
"""

import re
from collections.abc import Mapping, Sequence

from .ernie_names import STATIC_LAYER_PARTS
from .layer_numbers import NUMBER, numbers_in, without_gaps
from .lazy_files import CheckpointError
from .operations import Replicated, Transposed
from .state_map import Row, StateMap, pair

BRANCHES = ("nlu", "nlg")
PROJECTION = "sharing_to_task_fc.w_0"
WORDS, POSITIONS, TYPES, TASK_TYPES = "word_embedding", "pos_embedding", "sent_embedding", "task_embedding"

TASK_HEADS = {"reorder": "multi_sent_sorted_fc", "distance": "sentence_distance_fc", "credible": "credible_fc"}
"""Head of this package -> Linear of the static graph."""

LAYER_PARTS = {static.replace("post_", "pre_"): name for static, name in STATIC_LAYER_PARTS.items()}
"""As in the encoders, but for LayerNorms before a layer's halves."""

UNSUPPORTED = (
    (r"emb_hidden_mapping.*", "a factorised embedding, which only sibling models have"),
    (r"pre_encoder_layer_norm_(scale|bias)", "a LayerNorm of the embeddings, which only sibling models have"),
    (
        r".*encoder_layer_[0-9]+_post_(att|ffn)_layer_norm_(scale|bias)",
        "LayerNorms behind a layer's halves, not before",
    ),
    (r".*(_pos_fc\.[wb]_0|r_[wrt]_bias)", "relative positions, whose static names nothing public tells"),
)
"""Names of parameters that this package's model cannot compute with, and what they are."""

_HEAD = re.compile(r"(?!.*(encoder_layer|mask_lm|pooled|sharing_to_task|emb_)).+_fc\.[wb]_0")
"""The head of a task, `<task>_fc`."""

_BRANCH_LAYER = re.compile(rf"(nlu|nlg)_encoder_layer_({NUMBER})_(.+)")
_UNIVERSAL_LAYER = re.compile(rf"encoder_layer_({NUMBER})_.+")


def _linear(source: str, target: str) -> tuple[Row, Row]:
    return pair(source, (target,), Transposed(), Replicated(), (".w_0", ".b_0"))


def _norm(source: str, target: str) -> tuple[Row, Row]:
    return pair(source, (target,), Replicated(), Replicated(), ("_scale", "_bias"))


def _layers(source: str, target: str) -> tuple[Row, ...]:
    return tuple(
        row
        for old, new in LAYER_PARTS.items()
        for row in (_norm if "norm" in old else _linear)(f"{source}_{{i}}_{old}", f"{target}.{{i}}.{new}")
    )


def _branch(name: str) -> tuple[Row, ...]:
    head, static = f"{name}_lm_head", f"{name}_mask_lm"
    return (
        *_layers(f"{name}_encoder_layer", f"ernie3.branches.{name}.layers"),
        *_norm(f"{name}_post_encoder_layer_norm", f"ernie3.branches.{name}.norm"),
        *_linear(f"{static}_trans_fc", f"{head}.transform"),
        *_norm(f"{static}_trans_layer_norm", f"{head}.layer_norm"),
        *_linear(f"{static}_out_fc", f"{head}.decoder"),
    )


def _embedding(source: str, target: str) -> Row:
    return Row(source, (f"ernie3.embeddings.{target}_embeddings.weight",), Replicated())


TABLE = StateMap(
    "static ERNIE 3.0",
    (
        _embedding(WORDS, "word"),
        _embedding(POSITIONS, "position"),
        _embedding(TYPES, "token_type"),
        _embedding(TASK_TYPES, "task_type"),
        *_layers("encoder_layer", "ernie3.encoder.layers"),
        *_norm("server_post_encoder_layer_norm", "ernie3.encoder_norm"),
        Row(PROJECTION, ("ernie3.task_projection.weight",), Transposed()),
        *(row for branch in BRANCHES for row in _branch(branch)),
        *_linear("nlu_pooled_fc", "pooler.dense"),
        *(row for head, static in TASK_HEADS.items() for row in _linear(static, f"{head}_head")),
    ),
)
"""Static names, a branch's layers counted from 0 <-> names of `Ernie3ForPreTraining`."""

_OWN_HEADS = frozenset(f"{static}.{part}" for static in TASK_HEADS.values() for part in ("w_0", "b_0"))


def refuse_other_models(names: Sequence[str], where: object) -> None:
    """Makes sure that the names are a unified model's, and one's that this package has.

    Raises:
        CheckpointError: they are not; the message lists those that tell.
    """
    problems = []
    for pattern, what in UNSUPPORTED:
        matching = sorted(name for name in names if re.fullmatch(pattern, name))
        if matching:
            shown = ", ".join(matching[:4]) + (f" and {len(matching) - 4} more" if len(matching) > 4 else "")
            problems.append(f"{what}: {shown}")
    if PROJECTION in names and not problems:
        return
    if PROJECTION not in names:
        some = ", ".join(sorted(names)[:4]) or "none"
        raise CheckpointError(
            f"{where}: no {PROJECTION}, which leads from the universal stack to the branches, so this is not ERNIE "
            f"3.0's unified model. Names found: {some} ... Released encoders (ernie-3.0-*) are converted by the "
            "command `ernie`."
        )
    listed = "\n".join(f"  {problem}" for problem in problems)
    raise CheckpointError(
        f"{where}: parameters that this package's model does not have:\n{listed}\nThe result would compute something "
        "else, so nothing was written."
    )


def heads_of_other_tasks(names: Sequence[str]) -> list[str]:
    """Names of the heads of tasks that this package's model does not have."""
    return [name for name in names if _HEAD.fullmatch(name) and name not in _OWN_HEADS]


def count_layers(names: Sequence[str], where: object) -> int:
    """How many layers the universal stack has.

    Raises:
        CheckpointError: none, or there is a gap.
    """
    return without_gaps(numbers_in(names, _UNIVERSAL_LAYER), "encoder_layer_*", where)


def find_first_layers(names: Sequence[str], universal: int, where: object) -> dict[str, int]:
    """The number of the first layer of each branch there is: that of the universal stack's layers, or 0.

    Args:
        names: Static names.
        universal: Layers of the universal stack.
        where: The checkpoint, for messages.

    Raises:
        CheckpointError: no branch; a branch that begins with another number, has gaps or counts both ways; branches
            that count differently.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        match = _BRANCH_LAYER.fullmatch(name)
        if match is not None:
            numbers.setdefault(match.group(1), set()).add(int(match.group(2)))
    if not numbers:
        raise CheckpointError(
            f"{where}: no branch: neither nlu_encoder_layer_* nor nlg_encoder_layer_*. Take the complete checkpoint."
        )
    first = {}
    for branch, layers in sorted(numbers.items()):
        start = 0 if 0 in layers else universal
        if start == 0 and universal in layers and set(range(universal)) - layers:
            raise CheckpointError(
                f"{where}: {branch}_encoder_layer_* counts both from 0 and from {universal}, behind the universal "
                "stack's layers. These are the files of two models; remove one's."
            )
        behind_what = "" if start == 0 else f", counted on from the universal stack's {universal}"
        without_gaps(layers, f"{branch}_encoder_layer_*", where, start, behind_what)
        first[branch] = start
    if len(set(first.values())) > 1:
        raise CheckpointError(
            f"{where}: the layers of one branch count from 0, those of the other from {universal}: "
            f"{', '.join(f'{branch}_encoder_layer_{start}' for branch, start in first.items())}. These are the files "
            "of two models; take one model's, or rename them."
        )
    return first


def canonical_names(names: Sequence[str], first_layers: Mapping[str, int]) -> dict[str, str]:
    """Name with a branch's layers counted from 0 -> name in the files."""
    return {_counted_on(name, {branch: -first for branch, first in first_layers.items()}): name for name in names}


def static_name(name: str, first_layers: Mapping[str, int]) -> str:
    """The inverse of `canonical_names`, for one name."""
    return _counted_on(name, first_layers)


def _counted_on(name: str, numbers: Mapping[str, int]) -> str:
    match = _BRANCH_LAYER.fullmatch(name)
    if match is None:
        return name
    branch, layer, rest = match.groups()
    return f"{branch}_encoder_layer_{int(layer) + numbers[branch]}_{rest}"


__all__ = [
    "BRANCHES",
    "POSITIONS",
    "PROJECTION",
    "TABLE",
    "TASK_HEADS",
    "TASK_TYPES",
    "TYPES",
    "WORDS",
    "canonical_names",
    "count_layers",
    "find_first_layers",
    "heads_of_other_tasks",
    "refuse_other_models",
    "static_name",
]
