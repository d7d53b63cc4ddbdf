"""The Trainer for online distillation: the pre-training Trainer, with several models on their own terms.

Every model has its own learning rate and its own gradient clipping: a norm taken over all of them would let the
students' gradients shrink the teacher's step. Every loss is logged. A checkpoint holds every model in a folder that
`AutoModel` opens, and training resumes from it.

Source: ERNIE 3.0 Titan, arXiv 2112.12731.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from .distillation import AUXILIARY_FILE, LEARNER_INPUTS, LOSSES, OnlineDistillation
from .trainer import COLUMNS, Ernie3PretrainingTrainer

TRAINING_ARGUMENTS_FILE = "training_args.bin"  # as the host's Trainer names it


class Ernie3DistillationTrainer(Ernie3PretrainingTrainer):
    """Trains an [`OnlineDistillation`].

    Data are what [`Ernie3PretrainingTrainer`] takes, mixed batches of all tasks of the teacher (memories, weights and
    schedule work as there; the schedule's dropout is the teacher's), or rows of the understanding branch alone with
    any collator. Logs hold every model's losses, as `teacher`, `assistant/distillation`, `<student>/distillation` and
    `<name>/own`.

    Args:
        model: The module with teacher, assistant and students.
        learning_rates: Model (`teacher`, `assistant`, a student's name) -> peak learning rate; whoever is not named
            takes that of the arguments. The schedule scales all of them alike.
        teaching_share: The share of all steps in which the teacher teaches. After it, in the same run, learners go on
            with their own objective alone (`student_loss_weight` must be above 0), a teacher that is not frozen with
            its own.
        *args: Of `transformers.Trainer`.
        **kwargs: Of [`Ernie3PretrainingTrainer`].

    Raises:
        TypeError: another model.
        ValueError: a learning rate for a model that is not there, an optimizer that makes its own groups, or a share
            that is not in (0, 1] or leaves learners nothing to learn.

    ```python
    >>> from transformers import TrainingArguments
    >>> from hf_glm_ernie import Ernie3DistillationTrainer, OnlineDistillation

    >>> together = OnlineDistillation(teacher, {"small": small, "tiny": tiny}, assistant=assistant)
    >>> trainer = Ernie3DistillationTrainer(
    ...     together,
    ...     TrainingArguments("out"),
    ...     data_collator=collator,
    ...     train_dataset=rows,
    ...     learning_rates={"tiny": 5e-4},
    ... )
    >>> trainer.train()
    >>> trainer.save_model()  # out/teacher, out/assistant, out/student-small, out/student-tiny
    ```
    """

    columns = [*dict.fromkeys((*COLUMNS, *LEARNER_INPUTS))]
    part_of_tasks = "teacher"
    takes_plain_rows = True
    sums_tasks = False

    def __init__(
        self,
        model: OnlineDistillation,
        *args: Any,
        learning_rates: Mapping[str, float] | None = None,
        teaching_share: float = 1.0,
        **kwargs: Any,
    ):
        if not isinstance(model, OnlineDistillation):
            raise TypeError(f"model is a {type(model).__name__}; pass an OnlineDistillation of teacher and students.")
        unknown = set(learning_rates or {}) - set(model.models())
        if unknown:
            raise ValueError(f"learning_rates names {sorted(unknown)}; the models are {list(model.models())}.")
        if not 0 < teaching_share <= 1:
            raise ValueError(f"teaching_share={teaching_share} must be above 0 and at most 1.")
        if teaching_share < 1 and model.student_loss_weight == 0:
            raise ValueError(
                f"teaching_share={teaching_share} leaves learners their own objective, but student_loss_weight is 0. "
                "Pass OnlineDistillation(student_loss_weight=...), or teaching_share=1."
            )
        self.learning_rates = dict(learning_rates or {})
        super().__init__(model, *args, **kwargs)
        self.add_callback(_EndTeaching(model, teaching_share))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One optimizer with two groups a model: with and without weight decay."""
        if self.optimizer is not None:
            return self.optimizer
        groups = []
        for name, one in self._container().models().items():
            decayed = set(self.get_decay_parameter_names(one))
            for weight_decay, wanted in ((self.args.weight_decay, True), (0.0, False)):
                parameters = [
                    parameter
                    for key, parameter in one.named_parameters()
                    if parameter.requires_grad and (key in decayed) == wanted
                ]
                if parameters:
                    learning_rate = self.learning_rates.get(name, self.args.learning_rate)
                    groups.append({"params": parameters, "weight_decay": weight_decay, "lr": learning_rate})
        optimizer_class, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args)
        if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)) or (
            settings.keys() & {"params", "model", "optimizer_dict"}
        ):
            raise ValueError(
                f"optim={self.args.optim} makes its own parameter groups; distillation needs one that takes groups, "
                "such as adamw_torch."
            )
        self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def loss_names(self) -> list[str]:
        """The tasks' losses, and every model's."""
        learners = self._container().learners()
        return [*super().loss_names(), "teacher", *(f"{name}/{part}" for name in learners for part in LOSSES)]

    def losses_to_log(self, outputs: Any, mixed: bool) -> dict[str, torch.Tensor]:
        """A pass's losses: the tasks', where the batch was a mixed one, and every model's."""
        return super().losses_to_log(outputs, mixed) | outputs["model_losses"]

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Each model's gradients by their own norm; the norm of all of them is returned."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        norms = [
            nn.utils.clip_grad_norm_(one.parameters(), self.args.max_grad_norm)
            for one in self._container().models().values()
        ]
        return torch.stack(norms).norm()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Every model in its folder, with the tokenizer."""
        if not self.args.should_save:
            return
        directory = output_dir if output_dir is not None else self.args.output_dir
        assert directory is not None
        for folder in self._container().save_pretrained(directory, state_dict):
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
        torch.save(self.args, os.path.join(directory, TRAINING_ARGUMENTS_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or not (Path(resume_from_checkpoint) / AUXILIARY_FILE).is_file():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._container().load_pretrained(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            assert self.state.best_model_checkpoint is not None
            self._container().load_pretrained(self.state.best_model_checkpoint)

    def _container(self) -> OnlineDistillation:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)


class _EndTeaching(TrainerCallback):
    """Tells the module by the step whether the teacher teaches; a resumed run finds its place by itself."""

    def __init__(self, module: OnlineDistillation, share: float) -> None:
        self.module, self.share = module, share

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.module.teaching = state.global_step < self.share * state.max_steps

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.module.teaching = True  # evaluation gives every loss


__all__ = ["Ernie3DistillationTrainer"]
