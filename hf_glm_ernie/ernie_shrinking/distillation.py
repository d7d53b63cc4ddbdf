"""Training a pruned student on its teacher: hidden states of every layer, the teacher's answers in place of labels.

`loss = 0.1 * (sum of the mean squared differences of the embedding's output and of every layer's) + soft cross
entropy to the teacher's answers`, as in PaddleNLP's DynaBERT; labels are not used. Where it and this differ:

- PaddleNLP takes a softmax over whatever a model returns first, for UIE over the tokens' probabilities. Here an answer
  is read as the task reads it: classes and tags by softmax, UIE's tokens, UTC's options and several labels of a text
  each as a yes or no of its own, the places of a QA answer by a softmax over tokens, numbers by their difference.
- Padding takes no part, neither in hidden states nor in answers.
- The student gets everything the model takes; PaddleNLP drops UIE's positions and mask.

Source: PaddleNLP 2.8.1, `trainer/trainer_compress.py`; PaddleSlim's `DistillConfig`. Letters in shape comments: B
batch, T tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import Trainer
from transformers.utils import ModelOutput

HIDDEN_WEIGHT = 0.1
CLASSES, YES_OR_NO, PLACES, NUMBERS = "classes", "yes or no", "places", "numbers"


def kind_of_answers(model: Any) -> str:
    """How a model's answers are read: one of `CLASSES`, `YES_OR_NO`, `PLACES`, `NUMBERS`."""
    name = type(model).__name__
    if name in ("ErnieForUIE", "ErnieForUTC"):
        return YES_OR_NO
    if name.endswith("ForQuestionAnswering"):
        return PLACES
    if name.endswith("ForSequenceClassification"):
        return {"multi_label_classification": YES_OR_NO, "regression": NUMBERS}.get(
            model.config.problem_type or "", CLASSES
        )
    return CLASSES


def hidden_loss(
    student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], read: torch.Tensor
) -> torch.Tensor:
    """The sum over layers of the mean squared difference at tokens that are read.

    Args:
        student: The embedding's output and every layer's, each (B, T, hidden).
        teacher: The same of the teacher.
        read: (B, T) bool, False at padding.
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([F.mse_loss(mine[read].float(), its[read].float()) for mine, its in pairs]).sum()


def answer_loss(student: torch.Tensor, teacher: torch.Tensor, there: torch.Tensor, kind: str) -> torch.Tensor:
    """The soft cross entropy of one output.

    Args:
        student: Logits; for `PLACES` (B, T), else of any shape with classes last.
        teacher: The teacher's, of the same shape.
        there: Which are there, bool: of the shape of `student`, for `CLASSES` without the last axis.
        kind: As in [`kind_of_answers`].

    Returns:
        The mean over what is there (for `PLACES` over rows), fp32.
    """
    student, teacher = student.float(), teacher.float()
    if kind == NUMBERS:
        return F.mse_loss(student, teacher)
    if kind == YES_OR_NO:
        return F.binary_cross_entropy_with_logits(student[there], teacher[there].sigmoid())
    if kind == PLACES:
        student, teacher = (one.masked_fill(~there, torch.finfo(one.dtype).min) for one in (student, teacher))
        return -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1).mean()
    student, teacher = student[there], teacher[there]
    return -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1).mean()


def distillation_loss(
    student: ModelOutput, teacher: ModelOutput, inputs: dict[str, torch.Tensor], kind: str, pad_token_id: int
) -> torch.Tensor:
    """The whole loss; `student` and `teacher` are outputs with hidden states for the same inputs."""
    read = inputs["input_ids"] != pad_token_id
    hidden = hidden_loss(student["hidden_states"], teacher["hidden_states"], read.flatten(0, -2))
    names = ("start_logits", "end_logits") if "start_logits" in student else ("logits",)
    answers = []
    for name in names:
        mine, its = student[name], teacher[name]
        there = read
        if "omask_positions" in inputs:
            there = inputs["omask_positions"] > 0  # (B, options)
        elif mine.shape[: read.ndim] != read.shape:  # an answer for each row, not each token
            there = torch.ones(
                mine.shape[:-1] if kind == CLASSES else mine.shape, dtype=torch.bool, device=mine.device
            )
        answers.append(answer_loss(mine, its, there, kind))
    return HIDDEN_WEIGHT * hidden + torch.stack(answers).mean()


class DistillationTrainer(Trainer):
    """A `Trainer` whose training loss is [`distillation_loss`]; evaluation is the host's.

    Args:
        *args: As in the host.
        teacher: Of the student's hidden size and task.
        **kwargs: As in the host.
    """

    def __init__(self, *args: Any, teacher: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device).eval()

    def compute_loss(  # type: ignore[override]  # the host types what it returns more narrowly
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As in the host."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        given = {name: value for name, value in inputs.items() if name not in (self.args.label_names or ())}
        with torch.no_grad():
            teacher = self.teacher(**given, output_hidden_states=True)
        student = model(**given, output_hidden_states=True)
        config = self.teacher.config
        loss = distillation_loss(student, teacher, given, kind_of_answers(self.teacher), config.pad_token_id)
        return (loss, student) if return_outputs else loss


__all__ = [
    "DistillationTrainer",
    "answer_loss",
    "distillation_loss",
    "hidden_loss",
    "kind_of_answers",
]
