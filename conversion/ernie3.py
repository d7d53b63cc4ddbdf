"""ERNIE 3.0's unified model (10B): the conversions from its static graph's files to transformers' and back, planned.

Forward: the branches there are, their sizes and the settings are held against each other, and one table gives the
plan. A model may have both branches or one. Heads of other tasks and what a training run leaves in the folder are left
out and named; any other name that the table does not know is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from hf_glm_ernie.configuration_ernie3 import HUB_CLASSES, Ernie3Config

from .converted_folder import ConvertedFolder, Record, check_plain, read_config, read_record
from .ernie3_files import (
    check_supported,
    check_vocabulary,
    load_tokenizer,
    model_card,
    static_settings,
    write_static_files,
)
from .ernie3_names import (
    BRANCHES,
    TABLE,
    canonical_names,
    count_layers,
    find_first_layers,
    heads_of_other_tasks,
    refuse_other_models,
    static_name,
)
from .ernie3_settings import CONFIG_KINDS, KINDS, Choices, build_config, held_sizes, read_sizes
from .ernie_names import state_of_training
from .ernie_settings import read_settings
from .ernie_vocabulary import files_beside
from .folder_files import RECORD, main_dtype, notices_on_left_out
from .job import ExpectedShapes, Job
from .job import ForwardOptions as CommonOptions
from .lazy_files import CheckpointError
from .operations import WHOLE
from .paddle_files import open_paddle_source
from .paddle_lod import LodFile
from .safetensors_files import SafetensorsFolder
from .setting_kinds import LAYERS, OBJECT, TEXT, object_of
from .writer import plan_shards

ARCHITECTURES = ("Ernie3ForPreTraining", "Ernie3ForCausalLM", "Ernie3ForMaskedLM")
"""Classes whose parameters all have static names."""

FIRST_LAYERS = object_of(BRANCHES.__contains__, LAYERS, f"an object of {' and '.join(BRANCHES)} and whole numbers")
"""Branch -> number of its first layer, in a record."""


@dataclass(frozen=True)
class ForwardOptions(CommonOptions):
    """Choices of a conversion from static files.

    Attributes:
        vocab: `vocab.txt`; default: the one beside the weights.
        choices: Settings that neither files nor tensors tell.
    """

    vocab: Path | None = None
    choices: Choices = field(default_factory=Choices)


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
    beside = files_beside(checkpoint.folder, options.settings, options.vocab)
    left_out = state_of_training(checkpoint.specs)
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
    settings = read_settings(checkpoint.folder, options.settings, KINDS)
    tokenizer = load_tokenizer(checkpoint.folder, options.vocab)
    sizes = read_sizes(specs, universal, branches, source)
    notices = check_vocabulary(tokenizer, sizes.vocab_size)
    config, config_notices = build_config(settings, sizes, branches, options.choices, tokenizer)
    architecture = choose_architecture(specs)
    config.architectures = [architecture]
    plan = TABLE.forward(specs, WHOLE, expected(architecture, config), options.dtype).read_from(in_files)
    files = plan_shards(plan.tensors, options.max_shard_bytes, {"format": "pt"})
    dtype, dtype_notices = main_dtype(plan, specs.values())
    small = ConvertedFolder(
        config,
        dtype,
        files,
        Record({"kind": checkpoint.kind, "settings": settings.values, "first_layers": first_layers}, left_out),
        partial(model_card, config, tokenizer is not None),
        tokenizer,
        HUB_CLASSES,
    )
    return Job(
        title=f"ERNIE 3.0 {source} ({checkpoint.kind}, {' and '.join(branches)}) -> safetensors for {architecture}",
        source=checkpoint,
        plan=plan,
        files=files,
        options=options.decisions | {"config": config.to_json_string()},
        beside=beside,
        write_first=small.write_first,
        reopen=lambda folder: SafetensorsFolder(folder).specs,
        write_last=small.write_last,
        notices=[*notices, *config_notices, *dtype_notices, *notices_on_left_out(left_out, name_all=True)],
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
    beside = files_beside(source, source / RECORD)
    config, raw, checkpoint = read_config(
        source, [Ernie3Config], "an ERNIE 3.0 model", check_plain, CONFIG_KINDS, held_sizes
    )
    check_supported(config, source)
    architecture = raw["architectures"][0]
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{source}: a {architecture}, whose parameters the static graph has no names for; it has them for "
            f"{', '.join(ARCHITECTURES)}. Save the model as one of these."
        )
    record = read_record(source, {"kind": TEXT, "settings": OBJECT, "first_layers": FIRST_LAYERS}, KINDS)
    first_layers = dict.fromkeys(("nlu", "nlg"), config.num_hidden_layers)
    first_layers |= record.source["first_layers"] if record else {}
    specs = checkpoint.specs
    plan = TABLE.reverse(specs, WHOLE, expected(architecture, config), dtype)
    plan = replace(plan, tensors=tuple(replace(t, name=static_name(t.name, first_layers)) for t in plan.tensors))
    files = [LodFile(tensor) for tensor in plan.tensors]
    _, notices = main_dtype(plan, specs.values())
    settings = static_settings(config, record)

    return Job(
        title=f"ERNIE 3.0 {source} ({architecture}) -> static files, one for each variable",
        source=checkpoint,
        plan=plan,
        files=files,
        options={"dtype": str(dtype), "reverse": "yes"},
        beside=beside,
        write_first=lambda folder: write_static_files(folder, settings, source),
        reopen=lambda folder: open_paddle_source(folder).specs,
        notices=notices,
    )


def choose_architecture(names: Mapping[str, object]) -> str:
    """The class that has exactly these parameters, from canonical names."""
    if not any(name.startswith("nlu_") for name in names):
        return "Ernie3ForCausalLM"
    pre_trained = any(name.startswith(("nlg_", "nlu_pooled_fc")) for name in names)
    return "Ernie3ForPreTraining" if pre_trained else "Ernie3ForMaskedLM"


__all__ = ["ARCHITECTURES", "ForwardOptions", "choose_architecture", "plan_forward", "plan_reverse"]
