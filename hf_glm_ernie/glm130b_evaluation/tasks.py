"""The authors' task files and data, read and checked: YAML to a config, lines of JSON to rows.

Every key of the authors' `configs.py` is known, written with `_` or `-`; their own modules are known by name, any
other is refused. A row may bring texts (`inputs_pretokenized`) or ids (`inputs`); ids go first, as with the authors,
and must be of this model's vocabulary.

Source: `evaluation/configs.py`, `evaluation/utils.py`, `evaluation/dataset.py` and `tasks` of the GLM-130B repository.
"""

import dataclasses
import glob
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .metrics import crows_pairs, stereoset
from .texts import token_ids


@dataclass
class TaskConfig:
    """What all tasks have; see `docs/evaluate.md`.

    Attributes:
        name: Name of the task.
        type: `mul` (multiple choice), `gen` (generation) or `lm` (language modelling).
        path: Folder of the data, below the data path.
        module: One of the authors' task classes, or `None`.
        metrics: Names of metrics; empty means those of the type.
        use_task_mask: `[gMASK]` in place of `[MASK]`.
        use_multitask_encoding: See `unified_multitask_encoding` of `choice_row`.
        unidirectional: Causal attention.
        max_seq_length: Tokens of a row.
        file_pattern: A glob below `path`, or one for each group of files.
        micro_batch_size: Rows per forward.
    """

    name: str
    type: str
    path: str
    module: str | None = None
    metrics: list[str] = field(default_factory=list)
    use_task_mask: bool = False
    use_multitask_encoding: bool = False
    unidirectional: bool = False
    max_seq_length: int = 2048
    file_pattern: str | dict[str, str] = "**/*.json*"
    micro_batch_size: int = 1

    @property
    def author_task(self) -> "AuthorTask":
        """What the module does otherwise than the type."""
        return AUTHOR_TASKS[self.module] if self.module is not None else AuthorTask(self.type)


@dataclass
class MultiChoiceTaskConfig(TaskConfig):
    """A multiple-choice task."""


@dataclass
class GenerationTaskConfig(TaskConfig):
    """A generation task: `BaseStrategy` is greedy, `BeamSearchStrategy` reads the keys below it."""

    sampling_strategy: str = "BaseStrategy"
    num_beams: int = 4
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 3
    min_gen_length: int = 0
    max_gen_length: int = 128


@dataclass
class LanguageModelTaskConfig(TaskConfig):
    """A language-modelling task; `generation_length` are the tokens that a window scores."""

    generation_length: int = 256


TYPES: dict[str, type[TaskConfig]] = {
    "mul": MultiChoiceTaskConfig,
    "gen": GenerationTaskConfig,
    "lm": LanguageModelTaskConfig,
}


@dataclass(frozen=True)
class AuthorTask:
    """One of the authors' task classes: its type, and where it does otherwise than the type.

    Attributes:
        type: The type of task it is for.
        keys: Keys of a row that its metric reads.
        metric: Scores choices with the data of their rows in place of the accuracy.
        metric_of_log_probs: Whether `metric` takes the log-probability of each row's first choice, not the choices.
        mean_log_probs: Whether choices are compared by their log-probability a token.
        takes_last_word: Whether the answer is the last word of a passage.
        has_rows: Whether a language-modelling file holds rows in named groups, not one text.
    """

    type: str
    keys: tuple[str, ...] = ()
    metric: Callable[..., dict[str, float]] | None = None
    metric_of_log_probs: bool = False
    mean_log_probs: bool = False
    takes_last_word: bool = False
    has_rows: bool = False


# The authors' module -> what it does. Those of the `evaluation` package say no more than the type does.
AUTHOR_TASKS = {
    "evaluation.MultiChoiceTask": AuthorTask("mul"),
    "evaluation.GenerationTask": AuthorTask("gen"),
    "evaluation.LanguageModelTask": AuthorTask("lm"),
    "tasks.mmlu.task.MMLU": AuthorTask("mul"),
    "tasks.ethnic.crows-pair.tasks.CrowsPairTask": AuthorTask(
        "mul", ("pair_ID", "sent_ID", "bias_type"), crows_pairs, metric_of_log_probs=True
    ),
    "tasks.ethnic.stereoset.tasks.StereoSetTask": AuthorTask(
        "mul", ("bias_type", "goal_label"), stereoset, mean_log_probs=True
    ),
    "tasks.lambada.task.LAMBADA": AuthorTask("gen", takes_last_word=True),
    "tasks.language-modeling.pile.Pile": AuthorTask("lm", has_rows=True),
}
METRICS = {
    "mul": ("Accuracy", "Precision", "Recall", "F1_mul"),
    "gen": ("EM", "F1"),
    "lm": ("PPL", "BPB"),
}
DEFAULT_METRICS = {"mul": ["Accuracy"], "gen": ["EM", "F1"], "lm": ["PPL"]}
STRATEGIES = ("BaseStrategy", "BeamSearchStrategy")


@dataclass(frozen=True)
class TaskRow:
    """One row of a multiple-choice or generation task.

    Attributes:
        text: Ids of the context.
        candidates: Ids of the choices, or of the right answers.
        label: Index of the right choice; -1 in a generation task.
        data: The row as it stands in the file.
    """

    text: list[int]
    candidates: list[list[int]]
    label: int
    data: dict[str, Any]


@dataclass(frozen=True)
class TaskText:
    """One text of a language-modelling task.

    Attributes:
        ids: Ids of the text.
        num_words: Pieces between single spaces of the stripped text.
        num_bytes: Length of the text in UTF-8.
        group: Which part of the data it belongs to (`pile_set_name`), or "".
    """

    ids: list[int]
    num_words: int
    num_bytes: int
    group: str


def read_task(path: str | os.PathLike[str]) -> TaskConfig:
    """Reads a task file.

    Args:
        path: A YAML file in the authors' format.

    Returns:
        The config of its type.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown or missing key, a value of the wrong type, an unknown type, module, metric or strategy;
            the message names file, key and what is allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no task file {path}: give the path of a YAML file.")
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} must hold keys and values, such as `type: mul`, not {type(read).__name__}.")
    settings = {str(key).replace("-", "_"): value for key, value in read.items()}
    kind = settings.get("type")
    if kind not in TYPES:
        raise ValueError(f"{path}: type={kind!r} must be one of {', '.join(TYPES)}.")
    fields = {item.name: item for item in dataclasses.fields(TYPES[kind])}
    for key in read:
        if str(key).replace("-", "_") not in fields:
            raise ValueError(
                f"{path}: unknown key {key!r} in a task of type {kind!r}. Allowed keys: {', '.join(fields)}."
            )
    for key, item in fields.items():
        if key in settings:
            _check_type(path, key, settings[key], item.type)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ValueError(f"{path}: the key {key!r} is missing; every task needs name, type and path.")
    config = TYPES[kind](**settings)
    config.metrics = config.metrics or list(DEFAULT_METRICS[kind])
    _check_config(path, config)
    return config


def _check_type(path: Path, key: str, value: Any, annotation: Any) -> None:
    """Holds a value of a task file against the annotation of its field."""
    if key == "file_pattern":
        right = isinstance(value, str) or (
            isinstance(value, dict) and bool(value) and all(isinstance(v, str) for v in value.values())
        )
        expected = "a glob, or a glob for each group"
    elif key == "metrics":
        right, expected = isinstance(value, list) and all(isinstance(v, str) for v in value), "a list of names"
    elif annotation in (str, str | None):
        right, expected = isinstance(value, str) or (value is None and annotation is not str), "text"
    elif annotation is bool:
        right, expected = isinstance(value, bool), "true or false"
    elif annotation is float:
        right, expected = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        lowest = 0 if key in ("no_repeat_ngram_size", "min_gen_length") else 1
        right, expected = type(value) is int and value >= lowest, f"a whole number, at least {lowest}"
    if not right:
        raise ValueError(f"{path}: {key}={value!r} must be {expected}.")


def _check_config(path: Path, config: TaskConfig) -> None:
    """What one key says about another."""
    if config.unidirectional and not config.use_task_mask:
        raise ValueError(f"{path}: unidirectional needs use_task_mask: true, for [MASK] is filled from both sides.")
    allowed = [module for module, task in AUTHOR_TASKS.items() if task.type == config.type]
    if config.module is not None and config.module not in allowed:
        raise ValueError(
            f"{path}: module={config.module!r} is not known for a task of type {config.type!r}. Allowed: "
            f"{', '.join(allowed)}, or none. For a task of your own call cond_log_probs, generate_answers or lm_loss."
        )
    for metric in config.metrics:
        if metric not in METRICS[config.type]:
            raise ValueError(
                f"{path}: unknown metric {metric!r} for a task of type {config.type!r}. Allowed: "
                f"{', '.join(METRICS[config.type])}."
            )
    strategy = getattr(config, "sampling_strategy", STRATEGIES[0])
    if strategy not in STRATEGIES:
        raise ValueError(f"{path}: sampling_strategy={strategy!r} must be one of {', '.join(STRATEGIES)}.")


def task_files(config: TaskConfig, data_path: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """Finds the files of a task.

    Args:
        config: The task.
        data_path: Folder that holds the folders of all tasks.

    Returns:
        The sorted files of each group; "all" where the task names no groups.

    Raises:
        FileNotFoundError: a group without files.
    """
    folder = Path(data_path) / config.path
    patterns = config.file_pattern if isinstance(config.file_pattern, dict) else {"all": config.file_pattern}
    groups = {}
    for group, pattern in patterns.items():
        names = glob.glob(str(folder / pattern), recursive=True)
        groups[group] = sorted(path for path in map(Path, names) if path.is_file())
    for group, files in groups.items():
        if not files:
            raise FileNotFoundError(
                f"Task {config.name!r}: no file below {folder} matches {patterns[group]!r} (group {group!r}). Check "
                "the data path, and path and file_pattern of the task."
            )
    return groups


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a jsonl file, each with where it stands; empty lines are not rows."""
    has_rows = False
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{where} is not JSON ({error}): a data file holds one JSON object a line."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(f"{where} is not an object with keys such as inputs_pretokenized: {line[:60]!r}")
            has_rows = True
            yield where, row
    if not has_rows:
        raise ValueError(f"{path} holds no rows.")


def _ids(tokenizer: Any, row: dict[str, Any], key: str, where: str, vocab_size: int, masks_in_text: bool) -> Any:
    """Ids under `key`, or those of the text under `key_pretokenized`; nested where the row holds a list of texts."""
    if key in row:
        ids, source = row[key], key
    elif f"{key}_pretokenized" in row:
        source = f"{key}_pretokenized"
        texts = row[source]
        is_list = isinstance(texts, list)
        if not all(isinstance(text, str) for text in (texts if is_list else [texts])):
            raise ValueError(f"{where}: {source} must be text or a list of texts, not {str(texts)[:60]}.")
        ids = token_ids(tokenizer, texts if is_list else [texts], masks_in_text=masks_in_text)
        ids = ids if is_list else ids[0]
    else:
        raise ValueError(f"{where}: there is neither {key!r} (ids) nor '{key}_pretokenized' (text).")
    flat = [index for part in ids for index in (part if isinstance(part, list) else [part])] if ids else []
    for index in flat:
        if type(index) is not int or not 0 <= index < vocab_size:
            raise ValueError(
                f"{where}: {source} holds {index!r}, which is not an id of this model (0..{vocab_size - 1}). Were the "
                "data tokenized for another vocabulary? Without this key its text is tokenized here."
            )
    return ids


def read_rows(
    path: Path, tokenizer: Any, config: TaskConfig, vocab_size: int, *, masks_in_text: bool = True
) -> list[TaskRow]:
    """Reads the rows of a multiple-choice or generation task.

    Args:
        path: A jsonl file.
        tokenizer: The tokenizer.
        config: The task.
        vocab_size: Ids of the model.
        masks_in_text: See `token_ids`.

    Returns:
        The rows.

    Raises:
        ValueError: a row that is not JSON, without text, choices or answers, with a label outside its choices, or
            with ids of another vocabulary; the message names file and line.
    """
    is_choice = config.type == "mul"
    key = "choices" if is_choice else "targets"
    rows = []
    for where, row in _json_rows(path):
        text = _ids(tokenizer, row, "inputs", where, vocab_size, masks_in_text)
        if not text or isinstance(text[0], list):
            raise ValueError(f"{where}: the text is empty, or a list: a row asks about one text.")
        candidates = _ids(tokenizer, row, key, where, vocab_size, False)
        if candidates and not isinstance(candidates[0], list):
            candidates = [candidates]
        if not candidates or (is_choice and not all(candidates)):
            raise ValueError(f"{where}: {key} must be a list of at least one, none of them empty, got {candidates}.")
        label = row.get("label", -1)
        if is_choice and (type(label) is not int or not 0 <= label < len(candidates)):
            raise ValueError(
                f"{where}: label={row.get('label')!r} must be the number of one of the {len(candidates)} choices, "
                f"0..{len(candidates) - 1}."
            )
        missing = [name for name in config.author_task.keys if name not in row]
        if missing:
            raise ValueError(f"{where}: {config.module} also reads {', '.join(missing)}, which the row lacks.")
        rows.append(TaskRow(text, candidates, label, row))
    return rows


def read_texts(path: Path, tokenizer: Any, config: TaskConfig, vocab_size: int) -> list[TaskText]:
    """Reads the texts of a language-modelling task: a whole file, or the rows of the Pile.

    Args:
        path: A text file; with the Pile's module a jsonl file of `text` (text, or ids beside `text_pretokenized`) and
            `meta` with `pile_set_name`.
        tokenizer: The tokenizer.
        config: The task.
        vocab_size: Ids of the model.

    Returns:
        The texts.

    Raises:
        ValueError: an empty text, or a row without one; the message names file and line.
    """
    if not config.author_task.has_rows:
        whole = path.read_text(encoding="utf-8")
        if not whole.strip():
            raise ValueError(f"{path} is empty: there is nothing to score.")
        return [_text(whole, token_ids(tokenizer, [whole], masks_in_text=False)[0], "")]
    texts = []
    for where, row in _json_rows(path):
        given = row.get("text")
        raw = row.get("text_pretokenized", given)
        if not given or not isinstance(raw, str):
            raise ValueError(
                f"{where}: a row needs text, or ids under 'text' and their text under 'text_pretokenized'."
            )
        if not isinstance(row.get("meta"), dict) or "pile_set_name" not in row["meta"]:
            raise ValueError(f"{where}: meta.pile_set_name is missing, by which the Pile's scores are grouped.")
        source: dict[str, Any] = {"text_pretokenized": raw} if isinstance(given, str) else {"text": given}
        ids = _ids(tokenizer, source, "text", where, vocab_size, False)
        texts.append(_text(raw, ids, row["meta"]["pile_set_name"]))
    return texts


def _text(raw: str, ids: list[int], group: str) -> TaskText:
    return TaskText(ids, len(raw.strip().split(" ")), len(raw.encode()), group)


__all__ = [
    "GenerationTaskConfig",
    "LanguageModelTaskConfig",
    "MultiChoiceTaskConfig",
    "TaskConfig",
    "TaskRow",
    "TaskText",
    "read_rows",
    "read_task",
    "read_texts",
    "task_files",
]
