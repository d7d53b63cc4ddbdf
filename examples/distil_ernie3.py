"""Distils the model of `pretrain_ernie3.py` into two students, online, and shows that it helps them.

    python examples/distil_ernie3.py --teacher demo-output/ernie3/model --output demo-output/ernie3-students

One student is an ERNIE 3.0 model, the other an encoder of the host library, as Baidu's released students are. A
teacher can hand down only what it knows, and after two minutes on seven tasks it guesses masked words no better than a
student will: so it first goes on with masked words alone. Then, in the same pass in which it trains on, the relations
of its last layer teach both students beside their own loss on masked words; for the second half of the steps they go
on without it. What is printed beside it is the same student, from the same first weights, trained on masked words
alone: as many steps, on the same texts, at the same learning rate.
"""

import argparse
import dataclasses
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ernie3_texts import Story, Texts
from pretrain_ernie3 import StoryRows
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    DataCollatorForTokenClassification,
    ErnieConfig,
    ErnieForMaskedLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_glm_ernie import (
    Ernie3Config,
    Ernie3DistillationTrainer,
    Ernie3ForMaskedLM,
    KnowledgeMasking,
    OnlineDistillation,
)

ROWS = 16  # per step
# MiniLMv2's relations, ten times as heavy as the student's own loss: what paid in benchmarks/distil_ernie3_sweep.py.
RELATIONS = ("query-query", "key-key", "value-value")
WEIGHT = 10.0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line (`None`: that of the process)."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True, help="the model that pretrain_ernie3.py made")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the students")
    parser.add_argument("--teacher-steps", type=int, default=600, help="steps of the teacher before it teaches")
    parser.add_argument("--steps", type=int, default=400, help="steps of the students")
    parser.add_argument("--teaching-share", type=float, default=0.5, help="of the students' steps, with the teacher")
    parser.add_argument("--documents", type=int, default=400, help="made-up documents per language")
    parser.add_argument("--teacher-rate", type=float, default=3e-3, help="learning rate of the teacher's steps alone")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="learning rate of the students")
    parser.add_argument("--label-steps", type=int, default=40, help="steps of classification with few labels")
    parser.add_argument("--label-draws", type=int, default=3, help="how often the few labels are drawn")
    parser.add_argument("--seed", type=int, default=3, help="of the texts, as in pretrain_ernie3.py")
    parser.add_argument("--student-seed", type=int, default=1, help="of the students' first weights")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="write over what is in the folder")
    return parser.parse_args(arguments)


class MaskedTexts(torch.utils.data.Dataset):
    """Texts with whole words masked, anew each time a text comes round.

    Args:
        texts: The texts.
        masking: Masks them.
        first: Number of the first row; rows are numbered through, so that two parts of a run never repeat each other.
        count: How many rows.
    """

    def __init__(self, texts: Sequence[str], masking: KnowledgeMasking, first: int, count: int) -> None:
        self.texts, self.masking, self.first, self.count = texts, masking, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(self.first + index, len(self.texts))
        row = self.masking.row({"text": self.texts[place]}, place, epoch, self.masking.max_length)
        return {name: row[name] for name in ("input_ids", "labels")}


def build_students(teacher: Ernie3Config) -> dict[str, PreTrainedModel]:
    """Two untrained students with the teacher's vocabulary."""
    sizes: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    small = teacher.to_dict() | sizes
    small |= {"num_hidden_layers": 1, "branch_hidden_size": 64, "branch_num_hidden_layers": 1, "branches": ["nlu"]}
    encoder = ErnieConfig(
        vocab_size=teacher.vocab_size,
        num_hidden_layers=2,
        max_position_embeddings=teacher.max_position_embeddings,
        initializer_range=teacher.initializer_range,
        layer_norm_eps=1e-12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )
    return {"unified": Ernie3ForMaskedLM(Ernie3Config(**small)), "encoder": ErnieForMaskedLM(encoder)}


def settings(output: Path, steps: int, learning_rate: float, seed: int) -> TrainingArguments:
    """What all runs have in common."""
    return TrainingArguments(
        str(output),
        max_steps=steps,
        per_device_train_batch_size=ROWS,
        per_device_eval_batch_size=64,
        learning_rate=learning_rate,
        warmup_steps=steps // 10,
        logging_steps=max(steps // 10, 1),
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=seed,
    )


def few_labels(texts: Texts, shots: int, seed: int) -> list[list[Story]]:
    """A story of one sentence for each label: so many of every plot and language."""
    by_plot: dict[str, list[Story]] = defaultdict(list)
    for document in texts.documents:
        for story in document:
            by_plot[story.topic].append(story)
    rng = random.Random(seed)
    chosen = [story for stories in by_plot.values() for story in rng.sample(stories, shots)]
    return [[dataclasses.replace(story, sentences=(rng.choice(story.sentences),)) for story in chosen]]


def accuracy_of_few_labels(folder: Path, texts: Texts, steps: int = 40, shots: int = 4, draws: int = 3) -> float:
    """Fine-tunes a model to tell the plots apart from few sentences.

    Args:
        folder: Of the model.
        texts: The texts: labelled sentences are drawn from those read, and tried on those not read.
        steps: Of fine-tuning, on all labelled sentences at once.
        shots: Labelled sentences of each plot and language.
        draws: How often the sentences are drawn.

    Returns:
        The share of unseen sentences that are classified right, mean of the draws.
    """
    unseen = StoryRows(texts.unseen, texts.tokenizer, texts.topics)
    found = []
    for draw in range(draws):
        rows = StoryRows(few_labels(texts, shots, draw), texts.tokenizer, texts.topics)
        set_seed(draw)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(set(texts.topics.values())))
        options = settings(folder / "labels", steps, 1e-3, draw)
        options.per_device_train_batch_size = len(rows)
        trainer = Trainer(
            model,
            options,
            train_dataset=rows,
            eval_dataset=unseen,
            processing_class=texts.tokenizer,
            compute_metrics=lambda result: {
                "right": float(np.mean(np.argmax(result.predictions, -1) == result.label_ids))
            },
        )
        trainer.train()
        found.append(trainer.evaluate()["eval_right"])
    return float(np.mean(found))


def loss_on(folder: Path, unseen: MaskedTexts, collate: Any) -> float:
    """The loss of a model's folder on masked words of texts it has not read."""
    model = AutoModelForMaskedLM.from_pretrained(folder)
    trainer = Trainer(model, settings(folder / "training", 1, 0.0, 0), eval_dataset=unseen, data_collator=collate)
    return trainer.evaluate()["eval_loss"]


def train_alone(model: PreTrainedModel, rows: MaskedTexts, collate: Any, arguments: TrainingArguments) -> None:
    """Trains a model on masked words."""
    Trainer(model, arguments, train_dataset=rows, data_collator=collate).train()


def distil(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Trains the teacher on, distils, and trains the same students without a teacher.

    Returns:
        `teacher`, `distilled-NAME` and `alone-NAME`, each with its `loss` on masked words of unseen texts, and the
        students with their `accuracy` from few labels.
    """
    texts = Texts(arguments.documents, arguments.seed, arguments.output)
    masking = KnowledgeMasking(texts.tokenizer, max_length=160, truncation=True, seed=arguments.seed)
    read = [story.text for document in texts.documents for story in document]
    unread = [story.text for document in texts.unseen for story in document]
    # The teacher's rows come behind the students' in the count, so they are masked otherwise.
    rows = MaskedTexts(read, masking, 0, arguments.steps * ROWS)
    teachers_rows = MaskedTexts(read, masking, len(rows), arguments.teacher_steps * ROWS)
    unseen = MaskedTexts(unread, masking, 0, len(unread))
    collate = DataCollatorForTokenClassification(texts.tokenizer)
    output, rate = arguments.output, arguments.learning_rate

    set_seed(arguments.student_seed)
    teacher = AutoModelForPreTraining.from_pretrained(arguments.teacher)
    if arguments.teacher_steps:
        alone = settings(output / "training", arguments.teacher_steps, arguments.teacher_rate, arguments.seed)
        train_alone(teacher, teachers_rows, collate, alone)
    set_seed(arguments.student_seed)
    students = build_students(teacher.config)
    for name, student in students.items():
        student.save_pretrained(output / f"alone-{name}")
    trainer = Ernie3DistillationTrainer(
        OnlineDistillation(
            teacher, students, relations=RELATIONS, distillation_weight=WEIGHT, student_loss_weight=1.0
        ),
        settings(output, arguments.steps, rate, arguments.seed),
        train_dataset=rows,
        data_collator=collate,
        processing_class=texts.tokenizer,
        learning_rates={"teacher": 1e-4},
        teaching_share=arguments.teaching_share,
    )
    trainer.train()
    trainer.save_model(str(output))
    measured = {"teacher": {"loss": loss_on(output / "teacher", unseen, collate)}}
    for name in students:
        folder = output / f"alone-{name}"
        student = AutoModelForMaskedLM.from_pretrained(folder)
        train_alone(student, rows, collate, settings(folder, arguments.steps, rate, arguments.seed))
        student.save_pretrained(folder)
        for kind, folder in (("distilled", output / f"student-{name}"), ("alone", output / f"alone-{name}")):
            measured[f"{kind}-{name}"] = {
                "loss": loss_on(folder, unseen, collate),
                "accuracy": accuracy_of_few_labels(folder, texts, arguments.label_steps, draws=arguments.label_draws),
            }
    return measured


def main() -> None:
    """Distils and prints."""
    arguments = parse_arguments()
    if arguments.output.exists() and not arguments.overwrite_output_dir:
        raise SystemExit(
            f"{arguments.output} exists already. Name a folder that does not, or pass --overwrite_output_dir to write "
            "over what is there."
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    measured = distil(arguments)
    print(f"teacher: loss on masked words of unseen texts {measured.pop('teacher')['loss']:.3f}")
    for name, found in measured.items():
        print(
            f"{name}: loss {found['loss']:.3f}; {found['accuracy']:.1%} of unseen sentences classified from few labels"
        )


if __name__ == "__main__":
    main()
