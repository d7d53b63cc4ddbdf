"""ERNIE 3.0's released encoders: every name their files have used, and the one table onto transformers' names.

Files come with PaddleNLP's names (2.5 and later), with those of 2.3 and 2.4, or with the names of the static graph
(ERNIE-kit's `params`, one file per variable). `ernie_prefix.canonical_names` brings all of them to PaddleNLP's 2.5
names; the table of a `Task` goes from there to transformers and back. Sources: PaddleNLP 2.3.5, 2.4.2, 2.8.1
`transformers/ernie/modeling.py`; ERNIE-kit `erniekit/modules/ernie.py`; ERNIE `finetune/classifier.py` and
`sequence_label.py` (names of static heads).

A Linear of Paddle is [in, out] and is transposed; embeddings and the decoder tied to them are not.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .layer_numbers import NUMBER
from .operations import DefaultRow, Operation, Replicated, SameAs, Tied, Transposed
from .state_map import Row, StateMap, pair

PREFIX = "ernie."
"""Of the backbone's names in every class but the bare model."""

WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
TASK_EMBEDDINGS = "embeddings.task_type_embeddings.weight"
DECODER = "cls.predictions.decoder"
DECODER_BIAS = "cls.predictions.decoder_bias"


GRAM = "ernie_gram"
"""What PaddleNLP's ERNIE-Gram classes call their encoder, and their model type."""
GRAM_CLASS = "ErnieGram"
"""How the names of these classes begin; behind it they are as ERNIE's."""
GRAM_TASKS = ("features", "sequence-classification", "token-classification", "question-answering")


@dataclass(frozen=True)
class Task:
    """A head, and the class for it on both sides.

    Attributes:
        name: As `--task` spells it.
        original: PaddleNLP's class.
        architecture: The class that reads the result: transformers' own, or one of this package.
        auto_class: The Auto class that opens it.
        rows: The head's part of the table.
        pipeline: The `pipeline_tag` of its model card; None where the Auto class tells.
        prefix: Of the backbone's names, on both sides.
        is_native: Whether transformers itself has the class.
        has_pooler: Whether that class has the pooler, which PaddleNLP keeps in every checkpoint.
        needs_pooler: Whether the head reads what the pooler makes.
    """

    name: str
    original: str
    architecture: str
    auto_class: str
    rows: tuple[Row, ...] = ()
    pipeline: str | None = None
    prefix: str = PREFIX
    is_native: bool = True
    has_pooler: bool = True
    needs_pooler: bool = False

    def original_of(self, is_gram: bool) -> str:
        """PaddleNLP's class; of ERNIE-Gram, that one's."""
        return GRAM_CLASS + self.original.removeprefix("Ernie") if is_gram else self.original

    def table(self, default_task_type: int = 0, vocabulary: Operation | None = None) -> StateMap:
        """PaddleNLP's names <-> transformers'.

        Args:
            default_task_type: The task type PaddleNLP takes where none is given. transformers takes 0, so in a native
                class another one is copied to row 0.
            vocabulary: What becomes of the rows that belong to tokens; None if ids are the same on both sides.
        """
        task_operation: Operation = Replicated()
        if self.is_native and default_task_type:
            task_operation = DefaultRow(default_task_type)
        backbone = (
            Row(f"{self.prefix}{row.source}", (self.prefix + row.targets[0],), row.operation)
            for row in (*BACKBONE, _embedding(TASK_EMBEDDINGS, task_operation))
        )
        rows = (*backbone, *self.rows)
        if vocabulary is not None:
            of_tokens = (self.prefix + WORD_EMBEDDINGS, DECODER_BIAS)
            rows = tuple(replace(row, operation=vocabulary) if row.source in of_tokens else row for row in rows)
        return StateMap(f"PaddleNLP {self.original}", rows)


def _linear(source: str, target: str) -> tuple[Row, Row]:
    return pair(source, (target,), Transposed(), Replicated())


def _same(source: str, target: str) -> tuple[Row, Row]:
    return pair(source, (target,), Replicated(), Replicated())


def _embedding(name: str, operation: Operation | None = None) -> Row:
    return Row(name, (name,), operation or Replicated())


BACKBONE: tuple[Row, ...] = (
    _embedding(WORD_EMBEDDINGS),
    _embedding("embeddings.position_embeddings.weight"),
    _embedding("embeddings.token_type_embeddings.weight"),
    *_same("embeddings.layer_norm", "embeddings.LayerNorm"),
    *_linear("encoder.layers.{i}.self_attn.q_proj", "encoder.layer.{i}.attention.self.query"),
    *_linear("encoder.layers.{i}.self_attn.k_proj", "encoder.layer.{i}.attention.self.key"),
    *_linear("encoder.layers.{i}.self_attn.v_proj", "encoder.layer.{i}.attention.self.value"),
    *_linear("encoder.layers.{i}.self_attn.out_proj", "encoder.layer.{i}.attention.output.dense"),
    *_same("encoder.layers.{i}.norm1", "encoder.layer.{i}.attention.output.LayerNorm"),
    *_linear("encoder.layers.{i}.linear1", "encoder.layer.{i}.intermediate.dense"),
    *_linear("encoder.layers.{i}.linear2", "encoder.layer.{i}.output.dense"),
    *_same("encoder.layers.{i}.norm2", "encoder.layer.{i}.output.LayerNorm"),
    *_linear("pooler.dense", "pooler.dense"),
)
"""The encoder but for its task embeddings, whose operation the class decides."""

_PREDICTIONS = (
    *_linear("cls.predictions.transform", "cls.predictions.transform.dense"),
    *_same("cls.predictions.layer_norm", "cls.predictions.transform.LayerNorm"),
    Row(DECODER_BIAS, ("cls.predictions.bias",), Replicated()),
    # PaddleNLP's files hold the tied decoder a second time.
    Row(f"{DECODER}.weight", (), SameAs(PREFIX + WORD_EMBEDDINGS)),
    Row(f"{DECODER}.bias", (), SameAs(DECODER_BIAS)),
    Row(None, (f"{DECODER}.weight",), Tied(PREFIX + WORD_EMBEDDINGS)),
    Row(None, (f"{DECODER}.bias",), Tied("cls.predictions.bias")),
)
_CLASSIFIER = _linear("classifier", "classifier")


def _native(name: str, head: str, rows: tuple[Row, ...], has_pooler: bool = True, original: str = "") -> Task:
    """A head that transformers has, under PaddleNLP's name unless that is another; with a pooler it reads it."""
    original, auto = original or f"ErnieFor{head}", f"AutoModelFor{head}"
    return Task(name, original, f"ErnieFor{head}", auto, rows, has_pooler=has_pooler, needs_pooler=has_pooler)


def _own(name: str, pipeline: str, first: str, second: str) -> Task:
    """A head of two linears that this package has."""
    rows = _linear(first, first) + _linear(second, second)
    return Task(name, name.upper(), f"ErnieFor{name.upper()}", "AutoModel", rows, pipeline=pipeline, is_native=False)


TASKS = (
    Task("features", "ErnieModel", "ErnieModel", "AutoModel", prefix=""),
    _native("masked-lm", "MaskedLM", _PREDICTIONS, has_pooler=False),
    _native(
        "pretraining",
        "PreTraining",
        _PREDICTIONS + _linear("cls.seq_relationship", "cls.seq_relationship"),
        original="ErnieForPretraining",
    ),
    _native("sequence-classification", "SequenceClassification", _CLASSIFIER),
    _native("token-classification", "TokenClassification", _CLASSIFIER, has_pooler=False),
    _native("question-answering", "QuestionAnswering", _linear("classifier", "qa_outputs"), has_pooler=False),
    _native("multiple-choice", "MultipleChoice", _CLASSIFIER),
    _own("uie", "token-classification", "linear_start", "linear_end"),
    _own("utc", "zero-shot-classification", "linear_q", "linear_k"),
)
TASK_NAMES = tuple(task.name for task in TASKS)

OTHER_CLASSES = {"ErnieCrossEncoder": "sequence-classification"}
"""Classes of PaddleNLP (`semantic_search`) that wrap one of the others."""

# The first head of these that is in a file tells its class; a bare `classifier` may be of four.
TELLTALES = (
    ("cls.seq_relationship.weight", "pretraining"),
    ("cls.predictions.transform.weight", "masked-lm"),
    ("linear_start.weight", "uie"),
    ("linear_q.weight", "utc"),
)
CLASSIFIER = "classifier.weight"
CLASSIFIER_TASKS = tuple(task.name for task in TASKS if any(row.source == CLASSIFIER for row in task.rows))

OTHER_NETWORKS: tuple[tuple[str, str], ...] = (
    ("UIEM", "UIE-M reads with ERNIE-M, which has no token types and a sentencepiece vocabulary"),
    ("ErnieM", "ERNIE-M has no token types and a sentencepiece vocabulary"),
    ("UIEX", "UIE-X reads with ERNIE-Layout, which looks at pictures and places as well"),
    ("ErnieLayout", "ERNIE-Layout looks at pictures and places as well"),
    ("ErnieDoc", "ERNIE-Doc has relative positions and a memory"),
    ("ErnieCtm", "ERNIE-CTM has several [CLS] tokens and factorised embeddings"),
    ("ErnieForGeneration", "ERNIE-GEN writes with masks that no encoder of transformers makes"),
    ("Skep", "SKEP is another class of PaddleNLP's, which was not compared"),
)
"""How the name of a class begins -> why its network is not this one."""

LABELLED_TASKS = ("sequence-classification", "token-classification")
"""Those whose classifier has one output per label."""

EARLIER_NAMES = {
    "cls.predictions.layer_norm.scale": "cls.predictions.layer_norm.weight",  # the first ernie_3.0_base.pdparams
    "cls.predictions.decoder_weight": f"{DECODER}.weight",  # before 2.5
}

STATIC_LAYER_PARTS = {
    "multi_head_att_query_fc": "self_attn.q_proj",
    "multi_head_att_key_fc": "self_attn.k_proj",
    "multi_head_att_value_fc": "self_attn.v_proj",
    "multi_head_att_output_fc": "self_attn.out_proj",
    "ffn_fc_0": "linear1",
    "ffn_fc_1": "linear2",
    "post_att_layer_norm": "norm1",
    "post_ffn_layer_norm": "norm2",
}
"""Part of a layer of the static graph -> PaddleNLP's."""

STATIC_MODULES = {
    "pre_encoder_layer_norm": "ernie.embeddings.layer_norm",
    **{
        rf"encoder_layer_({NUMBER})_{part}": rf"ernie.encoder.layers.\1.{name}"
        for part, name in STATIC_LAYER_PARTS.items()
    },
    "pooled_fc": "ernie.pooler.dense",
    "mask_lm_trans_fc": "cls.predictions.transform",
    "mask_lm_trans_layer_norm": "cls.predictions.layer_norm",
    "next_sent_fc": "cls.seq_relationship",
}
"""Linear or LayerNorm of the static graph, as a regular expression -> PaddleNLP's."""

STATIC_NAMES: tuple[tuple[str, str], ...] = (
    ("word_embedding", PREFIX + WORD_EMBEDDINGS),
    ("pos_embedding", "ernie.embeddings.position_embeddings.weight"),
    ("sent_embedding", "ernie.embeddings.token_type_embeddings.weight"),
    ("task_embedding", PREFIX + TASK_EMBEDDINGS),
    *(
        (f"{static}{static_part}", f"{name}.{part}")
        for static, name in STATIC_MODULES.items()
        for static_part, part in zip(
            ("_scale", "_bias") if static.endswith("norm") else (r"\.w_0", r"\.b_0"), ("weight", "bias"), strict=True
        )
    ),
    (r"mask_lm_out_fc\.b_0", DECODER_BIAS),
    ("cls_out_w|cls_seq_label_out_w", "classifier.weight"),
    ("cls_out_b|cls_seq_label_out_b", "classifier.bias"),
)
"""Names of the static graph, as regular expressions -> PaddleNLP's."""

TRAINING_STATE = re.compile(r".*_(moment[12]|beta[12]_pow_acc|fp32_master)_[0-9]+|(.*_)?learning_rate_[0-9]+|@.*@")
"""What Adam and the schedule leave in a folder of a training run."""

_STATIC = [(re.compile(pattern), name) for pattern, name in STATIC_NAMES]
_LAYER = re.compile(rf"(?:ernie\.)?encoder\.layers\.({NUMBER})\..+")


def state_of_training(names: Iterable[str]) -> dict[str, str]:
    """Those of the names that are no parameters but left by a training run -> that reason."""
    return {name: "state of the training" for name in names if TRAINING_STATE.fullmatch(name)}


def find_task(name: str) -> Task | None:
    """The task of a name of `--task` or of a class of PaddleNLP or transformers."""
    name = OTHER_CLASSES.get(name, name)
    if name.startswith(GRAM_CLASS):
        found = find_task("Ernie" + name.removeprefix(GRAM_CLASS))
        return found if found is not None and found.name in GRAM_TASKS else None
    return next((task for task in TASKS if name in (task.name, task.original, task.architecture)), None)


def static_name(name: str) -> str:
    """PaddleNLP's 2.5 name of a name of the static graph; another name is itself."""
    for pattern, replacement in _STATIC:
        match = pattern.fullmatch(name)
        if match is not None:
            return match.expand(replacement)
    return name


def layer_of(name: str) -> int | None:
    """The layer a canonical name belongs to."""
    match = _LAYER.fullmatch(name)
    return None if match is None else int(match.group(1))


def with_prefix(names: Mapping[str, str], task: Task) -> dict[str, str]:
    """The same names as the task's table has them: the bare model's have no `ernie.`."""
    if task.prefix == PREFIX:
        return dict(names)
    return {name.removeprefix(PREFIX): in_file for name, in_file in names.items()}


__all__ = [
    "BACKBONE",
    "CLASSIFIER",
    "CLASSIFIER_TASKS",
    "DECODER",
    "DECODER_BIAS",
    "EARLIER_NAMES",
    "GRAM",
    "GRAM_CLASS",
    "GRAM_TASKS",
    "LABELLED_TASKS",
    "OTHER_NETWORKS",
    "PREFIX",
    "STATIC_LAYER_PARTS",
    "TASKS",
    "TASK_EMBEDDINGS",
    "TASK_NAMES",
    "TELLTALES",
    "WORD_EMBEDDINGS",
    "Task",
    "find_task",
    "layer_of",
    "state_of_training",
    "static_name",
    "with_prefix",
]
