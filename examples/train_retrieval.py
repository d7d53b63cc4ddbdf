"""Trains a dual encoder or a cross-encoder for retrieval, as RocketQA does, through sentence-transformers.

    python examples/train_retrieval.py --kind dual --model ernie-base --data dual.train.tsv --eval_data dev.jsonl \
        --output_dir dual --per_device_train_batch_size 128 --num_train_epochs 10
    python examples/train_retrieval.py --kind cross --model ernie-base --data cross.train.tsv --output_dir cross

The data is RocketQA's or PaddleNLP's `.tsv`, or a `.jsonl` of `query`, `pos` and `neg`; see
`hf_glm_ernie/ernie_retrieval/judged_files.py`.

A dual encoder learns by softmax over the dot products with all passages of the batch: its own, the hard negatives of
its rows and, over several devices (`accelerate launch`), those of all of them. Settings are RocketQA's unless said
otherwise: `[CLS]`, no normalisation, 32 tokens of a query and 384 of a passage, learning rate 3e-5. A cross-encoder
learns two classes (learning rate 1e-5), or with `--num_labels 1` one score.

`--output_dir` becomes a folder that `SentenceTransformer` or `CrossEncoder`, `AutoModel` and `sentence_embeddings`
open, and `python -m conversion ernie --reverse` turns into PaddleNLP's format. With `--passage_model` a dual encoder
is two: `query_0_Transformer` and `document_0_Transformer` in it are such folders. `evaluation.json` holds the figures
on `--eval_data`.

Every other option is one of sentence-transformers' training arguments. A run that was stopped goes on with `--resume`;
a folder that holds one is refused without it, or `--overwrite_output_dir`.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loss_plot import plot_losses
from training_folder import prepare_folder
from transformers import HfArgumentParser, set_seed

import hf_glm_ernie  # noqa: F401  # registers the tokenizer with AutoTokenizer
from hf_glm_ernie.ernie_retrieval.encoders import INSTALL, MODES, cross_encoder, dual_encoder
from hf_glm_ernie.ernie_retrieval.evaluators import cross_evaluator, dual_evaluator
from hf_glm_ernie.ernie_retrieval.judged_files import JudgedQuery, have_titles, read_passages, read_queries
from hf_glm_ernie.ernie_retrieval.training_rows import all_passages, cross_columns, dual_columns

KINDS = ("dual", "cross")
DEFAULTS: dict[str, dict[str, Any]] = {
    # RocketQA's, of research/DuReader-Retrieval-Baseline/script; no_duplicates keeps a query's other passages out of
    # its negatives.
    "dual": {"learning_rate": 3e-5, "weight_decay": 0.0, "warmup_steps": 0.1, "batch_sampler": "no_duplicates"},
    "cross": {"learning_rate": 1e-5, "weight_decay": 0.01, "warmup_steps": 0.0},
}


@dataclass
class RetrievalArguments:
    """What is trained on, and which encoder."""

    kind: str = field(metadata={"help": f"one of {', '.join(KINDS)}"})
    model: str = field(metadata={"help": "folder of an encoder; of a dual encoder that of queries"})
    data: str = field(metadata={"help": "training file: .tsv or .jsonl"})
    eval_data: str | None = field(default=None, metadata={"help": "file of the same forms to evaluate on"})
    corpus: str | None = field(
        default=None, metadata={"help": "dual: file of passages to search beside those of eval_data"}
    )
    passage_model: str | None = field(
        default=None, metadata={"help": "dual: folder of a second encoder, for passages (default: one for both)"}
    )
    pooling: str = field(default="cls", metadata={"help": f"dual: {', '.join(MODES)}"})
    normalize: bool = field(default=False, metadata={"help": "dual: scale vectors to length 1"})
    scale: float | None = field(
        default=None, metadata={"help": "dual: of dot products; default 1, or 20 of vectors of length 1"}
    )
    hard_negatives: int | None = field(
        default=None, metadata={"help": "dual: of every row; default 1, or 0 where the data has none"}
    )
    mini_batch_size: int | None = field(
        default=None, metadata={"help": "dual: rows of a forward, for batches that do not fit (gradient cache)"}
    )
    query_length: int = field(default=32, metadata={"help": "dual: tokens of a query; longer ones are cut"})
    passage_length: int = field(
        default=384, metadata={"help": "tokens of a passage, cross: of query and passage; longer ones are cut"}
    )
    num_labels: int = field(default=2, metadata={"help": "cross: 2 classes, or 1 score"})
    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint in the output folder"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "begin anew in a folder that holds a run"})

    def __post_init__(self) -> None:
        for name, values in (("kind", KINDS), ("pooling", tuple(MODES))):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(values)}.")
        other = set(OF_ONE_KIND["cross" if self.kind == "dual" else "dual"])
        defaults = type(self).__dataclass_fields__
        if given := sorted(name for name in other if getattr(self, name) != defaults[name].default):
            raise ValueError(f"--{given[0]} is not for --kind {self.kind}.")
        for name, least in (("hard_negatives", 0), ("mini_batch_size", 1), ("query_length", 3), ("passage_length", 4)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"scale={self.scale} must be above 0.")
        if self.corpus and not self.eval_data:
            raise ValueError("--corpus is searched for the queries of --eval_data: give both.")


OF_ONE_KIND = {
    "dual": (
        *("corpus", "passage_model", "pooling", "normalize", "scale", "hard_negatives", "mini_batch_size"),
        "query_length",
    ),
    "cross": ("num_labels",),
}


def main(arguments: list[str] | None = None) -> Any:
    """Trains, saves, plots and evaluates.

    Args:
        arguments: The command line; `None` reads that of the process.

    Returns:
        The trainer, for those who call this from Python.

    Raises:
        ValueError: options that do not go together, or lines that are not what they should be.
    """
    options, training = read_arguments(sys.argv[1:] if arguments is None else arguments)
    checkpoint = prepare_folder(training, options.resume, options.overwrite_output_dir)
    set_seed(training.seed)
    queries = read_queries(Path(options.data))
    held_out = read_queries(Path(options.eval_data)) if options.eval_data else None
    trainer = TRAINERS[options.kind](options, training, queries, held_out)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    folder = Path(str(training.output_dir))
    if trainer.is_world_process_zero():
        plot_losses(trainer.state.log_history, folder / "loss.png")
        if trainer.evaluator is not None:
            scores = {name: float(score) for name, score in trainer.evaluator(trainer.model).items()}
            (folder / "evaluation.json").write_text(f"{json.dumps(scores, indent=1)}\n", encoding="utf-8")
    return trainer


def read_arguments(arguments: list[str]) -> tuple[RetrievalArguments, Any]:
    """Reads the command line; raises ValueError where options do not go together."""
    try:
        from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments
        from sentence_transformers.sentence_transformer import SentenceTransformerTrainingArguments
    except ImportError as error:
        raise ImportError(INSTALL) from error
    # The kind first: it decides on the other arguments and their defaults. One that is not known is refused below.
    own = HfArgumentParser(RetrievalArguments, add_help=False)  # type: ignore[arg-type]  # the host takes dataclasses
    kind = own.parse_known_args([one for one in arguments if one not in ("-h", "--help")])[0].kind
    cross = kind == "cross"
    arguments_class = CrossEncoderTrainingArguments if cross else SentenceTransformerTrainingArguments
    both: Any = (RetrievalArguments, arguments_class)
    parser = HfArgumentParser(both, description=__doc__.split("\n")[0])
    parser.set_defaults(**DEFAULTS["cross" if cross else "dual"], report_to=["none"])
    options, training = parser.parse_args_into_dataclasses(arguments)
    return options, training


def dual_trainer(
    options: RetrievalArguments, training: Any, queries: list[JudgedQuery], held_out: list[JudgedQuery] | None
) -> Any:
    """The trainer of a dual encoder."""
    from datasets import Dataset
    from sentence_transformers.sentence_transformer import SentenceTransformerTrainer, losses
    from sentence_transformers.util import dot_score

    rows = Dataset.from_dict(dual_columns(queries, options.hard_negatives))
    model = dual_encoder(
        options.model,
        options.passage_model,
        pooling=options.pooling,
        normalize=options.normalize,
        query_length=options.query_length,
        passage_length=options.passage_length,
    )
    # By column, so that each is cut at its own length, and goes through its own encoder where there are two.
    training.router_mapping = {name: "query" if name == "query" else "document" for name in rows.column_names}
    scale = options.scale if options.scale is not None else 20.0 if options.normalize else 1.0
    settings: dict[str, Any] = {
        "scale": scale,
        "similarity_fct": dot_score,
        "gather_across_devices": training.world_size > 1,
    }
    if options.mini_batch_size is None:
        loss = losses.MultipleNegativesRankingLoss(model, **settings)
    else:
        loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=options.mini_batch_size, **settings)
    evaluator = None
    if held_out is not None:
        titles = have_titles(all_passages(queries))
        corpus = read_passages(Path(options.corpus)) if options.corpus else []
        evaluator = dual_evaluator(held_out, corpus, titles=titles, batch_size=training.per_device_eval_batch_size)
    return SentenceTransformerTrainer(model, training, train_dataset=rows, loss=loss, evaluator=evaluator)


def cross_trainer(
    options: RetrievalArguments, training: Any, queries: list[JudgedQuery], held_out: list[JudgedQuery] | None
) -> Any:
    """The trainer of a cross-encoder."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, losses

    columns = cross_columns(queries)
    if options.num_labels == 1:
        columns["label"] = [float(label) for label in columns["label"]]
    model = cross_encoder(options.model, num_labels=options.num_labels, max_length=options.passage_length)
    kind = losses.CrossEntropyLoss if options.num_labels == 2 else losses.BinaryCrossEntropyLoss
    evaluator = None
    if held_out is not None:
        evaluator = cross_evaluator(held_out, batch_size=training.per_device_eval_batch_size)
    rows = Dataset.from_dict(columns)
    return CrossEncoderTrainer(model, training, train_dataset=rows, loss=kind(model), evaluator=evaluator)


TRAINERS = {"dual": dual_trainer, "cross": cross_trainer}

if __name__ == "__main__":
    main()
