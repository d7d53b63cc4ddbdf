"""The settings of an ERNIE encoder that becomes a BERT, and back: every field has a rule, none is passed over.

What BERT's configuration has no word for is kept in one entry of its config.json, `ernie`, which transformers carries
through training and saving and nobody reads but the way back.
"""

from collections.abc import Mapping
from typing import Any

from transformers import BertConfig, ErnieConfig

from .bert_names import BertTask
from .ernie_settings import CARRIED_BESIDE, KINDS
from .setting_kinds import COUNT, OBJECT, Kind, one_of
from .settings_files import shown, wrong_kinds

ENTRY = "ernie"
"""Of config.json: what of ERNIE's settings BERT has no word for, and what was folded."""

SAME, KEPT_IN_ENTRY, FALSE, ABSOLUTE, OF_THE_CLASS, OF_THE_WRITER = (
    "has the same name and meaning in both",
    f"is kept under `{ENTRY}`",
    "must be false: an encoder attends in both directions, to itself alone",
    "must be `absolute`, and is written: engines made for transformers 4 ask for it",
    "names BERT's class",
    "is written anew",
)
FIELDS: Mapping[str, str] = {
    "architectures": OF_THE_CLASS,
    "transformers_version": OF_THE_WRITER,
    "dtype": OF_THE_WRITER,
    "vocab_size": SAME,
    "hidden_size": SAME,
    "num_hidden_layers": SAME,
    "num_attention_heads": SAME,
    "intermediate_size": SAME,
    "hidden_act": SAME,
    "hidden_dropout_prob": SAME,
    "attention_probs_dropout_prob": SAME,
    "classifier_dropout": SAME,
    "max_position_embeddings": SAME,  # both count positions from 0, padding or not
    "type_vocab_size": SAME,
    "initializer_range": SAME,
    "layer_norm_eps": SAME,
    "pad_token_id": SAME,
    "bos_token_id": SAME,
    "eos_token_id": SAME,
    "use_cache": SAME,
    "output_hidden_states": SAME,
    "return_dict": SAME,
    "chunk_size_feed_forward": SAME,
    "id2label": SAME,
    "label2id": SAME,
    "problem_type": SAME,
    "tie_word_embeddings": SAME,
    "task_type_vocab_size": KEPT_IN_ENTRY,
    "use_task_id": KEPT_IN_ENTRY,
    "task_id": KEPT_IN_ENTRY,
    **dict.fromkeys(CARRIED_BESIDE, KEPT_IN_ENTRY),
    "is_decoder": FALSE,
    "add_cross_attention": FALSE,
    "is_encoder_decoder": FALSE,
    "position_embedding_type": ABSOLUTE,
}
"""Field of an ERNIE configuration, transformers' own and PaddleNLP's beside them -> what becomes of it."""

ENTRY_KINDS: Mapping[str, Kind] = {
    **{name: KINDS[name] for name, rule in FIELDS.items() if rule == KEPT_IN_ENTRY},
    "folded_task_type": COUNT,
    "folded_row": COUNT,
}
FOLDER_KINDS: Mapping[str, Kind] = {**KINDS, "position_embedding_type": one_of(("absolute",))}
"""Setting of an encoder's config.json -> what it may be."""
BERT_KINDS: Mapping[str, Kind] = {**FOLDER_KINDS, ENTRY: OBJECT}
"""The same, of one that became a BERT."""


def bert_config(config: ErnieConfig, task: BertTask, task_type: int | None, row: int | None) -> BertConfig:
    """BERT's configuration of an ERNIE encoder.

    Args:
        config: ERNIE's.
        task: The head.
        task_type: The folded task type, and
        row: its row in the task embeddings; both None where there are none.
    """
    made = BertConfig(**{name: getattr(config, name) for name in _fields(SAME)})
    kept = {name: getattr(config, name) for name in _fields(KEPT_IN_ENTRY) if getattr(config, name, None) is not None}
    if row is not None:
        kept |= {"folded_task_type": task_type, "folded_row": row}
    setattr(made, ENTRY, kept)
    made.position_embedding_type = "absolute"
    made.architectures = [task.architecture]
    return made


def ernie_config(config: BertConfig, task: BertTask, has_tasks: bool) -> ErnieConfig:
    """ERNIE's configuration of a BERT, folded or not.

    Args:
        config: BERT's, with its entry checked.
        task: The head.
        has_tasks: Whether the task embeddings come back.
    """
    entry = dict(getattr(config, ENTRY, None) or {})
    kept = {name: entry[name] for name in _fields(KEPT_IN_ENTRY) if name in entry}
    beside = {name: kept.pop(name) for name in CARRIED_BESIDE if name in kept}
    if not has_tasks:
        kept |= {"use_task_id": False, "task_id": 0}
    made = ErnieConfig(**{name: getattr(config, name) for name in _fields(SAME)}, **kept)
    for name, value in beside.items():
        setattr(made, name, value)
    made.architectures = [task.ernie.architecture]
    return made


def _fields(rule: str) -> list[str]:
    return [name for name, of_it in FIELDS.items() if of_it == rule]


def check_encoder(raw: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a config.json, of ERNIE or BERT, whose model is more than an encoder."""
    for name in _fields(FALSE):
        if raw.get(name):
            raise ValueError(f"{name} is {shown(raw[name])}; it {FALSE}")
    if not raw.get("tie_word_embeddings", True):
        raise ValueError("tie_word_embeddings is false, and the heads of these classes are tied to the embeddings")
    if raw.get("quantization_config"):
        raise ValueError(
            "the weights are quantized, and no row can be added to those; convert the floating-point folder that it "
            "was made from"
        )
    if len(raw.get("architectures") or []) != 1:
        raise ValueError(f"architectures should name one class, it is {shown(raw.get('architectures'))}")


def check_entry(raw: Mapping[str, Any]) -> None:
    """`check_encoder`, and raises `ValueError` for an entry of another shape."""
    check_encoder(raw)
    entry = raw.get(ENTRY) or {}
    if wrong := wrong_kinds(entry, ENTRY_KINDS):
        raise ValueError(f"in {ENTRY}: {'. '.join(wrong)}")
    if ("folded_row" in entry) != ("folded_task_type" in entry):
        raise ValueError(f"{ENTRY} should hold folded_row and folded_task_type together")


def unread(raw: Mapping[str, Any], where: object) -> list[str]:
    """A notice that names what a config.json holds beyond the fields that are known, if anything."""
    known = {*FIELDS, "model_type", "torch_dtype", "num_labels", ENTRY}
    others = sorted(name for name in raw.keys() - known if not name.startswith("_"))
    return [f"{where}: not read by either class and left out: {', '.join(others)}"] if others else []


__all__ = [
    "BERT_KINDS",
    "ENTRY",
    "FIELDS",
    "FOLDER_KINDS",
    "bert_config",
    "check_encoder",
    "check_entry",
    "ernie_config",
    "unread",
]
