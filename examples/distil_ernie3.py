"""Distils the model of `pretrain_ernie3.py` into two students, online, and shows that it helps them.

    python examples/distil_ernie3.py --teacher demo-output/ernie3/model --output demo-output/ernie3-students

One student is an ERNIE 3.0 model, the other an encoder of the host library, as Baidu's released students are. In the
same pass in which the teacher goes on training, the attention relations of its last layer teach both, beside their own
loss on masked words. Then the auxiliary layer is dropped, and the students go on with masked words. What is printed
beside it is the same student, from the same first weights, trained on masked words alone: as many steps, on the same
texts.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ernie3_texts import Texts
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
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


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line (`None`: that of the process)."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True, help="the model that pretrain_ernie3.py made")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the students")
    parser.add_argument("--distillation-steps", type=int, default=200, help="steps of online distillation")
    parser.add_argument("--steps", type=int, default=200, help="steps on masked words behind it")
    parser.add_argument("--documents", type=int, default=400, help="made-up documents per language")
    parser.add_argument("--distillation-rate", type=float, default=3e-3, help="learning rate of the distillation")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="learning rate on masked words")
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


def held_out_loss(
    model: PreTrainedModel, train: MaskedTexts, unseen: MaskedTexts, collate: Any, arguments: TrainingArguments
) -> float:
    """Trains a model on masked words; returns its loss on texts it has not seen."""
    trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=unseen, data_collator=collate)
    trainer.train()
    return trainer.evaluate()["eval_loss"]


def distil(arguments: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Distils, trains, and trains without distilling.

    Returns:
        Student -> its loss on unseen texts, distilled and not.
    """
    texts = Texts(arguments.documents, arguments.seed, arguments.output)
    set_seed(arguments.student_seed)
    teacher = AutoModelForPreTraining.from_pretrained(arguments.teacher)
    masking = KnowledgeMasking(texts.tokenizer, max_length=160, truncation=True, seed=arguments.seed)
    read = [story.text for document in texts.documents for story in document]
    unread = [story.text for document in texts.unseen for story in document]
    first = arguments.distillation_steps * ROWS
    taught, alone = MaskedTexts(read, masking, 0, first), MaskedTexts(read, masking, first, arguments.steps * ROWS)
    whole, unseen = MaskedTexts(read, masking, 0, first + len(alone)), MaskedTexts(unread, masking, 0, len(unread))
    collate = DataCollatorForTokenClassification(texts.tokenizer)

    students = build_students(teacher.config)
    untaught = {name: copy.deepcopy(student) for name, student in students.items()}
    trainer = Ernie3DistillationTrainer(
        OnlineDistillation(teacher, students, student_loss_weight=1.0),
        settings(arguments.output, arguments.distillation_steps, arguments.distillation_rate, arguments.seed),
        train_dataset=taught,
        data_collator=collate,
        processing_class=texts.tokenizer,
        learning_rates={"teacher": 1e-4},
    )
    trainer.train()
    trainer.save_model(str(arguments.output))
    losses = {}
    for name, student in untaught.items():
        folder = arguments.output / f"student-{name}"
        after = settings(folder / "training", arguments.steps, arguments.learning_rate, arguments.seed)
        distilled = AutoModelForMaskedLM.from_pretrained(folder)
        loss = held_out_loss(distilled, alone, unseen, collate, after)
        distilled.save_pretrained(folder)
        steps = arguments.distillation_steps + arguments.steps
        without = settings(folder / "training", steps, arguments.learning_rate, arguments.seed)
        losses[name] = (loss, held_out_loss(student, whole, unseen, collate, without))
    return losses


def main() -> None:
    """Distils and prints."""
    arguments = parse_arguments()
    if arguments.output.exists() and not arguments.overwrite_output_dir:
        raise SystemExit(
            f"{arguments.output} exists already. Name a folder that does not, or pass --overwrite_output_dir to write "
            "over what is there."
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, (distilled, alone) in distil(arguments).items():
        student = AutoModelForMaskedLM.from_pretrained(arguments.output / f"student-{name}")
        print(
            f"student-{name}: {type(student).__name__}, {student.num_parameters():,} parameters; loss on unseen texts "
            f"{distilled:.3f} distilled, {alone:.3f} without"
        )


if __name__ == "__main__":
    main()
