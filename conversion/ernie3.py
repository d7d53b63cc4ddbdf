"""ERNIE 3.0's unified model (10B): the conversions from its static graph's files to transformers' and back, planned.

Forward: the branches there are, their sizes and the settings are held against each other, and one table gives the
plan. A model may have both branches or one. Heads of other tasks and what a training run leaves in the folder are left
out and named; any other name that the table does not know is an error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from hf_glm_ernie.configuration_ernie3 import Ernie3Config

from .ernie3_files import (
    Origin,
    check_vocabulary,
    load_tokenizer,
    read_config,
    read_origin,
    static_settings,
    write_first,
    write_last,
    write_static_files,
)
from .ernie3_names import (
    TABLE,
    canonical_names,
    count_layers,
    find_first_layers,
    heads_of_other_tasks,
    refuse_other_models,
    static_name,
)
from .ernie3_settings import Choices, build_config, read_sizes
from .ernie_names import TRAINING_STATE
from .ernie_settings import read_settings
from .folder_files import count, main_dtype
from .job import Job
from .operations import Shape, Split
from .paddle_files import PaddleFiles, open_paddle_source
from .paddle_lod import LodFile
from .readers import CheckpointError, SafetensorsFolder
from .state_map import Plan
from .writer import plan_shards

ExpectedShapes = Callable[[str, Ernie3Config], Mapping[str, Shape]]
"""Names and shapes that a class of this package, given by name, has."""

ARCHITECTURES = ("Ernie3ForPreTraining", "Ernie3ForCausalLM", "Ernie3ForMaskedLM")
"""Classes whose parameters all have static names."""

WHOLE = Split(ranks=1, heads=1)


@dataclass(frozen=True)
class ForwardOptions:
    """Choices of a conversion from static files.

    Attributes:
        settings: JSON file; default: the one beside the weights.
        vocab: `vocab.txt`; default: the one beside the weights.
        choices: Settings that neither files nor tensors tell.
        dtype: What the weights become; `None` keeps theirs.
        max_shard_bytes: Upper limit of a shard's data.
    """

    settings: Path | None = None
    vocab: Path | None = None
    choices: Choices = field(default_factory=Choices)
    dtype: torch.dtype | None = None
    max_shard_bytes: int = 5 * 10**9


def plan_forward(source: Path, options: ForwardOptions, expected: ExpectedShapes) -> Job:
    """Plans a conversion of static files into a folder for `from_pretrained`. Writes nothing.

    Args:
        source: A folder of one file for each variable, or a combined file; see `paddle_files.open_paddle_source`.
        options: The user's choices.
        expected: Gives the names and shapes a target class has.

    Raises:
        ConversionError: anything about the files, the settings or the vocabulary that does not fit.
    """
    checkpoint = open_paddle_source(source)
    left_out = {name: "state of the training" for name in checkpoint.specs if TRAINING_STATE.fullmatch(name)}
    names = [name for name in checkpoint.specs if name not in left_out]
    refuse_other_models(names, source)
    other_heads = heads_of_other_tasks(names)
    left_out |= dict.fromkeys(other_heads, "the head of a task this package's model does not have")
    names = [name for name in names if name not in left_out]
    universal = count_layers(names, source)
    first_layers = find_first_layers(names, universal, source)
    in_files = canonical_names(names, first_layers)
    specs = {name: checkpoint.specs[in_file] for name, in_file in in_files.items()}
    branches = {
        branch: sum(f"{branch}_encoder_layer_{layer}_ffn_fc_0.w_0" in specs for layer in range(len(specs)))
        for branch in first_layers
    }
    settings = read_settings(checkpoint.folder, options.settings)
    tokenizer = load_tokenizer(checkpoint.folder, options.vocab)
    sizes = read_sizes(specs, universal, branches, source)
    notices = check_vocabulary(tokenizer, sizes.vocab_size)
    config, config_notices = build_config(settings, sizes, branches, options.choices, tokenizer)
    architecture = choose_architecture(specs)
    config.architectures = [architecture]
    plan = _read_from(TABLE.forward(specs, WHOLE, expected(architecture, config), options.dtype), in_files)
    files = plan_shards(plan.tensors, options.max_shard_bytes, {"format": "pt"})
    dtype, dtype_notices = main_dtype(plan, specs.values())
    origin = Origin(checkpoint.kind, settings.values, first_layers, left_out)

    def first(folder: Path) -> None:
        write_first(folder, config, dtype, tokenizer)

    def last(folder: Path, digests: Mapping[str, str]) -> None:
        write_last(folder, config, files, replace(origin, sha256=digests), tokenizer is not None)

    return Job(
        title=f"ERNIE 3.0 {source} ({checkpoint.kind}, {' and '.join(branches)}) -> safetensors for {architecture}",
        source=checkpoint,
        plan=plan,
        files=files,
        order=[(file.name, position) for file in files for position in range(len(file.tensors))],
        options={"dtype": str(options.dtype), "config": config.to_json_string()},
        write_first=first,
        write_last=last,
        reopen=lambda folder: _reopen(SafetensorsFolder(folder), plan, folder),
        notices=[*notices, *config_notices, *dtype_notices, *_notices_on_left_out(left_out)],
    )


def plan_reverse(source: Path, dtype: torch.dtype | None, expected: ExpectedShapes) -> Job:
    """Plans writing the static graph's files, one for each variable, from a folder for `from_pretrained`.

    Writes nothing. A branch's layers are counted as in the files the folder was converted from, else on from the
    universal stack's, as the original does.

    Args:
        source: A converted, or fine-tuned, folder of one of `ARCHITECTURES`.
        dtype: What the weights become; `None` keeps theirs.
        expected: Gives the names and shapes the source class has.

    Raises:
        ConversionError: anything about the folder that does not fit.
    """
    config, architecture = read_config(source)
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{source}: a {architecture}, whose parameters the static graph has no names for; it has them for "
            f"{', '.join(ARCHITECTURES)}. Save the model as one of these."
        )
    checkpoint = SafetensorsFolder(source)
    origin = read_origin(source)
    first_layers = dict.fromkeys(("nlu", "nlg"), config.num_hidden_layers) | dict(
        origin.first_layers if origin else {}
    )
    specs = checkpoint.specs
    plan = TABLE.reverse(specs, WHOLE, expected(architecture, config), dtype)
    plan = replace(plan, tensors=tuple(replace(t, name=static_name(t.name, first_layers)) for t in plan.tensors))
    files = [LodFile(tensor) for tensor in plan.tensors]
    _, notices = main_dtype(plan, specs.values())
    settings = static_settings(config, origin)

    return Job(
        title=f"ERNIE 3.0 {source} ({architecture}) -> static files, one for each variable",
        source=checkpoint,
        plan=plan,
        files=files,
        order=[(file.name, 0) for file in files],
        options={"dtype": str(dtype), "reverse": "yes"},
        write_first=lambda folder: write_static_files(folder, settings, source),
        write_last=lambda folder, digests: None,
        reopen=lambda folder: _reopen(open_paddle_source(folder), plan, folder),
        notices=notices,
    )


def choose_architecture(names: Mapping[str, object]) -> str:
    """The class that has exactly these parameters, from canonical names."""
    if not any(name.startswith("nlu_") for name in names):
        return "Ernie3ForCausalLM"
    pre_trained = any(name.startswith(("nlg_", "nlu_pooled_fc")) for name in names)
    return "Ernie3ForPreTraining" if pre_trained else "Ernie3ForMaskedLM"


def _read_from(plan: Plan, in_files: Mapping[str, str]) -> Plan:
    """The plan with the names that the source's files have."""
    return replace(
        plan,
        tensors=tuple(
            replace(tensor, pieces=tuple(replace(piece, source=in_files[piece.source]) for piece in tensor.pieces))
            for tensor in plan.tensors
        ),
    )


def _reopen(written: SafetensorsFolder | PaddleFiles, plan: Plan, folder: Path) -> None:
    if written.specs != {tensor.name: tensor.spec for tensor in plan.tensors}:
        raise CheckpointError(f"{folder}: the files do not hold the planned tensors")


def _notices_on_left_out(left_out: Mapping[str, str]) -> Sequence[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"left out: {count(len(names), 'tensor')}, {', '.join(names)} ({reason})"
        for reason, names in by_reason.items()
    ]


__all__ = ["ARCHITECTURES", "ExpectedShapes", "ForwardOptions", "choose_architecture", "plan_forward", "plan_reverse"]
