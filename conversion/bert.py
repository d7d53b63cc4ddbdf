"""An ERNIE encoder as a folder for plain BERT classes, and back, planned.

Forward: an encoder, of PaddleNLP's files or of a converted folder, is planned under transformers' ERNIE names; the
table of `bert_names` goes on from there, and the two plans become one, so that nothing is written twice. Lost are the
other task types, as far as the BERT is concerned: the tables that were added lie beside it, in a file of their own.

Back: as long as the position embeddings are the sum of the two tables, these are written again, bit for bit. Where a
training or another dtype changed them, or the file is not there, the ERNIE folder has no task types, and the position
embeddings of the BERT: it computes what the BERT does, to the last bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import BertConfig, ErnieConfig

from .bert_files import BertFolder, bert_card
from .bert_names import BERT_PREFIX, BERT_TASKS, KEPT, KEPT_FILE, KEPT_POSITIONS, KEPT_TASKS, BertTask, bert_task
from .bert_names import task_of_bert as find_bert_task
from .bert_pooling import Pooling
from .bert_settings import (
    BERT_KINDS,
    ENTRY,
    FOLDER_KINDS,
    bert_config,
    check_encoder,
    check_entry,
    ernie_config,
    unread,
)
from .converted_folder import ConvertedFolder, Record, read_config, read_record
from .ernie import Encoder, ForwardOptions, plan_encoder, with_pooler
from .ernie_files import model_card
from .ernie_names import PREFIX, TASK_EMBEDDINGS, Task, find_task
from .ernie_settings import CONFIG_CLASSES, KINDS, check_buildable, held_sizes, task_rows
from .ernie_vocabulary import check_highest_id, files_beside, load_tokenizer
from .folder_files import RECORD, dtype_name, main_dtype, notices_on_left_out
from .job import ExpectedShapes, Job
from .json_files import MAX_SETTINGS_BYTES, read_json
from .lazy_files import CheckpointError, NamedFiles
from .operations import (
    WHOLE,
    DefaultRow,
    Operation,
    Replicated,
    SettingsError,
    Shape,
    TensorSpec,
    with_row_added,
)
from .safetensors_files import SAFETENSORS_INDEX, SAFETENSORS_SINGLE, SafetensorsFolder, open_safetensors_file
from .setting_kinds import OBJECT, TEXT
from .source_file import SideFiles
from .state_map import Piece, Plan, PlannedTensor
from .writer import SafetensorsShard, plan_shards

COMPARED_BYTES = 2**23
RECORDED = {"kind": TEXT, "original_class": TEXT, "settings": OBJECT}
METADATA = {"format": "pt"}
OTHER_MODELS: Mapping[str, str] = {
    "bert": "it is a BERT already; --reverse makes an ERNIE folder of one",
    "ernie3": (
        "ERNIE 3.0's unified model is no BERT: its two stacks have their norms in front. It has classes of its own "
        "(docs/ernie3.md)"
    ),
    "glm130b": "a GLM-130B folder holds no encoder",
}
"""Model type -> why it is none that can be folded."""


@dataclass(frozen=True)
class BertOptions(ForwardOptions):
    """Choices of a conversion to BERT.

    Attributes:
        task_type: The task type to keep, as the original counts; default: the one it takes where none is given.
        pooling: What makes one vector of a text, for the files that engines look for; None writes none.
    """

    task_type: int | None = None
    pooling: Pooling | None = None


def plan_as_bert(source: Path, options: BertOptions, expected: ExpectedShapes) -> Job:
    """Plans a folder of BERT's classes. Writes nothing.

    Args:
        source: A checkpoint of PaddleNLP's, or a folder that this converter or `save_pretrained` wrote.
        options: The user's choices; for a folder all that concerns PaddleNLP's files must be left at its default.
        expected: Gives the names and shapes a class has.

    Raises:
        ConversionError: anything about the source that does not fit, no BERT class for its head, no such task type.
    """
    unrounded = replace(options, dtype=None)  # so that a sum is rounded once
    if options.base is not None:
        raise SettingsError(
            "--base: a LoRA adapter is merged first. Convert it without --as-bert, and then the folder with it."
        )
    encoder = read_encoder(source, unrounded) if is_folder(source) else plan_encoder(source, unrounded, expected)
    task = bert_task(encoder.task)
    if task is None:
        raise SettingsError(NO_CLASS.format(where=source, architecture=encoder.task.architecture))
    if options.pooling is not None and task.ernie.name != "features":
        raise SettingsError(
            f"--pooling: {source} is a {encoder.task.architecture}, and vectors are made of the bare encoder. Add "
            "--task features."
        )
    config, rows = encoder.config, encoder.task_rows
    task_type, row = _chosen(options.task_type, rows, getattr(config, "task_id", 0), source)
    made = bert_config(config, task, task_type, row)
    held = {tensor.name: tensor.spec for tensor in encoder.plan.tensors}
    plan = task.table(row).forward(held, WHOLE, _expected(expected, task, made, held, row), options.dtype)
    plan = _in_their_dtypes(plan.behind(encoder.plan), held, task, options.dtype)
    weights = [tensor for tensor in plan.tensors if tensor.name not in KEPT]
    kept = [tensor for tensor in plan.tensors if tensor.name in KEPT]
    shards = plan_shards(weights, options.max_shard_bytes, METADATA)
    copied = tuple(tensor for tensor in weights if tensor.computation is None)
    dtype, dtype_notices = main_dtype(replace(plan, tensors=copied), encoder.dtypes)
    card = partial(bert_card, made, task, task_type, encoder.tokenizer is not None)
    small = BertFolder(made, dtype, shards, encoder.record, card, encoder.tokenizer, pooling=options.pooling)
    left_out = encoder.record.dropped
    assert isinstance(left_out, Mapping)  # it was not read back
    return Job(
        title=f"{encoder.what} -> safetensors for {task.architecture}",
        source=encoder.source,
        plan=plan,
        files=[*shards, *([SafetensorsShard(KEPT_FILE, kept, METADATA)] if kept else [])],
        options=options.decisions | {"as_bert": task.architecture, "row": str(row), "config": made.to_json_string()},
        beside=encoder.beside,
        write_first=small.write_first,
        reopen=lambda folder: _files_of(folder).specs,
        write_last=small.write_last,
        notices=[
            *encoder.notices,
            *_on_the_fold(task_type, rows, dtype, options.dtype is not None),
            *dtype_notices,
            *notices_on_left_out(left_out),
            *(options.pooling.notices() if options.pooling else ()),
        ],
    )


def is_folder(source: Path) -> bool:
    """Whether a source is a folder for `from_pretrained`, and no checkpoint of PaddleNLP's.

    Both may have a config.json with the model type `ernie`, and safetensors; the names in these tell.

    Raises:
        SettingsError: it is a folder of another model.
        CheckpointError: the weights cannot be opened.
    """
    config, names = source / "config.json", (SAFETENSORS_SINGLE, SAFETENSORS_INDEX)
    if not config.is_file() or not any((source / name).is_file() for name in names):
        return False
    try:
        raw = read_json(config, most=MAX_SETTINGS_BYTES)
    except (OSError, ValueError):  # whoever reads it says what is wrong with it
        return False
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if isinstance(model_type, str) and model_type in OTHER_MODELS:
        raise SettingsError(f"{source}: {OTHER_MODELS[model_type]}. --as-bert takes an ERNIE encoder.")
    has_code = model_type in [one.model_type for one in CONFIG_CLASSES.values()]
    quantized = isinstance(raw, dict) and bool(raw.get("quantization_config"))
    return has_code or quantized or any("LayerNorm" in name for name in SafetensorsFolder(source).specs)


def read_encoder(source: Path, options: BertOptions) -> Encoder:
    """Plans an encoder of a folder for `from_pretrained` under the names it has there. Writes nothing.

    Raises:
        ConversionError: anything about the folder that does not fit, or options for PaddleNLP's files.
    """
    if options.vocab or options.settings or options.prefix:
        raise SettingsError(
            f"{source} is a converted folder, with its own settings and tokenizer: leave --vocab, --config and "
            "--prefix out."
        )
    beside = files_beside(source, source / RECORD)
    classes: list[type[ErnieConfig]] = [ErnieConfig, *CONFIG_CLASSES.values()]
    config, raw, checkpoint = read_config(source, classes, "an ERNIE encoder", check_encoder, FOLDER_KINDS, held_sizes)
    check_buildable(config, source / "config.json")
    task = find_task(raw["architectures"][0])
    if task is None:
        known = ", ".join(one.ernie.architecture for one in BERT_TASKS)
        raise CheckpointError(f"{source}: a {raw['architectures'][0]}; known are {known}")
    names = {name: name for name in checkpoint.specs}
    dropped: dict[str, str] = {}
    first_row: Operation = Replicated()
    if options.task not in (None, task.name):
        names, dropped = _without_head(names, task, options.task, source)
        if not task.is_native and config.use_task_id and config.task_id:  # its class took it, ErnieModel takes row 0
            first_row = DefaultRow(config.task_id)
            config.task_type_vocab_size += 1
        task = find_task("features")
        assert task is not None
    record = read_record(source, RECORDED, KINDS) or Record({"kind": "safetensors", "settings": {}})
    tokenizer = load_tokenizer(source, None)
    if tokenizer is not None:
        check_highest_id(tokenizer, config)
    no_tokenizer = [] if tokenizer is not None else [f"{source} has no tokenizer, so the new folder has none"]
    operations = {task.prefix + TASK_EMBEDDINGS: first_row}
    tensors = tuple(
        _carried(name, checkpoint.specs[there], there, operations.get(name, Replicated()))
        for name, there in names.items()
    )
    return Encoder(
        checkpoint,
        f"ERNIE {source} ({raw['architectures'][0]})",
        Plan(tensors, dropped),
        tuple(checkpoint.specs[there] for there in names.values()),
        config,
        task,
        tokenizer,
        Record({**record.source, "original_class": task.original}, dropped),
        beside,
        (*unread(raw, source / "config.json"), *no_tokenizer),
        task_rows(config, task.is_native),
    )


def _without_head(
    names: Mapping[str, str], task: Task, asked: str | None, where: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Names of the bare encoder -> those in the folder; what is left out."""
    if asked != "features":
        raise SettingsError(
            f"--task {asked}: {where} is a {task.architecture}; of such a folder --task can only choose `features`, "
            "the encoder without its head."
        )
    kept = {name.removeprefix(PREFIX): name for name in names if name.startswith(PREFIX)}
    return kept, {name: "not part of the encoder, which --task chose" for name in names if not name.startswith(PREFIX)}


def _carried(name: str, spec: TensorSpec, there: str, operation: Operation) -> PlannedTensor:
    """A tensor of a folder under another name, its rows where an operation puts them."""
    (shape,) = operation.whole_shapes(spec.shape, WHOLE)
    pieces = (
        Piece(0, there, move.part_start, move.whole_start, move.size) for move in operation.moves(spec.shape, WHOLE, 0)
    )
    return PlannedTensor(0, name, TensorSpec(shape, spec.dtype), tuple(pieces))


def _chosen(asked: int | None, rows: tuple[int, ...], default: int, where: Path) -> tuple[int | None, int | None]:
    """The task type to be folded and its row; None where there are no task types."""
    if not rows:
        if asked:
            raise SettingsError(
                f"--task-type {asked}: {where} has no task embeddings (use_task_id is false), so there is nothing to "
                "choose. Leave the option out."
            )
        return None, None
    task_type = default if asked is None else asked
    if not 0 <= task_type < len(rows):
        raise SettingsError(f"--task-type {task_type}: {where} has the task types 0 to {len(rows) - 1}.")
    return task_type, rows[task_type]


def _expected(
    expected: ExpectedShapes, task: BertTask, config: BertConfig, held: Mapping[str, TensorSpec], row: int | None
) -> dict[str, Shape]:
    """What the class has, the pooler where the encoder has one, and what is kept."""
    renamed = {task.renamed(name): spec for name, spec in held.items()}
    shapes = with_pooler(expected(task.architecture, config), renamed, config, task.prefix, task.ernie.needs_pooler)
    if row is not None:
        shapes[KEPT_POSITIONS] = (config.max_position_embeddings, config.hidden_size)
        shapes[KEPT_TASKS] = (getattr(config, ENTRY)["task_type_vocab_size"], config.hidden_size)
    return shapes


def _in_their_dtypes(plan: Plan, held: Mapping[str, TensorSpec], task: BertTask, asked: torch.dtype | None) -> Plan:
    """What is kept has the dtype of its source; the sums made of that are rounded only if a dtype was asked for."""
    kept = {KEPT_POSITIONS: task.ernie_positions, KEPT_TASKS: task.ernie_tasks}
    tensors = []
    for tensor in plan.tensors:
        if tensor.name in kept:
            tensor = replace(tensor, spec=held[kept[tensor.name]])
        elif tensor.computation is not None and asked is None:
            tensor = replace(tensor, spec=tensor.spec.of_dtype(torch.float32))
        tensors.append(tensor)
    return replace(plan, tensors=tuple(tensors))


def _on_the_fold(task_type: int | None, rows: tuple[int, ...], dtype: torch.dtype, is_asked: bool) -> list[str]:
    if task_type is None:
        return ["no task embeddings (use_task_id is false): nothing is lost"]
    notices = [
        f"task type {task_type} of {len(rows)} is kept, the others cannot be asked for any more; {KEPT_FILE} holds "
        "both tables for --reverse"
    ]
    if dtype != torch.float32:
        when = "are rounded" if is_asked else f"stay float32; loading in {dtype_name(dtype)} rounds them"
        most = f"{torch.finfo(dtype).eps / 2:.1e}"
        notices.append(f"the sums in the position embeddings {when} once, each by at most {most} of itself")
    return notices


def plan_back(source: Path, dtype: torch.dtype | None, expected: ExpectedShapes) -> Job:
    """Plans an ERNIE folder of a BERT one. Writes nothing.

    Args:
        source: A folder that `plan_as_bert` planned, or that was fine-tuned from it and saved.
        dtype: What the weights become; `None` keeps theirs.
        expected: Gives the names and shapes a class has.

    Raises:
        ConversionError: anything about the folder that does not fit.
    """
    beside = SideFiles.of(*files_beside(source, source / RECORD).digests)
    sizes = partial(held_sizes, prefix=BERT_PREFIX)
    config, raw, _ = read_config(source, [BertConfig], "an ERNIE encoder as BERT", check_entry, BERT_KINDS, sizes)
    check_buildable(config, source / "config.json")
    task = find_bert_task(raw["architectures"][0])
    if task is None:
        known = ", ".join(one.architecture for one in BERT_TASKS)
        raise CheckpointError(
            f"{source}: a {raw['architectures'][0]}, for which ERNIE has no class; known are {known}"
        )
    checkpoint = _files_of(source)
    row = (getattr(config, ENTRY, None) or {}).get("folded_row")
    reason = _why_not_unfolded(checkpoint, task, row, source)
    specs = {name: spec for name, spec in checkpoint.specs.items() if reason is None or name not in KEPT}
    made = ernie_config(config, task, has_tasks=reason is None)
    shapes = _expected(expected, task, config, {}, None if reason else row)
    shapes = with_pooler(shapes, specs, config, task.prefix, task.ernie.needs_pooler)
    plan = task.table(None if reason else row).reverse(specs, WHOLE, shapes, dtype)
    if reason is None and dtype is None:
        plan = _as_the_words(plan, specs[task.words].dtype, task)
    files = plan_shards(plan.tensors, 5 * 10**9, METADATA)
    read = [spec for name, spec in specs.items() if reason is not None or name != task.positions]
    main, notices = main_dtype(plan, read)
    record = read_record(source, RECORDED, KINDS) or Record(
        {"kind": "safetensors", "original_class": task.ernie.original, "settings": {}}
    )
    tokenizer = load_tokenizer(source, None)
    card = partial(model_card, made, task.ernie, tokenizer is not None)
    small = ConvertedFolder(made, main, files, Record(record.source, {}), card, tokenizer)
    return Job(
        title=f"BERT {source} ({task.architecture}) -> safetensors for {task.ernie.architecture}",
        source=checkpoint,
        plan=plan,
        files=files,
        options={"as_bert": "back", "dtype": str(dtype), "config": made.to_json_string()},
        beside=beside,
        write_first=small.write_first,
        reopen=lambda folder: SafetensorsFolder(folder).specs,
        write_last=small.write_last,
        notices=[*unread(raw, source / "config.json"), *notices, *_on_the_way_back(reason, row)],
    )


def _files_of(folder: Path) -> NamedFiles:
    """The weights of a folder, and what was kept of the ERNIE they were made from."""
    weights = SafetensorsFolder(folder)
    kept = folder / KEPT_FILE
    return NamedFiles([*weights.files, *([open_safetensors_file(kept)] if kept.is_file() else [])], folder)


def _why_not_unfolded(checkpoint: NamedFiles, task: BertTask, row: int | None, where: Path) -> str | None:
    """Why the tables of before cannot be written; None if they can.

    Raises:
        CheckpointError: there is a file of kept tables, and it is another model's.
    """
    specs = checkpoint.specs
    if not any(name in specs for name in KEPT):
        return "no task type was folded" if row is None else f"{KEPT_FILE} is not there"
    shapes = {name: specs[name].shape for name in (task.positions, *KEPT) if name in specs}
    if row is None or len(shapes) < 3 or not _fit(shapes[task.positions], *(shapes[name] for name in KEPT), row=row):
        raise CheckpointError(
            f"{where / KEPT_FILE}: not the tables of this model. Take the file that was written with it, or remove "
            "it: then the ERNIE folder has no task types."
        )
    added = checkpoint.rows(0, KEPT_TASKS, row, row + 1).float()
    count, columns = specs[KEPT_POSITIONS].shape
    step = max(1, COMPARED_BYTES // (columns * torch.float32.itemsize))
    for start in range(0, count, step):
        stop = min(start + step, count)
        rows = checkpoint.rows(0, KEPT_POSITIONS, start, stop).float()
        folded = with_row_added(torch.cat([rows, added.expand(len(rows), -1)], dim=1))
        if not torch.equal(folded.to(specs[task.positions].dtype), checkpoint.rows(0, task.positions, start, stop)):
            return "the position embeddings were changed since"
    return None


def _fit(positions: Shape, kept: Shape, tasks: Shape, *, row: int) -> bool:
    """Whether a row of one table can have been added to another, of these shapes."""
    return kept == positions and len(kept) == len(tasks) == 2 and tasks[1] == kept[1] and row < tasks[0]


def _as_the_words(plan: Plan, dtype: torch.dtype, task: BertTask) -> Plan:
    """The two tables in the dtype of the weights: they were kept in that of their source."""
    tables = (task.ernie_positions, task.ernie_tasks)
    tensors = (replace(one, spec=one.spec.of_dtype(dtype)) if one.name in tables else one for one in plan.tensors)
    return replace(plan, tensors=tuple(tensors))


def _on_the_way_back(reason: str | None, row: int | None) -> list[str]:
    if reason is not None:
        return [
            f"{reason}: the ERNIE folder has no task types (use_task_id false) and computes what the BERT does, "
            "to the last bit"
        ]
    notices = ["position and task embeddings are those of before, bit for bit"]
    if row:
        notices.append(f"the BERT computed what this folder does with task_type_ids of {row}; its default is 0")
    return notices


NO_CLASS = (
    "{where}: {architecture} has no BERT class: its two linears read the hidden states in ways of their own. Take "
    "--task features to make a BERT of the encoder alone; with its head it runs through hf_glm_ernie.uie and utc, or "
    "as ONNX (examples/export_ernie.py)."
)

__all__ = ["BertOptions", "is_folder", "plan_as_bert", "plan_back", "read_encoder"]
