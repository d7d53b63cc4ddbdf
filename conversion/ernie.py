"""ERNIE 3.0's released encoders: the conversions from PaddleNLP's files to transformers' and back, planned.

Forward: names are brought to PaddleNLP's 2.5 form, the task is chosen, tensors and settings are held against each
other, and the table of the task gives the plan. Nothing is left out silently: a head the user does not ask for, the
distillation layer of micro and nano and second copies of tied tensors are named; any other name is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import ErnieConfig, PreTrainedConfig

from hf_glm_ernie.tokenization_ernie import ErnieTokenizer

from .converted_folder import ConvertedFolder, Record, read_config, read_record
from .ernie_files import check_config, hub_classes, model_card, original_config, write_original_files
from .ernie_names import (
    CLASSIFIER,
    CLASSIFIER_TASKS,
    PREFIX,
    TASK_EMBEDDINGS,
    TASK_NAMES,
    TASKS,
    TELLTALES,
    WORD_EMBEDDINGS,
    Task,
    canonical_names,
    find_task,
    layer_of,
    state_of_training,
    with_prefix,
)
from .ernie_settings import (
    CONFIG_CLASSES,
    KINDS,
    LAYER_NORM_EPS,
    Settings,
    Sizes,
    build_config,
    check_buildable,
    held_sizes,
    read_settings,
    task_rows,
)
from .ernie_vocabulary import (
    check_highest_id,
    check_vocabulary,
    files_beside,
    load_tokenizer,
    repeated_rows,
    shared_rows,
    stated_ids,
)
from .folder_files import RECORD, main_dtype, notices_on_left_out
from .job import ExpectedShapes, Job
from .job import ForwardOptions as CommonOptions
from .layer_numbers import without_gaps
from .lazy_files import CheckpointError, TensorFiles, matrix_shape_of
from .operations import WHOLE, SameAs, SettingsError, Shape, TensorSpec, matrix_shape
from .paddle_files import open_paddle_source
from .paddle_pickle import PaddleArchive
from .safetensors_files import SafetensorsFolder
from .setting_kinds import OBJECT, TEXT
from .source_file import SideFiles
from .state_map import Plan, StateMap
from .writer import plan_shards

COMPARED_BYTES = 2**23


@dataclass(frozen=True)
class ForwardOptions(CommonOptions):
    """Choices of a conversion from PaddleNLP's files.

    Attributes:
        vocab: `vocab.txt`; default: the one beside the weights.
        task: One of `TASK_NAMES`; default: what settings and tensors tell.
        layer_norm_eps: For every LayerNorm.
    """

    vocab: Path | None = None
    task: str | None = None
    layer_norm_eps: float = LAYER_NORM_EPS


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
    tokenizer: ErnieTokenizer | None
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
    checkpoint = open_paddle_source(source)
    beside = files_beside(checkpoint.folder, options.settings, options.vocab)
    settings = read_settings(checkpoint.folder, options.settings)
    training = state_of_training(checkpoint.specs)
    names = canonical_names([name for name in checkpoint.specs if name not in training], source)
    task, notices = choose_task(names, settings, options.task, source)
    sizes = read_sizes({name: checkpoint.specs[in_file] for name, in_file in names.items()}, source)
    tokenizer = load_tokenizer(checkpoint.folder, options.vocab)
    repeated = repeated_rows(tokenizer, stated_ids(checkpoint.folder))
    more_rows = repeated.count if repeated else 0
    config, config_notices = build_config(settings, sizes, task, options.layer_norm_eps, more_rows)
    left_out = _left_out(names, task, config.num_hidden_layers, options.task is not None)
    names = with_prefix({name: n for name, n in names.items() if name not in left_out}, task)
    specs = {name: checkpoint.specs[in_file] for name, in_file in names.items()}
    table = task.table(config.task_id if config.use_task_id else 0, repeated)
    shapes = with_pooler(expected(task.architecture, config), specs, config, task.prefix)
    plan = table.forward(specs, WHOLE, shapes, options.dtype).read_from(names)
    if not options.headers_only:
        _check_second_copies(table, checkpoint, names, specs, source)
    notices += config_notices + check_vocabulary(tokenizer, config)
    if tokenizer is not None and repeated is not None:
        notices.append(
            f"PaddleNLP gives one id to {shared_rows(tokenizer, repeated)}: each got its own, with a copy of the row, "
            f"and the rows from {repeated.start + repeated.count} on moved by {repeated.count}"
        )
    record = Record(
        {"kind": checkpoint.kind, "original_class": task.original, "settings": settings.values},
        dict(plan.dropped) | left_out | training,
    )
    what = f"ERNIE {source} ({checkpoint.kind}, {task.original})"
    dtypes, rows = tuple(specs.values()), task_rows(config, task.is_native)
    return Encoder(checkpoint, what, plan, dtypes, config, task, tokenizer, record, beside, tuple(notices), rows)


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
    if task is None:
        known = ", ".join(task.architecture for task in TASKS)
        raise CheckpointError(f"{source}: a {architecture}, which PaddleNLP does not have; known are {known}")
    record = read_record(source, {"kind": TEXT, "original_class": TEXT, "settings": OBJECT}, KINDS)
    tokenizer = load_tokenizer(source, None)
    repeated = repeated_rows(tokenizer, {})
    table = task.table(getattr(config, "task_id", 0) if config.use_task_id else 0, repeated)
    specs = checkpoint.specs
    shapes = with_pooler(expected(task.architecture, config), specs, config, task.prefix)
    plan = table.reverse(specs, WHOLE, shapes, dtype)
    archive = PaddleArchive("model_state.pdparams", plan.tensors)
    main, notices = main_dtype(plan, specs.values())
    if task.prefix + "pooler.dense.weight" not in specs:
        notices.append(
            "the folder has no pooler (transformers saves none for this class); PaddleNLP will make a random one, "
            "which this head does not use"
        )
    paddle_config = original_config(config, task, main, record)
    if tokenizer is not None and tokenizer.paddlenlp_ids():
        check_highest_id(tokenizer, config)
    if tokenizer is not None and repeated is not None:
        paddle_config["vocab_size"] -= repeated.count
        notices.append(
            f"PaddleNLP gives one id to {shared_rows(tokenizer, repeated)}: of the two rows that of the second is kept"
        )

    return Job(
        title=f"ERNIE {source} ({task.architecture}) -> PaddleNLP's format for {task.original}",
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
            raise SettingsError(
                f"{settings.path}: the class {said} is not known; known are "
                f"{', '.join(task.original for task in TASKS)}. Choose with --task."
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
    expected: Mapping[str, Shape], specs: Mapping[str, TensorSpec], config: PreTrainedConfig, prefix: str
) -> dict[str, Shape]:
    """What a class has, and the pooler, which PaddleNLP's files have for every class.

    transformers' masked-LM, token and question answering classes have none. It is kept: a model for sentences made
    from the same folder starts from it.

    Args:
        expected: Names and shapes of the class.
        specs: What the checkpoint holds.
        config: Of either.
        prefix: Of the backbone's names in the class.
    """
    hidden = config.hidden_size
    pooler = {f"{prefix}pooler.dense.weight": (hidden, hidden), f"{prefix}pooler.dense.bias": (hidden,)}
    return dict(expected) | {name: shape for name, shape in pooler.items() if name in specs}


def _check_second_copies(
    table: StateMap, source: TensorFiles, names: Mapping[str, str], specs: Mapping[str, TensorSpec], where: object
) -> None:
    """A tied tensor that the file holds twice must be the same twice."""
    for row in table.rows:
        operation, copy = row.operation, row.source
        if not isinstance(operation, SameAs) or copy is None or copy not in specs or operation.of not in specs:
            continue
        same_shape = specs[copy].shape == specs[operation.of].shape
        if not same_shape or not _equal(source, names[copy], names[operation.of], specs[copy]):
            raise CheckpointError(
                f"{where}: {copy} is not the same tensor as {operation.of}. PaddleNLP and transformers tie them; a "
                "checkpoint in which they differ cannot be converted. Save it again from PaddleNLP's class."
            )


def _equal(source: TensorFiles, one: str, other: str, spec: TensorSpec) -> bool:
    rows, columns = matrix_shape(spec.shape)
    step = max(1, COMPARED_BYTES // max(1, columns * spec.dtype.itemsize))
    return all(
        torch.equal(*(source.rows(0, name, start, min(start + step, rows)) for name in (one, other)))
        for start in range(0, rows, step)
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
