"""ERNIE 3.0's released encoders: the conversions from PaddleNLP's files to transformers' and back, planned.

Forward: names are brought to PaddleNLP's 2.5 form, the task is chosen, tensors and settings are held against each
other, and the table of the task gives the plan. Nothing is left out silently: a head the user does not ask for, the
distillation layer of micro and nano and second copies of tied tensors are named; any other name is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import ErnieConfig, PreTrainedConfig, PreTrainedTokenizerFast

from hf_glm_ernie.tokenization_ernie import ErnieTokenizer

from .converted_folder import ConvertedFolder, Record, read_config, read_record
from .ernie_files import check_config, hub_classes, model_card, original_config, write_original_files
from .ernie_names import (
    CLASSIFIER,
    CLASSIFIER_TASKS,
    GRAM,
    GRAM_CLASS,
    GRAM_TASKS,
    OTHER_NETWORKS,
    PREFIX,
    TASK_EMBEDDINGS,
    TASK_NAMES,
    TASKS,
    TELLTALES,
    WORD_EMBEDDINGS,
    Task,
    find_task,
    layer_of,
    with_prefix,
)
from .ernie_settings import (
    CONFIG_CLASSES,
    KINDS,
    Settings,
    Sizes,
    build_config,
    check_buildable,
    held_sizes,
    is_gram,
    layer_norm_eps_of,
    task_rows,
)
from .ernie_source import Source, read_source
from .ernie_tokenizer import read_tokenizer
from .ernie_vocabulary import (
    check_highest_id,
    check_vocabulary,
    files_beside,
    load_tokenizer,
    repeated_rows,
    shared_rows,
    stated_ids,
    with_padding,
)
from .folder_files import RECORD, main_dtype, notices_on_left_out
from .job import ExpectedShapes, Job
from .job import ForwardOptions as CommonOptions
from .layer_numbers import without_gaps
from .lazy_files import CheckpointError, TensorFiles, matrix_shape_of
from .operations import WHOLE, RepeatedRows, SameAs, SettingsError, Shape, TensorSpec, matrix_shape
from .paddle_adapters import LORA_SETTINGS
from .paddle_files import open_paddle_source
from .paddle_pickle import PaddleArchive
from .safetensors_files import SafetensorsFolder
from .setting_kinds import OBJECT, TEXT
from .source_file import SideFiles
from .state_map import Plan, StateMap
from .writer import plan_shards

COMPARED_BYTES = 2**23
POOLER = "pooler.dense.weight"


@dataclass(frozen=True)
class ForwardOptions(CommonOptions):
    """Choices of a conversion from PaddleNLP's files.

    Attributes:
        vocab: `vocab.txt`; default: the one beside the weights.
        task: One of `TASK_NAMES`; default: what settings and tensors tell.
        layer_norm_eps: For every LayerNorm; default: what PaddleNLP gives the class.
        prefix: Only names behind it are meant; default: the one that makes all names known is taken off.
        base: The checkpoint that `source`, a LoRA adapter, was trained on.
    """

    vocab: Path | None = None
    task: str | None = None
    layer_norm_eps: float | None = None
    prefix: str | None = None
    base: Path | None = None


@dataclass(frozen=True)
class Encoder:
    """A checkpoint whose tensors and settings are planned under transformers' ERNIE names.

    Attributes:
        source: Where the pieces are.
        what: The source, in words.
        plan: Its tensors.
        dtypes: Of what it is read from.
        config: Its configuration.
        task: Its head.
        tokenizer: Its tokenizer, if there is one.
        record: Where it comes from, and what was left out of it.
        beside: The small files that were read.
        notices: What the user should know, one line each.
        task_rows: The row of each task type of the original in the task embeddings; empty where there are none.
    """

    source: TensorFiles
    what: str
    plan: Plan
    dtypes: tuple[TensorSpec, ...]
    config: ErnieConfig
    task: Task
    tokenizer: ErnieTokenizer | PreTrainedTokenizerFast | None
    record: Record
    beside: SideFiles
    notices: tuple[str, ...]
    task_rows: tuple[int, ...]


def plan_encoder(source: Path, options: ForwardOptions, expected: ExpectedShapes) -> Encoder:
    """Plans what a checkpoint of PaddleNLP's becomes. Writes nothing.

    Args:
        source: A checkpoint file or folder; see `paddle_files.open_paddle_source`.
        options: The user's choices.
        expected: Gives the names and shapes the target class has.

    Raises:
        ConversionError: anything about the files, the settings or the vocabulary that does not fit.
    """
    read = read_source(source, options.base, options.settings, options.prefix)
    settings, names = read.settings, read.names
    task, notices = choose_task(names, settings, options.task, source)
    sizes = read_sizes(read.specs, source)
    gram = is_gram(settings, sizes, read.encoder)
    if gram and task.name not in GRAM_TASKS:
        raise SettingsError(f"{source}: an ERNIE-Gram, which PaddleNLP has {', '.join(GRAM_TASKS)} of, no {task.name}")
    eps = layer_norm_eps_of(gram) if options.layer_norm_eps is None else options.layer_norm_eps
    tokenizer, of_tokenizer = read_tokenizer(read.tokenizer_folder, options.vocab, sizes.type_vocab_size)
    settings, of_padding = with_padding(settings, tokenizer)
    repeated = repeated_rows(tokenizer, stated_ids(read.tokenizer_folder))
    config, config_notices = build_config(settings, sizes, task, eps, repeated.count if repeated else 0)
    left_out = _left_out(names, task, config.num_hidden_layers, options.task is not None)
    names = {name: in_file for name, in_file in names.items() if name not in left_out}
    plan, pooler_notices = _plan_weights(read, names, task, config, repeated, options, expected)
    notices += [*read.notices, *config_notices, *pooler_notices, *of_tokenizer, *of_padding]
    if tokenizer is not None or not of_tokenizer:
        notices += check_vocabulary(tokenizer, config)
    if tokenizer is not None and repeated is not None:
        notices.append(
            f"PaddleNLP gives one id to {shared_rows(tokenizer, repeated)}: each got its own, with a copy of the row, "
            f"and the rows from {repeated.start + repeated.count} on moved by {repeated.count}"
        )
    original = task.original_of(gram)
    record = Record(
        {"kind": read.kind, "original_class": original, "settings": settings.values},
        {**plan.dropped, **left_out, **read.left_out},
    )
    return Encoder(
        read.files,
        f"ERNIE {source} ({read.kind}, {original})",
        plan,
        tuple(read.specs[name] for name in names),
        config,
        task,
        tokenizer,
        record,
        _files_beside(source, read, options),
        tuple(notices),
        task_rows(config, task.is_native),
    )


def _plan_weights(
    read: Source,
    names: Mapping[str, str],
    task: Task,
    config: ErnieConfig,
    repeated: RepeatedRows | None,
    options: ForwardOptions,
    expected: ExpectedShapes,
) -> tuple[Plan, list[str]]:
    """The plan of the tensors of a source, by their canonical names; notices."""
    in_table = with_prefix({name: name for name in names}, task)
    specs = {name: read.specs[canonical] for name, canonical in in_table.items()}
    table = task.table(config.task_id if config.use_task_id else 0, repeated)
    shapes = with_pooler(expected(task.architecture, config), specs, config, task.prefix, task.needs_pooler)
    plan = table.forward(specs, WHOLE, shapes, options.dtype)
    if not options.headers_only:
        _check_second_copies(table, read, in_table)
    made_of = {tensor.name: in_table[tensor.pieces[0].source] for tensor in plan.tensors}
    plan = plan.read_from({name: names[canonical] for name, canonical in in_table.items()})
    if read.adapter is not None:
        plan = read.adapter.merge(plan, made_of)
    if task.has_pooler and task.prefix + POOLER not in specs:
        return plan, [NO_POOLER]
    return plan, []


def _files_beside(source: Path, read: Source, options: ForwardOptions) -> SideFiles:
    """The small files that decide what is written, as they are now."""
    folders = {
        read.tokenizer_folder,
        *(path if path.is_dir() else path.parent for path in (source, options.base or source)),
    }
    return SideFiles.of(
        *(
            path
            for folder in sorted(folders)
            for path in files_beside(folder, options.settings, options.vocab).digests
        ),
        *(folder / LORA_SETTINGS for folder in sorted(folders) if read.adapter is not None),
    )


def plan_forward(source: Path, options: ForwardOptions, expected: ExpectedShapes) -> Job:
    """Plans a conversion of an ERNIE encoder into a folder for `from_pretrained`; as `plan_encoder`."""
    encoder = plan_encoder(source, options, expected)
    plan, config, task, record = encoder.plan, encoder.config, encoder.task, encoder.record
    files = plan_shards(plan.tensors, options.max_shard_bytes, {"format": "pt"})
    dtype, dtype_notices = main_dtype(plan, encoder.dtypes)
    card = partial(model_card, config, task, encoder.tokenizer is not None)
    small = ConvertedFolder(config, dtype, files, record, card, encoder.tokenizer, hub_classes(config))
    assert isinstance(record.dropped, Mapping)  # it was not read back
    return Job(
        title=f"{encoder.what} -> safetensors for {task.architecture}",
        source=encoder.source,
        plan=plan,
        files=files,
        options=options.decisions | {"task": task.name, "config": config.to_json_string()},
        beside=encoder.beside,
        write_first=small.write_first,
        reopen=lambda folder: SafetensorsFolder(folder).specs,
        write_last=small.write_last,
        notices=[*encoder.notices, *dtype_notices, *notices_on_left_out(record.dropped)],
    )


def plan_reverse(source: Path, dtype: torch.dtype | None, expected: ExpectedShapes) -> Job:
    """Plans writing PaddleNLP's format (2.5 and later) from a folder for `from_pretrained`. Writes nothing.

    Args:
        source: A converted, or fine-tuned, folder of one of the classes this converter writes.
        dtype: What the weights become; `None` keeps theirs.
        expected: Gives the names and shapes the source class has.

    Raises:
        ConversionError: anything about the folder that does not fit.
    """
    beside = files_beside(source, source / RECORD)
    classes: list[type[ErnieConfig]] = [ErnieConfig, *CONFIG_CLASSES.values()]
    config, raw, checkpoint = read_config(source, classes, "an ERNIE encoder", check_config, KINDS, held_sizes)
    check_buildable(config, source / "config.json")
    architecture = raw["architectures"][0]
    task = find_task(architecture)
    if task is None or architecture.startswith(GRAM_CLASS):
        known = ", ".join(task.architecture for task in TASKS)
        raise CheckpointError(f"{source}: a {architecture}, which PaddleNLP does not have; known are {known}")
    record = read_record(source, {"kind": TEXT, "original_class": TEXT, "settings": OBJECT}, KINDS)
    tokenizer = load_tokenizer(source, None)
    repeated = repeated_rows(tokenizer, {})
    table = task.table(getattr(config, "task_id", 0) if config.use_task_id else 0, repeated)
    specs = checkpoint.specs
    shapes = with_pooler(expected(task.architecture, config), specs, config, task.prefix, task.needs_pooler)
    plan = table.reverse(specs, WHOLE, shapes, dtype)
    gram = record is not None and str(record.source["original_class"]).startswith(GRAM_CLASS)
    plan = _with_gram_names(plan) if gram else plan
    archive = PaddleArchive("model_state.pdparams", plan.tensors)
    main, notices = main_dtype(plan, specs.values())
    if config.layer_norm_eps != layer_norm_eps_of(gram):
        notices.append(
            f"layer_norm_eps is {config.layer_norm_eps:g} in {source}; PaddleNLP's {task.original_of(gram)} computes "
            f"with {layer_norm_eps_of(gram):g}, whatever its settings say"
        )
    if task.prefix + POOLER not in specs:
        notices.append(
            "the folder has no pooler (transformers saves none for this class); PaddleNLP will make a random one, "
            "which this head does not use"
        )
    paddle_config = original_config(config, task, main, record, gram)
    if isinstance(tokenizer, ErnieTokenizer) and tokenizer.paddlenlp_ids():
        check_highest_id(tokenizer, config)
    if tokenizer is not None and repeated is not None:
        paddle_config["vocab_size"] -= repeated.count
        notices.append(
            f"PaddleNLP gives one id to {shared_rows(tokenizer, repeated)}: of the two rows that of the second is kept"
        )

    return Job(
        title=f"ERNIE {source} ({task.architecture}) -> PaddleNLP's format for {task.original_of(gram)}",
        source=checkpoint,
        plan=plan,
        files=[archive],
        options={"task": task.name, "dtype": str(dtype), "reverse": "yes"},
        beside=beside,
        write_first=lambda folder: write_original_files(folder, paddle_config, source, tokenizer),
        reopen=lambda folder: open_paddle_source(folder).specs,
        notices=notices,
    )


def choose_task(
    names: Mapping[str, str], settings: Settings, asked: str | None, where: object
) -> tuple[Task, list[str]]:
    """The head to convert: the one asked for, else the one the settings name, else the one the tensors tell.

    Args:
        names: Canonical names of the file.
        settings: Of the checkpoint.
        asked: `--task`.
        where: The checkpoint, for messages.

    Returns:
        The task, and notices.

    Raises:
        SettingsError: the settings name a class that is not known, or a classifier could be of several.
    """
    if asked is not None:
        task = find_task(asked)
        if task is None:
            raise SettingsError(f"--task {asked}: not one of {', '.join(TASK_NAMES)}")
        return task, []
    in_file = next((task for name, task in TELLTALES if name in names), None)
    said = settings.original_class
    if said is not None:
        task = find_task(said)
        if task is None:
            other = next(
                (f" {why}, so it is another network." for name, why in OTHER_NETWORKS if said.startswith(name)), ""
            )
            raise SettingsError(
                f"{settings.path}: the class {said} is not known; known are "
                f"{', '.join(task.original for task in TASKS)}.{other} If the weights are one of "
                "them, choose with --task."
            )
        richer = find_task(in_file) if task.name == "features" and in_file else None
        if richer is None:
            return task, []
        return richer, [f"{settings.path} says {said}, the file also has the head of {richer.original}: it is kept"]
    if in_file is None and CLASSIFIER in names:
        raise SettingsError(
            f"{where}: there is a `classifier`, and no settings say whose. Pass --task with one of "
            f"{', '.join(CLASSIFIER_TASKS)}."
        )
    return next(task for task in TASKS if task.name == (in_file or "features")), []


def read_sizes(specs: Mapping[str, TensorSpec], where: object) -> Sizes:
    """Reads the sizes the tensors tell.

    Args:
        specs: Canonical name -> shape and dtype.
        where: The checkpoint, for messages.

    Raises:
        CheckpointError: a tensor is missing or not a matrix; layers are missing.
    """
    matrix = partial(matrix_shape_of, specs, where=where)
    layers = {layer for name in specs if (layer := layer_of(name)) is not None}
    num_hidden_layers = without_gaps(layers, "encoder.layers.*", where)
    embeddings = f"{PREFIX}embeddings."
    words, positions = matrix(PREFIX + WORD_EMBEDDINGS), matrix(f"{embeddings}position_embeddings.weight")
    types, tasks = f"{embeddings}token_type_embeddings.weight", PREFIX + TASK_EMBEDDINGS
    return Sizes(
        vocab_size=words[0],
        hidden_size=words[1],
        max_position_embeddings=positions[0],
        type_vocab_size=matrix(types)[0] if types in specs else 0,
        task_type_vocab_size=matrix(tasks)[0] if tasks in specs else 0,
        num_hidden_layers=num_hidden_layers,
        intermediate_size=matrix(f"{PREFIX}encoder.layers.0.linear1.weight")[1],
        num_labels=matrix(CLASSIFIER)[1] if CLASSIFIER in specs else 0,
    )


def _left_out(names: Mapping[str, str], task: Task, layers: int, is_asked: bool) -> dict[str, str]:
    """Canonical name -> why it is not converted: the distillation layer; other heads, where the user chose one."""
    left_out = {name: "the extra layer of the distillation" for name in names if (layer_of(name) or 0) >= layers}
    if is_asked:
        own = {row.source for row in task.rows}
        heads = {row.source for other in TASKS for row in other.rows} - own
        left_out |= {name: f"not part of {task.architecture}, which --task chose" for name in names if name in heads}
    return left_out


def with_pooler(
    expected: Mapping[str, Shape],
    specs: Mapping[str, TensorSpec],
    config: PreTrainedConfig,
    prefix: str,
    needs_pooler: bool,
) -> dict[str, Shape]:
    """What a class has, and the pooler, which PaddleNLP's files have for every class.

    transformers' masked-LM, token and question answering classes have none. It is kept: a model for sentences made
    from the same folder starts from it. An export without one is complete where the head does not read it.

    Args:
        expected: Names and shapes of the class.
        specs: What the checkpoint holds.
        config: Of either.
        prefix: Of the backbone's names in the class.
        needs_pooler: Whether the head reads it.
    """
    hidden = config.hidden_size
    pooler = {f"{prefix}pooler.dense.weight": (hidden, hidden), f"{prefix}pooler.dense.bias": (hidden,)}
    if not needs_pooler and not pooler.keys() & specs.keys():
        return {name: shape for name, shape in expected.items() if name not in pooler}
    return dict(expected) | {name: shape for name, shape in pooler.items() if name in specs}


def _check_second_copies(table: StateMap, read: Source, in_table: Mapping[str, str]) -> None:
    """A tied tensor that the file holds twice must be the same twice.

    Args:
        table: The task's.
        read: The source.
        in_table: The table's name of a tensor -> its canonical one.
    """
    for row in table.rows:
        operation, copy = row.operation, row.source
        if not isinstance(operation, SameAs) or copy is None or not {copy, operation.of} <= in_table.keys():
            continue
        one, other = in_table[copy], in_table[operation.of]
        if read.specs[one].shape != read.specs[other].shape or not _equal(read, one, other):
            raise CheckpointError(
                f"{read.names[one]} is not the same tensor as {read.names[other]}. PaddleNLP and transformers tie "
                "them; a checkpoint in which they differ cannot be converted. Save it again from PaddleNLP's class."
            )


def _equal(read: Source, *tensors: str) -> bool:
    spec = read.specs[tensors[0]]
    rows, columns = matrix_shape(spec.shape)
    step = max(1, COMPARED_BYTES // max(1, columns * spec.dtype.itemsize))
    return all(
        torch.equal(
            *(
                read.files.rows(read.part_of(name), read.names[name], start, min(start + step, rows))
                for name in tensors
            )
        )
        for start in range(0, rows, step)
    )


def _with_gram_names(plan: Plan) -> Plan:
    """The same plan with the encoder under ERNIE-Gram's name."""
    names = {one.name: one.name.removeprefix(PREFIX) for one in plan.tensors if one.name.startswith(PREFIX)}
    tensors = (replace(one, name=f"{GRAM}.{names[one.name]}") if one.name in names else one for one in plan.tensors)
    return replace(plan, tensors=tuple(tensors))


NO_POOLER = (
    "the file has no pooler, which this head does not read: the folder has none either, and transformers makes a "
    "random one when it opens it (its report names pooler.dense). Do not use pooler_output"
)

__all__ = [
    "Encoder",
    "ForwardOptions",
    "choose_task",
    "plan_encoder",
    "plan_forward",
    "plan_reverse",
    "read_sizes",
    "with_pooler",
]
